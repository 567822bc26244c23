"""Several tables that know different labels become one: what a table does not name is unknown.

each table -> settle_labels -> its labels as the config wants them; other labels are unknown
tables     -> unite_tables  -> one Table; pictures of several tables are joined by their paths
one Table  -> join_copies   -> pictures of several tables are joined by their bytes

Rows of one picture, before -> after:

    old.csv: cat 1, dog 0       new.csv: fox 1      -> cat 1, dog 0, fox 1
    old.csv: cat 1, dog 0       new.csv: cat blank  -> cat 1, dog 0
    old.csv: cat 1              new.csv: cat 0      -> a fault
"""

import os
from collections import defaultdict
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mlfinetune.data.labels import align, apply_label_options
from mlfinetune.data.table import Fault, SourceOptions, Table
from mlfinetune.data.targets import NEGATIVE, POSITIVE, UNKNOWN, LabelSpace, Targets
from mlfinetune.errors import DataError
from mlfinetune.location import Location, is_url, name_locations
from mlfinetune.text import list_labels, list_some, pluralize


def settle_labels(table: Table, options: SourceOptions) -> Table:
    """Return the table with its label options applied, and every label it lacks unknown.

    They are applied to each table by itself: `data.rename_labels` may join a label of one table
    with that of another, and an empty row is about the labels of its own table.
    """
    names = table.labels.names
    table = apply_label_options(table, options, is_one_of_several=True)
    unnamed = np.full(len(table), UNKNOWN, np.int8)
    return replace(table, unnamed=unnamed, settled=True, former_labels=names)


def unite_tables(tables: Sequence[Table]) -> Table:
    """Return several tables, with settled labels, as one.

    Names are relative to the folder that holds all pictures. Rows of one path are joined.

    Raises:
        DataError: some tables have splits or groups, and some do not.
    """
    titles = _choose_titles([table.origin for table in tables])
    titled = list(zip(titles, tables, strict=True))
    root, images = _find_root([table.root for table in tables]), sum(map(len, tables))
    space = LabelSpace(tuple(dict.fromkeys(name for each in tables for name in each.labels.names)))
    blocks = (block for each in tables for _, block in align(each, space).targets.blocks())
    table = Table(
        origin=name_locations(tuple(each.origin for each in tables)),
        format="several",
        root=root,
        names=tuple(_name_below(root, path) for each in tables for path in _list_paths(each)),
        targets=Targets.pack(blocks, len(space)),
        unnamed=np.full(images, UNKNOWN, np.int8),
        labels=space,
        splits=_join_cells(titled, "splits", "split column (data.split_column)"),
        groups=_join_cells(titled, "groups", "column of groups (data.group_by)"),
        other_columns=tuple(dict.fromkeys(name for each in tables for name in each.other_columns)),
        notes=tuple(_list_notes(titled, space)),
        hint=next((each.hint for each in tables if each.hint), ""),
        faults=tuple(_shift_faults(titled)),
        settled=True,
        former_labels=tuple(name for each in tables for name in each.former_labels),
        places=tuple(
            f"{title} {each.find_place(row)}" for title, each in titled for row in range(len(each))
        ),
        sources=np.repeat(np.arange(len(tables)), [len(each) for each in tables]),
    )
    paths = [os.path.normcase(os.path.normpath(path)) for path in _list_paths(table)]
    named = zip(paths, table.names, strict=True)
    return _join_rows(table, [path if name else None for path, name in named])


def join_copies(table: Table, contents: Mapping[str, int]) -> Table:
    """Return the table with pictures of several of its tables joined, where their bytes are equal.

    Copies in one table stay apart, as they do where there is no other table.

    Args:
        table: of `unite_tables`.
        contents: path -> number of the file's bytes.
    """
    assert table.sources is not None
    numbers = [contents.get(path) for path in _list_paths(table)]
    sources: defaultdict[int | None, set[int]] = defaultdict(set)
    for number, source in zip(numbers, table.sources.tolist(), strict=True):
        sources[number].add(source)
    return _join_rows(table, [number if len(sources[number]) > 1 else None for number in numbers])


def _list_paths(table: Table) -> list[str]:
    """Return the path or URL of each row; that of a row without a name is empty."""
    return [table.path(row) if name else "" for row, name in enumerate(table.names)]


# ---- rows of one picture ----------------------------------------------------------------


def _join_rows(table: Table, keys: Sequence[Hashable]) -> Table:
    """Return the table with one row for each key, where the first one stood; None joins nothing.

    Rows that contradict each other become faults.
    """
    groups: defaultdict[Hashable, list[int]] = defaultdict(list)
    for row, key in enumerate(keys):
        groups[("alone", row) if key is None else key].append(row)
    if len(groups) == len(table):
        return table
    packed, faults = table.targets.packed.copy(), list[Fault]()
    cells = list(table.groups or ())
    for rows in groups.values():
        if len(rows) > 1:
            if cells:  # of patients too, known beats blank
                cells[rows[0]] = next((cells[row] for row in rows if cells[row]), "")
            faults += _find_contradictions(table, rows)
            # Of -1, 0 and 1 the largest is right: known beats unknown, and 1 against 0 is a fault.
            states = table.targets[rows].max(axis=0)
            packed[rows[0]] = Targets.pack([states[None]], len(table.labels)).packed[0]
    joined = sum(len(rows) > 1 for rows in groups.values())
    note = f"{pluralize(joined, 'image')} in several tables: what each knows is joined"
    new_row = {row: index for index, rows in enumerate(groups.values()) for row in rows}
    moved = [replace(f, row=f.row if f.row is None else new_row[f.row]) for f in table.faults]
    faults = [replace(f, row=new_row[f.row]) for f in faults if f.row is not None]
    targets = Targets(packed, len(table.labels))
    united = replace(table, targets=targets, groups=tuple(cells) if cells else table.groups)
    united = united.take([rows[0] for rows in groups.values()])
    return replace(
        united, faults=tuple(dict.fromkeys([*moved, *faults])), notes=(*table.notes, note)
    )


def _find_contradictions(table: Table, rows: Sequence[int]) -> Iterator[Fault]:
    """Yield the faults where rows of one image differ: in split, in group, or 1 against 0."""
    name, first = table.names[rows[0]], rows[0]
    places = " and ".join(_name_row(table, row, name) for row in rows[:3])
    for cells, noun in ((table.splits, "splits"), (table.groups, "groups")):
        if cells and len({cells[row] for row in rows if cells[row]}) > 1:
            yield Fault(places, f"{name!r} is in different {noun}", first)
    states: NDArray[np.int8] = table.targets[list(rows)]
    both = np.flatnonzero((states == POSITIVE).any(0) & (states == NEGATIVE).any(0))
    pairs: defaultdict[tuple[int, int], list[str]] = defaultdict(list)
    for column in both.tolist():
        has, lacks = (int((states[:, column] == state).argmax()) for state in (POSITIVE, NEGATIVE))
        pairs[rows[has], rows[lacks]].append(repr(table.labels.names[column]))
    for (has, lacks), labels in pairs.items():
        other = _name_row(table, lacks, table.names[has])
        text = f"{table.names[has]!r} has {list_some(labels)}, and by {other} it has not"
        yield Fault(table.find_place(has), text, first)


def _name_row(table: Table, row: int, name: str) -> str:
    """Return the place of a row; with its own name where that is another one than `name`."""
    own = table.names[row]
    return table.find_place(row) + ("" if own == name else f" ({own!r}, the same bytes)")


# ---- several tables ---------------------------------------------------------------------


def _choose_titles(origins: Sequence[Location]) -> list[str]:
    """Return a short name of each table: its file's, or its path where two have the same one."""
    names = [str(origin).rstrip("/").rpartition("/")[2] for origin in origins]
    if len(set(names)) == len(names):
        return names
    return [str(origin) for origin in origins]


def _find_root(roots: Sequence[Location]) -> Location:
    """Return the folder that holds all roots; where there is none, the first root."""
    local = {os.path.abspath(root) for root in roots if not is_url(root)}
    if len(set(roots)) == 1 or not local:
        return roots[0]
    try:
        return Path(os.path.commonpath(local))
    except ValueError:  # on several drives of Windows
        return Path(min(local))


def _name_below(root: Location, path: str) -> str:
    """Return the name of a picture below the root; its path or URL where it is not there."""
    if not path:
        return path
    if is_url(path):
        inside = is_url(root) and path.startswith(f"{str(root).rstrip('/')}/")
        return path[len(str(root).rstrip("/")) + 1 :] if inside else path
    try:
        return os.path.relpath(path, root)
    except ValueError:  # on another drive of Windows
        return os.path.abspath(path)


def _join_cells(
    titled: Sequence[tuple[str, Table]], name: str, column: str
) -> tuple[str, ...] | None:
    """Return the splits or groups of all tables; None where no table has them.

    Raises:
        DataError: some tables have them, and some do not.
    """
    cells = {title: getattr(table, name) for title, table in titled}
    lacking = [repr(title) for title, own in cells.items() if own is None]
    if len(lacking) == len(cells):
        return None
    if lacking:
        raise DataError(
            f"data.train: no {column} in {list_some(lacking)}, and one in the other tables; give "
            f"each of them one, or none"
        )
    return tuple(cell for own in cells.values() for cell in own)


def _list_notes(titled: Sequence[tuple[str, Table]], space: LabelSpace) -> Iterator[str]:
    """Yield the notes of each table, and which labels of the others are unknown for its rows."""
    for title, table in titled:
        yield from (f"{title}: {note}" for note in table.notes)
        others = [name for name in space.names if name not in table.labels.column]
        if others:
            yield (
                f"{title}: {pluralize(len(table), 'image')}; unknown for them, since other tables "
                f"alone know of it: {list_labels(others)}"
            )


def _shift_faults(titled: Sequence[tuple[str, Table]]) -> Iterator[Fault]:
    """Yield the faults of all tables, with rows counted from the first table on."""
    start = 0
    for title, table in titled:
        for fault in table.faults:
            row = None if fault.row is None else start + fault.row
            yield replace(fault, place=f"{title} {fault.place}", row=row)
        start += len(table)
