"""Weights of a backbone by name, and the pictures that they were trained on.

backbone, "auto"  -> resolve_weights     -> name of its best weights
backbone, weights -> find_preprocessing  -> mean, std, size, interpolation, share of a crop
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torchvision

from mlfinetune.errors import WeightsError
from mlfinetune.models.backbones import is_resnet, require_backbone
from mlfinetune.models.timm_backbones import (
    find_timm_config,
    is_timm,
    list_timm_weights,
    require_timm_weights,
)
from mlfinetune.text import suggest

Color = tuple[float, float, float]
"""One number for each of red, green and blue."""


@dataclass(frozen=True)
class Preprocessing:
    """Pictures as a backbone was trained on them.

    Attributes:
        mean, std: of RGB in [0, 1].
        image_size: side of the square input in pixels.
        interpolation: `bilinear` or `bicubic`.
        crop_share: share of the shorter side that a center crop keeps.
    """

    mean: Color = (0.485, 0.456, 0.406)
    std: Color = (0.229, 0.224, 0.225)
    image_size: int = 224
    interpolation: str = "bilinear"
    crop_share: float = 224 / 256


def is_weights_path(weights: str) -> bool:
    """Tell whether `model.weights` names a file or folder, not a set of weights."""
    return bool(Path(weights).suffix) or "/" in weights or os.sep in weights


def resolve_weights(backbone: str, weights: str | None) -> str | None:
    """Return `weights`, or the name of the backbone's best weights in place of `auto`.

    Raises:
        ConfigError: there is no such backbone.
        WeightsError: nobody has published weights of it.
    """
    require_backbone(backbone)
    if weights != "auto":
        return weights
    known = list_weights(backbone)
    if not known:
        raise WeightsError(
            f"model.weights: there are none of {backbone}; give a .pth or .safetensors file, or "
            f"null for random weights"
        )
    return known[0]


def list_weights(backbone: str) -> list[str]:
    """List the names of a backbone's weights, the best one first."""
    if is_timm(backbone):
        return list(list_timm_weights(backbone))
    known = _get_weight_sets(backbone)
    if not known:
        return []
    return [known.DEFAULT.name, *(each.name for each in known if each is not known.DEFAULT)]


def get_weight_set(backbone: str, weights: str) -> Any:
    """Return torchvision's set of weights.

    Raises:
        WeightsError: the backbone has no such weights.
    """
    known = list_weights(backbone)
    if weights not in known:
        hint = suggest(weights, known) or "."
        if os.path.exists(weights):
            hint = f"; there is a file or folder of that name here: write ./{weights}."
        raise WeightsError(
            f"model.weights: {backbone} has no '{weights}'{hint} "
            f"Known names: {', '.join(known)}; or give a .pth or .safetensors file, a run "
            f"directory such as runs/pets, or null"
        )
    return _get_weight_sets(backbone)[weights]


def _get_weight_sets(backbone: str) -> Any:
    try:
        return torchvision.models.get_model_weights(backbone)
    except ValueError:  # registered without any
        return {}


def find_preprocessing(backbone: str, weights: str | None) -> Preprocessing:
    """Return the preprocessing of a backbone's weights; of files and null, that of its best ones.

    Args:
        backbone: its name.
        weights: a name, a file or None.

    Raises:
        ConfigError: there is no such backbone.
        WeightsError: the backbone has no such weights.
    """
    require_backbone(backbone)
    if is_resnet(backbone):
        return Preprocessing()
    if weights is None or is_weights_path(weights):
        weights = next(iter(list_weights(backbone)), None)
    if is_timm(backbone):
        return _find_timm_preprocessing(backbone, weights)
    assert weights is not None
    transform = get_weight_set(backbone, weights).transforms()
    (size,), (resized,) = transform.crop_size, transform.resize_size
    return Preprocessing(
        image_size=size,
        mean=tuple(transform.mean),
        std=tuple(transform.std),
        interpolation=transform.interpolation.value,
        crop_share=size / resized,
    )


def _find_timm_preprocessing(backbone: str, tag: str | None) -> Preprocessing:
    if tag is not None:
        require_timm_weights(backbone, tag)
    config = find_timm_config(backbone, tag)
    return Preprocessing(
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        image_size=config["input_size"][-1],
        interpolation=config["interpolation"],
        crop_share=config["crop_pct"],
    )


def count_parameters(backbone: str) -> int:
    """Return the number of parameters of a network of torchvision, with 1,000 classes."""
    number: int = get_weight_set(backbone, list_weights(backbone)[0]).meta["num_params"]
    return number
