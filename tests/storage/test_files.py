"""Names that lead behind URLs and into tars, through real servers and real tars."""

import csv
import gzip
import io
import os
import signal
import socket
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import fsspec
import numpy as np
import pytest
import s3fs
from conftest import prepare

from mlfinetune.data.images import decode
from mlfinetune.data.read import read_splits, read_table
from mlfinetune.data.table import SourceOptions
from mlfinetune.errors import DataError, ImageError
from mlfinetune.location import parse_location
from mlfinetune.storage import files
from mlfinetune.storage.cache import get_cache_folder
from mlfinetune.storage.tars import _load_index, list_members
from storage.servers import Server, serving

CAP = 10**6


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "PAUSE_S", 0.01)
    monkeypatch.setattr(files, "STALLED_S", 0.5)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return prepare(tmp_path, 12)


@pytest.fixture
def server(folder: Path) -> Iterator[Server]:
    with serving(folder) as found:
        yield found


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """Return the URL of a bucket in a server that speaks S3."""
    from moto.server import ThreadedMotoServer  # not for every process that collects this file

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (
            ("AWS_ENDPOINT_URL", f"http://{host}:{port}"),
            ("AWS_ACCESS_KEY_ID", "testing"),
            ("AWS_SECRET_ACCESS_KEY", "testing"),
            ("AWS_DEFAULT_REGION", "us-east-1"),
        ):
            patch.setenv(name, value)
        s3fs.S3FileSystem(skip_instance_cache=True).mkdir("pictures")
        yield "s3://pictures"
    server.stop()


def picture(folder: Path) -> Path:
    return sorted((folder / "images").iterdir())[0]


def content(name: str) -> bytes:
    with files.open_binary(name) as file:
        return file.read()


# ---- behind URLs ----


@pytest.mark.parametrize("fault", ["503", "stall", "cut"])
def test_an_answer_that_fails_is_asked_for_again(folder: Path, server: Server, fault: str) -> None:
    path = f"/images/{picture(folder).name}"
    server.faults[path] = [fault] * (files.TRIES - 1)
    assert content(server.url + path) == picture(folder).read_bytes()
    assert server.asked[path] == files.TRIES


@pytest.mark.parametrize("fault", ["503", "stall", "cut"])
def test_one_that_goes_on_failing_is_told_with_its_url(
    folder: Path, server: Server, fault: str
) -> None:
    url = f"{server.url}/images/{picture(folder).name}"
    server.faults[url.removeprefix(server.url)] = [fault] * 99
    with pytest.raises(ImageError, match=f"tried {files.TRIES} times") as caught:
        decode.decode_image(url, CAP)
    assert str(caught.value).startswith(url)


def test_what_is_not_there_is_asked_for_once(server: Server) -> None:
    with pytest.raises(ImageError, match="no such object"):
        decode.decode_image(f"{server.url}/images/nowhere.jpg", CAP)
    assert server.asked["/images/nowhere.jpg"] == 1


def test_a_server_that_is_not_there(folder: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/a.jpg"
        with pytest.raises(ImageError, match=r"a\.jpg: .*Connect.*; tried"):
            decode.decode_image(url, CAP)


def test_an_object_without_end_is_refused(
    folder: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "large.jpg").write_bytes(bytes(3 * 2**20))
    monkeypatch.setattr(files, "MAX_REMOTE", 2**20)
    with pytest.raises(ImageError, match="more than 1,048,576 bytes"):
        decode.decode_image(f"{server.url}/large.jpg", CAP)


def test_a_protocol_that_nobody_knows() -> None:
    with pytest.raises(ImageError, match=r"abc://x/y\.jpg: .*abc"):
        decode.decode_image("abc://x/y.jpg", CAP)


@pytest.mark.parametrize(
    ("package", "url", "extra"),
    [("gcsfs", "gs://x/y.jpg", "gs"), ("huggingface_hub", "hf://x/y/z.jpg", "hub")],
)
def test_a_package_that_is_missing(
    monkeypatch: pytest.MonkeyPatch, package: str, url: str, extra: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    found = sys.modules["fsspec.registry"]._registry  # by other tests
    monkeypatch.delitem(found, url.partition(":")[0], raising=False)
    with pytest.raises(ImageError, match=rf"pip install 'mlfinetune\[{extra}\]'"):
        decode.decode_image(url, CAP)


def test_a_batch_is_asked_for_at_once(folder: Path, server: Server) -> None:
    names = [f"{server.url}/images/{p.name}" for p in sorted((folder / "images").iterdir())]
    with files.prefetched([*names, str(picture(folder))]):
        assert server.most > 1
        for name in names:
            content(name)
    assert set(server.asked.values()) == {1}


def test_ctrl_c_does_not_wait_for_a_server() -> None:
    """Fetches wait half a minute each, four times over."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(60)
        urls = [f"http://127.0.0.1:{silent.getsockname()[1]}/{n}.jpg" for n in range(3)]
        code = f"from mlfinetune.storage.files import fetch_objects; fetch_objects({urls})"
        child = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)
        connections = [silent.accept()[0] for _ in urls]
        child.send_signal(signal.SIGINT)
        try:
            _, said = child.communicate(timeout=20)
        finally:
            child.kill()
            for connection in connections:
                connection.close()
    assert said.endswith("KeyboardInterrupt\n")


@pytest.mark.parametrize("images", [None, "images", "elsewhere"])
def test_a_table_behind_a_url(folder: Path, server: Server, images: str | None) -> None:
    """Its names are relative to its own URL, unless data.images says another."""
    root = server.url if images is None else f"{server.url}/{images}"
    if images is not None:
        text = (folder / "tags.csv").read_text().replace("images/", "")
        (folder / "tags.csv").write_text(text)
    options = SourceOptions(images=None if images is None else root)
    table = read_table(f"{server.url}/tags.csv", options)
    assert (table.root, table.origin, len(table)) == (root, f"{server.url}/tags.csv", 12)
    splits = read_splits(f"{server.url}/tags.csv", None, options)
    path = splits.train.path(0)
    assert path.startswith(f"{root}/")
    if images != "elsewhere":
        assert content(path)


def test_a_packed_table_behind_a_url(folder: Path, server: Server) -> None:
    """Its ending is kept in the cache, so that it is told as a file is."""
    packed = gzip.compress((folder / "tags.csv").read_bytes())
    (folder / "tags.v2.CSV.gz").write_bytes(packed)
    table = read_table(f"{server.url}/tags.v2.CSV.gz", SourceOptions())
    assert (table.root, len(table), table.faults) == (server.url, 12, ())


def test_urls_in_the_cells(folder: Path, server: Server) -> None:
    """Below the root they are names as others are; elsewhere somebody has to allow it."""
    with (folder / "tags.csv").open() as file:
        rows = list(csv.reader(file))
    with (folder / "urls.csv").open("w") as file:
        csv.writer(file).writerows([rows[0], *([f"{server.url}/{r[0]}", *r[1:]] for r in rows[1:])])
    table = read_table(folder / "urls.csv", SourceOptions())
    assert len(table.faults) == 12
    assert "outside the image root" in str(table.faults[0])
    allowed = SourceOptions(allow_outside_root=True)
    assert not read_table(folder / "urls.csv", allowed).faults
    own = SourceOptions(images=server.url)
    assert not read_table(folder / "urls.csv", own).faults


@pytest.mark.parametrize(
    "name",
    [
        "/etc/passwd",
        "../up.jpg",
        "a/../../b.jpg",
        "file://localhost/etc/passwd",
        "http://other/a.jpg",
    ],
)
def test_names_that_leave_a_root_behind_a_url(folder: Path, server: Server, name: str) -> None:
    (folder / "bad.csv").write_text(f"image,labels\n{name},x\n")
    table = read_table(f"{server.url}/bad.csv", SourceOptions())
    assert "outside the image root" in str(table.faults[0])


def test_tables_that_are_not_read_from_urls(server: Server) -> None:
    with pytest.raises(DataError, match="download it"):
        read_table(f"{server.url}/instances.json", SourceOptions())
    with pytest.raises(DataError, match=r"nowhere\.csv: no such object"):
        read_table(f"{server.url}/nowhere.csv", SourceOptions())


def test_http_has_no_listings(server: Server) -> None:
    with pytest.raises(DataError, match="http has no listings"):
        files.list_urls(f"{server.url}/images/")


def test_a_password_in_a_url_is_refused() -> None:
    with pytest.raises(ValueError, match="no user or password"):
        parse_location("https://me:secret@host/tags.csv")
    assert parse_location("https://host/a@b/tags.csv") == "https://host/a@b/tags.csv"


def test_a_protocol_in_capitals(folder: Path, server: Server) -> None:
    url = f"{server.url}/images/{picture(folder).name}".replace("http", "HTTP", 1)
    assert content(url) == picture(folder).read_bytes()


def test_no_more_is_held_than_memory_may(
    folder: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rest is asked for as it is opened."""
    monkeypatch.setattr(files, "MAX_PREFETCHED", 1)
    monkeypatch.setattr(files, "PARALLEL_FETCHES", 4)
    names = [f"{server.url}/images/{p.name}" for p in sorted((folder / "images").iterdir())]
    with files.prefetched(names):
        assert server.asked.total() == 4
        assert [content(n) for n in names] == [
            p.read_bytes() for p in sorted((folder / "images").iterdir())
        ]


def test_memory() -> None:
    fsspec.filesystem("memory").pipe("/some/a.bin", b"abc")
    assert content("memory://some/a.bin") == b"abc"


def test_a_bucket(folder: Path, bucket: str) -> None:
    system = s3fs.S3FileSystem(skip_instance_cache=True)
    system.put(str(folder / "images"), "pictures/set/images", recursive=True)
    system.put(str(folder / "tags.csv"), "pictures/set/tags.csv")
    table = read_table(f"{bucket}/set/tags.csv", SourceOptions())
    assert table.root == f"{bucket}/set"
    assert not table.faults
    name = f"{bucket}/set/images/{picture(folder).name}"
    assert np.array_equal(decode.decode_image(name, CAP), decode.decode_image(picture(folder), CAP))
    assert files.list_urls(f"{bucket}/set/images/")[0] == name
    assert files.list_urls(f"{bucket}/set/*.csv") == [f"{bucket}/set/tags.csv"]
    with pytest.raises(ImageError, match="no such object"):
        decode.decode_image(f"{bucket}/set/images/none.jpg", CAP)


# ---- in tars ----


def pack(tar: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(tar, "w") as file:
        for name, data in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            file.addfile(entry, io.BytesIO(data))
    return tar


def test_members_are_read_where_they_lie(tmp_path: Path) -> None:
    held = {f"a/{n}.bin": os.urandom(n * 100) for n in range(50)}
    tar = pack(tmp_path / "x.tar", held)
    for name in reversed(held):
        assert content(f"{tar}/{name}") == held[name]
    assert files.read_stamp(f"{tar}/a/7.bin") == (700, tar.stat().st_mtime_ns)
    assert files.read_stamp(f"{tar}/a/51.bin") is None
    with pytest.raises(FileNotFoundError):
        content(f"{tar}/a/51.bin")


def test_a_tar_that_has_changed_is_indexed_anew(tmp_path: Path) -> None:
    tar = pack(tmp_path / "x.tar", {"1": b"old"})
    assert content(f"{tar}/1") == b"old"
    pack(tar, {"0": bytes(5000), "1": b"new!"})
    assert content(f"{tar}/1") == b"new!"


def test_a_member_that_stands_twice_is_its_last(tmp_path: Path) -> None:
    tar = tmp_path / "x.tar"
    pack(tar, {"1": b"first"})
    with tarfile.open(tar, "a") as file:
        entry = tarfile.TarInfo("1")
        entry.size = 4
        file.addfile(entry, io.BytesIO(b"last"))
    assert content(f"{tar}/1") == b"last"


@pytest.mark.parametrize("cut", [100, 600, 1100])
def test_tars_that_are_cut_short(tmp_path: Path, cut: int) -> None:
    tar = pack(tmp_path / "x.tar", {"1": bytes(700), "2": bytes(700)})
    tar.write_bytes(tar.read_bytes()[:cut])
    with pytest.raises(OSError, match="no plain tar that can be read"):
        list(list_members(str(tar)))


def test_links_in_a_tar_lead_nowhere(tmp_path: Path) -> None:
    tar = tmp_path / "x.tar"
    with tarfile.open(tar, "w") as file:
        entry = tarfile.TarInfo("passwd.jpg")
        entry.type, entry.linkname = tarfile.SYMTYPE, "/etc/passwd"
        file.addfile(entry)
    with pytest.raises(ImageError, match="no such file"):
        decode.decode_image(f"{tar}/passwd.jpg", CAP)


def test_members_that_begin_with_a_dot_and_a_slash(tmp_path: Path) -> None:
    """As `tar cf x.tar .` writes them; those that would leave the tar are none."""
    tar = pack(tmp_path / "x.tar", {"./a/1.jpg": b"1", "../2.jpg": b"2", "/3.jpg": b"3"})
    assert [name for name, *_ in list_members(str(tar))] == ["a/1.jpg"]
    for name in ("a/1.jpg", "./a/1.jpg", "a/../a/1.jpg"):
        assert content(f"{tar}/{name}") == b"1"


def test_a_tar_below_a_folder_that_is_named_like_one(tmp_path: Path) -> None:
    (tmp_path / "old.tar").mkdir()
    tar = pack(tmp_path / "old.tar" / "x.tar", {"1": b"1"})
    assert content(f"{tar}/1") == b"1"


def test_any_damage_to_a_header_is_noticed(tmp_path: Path) -> None:
    """tarfile takes it for the end of the tar."""
    tar = pack(tmp_path / "x.tar", {str(n): bytes(10) for n in range(5)})
    whole = tar.read_bytes()
    for at in range(0, 10 * 512, 512):
        tar.write_bytes(whole[: at + 100] + b"\xff" + whole[at + 101 :])
        if at % 1024 == 0:
            with pytest.raises(OSError, match="no plain tar"):
                list(list_members(str(tar)))
    for cut in range(512, 10 * 512, 512):
        tar.write_bytes(whole[:cut])
        with pytest.raises(OSError, match="no plain tar"):
            list(list_members(str(tar)))


def header(name: bytes, size: bytes, kind: bytes = b"0") -> bytes:
    """Return a tar header with any bytes in place of its size."""
    block = bytearray(512)
    block[:100] = name.ljust(100, b"\0")
    block[100:108], block[124:136], block[156:157] = b"0000644\0", size.ljust(12, b"\0"), kind
    block[257:265] = b"ustar\x0000"
    block[148:156] = b" " * 8
    block[148:156] = f"{sum(block):06o}\0 ".encode()
    return bytes(block)


def base256(size: int) -> bytes:
    """Return a size as GNU tar writes those that octal digits cannot hold."""
    return (b"\x80" if size >= 0 else b"\xff") + size.to_bytes(11, "big", signed=True)


@pytest.mark.parametrize(
    "hostile",
    [
        header(b"a", b"00000000012\0") + bytes(512) + header(b"b", base256(-512)),
        header(b"a", base256(-1024)),
        header(b"x", base256(2**60), b"L"),
        header(b"x", base256(2**80), b"L"),
        header(b"x", base256(2**80), b"Q"),
        header(b"x", base256(2**40)),
        header(b"x", b"00000000001\0", b"L") * 3000,
    ],
    ids=["loop", "below zero", "long name", "longer name", "odd", "large", "nested"],
)
def test_hostile_tars_end_soon(tmp_path: Path, hostile: bytes) -> None:
    (tmp_path / "x.tar").write_bytes(hostile + bytes(1024))
    with pytest.raises(OSError, match="no plain tar that can be read"):
        list(list_members(str(tmp_path / "x.tar")))
    assert files.read_stamp(str(tmp_path / "x.tar/a")) is None


def test_a_member_of_gigabytes_is_not_read(tmp_path: Path) -> None:
    tar = tmp_path / "x.tar"
    with tar.open("wb") as file:
        file.write(header(b"x.jpg", base256(2**35)))
        file.truncate(2**35 + 2048)
    with pytest.raises(ImageError, match="more than"):
        decode.decode_image(f"{tar}/x.jpg", CAP)


def test_a_damaged_index_is_made_anew(tmp_path: Path) -> None:
    tar = pack(tmp_path / "x.tar", {"1": b"one"})
    before = set(get_cache_folder("tars").iterdir())
    assert content(f"{tar}/1") == b"one"
    (index,) = set(get_cache_folder("tars").iterdir()) - before
    for damage in (b"", b"no array", index.read_bytes()[:-8]):
        index.write_bytes(damage)
        _load_index.cache_clear()
        assert content(f"{tar}/1") == b"one"


def test_without_a_cache_a_tar_is_read_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tar = pack(tmp_path / "x.tar", {"1": b"one"})
    (tmp_path / "file").touch()
    monkeypatch.setenv("MLFINETUNE_CACHE", str(tmp_path / "file"))
    assert content(f"{tar}/1") == b"one"
