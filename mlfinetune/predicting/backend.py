"""Backends compute logits and features of batches, each from another kind of file.

    run directory or .safetensors -> open_backend -> TorchBackend: torch, on any device
    .onnx                         -> open_backend -> OnnxBackend: onnxruntime, on the CPU

A Tagger asks nothing else of a file. Several threads may use a backend at once.
"""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, Self

import torch
from torch import Tensor, nn

from mlfinetune.config import restore_config
from mlfinetune.data.images.transforms import TransformSpec
from mlfinetune.data.targets import LabelSpace
from mlfinetune.errors import CheckpointError
from mlfinetune.location import Location
from mlfinetune.metrics.types import DecisionRule, EvalViews
from mlfinetune.models.heat_map import Explainer
from mlfinetune.models.inference import prepare_for_inference, restore_tagger
from mlfinetune.models.scoring import average_views, infer
from mlfinetune.models.tagger import Tagger as Network
from mlfinetune.predicting.onnx_backend import SUFFIX, OnnxBackend
from mlfinetune.predicting.remote import fetch_checkpoint
from mlfinetune.runs import checkpoint, directory
from mlfinetune.runtime.device import choose_precision, name_dtype
from mlfinetune.text import mask_secrets


class Backend(Protocol):
    """Computer of logits, with everything of its file that predictions need.

    Attributes:
        name: path of the file, or its URL.
        file: the file; of a URL the copy on this machine.
        labels: names of the L columns.
        decision: calibration and thresholds of the file.
        config: config of the run, as plain containers.
        spec: how a picture becomes the (3, S, S) square.
        backbone: name of the network.
        views: versions of a picture whose mean logits are computed.
        fitted_views: those that the file's decision was fitted under.
        device: where it computes.
        how: its precision and its operators, for the log.
    """

    name: str
    file: Path
    labels: LabelSpace
    decision: DecisionRule
    config: dict[str, Any]
    spec: TransformSpec
    backbone: str
    views: EvalViews
    fitted_views: EvalViews
    device: torch.device
    how: str

    def compute_logits(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) uint8 on any device -> (B, L) float32 on the CPU, the mean of the views."""

    def compute_features(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) uint8 on any device -> (B, F) float32 on the CPU, the mean of the views.

        Raises:
            MlfinetuneError: the file has no features.
        """

    def build_explainer(self) -> Explainer:
        """Return what computes heat maps, of the views.

        Raises:
            MlfinetuneError: the network has none.
        """

    def with_views(self, views: EvalViews) -> Self:
        """Return a backend of other views, which shares all else."""


def open_backend(source: Location, device: torch.device) -> Backend:
    """Open a run directory, a checkpoint, or a file of another kind that computes logits.

    Args:
        source: the directory or file, or the URL of one.
        device: where it computes.

    Raises:
        CheckpointError: there is none, or it cannot be used.
    """
    if isinstance(source, Path):
        return _open_file(directory.find_checkpoint(source), device)
    file, url = fetch_checkpoint(source), mask_secrets(source)
    try:
        backend = _open_file(file, device)
    except CheckpointError as error:
        raise CheckpointError(str(error).replace(str(file), url)) from error
    backend.name = url
    return backend


def _open_file(file: Path, device: torch.device) -> Backend:
    return _OPENERS.get(file.suffix.lower(), TorchBackend)(file, device)


class TorchBackend:
    """Backend of a checkpoint, computed by torch."""

    def __init__(self, file: Path, device: torch.device) -> None:
        """Load and verify the checkpoint, and make its network fast on the device.

        Raises:
            CheckpointError: it cannot be used.
        """
        loaded = checkpoint.load(file)
        self.name, self.file, self.device = str(file), file, device
        self.labels, self.decision, self.spec = loaded.labels, loaded.decision, loaded.transform
        self.backbone, self.fitted_views = loaded.backbone, loaded.views
        self.config = loaded.config
        precision = restore_config(loaded.config, file).train.precision
        self._dtype, _ = choose_precision(precision, device)
        about = (loaded.backbone, loaded.levels, len(loaded.labels))
        trained = restore_tagger(*about, loaded.weights, loaded.transform, device, file)
        side = self.spec.image_size
        self._tagger, how = prepare_for_inference(trained, side, device, self._dtype)
        self.how = f"precision {name_dtype(self._dtype)}, {how}"
        self._set_views(loaded.views)

    def _set_views(self, views: EvalViews) -> None:
        self.views: EvalViews = views
        self._explainer: Explainer | None = None
        self._scorer = average_views(self._tagger, views).eval()
        self._embedder = average_views(_Embedder(self._tagger), views).eval()

    def with_views(self, views: EvalViews) -> Self:
        """Return a backend of other views; both share the network."""
        other = copy.copy(self)
        other._set_views(views)
        return other

    def compute_logits(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) uint8 -> (B, L) float32."""
        return infer(self._scorer, images, self.device, self._dtype)

    def compute_features(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) uint8 -> (B, F) float32."""
        return infer(self._embedder, images, self.device, self._dtype)

    def build_explainer(self) -> Explainer:
        """Return what computes heat maps.

        Raises:
            ConfigError: the backbone has none.
        """
        if self._explainer is None:
            self._explainer = Explainer(self._tagger, self.spec, self.views == "mirror")
        return self._explainer


class _Embedder(nn.Module):
    """Model of the features that a network's head gets."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) uint8 -> (B, F) float32: means of bfloat16 would be rounded."""
        return self.network.embed(images).float()


_OPENERS: dict[str, Callable[[Path, torch.device], Backend]] = {
    SUFFIX: OnnxBackend,
}
"""Ending of a file -> what opens it; a file of any other ending is a checkpoint."""
