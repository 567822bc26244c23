"""Small copies of large pictures, made once: training reads them in place of the files.

    CopyMaker, fill:   path -> header: large? -> decode -> resize -> JPEG -> Store
    SmallCopies.read:  path -> key -> Store -> JPEG -> (H, W, 3), or None: read the file itself

The key of a copy is the file (path, size, modification time); all else that it depends on names
the store's folder. A picture that is not worth a copy has an empty value, so that the next run
need not look at it. Evaluation and prediction never read copies: no metric depends on them.

At the bound, the smallest random crop still has the resolution that the model sees. Twice that,
which decoding keeps, would take three times the disk and the time; a bicubic filter keeps 99.5 %
of the contrast between neighbouring pixels, a bilinear one 96.5 %. JPEG at quality 95 takes a
ninth to a sixth of raw pixels' room, and is read 20 times as fast as a picture of 12 megapixels,
where raw pixels would be 50 times (`benchmarks/image_store.py`).
"""

import math
import os
import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from mlfinetune.data.images.decode import (
    DECODE_VERSION,
    decode_image,
    decode_jpeg,
    encode_jpeg,
    read_image_size,
)
from mlfinetune.data.images.jpeg import choose_jpeg_decoder
from mlfinetune.data.images.transforms import TransformSpec, min_decoded_side, to_tensor
from mlfinetune.data.manifest import Manifest
from mlfinetune.errors import DataError, ImageError
from mlfinetune.storage.cache import cache_folder
from mlfinetune.storage.files import hash_file_key, prefetched
from mlfinetune.storage.store import Store, hash_key, require_space
from mlfinetune.text import format_list, pluralize

PAYS_EPOCHS = 3
"""Making copies costs as much as they save in one to three epochs, ..."""
PAYS_PIXELS = 4.0
"""... where pictures have at least this many times the pixels of a square of the bound."""
MEMORY = Path("/dev/shm")
"""Linux's file system in memory."""

_VERSION = 1
"""Goes up where the same file gives another copy."""
_LARGE = 3.0  # times the pixels of its copy: a picture that is worth one
_LONGEST = 65_500  # pixels a side, what libjpeg can write
_SAMPLE = 256
_BYTES_A_PIXEL = 0.6  # of a copy; photographs take 0.3 to 0.5
_FLUSH_BYTES, _FLUSH_S = 1 << 28, 60.0

Item = tuple[int, str]
"""Key, path."""


@dataclass(frozen=True)
class MadeCopy:
    """A picture's copy, empty where it is not worth one; None where it cannot be decoded."""

    key: int
    path: str
    value: bytes | None
    reason: str = ""


@dataclass(frozen=True)
class SampledSizes:
    """What some pictures' headers say.

    Attributes:
        pixels: of a picture, on average.
        copy_bytes: that a picture's copy takes, on average over large ones and small.
    """

    pixels: float
    copy_bytes: float


def copy_side(spec: TransformSpec) -> int:
    """The shorter side of a copy: that of the least picture from which no view is scaled up."""
    return math.ceil(
        min_decoded_side(spec, training=True) / 2
    )  # which is to be twice what is needed


def sample_sizes(manifest: Manifest, spec: TransformSpec) -> SampledSizes:
    """Look at 256 pictures, evenly spread; those that cannot be read are for others to name."""
    step = math.ceil(len(manifest) / _SAMPLE)
    paths = [manifest.path(index) for index in range(0, len(manifest), step)]
    pixels, taken = [0], [0]
    with prefetched(paths):
        for path in paths:
            try:
                size = read_image_size(path, spec.max_pixels)
            except ImageError:
                continue
            pixels.append(math.prod(size))
            taken.append(math.prod(_copy_size(size, copy_side(spec)) or (0,)))
    n = max(1, len(pixels) - 1)
    return SampledSizes(sum(pixels) / n, _BYTES_A_PIXEL * sum(taken) / n)


@contextmanager
def opened_copies(
    wanted: str,
    manifest: Manifest,
    spec: TransformSpec,
    epochs: int,
    on_features: bool,
    root: Path | None,
) -> Iterator["OpenedCopies"]:
    """Choose where copies are kept, and open the place for the time of a run.

    Args:
        wanted: `off`; `disk`, kept for other runs; `ram`, gone afterwards; `auto`: disk where
            it pays, and there is room.
        manifest: the training examples.
        spec: how training sees them.
        epochs: of the run.
        on_features: does the run read features, and pictures once at most?
        root: the folder for `disk`; None: the cache's.

    Raises:
        DataError: too little room, or a folder that cannot be used, where that was asked for.
    """
    why_off = "as configured" if wanted == "off" else None
    if on_features and wanted != "off":
        why_off = "a frozen backbone's features are kept instead"
    few, why = SampledSizes(0, 0), "as configured"
    if why_off is None:
        few = sample_sizes(manifest, spec)
        if wanted == "auto":
            pays, why = _weigh(few, spec, epochs)
            why_off = None if pays else why
    if why_off is not None:
        yield OpenedCopies(None, [], f"small copies: off ({why_off})")
    elif wanted == "ram":
        with _in_memory(len(manifest) * few.copy_bytes) as folder:
            copies = SmallCopies(folder, spec)
            yield _found(copies, manifest, f"in memory ({why})")
    else:
        yield _on_disk(wanted, manifest, spec, few, why, root)


def _weigh(few: SampledSizes, spec: TransformSpec, epochs: int) -> tuple[bool, str]:
    """Do copies pay in a run of so many epochs, and why?"""
    least = PAYS_PIXELS * copy_side(spec) ** 2
    return epochs >= PAYS_EPOCHS and few.pixels >= least, (
        f"auto: {pluralize(epochs, 'epoch')}, pictures of {few.pixels / 1e6:.2g} megapixels on "
        f"average; they pay from {PAYS_EPOCHS} epochs and {least / 1e6:.2g} megapixels on"
    )


def _on_disk(
    wanted: str,
    manifest: Manifest,
    spec: TransformSpec,
    few: SampledSizes,
    why: str,
    root: Path | None,
) -> "OpenedCopies":
    """In the cache; `auto` does without where it cannot be used or is full."""
    try:
        copies = SmallCopies(root or cache_folder("images"), spec)
        found = _found(copies, manifest, f"on disk ({why})")
        size = round(len(found.lacking) * few.copy_bytes)
        require_space(copies.folder, size, "keeping small copies")
    except DataError as error:
        if wanted == "disk":
            raise
        return OpenedCopies(None, [], f"small copies: off (auto: {error})")
    return found


def _found(copies: "SmallCopies", manifest: Manifest, where: str) -> "OpenedCopies":
    lacking = copies.missing(manifest)
    about = copies.about(len(manifest), len(lacking))
    return OpenedCopies(copies, lacking, f"small copies: {where}\n{about}")


@contextmanager
def _in_memory(size: float) -> Iterator[Path]:
    """A folder in memory with room for `size` bytes; it is gone afterwards, whatever happens.

    Raises:
        DataError: there is none, or too little room in it.
    """
    if not os.access(MEMORY, os.W_OK | os.X_OK):
        raise DataError(
            f"data.cache_images: ram keeps pictures in {MEMORY}, which is not there or cannot be "
            f"written; use disk"
        )
    free = shutil.disk_usage(MEMORY).free
    if size > free:
        raise DataError(
            f"data.cache_images: ram needs {size / 1e9:.2f} GB in {MEMORY}, where "
            f"{free / 1e9:.2f} GB are free; use disk"
        )
    with TemporaryDirectory(prefix="mlfinetune-images-", dir=MEMORY) as folder:
        yield Path(folder)


@dataclass(frozen=True)
class OpenedCopies:
    """Copies or none, the pictures that were never looked at, and what the log is to say."""

    copies: "SmallCopies | None"
    lacking: list[Item]
    why: str

    def fill(self, batches: Iterable[Sequence[MadeCopy]]) -> Iterator[int]:
        """As `SmallCopies.fill`; nothing without copies."""
        if self.copies is not None:
            yield from self.copies.fill(batches)


class SmallCopies:
    """The copies that are kept for one TransformSpec; also a new process's way to them."""

    def __init__(self, root: Path, spec: TransformSpec) -> None:
        """Open their folder below `root`, made where it is missing.

        Raises:
            DataError: it cannot be made or opened.
        """
        self._root, self._spec = root, spec
        self._jpeg, name = choose_jpeg_decoder()
        key = hash_key(_VERSION, DECODE_VERSION, name, torch.__version__, spec.max_pixels)
        self.folder = root / f"{copy_side(spec)}-{key:016x}"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._store = Store(self.folder)
        except OSError as error:
            raise DataError(f"cannot open the cache {self.folder}: {error.strerror}") from error

    def __reduce__(self) -> tuple[Any, ...]:
        """Workers that are not forked open the folder anew."""
        return SmallCopies, (self._root, self._spec)

    def about(self, pictures: int, lacking: int) -> str:
        """What is reused, and why the rest is not."""
        text = (
            f"small copies: {pluralize(pictures, 'picture')} to train, shorter side "
            f"{copy_side(self._spec)} px, {pictures - lacking} known from before"
        )
        if lacking:
            why = "new or changed pictures" if len(self._store) else "none kept for these settings"
            if self._store.damaged:
                why += f", {pluralize(self._store.damaged, 'damaged file')} deleted"
            text += f", {lacking} to look at ({why})"
        return f"{text}; in {self.folder}; validation reads the pictures themselves"

    def missing(self, manifest: Manifest) -> list[Item]:
        """The pictures that were never looked at, each once; a file that is not there is one."""
        paths = [manifest.path(index) for index in range(len(manifest))]
        keys = np.array([hash_file_key(path) for path in paths], np.uint64)
        lacking = np.flatnonzero(self._store.find(keys) < 0)
        return list({int(keys[row]): paths[row] for row in lacking.tolist()}.items())

    def fill(self, batches: Iterable[Sequence[MadeCopy]]) -> Iterator[int]:
        """Keep what is made; yields how many pictures are done, batch by batch.

        It is written as it comes, and where this ends early, so that the next run goes on there.

        Raises:
            DataError: pictures that cannot be decoded, or a file that cannot be written.
        """
        held: dict[int, bytes] = {}
        size, written = 0, time.monotonic()
        try:
            for batch in batches:
                values = {made.key: made.value for made in batch if made.value is not None}
                held |= values
                size += sum(map(len, values.values()))
                _require_all(batch)
                if size >= _FLUSH_BYTES or time.monotonic() - written > _FLUSH_S:
                    self._write(held)
                    size, written = 0, time.monotonic()
                yield len(batch)
        finally:
            self._write(held)

    def _write(self, held: dict[int, bytes]) -> None:
        """Keep them, and hold none: a second call must not fail as the first one did."""
        keys, values = np.array(list(held), np.uint64), list(held.values())
        held.clear()
        if values:
            self._store.add(keys, values)

    def has(self, path: str) -> bool:
        """Is there a copy to read, by what is known without reading it?"""
        position = int(self._store.find(np.array([hash_file_key(path)], np.uint64))[0])
        value = self._store.get(position) if position >= 0 else None
        return value is not None and len(value) > 0

    def read(self, path: str) -> NDArray[np.uint8] | None:
        """(H, W, 3), shorter side `bound`; None where there is no copy, or a damaged one.

        A damaged copy is made anew by the next run.
        """
        position = int(self._store.find(np.array([hash_file_key(path)], np.uint64))[0])
        value = self._store.get(position) if position >= 0 else None
        if value is None or not len(value):
            return None
        return (self._jpeg or decode_jpeg)(np.array(value))


class CopyMaker(Dataset[MadeCopy]):
    """Items -> their copies, in any process."""

    def __init__(self, spec: TransformSpec) -> None:
        self._spec = spec
        self._jpeg, _ = choose_jpeg_decoder()

    def __reduce__(self) -> tuple[Any, ...]:
        """Workers that are not forked find the decoder anew."""
        return CopyMaker, (self._spec,)

    def __getitem__(self, item: Item) -> MadeCopy:
        key, path = item
        try:
            return MadeCopy(key, path, self._copy(path))
        except ImageError as error:
            return MadeCopy(key, path, None, error.reason)

    def __getitems__(self, items: list[Item]) -> list[MadeCopy]:
        """Several; what is behind URLs is asked for together."""
        with prefetched(path for _, path in items):
            return [self[item] for item in items]

    def _copy(self, path: str) -> bytes:
        spec, side = self._spec, copy_side(self._spec)
        if _copy_size(read_image_size(path, spec.max_pixels), side) is None:
            return b""
        least = min_decoded_side(spec, training=True)
        pixels = decode_image(path, spec.max_pixels, least, self._jpeg)
        height, width = pixels.shape[:2]
        scale = side / min(height, width)
        size = [round(height * scale), round(width * scale)]
        small = torch.nn.functional.interpolate(
            to_tensor(pixels)[None], size, mode="bicubic", antialias=True
        )
        return encode_jpeg(small[0].permute(1, 2, 0).contiguous().numpy())


def _copy_size(size: tuple[int, int], side: int) -> tuple[int, int] | None:
    """The two sides of a picture's copy, the shorter one `side`; None: it is not worth one."""
    scale = side / min(size)
    small = (round(size[0] * scale), round(size[1] * scale))
    worth = math.prod(size) >= _LARGE * math.prod(small) and max(small) <= _LONGEST
    return small if worth else None


def _require_all(batch: Sequence[MadeCopy]) -> None:
    faults = [f"{made.path}: {made.reason}" for made in batch if made.value is None]
    if faults:
        raise DataError(
            f"{len(faults)} unreadable in one batch; repair them or take them out\n"
            f"{format_list(faults)}"
        )
