"""One patient in two splits stops a run, in every pair of splits and over two tables."""

from pathlib import Path

import pytest

from mlfinetune.data.findings import Finding
from mlfinetune.data.groups import report_torn_groups
from mlfinetune.data.read import read_manifest, read_splits, read_table, read_tables
from mlfinetune.data.table import SourceOptions
from mlfinetune.data.targets import LabelSpace
from mlfinetune.errors import DataError

BY_PATIENT = SourceOptions(group_by="patient")
ALLOWED = SourceOptions(group_by="patient", allow_torn_groups=True)
SPACE = LabelSpace(("cat", "dog"))


def write(
    folder: Path, rows: str, header: str = "image,labels,patient,split", name: str = "a"
) -> Path:
    """Write a table of rows `PATIENT SPLIT`, of cats and dogs in turn, and its pictures."""
    lines = [header]
    for number, row in enumerate(rows.split("|")):
        image = f"{name}{number}.jpg"
        (folder / image).touch()
        patient, _, split = row.partition(" ")
        cells = [image, SPACE.names[number % 2], patient, split]
        lines.append(",".join(cells[: header.count(",") + 1]))
    path = folder / f"{name}.csv"
    path.write_text("\n".join(lines))
    return path


def refuse(train: Path, val: Path | None = None) -> list[str]:
    """Return the lines of the message with which the data is refused."""
    with pytest.raises(DataError) as caught:
        read_splits(train, val, BY_PATIENT)
    return str(caught.value).splitlines()


@pytest.mark.parametrize(
    ("rows", "counts", "lines"),
    [
        ("p1 train|p2 train|p1 val", "train and val: 1", ["'p1': train, val"]),
        ("p1 train|p2 train|p3 val|p2 test", "train and test: 1", ["'p2': train, test"]),
        ("p1 train|p2 train|p3 val|p3 test", "val and test: 1", ["'p3': val, test"]),
        (
            "p10 train|p2 train|p2 val|p2 test|p10 dev",
            "train and val: 2, train and test: 1, val and test: 1",
            ["'p2': train, val, test", "'p10': train, val"],
        ),
    ],
)
def test_a_group_in_two_splits_is_refused(
    tmp_path: Path, rows: str, counts: str, lines: list[str]
) -> None:
    """The message counts each pair of splits, lists the groups, and says what to do."""
    first, *listed, advice = refuse(write(tmp_path, rows))
    assert first.startswith(f"{tmp_path / 'a.csv'}: {len(lines)} group")
    assert f"of 'patient' in several splits ({counts}): scores will be too high" in first
    assert listed == [f"  {line}" for line in lines]
    assert "mlfinetune split TABLE --group-by patient" in advice
    assert "data.allow_torn_groups: true" in advice


def test_ten_groups_are_listed_and_the_others_counted(tmp_path: Path) -> None:
    """Twelve of them: the message stays short."""
    rows = "|".join(f"p{n} {split}" for n in range(12) for split in ("train", "val"))
    lines = refuse(write(tmp_path, rows))
    assert "12 groups of 'patient'" in lines[0]
    assert lines[10:12] == ["  'p9': train, val", "  ... and 2 more"]


def test_torn_groups_may_be_allowed(tmp_path: Path) -> None:
    """Then a warning says so."""
    splits = read_splits(write(tmp_path, "p1 train|p2 train|p1 val|p2 test"), None, ALLOWED)
    (note,) = [note for note in splits.notes if note.startswith("warning: ")]
    assert "2 groups of 'patient' in several splits (train and val: 1, train and test: 1)" in note


def test_whole_groups_and_blank_cells_are_right(tmp_path: Path) -> None:
    """A blank cell is no group; without group_by nobody asked."""
    whole = write(tmp_path, "p1 train|p1 train| train|p2 val| val| test")
    assert not any("group" in note for note in read_splits(whole, None, BY_PATIENT).notes)
    torn = write(tmp_path, "p1 train|p2 train|p1 val")
    assert not any("group" in note for note in read_splits(torn, None, SourceOptions()).notes)


def test_a_word_for_nobody_gets_its_hint(tmp_path: Path) -> None:
    """`NaN` may be a patient's name; it is not taken for a blank cell in silence."""
    advice = refuse(write(tmp_path, "p1 train|NaN train|NaN val"))[-1]
    assert "leave the cell blank where nobody is known ('NaN')" in advice


def test_groups_of_two_tables_are_compared(tmp_path: Path) -> None:
    """A patient 1 of one program is the patient 1.0 of another."""
    header = "image,labels,patient"
    train, val = write(tmp_path, "1|2", header), write(tmp_path, "3|1.0", header, "b")
    assert refuse(train, val)[1] == "  '1': train, val"
    (tmp_path / "b.csv").write_text((tmp_path / "b.csv").read_text().replace("1.0", "4"))
    assert not any("group" in note for note in read_splits(train, val, BY_PATIENT).notes)


def test_rows_that_a_second_table_replaces_do_not_count(tmp_path: Path) -> None:
    """Rows of val in train's table are not used beside `data.val`; those of test are kept."""
    val = write(tmp_path, "p9 val|p8 train", name="b")
    train = write(tmp_path, "p8 train|p7 train|p7 val|p6 test")
    assert not any("group" in note for note in read_splits(train, val, BY_PATIENT).notes)
    assert refuse(write(tmp_path, "p8 train|p7 train|p9 test"), val)[1] == "  'p9': val, test"


def test_a_val_table_without_the_column_is_noted(tmp_path: Path) -> None:
    """Nobody knows whether its patients are in train."""
    train = write(tmp_path, "1|2", "image,labels,patient")
    val = write(tmp_path, "1|2", "image,labels", "b")
    notes = read_splits(train, val, BY_PATIENT).notes
    assert any(note.startswith("val has no column 'patient' (data.group_by)") for note in notes)


def test_bad_rows_come_before_torn_groups(tmp_path: Path) -> None:
    """A split that is misspelled would be taken for train."""
    lines = refuse(write(tmp_path, "p1 train|p2 train|p1 vall|p3 val|p2 val"))
    assert "1 bad row" in lines[0]


def test_missing_pictures_of_the_test_count(tmp_path: Path) -> None:
    """Whoever trains may not have them; the patient is torn all the same."""
    table = write(tmp_path, "p1 train|p2 train|p3 val|p1 test")
    (tmp_path / "a3.jpg").unlink()
    assert refuse(table)[1] == "  'p1': train, test"


def test_check_reports_torn_groups(tmp_path: Path) -> None:
    """An error with all groups; a warning where they are allowed; nothing where all are whole."""
    path = write(tmp_path, "p1 train|p2 train|p1 val")
    table = read_table(path, BY_PATIENT)
    (finding,) = report_torn_groups(table, None, BY_PATIENT)
    assert (finding.severity, finding.kind) == ("error", "torn_groups")
    assert finding.items == ("'p1': train, val",)
    assert "data.allow_torn_groups: true" in finding.message
    (finding,) = report_torn_groups(table, None, ALLOWED)
    assert isinstance(finding, Finding)
    assert finding.severity == "warning"
    assert list(report_torn_groups(table.take([0, 1]), None, BY_PATIENT)) == []


def test_scoring_warns_of_groups_that_were_trained_on(tmp_path: Path) -> None:
    """A split to score has some of train's patients; scoring goes on."""
    table = write(tmp_path, "p1 train|p2 train|p1 test|p3 test|p2 val")
    manifest, notes = read_manifest(table, "test", BY_PATIENT, SPACE)
    assert len(manifest) == 2
    warning = "warning: 1 of 2 groups of 'patient' in test stand in train too"
    assert f"{warning}: scores will be too high" in notes
    _, notes = read_manifest(table, None, BY_PATIENT, SPACE)
    assert any("2 of 3 groups of 'patient' in val and test" in note for note in notes)
    for options in (SourceOptions(), BY_PATIENT):
        whole = write(tmp_path, "p1 train|p2 train|p4 test")
        _, notes = read_manifest(whole, "test", options, SPACE)
        assert not any("group" in note for note in notes)


def test_data_to_score_needs_no_column_of_groups(tmp_path: Path) -> None:
    """Other data may have other columns; an error in it is its own."""
    table = write(tmp_path, "p|q", "image,labels")
    assert len(read_manifest(table, None, BY_PATIENT, SPACE)[0]) == 2
    table.write_text("what,labels\na0,cat\n")
    with pytest.raises(DataError, match="no image column"):
        read_manifest(table, None, BY_PATIENT, SPACE)
    with pytest.raises(DataError, match="no column 'patient'"):
        read_tables(write(tmp_path, "p|q", "image,labels"), None, BY_PATIENT)
