"""Evidence from arrays, for the tests of the report."""

from dataclasses import replace
from typing import Any

import numpy as np

from mlfinetune.data.targets import LabelSpace
from mlfinetune.metrics.calibration import ece, reliability_curve, wilson_interval
from mlfinetune.metrics.measure import measure
from mlfinetune.metrics.types import ScoreTable
from mlfinetune.report import Bin, Calibration, Evidence


def evidence(
    logits: Any,
    targets: Any,
    labels: tuple[str, ...] | None = None,
    names: tuple[str, ...] | None = None,
    thresholds: tuple[float, ...] | None = None,
    **more: Any,
) -> Evidence:
    """Return evidence of (N, L) logits and targets; the thresholds are 0.5 unless given."""
    x, t = np.array(logits, np.float32), np.array(targets, np.int8)
    labels = labels or tuple("abcdefghijklmnopqrstuvwxyz"[: x.shape[1]])
    names = names or tuple(f"images/{row}.jpg" for row in range(len(x)))
    scores = ScoreTable(names, x, t, LabelSpace(labels))
    table = measure(scores)
    if thresholds is not None:
        pairs = zip(table.per_label, thresholds, strict=True)
        table = replace(table, per_label=tuple(replace(row, threshold=t) for row, t in pairs))
    about = (("Data", "val.csv"), ("AP", "sklearn"))
    p = 1 / (1 + np.exp(-x.astype(np.float64)))
    curve = reliability_curve(p, t, 10, "width")
    columns = (curve.probability.tolist(), curve.observed.tolist(), curve.count.tolist())
    rows = zip(*columns, strict=True)
    bins = tuple(Bin(p, share, n, *wilson_interval(share, n)) for p, share, n in rows)
    off = Calibration("probabilities", bins, ece(p, t))
    return Evidence("runs/pets", about, scores, p, table, calibration=(off,), **more)


def plausible(
    images: int,
    labels: tuple[str, ...],
    names: tuple[str, ...] | None = None,
    title: str = "runs/pets",
) -> Evidence:
    """Return evidence of random numbers like a run's: labels differ in skill, 2 % unknown."""
    rng = np.random.default_rng(0)
    targets = (rng.random((images, len(labels))) < 0.15).astype(np.int8)
    skill = rng.uniform(0.5, 4, len(labels))
    logits = rng.normal(0, 1.3, targets.shape) + skill * (2 * targets - 1) - 0.5
    targets[rng.random(targets.shape) < 0.02] = -1
    history = [{"epoch": n, "loss": 1 / n, "mAP": 1 - 1 / n, "lr": 1e-4 / n} for n in range(1, 6)]
    intervals = dict.fromkeys(labels, (0.55, 0.85))
    given = evidence(logits, targets, labels, names, ap_intervals=intervals, history=history)
    return replace(given, title=title, intervals={"mAP": (0.6, 0.8)})
