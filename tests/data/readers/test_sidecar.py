"""Pictures with a .txt of tags beside each become a Table."""

import os
from pathlib import Path

import pytest

from mlfinetune.data.readers.sidecar import is_sidecar, read_sidecar
from mlfinetune.data.readers.tags import MAX_BYTES
from mlfinetune.data.table import SourceOptions, Table
from mlfinetune.errors import DataError


def tree(root: Path, files: dict[str, str | bytes]) -> Path:
    """Make a folder with these files."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return root


def read(root: Path, files: dict[str, str | bytes], delimiter: str | None = None) -> Table:
    """Return the Table of a folder with these files."""
    return read_sidecar(tree(root, files), SourceOptions(label_delimiter=delimiter))


def positives(table: Table) -> dict[str, set[str]]:
    """Return name -> the labels that hold."""
    names = table.labels.names
    rows = table.targets[:]
    return {
        image: {names[at] for at in (row == 1).nonzero()[0]}
        for image, row in zip(table.names, rows, strict=True)
    }


def test_tags_stand_between_commas_or_one_a_line(tmp_path: Path) -> None:
    """One file may have both; rows are in sorted order, with folders below the root."""
    files = {"b.jpg": "", "b.txt": "dog", "a/2.png": "", "a/2.txt": "hot dog\r\ncat, sun\n"}
    table = read(tmp_path, {**files, "c.JPG": "", "c.TXT": "cat, dog"})
    assert table.names == (os.path.join("a", "2.png"), "b.jpg", "c.JPG")
    assert positives(table) == {
        os.path.join("a", "2.png"): {"hot dog", "cat", "sun"},
        "b.jpg": {"dog"},
        "c.JPG": {"cat", "dog"},
    }
    assert table.labels.names == ("hot dog", "cat", "sun", "dog")
    assert (table.format, table.root, table.lines) == ("sidecar", tmp_path, None)
    assert table.unnamed.tolist() == [0, 0, 0]
    assert (table.notes, table.faults) == ((), ())


@pytest.mark.parametrize("text", ["cat,dog", " cat ,, dog\n\n", "dog,cat,dog,\n", "﻿cat\ndog"])
def test_white_space_empty_parts_repeats_and_a_byte_order_mark_do_not_count(
    tmp_path: Path, text: str
) -> None:
    """All of these say cat and dog."""
    table = read(tmp_path, {"a.jpg": "", "a.txt": text})
    assert positives(table) == {"a.jpg": {"cat", "dog"}}
    assert len(table.labels) == 2


def test_the_given_delimiter_overrules_the_comma(tmp_path: Path) -> None:
    """Lines still stand for themselves."""
    table = read(tmp_path, {"a.jpg": "", "a.txt": "salt, pepper|sun\nsea"}, "|")
    assert positives(table) == {"a.jpg": {"salt, pepper", "sun", "sea"}}


def test_pictures_of_one_stem_share_their_tags(tmp_path: Path) -> None:
    """Not those of the same name in another folder."""
    table = read(tmp_path, {"a.jpg": "", "a.png": "", "b/a.jpg": "", "a.txt": "cat"})
    assert positives(table) == {
        "a.jpg": {"cat"},
        "a.png": {"cat"},
        os.path.join("b", "a.jpg"): set(),
    }


def test_pictures_and_texts_without_each_other_are_counted(tmp_path: Path) -> None:
    """Neither is an error: a picture may have no tags, and a README is no list of them."""
    files = {"a.jpg": "", "b.jpg": "", "b.txt": "cat", "README.txt": "Hello", "x.md": "", ".h": ""}
    assert read(tmp_path, files).notes == (
        "1 of 2 pictures with no .txt: no labels",
        "1 .txt file with no picture: 'README.txt'",
        "1 file not named like a picture: ignored",
    )


def test_the_first_ten_texts_without_a_picture_are_named(tmp_path: Path) -> None:
    """The others are counted."""
    table = read(tmp_path, {"a.jpg": "", "a.txt": ""} | {f"t{i:02}.txt": "" for i in range(12)})
    assert table.notes[0].startswith("12 .txt files with no picture: 't00.txt', 't01.txt'")
    assert table.notes[0].endswith("'t09.txt' and 2 more")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("größe".encode("latin-1"), "not UTF-8 text (byte 0xf6); save it as UTF-8"),
        ("cat".encode("utf-16"), "not UTF-8 text (byte 0xff); save it as UTF-8"),
        ("cat".encode("utf-16-le"), "not UTF-8 text (it holds NUL characters); save it as UTF-8"),
        (b"a," * MAX_BYTES, "2,000,000 bytes are too many for tags; the limit is 1,000,000"),
    ],
)
def test_a_text_that_cannot_be_tags_is_a_fault(tmp_path: Path, content: bytes, reason: str) -> None:
    """The fault names the text, its picture has no labels, and the others are read."""
    table = read(tmp_path, {"a.jpg": "", "a.txt": "cat", "b.jpg": "", "b.txt": content})
    assert [(str(fault), fault.row) for fault in table.faults] == [(f"b.txt: {reason}", 1)]
    assert positives(table) == {"a.jpg": {"cat"}, "b.jpg": set()}


def test_a_text_that_leads_nowhere_is_a_fault(tmp_path: Path) -> None:
    """A link whose file is gone."""
    (tmp_path / "a.txt").symlink_to(tmp_path / "gone.txt")
    (fault,) = read(tmp_path, {"a.jpg": ""}).faults
    assert str(fault) == "a.txt: No such file or directory"


@pytest.mark.parametrize(
    "text", ["3 0.51 0.2 0.1 0.1", "0 0.5 0.5 1 1 0.93\n\n12 .1 1e-05 0.2 0.3\n"]
)
def test_boxes_are_refused(tmp_path: Path, text: str) -> None:
    """YOLO puts a .txt beside pictures too; taken for tags, each box would be a label."""
    with pytest.raises(DataError) as caught:
        read(tmp_path, {"a.jpg": "", "a.txt": text})
    first = text.splitlines()[0]
    assert str(caught.value).startswith(
        f"{tmp_path / 'a.txt'} holds boxes as YOLO writes them ('{first}'), not tags; convert"
    )


@pytest.mark.parametrize("text", ["3, 0.51, 0.2, 0.1, 0.1", "1998", "3 0.5 0.2", "1 2 3 4 5 cats"])
def test_numbers_that_are_no_boxes_are_tags(tmp_path: Path, text: str) -> None:
    """A year is a tag like any other."""
    table = read(tmp_path, {"a.jpg": "", "a.txt": text})
    assert positives(table)["a.jpg"] == set(text.split(", "))


def test_a_folder_without_pictures_is_refused(tmp_path: Path) -> None:
    """There is nothing to learn from."""
    with pytest.raises(DataError, match="no picture found; wanted pictures with a"):
        read(tmp_path, {"a.txt": "cat"})


@pytest.mark.parametrize(
    ("names", "answer"),
    [
        (["a.jpg", "a.txt"], True),
        (["b/a.TXT", "b/a.PNG", "c.jpg"], True),
        (["a.jpg", "b.txt"], False),
        (["b/a.jpg", "a.txt"], False),
        (["a.md", "a.jpg"], False),
        (["a.txt"], False),
        ([], False),
    ],
)
def test_one_picture_with_its_text_makes_a_sidecar_folder(
    tmp_path: Path, names: list[str], answer: bool
) -> None:
    """Both must be in one folder and have one stem."""
    assert is_sidecar(tree(tmp_path, dict.fromkeys(names, ""))) is answer
