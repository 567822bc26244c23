"""Sides that pictures had before, in other runs: what was trained on stays in train.

numbers of the files' bytes, paths -> PictureSet -> find: which of other pictures are among them
PictureSets of former runs         -> KnownSides -> find: the side of each picture, or unknown
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from mlfinetune.location import is_url
from mlfinetune.text import pluralize

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

    def find(
        self, contents: Numbers, paths: Sequence[str], other: "PictureSet | None" = None
    ) -> NDArray[np.bool_]:
        """Return (N,) whether each picture is in the set.

        Files are compared by their bytes. By their paths they are found where their bytes are not
        known, or are new: then the file was edited where it lies.

        Args:
            contents: number of each file's bytes, as the scan made it; -1: not known.
            paths: of the same N pictures.
            other: a file with the bytes of one of these is that one, whatever its path says.
        """
        found = np.isin(contents, self.contents)
        elsewhere = found if other is None else found | np.isin(contents, other.contents)
        rows = np.flatnonzero(~elsewhere).tolist()  # not all: a million paths take seconds
        found[rows] = np.isin(number_paths(paths[row] for row in rows), self.paths)
        return found


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
        sides = np.where(self.held.find(contents, paths, self.trained), VAL, FREE)
        trained = self.trained.find(contents, paths, self.held)
        return np.where(trained, TRAIN, sides).astype(np.int8)

    def find_seen(self, contents: Numbers, paths: Sequence[str]) -> NDArray[np.bool_]:
        """Return (N,) whether the weights have learned from each picture; arguments as `find`."""
        return self.seen.find(contents, paths, self.held)

    def warn_of_edited(
        self, sides: NDArray[np.int8], contents: Numbers, noun: str = "image"
    ) -> Iterator[str]:
        """Yield a warning of files that were found by their paths, with bytes that are new.

        Args:
            sides: (N,) as `find` returns them.
            contents: (N,) as there.
            noun: for the files.
        """
        edited = contents >= 0
        for side, kept in ((TRAIN, self.trained), (VAL, self.held)):
            # An older version recorded paths alone of some.
            edited &= (sides != side) | (len(kept.contents) > 0)
            edited &= ~np.isin(contents, kept.contents)
        if count := int((edited & (sides != FREE)).sum()):
            yield (
                f"warning: {pluralize(count, noun)} with other bytes than in {self.origin}, at the "
                f"same path: taken for the same, edited since"
            )
