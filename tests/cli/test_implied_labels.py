"""A run with `data.implies`: training, eval, predict, Python and ONNX say the same."""

import csv
import io
import json
from pathlib import Path

import pytest
from conftest import Run

import mlfinetune
from mlfinetune.runs import checkpoint

LABELS = ("red", "dots", "checks")


def read(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_every_way_to_the_probabilities_gives_the_same(exported: Path, cli: Run) -> None:
    """predictions.csv, eval, predict, Python, and an ONNX file, whose graph raises parents too."""
    run = exported
    assert "train: data.implies decides" in (run / "runs/pets/train.log").read_text()
    written = read((run / "runs/pets/predictions.csv").read_text())
    assert cli("eval", "--checkpoint", "runs/pets", cwd=run).returncode == 0
    results = [json.loads((run / f"runs/pets/{x}metrics.json").read_text()) for x in ("", "eval/")]
    assert results[0]["mAP"] == results[1]["mAP"]
    names = "".join(f"{row['image']}\n" for row in written)
    tagger = mlfinetune.load(run / "runs/pets")
    paths = [run / row["image"] for row in written]
    for source in ("runs/pets", "pets.onnx"):
        done = cli("predict", "-", "-c", source, cwd=run, stdin=names)
        assert "parents at least as probable as their children" in done.stderr
        for ours, theirs, tagged in zip(
            read(done.stdout), written, tagger.predict(paths), strict=True
        ):
            assert ours["labels"] == theirs["labels"] == "|".join(tagged.labels)
            p = {name: float(ours[name]) for name in tagger.labels}
            assert p == pytest.approx(tagged.scores, abs=1e-4)
            assert p["red"] >= p["dots"] >= p["checks"]


def test_a_checkpoint_with_odd_pairs_is_refused(exported: Path) -> None:
    """Columns that are not there, a label that implies itself, and what is no pair."""
    file = exported / "runs/pets/best.safetensors"
    loaded = checkpoint.load(file)
    about = json.loads(json.dumps(checkpoint.describe(loaded)))
    decision = about["decision"]
    assert len(loaded.decision.implies) == 3
    for odd in ([[0, 99]], [[1, 1]], [[0]], "ab", [[0.0, 1]], [[-1, 0]], None):
        with pytest.raises(ValueError, match="its implies cannot be"):
            checkpoint.parse({**about, "decision": {**decision, "implies": odd}}, {}, file)
    of_before = {key: value for key, value in decision.items() if key != "implies"}
    assert checkpoint.parse({**about, "decision": of_before}, {}, file).decision.implies == ()


def test_other_data_has_what_follows_too(exported: Path, cli: Run) -> None:
    """`eval --data` reads a table in the hierarchy of the checkpoint, and names its faults."""
    run = exported
    (run / "other.csv").write_text("image,labels\nimages/0000.jpg,checks\nimages/0001.png,red\n")
    done = cli("eval", "-c", "runs/pets", "--data", "other.csv", "--output", "out", cwd=run)
    assert done.returncode == 0, done.stderr
    per_label = json.loads((run / "out/metrics.json").read_text())["per_label"]
    counts = [(per_label[name]["positives"], per_label[name]["negatives"]) for name in LABELS]
    assert counts == [(2, 0), (1, 0), (1, 0)]
    (run / "other.csv").write_text("image,checks,red\nimages/0000.jpg,1,0\n")
    done = cli("eval", "-c", "runs/pets", "--data", "other.csv", "--output", "out2", cwd=run)
    assert done.returncode == 2
    assert "line 2: 'checks' is present, and 'red' is absent (data.implies)" in done.stderr


def test_a_run_with_another_hierarchy_is_not_resumed(exported: Path, cli: Run) -> None:
    """What a run learns depends on it."""
    other = ("data.implies={dots: red}", "data.val_fraction=0.5", "eval.views=mirror")
    done = cli("train", "pets.yaml", "train.epochs=9", *other, "--resume", cwd=exported)
    assert done.returncode == 2
    assert "data.implies" in done.stderr


def test_check_lists_contradictions_and_cycles(pictures: Path, cli: Run) -> None:
    """With the line of each row; a circle by its names."""
    (pictures / "states.csv").write_text(
        "image,red,checks\nimages/0000.jpg,0,1\nimages/0001.png,1,0\nimages/0002.jpg,,1\n"
    )
    done = cli(
        "check", "pets.yaml", "data.train=states.csv", "data.implies.checks=red", cwd=pictures
    )
    assert done.returncode == 2
    assert "line 2: 'checks' is present, and 'red' is absent (data.implies)" in done.stdout
    circle = "data.implies={a: b, b: [c], c: a}"
    done = cli("check", "pets.yaml", circle, cwd=pictures)
    assert (done.returncode, "a -> b -> c -> a" in done.stderr) == (2, True)
