"""`eval.views: mirror` through the real train, eval, predict and compare."""

import csv
import io
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from conftest import Run, prepare, run_child
from PIL import Image, ImageOps

from mlfinetune.runs import checkpoint
from mlfinetune.runs.results import read_scores

MIRROR = "eval.views=mirror"
Done = subprocess.CompletedProcess[str]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with runs/pets, scored with mirror images, and turned/: these images."""
    folder = prepare(tmp_path_factory.mktemp("views"))
    done = run_child("train", "pets.yaml", MIRROR, "eval.calibration=platt", cwd=folder)
    assert done.returncode == 0, done.stderr
    (folder / "turned").mkdir()
    for number in range(5):
        with Image.open(next((folder / "images").glob(f"000{number}.*"))) as image:
            image.convert("RGB").save(folder / f"turned/{number}.png")
            ImageOps.mirror(image.convert("RGB")).save(folder / f"turned/{number}-mirror.png")
    return folder


def metrics(folder: Path) -> Any:
    """Return the content of metrics.json."""
    return json.loads((folder / "metrics.json").read_text())


def rows(done: Done) -> list[dict[str, str]]:
    """Return the rows that predict printed."""
    assert done.returncode == 0, done.stderr
    return list(csv.DictReader(io.StringIO(done.stdout)))


def warnings(done: Done) -> list[str]:
    """Return the lines of standard error that warn of other views."""
    assert done.returncode == 0, done.stderr
    return [line for line in done.stderr.splitlines() if "views are scored" in line]


def test_eval_and_predict_score_the_views_of_the_run(folder: Path, cli: Run) -> None:
    """The run's own numbers come back, though neither was told of views; all name them."""
    assert checkpoint.load(folder / "runs/pets/best.safetensors").views == "mirror"
    done = cli("eval", "-c", "runs/pets", "-o", "again", cwd=folder)
    assert (done.returncode, warnings(done)) == (0, [])
    assert "mirror views, device cpu" in done.stderr
    run, again = (metrics(folder / name) for name in ("runs/pets", "again"))
    assert run["per_label"] == again["per_label"]
    assert run["views"] == again["views"] == "mirror"
    assert "its mirror image" in (folder / "runs/pets/report.html").read_text()
    with (folder / "runs/pets/predictions.csv").open(newline="") as file:
        validated = list(csv.DictReader(file))
    names = "".join(f"{row['image']}\n" for row in validated)
    labels = (folder / "runs/pets/labels.txt").read_text().split("\n")[:-1]
    predicted = rows(cli("predict", "-", "-c", "runs/pets", cwd=folder, stdin=names))
    for ours, theirs in zip(predicted, validated, strict=True):
        assert ours["labels"] == theirs["labels"]
        for label in labels:
            assert float(ours[label]) == pytest.approx(float(theirs[label]), abs=2e-6)


def test_a_picture_and_its_mirror_image_have_the_same_scores(folder: Path, cli: Run) -> None:
    """With mirror views to the last digit; plainly they differ."""
    ask = ("predict", "turned", "-c", "runs/pets")
    for views, same in (((), True), (("--views", "mirror"), True), (("--views", "plain"), False)):
        found = rows(cli(*ask, *views, cwd=folder))
        pairs = zip(found[::2], found[1::2], strict=True)
        assert all(list(a.values())[1:] == list(b.values())[1:] for a, b in pairs) == same, views


@pytest.mark.parametrize(
    ("options", "fitted"),
    [
        ((), None),
        (("--views", "mirror"), None),
        (("--views", "plain"), "thresholds and calibration"),
        (("--views", "plain", "--threshold", "0.5"), "calibration"),
        (("--views", "plain", "--top", "2"), "calibration"),
    ],
)
def test_predict_warns_of_what_was_fitted_under_other_views(
    folder: Path, cli: Run, options: tuple[str, ...], fitted: str | None
) -> None:
    """Of thresholds and calibration, where they are used; the rows are written all the same."""
    found = warnings(cli("predict", "turned/0.png", "-c", "runs/pets", *options, cwd=folder))
    start = f"warning: plain views are scored, but the checkpoint's {fitted} were fitted under "
    assert len(found) == (fitted is not None)
    assert all(line.startswith(f"{start}mirror ones") for line in found)


def test_eval_with_other_views(trained: Path, cli: Run) -> None:
    """On the run's validation the rule is fitted anew; on other data it stays, with a warning."""
    for name, options in (("a", ()), ("b", (MIRROR,))):
        done = cli("eval", "-c", "runs/pets", "-o", f"views-{name}", *options, cwd=trained)
        assert warnings(done) == []
    a, b = (metrics(trained / f"views-{name}") for name in "ab")
    assert (a["views"], b["views"], b["fitted_on"]) == ("plain", "mirror", "the same images")
    assert a["per_label"] != b["per_label"]
    other = ("eval", "-c", "runs/pets", "--data", "tags.csv", "-o", "views-other")
    [line] = warnings(cli(*other, MIRROR, cwd=trained))
    assert line.startswith("warning: mirror views are scored, but the checkpoint's thresholds were")
    kept = checkpoint.load(trained / "runs/pets/best.safetensors").decision.thresholds
    found = [row["threshold"] for row in metrics(trained / "views-other")["per_label"].values()]
    assert found == pytest.approx(list(kept), abs=1e-6)
    compared = cli("compare", "views-a", "views-b", cwd=trained).stdout
    assert "eval.views" in compared


def test_the_checkpoint_s_views_go_before_those_of_its_config(
    trained: Path, tmp_path: Path, cli: Run
) -> None:
    """As in a file of a version that knew no views: it was fitted under plain ones."""
    content = checkpoint.load(trained / "runs/pets/best.safetensors")
    content.config["eval"]["views"] = "mirror"
    checkpoint.save(tmp_path / "odd.safetensors", content)
    ask = ("eval", "-c", str(tmp_path / "odd.safetensors"), "-o", str(tmp_path / "scored"))
    assert cli(*ask, "--data", "tags.csv", cwd=trained).returncode == 0
    assert metrics(tmp_path / "scored")["views"] == "plain"


def test_a_frozen_run_validates_on_the_mean_of_features(pictures: Path, cli: Run) -> None:
    """They give the mean logits that eval computes from pictures, of one decoding each."""
    frozen = ("model.freeze_backbone=true", MIRROR)
    done = cli("train", "pets.yaml", *frozen, cwd=pictures, MLFINETUNE_CACHE=str(pictures / "kept"))
    assert done.returncode == 0, done.stderr
    assert "features of val: 10 wanted (5 pictures x 2 views)" in done.stderr
    assert cli("eval", "-c", "runs/pets", cwd=pictures).returncode == 0
    run, again = (read_scores(pictures / name) for name in ("runs/pets", "runs/pets/eval"))
    assert run.logits == pytest.approx(again.logits, abs=1e-4)
    plain = cli("eval", "-c", "runs/pets", "eval.views=plain", "-o", "plain", cwd=pictures)
    assert plain.returncode == 0
    assert read_scores(pictures / "plain").logits != pytest.approx(run.logits, abs=1e-4)


def test_a_run_goes_on_with_its_own_views(pictures: Path, cli: Run) -> None:
    """The mAPs of epochs that were scored otherwise cannot be compared."""
    assert cli("train", "pets.yaml", cwd=pictures).returncode == 0
    again = ("train", "runs/pets/config.yaml", "--resume", "train.epochs=2")
    done = cli(*again, MIRROR, cwd=pictures)
    assert done.returncode == 2
    assert "eval.views: 'plain' before, 'mirror' now" in done.stderr
