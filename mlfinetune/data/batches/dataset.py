"""A path becomes a decoded, transformed picture; pictures become a Batch.

    (epoch, index, path) -> decode -> transform -> Example -> collate -> Batch

Decoding processes hold no manifest: keys bring the paths, and the Loader adds the targets. A
picture that cannot be decoded is carried as a Failure, so that the reader of the batch decides:
training stops and names it, prediction writes an error row.
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
    min_decoded_side,
    to_tensor,
)
from mlfinetune.errors import ImageError
from mlfinetune.location import is_url
from mlfinetune.storage.files import prefetched

Key = tuple[int, int, str]
"""Epoch, index, path."""


@dataclass(frozen=True)
class Example:
    """One decoded picture (3, S, S), or the reason there is none."""

    index: int
    image: Tensor | None
    reason: str = ""


class ImageDataset(Dataset[Example]):
    """Pictures by their paths."""

    def __init__(
        self, spec: TransformSpec, train_seed: int | None = None, copies: SmallCopies | None = None
    ) -> None:
        """With `train_seed` pictures are augmented by (seed, epoch, index); None: evaluation.

        With `copies`, those of large pictures are read in place of the files; training alone.
        """
        self.spec = spec
        self._seed = train_seed
        self._copies: SmallCopies | None = None
        if copies is not None:
            self.read_copies(copies)
        self._train = build_train_transform(spec)
        self._eval = build_eval_transform(spec)
        self._least = min_decoded_side(spec, training=train_seed is not None)
        self._jpeg, _ = choose_jpeg_decoder()

    def __reduce__(self) -> tuple[Any, ...]:
        """Workers that are not forked get the arguments, and build the transforms anew."""
        return ImageDataset, (self.spec, self._seed, self._copies)

    def read_copies(self, copies: SmallCopies) -> None:
        """From now on; a worker that is already running does not hear of it."""
        assert self._seed is not None, "evaluation reads the files themselves"
        self._copies = copies

    def __getitem__(self, key: Key) -> Example:
        epoch, index, path = key
        try:
            image = to_tensor(self._pixels(path))
        except ImageError as error:
            return Example(index, None, error.reason)
        if self._seed is None:
            return Example(index, self._eval(image))
        return Example(index, self._train(image, mix_seed(self._seed, epoch, index)))

    def __getitems__(self, keys: list[Key]) -> list[Example]:
        """A batch, as DataLoader asks for it; what is behind URLs is asked for together."""
        paths = (path for _, _, path in keys if is_url(path))
        copies = self._copies
        with prefetched(path for path in paths if copies is None or not copies.has(path)):
            return [self[key] for key in keys]

    def _pixels(self, path: str) -> NDArray[np.uint8]:
        small = None if self._copies is None else self._copies.read(path)
        if small is not None:
            return small
        return decode_image(path, self.spec.max_pixels, self._least, self._jpeg)


def collate(examples: list[Example]) -> Batch:
    """Examples -> Batch without targets; those without an image go to `failures`."""
    good = [(e.image, e.index) for e in examples if e.image is not None]
    failures = tuple(Failure(e.index, e.reason) for e in examples if e.image is None)
    images = (
        torch.stack([image for image, _ in good]) if good else torch.empty(0, dtype=torch.uint8)
    )
    indices = torch.tensor([index for _, index in good], dtype=torch.int64)
    return Batch(images, torch.empty(len(good), 0, dtype=torch.int8), indices, failures)


def mix_seed(*numbers: int) -> int:
    """A 63-bit seed that is a function of `numbers`."""
    digest = hashlib.blake2b(struct.pack(f"<{len(numbers)}q", *numbers), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
