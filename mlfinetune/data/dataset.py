"""An index becomes (image, target, index); examples become a Batch.

    (epoch, index) -> decode -> transform -> Example -> collate -> Batch

A picture that cannot be decoded is carried as a Failure, so that the reader of the batch
decides: training stops and names it, prediction writes an error row.
"""

import hashlib
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from mlfinetune.data.images import decode
from mlfinetune.data.transforms import eval_transform, to_tensor, train_transform
from mlfinetune.errors import ImageError
from mlfinetune.records import Batch, Failure, Manifest, TransformSpec


@dataclass(frozen=True)
class Example:
    """One decoded picture (3, S, S) with its (L,) target, or the reason there is none."""

    index: int
    image: Tensor | None
    target: NDArray[np.int8]
    reason: str = ""


class ImageDataset(Dataset[Example]):
    """The examples of a manifest; keys are (epoch, index)."""

    def __init__(self, manifest: Manifest, spec: TransformSpec, train_seed: int | None) -> None:
        """With `train_seed` pictures are augmented by (seed, epoch, index); None: evaluation."""
        self.manifest = manifest
        self.spec = spec
        self._seed = train_seed
        self._train = train_transform(spec)
        self._eval = eval_transform(spec)

    def __reduce__(self) -> tuple[Any, ...]:
        """Workers that are not forked get the arguments, and build the transforms anew."""
        return ImageDataset, (self.manifest, self.spec, self._seed)

    def __len__(self) -> int:
        return len(self.manifest)

    def __getitem__(self, key: tuple[int, int]) -> Example:
        epoch, index = key
        target = self.manifest.targets[index]
        try:
            image = to_tensor(decode(self.manifest.path(index), self.spec.max_pixels))
        except ImageError as error:
            return Example(index, None, target, error.reason)
        if self._seed is None:
            return Example(index, self._eval(image), target)
        return Example(index, self._train(image, mix(self._seed, epoch, index)), target)


class PathDataset(Dataset[Example]):
    """Pictures without targets, as they come; keys are (index, path)."""

    def __init__(self, spec: TransformSpec) -> None:
        self.spec = spec
        self._eval = eval_transform(spec)

    def __reduce__(self) -> tuple[Any, ...]:
        return PathDataset, (self.spec,)

    def __getitem__(self, key: tuple[int, str]) -> Example:
        index, path = key
        target = np.empty(0, np.int8)
        try:
            image = self._eval(to_tensor(decode(Path(path), self.spec.max_pixels)))
            return Example(index, image, target)
        except ImageError as error:
            return Example(index, None, target, error.reason)


def collate(examples: list[Example]) -> Batch:
    """Examples -> Batch; those without an image go to `failures`."""
    good = [(e.image, e) for e in examples if e.image is not None]
    failures = tuple(Failure(e.index, e.reason) for e in examples if e.image is None)
    images = (
        torch.stack([image for image, _ in good]) if good else torch.empty(0, dtype=torch.uint8)
    )
    targets = (
        np.stack([e.target for _, e in good])
        if good
        else np.empty((0, len(examples[0].target)), np.int8)
    )
    indices = torch.tensor([e.index for _, e in good], dtype=torch.int64)
    return Batch(images, torch.from_numpy(targets), indices, failures)


def mix(*numbers: int) -> int:
    """A 63-bit seed that is a function of `numbers`."""
    digest = hashlib.blake2b(struct.pack(f"<{len(numbers)}q", *numbers), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
