"""Manifest: the examples of one side of a run. Splits: train and val, and what was decided.

root, names, targets, labels -> Manifest        train and val -> Splits
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from mlfinetune.data.table import Skipped
from mlfinetune.data.targets import LabelSpace, Targets
from mlfinetune.location import Location, join_location

DEFAULT_VAL_FRACTION = 0.2
"""Share of train that is held out where nothing says which examples are for validation."""


@dataclass(frozen=True)
class Manifest:
    """The examples of one split.

    Attributes:
        root: the folder, or the URL, that names are relative to.
        names: N image paths as the user wrote them, relative to `root`.
        targets: (N, L) in {1, 0, -1}: positive, negative, unknown.
        labels: the names of the L columns.
        groups: (N,) number of each example's group, as `data.group_by` says; None: no groups.
        stamps: (N,) numbers of the files' sizes and times in the scan (`files.number_stamp`); 0:
            unknown. None: there was no scan.
    """

    root: Location
    names: tuple[str, ...]
    targets: Targets
    labels: LabelSpace
    groups: NDArray[np.int64] | None = None
    stamps: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.names)

    def path(self, index: int) -> str:
        """Return the path or URL of the picture of example `index`."""
        return join_location(self.root, self.names[index])

    def take(self, rows: list[int]) -> "Manifest":
        """Return the manifest of these examples only, in this order."""
        names = tuple(self.names[row] for row in rows)
        groups = None if self.groups is None else self.groups[rows]
        stamps = None if self.stamps is None else self.stamps[rows]
        targets = self.targets.take(rows)
        return Manifest(self.root, names, targets, self.labels, groups, stamps)


def number_groups(groups: Sequence[str]) -> NDArray[np.int64]:
    """Return the (N,) number of each row's group; a row with a blank cell is a group of its own.

    x, x, y, blank, blank  ->  2, 2, 3, 0, 1
    """
    names = [group or f"\0{row}" for row, group in enumerate(groups)]
    numbers = {name: number for number, name in enumerate(sorted(set(names)))}
    return np.fromiter((numbers[name] for name in names), np.int64, len(names))


def digest_manifest(manifest: Manifest) -> str:
    """Return the SHA-256 of names, labels and targets, in hex: equal means the same examples."""
    digest = hashlib.sha256(
        "\0".join((*manifest.names, *manifest.labels.names)).encode(errors="surrogatepass")
    )
    for _, block in manifest.targets.blocks():
        digest.update(block.tobytes())
    return digest.hexdigest()


@dataclass(frozen=True)
class Splits:
    """Both sides of a run, in one label order, and what was decided on the way.

    Attributes:
        train, val: the examples.
        notes: what was seen and decided, as lines for the user.
        skipped: pictures that are in the data and cannot be used.
        rare: labels left out by `min_positives`.
        delimiter: what separates the labels in a cell of train; None where nothing does.
        drawn: True where val was held out of train at random, so that a changed table gives
            another val.
        contents: a number of the bytes of each picture of train, and of val; -1: not known. Empty
            where the pictures were not scanned.
    """

    train: Manifest
    val: Manifest
    notes: tuple[str, ...]
    skipped: tuple[Skipped, ...] = ()
    rare: tuple[str, ...] = ()
    delimiter: str | None = None
    drawn: bool = False
    contents: tuple[NDArray[np.int64], ...] = field(default=(), compare=False)
