"""Names that lead behind URLs and into tars, through real servers and real tars."""

import csv
import io
import os
import socket
import tarfile
from collections.abc import Iterator
from pathlib import Path

import fsspec
import numpy as np
import pytest
import s3fs
from conftest import prepare
from moto.server import ThreadedMotoServer

from data.servers import Server, serving
from mlfinetune.data import files, images
from mlfinetune.data.manifest import read_splits, read_table
from mlfinetune.errors import DataError, ImageError
from mlfinetune.survey import SourceOptions

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
    """The URL of a bucket in a server that speaks S3."""
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
    with files.opened(name) as file:
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
        images.decode(url, CAP)
    assert str(caught.value).startswith(url)


def test_what_is_not_there_is_asked_for_once(server: Server) -> None:
    with pytest.raises(ImageError, match="no such object"):
        images.decode(f"{server.url}/images/nowhere.jpg", CAP)
    assert server.asked["/images/nowhere.jpg"] == 1


def test_a_server_that_is_not_there(folder: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/a.jpg"
        with pytest.raises(ImageError, match=r"a\.jpg: .*Connect.*; tried"):
            images.decode(url, CAP)


def test_an_object_without_end_is_refused(
    folder: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "large.jpg").write_bytes(bytes(3 * 2**20))
    monkeypatch.setattr(files, "MAX_REMOTE", 2**20)
    with pytest.raises(ImageError, match="more than 1,048,576 bytes"):
        images.decode(f"{server.url}/large.jpg", CAP)


def test_a_protocol_that_nobody_knows() -> None:
    with pytest.raises(ImageError, match=r"abc://x/y\.jpg: .*abc"):
        images.decode("abc://x/y.jpg", CAP)


def test_a_package_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "gcsfs", None)
    with pytest.raises(ImageError, match=r"pip install 'mlfinetune\[gs\]'"):
        images.decode("gs://x/y.jpg", CAP)


def test_a_batch_is_asked_for_at_once(folder: Path, server: Server) -> None:
    names = [f"{server.url}/images/{p.name}" for p in sorted((folder / "images").iterdir())]
    with files.at_hand([*names, str(picture(folder))]):
        assert server.most > 1
        for name in names:
            content(name)
    assert set(server.asked.values()) == {1}


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
    assert np.array_equal(images.decode(name, CAP), images.decode(picture(folder), CAP))
    assert files.listing(f"{bucket}/set/images/")[0] == name
    assert files.listing(f"{bucket}/set/*.csv") == [f"{bucket}/set/tags.csv"]
    with pytest.raises(ImageError, match="no such object"):
        images.decode(f"{bucket}/set/images/none.jpg", CAP)


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
    assert files.stamp(f"{tar}/a/7.bin") == (700, tar.stat().st_mtime_ns)
    with pytest.raises(FileNotFoundError):
        files.stamp(f"{tar}/a/51.bin")


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
        list(files.members(str(tar)))


def test_links_in_a_tar_lead_nowhere(tmp_path: Path) -> None:
    tar = tmp_path / "x.tar"
    with tarfile.open(tar, "w") as file:
        entry = tarfile.TarInfo("passwd.jpg")
        entry.type, entry.linkname = tarfile.SYMTYPE, "/etc/passwd"
        file.addfile(entry)
    with pytest.raises(ImageError, match="no such file"):
        images.decode(f"{tar}/passwd.jpg", CAP)
