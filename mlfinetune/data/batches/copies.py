"""Small copies of large pictures, made once: training reads them in place of the files.

    CopyMaker, fill:   path -> header: large? -> decode -> resize -> JPEG -> Store
    SmallCopies.read:  path -> key -> Store -> JPEG -> (H, W, 3), or None: read the file itself

The key of a copy is the file (path, size, modification time); everything else that a copy depends
on is in the name of the store's folder. A picture that is not worth a copy has an empty value, so
that the next run need not look at it again. Evaluation and prediction never read copies: no metric
depends on them.

The size of a copy (`compute_copy_side`): the smallest random crop still has the resolution that it
has in the model. Twice that size would take three times the disk and the time. Why bicubic: it
keeps 99.5 % of the contrast between neighboring pixels, a bilinear filter 96.5 %. Why JPEG, at
quality 95: a copy takes a ninth to a sixth of the room of its raw pixels. It is read 20 times as
fast as a picture of 12 megapixels; raw pixels would be read 50 times as fast
(`benchmarks/image_store.py`).
"""

import math
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from mlfinetune.data.batches.batch import build_unreadable_error
from mlfinetune.data.images.decode import (
    DECODE_VERSION,
    decode_image,
    decode_jpeg,
    encode_jpeg,
    read_image_size,
)
from mlfinetune.data.images.jpeg import choose_jpeg_decoder
from mlfinetune.data.images.transforms import TransformSpec, compute_min_decoded_side, to_tensor
from mlfinetune.data.manifest import Manifest
from mlfinetune.errors import DataError, ImageError
from mlfinetune.storage.cache import report_unused
from mlfinetune.storage.files import hash_file_key, prefetched
from mlfinetune.storage.store import Store, hash_key
from mlfinetune.text import pluralize

_VERSION = 1  # part of the folder's name; raise it when the same file gives another copy
_LARGE = 3.0  # a picture is worth a copy if it has at least this many times the copy's pixels
_MAX_SIDE = 65_500  # pixels, the limit of libjpeg
_FLUSH_BYTES = 1 << 28
_FLUSH_S = 60.0
"""Copies are written after so many bytes or seconds: a crash loses no more than that."""

Item = tuple[int, str]
"""Key of a picture's copy, path of the picture."""


@dataclass(frozen=True)
class MadeCopy:
    """The copy of one picture.

    Attributes:
        key: key of the copy in the store.
        path: the picture.
        value: JPEG bytes; empty: the picture is not worth a copy; None: it cannot be decoded.
        reason: the reason why it cannot be decoded.
    """

    key: int
    path: str
    value: bytes | None
    reason: str = ""


def compute_copy_side(spec: TransformSpec) -> int:
    """Return the shorter side of a copy in pixels.

    It is the least side at which no random crop has to be enlarged: half of
    `compute_min_decoded_side`, which keeps twice what is needed.
    """
    return math.ceil(compute_min_decoded_side(spec, training=True) / 2)


def compute_copy_size(size: tuple[int, int], side: int) -> tuple[int, int] | None:
    """Return the sides of a picture's copy, the shorter one `side`; None: it is not worth one.

    Example: 4000 x 3000 with side 379 -> 505 x 379; 500 x 375 -> None, as a copy saves too little.
    """
    scale = side / min(size)
    small = (round(size[0] * scale), round(size[1] * scale))
    is_worth = math.prod(size) >= _LARGE * math.prod(small) and max(small) <= _MAX_SIDE
    return small if is_worth else None


class SmallCopies:
    """The store of small copies for one TransformSpec; can be pickled for worker processes."""

    def __init__(self, root: Path, spec: TransformSpec) -> None:
        """Open the store's folder below `root`; make it where it is missing.

        Raises:
            DataError: it cannot be made or opened.
        """
        self._root = root
        self._spec = spec
        self._jpeg, name = choose_jpeg_decoder()
        key = hash_key(_VERSION, DECODE_VERSION, name, torch.__version__, spec.max_pixels)
        self.folder = root / f"{compute_copy_side(spec)}-{key:016x}"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._store = Store(self.folder)
        except OSError as error:
            raise DataError(
                f"cannot open the cache {self.folder}: {error.strerror}; set MLFINETUNE_CACHE to a "
                f"folder that can be written"
            ) from error

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the arguments: a worker that is not forked opens the folder again."""
        return SmallCopies, (self._root, self._spec)

    def summarize(self, pictures: int, missing: int) -> str:
        """Return a line for the log: how many copies are reused, how many not, and why."""
        text = (
            f"small copies: {pluralize(pictures, 'picture')} to train, shorter side "
            f"{compute_copy_side(self._spec)} px, {pictures - missing} known from before"
        )
        if missing:
            why = "new or changed pictures" if len(self._store) else "none kept for these settings"
            if self._store.damaged:
                why += f", {pluralize(self._store.damaged, 'damaged file')} deleted"
            text += f", {missing} to look at ({why})"
        return f"{text}; in {self.folder}; validation reads the pictures themselves"

    def find_missing(self, manifest: Manifest) -> list[Item]:
        """Return the pictures that are not in the store, each once, and files that do not exist."""
        paths = [manifest.path(index) for index in range(len(manifest))]
        keys = np.array([hash_file_key(path) for path in paths], np.uint64)
        missing = np.flatnonzero(self._store.find(keys) < 0)
        return list({int(keys[row]): paths[row] for row in missing.tolist()}.items())

    def fill(self, batches: Iterable[Sequence[MadeCopy]]) -> Iterator[int]:
        """Write the copies that `batches` yields; yield the number of pictures in each batch.

        They are written every minute or 256 MiB, and when this ends early, so that the next run
        continues there. It ends, and says so, where they cannot be written: training then reads
        the other pictures themselves.

        Raises:
            DataError: pictures that cannot be decoded.
        """
        unwritten: dict[int, bytes] = {}
        size = 0
        written_at = time.monotonic()
        try:
            for batch in batches:
                values = {made.key: made.value for made in batch if made.value is not None}
                unwritten |= values
                size += sum(map(len, values.values()))
                _require_decoded(batch)
                if size >= _FLUSH_BYTES or time.monotonic() - written_at > _FLUSH_S:
                    if not self._write_values(unwritten):
                        return
                    size = 0
                    written_at = time.monotonic()
                yield len(batch)
        finally:
            self._write_values(unwritten)

    def _write_values(self, unwritten: dict[int, bytes]) -> bool:
        """Add the values to the store, and empty the dict; return whether they could be written.

        It is emptied first: after a failed write the `finally` of `fill` must not fail again.
        """
        keys = np.array(list(unwritten), np.uint64)
        values = list(unwritten.values())
        unwritten.clear()
        try:
            if values:
                self._store.add(keys, values)
        except DataError as error:
            report_unused(error)
            return False
        return True

    def has(self, path: str) -> bool:
        """Return whether `read` has a copy of the picture; nothing is decoded."""
        return self._find_value(path) is not None

    def read(self, path: str) -> NDArray[np.uint8] | None:
        """Return the copy, (H, W, 3) uint8 RGB of side `compute_copy_side`; None: there is none.

        A damaged copy counts as none; the next run makes it again.
        """
        value = self._find_value(path)
        return None if value is None else (self._jpeg or decode_jpeg)(np.array(value))

    def _find_value(self, path: str) -> NDArray[np.uint8] | None:
        """Return the JPEG bytes of a picture's copy; None: no copy, a damaged or an empty one."""
        position = int(self._store.find(np.array([hash_file_key(path)], np.uint64))[0])
        value = self._store.get(position) if position >= 0 else None
        return value if value is not None and len(value) else None


class CopyMaker(Dataset[MadeCopy]):
    """Makes the copies of pictures, as a Dataset for worker processes."""

    def __init__(self, spec: TransformSpec) -> None:
        self._spec = spec
        self._jpeg, _ = choose_jpeg_decoder()

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the argument: a worker that is not forked chooses its decoder itself."""
        return CopyMaker, (self._spec,)

    def __getitem__(self, item: Item) -> MadeCopy:
        key, path = item
        try:
            return MadeCopy(key, path, self._make_copy(path))
        except ImageError as error:
            return MadeCopy(key, path, None, error.reason)

    def __getitems__(self, items: list[Item]) -> list[MadeCopy]:
        """Make several copies; pictures behind URLs are fetched at the same time."""
        with prefetched(path for _, path in items):
            return [self[item] for item in items]

    def _make_copy(self, path: str) -> bytes:
        """Return the JPEG bytes of a picture's copy; empty: it is not worth one.

        Raises:
            ImageError: the picture cannot be decoded.
        """
        spec = self._spec
        side = compute_copy_side(spec)
        if compute_copy_size(read_image_size(path, spec.max_pixels), side) is None:
            return b""
        min_side = compute_min_decoded_side(spec, training=True)
        pixels = decode_image(path, spec.max_pixels, min_side, self._jpeg)
        height, width = pixels.shape[:2]
        scale = side / min(height, width)
        size = [round(height * scale), round(width * scale)]
        small = torch.nn.functional.interpolate(
            to_tensor(pixels)[None], size, mode="bicubic", antialias=True
        )
        return encode_jpeg(small[0].permute(1, 2, 0).contiguous().numpy())


def _require_decoded(batch: Sequence[MadeCopy]) -> None:
    """Raise if a picture of the batch could not be decoded.

    Raises:
        DataError: names the pictures and the reasons.
    """
    faults = [f"{made.path}: {made.reason}" for made in batch if made.value is None]
    if faults:
        raise build_unreadable_error(faults)
