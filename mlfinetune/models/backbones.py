"""Backbones by name: networks that map pictures to features, without their last linear layer.

    name, levels -> build_backbone -> module: (B, 3, S, S) float -> features (B, F); and F

A ResNet has four stages. Their outputs are maps: early stages have large maps of simple shapes, the
last one has small maps of whole objects. The features are the mean of the last map; with more
levels, the means of the maps of the last stages, joined.
"""

import re
from typing import Literal

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.resnet import ResNet

from mlfinetune.errors import ConfigError
from mlfinetune.text import suggest

_RESNET = r"(wide_)?resne(x)?t\d+.*"
BACKBONES: tuple[str, ...] = tuple(
    name
    for name in torchvision.models.list_models(module=torchvision.models)
    if re.fullmatch(_RESNET, name)
)
STAGES = ("layer1", "layer2", "layer3", "layer4")
"""Stages of torchvision's ResNets, from early to late."""


class PooledResNet(nn.Module):
    """A ResNet of torchvision that gives the means of its last stages' maps.

    (B, 3, S, S) -> maps of the last `levels` stages, (B, C, H, W) each -> means, joined (B, F)

    Its layers have the names that they have in torchvision, so its state dict has the same keys.

    Attributes:
        stages: names of the stages that the features come from, from early to late.
        widths: C of each of them.
    """

    def __init__(self, resnet: ResNet, levels: int = 1) -> None:
        """Take the layers of `resnet`, but for its last linear layer.

        Args:
            levels: number of stages that the features come from, 1 to 4; 1: the last one alone.
        """
        super().__init__()
        for name, layer in resnet._modules.items():  # a layer may be there under two names
            if name != "fc":
                self.add_module(name, layer)
        self.training = resnet.training
        self.stages = STAGES[-levels:]
        self.widths = tuple(_find_width(resnet, stage) for stage in self.stages)

    def compute_maps(self, x: Tensor) -> list[Tensor]:
        """(B, 3, S, S) -> the maps of `stages`, (B, C, H, W) each."""
        x = self.get_submodule("relu")(self.get_submodule("bn1")(self.get_submodule("conv1")(x)))
        x = self.get_submodule("maxpool")(x)
        maps = []
        for stage in STAGES:
            x = self.get_submodule(stage)(x)
            if stage in self.stages:
                maps.append(x)
        return maps

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, S, S) -> (B, F)."""
        pool = self.get_submodule("avgpool")
        return torch.cat([pool(each).flatten(1) for each in self.compute_maps(x)], 1)


def _find_width(resnet: ResNet, stage: str) -> int:
    """Return C, the number of channels of a stage's map; an empty stage has those before it."""
    width: int = resnet.conv1.out_channels
    for name in STAGES[: STAGES.index(stage) + 1]:
        for block in getattr(resnet, name):
            width = (block.conv3 if hasattr(block, "conv3") else block.conv2).out_channels
    return width


def choose_levels(name: str, wanted: int | Literal["auto"]) -> int:
    """Return the number of stages that the features come from; for `auto` 2 of a ResNet, else 1.

    Two were better frozen and fine-tuned: `benchmarks/levels.py`, `benchmarks/levels_tuned.py`.
    """
    if wanted != "auto":
        return wanted
    return 2 if re.fullmatch(_RESNET, name) else 1


def build_backbone(name: str, levels: int = 1) -> tuple[nn.Module, int]:
    """Build a backbone with random weights.

    Args:
        name: torchvision's name of the network.
        levels: number of stages that the features come from, from the last one.

    Returns:
        The module, (B, 3, S, S) float -> (B, F); and F.

    Raises:
        ConfigError: there is no such backbone.
    """
    if name not in BACKBONES:
        hint = suggest(name, BACKBONES) or "."
        raise ConfigError(f"model.backbone: no '{name}'{hint} Known names: {', '.join(BACKBONES)}")
    backbone = PooledResNet(torchvision.models.get_model(name, weights=None), levels)
    return backbone, sum(backbone.widths)
