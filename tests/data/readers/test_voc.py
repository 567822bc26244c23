"""Pascal VOC becomes a Table: splits from lists, labels from XML or class files, faults named."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from mlfinetune.data.readers.voc import is_voc, read_voc
from mlfinetune.data.table import Fault, SourceOptions, Table
from mlfinetune.errors import DataError

MAIN = "ImageSets/Main"


def xml(*objects: str, filename: str = "") -> str:
    """Return an annotation in VOC's layout; `dog!` is a difficult dog."""
    things = "".join(
        f"<object><name>{name.rstrip('!')}</name><part><name>head</name></part>"
        f"<difficult>{int(name.endswith('!'))}</difficult><bndbox><xmin>1</xmin></bndbox></object>"
        for name in objects
    )
    return f"<annotation><folder>VOC</folder><filename>{filename}</filename>{things}</annotation>"


def plant(root: Path, contents: dict[str, str | bytes]) -> Path:
    """Write files with these contents below a folder with JPEGImages."""
    (root / "JPEGImages").mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content.encode() if isinstance(content, str) else content)
    return root


def voc(root: Path, lists: dict[str, str] | None = None, **annotations: str | bytes) -> Path:
    """Write annotations by id (with `_` before it), and ids by list."""
    contents = {f"Annotations/{id[1:]}.xml": text for id, text in annotations.items()}
    texts = {f"{MAIN}/{name}.txt": "\n".join(ids.split()) for name, ids in (lists or {}).items()}
    return plant(root, contents | texts)


def read(path: Path, **options: Any) -> Table:
    """Return the Table of a folder or list."""
    return read_voc(path, SourceOptions(**options))


def refused(path: Path) -> str:
    """Return the message with which a folder or list is refused."""
    with pytest.raises(DataError) as caught:
        read(path)
    return str(caught.value)


def row(table: Table, number: int) -> dict[str, int]:
    """Return label -> state of one image."""
    return dict(zip(table.labels.names, table.targets[number].tolist(), strict=True))


# ---- which images -----------------------------------------------------------------------


def test_lists_are_splits(tmp_path: Path) -> None:
    """Images in the order of train.txt, val.txt and test.txt, blanks left out."""
    some = {"_1": xml("dog", "dog", "cat"), "_2": xml("fox"), "_3": xml(), "_4": xml("cat")}
    root = voc(tmp_path, {"train": "3 1", "val": "2", "test": "4", "trainval": "1 2 3"}, **some)
    (root / MAIN / "val.txt").write_bytes(b"\xef\xbb\xbf\r\n2  \r\n\r\n")
    table = read(root)
    assert (table.format, table.root, table.lines) == ("voc", root, None)
    assert table.names == tuple(f"JPEGImages/{id}.jpg" for id in "3124")
    assert table.splits == ("train", "train", "val", "test")
    assert table.labels.names == ("cat", "dog", "fox")
    assert table.targets[:].tolist() == [[0, 0, 0], [1, 1, 0], [0, 0, 1], [1, 0, 0]]
    assert (table.unnamed.tolist(), table.faults) == ([0, 0, 0, 0], ())
    counts = ("2 images in train.txt", "1 image in val.txt", "1 image in test.txt")
    assert table.notes == (*counts, "3 labels in Annotations")


@pytest.mark.parametrize("name", ["train", "val", "test", "trainval"])
def test_one_list_alone_is_no_split(tmp_path: Path, name: str) -> None:
    """Its images are the table, others are not."""
    table = read(voc(tmp_path, {name: "2"}, _1=xml("dog"), _2=xml("cat")))
    assert (table.names, table.splits) == (("JPEGImages/2.jpg",), None)
    assert table.notes[0] == f"1 image in {name}.txt"


def test_trainval_is_taken_where_it_is_not_split(tmp_path: Path) -> None:
    """Not with test.txt, which would leave nothing to validate with."""
    table = read(voc(tmp_path, {"trainval": "2", "test": "1"}, _1=xml(), _2=xml("cat")))
    assert (table.names, table.splits) == (("JPEGImages/2.jpg",), None)


def test_a_given_list_is_the_table(tmp_path: Path) -> None:
    """Without splits; the root is the folder of the release, wherever the list lies in it."""
    root = voc(tmp_path, {"train": "1", "val": "2"}, _1=xml("dog"), _2=xml("cat"))
    (root / "mine_1.txt").write_text("1\n")
    for path, name in ((root / MAIN / "val.txt", "2.jpg"), (root / "mine_1.txt", "1.jpg")):
        table = read(path)
        assert (table.origin, table.root, table.splits) == (path, root, None)
        assert table.names == (f"JPEGImages/{name}",)


def test_all_annotations_without_lists(tmp_path: Path) -> None:
    """Images are sorted by name; files that macOS leaves behind are ignored."""
    root = voc(tmp_path, _b=xml("dog"), _a=xml("cat"))
    plant(root, {"Annotations/._a.xml": "junk", f"{MAIN}/cat_train.txt": "a 1"})
    table = read(root)
    assert (table.names, table.splits) == (("JPEGImages/a.jpg", "JPEGImages/b.jpg"), None)
    assert table.notes[0] == "no lists in ImageSets/Main: all of Annotations"


def test_test_images_without_annotation_are_left_out(tmp_path: Path) -> None:
    """VOC keeps those of its later years; in train they are a fault."""
    root = voc(tmp_path, {"train": "1", "val": "2", "test": "3 4"}, _1=xml("dog"), _3=xml("cat"))
    table = read(root)
    assert table.splits == ("train", "val", "test")
    assert "1 image of test.txt with no annotation: left out" in table.notes
    assert table.faults == (Fault("Annotations/2.xml", "no such file", 1),)
    alone = read(root / MAIN / "test.txt")
    assert alone.faults == (Fault("Annotations/4.xml", "no such file", 1),)


def test_an_image_in_two_lists_is_a_fault(tmp_path: Path) -> None:
    """The image stays in the first list; twice in one list counts once."""
    root = voc(tmp_path, {"train": "1 1", "val": "2 1"}, _1=xml("dog"), _2=xml())
    table = read(root)
    assert table.splits == ("train", "val")
    assert table.faults == (Fault(f"{MAIN}/val.txt line 2", "'1' is in train.txt too"),)


@pytest.mark.parametrize("id", ["../1", "a/b", "a\\b", "..", "a\0b"])
def test_an_id_that_leads_elsewhere_is_a_fault(tmp_path: Path, id: str) -> None:
    """No file is opened for it."""
    table = read(plant(tmp_path, {f"{MAIN}/train.txt": f"\n{id}\n", "Annotations/1.xml": xml()}))
    text = f"{id!r} is not an id; wanted a name as 000005"
    assert (table.faults, len(table)) == ((Fault(f"{MAIN}/train.txt line 2", text),), 0)


# ---- folders ----------------------------------------------------------------------------


def test_voc_is_told_by_its_folders(tmp_path: Path) -> None:
    """JPEGImages with Annotations or ImageSets, or a release with them inside."""
    for name in ("JPEGImages", "A/JPEGImages", "A/Annotations", "B/JPEGImages", "B/ImageSets"):
        (tmp_path / name).mkdir(parents=True)
    assert [is_voc(tmp_path), is_voc(tmp_path / "A"), is_voc(tmp_path / "B")] == [0, 1, 1]
    voc(tmp_path / "VOCdevkit/VOC2012", _1=xml())
    assert is_voc(tmp_path / "VOCdevkit")


def test_the_development_kit_stands_for_its_one_release(tmp_path: Path) -> None:
    """Several are refused by name."""
    root = voc(tmp_path / "VOC2007", _1=xml("dog"))
    (tmp_path / "VOCcode").mkdir()
    assert (read(tmp_path).root, read(tmp_path).origin) == (root, tmp_path)
    voc(tmp_path / "VOC2012", _1=xml("dog"))
    message = f"{tmp_path}: several releases; name one in data.train: VOC2007, VOC2012"
    assert refused(tmp_path) == message


def test_what_holds_no_images_is_refused(tmp_path: Path) -> None:
    """The message says what was looked for."""
    assert "no ImageSets/Main/train.txt, and no Annotations/*.xml" in refused(tmp_path)
    (tmp_path / "list.txt").write_text("1")
    assert "not in a folder that has JPEGImages" in refused(tmp_path / "list.txt")
    voc(tmp_path, {"train": "", "val": ""})
    assert refused(tmp_path).endswith(": no image is listed in train.txt, val.txt")
    (tmp_path / MAIN / "val.txt").write_text("1")
    assert "no class files as Main/cat_train.txt" in refused(tmp_path)


# ---- pictures ---------------------------------------------------------------------------


def test_a_picture_is_the_id_else_what_the_annotation_says(tmp_path: Path) -> None:
    """Else the id with another ending; a name that leads out of the folder is not taken."""
    names = {"_1": "other.jpg", "_2": "two.jpg", "_3": "", "_4": "x.jpg", "_5": "../secret.jpg"}
    root = voc(tmp_path, **{id: xml(filename=name) for id, name in names.items()})
    pictures = ("1.jpg", "other.jpg", "two.jpg", "3.PNG", "4.jpeg", "4.txt", "5.txt")
    plant(root, {"secret.jpg": "", **{f"JPEGImages/{name}": "" for name in pictures}})
    wanted = ("1.jpg", "two.jpg", "3.PNG", "4.jpeg", "5.jpg")
    assert read(root).names == tuple(f"JPEGImages/{name}" for name in wanted)


def test_a_given_folder_holds_the_pictures(tmp_path: Path) -> None:
    """Names are relative to data.images then."""
    root = voc(tmp_path / "voc", {"train": "1 2"}, _1=xml(), _2=xml())
    plant(tmp_path / "p", {"2.png": "", "2.cr2": ""})
    table = read(root, images=tmp_path / "p")
    assert (table.root, table.names) == (tmp_path / "p", ("1.jpg", "2.png"))


# ---- difficult --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("difficult", "state", "word"),
    [("ignore", -1, "ignored"), ("positive", 1, "taken as present"), ("negative", 0, "taken as a")],
)
def test_a_label_of_difficult_objects_alone_is_decided(
    tmp_path: Path, difficult: str, state: int, word: str
) -> None:
    """One object that is not difficult is enough for a label to hold."""
    root = voc(tmp_path, _1=xml("dog!", "cat", "cat!", "dog!"), _2=xml("fox!", "dog"), _3=xml())
    table = read(root, difficult=difficult)
    assert {"dog": state, "cat": 1}.items() <= row(table, 0).items()
    assert row(table, 1).get("fox", 0) == state
    assert (row(table, 1)["dog"], set(row(table, 2).values())) == (1, {0})
    assert table.notes[-1].startswith(f"2 difficult-only targets: {word}")
    assert table.notes[-1].endswith("(data.difficult)")


# ---- class files ------------------------------------------------------------------------


def classes(root: Path, **more: str) -> Path:
    """Return a release without annotations; names of files and their texts."""
    texts = {"train": "2008_000008\n2008_000015\n", "cat_train": "2008_000008 -1\n2008_000015  1\n"}
    return plant(root, {f"{MAIN}/{name}.txt": text for name, text in (texts | more).items()})


def test_class_files_give_labels_without_annotations(tmp_path: Path) -> None:
    """There is one file per class and list; files of other lists are not read."""
    dog = "2008_000015\t 0 \r\n\r\n2008_000008   1\r\n2008_000099 1\r\n"
    table = read(classes(tmp_path, dog_train=dog, dog_trainval="junk", ox_val="2008_000008 1"))
    assert table.names == ("JPEGImages/2008_000008.jpg", "JPEGImages/2008_000015.jpg")
    assert (row(table, 0), row(table, 1)) == ({"cat": 0, "dog": 1}, {"cat": 1, "dog": -1})
    assert (table.unnamed.tolist(), table.faults, table.splits) == ([-1, -1], (), None)
    assert table.notes[1:] == (
        "2 labels in class files",
        "1 difficult-only targets: ignored (data.difficult)",
    )
    assert row(read(tmp_path, difficult="positive"), 1) == {"cat": 1, "dog": 1}


def test_what_a_class_file_leaves_out_is_unknown(tmp_path: Path) -> None:
    """A class that only val has is unknown in train; a note counts."""
    root = classes(tmp_path, val="9\n", cat_val="9 1\n", dog_val="9 -1\n")
    table = read(root)
    assert table.splits == ("train", "train", "val")
    assert [row(table, at) for at in (0, 2)] == [{"cat": 0, "dog": -1}, {"cat": 1, "dog": 0}]
    assert "2 targets that no class file lists: unknown" in table.notes


def test_lines_of_class_files_that_say_nothing_are_faults(tmp_path: Path) -> None:
    """Lines that contradict each other are faults too."""
    table = read(classes(tmp_path, dog_train="2008_000008 1\n2008_000008 -1\nx 2\ny\n"))
    assert table.faults == (
        Fault(f"{MAIN}/dog_train.txt line 2", "2008_000008 has another number above", 0),
        Fault(f"{MAIN}/dog_train.txt line 3", "'x 2': wanted an id, and 1, 0 or -1"),
        Fault(f"{MAIN}/dog_train.txt line 4", "'y': wanted an id, and 1, 0 or -1"),
    )


def test_a_class_file_is_no_list(tmp_path: Path) -> None:
    """The message says what to give; a list may hold ids with blanks all the same."""
    path = classes(tmp_path, train="a 1") / MAIN / "cat_train.txt"
    assert read(path.with_name("train.txt")).names == ("JPEGImages/a 1.jpg",)
    said = f"{path}: it lists one class only; give train.txt beside it, or {tmp_path}"
    assert refused(path) == said


# ---- what is wrong ----------------------------------------------------------------------

BOMB = '<!DOCTYPE a [<!ENTITY e "ha">]><annotation><object><name>&e;</name></object></annotation>'
LAX = "<object><name> </name></object><object><name>a</name><difficult>2</difficult></object>"


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        (BOMB, ["declares a DOCTYPE or ENTITY, which is not read"]),
        (BOMB.encode("utf-16"), ["not UTF-8 text: invalid start byte"]),
        (b"<annotation>" + b" " * 10 * 2**20, ["larger than 10 MB"]),
        ("<annotation><object>", ["not XML: no element found: line 1, column 20"]),
        ("", ["not XML: no element found: line 1, column 0"]),
        ("<svg><object/></svg>", ["holds <svg>; wanted <annotation>", "object 1 has no name"]),
        (
            xml("dog").replace("<difficult>0", "<difficult>"),
            ["object 1: difficult is ''; wanted 0 or 1"],
        ),
        (
            f"<annotation>{LAX}</annotation>",
            ["object 1 has no name", "object 2: difficult is '2'; wanted 0 or 1"],
        ),
    ],
)
def test_a_bad_annotation_is_a_fault(tmp_path: Path, text: str | bytes, wrong: list[str]) -> None:
    """Named by its file, with the row; the others are read."""
    table = read(voc(tmp_path, _0=xml("dog"), _1=text))
    assert table.faults == tuple(Fault("Annotations/1.xml", one, 1) for one in wrong)
    assert row(table, 0)["dog"] == 1


def test_an_annotation_may_lack_difficult_and_declare_any_encoding(tmp_path: Path) -> None:
    """The file is read as UTF-8; spaces around a label are removed."""
    text = '<?xml version="1.0" encoding="gbk"?><annotation><object><name> Bär\n</name></object>'
    table = read(voc(tmp_path, _1=f"\ufeff{text}</annotation>"))
    assert (row(table, 0), table.faults) == ({"Bär": 1}, ())


def test_a_list_that_is_no_text_is_refused(tmp_path: Path) -> None:
    """The message has the file's name."""
    plant(tmp_path, {f"{MAIN}/train.txt": b"\xff1", "Annotations/1.xml": xml()})
    assert refused(tmp_path).endswith("train.txt: not UTF-8 text; save it as UTF-8")


pieces = st.sampled_from(["<annotation>", "</annotation>", "<object>", "</object>", "<name>dog"])
pieces |= st.sampled_from(
    ["</name>", "<difficult>", "</difficult>", "1 1", "\n", "-1", "<!DOCTYPE"]
)
contents = st.binary(max_size=30) | st.lists(pieces).map(lambda some: "".join(some).encode())


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(contents, contents, contents, st.booleans())
@example(b"1" * 300, b"", b"", True)
def test_any_files_give_a_table_or_an_error_for_people(
    tmp_path: Path, listed: bytes, annotation: bytes, class_file: bytes, by_xml: bool
) -> None:
    """Nothing else is raised, and every row has its targets."""
    root = tmp_path / ("xml" if by_xml else "classes")
    plant(root, {f"{MAIN}/train.txt": listed + b"\n1\n", f"{MAIN}/a_train.txt": class_file})
    plant(root, {"Annotations/1.xml": annotation} if by_xml else {})
    try:
        table = read(root)
    except DataError:
        return
    assert table.targets.shape == (len(table.names), len(table.labels))
    assert len(table.unnamed) == len(table.names)
