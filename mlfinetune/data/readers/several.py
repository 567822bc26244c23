"""Folders that are read through tables or folders inside of them, each read by itself.

pets/train/ pets/val/ pets/test/                     split folders
pets/train.csv pets/val.csv pets/images/             tables beside the pictures: beside.py
pets/a/metadata.jsonl pets/b/metadata.jsonl          a table in each folder of pictures
-> one Table, by join.py
"""

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from mlfinetune.data.images.names import is_hidden_name, is_image_name, walk_files
from mlfinetune.data.readers import beside, coco, parquet, sidecar, voc, webdataset
from mlfinetune.data.readers.cells import quote_names
from mlfinetune.data.readers.column_names import find_split
from mlfinetune.data.readers.join import join_tables
from mlfinetune.data.readers.pictures import refuse_links_outside
from mlfinetune.data.table import SourceOptions, Table
from mlfinetune.errors import DataError
from mlfinetune.location import is_url
from mlfinetune.text import format_list, pluralize

Read = Callable[[Path, SourceOptions], Table]
"""`detect.read_source`: reads a file or folder in its format."""

TABLES = ("csv", "huggingface", "json")
"""Formats where a folder is read through a table in it."""

_USUAL_REASON = "no picture of these, or no label"
_WRITTEN_REASON = "a name that programs give to tables they write"


def read_several(path: Path, options: SourceOptions, read: Read) -> tuple[Table | None, list[str]]:
    """Read a folder by the tables in it, or by its split folders.

    Returns:
        The table, None where the folder has to be read as a whole; and a note on tables that are
        not read.

    Raises:
        DataError: several sources of labels, or a folder that lacks the table that others have.
    """
    table, notes = None, list[str]()
    if not path.is_dir() or find_table(path) != path:
        return None, notes
    if options.format == "auto" and not _is_other_format(path):
        table, notes = _read_tables_beside(path, options, read)
    if table is None and options.format != "voc" and (sides := _find_split_folders(path)):
        table = _read_split_folders(path, sides, options, read)
    if table is None and options.format in ("auto", *TABLES) and not _is_other_format(path):
        table = _read_nested_tables(path, options, read)
    return table, notes


def find_table(path: Path) -> Path:
    """Return the table in a folder that describes its pictures; without one, the path itself."""
    tables = (path / name for name in beside.TABLES_OF_FOLDERS)
    return next((table for table in tables if table.is_file()), path)


def _is_other_format(path: Path) -> bool:
    """Return whether the layout of a folder is that of a format with labels of its own."""
    formats = (voc.is_voc, coco.is_coco, parquet.is_parquet, webdataset.is_webdataset)
    return any(is_format(path) for is_format in formats)


def _read_in_order(
    path: Path,
    splits: dict[str, str],
    options: SourceOptions,
    read: Read,
    images: Mapping[str, Path] | None = None,
) -> dict[str, Table]:
    """Read several tables; that of train comes first, and its label delimiter holds for all.

    Args:
        path: the folder that holds them.
        splits: name in the folder -> split.
        options: how to read them.
        read: reads one.
        images: name -> folder of its pictures, where it is not the usual one.
    """
    tables = {}
    for name in sorted(splits, key=lambda name: splits[name] != "train"):
        root = (images or {}).get(name, options.images)
        tables[name] = read(path / name, replace(options, images=root))
        if tables[name].delimiter is not None:
            options = replace(options, label_delimiter=tables[name].delimiter)
    return {name: tables[name] for name in splits}


# ---- folders named train, val and test ------------------------------------------------------


def _find_split_folders(path: Path) -> dict[str, str]:
    """Return folder name -> split, if `path` has a folder for train and one for another split.

    Example of the entries of `path`, and what is returned:

        train/ valid/                            {train: train, valid: val}
        train/ valid/ others/, no pictures in    the same; others/ is not read
          train/ or valid/ themselves
        train/ test/ bus/, pictures in train/    {}: class folders, `train` is a label
        train/ training/ val/                    {}: two folders for one split
        train/ val/ metadata.csv                 {}: the table has the splits
    """
    if voc.is_voc(path) or coco.is_coco(path):  # their folders have such names too
        return {}
    names = sorted(_list_folders(path))
    sides = {name: split for name in names if (split := find_split(name))}
    each_once = len(set(sides.values())) == len(sides)
    if not each_once or "train" not in sides.values() or len(sides) < 2:
        return {}
    # Beside other folders, train/ and test/ with pictures in them may be labels.
    are_labels = len(sides) < len(names) and any(
        is_image_name(Path(base)) for name in sides for base in os.listdir(path / name)
    )
    return {} if are_labels else sides


def _list_folders(path: Path) -> list[str]:
    entries = os.scandir(path)
    return [entry.name for entry in entries if entry.is_dir() and not is_hidden_name(entry.name)]


def _read_split_folders(
    path: Path, sides: dict[str, str], options: SourceOptions, read: Read
) -> Table:
    """Read one table per folder, and join them.

    Raises:
        DataError: a folder is a link that leads outside.
    """
    if not options.allow_outside_root:
        links = [name for name in sides if (path / name).is_symlink()]
        below = (file for name in links for file in walk_files(path / name) if is_image_name(file))
        refuse_links_outside(path, Counter(file.relative_to(path).parent for file in below))
    splits = {f"{name}/": split for name, split in sides.items()}
    tables = _read_in_order(path, splits, options, read)
    notes = [f"split folders: {', '.join(f'{len(tables[name])} in {name}' for name in splits)}"]
    if others := sorted(f"{name}/" for name in set(_list_folders(path)) - set(sides)):
        notes.append(f"other folders, not read: {', '.join(others)}")
    return join_tables(path, tables, splits, notes)


# ---- tables beside the pictures ---------------------------------------------------------------


def _read_tables_beside(
    path: Path, options: SourceOptions, read: Read
) -> tuple[Table | None, list[str]]:
    """Read the table in a folder that describes the pictures below, or one for each split.

    Returns:
        The table, None where there is none; and a note on the tables that are not read.

    Raises:
        DataError: several tables, or a table and folders or files of tags, may hold the labels; or
            the pictures lie behind a link that leads outside.
    """
    candidates, workbooks = beside.list_tables(path)
    pictures = path if options.images is None or is_url(options.images) else Path(options.images)
    index = beside.PictureIndex(pictures) if candidates and pictures.is_dir() else None
    leading = beside.find_leading(candidates, index) if index else {}
    if not index or not leading:
        return None, list(_note_unread(path, candidates, workbooks, {}))
    splits = beside.find_splits(leading, candidates) or {next(iter(leading)): ""}
    beside.refuse_rivals(path, leading, list(splits), index)
    _refuse_sidecars(path, list(splits))
    roots = _find_roots(path, leading, index) if options.images is None else {}
    if not options.allow_outside_root:
        held = {root.relative_to(path): index.count_below(root) for root in roots.values()}
        refuse_links_outside(path, held)
    named = {os.path.relpath(table, path): split for table, split in splits.items()}
    tables, reasons = _read_labelled(path, named, options, read, roots)
    unread = [table for table in candidates if os.path.relpath(table, path) not in tables]
    notes = [
        f"pictures of {name}: below {os.path.relpath(roots[name], path)}/"
        for name in tables
        if name in roots
    ]
    notes += _note_unread(path, unread, workbooks, reasons)
    if len(tables) == 1:
        ((name, read_table),) = tables.items()
        return replace(read_table, notes=(f"labels from {name}", *read_table.notes)), notes
    counts = ", ".join(f"{len(table)} in {name}" for name, table in tables.items())
    return join_tables(path, tables, named, [f"split files: {counts}"]), notes


def _find_roots(
    path: Path, leading: Mapping[Path, beside.Sample], index: beside.PictureIndex
) -> dict[str, Path]:
    """Return table -> the folder of its pictures, where it is not the table's own."""
    found = {table: beside.find_root(sample, index) for table, sample in leading.items()}
    return {
        os.path.relpath(table, path): root
        for table, root in found.items()
        if root is not None and root != table.parent
    }


def _read_labelled(
    path: Path,
    splits: dict[str, str],
    options: SourceOptions,
    read: Read,
    roots: dict[str, Path],
) -> tuple[dict[str, Table], dict[str, str]]:
    """Read the tables beside the pictures, but for a test.csv that holds no labels.

    In competitions its labels are kept back: it has a column less than train.csv, or its cells are
    blank.

    Returns:
        The tables, and for the name of one that is not taken the reason.
    """
    train = next((name for name, split in splits.items() if split == "train"), None)
    tests = [name for name, split in splits.items() if split == "test"]
    kept = {name: split for name, split in splits.items() if split != "test"}
    tables, reasons = _read_in_order(path, kept, options, read, roots), dict[str, str]()
    for name in tests:
        assert train is not None
        lacking = beside.list_lacking_columns(path / name, path / train)
        reasons[name] = f"it lacks {quote_names(lacking)} of {train}" if lacking else "no label"
        own = replace(
            options,
            images=roots.get(name, options.images),
            label_delimiter=tables[train].delimiter or options.label_delimiter,
        )
        try:
            table = read(path / name, own)
        except DataError as error:
            if not lacking:
                raise
            text = str(error).removeprefix(f"{path / name}: ").partition("\n")[0]
            reasons[name] += f": {text}"
            continue
        shared = {*table.labels.names} & {*tables[train].labels.names}
        if table.targets.counts()[0].any() and (shared or not lacking):
            tables[name] = table
    return {name: tables[name] for name in splits if name in tables}, reasons


def _refuse_sidecars(path: Path, chosen: Sequence[Path]) -> None:
    """Raise DataError where the pictures have files of tags beside them, as well as a table."""
    if sidecar.is_sidecar(path):
        names = " and ".join(table.name for table in chosen)
        raise DataError(
            f"{path}: labels may be in {names} or in the text files beside the pictures; choose "
            f"one\n{format_list([f'data.train: {chosen[0]}', 'data.format: sidecar'])}"
        )


def _note_unread(
    path: Path, tables: list[Path], workbooks: list[Path], reasons: Mapping[str, str]
) -> Iterator[str]:
    """Yield the notes on tables that are not read: only people know what they are.

    `reasons` are those of some of the tables, by name.
    """
    by_reason: dict[str, list[str]] = {}
    for table in filter(beside.is_usual_table, tables):
        name = os.path.relpath(table, path)
        usual = _WRITTEN_REASON if beside.is_written(table) else _USUAL_REASON
        by_reason.setdefault(reasons.get(name, usual), []).append(name)
    for reason, names in by_reason.items():
        yield f"tables not read: {quote_names(names)} ({reason})"
    if names := [os.path.relpath(book, path) for book in workbooks]:
        yield f"spreadsheets, not read: {quote_names(names)}; save the sheet as CSV"


# ---- tables in the folders below ----------------------------------------------------------------


def _read_nested_tables(path: Path, options: SourceOptions, read: Read) -> Table | None:
    """Read metadata.jsonl and its like in the folders below; None where there is none.

    Raises:
        DataError: a folder of pictures has no such table, nor has one above it.
    """
    holders, pictures = dict[Path, None](), dict[Path, int]()
    for file in walk_files(path):
        if file.name in beside.TABLES_OF_FOLDERS:
            holders[file.parent] = None
        elif is_image_name(file):
            pictures[file.parent] = pictures.get(file.parent, 0) + 1
    if not holders:
        return None
    lacking = {
        folder: count
        for folder, count in pictures.items()
        if folder not in holders and holders.keys().isdisjoint(folder.parents)
    }
    names = [f"{os.path.relpath(folder, path)}/" for folder in sorted(holders)]
    if lacking:
        lines = [f"{f.relative_to(path)}/: {pluralize(n, 'picture')}" for f, n in lacking.items()]
        raise DataError(
            f"{path}: {', '.join(names[:3])} {'have' if len(names) > 1 else 'has'} a table of "
            f"labels ({find_table(next(iter(holders))).name}), these folders have none; give them "
            f"one, or take the names of all folders: data.format: folder\n{format_list(lines)}"
        )
    tables = _read_in_order(path, dict.fromkeys(names, ""), options, read)
    note = f"tables in {pluralize(len(tables), 'folder')}: {quote_names(names)}"
    # Not "csv": there is no one file to which `split` could add a column.
    return replace(join_tables(path, tables, None, [note]), format="huggingface")
