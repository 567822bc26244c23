"""Folds of cross-validation: each picture is held out once; what belongs together stays so."""

import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mlfinetune.config import Config
from mlfinetune.data.folds import Pool, count_torn, draw_folds, draw_inner, pool_sides
from mlfinetune.data.load import load_splits
from mlfinetune.data.manifest import Manifest, Splits
from mlfinetune.data.targets import LabelSpace, Targets
from mlfinetune.errors import DataError
from mlfinetune.runtime.log import RunLog


def make_manifest(
    targets: np.ndarray, groups: np.ndarray | None = None, root: str = "/a"
) -> Manifest:
    """Make the examples of these (N, L) targets."""
    labels = LabelSpace(tuple(f"label {number}" for number in range(targets.shape[1])))
    names = tuple(f"{row}.jpg" for row in range(len(targets)))
    packed = Targets.pack([targets.astype(np.int8)], targets.shape[1])
    return Manifest(Path(root), names, packed, labels, groups)


def make_pool(targets: np.ndarray, groups: np.ndarray | None = None) -> Pool:
    """Make a pool of these targets, without a scan."""
    whole = make_manifest(targets, groups)
    return pool_sides(Splits(whole, whole.take([]), ()))


@given(st.integers(2, 5), st.integers(0, 99), st.integers(20, 60), st.integers(1, 3))
def test_a_picture_is_held_out_once_and_groups_stay_whole(
    folds: int, seed: int, count: int, size: int
) -> None:
    """Each division holds out every picture once; a group is in one fold."""
    rng = np.random.default_rng(seed)
    groups = rng.permutation(np.arange(count) // size)
    pool = make_pool(rng.random((count, 3)) < 0.3, groups)
    drawn = draw_folds(pool, folds, 2, seed)
    for repeat in (1, 2):
        division = [fold for fold in drawn if fold.repeat == repeat]
        assert sorted(row for fold in division for row in fold.held_out) == list(range(count))
        for fold in division:
            assert not set(groups[fold.held_out]) & set(groups[fold.rest])
            assert len(fold.held_out) + len(fold.rest) == count


def test_folds_are_alike_and_differ_between_repeats() -> None:
    """Sizes differ by one at most, and a label of ten positives has two in each of five folds."""
    targets = np.zeros((101, 2))
    targets[:10, 0] = targets[50:100, 1] = 1
    first = draw_folds(make_pool(targets), 5, 2, seed=3)
    assert {len(fold.held_out) for fold in first} == {20, 21}
    for fold in first:
        assert targets[fold.held_out].sum(axis=0).tolist() == [2, 10]
    assert [fold.name for fold in first[4:6]] == ["fold-5", "repeat-2-fold-1"]
    assert first[0].held_out.tolist() != first[5].held_out.tolist()
    again = draw_folds(make_pool(targets), 5, 2, seed=3)
    assert all((a.held_out == b.held_out).all() for a, b in zip(first, again, strict=True))


def test_copies_of_the_same_bytes_are_held_out_together() -> None:
    """Also across the tables of train and val; files that no scan has read are on their own."""
    sides = [make_manifest(np.ones((6, 1)), root=root) for root in ("/a", "/b")]
    contents = np.arange(6), np.array([0, -1, -1, 13, 14, 15])
    pool = pool_sides(Splits(*sides, (), contents=contents))
    assert len(set(pool.units)) == 11
    assert pool.units[0] == pool.units[6]
    for fold in draw_folds(pool, 4, 1, seed=0):
        assert (0 in fold.held_out) == (6 in fold.held_out)
    assert pool.examples.path(0) == "/a/0.jpg"  # two folders: names are whole paths
    assert pool.examples.path(6) == "/b/0.jpg"


@pytest.mark.parametrize("tables", [1, 2])
def test_a_torn_group_is_whole_in_the_folds(tmp_path: Path, tables: int) -> None:
    """A patient of train and of val is one group, in one table or in two; a blank cell is none."""
    head, rows = "image,label,who", {"train": [], "val": []}
    for number in range(12):
        Image.new("RGB", (8, 8), (20 * number, 0, 0)).save(tmp_path / f"{number}.png")
        who = "" if number >= 10 else f"patient {number % 5}"
        rows["val" if number % 2 else "train"].append(f"{number}.png,cat,{who}")
    if tables == 2:
        for side, lines in rows.items():
            (tmp_path / f"{side}.csv").write_text("\n".join([head, *lines]) + "\n")
    else:
        lines = [f"{line},{side}" for side, part in rows.items() for line in part]
        (tmp_path / "train.csv").write_text("\n".join([head + ",split", *lines]) + "\n")
    data = {"train": tmp_path / "train.csv", "group_by": "who", "allow_torn_groups": True}
    if tables == 2:
        data["val"] = tmp_path / "val.csv"
    config = Config.model_validate({"data": data})
    pool = pool_sides(load_splits(config, RunLog(io.StringIO()), hold_out=False))
    assert len(pool.examples) == 12
    numbers = {}
    for row, name in enumerate(pool.examples.names):
        number = int(Path(name).stem)
        numbers.setdefault(number if number >= 10 else number % 5, set()).add(pool.units[row])
    assert all(len(units) == 1 for units in numbers.values())
    assert len(set(pool.units)) == len(numbers) == 7


def test_near_duplicates_in_two_folds_are_counted() -> None:
    """Pictures of a group that lies in one fold alone are not."""
    pool = make_pool(np.ones((6, 1)), np.array([0, 0, 1, 1, 2, 2]))
    folds = draw_folds(pool, 3, 2, seed=0)
    assert count_torn(np.array([0, 0, 2, 2, 4, 4]), folds) == 0
    assert count_torn(np.array([0, 0, 0, 3, 4, 5]), folds) == 3
    assert count_torn(np.arange(6), folds) == 0


def test_too_many_folds_are_refused() -> None:
    """The message says how many are possible; one large group leaves a fold empty."""
    with pytest.raises(DataError, match="--folds 9: between 2 and 4"):
        draw_folds(make_pool(np.ones((4, 1))), 9, 1, seed=0)
    one_large = make_pool(np.ones((12, 1)), np.array([0] * 10 + [1, 2]))
    with pytest.raises(DataError, match="a fold would be empty"):
        draw_folds(one_large, 3, 1, seed=0)


def test_the_inner_part_is_of_the_fold_s_training_pictures() -> None:
    """Train and val of a fold are what it trains on, groups whole; one group alone is refused."""
    pool = make_pool(np.ones((12, 1)), np.repeat(np.arange(6), 2))
    fold = draw_folds(pool, 3, 1, seed=0)[0]
    train, val = draw_inner(pool, fold.rest, 0.25, seed=0)
    assert sorted([*train, *val]) == fold.rest.tolist()
    assert not set(pool.units[train]) & set(pool.units[val])
    with pytest.raises(DataError, match="take more folds"):
        draw_inner(pool, np.array([0, 1]), 0.25, seed=0)
