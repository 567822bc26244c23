"""Small runs in this process: stopped where a test wants it, resumed, compared bit by bit."""

import gc
import io
import json
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import FULL, prepare
from torch import Tensor

from mlfinetune.config import load_config
from mlfinetune.models import scoring
from mlfinetune.runs import checkpoint, directory
from mlfinetune.runs.state import read_state
from mlfinetune.runtime.log import RunLog
from mlfinetune.training import step as step_module
from mlfinetune.training.start import ResumeOptions
from mlfinetune.workflows.train import TrainResult, run

EPOCHS = 3 if FULL else 2
STEPS = 3 * EPOCHS
"""19 pictures are three batches of 8."""


@contextmanager
def stopped(step: int | None = None, scored: int | None = None) -> Iterator[list[list[int]]]:
    """Send SIGTERM during this step, or this batch of validation; yield the steps' indices."""
    taken, seen = list[list[int]](), 0
    real_step, real_forward = step_module.train_step, scoring.compute_logits

    def train_step(model: Any, batch: Any, *rest: Any) -> Tensor:
        numbers = real_step(model, batch, *rest)
        taken.append(batch.indices.tolist())
        if len(taken) == step:
            signal.raise_signal(signal.SIGTERM)
        return numbers

    def forward(*arguments: Any) -> Any:
        nonlocal seen
        seen += 1
        if seen == scored:
            signal.raise_signal(signal.SIGTERM)
        return real_forward(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(step_module, "train_step", train_step)
        patch.setattr(scoring, "compute_logits", forward)
        yield taken


class Runs:
    """Runs on the pictures of one folder."""

    def __init__(self, folder: Path, device: str = "cpu") -> None:
        self.folder, self.device = prepare(folder), device

    def go(
        self,
        name: str,
        *overrides: str,
        resume: ResumeOptions | None = None,
        log: io.StringIO | None = None,
    ) -> TrainResult:
        """Train or resume a run, to the end or to a stop."""
        output = self.folder / name
        asked = (f"train.epochs={EPOCHS}", "model.image_size=32", f"output={output}", *overrides)
        config = load_config(self.folder / "pets.yaml", asked)
        return run(config, self.device, RunLog(log or io.StringIO()), resume)

    def stop(
        self, name: str, *overrides: str, resume: ResumeOptions | None = None, **at: int
    ) -> list[Any]:
        """Train or resume a run to a stop; return the indices that the steps used."""
        with stopped(**at) as taken, pytest.raises(SystemExit) as caught:
            self.go(name, *overrides, resume=resume)
        assert caught.value.code == 143
        del caught  # its traceback holds the run, with its workers
        gc.collect()
        return taken


def left(run: Path) -> dict[str, Any]:
    """Return the content of all files of a run, without times."""
    found: dict[str, Any] = {}
    for name in (directory.BEST, directory.LAST):
        content = checkpoint.load(run / name)
        found[name] = (content.weights, content.decision, content.epoch)
    found[directory.STATE] = state = read_state(run / directory.STATE)
    state["best"].pop("speed")
    assert state["history"] == (run / directory.HISTORY).read_text()
    rows = [json.loads(line) for line in state.pop("history").splitlines()]
    found[directory.HISTORY] = [
        {k: v for k, v in row.items() if k not in ("images_per_s", "seconds")} for row in rows
    ]
    found[directory.METRICS] = json.loads((run / directory.METRICS).read_text())
    found[directory.METRICS].pop("run")  # when, and how long
    for name in (directory.PREDICTIONS, directory.PER_LABEL, directory.LABELS):
        found[name] = (run / name).read_text()
    return found


def differences(one: Any, two: Any, where: str = "") -> Iterator[str]:
    """Return the places where two nested containers differ; tensors are compared by bits."""
    if isinstance(one, Tensor) and isinstance(two, Tensor):
        if one.dtype != two.dtype or not torch.equal(one, two):
            yield where
    elif isinstance(one, dict) and isinstance(two, dict):
        for key in sorted({*one, *two}, key=str):
            yield from differences(one.get(key), two.get(key), f"{where}/{key}")
    elif isinstance(one, list | tuple) and isinstance(two, list | tuple) and len(one) == len(two):
        for n, (a, b) in enumerate(zip(one, two, strict=True)):
            yield from differences(a, b, f"{where}/{n}")
    elif one != two:
        yield where
