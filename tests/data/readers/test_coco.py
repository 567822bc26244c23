"""COCO's JSON becomes a Table: labels from annotations, pictures found beside it, faults named."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from mlfinetune.data.readers.coco import is_coco, is_coco_json, read_coco
from mlfinetune.data.table import Fault, SourceOptions, Table
from mlfinetune.errors import DataError

POLYGON = {"segmentation": [[1.5, 2.0, 3.0, 4.0, 5.0, 6.0]], "bbox": [1, 2, 3, 4], "area": 2.5}
IMAGES = [{"id": 7, "file_name": "a.jpg", "height": 4}, {"id": 9, "file_name": "b.jpg"}]
CATEGORIES = [
    {"id": 3, "name": "dog", "supercategory": "animal"},
    {"id": 1, "name": "cat"},
    {"id": 90, "name": "fox"},
]


def labelled(*pairs: tuple[Any, Any]) -> list[dict[str, Any]]:
    """Annotations with these ids of image and category."""
    return [
        {"id": at, "image_id": image, "category_id": category, "iscrowd": 0, **POLYGON}
        for at, (image, category) in enumerate(pairs)
    ]


def coco(path: Path, **lists: Any) -> Path:
    """Make a JSON file with these lists, the usual ones where none is given."""
    usual = {"images": IMAGES, "annotations": labelled((9, 1), (9, 3)), "categories": CATEGORIES}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"info": {"year": 2017}, **usual, **lists}))
    return path


def files(folder: Path, *names: str) -> None:
    """Empty files."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def read(path: Path, **options: Any) -> Table:
    """Return the Table of a file or folder."""
    return read_coco(path, SourceOptions(**options))


def faults(path: Path) -> list[str]:
    """Return the faults of a file as they are printed."""
    return [str(fault) for fault in read(path).faults]


def refused(path: Path, content: str | bytes | None = None) -> str:
    """Return the message of a file, with that content if given, that is refused."""
    if content is not None:
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(DataError) as caught:
        read(path)
    return str(caught.value)


# ---- labels -----------------------------------------------------------------------------


def test_an_image_has_the_categories_of_its_annotations(tmp_path: Path) -> None:
    """Labels are in the order of the categories; a category without annotation has a column too."""
    table = read(coco(tmp_path / "t.json"))
    assert (table.format, table.names, table.lines) == ("coco", ("a.jpg", "b.jpg"), None)
    assert table.labels.names == ("dog", "cat", "fox")
    assert table.targets[:].tolist() == [[0, 0, 0], [1, 1, 0]]
    assert table.unnamed.tolist() == [0, 0]
    assert (table.splits, table.faults) == (None, ())
    assert table.notes[0] == "t.json: 3 categories, 2 images, 2 annotations"


def test_repeats_crowds_and_labels_of_whole_images_count(tmp_path: Path) -> None:
    """Two dogs are one label; a crowd of cats is cats; no box is needed."""
    annotations = [{"image_id": 9, "category_id": 90}, *labelled((7, 3), (7, 3))]
    annotations += [{**labelled((9, 1))[0], "iscrowd": 1, "segmentation": {"counts": [1, 2]}}]
    table = read(coco(tmp_path / "t.json", annotations=annotations))
    assert table.targets[:].tolist() == [[1, 0, 0], [0, 1, 1]]


@pytest.mark.parametrize(
    ("scores", "unsure"),
    [((0.05, 0.9), "1 annotation"), ((0.4, 0), "2 annotations"), ((0.5, 1), ""), ((None, "a"), "")],
)
@pytest.mark.parametrize("key", ["score", "confidence"])
def test_scores_of_a_detector_are_noted(
    tmp_path: Path, key: str, scores: tuple[object, ...], unsure: str
) -> None:
    """A box that a detector hardly believes in is a label as all others are: the user is told."""
    boxes = labelled((7, 3), (9, 1))
    boxes = [box | {key: score} for box, score in zip(boxes, scores, strict=True)]
    table = read(coco(tmp_path / "t.json", annotations=boxes))
    assert table.targets[:].tolist() == [[1, 0, 0], [0, 1, 0]]
    notes = [note for note in table.notes if "as detectors write it" in note]
    assert len(notes) == bool(unsure)
    assert all(f"{unsure} with a score below 0.5" in note for note in notes)


def test_ids_of_text_and_a_byte_order_mark_are_read(tmp_path: Path) -> None:
    """Some tools write them."""
    path = coco(
        tmp_path / "t.json",
        images=[{"id": "x", "file_name": "größe.jpg"}],
        categories=[{"id": "c", "name": " Bär "}],
        annotations=labelled(("x", "c")),
    )
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    table = read(path)
    assert (table.names, table.labels.names) == (("größe.jpg",), ("Bär",))
    assert table.targets[:].tolist() == [[1]]


def test_images_without_annotations_or_categories_have_no_label(tmp_path: Path) -> None:
    """Empty lists are read; the table has no column then."""
    table = read(coco(tmp_path / "t.json", annotations=[], categories=[]))
    assert (table.targets.shape, table.labels.names, table.faults) == ((2, 0), (), ())


# ---- where the pictures are -------------------------------------------------------------


SIDES = ["train2017", "images/train2017", "images", "train", "images/train", "annotations", "."]
TREES = {
    "annotations/instances_train2017.json": SIDES,
    "annotations/instances_default.json": ["images/default"],
    "annotations/person_keypoints_val2017.json": ["val2017"],
    "annotations/valid.json": ["valid"],
    "labels.json": ["data", "images"],
    "_annotations.coco.json": ["."],
}


@pytest.mark.parametrize(
    ("json_name", "folder"), [(name, folder) for name in TREES for folder in TREES[name]]
)
def test_the_pictures_are_found(tmp_path: Path, json_name: str, folder: str) -> None:
    """The folders are those that tools write, and a note names the folder."""
    root = tmp_path / "root"
    path = coco(root / json_name)
    files(root / folder, "a.jpg", "b.jpg")
    table = read(path)
    assert table.root == root / folder
    assert table.notes[1] == f"{path.name}: pictures in {root / folder}"


def test_the_folder_with_most_of_the_first_pictures_is_taken(tmp_path: Path) -> None:
    """One stray file in the likelier folder does not decide, nor does one that is missing."""
    path = coco(
        tmp_path / "annotations/instances_val.json", images=[*IMAGES, IMAGES[0] | {"id": 5}]
    )
    files(tmp_path / "val", "a.jpg", "c.jpg")
    assert read(path).root == tmp_path / "val"
    files(tmp_path / "images", "a.jpg", "b.jpg")
    assert read(path).root == tmp_path / "images"


def test_pictures_that_are_nowhere_are_expected_beside_the_json(tmp_path: Path) -> None:
    """The note names the folders that were looked at."""
    path = coco(tmp_path / "annotations/instances_val.json")
    (tmp_path / "val").mkdir()
    table = read(path)
    assert (table.root, table.names) == (path.parent, ("a.jpg", "b.jpg"))
    looked = f"{tmp_path / 'val'}, {path.parent}, {tmp_path}"
    where = f"pictures expected in {path.parent}, not found in {looked}"
    assert table.notes[1] == f"instances_val.json: {where}"
    assert read(path, images=tmp_path / "else").root == tmp_path / "else"


# ---- folders ----------------------------------------------------------------------------


def test_the_root_of_coco_gives_splits(tmp_path: Path) -> None:
    """Names are relative to the root; categories of both files are joined by name."""
    root = tmp_path / "coco"
    coco(root / "annotations/instances_train2017.json")
    one, cow = [{"id": 7, "file_name": "c.jpg"}], [{"id": 3, "name": "cow"}, CATEGORIES[1]]
    val = {"images": one, "categories": cow, "annotations": labelled((7, 3), (7, 1))}
    coco(root / "annotations/instances_val2017.json", **val)
    files(root, "annotations/captions_val2017.json", "train2017/a.jpg", "val2017/c.jpg")
    table = read(root)
    assert (table.root, table.splits) == (root, ("train", "train", "val"))
    assert table.names == ("train2017/a.jpg", "train2017/b.jpg", "val2017/c.jpg")
    assert table.labels.names == ("dog", "cat", "fox", "cow")
    assert table.targets[:].tolist() == [[0, 0, 0, 0], [1, 1, 0, 0], [0, 1, 0, 1]]
    assert "instances_val2017.json: 2 categories, 1 image, 2 annotations" in table.notes


def test_a_given_folder_may_hold_a_folder_for_each_split(tmp_path: Path) -> None:
    """data.images with a COCO root: names are relative to it."""
    for name in ("train", "test"):
        coco(tmp_path / f"coco/annotations/instances_{name}.json")
    pictures = tmp_path / "pictures"
    files(pictures, "train/a.jpg", "test/a.jpg")
    table = read(tmp_path / "coco", images=pictures)
    assert (table.root, table.splits) == (pictures, ("train", "train", "test", "test"))
    assert table.names == ("train/a.jpg", "train/b.jpg", "test/a.jpg", "test/b.jpg")


def test_faults_of_splits_name_their_file_and_row(tmp_path: Path) -> None:
    """Rows are those of the whole table."""
    coco(tmp_path / "annotations/instances_train.json")
    coco(tmp_path / "annotations/instances_valid.json", annotations=labelled((9, 55)))
    text = "category_id 55 matches no category"
    assert read(tmp_path).faults == (Fault("instances_valid.json, annotation 1", text, 3),)


def test_one_file_of_instances_is_taken_whole(tmp_path: Path) -> None:
    """Without splits, whatever follows `instances_`."""
    coco(tmp_path / "annotations/instances_default.json")
    files(tmp_path, "images/a.jpg")
    table = read(tmp_path)
    assert (table.root, table.splits) == (tmp_path, None)
    assert table.names == ("images/a.jpg", "images/b.jpg")


@pytest.mark.parametrize(
    "names",
    [("train2014", "train2017"), ("train2017", "val2014"), ("val", "valid"), ("a", "b")],
)
def test_files_that_nothing_tells_apart_are_refused(tmp_path: Path, names: tuple[str, ...]) -> None:
    """The message lists them, and says what to do."""
    for name in names:
        coco(tmp_path / f"annotations/instances_{name}.json")
    listed = ", ".join(f"instances_{name}.json" for name in names)
    assert refused(tmp_path).endswith(
        f"which of these files to read; name one in data.train: {listed}"
    )


def test_other_files_beside_the_splits_are_named(tmp_path: Path) -> None:
    """A subset that somebody left there is not read, and a note says so."""
    for name in ("train", "val", "minitrain"):
        coco(tmp_path / f"annotations/instances_{name}.json")
    assert read(tmp_path).notes[0] == "not read: instances_minitrain.json"


def test_a_folder_is_told_by_its_files(tmp_path: Path) -> None:
    """Names decide; a folder without the files is refused when it is read."""
    assert not is_coco(tmp_path)
    assert "no annotations/instances_*.json and no _annotations.coco.json" in refused(tmp_path)
    files(tmp_path, "annotations/other.json")
    assert not is_coco(tmp_path)
    files(tmp_path, "a/annotations/instances_x.json", "b/_annotations.coco.json")
    assert is_coco(tmp_path / "a")
    assert is_coco(tmp_path / "b")
    coco(tmp_path / "b/_annotations.coco.json")
    assert read(tmp_path / "b").root == tmp_path / "b"


# ---- what is wrong ----------------------------------------------------------------------


def test_annotations_of_nothing_are_faults(tmp_path: Path) -> None:
    """Every one is named, counted from 1; what is right is kept."""
    bad = [*labelled((7, 1), (8, 1), (7, 2), (8, 2)), {"category_id": 1}, 5, {"image_id": 9}]
    bad += [{"image_id": [], "category_id": 1}, {"image_id": 7, "category_id": True}]
    table = read(coco(tmp_path / "t.json", annotations=bad))
    assert [str(fault) for fault in table.faults] == [
        "annotation 2: image_id 8 matches no image",
        "annotation 3: category_id 2 matches no category",
        "annotation 4: image_id 8 matches no image and category_id 2 matches no category",
        "annotation 5: no image_id",
        "annotation 6: no image_id and no category_id",
        "annotation 7: no category_id",
        "annotation 8: image_id [] matches no image",
        "annotation 9: category_id True matches no category",
    ]
    assert [fault.row for fault in table.faults] == [None, 0, None, None, None, 1, None, 0]
    assert table.targets[:].tolist() == [[0, 1, 0], [0, 0, 0]]


def test_images_without_id_or_name_are_faults(tmp_path: Path) -> None:
    """Annotations of an image whose name is at fault are not reported as well."""
    bad = [
        {"id": 1},
        {"file_name": "c"},
        {"id": 7, "file_name": "d"},
        "e",
        {"id": 2, "file_name": 3},
    ]
    bad += [{"id": [], "file_name": "f"}, {"id": 4, "file_name": " "}]
    bad += [{"id": 5, "file_name": "\ud800.jpg"}]
    path = coco(tmp_path / "t.json", images=IMAGES + bad, annotations=labelled((1, 1), (2, 5)))
    assert faults(path) == [
        "image 3: no file_name",
        "image 4: no id",
        "image 5: id 7 is repeated",
        "image 6: no id",
        "image 7: file_name 3 is not a name",
        "image 8: id [] is not a number or a string",
        "image 9: file_name ' ' is not a name",
        "image 10: file_name '\\ud800.jpg' is not a name",
        "annotation 2: category_id 5 matches no category",
    ]
    assert (read(path).names, read(path).faults[-1].row) == (("a.jpg", "b.jpg"), None)


def test_categories_without_a_name_of_their_own_are_faults(tmp_path: Path) -> None:
    """Two with one name would be one label, told by space alone too."""
    bad = [{"id": 4, "name": "dog "}, {"id": 5}, {"id": 3, "name": "cow"}, None]
    path = coco(tmp_path / "t.json", categories=CATEGORIES + bad, annotations=labelled((9, 5)))
    assert faults(path) == [
        "category 5: no name",
        "category 6: id 3 is repeated",
        "category 7: no id",
        "categories: 2 have the name 'dog'",
    ]
    assert not read(path).targets[:].any()


def test_ids_of_the_other_type_are_matched_and_counted(tmp_path: Path) -> None:
    """ "3" is 3 where every id is a number; the note says how many annotations have it."""
    text = labelled((9, "3"), (9, "1"), ("7", "90"))
    table = read(coco(tmp_path / "t.json", annotations=text))
    assert table.targets[:].tolist() == [[0, 0, 1], [1, 1, 0]]
    assert table.faults == ()
    assert table.notes[1:3] == (
        "image_id is text in 1 annotation, and numbers in images: matched",
        "category_id is text in 3 annotations, and numbers in categories: matched",
    )


def test_ids_of_entries_may_be_the_text(tmp_path: Path) -> None:
    """The reverse: categories say "3", annotations 3; 3.0 is 3."""
    categories = [{**category, "id": str(category["id"])} for category in CATEGORIES]
    annotations = labelled((9, 3), (9, 1.0), (7, "90"))
    table = read(coco(tmp_path / "t.json", categories=categories, annotations=annotations))
    assert table.targets[:].tolist() == [[0, 0, 1], [1, 1, 0]]
    assert (
        table.notes[1] == "category_id is numbers in 2 annotations, and text in categories: matched"
    )


def test_names_in_place_of_ids_are_one_fault(tmp_path: Path) -> None:
    """A thousand annotations of one mistake are one line, with its count; others keep theirs."""
    bad = [*labelled(*[(9, "dog")] * 1240), *labelled(("a.jpg", 1), ("b.jpg", 2), (9, 4))]
    assert faults(coco(tmp_path / "t.json", annotations=bad)) == [
        "annotation 1242: category_id 2 matches no category",
        "annotation 1243: category_id 4 matches no category",
        "annotations: 2 have image_id as text, such as 'a.jpg'; the ids of images are numbers, "
        "such as 7: write these",
        "annotations: 1,240 have category_id as text, such as 'dog'; the ids of categories are "
        "numbers, such as 3: write these",
    ]


def test_ids_that_text_would_mix_up_are_not_matched(tmp_path: Path) -> None:
    """With both 3 and "3" as ids every id is taken as it stands."""
    categories = [*CATEGORIES, {"id": "3", "name": "cow"}, {"id": 5, "name": "hen"}]
    annotations = labelled((9, "3"), (7, 3), (7, "5"))
    table = read(coco(tmp_path / "t.json", categories=categories, annotations=annotations))
    assert table.targets[:].tolist() == [[1, 0, 0, 0, 0], [0, 0, 0, 1, 0]]
    assert [str(fault) for fault in table.faults] == [
        "annotation 3: category_id '5' matches no category"
    ]


def test_two_images_of_one_file_are_a_fault(tmp_path: Path) -> None:
    """With other ids they were one image with the labels of both."""
    images = [*IMAGES, {"id": 5, "file_name": "a.jpg"}, {"id": "x", "file_name": "./b.jpg"}]
    table = read(coco(tmp_path / "t.json", images=images))
    assert [str(fault) for fault in table.faults] == [
        "images: ids 7 and 5 have one file_name, 'a.jpg'",
        "images: ids 9 and 'x' have one file_name, './b.jpg'",
    ]
    assert [fault.row for fault in table.faults] == [2, 3]


@pytest.mark.parametrize("name", ["background", "__background__", "_Unlabeled_", "VOID", "pets"])
def test_a_category_that_stands_for_no_object_is_noted(tmp_path: Path, name: str) -> None:
    """By its name, or as the supercategory that Roboflow writes; the line can be pasted."""
    extra = {"id": 17, "name": name, "supercategory": "none"}
    categories = [extra, *({**category, "supercategory": "pets"} for category in CATEGORIES)]
    annotations = labelled((7, 1), (9, 3))
    path = coco(tmp_path / "t.json", categories=categories, annotations=annotations)
    note = f"no annotation has '{name}'; to leave it out: data.ignore_labels: [\"{name}\"]"
    assert note in read(path).notes
    assert note not in read(path, ignore_labels=(name,)).notes
    used = labelled((7, 1), (9, 17))
    table = read(coco(path, categories=categories, annotations=used))
    assert not any("no annotation has" in note for note in table.notes)


def test_category_0_is_noted_where_all_others_have_annotations(tmp_path: Path) -> None:
    """Whatever its name; in a small part of a data set many categories have none."""
    categories = [{"id": 0, "name": "a, b"}, *CATEGORIES[:2]]
    path = coco(tmp_path / "t.json", categories=categories)
    assert (
        "no annotation has 'a, b'; to leave it out: data.ignore_labels: [\"a, b\"]"
        in read(path).notes
    )
    path = coco(path, categories=categories, annotations=labelled((9, 1)))
    assert not any("no annotation has" in note for note in read(path).notes)


def test_a_background_that_another_split_has_is_not_noted(tmp_path: Path) -> None:
    """All files of the root count."""
    categories = [{"id": 17, "name": "background"}, *CATEGORIES]
    coco(tmp_path / "annotations/instances_train.json", categories=categories)
    for annotations, noted in ((labelled((9, 17)), False), ([], True)):
        val = {"categories": categories, "annotations": annotations}
        coco(tmp_path / "annotations/instances_val.json", **val)
        assert any("no annotation has" in note for note in read(tmp_path).notes) == noted


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig"])
def test_packed_json_and_other_encodings_are_read(tmp_path: Path, encoding: str) -> None:
    """As the tables are."""
    path = coco(tmp_path / "t.json")
    packed = tmp_path / "t.json.gz"
    packed.write_bytes(gzip.compress(path.read_text().encode(encoding)))
    assert read(packed).targets[:].tolist() == read(path).targets[:].tolist()


@pytest.mark.parametrize(
    ("content", "is_one"),
    [
        ('{"info": {}, "images" : [], "annotations":[]}', True),
        ('\n {"categories": [ ], "x": 1, "annotations": []}', True),
        ('[{"images": [], "annotations": [], "categories": []}]', False),
        ('{"images": [{"file": "a.jpg", "labels": []}]}', False),
        ('{"a.jpg": ["images", "annotations"], "b.jpg": {"categories": []}}', False),
        ("", False),
    ],
)
def test_a_file_is_told_by_two_lists(tmp_path: Path, content: str, is_one: bool) -> None:
    """A table that has one such name is another JSON."""
    (tmp_path / "t.json").write_text(content)
    assert is_coco_json(tmp_path / "t.json") == is_one


def test_lists_are_seen_over_the_edges_of_blocks(tmp_path: Path) -> None:
    """The file is searched in blocks."""
    for shift in range(0, 40, 5):
        filler = "x" * (2**20 - 40 + shift)
        text = f'{{"images": [], "f": "{filler}", "annotations": []}}'
        (tmp_path / "t.json").write_text(text)
        assert is_coco_json(tmp_path / "t.json")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", ", line 1, column 1: not JSON: Expecting value"),
        ('{"images": [],\n oops', ", line 2, column 2: not JSON: Expecting property name"),
        (b'{"images": "\xe9"}', ": not UTF-8 text (byte 0xe9); save it as UTF-8"),
        ("[" * 100_000, ": cannot be read as JSON: maximum recursion depth"),
        ("9" * 5000, ": cannot be read as JSON: Exceeds the limit"),
        ('[{"image_id": 1}]', "found a list of 1 entries"),
        ('"text"', "annotations, categories, found 'text'"),
        ('{"type": "x", "features": []}', "found 'type', 'features'; this looks like GeoJSON"),
        ('{"shapes": [], "imagePath": "a"}', "; this looks like labelme's JSON"),
        ('{"images": [], "annotations": []}', "; captions name no labels: give the file of inst"),
        ('{"images": [1], "annotations": 5, "categories": []}', ": no list of annotations; want"),
        ('{"images": [], "annotations": [], "categories": []}', ": the list of images is empty"),
    ],
)
def test_a_file_that_is_no_coco_is_refused(
    tmp_path: Path, content: str | bytes, message: str
) -> None:
    """The message names the file, the place and what was found."""
    said = refused(tmp_path / "t.json", content)
    assert said.startswith(str(tmp_path / "t.json"))
    assert message in said


values = st.recursive(
    st.none() | st.booleans() | st.integers(-1, 3) | st.floats() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["id", "file_name", "image_id", "name"]), inner, max_size=3
        )
    ),
    max_leaves=6,
)
ids = st.integers(0, 3) | values
entries = st.fixed_dictionaries(
    {},
    optional={"id": ids, "file_name": values, "name": values, "image_id": ids, "category_id": ids},
)
lists = st.lists(entries | values, max_size=5)
documents = values | st.fixed_dictionaries(
    {"images": lists, "annotations": lists, "categories": lists}
)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(documents.map(json.dumps).map(str.encode) | st.binary(max_size=40))
@example(b'{"images": [{"id": 1, "file_name": "a\\u0000"}], "annotations": [], "categories": []}')
def test_any_json_gives_a_table_or_an_error_for_people(tmp_path: Path, content: bytes) -> None:
    """Nothing else is raised, and every row has its targets."""
    path = tmp_path / "instances_train.json"
    path.write_bytes(content)
    try:
        table = read(path)
    except DataError:
        return
    assert table.targets.shape == (len(table.names), len(table.labels))
    assert len(table.unnamed) == len(table.names)
