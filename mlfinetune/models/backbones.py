"""Backbones by name: networks that map pictures to features, without their last linear layer.

    name, levels, S -> build_backbone -> module: (B, 3, S, S) float -> features (B, F); and F

A ResNet has four stages. Their outputs are maps: early stages have large maps of simple shapes, the
last one has small maps of whole objects. The features are the mean of the last map; with more
levels, the means of the maps of the last stages, joined.

Other classifiers of torchvision keep all of their layers but the last linear one, an identity takes
its place. So their state dicts have torchvision's keys too. timm has more (`timm_backbones.py`).
"""

import re
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, Literal

import torch
import torchvision
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torchvision.models.resnet import ResNet

from mlfinetune.errors import ConfigError
from mlfinetune.models.sizes import require_size
from mlfinetune.models.timm_backbones import (
    build_timm,
    find_timm_name,
    is_timm,
    require_timm_backbone,
)
from mlfinetune.text import suggest

REFUSED = {
    r"googlenet|inception_v3": "in training it gives the outputs of extra heads besides its own",
    r"squeezenet\d.*": "its last layer is a convolution, not a linear layer",
    r"mnasnet.*": "its weights have a version that only torch's own files hold",
    r"quantized_.*": "its weights are integers, which cannot be trained",
}
"""Pattern of names of torchvision -> the reason why these cannot be backbones."""

_RESNET = re.compile(r"(wide_)?resne(x)?t\d+.*")

BACKBONES: tuple[str, ...] = tuple(
    name
    for name in torchvision.models.list_models(module=torchvision.models)
    if not any(re.fullmatch(pattern, name) for pattern in REFUSED)
)
"""torchvision's names of all backbones."""
STAGES = ("layer1", "layer2", "layer3", "layer4")
"""Stages of torchvision's ResNets, from early to late."""


def is_resnet(name: str) -> bool:
    """Tell whether a name of torchvision is that of a ResNet, ResNeXt or Wide ResNet."""
    return _RESNET.fullmatch(name) is not None


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
    return 2 if is_resnet(name) else 1


def build_backbone(name: str, levels: int = 1, image_size: int = 224) -> tuple[nn.Module, int]:
    """Build a backbone with random weights.

    Args:
        name: torchvision's name of the network, or `timm/` and timm's name.
        levels: number of stages that the features come from, from the last one.
        image_size: S, the side of the input in pixels; some networks are built for one size.

    Returns:
        The module, (B, 3, S, S) float -> (B, F); and F.

    Raises:
        ConfigError: there is no such backbone, it has no levels, or it does not take this size.
    """
    require_backbone(name)
    if is_resnet(name):
        resnet = PooledResNet(torchvision.models.get_model(name, weights=None), levels)
        return resnet, sum(resnet.widths)
    if levels > 1:
        raise ConfigError(
            f"model.levels: {levels} is for ResNets of torchvision; {name} has features of one "
            f"level: set model.levels: 1"
        )
    if is_timm(name):
        return build_timm(name, image_size)
    build = partial(_build_classifier, name)
    require_size(lambda side: build(side)[0], name, image_size, find_own_size(name))
    return build(image_size)


def unfilled(name: str) -> AbstractContextManager[object]:
    """Return a context to build a network in whose weights are all loaded next.

    Weights of a ResNet stay as they are in memory: to draw them takes longer than to load them, and
    shapes alone (device `meta`) are drawn through torch's compiler, a second of imports. Of other
    networks the weights are drawn: some are drawn again until they are within limits.
    """
    return _Unfilled() if is_resnet(name) else nullcontext()


class _Unfilled(TorchFunctionMode):
    """Mode in which torch.nn.init draws no numbers."""

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if function in _DRAWS:
            return args[0] if args else kwargs["tensor"]
        return function(*args, **kwargs)


_DRAWS = (nn.init.kaiming_uniform_, nn.init.uniform_, torch.Tensor.normal_)


def require_backbone(name: str) -> None:
    """Raise a ConfigError where there is no such backbone; it names the nearest one."""
    if is_timm(name):
        require_timm_backbone(name)
        return
    if name in BACKBONES:
        return
    for pattern, reason in REFUSED.items():
        if re.fullmatch(pattern, name):
            raise ConfigError(f"model.backbone: {name} cannot be a backbone: {reason}; {_LIST}")
    of_timm = find_timm_name(name)
    hint = f"; did you mean '{of_timm}'?" if of_timm else suggest(name, BACKBONES)
    raise ConfigError(f"model.backbone: no '{name}'{hint or '.'} {_LIST}")


_LIST = "`mlfinetune models` lists those that are known"


def _build_classifier(name: str, image_size: int) -> tuple[nn.Module, int]:
    """Build a network of torchvision without its last linear layer; return its width too."""
    options: dict[str, int | tuple[int, int]] = {}
    if name.startswith("vit_"):
        options["image_size"] = image_size
    elif name.startswith("maxvit_"):
        options["input_size"] = (image_size, image_size)
    # A RegNet computes its widths with tensors, which needs their numbers.
    with torch.device("cpu") if name.startswith("regnet_") else nullcontext():
        network: nn.Module = torchvision.models.get_model(name, weights=None, **options)
    network.to(torch.get_default_device())
    linear = [(key, part) for key, part in network.named_modules() if isinstance(part, nn.Linear)]
    key, head = linear[-1]
    network.set_submodule(key, nn.Identity())
    return network, head.in_features


def find_own_size(name: str) -> int:
    """Return the side in pixels of the pictures that torchvision's best weights were trained on."""
    default = torchvision.models.get_model_weights(name).DEFAULT
    size: int = default.transforms().crop_size[0]
    return size
