"""Pictures to label next: where a label is undecided, rare ones first, and far from each other.

    probabilities (N, L), thresholds, positives, features (N, F) -> choose_pictures -> Choice

Nearness to the threshold of label l is e_il = exp(-|logit(p_il) - logit(t_l)|): 1 at the threshold,
0.5 where the odds are twice or half those of the threshold. A rare label weighs more, by
w_l = (n_l + 1)^-0.5, where n_l labelled pictures have it. A picture is the matrix

    g_i = (w_l e_il)_l x_i', with x_i its features, of length 1

as in the gradient of the head's loss: two pictures are alike if the same labels are undecided for
pictures that look alike. Each pick is the farthest from 0 and from all picks so far (the distance
to the nearest of them is greatest); the first one is the longest. So nearness, rarity and spread
are one number, and no weight between them has to be chosen. It follows BADGE (Ash et al., 2020),
which has entropy in the place of nearness and draws at random. benchmarks/next.py measures it.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mlfinetune.data.targets import NEGATIVE, POSITIVE
from mlfinetune.metrics.near_duplicates import NEAR, find_near_duplicates

Floats = NDArray[np.floating]
Rows = NDArray[np.int64]

RARITY = 0.5
"""Power of the weight of a rare label."""
MOST_COMPARED = 8192
"""Pictures that are compared with each pick at a time, those of the longest g first; 100 MB of
features. Of more than twice as many that are asked for, the others are looked at only where near
duplicates leave too few."""
_BLOCK = 4096
_ENDS = 1e-6
"""Probabilities and thresholds are kept this far from 0 and 1."""
_SHARE = 0.25
"""Part of the length of g from which a label is named among the reasons."""
_MOST_NAMED = 3
SAMPLE = 1024
"""Labelled pictures that `find_least` compares with each other."""
_ORDINARY = 0.999
"""Share of the pairs of different pictures that are no near duplicates, whatever the network."""


@dataclass(frozen=True)
class Pick:
    """A picture to label.

    Attributes:
        row: of the picture.
        score: squared distance to 0 or to the nearest pick before it, whichever is less.
        labels: columns that the picture is chosen for, the strongest first.
    """

    row: int
    score: float
    labels: tuple[int, ...]


@dataclass(frozen=True)
class Choice:
    """Pictures to label, and those left out.

    Attributes:
        picks: in the order to label them.
        near_known: rows that are near duplicates of labelled pictures.
        near_picked: rows that are near duplicates of an earlier pick, as far as they were met.
    """

    picks: tuple[Pick, ...]
    near_known: tuple[int, ...]
    near_picked: tuple[int, ...]


def choose_pictures(
    probabilities: Floats,
    thresholds: Floats,
    positives: NDArray[np.integer],
    features: Floats,
    known: Floats,
    count: int,
    least: float = NEAR,
) -> Choice:
    """Choose up to `count` pictures; fewer where no others are left.

    Args:
        probabilities: (N, L) in [0, 1], calibrated where the tagger is.
        thresholds: (L,) probabilities from which a label is given; 1: never, taken as 0.5.
        positives: (L,) labelled pictures that have the label.
        features: (N, F), also a memory map of float16: it is read in blocks.
        known: (K, F) features of labelled pictures; K may be 0.
        count: number of pictures that are wanted.
        least: cosine similarity from which two pictures are near duplicates.
    """
    nearest = find_near_duplicates(features, known, least)
    blocks = [
        np.square(weigh_labels(probabilities[start : start + _BLOCK], thresholds, positives)).sum(1)
        for start in range(0, len(probabilities), _BLOCK)
    ]
    lengths = np.concatenate([np.zeros(0), *blocks])
    fresh = np.flatnonzero(nearest < 0)
    order = fresh[np.argsort(-lengths[fresh], kind="stable")]
    picker, size = _Picker(features, least), max(MOST_COMPARED, 2 * count)
    for start in range(0, len(order), size):
        rows = order[start : start + size]
        picker.add(rows, weigh_labels(probabilities[rows], thresholds, positives), count)
    repeated = np.flatnonzero(nearest >= 0)
    return Choice(tuple(picker.picks), tuple(repeated.tolist()), tuple(picker.near))


def find_least(known: Floats, targets: NDArray[np.int8] | None) -> float:
    """Return the cosine similarity from which pictures are near duplicates to this network.

    It is NEAR for a pretrained one. Others find different pictures alike: one that was trained on
    few, all of them; a fine-tuned one, those of the same labels. Then it is the similarity that one
    in a thousand pairs of different pictures reaches.

    Args:
        known: (K, F) features of labelled pictures, or of some of them, without copies.
        targets: (K, L) their labels: pictures differ if they have no label in common, and one is
            known to lack a label of the other. None: of a fine-tuned network, to which all are
            taken as different.
    """
    units = _read_units(known, np.arange(len(known)))
    differ = np.ones((len(known), len(known)), bool)
    if targets is not None:
        given, lacking = ((targets == state).astype(np.float32) for state in (POSITIVE, NEGATIVE))
        tagged, known_apart = given.any(axis=1), given @ lacking.T > 0
        differ = (given @ given.T == 0) & (known_apart | known_apart.T) & tagged & tagged[:, None]
    pairs = (units @ units.T)[np.triu(differ, 1)]
    return max(NEAR, float(np.quantile(pairs, _ORDINARY))) if len(pairs) else NEAR


def weigh_labels(
    probabilities: Floats, thresholds: Floats, positives: NDArray[np.integer]
) -> NDArray[np.float32]:
    """Return (n, L) nearness of each label to its threshold, times its weight.

    Args:
        probabilities: (n, L).
        thresholds, positives: (L,) as `choose_pictures` takes them.
    """
    cuts = _to_logits(np.where(np.asarray(thresholds) >= 1, 0.5, thresholds))
    distance = np.abs(_to_logits(probabilities) - cuts)
    return ((positives + 1.0) ** -RARITY * np.exp(-distance)).astype(np.float32)


def _to_logits(probabilities: Floats) -> NDArray[np.float64]:
    p = np.clip(np.asarray(probabilities, np.float64), _ENDS, 1 - _ENDS)
    logits: NDArray[np.float64] = np.log(p) - np.log1p(-p)
    return logits


class _Picker:
    """Picks the farthest picture, one after the other.

    Attributes:
        picks: so far.
        near: rows that are near duplicates of a pick.
    """

    def __init__(self, features: Floats, least: float) -> None:
        self.picks: list[Pick] = []
        self.near: list[int] = []
        self._features, self._least = features, least
        self._taken: list[tuple[NDArray[np.float32], NDArray[np.float32]]] = []

    def add(self, rows: Rows, labels: NDArray[np.float32], count: int) -> None:
        """Pick among `rows`, whose (n, L) weighted nearness is given, until there are `count`."""
        if len(self.picks) >= count:
            return
        units = _read_units(self._features, rows)
        lengths = np.square(labels).sum(1) * np.square(units).sum(1)
        distance, is_open = lengths.copy(), np.ones(len(rows), bool)

        def take(unit: NDArray[np.float32], label: NDArray[np.float32]) -> None:
            """Bring the distances up to date, and close what is near to a pick."""
            cosine = units @ unit
            length = float(label @ label) * float(unit @ unit)
            np.minimum(distance, lengths + length - 2 * (labels @ label) * cosine, out=distance)
            near = is_open & (cosine >= self._least)
            self.near += rows[near].tolist()
            is_open[near] = False

        for unit, label in self._taken:
            take(unit, label)
        while len(self.picks) < count and is_open.any():
            best = int(np.where(is_open, distance, -np.inf).argmax())
            is_open[best] = False
            score = max(0.0, float(distance[best]))
            self.picks.append(Pick(int(rows[best]), score, _name_labels(labels[best])))
            self._taken.append((units[best], labels[best]))
            take(*self._taken[-1])


def _name_labels(strengths: NDArray[np.float32]) -> tuple[int, ...]:
    """Return the columns that make up the length of a picture's g, the strongest first."""
    parts = np.square(strengths)
    order = np.argsort(-parts, kind="stable")[:_MOST_NAMED].tolist()
    return tuple(c for n, c in enumerate(order) if n == 0 or parts[c] >= _SHARE * parts.sum())


def _read_units(features: Floats, rows: Rows) -> NDArray[np.float32]:
    """Return the features of rows, of length 1; zeros of a row that points nowhere."""
    return np.concatenate(
        [np.zeros((0, features.shape[1]), np.float32), *_iter_units(features, rows)]
    )


def _iter_units(features: Floats, rows: Rows) -> Iterator[NDArray[np.float32]]:
    for start in range(0, len(rows), _BLOCK):
        block = np.asarray(features[rows[start : start + _BLOCK]], np.float32)
        length = np.linalg.norm(block, axis=1, keepdims=True)
        yield np.divide(block, length, out=np.zeros_like(block), where=length > 0)
