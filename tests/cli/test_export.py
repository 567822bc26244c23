"""`mlfinetune export`, and the .onnx in a checkpoint's place."""

import csv
import io
import json
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from conftest import Run
from PIL import Image

import mlfinetune
from mlfinetune.errors import CheckpointError
from mlfinetune.predicting.int8 import Cost, require_small_drop
from mlfinetune.runs import checkpoint
from mlfinetune.runs.directory import BEST

RUN = "runs/pets"


@pytest.fixture
def moved(exported: Path, tmp_path: Path) -> Path:
    """Return the exported run and its data in a place that the run has not recorded."""
    folder = shutil.copytree(exported, tmp_path / "moved")
    loaded = checkpoint.load(folder / RUN / BEST)
    config = json.loads(json.dumps(loaded.config).replace(str(exported), "/gone/before"))
    checkpoint.save(folder / RUN / BEST, replace(loaded, config=config))
    return folder


def read_rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


# ---- the file in a checkpoint's place -----------------------------------------------------


def test_predictions_are_those_of_the_checkpoint(exported: Path, cli: Run) -> None:
    """Same labels, and probabilities up to the sixth digit."""
    ours, theirs = (
        read_rows(cli("predict", "images", "-c", source, cwd=exported).stdout)
        for source in ("pets.onnx", RUN)
    )
    assert len(ours) == 24
    for a, b in zip(ours, theirs, strict=True):
        assert a["labels"] == b["labels"]
        probabilities = [[float(row[name]) for name in list(row)[2:10]] for row in (a, b)]
        assert probabilities[0] == pytest.approx(probabilities[1], abs=1e-5)


def test_metrics_are_those_of_the_checkpoint(exported: Path, cli: Run, tmp_path: Path) -> None:
    """On the run's validation data, whose place the file knows; the page has no heat maps."""
    found = {}
    for source in ("pets.onnx", RUN):
        folder = tmp_path / Path(source).name
        done = cli("eval", "-c", source, "-o", str(folder), cwd=exported)
        assert done.returncode == 0, done.stderr
        content = json.loads((folder / "metrics.json").read_text())
        found[source] = {k: v for k, v in content.items() if isinstance(v, float)}
    assert len(found[RUN]) > 10
    assert found["pets.onnx"] == pytest.approx(found[RUN], abs=1e-3)
    page = (tmp_path / "pets.onnx/report.html").read_text()
    assert "an ONNX file gives no heat maps" in page


def test_python_takes_the_file_too(exported: Path) -> None:
    """Its labels, thresholds and numbers; it has no features, and says so."""
    ours, theirs = (mlfinetune.load(exported / source) for source in ("pets.onnx", RUN))
    assert (ours.labels, ours.thresholds) == (theirs.labels, theirs.thresholds)
    pictures = sorted((exported / "images").iterdir())[:3]
    difference = ours.probabilities(pictures) - theirs.probabilities(pictures)
    assert np.abs(difference).max() < 1e-5
    with pytest.raises(mlfinetune.MlfinetuneError, match=r"pets.onnx is an ONNX file.*no features"):
        ours.embed(pictures)


def test_what_a_file_cannot_do_is_said(exported: Path, cli: Run, tmp_path: Path) -> None:
    """Heat maps; views that are fewer than those inside; another export."""
    for arguments, words in {
        ("predict", "images", "--explain", str(tmp_path / "maps")): "no heat maps",
        ("predict", "images", "--views", "plain"): "has mirror views in its graph",
        ("export", "-o", str(tmp_path / "b.onnx")): "is an ONNX file already",
    }.items():
        done = cli(*arguments, "-c", "pets.onnx", cwd=exported)
        assert (done.returncode, words in done.stderr) == (2, True), done.stderr


# ---- the file itself ------------------------------------------------------------------------


def test_the_metadata_says_all_that_a_program_needs(exported: Path) -> None:
    """Labels in order, thresholds, calibration, the preparation of a picture, the checkpoint."""
    session = onnxruntime.InferenceSession(exported / "pets.onnx")
    found = session.get_modelmeta().custom_metadata_map
    loaded = checkpoint.load(exported / RUN / BEST)
    assert tuple(json.loads(found["labels"])) == loaded.labels.names
    assert json.loads(found["thresholds"]) == list(loaded.decision.thresholds)
    assert json.loads(found["calibration"])["slope"] == list(loaded.decision.slope)
    texts = ("image_size", "resize", "interpolation", "exif_orientation", "backbone", "views")
    wanted = ["64", "squash", "bilinear", "applied", "resnet6_tiny", "mirror"]
    assert [found[key] for key in texts] == wanted
    assert found["checkpoint_sha256"].encode() in (exported / RUN / BEST).read_bytes()
    assert re.fullmatch(r"mlfinetune \S+, torch \S+, onnx \S+", found["exported_by"])
    (images,) = session.get_inputs()
    assert (images.name, images.type, images.shape[1:]) == ("images", "tensor(uint8)", [3, 64, 64])
    assert [output.name for output in session.get_outputs()] == ["probabilities"]


def test_the_graph_has_no_traces_of_this_machine(exported: Path) -> None:
    """Neither paths nor lines of code; the weights are inside."""
    content = (exported / "pets.onnx").read_bytes()
    assert b"site-packages" not in content
    assert b"mlfinetune/models" not in content
    assert len(content) > 1_200_000


def test_the_table_of_labels_lies_beside(exported: Path) -> None:
    """index, label, threshold."""
    rows = read_rows((exported / "pets.labels.csv").read_text())
    loaded = checkpoint.load(exported / RUN / BEST)
    assert [row["label"] for row in rows] == list(loaded.labels.names)
    assert [row["index"] for row in rows] == [str(n) for n in range(8)]
    assert [float(row["threshold"]) for row in rows] == list(loaded.decision.thresholds)


# ---- exporting ------------------------------------------------------------------------------


def test_a_run_without_its_pictures_needs_others(moved: Path, cli: Run) -> None:
    """--images gives them; no pixels are drawn. Calibrated logits are the probabilities."""
    (moved / "images").rename(moved / "others")
    (moved / "tags.csv").unlink()
    arguments = ("export", "-c", RUN, "-o", "both.onnx", "--logits")
    done = cli(*arguments, cwd=moved)
    assert (done.returncode, "--images FOLDER" in done.stderr) == (2, True), done.stderr
    assert not list(moved.glob("*both*"))
    done = cli(*arguments, "--images", "others", cwd=moved)
    assert done.returncode == 0, done.stderr
    numbers = r"in float32: \d\.\de-0[5-9], on 16 pictures, at batches of 1, 3 and 16"
    assert re.search(numbers, done.stdout)
    session = onnxruntime.InferenceSession(moved / "both.onnx")
    assert [output.name for output in session.get_outputs()] == ["probabilities", "logits"]
    probabilities, logits = session.run(None, {"images": np.zeros((2, 3, 64, 64), np.uint8)})
    decision = checkpoint.load(moved / RUN / BEST).decision
    expected = torch.from_numpy(decision.calibrate(logits)).sigmoid().numpy()
    assert probabilities == pytest.approx(expected, abs=1e-6)


def test_int8_is_compared_and_refused_where_it_costs_too_much(moved: Path, cli: Run) -> None:
    """Sizes, images/s and mAP beside each other; scales of black pictures spoil it.

    The run was moved, and its data is found beside it.
    """
    done = cli("export", "-c", RUN, "-o", "small.onnx", "--int8", "--max-drop", "0.3", cwd=moved)
    assert done.returncode == 0, done.stderr
    assert "on 12 pictures, at batches of 1, 3 and 12" in done.stdout
    rows = re.findall(
        r"^(float32|int8) +([\d.]+) +([\d.]+) +(0\.\d{4})$", done.stdout, re.MULTILINE
    )
    assert [row[0] for row in rows] == ["float32", "int8"]
    assert float(rows[1][1]) < 0.4 * float(rows[0][1])
    assert cli("predict", "images/0000.jpg", "-c", "small.onnx", cwd=moved).returncode == 0
    names = {row["image"] for row in read_rows((moved / RUN / "predictions.csv").read_text())}
    for number, path in enumerate((moved / "images").iterdir()):
        if f"images/{path.name}" not in names:
            Image.new("RGB", (32 + number, 32)).save(path)
    before = (moved / "small.onnx").read_bytes()
    done = cli("export", "-c", RUN, "-o", "small.onnx", "--int8", cwd=moved)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.search(r"small.onnx is not written: int8 costs 0\.\d+ of validation mAP", done.stderr)
    assert (moved / "small.onnx").read_bytes() == before
    assert not list(moved.glob(".*tmp"))


def test_the_drop_is_measured_against_its_limit() -> None:
    """A gain passes at any limit; a drop above it is named."""
    costs = [Cost(4, 1.0, score) for score in (0.6, 0.7, 0.58)]
    require_small_drop(costs[0], costs[1], 0.0)
    require_small_drop(costs[0], costs[2], 0.03)
    with pytest.raises(CheckpointError, match=r"costs 0.0200 .*0.6000 -> 0.5800.*--max-drop 0.01"):
        require_small_drop(costs[0], costs[2], 0.01)


# ---- refusals -------------------------------------------------------------------------------


def test_places_that_cannot_be_written_are_refused(
    exported: Path, cli: Run, tmp_path: Path
) -> None:
    """Before any work: another ending, no folder, /proc, other people's files; nothing is left."""
    (tmp_path / "other.onnx").write_bytes(b"mine")
    (tmp_path / "free.labels.csv").write_bytes(b"mine")
    for name, words in {
        "pets.bin": "ends in .onnx",
        "none/pets.onnx": "make its folder",
        "/proc/pets.onnx": "cannot write",
        "other.onnx": "is there already, and `mlfinetune export` did not write it",
        "free.onnx": "free.labels.csv is there already",
    }.items():
        done = cli("export", "-c", str(exported / RUN), "-o", name, cwd=tmp_path)
        assert (done.returncode, words in done.stderr) == (2, True), done.stderr
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {
        "other.onnx": b"mine",
        "free.labels.csv": b"mine",
    }


def test_files_that_are_not_whole_or_not_ours_are_refused(
    exported: Path, cli: Run, tmp_path: Path
) -> None:
    """Cut, empty, one bit flipped, another exporter's: each by its name, in one line."""
    content = (exported / "pets.onnx").read_bytes()
    flipped = bytearray(content)
    flipped[len(content) // 2] ^= 1
    foreign = content.replace(b"mlfinetune", b"mlfinetuna")
    for name, data, words in (
        ("cut", content[:-500_000], "cut short"),
        ("empty", b"", "cut short"),
        ("flipped", bytes(flipped), "SHA-256"),
        ("foreign", foreign, "`mlfinetune export` did not write"),
    ):
        (tmp_path / f"{name}.onnx").write_bytes(data)
        for command in (("predict", str(exported / "images")), ("eval",)):
            done = cli(*command, "-c", f"{name}.onnx", cwd=tmp_path)
            assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
            assert f"{name}.onnx" in done.stderr
            assert words in done.stderr


@pytest.mark.parametrize("missing", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_extra_names_the_command(
    exported: Path, cli: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    """Before any work; and so does predict, where it cannot do without."""
    monkeypatch.setitem(sys.modules, missing, None)
    target = str(tmp_path / "pets.onnx")
    for arguments in (
        ("export", "-c", RUN, "-o", target),
        ("predict", "images", "-c", "pets.onnx"),
    ):
        done = cli(*arguments, cwd=exported)
        assert done.returncode == 2
        assert 'pip install "mlfinetune[onnx]"' in done.stderr
    assert not list(tmp_path.iterdir())


def test_a_budget_without_int8_is_a_mistake(exported: Path, cli: Run) -> None:
    done = cli("export", "-c", RUN, "-o", "x.onnx", "--max-drop", "0.1", cwd=exported)
    assert (done.returncode, "--int8" in done.stderr) == (2, True)
