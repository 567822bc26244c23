"""A path becomes a decoded, transformed picture; pictures become a Batch.

    (version, index, path) -> decode -> transform -> Example -> collate -> Batch

Worker processes hold no manifest: keys bring the paths, and the Loader adds the targets. A picture
that cannot be decoded becomes a Failure, so that the reader of the batch decides: training stops
and names it, prediction writes an error row.
"""

import hashlib
import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from mlfinetune.data.batches.batch import Batch, Failure
from mlfinetune.data.batches.copies import SmallCopies
from mlfinetune.data.images.decode import decode_image
from mlfinetune.data.images.jpeg import choose_jpeg_decoder
from mlfinetune.data.images.transforms import (
    TransformSpec,
    build_eval_transform,
    build_train_transform,
    compute_min_decoded_side,
    to_tensor,
)
from mlfinetune.errors import ImageError
from mlfinetune.location import is_url
from mlfinetune.storage.files import number_stamp, prefetched, read_stamp

Key = tuple[int, int, str]
"""Version, index, path. The version of an augmented picture is the epoch, see `sampling.py`."""


@dataclass(frozen=True)
class Example:
    """A decoded picture.

    Attributes:
        index: position of the picture in its manifest or input.
        image: (3, S, S) uint8; None: it cannot be decoded.
        reason: the reason why it cannot be decoded.
        stamp: number of the file's size and time, as in `Batch.stamps`.
    """

    index: int
    image: Tensor | None
    reason: str = ""
    stamp: int = 0


class ImageDataset(Dataset[Example]):
    """Pictures by their keys, decoded and transformed; can be pickled for worker processes."""

    def __init__(
        self, spec: TransformSpec, train_seed: int | None = None, copies: SmallCopies | None = None
    ) -> None:
        """Choose the transform and the decoder.

        Args:
            spec: settings of the transforms.
            train_seed: pictures are augmented by (seed, version, index); None: evaluation.
            copies: small copies to read in place of large pictures, in training only.
        """
        self.spec = spec
        self._seed = train_seed
        self._copies: SmallCopies | None = None
        if copies is not None:
            self.read_copies(copies)
        self._train = build_train_transform(spec)
        self._eval = build_eval_transform(spec)
        self._min_side = compute_min_decoded_side(spec, training=train_seed is not None)
        self._jpeg, _ = choose_jpeg_decoder()

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the arguments: a worker that is not forked builds the transforms itself."""
        return ImageDataset, (self.spec, self._seed, self._copies)

    def read_copies(self, copies: SmallCopies) -> None:
        """Read small copies from now on; workers that already run still read the files."""
        assert self._seed is not None, "evaluation reads the files themselves"
        self._copies = copies

    def __getitem__(self, key: Key) -> Example:
        version, index, path = key
        try:
            pixels, stamp = self._read_pixels(path)
        except ImageError as error:
            return Example(index, None, error.reason)
        image = to_tensor(pixels)
        if self._seed is None:
            image = self._eval(image)
        else:
            image = self._train(image, mix_seed(self._seed, version, index))
        return Example(index, image, stamp=stamp)

    def __getitems__(self, keys: list[Key]) -> list[Example]:
        """Return a batch of examples; DataLoader calls this method by its name.

        Pictures behind URLs are fetched at the same time, those with a small copy not at all.
        """
        urls = (path for _, _, path in keys if is_url(path))
        copies = self._copies
        with prefetched(url for url in urls if copies is None or not copies.has(url)):
            return [self[key] for key in keys]

    def _read_pixels(self, path: str) -> tuple[NDArray[np.uint8], int]:
        """Decode the small copy of a picture, or else the picture itself; return its stamp too."""
        small = None if self._copies is None else self._copies.read(path)
        if small is not None:
            return small, 0
        pixels = decode_image(path, self.spec.max_pixels, self._min_side, self._jpeg)
        return pixels, number_stamp(read_stamp(path))


def collate(examples: list[Example]) -> Batch:
    """Stack examples into a Batch without targets; those without an image become failures."""
    decoded = [example for example in examples if example.image is not None]
    images = torch.empty(0, dtype=torch.uint8)
    if decoded:
        images = torch.stack([example.image for example in decoded if example.image is not None])
    return Batch(
        images,
        torch.empty(len(decoded), 0, dtype=torch.int8),
        torch.tensor([example.index for example in decoded], dtype=torch.int64),
        tuple(
            Failure(example.index, example.reason) for example in examples if example.image is None
        ),
        stamps=tuple(example.stamp for example in decoded),
    )


def mix_seed(*numbers: int) -> int:
    """Return a 63-bit seed, a hash of `numbers`: different numbers give unrelated seeds."""
    digest = hashlib.blake2b(struct.pack(f"<{len(numbers)}q", *numbers), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
