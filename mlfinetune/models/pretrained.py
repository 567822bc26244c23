"""Pretrained weights of a backbone: downloaded or read from a file, checked, and loaded.

name of a weight set, or a file -> state dict -> find_misfits -> the backbone's parameters
"""

import os
import re
import socket
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from http.client import HTTPException
from math import inf
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import TypeGuard
from urllib.error import HTTPError

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from mlfinetune.errors import WeightsError
from mlfinetune.models.preprocessing import find_preprocessing, get_weight_set, is_weights_path
from mlfinetune.models.tagger import Tagger
from mlfinetune.models.timm_backbones import (
    convert_timm_weights,
    is_timm,
    is_timm_cached,
    name_timm_heads,
    read_timm_weights,
)
from mlfinetune.storage.cache import make_temporary_folder, report_unused
from mlfinetune.text import format_list

STALLED_S = 60.0
"""Seconds without a byte after which a download counts as failed."""
_WRAPPERS = ("state_dict", "model")
_PREFIXES = ("module.", "features.")
_HEADS = ("fc.", "head.", "heads.", "classifier.")
_FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
_NUMBERS = (*_FLOATS, torch.int64, torch.int32)


def load_pretrained(
    model: Tagger,
    backbone: str,
    weights: str,
    image_size: int = 224,
    state: Mapping[str, Tensor] | None = None,
) -> int | None:
    """Load pretrained weights into the backbone of `model`; the head keeps its own.

    Args:
        model: is changed.
        backbone: name of the network.
        weights: name of a weight set of this network (IMAGENET1K_V2), or a .pth or .safetensors
            file with the keys of the network. A head (`fc`) in the file is not taken, a prefix
            `module.` is removed, and other float types are converted.
        image_size: S; the places of pictures of another size are resized, by timm for its models.
        state: content of the file `weights`, where it has been read; None: it is read here.

    Returns:
        Number of outputs of the head that was not taken; None: the weights have no head.

    Raises:
        WeightsError: the download failed, the file cannot be read, or it does not fit.
    """
    if state is not None:
        state = dict(state)
    elif is_weights_path(weights):
        state = _read_weights(Path(weights))
    elif is_timm(backbone):
        state = read_timm_weights(backbone, weights, image_size)
    else:
        entry = get_weight_set(backbone, weights)
        _require_own_size(model.features, backbone, weights)
        state = download_weights(entry.url)
    wanted = model.features.state_dict()
    state, head = _split_head(
        _strip_prefixes(state, wanted), wanted, name_timm_heads(model.features)
    )
    if not is_timm(backbone):
        state = _rename_keys(state)
    elif find_misfits(state, wanted):  # some of timm's conversions harm keys that are right
        state = convert_timm_weights(model.features, state)
    _load_backbone(model.features, state, weights, backbone)
    return _count_outputs(head)


def _require_own_size(features: nn.Module, backbone: str, weights: str) -> None:
    """Raise a WeightsError where a ViT of torchvision has other places than its weights."""
    own = find_preprocessing(backbone, weights).image_size
    if getattr(features, "image_size", own) != own:
        raise WeightsError(
            f"model.image_size: the weights {weights} of {backbone} are for pictures of {own} px "
            f"alone, not of {features.image_size}: set model.image_size: auto"
        )


def is_cached(backbone: str, weights: str) -> bool:
    """Tell whether a set of weights is on this machine, in torch.hub's cache or that of timm."""
    if is_timm(backbone):
        return is_timm_cached(backbone, weights)
    return _find_cached_file(get_weight_set(backbone, weights).url).is_file()


def _find_cached_file(url: str) -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]


def download_weights(url: str) -> dict[str, Tensor]:
    """Read a state dict from torch.hub's cache, downloading it first if it is not there.

    The hash in the file's name is checked after a download. Where torch.hub's folder cannot be
    written, the file is kept for this run alone.

    Raises:
        WeightsError: the download failed, or the cached file cannot be loaded. The message says
            where to put the file, or which config key to set.
    """
    file = _find_cached_file(url)
    hub = file.parent
    folder = hub if file.exists() or _can_write(hub) else make_temporary_folder("weights")
    advice = (
        f"put the file at {file}, or set model.weights to a local .pth or .safetensors file, "
        f"or to null for random weights"
    )
    try:
        # torch.hub announces the download on stdout, and would wait for a stalled server for ever.
        with redirect_stdout(sys.stderr), _socket_timeout(STALLED_S):
            state = torch.hub.load_state_dict_from_url(
                url, str(folder), map_location="cpu", check_hash=True, weights_only=True
            )
    except Exception as error:
        if isinstance(error, HTTPError):
            error.close()
        if file.exists():
            raise WeightsError(_describe_bad_cache(file, url, _first_line(error))) from error
        if not isinstance(error, OSError | RuntimeError | HTTPException | ValueError):
            raise
        raise WeightsError(f"cannot download {url}: {_first_line(error)}; {advice}") from error
    if not _is_state_dict(state):
        raise WeightsError(_describe_bad_cache(file, url, "it holds no state dict of tensors"))
    return state


def _can_write(hub: Path) -> bool:
    """Tell whether torch.hub's folder can be written; make it where it is missing.

    It is below `~`, which torch leaves as it is for a user without a home.
    """
    try:
        if not hub.is_absolute() and str(hub).startswith("~"):
            raise OSError("there is no home folder for torch's weights")
        hub.mkdir(parents=True, exist_ok=True)
        with NamedTemporaryFile(dir=hub):
            return True
    except OSError as error:
        report_unused(error, "TORCH_HOME")
        return False


@contextmanager
def _socket_timeout(seconds: float) -> Iterator[None]:
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _describe_bad_cache(file: Path, url: str, why: str) -> str:
    return (
        f"{file} (the cached copy of {url}) cannot be loaded: {why}; delete it to download it again"
    )


def require_weights_file(path: Path) -> None:
    """Raise a WeightsError where a file of weights is not there."""
    if not os.path.exists(path):
        raise WeightsError(f"model.weights: no such file: {path}")


def _read_weights(path: Path) -> dict[str, Tensor]:
    """Read a state dict from a file, out of a wrapper such as {"state_dict": ...} if it has one."""
    require_weights_file(path)
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except SafetensorError as error:
        raise WeightsError(f"model.weights: {path} is no safetensors file: {error}") from error
    except Exception as error:  # torch.load raises whatever its unpickler raises
        raise WeightsError(
            f"model.weights: {path} cannot be loaded as plain weights "
            f"({_first_line(error)}); save only its state_dict(), or as .safetensors"
        ) from error
    for wrapper in _WRAPPERS:
        if isinstance(state, dict) and isinstance(state.get(wrapper), dict):
            state = state[wrapper]
    if not _is_state_dict(state):
        raise WeightsError(f"model.weights: {path} holds no state dict of tensors")
    return state


def _is_state_dict(state: object) -> TypeGuard[dict[str, Tensor]]:
    return isinstance(state, dict) and all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in state.items()
    )


def _strip_prefixes(state: dict[str, Tensor], wanted: dict[str, Tensor]) -> dict[str, Tensor]:
    """Remove the prefixes of wrappers from the keys: "module.conv1.weight" -> "conv1.weight".

    Some networks have keys of their own that begin so: "features.0.0.weight" stays where it is
    wanted.
    """
    for prefix in _PREFIXES:
        stripped = {key.removeprefix(prefix): value for key, value in state.items()}
        if len(wanted.keys() & stripped) >= len(wanted.keys() & state):
            state = stripped
    return state


_FORMER_KEYS = (
    (r"(\.denselayer\d+\.(?:norm|conv))\.(\d\.)", r"\1\2"),  # DenseNet: norm.1 -> norm1
    (r"\.mlp\.linear_1\.", ".mlp.0."),  # ViT
    (r"\.mlp\.linear_2\.", ".mlp.3."),
)
"""Keys of torchvision's former versions, in which its files are still published."""


def _rename_keys(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Give keys of torchvision's former versions their present names."""
    for pattern, replacement in _FORMER_KEYS:
        state = {re.sub(pattern, replacement, key): value for key, value in state.items()}
    return state


def _split_head(
    state: dict[str, Tensor], wanted: dict[str, Tensor], names: tuple[str, ...]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Split a state dict into the backbone's tensors and those of the head (`fc.weight`).

    A layer before the head may have a name like it (`classifier.2.weight`, `head.norm.weight`).
    """
    head = {
        key: value
        for key, value in state.items()
        if key not in wanted and key.startswith((*_HEADS, *names))
    }
    return {key: value for key, value in state.items() if key not in head}, head


def _count_outputs(head: dict[str, Tensor]) -> int | None:
    """Return the outputs of a head, those of its last layer if it has several; None: no head."""
    weights = [value for value in head.values() if value.ndim > 1]
    return len(weights[-1]) if weights else None


def find_misfits(state: dict[str, Tensor], wanted: dict[str, Tensor]) -> list[str]:
    """List what keeps `state` from being loaded into a module whose state dict is `wanted`.

    Each entry names a missing or unknown key, another shape, or a type that is no number or does
    not fit. An empty list means that `state` fits.
    """
    faults = [f"missing: {key}" for key in wanted if key not in state]
    faults += [f"unknown: {key[:200]}" for key in state if key not in wanted]
    for key, other in wanted.items():
        tensor = state.get(key, other)
        if tensor.shape != other.shape:
            faults.append(f"{key}: shape {tuple(tensor.shape)}, wanted {tuple(other.shape)}")
        if tensor.dtype not in (_FLOATS if other.is_floating_point() else _NUMBERS):
            faults.append(f"{key}: type {tensor.dtype}, wanted {other.dtype}")
    return faults


def _load_backbone(
    features: nn.Module, state: dict[str, Tensor], origin: str, backbone: str
) -> None:
    """Load `state` if it fits and is finite, else raise a WeightsError with every fault."""
    wanted = features.state_dict()
    optional = {key: wanted[key] for key in wanted if key.endswith("num_batches_tracked")}
    state = {**optional, **state}
    faults = find_misfits(state, wanted)
    floats = {key: x.float() for key, x in state.items() if x.is_floating_point()}
    if not faults and not nn.utils.get_total_norm(floats.values(), inf).isfinite():
        faults = [
            f"{key}: holds values that are not finite"
            for key, x in floats.items()
            if not x.isfinite().all()
        ]
    if faults:
        raise WeightsError(
            f"model.weights: {origin} does not fit the model.backbone {backbone}\n"
            f"{format_list(faults)}"
        )
    features.load_state_dict(state)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
