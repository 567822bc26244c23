"""Check that the names of a table lead to files below its root, without opening one.

names, grouped by folder -> a folder with many names is listed once; else each file is looked up
names that lead to no file -> a hint where they lie, or under `find_by_name` their files
-> the table with names as the disk spells them, and a fault for each missing or outside file
"""

import errno
import os
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from urllib.parse import unquote

from mlfinetune.data.folder import NO_FILE, OUTSIDE, Folder, spell_as_on_disk, suggest_slashes
from mlfinetune.data.search import Search, is_below, is_upload, search_files, word_hint
from mlfinetune.data.table import SourceOptions, Table
from mlfinetune.errors import DataError
from mlfinetune.location import is_on_other_drive, is_url, join_location, to_slashes
from mlfinetune.text import pluralize

_WORTH_LISTING = 32
"""Names in one folder from which listing the folder is cheaper than looking up each file."""
_MOST_ENTRIES = 10_000_000
"""Files and folders below the root that `find_by_name` looks through."""
_HINT_ENTRIES = 200_000
"""Entries that a hint looks through, unless the table has more names: less than a second."""


@dataclass(frozen=True)
class _Problem:
    """Why a name cannot be used, and what its folder says about it: `; there is 'A.jpg'`."""

    text: str
    advice: str = ""
    picture: bool = True


def check_paths(table: Table, options: SourceOptions) -> Table:
    """Look up every file that the table names, without opening one; add a fault for each bad one.

        the name leads to                               outcome
        a file below the root                           the name stays as it is
        a file in another Unicode form (NFC, NFD)       the name as the disk spells it, and a note
        a file, by the backslashes of Windows, there    the name with /
        no file, a folder, an unreadable path           a fault of the picture: it can be skipped
        outside the root, by `..`, `/` or a link        a fault of the row: it is never skipped

    With `allow_outside_root` the last line does not apply. Names that are URLs are not looked up,
    only compared with the root; whether they exist is seen by the scan.

    Names that lead to no file below the root are then looked for by their last part: with
    `find_by_name` the file takes the place of the name, else a hint says what would be found.

    Raises:
        DataError: `find_by_name`, and there are too many files below the root.
    """
    root = str(table.root) if is_url(table.root) else os.path.realpath(table.root)
    problems = dict(_find_urls_outside(table, root, options.allow_outside_root))
    table = _look_up_all(table, root, options.allow_outside_root, problems)
    lost = [row for row, problem in problems.items() if _is_lost(table, root, row, problem)]
    if lost and not is_url(root):
        by_name = [row for row in lost if options.find_by_name or is_upload(table.names[row])]
        if by_name:
            table = _find_by_name(table, root, options, by_name, problems)
        if len(by_name) < len(lost):
            others = [row for row in lost if row in problems and row not in set(by_name)]
            table = _add_hint(table, root, options, others, problems)
    faults = [
        table.build_fault(
            row, f"{table.names[row]!r}: {problem.text}{problem.advice}", problem.picture
        )
        for row, problem in problems.items()
    ]
    return replace(table, faults=(*table.faults, *faults))


def search_lost_pictures(table: Table, options: SourceOptions) -> tuple[list[str], int, Search]:
    """Return the names that lead to no file, the number of those that do, and a search for them.

    All folders below the root are looked through, as `find_by_name` does.
    """
    root = os.path.realpath(table.root)
    problems = dict(_find_urls_outside(table, root, options.allow_outside_root))
    table = _look_up_all(table, root, options.allow_outside_root, problems)
    lost = [table.names[row] for row in problems if _is_lost(table, root, row, problems[row])]
    used = _list_used_files(table, root, problems)
    search = search_files(root, lost, used, _MOST_ENTRIES, options.allow_outside_root)
    return list(dict.fromkeys(lost)), len(used), search


def _look_up_all(
    table: Table, root: str, allow_outside_root: bool, problems: dict[int, _Problem]
) -> Table:
    """Look up the names that are no URLs, folder by folder; add to `problems`, by row.

    Returns:
        The table with names as the disk spells them.
    """
    table = _write_slashes(table)
    by_folder: defaultdict[str, list[int]] = defaultdict(list)
    for row, name in enumerate(table.names):
        if name and not is_url(name) and not is_url(root):
            if not allow_outside_root and is_on_other_drive(root, name):
                problems[row] = _Problem(OUTSIDE, picture=False)
            else:
                by_folder[name[: name.rfind("/") + 1]].append(row)
    respelled: dict[int, str] = {}
    for below, rows in by_folder.items():
        spelled = spell_as_on_disk(root, below)
        folder = Folder(os.path.join(root, spelled), root, allow_outside_root)
        for row, base, text in _look_up(folder, table, below, rows):
            name = table.names[row]
            if text:
                advice = ""
                if text == NO_FILE:
                    advice = folder.suggest_name(base) or suggest_slashes(root, name)
                problems[row] = _Problem(text, advice, picture=text != OUTSIDE)
            elif spelled + base != name:
                respelled[row] = spelled + base
    if not respelled:
        return table
    note = f"{len(respelled)} names are spelled on disk in another Unicode form (NFC, NFD)"
    return replace(_rename_rows(table, respelled), notes=(*table.notes, note))


def _write_slashes(table: Table) -> Table:
    """Return the table with / for the backslashes of Windows, on Windows."""
    if os.sep == "/":
        return table
    names = (name if is_url(name) else to_slashes(name) for name in table.names)
    return replace(table, names=tuple(names))


def _rename_rows(table: Table, names: Mapping[int, str]) -> Table:
    """Return the table with other names in these rows."""
    return replace(table, names=tuple(names.get(row, name) for row, name in enumerate(table.names)))


def _look_up(
    folder: Folder, table: Table, below: str, rows: Sequence[int]
) -> Iterator[tuple[int, str, str | None]]:
    """Yield (row, file name as on disk, problem or None) for the rows that name files of a folder.

    `below` is the folder's part of their names.
    """
    listed = folder.entries if len(rows) >= _WORTH_LISTING else {}
    for row in rows:
        base = table.names[row][len(below) :]
        problem = None if listed.get(base) else folder.find_problem(base)
        if problem == NO_FILE and (other := folder.find_respelling(base)):
            base, problem = other, folder.find_problem(other)
        yield row, base, problem


# ---- names that lead to no file -------------------------------------------------------------


def _is_lost(table: Table, root: str, row: int, problem: _Problem) -> bool:
    """Return whether the name leads to no file below the root: its file may lie elsewhere there.

    A path of another machine may be forbidden on this one: `/root/data/a.jpg`.
    """
    name = table.names[row]
    is_foreign = os.path.isabs(name) and not is_below(root, os.path.normpath(name))
    forbidden = is_foreign and problem.text == os.strerror(errno.EACCES)
    return problem.text in (NO_FILE, OUTSIDE) or forbidden


def _find_by_name(
    table: Table,
    root: str,
    options: SourceOptions,
    lost: Sequence[int],
    problems: dict[int, _Problem],
) -> Table:
    """Return the table with the file of each lost name; take the found rows out of `problems`.

    files of the name                         outcome
    one                                       the file's name, and a note that counts
    none                                      the fault stays, and may be skipped
    several, and no folder decides            a fault of the row
    one, which another name leads to as well  a fault of the row
    """
    names = [table.names[row] for row in lost]
    used = _list_used_files(table, root, problems)
    search = search_files(root, names, used, _MOST_ENTRIES, options.allow_outside_root)
    if not search.is_complete:
        raise DataError(
            f"{table.origin}: data.find_by_name: more than {_MOST_ENTRIES:,} files and folders "
            f"below {table.root}; set data.images to a smaller folder"
        )
    renamed: dict[int, str] = {}
    for row, name in zip(lost, names, strict=True):
        if name in search.found:
            renamed[row] = search.found[name]
            del problems[row]
        elif name in search.several:
            files = " and ".join(map(repr, search.several[name][:2]))
            problems[row] = _Problem(f"several files have this name: {files}", picture=False)
        elif name in search.shared:
            file, other = search.shared[name]
            text = f"found by its name as {file!r}, which {other!r} leads to as well"
            if is_upload(name):
                text += ": two uploads of one name; leave one of the tasks out, or rename a picture"
            problems[row] = _Problem(text, picture=False)
        elif problems[row].text == NO_FILE:
            problems[row] = _Problem(f"{NO_FILE}; nor one of its name below the root")
    if not renamed:
        return table
    return replace(
        _rename_rows(table, renamed), notes=(*table.notes, _describe_found(table, search))
    )


def _describe_found(table: Table, search: Search) -> str:
    """Return the note that counts the pictures that were found by their names."""
    name, file = next(iter(search.found.items()))
    odd = search.unspelled
    details = f", {odd} of them in another case or with another ending" if odd else ""
    count = pluralize(len(search.found), "picture")
    why = "uploads of Label Studio" if is_upload(name) else "data.find_by_name"
    return f"{count} found by name ({why}){details}, such as {name!r} as {file!r}"


def _list_used_files(table: Table, root: str, problems: Mapping[int, _Problem]) -> dict[str, str]:
    """Return file, relative to the root -> the name that leads to it, where one does."""
    names = (name for row, name in enumerate(table.names) if name and row not in problems)
    return {_make_relative(name, root): name for name in dict.fromkeys(names)}


def _make_relative(name: str, root: str) -> str:
    """Return a name relative to the root, as the walk of the root gives it."""
    if not os.path.isabs(name) or is_on_other_drive(root, name):
        return to_slashes(os.path.normpath(name))
    return to_slashes(os.path.relpath(name, root))


def _add_hint(
    table: Table,
    root: str,
    options: SourceOptions,
    lost: Sequence[int],
    problems: dict[int, _Problem],
) -> Table:
    """Return the table with the hint where the lost names lie; without one, the table itself."""
    names = list(dict.fromkeys(table.names[row] for row in lost))
    limit = max(_HINT_ENTRIES, 4 * len(table))
    used = _list_used_files(table, root, problems)
    search = search_files(root, names, used, limit, options.allow_outside_root)
    hint = word_hint(root, names, search, limit, is_none_there=not used)
    if not hint:
        return table
    return replace(table, hint=hint, notes=(*table.notes, f"missing pictures: {hint}"))


# ---- URLs -----------------------------------------------------------------------------------


def _find_urls_outside(table: Table, root: str, allowed: bool) -> Iterator[tuple[int, _Problem]]:
    """Yield row and problem of each name outside the root, where the name or the root is a URL."""
    for row, name in enumerate(table.names):
        if (
            name
            and not allowed
            and (is_url(name) or is_url(root))
            and not _is_url_below(root, name)
        ):
            yield row, _Problem(OUTSIDE, picture=False)


def _is_url_below(root: str, name: str) -> bool:
    """Return whether a name, joined to the root, is a URL below the root."""
    location = join_location(root, name)
    decoded = unquote(unquote(location))  # servers and libraries may decode %2e once, or twice
    odd = "::" in decoded or not decoded.isprintable()  # fsspec chains protocols with ::
    parts = re.split(r"[/\\]", decoded)
    return location.startswith(root.rstrip("/") + "/") and not odd and ".." not in parts
