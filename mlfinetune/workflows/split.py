"""`mlfinetune split`: table -> a side for every image -> a copy of the table that names it."""

import csv
import os
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mlfinetune.data.checks import Balance, LabelShare
from mlfinetune.data.read import read_table
from mlfinetune.data.readers.columns import IMAGE_COLUMNS, LABEL_COLUMNS
from mlfinetune.data.readers.csv_table import copy_with_column
from mlfinetune.data.rows import drop_faulty, raise_faults
from mlfinetune.data.stratify import assign_sides
from mlfinetune.data.table import SourceOptions, Table
from mlfinetune.data.targets import NEGATIVE, POSITIVE, UNKNOWN
from mlfinetune.errors import ConfigError, DataError
from mlfinetune.location import is_url
from mlfinetune.runtime.log import RunLog
from mlfinetune.storage.atomic import writing_text

COLUMN = "split"
_DELIMITER = "|"
_STATES = {POSITIVE: "1", NEGATIVE: "0", UNKNOWN: ""}


@dataclass(frozen=True)
class SplitRequest:
    """What to split, and how."""

    data: Path
    val: float
    test: float
    group_by: str | None
    images: Path | None
    output: Path | None
    seed: int


@dataclass(frozen=True)
class SplitResult:
    """The table that was written, and how even it is."""

    file: Path
    balance: Balance


def run(asked: SplitRequest, log: RunLog) -> SplitResult:
    """Write a table with a split column; the data stays as it is.

    Raises:
        MlfinetuneError: data that cannot be split, or a file that is there already.
    """
    names, fractions = _wanted(asked)
    options = SourceOptions(group_by=asked.group_by, images=asked.images, allow_outside_root=True)
    table = read_table(asked.data, options)
    output = _output(asked, table)
    raise_faults(table, [fault for fault in table.faults if not fault.picture])
    if table.splits is not None:
        raise DataError(f"{asked.data} tells train from val already; train on it as it is")
    if asked.group_by is not None and table.groups is None:
        raise ConfigError(f"--group-by {asked.group_by}: {asked.data} has no columns")
    for note in table.notes:
        log.say(note)
    if table.faults:
        missing = len(drop_faulty(table)[1])
        count = "1 picture is" if missing == 1 else f"{missing} pictures are"
        log.say(f"warning: {count} not where the table says")
    if len(table) < len(names):
        raise DataError(f"{asked.data}: {len(table)} images are too few for {len(names)} sides")
    side = assign_sides(table.targets, table.groups, fractions, asked.seed)
    for at, name in enumerate(names):
        if at not in side:
            raise DataError(f"{asked.data}: groups ({asked.group_by}) are too large for {name}")
    root = _write(output, table, [names[at] for at in side], options)
    if root != output.absolute().parent:
        log.say(f"its paths are relative to {root}: set data.images to it")
    return SplitResult(output, _balance(table, side, names, asked.seed))


def _output(asked: SplitRequest, table: Table) -> Path:
    """Where the table is to go: beside the one that it copies, else beside the data."""
    assert isinstance(table.origin, Path)
    beside = table.origin if table.format == "csv" else asked.data
    stem = beside.name if beside.is_dir() else beside.stem
    output = asked.output or beside.with_name(f"{stem}.split.csv")
    if output.suffix.lower() != ".csv":
        raise ConfigError(f"--output {output}: wanted a name that ends in .csv")
    if output.exists():
        raise ConfigError(f"{output} is there already; choose another with --output")
    return output


def _wanted(asked: SplitRequest) -> tuple[list[str], list[float]]:
    """The sides, and the shares of those after train."""
    if not (asked.val > 0 and asked.test >= 0 and asked.val + asked.test < 1):
        raise ConfigError(
            f"--val {asked.val:g} --test {asked.test:g}: wanted shares above 0 that leave some "
            f"images to train on"
        )
    shares = {"val": asked.val, "test": asked.test}
    shares = {name: share for name, share in shares.items() if share}
    return ["train", *shares], list(shares.values())


def _write(output: Path, table: Table, side: Sequence[str], options: SourceOptions) -> Path:
    """Write the table; the folder that its paths are relative to."""
    assert isinstance(table.root, Path)
    assert isinstance(table.origin, Path)
    root, folder = table.root.absolute(), output.absolute().parent
    if table.format == "csv":
        with writing_text(output) as file:
            copy_with_column(table.origin, options, COLUMN, _by_name(table.names, side), file)
        return root
    base = folder if root.is_relative_to(folder) else root
    prefix = os.path.relpath(root, base)
    listed = not any(_DELIMITER in name for name in table.labels.names)
    header = ["labels", "unknown"] if listed else _headers(table)
    with writing_text(output) as file:
        writer = csv.writer(file)
        writer.writerow(["image", *header, COLUMN])
        for start, block in table.targets.blocks():
            for row, states in enumerate(block, start):
                name = table.names[row]
                name = name if is_url(name) else os.path.normpath(os.path.join(prefix, name))
                cells = _lists(table, states) if listed else [_STATES[x] for x in states.tolist()]
                writer.writerow([name, *cells, side[row]])
    return base


def _lists(table: Table, states: NDArray[np.int8]) -> list[str]:
    """The labels that hold, and the unknown ones; the delimiter stays, so that it is detected."""
    lists = []
    for state in (POSITIVE, UNKNOWN):
        names = [table.labels.names[at] for at in np.flatnonzero(states == state)]
        lists.append(_DELIMITER.join(names) + _DELIMITER * (len(names) == 1))
    return lists


def _headers(table: Table) -> tuple[str, ...]:
    """The labels as columns, where they hold the delimiter."""
    names = table.labels.names
    taken = {*IMAGE_COLUMNS, *LABEL_COLUMNS, COLUMN, "is_valid"}
    if clash := [name for name in names if name.casefold() in taken]:
        raise DataError(
            f"{table.origin}: some labels hold '{_DELIMITER}', so each would have a column; "
            f"'{clash[0]}' is the name of another one"
        )
    return names


def _by_name(names: Sequence[str], side: Sequence[str]) -> Callable[[str], str]:
    """The side of an image as its cell names it: names may be spelled otherwise on disk."""
    of = {os.path.normpath(n): s for n, s in zip(names, side, strict=True)}
    forms = {unicodedata.normalize("NFC", name): s for name, s in of.items()}

    def find(cell: str) -> str:
        name = os.path.normpath(cell)
        return of[name] if name in of else forms[unicodedata.normalize("NFC", name)]

    return find


def _balance(table: Table, side: NDArray[np.int8], names: Sequence[str], seed: int) -> Balance:
    """Held out is whatever is not train; chance is a random split of the same size."""
    held_out = side > 0
    numbers = np.arange(len(side))
    if table.groups is not None:
        numbers = np.unique(np.array(table.groups), return_inverse=True)[1]
    order = np.random.default_rng(seed).permutation(numbers.max() + 1)[numbers]
    chance = np.zeros(len(side), bool)
    chance[np.argsort(order, kind="stable")[: held_out.sum()]] = True
    positives, _, _ = table.targets.counts()
    shares = [
        table.targets.take(np.flatnonzero(chosen)).counts()[0] / np.maximum(positives, 1)
        for chosen in (held_out, chance)
    ]
    rows = zip(table.labels.names, positives.tolist(), *(s.tolist() for s in shares), strict=True)
    sizes = tuple(np.bincount(side, minlength=len(names)).tolist())
    balance = Balance(tuple(names), sizes, 0.0, tuple(LabelShare(*row) for row in rows))
    return replace(balance, wanted=sum(sizes[1:]) / sum(sizes))
