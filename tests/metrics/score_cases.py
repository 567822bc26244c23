"""Generated and written tables of scores, for every test of the metrics.

The logits of generated cases lie 1/4 apart or tie, and never near a threshold, where
torchmetrics asks for more than the threshold and we for at least as much.
"""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from scipy.special import expit

from mlfinetune.data.targets import LabelSpace
from mlfinetune.metrics.measure import measure
from mlfinetune.metrics.types import MetricTable, ScoreTable

THRESHOLDS = (0.5, 0.05, 0.3, 0.7, 0.9)
thorough = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


@dataclass(frozen=True)
class Case:
    """(N, L) targets and logits, and a threshold."""

    targets: NDArray[np.int8]
    logits: NDArray[np.float32]
    threshold: float

    def measured(self) -> MetricTable:
        """Numbers of the function under test."""
        return measure(table(self.targets, self.logits), self.threshold)

    def said(self) -> NDArray[np.bool_]:
        """Return (N, L) bools: whether the threshold is reached."""
        return np.asarray(self.probabilities() >= self.threshold)

    def probabilities(self) -> NDArray[np.float64]:
        """Return (N, L), apart wherever the logits are."""
        return np.asarray(expit(self.logits.astype(np.float64)))


def table(targets: NDArray[np.int8], logits: NDArray[np.float32]) -> ScoreTable:
    """Return a ScoreTable whose images and labels have numbers for names."""
    names = tuple(f"{i}.jpg" for i in range(len(targets)))
    labels = LabelSpace(tuple(f"label {i}" for i in range(targets.shape[1])))
    return ScoreTable(names, logits, targets, labels)


def scores(targets: list[list[int]], logits: list[list[float]]) -> ScoreTable:
    """Return a ScoreTable from rows."""
    return table(np.array(targets, np.int8), np.array(logits, np.float32))


@st.composite
def cases(draw: st.DrawFn, states: tuple[int, ...]) -> Case:
    """Draw cases: 1 to 30 images, 1 to 6 labels, from all logits tied to all apart."""
    shape = draw(st.tuples(st.integers(1, 30), st.integers(1, 6)))
    steps = draw(st.sampled_from((0, 1, 20)))
    levels = draw(arrays(np.int8, shape, elements=st.integers(-steps, steps)))
    targets = draw(arrays(np.int8, shape, elements=st.sampled_from(states)))
    logits = (levels / 4 + 0.125).astype(np.float32)
    return Case(targets, logits, draw(st.sampled_from(THRESHOLDS)))


def columns(case: Case, need_negative: bool) -> tuple[NDArray[np.int8], NDArray[np.float64]]:
    """Targets and probabilities of the labels that have a positive (and a negative), twice over.

    Means are the same with every label counted twice, and an only label becomes a matrix that
    both libraries take for several labels.
    """
    chosen = (case.targets == 1).any(axis=0)
    if need_negative:
        chosen &= (case.targets == 0).any(axis=0)
    wanted = np.tile(np.flatnonzero(chosen), 2)
    return case.targets[:, wanted], case.probabilities()[:, wanted]


def near(value: float | torch.Tensor | None, tolerance: float = 1e-6) -> object:
    """Return pytest's approximation of the value; None stays None."""
    return None if value is None else pytest.approx(float(value), abs=tolerance)
