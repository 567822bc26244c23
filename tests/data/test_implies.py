"""Labels that follow from labels: `data.implies`."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mlfinetune.data.labels import apply_label_options
from mlfinetune.data.read import SplitOptions, read_manifest, read_splits, read_table
from mlfinetune.data.table import SourceOptions, Table
from mlfinetune.data.targets import UNKNOWN
from mlfinetune.errors import DataError

PETS = {"siamese": "cat", "cat": "animal", "dog": "animal"}
ORDER = ("animal", "cat", "dog", "siamese")


def write(folder: Path, *rows: str, header: str = "image,labels") -> Path:
    """Write a table of these rows, one picture each."""
    for number in range(len(rows)):
        Image.new("L", (8, 8), number).save(folder / f"{number}.png")
    lines = [header, *(f"{number}.png,{row}" for number, row in enumerate(rows))]
    (folder / "tags.csv").write_text("\n".join(lines) + "\n")
    return folder / "tags.csv"


def fill(path: Path, **options: Any) -> Table:
    asked = SourceOptions(**{"implies": PETS, **options})
    return apply_label_options(read_table(path, asked), asked)


def show(table: Table, names: tuple[str, ...] = ORDER) -> list[str]:
    """Return the states of each row, in the order of `names`: `10?1`."""
    columns = [table.labels.column[name] for name in names]
    marks = {1: "1", 0: "0", UNKNOWN: "?"}
    return ["".join(marks[int(state)] for state in row[columns]) for row in table.targets[:]]


def test_what_follows_in_a_table_of_lists(tmp_path: Path) -> None:
    """The truth table of docs/data.md: the row's tags, and animal, cat, dog, siamese."""
    rows = {
        "siamese": "1101", "cat": "110?", "animal": "1???", "animal|dog": "1010", "": "0000",
        "siamese|dog": "1111", "animal|cat|siamese": "1101", "sofa": "0000",
    }  # fmt: skip
    table = fill(write(tmp_path, *rows))
    assert show(table) == list(rows.values())
    assert "data.implies decides 9 targets: 5 present, 0 absent, 4 unknown" in table.notes


def test_what_follows_where_each_label_has_a_column(tmp_path: Path) -> None:
    """A 0 that the table gives stays; blanks follow from what is known."""
    rows = {
        ",,,1": "11?1", "0,,,": "0000", "1,0,,": "10?0", "1,,,": "1???", "1,1,,0": "11?0",
        ",0,,": "?0?0", ",,,": "????",
    }  # fmt: skip
    path = write(tmp_path, *rows, header="image,animal,cat,dog,siamese")
    assert show(fill(path, label_columns=ORDER)) == list(rows.values())


def test_contradictions_are_faults_of_their_lines(tmp_path: Path) -> None:
    """All are in one message, the first ten shown."""
    rows = ["0,1,,", "1,0,,1", *["0,,1,"] * 10]
    path = write(tmp_path, *rows, header="image,animal,cat,dog,siamese")
    with pytest.raises(DataError, match="12 bad rows") as caught:
        read_splits(path, None, SourceOptions(label_columns=ORDER, implies=PETS))
    lines = str(caught.value).splitlines()
    assert lines[1] == "  line 2: 'cat' is present, and 'animal' is absent (data.implies)"
    assert lines[2] == "  line 3: 'siamese' is present, and 'cat' is absent (data.implies)"
    assert lines[-1] == "  ... and 2 more"


def test_unknown_labels_of_a_list(tmp_path: Path) -> None:
    """A column `unknown` says what nobody looked for: what follows is known all the same."""
    rows = {"siamese,animal": "1101", "dog,siamese": "1010", "sofa,cat": "0000", "animal,": "1???"}
    path = write(tmp_path, *rows, header="image,labels,unknown")
    assert show(fill(path)) == list(rows.values())


def test_several_parents(tmp_path: Path) -> None:
    """A child follows each; it is unknown only where no parent says that it is absent."""
    rows = {"siamese": "111", "cat|pet": "11?", "cat": "100", "pet": "010", "": "000"}
    table = fill(write(tmp_path, *rows), implies={"siamese": ["cat", "pet"]})
    assert show(table, ("cat", "pet", "siamese")) == list(rows.values())


def test_an_ignored_or_a_rare_label_still_implies_others(tmp_path: Path) -> None:
    """Also where the config of the run names the rare ones: it reads the same targets."""
    rows = ["siamese", "dog", "dog", "siam", "sofa", "sofa"]
    path = write(tmp_path, *rows)
    asked = SourceOptions(implies=PETS, rename_labels=(("siam", "siamese"),))
    found = read_splits(path, None, asked, SplitOptions(min_positives=3))
    assert found.train.labels.names == ("animal",)
    assert set(found.rare) == {"cat", "dog", "siamese", "sofa"}
    again = SourceOptions(implies=PETS, rename_labels=asked.rename_labels, ignore_labels=found.rare)
    same = read_splits(path, None, again)
    for side in ("train", "val"):
        before, after = getattr(found, side), getattr(same, side)
        assert np.array_equal(before.targets[:], after.targets[:])
    assert any("'animal': a label by data.implies alone" in note for note in same.notes)


def test_names_that_are_no_labels(tmp_path: Path) -> None:
    """The nearest label is named; a parent that a child implies is a label."""
    path = write(tmp_path, "siamese", "dog", "cat", "dog")
    for implies, options, said in (
        ({"siamees": "cat"}, {}, "no label 'siamees' in the data; did you mean 'siamese'?"),
        ({"Siam": "cat"}, {"rename_labels": (("Siam", "siamese"),)}, "no label 'Siam'"),
        ({"siamese": "cta"}, {}, "'cta' is not in data.labels; did you mean 'cat'?"),
    ):
        labels = ["siamese", "dog", "cat"] if "data.labels" in said else None
        with pytest.raises(DataError, match="labels that no table has") as caught:
            read_splits(
                path, None, SourceOptions(implies=implies, **options), SplitOptions(labels=labels)
            )
        assert f"data.implies: {said}" in str(caught.value)
    notes = read_splits(path, None, SourceOptions(implies={"cat": "bat"})).notes
    assert "train: 'bat': a label by data.implies alone; did you mean 'cat'?" in notes


def test_other_data_is_read_in_the_columns_of_a_checkpoint(tmp_path: Path) -> None:
    """A table that names the parent alone says nothing of the children, which it never names."""
    other = tmp_path / "other"
    other.mkdir()
    space = read_splits(
        write(tmp_path, "siamese", "dog", "cat", "sofa"), None, SourceOptions(implies=PETS)
    ).train.labels
    manifest, _ = read_manifest(
        write(other, "animal", "sofa"), None, SourceOptions(implies=PETS), space
    )
    assert space.names == ("animal", "cat", "dog", "siamese", "sofa")
    assert manifest.targets[:].tolist() == [[1, -1, -1, -1, 0], [0, 0, 0, 0, 1]]


def test_one_of_several_tables_says_nothing_of_labels_that_it_lacks(tmp_path: Path) -> None:
    """They are unknown, also in rows of lists, unless they follow."""
    asked = SourceOptions(implies=PETS)
    table = read_table(write(tmp_path, "siamese", "dog", "sofa"), asked)
    assert show(apply_label_options(table, asked)) == ["1101", "1010", "0000"]
    assert show(apply_label_options(table, asked, is_one_of_several=True)) == [
        "1101", "1?10", "??00"
    ]  # fmt: skip
