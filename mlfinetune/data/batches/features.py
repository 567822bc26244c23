"""Features of a frozen backbone: computed once for every picture, and stored.

    manifest, views -> find_missing -> compute_missing: load -> embed -> Store.add
                                    -> Features (N, F) of a view, see feature_batches.py

A view is the picture, its mirror image, or the augmented picture of some epoch. The key of a row is
the file (path, size, modification time) and the view; everything else that features depend on
(weights, evaluation's transform, precision) is in the name of the store's folder.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from mlfinetune.data.batches.batch import Batch
from mlfinetune.data.batches.dataset import mix_seed
from mlfinetune.data.images.transforms import TransformSpec
from mlfinetune.data.manifest import Manifest
from mlfinetune.errors import DataError
from mlfinetune.runtime.device import read_free_memory
from mlfinetune.storage.cache import report_unused
from mlfinetune.storage.files import hash_file_key
from mlfinetune.storage.store import Keys, Positions, Store, require_space

_FLUSH_ROWS = 32768
_FLUSH_S = 60.0
"""Computed features are written after so many rows or seconds: a crash loses no more than that.

In a long run the seconds grow to a twentieth of the time spent so far: the files stay few.
"""


@dataclass(frozen=True)
class View:
    """A version of each picture that features are computed of.

    Attributes:
        mirrored: the mirror image of evaluation's version.
        epoch: training's random version of this epoch; None: evaluation's version.
    """

    mirrored: bool = False
    epoch: int | None = None


PLAIN_VIEW = View()
MIRROR_VIEW = View(mirrored=True)


def choose_views(spec: TransformSpec, wanted: int) -> tuple[View, ...]:
    """Return at most `wanted` views that differ, by the augmentations that training uses.

    training flips   crops or changes colors   4 wanted
    no               no                        the picture
    yes              no                        the picture, its mirror image
    no               yes                       the picture, random versions of epochs 1, 2, 3
    yes              yes                       the picture, mirror image, epochs 2, 3
    """
    views = [PLAIN_VIEW]
    if spec.horizontal_flip:
        views.append(MIRROR_VIEW)
    if spec.crop_scale != (1.0, 1.0) or spec.rand_augment or spec.color_jitter:
        views += [View(epoch=epoch) for epoch in range(len(views), wanted)]
    return tuple(views[:wanted])


@dataclass(frozen=True)
class FeatureExtractor:
    """A frozen backbone, and everything else that decides its features.

    Attributes:
        embed: (B, 3, S, S) uint8, on any device -> (B, F) features.
        width: F.
        dtype: type of the features.
        load: (manifest, rows of it, view) -> batches of them, in any order.
        spec, seed: transform and seed of the random views.
        how: device and operators as text, since they decide the last bits of a feature.
    """

    embed: Callable[[Tensor], Tensor]
    width: int
    dtype: torch.dtype
    load: Callable[[Manifest, list[int], View], Iterable[Batch]]
    spec: TransformSpec
    seed: int
    how: str = ""

    @property
    def row_bytes(self) -> int:
        """Number of bytes of one picture's features."""
        return self.width * self.dtype.itemsize


@dataclass(frozen=True)
class MissingRows:
    """The rows of one view that are not in the store yet.

    Attributes:
        view: the view.
        keys: (N,) keys of all pictures of the manifest.
        missing: (M,) indices of the pictures that are missing.
    """

    view: View
    keys: Keys
    missing: Positions


@dataclass(frozen=True)
class ComputedRows:
    """Features of one batch, as bytes for the store.

    Attributes:
        indices: number of the view in its group -> indices of the pictures in the manifest.
        values: bytes of one row for each of these indices, view by view.
    """

    indices: dict[int, Positions] = field(default_factory=dict)
    values: list[bytes] = field(default_factory=list)


def find_missing(
    store: Store, manifest: Manifest, views: Sequence[View], extractor: FeatureExtractor
) -> list[MissingRows]:
    """Verify the stored rows of these views, and return the missing rows of each view.

    Verifying may delete a damaged file, and with it rows of every view: it is repeated until no
    file was damaged.
    """
    keyed = [(view, _hash_rows(manifest, view, extractor)) for view in views]
    damaged = -1
    while damaged < store.damaged:
        damaged = store.damaged
        for _, keys in keyed:
            positions = store.find(keys)
            store.verify(positions[positions >= 0])
    return [MissingRows(view, keys, np.flatnonzero(store.find(keys) < 0)) for view, keys in keyed]


def compute_missing(
    store: Store | None,
    manifest: Manifest,
    wanted: Sequence[MissingRows],
    extractor: FeatureExtractor,
    gather: Callable[[Iterator[ComputedRows]], Iterator[ComputedRows]] = iter,
) -> Iterator[int]:
    """Compute the missing rows and add them to the store; yield the number of rows of each batch.

    The picture and its mirror image are computed from one decoding.

    Args:
        store: on rank 0; None on the other ranks, which send their rows to it.
        manifest: the pictures.
        wanted: the missing rows, view by view.
        extractor: computes the features.
        gather: this rank's rows -> the rows of all ranks, on rank 0 (`World.gather_stream`).

    Raises:
        DataError: a picture that cannot be decoded, or too little room on disk and in memory.
    """
    rows = sum(len(part.missing) for part in wanted)
    if store is not None and rows:
        _find_room(store, rows * (extractor.row_bytes + 24))
    fixed = [part for part in wanted if part.view.epoch is None]
    for group in [fixed, *([part] for part in wanted if part.view.epoch is not None)]:
        missing: set[int] = set().union(*(part.missing.tolist() for part in group))
        if missing:
            batches = extractor.load(manifest, sorted(missing), group[0].view)
            computed = gather(_extract_group(manifest, group, batches, extractor))
            yield from _store_rows(store, group, computed)


def _extract_group(
    manifest: Manifest,
    group: Sequence[MissingRows],
    batches: Iterable[Batch],
    extractor: FeatureExtractor,
) -> Iterator[ComputedRows]:
    """Compute the views of a group from the same decoded batches.

    Raises:
        DataError: a picture that cannot be decoded.
    """
    is_missing = np.zeros((len(group), len(manifest)), bool)  # (views, N)
    for number, part in enumerate(group):
        is_missing[number, part.missing] = True
    for batch in batches:
        batch.require_all(manifest.path)
        indices = batch.indices.numpy()
        computed = ComputedRows()
        for number, part in enumerate(group):
            new = is_missing[number, indices]
            if new.any():
                images = batch.images[torch.from_numpy(new)]
                features = extractor.embed(images.flip(-1) if part.view.mirrored else images)
                features = features.to(extractor.dtype).cpu().contiguous()
                computed.indices[number] = indices[new]
                computed.values.extend(row.tobytes() for row in features.view(torch.uint8).numpy())
        yield computed


def _store_rows(
    store: Store | None, group: Sequence[MissingRows], computed: Iterator[ComputedRows]
) -> Iterator[int]:
    """Collect computed rows and write them from time to time; yield the number of rows a batch."""
    keys: list[Keys] = []
    values: list[bytes] = []
    started_at = written_at = time.monotonic()
    for rows in computed:
        assert store is not None
        keys += [group[number].keys[indices] for number, indices in rows.indices.items()]
        values += rows.values
        yield len(rows.values)
        now = time.monotonic()
        interval = max(_FLUSH_S, (now - started_at) / 20)
        if len(values) >= _FLUSH_ROWS or now - written_at > interval:
            store.keep(np.concatenate(keys), values)
            keys, values = [], []
            written_at = now
    if values and store is not None:
        store.keep(np.concatenate(keys), values)


def _find_room(store: Store, size: int) -> None:
    """Let the store keep features in memory where its disk has too little room for them.

    Raises:
        DataError: the memory has too little room as well.
    """
    free = read_free_memory(torch.device("cpu")) or size  # 0: unknown
    if store.folder is None:
        if size > free:
            raise DataError(
                f"keeping features needs {size / 1e9:.2f} GB, and without a cache {free / 1e9:.2f} "
                f"GB of memory are free; set MLFINETUNE_CACHE to a folder that has room"
            )
        return
    try:
        require_space(store.folder, size, "keeping features")
    except DataError as error:
        if size > free:
            raise
        report_unused(error)
        store.folder = None


def _hash_rows(manifest: Manifest, view: View, extractor: FeatureExtractor) -> Keys:
    """Return the store's keys of one view, (N,)."""
    keys = np.empty(len(manifest), np.uint64)
    version = "mirror" if view.mirrored else "plain"
    for index in range(len(manifest)):
        if view.epoch is not None:
            version = f"{mix_seed(extractor.seed, view.epoch, index)} {extractor.spec}"
        keys[index] = hash_file_key(manifest.path(index), version)
    return keys
