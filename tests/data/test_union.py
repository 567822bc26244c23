"""Several tables as one: unknown where a table says nothing, joined by path and by bytes."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlfinetune.data.read import SplitOptions, read_splits, read_table
from mlfinetune.data.rows import PictureScan
from mlfinetune.data.table import SourceOptions, Table
from mlfinetune.errors import DataError


def write(folder: Path, **tables: str) -> tuple[Path, ...]:
    """Write tables of names `a_csv` into `folder`, and an empty picture for each name in them."""
    found = []
    for name, text in tables.items():
        path = folder / name.replace("_csv", ".csv").replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        for line in text.splitlines()[1:]:
            (path.parent / line.split(",")[0]).touch()
        found.append(path)
    return tuple(found)


def read(places: tuple[Path, ...], **options: Any) -> Table:
    """Read the tables as one."""
    return read_table(places, SourceOptions(partial=True, **options))


def states(table: Table) -> dict[str, dict[str, int]]:
    """Return name -> label -> state."""
    rows = table.targets[np.arange(len(table))].tolist()
    return {
        name: dict(zip(table.labels.names, row, strict=True))
        for name, row in zip(table.names, rows, strict=True)
    }


def test_labels_that_a_table_does_not_name_are_unknown(tmp_path: Path) -> None:
    """Never negative: neither in a list of labels, nor in columns; notes say whose they are."""
    table = read(
        write(
            tmp_path,
            a_csv="image,labels\n1.jpg,cat\n2.jpg,dog\n3.jpg,\n",
            b_csv="image,fox,dog\n4.jpg,1,0\n5.jpg,0,\n",
        )
    )
    assert states(table) == {
        "1.jpg": {"cat": 1, "dog": 0, "fox": -1},
        "2.jpg": {"cat": 0, "dog": 1, "fox": -1},
        "3.jpg": {"cat": 0, "dog": 0, "fox": -1},
        "4.jpg": {"cat": -1, "dog": 0, "fox": 1},
        "5.jpg": {"cat": -1, "dog": -1, "fox": 0},
    }
    notes = "\n".join(table.notes)
    for line in (
        "a.csv: 3 images; unknown for them, since other tables alone know of it: 1 label ('fox",
        "b.csv: 2 images; unknown for them, since other tables alone know of it: 1 label ('cat",
    ):
        assert line in notes


def test_pictures_of_several_tables_are_joined(tmp_path: Path) -> None:
    """Known beats unknown; the names start from the folder that holds all pictures."""
    places = write(
        tmp_path,
        old__a_csv="image,cat,dog\n1.jpg,1,0\n2.jpg,,1\n",
        b_csv="image,labels\nold/1.jpg,fox|cat\nold/2.jpg,fox|cat\n3.jpg,fox\n",
    )
    table = read(places)
    assert states(table) == {
        "old/1.jpg": {"cat": 1, "dog": 0, "fox": 1},
        "old/2.jpg": {"cat": 1, "dog": 1, "fox": 1},
        "3.jpg": {"cat": 0, "dog": -1, "fox": 1},
    }
    assert not table.faults
    assert "2 images in several tables: what each knows is joined" in table.notes


def test_contradictions_are_listed_by_table_and_line(tmp_path: Path) -> None:
    """All of them in one message; also two tables of one file name."""
    places = write(
        tmp_path,
        old__t_csv="image,cat,dog,fox\n1.jpg,1,0,1\n2.jpg,0,0,\n",
        t_csv="image,cat,dog,fox\nold/1.jpg,0,1,1\nold/2.jpg,1,0,1\n",
    )
    with pytest.raises(DataError) as error:
        read_splits(places, None, SourceOptions(partial=True))
    old, new = places
    for line in (
        f"{old} + {new}: 3 bad rows",
        f"{old} line 2: 'old/1.jpg' has 'cat', and by {new} line 2 it has not",
        f"{new} line 2: 'old/1.jpg' has 'dog', and by {old} line 2 it has not",
        f"{new} line 3: 'old/2.jpg' has 'cat', and by {old} line 3 it has not",
    ):
        assert line in str(error.value)


def test_copies_of_the_same_bytes_are_joined_after_the_scan(tmp_path: Path) -> None:
    """Across tables, not within one; the counts add up, and contradictions name both files."""
    places = write(
        tmp_path,
        a_csv="image,cat,dog\n1.jpg,1,0\n2.jpg,0,1\n3.jpg,0,1\n4.jpg,1,0\n",
        b_csv="image,fox,dog\nx.jpg,1,\ny.jpg,0,1\nz.jpg,0,0\n",
    )

    def scan(**same: int) -> Any:
        def run(paths: Any) -> PictureScan:
            names = [Path(path).stem for path in paths]
            numbers = [same.get(f"_{name}", -2 - row) for row, name in enumerate(names)]
            return PictureScan({}, dict(zip(paths, numbers, strict=True)))

        return run

    options = SourceOptions(partial=True)
    splits = read_splits(places, None, options, SplitOptions(), scan(_1=1, _x=1, _3=2, _4=2))
    assert len(splits.train) + len(splits.val) == 6
    assert "train: 6 images found, all used" in splits.notes
    assert "train: 1 image in several tables: what each knows is joined" in splits.notes
    with pytest.raises(DataError) as error:
        read_splits(places, None, options, SplitOptions(), scan(_2=1, _z=1))
    said = "a.csv line 3: '2.jpg' has 'dog', and by b.csv line 4 ('z.jpg', the same bytes) it has"
    assert said in str(error.value)


def test_label_options_are_applied_to_each_table(tmp_path: Path) -> None:
    """A renamed label of one table joins that of another; an empty row is about its own table."""
    places = write(
        tmp_path,
        a_csv="image,labels\n1.jpg,cat\n2.jpg,\n",
        b_csv="image,kitty,fox,bad\n1.jpg,,1,0\n3.jpg,0,,1\n2.jpg,1,0,0\n",
    )
    options = {"rename_labels": (("kitty", "cat"),), "ignore_labels": ("bad",)}
    table = read(places, **options, empty_labels="unknown")
    assert states(table) == {
        "1.jpg": {"cat": 1, "fox": 1},
        "2.jpg": {"cat": 1, "fox": 0},
        "3.jpg": {"cat": 0, "fox": -1},
    }
    assert not table.faults
    with pytest.raises(DataError, match=r"data.ignore_labels: no label 'bat' in the data"):
        read_splits(places, None, SourceOptions(partial=True, ignore_labels=("bat",)))


def test_tables_with_and_without_splits_do_not_mix(tmp_path: Path) -> None:
    """Those that lack the column are named."""
    places = write(
        tmp_path,
        a_csv="image,labels,split\n1.jpg,cat,train\n2.jpg,dog,val\n",
        b_csv="image,labels\n3.jpg,fox\n4.jpg,cat\n",
    )
    with pytest.raises(DataError, match=r"no split column \(data.split_column\) in 'b.csv', and"):
        read(places)


def test_what_follows_in_one_of_several_tables(tmp_path: Path) -> None:
    """A label that a table does not name is unknown there, unless it follows (`data.implies`)."""
    places = write(
        tmp_path,
        a_csv="image,labels\n1.jpg,siamese\n2.jpg,sofa\n3.jpg,siamese\n",
        b_csv="image,animal\n3.jpg,0\n4.jpg,1\n",
    )
    table = read(places, implies={"siamese": "cat", "cat": "animal"})
    order = ("siamese", "cat", "animal", "sofa")
    found = {name: [row[label] for label in order] for name, row in states(table).items()}
    assert found["1.jpg"] == [1, 1, 1, 0]
    assert found["2.jpg"] == [0, -1, -1, 1]
    assert found["4.jpg"] == [-1, -1, 1, -1]
    assert "'3.jpg' has 'siamese', 'cat', 'animal', and by b.csv line 2" in str(table.faults[0])


def test_groups_of_several_tables(tmp_path: Path) -> None:
    """A name beats a blank cell; two names of one picture are a fault."""
    places = write(
        tmp_path,
        a_csv="image,labels,who\n1.jpg,cat,\n2.jpg,dog,p2\n",
        b_csv="image,fox,who\n1.jpg,1,p1\n2.jpg,0,p3\n",
    )
    table = read(places, group_by="who")
    assert table.groups == ("p1", "p2")
    (fault,) = table.faults
    said = "a.csv line 3 and b.csv line 3: '2.jpg' is in different groups"
    assert str(fault) == said


def test_one_of_several_tables_has_groups(tmp_path: Path) -> None:
    """It is said which has none, and what to do; where none has the column, its name is wrong."""
    places = write(
        tmp_path, a_csv="image,labels,who\n1.jpg,cat,p1\n", b_csv="image,labels\n2.jpg,dog\n"
    )
    advice = r"no column of groups \(data.group_by\) in 'b.csv'.*give each of them one, or none"
    for order in (places, places[::-1]):
        with pytest.raises(DataError, match=advice):
            read(order, group_by="who")
    with pytest.raises(DataError, match=r"a\.csv: no column 'whom'"):
        read(places, group_by="whom")
