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
        "1 text file with no picture: 'README.txt'",
        "1 file not named like a picture: ignored",
    )


def test_the_first_ten_texts_without_a_picture_are_named(tmp_path: Path) -> None:
    """The others are counted."""
    table = read(tmp_path, {"a.jpg": "", "a.txt": ""} | {f"t{i:02}.txt": "" for i in range(12)})
    assert table.notes[0].startswith("12 text files with no picture: 't00.txt', 't01.txt'")
    assert table.notes[0].endswith("'t09.txt' and 2 more")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("кот".encode("cp1251"), "not UTF-8 text (byte 0xea); save it as UTF-8"),
        ("cat, 猫, 狗".encode("gbk"), "not UTF-8 text (byte 0xb9); save it as UTF-8"),
        ("cat".encode("utf-16-le"), "not UTF-8 text (it holds NUL characters); save it as UTF-8"),
        (b"a," * MAX_BYTES, "2,000,000 bytes are too many for tags; the limit is 1,000,000"),
    ],
)
def test_a_text_that_cannot_be_tags_is_a_fault(tmp_path: Path, content: bytes, reason: str) -> None:
    """The fault names the text, its picture has no labels, and the others are read."""
    table = read(tmp_path, {"a.jpg": "", "a.txt": "cat", "b.jpg": "", "b.txt": content})
    assert [(str(fault), fault.row) for fault in table.faults] == [(f"b.txt: {reason}", 1)]
    assert positives(table) == {"a.jpg": {"cat"}, "b.jpg": set()}


# ---- other names of text files ------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["a.jpg.txt", "a.JPG.TXT", "a.caption", "a.jpg.Caption", "a.captions", "a.tags"]
)
def test_tags_may_be_in_other_files_beside(tmp_path: Path, name: str) -> None:
    """Trainers and downloaders name them after the stem or after the whole name."""
    picture = "a.JPG" if "JPG" in name else "a.jpg"
    table = read(tmp_path, {picture: "", name: "cat, dog", "b/c.png": "", "b/c.txt": "sun"})
    assert is_sidecar(tmp_path)
    assert positives(table) == {picture: {"cat", "dog"}, os.path.join("b", "c.png"): {"sun"}}
    assert (table.notes, table.faults) == ((), ())


def test_tags_go_before_captions(tmp_path: Path) -> None:
    """The note counts what is passed over."""
    files: dict[str, str | bytes] = {"a.jpg": "", "a.txt": "cat", "a.caption": "A cat on a sofa."}
    table = read(tmp_path, files)
    assert positives(table) == {"a.jpg": {"cat"}}
    assert table.notes == ("1 .caption file passed over: the tags are in the .txt beside",)


def test_two_files_of_tags_must_agree(tmp_path: Path) -> None:
    """Nobody knows which of them is right."""
    files: dict[str, str | bytes] = {"a.jpg": "", "a.txt": "cat, dog", "a.jpg.txt": "dog\ncat"}
    assert positives(read(tmp_path, files)) == {"a.jpg": {"cat", "dog"}}
    (fault,) = read(tmp_path, {"a.jpg.txt": "dog"}).faults
    assert str(fault) == "a.txt and a.jpg.txt: other tags in each; which are those of a.jpg?"
    assert fault.row == 0


PROSE = {
    "long": "a man in a wetsuit riding a wave on top of a surfboard",
    "sentence": "A cat sleeps there.",
    "several": "A cat sleeps on the red sofa.\nA tabby lies on a couch in the living room.",
    "spaces": "1girl solo long_hair blue_eyes smile hat dress sky cloud sea",
}


@pytest.mark.parametrize("text", PROSE)
@pytest.mark.parametrize("ending", [".caption", ".txt"])
def test_captions_are_no_tags(tmp_path: Path, text: str, ending: str) -> None:
    """Each sentence would be a label; tags between spaces have their line to paste."""
    files = {f"a{ending}": PROSE[text], f"b{ending}": PROSE[text], f"c{ending}": "cat, dog"}
    with pytest.raises(DataError) as caught:
        read(tmp_path, {**files, "a.jpg": "", "b.jpg": "", "c.jpg": ""})
    assert f"2 of 3 {ending} files hold sentences, not tags ('{PROSE[text][:15]}" in str(
        caught.value
    )
    assert "data.label_delimiter: ' '" in str(caught.value)
    assert len(read(tmp_path, {}, " ").labels) > 5


def test_escaped_parentheses_stay(tmp_path: Path) -> None:
    """As trainers of text write them."""
    table = read(tmp_path, {"a.jpg": "", "a.txt": r"hatsune miku \(cosplay\), (cat:1.2), hot dog"})
    assert positives(table)["a.jpg"] == {r"hatsune miku \(cosplay\)", "(cat:1.2)", "hot dog"}


@pytest.mark.parametrize(
    ("encoding", "title"), [("utf-16", "UTF-16"), ("cp1252", "Windows-1252"), ("utf-8-sig", "")]
)
def test_encodings_of_tags(tmp_path: Path, encoding: str, title: str) -> None:
    """Windows saves text in any of these; what is not UTF-8 is said."""
    table = read(tmp_path, {"a.jpg": "", "a.txt": "größe, café".encode(encoding)})
    assert positives(table) == {"a.jpg": {"größe", "café"}}
    assert table.notes == ((f"1 file read as {title}",) if title else ())


def test_a_raw_file_beside_its_jpeg_is_passed_over(tmp_path: Path) -> None:
    """Cameras write both of one photo; a raw file alone is a picture with a fault to come."""
    files = dict.fromkeys(("a.CR2", "a.JPG", "b.nef"), "")
    table = read(tmp_path, {**files, "a.txt": "cat", "b.txt": "dog"})
    assert positives(table) == {"a.JPG": {"cat"}, "b.nef": {"dog"}}
    assert table.notes == ("1 picture (.cr2) beside a readable one of the same name: passed over",)


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


@pytest.mark.parametrize(
    ("folders", "is_said"), [("cat dog", True), ("a/cat b/dog", True), ("train val", False)]
)
def test_class_folders_with_tags(tmp_path: Path, folders: str, is_said: bool) -> None:
    """The tags are read; that the names of the folders are not is said, with the other choice."""
    files: dict[str, str | bytes] = {}
    for folder in folders.split():
        files |= {f"{folder}/1.jpg": folder, f"{folder}/1.txt": "indoor, red"}
    notes = read(tmp_path, files).notes
    line = "labels from the .txt files beside the pictures; the names of their folders ('cat', 'dog"
    assert any(note.startswith(line) and "data.format: folder" in note for note in notes) is is_said
    table = read_sidecar(tmp_path, SourceOptions(format="sidecar"))
    assert not any("data.format" in note for note in table.notes)


def tagged(*texts: str) -> dict[str, str | bytes]:
    """Return pictures with these texts beside them."""
    pictures: dict[str, str | bytes] = {f"{number}.jpg": "" for number in range(len(texts))}
    return {**pictures, **{f"{number}.txt": text for number, text in enumerate(texts)}}


@pytest.mark.parametrize(
    ("sign", "said"),
    [(" ", "6 of 9 .txt files hold a space and no comma"), ("; ", "hold ';'"), ("/", "with '/'")],
)
def test_another_sign_between_tags_is_noted(tmp_path: Path, sign: str, said: str) -> None:
    """Danbooru's tags stand between spaces: each file would be a label of its own."""
    words = ["1girl", "long_hair", "smile"]
    pairs = [sign.join((a, b)) for a in words for b in words if a != b]
    table = read(tmp_path, tagged(*pairs, *words))
    (note,) = table.notes
    assert said in note
    assert note.endswith(f'data.label_delimiter: "{sign.strip() or sign}"')
    again = read(tmp_path, {}, sign.strip() or sign)
    assert (set(again.labels.names), again.notes) == ({*words}, ())


@pytest.mark.parametrize(
    "texts",
    [
        ["hot dog", "ice cream", "hot dog", "sofa"],
        ["red hat, blue hat", "red coat", "blue coat", "red hat", "blue coat, red coat"],
        ["hot dog"],
        ["", ""],
    ],
)
def test_spaces_inside_of_tags_are_not_noted(tmp_path: Path, texts: list[str]) -> None:
    """Their words do not recur, or commas separate tags already."""
    assert read(tmp_path, tagged(*texts)).notes == ()


@pytest.mark.parametrize(
    "form", ["{}: 0.9", "{} 0.9", "{}=1", "({}:1.2)", "0.9 {}", "{} (0.9)", "{} 91%", "{}: 7.5 %"]
)
def test_tags_with_values_are_refused(tmp_path: Path, form: str) -> None:
    """Taggers write how sure they are; as labels these would be one for each value."""
    texts = ["\n".join(form.format(tag) for tag in tags) for tags in (("cat", "dog"), ("cat",))]
    with pytest.raises(DataError, match=r"each tag in the \.txt files has a value") as caught:
        read(tmp_path, tagged(*texts))
    assert form.format("cat") in str(caught.value)


@pytest.mark.parametrize(
    "texts", [("f 0.9", "cat"), ("version 0.9", "version 1.0"), ("0.5 l", "1.0 l"), ("scale:1",)]
)
def test_tags_that_end_in_numbers_are_tags(tmp_path: Path, texts: tuple[str, ...]) -> None:
    """As long as another has none, or all have the same word before it."""
    assert set(read(tmp_path, tagged(*texts)).labels.names) == set(texts)
