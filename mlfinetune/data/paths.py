"""Check that the names of a table lead to files below its root, without opening one.

names, grouped by folder -> a folder with many names is listed once; else each file is looked up
names that lead to no file -> a hint where they lie, or under `find_by_name` their files
-> the table with names as the disk spells them, and a fault for each missing or outside file
"""

import errno
import os
import re
import stat
import unicodedata
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from urllib.parse import unquote

from mlfinetune.data.images.names import DECODED
from mlfinetune.data.search import Search, is_below, search_files, word_hint
from mlfinetune.data.table import SourceOptions, Table
from mlfinetune.errors import DataError
from mlfinetune.location import is_on_other_drive, is_url, join_location, to_slashes
from mlfinetune.storage.tars import find_member
from mlfinetune.text import pluralize

_WORTH_LISTING = 32
"""Names in one folder from which listing the folder is cheaper than looking up each file."""
_MOST_ENTRIES = 10_000_000
"""Files and folders below the root that `find_by_name` looks through."""
_HINT_ENTRIES = 200_000
"""Entries that a hint looks through, unless the table has more names: less than a second."""

_NO_FILE = "no such file"
_OUTSIDE = "outside the image root; data.allow_outside_root: true permits it"


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
        find = _find_by_name if options.find_by_name else _add_hint
        table = find(table, root, options, lost, problems)
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
                problems[row] = _Problem(_OUTSIDE, picture=False)
            else:
                by_folder[name[: name.rfind("/") + 1]].append(row)
    respelled: dict[int, str] = {}
    for below, rows in by_folder.items():
        spelled = _spell_as_on_disk(root, below)
        folder = _Folder(os.path.join(root, spelled), root, allow_outside_root)
        for row, base, text in _look_up(folder, table, below, rows):
            name = table.names[row]
            if text:
                advice = ""
                if text == _NO_FILE:
                    advice = folder.suggest_name(base) or _suggest_slashes(root, name)
                problems[row] = _Problem(text, advice, picture=text != _OUTSIDE)
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
    folder: "_Folder", table: Table, below: str, rows: Sequence[int]
) -> Iterator[tuple[int, str, str | None]]:
    """Yield (row, file name as on disk, problem or None) for the rows that name files of a folder.

    `below` is the folder's part of their names.
    """
    listed = folder.entries if len(rows) >= _WORTH_LISTING else {}
    for row in rows:
        base = table.names[row][len(below) :]
        problem = None if listed.get(base) else folder.find_problem(base)
        if problem == _NO_FILE and (other := folder.find_respelling(base)):
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
    return problem.text in (_NO_FILE, _OUTSIDE) or forbidden


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
            problems[row] = _Problem(text, picture=False)
        elif problems[row].text == _NO_FILE:
            problems[row] = _Problem(f"{_NO_FILE}; nor one of its name below the root")
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
    return f"{count} found by name (data.find_by_name){details}, such as {name!r} as {file!r}"


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
            yield row, _Problem(_OUTSIDE, picture=False)


def _is_url_below(root: str, name: str) -> bool:
    """Return whether a name, joined to the root, is a URL below the root."""
    location = join_location(root, name)
    decoded = unquote(unquote(location))  # servers and libraries may decode %2e once, or twice
    odd = "::" in decoded or not decoded.isprintable()  # fsspec chains protocols with ::
    parts = re.split(r"[/\\]", decoded)
    return location.startswith(root.rstrip("/") + "/") and not odd and ".." not in parts


# ---- folders ----------------------------------------------------------------------------


def _suggest_slashes(root: str, name: str) -> str:
    """Return a hint where the name, with / for the backslashes of Windows, leads to a file."""
    other = name.replace("\\", "/")
    if other == name or other.startswith("/") or ".." in other.split("/"):
        return ""
    exists = os.path.isfile(os.path.join(root, other))
    return f"; there is {other!r}: write / for \\" if exists else ""


def _spell_as_on_disk(root: str, below: str) -> str:
    """Return a folder's name; where only another Unicode form of it exists, that form."""
    if below.isascii() or os.path.lexists(os.path.join(root, below)):
        return below
    spelled = ""
    for part in below.split("/")[:-1]:
        parent = os.path.join(root, spelled)
        if not os.path.lexists(os.path.join(parent, part)) and os.path.isdir(parent):
            forms = {unicodedata.normalize("NFC", name): name for name in os.listdir(parent)}
            part = forms.get(unicodedata.normalize("NFC", part), part)
        spelled += part + "/"
    return spelled


class _Folder:
    """A folder that holds files of the table; it is listed only when the list is needed."""

    def __init__(self, path: str, root: str, allow_outside: bool) -> None:
        self._path, self._root, self._allow_outside = path, root, allow_outside

    @cached_property
    def inside(self) -> bool:
        """Whether the folder is below the root, or may lie anywhere."""
        return self._is_inside(self._path)

    @cached_property
    def entries(self) -> dict[str, bool]:
        """Name -> True for a regular file; empty for a folder outside the root."""
        if not self.inside:
            return {}
        try:
            with os.scandir(self._path) as entries:
                return {entry.name: entry.is_file(follow_symlinks=False) for entry in entries}
        except (OSError, ValueError):
            return {}

    @cached_property
    def _by_form(self) -> dict[str, str]:
        return {unicodedata.normalize("NFC", name): name for name in sorted(self.entries)}

    @cached_property
    def _by_case(self) -> dict[str, str]:
        return {name.casefold(): name for name in sorted(self.entries)}

    @cached_property
    def _by_stem(self) -> dict[str, str]:
        stems = {_cut_ending(name): name for name in sorted(self.entries)}
        return {stem: name for stem, name in stems.items() if stem != name.casefold()}

    def find_problem(self, base: str) -> str | None:
        """Return why the file cannot be used, as far as a look-up tells; None if it can."""
        path = os.path.join(self._path, base)
        try:
            mode = os.stat(path).st_mode
            inside = self._is_inside(path) if os.path.islink(path) else self.inside
        except (FileNotFoundError, NotADirectoryError) as error:  # Windows has the first for both
            return self._find_problem_in_tar(path, error)
        except OSError as error:
            return error.strerror or str(error)
        except ValueError:
            what = "a NUL character" if "\0" in path else "half of a character"
            return f"not a file name (it holds {what})"
        if not inside:
            return _OUTSIDE
        if stat.S_ISDIR(mode):
            return "a folder, not a picture"
        return None if stat.S_ISREG(mode) else "not a regular file"

    def _find_problem_in_tar(self, path: str, no_file: OSError) -> str | None:
        """Return why a path that is no file cannot be used; None if it is a member of a tar."""
        try:
            if find_member(path) is None:
                missing = isinstance(no_file, FileNotFoundError)
                return _NO_FILE if missing else os.strerror(errno.ENOTDIR)
            return None if self.inside else _OUTSIDE
        except FileNotFoundError:
            return _NO_FILE
        except OSError as error:
            return error.strerror or str(error)

    def find_respelling(self, base: str) -> str | None:
        """Return the file with this name in another Unicode form, or None."""
        return self._by_form.get(unicodedata.normalize("NFC", base))

    def suggest_name(self, base: str) -> str:
        """Return `; there is 'A.jpg'` where only case or ending of the name are wrong, or ''."""
        other = self._by_case.get(base.casefold()) or self._by_stem.get(_cut_ending(base))
        return f"; there is {other!r}" if other and self.find_problem(other) is None else ""

    def _is_inside(self, path: str) -> bool:
        """Return whether a path is below the root once all links are followed.

        With `allow_outside` every path counts as inside.
        """
        if self._allow_outside:
            return True
        try:
            return is_below(self._root, os.path.realpath(path))
        except ValueError:  # a NUL, or half a character
            return False


def _cut_ending(base: str) -> str:
    """Return the name of a file without the ending of a picture, and without regard to case."""
    stem, ending = os.path.splitext(base.casefold())
    return stem if ending in DECODED else base.casefold()
