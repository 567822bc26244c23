"""Numbers of resamples against scikit-learn with sample weights, and against repeated images."""

from dataclasses import replace

import numpy as np
import pytest
from drawn_tables import copied, drawn, tables, thorough
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score

from mlfinetune.metrics import bootstrap
from mlfinetune.metrics.average_precision import PROTOCOLS
from mlfinetune.metrics.measure import measure
from mlfinetune.metrics.types import ScoreTable

SEEDS = range(12)


def counts(images: int, seed: int) -> NDArray[np.int64]:
    """Return how often each image is drawn, with replacement."""
    draw = np.random.default_rng(seed).integers(0, images, images)
    return np.bincount(draw, minlength=images)


def resample(
    scores: ScoreTable, threshold: float, seed: int, protocol: str = "sklearn"
) -> bootstrap.Resampled:
    """Measure one resample."""
    ranked = bootstrap.rank_labels(scores, [threshold] * len(scores.labels))
    groups = bootstrap.find_groups(scores)
    (found,) = bootstrap.resample([ranked], groups, 1, seed, protocol)
    return found


def is_near(value: float, wanted: float | None) -> bool:
    """Equal to 12 digits; NaN where undefined."""
    if wanted is None or np.isnan(wanted):
        return bool(np.isnan(value))
    return abs(value - wanted) <= 1e-12


@thorough
@given(scores=tables())
def test_each_resample_has_the_rankings_of_scikit_learn(scores: ScoreTable) -> None:
    """AP and AUROC with the counts as weights; undefined without a positive or a negative."""
    for seed in SEEDS:
        found = resample(scores, 0.5, seed)
        for at in range(len(scores.labels)):
            known = scores.targets[:, at] != -1
            truth, logits = scores.targets[known, at], scores.logits[known, at]
            weights = counts(len(scores.names), seed)[known]
            both = (weights * truth).sum() and (weights * (1 - truth)).sum()
            for values, score in (
                (found.ap, average_precision_score),
                (found.auroc, roc_auc_score),
            ):
                wanted = score(truth, logits, sample_weight=weights) if both else np.nan
                assert is_near(values[0, at], wanted)


@settings(thorough, max_examples=60)
@given(scores=tables(), protocol=st.sampled_from(PROTOCOLS))
def test_each_resample_is_a_table_of_repeated_images(scores: ScoreTable, protocol: str) -> None:
    """An image that is drawn twice stands twice, by every protocol of AP."""
    for seed in SEEDS:
        found = resample(scores, 0.5, seed, protocol)
        rows = np.repeat(np.arange(len(scores.names)), counts(len(scores.names), seed))
        names = tuple(map(str, range(len(rows))))
        repeated = replace(
            scores, names=names, logits=scores.logits[rows], targets=scores.targets[rows]
        )
        wanted = measure(repeated, 0.5, protocol)
        for at, row in enumerate(wanted.per_label):
            assert is_near(found.ap[0, at], row.AP)
            assert is_near(found.auroc[0, at], row.AUROC)
        averages = found.averages()
        for name in ("mAP", "macro_AUROC"):
            assert is_near(averages[name][0], wanted.averages[name])


@settings(thorough, max_examples=40)
@given(scores=tables(), threshold=st.sampled_from((0.0, 0.3, 0.5, 0.8, 1.0)))
def test_each_resample_has_the_f1_of_scikit_learn(scores: ScoreTable, threshold: float) -> None:
    """A label's and the pooled one, at the threshold's logit, over known pairs."""
    with np.errstate(divide="ignore"):
        said = scores.logits >= np.float32(np.log(np.float64(threshold) / (1 - threshold)))
    known, truth = scores.targets != -1, scores.targets == 1
    for seed in SEEDS:
        found = resample(scores, threshold, seed)
        weights = counts(len(scores.names), seed)[:, None] * known
        assert is_near(found.micro_f1[0], f1(truth.ravel(), said.ravel(), weights.ravel()))
        for at in range(len(scores.labels)):
            assert is_near(found.f1[0, at], f1(truth[:, at], said[:, at], weights[:, at]))


def f1(truth: NDArray[np.bool_], said: NDArray[np.bool_], weights: NDArray[np.int64]) -> float:
    """Scikit-learn's, NaN without a positive of weight."""
    if not (truth * weights).sum():
        return float("nan")
    return float(f1_score(truth, said, sample_weight=weights, zero_division=0))


@pytest.mark.parametrize("block", [1, 130, 10**6])
def test_the_size_of_a_block_changes_nothing(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    """Resamples are drawn one by one, whatever the number that is in memory."""
    groups = np.arange(40) // 2
    draws = (bootstrap.draw_counts, bootstrap.draw_weights)
    wanted = [np.concatenate(list(draw(groups, 30, 0))) for draw in draws]
    monkeypatch.setattr(bootstrap, "_BLOCK", block)
    found = [np.concatenate(list(draw(groups, 30, 0))) for draw in draws]
    assert all(np.array_equal(*pair) for pair in zip(wanted, found, strict=True))


def test_a_group_is_drawn_as_one() -> None:
    """Copies in groups have the numbers of the table without copies, in every resample."""
    scores = drawn(30, 3, seed=0)
    for seed in SEEDS:
        alone, groups = (resample(one, 0.5, seed) for one in (scores, copied(scores, 3)))
        for name in ("ap", "auroc", "f1", "micro_f1"):
            assert np.allclose(getattr(alone, name), getattr(groups, name), equal_nan=True)
