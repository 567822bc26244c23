"""near_duplicates.npz: which scored pictures are near duplicates of each other.

It is computed with the backbone's features, and read without them, so that `mlfinetune report`
needs no model.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mlfinetune.runs import directory
from mlfinetune.runs.damaged import explaining_damage, load_arrays
from mlfinetune.storage.atomic import writing_binary


def write_near_duplicates(folder: Path, names: Sequence[str], groups: NDArray[np.int64]) -> None:
    """Write near_duplicates.npz beside scores.npz.

    Args:
        folder: of the results.
        names: of the pictures, in the order of scores.npz.
        groups: (N,) numbers of `group_near_duplicates`, in the same order.

    Raises:
        CheckpointError: it cannot be written (a full disk, no permission).
    """
    assert groups.shape == (len(names),)
    with writing_binary(folder / directory.NEAR_DUPLICATES) as file:
        numbers = groups.astype(np.int64)
        np.savez(file, allow_pickle=False, groups=numbers, pictures=_digest(names))


def read_near_duplicates(folder: Path, names: Sequence[str]) -> NDArray[np.int64] | None:
    """Return the (N,) group of each picture; None: no file, or one of other pictures.

    Args:
        folder: of the results.
        names: of the pictures, in the order of scores.npz.

    Raises:
        CheckpointError: the file is damaged.
    """
    path = folder / directory.NEAR_DUPLICATES
    if not path.is_file():
        return None
    loss = "remove it, and the page says nothing of near duplicates"
    arrays = load_arrays(path, loss)
    with explaining_damage(path, loss):
        groups, pictures = arrays["groups"], arrays["pictures"]
        if groups.dtype != np.int64 or groups.ndim != 1 or pictures.dtype != np.uint8:
            raise ValueError("arrays of other types")
    if not np.array_equal(pictures, _digest(names)) or len(groups) != len(names):
        return None
    found: NDArray[np.int64] = groups
    return found


def _digest(names: Sequence[str]) -> NDArray[np.uint8]:
    """Return the SHA-256 of the names: groups of other pictures are never shown."""
    digest = hashlib.sha256()
    for name in names:
        digest.update(name.encode("utf-8", "surrogatepass") + b"\0")
    return np.frombuffer(digest.digest(), np.uint8)
