"""The network of a config: its weights, its preprocessing, and what was taken of a weights file.

Config          -> resolve_network       -> Config: names and numbers in place of `auto`
Config          -> build_transform_spec  -> TransformSpec
Config, Tagger  -> load_weights          -> the backbone's weights, a line for the log
"""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from mlfinetune.config import Config
from mlfinetune.data.images.transforms import TransformSpec
from mlfinetune.errors import WeightsError
from mlfinetune.models.backbones import is_resnet
from mlfinetune.models.preprocessing import (
    Preprocessing,
    find_preprocessing,
    is_weights_path,
    resolve_weights,
)
from mlfinetune.models.pretrained import load_pretrained
from mlfinetune.models.tagger import Tagger
from mlfinetune.runs import directory
from mlfinetune.runs.checkpoint import Origin, read_origin
from mlfinetune.text import display_path, list_labels, pluralize


def resolve_network(config: Config) -> Config:
    """Return the config with the names of weights and the image size in place of `auto`.

    Raises:
        CheckpointError: the weights are a run directory without a checkpoint.
        ConfigError: there is no such backbone.
        WeightsError: the backbone has no such weights.
    """
    model = config.model
    weights = resolve_weights(model.backbone, model.weights)
    config = config.update_section("model", weights=weights)
    if model.image_size == "auto":
        config = config.update_section("model", image_size=_find_preprocessing(config).image_size)
    return config


def build_transform_spec(config: Config) -> TransformSpec:
    """Return the specification of how pictures become the model's input.

    Raises:
        MlfinetuneError: as `resolve_network`.
    """
    config = resolve_network(config)
    found, model = _find_preprocessing(config), config.model
    assert model.image_size != "auto"
    return TransformSpec(
        image_size=model.image_size,
        resize=model.resize,
        max_pixels=config.data.max_pixels,
        mean=model.mean or found.mean,
        std=model.std or found.std,
        crop_scale=config.augment.crop_scale,
        horizontal_flip=config.augment.horizontal_flip,
        color_jitter=config.augment.color_jitter,
        rand_augment=config.augment.rand_augment,
        interpolation=found.interpolation,
        crop_share=found.crop_share,
    )


def _find_preprocessing(config: Config) -> Preprocessing:
    """Return the preprocessing of the weights; of a checkpoint of ours, that of its own run."""
    model = config.model
    found = find_preprocessing(model.backbone, model.weights)
    origin = _read_origin(config)
    if origin is None or origin.transform is None:
        return found
    spec = origin.transform
    found = replace(found, mean=spec.mean, std=spec.std, interpolation=spec.interpolation)
    if is_resnet(model.backbone):
        return found
    return replace(found, image_size=spec.image_size, crop_share=spec.crop_share)


def _find_file(config: Config) -> Path | None:
    """Return the file of the weights, that of a run directory too; None: they have a name."""
    weights = config.model.weights
    if weights is None or not is_weights_path(weights):
        return None
    return directory.find_checkpoint(Path(weights)) if os.path.isdir(weights) else Path(weights)


def _read_origin(config: Config) -> Origin | None:
    """Read the header of weights that are a checkpoint of ours; None: they are not."""
    file = _find_file(config)
    return None if file is None else read_origin(file)


def load_weights(config: Config, tagger: Tagger, labels: Sequence[str]) -> str:
    """Load the pretrained weights into the tagger's backbone.

    Args:
        config: as `resolve_network` returns it.
        labels: those of the tagger's head.

    Returns:
        A line for the log: what was taken of a weights file; empty without one.

    Raises:
        CheckpointError: the weights are a run directory without a checkpoint.
        WeightsError: the weights cannot be had, or do not fit.
    """
    model = config.model
    if model.weights is None:
        return ""
    file = _find_file(config)
    assert model.image_size != "auto"
    weights = str(file or model.weights)
    origin = None if file is None else read_origin(file)
    if origin is not None and origin.backbone.partition(".")[0] != model.backbone.partition(".")[0]:
        raise WeightsError(
            f"model.weights: {display_path(Path(weights))} is of a {origin.backbone}, not of a "
            f"{model.backbone}: set model.backbone: {origin.backbone}"
        )
    outputs = load_pretrained(tagger, model.backbone, weights, model.image_size)
    if file is None:
        return ""
    about = _describe_weights(file, outputs, origin, labels)
    if origin is not None or model.mean is not None or model.std is not None:
        return about
    return f"{about}; {_describe_colors(config)}"


def _describe_colors(config: Config) -> str:
    """Tell which mean and std are used with a file of weights that does not say which it wants."""
    found = find_preprocessing(config.model.backbone, config.model.weights)
    numbers = "mean and std of ImageNet"
    if found.mean != Preprocessing.mean or found.std != Preprocessing.std:
        numbers = f"mean {list(found.mean)} and std {list(found.std)}, of its published weights"
    return f"{numbers}: weights that were trained otherwise need model.mean and model.std"


def _describe_weights(
    path: Path, outputs: int | None, origin: Origin | None, labels: Sequence[str]
) -> str:
    """Tell what was taken of a weights file: its backbone, never its head.

    Args:
        path: the file.
        outputs: of the head in the file; None: it has none.
        origin: what a checkpoint of ours says about itself.
        labels: those of the new head.
    """
    text = f"weights: backbone of {display_path(path)}"
    new = f"the new head ({pluralize(len(labels), 'label')}) starts anew"
    if outputs is None:
        return f"{text}, which holds no head: {new}"
    if origin is None:
        return f"{text}; its head ({pluralize(outputs, 'output')}) is not taken: {new}"
    known = set(origin.labels)
    common = list_labels([name for name in labels if name in known], " of both")
    taken = f"{text} ({origin.backbone}), {list_labels(origin.labels)}"
    return f"{taken}; its head is not taken: {new}; {common}"
