"""Rows that cannot be used are refused or left out, once each, and the sums add up."""

import ntpath
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import demo_data
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlfinetune.config import Config, load_config
from mlfinetune.data.images.scan import scan_images
from mlfinetune.data.load import load_splits, resolve_data_config
from mlfinetune.data.manifest import Splits
from mlfinetune.data.read import SplitOptions, read_splits, read_table
from mlfinetune.data.rows import (
    PictureScan,
    add_scan_faults,
    drop_faulty,
    join_repeats,
    raise_faults,
)
from mlfinetune.data.table import Fault, SourceOptions, Table
from mlfinetune.data.targets import LabelSpace, Targets
from mlfinetune.errors import ConfigError, DataError
from mlfinetune.runtime.log import RunLog

NO_PICTURE = "not a JPEG, PNG, WebP, AVIF, HEIC, GIF, BMP or TIFF picture"


def write(folder: Path, *rows: str, head: str = "image,labels", name: str = "tags.csv") -> Path:
    """Write a table of these rows."""
    path = folder / name
    path.write_text("\n".join((head, *rows)) + "\n")
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Make pictures 0.jpg to 19.jpg."""
    demo_data.write(tmp_path / "drawn", count=20, size=32)
    for number, path in enumerate(sorted((tmp_path / "drawn" / "images").iterdir())):
        path.rename(tmp_path / f"{number}.jpg")
    return tmp_path


def scan(paths: Sequence[str]) -> PictureScan:
    """Decode the pictures; give no numbers of contents."""
    results = enumerate(scan_images(paths, 89_000_000))
    return PictureScan({index: why for index, why in results if isinstance(why, str)})


def config(folder: Path, **data: Any) -> Config:
    """Return a config with this data section."""
    lines = "".join(f"  {key}: {value}\n" for key, value in {"train": "tags.csv", **data}.items())
    (folder / "run.yaml").write_text(f"data:\n{lines}")
    return load_config(folder / "run.yaml", [])


def same(left: Splits, right: Splits) -> bool:
    """Return whether both have equal examples in equal columns."""
    return all(
        (a.names, a.labels, a.targets[:].tolist()) == (b.names, b.labels, b.targets[:].tolist())
        for a, b in ((left.train, right.train), (left.val, right.val))
    )


# ---- faults of rows ---------------------------------------------------------------------


def test_faults_point_at_their_rows_after_joining(folder: Path) -> None:
    """Rows of one image become one; what is wrong with a later one is told by its own line."""
    table = read_table(
        write(folder, "0.jpg,a", "x.jpg,b", "./0.jpg,c", "1.jpg,a", "./x.jpg,a", "y.jpg,a"),
        SourceOptions(),
    )
    assert table.names == ("0.jpg", "x.jpg", "1.jpg", "y.jpg")
    assert [(f.place, f.row, f.picture) for f in table.faults] == [
        ("line 3", 1, True),
        ("line 7", 3, True),
    ]
    rest, skipped = drop_faulty(table)
    assert (rest.names, rest.faults) == (("0.jpg", "1.jpg"), ())
    assert [(s.name, s.place, s.reason) for s in skipped] == [
        ("x.jpg", "line 3", "no such file"),
        ("y.jpg", "line 7", "no such file"),
    ]


def test_a_bad_cell_of_a_later_row_spoils_the_image(folder: Path) -> None:
    """The fault has the line of its own row, and belongs to the joined row."""
    rows = ("0.jpg,1,0", "1.jpg,1,0", "0.jpg,,maybe")
    table = read_table(write(folder, *rows, head="image,a,b"), SourceOptions())
    ((place, row, picture),) = [(f.place, f.row, f.picture) for f in table.faults]
    assert (place, row, picture) == ("line 4", 0, False)
    assert drop_faulty(table)[0].names == ("1.jpg",)


ROWS = st.lists(st.tuples(st.sampled_from("abcdef"), st.booleans(), st.booleans()), max_size=15)


@settings(deadline=None)
@given(ROWS)
def test_joining_keeps_each_fault_with_its_image(rows: list[tuple[str, bool, bool]]) -> None:
    """Any rows may repeat, and any rows may have bad pictures or bad cells."""
    states = [[[1, 0]]] * len(rows)
    table = Table(
        origin=Path("tags.csv"),
        format="csv",
        root=Path(),
        names=tuple(name for name, _, _ in rows),
        targets=Targets.pack([np.array(s, "int8") for s in states], 2),
        unnamed=np.zeros(len(rows), "int8"),
        labels=LabelSpace(("x", "y")),
        faults=tuple(
            Fault(f"line {row}", f"{name!r}: bad", row, picture)
            for row, (name, bad, picture) in enumerate(rows)
            if bad
        ),
    )
    joined = join_repeats(table)
    assert joined.names == tuple(dict.fromkeys(table.names))
    assert all(f"{joined.names[f.row or 0]!r}: bad" == f.text for f in joined.faults)
    rest, skipped = drop_faulty(joined)
    spoilt = {name for name, bad, _ in rows if bad}
    assert sorted(one.name for one in skipped) == sorted(spoilt)
    assert set(rest.names) == {name for name, _, _ in rows} - spoilt
    rowfaults = {(f.place) for f in joined.faults if not f.picture}
    assert rowfaults == {f.place for f in table.faults if not f.picture}


def test_urls_are_compared_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows takes A.jpg for a.jpg; a server does not, nor `a//b` for `a/b`."""
    monkeypatch.setattr(os.path, "normcase", ntpath.normcase)
    names = {
        "https://host": ("A.jpg", "a.jpg", "b/a.jpg", "https://host/x//c", "https://host/x/c"),
        Path("pictures"): ("A.jpg", "https://host/A.jpg", "https://host/a.jpg"),
    }
    for root, different in names.items():
        states = [np.array([[1]], "int8")] * len(different)
        table = Table(
            origin=Path("tags.csv"),
            format="csv",
            root=root,
            names=different,
            targets=Targets.pack(states, 1),
            unnamed=np.zeros(len(different), "int8"),
            labels=LabelSpace(("x",)),
        )
        assert join_repeats(table).names == different


def test_pictures_alone_can_be_skipped(folder: Path) -> None:
    """The message says how where that helps; with a bad row among them it does not."""
    table = read_table(write(folder, "0.jpg,a", "x.jpg,a"), SourceOptions())
    with pytest.raises(DataError) as caught:
        raise_faults(table, table.faults)
    assert str(caught.value).splitlines() == [
        f"{folder / 'tags.csv'}: 1 missing or unreadable picture, pictures under {folder}; "
        "data.bad_images: skip leaves them out",
        "  line 3: 'x.jpg': no such file",
    ]
    both = (*table.faults, table.build_fault(0, "bad"))
    with pytest.raises(
        DataError, match=rf"2 bad rows, pictures under {folder}$".replace("$", "\n")
    ):
        raise_faults(table, both)
    raise_faults(table, ())


def test_a_scan_adds_its_faults_to_the_table(folder: Path) -> None:
    """Faults are in row order, and each is a fault of the picture."""
    (folder / "1.jpg").write_bytes(b"none")
    table = read_table(write(folder, "0.jpg,a", "1.jpg,a"), SourceOptions())
    table = add_scan_faults(table, scan([table.path(0), table.path(1)]).bad)
    assert table.faults == (Fault("line 3", f"'1.jpg': {NO_PICTURE}", 1, True),)


# ---- what a run takes -------------------------------------------------------------------


def test_bad_pictures_are_skipped_once_each(folder: Path) -> None:
    """Missing and unreadable, with place and reason; found = used + skipped."""
    (folder / "3.jpg").write_bytes(b"none")
    (folder / "4.jpg").write_bytes((folder / "5.jpg").read_bytes()[:300])
    rows = [f"{n}.jpg,{'ab'[n % 2]}" for n in range(20)]
    path = write(folder, *rows, "x.jpg,a", "./x.jpg,b", "./3.jpg,a", "sub/y.jpg,a")
    found = read_splits(path, None, SourceOptions(), SplitOptions(skip_bad=True), scan)
    skipped = {one.name: (one.place, one.reason) for one in found.skipped}
    assert len(found.skipped) == len(skipped) == 4
    assert skipped["x.jpg"] == ("line 22", "no such file")
    assert skipped["sub/y.jpg"] == ("line 25", "no such file")
    assert skipped["3.jpg"] == ("line 5", NO_PICTURE)
    assert skipped["4.jpg"][0] == "line 6"
    used = {*found.train.names, *found.val.names}
    assert used == {f"{n}.jpg" for n in range(20) if n not in (3, 4)}
    (ledger,) = [note for note in found.notes if "images found" in note]
    assert ledger.startswith("train: 22 images found = 18 used + 4 skipped (")
    for count in ("2 no such file", "1 not a JPEG", "1 cannot be decoded"):
        assert count in ledger


def test_without_skip_the_scan_refuses(folder: Path) -> None:
    """All at once, after all have been looked at."""
    for number in (3, 7):
        (folder / f"{number}.jpg").write_bytes(b"none")
    path = write(folder, *(f"{n}.jpg,a" for n in range(20)))
    with pytest.raises(DataError) as caught:
        read_splits(path, None, SourceOptions(), scan=scan)
    first, *lines = str(caught.value).splitlines()
    assert "2 missing or unreadable pictures" in first
    assert lines == [f"  line {n + 2}: '{n}.jpg': {NO_PICTURE}" for n in (3, 7)]


def test_a_name_out_of_the_root_is_never_skipped(folder: Path) -> None:
    """The row is bad, and not the picture."""
    (folder / "root").mkdir()
    (folder / "root" / "0.jpg").touch()
    path = write(folder / "root", "0.jpg,a", "../1.jpg,a", "x.jpg,b")
    with pytest.raises(DataError, match="1 bad row,") as caught:
        read_splits(path, None, SourceOptions(), SplitOptions(skip_bad=True))
    assert "x.jpg" not in str(caught.value)


@pytest.mark.parametrize("head", ["image,labels", "image,labels,split"])
def test_rare_labels_are_left_out_and_stay_out(folder: Path, head: str) -> None:
    """The settled config names them, and gives the same examples without counting anew."""
    cells = ["a|rare" if n < 2 else "a|b|odd one" if n < 5 else "ab"[n % 2] for n in range(20)]
    ends = ["", ",train", ",val"] if "split" in head else [""] * 3
    rows = [f"{n}.jpg,{cell}{ends[1 + (n % 4 == 3)]}" for n, cell in enumerate(cells)]
    write(folder, *rows, head=head)
    asked = config(folder, min_positives=4, empty_labels="unknown", rename_labels="{b: c}")
    found = load_splits(asked, None)
    assert found.train.labels.names == found.val.labels.names == ("a", "c")
    assert found.rare == ("rare", "odd one")
    assert "2 labels ('rare', 'odd one'): fewer than 4 positives, left out" in found.notes
    settled = resolve_data_config(asked, found)
    assert (settled.data.ignore_labels, settled.data.min_positives) == (["rare", "odd one"], 0)
    again = load_splits(settled, None)
    assert same(found, again)
    assert (again.rare, resolve_data_config(settled, again)) == ((), settled)


def test_given_labels_are_not_rare(folder: Path) -> None:
    """Who lists the labels has decided: both keys at once are refused."""
    with pytest.raises(ConfigError, match="give labels or min_positives, not both"):
        config(folder, labels="[b, a]", min_positives=5)


def test_bad_images_is_a_key_of_the_config(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Pictures are scanned only where there is a log."""
    (folder / "1.jpg").write_bytes(b"none")
    write(folder, *(f"{n}.jpg,a" for n in range(4)))
    assert len(load_splits(config(folder), None).skipped) == 0
    with pytest.raises(DataError, match=re.escape(f"'1.jpg': {NO_PICTURE}")):
        load_splits(config(folder), RunLog())
    (skipped,) = load_splits(config(folder, bad_images="skip"), RunLog()).skipped
    assert skipped.name == "1.jpg"


@pytest.mark.parametrize("seed", range(5))
def test_groups_are_held_out_whole(folder: Path, seed: int) -> None:
    """No patient stands on both sides, and the note says so."""
    rows = [f"{n}.jpg,{'ab'[n % 2]},patient {n % 7}" for n in range(20)]
    path = write(folder, *rows, head="image,labels,who")
    found = read_splits(path, None, SourceOptions(group_by="who"), SplitOptions(seed=seed))
    group = {f"{n}.jpg": n % 7 for n in range(20)}
    train, val = ({group[name] for name in m.names} for m in (found.train, found.val))
    assert train & val == set()
    assert train | val == set(range(7))
    assert any("groups kept whole" in note for note in found.notes)


def test_one_group_cannot_be_held_out(folder: Path) -> None:
    """The message names the key."""
    path = write(folder, *(f"{n}.jpg,a,me" for n in range(9)), head="image,labels,who")
    with pytest.raises(DataError, match=r"one group \(data\.group_by\) holds all images"):
        read_splits(path, None, SourceOptions(group_by="who"))


def test_labels_to_rename_or_ignore_must_be_there(folder: Path) -> None:
    """A label must be in train or in val; one message lists all typing errors."""
    train = write(folder, "0.jpg,cat", "1.jpg,dog")
    val = write(folder, "2.jpg,dog|horse", name="val.csv")
    options = SourceOptions(rename_labels=(("Catt", "cat"),), ignore_labels=("dgo", "horse"))
    with pytest.raises(DataError) as caught:
        read_splits(train, val, options)
    assert str(caught.value).splitlines() == [
        "labels that no table has",
        "  data.rename_labels: no label 'Catt' in the data; did you mean 'cat'?",
        "  data.ignore_labels: no label 'dgo' in the data; did you mean 'dog'?",
    ]
    options = SourceOptions(rename_labels=(("horse", "dog"),), ignore_labels=("cat",))
    assert read_splits(train, val, options).val.labels.names == ("dog",)
