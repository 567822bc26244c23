"""Parameters of a backbone, sorted for an optimizer: which decay, and which layer each belongs to.

backbone -> list_undecayed  -> names of parameters without weight decay
backbone -> number_layers   -> name of a parameter -> its layer, 0 for the stem
"""

import re
from fnmatch import fnmatchcase

from torch import nn

from mlfinetune.errors import ConfigError
from mlfinetune.models.backbones import STAGES, PooledResNet
from mlfinetune.models.timm_backbones import is_timm, number_timm_layers

_UNDECAYED = ("class_token", "*pos_embedding", "*relative_position_bias_table", "*layer_scale")
"""Parameters of torchvision's networks that are places or scales, not weights of a layer."""


def list_undecayed(backbone: nn.Module) -> set[str]:
    """List the parameters without weight decay: biases, norms, and what the model names itself.

    timm's models name tokens, places and the like by `no_weight_decay()`.
    """
    named = getattr(backbone, "no_weight_decay", None)
    patterns = tuple(named()) if named is not None else _UNDECAYED
    return {
        name
        for name, parameter in backbone.named_parameters()
        if parameter.ndim <= 1
        or name.endswith(".bias")
        or any(fnmatchcase(name, pattern) for pattern in patterns)
    }


_LAYERS = {
    "ConvNeXt": (r"features\.(\d)\.", 2),
    "SwinTransformer": (r"features\.(\d)\.", 2),
    "EfficientNet": (r"features\.(\d+)\.", 1),
    "MobileNetV2": (r"features\.(\d+)\.", 1),
    "MobileNetV3": (r"features\.(\d+)\.", 1),
    "VGG": (r"features\.(\d+)\.", 1),
    "DenseNet": (r"features\.(?:denseblock|transition)(\d)\.", 1),
    "RegNet": (r"trunk_output\.block(\d)\.", 1),
    "ShuffleNetV2": (r"(?:stage|conv)([2-5])\.", 1),
    "MaxVit": (r"blocks\.(\d)\.", 1),
    "VisionTransformer": (r"encoder\.layers\.encoder_layer_(\d+)\.", 1),
}
"""Class of torchvision -> pattern of the number of a layer in names; numbers of one layer, such as
the downsampling before a stage and the stage."""


def number_layers(backbone: nn.Module, name: str) -> dict[str, int]:
    """Return the layer of each parameter: 0 for the stem, then 1, 2, ... toward the head.

    Parameters after the last layer (a last norm) belong to it.

    Args:
        backbone: the module.
        name: of the backbone.

    Raises:
        ConfigError: it has no layers to count.
    """
    parameters = dict(backbone.named_parameters())
    if isinstance(backbone, PooledResNet):
        return {key: STAGES.index(key[:6]) + 1 if key[:6] in STAGES else 0 for key in parameters}
    if is_timm(name):
        return number_timm_layers(backbone, name)
    kind = type(backbone).__name__
    if kind not in _LAYERS:
        raise ConfigError(
            f"train.layer_decay: {name} has no layers to count; set train.layer_decay: null, or "
            f"take a ResNet, ConvNeXt, EfficientNet, Swin, ViT, or one of timm"
        )
    pattern, joined = _LAYERS[kind]
    raw: dict[str, int] = {}
    last = -1
    for key, parameter in parameters.items():
        match = re.match(pattern, key)
        if kind == "VGG" and parameter.ndim == 1:
            match = None  # a bias, or a BatchNorm: they belong to the convolution before them
        if match:  # 0 is the stem; of 1, 2, 3, ... two are joined to 1, 2, 2, ...
            last = (int(match[1]) + joined) // joined if int(match[1]) else 0
        raw[key] = last
    order = {number: layer for layer, number in enumerate(sorted(set(raw.values())))}
    return {key: order[number] for key, number in raw.items()}
