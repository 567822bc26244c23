"""`mlfinetune split`: table -> a side for every image -> a copy of the table that names it."""

import csv
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mlfinetune import rundir
from mlfinetune.data.manifest import read_table, sides
from mlfinetune.data.rows import drop, refuse
from mlfinetune.data.sources.csv_table import copy_with_column
from mlfinetune.errors import ConfigError, DataError
from mlfinetune.records import POSITIVE, UNKNOWN, Balance, LabelShare, SourceOptions, Table
from mlfinetune.runlog import RunLog

COLUMN = "split"
_DELIMITERS = "|;,"


@dataclass(frozen=True)
class Asked:
    """What to split, and how."""

    data: Path
    val: float
    test: float
    group_by: str | None
    images: Path | None
    output: Path | None
    seed: int


@dataclass(frozen=True)
class Done:
    """The table that was written, and how even it is."""

    file: Path
    balance: Balance


def run(asked: Asked, log: RunLog) -> Done:
    """Write a table with a split column; the data stays as it is.

    Raises:
        MlfinetuneError: data that cannot be split, or a file that is there already.
    """
    names, fractions = _wanted(asked)
    output = asked.output or asked.data.with_name(f"{asked.data.stem}.split.csv")
    if output.exists():
        raise ConfigError(f"{output} is there already; choose another with --output")
    options = SourceOptions(group_by=asked.group_by, images=asked.images, allow_outside_root=True)
    table = read_table(asked.data, options)
    refuse(table, [fault for fault in table.faults if not fault.picture])
    if table.splits is not None:
        raise DataError(f"{asked.data} tells train from val already; train on it as it is")
    for note in table.notes:
        log.say(note)
    if table.faults:
        log.say(f"warning: {len(drop(table)[1])} pictures are not where the table says")
    if len(table) < len(names):
        raise DataError(f"{asked.data}: {len(table)} images are too few for {len(names)} sides")
    side = sides(table.targets, table.groups, fractions, asked.seed)
    _write(output, table, [names[at] for at in side], options)
    if table.root.absolute() != output.absolute().parent:
        log.say(f"its paths are relative to {table.root}: set data.images to it")
    return Done(output, _balance(table, side, names, asked.seed))


def _wanted(asked: Asked) -> tuple[list[str], list[float]]:
    """The sides, and the shares of those after train."""
    shares = {"val": asked.val, "test": asked.test}
    shares = {name: share for name, share in shares.items() if share}
    if not shares or sum(shares.values()) >= 1:
        raise ConfigError(
            f"--val {asked.val:g} --test {asked.test:g}: wanted shares above 0 that leave some "
            f"images to train on"
        )
    return ["train", *shares], list(shares.values())


def _write(output: Path, table: Table, side: Sequence[str], options: SourceOptions) -> None:
    of = {os.path.normpath(name): s for name, s in zip(table.names, side, strict=True)}
    with rundir.writing(output) as file:
        if table.format == "csv":
            copy_with_column(
                table.origin, options, COLUMN, lambda name: of[os.path.normpath(name)], file
            )
            return
        writer = csv.writer(file)
        delimiter = next(
            (d for d in _DELIMITERS if not any(d in x for x in table.labels.names)), ""
        )
        if not delimiter:
            raise DataError(f"{table.origin}: labels hold each of {_DELIMITERS}: none can separate")
        writer.writerow(["image", "labels", "unknown", COLUMN])
        for start, block in table.targets.blocks():
            for row, states in enumerate(block, start):
                lists = [_cell(table, states == state, delimiter) for state in (POSITIVE, UNKNOWN)]
                writer.writerow([table.names[row], *lists, side[row]])


def _cell(table: Table, chosen: NDArray[np.bool_], delimiter: str) -> str:
    """Labels in one cell; with one alone the delimiter still shows, so that it is detected."""
    names = [table.labels.names[at] for at in np.flatnonzero(chosen)]
    return delimiter.join(names) + delimiter * (len(names) == 1)


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
