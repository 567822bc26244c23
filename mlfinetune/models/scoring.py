"""Scoring: the model's logits for batches of images, and the ScoreTable of a whole manifest.

    model, views   -> average_views -> model of the mean logits of these views
    model, batches -> score_batches -> (indices, logits) of each batch -> tabulate -> ScoreTable

Logits stay logits here; probabilities are computed by `metrics.logits.sigmoid`.
"""

from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from mlfinetune.data.batches.batch import Batch
from mlfinetune.data.manifest import Manifest
from mlfinetune.errors import TrainingError
from mlfinetune.metrics.types import EvalViews, ScoreTable
from mlfinetune.models.tagger import Tagger
from mlfinetune.text import format_list, pluralize

ScoredBatch = tuple[NDArray[np.int64], NDArray[np.float32]]
"""(B,) indices and (B, L) logits of a batch."""


class MirrorMean(nn.Module):
    """Model of the mean logits of each picture and of its mirror image.

    Logits are averaged, not probabilities. Calibration and thresholds are fitted to logits, so the
    mean is one more logit to them. The mean of probabilities would have to be made a logit again,
    and a view that is sure, at 0 or 1, would outvote the other. For a linear head, the mean of
    logits is also the logit of the mean features. A Tagger's are computed so, to the same bits as
    of kept features (`data.batches.feature_batches.MeanFeatures`).
    """

    def __init__(self, model: nn.Module) -> None:
        """Wrap a model: (B, 3, S, S) -> (B, L) logits."""
        super().__init__()
        self.model = model

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(B, 3, S, S) -> (B, L); one view after the other, so it takes no more memory than one."""
        views = (images, images.flip(-1))
        if isinstance(self.model, Tagger):
            features = torch.stack([self.model.embed(view).float() for view in views]).mean(0)
            return self.model.apply_head(features)
        return torch.stack([self.model(view) for view in views]).mean(0)


def average_views(model: nn.Module, views: EvalViews) -> nn.Module:
    """Return a model of the mean logits of these views of a picture; `plain`: `model` itself.

    Pictures are decoded once, whatever the views: the mirror image is made on the device.
    """
    return MirrorMean(model) if views == "mirror" else model


def describe_views(views: EvalViews) -> str:
    """Describe the views for a line of the log, such as `mirror views, `; `plain`: nothing."""
    return "" if views == "plain" else f"{views} views, "


def compute_logits(
    model: nn.Module, batch: Batch, device: torch.device, dtype: torch.dtype
) -> NDArray[np.float32]:
    """Return the (B, L) float32 logits of a batch with at least one image, in evaluation mode.

    Args:
        model: on the device; it is put into evaluation mode.
        batch: its images may be on any device.
        device: where the model is.
        dtype: bfloat16 computes under autocast, float32 without.
    """
    array: NDArray[np.float32] = infer(model.eval(), batch.images, device, dtype).numpy()
    return array


def infer(
    model: nn.Module, images: torch.Tensor, device: torch.device, dtype: torch.dtype
) -> torch.Tensor:
    """Return a model's output for (B, 3, S, S) uint8 images: float32, on the CPU.

    Several threads may do so at once with the same model.

    Args:
        model: on the device, in evaluation mode.
        images: at least one, on any device.
        device: where the model is.
        dtype: bfloat16 computes under autocast, float32 without.
    """
    with (
        torch.inference_mode(),
        torch.autocast(device.type, dtype, enabled=dtype != torch.float32),
    ):
        output: torch.Tensor = model(images.to(device, non_blocking=True))
    return output.float().cpu()


def score_batches(
    model: nn.Module,
    batches: Iterable[Batch],
    name_of: Callable[[int], str],
    device: torch.device,
    dtype: torch.dtype,
) -> Iterator[ScoredBatch]:
    """Yield indices and logits of each batch, in the order of the batches.

    Args:
        model: on the device; it is put into evaluation mode.
        batches: may come in any order, as `indices` travel with them.
        name_of: index of an image -> its path, for messages.
        device: where the model is.
        dtype: bfloat16 computes under autocast, float32 without.

    Raises:
        DataError: images that cannot be decoded, by name.
    """
    for batch in batches:
        batch.require_all(name_of)
        yield batch.indices.numpy(), compute_logits(model, batch, device, dtype)


def tabulate(rows: Iterable[ScoredBatch], manifest: Manifest) -> ScoreTable:
    """Sort scored batches into the order of the manifest.

        indices [2, 0], [1]  and logits [c, a], [b]  ->  logits [a, b, c]

    Loaders do not pad, so every image comes exactly once. An image that comes twice or not at all
    is a bug, and raises an AssertionError.

    Args:
        rows: in any order, from any rank.
        manifest: N images, whose targets and names go into the table.

    Raises:
        TrainingError: logits that are not finite.
    """
    indices, logits = zip(*rows, strict=True)
    all_indices = np.concatenate(indices)
    order = np.argsort(all_indices, kind="stable")
    assert np.array_equal(all_indices[order], np.arange(len(manifest))), "not every image once"
    table = np.concatenate(logits)[order]
    if bad := [manifest.names[row] for row in np.flatnonzero(~np.isfinite(table).all(axis=1))]:
        raise TrainingError(
            f"the scores of {pluralize(len(bad), 'picture')} are not finite: the weights have "
            f"diverged; lower train.lr and train.head_lr\n{format_list(bad)}"
        )
    return ScoreTable(
        manifest.names, table, manifest.targets[:], manifest.labels, groups=manifest.groups
    )


def score_manifest(
    model: nn.Module,
    batches: Iterable[Batch],
    manifest: Manifest,
    device: torch.device,
    dtype: torch.dtype,
) -> ScoreTable:
    """Score every image of `manifest`, in its order.

    Raises:
        DataError: as `score_batches`.
        TrainingError: as `tabulate`.
    """
    return tabulate(score_batches(model, batches, manifest.path, device, dtype), manifest)
