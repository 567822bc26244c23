"""Assign images to sides so that every label keeps its share and groups of images stay whole.

    quotas -> the number of positives of each label, and of images, that each side is to get
    order  -> units (a group, or an image without group): those of the rarest label first
    deal   -> each unit goes to the side that most lacks what the unit holds

Iterative stratification (Sechidis, Tsoumakas, Vlahavas 2011). The images are counted as one more
label, the most frequent one, so that the sizes of the sides come out exactly. Memory grows with
the number of positives, not with N * L.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mlfinetune.data.manifest import number_groups
from mlfinetune.data.targets import Targets

Ints = NDArray[np.int64]
Unit = list[tuple[int, int]]
"""(rank of a label, number of positives) of one unit: rarest label first, images last.

Example: a group of 3 images, of which 2 have the rarest of 80 labels -> [(0, 2), (80, 3)].
"""


def split_stratified(
    rows: Ints,
    columns: Ints,
    size: int,
    labels: int,
    fractions: Sequence[float],
    seed: int,
    groups: Ints | None = None,
) -> NDArray[np.int8]:
    """Return the side of each image; equal arguments give equal sides.

    Without groups, side 1, 2, ... has round(size * fraction) images, at least one. Train (side 0)
    has the rest, at least one. If train has at least as many images as there are labels, it has a
    positive of each label. The other sides get a positive of each label where there are enough;
    small sides may miss some.

    With groups: if there are two sides and no group is larger than a side, neither side is off by
    more than half the largest group. Larger groups are dealt first. A group goes to a side where
    it fits, else to train; so a side stays empty if all groups are larger than it. Labels keep
    their shares as far as whole groups allow.

    Args:
        rows, columns: (P,) image and label of each positive, each pair once.
        size, labels: N and L; N is at least the number of sides.
        fractions: shares of sides 1, 2, ...; side 0, train, has the rest.
        seed: decides ties.
        groups: (N,) group of each image; None: each image is its own group.

    Returns:
        (N,) side of each image.
    """
    assert 0 < len(fractions) < size
    assert 0 < min(fractions) <= sum(fractions) < 1
    units = np.arange(size) if groups is None else np.unique(groups, return_inverse=True)[1]
    totals = np.append(np.bincount(columns, minlength=labels), size)
    # From here on a label is its rank: 0 is the rarest label. The last rank counts the images.
    rank = np.argsort(np.argsort(totals, kind="stable"))
    cells = np.append(units[rows] * (labels + 1) + rank[columns], units * (labels + 1) + labels)
    cells, counts = np.unique(cells, return_counts=True)
    want = _compute_quotas(np.sort(totals), fractions)
    return _deal_units(cells % (labels + 1), counts, want, np.random.default_rng(seed))[units]


def _compute_quotas(totals: Ints, fractions: Sequence[float]) -> Ints:
    """Divide (L+1,) totals into the (sides, L+1) numbers that each side is to get.

    Each side gets at least one of each label. Where there are too few, train comes first, then
    side 1, then side 2: the last sides get none.
    """
    left, quotas = totals, []
    for sides_after, fraction in zip(reversed(range(len(fractions))), fractions, strict=True):
        share = np.maximum(np.rint(totals * fraction).astype(np.int64), 1)
        # Keep one for train and one for each later side, but take one as long as train keeps one.
        quotas.append(np.minimum(share, np.maximum(left - 1 - sides_after, left > 1)))
        left = left - quotas[-1]
    return np.array([left, *quotas])


class _Sides:
    """Counts what each side still lacks of each label; the last count is of images.

    Attributes:
        lacks: side -> label -> positives still wanted; negative where there are too many.
        worth: side -> label -> 1 / quota: a positive weighs more where few are wanted.
        room: side -> images wanted at the start.
    """

    def __init__(self, want: Ints) -> None:
        self.lacks: list[list[int]] = want.tolist()
        self.worth: list[list[float]] = (1 / np.maximum(want, 1)).tolist()
        self.room: list[int] = want[:, -1].tolist()

    def choose_side(self, unit: Unit) -> int:
        """Return the side that gains most from the unit; train where it fits nowhere.

        Sides that lack the unit's rarest label come before all others.
        """
        (rarest, number), (_, images) = unit[0], unit[-1]
        chosen, most = 0, (False, -np.inf)
        for side, (lacks, worth) in enumerate(zip(self.lacks, self.worth, strict=True)):
            # The unit is larger than the side, or more than half of it would be too much: the size
            # of the side stays nearer to its quota without the unit.
            if images > min(self.room[side], 2 * lacks[-1]):
                continue
            # Add the positives one by one: each gains the share of its quota that lacks before it.
            # For `count` of them these are lacks + (lacks - 1) + ...; twice the sum is below.
            gain = 0.0
            for label, count in unit:
                gain += count * (2 * lacks[label] + 1 - count) * worth[label]
            if (fit := (2 * lacks[rarest] >= number, gain)) > most:
                chosen, most = side, fit
        return chosen

    def assign(self, side: int, unit: Unit) -> int:
        """Count the unit's positives on the side, and return the side."""
        for label, count in unit:
            self.lacks[side][label] -= count
        return side


def _deal_units(
    labels: Ints, counts: Ints, want: Ints, rng: np.random.Generator
) -> NDArray[np.int8]:
    """Return the side of each unit.

    Args:
        labels, counts: labels and numbers of positives of all units, one unit after the other.
            The last entry of each unit has label L: its number of images.
        want: (sides, L+1) quotas.
        rng: decides the order of units that are alike.
    """
    ends = np.flatnonzero(labels == want.shape[1] - 1) + 1
    starts, images = np.append(0, ends[:-1]), counts[ends - 1]
    # Units larger than the smallest side come first, while the other sides still have room. Then
    # those of the rarest label: few units have it, so it is divided while all sides lack it. The
    # last key of lexsort counts most.
    large = np.maximum(images, want[:, -1].min())
    order = np.lexsort([rng.random(len(ends)), -images, labels[starts], -large])
    dealt, sides = np.full(len(ends), -1, np.int8), _Sides(want)
    cells = np.stack([labels, counts], axis=1)

    # Train must have a positive of each label. So it first gets one unit per label: the one that
    # would be dealt last, and that disturbs the dealing least. A label that an earlier one of these
    # units has brought needs none, and a unit too large for train is left to the dealing.
    last = np.zeros(want.shape[1], np.int64)
    np.maximum.at(last, labels, np.repeat(np.argsort(order), ends - starts))
    for label, unit in enumerate(order[last[:-1]].tolist()):
        lacks = sides.lacks[0]
        if 0 < lacks[label] == want[0, label] and images[unit] <= lacks[-1]:
            dealt[unit] = sides.assign(0, cells[starts[unit] : ends[unit]].tolist())
    for unit in order[dealt[order] < 0].tolist():
        held = cells[starts[unit] : ends[unit]].tolist()
        dealt[unit] = sides.assign(sides.choose_side(held), held)
    return dealt


def assign_sides(
    targets: Targets,
    groups: Sequence[str] | None,
    fractions: Sequence[float],
    seed: int,
    contents: Sequence[int] | None = None,
    pins: NDArray[np.int8] | None = None,
) -> NDArray[np.int8]:
    """Return the (N,) side of each image, stratified by label; 0 is train.

    Images of one group are on one side, and so are images whose `contents` are equal. Images that
    are linked by a chain of both are on one side too:

        image     a   b   c   d
        groups    x   x   y   ""     "" is no group: d is alone
        contents  1   2   2   4
        units     0   0   0   1      a and b by group, b and c by content

    Args:
        targets: (N, L) states; positives are what is stratified.
        groups: N group names, or None.
        fractions: shares of sides 1, 2, ...; train has the rest.
        seed: decides ties.
        contents: N numbers, equal for files with the same bytes, or None.
        pins: (N,) side that an image has in any case, -1: none; None: no image has one. Images of
            one group or content follow the one that has to be in train, else the one that has a
            side. The others are dealt by themselves: where they are too few, to train.
    """
    numbers = None if groups is None else number_groups(groups)
    if contents is not None:
        same_bytes = np.unique(np.array(contents), return_inverse=True)[1]
        numbers = same_bytes if numbers is None else join_partitions(numbers, same_bytes)
    if pins is None or pins.max() < 0:
        return split_stratified(*targets.positives(), *targets.shape, fractions, seed, numbers)
    units = np.arange(len(targets)) if numbers is None else numbers
    pinned = np.full(units.max() + 1, -1, np.int8)
    for side in range(len(fractions), -1, -1):  # train last: it wins
        pinned[units[pins == side]] = side
    sides, free = pinned[units], np.flatnonzero(pinned[units] < 0)
    if len(free) <= len(fractions) or len(free) * min(fractions) < 0.5:
        sides[free] = 0
        return sides
    dealt = targets.take(free)
    sides[free] = split_stratified(
        *dealt.positives(),
        *dealt.shape,
        fractions,
        seed,
        np.unique(units[free], return_inverse=True)[1],
    )
    return sides


def join_partitions(first: NDArray[np.int64], second: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return (N,) numbers: rows that share a number in `first` or in `second` share one here.

    These are the connected components. The least number spreads along both partitions until
    nothing changes.
    """
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
