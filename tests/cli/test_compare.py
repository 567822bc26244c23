"""`mlfinetune compare` as a user runs it."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import Run

from mlfinetune.config import EvalConfig
from mlfinetune.data.targets import LabelSpace
from mlfinetune.metrics.evaluation import evaluate
from mlfinetune.metrics.types import DecisionRule, ScoreTable
from mlfinetune.runs.results import write_results


def drawn(images: int = 300, labels: tuple[str, ...] = ("cat", "dog", "x|y")) -> ScoreTable:
    """Return logits that tell a good part of the targets."""
    random = np.random.default_rng(0)
    targets = (random.random((images, len(labels))) < 0.3).astype(np.int8)
    logits = (2 * targets + random.normal(size=targets.shape)).astype(np.float32)
    names = tuple(f"{at:04}.jpg" for at in range(images))
    return ScoreTable(names, logits, targets, LabelSpace(labels))


def noisier(scores: ScoreTable, noise: float) -> ScoreTable:
    """Return scores of the same images, with more noise."""
    random = np.random.default_rng(1)
    logits = scores.logits + noise * random.normal(size=scores.logits.shape)
    return replace(scores, logits=logits.astype(np.float32))


def folder(path: Path, scores: ScoreTable, threshold: float = 0.5, root: str = "") -> str:
    """Write a folder of results as eval does, and return its name."""
    path.mkdir()
    verdict = evaluate(
        EvalConfig(), scores, DecisionRule.plain(len(scores.labels), threshold), False
    )
    about = {"images_root": root}
    write_results(path, verdict, scores.logits.astype(np.float64), about)
    return path.name


def taken(scores: ScoreTable, rows: list[int], columns: list[int]) -> ScoreTable:
    """Return the scores of these images and labels only."""
    block = np.ix_(rows, columns)
    return ScoreTable(
        tuple(scores.names[row] for row in rows),
        scores.logits[block],
        scores.targets[block],
        LabelSpace(tuple(scores.labels.names[at] for at in columns)),
    )


# ---- real runs --------------------------------------------------------------------------


def test_a_run_and_its_evaluation_cannot_be_told_apart(trained: Path, cli: Run) -> None:
    """Train and eval both write scores.npz, and the same model scores the same."""
    assert cli("eval", "-c", "runs/pets", "-o", "other-eval", cwd=trained).returncode == 0
    done = cli("compare", "runs/pets", "other-eval", cwd=trained)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("A  runs/pets\nB  other-eval\n5 images and 8 labels")
    assert "no difference can be told: there are too few positives" in done.stdout


def test_runs_of_other_data_are_told_what_to_do(trained: Path, cli: Run) -> None:
    """Scores of validation and of other pictures have no image in common."""
    (trained / "few.csv").write_text("image,labels\nimages/../images/0000.jpg,red\n")
    done = cli("eval", "-c", "runs/pets", "--data", "few.csv", "-o", "few", cwd=trained)
    assert done.returncode == 0, done.stderr
    done = cli("compare", "runs/pets", "few", cwd=trained)
    assert (done.returncode, done.stdout) == (2, "")
    assert "no image in common; score both on the same data: `mlfinetune eval" in done.stderr


def test_settings_that_differ_are_shown(pictures: Path, cli: Run) -> None:
    """Both values of each, and no others; of a folder that eval wrote too."""
    pairs = {"a": ("loss.pos_weight={red: 2}",), "b": ("loss.name=focal", "train.workers=1")}
    for name, overrides in pairs.items():
        done = cli("train", "pets.yaml", "-o", name, *overrides, cwd=pictures)
        assert done.returncode == 0, done.stderr
    assert cli("eval", "-c", "b", "eval.thresholds=fixed", "-o", "c", cwd=pictures).returncode == 0
    rows = {
        "loss.gamma": ("not set", 2.0),
        "loss.name": ("sce", "focal"),
        "loss.pos_weight": ("not set", None),
        "loss.pos_weight.red": (2.0, "not set"),
        "eval.thresholds": ("per_label", "fixed"),
    }
    content = json.loads(cli("compare", "a", "c", "--json", cwd=pictures).stdout)
    found = {key: (pair["a"], pair["b"]) for key, pair in content["settings"].items()}
    assert found == {**found, **{key: rows[key] for key in rows if key != "loss.gamma"}}
    assert found.keys() <= {*rows, "loss.alpha"}
    lines = cli("compare", "a", "c", cwd=pictures).stdout.splitlines()
    start = next(at for at, line in enumerate(lines) if "settings that differ" in line)
    assert any(line.split() == ["loss.name", "sce", "focal"] for line in lines[start:])
    assert max(map(len, lines)) <= 80
    (pictures / "a/config.yaml").unlink()  # as in results of an older version
    done = cli("compare", "a", "c", cwd=pictures)
    assert "settings that differ: not known" in done.stdout
    assert json.loads(cli("compare", "a", "c", "--json", cwd=pictures).stdout)["settings"] is None


# ---- written by hand --------------------------------------------------------------------


def test_the_better_one_is_named(tmp_path: Path, cli: Run) -> None:
    """Differences with intervals, the labels that are won, a verdict; at most 80 columns."""
    scores = drawn()
    good, bad = folder(tmp_path / "good", scores), folder(tmp_path / "bad", noisier(scores, 3))
    done = cli("compare", bad, good, "--resamples", "100", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "300 images and 3 labels that both scored, 100 resamples" in done.stdout
    assert "AP of 3 labels: 3 better in B, 0 better in A, 0 undecided" in done.stdout
    assert done.stdout.endswith("B is better: the interval of the difference in mAP is above 0\n")
    assert "100.0 %" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80
    other = cli("compare", good, bad, "--resamples", "100", cwd=tmp_path).stdout
    assert "A is better: the interval of the difference in mAP is below 0" in other


def test_json_holds_every_number(tmp_path: Path, cli: Run) -> None:
    """The points are those of metrics.json, and the intervals go round the difference."""
    scores = drawn()
    folder(tmp_path / "a", noisier(scores, 1), 0.7)
    folder(tmp_path / "b", scores, 0.4)
    done = cli("compare", "a", "b", "--json", "--resamples", "100", cwd=tmp_path)
    found = json.loads(done.stdout)
    sides = {name: json.loads((tmp_path / name / "metrics.json").read_text()) for name in "ab"}
    for name in ("mAP", "macro_F1", "micro_F1"):
        points = [sides[side][name] for side in "ab"]
        assert [found[name]["a"], found[name]["b"]] == pytest.approx(points)
        low, high = found[name]["interval"]
        assert low < found[name]["difference"] < high
    assert list(found["per_label"]) == ["cat", "dog", "x|y"]
    assert found["wins"] + found["losses"] + found["ties"] == 3
    assert (found["verdict"], found["resamples"]) == ("B is better", 100)


def test_only_what_both_scored_is_compared(tmp_path: Path, cli: Run) -> None:
    """By name, in any order; what is left out is counted, and labels are named."""
    scores = drawn()
    folder(tmp_path / "a", taken(scores, list(range(200)), [0, 1]))
    folder(tmp_path / "b", taken(scores, list(range(250, 99, -1)), [2, 1, 0]))
    done = cli("compare", "a", "b", "--json", cwd=tmp_path)
    found = json.loads(done.stdout)
    assert (found["images"], found["labels"], found["mAP"]["difference"]) == (100, 2, 0)
    assert found["left_out"] == {"images": {"a": 100, "b": 51}, "labels": {"a": 0, "b": 1}}
    assert found["verdict"] == "no difference can be told"
    assert "left out: 100 images that only a scored" in done.stderr
    assert "left out: 1 label that only b knows\n  'x|y'" in done.stderr


def test_a_picture_may_be_listed_twice(tmp_path: Path, cli: Run) -> None:
    """The first stands for the first and the second for the second, in one table and the other."""
    scores = drawn(40)
    twice = replace(scores, names=("same.jpg", "same.jpg", *scores.names[2:]))
    folder(tmp_path / "a", twice)
    folder(tmp_path / "b", twice)
    found = json.loads(cli("compare", "a", "b", "--json", cwd=tmp_path).stdout)
    assert (found["images"], found["mAP"]["difference"]) == (40, 0)


def test_the_truth_must_be_the_same(tmp_path: Path, cli: Run) -> None:
    """Targets that differ are counted, the first ones shown."""
    scores = drawn()
    targets = scores.targets.copy()
    targets[:20, 1] = 1 - targets[:20, 1]
    folder(tmp_path / "a", scores)
    folder(tmp_path / "b", replace(scores, targets=targets))
    done = cli("compare", "a", "b", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert "the truth differs: 20 targets of 900, in 20 images" in done.stderr
    assert f"0000.jpg, 'dog': {scores.targets[0, 1]} in A, {targets[0, 1]} in B" in done.stderr
    assert done.stderr.endswith("... and 10 more\n")


def test_labels_without_an_interval_are_not_counted(tmp_path: Path, cli: Run) -> None:
    """A label without a positive is neither won nor a tie; without any, nothing can be told."""
    scores = drawn()
    targets = scores.targets.copy()
    targets[:, 1] = 0
    folder(tmp_path / "a", replace(scores, targets=targets))
    done = cli("compare", "a", "a", cwd=tmp_path)
    assert "0 better in B, 0 better in A, 2 undecided" in done.stdout
    folder(tmp_path / "none", replace(scores, targets=0 * targets))
    done = cli("compare", "none", "none", cwd=tmp_path)
    assert "no difference can be told: mAP is undefined\n" in done.stdout
    assert json.loads(cli("compare", "none", "none", "--json", cwd=tmp_path).stdout)["mAP"] == {
        "a": None, "b": None, "difference": None, "interval": None, "share_above": None
    }  # fmt: skip


def test_only_some_of_many_labels_are_shown(tmp_path: Path, cli: Run) -> None:
    """The ten that differ most, the rest counted; odd names do no harm to the table."""
    labels = ("a very long name of a label that goes on and on", "\x1b[31m", *map(str, range(10)))
    scores = drawn(400, labels)
    folder(tmp_path / "a", noisier(scores, 5))
    folder(tmp_path / "b", scores)
    done = cli("compare", "a", "b", "--resamples", "50", cwd=tmp_path)
    assert "12 better in B" in done.stdout
    assert "... and 2 more: --json" in done.stdout
    assert "\x1b" not in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("scores.npz", None, "b holds no scores.npz; name a run directory"),
        ("scores.npz", b"", "scores.npz is damaged, or not from mlfinetune"),
        ("metrics.json", None, "cannot read b/metrics.json: No such file"),
        ("metrics.json", b"{}", "b/metrics.json does not tell the thresholds"),
        ("metrics.json", b"[1", "b/metrics.json does not tell the thresholds"),
        ("metrics.json", b'{"per_label": {"cat": {"threshold": 2}}}', "is no probability"),
        ("metrics.json", b'{"per_label": {"cat": {"threshold": NaN}}}', "is no probability"),
        ("metrics.json", b'{"per_label": {"cat": {"threshold": null}}}', "does not tell"),
    ],
)
def test_folders_that_cannot_be_used_are_named(
    tmp_path: Path, cli: Run, file: str, content: bytes | None, message: str
) -> None:
    """Exit code 2, with the file and what to do."""
    folder(tmp_path / "a", drawn(20, ("cat",)))
    folder(tmp_path / "b", drawn(20, ("cat",)))
    (tmp_path / "b" / file).unlink()
    if content is not None:
        (tmp_path / "b" / file).write_bytes(content)
    done = cli("compare", "a", "b", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr
    assert "no such folder: c" in cli("compare", "c", "a", cwd=tmp_path).stderr


def test_too_few_positives_are_counted_and_groups_are_said(tmp_path: Path, cli: Run) -> None:
    """A label of three positives is no win; groups of scores.npz are drawn whole."""
    scores = drawn()
    targets = scores.targets.copy()
    targets[3:, 2] = 0
    targets[:3, 2] = 1
    groups = np.arange(300) // 3
    worse = replace(noisier(scores, 1), targets=targets, groups=groups)
    folder(tmp_path / "a", worse)
    folder(tmp_path / "b", replace(scores, targets=targets, groups=groups))
    done = cli("compare", "a", "b", cwd=tmp_path)
    assert "1000 resamples of 100 groups" in done.stdout
    assert (
        "1 label without a comparison: fewer than 6 positives or negatives (by group)"
        in done.stdout
    )
    found = json.loads(cli("compare", "a", "b", "--json", cwd=tmp_path).stdout)
    assert (found["groups"], found["untold"]) == (100, 1)


def test_several_runs_are_compared_with_the_first(tmp_path: Path, cli: Run) -> None:
    """Each as it would be alone: the same numbers, in text and in JSON."""
    scores = drawn()
    folder(tmp_path / "a", scores)
    for name in "bc":
        folder(tmp_path / name, noisier(scores, 2))
    options = ("--json", "--resamples", "50")
    done = cli("compare", "a", "b", "c", *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    first, second = json.loads(done.stdout)["comparisons"]
    alone = cli("compare", "a", "b", *options, cwd=tmp_path)
    assert first == json.loads(alone.stdout)
    assert second == first | {"b": "c"}
    text = cli("compare", "a", "b", "c", cwd=tmp_path).stdout
    assert "mAP of C" in text
    assert "A and C: A is better" in text


# ---- other labels -----------------------------------------------------------------------


def test_old_labels_are_compared_where_labels_were_added(tmp_path: Path, cli: Run) -> None:
    """Each that stays has its line, decided or not; those of one side alone are named."""
    scores = drawn(labels=("cat", "dog", "fox", "new"))
    folder(tmp_path / "old", taken(scores, list(range(300)), [0, 1, 2]))
    folder(tmp_path / "next", taken(noisier(scores, 0.01), list(range(300)), [3, 1, 0]))
    done = cli("compare", "old", "next", "--resamples", "50", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert "only in A: 1 label ('fox')" in lines
    assert "only in B: 1 label ('new')" in lines
    for name in ("cat", "dog"):
        assert any(line.startswith(f"  {name} ") for line in lines)
    found = json.loads(cli("compare", "old", "next", "--json", cwd=tmp_path).stdout)
    assert found["only_labels"] == {"a": ["fox"], "b": ["new"]}


def test_targets_that_one_side_does_not_know_are_left_out(tmp_path: Path, cli: Run) -> None:
    """A later table may know more of a picture; 1 against 0 stays an error."""
    scores, more = drawn(), drawn().targets.copy()
    more[:10, 0] = -1
    folder(tmp_path / "a", replace(scores, targets=more))
    folder(tmp_path / "b", scores)
    done = cli("compare", "a", "b", "--resamples", "50", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "left out: 10 targets of 900 that one of the two alone knows" in done.stderr
    more[20, 1] = 1 - more[20, 1]
    folder(tmp_path / "c", replace(scores, targets=more))
    done = cli("compare", "b", "c", cwd=tmp_path)
    assert done.returncode == 2
    assert "the truth differs: 1 target of 900" in done.stderr


def test_pictures_are_found_by_their_paths(tmp_path: Path, cli: Run) -> None:
    """Several tables name them from the folder that holds all, one table from its own."""
    scores = drawn()
    longer = replace(scores, names=tuple(f"photos/{name}" for name in scores.names))
    folder(tmp_path / "a", scores, root="/data/photos")
    folder(tmp_path / "b", longer, root="/data")
    done = cli("compare", "a", "b", "--resamples", "50", cwd=tmp_path)
    assert "300 images and 3 labels that both scored" in done.stdout
