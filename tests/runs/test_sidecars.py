"""Sidecars are written beside pictures, and never over what others wrote."""

import hashlib
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mlfinetune.data.images.keywords import read_sidecar
from mlfinetune.data.images.xmp_packet import SUBJECT, parse_packet, read_keywords
from mlfinetune.data.readers.tags import parse_tags
from mlfinetune.data.targets import LabelSpace
from mlfinetune.errors import CheckpointError, DataError
from mlfinetune.metrics.types import DecisionRule, Prediction
from mlfinetune.runs.predictions import LabelSelector
from mlfinetune.runs.sidecars import (
    SidecarError,
    SidecarWriter,
    name_checkpoint,
    refuse_distant,
)
from runs.photo_programs import read_by_exiftool, read_by_exiv2, run_tool
from runs.sidecar_samples import DARKTABLE, LIGHTROOM

LABELS = ("cat", "animals|birds", "<b>&\"'</b>", "größe 猫", "b/w")


def build_writer(
    kind: str = "xmp",
    labels: tuple[str, ...] = LABELS,
    say: Callable[[str], None] = print,
    **options: Any,
) -> SidecarWriter:
    """Return a writer of these labels."""
    selector = LabelSelector(LabelSpace(labels), DecisionRule.plain(len(labels)))
    return SidecarWriter(kind, selector, "pets/best.safetensors sha256:12", say, **options)


def predict(picture: Path, *labels: str, among: tuple[str, ...] = LABELS) -> Prediction:
    """Return the prediction of these labels, for a picture that is drawn where it is missing."""
    if not picture.exists():
        Image.new("RGB", (8, 8)).save(picture)
    return Prediction(str(picture), np.array([0.9 if name in labels else 0.1 for name in among]))


def test_two_programs_read_exactly_our_labels(tmp_path: Path) -> None:
    """exiftool and exiv2, in a new sidecar and in one of darktable."""
    writer = build_writer()
    writer.write(predict(tmp_path / "a.jpg", *LABELS))
    flat = ["cat", "birds", "<b>&\"'</b>", "größe 猫", "b/w"]
    paths = ["cat", "animals|birds", *flat[2:]]
    assert read_by_exiftool(tmp_path / "a.jpg.xmp") == (flat, paths)
    assert read_by_exiv2(tmp_path / "a.jpg.xmp") == (", ".join(flat), ", ".join(paths))
    (tmp_path / "b.png.xmp").write_text(DARKTABLE)
    writer.write(predict(tmp_path / "b.png", "cat"))
    expected = ["sea", "A & B", "cat"], ["places|sea", "A & B", "cat"]
    assert read_by_exiftool(tmp_path / "b.png.xmp") == expected
    assert read_by_exiv2(tmp_path / "b.png.xmp") == tuple(map(", ".join, expected))


@pytest.mark.parametrize("program", ["exiftool", "exiv2"])
def test_sidecars_that_programs_write_anew_are_merged(tmp_path: Path, program: str) -> None:
    """The keyword that they add is a person's; ours go, and their own sidecars are read."""
    sidecar = tmp_path / "a.jpg.xmp"
    build_writer().write(predict(tmp_path / "a.jpg", *LABELS))
    if program == "exiftool":
        run_tool("exiftool", "-q", "-overwrite_original", "-XMP-dc:Subject+=sea", sidecar)
    else:
        run_tool("exiv2", "-M", "set Xmp.dc.subject XmpBag sea", sidecar)
    found = read_sidecar(sidecar)
    assert (found.by_people[SUBJECT], len(found.ours[SUBJECT])) == (["sea"], len(LABELS))
    build_writer().write(predict(tmp_path / "a.jpg", "cat"))
    assert read_by_exiftool(sidecar) == (["sea", "cat"], ["sea", "cat"])
    build_writer().write(predict(tmp_path / "a.jpg"))
    assert read_by_exiftool(sidecar) == (["sea"], [])


def test_tags_without_their_record_are_peoples(tmp_path: Path) -> None:
    """The command of the docs makes them so."""
    build_writer().write(predict(tmp_path / "a.jpg", "cat"))
    options = ("-q", "-overwrite_original", "-r", "-ext", "xmp", "-XMP-mlfinetune:all=")
    run_tool("exiftool", *options, tmp_path)
    found = read_sidecar(tmp_path / "a.jpg.xmp")
    assert (found.by_people[SUBJECT], found.ours[SUBJECT]) == (["cat"], [])
    page = Path(__file__).parents[2] / "docs/archives.md"
    assert f"exiftool {' '.join(options[1:])} photos/" in page.read_text()


def test_nothing_is_written_where_nothing_changes(tmp_path: Path) -> None:
    """Not a byte, not a time; and no sidecar for a picture without labels."""
    writer = build_writer()
    writer.write(predict(tmp_path / "a.jpg", "cat"))
    os.utime(tmp_path / "a.jpg.xmp", (1, 1))
    picture = (tmp_path / "a.jpg").read_bytes()
    writer.write(predict(tmp_path / "a.jpg", "cat"))
    writer.write(predict(tmp_path / "b.jpg"))
    writer.write(Prediction(str(tmp_path / "c.jpg"), None, "no such file"))
    assert (tmp_path / "a.jpg.xmp").stat().st_mtime == 1
    assert (tmp_path / "a.jpg").read_bytes() == picture
    assert sorted(os.listdir(tmp_path)) == ["a.jpg", "a.jpg.xmp", "b.jpg"]
    assert writer.counts.describe(False) == (
        "sidecars: 1 new, 0 changed, 2 as they are; 1 tag added, 0 removed"
    )


def test_a_dry_run_writes_nothing(tmp_path: Path) -> None:
    """It tells the same change."""
    change = build_writer(dry_run=True).write(predict(tmp_path / "a.jpg", "cat"))
    assert change is not None
    assert change.merge.added == ("cat",)
    assert os.listdir(tmp_path) == ["a.jpg"]


def test_keywords_inside_the_picture_are_not_hidden(tmp_path: Path) -> None:
    """A new sidecar has them too, as people's; so has one beside that of another program."""
    packet = LIGHTROOM.encode()
    Image.new("RGB", (8, 8)).save(tmp_path / "a.jpg", xmp=packet)
    build_writer().write(predict(tmp_path / "a.jpg", "cat"))
    assert read_sidecar(tmp_path / "a.jpg.xmp").by_people[SUBJECT] == ["sea"]
    (tmp_path / "b.xmp").write_bytes(packet)
    build_writer().write(predict(tmp_path / "b.jpg", "cat"))
    assert read_sidecar(tmp_path / "b.jpg.xmp").by_people[SUBJECT] == ["sea"]


@pytest.mark.parametrize(
    "content", [b"<x:xmpmeta", b"<!DOCTYPE r [<!ENTITY x 'y'>]><r>&x;</r>", b"<gpx/>", b"", b"\xff"]
)
def test_a_foreign_sidecar_that_cannot_be_read_stays(tmp_path: Path, content: bytes) -> None:
    """It is named, with the reason."""
    (tmp_path / "a.jpg.xmp").write_bytes(content)
    writer = build_writer()
    with pytest.raises(SidecarError, match=r"a\.jpg\.xmp: .*; it is left as it is"):
        writer.write(predict(tmp_path / "a.jpg", "cat"))
    assert (tmp_path / "a.jpg.xmp").read_bytes() == content
    assert writer.counts.failed == 1


def test_rights_links_and_capital_endings_stay(tmp_path: Path) -> None:
    """A link leads to the same file as before, which keeps its rights; .XMP is no other file."""
    (tmp_path / "real.xmp").write_text(DARKTABLE)
    (tmp_path / "real.xmp").chmod(0o640)
    (tmp_path / "a.jpg.xmp").symlink_to("real.xmp")
    (tmp_path / "b.XMP").write_text(DARKTABLE)
    build_writer().write(predict(tmp_path / "a.jpg", "cat"))
    build_writer("lightroom").write(predict(tmp_path / "b.jpg", "cat"))
    assert (tmp_path / "a.jpg.xmp").is_symlink()
    assert "cat" in (tmp_path / "real.xmp").read_text()
    assert (tmp_path / "real.xmp").stat().st_mode & 0o777 == 0o640
    assert "cat" in (tmp_path / "b.XMP").read_text()
    assert not (tmp_path / "b.xmp").exists()


@pytest.mark.parametrize("kind", ["lightroom", "txt"])
def test_pictures_that_would_share_a_sidecar_have_none(tmp_path: Path, kind: str) -> None:
    """Both are named. A camera's raw file is the same photo as its JPEG; folders are apart."""
    writer = build_writer(kind)
    for name in ("a.jpg", "a.png"):
        predict(tmp_path / name)
    with pytest.raises(SidecarError) as caught:
        writer.write(predict(tmp_path / "a.png", "cat"))
    ending = ".txt" if kind == "txt" else ".xmp"
    assert f"a.png: a{ending} would be that of a.jpg too; rename one" in str(caught.value)
    (tmp_path / "below").mkdir()
    (tmp_path / "below/a.CR2").write_text("raw")
    writer.write(predict(tmp_path / "below/a.jpg", "cat"))
    assert (tmp_path / f"below/a{ending}").exists()
    assert not (tmp_path / f"a{ending}").exists()


def test_a_sidecar_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    """A folder in its place, or none to lie in; nothing half-written is left."""
    (tmp_path / "a.jpg.xmp").mkdir()
    with pytest.raises(SidecarError, match=r"a\.jpg\.xmp: Is a directory"):
        build_writer().write(predict(tmp_path / "a.jpg", "cat"))
    locked = predict(tmp_path / "b.jpg", "cat")
    tmp_path.chmod(0o500)  # it does not stop root, whom /proc does
    name = locked.name if os.geteuid() else "/proc/self/status"
    with pytest.raises(SidecarError, match=rf"cannot write {name}\.xmp: "):
        build_writer().write(Prediction(name, locked.probabilities))
    tmp_path.chmod(0o700)
    assert sorted(os.listdir(tmp_path)) == ["a.jpg", "a.jpg.xmp", "b.jpg"]


def test_a_full_disk_ends_the_run_and_harms_no_sidecar(tmp_path: Path) -> None:
    """At any size of the file; what was there is whole, and nothing else is left."""
    resource = pytest.importorskip("resource")
    (tmp_path / "a.jpg.xmp").write_text(DARKTABLE)
    prediction, writer = predict(tmp_path / "a.jpg", "cat"), build_writer()
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        for size in range(0, len(DARKTABLE) + 257, 256):
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
            with pytest.raises(CheckpointError, match=r"cannot write .*: File too large"):
                writer.write(prediction)
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
            assert (tmp_path / "a.jpg.xmp").read_text() == DARKTABLE
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, ignored)
    assert sorted(os.listdir(tmp_path)) == ["a.jpg", "a.jpg.xmp"]


def test_names_that_are_no_files_are_refused(tmp_path: Path) -> None:
    """At once where the inputs tell, else one by one."""
    for name in ("https://host/a.jpg", f"{tmp_path}/b.tar", f"{tmp_path}/b.tar/a.jpg"):
        with pytest.raises(DataError, match="--sidecars writes beside files and folders"):
            refuse_distant([str(tmp_path), name])
        with pytest.raises(SidecarError, match="no file beside which a sidecar could lie"):
            build_writer().write(Prediction(name, np.ones(len(LABELS))))
    refuse_distant([str(tmp_path), "-", "*.jpg"])


def test_a_label_that_xml_cannot_hold_is_left_out(tmp_path: Path) -> None:
    """It is said once; the others are written."""
    said: list[str] = []
    labels = ("cat", "a\x01b")
    writer = build_writer(labels=labels, say=said.append)
    writer.write(predict(tmp_path / "a.jpg", *labels, among=labels))
    assert said == ["warning: 1 label ('a\\x01b') cannot be in a sidecar: XML has no U+0001"]
    assert read_sidecar(tmp_path / "a.jpg.xmp").ours[SUBJECT] == ["cat"]


def test_two_writers_at_once_leave_whole_files(tmp_path: Path) -> None:
    """Readers find one of both results at any time."""
    sidecar, texts = tmp_path / "a.jpg.xmp", set[bytes]()
    first, second = predict(tmp_path / "a.jpg", "cat"), predict(tmp_path / "a.jpg", *LABELS)
    build_writer().write(first)
    threads = [
        threading.Thread(target=lambda p=p: [build_writer().write(p) for _ in range(10)])
        for p in (first, second)
    ]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        texts.add(sidecar.read_bytes())
    packets = [read_keywords(parse_packet(text.decode())) for text in texts]
    assert {len(packet.ours[SUBJECT]) for packet in packets} <= {1, len(LABELS)}
    assert sorted(os.listdir(tmp_path)) == ["a.jpg", "a.jpg.xmp"]


def test_the_checkpoint_has_a_name_and_a_digest(tmp_path: Path) -> None:
    """No folder above the run, no key of a URL."""
    file = tmp_path / "best.safetensors"
    file.write_text("weights")
    name = name_checkpoint("/home/me/runs/pets/best.safetensors", file)
    digest = hashlib.sha256(b"weights").hexdigest()
    assert name == f"pets/best.safetensors sha256:{digest}"
    url = name_checkpoint("https://host/pets/best.safetensors?token=secret", file)
    assert url == name


# ---- texts ------------------------------------------------------------------------------


def test_tags_of_a_text_are_read_back(tmp_path: Path) -> None:
    """By our own reader, and they are what trainers of other models read."""
    writer = build_writer("txt")
    writer.write(predict(tmp_path / "a.jpg", "cat", "größe 猫"))
    content = (tmp_path / "a.txt").read_bytes()
    assert content == "cat, größe 猫\n".encode()
    assert parse_tags(content, "a.txt", None) == ["cat", "größe 猫"]
    writer.write(predict(tmp_path / "b.jpg"))
    assert not (tmp_path / "b.txt").exists()


def test_a_text_that_is_there_stays(tmp_path: Path) -> None:
    """With these tags it is right already, in any order; with others it may be a person's."""
    text = tmp_path / "a.txt"
    writer = build_writer("txt")
    for content in ("cat", "b/w ,cat\n", "cat\nb/w"):
        text.write_text(content)
        labels = ("cat", "b/w")[: 1 + ("b/w" in content)]
        writer.write(predict(tmp_path / "a.jpg", *labels))
        assert text.read_text() == content
    for content in ("A cat on a sofa.", "", "0 0.1 0.2 0.3 0.4", "dog, cat"):
        text.write_text(content)
        with pytest.raises(SidecarError, match=r"a\.txt is there already, with other tags"):
            writer.write(predict(tmp_path / "a.jpg", "cat"))
        assert text.read_text() == content


@pytest.mark.parametrize("label", ["salt, pepper", "two\nlines", "a\u2028b", "a\0b"])
def test_a_label_that_a_text_cannot_hold_is_refused(label: str) -> None:
    """Before anything is predicted."""
    with pytest.raises(DataError, match=r"--sidecars txt separates tags by commas, and 1 label"):
        build_writer("txt", ("cat", label))
