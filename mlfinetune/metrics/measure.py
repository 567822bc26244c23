"""Every number of one ScoreTable, as scikit-learn defines it, without the unknown targets.

Ranking: P and N are the numbers of a label's known positives and negatives; it needs one of each
  mAP           mean AP over labels; `ap` names the protocol, see average_precision.py
  weighted_mAP  mean AP over labels, weighted by P
  micro_AP      AP of all known (image, label) pairs pooled
  macro_AUROC   mean area under the ROC curve over labels

At the thresholds
  macro_*       mean over labels with a known positive of precision, recall, F1; of precision,
                over those that are predicted for some image
  micro_*       of all known pairs pooled
  samples_*     mean over images with a known positive, of the image's known labels; of precision,
                over those for which some label is predicted
  exact_match   share of images whose known labels are all decided correctly
  hamming_loss  share of known pairs that are decided wrongly

As papers report them, at a threshold of 0.5, whatever `thresholds` are
  CP CR         mean precision, recall over labels with a known positive; CF1 = 2 CP CR/(CP + CR);
                a label that is never predicted counts in CP as 0, as in the papers' programs
  OP OR OF1     precision, recall, F1 of all known pairs pooled
  *_top3        these six where each image's three highest known labels are predicted; of tied
                labels the earlier one

Ranking within an image's known labels, mean over images with a known label: see per_image.py
  LRAP  ranking_loss  coverage (it counts labels, and is the only number that may exceed 1)

A number that the known targets leave undefined is None, and takes no part in a mean. Logits are
ranked, not probabilities: these are equal where they saturate. Logits of unknown targets are never
used.

scikit-learn computes each label's AP, from sorted scores; of candidates, which are compared and not
reported, average_precision.py does. The other numbers have its definitions
but their own code here, because its functions would sort again, pool all pairs in float64, or loop
over rows. The tests compare each of them with scikit-learn, to 1e-12. A few labels are copied at a
time, and rows go in blocks, so that no temporary array has the table's size.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score

from mlfinetune.data.targets import NEGATIVE, POSITIVE
from mlfinetune.metrics.average_precision import PROTOCOLS, average_precision, trace_steps
from mlfinetune.metrics.counts import Counts, harmonic_mean, mean
from mlfinetune.metrics.logits import find_cuts
from mlfinetune.metrics.micro_ap import pooled_average_precision
from mlfinetune.metrics.per_image import TOP, ImageNumbers, measure_images
from mlfinetune.metrics.types import LabelMetrics, MetricTable, ScoreTable

_MANY = 10_000
_LABELS_AT_ONCE = 16  # 16 float32 are one cache line of 64 bytes

Averages = dict[str, float | None]


def measure(
    scores: ScoreTable,
    thresholds: float | NDArray[np.float64] = 0.5,
    ap: str = "sklearn",
    *,
    quick: bool = False,
) -> MetricTable:
    """Compute every number of `scores`.

    Args:
        scores: (N, L) finite logits, and targets.
        thresholds: probabilities in [0, 1] from which labels count as present: one number, or
            (L,); 1: never.
        ap: protocol of every AP, one of average_precision.PROTOCOLS.
        quick: AP by average_precision.py alone, equal but for rounding. For candidates, which are
            many, and are only compared: scikit-learn's checks would take longer than all else.
    """
    assert ap in PROTOCOLS
    limits = np.broadcast_to(np.asarray(thresholds, np.float64), (len(scores.labels),))
    assert ((limits >= 0) & (limits <= 1)).all()
    cuts = find_cuts(limits)
    columns = _measure_labels(scores, cuts, ap, quick)
    rows = tuple(
        LabelMetrics(
            name,
            int(columns.positives[column]),
            int(columns.negatives[column]),
            columns.ap[column],
            columns.auroc[column],
            *columns.decided.rates(column),
            float(limits[column]),
        )
        for column, name in enumerate(scores.labels.names)
    )
    images, top = measure_images(scores.logits, scores.targets, cuts)
    averages = {
        **_average_ranking(scores, rows, columns, ap),
        **_average_decisions(columns.decided, images.decided),
        **_average_literature(columns.halved, ""),
        **_average_literature(top, f"_top{TOP}"),
        **_average_images(images),
    }
    scored = sum(value is not None for value in columns.ap)
    return MetricTable(averages, rows, len(scores.names), scored, ap)


# ---- labels -----------------------------------------------------------------------------


@dataclass(frozen=True)
class _LabelNumbers:
    """Numbers of L labels, from one sort of each label's scores.

    Attributes:
        positives, negatives: (L,) numbers of known pairs.
        decided: counts at the thresholds.
        halved: counts at a threshold of 0.5.
        ap, auroc: L numbers, None where undefined.
    """

    positives: NDArray[np.int64]
    negatives: NDArray[np.int64]
    decided: Counts
    halved: Counts
    ap: list[float | None]
    auroc: list[float | None]


def _measure_labels(
    scores: ScoreTable, cuts: NDArray[np.float32], ap: str, quick: bool
) -> _LabelNumbers:
    positives, negatives, tp, predicted, half_tp, half_predicted = np.zeros(
        (6, len(cuts)), np.int64
    )
    numbers = _LabelNumbers(
        positives,
        negatives,
        Counts(tp, predicted, positives),
        Counts(half_tp, half_predicted, positives),
        [None] * len(cuts),
        [None] * len(cuts),
    )
    for start in range(0, len(cuts), _LABELS_AT_ONCE):
        part = slice(start, start + _LABELS_AT_ONCE)
        logits = np.ascontiguousarray(scores.logits[:, part].T)
        targets = np.ascontiguousarray(scores.targets[:, part].T)
        ranked: _Ranked = {}
        for column, (x, t) in enumerate(zip(logits, targets, strict=True), start):
            positive, negative = np.sort(x[t == POSITIVE]), np.sort(x[t == NEGATIVE])
            positives[column], negatives[column] = len(positive), len(negative)
            tp[column], predicted[column] = _count_decisions(positive, negative, cuts[column])
            half = _count_decisions(positive, negative, np.float32(0))
            half_tp[column], half_predicted[column] = half
            if len(positive) and len(negative):
                ranked[column] = positive, negative
                numbers.auroc[column] = _compute_auroc(positive, negative)
        for column, value in _compute_aps(ranked, ap, quick):
            numbers.ap[column] = value
    return numbers


def _count_decisions(
    positive: NDArray[np.float32], negative: NDArray[np.float32], cut: np.float32
) -> tuple[int, int]:
    """Count the positives, and all known pairs, whose score is `cut` or more."""
    tp, fp = (len(x) - int(np.searchsorted(x, cut)) for x in (positive, negative))
    return tp, tp + fp


_Ranked = dict[int, tuple[NDArray[np.float32], NDArray[np.float32]]]
"""Column of a label -> sorted scores of its positives, and of its negatives."""


def _compute_aps(ranked: _Ranked, protocol: str, quick: bool) -> Iterator[tuple[int, float]]:
    """Yield (column, AP) of each label.

    Labels with as many known pairs share one call of scikit-learn, whose checks of its arguments
    take longer than its sums where pictures are few. Many pictures have a call a label, for less
    memory.
    """
    if quick or protocol != "sklearn":
        for column, (positive, negative) in ranked.items():
            steps = trace_steps(positive, negative)
            yield column, average_precision(steps, len(positive), protocol)
        return
    calls: dict[tuple[int, int], list[int]] = {}
    for column, (positive, negative) in ranked.items():
        known = len(positive) + len(negative)
        calls.setdefault((known, column if known > _MANY else -1), []).append(column)
    for (known, _), columns in calls.items():
        truth, scores = np.zeros((known, len(columns)), np.int8), []
        for place, column in enumerate(columns):
            truth[: len(ranked[column][0]), place] = 1
            scores.append(np.concatenate(ranked[column]))
        with np.errstate(over="ignore"):  # scikit-learn subtracts scores to see which are tied
            values = average_precision_score(truth, np.stack(scores, 1), average=None)
        yield from zip(columns, np.atleast_1d(values).tolist(), strict=True)


def _compute_auroc(positive: NDArray[np.float32], negative: NDArray[np.float32]) -> float:
    """Return the share of (positive, negative) pairs in the right order; a tie counts half."""
    below = np.searchsorted(negative, positive)
    tied = negative[np.minimum(below, len(negative) - 1)] == positive
    ties = (np.searchsorted(negative, positive[tied], "right") - below[tied]).sum()
    return int(2 * below.sum() + ties) / (2 * len(positive) * len(negative))


# ---- averages ---------------------------------------------------------------------------


def _average_ranking(
    scores: ScoreTable, rows: tuple[LabelMetrics, ...], columns: _LabelNumbers, ap: str
) -> Averages:
    defined = [(row.AP, row.positives) for row in rows if row.AP is not None]
    weight = sum(positives for _, positives in defined)
    positives, negatives = int(columns.positives.sum()), int(columns.negatives.sum())
    pooled = None
    if positives and negatives:
        pooled = pooled_average_precision(scores.logits, scores.targets, positives, negatives, ap)
    return {
        "mAP": mean(np.array([value for value, _ in defined])),
        "micro_AP": pooled,
        "weighted_mAP": math.fsum(v * p for v, p in defined) / weight if weight else None,
        "macro_AUROC": mean(np.array([row.AUROC for row in rows if row.AUROC is not None])),
    }


def _average_decisions(labels: Counts, images: Counts) -> Averages:
    kinds = {"macro": labels.macro(), "micro": labels.micro(), "samples": images.macro()}
    return {
        **{f"{kind}_F1": rates[2] for kind, rates in kinds.items()},
        **{
            f"{kind}_{name}": rates[index]
            for kind, rates in kinds.items()
            for index, name in enumerate(("precision", "recall"))
        },
    }


def _average_literature(counts: Counts, suffix: str) -> Averages:
    cp, (_, cr, _) = counts.literature_precision(), counts.macro()
    op, recall, of1 = counts.micro()
    names = ("CP", "CR", "CF1", "OP", "OR", "OF1")
    values = (cp, cr, harmonic_mean(cp, cr), op, recall, of1)
    return {name + suffix: value for name, value in zip(names, values, strict=True)}


def _average_images(images: ImageNumbers) -> Averages:
    used = images.known > 0
    wrong = images.decided.predicted + images.decided.positives - 2 * images.decided.tp
    known = int(images.known.sum())
    return {
        "exact_match": mean((wrong == 0)[used].astype(np.float64)),
        "hamming_loss": int(wrong.sum()) / known if known else None,
        "LRAP": mean(images.lrap[used]),
        "ranking_loss": mean(images.ranking_loss[used]),
        "coverage": mean(images.coverage[used].astype(np.float64)),
    }
