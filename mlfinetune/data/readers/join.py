"""Several tables of one data set become one Table: split folders, split files, nested folders.

{train/: Table, val/: Table}          -> one Table with splits, names below the common root
{cats/: Table, dogs/: Table}          -> one Table without splits
"""

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from mlfinetune.data.labels import align
from mlfinetune.data.readers.cells import quote_names
from mlfinetune.data.table import Fault, Table
from mlfinetune.data.targets import LabelSpace, Targets
from mlfinetune.errors import DataError
from mlfinetune.location import Location, is_url


def join_tables(
    path: Path,
    tables: Mapping[str, Table],
    splits: Mapping[str, str] | None,
    notes: Iterable[str] = (),
) -> Table:
    """Return several tables as one, with names relative to a common root.

    Args:
        path: the folder that holds all of them.
        tables: `train/` or `train.csv` -> the table in this folder, or of this file.
        splits: `train/` or `train.csv` -> its split; None: each table has its own, or none has.
        notes: go before those of the tables.

    Raises:
        DataError: some tables say which split or group a row is in, and some do not.
    """
    parts = list(tables.values())
    root = _find_common_root(path, parts)
    space = LabelSpace(tuple(dict.fromkeys(label for part in parts for label in part.labels.names)))
    blocks = (block for part in parts for _, block in align(part, space).targets.blocks())
    own = (f"{name}: {note}" for name, part in tables.items() for note in part.notes)
    groups = {name: part.groups for name, part in tables.items()}
    return Table(
        origin=path,
        format=parts[0].format,
        root=root,
        names=tuple(_prefix_names(root, parts)),
        targets=Targets.pack(blocks, len(space)),
        unnamed=np.concatenate([part.unnamed for part in parts]),
        labels=space,
        splits=_join_splits(path, tables, splits),
        delimiter=parts[0].delimiter,
        other_columns=tuple({name for part in parts for name in part.other_columns}),
        choices=tuple(one for one in parts[0].choices if all(one in p.choices for p in parts)),
        notes=(*notes, *own),
        groups=_join_cells(path, groups, "column of groups (data.group_by)"),
        faults=tuple(_shift_faults(tables)),
    )


def _join_splits(
    path: Path, tables: Mapping[str, Table], splits: Mapping[str, str] | None
) -> tuple[str, ...] | None:
    """Return the split of each row: that of its table, else those that the tables have.

    Raises:
        DataError: as `join_tables`.
    """
    if splits is not None:
        return tuple(splits[name] for name, part in tables.items() for _ in part.names)
    own = {name: part.splits for name, part in tables.items()}
    return _join_cells(path, own, "split column")


def _join_cells(
    path: Path, cells: Mapping[str, tuple[str, ...] | None], column: str
) -> tuple[str, ...] | None:
    """Return the cells of a column of all tables; None where no table has the column.

    Raises:
        DataError: some tables have it, and some do not.
    """
    lacking = [name for name, own in cells.items() if own is None]
    if len(lacking) == len(cells):
        return None
    if lacking:
        raise DataError(
            f"{path}: no {column} in {quote_names(lacking)}, and one in the other tables; give "
            f"each of them one, or none"
        )
    return tuple(cell for own in cells.values() for cell in own or ())


def _shift_faults(tables: Mapping[str, Table]) -> Iterator[Fault]:
    """Yield the faults of all tables, with rows counted from the first table on."""
    start = 0
    for name, part in tables.items():
        prefix = name if name.endswith("/") else f"{name} "
        for fault in part.faults:
            row = None if fault.row is None else start + fault.row
            yield replace(fault, place=f"{prefix}{fault.place}", row=row)
        start += len(part)


def _find_common_root(path: Path, parts: Iterable[Table]) -> Location:
    """Return `path`; if a root is outside of it (data.images, the cache), the folder above all."""
    roots = [part.root for part in parts]
    if all(isinstance(root, Path) and root.is_relative_to(path) for root in roots):
        return path
    if len(set(roots)) == 1:  # data.images
        return roots[0]
    try:
        return Path(os.path.commonpath([os.path.abspath(root) for root in roots]))
    except ValueError:  # on several drives of Windows
        return path


def _prefix_names(root: Location, parts: Iterable[Table]) -> Iterator[str]:
    """Yield the names of all tables, relative to `root`; URLs and empty names stay as they are."""
    for part in parts:
        prefix = _find_prefix(part.root, root)
        for name in part.names:
            if not name or is_url(name):
                yield name
            else:
                yield os.path.normpath(os.path.join(prefix, name))


def _find_prefix(folder: Location, root: Location) -> str:
    """Return a folder relative to the root; on another drive of Windows the folder itself."""
    try:
        return os.path.relpath(folder, root)
    except ValueError:
        return os.path.abspath(folder)
