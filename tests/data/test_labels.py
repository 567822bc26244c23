"""Labels are renamed, ignored, decided and given their columns as the config says."""

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlfinetune.config import DataConfig
from mlfinetune.data.labels import (
    align,
    apply_label_options,
    choose_labels,
    drop_labels,
    find_rare_labels,
    natural_key,
    note_unnamed_labels,
    select_split,
)
from mlfinetune.data.table import SourceOptions, Table
from mlfinetune.data.targets import LabelSpace, Targets
from mlfinetune.errors import DataError

LISTED, SAID = 0, -1


def table(
    labels: str, *rows: list[int], said: int = LISTED, splits: tuple[str, ...] | None = None
) -> Table:
    """Return a table with those labels, separated by spaces, and a row of states an image."""
    names = tuple(labels.split())
    states = np.array(rows, np.int8).reshape(len(rows), len(names))
    return Table(
        origin=Path("tags.csv"),
        format="csv",
        root=Path(),
        names=tuple(f"{row}.jpg" for row in range(len(rows))),
        targets=Targets.pack([states], len(names)),
        unnamed=np.full(len(rows), said, np.int8),
        labels=LabelSpace(names),
        lines=np.arange(2, len(rows) + 2),
        splits=splits,
    )


def settled(before: Table, **options: Any) -> Table:
    """Return the table after the label options."""
    return apply_label_options(before, SourceOptions(**options))


def content(after: Table) -> dict[str, list[int]]:
    """Return label -> its column, in order of the columns."""
    return dict(zip(after.labels.names, after.targets[:].T.tolist(), strict=True))


# ---- other names ------------------------------------------------------------------------


def test_labels_that_get_one_name_are_joined() -> None:
    """1 beats unknown beats 0; the column stands where the first of them stood."""
    before = table("a x b", [1, 0, 0], [0, 1, -1], [0, 0, -1], [0, 1, 0])
    after = settled(before, rename_labels=(("a", "c"), ("b", "c")))
    assert content(after) == {"c": [1, -1, -1, 0], "x": [0, 1, 0, 1]}


def test_a_label_is_renamed_onto_another() -> None:
    """The two become one, whichever stands first."""
    for labels in ("dog Dog", "Dog dog"):
        after = settled(table(labels, [1, 0], [0, 1]), rename_labels=(("Dog", "dog"),))
        assert content(after) == {"dog": [1, 1]}


def test_new_names_are_not_renamed_again() -> None:
    """Two labels can change places."""
    after = settled(table("a b", [1, 0]), rename_labels=(("a", "b"), ("b", "a")))
    assert content(after) == {"b": [1], "a": [0]}
    after = settled(table("a b c", [1, 0, 0]), rename_labels=(("a", "b"), ("b", "c")))
    assert content(after) == {"b": [1], "c": [0]}


def test_labels_are_ignored_under_their_new_names() -> None:
    """The old name of a renamed label is no label any more."""
    before = table("a b c", [1, 1, 1], [0, 0, 1])
    after = settled(before, rename_labels=(("a", "b"),), ignore_labels=("b", "nobody"))
    assert content(after) == {"c": [1, 1]}
    after = settled(before, rename_labels=(("a", "b"),), ignore_labels=("a",))
    assert content(after) == {"b": [1, 0], "c": [1, 1]}


def test_nothing_asked_for_changes_nothing() -> None:
    """The very columns stay."""
    before = table("a b", [1, -1], [0, 1])
    after = settled(before)
    assert content(after) == content(before)
    assert after.notes == ()


# ---- unknown, and nothing ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("unknown", "state", "word"), [("positive", 1, "present"), ("negative", 0, "absent")]
)
def test_unknown_is_decided_and_counted(unknown: str, state: int, word: str) -> None:
    """Every unknown target of the table becomes that state."""
    after = settled(table("a b", [1, -1], [-1, 0], said=SAID), unknown=unknown)
    assert content(after) == {"a": [1, state], "b": [state, 0]}
    assert after.notes == (f"2 unknown targets counted as {word} (data.unknown)",)


def test_a_label_that_the_table_lacks_stays_unknown() -> None:
    """Nobody looked for it in those images, whatever blanks in the table mean."""
    after = settled(table("a", [-1], said=SAID), unknown="negative")
    assert align(after, LabelSpace(("b", "a"))).targets[:].tolist() == [[-1, 0]]


def test_an_empty_row_is_negative_unless_the_config_says_otherwise() -> None:
    """Rows of label columns say what they say; rows with a label are no matter."""
    rows = [1, 0, 0, 0, 0], [0, 0, 0, 0, 0]
    after = settled(table("a b c d e", *rows))
    assert after.targets[1].tolist() == [0, 0, 0, 0, 0]
    assert after.notes == ("1 image with no label: all labels absent",)
    after = settled(table("a b c d e", *rows), empty_labels="unknown")
    assert after.targets[:].tolist() == [[1, 0, 0, 0, 0], [-1, -1, -1, -1, -1]]
    assert after.unnamed.tolist() == [0, -1]
    assert after.notes == ("1 image with no label: all labels unknown",)
    after = settled(table("a b c d e", *rows, said=SAID), empty_labels="unknown")
    assert after.targets[1].tolist() == [0, 0, 0, 0, 0]


def test_blank_rows_of_columns_stay_unknown_where_the_config_says_so() -> None:
    """`empty_labels: unknown` is about single rows, and beats `unknown`; the default changes none.

    The last row is no empty one: a cell of it was filled in, though its label is ignored.
    """
    before = table("a b c", [1, -1, -1], [-1, -1, -1], [-1, -1, 1], said=SAID)
    ignored = {"ignore_labels": ("c",), "unknown": "negative"}
    after = settled(before, empty_labels="unknown", **ignored)
    assert content(after) == {"a": [1, -1, 0], "b": [0, -1, 0]}
    assert after.notes == (
        "3 unknown targets counted as absent (data.unknown)",
        "1 image with unknown targets alone stay so (data.empty_labels)",
    )
    assert content(settled(before, **ignored)) == {"a": [1, 0, 0], "b": [0, 0, 0]}


def test_empty_rows_are_refused_by_line() -> None:
    """All of them, as faults of the rows."""
    after = settled(table("a", [0], [1], [0]), empty_labels="error")
    text = "no label (data.empty_labels is error)"
    assert [str(fault) for fault in after.faults] == [f"line 2: {text}", f"line 4: {text}"]
    assert [(fault.row, fault.picture) for fault in after.faults] == [(0, False), (2, False)]
    assert after.notes == ("2 images with no label: refused",)


def test_a_row_of_ignored_labels_is_not_empty() -> None:
    """The row was labelled, so the labels that it does not list are absent."""
    after = settled(table("a b", [1, 0], [0, 1]), ignore_labels=("a",), empty_labels="error")
    assert content(after) == {"b": [0, 1]}
    assert after.faults == ()


def test_every_policy_of_the_config_is_known(tmp_path: Path) -> None:
    """Each value that a config may hold does something."""
    for key in ("empty_labels", "unknown"):
        schema = DataConfig.model_json_schema()["properties"][key]
        for value in schema["enum"]:
            assert len(settled(table("a b", [0, -1], [1, 0]), **{key: value}).labels) == 2


# ---- columns ----------------------------------------------------------------------------


def test_columns_are_left_out() -> None:
    """Names that the table lacks change nothing, and none may be left."""
    before = table("a b c", [1, 0, -1])
    assert content(drop_labels(before, {"b", "nobody"})) == {"a": [1], "c": [-1]}
    assert drop_labels(before, ["nobody"]) is before
    bare = drop_labels(before, "abc")
    assert (bare.targets.shape, bare.labels.names) == ((1, 0), ())
    with pytest.raises(DataError, match=r"tags\.csv: no image has a label"):
        choose_labels(bare, None)


def test_rare_labels_have_fewer_positives_than_asked() -> None:
    """Unknown is not positive; as many are enough."""
    before = table("a b c", [1, -1, 1], [1, -1, 0], [0, 1, 0])
    assert [find_rare_labels(before, least) for least in (0, 1, 2, 3)] == [
        [],
        [],
        ["b", "c"],
        ["a", "b", "c"],
    ]
    assert find_rare_labels(table("a b", [0, 1]), 1) == ["a"]


def test_a_split_has_the_listed_labels_of_its_rows() -> None:
    """Unknown ones too; label columns stay, whatever rows say."""
    rows, splits = ([1, 0, 0], [0, -1, 0], [0, 0, 1]), ("train", "train", "val")
    assert content(select_split(table("a b c", *rows, splits=splits), "train")) == {
        "a": [1, 0],
        "b": [0, -1],
    }
    assert content(select_split(table("a b c", *rows, splits=splits), "val")) == {"c": [1]}
    said = select_split(table("a b c", *rows, said=SAID, splits=splits), "val")
    assert content(said) == {"a": [0], "b": [0], "c": [1]}


def test_targets_are_put_into_the_columns_of_the_run() -> None:
    """Columns may be equal, in another order, or more; new ones are absent or unknown."""
    before = table("a b", [1, 0], [-1, 1])
    assert align(before, LabelSpace(("a", "b"))).targets[:].tolist() == [[1, 0], [-1, 1]]
    assert align(before, LabelSpace(("b", "a"))).targets[:].tolist() == [[0, 1], [1, -1]]
    wide = LabelSpace(("b", "x", "a", "y", "z"))
    assert align(before, wide).targets[:].tolist() == [[0, 0, 1, 0, 0], [1, 0, -1, 0, 0]]
    said = align(table("a b", [1, 0], said=SAID), wide)
    assert said.targets[:].tolist() == [[0, -1, 1, -1, -1]]
    assert (said.labels, said.names) == (wide, ("0.jpg",))


def test_few_labels_become_many_a_piece_at_a_time() -> None:
    """A million images of one label are not a dense table of a thousand."""
    before = table("a", *[[1]] * 100_000)
    tracemalloc.start()
    after = align(before, LabelSpace(("a", *map(str, range(999)))))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert after.targets.counts()[0].tolist() == [100_000, *[0] * 999]
    assert peak < 80e6  # 100 MB dense, 25 MB packed


def test_labels_that_the_run_lacks_are_listed() -> None:
    """Each has its number of images, the first of them, and the nearest known label."""
    before = table("a catt fox", [1, 0, 0], [0, 1, 0], [0, 1, -1])
    with pytest.raises(DataError) as caught:
        align(before, LabelSpace(("a", "cat")))
    assert str(caught.value).splitlines()[1:] == [
        "  'catt': 2 images, first at line 3; did you mean 'cat'?",
        "  'fox': 1 image, first at line 4",
    ]


def test_labels_that_no_row_names_are_noted() -> None:
    """They are negatives of every picture, which averages over all decisions feel."""
    space = LabelSpace(("cat", "dog", "fox"))
    (note,) = note_unnamed_labels(table("dog", [1], [0]), space)
    assert note.startswith("2 labels ('cat', 'fox') that no row names: absent from all pictures")
    assert note_unnamed_labels(table("dog", [1], [0], said=SAID), space) == []
    assert note_unnamed_labels(table("dog cat fox", [1, 0, 0]), space) == []


def test_a_stranger_that_no_row_has_is_listed_too() -> None:
    """A column of zeros still asks for a label that the run does not have."""
    with pytest.raises(DataError) as caught:
        align(table("a fox", [1, 0], said=SAID), LabelSpace(("a",)))
    assert str(caught.value).splitlines()[1].startswith("  'fox'")


@settings(deadline=None)
@given(st.lists(st.text("ab019٣², Zß"), max_size=6))
def test_natural_order_is_one_order(names: list[str]) -> None:
    """The order of the input does not matter, and no two labels compare equal."""
    wanted = sorted(names, key=natural_key)
    names.reverse()
    assert sorted(names, key=natural_key) == wanted
    assert all(natural_key(a) != natural_key(b) for a in names for b in names if a != b)


@settings(deadline=None)
@given(st.integers(0, 10**30), st.integers(0, 10**30), st.text("abc", max_size=2))
def test_numbers_are_sorted_by_size(a: int, b: int, word: str) -> None:
    """Behind the same word, and before another."""
    left, right = natural_key(f"{word}{a}{word}"), natural_key(f"{word}{b}{word}")
    assert (left < right) == (a < b)
    assert natural_key("007") < natural_key("8") < natural_key("0010")
    assert (
        natural_key("2")
        < natural_key("10")
        < natural_key("a")
        < natural_key("B")
        < natural_key("b2")
    )


@pytest.mark.parametrize(("blank", "told"), [(2, True), (1, False), (0, False)])
def test_a_large_share_of_blank_rows_gets_the_choice(blank: int, told: bool) -> None:
    """Perhaps nobody looked at them; then they are no negatives."""
    rows = [[0, 0, 0]] * blank + [[1, 0, 0]] * (9 - blank)
    notes = settled(table("a b c", *rows)).notes
    assert (
        any(note.endswith("if nobody looked at them: data.empty_labels: unknown") for note in notes)
        == told
    )
    assert "nobody" not in str(settled(table("a b c", *rows), empty_labels="unknown").notes)
