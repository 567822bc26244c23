"""`mlfinetune split`: table -> a side for every image -> a copy of the table with that column."""

import csv
import os
import unicodedata
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mlfinetune.data.checks import Balance, LabelShare
from mlfinetune.data.manifest import number_groups
from mlfinetune.data.read import read_table
from mlfinetune.data.readers.column_names import IMAGE_COLUMNS, LABEL_COLUMNS
from mlfinetune.data.readers.csv_table import UncopiableError, copy_with_column
from mlfinetune.data.rows import drop_faulty, raise_faults
from mlfinetune.data.stratify import assign_sides
from mlfinetune.data.table import SourceOptions, Table
from mlfinetune.data.targets import NEGATIVE, POSITIVE, UNKNOWN
from mlfinetune.errors import ConfigError, DataError
from mlfinetune.location import is_url, to_slashes
from mlfinetune.runtime.log import RunLog
from mlfinetune.storage.atomic import try_writing_file, writing_text
from mlfinetune.text import pluralize

COLUMN = "split"
_DELIMITER = "|"
_STATES = {POSITIVE: "1", NEGATIVE: "0", UNKNOWN: ""}


@dataclass(frozen=True)
class SplitRequest:
    """Arguments of `mlfinetune split`.

    Attributes:
        data: table or folder.
        val, test: shares of the images to hold out.
        group_by: column; rows with the same value stay on one side.
        images: root of the table's paths; None: the table's folder.
        output: the CSV file; None: NAME.split.csv beside the data.
        seed: of the random choices.
    """

    data: Path
    val: float
    test: float
    group_by: str | None
    images: Path | None
    output: Path | None
    seed: int


@dataclass(frozen=True)
class SplitResult:
    """The table that was written, and how evenly its labels are split."""

    file: Path
    balance: Balance


def run(request: SplitRequest, log: RunLog) -> SplitResult:
    """Write a copy of the table with a split column; the data itself is not changed.

    Raises:
        ConfigError: shares, a column or an output that cannot be used.
        DataError: data that cannot be split.
    """
    names, fractions = _choose_sides(request)
    options = SourceOptions(
        group_by=request.group_by, images=request.images, allow_outside_root=True
    )
    table = read_table(request.data, options)
    output = _choose_output(request, table)
    _require_splittable(request, table)
    _say_notes(table, log)
    if len(table) < len(names):
        count = pluralize(len(table), "image")
        raise DataError(f"{request.data}: {count}: too few for {len(names)} sides")
    side = assign_sides(table.targets, table.groups, fractions, request.seed)
    for number, name in enumerate(names):
        if number not in side:
            raise DataError(f"{request.data}: groups ({request.group_by}) are too large for {name}")
    root = _write_table(output, table, [names[number] for number in side], options)
    if root != output.absolute().parent:
        log.say(f"its paths are relative to {root}: set data.images to it")
    return SplitResult(output, _measure_balance(table, side, names, request.seed))


# ---- checks -----------------------------------------------------------------------------


def _choose_sides(request: SplitRequest) -> tuple[list[str], list[float]]:
    """Return names and shares: --val 0.2 --test 0.1 -> [train, val, test], [0.2, 0.1]."""
    if not (request.val > 0 and request.test >= 0 and request.val + request.test < 1):
        raise ConfigError(
            f"--val {request.val:g} --test {request.test:g}: wanted shares above 0 that leave some "
            f"images to train on"
        )
    shares = {"val": request.val, "test": request.test}
    shares = {name: share for name, share in shares.items() if share}
    return ["train", *shares], list(shares.values())


def _choose_output(request: SplitRequest, table: Table) -> Path:
    """Return the file to write: beside the CSV table that is copied, else beside the data."""
    assert isinstance(table.origin, Path)
    beside = table.origin if table.format == "csv" else request.data
    stem = beside.name if beside.is_dir() else beside.stem
    output = request.output or beside.with_name(f"{stem}.split.csv")
    if output.suffix.lower() != ".csv":
        raise ConfigError(f"--output {output}: wanted a name that ends in .csv")
    if output.exists():
        raise ConfigError(f"{output} is there already; choose another with --output")
    try_writing_file(output)
    return output


def _require_splittable(request: SplitRequest, table: Table) -> None:
    """Raise an error for bad rows, a table with a split, or --group-by without columns."""
    raise_faults(table, [fault for fault in table.faults if not fault.picture])
    if table.splits is not None:
        raise DataError(
            f"{request.data} tells train from val already; train on it as it is, or take its "
            f"split out of a copy of the table to make another one"
        )
    if request.group_by is not None and table.groups is None:
        raise ConfigError(f"--group-by {request.group_by}: {request.data} has no columns")


def _say_notes(table: Table, log: RunLog) -> None:
    for note in table.notes:
        log.say(note)
    if table.faults:
        missing = len(drop_faulty(table)[1])
        count = "1 picture is" if missing == 1 else f"{missing} pictures are"
        log.say(f"warning: {count} not where the table says")


# ---- the table --------------------------------------------------------------------------


def _write_table(output: Path, table: Table, sides: Sequence[str], options: SourceOptions) -> Path:
    """Write the table; return the folder that its paths are relative to.

    A CSV table is copied with one more column. Any other format becomes a CSV file with its labels
    in lists (`cat|dog`), or with a column for each label where a label holds the delimiter. So
    does a table whose pictures were found by their names, since a copy would name them as it does,
    and Label Studio's, whose rows are annotations.
    """
    assert isinstance(table.root, Path)
    assert isinstance(table.origin, Path)
    root, folder = table.root.absolute(), output.absolute().parent
    if table.format == "csv":
        with suppress(UncopiableError), writing_text(output) as file:
            find_side = _build_side_finder(table.names, sides)
            copy_with_column(table.origin, options, COLUMN, find_side, file)
            return root
    base = folder if root.is_relative_to(folder) else root
    prefix = os.path.relpath(root, base)
    as_lists = not any(_DELIMITER in name for name in table.labels.names)
    header = ("labels", "unknown") if as_lists else _name_label_columns(table)
    with writing_text(output) as file:
        writer = csv.writer(file)
        writer.writerow(["image", *header, COLUMN])
        for start, block in table.targets.blocks():
            for row, states in enumerate(block, start):
                name = table.names[row]
                if not is_url(name):
                    name = to_slashes(os.path.normpath(os.path.join(prefix, name)))
                cells = _format_lists(table, states) if as_lists else _format_states(states)
                writer.writerow([name, *cells, sides[row]])
    return base


def _format_lists(table: Table, states: NDArray[np.int8]) -> list[str]:
    """Return the cells `labels` and `unknown` of one row.

    A single label is followed by the delimiter, `cat|`: reading then detects it even in a table
    where no image has two labels.
    """
    cells = []
    for state in (POSITIVE, UNKNOWN):
        names = [table.labels.names[column] for column in np.flatnonzero(states == state)]
        cell = _DELIMITER.join(names)
        if len(names) == 1:
            cell += _DELIMITER
        cells.append(cell)
    return cells


def _format_states(states: NDArray[np.int8]) -> list[str]:
    """Return a cell for each label: 1, 0, or blank for unknown."""
    return [_STATES[state] for state in states.tolist()]


def _name_label_columns(table: Table) -> tuple[str, ...]:
    """Return the labels as names of columns.

    Raises:
        DataError: a label has the name of another column.
    """
    names = table.labels.names
    taken = {*IMAGE_COLUMNS, *LABEL_COLUMNS, COLUMN, "is_valid"}
    if clash := [name for name in names if name.casefold() in taken]:
        raise DataError(
            f"{table.origin}: some labels hold '{_DELIMITER}', so each would have a column; "
            f"'{clash[0]}' is the name of another one"
        )
    return names


def _build_side_finder(names: Sequence[str], sides: Sequence[str]) -> Callable[[str], str]:
    """Return a function: the cell that names an image -> its side.

    A cell may be written otherwise than the file's name on disk: `./a.jpg` for `a.jpg`, or an
    accent as one character or as two (Unicode's NFC and NFD).

    The function raises UncopiableError where the picture was found by another name.
    """
    side_of = {os.path.normpath(name): side for name, side in zip(names, sides, strict=True)}
    by_form = {unicodedata.normalize("NFC", name): side for name, side in side_of.items()}

    def find_side(cell: str) -> str:
        name = os.path.normpath(cell)
        side = side_of.get(name) or by_form.get(unicodedata.normalize("NFC", name))
        if side is None:
            raise UncopiableError
        return side

    return find_side


def _measure_balance(
    table: Table, side: NDArray[np.int8], names: Sequence[str], seed: int
) -> Balance:
    """Compare each label's share held out with that of a random split of the same size.

    Held out is every image that is not in train. The random split keeps groups together too.
    """
    held_out = side > 0
    units = np.arange(len(side))
    if table.groups is not None:
        units = number_groups(table.groups)
    order = np.random.default_rng(seed).permutation(units.max() + 1)[units]
    by_chance = np.zeros(len(side), bool)
    by_chance[np.argsort(order, kind="stable")[: held_out.sum()]] = True
    positives, _, _ = table.targets.counts()
    shares = [
        table.targets.take(np.flatnonzero(chosen)).counts()[0] / np.maximum(positives, 1)
        for chosen in (held_out, by_chance)
    ]
    rows = zip(table.labels.names, positives.tolist(), *(s.tolist() for s in shares), strict=True)
    sizes = tuple(np.bincount(side, minlength=len(names)).tolist())
    wanted = sum(sizes[1:]) / sum(sizes)
    return Balance(tuple(names), sizes, wanted, tuple(LabelShare(*row) for row in rows))
