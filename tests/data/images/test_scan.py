"""Every picture is looked at once, what was found is kept, and nothing that happens loses it."""

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import demo_data
import numpy as np
import pytest
from PIL import Image

from mlfinetune.data.images.decode import DECODE_VERSION, ImageInfo, decode_image, inspect_image
from mlfinetune.data.images.scan import ScanResult, find_digests, scan_images
from mlfinetune.errors import ImageError

CAP = 89_000_000
NO_PICTURE = "not a JPEG, PNG, WebP, AVIF, HEIC, GIF, BMP or TIFF picture"
SCRIPT = """
import json, sys
from mlfinetune.data.images import scan
if __name__ == "__main__":
    scan._CHUNK = 70
    paths = json.load(sys.stdin)
    for path, found in zip(paths, scan.scan_images(paths, 89_000_000)):
        print(json.dumps([path, found if isinstance(found, str) else found.digest]), flush=True)
"""


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a cache of the test's own."""
    monkeypatch.setenv("MLFINETUNE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "scan" / f"{DECODE_VERSION}.sqlite"


@pytest.fixture
def pictures(tmp_path: Path) -> list[str]:
    """Return twelve drawn pictures."""
    demo_data.write(tmp_path, count=12, size=32)
    return sorted(str(path) for path in (tmp_path / "images").iterdir())


def one(path: Path | str, cap: int = CAP) -> ScanResult:
    """Return the scan's result for one file."""
    (found,) = scan_images([str(path)], cap)
    return found


def links(folder: Path, picture: Path | str, count: int) -> list[str]:
    """Make so many names of one file."""
    folder.mkdir(exist_ok=True)
    paths = [str(folder / f"{number:04}.png") for number in range(count)]
    for path in paths:
        os.link(picture, path)
    return paths


def large(path: Path, side: int) -> Path:
    """Make a white picture that takes a while to decode."""
    Image.new("RGB", (side, side), "white").save(path, compress_level=1)
    return path


def replace(path: str, content: bytes) -> None:
    """Replace a file by another one with the same size and time."""
    before = os.stat(path)
    Path(path).write_bytes(content.ljust(before.st_size, b"\0")[: before.st_size])
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


# ---- what is kept -----------------------------------------------------------------------


def test_a_scan_says_what_a_look_says(pictures: list[str], tmp_path: Path) -> None:
    """In the given order, each path as often as it stands there, nothing for nothing."""
    (tmp_path / "bad.jpg").write_bytes(b"no picture")
    paths = [pictures[3], str(tmp_path / "bad.jpg"), pictures[0], pictures[3]]
    wanted = [inspect_image(Path(path), CAP) for path in (pictures[3], pictures[0], pictures[3])]
    assert list(scan_images(paths, CAP)) == [wanted[0], NO_PICTURE, *wanted[1:]]
    assert list(scan_images(paths, CAP)) == [wanted[0], NO_PICTURE, *wanted[1:]]
    assert list(scan_images([], CAP)) == []


def test_a_file_is_not_read_again_while_it_seems_the_same(pictures: list[str]) -> None:
    """A file of the same size and time is not opened; with another time it is."""
    known = one(pictures[0])
    replace(pictures[0], b"garbage")
    assert one(pictures[0]) == known
    os.utime(pictures[0])
    assert one(pictures[0]) == NO_PICTURE


def test_what_is_no_picture_is_remembered_too(pictures: list[str], tmp_path: Path) -> None:
    """A thousand broken files are not read at every start."""
    bad, good = tmp_path / "bad.jpg", Path(pictures[0]).read_bytes()
    bad.write_bytes(b"x" * len(good))
    assert one(bad) == NO_PICTURE
    replace(str(bad), good)
    assert one(bad) == NO_PICTURE
    os.utime(bad)
    assert isinstance(one(bad), ImageInfo)


def test_a_damaged_picture_is_remembered_too(pictures: list[str]) -> None:
    """With the decoder's words."""
    content = Path(pictures[1]).read_bytes()
    Path(pictures[1]).write_bytes(content[: len(content) // 2])
    reason = one(pictures[1])
    assert str(reason).startswith("cannot be decoded (")
    replace(pictures[1], b"garbage")
    assert one(pictures[1]) == reason


def test_another_size_is_another_file(pictures: list[str]) -> None:
    """Even of the same age."""
    one(pictures[0])
    before = os.stat(pictures[0])
    Path(pictures[0]).write_bytes(b"garbage")
    os.utime(pictures[0], ns=(before.st_atime_ns, before.st_mtime_ns))
    assert one(pictures[0]) == NO_PICTURE


def test_the_cap_is_asked_anew(pictures: list[str]) -> None:
    """Lowered it refuses a known picture in decode's words, raised it takes a refused one."""
    with pytest.raises(ImageError) as caught:
        decode_image(Path(pictures[0]), 1023)
    assert one(pictures[0], 1023) == caught.value.reason
    assert isinstance(one(pictures[0], 1024), ImageInfo)
    assert one(pictures[0], 1023) == caught.value.reason
    assert isinstance(one(pictures[0], 1024), ImageInfo)


def test_a_file_that_could_not_be_read_is_tried_again(tmp_path: Path, pictures: list[str]) -> None:
    """Rights change without a change of size or age; so does a disk that did not answer."""
    stamp = os.stat(pictures[0])
    unreadable = Path("/proc/self/mem")  # a regular file, readable by none: Input/output error
    assert one(unreadable) == one(unreadable) == "Input/output error"
    assert one(tmp_path / "none.jpg") == "no such file"
    os.rename(pictures[0], tmp_path / "none.jpg")
    assert os.stat(tmp_path / "none.jpg").st_mtime_ns == stamp.st_mtime_ns
    assert isinstance(one(tmp_path / "none.jpg"), ImageInfo)
    with sqlite3.connect(tmp_path / "cache" / "scan" / f"{DECODE_VERSION}.sqlite") as store:
        kept = store.execute("SELECT path FROM found").fetchall()
    store.close()
    assert kept == [(os.fsencode(tmp_path / "none.jpg"),)]


def test_names_of_any_bytes_are_kept(pictures: list[str], tmp_path: Path) -> None:
    """Latin-1 from an old disk, quotes, a line break."""
    for name in (b"caf\xe9.jpg", b"it's; --.jpg", b"two\nlines.jpg"):
        path = os.path.join(str(tmp_path), os.fsdecode(name))
        shutil.copy(pictures[0], path)
        known = one(path)
        assert isinstance(known, ImageInfo)
        replace(path, b"garbage")
        assert one(path) == known


# ---- the cache itself -------------------------------------------------------------------


@pytest.mark.parametrize("content", [b"", b"garbage" * 999, b"SQLite format 3\0" + b"\xff" * 4096])
def test_a_cache_that_is_none_starts_anew(cache: Path, pictures: list[str], content: bytes) -> None:
    """A damaged cache is deleted: its content can be computed again."""
    cache.parent.mkdir(parents=True)
    cache.write_bytes(content)
    known = one(pictures[0])
    replace(pictures[0], b"garbage")
    assert one(pictures[0]) == known


def test_a_cache_in_pieces_begins_again(
    cache: Path, pictures: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """The scan goes on without it, and the next one has a new one."""
    links(cache.parents[2] / "many", pictures[0], 60)
    list(scan_images(sorted(str(path) for path in (cache.parents[2] / "many").iterdir()), CAP))
    content = cache.read_bytes()
    cache.write_bytes(content[:4096] + b"\xff" * (len(content) - 4096))
    assert isinstance(one(pictures[0]), ImageInfo)
    assert f"cache not used: {cache}: database disk image is malformed" in capsys.readouterr().err
    assert isinstance(one(pictures[0]), ImageInfo)
    assert sqlite3.connect(cache).execute("SELECT count(*) FROM found").fetchone() == (1,)


@pytest.mark.parametrize("content", ['{"width": 1, "tint": 0}', "[1, 2]", "3", "{"])
def test_a_row_of_another_version_is_told_of(
    cache: Path, pictures: list[str], capsys: pytest.CaptureFixture[str], content: str
) -> None:
    """The picture is looked at again; and no row holds a number of one run."""
    usual = one(pictures[0])
    with sqlite3.connect(cache) as store:
        assert "stamp" not in json.loads(*store.execute("SELECT found FROM found").fetchone())
        store.execute("UPDATE found SET found = ?", [content])
    store.close()
    assert one(pictures[0]) == usual
    assert f"cache not used: {cache}: " in capsys.readouterr().err


def test_a_cache_out_of_reach_is_told_of(
    cache: Path, pictures: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """A folder in its place stands for a disk that cannot be written."""
    cache.mkdir(parents=True)
    assert isinstance(one(pictures[0]), ImageInfo)
    assert f"cache not used: {cache}: unable to open database file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("variable", "value"),
    [("MLFINETUNE_CACHE", "/dev/null/x"), ("XDG_CACHE_HOME", "/dev/null/x"), ("HOME", "~")],
)
def test_a_cache_folder_that_cannot_be_made_is_told_of(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    pictures: list[str],
    variable: str,
    value: str,
) -> None:
    """A file in its way, or a user without a home; the message says what to set."""
    for name in ("MLFINETUNE_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, value)
    assert isinstance(one(pictures[0]), ImageInfo)
    said = capsys.readouterr().err
    assert "cache not used: " in said
    assert "set MLFINETUNE_CACHE to" in said


def test_a_user_without_a_home_may_name_a_folder(
    monkeypatch: pytest.MonkeyPatch, pictures: list[str]
) -> None:
    """As in a container that runs under any number."""
    monkeypatch.setenv("HOME", "~")
    assert isinstance(one(pictures[0]), ImageInfo)


def test_a_scan_waits_for_another_that_writes(cache: Path, pictures: list[str]) -> None:
    """The second scan waits, and loses nothing."""
    one(pictures[0])
    store = sqlite3.connect(cache, isolation_level=None)
    store.execute("BEGIN IMMEDIATE")
    waiting = start([pictures[1]])
    time.sleep(1)
    store.execute("COMMIT")
    store.close()
    assert [json.loads(line)[0] for line in waiting.communicate()[0].splitlines()] == [pictures[1]]
    assert waiting.returncode == 0


# ---- several processes ------------------------------------------------------------------


def start(paths: list[str]) -> subprocess.Popen[str]:
    """Start a scan in a process group of its own; it prints a line for each file."""
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT] if len(paths) < 64 else [sys.executable, script(paths[0])],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdin is not None
    process.stdin.write(json.dumps(paths))
    process.stdin.close()
    process.stdin = None
    return process


def script(beside: str) -> str:
    """Return the scan as a file, which processes that it starts can import."""
    path = Path(beside).parents[1] / "scan_all.py"
    path.write_text(SCRIPT)
    return str(path)


def group(leader: int) -> Iterator[Path]:
    """Yield the processes of a group that live, as folders of /proc."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, number = stat.read_text().rpartition(")")[2].split()[:3]
        except OSError:
            continue
        if int(number) == leader and state != "Z":
            yield stat.parent


def opened(member: Path) -> list[str]:
    """Return the files that a process has open."""
    try:
        return [os.readlink(number) for number in (member / "fd").iterdir()]
    except OSError:  # it has ended
        return []


def kill(member: Path) -> None:
    """Kill a process, as the system does when memory runs out."""
    with suppress(ProcessLookupError):
        os.kill(int(member.name), signal.SIGKILL)


def ends(leader: int, seconds: float) -> bool:
    """Return whether the whole process group has ended by then."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if not any(group(leader)):
            return True
        time.sleep(0.05)
    return False


def test_many_files_are_found_as_one_by_one_are(
    pictures: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Several processes, the same words, the same order; known ones between new ones."""
    (tmp_path / "bad.png").write_bytes(b"no picture")
    paths = [
        *links(tmp_path / "good", pictures[1], 60),
        *pictures,
        *links(tmp_path / "bad", tmp_path / "bad.png", 20),
    ]
    np.random.default_rng(0).shuffle(paths)
    serial = [one(path) for path in paths]
    monkeypatch.setenv("MLFINETUNE_CACHE", str(tmp_path / "other"))
    for path in paths[::10]:
        one(path)
    assert list(scan_images(paths, CAP)) == serial
    assert {type(found) for found in serial} == {str, ImageInfo}


def test_two_scans_at_once_both_finish(pictures: list[str], tmp_path: Path) -> None:
    """Of the same files, into the same cache, from nothing."""
    paths = links(tmp_path / "many", pictures[0], 100)
    both = [start(paths), start(paths)]
    digest = inspect_image(Path(pictures[0]), CAP).digest
    for process in both:
        out, err = process.communicate(timeout=60)
        assert [json.loads(line) for line in out.splitlines()] == [[path, digest] for path in paths]
        assert (process.returncode, err) == (0, "")


def test_a_decoder_that_dies_is_told_by_file(pictures: list[str], tmp_path: Path) -> None:
    """As of a lack of memory: who opens one of two large files is killed, the rest is fine."""
    many = links(tmp_path / "many", pictures[0], 200)
    culprits = [str(large(tmp_path / "many" / f"{name}.png", 5000)) for name in "ab"]
    paths = [*many[:20], culprits[0], *many[20:100], culprits[1], *many[100:]]
    process, seen = start(paths), set()
    while process.poll() is None:
        for member in group(process.pid):
            seen.add(member.name)
            if any(path in culprits for path in opened(member)):
                kill(member)
        time.sleep(0.01)
    found = dict(json.loads(line) for line in process.communicate()[0].splitlines())
    assert list(found) == paths
    crashed = "the decoder crashed on it, or ran out of memory"
    assert {found.pop(path) for path in culprits} == {crashed}
    assert set(found.values()) == {inspect_image(Path(pictures[0]), CAP).digest}
    assert len(seen) < 6 + 3 * len(os.sched_getaffinity(0))  # not a process a picture
    assert isinstance(one(culprits[0]), ImageInfo)  # with more memory it is tried again


@pytest.mark.parametrize("whom", ["group", "first"])
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_scan_that_is_stopped_leaves_no_process(tmp_path: Path, how: int, whom: str) -> None:
    """By Ctrl-C, which the whole group gets, or by a signal to the first process alone."""
    process = start(links(tmp_path / "many", large(tmp_path / "large.png", 3000), 400))
    try:
        assert process.stdout is not None
        process.stdout.readline()
        assert len(list(group(process.pid))) >= 2
        (os.killpg if whom == "group" else os.kill)(process.pid, how)
        assert ends(process.pid, 4)
    finally:
        for member in group(process.pid):
            kill(member)
    _, err = process.communicate(timeout=10)
    assert err.count("Traceback") == err.count("KeyboardInterrupt") == (how == signal.SIGINT)


def test_ctrl_c_at_the_start_is_told_once(tmp_path: Path) -> None:
    """Processes that are just being started are silent too."""
    process = start(links(tmp_path / "many", large(tmp_path / "large.png", 3000), 400))
    while process.poll() is None and len(list(group(process.pid))) < 3:
        time.sleep(0.01)
    time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=10)
    assert ends(process.pid, 4)
    assert err.count("Traceback") == 1


def test_digests_of_scanned_files_are_known(pictures: list[str], tmp_path: Path) -> None:
    """Of those alone that a scan has read as they are now, whatever their size."""
    found = list(scan_images(pictures[:5], CAP))
    Path(pictures[0]).write_bytes(b"another")
    known = find_digests([*pictures, str(tmp_path / "none.jpg"), "https://host.invalid/a.jpg"])
    expected = {row: info.digest for row, info in enumerate(found) if isinstance(info, ImageInfo)}
    del expected[0]
    assert known == expected
