"""A float32 file and one of int8 beside each other: bytes, images/s, validation mAP.

two .onnx, pictures, examples of validation -> compare -> Cost of each -> require_small_drop
"""

import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
from numpy.typing import NDArray

from mlfinetune.data.batches.loader import Loader
from mlfinetune.data.images.transforms import TransformSpec
from mlfinetune.data.manifest import Manifest
from mlfinetune.errors import CheckpointError, DataError
from mlfinetune.metrics.evaluation import raise_scores
from mlfinetune.metrics.implies import Pairs
from mlfinetune.metrics.measure import measure
from mlfinetune.models.onnx_graph import LOGITS, PROBABILITIES
from mlfinetune.models.onnx_session import OnnxModel, open_onnx
from mlfinetune.models.scoring import ScoredBatch, tabulate
from mlfinetune.runtime.device import count_cores
from mlfinetune.runtime.log import RunLog

BATCH = 16
"""Pictures that a file takes at once, when it is measured."""
_ROUNDS = 7
"""Turns of each file."""


@dataclass(frozen=True)
class Cost:
    """Size and speed of a file, and what it scores.

    Attributes:
        size: in bytes.
        rate: images/s at batches of 16, on this machine.
        mean_ap: mAP on the run's validation data.
    """

    size: int
    rate: float
    mean_ap: float


def compare(
    float32: Path,
    int8: Path,
    images: NDArray[np.uint8],
    val: Manifest,
    spec: TransformSpec,
    implies: Pairs,
    log: RunLog,
) -> tuple[Cost, Cost]:
    """Measure both files, on the same pictures; images/s by turns.

    Args:
        float32, int8: the files.
        images: (N, 3, S, S), for the speed.
        val: examples of validation.
        spec: how a picture becomes a square.
        implies: columns of children and parents; the latter are raised.
        log: shows the progress.

    Raises:
        DataError: no label of `val` can be scored, or a picture cannot be read.
        CheckpointError: a file fails, or its numbers depend on the size of the batch.
    """
    paths = (float32, int8)
    models = [open_onnx(path, with_logits=True) for path in paths]
    _require_same_alone(models[1], images)
    scores = _score(models, val, spec, implies, log)
    rates = _measure_rates(models, images)
    sizes = [path.stat().st_size for path in paths]
    first, second = map(Cost, sizes, rates, scores)
    return first, second


def require_small_drop(float32: Cost, int8: Cost, most: float) -> None:
    """Raise a CheckpointError where int8 costs more than `most` of mAP."""
    drop = float32.mean_ap - int8.mean_ap
    if drop > most:
        raise CheckpointError(
            f"int8 costs {drop:.4f} of validation mAP ({float32.mean_ap:.4f} -> "
            f"{int8.mean_ap:.4f}), more than --max-drop {most:g}; export without --int8"
        )


def _require_same_alone(model: OnnxModel, images: NDArray[np.uint8]) -> None:
    """Check that a picture gets the same probabilities in a batch and alone."""
    together = model.compute(images, PROBABILITIES)
    alone = [model.compute(images[row : row + 1], PROBABILITIES) for row in range(len(images))]
    difference = float(np.abs(together - np.concatenate(alone)).max())
    if not difference <= _ALONE:
        raise CheckpointError(
            f"a picture alone gets other probabilities than in a batch, by {difference:.2g}"
        )


_ALONE = 1e-4
"""Largest difference of a probability between batches of two sizes."""


def _score(
    models: list[OnnxModel], val: Manifest, spec: TransformSpec, implies: Pairs, log: RunLog
) -> list[float]:
    """Return the mAP of each model; pictures are decoded once."""
    loader = Loader(
        val, spec, batch_size=BATCH, workers=min(1, count_cores() - 1), train_seed=None,
        pin_memory=False,
    )  # fmt: skip
    rows: list[list[ScoredBatch]] = [[] for _ in models]
    with log.bar("mAP", len(val)) as bar:
        for batch in bar.track(loader.epoch(), lambda batch: len(batch.step_indices)):
            batch.require_all(val.path)
            for model, scored in zip(models, rows, strict=True):
                logits = model.compute(batch.images.numpy(), LOGITS)
                scored.append((batch.indices.numpy(), logits))
    tables = [raise_scores(tabulate(scored, val), implies) for scored in rows]
    found = [measure(table).averages["mAP"] for table in tables]
    scores = [score for score in found if score is not None]
    if len(scores) < len(found):
        raise DataError("no label has both positives and negatives in validation: there is no mAP")
    return scores


def _measure_rates(models: list[OnnxModel], images: NDArray[np.uint8]) -> list[float]:
    """Return images/s of each model: medians of rounds in which they take turns."""
    batch = images[np.arange(BATCH) % len(images)]
    seconds: list[list[float]] = [[] for _ in models]
    for turn in range(_ROUNDS + 1):
        for model, times in zip(models, seconds, strict=True):
            before = time.perf_counter()
            model.compute(batch, PROBABILITIES)
            if turn:  # the first one warms up
                times.append(time.perf_counter() - before)
    return [BATCH / median(times) for times in seconds]
