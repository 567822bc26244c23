"""Pre-annotations for Label Studio: `predict --format label-studio`, and what comes back."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Run

from mlfinetune.config import Config
from mlfinetune.data.readers.json_table import read_json
from mlfinetune.data.table import SourceOptions
from mlfinetune.errors import DataError
from mlfinetune.runs.label_studio_tasks import build_task, find_interface

PREDICT = ("predict", "-c", "runs/pets", "--format", "label-studio")


def accept(tasks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the tasks as Label Studio exports them when somebody has submitted each prediction."""
    return [
        {"id": n, **task, "annotations": [{"id": n, "result": task["predictions"][0]["result"]}]}
        for n, task in enumerate(tasks)
    ]


def test_what_people_accept_comes_back_as_the_labels(
    trained: Path, cli: Run, tmp_path: Path
) -> None:
    """The labels are those of the CSV, and an export of accepted predictions reads as they do."""
    rows = list(csv.DictReader(io.StringIO(cli(*PREDICT[:3], "images", cwd=trained).stdout)))
    done = cli(*PREDICT, "images", cwd=trained)
    assert done.returncode == 0, done.stderr
    names = "interface: data.image, image 'image', control 'choice' (Label Studio's template)"
    assert names in done.stderr
    tasks = json.loads(done.stdout)
    (tmp_path / "export.json").write_text(json.dumps(accept(tasks)))
    table = read_json(tmp_path / "export.json", SourceOptions())
    assert not table.faults
    assert list(table.names) == [row["image"] for row in rows]
    for row, states, task in zip(rows, table.targets, tasks, strict=True):
        given = {name for name, state in zip(table.labels.names, states, strict=True) if state == 1}
        assert given == set(filter(None, row["labels"].split("|")))
        [prediction] = task["predictions"]
        assert prediction["model_version"].startswith("pets/best.safetensors sha256:")
        scores = [float(row[name]) for name in given]
        nothing = 1 - max(float(p) for p in list(row.values())[2:-1])
        assert prediction["score"] == pytest.approx(min(scores, default=nothing), abs=2e-6)


def test_pictures_without_labels_and_unreadable_ones_are_tasks_too(
    trained: Path, cli: Run, tmp_path: Path
) -> None:
    """No label gives an empty result; what cannot be read has no prediction, and its reason."""
    (tmp_path / "a.jpg").write_bytes((trained / "images/0000.jpg").read_bytes())
    (tmp_path / "b.jpg").write_text("no picture")
    about = ("--threshold", "1", "--only-labels")
    done = cli(*PREDICT, str(tmp_path), *about, cwd=trained)
    first, second = json.loads(done.stdout)
    assert done.returncode == 3
    assert first["predictions"][0]["result"] == []
    assert "score" not in first["predictions"][0]
    assert (second["predictions"], list(second["meta"])) == ([], ["error"])


def test_the_names_are_those_of_the_export_that_the_run_read(tmp_path: Path) -> None:
    """Each label goes to its control, by the value that it has there; others to the first one."""
    export = tmp_path / "export.json"
    result = {"to_name": "img", "type": "choices"}
    results = [
        {**result, "from_name": "animal", "value": {"choices": ["Cat"]}},
        {**result, "from_name": "place", "value": {"choices": ["home"]}},
    ]
    export.write_text(
        json.dumps([{"data": {"photo": "a.jpg"}, "annotations": [{"result": results}]}])
    )
    tables = [tmp_path / "more.csv", export]
    config = Config.model_validate({"data": {"train": tables, "rename_labels": {"Cat": "cat"}}})
    interface, said = find_interface(config)
    assert "data.photo, image 'img', control 'animal', control 'place' (as in " in said
    p = np.array([0.9, 0.8, 0.7])
    task = build_task("b.jpg", ["cat", "home", "new"], p, [0, 1, 2], "pets", interface)
    assert task["data"] == {"photo": "b.jpg"}
    found = [(r["from_name"], r["to_name"], r["value"]) for r in task["predictions"][0]["result"]]
    assert found == [
        ("animal", "img", {"choices": ["Cat", "new"]}),
        ("place", "img", {"choices": ["home"]}),
    ]


def test_one_choice_a_task_is_a_text_in_json_min(tmp_path: Path) -> None:
    """Its control is named too, not that of the template."""
    about = {"annotator": 1, "annotation_id": 1, "created_at": "", "updated_at": "", "lead_time": 1}
    rows = [
        {"image": f"{number}.jpg", "id": number, "kind": kind, **about}
        for number, kind in enumerate(("cat", "dog", "cat"))
    ]
    (tmp_path / "export.json").write_text(json.dumps(rows))
    config = Config.model_validate({"data": {"train": tmp_path / "export.json"}})
    interface, said = find_interface(config)
    assert "control 'kind'" in said
    assert interface.find_choice("dog").control == "kind"


def test_paths_of_a_taxonomy_are_those_of_the_export(tmp_path: Path) -> None:
    """A leaf is proposed by its path; levels above it are not proposed again."""
    export = tmp_path / "export.json"
    value = {"taxonomy": [["animal", "cat"], ["place"]]}
    result = {"from_name": "kind", "to_name": "image", "type": "taxonomy", "value": value}
    export.write_text(json.dumps([{"data": {"image": "a"}, "annotations": [{"result": [result]}]}]))
    interface, _ = find_interface(Config.model_validate({"data": {"train": export}}))
    labels, p = ["animal", "cat", "place"], np.array([0.9, 0.8, 0.7])
    for columns, paths in (([0, 1, 2], value["taxonomy"]), ([0], [["animal"]])):
        task = build_task("b.jpg", labels, p, columns, "pets", interface)
        [found] = task["predictions"][0]["result"]
        assert (found["type"], found["value"]) == ("taxonomy", {"taxonomy": paths})
    flat = {"image": "a.jpg", "kind": [["animal", "cat"]], "annotation_id": 1, "annotator": 1}
    export.write_text(json.dumps([flat]))
    interface, _ = find_interface(Config.model_validate({"data": {"train": export}}))
    assert interface.find_choice("cat").value == ("animal", "cat")


@pytest.mark.parametrize("content", ["[]", "not JSON", '[{"image": "a.jpg"}]', None])
def test_any_other_table_gives_the_template(tmp_path: Path, content: str | None) -> None:
    """Also one that is gone."""
    if content is not None:
        (tmp_path / "export.json").write_text(content)
    config = Config.model_validate({"data": {"train": tmp_path / "export.json"}})
    interface, _ = find_interface(config)
    assert (interface.image, interface.to_name, interface.from_name) == ("image", "image", "choice")


def test_our_own_tasks_are_no_labels(trained: Path, cli: Run, tmp_path: Path) -> None:
    """Predictions that nobody has accepted are not trained on."""
    (tmp_path / "tasks.json").write_text(cli(*PREDICT, "images", cwd=trained).stdout)
    with pytest.raises(DataError, match="24 tasks of Label Studio without an annotation: left out"):
        read_json(tmp_path / "tasks.json", SourceOptions())


def test_another_file_is_not_overwritten(trained: Path, cli: Run, tmp_path: Path) -> None:
    """An export is not emptied; `.json` alone chooses no format."""
    out = tmp_path / "export.json"
    out.write_text('[{"data": {"image": "a.jpg"}, "annotations": []}]')
    done = cli(*PREDICT, "images", "-o", str(out), cwd=trained)
    assert (done.returncode, out.read_text()[:3]) == (2, '[{"')
    done = cli("predict", "images", "-o", str(tmp_path / "new.json"), cwd=trained)
    assert done.returncode == 2
    assert "or --format label-studio" in done.stderr
