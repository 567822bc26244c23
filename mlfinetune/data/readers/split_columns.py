"""The split of each row: from columns of words such as train and test, or of marks of 1 and 0.

image,set            image,is_valid,is_test
a.jpg,Train          a.jpg,0,0               -> train
b.jpg,test           b.jpg,0,1               -> test
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from mlfinetune.data.readers.cells import Cell, format_cell, quote_names
from mlfinetune.data.readers.column_names import SPLIT_MARKS, find_split, simplify_name
from mlfinetune.data.readers.state_words import read_state
from mlfinetune.data.targets import UNKNOWN
from mlfinetune.errors import DataError
from mlfinetune.text import quote_yaml

_USUAL = ("split", "is_valid")


class SplitColumns:
    """Collects the splits of all rows; a row whose cells name none is in train, with a fault."""

    def __init__(self, header: Sequence[str], columns: Sequence[str], given: bool) -> None:
        """Start without rows.

        Args:
            header: the columns of a row.
            columns: the columns of splits; without one there are no splits.
            given: the config names the column; else it may turn out to be no split.
        """
        self.columns = tuple(columns)
        self._given = given
        self._indices = [header.index(name) for name in columns]
        self._of_mark = {
            name: SPLIT_MARKS[simplify_name(name)]
            for name in columns
            if simplify_name(name) in SPLIT_MARKS
        }
        self._splits: list[str] = []
        self._differ = False

    def add(self, cells: Sequence[Cell]) -> str | None:
        """Add a row; return the text of its fault, or None."""
        if not self.columns:
            return None
        texts = [format_cell(cells[index]) for index in self._indices]
        if self._of_mark:
            split = self._join_marks(texts)
        else:
            split = find_split(texts[0])
            self._differ |= len(texts) > 1 and len(set(map(find_split, texts))) > 1
        self._splits.append(split or "train")
        if split is not None:
            return None
        wanted = "1 or 0, and 1 in one column" if self._of_mark else "train, val or test"
        hint = "" if self._given else _HINT
        return f"{self.columns[0]} is '{texts[0]}'; wanted {wanted}{hint}"

    def finish(self, path: Path) -> tuple[str, ...] | None:
        """Return the split of each row; None where the table has no splits.

        A column that nobody named, and that never says train, is none.

        Raises:
            DataError: two columns differ.
        """
        if self._differ:
            raise DataError(f"{path}: {describe_rivals(quote_names(self.columns), self.columns)}")
        if not self.columns:
            return None
        is_sure = self._given or self.columns[0].casefold() in _USUAL
        return tuple(self._splits) if is_sure or "train" in self._splits else None

    def list_notes(self) -> list[str]:
        """Return the note that names columns which are not called split, with their counts."""
        if all(name.casefold() in _USUAL for name in self.columns):
            return []
        counts = Counter(self._splits)
        parts = ", ".join(f"{counts[name]} {name}" for name in ("train", "val", "test"))
        return [f"splits in {quote_names(self.columns)}: {parts}"]

    def list_choices(self) -> list[tuple[str, str | tuple[str, ...]]]:
        """Return the config key that makes the same choice, where the column was guessed."""
        if self._given or self._of_mark or self.columns[0].casefold() in _USUAL:
            return []
        return [("split_column", self.columns[0])]

    def _join_marks(self, texts: Sequence[str]) -> str | None:
        """Return the split that marks of 1 and 0 give; None where a mark is neither.

        is_valid 1 -> val       is_valid 0 -> train      is_train 0 -> val
        is_train 0, is_test 1 -> test                    is_train 0, is_test 0 -> val
        """
        marked = set()
        for name, text in zip(self.columns, texts, strict=True):
            state = read_state(text)
            if state is None or state.state == UNKNOWN:
                return None
            if state.state:
                marked.add(self._of_mark[name])
        if len(marked) > 1:
            return None
        of_marks = set(self._of_mark.values())
        rest = next(split for split in ("train", "val", "test", "") if split not in of_marks)
        return marked.pop() if marked else rest or None


_HINT = "; if this column is no split: data.split_column: none, or the name of another"


def describe_rivals(described: str, columns: Sequence[str]) -> str:
    """Return the error where columns hold words for splits, and differ."""
    line = f"data.split_column: {quote_yaml(columns[0])}"
    return f"{described} hold words for splits, and differ; name one: {line}"
