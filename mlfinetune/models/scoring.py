"""The model looks at pictures: batches become logits, logits a ScoreTable or probabilities.

    model, batches -> scored -> (indices, logits) a batch -> tabulate -> ScoreTable

The one place with a sigmoid.
"""

from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from mlfinetune.data.batches.batch import Batch
from mlfinetune.data.manifest import Manifest
from mlfinetune.errors import TrainingError
from mlfinetune.metrics.types import ScoreTable
from mlfinetune.text import format_list

ScoredBatch = tuple[NDArray[np.int64], NDArray[np.float32]]
"""(B,) indices and (B, L) logits of a batch."""


def compute_logits(
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


def score_batches(
    model: nn.Module,
    batches: Iterable[Batch],
    name_of: Callable[[int], str],
    device: torch.device,
    dtype: torch.dtype,
) -> Iterator[ScoredBatch]:
    """What the model says of each batch.

    Raises:
        DataError: pictures that cannot be decoded, by name.
    """
    for batch in batches:
        batch.require_all(name_of)
        yield batch.indices.numpy(), compute_logits(model, batch, device, dtype)


def tabulate(rows: Iterable[ScoredBatch], manifest: Manifest) -> ScoreTable:
    """Every image of `manifest` once, in its order; rows come in any, from any process.

    None is padded in, so that one that comes twice is a mistake, as is one that does not come.

    Raises:
        TrainingError: scores that are not finite.
    """
    indices, logits = zip(*rows, strict=True)
    seen = np.concatenate(indices)
    order = np.argsort(seen, kind="stable")
    assert np.array_equal(seen[order], np.arange(len(manifest))), "not every image once"
    table = np.concatenate(logits)[order]
    if bad := [manifest.names[row] for row in np.flatnonzero(~np.isfinite(table).all(axis=1))]:
        raise TrainingError(
            f"the scores of {len(bad)} pictures are not finite: the weights have diverged; lower "
            f"train.lr and train.head_lr\n{format_list(bad)}"
        )
    return ScoreTable(manifest.names, table, manifest.targets[:], manifest.labels)


def score_manifest(
    model: nn.Module,
    batches: Iterable[Batch],
    manifest: Manifest,
    device: torch.device,
    dtype: torch.dtype,
) -> ScoreTable:
    """Both: score every image of `manifest`; raises as they do."""
    return tabulate(score_batches(model, batches, manifest.path, device, dtype), manifest)
