"""Reviewed suspects applied to tables of every shape: exactly the accepted targets change."""

import csv
import io
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlfinetune.data.fixed_copy import verify_fixed
from mlfinetune.data.fixes import Fixes, Tally
from mlfinetune.data.readers.csv_table import read_csv
from mlfinetune.data.rows import join_repeats
from mlfinetune.data.table import SourceOptions
from mlfinetune.errors import DataError
from mlfinetune.runtime.log import RunLog
from mlfinetune.workflows.apply_fixes import ApplyRequest, run

LABELS = ("cat", "dog", "red fox")
Row = list[str]
Shape = Callable[[str, Row, list[int], str], list[Row]]
"""(picture, its other cells, a state for each of LABELS, an odd string) -> its rows."""


def lists(name: str, more: Row, states: list[int], odd: str) -> list[Row]:
    """Return one row with a list of labels."""
    return [[name, odd.join(x for x, s in zip(LABELS, states, strict=True) if s == 1), *more]]


def lists_with_unknown(name: str, more: Row, states: list[int], odd: str) -> list[Row]:
    """Return one row with a list of labels, and a list of unknown ones."""
    unknown = odd.join(x for x, s in zip(LABELS, states, strict=True) if s == -1)
    return [[*lists(name, [], states, odd)[0], unknown, *more]]


def several(name: str, more: Row, states: list[int], odd: str) -> list[Row]:
    """Return one row with a column for the first label, the second, the third."""
    tags = [x for x, s in zip(LABELS, states, strict=True) if s == 1]
    return [[name, *tags, *[""] * (3 - len(tags)), *more]]


def long(name: str, more: Row, states: list[int], odd: str) -> list[Row]:
    """Return a row for each label; one of a blank label where there is none."""
    tags = [x for x, s in zip(LABELS, states, strict=True) if s == 1]
    return [[name, tag, *more] for tag in tags or [""]]


def valued(name: str, more: Row, states: list[int], odd: str) -> list[Row]:
    """Return a row for each known label, with its value."""
    known = [(x, s) for x, s in zip(LABELS, states, strict=True) if s >= 0]
    return [[name, tag, str(state), *more] for tag, state in known]


def columns(words: dict[int, str]) -> Shape:
    """Return a shape with a column for each label, in these words."""
    return lambda name, more, states, odd: [[name, *(words[s] for s in states), *more]]


@dataclass(frozen=True)
class Case:
    """A shape: its header, its rows, the state of what it does not name, its joint."""

    header: Row
    build: Shape
    unnamed: int = 0
    odd: str = "|"


CASES = {
    "|": Case(["image", "labels"], lists),
    " | ": Case(["image", "labels"], lists, odd=" | "),
    "; ": Case(["image", "labels"], lists, odd="; "),
    "unknown": Case(["image", "labels", "unknown"], lists_with_unknown),
    "several": Case(["image", "label1", "label2", "label3"], several),
    "long": Case(["image", "labels"], long),
    "valued": Case(["image", "label", "value"], valued, -1),
    "1/0": Case(["image", *LABELS], columns({1: "1", 0: "0", -1: ""}), -1),
    "yes/no": Case(["image", *LABELS], columns({1: "Yes", 0: "no", -1: "?"}), -1),
    "x/-": Case(["image", *LABELS], columns({1: "x", 0: "-", -1: ""}), -1),
}
FIXED = [[1, 1, 0], [0, 1, 1], [1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, 0]]
"""States of the last pictures, which no decision concerns: they say how the table is read."""


def read(path: Path) -> dict[str, dict[str, int]]:
    """Return picture -> label -> state, of every label that the table has."""
    table = join_repeats(read_csv(path, SourceOptions()))
    names = table.labels.names
    return {
        picture: dict(zip(names, states.tolist(), strict=True))
        for picture, states in zip(table.names, table.targets[:], strict=True)
    }


def write(rows: list[Row], separator: str, quoting: int, end: str) -> str:
    """Return rows as CSV text."""
    text = io.StringIO()
    csv.writer(text, delimiter=separator, quoting=quoting, lineterminator=end).writerows(rows)
    return text.getvalue()


@settings(max_examples=50)
@given(seed=st.integers(0, 2**32 - 1), kind=st.sampled_from(list(CASES)))
def test_exactly_the_accepted_targets_change(seed: int, kind: str) -> None:
    """In any shape, encoding, separator, quoting and line ends; other rows keep their bytes."""
    rng, case = random.Random(seed), CASES[kind]
    low = -1 if case.unnamed or kind == "unknown" else 0
    states = [[rng.randint(low, 1) for _ in LABELS] for _ in range(rng.randint(0, 5))]
    if kind == "valued":  # a picture without a known label has no row
        states = [[max(0, first), *others] for first, *others in states]
    separator = rng.choice(",;\t")
    quoting = rng.choice([csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
    end = rng.choice(["\n", "\r\n"])
    encoding = rng.choice(["utf-8", "utf-8-sig", "utf-16", "cp1252"])
    all_states = [*states, *FIXED]
    names = [f"=ä/{row}.jpg" if row % 2 else f"b{row}.jpg" for row in range(len(all_states))]
    rows = [
        made
        for row, (name, one) in enumerate(zip(names, all_states, strict=True))
        for made in case.build(name, ['Käfer, "ß"', f"n{row}"], one, case.odd)
    ]
    text = write([[*case.header, "note", "more"], *rows], separator, quoting, end)
    if rng.random() < 0.5:
        text = text.removesuffix(end)
    pairs = [(row, column) for row in range(len(states)) for column in range(3)]
    chosen = rng.sample(pairs, rng.randint(0, len(pairs)))
    with TemporaryDirectory() as folder:
        table, decisions, fixed = (Path(folder) / f"{name}.csv" for name in ("t", "d", "f"))
        table.write_bytes(text.encode(encoding))
        before = read(table)
        review = [["image", "label", "given", "decision"]]
        for row, column in chosen:
            now = before.get(names[row], {}).get(LABELS[column], case.unnamed)
            shown = f"'{names[row]}" if names[row].startswith("=") else names[row]
            review.append([shown, LABELS[column], str(int(now == 1)), "accept"])
            if names[row] in before:
                before[names[row]][LABELS[column]] = int(now != 1)
        decisions.write_text(write(review, ";", csv.QUOTE_MINIMAL, "\r\n"), encoding="utf-16")
        tally = run(ApplyRequest(table, decisions, fixed), RunLog(io.StringIO()))
        after = read(fixed)
        assert table.read_bytes() == text.encode(encoding)
        written = fixed.read_bytes().decode(encoding)
    assert (tally.added + tally.removed + len(tally.lost), tally.already) == (len(chosen), 0)
    names_of_labels = {label for one in (before, after) for row in one.values() for label in row}
    assert list(after) == list(before)
    for picture, wanted in before.items():
        for label in names_of_labels:
            found = after[picture].get(label, case.unnamed)
            assert found == wanted.get(label, case.unnamed), (picture, label)
    touched = {names[row] for row, _ in chosen}
    kept = [line for line in text.split(end) if not any(name in line for name in touched)]
    assert [x for x in written.split(end) if not any(name in x for name in touched)] == kept


@pytest.mark.parametrize(
    ("copy", "why"),
    [
        ("a.jpg,cat\nb.jpg,dog|cat\n", "'dog' of 'a.jpg' differs"),
        ("a.jpg,cat|dog\nc.jpg,dog|cat\n", "other rows"),
        ("a.jpg,cat|dog\nb.jpg,dog|cat,\n,cat\n", "other rows: line 4"),
    ],
)
def test_a_copy_that_differs_elsewhere_is_refused(tmp_path: Path, copy: str, why: str) -> None:
    """Any other change of a target or a row, for whatever reason, and the message names it."""
    for name, rows in (("t.csv", "a.jpg,cat|dog\nb.jpg,dog|cat\n"), ("f.csv", copy)):
        (tmp_path / name).write_text(f"image,labels\n{rows}")
    before = read_csv(tmp_path / "t.csv", SourceOptions())
    with pytest.raises(DataError, match=f"read in another way.*{why}"):
        verify_fixed(before, tmp_path / "f.csv", SourceOptions(), Fixes({}, {}, Tally()))
