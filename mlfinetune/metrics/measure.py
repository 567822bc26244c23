"""The numbers of one ScoreTable, as scikit-learn defines them, unknown targets masked.

Ranking; P and N are a label's known positives and negatives, and it needs one of each
  mAP           mean AP over labels; `ap` names the protocol, see average_precision
  weighted_mAP  the same, weighted by P
  micro_AP      AP of all known (image, label) pairs pooled
  macro_AUROC   mean area under the ROC curve over labels

At the thresholds
  macro_*       mean over labels with a known positive of precision, recall, F1
  micro_*       of all known pairs pooled
  samples_*     mean over images with a known positive, of the image's known labels
  exact_match   share of images whose known labels are all decided rightly
  hamming_loss  share of known pairs decided wrongly

The literature's, at 0.5 whatever the thresholds
  CP CR         mean precision, recall over labels with a known positive; CF1 = 2 CP CR/(CP + CR)
  OP OR OF1     precision, recall, F1 of all known pairs pooled
  *_top3        the same where each image's three highest known labels are predicted; of tied
                ones the earlier

Ranking within an image's known labels, mean over images with a known label: see per_image
  LRAP  ranking_loss  coverage (the only one beyond 1: it counts labels)

What the known targets leave undefined is None, and takes no part in a mean. Logits are ranked,
not probabilities, which tie where they saturate; the logits of unknown targets are never read.

scikit-learn computes each label's AP, from scores already sorted. The other numbers have its
definitions in code of our own, since its functions would sort again, pool all pairs in float64 or
loop over rows; the tests hold each of them to it, to 1e-12. A few labels are copied at a time, and
rows go in blocks: no temporary has the table's size.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score

from mlfinetune.data.targets import NEGATIVE, POSITIVE
from mlfinetune.metrics.average_precision import PROTOCOLS, average_precision, steps
from mlfinetune.metrics.counts import Counts, harmonic, mean
from mlfinetune.metrics.micro_ap import pooled_average_precision
from mlfinetune.metrics.per_image import TOP, Images, per_image
from mlfinetune.metrics.types import LabelMetrics, MetricTable, ScoreTable

_LABELS_AT_ONCE = 16  # float32 of a cache line

Averages = dict[str, float | None]


def measure(
    scores: ScoreTable, thresholds: float | NDArray[np.float64] = 0.5, ap: str = "sklearn"
) -> MetricTable:
    """Every number of `scores`.

    Args:
        scores: (N, L) finite logits, and targets.
        thresholds: probabilities in [0, 1] from which labels count as present; one, or (L,).
        ap: protocol of every AP, one of average_precision.PROTOCOLS.
    """
    assert ap in PROTOCOLS
    limits = np.broadcast_to(np.asarray(thresholds, np.float64), (len(scores.labels),))
    assert ((limits >= 0) & (limits <= 1)).all()
    with np.errstate(divide="ignore"):
        cuts = np.log(limits / (1 - limits)).astype(np.float32)
    columns = _columns(scores, cuts, ap)
    rows = tuple(
        LabelMetrics(
            name,
            int(columns.positives[at]),
            int(columns.negatives[at]),
            columns.ap[at],
            columns.auroc[at],
            *columns.decided.of(at),
            float(limits[at]),
        )
        for at, name in enumerate(scores.labels.names)
    )
    images, top = per_image(scores.logits, scores.targets, cuts)
    averages = {
        **_ranking(scores, rows, columns, ap),
        **_decisions(columns.decided, images.decided),
        **_literature(columns.halved, ""),
        **_literature(top, f"_top{TOP}"),
        **_within_images(images),
    }
    scored = sum(value is not None for value in columns.ap)
    return MetricTable(averages, rows, len(scores.names), scored, ap)


# ---- labels -----------------------------------------------------------------------------


@dataclass(frozen=True)
class _Columns:
    """What a sort of each label's scores tells: L of each."""

    positives: NDArray[np.int64]
    negatives: NDArray[np.int64]
    decided: Counts  # at the thresholds
    halved: Counts  # at 0.5
    ap: list[float | None]
    auroc: list[float | None]


def _columns(scores: ScoreTable, cuts: NDArray[np.float32], ap: str) -> _Columns:
    positives, negatives, tp, said, half_tp, half_said = np.zeros((6, len(cuts)), np.int64)
    found = _Columns(
        positives,
        negatives,
        Counts(tp, said, positives),
        Counts(half_tp, half_said, positives),
        [None] * len(cuts),
        [None] * len(cuts),
    )
    for start in range(0, len(cuts), _LABELS_AT_ONCE):
        part = slice(start, start + _LABELS_AT_ONCE)
        logits = np.ascontiguousarray(scores.logits[:, part].T)
        targets = np.ascontiguousarray(scores.targets[:, part].T)
        for at, (x, t) in enumerate(zip(logits, targets, strict=True), start):
            positive, negative = np.sort(x[t == POSITIVE]), np.sort(x[t == NEGATIVE])
            positives[at], negatives[at] = len(positive), len(negative)
            tp[at], said[at] = _decide(positive, negative, cuts[at])
            half_tp[at], half_said[at] = _decide(positive, negative, np.float32(0))
            if len(positive) and len(negative):
                found.ap[at] = _average_precision(positive, negative, ap)
                found.auroc[at] = _auroc(positive, negative)
    return found


def _decide(
    positive: NDArray[np.float32], negative: NDArray[np.float32], cut: np.float32
) -> tuple[int, int]:
    """How many score at least `cut`: of the positives, of all."""
    tp, fp = (len(x) - int(np.searchsorted(x, cut)) for x in (positive, negative))
    return tp, tp + fp


def _average_precision(
    positive: NDArray[np.float32], negative: NDArray[np.float32], protocol: str
) -> float:
    if protocol != "sklearn":
        return average_precision(steps(positive, negative), len(positive), protocol)
    truth = np.zeros(len(positive) + len(negative), np.int8)
    truth[: len(positive)] = 1
    with np.errstate(over="ignore"):  # it subtracts scores to see which are tied
        return float(average_precision_score(truth, np.concatenate([positive, negative])))


def _auroc(positive: NDArray[np.float32], negative: NDArray[np.float32]) -> float:
    """Share of (positive, negative) pairs in the right order; a tie is half of one."""
    below = np.searchsorted(negative, positive)
    tied = negative[np.minimum(below, len(negative) - 1)] == positive
    ties = (np.searchsorted(negative, positive[tied], "right") - below[tied]).sum()
    return int(2 * below.sum() + ties) / (2 * len(positive) * len(negative))


# ---- averages ---------------------------------------------------------------------------


def _ranking(
    scores: ScoreTable, rows: tuple[LabelMetrics, ...], columns: _Columns, ap: str
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


def _decisions(labels: Counts, images: Counts) -> Averages:
    kinds = {"macro": labels.macro(), "micro": labels.micro(), "samples": images.macro()}
    return {
        **{f"{kind}_F1": rates[2] for kind, rates in kinds.items()},
        **{
            f"{kind}_{name}": rates[at]
            for kind, rates in kinds.items()
            for at, name in enumerate(("precision", "recall"))
        },
    }


def _literature(counts: Counts, suffix: str) -> Averages:
    cp, cr, _ = counts.macro()
    op, recall, of1 = counts.micro()
    names = ("CP", "CR", "CF1", "OP", "OR", "OF1")
    values = (cp, cr, harmonic(cp, cr), op, recall, of1)
    return {name + suffix: value for name, value in zip(names, values, strict=True)}


def _within_images(images: Images) -> Averages:
    there = images.known > 0
    wrong = images.decided.said + images.decided.positives - 2 * images.decided.tp
    known = int(images.known.sum())
    return {
        "exact_match": mean((wrong == 0)[there].astype(np.float64)),
        "hamming_loss": int(wrong.sum()) / known if known else None,
        "LRAP": mean(images.lrap[there]),
        "ranking_loss": mean(images.ranking_loss[there]),
        "coverage": mean(images.coverage[there].astype(np.float64)),
    }
