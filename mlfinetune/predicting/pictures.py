"""Pictures of any kind become batches, in the threads of this process.

    images -> PictureReader.stream -> (names, Batch), in order, in constant memory

The command line decodes in worker processes (`data.batches.loader`). A service or a notebook has
threads of its own, beside which no process may be forked. Decoders let other threads run.
"""

import glob
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from mlfinetune.data.batches.batch import Batch
from mlfinetune.data.batches.dataset import Example, collate
from mlfinetune.data.images import sources
from mlfinetune.data.images.jpeg import choose_jpeg_decoder
from mlfinetune.data.images.sources import is_picture, name_picture, read_picture
from mlfinetune.data.images.transforms import (
    TransformSpec,
    build_eval_transform,
    compute_min_decoded_side,
    to_tensor,
)
from mlfinetune.data.inputs import TAR, expand_inputs, require_inputs
from mlfinetune.errors import DataError, ImageError
from mlfinetune.location import is_url
from mlfinetune.runtime.device import choose_workers, name_dtype
from mlfinetune.storage.files import fetch_objects

Picture = sources.Picture | torch.Tensor
"""A picture of `data.images.sources`, or torch's layout: (3, H, W) uint8."""
Pictures = Picture | Iterable[Picture]

_Item = tuple[str, object]
"""Name of a picture, and the picture."""


def list_pictures(images: Pictures) -> Iterable[object]:
    """Return the pictures that are given, one by one.

    One picture is taken for a list of one. The path of a folder, of a tar, or with a `*` gives the
    pictures that the command line would take.

    Raises:
        DataError: they are no pictures.
    """
    if isinstance(images, torch.Tensor):
        return images if images.ndim > 3 else [images]
    if is_picture(images):
        is_path = isinstance(images, str | Path)
        return _expand_path(str(images)) if is_path else [images]
    if not isinstance(images, Iterable):
        raise DataError(
            f"pictures were wanted, found {type(images).__name__}; give paths, bytes, Pillow "
            f"images or uint8 arrays"
        )
    return images


def _expand_path(path: str) -> Iterable[object]:
    """Return the path of a picture alone; or the pictures in a folder or tar, or that match."""
    if is_url(path):
        several = path.endswith("/") or "*" in path
    else:
        is_glob = glob.escape(path) != path and not os.path.exists(path)
        several = is_glob or os.path.isdir(path) or path.endswith(TAR)
    if not several:
        return [path]
    require_inputs((path,))
    return _require_any(expand_inputs((path,), ()), path)


def _require_any(paths: Iterable[str | None], place: str) -> Iterator[str | None]:
    """Yield the paths; raises DataError where there is none."""
    is_empty = True
    for path in paths:
        is_empty = False
        yield path
    if is_empty:
        raise DataError(f"no pictures in {place}")


def _keep(picture: object) -> object:
    """Return a picture that its giver may change: one of a camera's buffer is copied."""
    if isinstance(picture, np.ndarray):
        return picture.copy()
    return picture.clone() if isinstance(picture, torch.Tensor) else picture


class PictureReader:
    """Reads pictures as `predict` does; several threads may use it at once."""

    def __init__(self, spec: TransformSpec, device: torch.device) -> None:
        """Choose decoder, transform, and the number of threads that decode for this device."""
        self._transform, self._max_pixels = build_eval_transform(spec), spec.max_pixels
        self._min_side = compute_min_decoded_side(spec, training=False)
        self._jpeg, _ = choose_jpeg_decoder()
        self._threads = max(1, choose_workers("auto", device))

    def read_pixels(self, picture: object, name: str) -> NDArray[np.uint8]:
        """Return (H, W, 3) RGB, upright; a large JPEG may be smaller than it is in its file.

        Raises:
            ImageError: it cannot be read.
        """
        if isinstance(picture, torch.Tensor):
            picture = _to_samples(picture, name)
        return read_picture(picture, name, self._max_pixels, self._min_side, self._jpeg)

    def make_square(self, pixels: NDArray[np.uint8]) -> torch.Tensor:
        """Return the (3, S, S) uint8 that the network gets."""
        return self._transform(to_tensor(pixels))

    def stream(
        self, images: Iterable[object], batch_size: int
    ) -> Iterator[tuple[list[str], Batch]]:
        """Yield names and pictures of each batch; the next batch is read while one is used.

        With a batch size of 1 nothing is read ahead: each picture is answered before the next one
        is asked for.
        """
        named = ((name_picture(x, index), _keep(x)) for index, x in enumerate(images))
        chunks = iter(lambda: list(islice(named, batch_size)), [])
        pool = ThreadPoolExecutor(1 + self._threads, "mlfinetune-pictures")  # starts no thread yet
        try:
            for chunk in chunks:
                if len(chunk) < batch_size or batch_size == 1:  # there is no next one, or no hurry
                    yield self._read_chunk(chunk, pool)
                    continue
                yield from self._read_ahead(chunk, chunks, pool)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def _read_ahead(
        self, chunk: list[_Item], chunks: Iterator[list[_Item]], pool: ThreadPoolExecutor
    ) -> Iterator[tuple[list[str], Batch]]:
        """Yield the batch of a chunk and those of all later ones, each read during the former."""
        reading = pool.submit(self._read_chunk, chunk, pool)
        while True:
            try:
                following = next(chunks, None)
            except BaseException:
                yield reading.result()  # these pictures were given before the source failed
                raise
            if following is None:
                break
            ahead = pool.submit(self._read_chunk, following, pool)
            yield reading.result()
            reading = ahead
        yield reading.result()

    def _read_chunk(
        self, chunk: Sequence[_Item], pool: ThreadPoolExecutor
    ) -> tuple[list[str], Batch]:
        """Read the pictures of one batch: those behind URLs at the same time."""
        names = [name for name, _ in chunk]
        fetched = fetch_objects(name for name, image in chunk if is_url(image))
        items = [
            (index, name, fetched[name] if is_url(image) else image)
            for index, (name, image) in enumerate(chunk)
        ]
        several = self._threads > 1 < len(items)
        examples = pool.map(self._read, items) if several else map(self._read, items)
        return names, collate(list(examples))

    def _read(self, item: tuple[int, str, object]) -> Example:
        index, name, picture = item
        try:
            if isinstance(picture, OSError):
                raise ImageError(name, str(picture))
            return Example(index, self.make_square(self.read_pixels(picture, name)))
        except ImageError as error:
            return Example(index, None, error.reason)


def _to_samples(picture: torch.Tensor, name: str) -> NDArray[np.uint8]:
    """Return the (H, W, C) samples of a (C, H, W) or (H, W) tensor."""
    if picture.dtype != torch.uint8:
        raise ImageError(name, f"a tensor of {name_dtype(picture.dtype)}; wanted uint8, 0 to 255")
    samples: NDArray[np.uint8] = picture.detach().cpu().numpy()
    if samples.ndim == 3 and samples.shape[0] not in (1, 3, 4):
        raise ImageError(name, f"a tensor of shape {samples.shape}; wanted (3, height, width)")
    return samples.transpose(1, 2, 0) if samples.ndim == 3 else samples
