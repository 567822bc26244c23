"""The network of a config: its weights, its preprocessing, and what was taken of a weights file.

Config          -> resolve_network       -> Config: names and numbers in place of `auto`
Config          -> require_network       early errors
Config          -> build_transform_spec  -> TransformSpec
Config, Tagger  -> load_weights          -> the backbone's weights, a line for the log
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from mlfinetune.config import Config
from mlfinetune.data.images.transforms import TransformSpec
from mlfinetune.errors import WeightsError
from mlfinetune.models.backbones import build_backbone, choose_levels, is_resnet
from mlfinetune.models.layers import number_layers
from mlfinetune.models.preprocessing import (
    Preprocessing,
    find_preprocessing,
    get_weight_set,
    is_weights_path,
    resolve_weights,
)
from mlfinetune.models.pretrained import load_pretrained, require_weights_file
from mlfinetune.models.sizes import require_vectors
from mlfinetune.models.tagger import Tagger
from mlfinetune.runs import checkpoint, directory
from mlfinetune.runs.checkpoint import Origin, Parent, read_origin
from mlfinetune.text import display_path, pluralize
from mlfinetune.training.head_rows import HeadRows, describe_rows, match_labels


def resolve_network(config: Config) -> Config:
    """Return the config with the names of weights and the image size in place of `auto`.

    Where the weights are a checkpoint of ours, keys that the config leaves open are those of its
    run: the backbone, its levels, and how a picture becomes the input.

    Raises:
        CheckpointError: the weights are a run directory without a checkpoint.
        ConfigError: there is no such backbone.
        WeightsError: the backbone has no such weights.
    """
    config = _take_over(config)
    model = config.model
    weights = resolve_weights(model.backbone, model.weights)
    config = config.update_section("model", weights=weights)
    if model.image_size == "auto":
        config = config.update_section("model", image_size=_find_preprocessing(config).image_size)
    return config


def _take_over(config: Config) -> Config:
    """Return the config with the keys of a checkpoint's run, where it leaves them open."""
    model, origin = config.model, _read_origin(config)
    if origin is None:
        return config
    values: dict[str, object] = {}
    if "backbone" not in model.model_fields_set:
        values["backbone"] = origin.backbone
    if model.levels == "auto":
        values["levels"] = origin.levels
    if origin.transform is not None and model.image_size == "auto":
        values["image_size"] = origin.transform.image_size
    if origin.transform is not None and "resize" not in model.model_fields_set:
        values["resize"] = origin.transform.resize
    return config.update_section("model", **values)


def require_network(config: Config) -> None:
    """Raise now what the network would raise after the pictures are scanned, which may take hours.

    Nothing is downloaded, and no weights are read.

    Raises:
        CheckpointError: the weights are a run directory without a checkpoint.
        ConfigError: there is no such backbone, it does not take these levels or this image size,
            its features are no vectors, or it has no layers to count.
        WeightsError: the backbone has no such weights, there is no such file, or it is the
            checkpoint of another network.
    """
    config = resolve_network(config)
    model, file = config.model, _find_file(config)
    if file is not None:
        require_weights_file(file)
        _require_own_network(config, file)
    elif is_resnet(model.backbone) and model.weights is not None:
        get_weight_set(model.backbone, model.weights)
    _find_preprocessing(config)  # of another network it names the weights
    if not is_resnet(model.backbone):  # a ResNet takes all levels and sizes
        assert model.image_size != "auto"
        with torch.device("meta"):
            levels = choose_levels(model.backbone, model.levels)
            backbone, _ = build_backbone(model.backbone, levels, model.image_size)
        require_vectors(backbone, model.backbone, model.image_size)
        if config.train.layer_decay is not None:
            number_layers(backbone, model.backbone)


def _require_own_network(config: Config, file: Path) -> None:
    """Raise a WeightsError where the weights are a checkpoint of another backbone or other levels.

    Names with other tags of one architecture of timm are of one backbone.
    """
    model, origin = config.model, read_origin(file)
    if origin is None:
        return
    if origin.backbone.partition(".")[0] != model.backbone.partition(".")[0]:
        raise WeightsError(
            f"model.weights: {display_path(file)} is of a {origin.backbone}, not of a "
            f"{model.backbone}: set model.backbone: {origin.backbone}"
        )
    if model.levels not in ("auto", origin.levels):
        raise WeightsError(
            f"model.levels: {model.levels}, but {model.weights} was trained with {origin.levels}, "
            f"and its head fits no other: take model.levels out, or set it to {origin.levels}"
        )


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
    return replace(
        found,
        mean=spec.mean,
        std=spec.std,
        image_size=spec.image_size,
        interpolation=spec.interpolation,
        crop_share=spec.crop_share,
    )


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


@dataclass(frozen=True)
class LoadedWeights:
    """Result of `load_weights`.

    Attributes:
        about: a line for the log: what was taken of a weights file; empty without one.
        inherited: columns of the head whose rows are those of the file.
        parent: the file, where it is a checkpoint of ours.
    """

    about: str = ""
    inherited: tuple[int, ...] = ()
    parent: Parent | None = None


def is_own_checkpoint(config: Config) -> bool:
    """Tell whether the weights are a checkpoint of ours."""
    return _read_origin(config) is not None


def load_weights(config: Config, tagger: Tagger, labels: Sequence[str]) -> LoadedWeights:
    """Load the pretrained weights into the tagger's backbone.

    Of a checkpoint of ours the head's rows of labels that stay are taken too, by their names.

    Args:
        config: as `resolve_network` returns it.
        tagger: is changed.
        labels: those of the tagger's head.

    Raises:
        CheckpointError: the weights are a run directory without a checkpoint, or damaged.
        WeightsError: the weights cannot be had, or do not fit.
    """
    model = config.model
    if model.weights is None:
        return LoadedWeights()
    file = _find_file(config)
    assert model.image_size != "auto"
    weights = str(file or model.weights)
    origin = None if file is None else read_origin(file)
    if file is not None and origin is not None:
        return _load_checkpoint(config, tagger, labels, file, origin)
    outputs = load_pretrained(tagger, model.backbone, weights, model.image_size)
    if file is None:
        return LoadedWeights()
    about = _describe_foreign(file, outputs, labels)
    if model.mean is None and model.std is None:
        about = f"{about}; {_describe_colors(config)}"
    return LoadedWeights(about)


def _load_checkpoint(
    config: Config, tagger: Tagger, labels: Sequence[str], file: Path, origin: Origin
) -> LoadedWeights:
    """Load the backbone of a checkpoint of ours, and its head's rows of labels that stay."""
    model = config.model
    assert model.image_size != "auto"
    content = checkpoint.load(file)
    load_pretrained(tagger, model.backbone, str(file), model.image_size, content.weights)
    parent = Parent(os.path.abspath(file), origin.sha256)
    about = f"weights: backbone of {display_path(file)} ({origin.backbone})"
    before = content.labels.names
    if content.levels != choose_levels(model.backbone, model.levels):
        stages = pluralize(content.levels, "stage")
        about += f"; its head, on the means of {stages}, is not taken: a new one starts anew"
        return LoadedWeights(about, parent=parent)
    rows = match_labels(labels, before, config.data.rename_labels)
    taken = list(rows.values())
    weight, bias = (content.weights[f"head.{name}"][taken] for name in ("weight", "bias"))
    HeadRows(tuple(rows), weight, bias).write(tagger.head)
    about += f", and its head's rows of {describe_rows(labels, before, rows)}"
    return LoadedWeights(about, tuple(rows), parent)


def _describe_colors(config: Config) -> str:
    """Tell which mean and std are used with a file of weights that does not say which it wants."""
    found = find_preprocessing(config.model.backbone, config.model.weights)
    numbers = "mean and std of ImageNet"
    if found.mean != Preprocessing.mean or found.std != Preprocessing.std:
        numbers = f"mean {list(found.mean)} and std {list(found.std)}, of its published weights"
    return f"{numbers}: weights that were trained otherwise need model.mean and model.std"


def _describe_foreign(path: Path, outputs: int | None, labels: Sequence[str]) -> str:
    """Tell what was taken of a weights file that is no checkpoint of ours: never its head.

    Args:
        path: the file.
        outputs: of the head in the file; None: it has none.
        labels: those of the new head.
    """
    text = f"weights: backbone of {display_path(path)}"
    new = f"the new head ({pluralize(len(labels), 'label')}) starts anew"
    if outputs is None:
        return f"{text}, which holds no head: {new}"
    return f"{text}; its head ({pluralize(outputs, 'output')}) is not taken: {new}"
