"""The place of small copies during a run: none, on disk or in memory; `auto` chooses.

data.cache_images, sampled headers -> opened_copies -> OpenedCopies: copies or None, message
"""

import math
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from mlfinetune.data.batches.copies import (
    Item,
    MadeCopy,
    SmallCopies,
    compute_copy_side,
    compute_copy_size,
)
from mlfinetune.data.images.decode import read_image_size
from mlfinetune.data.images.transforms import TransformSpec
from mlfinetune.data.manifest import Manifest
from mlfinetune.errors import DataError, ImageError
from mlfinetune.storage.cache import get_cache_folder, report_unused
from mlfinetune.storage.files import prefetched
from mlfinetune.storage.store import require_space
from mlfinetune.text import pluralize

PAYS_EPOCHS = 3
"""`auto` makes copies for runs of at least so many epochs: they cost what 1 to 3 epochs save."""
PAYS_PIXELS = 4.0
"""`auto` makes copies if pictures have at least PAYS_PIXELS * compute_copy_side ** 2 pixels."""
RAM_FOLDER = Path("/dev/shm")
"""Linux's file system in memory."""

_TITLE = "small copies of large pictures"
_SAMPLE = 256  # pictures
_BYTES_A_PIXEL = 0.6  # of a copy, with some room: photographs take 0.3 to 0.5


@dataclass(frozen=True)
class SampledSizes:
    """Averages over a sample of pictures, from their headers.

    Attributes:
        pixels: width times height of a picture.
        copy_bytes: size of a picture's copy; 0 for those that are not worth one.
    """

    pixels: float
    copy_bytes: float


@dataclass(frozen=True)
class OpenedCopies:
    """Small copies, or none, for one run.

    Attributes:
        copies: None: training reads the files themselves.
        missing: the pictures that no run has looked at yet.
        message: lines for the log: where copies are, and why.
    """

    copies: SmallCopies | None
    missing: list[Item]
    message: str

    def fill(self, batches: Iterable[Sequence[MadeCopy]]) -> Iterator[int]:
        """Add the missing copies (see `SmallCopies.fill`); without copies, do nothing."""
        if self.copies is not None:
            yield from self.copies.fill(batches)


def sample_sizes(manifest: Manifest, spec: TransformSpec) -> SampledSizes:
    """Read the headers of 256 pictures, evenly spread; skip those that cannot be read."""
    step = math.ceil(len(manifest) / _SAMPLE)
    paths = [manifest.path(index) for index in range(0, len(manifest), step)]
    pixels = [0]
    copy_pixels = [0]
    with prefetched(paths):
        for path in paths:
            try:
                size = read_image_size(path, spec.max_pixels)
            except ImageError:
                continue
            pixels.append(math.prod(size))
            copy_pixels.append(math.prod(compute_copy_size(size, compute_copy_side(spec)) or (0,)))
    count = max(1, len(pixels) - 1)
    return SampledSizes(sum(pixels) / count, _BYTES_A_PIXEL * sum(copy_pixels) / count)


@contextmanager
def opened_copies(
    wanted: str,
    manifest: Manifest,
    spec: TransformSpec,
    epochs: int,
    on_features: bool,
    root: Path | None,
) -> Iterator[OpenedCopies]:
    """Choose where small copies are kept, and open that place for the duration of a run.

        wanted  the run                        copies are
        off     any                            off
        other   trains on kept features        off: it reads each picture once
        ram     any other                      in /dev/shm, deleted at the end of the run
        disk    any other                      in the cache, for other runs too; off where it
                                               cannot be used or has too little room
        auto    copies pay (`_weigh_copies`)   as for disk
        auto    copies do not pay              off

    Args:
        wanted: `data.cache_images`: off, disk, ram or auto.
        manifest: the training examples.
        spec: their transform in training.
        epochs: number of epochs of the run.
        on_features: whether the run trains on precomputed features.
        root: the folder for disk; None: that of the cache.

    Raises:
        DataError: with ram: too little room, or no file system in memory.
    """
    why_off = "as configured" if wanted == "off" else None
    if on_features and wanted != "off":
        why_off = "a frozen backbone's features are kept instead"
    sizes = SampledSizes(0, 0)
    why = "as configured"
    if why_off is None:
        sizes = sample_sizes(manifest, spec)
        if wanted == "auto":
            pays, why = _weigh_copies(sizes, spec, epochs)
            why_off = None if pays else why
    if why_off is not None:
        yield OpenedCopies(None, [], f"{_TITLE}: off ({why_off})")
    elif wanted == "ram":
        with _ram_folder(len(manifest) * sizes.copy_bytes) as folder:
            copies = SmallCopies(folder, spec)
            yield _list_missing(copies, manifest, f"in memory ({why})")
    else:
        yield _open_on_disk(manifest, spec, sizes, why, root)


def _weigh_copies(sizes: SampledSizes, spec: TransformSpec, epochs: int) -> tuple[bool, str]:
    """Return whether copies save more time than they cost, and the reason for the log.

    epochs   average pixels of a picture   copies pay
    3, more  4 * side ** 2, more           yes; side is `compute_copy_side`
    3, more  fewer                         no: the files are read about as fast
    1 or 2   any                           no: making them takes longer than they save
    """
    least = PAYS_PIXELS * compute_copy_side(spec) ** 2
    return epochs >= PAYS_EPOCHS and sizes.pixels >= least, (
        f"auto: they pay from {PAYS_EPOCHS} epochs and {least / 1e6:.2g} megapixels on; this run "
        f"has {pluralize(epochs, 'epoch')} and pictures of {sizes.pixels / 1e6:.2g} megapixels"
    )


def _open_on_disk(
    manifest: Manifest,
    spec: TransformSpec,
    sizes: SampledSizes,
    why: str,
    root: Path | None,
) -> OpenedCopies:
    """Open copies on disk; return none where the folder is full or cannot be used."""
    root = root or get_cache_folder("images")
    if root is None:
        return OpenedCopies(None, [], f"{_TITLE}: off (there is no cache)")
    try:
        copies = SmallCopies(root, spec)
        opened = _list_missing(copies, manifest, f"on disk ({why})")
        size = round(len(opened.missing) * sizes.copy_bytes)
        if opened.missing:
            require_space(copies.folder, size, "keeping small copies")
    except DataError as error:
        return OpenedCopies(None, [], f"{_TITLE}: off ({error})")
    if opened.missing and not os.access(copies.folder, os.W_OK):
        report_unused(f"{copies.folder} cannot be written")
        return replace(opened, missing=[])
    return opened


def _list_missing(copies: SmallCopies, manifest: Manifest, where: str) -> OpenedCopies:
    """Return the opened copies with the pictures that have to be looked at first."""
    missing = copies.find_missing(manifest)
    summary = copies.summarize(len(manifest), len(missing))
    return OpenedCopies(copies, missing, f"{_TITLE}: {where}\n{summary}")


@contextmanager
def _ram_folder(size: float) -> Iterator[Path]:
    """Make a folder in memory that has room for `size` bytes; it is deleted after the block.

    Raises:
        DataError: there is no file system in memory, or too little room in it.
    """
    if not os.access(RAM_FOLDER, os.W_OK | os.X_OK):
        raise DataError(
            f"data.cache_images: ram keeps pictures in {RAM_FOLDER}, which does not exist or "
            f"cannot be written; use disk"
        )
    free = shutil.disk_usage(RAM_FOLDER).free
    if size > free:
        raise DataError(
            f"data.cache_images: ram needs {size / 1e9:.2f} GB in {RAM_FOLDER}, where "
            f"{free / 1e9:.2f} GB are free; use disk"
        )
    with TemporaryDirectory(prefix="mlfinetune-images-", dir=RAM_FOLDER) as folder:
        yield Path(folder)
