"""NaN and infinity: training stops or skips, says where, and no good file is touched by them."""

import io
import itertools
import shutil
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from conftest import FULL, Promise

from faults.fault_runs import EPOCHS, STEPS, Runs
from mlfinetune.data.batches.batch import Batch
from mlfinetune.errors import MlfinetuneError, TrainingError
from mlfinetune.loss import Loss, build_loss
from mlfinetune.models.tagger import Tagger
from mlfinetune.runs import checkpoint, directory
from mlfinetune.runs.state import read_state
from mlfinetune.training import loop
from mlfinetune.training import step as step_module

WHERE = ("input", "loss", "gradient", "weight", "statistics", "metric")
AT = STEPS - 1
"""The step before the last, of the last epoch: an epoch was good."""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Return the runs of one folder, for all tests."""
    return Runs(tmp_path_factory.mktemp("numbers"))


class Injection:
    """Puts an odd value into training once, at step AT; in a weight or a statistic it stays."""

    def __init__(self, patch: pytest.MonkeyPatch, where: str, value: float) -> None:
        self.where, self.value, self.taken = where, value, 0
        self.real_step, self.real_measure = step_module.train_step, loop.measure
        patch.setattr(step_module, "train_step", self.step)
        patch.setattr(loop, "measure", self.measure)

    def spoilt(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the tensor with one odd value."""
        tensor = tensor.float().clone()
        tensor.view(-1)[0] = self.value
        return tensor

    def step(self, model: Tagger, batch: Batch, loss: Loss, *rest: Any) -> torch.Tensor:
        """Run `train_step` with the odd value; a test patches this method in."""
        self.taken += 1
        if self.taken != AT:
            return self.real_step(model, batch, loss, *rest)
        if self.where == "input":
            batch = replace(batch, images=self.spoilt(batch.images))
        if self.where == "weight":
            model.head.bias.data[0] = self.value
        if self.where == "gradient":
            handle = model.head.bias.register_hook(self.spoilt)
        odd = partial(self.loss, loss) if self.where == "loss" else loss
        numbers = self.real_step(model, batch, odd, *rest)
        if self.where == "gradient":
            handle.remove()
        if self.where == "statistics":
            model.features.bn1.running_var[0] = self.value
        return numbers

    def loss(self, real: Loss, *arguments: Any, **rest: Any) -> torch.Tensor:
        """Compute the loss with the odd value; a test patches this method in."""
        return real(*arguments, **rest) * self.value

    def measure(self, scores: Any, **options: Any) -> Any:
        """Run `measure` with the odd value; a test patches this method in."""
        table = self.real_measure(scores, **options)
        if self.taken >= AT and self.where == "metric":
            table.averages["mAP"] = self.value
        return table


@pytest.mark.faults
def test_an_odd_number_is_never_best_nor_saved(
    runs: Runs, monkeypatch: pytest.MonkeyPatch, promise: Promise
) -> None:
    """NaN and infinity at six places, stopping or skipping: what was saved before stays whole."""
    kinds = list(itertools.product(WHERE, (float("nan"), float("inf")), ("stop", "skip")))
    kinds = kinds if FULL else kinds[::5]
    failures = []
    for where, value, policy in kinds:
        name = f"{where}-{value}-{policy}"
        with monkeypatch.context() as patch:
            Injection(patch, where, value)
            wrong = attempt(runs, name, where, policy)
        failures += [(name, wrong)] if wrong else []
        shutil.rmtree(runs.folder / name)
    promise("P16", len(kinds), failures)


def attempt(runs: Runs, name: str, where: str, policy: str) -> str:
    """Return the faults of the run's end; empty: there are none."""
    log, run = io.StringIO(), runs.folder / name
    goes_on = policy == "skip" and where in ("input", "loss", "gradient")
    error = ""
    try:
        runs.go(name, f"train.not_finite={policy}", log=log)
    except MlfinetuneError as caught:
        error = str(caught)
    said = log.getvalue() + error
    if goes_on == bool(error):
        return f"stopped: {error}" if error else "went on"
    wanted = {
        "metric": ["mAP of the validation data is"],
        "statistics": ["not finite"],
    }.get(where, [f"step {AT - 1} of epoch {EPOCHS}", "images/0"])
    if lacking := [words for words in wanted if words not in said]:
        return f"does not say {lacking}: {said}"
    for file in (directory.BEST, directory.LAST):
        if checkpoint.load(run / file).epoch > EPOCHS - (not goes_on):  # refuses odd weights
            return f"{file} is of the epoch that went wrong"
    state = read_state(run / directory.STATE)
    odd = [k for k, v in tensors(state) if v.is_floating_point() and not v.isfinite().all()]
    return f"the state holds it: {odd}" if odd else ""


def tensors(tree: Any, name: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the tensors of nested containers."""
    if isinstance(tree, torch.Tensor):
        yield name, tree
    elif isinstance(tree, dict | list | tuple):
        for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
            yield from tensors(value, f"{name}/{key}")


def test_nothing_but_skipped_steps_ends_the_run(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An epoch of them is no accident, whatever is configured."""

    def loss(*arguments: Any, **rest: Any) -> torch.Tensor:
        return real(*arguments, **rest) * float("nan")

    real_step, real = step_module.train_step, build_loss()
    monkeypatch.setattr(
        step_module, "train_step", lambda m, b, _, *rest: real_step(m, b, loss, *rest)
    )
    log = io.StringIO()
    with pytest.raises(TrainingError, match=r"3 steps in a row not finite at step 2 of epoch 1"):
        runs.go("all-skipped", "train.not_finite=skip", log=log)
    assert log.getvalue().count("warning: skipped, not finite at step") == 2
    assert not (runs.folder / "all-skipped" / directory.BEST).exists()
