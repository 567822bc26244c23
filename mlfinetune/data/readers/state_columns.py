"""Columns of states, one for each label: two bits a cell, and a verdict for each column.

image,cat,dog,fold          cat and dog are labels; fold is named as left out
a.jpg,1,,0                  cat 1, dog unknown
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence
from operator import itemgetter

import numpy as np

from mlfinetune.data.readers.cells import Cell, RowFaults, format_cell, quote_names
from mlfinetune.data.readers.state_words import THRESHOLD, CellState, is_pair, read_state
from mlfinetune.data.targets import NEGATIVE, POSITIVE, UNKNOWN, LabelSpace, Targets, pack_codes
from mlfinetune.text import pluralize

_CHUNK_ROWS = 4096
_KEPT_BAD_CELLS = 1000
"""Bad cells that are kept per column: more than any message shows."""

_BAD, _BLANK = 2, 3
"""Numbers of spellings: a cell that is no state, and a blank cell; also their codes of two bits."""
_LOW, _HIGH = 254, 255
"""Numbers for fractions below and above the threshold, where there are too many to number each."""
_FEW_SPELLINGS = 16


class StateColumns:
    """Collects states from candidate columns; a candidate whose cells are no states is no label.

    Use: `StateColumns(header, candidates, given)`, then `add` for each row, then `finish`.
    """

    def __init__(
        self, header: Sequence[str], candidates: Sequence[str], given: bool, ignored: Sequence[str]
    ) -> None:
        """Start without rows.

        Args:
            header: the columns of a row.
            candidates: columns that may be labels.
            given: the config names the candidates: each one is a label.
            ignored: labels that the config leaves out; a doubtful column among them is no fault.
        """
        self.candidates = tuple(candidates)
        self._given = given
        self._ignored = frozenset(ignored)
        self.rows = 0
        indices = [header.index(name) for name in candidates]
        self._pick: Callable[[Sequence[Cell]], Sequence[Cell]] = lambda cells: [
            cells[index] for index in indices
        ]
        if len(indices) > 1:  # faster; with one index it would return the cell and no sequence
            self._pick = itemgetter(*indices)
        self._spellings = _Spellings()
        self._pending: list[bytes] = []
        self._packed = [np.empty((0, -(-len(candidates) // 4)), np.uint8)]
        self._counts = np.zeros((256, len(candidates)), np.int64)  # of each spelling
        self._bad: defaultdict[int, list[tuple[int, str]]] = defaultdict(list)

    def add(self, cells: Sequence[Cell]) -> None:
        """Add a row as numbers of spellings; keep what is needed to report its bad cells."""
        # A table of labels has a thousand cells a row: `itemgetter`, `map` and `bytes` loop in C.
        states = self._pick(cells)
        try:
            numbers = bytes(map(self._spellings.__getitem__, states))
        except TypeError:  # a list or a mapping cannot be looked up
            states = [format_cell(cell) for cell in states]
            numbers = bytes(map(self._spellings.__getitem__, states))
        if _BAD in numbers:
            for column, number in enumerate(numbers):
                if number == _BAD and len(self._bad[column]) < _KEPT_BAD_CELLS:
                    self._bad[column].append((self.rows, format_cell(states[column])))
        self.rows += 1
        self._pending.append(numbers)
        if len(self._pending) == _CHUNK_ROWS:
            self._pack_pending()

    def _pack_pending(self) -> None:
        """Pack the pending rows to two bits a cell, and count their spellings."""
        block = np.frombuffer(b"".join(self._pending), np.uint8)
        block = block.reshape(len(self._pending), len(self.candidates))
        if len(self._spellings.states) <= _FEW_SPELLINGS:
            for number in (*range(len(self._spellings.states)), _LOW, _HIGH):
                self._counts[number] += np.count_nonzero(block == number, axis=0)
        else:
            for column in range(block.shape[1]):
                self._counts[:, column] += np.bincount(block[:, column], minlength=256)
        self._packed.append(pack_codes(self._spellings.codes[block]))
        self._pending = []

    def finish(self, faults: RowFaults) -> tuple[LabelSpace, Targets, list[str], list[str]]:
        """Return labels, targets, notes, and doubts: columns that may be labels or not.

        Bad cells of the label columns become `faults`. Without a doubt a column is a label where
        the config names it, or where at least half of its cells that are not blank are states.
        """
        self._pack_pending()
        chosen, doubts = [], list[str]()
        for column, name in enumerate(self.candidates):
            content = self._describe_column(column)
            verdict = "label" if self._given else judge_column(content)
            if verdict == "label":
                chosen.append(column)
            elif verdict == "doubt" and name not in self._ignored:
                doubts.append(f"'{name}' holds {content.list_values()}")
        self._report_bad_cells(chosen, faults)
        targets = Targets(np.concatenate(self._packed), len(self.candidates))
        if len(chosen) < len(self.candidates):
            blocks = (block[:, chosen] for _, block in targets.blocks())
            targets = Targets.pack(blocks, len(chosen))
        names = tuple(self.candidates[column] for column in chosen)
        return LabelSpace(names), targets, [*self._list_notes(chosen)], doubts

    def choose_words(self) -> dict[tuple[str, int], str]:
        """Return (column, state) -> the word to write: the most frequent one of the column.

        A column without a word for the state takes that of all columns, else `1` or `0`.
        """
        kinds = ("digit", *_WORDS)
        counts: dict[tuple[str, int], Counter[str]] = defaultdict(Counter)
        for column, name in enumerate(self.candidates):
            for text, (state, times) in self._describe_column(column).spellings.items():
                if state.kind in kinds:
                    counts[name, state.state][text] += times
                    counts["", state.state][text] += times
        plain = {POSITIVE: "1", NEGATIVE: "0"}
        return {
            (name, state): max(words, key=words.__getitem__) if words else word
            for name in self.candidates
            for state, word in plain.items()
            for words in [counts.get((name, state)) or counts.get(("", state))]
        }

    def _describe_column(self, column: int) -> "ColumnContent":
        """Return the counts of each spelling in a column."""
        counts = self._counts[:, column]
        spellings: dict[str, tuple[CellState, int]] = {}
        for number, (text, state) in enumerate(self._spellings.states):
            if state is not None and counts[number]:  # `x` and `x ` are one text
                before = spellings.get(text, (state, 0))[1]
                spellings[text] = (state, before + int(counts[number]))
        many = int(counts[_LOW] + counts[_HIGH])
        bad = [text for _, text in self._bad[column]] if column in self._bad else []
        return ColumnContent(spellings, many, int(counts[_BAD]), tuple(dict.fromkeys(bad)))

    def _list_notes(self, chosen: Sequence[int]) -> Iterator[str]:
        """Yield the notes on the label columns: their number, odd words, fractions, unknowns."""
        yield f"one column per label, {pluralize(len(chosen), 'label')}"
        contents = {column: self._describe_column(column) for column in chosen}
        words: dict[int, dict[str, None]] = {1: {}, 0: {}}
        for content in contents.values():
            for text, (state, _) in content.spellings.items():
                if state.kind in _WORDS and text.casefold() not in _PLAIN_WORDS:
                    words[state.state][text] = None
        said = [
            f"{quote_names(list(words[state]))} as {what}"
            for state, what in ((1, "present"), (0, "absent"))
            if words[state]
        ]
        if said:
            yield f"cells read: {'; '.join(said)}"
        fractions = [c for c, content in contents.items() if content.count("fraction")]
        if fractions:
            names = quote_names([self.candidates[column] for column in fractions])
            total = sum(contents[column].count("fraction") for column in fractions)
            yield (
                f"{pluralize(total, 'fraction')} in {names}: {THRESHOLD:g} and above is "
                f"present, below "
                f"is absent"
            )
        yield from self._note_unknown(contents.values())

    def _note_unknown(self, contents: Collection["ColumnContent"]) -> Iterator[str]:
        """Yield a note on cells that are unknown: blank ones, and those with a sign for it.

        Where both stand in a table without an absent cell, a blank one probably means absent.
        """
        signs = Counter[str]()
        absent = 0
        for content in contents:
            for text, (state, times) in content.spellings.items():
                signs[text] += times * (state.kind == "blank")
                absent += times * (state.state == NEGATIVE)
        counts = [f"{n} {repr(text) if text else 'blank'}" for text, n in signs.most_common() if n]
        if not counts:
            return
        total = f"{signs.total()} of {self.rows * len(contents)} targets are unknown"
        hint = "" if absent or not signs[""] or len(counts) == 1 else _ABSENT_HINT
        yield f"{total}: {', '.join(counts)}{hint}"

    def _report_bad_cells(self, chosen: Sequence[int], faults: RowFaults) -> None:
        """Add a fault for each kept bad cell of the chosen columns."""
        hint = "; if it is no label, name the labels in data.label_columns"
        if self._given:
            hint = ""
        for column in chosen:
            for row, cell in self._bad.get(column, ()):
                faults.add_fault(
                    f"{self.candidates[column]} is '{cell}'; wanted 1, 0, or blank or -1 for "
                    f"unknown{hint}",
                    row,
                )


_ABSENT_HINT = "; no cell says 0: if blank means no, write 0 there, or the others count as no too"
_WORDS = ("word", "letter", "tick", "dash")
_PLAIN_WORDS = ("true", "false")


class _Spellings(dict[Cell, int]):
    """Cell -> number of its spelling; `states` has the text and the state of each number.

    Numbers 0 to 3 are absent, present, bad and blank, which are codes of `Targets` too. Other
    spellings get the next numbers. Bad cells are not kept: they would fill the memory.
    """

    def __init__(self) -> None:
        self.states: list[tuple[str, CellState | None]] = [
            ("0", CellState(0, "digit")),
            ("1", CellState(1, "digit")),
            ("", None),  # bad
            ("", CellState(UNKNOWN, "blank")),
        ]
        self.codes = np.full(256, _BAD, np.uint8)
        self.codes[[0, 1, _BLANK]] = [0, 1, 3]
        self.codes[[_LOW, _HIGH]] = [0, 1]

    def __missing__(self, cell: Cell) -> int:
        text = format_cell(cell)
        state = read_state(text)
        if state is None:
            return _BAD
        if state.kind == "digit" or not text:
            self[cell] = state.state & 3
            return self[cell]
        if len(self.states) == _LOW:
            return _BLANK if state.state == UNKNOWN else _HIGH if state.state else _LOW
        self[cell] = len(self.states)
        self.codes[len(self.states)] = state.state & 3
        self.states.append((text, state))
        return self[cell]


class ColumnContent:
    """Cells of one column: how often each spelling stands there.

    Attributes:
        spellings: text -> its state, and the number of its cells.
        many: number of fractions beyond those in `spellings`.
        bad: number of cells that are no states.
        bad_values: some of these.
    """

    def __init__(
        self,
        spellings: dict[str, tuple[CellState, int]],
        many: int,
        bad: int,
        bad_values: tuple[str, ...],
    ) -> None:
        self.spellings = spellings
        self.many = many
        self.bad = bad
        self.bad_values = bad_values

    def count(self, *kinds: str) -> int:
        """Return the number of cells of these kinds."""
        counts = Counter[str]()
        for state, times in self.spellings.values():
            counts[state.kind] += times
        counts["fraction"] += self.many
        return sum(counts[kind] for kind in kinds)

    def list_texts(self, kind: str) -> list[str]:
        """Return the spellings of one kind."""
        return [text for text, (state, _) in self.spellings.items() if state.kind == kind]

    def list_values(self) -> str:
        """Return the first values in quotes, without blanks."""
        texts = [text for text, (state, _) in self.spellings.items() if state.kind != "blank"]
        return quote_names([*texts, *self.bad_values][:6])


def judge_column(content: ColumnContent) -> str:
    """Return whether a column that the config does not name is a `label`, `other`, or a `doubt`.

    cells that are not blank                             verdict
    none; or more that are no states than states         other
    `1`, `0`, `1.0`, `true`, `false`, with few errors    label, the errors are faults
    `ja`, `nein`; `yes`, `no`, `1`: words of one pair    label
    `ja`, `no`: words of two languages                   doubt
    `y` and `n`; one `n` among `1` and `0`               label; `m` and `f`: other
    `x` and blank, `x` and `-`, `+` and `-`              label; `x` and other words: doubt
    `-` alone                                            other
    `.9`, `.1`: a few fractions, again and again         label
    `0.53`, `0.718`, `0.4`: a measure                    doubt
    """
    known = content.count("digit", "fraction", *_WORDS)
    if not known or content.bad > known or content.count("dash") == known:
        return "other"
    if (letters := content.list_texts("letter")) and not _are_states(letters, content):
        return "other"
    words = [*content.list_texts("word"), *content.list_texts("dash")]
    ticks = content.count("tick")
    if ticks and (content.bad or content.count("word")):
        return "doubt"
    if content.count("dash") and not ticks and "+" not in words:
        return "doubt"
    if not ticks and words and not is_pair(set(words)):
        return "doubt"
    if fractions := content.count("fraction"):
        texts = content.list_texts("fraction")
        few = not content.many and len(texts) <= 11
        again = len(texts) <= 2 or 2 * len(texts) <= fractions
        return "label" if few and again and not content.bad else "doubt"
    return "label"


def _are_states(letters: Sequence[str], content: ColumnContent) -> bool:
    """Return whether letters such as `y` and `n` are states: a pair, or among other states."""
    folded = {letter.casefold() for letter in letters}
    if content.count("digit", "word"):
        return is_pair(folded)
    return not content.bad and (folded == {"y"} or (len(folded) == 2 and is_pair(folded)))
