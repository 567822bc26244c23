"""Share images out so that every label keeps its share, and groups of images stay whole.

    quotas -> how many positives of each label, and how many images, each side is to get
    order  -> units (a group, or an image of none): those of the rarest label first
    deal   -> each unit to the side that most lacks what it holds

Iterative stratification (Sechidis, Tsoumakas, Vlahavas 2011), with the images counted as one label
more, the commonest, so that sizes come out exactly. Memory goes with the positives, not with N * L.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mlfinetune.data.targets import Targets

Ints = NDArray[np.int64]
Unit = list[tuple[int, int]]  # label and number of positives, rarest label first, images last


def stratified_split(
    rows: Ints,
    columns: Ints,
    size: int,
    labels: int,
    fractions: Sequence[float],
    seed: int,
    groups: Ints | None = None,
) -> NDArray[np.int8]:
    """The side of each image, a function of the arguments alone.

    Without groups, each side has round(size * fraction) images, at least one, and train the rest,
    at least one. If train has as many images as there are labels, it has a positive of each. The
    other sides are meant to have one too where there are enough; small sides may miss some.

    With groups, of two sides neither is off by more than half the largest group, if no group is
    larger than a side. Larger groups come first and go where they fit, else to train, so that a
    side stays empty if all groups are larger. Labels keep their shares as whole groups let them.

    Args:
        rows, columns: (P,) image and label of each positive, each pair once.
        size, labels: N and L, N at least the number of sides.
        fractions: shares of sides 1, 2, ...; side 0, train, has the rest.
        seed: decides ties.
        groups: (N,) group of each image.

    Returns:
        (N,) side of each image.
    """
    assert 0 < len(fractions) < size
    assert 0 < min(fractions) <= sum(fractions) < 1
    units = np.arange(size) if groups is None else np.unique(groups, return_inverse=True)[1]
    totals = np.append(np.bincount(columns, minlength=labels), size)
    # A label is its rank from here on, 0 the rarest; rank `labels`, the last, counts the images.
    rank = np.argsort(np.argsort(totals, kind="stable"))
    cells = np.append(units[rows] * (labels + 1) + rank[columns], units * (labels + 1) + labels)
    cells, counts = np.unique(cells, return_counts=True)
    want = _quotas(np.sort(totals), fractions)
    return _deal(cells % (labels + 1), counts, want, np.random.default_rng(seed))[units]


def _quotas(totals: Ints, fractions: Sequence[float]) -> Ints:
    """(L+1,) totals -> (sides, L+1) shares: one at least, where short to train, then side 1."""
    left, quotas = totals, []
    for after, fraction in zip(reversed(range(len(fractions))), fractions, strict=True):
        share = np.maximum(np.rint(totals * fraction).astype(np.int64), 1)
        quotas.append(np.minimum(share, np.maximum(left - 1 - after, left > 1)))
        left = left - quotas[-1]
    return np.array([left, *quotas])


class _Sides:
    """What each side still lacks of each label, and of images last."""

    def __init__(self, want: Ints) -> None:
        self.lacks: list[list[int]] = want.tolist()
        self.worth: list[list[float]] = (1 / np.maximum(want, 1)).tolist()
        self.room: list[int] = want[:, -1].tolist()

    def best(self, unit: Unit) -> int:
        """The side that lacks the unit's rarest label; of several, the one that gains most."""
        (rarest, number), (_, images) = unit[0], unit[-1]
        chosen, most = 0, (False, -np.inf)
        for side, (lacks, worth) in enumerate(zip(self.lacks, self.worth, strict=True)):
            if images > min(self.room[side], 2 * lacks[-1]):  # nearer without the unit
                continue
            gain = 0.0  # each positive, one by one: the share of its quota that lacks before it
            for label, count in unit:
                gain += count * (2 * lacks[label] + 1 - count) * worth[label]
            if (fit := (2 * lacks[rarest] >= number, gain)) > most:
                chosen, most = side, fit
        return chosen

    def give(self, side: int, unit: Unit) -> int:
        """Count the unit as the side's, and return the side."""
        for label, count in unit:
            self.lacks[side][label] -= count
        return side


def _deal(labels: Ints, counts: Ints, want: Ints, rng: np.random.Generator) -> NDArray[np.int8]:
    """The side of each unit, given what they hold, unit after unit."""
    ends = np.flatnonzero(labels == want.shape[1] - 1) + 1
    starts, images = np.append(0, ends[:-1]), counts[ends - 1]
    large = np.maximum(images, want[:, -1].min())  # for some side: first, while others have room
    order = np.lexsort([rng.random(len(ends)), -images, labels[starts], -large])
    dealt, sides = np.full(len(ends), -1, np.int8), _Sides(want)
    cells = np.stack([labels, counts], axis=1)

    # No label is held out whole: train has a unit of each first, the one that would be dealt last.
    last = np.zeros(want.shape[1], np.int64)
    np.maximum.at(last, labels, np.repeat(np.argsort(order), ends - starts))
    for label, unit in enumerate(order[last[:-1]].tolist()):
        lacks = sides.lacks[0]
        if 0 < lacks[label] == want[0, label] and images[unit] <= lacks[-1]:
            dealt[unit] = sides.give(0, cells[starts[unit] : ends[unit]].tolist())
    for unit in order[dealt[order] < 0].tolist():
        held = cells[starts[unit] : ends[unit]].tolist()
        dealt[unit] = sides.give(sides.best(held), held)
    return dealt


def assign_sides(
    targets: Targets,
    groups: Sequence[str] | None,
    fractions: Sequence[float],
    seed: int,
    contents: Sequence[int] | None = None,
) -> NDArray[np.int8]:
    """(N,) 0 for train, 1, 2 ... for the sides with those shares, stratified by label.

    Images of one group, and those whose `contents` are equal, are on one side.
    """
    numbers = None
    if groups is not None:  # a blank cell is a group of its own
        named = [group or f"\0{row}" for row, group in enumerate(groups)]
        numbers = np.unique(np.array(named), return_inverse=True)[1]
    if contents is not None:
        own = np.unique(np.array(contents), return_inverse=True)[1]
        numbers = own if numbers is None else _components(numbers, own)
    return stratified_split(*targets.positives(), *targets.shape, fractions, seed, numbers)


def _components(first: NDArray[np.int64], second: NDArray[np.int64]) -> NDArray[np.int64]:
    """(N,) numbers that rows share which either partition puts together, by whatever chain."""
    numbers = first
    while True:
        least = np.full(second.max() + 1, len(first))
        np.minimum.at(least, second, numbers)
        joined = least[second]
        least = np.full(first.max() + 1, len(first))
        np.minimum.at(least, first, joined)
        joined = least[first]
        if np.array_equal(joined, numbers):
            return np.unique(joined, return_inverse=True)[1]
        numbers = joined
