"""Tables that lie in a folder of pictures: which of them describe these pictures?

    pets/train.csv   pets/images/1.jpg          train.csv: its first rows name pictures below
    pets/train.csv   pets/val.csv               the splits
    pets/results.csv pets/cat/1.jpg             results.csv names no picture: class folders

A table is looked at by its first rows alone: no format is parsed, only the pieces between commas,
quotes and the like are compared with the names of the pictures.
"""

import filecmp
import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mlfinetune.data.images.names import is_hidden_name, is_image_name, walk_files
from mlfinetune.data.readers.column_names import find_split
from mlfinetune.data.readers.text_file import opening_bytes
from mlfinetune.errors import DataError
from mlfinetune.location import SHARED_ENDINGS, TABLE_ENDINGS, find_ending
from mlfinetune.text import format_list

TABLES_OF_FOLDERS = ("metadata.csv", "metadata.jsonl", "_classes.csv")
"""Names of tables that describe the pictures of their folder; the last one is Roboflow's."""
_MOST_LISTS = 20
"""Files with an ending that tables share with much else: more are about single pictures."""
_WORKBOOKS = (".xlsx", ".xls", ".ods", ".numbers")
_WRITTEN = {"sample_submission", "submission", "predictions", "suspects", "skipped"}
"""Names of tables that programs write about pictures: their labels are nobody's."""
_SAMPLE = 2**18
"""Bytes of a table that are looked at."""
_PIECE = re.compile(r'[,;|\t"]')
_TEXT = re.compile(r'"(?:[^"\\]|\\.)*"')
_ID_WORDS = re.compile(r"id|image|img|file|name|photo|pic", re.IGNORECASE)
_MOST_ROOTS = 20
"""Folders that are tried as the root of a table's names."""
_MOST_NAMES = 100
"""Names of a table that are looked up below each."""
_COVERED = 0.8
"""Share of the pictures that a table must list where folders have the names of labels too."""


@dataclass(frozen=True)
class Sample:
    """The first rows of a table.

    Attributes:
        path: the table.
        names: for each row that names a picture, the piece that does.
        rows: the number of rows in the sample.
        total: the number of rows in the table, estimated by its size.
    """

    path: Path
    names: list[str]
    rows: int
    total: int


class PictureIndex:
    """The pictures below a folder.

    Attributes:
        folder: the folder.
        count: number of pictures.
        folders: folder that holds pictures, relative to `folder` -> their number.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.folders: Counter[Path] = Counter()
        self._stems: set[str] = set()
        for path in filter(is_image_name, walk_files(folder)):
            self.folders[path.parent] += 1
            self._stems.add(path.stem.casefold())
        self.count = self.folders.total()
        self.folders = Counter({p.relative_to(folder): n for p, n in self.folders.items()})

    def count_below(self, root: Path) -> int:
        """Return the number of pictures below a folder of the folder."""
        below = root.relative_to(self.folder)
        return sum(n for held, n in self.folders.items() if held.is_relative_to(below))

    def is_name(self, piece: str, with_numbers: bool) -> bool:
        """Return whether a piece of a row names a picture: its path, name, or name less ending."""
        base = piece.replace("\\", "/").rpartition("/")[2].casefold()
        if is_image_name(Path(base)):
            return Path(base).stem in self._stems
        return base in self._stems and (with_numbers or not base.isdigit())


def list_tables(folder: Path) -> tuple[list[Path], list[Path]]:
    """Return the files that may be tables of a folder's pictures, and those of spreadsheets.

    Files in a folder below count where it holds neither pictures nor folders: annotations/a.csv.
    """
    files = _list_visible(folder)
    for below in [path for path in files if path.is_dir() and not find_split(path.name)]:
        names = os.listdir(below)
        if not any(is_image_name(Path(name)) for name in names):
            entries = _list_visible(below)
            if not any(path.is_dir() for path in entries):
                files += [path for path in entries if path.name not in TABLES_OF_FOLDERS]
    pictures = {name for path in files if is_image_name(path) for name in (path.name, path.stem)}
    files = [path for path in files if path.stem not in pictures and path.is_file()]
    tables = [path for path in files if is_usual_table(path)]
    lists = [path for path in files if find_ending(path) in SHARED_ENDINGS]
    if len(lists) <= _MOST_LISTS:
        tables += lists
    return sorted(tables), [path for path in files if path.suffix.lower() in _WORKBOOKS]


def find_leading(tables: Sequence[Path], index: PictureIndex) -> dict[Path, Sample]:
    """Return the tables, with their samples, of whose first rows at least half name a picture.

    Tables that programs write are none of them.
    """
    by_people = (path for path in tables if not is_written(path))
    samples = (_read_sample(path, index) for path in by_people)
    return {sample.path: sample for sample in samples if sample.rows <= 2 * len(sample.names) > 0}


def find_root(sample: Sample, index: PictureIndex) -> Path | None:
    """Return the folder that most of a table's names are relative to; None: there is no such one.

    Tried are the table's own folder, the folders that hold pictures, and those above them.

        files                                   root of val.csv, which names 1.jpg
        1.jpg, images/1.jpg                     its own folder: the path as it is written
        train/1.jpg, val/1.jpg                  val/: the folder of the table's split
        images/1.jpg, thumbs/1.jpg              refused, unless the files are the same

    Raises:
        DataError: several folders have other files of these names, and nothing decides.
    """
    held = [folder for folder, _ in index.folders.most_common(_MOST_ROOTS)]
    own = Path(os.path.relpath(sample.path.parent, index.folder))
    tried = dict.fromkeys([own, Path(), *held, *(above for one in held for above in one.parents)])
    names = [name.replace("\\", "/") for name in sample.names[:_MOST_NAMES]]
    asked = [name for name in names if not name.startswith("//")]  # no server of Windows
    hits = {
        root: sum(os.path.isfile(index.folder / root / name) for name in asked) for root in tried
    }
    most = max(hits.values())
    if 2 * most < len(names):
        return None
    split = find_table_split(sample.path)
    of_split = {root: n for root, n in hits.items() if split and _find_folder_split(root) == split}
    if hits[own] == most:
        return index.folder / own
    if of_split and 2 * max(of_split.values()) >= len(names):
        hits, most = of_split, max(of_split.values())
    best, *others = [root for root, number in hits.items() if number == most]
    folders = [index.folder / root for root in dict.fromkeys((best, *others, own))]
    rivals = [folder for folder in folders[1:] if _has_other_files(folder, folders[0], names)]
    if rivals:
        lines = [f"data.images: {folder}" for folder in sorted((folders[0], *rivals))]
        raise DataError(
            f"{sample.path}: {len(lines)} folders hold other pictures of the same names; choose "
            f"one\n{format_list(lines)}"
        )
    return folders[0]


def find_table_split(table: Path) -> str | None:
    """Return the split that a word in the name of a table names; None where several do, or none."""
    marks = set(_find_marks(table).values())
    return marks.pop() if len(marks) == 1 else None


def _find_marks(table: Path) -> dict[str, str]:
    """Return word -> split, of the words in the name of a table that name one."""
    words = _list_words(table)
    return {word: split for word in words if (split := find_split(word))}


def _list_words(table: Path) -> list[str]:
    return [word for word in re.split(r"[\W_]+", _find_stem(table)) if word]


def _find_folder_split(folder: Path) -> str | None:
    """Return the split of a folder, by the last of its parts that names one."""
    return next((split for part in reversed(folder.parts) if (split := find_split(part))), None)


def _has_other_files(folder: Path, chosen: Path, names: Sequence[str]) -> bool:
    """Return whether a folder has files of these names that differ in the chosen folder."""
    pairs = [(folder / name, chosen / name) for name in names if (folder / name).is_file()]
    return any(not two.is_file() or not filecmp.cmp(one, two, shallow=False) for one, two in pairs)


def find_splits(leading: dict[Path, Sample], tables: Sequence[Path]) -> dict[Path, str]:
    """Return table -> split, of train.csv and its like; empty where tables are no splits.

    tables                                result
    train.csv val.csv test.csv            train, val, test; also where test has no picture here
    labels_train.csv labels_dev.csv       train, val
    train.csv                             empty: a table like any other
    train.csv train_old.csv               empty
    """
    groups: dict[tuple[str, ...], dict[Path, str]] = {}
    for table in tables:
        words, marks = _list_words(table), _find_marks(table)
        if len(marks) == 1 and (table in leading or is_usual_table(table)):
            rest = tuple(word for word in words if word not in marks)
            groups.setdefault(rest, {})[table] = next(iter(marks.values()))
    for splits in groups.values():
        once = len(set(splits.values())) == len(splits) > 1
        if once and "train" in splits.values() and leading.keys() & splits.keys():
            return splits
    return {}


def refuse_rivals(
    folder: Path, leading: dict[Path, Sample], chosen: Sequence[Path], index: PictureIndex
) -> None:
    """Check that nothing else names labels: another table, or the folders themselves.

    Folders with the names of labels hold no rival where the table lists most of the pictures: it
    says the same, or more. Where it lists a part it may be about something else.

    Raises:
        DataError: several sources of labels; it says how to choose.
    """
    if rivals := [table for table in leading if table not in chosen]:
        lines = [f"data.train: {table}" for table in sorted({*rivals, *chosen})]
        raise DataError(
            f"{folder}: several tables name its pictures; choose one\n{format_list(lines)}"
        )
    labels = {held.name for held in index.folders if not find_split(held.name)} - {""}
    in_splits = any(len(held.parts) > 1 and find_split(held.parts[0]) for held in index.folders)
    listed = sum(leading[table].total for table in chosen if table in leading)
    if len(labels) > 1 and (in_splits or listed < _COVERED * index.count):
        names = ", ".join(f"'{name}'" for name in sorted(labels)[:3])
        raise DataError(
            f"{folder}: labels may be in {' and '.join(table.name for table in chosen)} or the "
            f"names of folders ({names}{', ...' if len(labels) > 3 else ''}); choose one\n"
            + format_list([f"data.train: {chosen[0]}", "data.format: folder"])
        )


def list_lacking_columns(test: Path, train: Path) -> list[str]:
    """Return the columns that a table lacks and another has, by their first lines."""
    own, others = (split_line(read_start(path)[0].partition("\n")[0]) for path in (test, train))
    return [column for column in others if column not in own]


def is_usual_table(path: Path) -> bool:
    """Return whether the ending is one that tables alone have."""
    return find_ending(path) in TABLE_ENDINGS


def is_written(path: Path) -> bool:
    """Return whether a table has a name that programs give to the tables they write."""
    return _find_stem(path) in _WRITTEN


def _list_visible(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.iterdir()) if not is_hidden_name(path.name)]


def _find_stem(path: Path) -> str:
    """Return the name without its ending, in small letters; `train` of train.csv.gz."""
    return path.name.casefold().removesuffix(".gz").rpartition(".")[0]


def _read_sample(path: Path, index: PictureIndex) -> Sample:
    """Read the first rows of a file, and find the pieces that name pictures."""
    content, is_whole = read_start(path)
    if find_ending(path) == ".json":
        names = [text for text in _read_texts(content) if index.is_name(text, False)]
        some = len(names) > 1 or 2 * len(names) >= index.count
        return Sample(path, names, len(names) if some else index.count, index.count)
    is_json = find_ending(path) == ".jsonl"
    lines = [line for line in content.splitlines() if line.strip()]
    rows = [list(_read_texts(line)) if is_json else split_line(line) for line in lines]
    with_numbers = any(map(_ID_WORDS.search, rows[0] if rows else [])) and not is_json
    found = [[piece for piece in row if index.is_name(piece, with_numbers)] for row in rows]
    names = [pieces[0] for pieces in found if pieces]
    if not any(len(row) > 1 for row, pieces in zip(rows, found, strict=True) if pieces):
        names = []  # names alone: a list of files, or a table to fill in
    count = len(rows) - bool(found and not found[0] and not is_json)
    total = count if is_whole else int(count * path.stat().st_size / max(1, len(content)))
    if path.suffix.lower() == ".gz" and not is_whole:
        total = index.count
    return Sample(path, names, count, total)


def split_line(line: str) -> list[str]:
    """Return the pieces of a row, without blank ones; a row without delimiter has words.

    `a b.jpg;cat` -> [a b.jpg, cat]    `a b.jpg;` -> [a b.jpg]    `a.jpg cat` -> [a.jpg, cat]
    """
    pieces = [piece.strip() for piece in _PIECE.split(line) if piece.strip()]
    one = len(pieces) == 1 and not is_image_name(Path(pieces[0]))
    return pieces[0].split() if one else pieces


def _read_texts(content: str) -> Iterator[str]:
    """Yield the texts in quotes of JSON."""
    for quoted in _TEXT.findall(content):
        try:
            yield json.loads(quoted)
        except ValueError:
            continue


def read_start(path: Path) -> tuple[str, bool]:
    """Return the first lines of a file as text, and whether they are all; empty: it has none.

    Raises:
        DataError: a file that tables alone are named like cannot be read: it may have the labels.
    """
    try:
        with opening_bytes(path) as file:
            content = file.read(_SAMPLE + 1)
    except DataError:
        if is_usual_table(path):
            raise
        return "", True
    encoding = "utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    text = content[:_SAMPLE].decode(encoding, errors="replace")
    is_whole = len(content) <= _SAMPLE
    return text if is_whole else text.rpartition("\n")[0], is_whole
