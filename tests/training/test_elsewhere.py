"""Checkpoints and resume states of a machine with a GPU, used on one without."""

import io
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Run
from faults.fault_runs import Runs, differences, left

from mlfinetune.errors import ConfigError
from mlfinetune.runs import checkpoint, directory
from mlfinetune.runs.state import read_state, write_state
from mlfinetune.training.start import ResumeOptions

GPU = {"loss.backend": "triton", "train.precision": "bfloat16", "train.deterministic": True}
"""Settings that a config for a GPU has, besides many workers and large batches."""


def with_settings(tree: dict[str, Any]) -> dict[str, Any]:
    """Return the config of a checkpoint with the settings of a GPU."""
    tree = json.loads(json.dumps(tree))
    for key, value in {**GPU, "train.workers": 16, "train.batch_size": 512}.items():
        section, name = key.split(".")
        tree[section][name] = value
    return tree


@pytest.fixture
def from_gpu(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder with a run whose checkpoint has the settings of a GPU."""
    monkeypatch.setenv("TRITON_INTERPRET", "0")  # Triton needs a GPU, as it does for users
    shutil.copytree(trained, tmp_path / "own")
    path = tmp_path / "own/runs/pets/best.safetensors"
    content = checkpoint.load(path)
    checkpoint.save(path, replace(content, config=with_settings(content.config)))
    return tmp_path / "own"


def test_the_checkpoint_of_a_gpu_is_scored_on_a_cpu(from_gpu: Path, cli: Run) -> None:
    """In the precision that the config asks for, or in another one; the loss is not needed."""
    cpu = ("-c", "runs/pets", "--device", "cpu")
    done = cli("eval", *cpu, "train.workers=0", cwd=from_gpu)
    assert "device cpu, precision bfloat16 (as configured)" in done.stderr
    assert "warning" not in done.stderr
    mAP = {}
    for precision in ("bfloat16", "float32"):
        asked = ("-o", precision, f"train.precision={precision}", "train.workers=0")
        assert cli("eval", *cpu, *asked, cwd=from_gpu).returncode == 0
        mAP[precision] = json.loads((from_gpu / precision / "metrics.json").read_text())["mAP"]
    run = json.loads((from_gpu / "runs/pets/metrics.json").read_text())
    assert mAP["float32"] == run["mAP"]
    assert mAP["bfloat16"] == pytest.approx(run["mAP"], abs=0.2)


def test_the_checkpoint_of_a_gpu_predicts_and_starts_runs_on_a_cpu(
    from_gpu: Path, cli: Run
) -> None:
    """As model.weights too."""
    cpu = ("--device", "cpu")
    done = cli("predict", "images", "-c", "runs/pets", *cpu, cwd=from_gpu)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 25
    weights = "model.weights=runs/pets"
    done = cli("train", "pets.yaml", weights, "-o", "runs/new", *cpu, cwd=from_gpu)
    assert done.returncode == 0, done.stderr


def test_a_device_that_is_missing_is_said(from_gpu: Path, cli: Run) -> None:
    """Asked for by the option alone: no config names a device."""
    done = cli("eval", "-c", "runs/pets", "--device", "cuda:99", cwd=from_gpu)
    assert done.returncode == 2
    assert "cuda:99" in done.stderr


# ---- resume states -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Return the runs of one folder, one of them stopped in its second epoch."""
    made = Runs(tmp_path_factory.mktemp("elsewhere"))
    made.stop("halfway", "train.ema=0.7", step=4)
    return made


@pytest.fixture
def resumed(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Path, str]]:
    """Return a function that resumes the run from a state as a GPU writes it, and its log."""

    def resume(name: str, *overrides: str, **changed: Any) -> tuple[Path, str]:
        shutil.copytree(runs.folder / "halfway", runs.folder / name)
        path = runs.folder / name / directory.STATE
        content = read_state(path)
        content["arithmetic"] |= {"device": "cuda", "precision": "bfloat16"}
        content["random"]["cuda"] = [torch.zeros(16, dtype=torch.uint8)]
        content["made_of"] |= changed
        for group in content["optimizer"]["param_groups"]:
            group |= {"fused": True, "foreach": None, "capturable": False}
        with monkeypatch.context() as patch:  # torch.save marks each tensor with its device
            patch.setattr(torch.serialization, "location_tag", lambda storage: "cuda:0")
            write_state(path, path.with_name("before"), content)
        assert b"cuda:0" in path.read_bytes()
        log = io.StringIO()
        asked = ("train.ema=0.7", *overrides)
        return runs.go(name, *asked, resume=ResumeOptions(), log=log).run, log.getvalue()

    return resume


def test_the_state_of_a_gpu_goes_on_on_a_cpu(
    runs: Runs, resumed: Callable[..., tuple[Path, str]]
) -> None:
    """With its weights, moments and running mean; random numbers of the GPU are not needed."""
    run, said = resumed("gpu")
    assert "resumes at epoch 2, after 1 of 3 steps" in said
    for change in ("device cuda before, cpu now", "precision bfloat16 before, float32 now"):
        assert f"warning: {change}: the result will not be bit for bit" in said
    # The state was a CPU's: nothing of it may be lost on the way.
    assert not [*differences(left(runs.go("whole", "train.ema=0.7").run), left(run))]


def test_the_backend_of_a_gpu_can_be_exchanged(
    resumed: Callable[..., tuple[Path, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`loss.backend: triton` is refused with the way on, which is no other setting."""
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    gpu = {"loss.backend": "triton"}
    with pytest.raises(ConfigError, match="needs a GPU; use 'auto' or 'torch'"):
        resumed("triton", "loss.backend=triton", **gpu)
    _, said = resumed("torch", "loss.backend=auto", **gpu)
    assert "resumes at epoch 2" in said


def test_the_precision_of_a_gpu_goes_on_on_a_cpu(resumed: Callable[..., tuple[Path, str]]) -> None:
    """bfloat16 that the config asks for is computed on a CPU too; another one is a change."""
    with pytest.raises(ConfigError, match="'bfloat16' before, 'float32' now"):
        resumed("float32", **{"train.precision": "bfloat16"})
    asked = {"train.precision": "bfloat16"}
    _, said = resumed("bfloat16", "train.precision=bfloat16", **asked)
    assert "device cpu, precision bfloat16 (as configured)" in said
    assert "resumes at epoch 2" in said
