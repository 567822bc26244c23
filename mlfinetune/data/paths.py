"""Do the names of a table lead to files below its root?

names, a folder at a time -> one listing where a folder holds many, else a look at each
-> the table with names as the disk spells them, and what is missing or out of bounds
"""

import errno
import os
import re
import stat
import unicodedata
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property
from urllib.parse import unquote

from mlfinetune.data.table import Fault, Table
from mlfinetune.location import is_url, join_location
from mlfinetune.storage.tars import find_member

_WORTH_LISTING = 32
"""Names in one folder from which reading the folder is cheaper than looking each one up."""


def check_paths(table: Table, allow_outside_root: bool) -> Table:
    """Look at every file that the table names, without opening one; adds faults to the table.

    A missing file is a fault of the picture; a name that leaves the root, by `..`, absolutely or
    through a link, is one of the row. Names that are found only in another Unicode normalisation
    (NFC, NFD) are taken as the disk spells them.
    """
    root = str(table.root) if is_url(table.root) else os.path.realpath(table.root)
    faults = [*table.faults, *_leaving(table, root, allow_outside_root)]
    by_folder: defaultdict[str, list[int]] = defaultdict(list)
    for row, name in enumerate(table.names):
        if name and not is_url(name) and not is_url(root):
            by_folder[name[: name.rfind(os.sep) + 1]].append(row)
    respelled: dict[int, str] = {}
    for below, rows in by_folder.items():
        spelled = _as_on_disk(root, below)
        folder = _Folder(os.path.join(root, spelled), root, allow_outside_root)
        listed = folder.entries if len(rows) >= _WORTH_LISTING else {}
        for row in rows:
            name = table.names[row]
            base = name[len(below) :]
            problem = None if listed.get(base) else folder.problem(base)
            if problem == _NO_FILE and (other := folder.respelling(base)):
                base, problem = other, folder.problem(other)
            if problem:
                hint = ""
                if problem == _NO_FILE:
                    hint = folder.hint(base) or _turned_slashes(root, name)
                text = f"{name!r}: {problem}{hint}"
                faults.append(table.fault(row, text, picture=problem != _OUTSIDE))
            elif spelled + base != name:
                respelled[row] = spelled + base
    if respelled:
        names = tuple(respelled.get(row, name) for row, name in enumerate(table.names))
        note = f"{len(respelled)} names are spelled on disk in another Unicode form (NFC, NFD)"
        table = replace(table, names=names, notes=(*table.notes, note))
    return replace(table, faults=tuple(faults))


def _leaving(table: Table, root: str, allowed: bool) -> Iterator[Fault]:
    """Names that lead elsewhere, where they or the root are URLs; the scan sees what is there."""
    for row, name in enumerate(table.names):
        if name and not allowed and (is_url(name) or is_url(root)) and not _is_below(root, name):
            yield table.fault(row, f"{name!r}: {_OUTSIDE}")


def _is_below(root: str, name: str) -> bool:
    where = join_location(root, name)
    read = unquote(unquote(where))  # servers and libraries decode once, or again
    odd = "::" in read or not read.isprintable()
    parts = re.split(r"[/\\]", read)
    return where.startswith(root.rstrip("/") + "/") and not odd and ".." not in parts


_NO_FILE = "no such file"
_OUTSIDE = "outside the image root; data.allow_outside_root: true permits it"


def _turned_slashes(root: str, name: str) -> str:
    """The file that a name of Windows means, for the message."""
    other = name.replace("\\", "/")
    found = other != name and ".." not in other.split("/") and not other.startswith("/")
    found = found and os.path.isfile(os.path.join(root, other))
    return f"; there is {other!r}: write / for \\" if found else ""


def _as_on_disk(root: str, below: str) -> str:
    """A folder's name; where it is found only in another Unicode normalisation, that one."""
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
    """One folder that names lead to; read when that is needed."""

    def __init__(self, path: str, root: str, allow_outside: bool) -> None:
        self._path, self._root, self._allow_outside = path, root, allow_outside

    @cached_property
    def inside(self) -> bool:
        """Is the folder below the root, or may it be anywhere?"""
        return self._is_inside(self._path)

    @cached_property
    def entries(self) -> dict[str, bool]:
        """Name -> is it a regular file? Nothing of a folder outside."""
        if not self.inside:
            return {}
        try:
            with os.scandir(self._path) as entries:
                return {e.name: e.is_file(follow_symlinks=False) for e in entries}
        except (OSError, ValueError):
            return {}

    @cached_property
    def _by_form(self) -> dict[str, str]:
        return {unicodedata.normalize("NFC", name): name for name in sorted(self.entries)}

    @cached_property
    def _by_case(self) -> dict[str, str]:
        return {name.casefold(): name for name in sorted(self.entries)}

    def problem(self, base: str) -> str | None:
        """What keeps the file from being read, as far as its name tells."""
        path = os.path.join(self._path, base)
        try:
            mode = os.stat(path).st_mode
            inside = self._is_inside(path) if os.path.islink(path) else self.inside
        except FileNotFoundError:
            return _NO_FILE
        except NotADirectoryError:
            return self._problem_in_tar(path)
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

    def _problem_in_tar(self, path: str) -> str | None:
        """The same of a path that has a file where a folder would be."""
        try:
            if find_member(path) is None:
                return os.strerror(errno.ENOTDIR)
            return None if self.inside else _OUTSIDE
        except FileNotFoundError:
            return _NO_FILE
        except OSError as error:
            return error.strerror or str(error)

    def respelling(self, base: str) -> str | None:
        """The file whose name is the same letters in another normalisation."""
        return self._by_form.get(unicodedata.normalize("NFC", base))

    def hint(self, base: str) -> str:
        """The file whose name differs in case alone, for the message."""
        other = self._by_case.get(base.casefold())
        return f"; there is {other!r}" if other and self.problem(other) is None else ""

    def _is_inside(self, path: str) -> bool:
        if self._allow_outside:
            return True
        try:
            real = os.path.realpath(path)
        except ValueError:  # no file name
            return False
        return real == self._root or real.startswith(self._root.rstrip(os.sep) + os.sep)
