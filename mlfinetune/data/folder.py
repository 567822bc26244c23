"""Folder: one folder that holds pictures of a table, and its names as the disk spells them.

name of a file -> None: it can be used; or why it cannot, and the name that was meant
"""

import errno
import os
import stat
import sys
import unicodedata
from functools import cached_property

from mlfinetune.data.images.names import DECODED
from mlfinetune.data.search import is_below
from mlfinetune.storage.tars import find_member

NO_FILE = "no such file"
OUTSIDE = "outside the image root; data.allow_outside_root: true permits it"


def suggest_slashes(root: str, name: str) -> str:
    """Return a hint where the name, with / for the backslashes of Windows, leads to a file."""
    other = name.replace("\\", "/")
    if other == name or other.startswith("/") or ".." in other.split("/"):
        return ""
    exists = os.path.isfile(os.path.join(root, other))
    return f"; there is {other!r}: write / for \\" if exists else ""


def spell_as_on_disk(root: str, below: str) -> str:
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


class Folder:
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

    @cached_property
    def _by_number(self) -> dict[str, list[str]]:
        names: dict[str, list[str]] = {}
        for name in sorted(self.entries):
            if (number := _find_number(name)) is not None:
                names.setdefault(number, []).append(name)
        return names

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
            if "\0" not in path and path.encode(errors="replace").decode() == path:
                what = f"characters that the encoding {sys.getfilesystemencoding()} lacks"
            return f"not a file name (it holds {what})"
        if not inside:
            return OUTSIDE
        if stat.S_ISDIR(mode):
            return "a folder, not a picture"
        return None if stat.S_ISREG(mode) else "not a regular file"

    def _find_problem_in_tar(self, path: str, no_file: OSError) -> str | None:
        """Return why a path that is no file cannot be used; None if it is a member of a tar."""
        try:
            if find_member(path) is None:
                missing = isinstance(no_file, FileNotFoundError)
                return NO_FILE if missing else os.strerror(errno.ENOTDIR)
            return None if self.inside else OUTSIDE
        except FileNotFoundError:
            return NO_FILE
        except OSError as error:
            return error.strerror or str(error)

    def find_respelling(self, base: str) -> str | None:
        """Return the file with this name in another Unicode form, or None."""
        return self._by_form.get(unicodedata.normalize("NFC", base))

    def suggest_name(self, base: str) -> str:
        """Return `; there is 'A.jpg'` where case, ending or zeros of a name are wrong, or ''.

        Spreadsheets write 7 for 007, and pandas 7.0.
        """
        other = self._by_case.get(base.casefold()) or self._by_stem.get(_cut_ending(base))
        if other is None and (number := _find_number(base)) is not None:
            alike = self._by_number.get(number, [])
            if len(alike) == 1 and self.find_problem(alike[0]) is None:
                return f"; there is {alike[0]!r}: a spreadsheet may have dropped the zeros"
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


def _find_number(base: str) -> str | None:
    """Return the number that a file is named by, without zeros before it; None without one."""
    stem = _cut_ending(base).removesuffix(".0")
    return (stem.lstrip("0") or "0") if stem.isdecimal() and stem.isascii() else None
