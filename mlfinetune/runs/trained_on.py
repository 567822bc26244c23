"""Pictures that a run was trained on, as sorted numbers of 8 bytes: trained_on.npz.

numbers of the files' bytes, paths        -> write_trained_on -> trained_on.npz
numbers of other pictures, trained_on.npz -> TrainedOn.find -> which of them the model has seen
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mlfinetune.errors import CheckpointError
from mlfinetune.location import is_url
from mlfinetune.runs import directory
from mlfinetune.storage.atomic import writing_binary

Numbers = NDArray[np.int64]


@dataclass(frozen=True)
class TrainedOn:
    """Sorted numbers of the pictures of a run's training data.

    Attributes:
        contents: of the files' bytes; a file that no scan has read has none.
        paths: of the absolute paths and URLs.
    """

    contents: Numbers
    paths: Numbers

    def find(self, contents: Numbers, paths: Iterable[str]) -> NDArray[np.bool_]:
        """Return (N,) whether the model was trained on each picture.

        Files are compared by their bytes, and by their paths where these are not known.

        Args:
            contents: number of each file's bytes, as the run's scan made it; -1: not known.
            paths: of the same N pictures.
        """
        by_path = np.isin(number_paths(paths), self.paths)
        if not len(self.contents):
            return by_path
        return np.where(contents >= 0, np.isin(contents, self.contents), by_path)


def number_paths(paths: Iterable[str]) -> Numbers:
    """Return a number for each path or URL, the same for the same file."""
    texts = (path if is_url(path) else os.path.abspath(path) for path in paths)
    digests = b"".join(
        blake2b(text.encode("utf-8", "surrogateescape"), digest_size=8).digest() for text in texts
    )
    return np.frombuffer(digests, "<i8").astype(np.int64)


def write_trained_on(run: Path, contents: Numbers, paths: Numbers, resumed: bool) -> None:
    """Write trained_on.npz; of a resumed run, whose data may have changed, with the former ones.

    Raises:
        CheckpointError: it cannot be written (a full disk, no permission).
    """
    before = read_trained_on(run) if resumed else None
    if before is not None:
        contents = np.concatenate([contents, before.contents])
        paths = np.concatenate([paths, before.paths])
    with writing_binary(run / directory.TRAINED_ON) as file:
        np.savez(file, allow_pickle=False, contents=np.unique(contents), paths=np.unique(paths))


def read_trained_on(run: Path) -> TrainedOn | None:
    """Read trained_on.npz; None: a run of an older version, or a checkpoint that lies alone.

    Raises:
        CheckpointError: the file is damaged.
    """
    path = run / directory.TRAINED_ON
    if not path.is_file():
        return None
    try:
        # Opened here: np.load leaves a damaged file open.
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            arrays = [file["contents"], file["paths"]]
        if any(array.dtype != np.int64 or array.ndim != 1 for array in arrays):
            raise ValueError("arrays of other types")
    except Exception as error:  # numpy and zipfile raise whatever their parsers raise
        raise CheckpointError(
            f"{path} is damaged: {error}; remove it, and nothing is said of training pictures"
        ) from error
    return TrainedOn(*arrays)


def describe_seen(seen: int, images: int) -> str:
    """Return a sentence on scored pictures that the model was trained on; empty: there are none."""
    if not seen:
        return ""
    if seen < images:
        return (
            f"the model was trained on {seen:,} of these {images:,} pictures: it has seen their "
            f"answers, so the numbers are too good"
        )
    pictures = "this picture" if images == 1 else f"all {images:,} of these pictures"
    return (
        f"the model was trained on {pictures}: it has seen the answers, so the numbers say nothing "
        f"about new pictures"
    )
