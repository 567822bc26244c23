"""Check that the names of a table lead to files below its root, without opening one.

names, grouped by folder -> a folder with many names is listed once; else each file is looked up
-> the table with names as the disk spells them, and a fault for each missing or outside file
"""

import errno
import os
import re
import stat
import unicodedata
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from urllib.parse import unquote

from mlfinetune.data.table import Fault, SourceOptions, Table
from mlfinetune.location import is_url, join_location
from mlfinetune.storage.tars import find_member

_WORTH_LISTING = 32
"""Names in one folder from which listing the folder is cheaper than looking up each file."""

_NO_FILE = "no such file"
_OUTSIDE = "outside the image root; data.allow_outside_root: true permits it"


def check_paths(table: Table, options: SourceOptions) -> Table:
    """Look up every file that the table names, without opening one; add a fault for each bad one.

        the name leads to                               outcome
        a file below the root                           the name stays as it is
        a file in another Unicode form (NFC, NFD)       the name as the disk spells it, and a note
        no file, a folder, an unreadable path           a fault of the picture: it can be skipped
        outside the root, by `..`, `/` or a link        a fault of the row: it is never skipped

    With `allow_outside_root` the last line does not apply. Names that are URLs are not looked up,
    only compared with the root; whether they exist is seen by the scan.
    """
    allow_outside_root = options.allow_outside_root
    root = str(table.root) if is_url(table.root) else os.path.realpath(table.root)
    faults = [*table.faults, *_find_urls_outside(table, root, allow_outside_root)]
    by_folder: defaultdict[str, list[int]] = defaultdict(list)
    for row, name in enumerate(table.names):
        if name and not is_url(name) and not is_url(root):
            by_folder[name[: name.rfind(os.sep) + 1]].append(row)
    respelled: dict[int, str] = {}
    for below, rows in by_folder.items():
        spelled = _spell_as_on_disk(root, below)
        folder = _Folder(os.path.join(root, spelled), root, allow_outside_root)
        for row, base, problem in _look_up(folder, table, below, rows):
            name = table.names[row]
            if problem:
                hint = ""
                if problem == _NO_FILE:
                    hint = folder.suggest_case(base) or _suggest_slashes(root, name)
                text = f"{name!r}: {problem}{hint}"
                faults.append(table.build_fault(row, text, picture=problem != _OUTSIDE))
            elif spelled + base != name:
                respelled[row] = spelled + base
    if respelled:
        names = tuple(respelled.get(row, name) for row, name in enumerate(table.names))
        note = f"{len(respelled)} names are spelled on disk in another Unicode form (NFC, NFD)"
        table = replace(table, names=names, notes=(*table.notes, note))
    return replace(table, faults=tuple(faults))


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


def _find_urls_outside(table: Table, root: str, allowed: bool) -> Iterator[Fault]:
    """Yield a fault for each name outside the root, where the name or the root is a URL."""
    for row, name in enumerate(table.names):
        if name and not allowed and (is_url(name) or is_url(root)) and not _is_below(root, name):
            yield table.build_fault(row, f"{name!r}: {_OUTSIDE}")


def _is_below(root: str, name: str) -> bool:
    """Return whether a name, joined to the root, is a URL below the root."""
    location = join_location(root, name)
    decoded = unquote(unquote(location))  # servers and libraries may decode %2e once, or twice
    odd = "::" in decoded or not decoded.isprintable()  # fsspec chains protocols with ::
    parts = re.split(r"[/\\]", decoded)
    return location.startswith(root.rstrip("/") + "/") and not odd and ".." not in parts


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
    for part in below.split(os.sep)[:-1]:
        parent = os.path.join(root, spelled)
        if not os.path.lexists(os.path.join(parent, part)) and os.path.isdir(parent):
            forms = {unicodedata.normalize("NFC", name): name for name in os.listdir(parent)}
            part = forms.get(unicodedata.normalize("NFC", part), part)
        spelled += part + os.sep
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

    def find_problem(self, base: str) -> str | None:
        """Return why the file cannot be used, as far as a look-up tells; None if it can."""
        path = os.path.join(self._path, base)
        try:
            mode = os.stat(path).st_mode
            inside = self._is_inside(path) if os.path.islink(path) else self.inside
        except FileNotFoundError:
            return _NO_FILE
        except NotADirectoryError:
            return self._find_problem_in_tar(path)
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

    def _find_problem_in_tar(self, path: str) -> str | None:
        """Return why a path below a file cannot be used; None if it is a member of a tar."""
        try:
            if find_member(path) is None:
                return os.strerror(errno.ENOTDIR)
            return None if self.inside else _OUTSIDE
        except FileNotFoundError:
            return _NO_FILE
        except OSError as error:
            return error.strerror or str(error)

    def find_respelling(self, base: str) -> str | None:
        """Return the file with this name in another Unicode form, or None."""
        return self._by_form.get(unicodedata.normalize("NFC", base))

    def suggest_case(self, base: str) -> str:
        """Return `; there is 'A.jpg'` where only the case of the name is wrong, else nothing."""
        other = self._by_case.get(base.casefold())
        return f"; there is {other!r}" if other and self.find_problem(other) is None else ""

    def _is_inside(self, path: str) -> bool:
        """Return whether a path is below the root once all links are followed.

        With `allow_outside` every path counts as inside.
        """
        if self._allow_outside:
            return True
        try:
            real = os.path.realpath(path)
        except ValueError:  # a NUL, or half a character
            return False
        return real == self._root or real.startswith(self._root.rstrip(os.sep) + os.sep)
