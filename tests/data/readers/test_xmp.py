"""A photo archive becomes a Table."""

from pathlib import Path

import pytest
from PIL import Image
from runs.sidecar_samples import DARKTABLE, LIGHTROOM

from mlfinetune.data.images.xmp_packet import SUBJECT
from mlfinetune.data.readers.detect import detect_format, read_source
from mlfinetune.data.table import SourceOptions, Table
from mlfinetune.errors import DataError
from mlfinetune.runs.xmp_merge import merge_keywords


def sidecar(*keywords: str) -> bytes:
    """Return a sidecar with flat keywords, and nothing else."""
    items = "".join(f"<rdf:li>{word}</rdf:li>" for word in keywords)
    return LIGHTROOM.replace("<rdf:li>sea</rdf:li>", items).encode()


def draw(root: Path, *names: str, inside: bytes = b"") -> Path:
    """Write small pictures into a folder, with this XMP inside, and return the folder."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), sum(name.encode()) % 256).save(root / name, xmp=inside)
    return root


def positives(table: Table) -> dict[str, set[str]]:
    """Return name -> the labels that hold."""
    names = table.labels.names
    return {
        Path(image).as_posix(): {names[column] for column in (row == 1).nonzero()[0]}
        for image, row in zip(table.names, table.targets[:], strict=True)
    }


def test_keywords_are_the_labels(tmp_path: Path) -> None:
    """In either sidecar, else inside; a picture without any has no label."""
    draw(tmp_path, "2024/a.jpg", "b.png", "d.jpg")
    draw(tmp_path, "c.webp", inside=sidecar("cat", "dog"))
    (tmp_path / "2024/a.jpg.xmp").write_text(DARKTABLE)
    (tmp_path / "b.xmp").write_bytes(sidecar("dog"))
    (tmp_path / "gone.jpg.xmp").write_bytes(sidecar("dog"))
    table = read_source(tmp_path, SourceOptions())
    assert positives(table) == {
        "2024/a.jpg": {"sea", "A & B"},
        "b.png": {"dog"},
        "c.webp": {"cat", "dog"},
        "d.jpg": set(),
    }
    assert (table.format, table.faults) == ("xmp", ())
    assert table.notes == (
        "read as a photo archive: pictures with keywords",
        "labels are the keywords of photo programs: 2 pictures with some in a sidecar, 1 inside, "
        "1 with none (folder_labels: leaf)",
        "1 .xmp file with no picture: 'gone.jpg.xmp'",
    )


def test_paths_of_keywords_give_a_label_a_level(tmp_path: Path) -> None:
    """With the key that class folders have."""
    draw(tmp_path, "a.jpg")
    (tmp_path / "a.jpg.xmp").write_text(DARKTABLE)
    table = read_source(tmp_path, SourceOptions(folder_labels="path"))
    assert positives(table) == {"a.jpg": {"places", "sea", "A & B"}}


def test_predictions_of_ours_are_no_labels(tmp_path: Path) -> None:
    """Those of people beside them are; a note counts what is left out."""
    draw(tmp_path, "a.jpg", "b.jpg")
    draw(tmp_path, "c.jpg", inside=sidecar("cat"))
    for name, before in (("a", sidecar("sea")), ("b", None), ("c", None)):
        merged = merge_keywords(before, ["cat", "dog"], "pets sha256:1", {})
        (tmp_path / f"{name}.jpg.xmp").write_bytes(merged.content or b"")
    table = read_source(tmp_path, SourceOptions())
    assert positives(table) == {"a.jpg": {"sea"}, "b.jpg": set(), "c.jpg": {"cat"}}
    assert table.notes[2] == (
        "6 keywords of 3 pictures written by `mlfinetune predict`: predictions, left out"
    )


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"<x:xmpmeta", "not well-formed XML (unclosed token, line 1)"),
        (b'<!DOCTYPE r SYSTEM "x"><r/>', "it has a DOCTYPE: entities are not read"),
        (b"<gpx/>", "no XMP: its <gpx> holds no rdf:RDF"),
    ],
)
def test_keywords_that_cannot_be_read_are_a_fault(
    tmp_path: Path, content: bytes, reason: str
) -> None:
    """Nobody knows the labels of this picture; the sidecar is named, or the picture."""
    draw(tmp_path, "a.jpg", "b.jpg")
    draw(tmp_path, "c.jpg", inside=content)
    (tmp_path / "a.xmp").write_bytes(sidecar("sea"))
    (tmp_path / "b.jpg.xmp").write_bytes(content)
    faults = read_source(tmp_path, SourceOptions(format="xmp")).faults
    assert [(str(fault), fault.row) for fault in faults] == [
        (f"b.jpg.xmp: its keywords cannot be read: {reason}", 1),
        (f"c.jpg: its keywords cannot be read: {reason}", 2),
    ]


def test_a_folder_without_pictures_is_refused(tmp_path: Path) -> None:
    """The message shows what was wanted."""
    (tmp_path / "a.jpg.xmp").write_bytes(sidecar("sea"))
    with pytest.raises(DataError, match=r"no picture found; wanted pictures with keywords"):
        read_source(tmp_path, SourceOptions(format="xmp"))


# ---- detection --------------------------------------------------------------------------


def test_class_folders_stay_class_folders(tmp_path: Path) -> None:
    """Keywords inside are mentioned; sidecars of programs' settings, and ours, change nothing."""
    draw(tmp_path, "cat/a.jpg", "dog/b.jpg", inside=sidecar("holiday"))
    (tmp_path / "cat/a.jpg.xmp").write_bytes(sidecar())
    ours = merge_keywords(None, ["cat"], "pets sha256:1", {}).content
    (tmp_path / "dog/b.jpg.xmp").write_bytes(ours or b"")
    table = read_source(tmp_path, SourceOptions())
    assert positives(table) == {"cat/a.jpg": {"cat"}, "dog/b.jpg": {"dog"}}
    assert table.notes[-1] == (
        "keywords of photo programs in 2 of 2 pictures looked at are not read; if these are the "
        "labels: data.format: xmp"
    )


def test_a_stray_keyword_is_not_mentioned(tmp_path: Path) -> None:
    """From a tenth of the pictures on there is a note."""
    draw(tmp_path, "cat/a.jpg", inside=sidecar("holiday"))
    draw(tmp_path, *(f"dog/{number}.jpg" for number in range(9)))
    assert "1 of 10 pictures looked at" in read_source(tmp_path, SourceOptions()).notes[-1]
    draw(tmp_path, "dog/9.jpg")
    assert "looked at" not in read_source(tmp_path, SourceOptions()).notes[-1]


def test_sidecars_with_keywords_go_before_the_names_of_folders(tmp_path: Path) -> None:
    """As files of tags do; a note tells the way back. Half of the pictures must have them."""
    draw(tmp_path, "rome/a.jpg", "paris/b.jpg", "paris/c.jpg")
    (tmp_path / "rome/a.jpg.xmp").write_bytes(sidecar("sea"))
    assert detect_format(tmp_path) == "folder"
    (tmp_path / "paris/b.xmp").write_bytes(sidecar("sun"))
    table = read_source(tmp_path, SourceOptions())
    assert positives(table) == {"paris/b.jpg": {"sun"}, "paris/c.jpg": set(), "rome/a.jpg": {"sea"}}
    assert table.notes[-1] == (
        "the names of the pictures' folders ('paris', 'rome') are not read; if these are the "
        "labels: data.format: folder"
    )


@pytest.mark.parametrize(
    ("folders", "format"),
    [
        (("", ""), "xmp"),
        (("2023", "2024"), "xmp"),
        (("2024/2024-05-17 Rome", "2024/2024-06 Paris"), "xmp"),
        (("images", "photos"), "xmp"),
        (("rome", "paris"), "folder"),
        (("20245", "0001"), "folder"),
    ],
)
def test_keywords_inside_count_where_folders_are_no_classes(
    tmp_path: Path, folders: tuple[str, str], format: str
) -> None:
    """Years and dates are how archives are sorted."""
    for name, folder in zip("ab", folders, strict=True):
        draw(tmp_path / folder, f"{name}.jpg", inside=sidecar("sea"))
    assert detect_format(tmp_path) == format


def test_tags_and_tables_go_before(tmp_path: Path) -> None:
    """Folders that were read in another way are read so still."""
    draw(tmp_path, "a.jpg", "b.jpg", inside=sidecar("sea"))
    for name in ("a", "b"):
        (tmp_path / f"{name}.jpg.xmp").write_bytes(sidecar("sea"))
    (tmp_path / "a.txt").write_text("cat")
    assert detect_format(tmp_path) == "sidecar"
    (tmp_path / "tags.csv").write_text("image,labels\na.jpg,cat\nb.jpg,dog\n")
    (tmp_path / "a.txt").unlink()
    assert read_source(tmp_path, SourceOptions()).format == "csv"


def test_split_folders_of_an_archive(tmp_path: Path) -> None:
    """train/ and val/ are detected each by itself."""
    draw(tmp_path, "train/a.jpg", "val/b.jpg", inside=sidecar("sea"))
    table = read_source(tmp_path, SourceOptions())
    assert (table.splits, table.labels.names) == (("train", "val"), ("sea",))


def test_our_record_survives_programs(tmp_path: Path) -> None:
    """SUBJECT alone decides what is ours: a flat keyword."""
    merged = merge_keywords(None, ["animals|birds"], "pets sha256:1", {SUBJECT: ["sun"]})
    draw(tmp_path, "a.jpg")
    (tmp_path / "a.jpg.xmp").write_bytes(merged.content or b"")
    assert positives(read_source(tmp_path, SourceOptions(format="xmp"))) == {"a.jpg": {"sun"}}
