"""Pictures of a table, found by names and paths that other programs have written.

table, its files -> Pictures; cell of a list -> Pictures.find -> the pictures that it may mean
"""

import os
import posixpath
import unicodedata
from collections import defaultdict
from collections.abc import Sequence

from mlfinetune.data.rows import normalize_name
from mlfinetune.data.table import Table
from mlfinetune.location import is_url, join_location
from mlfinetune.text import neutralize


class Pictures:
    """Rows of a table by the names of their pictures, as other programs write them.

    A name may stand elsewhere with backslashes, `./`, in another Unicode form, or with the
    apostrophe of `neutralize`.

    Attributes:
        rows: picture, as `normalize_name` has it -> its rows.
        roots: folders that names of the list may start from; empty: not known.
        by_path_alone: the list is of several tables: two of them may have one name for two files.
    """

    def __init__(self, table: Table) -> None:
        """Index the rows."""
        self.roots: tuple[str, ...] = ()
        self.by_path_alone = False
        self.rows: defaultdict[str, list[int]] = defaultdict(list)
        self._paths: dict[str, str] = {}
        self._by_key: defaultdict[str, set[str]] = defaultdict(set)
        self._pictures = [normalize_name(name, table.root) for name in table.names]
        for row, picture in enumerate(self._pictures):
            self.rows[picture].append(row)
        self.add_names(table.names)

    def add_names(self, names: Sequence[str]) -> None:
        """Add another name of each row's picture."""
        for picture, name in zip(self._pictures, names, strict=True):
            self._by_key[make_key(name)].add(picture)

    def add_paths(self, paths: Sequence[str]) -> None:
        """Add the path or URL of each row's picture."""
        self.add_names(paths)
        self._paths.update(zip(self._pictures, paths, strict=True))

    def find(self, cell: str) -> list[str]:
        """Return the pictures that a cell names: one, none, or several that may be meant.

        Its path decides. The name alone does where that is no file, as after a move.
        """
        names = list_names(cell)
        paths = [join_location(root, name) for root in self.roots for name in names]
        by_path, by_name = self._list(paths), self._list(names)
        if by_path:
            return sorted(by_path | by_name)
        return sorted(picture for picture in by_name if self._may_be(picture, paths))

    def _list(self, names: Sequence[str]) -> set[str]:
        return {picture for name in names for picture in self._by_key.get(make_key(name), ())}

    def _may_be(self, picture: str, paths: Sequence[str]) -> bool:
        """Return whether a picture that has a name of the list may be the one of these paths."""
        own, there = self._paths.get(picture, ""), [path for path in paths if os.path.exists(path)]
        if any(os.path.exists(own) and os.path.samefile(path, own) for path in there):
            return True
        return not (paths and self.by_path_alone) and not (there and os.path.exists(own))


def list_names(cell: str) -> list[str]:
    """Return the texts that a cell written with `neutralize` may stand for."""
    plain = cell[1:]
    return [cell, plain] if cell.startswith("'") and neutralize(plain) == cell else [cell]


def make_key(name: str) -> str:
    """Return a text that is the same for all spellings of a name or path."""
    if is_url(name):
        return name
    return unicodedata.normalize("NFC", posixpath.normpath(name.strip().replace("\\", "/")))
