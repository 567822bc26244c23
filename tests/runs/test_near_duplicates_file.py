"""near_duplicates.npz: written by one command, shown by another."""

from pathlib import Path

import numpy as np
import pytest

from mlfinetune.errors import CheckpointError
from mlfinetune.runs.near_duplicates import read_near_duplicates, write_near_duplicates


def test_it_is_read_for_the_same_pictures_alone(tmp_path: Path) -> None:
    """Without a file, and of other pictures, nothing is known."""
    groups = np.array([0, 1, 0])
    assert read_near_duplicates(tmp_path, ["a", "b", "c"]) is None
    write_near_duplicates(tmp_path, ["a", "b", "c"], groups)
    read = read_near_duplicates(tmp_path, ["a", "b", "c"])
    assert read is not None
    assert (read == groups).all()
    assert read_near_duplicates(tmp_path, ["a", "c", "b"]) is None


def test_a_damaged_file(tmp_path: Path) -> None:
    """It is named, with what to do."""
    (tmp_path / "near_duplicates.npz").write_bytes(b"PK\3\4 no more")
    with pytest.raises(CheckpointError, match=r"near_duplicates.npz is damaged.*remove it"):
        read_near_duplicates(tmp_path, ["a"])
