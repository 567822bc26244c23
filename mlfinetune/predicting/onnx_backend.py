"""ONNX files that `mlfinetune export` wrote, in a checkpoint's place: computed by onnxruntime.

    .onnx -> open_file -> Checkpoint without weights, OnnxNetwork -> OnnxBackend

The views of a file are inside its graph. Mirror views can be added to a file of plain ones, and
none can be taken away.
"""

import copy
from pathlib import Path
from typing import NoReturn, Self

import torch
from torch import Tensor, nn

from mlfinetune.errors import CheckpointError, ConfigError
from mlfinetune.metrics.types import EvalViews
from mlfinetune.models.onnx_graph import IMAGES, LOGITS, PROBABILITIES
from mlfinetune.models.onnx_session import OnnxModel, OnnxNetwork, open_onnx
from mlfinetune.models.scoring import average_views, infer
from mlfinetune.runs.checkpoint import Checkpoint
from mlfinetune.runs.onnx_metadata import read_metadata, require_seal

SUFFIX = ".onnx"
NO_MAPS = "an ONNX file gives no heat maps; the checkpoint that it was exported from does"
"""Reason for a page without heat maps."""


def is_onnx(file: Path) -> bool:
    """Tell whether a file has the ending of an ONNX file."""
    return file.suffix.lower() == SUFFIX


def open_file(file: Path) -> tuple[Checkpoint, OnnxNetwork]:
    """Open an exported file.

    Returns:
        Its checkpoint, which has no weights; and what computes its logits, on the CPU, the mean of
        the checkpoint's views.

    Raises:
        CheckpointError: it cannot be read, is damaged, or `mlfinetune export` did not write it.
        ConfigError: the extra is missing.
    """
    model = open_onnx(file, with_logits=True)
    loaded = read_metadata(model.metadata, file)
    require_seal(file.read_bytes(), file)
    _require_fit(model, loaded, file)
    return loaded, OnnxNetwork(model)


def _require_fit(model: OnnxModel, loaded: Checkpoint, file: Path) -> None:
    """Raise a CheckpointError where graph and metadata are not of one tagger."""
    side, labels = loaded.transform.image_size, len(loaded.labels)
    _, taken = model.inputs.get(IMAGES, ("", []))
    _, given = model.outputs.get(PROBABILITIES, ("", []))
    is_whole = [*model.inputs] == [IMAGES] and LOGITS in model.outputs
    if not is_whole or taken[1:] != [3, side, side] or given[1:] != [labels]:
        raise CheckpointError(
            f"{file}: its graph takes {taken} and gives {given}, its metadata says {side} px and "
            f"{labels} labels; export it again"
        )


def add_views(network: OnnxNetwork, own: EvalViews, views: EvalViews, file: Path) -> nn.Module:
    """Return the model of the mean logits of `views`.

    Args:
        network: of `open_file`.
        own: the views inside it.
        views: those that are wanted.
        file: for the message.

    Raises:
        ConfigError: the file has more views than are wanted.
    """
    if own == views:
        return network
    if own != "plain":
        raise ConfigError(
            f"{file} has {own} views in its graph, so {views} ones cannot be scored; use the "
            f"checkpoint that it was exported from"
        )
    return average_views(network, views)


class OnnxBackend:
    """Backend of an exported file; it computes on the CPU, whatever the device."""

    def __init__(self, file: Path, device: torch.device) -> None:
        """Open the file.

        Raises:
            CheckpointError, ConfigError: as `open_file`.
        """
        loaded, network = open_file(file)
        self.name, self.file, self.device = str(file), file, torch.device("cpu")
        self.labels, self.decision, self.spec = loaded.labels, loaded.decision, loaded.transform
        self.backbone, self.fitted_views = loaded.backbone, loaded.views
        self.config = loaded.config
        self.how = network.how
        self._network = network
        self._set_views(loaded.views)

    def _set_views(self, views: EvalViews) -> None:
        self.views: EvalViews = views
        self._scorer = add_views(self._network, self.fitted_views, views, self.file).eval()

    def with_views(self, views: EvalViews) -> Self:
        """Return a backend of other views; both share the session.

        Raises:
            ConfigError: the graph has more views inside.
        """
        other = copy.copy(self)
        other._set_views(views)
        return other

    def compute_logits(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) uint8 -> (B, L) float32."""
        return infer(self._scorer, images, self.device, torch.float32)

    def compute_features(self, images: Tensor) -> Tensor:
        """Refuse, with a ConfigError: the file has no features."""
        refuse(self.name, "features")

    def build_explainer(self) -> NoReturn:
        """Refuse, with a ConfigError: the file has no maps."""
        refuse(self.name, "heat maps")


def refuse(name: str, lacking: str) -> NoReturn:
    """Raise a ConfigError: the file, of this name, has no features or heat maps."""
    raise ConfigError(
        f"{name} is an ONNX file, which gives probabilities and no {lacking}; use the checkpoint "
        f"that it was exported from"
    )
