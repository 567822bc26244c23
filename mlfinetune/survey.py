"""The nouns of looking at data, before a run fixes what is learnt from it.

    file or folder + SourceOptions -> Table with its Faults -> a Manifest of `records`, and Skipped
    pictures -> Picture            tables and pictures -> Finding            a split -> Balance

Frozen dataclasses that load neither numpy nor torch. Shapes: N images, L labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from mlfinetune.names import Location

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from mlfinetune.data.targets import Targets
    from mlfinetune.records import LabelSpace


@dataclass(frozen=True)
class SourceOptions:
    """How to read a table or folder; the keys of the config's `data` section say what each does."""

    format: str = "auto"
    images: Location | None = None
    image_column: str | None = None
    label_column: str | None = None
    label_columns: tuple[str, ...] | None = None
    label_delimiter: str | None = None
    group_by: str | None = None
    folder_labels: str = "leaf"
    difficult: str = "ignore"
    empty_labels: str = "negative"
    unknown: str = "ignore"
    rename_labels: tuple[tuple[str, str], ...] = ()
    ignore_labels: tuple[str, ...] = ()
    allow_outside_root: bool = False


@dataclass(frozen=True)
class Fault:
    """What is wrong with a row, or with the picture that it names.

    Attributes:
        place: where it stands, as `line 12`.
        text: what is wrong.
        row: its row in the table, where it became one.
        picture: True where the row is sound and its picture is not: `bad_images` decides.
    """

    place: str
    text: str
    row: int | None = None
    picture: bool = False

    def __str__(self) -> str:
        return f"{self.place}: {self.text}"


@dataclass(frozen=True)
class Table:
    """What one table or folder says, before a run fixes the columns.

    Attributes:
        origin: the file, folder or URL.
        format: what it was read as.
        root: the folder, or the URL, that names are relative to.
        names: N paths as they stand there.
        targets: (N, L) in {1, 0, -1}.
        unnamed: (N,) int8: what a row says of a label that the table does not have: 0 where
            rows list the labels that hold, -1 where nothing is said.
        labels: what the L columns mean.
        lines: (N,) the line of each row, where there are lines; else names say where a row is.
        splits: N of `train`, `val`, `test`, or None where nothing tells them.
        groups: N cells of the column that `group_by` names.
        delimiter: what separates the labels in a cell, given or detected, where anything does.
        notes: what was seen and decided, for the user to read.
        faults: what is wrong with it.
    """

    origin: Location
    format: str
    root: Location
    names: tuple[str, ...]
    targets: Targets
    unnamed: NDArray[np.int8]
    labels: LabelSpace
    lines: NDArray[np.int64] | None = None
    splits: tuple[str, ...] | None = None
    groups: tuple[str, ...] | None = None
    delimiter: str | None = None
    notes: tuple[str, ...] = ()
    faults: tuple[Fault, ...] = ()

    def __len__(self) -> int:
        return len(self.names)

    def place(self, row: int) -> str:
        """Where a row stands, as `line 12`."""
        return self.names[row] if self.lines is None else f"line {self.lines[row]}"

    def fault(self, row: int, text: str, picture: bool = False) -> Fault:
        """A fault of a row, or of its picture."""
        return Fault(self.place(row), text, row, picture)

    def take(self, rows: Sequence[int] | NDArray[np.int64]) -> Table:
        """Those rows, in that order."""
        rows = [int(row) for row in rows]
        return replace(
            self,
            names=tuple(self.names[row] for row in rows),
            targets=self.targets.take(rows),
            unnamed=self.unnamed[rows],
            lines=None if self.lines is None else self.lines[rows],
            splits=self.splits and tuple(self.splits[row] for row in rows),
            groups=self.groups and tuple(self.groups[row] for row in rows),
        )


@dataclass(frozen=True)
class Skipped:
    """A picture that is not used, where it stands in its table, and why."""

    name: str
    place: str
    reason: str


@dataclass(frozen=True)
class Picture:
    """What one look at a picture file found, every pixel of it decoded.

    Attributes:
        width, height: in pixels, as stored, before any turn.
        format: Pillow's name: JPEG, MPO, PNG, WEBP, GIF, BMP or TIFF.
        mode: Pillow's name of the samples as stored: RGB, L, CMYK, I;16 ...
        frames_dropped: the file holds more frames or pages than the first.
        turned: EXIF asks for a turn or a mirror image.
        digest: SHA-256 of the file, in hex.
        dhash: 128-bit difference hash of what is seen, in hex: signs of the horizontal, then of
            the vertical steps between the cells of a grey thumbnail.
    """

    width: int
    height: int
    format: str
    mode: str
    frames_dropped: bool
    turned: bool
    digest: str
    dhash: str


@dataclass(frozen=True)
class Finding:
    """Something about a data set that its owner should know.

    Attributes:
        severity: `error` where training would fail or its numbers mislead, else `warning`.
        kind: a word for programs, as `unreadable`.
        message: a line for people.
        items: what it is about, one line each.
    """

    severity: str
    kind: str
    message: str
    items: tuple[str, ...] = ()


@dataclass(frozen=True)
class LabelShare:
    """One label's positives, the share of them held out, and that of a random split."""

    label: str
    positives: int
    share: float
    by_chance: float


@dataclass(frozen=True)
class Balance:
    """How a split came out.

    Attributes:
        sides: train, val and perhaps test.
        sizes: images on each.
        wanted: the share to hold out, of all images.
        rows: a label each.
    """

    sides: tuple[str, ...]
    sizes: tuple[int, ...]
    wanted: float
    rows: tuple[LabelShare, ...]

    @property
    def worst(self) -> tuple[float, float]:
        """The largest distance from `wanted` among labels with positives: here, and by chance."""
        rows = [row for row in self.rows if row.positives]
        return (
            max((abs(row.share - self.wanted) for row in rows), default=0.0),
            max((abs(row.by_chance - self.wanted) for row in rows), default=0.0),
        )
