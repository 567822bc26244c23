"""Stored features as batches, with the interface of a loader of pictures.

MissingRows of a view, Store -> Features (N, F)      -> FeatureLoader -> Batch
Features of several views    -> MeanFeatures (N, F)  -> FeatureLoader -> Batch
FeatureLoader, rows          -> FeatureLoader.take   -> batches of these pictures alone
"""

from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from mlfinetune.data.batches.batch import Batch
from mlfinetune.data.batches.features import (
    FeatureExtractor,
    MissingRows,
)
from mlfinetune.data.batches.loader import cut_batches
from mlfinetune.data.batches.sampling import Factors, draw_order
from mlfinetune.data.manifest import Manifest
from mlfinetune.storage.store import Positions, Store

_SWEEP_ROWS = 8192  # examples in a batch of `sweep`; it changes nothing but the speed


class FeatureRows(Protocol):
    """Features of N pictures, (N, F)."""

    def __getitem__(self, rows: list[int]) -> Tensor:
        """Return the features of n rows, (n, F) float32 on the device."""

    def read_range(self, start: int, stop: int) -> Tensor:
        """Return the features of rows `start` to `stop`, (n, F) float32 on the device."""


class Features:
    """The features of one view, (N, F), in the manifest's order.

    They are copied to the device if they take at most `room` bytes; else each batch is read from
    the store.
    """

    def __init__(
        self,
        store: Store,
        wanted: MissingRows,
        extractor: FeatureExtractor,
        device: torch.device,
        room: int,
    ) -> None:
        """Open one view; every row must be in the store.

        Args:
            store: holds the rows.
            wanted: the view's keys.
            extractor: gives width and dtype of a row.
            device: device of the features that are returned.
            room: number of bytes that all features may take on the device.
        """
        self._store = store
        self._device = device
        self._row_bytes = extractor.row_bytes
        self._dtype = extractor.dtype
        self._positions = store.find(wanted.keys)
        assert (self._positions >= 0).all()
        self._whole: Tensor | None = None
        if len(self._positions) * self._row_bytes <= room:
            self._whole = self._read_rows(self._positions)

    def __getitem__(self, rows: list[int]) -> Tensor:
        """Return the features of n rows, (n, F) float32 on the device."""
        if self._whole is None:
            return self._read_rows(self._positions[rows]).float()
        return self._whole[torch.tensor(rows, device=self._device)].float()

    def read_range(self, start: int, stop: int) -> Tensor:
        """Return the features of rows `start` to `stop`, (n, F) float32 on the device."""
        if self._whole is None:
            return self._read_rows(self._positions[start:stop]).float()
        return self._whole[start:stop].float()

    def _read_rows(self, positions: Positions) -> Tensor:
        """Read rows from the store, (n, F) of the extractor's dtype, on the device."""
        if not len(positions):  # torch cannot view NumPy's empty array as another type
            width = self._row_bytes // self._dtype.itemsize
            return torch.empty(0, width, dtype=self._dtype, device=self._device)
        features = torch.from_numpy(self._store.read_rows(positions, self._row_bytes))
        return features.view(self._dtype).to(self._device)


class MeanFeatures:
    """The mean features of several views of each picture, (N, F), in the manifest's order.

    A linear head makes of them the mean of the views' logits.
    """

    def __init__(self, views: Sequence[Features]) -> None:
        """Keep the features of one view or more."""
        self._views = views

    def __getitem__(self, rows: list[int]) -> Tensor:
        """Return the mean features of n rows, (n, F) float32 on the device."""
        return torch.stack([features[rows] for features in self._views]).mean(0)

    def read_range(self, start: int, stop: int) -> Tensor:
        """Return the mean features of rows `start` to `stop`, (n, F) float32 on the device."""
        return torch.stack([features.read_range(start, stop) for features in self._views]).mean(0)


class SomeFeatures:
    """The features of some of the pictures, (n, F), in the order of their rows."""

    def __init__(self, features: FeatureRows, rows: list[int]) -> None:
        """Keep the features, and the rows to take of them."""
        self._features, self._rows = features, rows

    def __getitem__(self, rows: list[int]) -> Tensor:
        """Return the features of these of the rows, (n, F) float32 on the device."""
        return self._features[[self._rows[row] for row in rows]]

    def read_range(self, start: int, stop: int) -> Tensor:
        """Return the features of rows `start` to `stop`, (n, F) float32 on the device."""
        return self._features[self._rows[start:stop]]


class FeatureLoader:
    """Batches of features, with the interface of a `Loader`.

    Epoch e uses view number e modulo the number of views. Order and batches are those of a Loader,
    so that a head trained on either sees the same examples in each step.
    """

    def __init__(
        self,
        manifest: Manifest,
        features: Sequence[FeatureRows],
        *,
        batch_size: int,
        train_seed: int | None,
        factors: Factors | None = None,
    ) -> None:
        """Keep the features; with a `train_seed` shuffle by (seed, epoch), None: keep the order.

        Args:
            factors: (N,), training draws pictures in proportion to these; None: each once an epoch.
        """
        self.manifest = manifest
        self._features = features
        self._batch_size = batch_size
        self._seed = train_seed
        self._factors = factors

    @property
    def steps(self) -> int:
        """Number of batches in an epoch."""
        return len(cut_batches(list(range(len(self.manifest))), self._batch_size))

    def epoch(self, epoch: int = 0, first: int = 0) -> Iterator[Batch]:
        """Yield the batches of one epoch, from batch number `first` on."""
        n = len(self.manifest)
        order = list(range(n))
        if self._seed is not None:
            order = draw_order(n, self._seed, epoch, self._factors)
        features = self._features[epoch % len(self._features)]
        for draws in cut_batches(order, self._batch_size)[first:]:
            yield self._make_batch(features, [draw % n for draw in draws])

    def take(self, rows: list[int], factors: Factors | None = None) -> "FeatureLoader":
        """Return the loader of these pictures alone, in this order.

        Args:
            rows: of the manifest.
            factors: as in `__init__`, of these pictures.
        """
        return FeatureLoader(
            self.manifest.take(rows),
            [SomeFeatures(features, rows) for features in self._features],
            batch_size=self._batch_size,
            train_seed=self._seed,
            factors=factors,
        )

    def close(self) -> None:
        """Do nothing; a `Loader` ends its workers here."""

    def sweep(self) -> Iterator[Batch]:
        """Yield every view of every example once, in order, in large batches; for L-BFGS.

        With `factors`, a weight stands for the number of draws: 1 on average over the examples.
        """
        n, factors = len(self.manifest), self._factors
        weights = None if factors is None else torch.from_numpy(factors / factors.mean()).float()
        for features in self._features:
            for start in range(0, n, _SWEEP_ROWS):
                stop = min(n, start + _SWEEP_ROWS)
                targets = torch.from_numpy(self.manifest.targets[start:stop])
                images = features.read_range(start, stop)
                part = None if weights is None else weights[start:stop].to(images.device)
                yield Batch(images, targets, torch.arange(start, stop), weights=part)

    def _make_batch(self, features: FeatureRows, rows: list[int]) -> Batch:
        """Return the features of `rows` with their targets."""
        targets = torch.from_numpy(self.manifest.targets[np.array(rows)])
        return Batch(features[rows], targets, torch.tensor(rows))
