"""Scoring of labelled pictures with a checkpoint, or with a file that was exported from one.

file -> load_network -> Checkpoint, Tagger or OnnxNetwork -> build_scorer -> Scorer
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from mlfinetune.metrics.types import EvalViews
from mlfinetune.models.heat_map import Explainer, build_explainer, count_explaining_threads
from mlfinetune.models.inference import prepare_for_inference, restore_tagger
from mlfinetune.models.onnx_session import OnnxNetwork
from mlfinetune.models.scoring import average_views
from mlfinetune.models.tagger import Tagger
from mlfinetune.predicting.onnx_backend import NO_MAPS, add_views, is_onnx, open_file
from mlfinetune.runs import checkpoint
from mlfinetune.runs.checkpoint import Checkpoint
from mlfinetune.runtime.device import choose_precision, name_dtype, oom_as_device_error

Network = Tagger | OnnxNetwork


@dataclass(frozen=True)
class Scorer:
    """A network that is ready to score.

    Attributes:
        net: (B, 3, S, S) uint8 -> (B, L) mean logits of the views, on the device.
        dtype: of its activations.
        how: what computes, and how precisely, for the log.
        explainer: computes heat maps; None: there are none.
        no_maps: the reason for that.
        explaining_threads: number of threads that may call `explainer` at once.
    """

    net: nn.Module
    dtype: torch.dtype
    how: str
    explainer: Explainer | None
    no_maps: str
    explaining_threads: int = 1


def load_network(file: Path, device: torch.device) -> tuple[Checkpoint, Network]:
    """Load a checkpoint or an exported file, and its network.

    Raises:
        CheckpointError: it cannot be used.
        DeviceError: the device has too little memory.
    """
    if is_onnx(file):
        return open_file(file)
    loaded = checkpoint.load(file)
    about = (loaded.backbone, loaded.levels, len(loaded.labels))
    with oom_as_device_error():
        return loaded, restore_tagger(*about, loaded.weights, loaded.transform, device, file)


def build_scorer(
    network: Network,
    loaded: Checkpoint,
    file: Path,
    views: EvalViews,
    precision: str,
    device: torch.device,
) -> Scorer:
    """Make a network fast, and let it score these views.

    Args:
        network, loaded, file: of `load_network`.
        views: whose logits are averaged.
        precision: of a checkpoint: auto, float32 or bfloat16.
        device: where a checkpoint's network is; an exported file is computed on the CPU.

    Raises:
        ConfigError: an exported file has more views in its graph.
    """
    if isinstance(network, OnnxNetwork):
        net = add_views(network, loaded.views, views, file)
        return Scorer(net, torch.float32, f"device cpu, {network.how}", None, NO_MAPS)
    dtype, reason = choose_precision(precision, device)
    tagger, _ = prepare_for_inference(network, loaded.transform.image_size, device, dtype)
    explainer, no_maps = build_explainer(tagger, loaded.transform, views == "mirror")
    how = f"device {device}, precision {name_dtype(dtype)} ({reason})"
    net, threads = average_views(tagger, views), count_explaining_threads(device)
    return Scorer(net, dtype, how, explainer, no_maps, threads)
