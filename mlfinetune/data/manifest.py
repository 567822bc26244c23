"""The examples of a run: a Manifest a side, and what was decided on the way to them.

root, names, targets, labels -> Manifest        train and val -> Splits
"""

import hashlib
from dataclasses import dataclass

from mlfinetune.data.table import Skipped
from mlfinetune.data.targets import LabelSpace, Targets
from mlfinetune.location import Location, join_location


@dataclass(frozen=True)
class Manifest:
    """The examples of one split.

    Attributes:
        root: the folder, or the URL, that names are relative to.
        names: N paths as the user wrote them, relative to `root`.
        targets: (N, L) in {1, 0, -1}.
        labels: what the L columns mean.
    """

    root: Location
    names: tuple[str, ...]
    targets: Targets
    labels: LabelSpace

    def __len__(self) -> int:
        return len(self.names)

    def path(self, index: int) -> str:
        """Where example `index` lies."""
        return join_location(self.root, self.names[index])

    def take(self, rows: list[int]) -> "Manifest":
        """The examples `rows`, in that order."""
        names = tuple(self.names[row] for row in rows)
        return Manifest(self.root, names, self.targets.take(rows), self.labels)


def digest_manifest(manifest: Manifest) -> str:
    """SHA-256 over names, labels and targets: do two runs speak of the same examples?"""
    digest = hashlib.sha256(
        "\0".join((*manifest.names, *manifest.labels.names)).encode(errors="surrogatepass")
    )
    for _, block in manifest.targets.blocks():
        digest.update(block.tobytes())
    return digest.hexdigest()


@dataclass(frozen=True)
class Splits:
    """Both sides of a run, in one label order, and what to tell the user about them.

    Attributes:
        train, val: the examples.
        notes: what was seen and decided.
        skipped: pictures that were found and are not used because they cannot be.
        rare: labels left out for `min_positives`.
        delimiter: what separates the labels in a cell of train, where anything does.
        drawn: val was held out of train, so that another table would give another val.
    """

    train: Manifest
    val: Manifest
    notes: tuple[str, ...]
    skipped: tuple[Skipped, ...] = ()
    rare: tuple[str, ...] = ()
    delimiter: str | None = None
    drawn: bool = False
