"""`mlfinetune apply-fixes`: table, reviewed suspects -> a corrected copy of the table."""

import gzip
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import BinaryIO, cast

from mlfinetune.config import load_config
from mlfinetune.data.fixed_copy import list_delimiters, verify_fixed, write_fixed
from mlfinetune.data.fixes import Fixes, Tally, plan_fixes
from mlfinetune.data.load import build_source_options
from mlfinetune.data.named_pictures import Pictures
from mlfinetune.data.paths import check_paths
from mlfinetune.data.readers.columns import LabelLayout
from mlfinetune.data.readers.csv_table import Rows, read_with_rows
from mlfinetune.data.readers.decisions import read_decisions
from mlfinetune.data.readers.detect import READERS, detect_format
from mlfinetune.data.rows import raise_faults
from mlfinetune.data.table import SourceOptions, Table
from mlfinetune.errors import ConfigError, DataError
from mlfinetune.location import FORMATS, find_ending, is_url
from mlfinetune.runs import directory
from mlfinetune.runs.moved import find_again
from mlfinetune.runtime.log import RunLog
from mlfinetune.storage.atomic import replacing_file, try_writing_file
from mlfinetune.text import display_path, pluralize

_OF_RUN = (
    "; a list from a run belongs into the run's folder: there the run's config says what pictures "
    "and labels are called"
)


@dataclass(frozen=True)
class ApplyRequest:
    """Arguments of `mlfinetune apply-fixes`.

    Attributes:
        table: CSV or TSV table of the data.
        decisions: reviewed suspects.csv.
        output: the file to write; it may not be there yet.
    """

    table: Path
    decisions: Path
    output: Path


def run(request: ApplyRequest, log: RunLog) -> Tally:
    """Write a corrected copy of the table; the table itself is never changed.

    Raises:
        ConfigError: an output that cannot be used.
        DataError: a table or decisions that cannot be read, or do not fit each other.
    """
    _require_table(request.table)
    _require_output(request)
    decisions = read_decisions(request.decisions)
    options, roots = _find_run(request.decisions, log)
    table, rows = read_with_rows(request.table, options)
    if rows.tasks is not None:
        raise DataError(
            f"{request.table} is an export of Label Studio, whose rows are annotations, not "
            f"pictures: correct the labels there, or in the table that `mlfinetune split "
            f"{request.table} -o table.csv` writes"
        )
    for note in table.notes:
        log.say(note)
    raise_faults(table, [fault for fault in table.faults if not fault.picture])
    layout = rows.columns.layout
    pictures = Pictures(table)
    if roots or not all(pictures.find(one.image) for one in decisions if one.accepted):
        _add_paths(pictures, table, options)
    pictures.roots, pictures.by_path_alone = roots, options.partial
    fixes = plan_fixes(table, layout, pictures, decisions, options)
    _require_match(request, fixes, is_of_run=bool(roots))
    emptied = _write(request, options, table, rows, layout, fixes, log)
    if emptied and layout.lists and layout.value is None:
        log.say(
            f"{pluralize(emptied, 'picture')} without any label now: data.empty_labels says what "
            f"that means ({options.empty_labels})"
        )
    return fixes.tally


# ---- checks -----------------------------------------------------------------------------------


def _require_table(path: Path) -> None:
    """Raise DataError for anything but a table in text."""
    if not path.exists():
        raise DataError(f"no such table: {path}; one behind a URL has to be downloaded")
    format = detect_format(path)
    if path.is_dir() or format != "csv":
        kind = "a folder" if path.is_dir() else READERS[format][0]
        raise DataError(
            f"{path} is read as {kind}: only a table in CSV or TSV is corrected. "
            f"`mlfinetune split {path} -o table.csv` writes one of any data, which then takes its "
            f"place; or correct the labels where they were made (a folder: move the files)"
        )


def _require_output(request: ApplyRequest) -> None:
    """Raise ConfigError for an output that is there already, or that would be read otherwise."""
    output = request.output
    if output.exists() or output.is_symlink():
        same = [path for path in (request.table, request.decisions) if _are_same(path, output)]
        why = "is what is read, and is never changed" if same else "is there already"
        raise ConfigError(f"--output {output} {why}; choose another name")
    endings = [find_ending(path).removesuffix(".gz") for path in (request.table, output)]
    if FORMATS.get(endings[1]) != "csv" or (".tsv" in endings and endings[0] != endings[1]):
        raise ConfigError(f"--output {output}: wanted a name that ends in {endings[0]}")
    try_writing_file(output)


def _are_same(path: Path, output: Path) -> bool:
    return output.exists() and path.exists() and path.samefile(output)


def _require_match(request: ApplyRequest, fixes: Fixes, *, is_of_run: bool) -> None:
    """Raise DataError where no accepted row could be applied.

    Args:
        request: the arguments.
        fixes: what was found of the list.
        is_of_run: the list lies in the folder of a run, whose config says how to read the table.
    """
    tally = fixes.tally
    if tally.lost and len(tally.lost) + tally.rejected + tally.undecided == tally.rows:
        raise DataError(
            f"nothing of {request.decisions} fits {request.table}; is it the list of another "
            f"table? {tally.lost[0]}{'' if is_of_run else _OF_RUN}"
        )


# ---- the data ---------------------------------------------------------------------------------


def _find_run(decisions: Path, log: RunLog) -> tuple[SourceOptions, tuple[str, ...]]:
    """Return how the run in whose folder the decisions lie reads tables, and its pictures' folder.

    After a move that folder is looked for beside the run too. Without a run it is not known.

    Raises:
        ConfigError: the run's config cannot be read.
    """
    roots = _read_root(decisions.with_name(directory.METRICS))
    for folder in (decisions.absolute().parent, decisions.absolute().parent.parent):
        file = folder / directory.CONFIG
        if (decisions.with_name(directory.SCORES)).is_file() and file.is_file():
            config = load_config(file)
            options = build_source_options(config)
            log.say(f"columns and label names as in {display_path(file)}")
            if roots and not is_url(roots[0]) and config.output is not None:
                moved = find_again(Path(roots[0]), config.output, folder)
                roots = tuple(dict.fromkeys([*roots, *([] if moved is None else [str(moved)])]))
            return replace(options, format="csv", allow_outside_root=True), roots
    return SourceOptions(format="csv", allow_outside_root=True), roots


def _read_root(metrics: Path) -> tuple[str, ...]:
    """Return the folder that the names of a run's pictures start from; (): not known."""
    try:
        return (str(json.loads(metrics.read_bytes())["images_root"]),)
    except (OSError, ValueError, KeyError, TypeError):  # the list lies elsewhere, or is older
        return ()


def _add_paths(pictures: Pictures, table: Table, options: SourceOptions) -> None:
    """Let pictures be found by their paths too.

    A run names a picture by its path below the folder of all its tables, or by the file that it
    has found for a name.
    """
    on_disk = check_paths(replace(table, root=options.images or table.root), options)
    pictures.add_names(on_disk.names)
    paths = (on_disk.path(row) for row in range(len(table)))
    pictures.add_paths([path if is_url(path) else os.path.abspath(path) for path in paths])


def _write(
    request: ApplyRequest,
    options: SourceOptions,
    table: Table,
    rows: Rows,
    layout: LabelLayout,
    fixes: Fixes,
    log: RunLog,
) -> int:
    """Write the copy and read it again; return the number of pictures that lost their last label.

    Raises:
        DataError: no way to write it is read as planned.
    """
    error: DataError | None = None
    output = request.output
    beside = output.absolute().parent  # so that it is renamed, and not copied
    with TemporaryDirectory(prefix=".mlfinetune-", suffix=".tmp", dir=beside) as folder:
        for delimiter in list_delimiters(layout):
            copy = Path(folder) / output.name
            try:
                with _writing(copy) as out:
                    with_sign = replace(layout, delimiter=delimiter)
                    write_fixed(request.table, rows, with_sign, fixes, out)
                emptied = verify_fixed(table, copy, options, fixes)
            except DataError as problem:
                error = problem
                continue
            if delimiter != layout.delimiter:
                log.say(f"labels of a cell are now separated by '{delimiter}'")
            with replacing_file(output) as temporary:
                copy.replace(temporary)
            return emptied
    assert error is not None
    raise error


@contextmanager
def _writing(path: Path) -> Iterator[BinaryIO]:
    """Open a new file for bytes, which are packed where its name ends in .gz."""
    with path.open("wb") as file:
        if path.name.lower().endswith(".gz"):
            with gzip.GzipFile(filename="", fileobj=file, mode="wb", mtime=0) as packed:
                yield cast(BinaryIO, packed)
        else:
            yield file
