"""Sides that pictures had before, in other runs: what was trained on stays in train.

numbers of the files' bytes, paths -> PictureSet -> find: which of other pictures are among them
PictureSets of former runs         -> KnownSides -> find: the side of each picture, or unknown
"""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from mlfinetune.location import is_url

Numbers = NDArray[np.int64]
TRAIN, VAL, FREE = 0, 1, -1
"""Side of a picture: as in `stratify`; FREE: no run before has had it."""


def number_paths(paths: Iterable[str]) -> Numbers:
    """Return a number for each path or URL, the same for the same file."""
    texts = (path if is_url(path) else os.path.abspath(path) for path in paths)
    digests = b"".join(
        blake2b(text.encode("utf-8", "surrogateescape"), digest_size=8).digest() for text in texts
    )
    return np.frombuffer(digests, "<i8").astype(np.int64)


@dataclass(frozen=True)
class PictureSet:
    """Sorted numbers of pictures.

    Attributes:
        contents: of the files' bytes; a file that no scan has read has none.
        paths: of the absolute paths and URLs.
    """

    contents: Numbers
    paths: Numbers

    def __len__(self) -> int:
        return len(self.paths)

    @classmethod
    def none(cls) -> "PictureSet":
        """Return the empty set."""
        return cls(np.empty(0, np.int64), np.empty(0, np.int64))

    @classmethod
    def of(cls, contents: Numbers, paths: Iterable[str]) -> "PictureSet":
        """Return the set of these pictures; a content of -1 is not known."""
        return cls(np.unique(contents[contents >= 0]), np.unique(number_paths(paths)))

    def __or__(self, other: "PictureSet") -> "PictureSet":
        return PictureSet(
            np.union1d(self.contents, other.contents), np.union1d(self.paths, other.paths)
        )

    def __sub__(self, other: "PictureSet") -> "PictureSet":
        return PictureSet(
            np.setdiff1d(self.contents, other.contents), np.setdiff1d(self.paths, other.paths)
        )

    def find(self, contents: Numbers, paths: Iterable[str]) -> NDArray[np.bool_]:
        """Return (N,) whether each picture is in the set.

        Files are compared by their bytes, and by their paths where these are not known.

        Args:
            contents: number of each file's bytes, as the scan made it; -1: not known.
            paths: of the same N pictures.
        """
        if len(self.contents) and (contents >= 0).all():  # a million paths take seconds
            return np.isin(contents, self.contents)
        by_path = np.isin(number_paths(paths), self.paths)
        if not len(self.contents):
            return by_path
        return np.where(contents >= 0, np.isin(contents, self.contents), by_path)


@dataclass(frozen=True)
class KnownSides:
    """Pictures of former runs.

    Attributes:
        origin: the run that knows them, for people.
        trained: of train.
        held: held out of training.
        seen: those of `trained` that the weights, with which the new run begins, have learned from.
        complete: it is the run itself that is read again: pictures that it has not had are not for
            its validation.
    """

    origin: str
    trained: PictureSet
    held: PictureSet
    seen: PictureSet
    complete: bool = False

    def join(self, other: "KnownSides") -> "KnownSides":
        """Return the sides of both; where they differ, these win."""
        return KnownSides(
            f"{self.origin} or {other.origin}",
            self.trained | (other.trained - self.held),
            self.held | (other.held - self.trained),
            self.seen | other.seen,
        )

    def find(self, contents: Numbers, paths: Sequence[str]) -> NDArray[np.int8]:
        """Return (N,) TRAIN, VAL or FREE of each picture; arguments are those of PictureSet.find.

        A picture that one run held out, and another one trained on, is of TRAIN.
        """
        sides = np.where(self.held.find(contents, paths), VAL, FREE)
        return np.where(self.trained.find(contents, paths), TRAIN, sides).astype(np.int8)
