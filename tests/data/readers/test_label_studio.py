"""Exports of Label Studio, JSON and JSON-MIN, as its server writes them."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mlfinetune.data.paths import check_paths
from mlfinetune.data.readers.csv_table import read_csv
from mlfinetune.data.readers.json_table import read_json
from mlfinetune.data.rows import join_repeats
from mlfinetune.data.table import SourceOptions, Table
from mlfinetune.errors import DataError


def choices(*labels: str, control: str = "tag") -> dict[str, Any]:
    """Return one result of an annotation."""
    value = {"choices": list(labels)}
    return {"from_name": control, "to_name": "image", "type": "choices", "value": value}


def annotation(*results: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"id": 1, "was_cancelled": False, "result": list(results), **more}


def task(name: str, *annotations: dict[str, Any], **data: Any) -> dict[str, Any]:
    """Return a task of an uploaded picture."""
    data = {"image": f"/data/upload/3/1a2b3c4d-{name}", **data}
    return {"id": 5, "data": data, "annotations": list(annotations), "predictions": []}


def flat(name: str, **more: Any) -> dict[str, Any]:
    """Return an annotation as JSON-MIN has it."""
    about = {"annotator": 1, "created_at": "2026-11-01T10:00:00Z", "lead_time": 3.1}
    picture = f"/data/upload/3/1a2b3c4d-{name}"
    return {"image": picture, "id": name, "annotation_id": 9, **about, **more}


def read(folder: Path, content: Any, **options: Any) -> dict[str, set[str]]:
    """Return picture -> the labels that hold; pictures are looked for in the folder."""
    return list_positives(read_table(folder, content, **options))


def list_positives(table: Table) -> dict[str, set[str]]:
    """Return picture -> the labels that hold."""
    assert not table.faults, table.faults
    names = table.labels.names
    return {
        image: {names[at] for at in (row == 1).nonzero()[0]}
        for image, row in zip(table.names, table.targets, strict=True)
    }


def read_table(folder: Path, content: Any, **options: Any) -> Table:
    (folder / "export.json").write_text(json.dumps(content))
    for name in ("a.jpg", "b.jpg", "c.jpg"):
        Image.new("RGB", (2, 2)).save(folder / name)
    return read_table_of(folder / "export.json", SourceOptions(**options))


def read_table_of(path: Path, asked: SourceOptions) -> Table:
    read_file = read_json if path.suffix == ".json" else read_csv
    return join_repeats(check_paths(read_file(path, asked), asked))


def test_choices_of_all_controls_are_labels(tmp_path: Path) -> None:
    """Uploads are found by their names, which is said once, with a count."""
    first = annotation(choices("cat", "indoor"), choices("brown", control="color"))
    content = [task("a.jpg", first), task("b.jpg", annotation(choices("dog")))]
    assert read(tmp_path, content) == {"a.jpg": {"cat", "indoor", "brown"}, "b.jpg": {"dog"}}
    (note,) = [note for note in read_table(tmp_path, content).notes if "found by name" in note]
    assert note.startswith("2 pictures found by name (uploads of Label Studio)")
    only = read(tmp_path, content, label_column=("color",))
    assert only == {"a.jpg": {"brown"}, "b.jpg": set()}


def test_a_taxonomy_gives_its_leaves_or_its_paths(tmp_path: Path) -> None:
    """As folders do, by data.folder_labels."""
    value = {"taxonomy": [["animal", "cat"], ["place", "indoor"]]}
    tree = {"from_name": "tree", "type": "taxonomy", "value": value}
    content = [task("a.jpg", annotation(tree))]
    assert read(tmp_path, content) == {"a.jpg": {"cat", "indoor"}}
    whole = read(tmp_path, content, folder_labels="path")
    assert whole == {"a.jpg": {"animal", "cat", "place", "indoor"}}


def test_tasks_that_nobody_answered_are_counted_and_left_out(tmp_path: Path) -> None:
    """A submitted task without a label is an answer: it has none of them."""
    skipped = annotation(choices("cat"), was_cancelled=True)
    empty = annotation()
    content = [task("a.jpg", skipped), task("b.jpg"), task("c.jpg", empty, skipped)]
    content.append(task("a.jpg", annotation(choices("dog"))))
    table = read_table(tmp_path, content)
    assert read(tmp_path, content) == {"c.jpg": set(), "a.jpg": {"dog"}}
    assert "1 task of Label Studio skipped: left out" in table.notes
    assert "1 task of Label Studio without an annotation: left out" in table.notes


@pytest.mark.parametrize(
    ("more", "wanted"),
    [
        ({"updated_at": "2026-11-02T10:00:00Z"}, "dog"),
        ({"updated_at": "2026-10-02T10:00:00Z"}, "cat"),
        ({"updated_at": "2026-10-02T10:00:00Z", "ground_truth": True}, "dog"),
        ({"updated_at": "2026-11-02T10:00:00Z", "was_cancelled": True}, "cat"),
    ],
)
def test_of_several_annotations_one_counts(
    tmp_path: Path, more: dict[str, Any], wanted: str
) -> None:
    """The ground truth, or else the newest that was submitted."""
    first = annotation(choices("cat"), updated_at="2026-11-01T10:00:00Z")
    content = [task("a.jpg", first, annotation(choices("dog"), **more))]
    assert read(tmp_path, content) == {"a.jpg": {wanted}}


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("/data/upload/3/1a2b3c4d-my_cat_1.jpg", "my cat (1).jpg"),
        ("/label-studio/data/upload/3/1a2b3c4d-my_cat.jpg", "my_cat.jpg"),
        ("/data/local-files/?d=sub%2Fmy%20cat.jpg", "sub/my cat.jpg"),
    ],
)
def test_names_that_the_server_has_changed_are_found(tmp_path: Path, name: str, file: str) -> None:
    """Spaces and brackets are gone there; a server may lie below a prefix."""
    (tmp_path / file).parent.mkdir(exist_ok=True)
    Image.new("RGB", (2, 2)).save(tmp_path / file)
    content = [task("a.jpg", annotation(choices("cat")), image=name)]
    assert read(tmp_path, content) == {file: {"cat"}}


@pytest.mark.parametrize("form", ["json", "min"])
def test_a_control_that_is_not_there_is_named(tmp_path: Path, form: str) -> None:
    """With those that are."""
    content = [task("a.jpg", annotation(choices("cat")))]
    if form == "min":
        content = [flat("a.jpg", tag="cat")]
    with pytest.raises(DataError, match=r"no control 'typo' .*'tag'"):
        read(tmp_path, content, label_column=("tag", "typo"))


def test_json_min_of_several_controls_is_no_guess(tmp_path: Path) -> None:
    """A text that repeats may be a choice, or data; coordinates are no taxonomy."""
    content = [
        flat("a.jpg", tag={"choices": ["cat", "dog"]}, scene="in", crop=[[1, 2], [3, 4]]),
        flat("b.jpg", tag="cat", scene="in", crop=[[1, 2], [3, 4]]),
    ]
    with pytest.raises(DataError, match=r"'tag' hold choices, and 'scene' may"):
        read(tmp_path, content)
    found = read(tmp_path, content, label_column=("tag", "scene"))
    assert found == {"a.jpg": {"cat", "dog", "in"}, "b.jpg": {"cat", "in"}}


@pytest.mark.parametrize("value", ["cat", {"choices": ["cat"]}, [["animal", "cat"]], ["cat"]])
def test_json_min_is_read(tmp_path: Path, value: Any) -> None:
    """A choice, several choices, a taxonomy; what describes the annotation is no label."""
    content = [flat("a.jpg", my_tag=value), flat("b.jpg", my_tag={"choices": ["cat", "dog"]})]
    assert read(tmp_path, content) == {"a.jpg": {"cat"}, "b.jpg": {"cat", "dog"}}


def test_json_min_keeps_the_newest_answer_to_a_task(tmp_path: Path) -> None:
    """Counted; a task that was skipped has no answer, which is an empty one."""
    old = flat("a.jpg", tag="cat", updated_at="2026-11-01")
    content = [old, flat("a.jpg", tag="dog", updated_at="2026-11-02"), flat("b.jpg")]
    assert read(tmp_path, content) == {"a.jpg": {"dog"}, "b.jpg": set()}
    assert any("1 task with several annotations" in n for n in read_table(tmp_path, content).notes)


def test_paths_of_a_served_folder_are_found_too(tmp_path: Path) -> None:
    """`/data/local-files/?d=...`; a name of two uploads is a fault, and never guessed."""
    served = task("a.jpg", annotation(choices("cat")), image="/data/local-files/?d=x/b.jpg")
    assert read(tmp_path, [served]) == {"b.jpg": {"cat"}}
    other = task("a.jpg", annotation(choices("dog")), image="/data/upload/4/99999999-a.jpg")
    table = read_table(tmp_path, [task("a.jpg", annotation(choices("cat"))), other])
    assert len(table.faults) == 2


def test_an_export_without_an_answer_is_refused(tmp_path: Path) -> None:
    """It says why: nobody has labelled anything."""
    with pytest.raises(DataError, match=r"no task of Label Studio has labels; 1 task .* skipped"):
        read(tmp_path, [task("a.jpg", annotation(was_cancelled=True))])


@pytest.mark.parametrize(
    "odd",
    [3, {}, {"data": 3, "annotations": []}, {"data": {}, "annotations": [annotation()]}, None],
)
def test_an_odd_task_is_a_fault(tmp_path: Path, odd: Any) -> None:
    """Named by its place in the file; the others are read."""
    table = read_table(tmp_path, [task("a.jpg", annotation(choices("cat"))), odd])
    (fault,) = table.faults
    assert fault.place == "entry 2"


# ---- CSV --------------------------------------------------------------------------------


def read_csv_export(folder: Path, *rows: dict[str, Any], **options: Any) -> Table:
    """Read rows as Label Studio's CSV has them: columns sorted, values that are no text as JSON."""
    columns = sorted({key for row in rows for key in row})
    for name in ("a.jpg", "b.jpg", "c.jpg"):
        Image.new("RGB", (2, 2)).save(folder / name)
    with (folder / "export.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, quoting=csv.QUOTE_NONNUMERIC)
        writer.writeheader()
        for row in rows:
            cells = {k: json.dumps(v) if isinstance(v, list | dict) else v for k, v in row.items()}
            writer.writerow(cells)
    return read_table_of(folder / "export.csv", SourceOptions(**options))


def test_controls_and_taxonomies_of_its_csv(tmp_path: Path) -> None:
    """All columns of choices, taxonomies and regions hold labels; what describes them does not."""
    rows = (
        flat("a.jpg", tag="cat", kind=[{"taxonomy": [["place", "home"]]}]),
        flat("b.jpg", tag={"choices": ["cat", "dog"]}, box=[{"x": 1, "rectanglelabels": ["sun"]}]),
        flat("c.jpg", note="blurred"),
    )
    table = read_csv_export(tmp_path, *rows)
    expected = {"a.jpg": {"cat", "home"}, "b.jpg": {"cat", "dog", "sun"}, "c.jpg": set()}
    assert list_positives(table) == expected
    assert "3 pictures found by name (uploads of Label Studio)" in "; ".join(table.notes)
    levels = read_csv_export(tmp_path, *rows, folder_labels="path")
    assert list_positives(levels)["a.jpg"] == {"cat", "place", "home"}
    some = read_csv_export(tmp_path, *rows, label_column=("tag",))
    assert list_positives(some) == {"a.jpg": {"cat"}, "b.jpg": {"cat", "dog"}, "c.jpg": set()}


def test_its_csv_without_a_task(tmp_path: Path) -> None:
    """The message says that nothing was answered."""
    path = tmp_path / "export.csv"
    path.write_text("image,id,choice,annotator,annotation_id,created_at,updated_at,lead_time\n")
    with pytest.raises(DataError, match="without an answered task"):
        read_csv(path, SourceOptions())


def test_the_newest_annotation_of_its_csv_counts(tmp_path: Path) -> None:
    """A task has a row for each annotation, with the same id; faults name lines."""
    older = flat("a.jpg", tag={"choices": ["cat", "dog"]}, updated_at="2026-11-01T10:00:00Z")
    newer = flat("a.jpg", tag="dog", updated_at="2026-11-02T10:00:00Z")
    table = read_csv_export(tmp_path, newer, older, flat("b.jpg", tag="cat"))
    assert list_positives(table) == {"a.jpg": {"dog"}, "b.jpg": {"cat"}}
    assert table.lines is not None
    assert table.lines.tolist() == [2, 4]
    assert "1 task with several annotations" in "; ".join(table.notes)


def test_a_column_of_its_csv_that_may_hold_choices_is_asked_for(tmp_path: Path) -> None:
    """Words beside choices may be a control of one choice; a column of splits is none."""
    two = {"choices": ["cat", "dog"]}
    rows = [flat("a.jpg", tag=two, choice="day"), flat("b.jpg", tag="cat", choice="night")]
    with pytest.raises(DataError, match=r"export\.csv: 'tag' hold choices, and 'choice' may"):
        read_csv_export(tmp_path, *rows)
    splits = [flat("a.jpg", tag=two, split="val"), flat("b.jpg", tag="cat", split="train")]
    table = read_csv_export(tmp_path, *splits)
    assert list_positives(table)["a.jpg"] == {"cat", "dog"}
