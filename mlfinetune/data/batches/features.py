"""A frozen backbone's features: computed once for every picture, kept, and read as batches.

    manifest, views -> keys -> Store.find -> what is not there: load -> embed -> Store.add
                                          -> Features (N, F) a view -> FeatureLoader -> Batch

A view is the picture, its mirror image, or what training would see of it in some epoch. The key of
a row is the file (path, size, modification time) and the view; all else that features depend on
(weights, evaluation's transform, precision) names the store's folder.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from mlfinetune.data.batches.batch import Batch
from mlfinetune.data.batches.dataset import mix_seed
from mlfinetune.data.batches.loader import cut_batches, shuffled_order
from mlfinetune.data.images.transforms import TransformSpec
from mlfinetune.data.manifest import Manifest
from mlfinetune.storage.files import hash_file_key
from mlfinetune.storage.store import Keys, Positions, Store, require_space

_FLUSH_ROWS, _FLUSH_S = 32768, 60.0
"""Rows and seconds after which what was computed is written: a crash loses no more.

Seconds grow to a twentieth of what was spent, so that files stay few.
"""
_SWEEP = 8192
"""Examples in a batch where their number changes nothing but speed."""


@dataclass(frozen=True)
class View:
    """How a picture is looked at.

    Attributes:
        mirrored: as its mirror image.
        epoch: as training sees it in this epoch; None: as evaluation does.
    """

    mirrored: bool = False
    epoch: int | None = None


PLAIN_VIEW = View()


def choose_views(spec: TransformSpec, wanted: int) -> tuple[View, ...]:
    """At most `wanted` views that differ: the picture, its mirror image, then random ones.

    A mirror image is one where training flips; random ones there are where it crops or colours.
    """
    found = [PLAIN_VIEW, View(mirrored=True)] if spec.horizontal_flip else [PLAIN_VIEW]
    if spec.crop_scale != (1.0, 1.0) or spec.rand_augment or spec.color_jitter:
        found += [View(epoch=epoch) for epoch in range(len(found), wanted)]
    return tuple(found[:wanted])


@dataclass(frozen=True)
class FeatureExtractor:
    """What makes features.

    Attributes:
        embed: (B, 3, S, S) uint8, anywhere -> (B, F) features.
        width: F.
        dtype: of the features.
        load: (examples, which of them, view) -> their batches, in any order.
        spec, seed: of the random views.
        how: what else decides the last bits of features: device, operators.
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
        """Bytes of one picture's features."""
        return self.width * self.dtype.itemsize


@dataclass(frozen=True)
class MissingRows:
    """The rows of one view of a manifest: their keys, and which of them are missing."""

    view: View
    keys: Keys
    missing: Positions


@dataclass(frozen=True)
class ComputedRows:
    """What is computed of a batch: indices by their view's number, and a row's bytes for each."""

    indices: dict[int, Positions] = field(default_factory=dict)
    values: list[bytes] = field(default_factory=list)


def find_missing(
    store: Store, manifest: Manifest, views: Sequence[View], embedder: FeatureExtractor
) -> list[MissingRows]:
    """What the store has of these views, verified, and what it lacks."""
    keyed = [(view, _keys(manifest, view, embedder)) for view in views]
    damaged = -1
    while damaged < store.damaged:  # a file that is deleted may hold rows of every view
        damaged = store.damaged
        for _, keys in keyed:
            found = store.find(keys)
            store.verify(found[found >= 0])
    return [MissingRows(view, keys, np.flatnonzero(store.find(keys) < 0)) for view, keys in keyed]


def compute_missing(
    store: Store | None,
    manifest: Manifest,
    wanted: Sequence[MissingRows],
    embedder: FeatureExtractor,
    merged: Callable[[Iterator[ComputedRows]], Iterator[ComputedRows]] = iter,
) -> Iterator[int]:
    """Compute and keep what is missing; yields how many rows are done, batch by batch.

    The picture and its mirror image are of one decoding.

    Args:
        store: None in a process that computes for another one's.
        merged: what several processes compute -> all of it in the one that has the store.

    Raises:
        DataError: a picture that cannot be decoded, or too little room on the disk.
    """
    rows = sum(len(one.missing) for one in wanted)
    if store is not None and rows:
        require_space(store.folder, rows * (embedder.row_bytes + 24), "keeping features")
    whole = [one for one in wanted if one.view.epoch is None]
    for group in [whole, *([one] for one in wanted if one.view.epoch is not None)]:
        lacking: set[int] = set().union(*(one.missing.tolist() for one in group))
        if lacking:
            batches = embedder.load(manifest, sorted(lacking), group[0].view)
            rows_of_all = merged(_embedded(manifest, group, batches, embedder))
            yield from _kept(store, group, rows_of_all)


def _embedded(
    manifest: Manifest,
    group: Sequence[MissingRows],
    batches: Iterable[Batch],
    embedder: FeatureExtractor,
) -> Iterator[ComputedRows]:
    """The views of a group, from one decoding."""
    lacking = np.zeros((len(group), len(manifest)), bool)
    for row, one in zip(lacking, group, strict=True):
        row[one.missing] = True
    for batch in batches:
        batch.require_all(manifest.path)
        indices, found = batch.indices.numpy(), ComputedRows()
        for at, (row, one) in enumerate(zip(lacking, group, strict=True)):
            new = row[indices]
            if new.any():
                images = batch.images[torch.from_numpy(new)]
                features = embedder.embed(images.flip(-1) if one.view.mirrored else images)
                features = features.to(embedder.dtype).cpu().contiguous()
                found.indices[at] = indices[new]
                found.values.extend(row.tobytes() for row in features.view(torch.uint8).numpy())
        yield found


def _kept(
    store: Store | None, group: Sequence[MissingRows], found: Iterator[ComputedRows]
) -> Iterator[int]:
    """Write them, now and then."""
    keys: list[Keys] = []
    values: list[bytes] = []
    started = written = time.monotonic()
    for rows in found:
        assert store is not None
        keys += [group[at].keys[indices] for at, indices in rows.indices.items()]
        values += rows.values
        yield len(rows.values)
        now = time.monotonic()
        if len(values) >= _FLUSH_ROWS or now - written > max(_FLUSH_S, (now - started) / 20):
            store.add(np.concatenate(keys), values)
            keys, values, written = [], [], now
    if values and store is not None:
        store.add(np.concatenate(keys), values)


def _keys(manifest: Manifest, view: View, embedder: FeatureExtractor) -> Keys:
    """(N,) the keys of one view."""
    keys = np.empty(len(manifest), np.uint64)
    look = "mirror" if view.mirrored else "plain"
    for index in range(len(manifest)):
        if view.epoch is not None:
            look = f"{mix_seed(embedder.seed, view.epoch, index)} {embedder.spec}"
        keys[index] = hash_file_key(manifest.path(index), look)
    return keys


class Features:
    """(N, F) features of one view, in the manifest's order.

    In memory, on the device, where they take at most `room` bytes; else read as they are asked for.
    """

    def __init__(
        self,
        store: Store,
        wanted: MissingRows,
        embedder: FeatureExtractor,
        device: torch.device,
        room: int,
    ) -> None:
        """Every row must be in the store."""
        self._store, self._device = store, device
        self._width, self._dtype = embedder.row_bytes, embedder.dtype
        self._positions = store.find(wanted.keys)
        assert (self._positions >= 0).all()
        self._whole: Tensor | None = None
        if len(self._positions) * self._width <= room:
            self._whole = self._read(self._positions)

    def __getitem__(self, rows: list[int]) -> Tensor:
        """(n, F) float32 on the device."""
        if self._whole is None:
            return self._read(self._positions[rows]).float()
        return self._whole[torch.tensor(rows, device=self._device)].float()

    def _read(self, positions: Positions) -> Tensor:
        features = torch.from_numpy(self._store.rows(positions, self._width))
        return features.view(self._dtype).to(self._device)


class FeatureLoader:
    """Batches of features with the face of a `Loader`: epoch e has view e, or e modulo their count.

    Order and batches are a Loader's, so that a head trained on either sees the same.
    """

    def __init__(
        self,
        manifest: Manifest,
        features: Sequence[Features],
        *,
        batch_size: int,
        train_seed: int | None,
    ) -> None:
        """With `train_seed` examples are shuffled by (seed, epoch); with None they are not."""
        self.manifest, self._features = manifest, features
        self._batch_size, self._seed = batch_size, train_seed

    @property
    def steps(self) -> int:
        """Batches in an epoch."""
        return len(cut_batches(list(range(len(self.manifest))), self._batch_size))

    def epoch(self, epoch: int = 0, first: int = 0) -> Iterator[Batch]:
        """The batches of one epoch, from the batch `first` on."""
        n = len(self.manifest)
        order = list(range(n)) if self._seed is None else shuffled_order(n, self._seed, epoch)
        features = self._features[epoch % len(self._features)]
        for rows in cut_batches(order, self._batch_size)[first:]:
            yield self._batch(features, rows)

    def close(self) -> None:
        """As a `Loader`, which has workers to end."""

    def sweep(self) -> Iterator[Batch]:
        """Every view of every example once, in order, in large batches."""
        n = len(self.manifest)
        for features in self._features:
            for start in range(0, n, _SWEEP):
                yield self._batch(features, list(range(start, min(n, start + _SWEEP))))

    def _batch(self, features: Features, rows: list[int]) -> Batch:
        targets = torch.from_numpy(self.manifest.targets[np.array(rows)])
        return Batch(features[rows], targets, torch.tensor(rows))
