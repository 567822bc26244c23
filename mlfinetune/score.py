"""The model looks at pictures: batches become logits, logits a ScoreTable or probabilities.

The one place with a sigmoid.
"""

from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from mlfinetune.errors import TrainingError, listing
from mlfinetune.records import Batch, Manifest, ScoreTable


def forward(
    model: nn.Module, batch: Batch, device: torch.device, dtype: torch.dtype
) -> NDArray[np.float32]:
    """(B, L) float32 logits of a batch that is not empty, in evaluation mode."""
    model.eval()
    with (
        torch.inference_mode(),
        torch.autocast(device.type, dtype, enabled=dtype != torch.float32),
    ):
        logits = model(batch.images.to(device, non_blocking=True))
    array: NDArray[np.float32] = logits.float().cpu().numpy()
    return array


def score(
    model: nn.Module,
    batches: Iterable[Batch],
    manifest: Manifest,
    device: torch.device,
    dtype: torch.dtype,
) -> ScoreTable:
    """Score every image of `manifest` once; rows come back in its order.

    Raises:
        DataError: pictures that cannot be decoded, by name.
        TrainingError: scores that are not finite.
    """
    indices: list[NDArray[np.int64]] = []
    logits: list[NDArray[np.float32]] = []
    for batch in batches:
        batch.require_all(manifest.path)
        logits.append(forward(model, batch, device, dtype))
        indices.append(batch.indices.numpy())
    order = np.argsort(np.concatenate(indices), kind="stable")
    assert np.array_equal(np.concatenate(indices)[order], np.arange(len(manifest)))
    table = np.concatenate(logits)[order]
    if bad := [manifest.names[row] for row in np.flatnonzero(~np.isfinite(table).all(axis=1))]:
        raise TrainingError(
            f"the scores of {len(bad)} pictures are not finite: the weights have diverged; lower "
            f"train.lr and train.head_lr\n{listing(bad)}"
        )
    return ScoreTable(manifest.names, table, manifest.targets[:], manifest.labels)


def probabilities(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """sigmoid(logits) in float64, without overflow, the same shape."""
    e = np.exp(-np.abs(logits.astype(np.float64)))
    return np.where(logits >= 0, 1.0, e) / (1.0 + e)
