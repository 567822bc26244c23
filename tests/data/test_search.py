"""Pictures are found by their names where a table's paths are those of another machine."""

import json
import os
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from test_paths import NFC, NFD, table

from mlfinetune.data import paths
from mlfinetune.data.paths import check_paths
from mlfinetune.data.read import read_splits, read_table
from mlfinetune.data.search import split_name
from mlfinetune.data.table import SourceOptions, Table
from mlfinetune.errors import DataError

FIND = SourceOptions(find_by_name=True)


def make(root: Path, *names: str) -> Path:
    """Make empty files below a folder, and return the folder."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def find(root: Path, *names: str, **options: Any) -> tuple[list[str], list[str]]:
    """Return the names that are found for a table's names, and the faults."""
    checked = check_paths(table(root, *names), SourceOptions(find_by_name=True, **options))
    bad = {fault.row for fault in checked.faults}
    good = [name for row, name in enumerate(checked.names) if row not in bad]
    return good, [fault.text for fault in checked.faults]


def hint(root: Path, *names: str) -> str:
    """Return the hint of a table that names these files."""
    return check_paths(table(root, *names), SourceOptions()).hint


# ---- names ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("C:\\data\\cats\\a.jpg", "data/cats/a.jpg"),
        ("d:/data/a.jpg", "data/a.jpg"),
        ("\\\\server\\share\\a.jpg", "server/share/a.jpg"),
        ("./a.jpg", "a.jpg"),
        ("//x///y/../a.jpg", "x/y/a.jpg"),
        ("file:///home/me/a.jpg", "home/me/a.jpg"),
        ("file://C:/me/a.jpg", "C:/me/a.jpg"),
        ("https://x.org/a/b.jpg?w=10#top", "x.org/a/b.jpg"),
        ("/data/local-files/?d=images/a.jpg", "images/a.jpg"),
        ("a:b.jpg", "b.jpg"),
        ("", ""),
    ],
)
def test_names_are_cut_into_folders_and_file(name: str, parts: str) -> None:
    """Without drive, protocol, dots and query."""
    assert "/".join(split_name(name)) == parts


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("C:\\data\\a.jpg", "images/a.jpg"),
        ("images\\a.jpg", "images/a.jpg"),
        ("/content/drive/My Drive/a.jpg", "images/a.jpg"),
        ("/root/secret/a.jpg", "images/a.jpg"),
        ("/a.jpg", "images/a.jpg"),
        ("../../a.jpg", "images/a.jpg"),
        ("file:///home/me/a.jpg", "images/a.jpg"),
        ("file://server/me/a.jpg", "images/a.jpg"),
        ("https://x.org/pictures/a.jpg?v=2", "images/a.jpg"),
        ("images/images/a.jpg", "images/a.jpg"),
        ("my%20cat.jpg", "images/my cat.jpg"),
        ("x/100%25.jpg", "images/100%.jpg"),
        ("caf%C3%A9.jpg", f"images/{NFD}.jpg"),
        (f"{NFC}.jpg", f"images/{NFD}.jpg"),
        ("A.JPG", "images/a.jpg"),
        ("a", "images/a.jpg"),
        ("a.png", "images/a.jpg"),
        ("x/a.HEIC", "images/a.jpg"),
        ("v1.2", "images/v1.2.png"),
        ("bare", "images/bare"),
    ],
)
def test_one_file_is_found(tmp_path: Path, name: str, file: str) -> None:
    """By the last part of the name: turned, unquoted, in another case, with another ending."""
    files = ("a.jpg", "my cat.jpg", "100%.jpg", f"{NFD}.jpg", "v1.2.png", "v1.jpg", "bare")
    root = make(tmp_path, *(f"images/{one}" for one in files))
    assert find(root, name) == ([file], [])


@pytest.mark.parametrize("name", ["b.jpg", "a.txt", "v1.3", "x", "images", "a.jpg.bak", "?", "/"])
def test_other_names_are_not_found(tmp_path: Path, name: str) -> None:
    """An ending that is none of a picture's is a part of the name; folders are no pictures."""
    root = make(tmp_path, "images/a.jpg", "images/v1.jpg", "x.txt", ".hidden/b.jpg", ".b.jpg")
    good, faults = find(root, name)
    assert not good
    assert len(faults) == 1


def test_the_likest_name_is_taken(tmp_path: Path) -> None:
    """An exact name before another case, and that before another ending; a mask stays a mask."""
    root = make(tmp_path, "p/a.jpg", "p/A.jpg", "p/a.png", "p/my%20b.jpg", "p/my b.jpg")
    assert find(root, "x/a.png", "x/A.jpg", "x/my%20b.jpg")[0] == [
        "p/a.png",
        "p/A.jpg",
        "p/my%20b.jpg",
    ]


def test_folders_decide_among_files_of_one_name(tmp_path: Path) -> None:
    """As many of them, from the last on, as are needed."""
    root = make(tmp_path, "in/a/train/1.jpg", "in/a/val/1.jpg", "in/b/train/1.jpg", "in/c/2.jpg")
    names = ("/x/a/train/1.jpg", "D:\\x\\A\\val\\1.jpg", "b/Train/1", "nowhere/2.jpg")
    assert find(root, *names) == (
        ["in/a/train/1.jpg", "in/a/val/1.jpg", "in/b/train/1.jpg", "in/c/2.jpg"],
        [],
    )


def test_two_files_of_one_name_are_a_fault(tmp_path: Path) -> None:
    """Both are named, and `bad_images: skip` does not leave the row out."""
    root = make(tmp_path, "a/1.jpg", "b/1.jpg", "b/x/1.jpg")
    checked = check_paths(table(root, "c/1.jpg"), FIND)
    (fault,) = checked.faults
    assert str(fault) == "line 2: 'c/1.jpg': several files have this name: 'a/1.jpg' and 'b/1.jpg'"
    assert not fault.picture


@pytest.mark.parametrize("names", [("x/1.jpg", "y/1.jpg"), ("1.jpg", "y/1.jpg"), ("x/1", "1.png")])
def test_two_names_of_one_file_are_a_fault(tmp_path: Path, names: tuple[str, str]) -> None:
    """Two pictures of another machine are not one of this machine."""
    checked = check_paths(table(make(tmp_path, "1.jpg"), *names), FIND)
    assert checked.faults
    for fault in checked.faults:
        assert "found by its name as '1.jpg', which " in fault.text
        assert not fault.picture


def test_one_path_in_two_spellings_is_one_picture(tmp_path: Path) -> None:
    """Slashes, drives and case do not make another one; and rows may repeat a name."""
    root = make(tmp_path, "in/1.jpg")
    good, faults = find(root, "C:\\in\\1.jpg", "C:/in/1.jpg", "c:/IN/1.JPG", "C:\\in\\1.jpg")
    assert (good, faults) == (["in/1.jpg"] * 4, [])


def test_links_never_lead_out_of_the_root(tmp_path: Path) -> None:
    """But for `allow_outside_root`; links inside are followed once, and a loop ends."""
    make(tmp_path / "out", "far.jpg")
    root = make(tmp_path / "root", "in/a.jpg")
    (root / "away").symlink_to(tmp_path / "out")
    (root / "far2.jpg").symlink_to(tmp_path / "out/far.jpg")
    (root / "again").symlink_to("in")
    (root / "in/loop").symlink_to("..")
    (root / "self.jpg").symlink_to("self.jpg")
    (root / "in/copy").mkdir()
    (root / "in/copy/a.jpg").symlink_to("../a.jpg")
    assert find(root, "x/a.jpg") == (["in/a.jpg"], [])
    for name in ("x/far.jpg", "x/far2.jpg", "x/self.jpg", "../out/far.jpg"):
        assert find(root, name)[0] == []
    assert find(root, "x/far.jpg", allow_outside_root=True) == (["away/far.jpg"], [])


def test_a_name_not_found_stays_a_missing_picture(tmp_path: Path) -> None:
    """It may be skipped; a path that leads out of the root may not."""
    root = make(tmp_path / "root", "a.jpg")
    make(tmp_path, "out.jpg")
    checked = check_paths(table(root, "x/none.jpg", "../out.jpg"), FIND)
    assert [(f.text.split(";")[0], f.picture) for f in checked.faults] == [
        ("'x/none.jpg': no such file", True),
        ("'../out.jpg': outside the image root", False),
    ]


def test_found_pictures_are_counted_in_a_note(tmp_path: Path) -> None:
    """With an example, and the number of those that are spelled otherwise."""
    checked = check_paths(table(make(tmp_path, "in/a.jpg", "in/b.jpg"), "x/a.jpg", "x/B"), FIND)
    assert checked.notes == (
        "2 pictures found by name (data.find_by_name), 1 of them in another case or with another "
        "ending, such as 'x/a.jpg' as 'in/a.jpg'",
    )


def test_too_many_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The walk ends at its limit: an error that says what to do, or a hint that says so."""
    root = make(tmp_path, *(f"in/{n}.jpg" for n in range(20)))
    monkeypatch.setattr(paths, "_MOST_ENTRIES", 10)
    monkeypatch.setattr(paths, "_HINT_ENTRIES", 10)
    with pytest.raises(DataError, match=r"more than 10 files and folders below .*data\.images"):
        find(root, "x/1.jpg")
    assert hint(root, "x/1.jpg").startswith("more than 10 files below")


def test_many_pictures_of_one_name_take_no_time(tmp_path: Path) -> None:
    """image.jpg in a folder for each picture: the folder decides at once."""
    names = [f"{n:04}/image.jpg" for n in range(3000)]
    root = make(tmp_path, *(f"in/{name}" for name in names))
    good, faults = find(root, *(f"C:/x/{name}" for name in names))
    assert not faults
    assert good == [f"in/{name}" for name in names]


# ---- hints ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "start", ["C:\\data\\", "/content/drive/MyDrive/", "file:///x/", "images/images/", "/", "..\\"]
)
def test_one_hint_counts_what_would_be_found(tmp_path: Path, start: str) -> None:
    """By the last part of the names."""
    root = make(tmp_path, *(f"{n}.jpg" for n in range(12)))
    names = [f"{start}{n}.jpg" for n in range(12)]
    assert hint(root, *names, *names[:3]) == (
        "12 of 12 are there as data.images/<name>; data.find_by_name: true finds them by their "
        "names"
    )
    assert hint(make(tmp_path / "deep", *(f"p/q/{n}.jpg" for n in range(3))), *names).startswith(
        "3 of 12 are there as data.images/p/q/<name>;"
    )


def test_a_folder_that_fits_is_named(tmp_path: Path) -> None:
    """With the line to paste, where no picture is where the table says."""
    root = make(tmp_path, "images/x/1.jpg", "images/2.jpg")
    assert hint(root, "x/1.jpg", "2.jpg") == (
        f'2 of 2 are there below images/: set data.images: "{root}/images"'
    )
    make(root, "3.jpg")
    assert "data.find_by_name" in hint(root, "x/1.jpg", "2.jpg", "3.jpg")
    make(root, "small/x/1.jpg", "small/2.jpg")
    assert hint(root, "x/1.jpg", "2.jpg") == (
        "2 of 2 are there below images/ and below small/: set data.images to one of them"
    )


def test_absolute_paths_of_this_machine(tmp_path: Path) -> None:
    """The folder above all of them is the root to set."""
    make(tmp_path, "it's/in/1.jpg", "it's/2.jpg")
    names = [f"{tmp_path}/it's/{name}" for name in ("in/1.jpg", "2.jpg")]
    (tmp_path / "root").mkdir()
    assert hint(tmp_path / "root", *names) == (
        f"2 of 2 are there below {tmp_path}/it's: set data.images: \"{tmp_path}/it's\""
    )


def test_no_hint_where_nothing_is_found(tmp_path: Path) -> None:
    """And no folder is listed where nothing is missing."""
    assert hint(make(tmp_path, "a.jpg"), "b.jpg", "C:\\c.jpg", "/etc/passwd") == ""
    assert hint(tmp_path, "a.jpg") == ""


def test_the_error_ends_in_the_hint(tmp_path: Path) -> None:
    """After the first ten faults; each says what is beside it."""
    make(tmp_path, *(f"in/{n}.jpg" for n in range(12)))
    rows = "".join(f"in\\{n},x\n" for n in range(12))
    (tmp_path / "t.csv").write_text(f"image,labels\n{rows}")
    with pytest.raises(DataError) as caught:
        read_splits(tmp_path / "t.csv", None, SourceOptions())
    lines = str(caught.value).splitlines()
    assert len(lines) == 13
    assert lines[-2:] == [
        "  ... and 2 more",
        "12 of 12 are there as data.images/in/<name>; data.find_by_name: true finds them by their "
        "names",
    ]


def test_ids_without_ending_get_the_name_beside_them(tmp_path: Path) -> None:
    """In the fault of their row."""
    root = make(tmp_path, "a.jpg", "b.png")
    checked = check_paths(table(root, "a", "b.jpg", "c"), SourceOptions())
    assert [fault.text for fault in checked.faults] == [
        "'a': no such file; there is 'a.jpg'",
        "'b.jpg': no such file; there is 'b.png'",
        "'c': no such file",
    ]


# ---- formats ----------------------------------------------------------------------------


def write_csv(root: Path) -> Table:
    (root / "t.csv").write_text("image,labels\nC:\\x\\1.jpg,cat\nC:\\x\\2.jpg,dog\n")
    return read_table(root / "t.csv", FIND)


def write_jsonl(root: Path) -> Table:
    rows = [{"file_name": f"/x/{n}.jpg", "labels": ["cat"]} for n in (1, 2)]
    (root / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return read_table(root / "t.jsonl", FIND)


def write_coco(root: Path) -> Table:
    content = {
        "images": [{"id": n, "file_name": f"/x/{n}.jpg"} for n in (1, 2)],
        "annotations": [{"image_id": n, "category_id": 1} for n in (1, 2)],
        "categories": [{"id": 1, "name": "cat"}],
    }
    (root / "t.json").write_text(json.dumps(content))
    return read_table(root / "t.json", FIND)


def write_voc(root: Path) -> Table:
    lists = root / "ImageSets/Main"
    lists.mkdir(parents=True)
    (root / "Annotations").mkdir()
    (root / "JPEGImages").mkdir()
    (lists / "train.txt").write_text("1\n2\n")
    for n in (1, 2):
        content = "<annotation><object><name>cat</name></object></annotation>"
        (root / f"Annotations/{n}.xml").write_text(content)
    return read_table(root, FIND)


@pytest.mark.parametrize("write", [write_csv, write_jsonl, write_coco, write_voc])
def test_tables_of_every_format(tmp_path: Path, write: Any) -> None:
    """All of them look for their pictures in one place."""
    found = write(make(tmp_path, "deep/in/1.jpg", "deep/in/2.jpg"))
    assert found.faults == ()
    assert [os.path.normpath(found.path(row)) for row in (0, 1)] == [
        str(tmp_path / f"deep/in/{n}.jpg") for n in (1, 2)
    ]


def test_rows_of_one_picture_are_joined_after_it_is_found(tmp_path: Path) -> None:
    """As in a long table, with a row for each label."""
    make(tmp_path, f"in/{unicodedata.normalize('NFD', NFC)}.jpg")
    (tmp_path / "t.csv").write_text(f"image,labels\n/x/{NFC}.jpg,cat\n/x/{NFC}.jpg,dog\n")
    found = read_table(tmp_path / "t.csv", FIND)
    assert (len(found), found.labels.names, found.faults) == (1, ("cat", "dog"), ())


def test_a_link_that_leads_outside_is_named(tmp_path: Path) -> None:
    """Nobody looks behind it before it is permitted."""
    make(tmp_path / "disk", "a.jpg", "b.jpg")
    root = make(tmp_path / "pets", "notes.txt")
    (root / "images").symlink_to(tmp_path / "disk")
    assert hint(root, "a.jpg", "b.jpg") == (
        f"images is a link that leads out of the folder ({tmp_path}/disk), not searched; "
        f"data.allow_outside_root: true permits it"
    )


def test_a_picture_that_was_uploaded_is_found_by_its_own_name(tmp_path: Path) -> None:
    """Label Studio writes eight digits before it; a file that is really called so comes first."""
    root = make(tmp_path, "img/a.jpg", "img/b.jpg", "img/0123abcd-b.jpg")
    names = ("/data/upload/1/89abcdef-a.jpg", "/data/upload/1/0123abcd-b.jpg")
    assert find(root, *names) == (["img/a.jpg", "img/0123abcd-b.jpg"], [])
