"""Features and logits of any pictures, as a run's network computes them.

    paths -> FeaturePool.read -> PoolPart: features of those that can be read, faults of the others
             -> FeaturePool.tabulate -> arrays of features and logits

Features are kept in the cache, under the keys of training (`features.py`). So those of a frozen
run's own pictures are there already, and pictures that are labelled later are not computed again.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import normalize

from mlfinetune.config import Config
from mlfinetune.data.batches.batch import Batch
from mlfinetune.data.batches.feature_batches import Features, MeanFeatures
from mlfinetune.data.batches.features import (
    FeatureExtractor,
    View,
    compute_missing,
    find_missing,
)
from mlfinetune.data.manifest import Manifest
from mlfinetune.data.targets import LabelSpace, Targets
from mlfinetune.errors import TrainingError
from mlfinetune.models.inference import prepare_for_inference
from mlfinetune.models.tagger import Tagger
from mlfinetune.runs.checkpoint import Checkpoint
from mlfinetune.runtime.device import choose_precision, choose_workers, name_dtype
from mlfinetune.runtime.log import RunLog
from mlfinetune.storage.cache import get_cache_folder
from mlfinetune.text import pluralize
from mlfinetune.training.features import EVAL_VIEWS, build_extractor, open_feature_store

_BLOCK = 4096
"""Rows that are read at a time."""


def list_pictures(paths: Sequence[str]) -> Manifest:
    """Return a manifest of pictures whose labels are not known."""
    unknown = Targets(np.zeros((len(paths), 1), np.uint8), 1)
    return Manifest(Path(), tuple(paths), unknown, LabelSpace(("",)))


@dataclass(frozen=True)
class PoolPart:
    """Pictures whose features are in the store.

    Attributes:
        rows: (n,) places of the pictures that could be read, among those that were asked for.
        faults: place of each other picture -> why it could not be read.
        features: (n, F) of the former, the mean of the views.
    """

    rows: NDArray[np.int64]
    faults: dict[int, str]
    features: MeanFeatures

    def __len__(self) -> int:
        return len(self.rows)


class FeaturePool:
    """Reader of pictures' features by a checkpoint's network.

    Attributes:
        how: device and precision, for the log.
    """

    def __init__(
        self, loaded: Checkpoint, network: Tagger, config: Config, device: torch.device, log: RunLog
    ) -> None:
        """Open the store of this network's features.

        Args:
            loaded, network: of `load_network`.
            config: of the run.
            device: where the network is.
            log: shows the progress.
        """
        dtype, reason = choose_precision(config.train.precision, device)
        self.how = f"device {device}, precision {name_dtype(dtype)} ({reason})"
        self._views, self._head = EVAL_VIEWS[loaded.views], network.head
        self._device, self._log, self._labels = device, log, len(loaded.labels)
        workers = choose_workers("auto", device)
        spec = loaded.transform
        prepared = prepare_for_inference(network, spec.image_size, device, dtype)
        self._extractor = build_extractor(
            config, prepared, spec, device, dtype, workers, say=log.say
        )
        self._store = open_feature_store(
            get_cache_folder("features"),
            network,
            spec,
            loaded.backbone,
            self._extractor,
        )

    def read(self, paths: Sequence[str], title: str) -> PoolPart:
        """Return the features of pictures; those that the store lacks are computed.

        Args:
            paths: of the pictures, each once; URLs too.
            title: of the progress bar.

        Raises:
            DataError: too little room on disk and in memory.
        """
        manifest = list_pictures(paths)
        faults: dict[int, str] = {}
        extractor = replace(self._extractor, load=_collecting(self._extractor, faults))
        by_view = find_missing(self._store, manifest, self._views, extractor)
        missing = sum(len(view.missing) for view in by_view)
        kept = len(paths) - max(len(view.missing) for view in by_view)
        self._log.say(f"{title}: {len(paths)} wanted, {kept} kept from before")
        with self._log.bar(title, missing) as bar:
            for number in compute_missing(self._store, manifest, by_view, extractor):
                bar.update(number)
        is_read = np.ones(len(paths), bool)
        is_read[list(faults)] = False
        rows = np.flatnonzero(is_read)
        views = (replace(view, keys=view.keys[rows]) for view in by_view)
        features = [Features(self._store, view, extractor, self._device, -1) for view in views]
        return PoolPart(rows, faults, MeanFeatures(features))

    @torch.inference_mode()
    def tabulate(self, part: PoolPart) -> tuple[NDArray[np.float16], NDArray[np.float32]]:
        """Return the features of n pictures, (n, F), each of length 1, and their (n, L) logits.

        Raises:
            TrainingError: logits that are not finite.
        """
        features = np.empty((len(part), self._extractor.width), np.float16)
        logits = np.empty((len(part), self._labels), np.float32)
        for start in range(0, len(part), _BLOCK):
            stop = min(len(part), start + _BLOCK)
            block = part.features.read_range(start, stop)
            features[start:stop] = normalize(block).cpu().numpy()
            logits[start:stop] = self._head(block).cpu().numpy()
        if bad := int((~np.isfinite(logits)).any(axis=1).sum()):
            raise TrainingError(
                f"the scores of {pluralize(bad, 'picture')} are not finite: the weights have "
                f"diverged"
            )
        return features, logits


def _collecting(
    extractor: FeatureExtractor, faults: dict[int, str]
) -> Callable[[Manifest, list[int], View], Iterator[Batch]]:
    """Return a loader as the extractor's, which puts unreadable pictures into `faults`."""

    def load(manifest: Manifest, rows: list[int], view: View) -> Iterator[Batch]:
        for batch in extractor.load(manifest, rows, view):
            faults.update({failure.index: failure.reason for failure in batch.failures})
            yield replace(batch, failures=())

    return load
