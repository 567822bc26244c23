"""Backbones of timm, an extra: this module alone imports timm and its hub.

    timm/NAME[.TAG], S -> build_timm           -> module: (B, 3, S, S) float -> (B, F); and F
    name, tag          -> find_timm_config     -> timm's own mean, std, size, interpolation, crop
    name, tag          -> read_timm_weights    -> state dict, of timm's cache or hub
    state dict, module -> convert_timm_weights -> the same weights with the keys of the module

timm takes seconds to import, so each function imports it when it is called.
"""

import sys
from functools import cache
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from mlfinetune.errors import ConfigError, WeightsError
from mlfinetune.models.sizes import require_size
from mlfinetune.text import suggest

PREFIX = "timm/"
"""Start of the name of every backbone of timm, as `model.backbone` takes it."""

_FILES = ("model.safetensors", "pytorch_model.bin")
"""Files of weights in a repository of the hub; timm looks for the first one first."""


def is_timm(backbone: str) -> bool:
    """Tell whether the name of a backbone is one of timm."""
    return backbone.startswith(PREFIX)


def _import_timm() -> ModuleType:
    try:
        import timm
    except ImportError as error:
        raise ConfigError(
            f"model.backbone: {PREFIX}... needs timm, which cannot be imported ({error}): "
            f'pip install "mlfinetune[timm]"'
        ) from error
    return timm


def require_timm_backbone(backbone: str) -> None:
    """Raise a ConfigError where timm is missing, or has no such model; it names the nearest one.

    Names that timm would take from elsewhere (`hf-hub:`, `local-dir:`) are not in its list, so a
    checkpoint cannot make it read them.
    """
    timm = _import_timm()
    architecture, tag = _split(backbone)
    if not timm.is_model(architecture):
        known = [*timm.list_models(), *timm.list_models(pretrained=True)]
        hint = suggest(backbone.removeprefix(PREFIX), known).replace("mean '", f"mean '{PREFIX}")
        raise ConfigError(
            f"model.backbone: no '{backbone}'{hint or '.'} `mlfinetune models '{PREFIX}*'` lists "
            f"those that are known"
        )
    if tag and tag not in list_timm_weights(backbone):
        raise ConfigError(
            f"model.backbone: {PREFIX}{architecture} has no weights '{tag}'"
            f"{_list_tags(backbone, tag)}"
        )


def find_timm_name(name: str) -> str | None:
    """Return the name that timm's model needs here: `timm/resnet50d` of `hf-hub:timm/resnet50d`.

    None: timm has no such model, or is missing.
    """
    backbone = PREFIX + name.rpartition("/")[2]
    try:
        require_timm_backbone(backbone)
    except ConfigError:
        return None
    return backbone


def _split(backbone: str) -> tuple[str, str]:
    """Return architecture and tag: `timm/convnext_tiny.fb_in22k` -> convnext_tiny, fb_in22k."""
    architecture, _, tag = backbone.removeprefix(PREFIX).partition(".")
    return architecture, tag


@cache
def list_timm_weights(backbone: str) -> tuple[str, ...]:
    """List the tags of an architecture's weights: that of the name, timm's default, the others."""
    architecture, wanted = _split(backbone)
    timm = _import_timm()
    names = timm.list_pretrained(f"{architecture}.*")
    default = getattr(timm.get_pretrained_cfg(architecture), "tag", "")
    tags = [name.partition(".")[2] for name in names]
    return tuple(sorted(tags, key=lambda tag: (tag != wanted, tag != default)))


def _list_tags(backbone: str, tag: str) -> str:
    """Return the nearest of the known tags, and all of them."""
    known = list_timm_weights(backbone)
    return f"{suggest(tag, known) or '.'} Known names: {', '.join(known) or 'none'}"


def require_timm_weights(backbone: str, tag: str) -> None:
    """Raise a WeightsError where an architecture has no weights with this tag."""
    if tag not in list_timm_weights(backbone):
        raise WeightsError(
            f"model.weights: {PREFIX}{_split(backbone)[0]} has no '{tag}'"
            f"{_list_tags(backbone, tag)}; or give a .pth or .safetensors file, a run directory "
            f"such as runs/pets, or null"
        )


def build_timm(backbone: str, image_size: int) -> tuple[nn.Module, int]:
    """Build a model of timm without its classifier, with random weights; return its width too.

    Args:
        backbone: its name, which `require_timm_backbone` has accepted.
        image_size: S; models with places for S alone are built for it.

    Raises:
        ConfigError: it does not take this size.
    """
    own = int(find_timm_config(backbone, None)["input_size"][-1])
    require_size(lambda side: _create(backbone, side), backbone, image_size, own)
    module = _create(backbone, image_size)
    width: int = getattr(module, "head_hidden_size", None) or module.num_features
    return module, width


def _create(backbone: str, image_size: int, **options: Any) -> Any:
    """Create a model of timm that gives features."""
    timm = _import_timm()
    options = {"pretrained": False, "num_classes": 0, **options}
    name = backbone.removeprefix(PREFIX)
    try:
        return timm.create_model(name, img_size=image_size, **options)
    except TypeError as error:
        if "img_size" not in str(error):
            raise
        return timm.create_model(name, **options)


def find_timm_config(backbone: str, tag: str | None) -> dict[str, Any]:
    """Return timm's data config of a model: input_size, mean, std, interpolation, crop_pct.

    Args:
        backbone: its name.
        tag: of its weights; None: those of the name.
    """
    timm = _import_timm()
    config = timm.get_pretrained_cfg(_join(backbone, tag)).to_dict()
    resolved: dict[str, Any] = timm.data.resolve_data_config(pretrained_cfg=config)
    return resolved


def _join(backbone: str, tag: str | None) -> str:
    """Return timm's name of an architecture with the tag of its weights."""
    if tag is None:
        tag = next(iter(list_timm_weights(backbone)), "")
    return ".".join(filter(None, [_split(backbone)[0], tag]))


def read_timm_weights(backbone: str, tag: str, image_size: int) -> dict[str, Tensor]:
    """Read published weights by timm, from its cache or its hub; places are resized to S.

    Raises:
        WeightsError: they can be had from neither.
    """
    name = _join(backbone, tag)
    cached = _find_cached_file(name)
    # The client of the hub would ask the network whether its copy is still the newest.
    overlay = {"file": cached, "custom_load": False} if cached else {}
    try:
        with torch.random.fork_rng(devices=[]):  # random weights that are overwritten
            model = _create(
                PREFIX + name, image_size, pretrained=True, pretrained_cfg_overlay=overlay
            )
    except Exception as error:  # of the hub's client, of its transport, of a damaged file
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise WeightsError(
            f"cannot get the weights {name} of timm: {reason}; {_advise_on_hub(name)}"
        ) from error
    state: dict[str, Tensor] = model.state_dict()
    return state


def _find_cached_file(name: str) -> str | None:
    """Return the file of weights in the cache of the hub's client; None: it is not there."""
    from huggingface_hub import try_to_load_from_cache

    config = _import_timm().get_pretrained_cfg(name)
    if not config.hf_hub_id:
        return None
    files = [config.hf_hub_filename] if config.hf_hub_filename else _FILES
    found = (try_to_load_from_cache(config.hf_hub_id, file) for file in files)
    return next((path for path in found if isinstance(path, str)), None)


def _advise_on_hub(name: str) -> str:
    """Tell where weights are looked for, and what to set without them."""
    from huggingface_hub import constants

    config = _import_timm().get_pretrained_cfg(name)
    place = f"timm takes them from {config.url}"
    if config.hf_hub_id:
        place = f"timm keeps {config.hf_hub_id} in {constants.HF_HUB_CACHE} (HF_HOME)"
    return (
        f"{place}; copy that folder from a machine that has it, or set model.weights to a local "
        f".safetensors or .pth file with timm's keys, or to null for random weights"
    )


def convert_timm_weights(module: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Give weights of a file the keys and the places of a model, as timm does for its own.

    Raises:
        WeightsError: timm cannot convert them.
    """
    convert = getattr(sys.modules[type(module).__module__], "checkpoint_filter_fn", None)
    if convert is None:
        return state
    try:
        converted: dict[str, Tensor] = convert(state, module)
    except Exception as error:  # whatever a foreign state dict makes it raise
        raise WeightsError(
            f"model.weights: timm cannot read them as those of a {type(module).__name__}: {error!r}"
        ) from error
    return converted


def name_timm_heads(module: nn.Module) -> tuple[str, ...]:
    """Return the starts of the keys of a model's classifiers, which a backbone lacks."""
    names = getattr(module, "pretrained_cfg", {}).get("classifier") or ()
    return tuple(f"{name}." for name in ((names,) if isinstance(names, str) else names))


def number_timm_layers(module: nn.Module, backbone: str) -> dict[str, int]:
    """Return the layer of each parameter by timm's own count: 0 for the stem.

    Raises:
        ConfigError: timm does not count the layers of this model.
    """
    matcher = getattr(module, "group_matcher", None)
    if matcher is None:
        raise ConfigError(
            f"train.layer_decay: timm counts no layers of {backbone}; set train.layer_decay: null"
        )
    groups: dict[str, int] = _import_timm().models.group_parameters(module, matcher(), reverse=True)
    return groups


# ---- lists ------------------------------------------------------------------------------


def has_timm() -> bool:
    """Tell whether timm can be imported, without the seconds that it takes."""
    return find_spec("timm") is not None


def list_timm_names() -> list[str]:
    """List the names of all weights, and of the architectures that have none."""
    timm = _import_timm()
    tagged = timm.list_models(pretrained=True)
    known = {name.partition(".")[0] for name in tagged}
    names = [*tagged, *(name for name in timm.list_models() if name not in known)]
    return sorted(PREFIX + name for name in names)


def count_timm_parameters(backbone: str) -> int:
    """Count the parameters of a model with 1,000 classes, with shapes alone."""
    side = int(find_timm_config(backbone, None)["input_size"][-1])
    with torch.device("meta"):
        module = _create(backbone, side, num_classes=1000)
    return sum(parameter.numel() for parameter in module.parameters())


def is_timm_cached(backbone: str, tag: str) -> bool:
    """Tell whether weights are on this machine."""
    return _find_cached_file(_join(backbone, tag)) is not None
