"""The tagger: a torchvision ResNet without its last linear layer, and a new linear head.

    images (B, 3, S, S) uint8 -> normalise -> features (B, F) -> head -> logits (B, L) float32

The model returns logits; no sigmoid stands between it and the loss.
"""

import copy
import re
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from http.client import HTTPException
from pathlib import Path
from typing import Any, Self, TypeGuard
from urllib.error import HTTPError

import torch
import torchvision
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import linear

from mlfinetune.errors import ConfigError, WeightsError, listing, nearest

BACKBONES: tuple[str, ...] = tuple(
    name
    for name in torchvision.models.list_models(module=torchvision.models)
    if re.fullmatch(r"(wide_)?resne(x)?t\d+.*", name)
)
STALLED_S = 60.0
"""A download that sends nothing for so long has failed."""
CHUNK = 1024
"""Labels whose weights are stepped together (measured: `benchmarks/large_head.py`)."""
_WRAPPERS = ("state_dict", "model")
_PREFIXES = ("module.", "features.")
_HEADS = ("fc.", "head.")
_FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
_NUMBERS = (*_FLOATS, torch.int64, torch.int32)


class ChunkedLinear(nn.Module):
    """A linear layer for very many labels, its weight in chunks of labels.

    What nn.Linear computes and, in a state dict, what it holds: `weight` (L, F) and `bias` (L,).
    Each chunk is a parameter of its own, so that an optimizer may step it as soon as its gradient
    is there, and no gradient of the whole weight has to exist.

    Attributes:
        chunks: (at most CHUNK, F) each.
        bias: (L,).
    """

    def __init__(self, features: int, labels: int) -> None:
        """Kaiming-normal weights, bias 0."""
        super().__init__()
        self.in_features = features
        sizes = [min(CHUNK, labels - start) for start in range(0, labels, CHUNK)]
        self.chunks = nn.ParameterList(torch.empty(size, features) for size in sizes)
        self.bias = nn.Parameter(torch.zeros(labels))
        for chunk in self.chunks:
            nn.init.kaiming_normal_(chunk)
        self.register_state_dict_post_hook(self._join)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_pre_hook(self._part)  # type: ignore[no-untyped-call]

    def forward(self, features: Tensor) -> Tensor:
        """(B, F) -> (B, L)."""
        return torch.cat([linear(features, chunk) for chunk in self.chunks], 1).add_(self.bias)

    @staticmethod
    def _join(module: "ChunkedLinear", state: dict[str, Tensor], prefix: str, _: Any) -> None:
        names = [f"{prefix}chunks.{i}" for i in range(len(module.chunks))]
        # On the CPU: the whole weight may not fit beside its chunks where they are.
        state[f"{prefix}weight"] = torch.cat([state.pop(name).cpu() for name in names])

    @staticmethod
    def _part(module: "ChunkedLinear", state: dict[str, Tensor], prefix: str, *rest: Any) -> None:
        weight = state.pop(f"{prefix}weight", None)
        sizes = [len(chunk) for chunk in module.chunks]
        if weight is None or len(weight) != sum(sizes):
            found = "none" if weight is None else f"{tuple(weight.shape)}"
            rest[-1].append(f"{prefix}weight: wanted {sum(sizes)} rows, found {found}")
            return
        parts = weight.split(sizes)  # type: ignore[no-untyped-call]
        state.update({f"{prefix}chunks.{i}": part for i, part in enumerate(parts)})


class Tagger(nn.Module):
    """Backbone and head.

    Attributes:
        features: the backbone, (B, 3, S, S) float -> (B, F).
        head: nn.Linear(F, L), or ChunkedLinear.
        frozen: the backbone's parameters and BatchNorm statistics stay what they are.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        backbone: str,
        labels: int,
        *,
        mean: tuple[float, float, float],
        std: tuple[float, float, float],
        frozen: bool = False,
        bias: Tensor | None = None,
        chunked: bool = False,
    ) -> None:
        """A tagger with random weights; the head is Kaiming-normal, its bias 0 or `bias`.

        Args:
            backbone: torchvision's name.
            labels: L.
            mean, std: of the pictures' channels, from 0 to 1.
            frozen: train the head alone.
            bias: (L,), the head's first bias.
            chunked: the head's weight is stepped chunk by chunk, during the backward pass.

        Raises:
            ConfigError: no such backbone.
        """
        super().__init__()
        if backbone not in BACKBONES:
            raise ConfigError(
                f"model.backbone: no '{backbone}'{nearest(backbone, BACKBONES)}; "
                f"known: {', '.join(BACKBONES)}"
            )
        self.features = torchvision.models.get_model(backbone, weights=None)
        width = self.features.fc.in_features
        self.features.fc = nn.Identity()
        self.head: nn.Linear | ChunkedLinear
        if chunked:
            self.head = ChunkedLinear(width, labels)
        else:
            self.head = nn.Linear(width, labels)
            nn.init.kaiming_normal_(self.head.weight)
            nn.init.zeros_(self.head.bias)
        if bias is not None:
            self.head.bias.data.copy_(bias)
        for name, values in (("mean", mean), ("std", std)):
            scaled = 255 * torch.tensor(values).view(1, 3, 1, 1)
            self.register_buffer(name, scaled, persistent=False)
        self.frozen = frozen
        self.features.requires_grad_(not frozen)

    def train(self, mode: bool = True) -> Self:
        """Training mode; a frozen backbone stays in evaluation mode, or BatchNorm would drift."""
        super().train(mode)
        if self.frozen:
            self.features.eval()
        return self

    def serving(self, features: nn.Module) -> "Tagger":
        """The same tagger with another way to compute features, in evaluation mode.

        It shares the head, and is for inference alone: `self` stays what trains and is saved.
        """
        return self._with("features", features).eval()

    def with_head(self, head: nn.Module) -> "Tagger":
        """The same tagger with another head; it shares the backbone."""
        return self._with("head", head)

    def _with(self, name: str, part: nn.Module) -> "Tagger":
        other = copy.copy(self)
        other._modules = {**self._modules, name: part}
        return other

    def embed(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) uint8 -> (B, F) features, in autocast's type where it is on."""
        x = (images.to(torch.float32) - self.mean) / self.std
        x = x.contiguous(memory_format=torch.channels_last)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            features: Tensor = self.features(x)
        return features

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) uint8 -> (B, L) float32 logits."""
        x = self.embed(images)
        with torch.autocast(x.device.type, enabled=False):  # 8-bit mantissas would tie scores
            logits: Tensor = self.head(x.float())
        return logits

    def parameter_groups(
        self, lr: float, head_lr: float, weight_decay: float
    ) -> list[dict[str, Any]]:
        """Optimizer groups of what trains; biases and BatchNorm take no weight decay.

        A group that `optim.build_optimizer` is to step in the backward pass says `in_backward`.
        """
        groups: list[dict[str, Any]] = []
        for part, part_lr in ((self.features, lr), (self.head, head_lr)):
            parameters = [p for p in part.parameters() if p.requires_grad]
            weights = [p for p in parameters if p.ndim > 1]
            others = [p for p in parameters if p.ndim <= 1]
            for decay, group in ((weight_decay, weights), (0.0, others)):
                if group:
                    groups.append({"params": group, "initial_lr": part_lr, "weight_decay": decay})
                    groups[-1]["in_backward"] = isinstance(part, ChunkedLinear) and group is weights
        return groups


# ---- pretrained weights -----------------------------------------------------------------


def load_pretrained(model: Tagger, backbone: str, weights: str) -> None:
    """Load the backbone's weights; the head keeps its own.

    Args:
        model: is changed.
        backbone: torchvision's name.
        weights: torchvision's name of a weight set, or a .pth or .safetensors file with
            torchvision's keys; `fc`, a `module.` prefix and other float types are taken care of.

    Raises:
        WeightsError: the download failed, the file cannot be read, or it does not fit.
    """
    if Path(weights).suffix:
        state = _read_file(Path(weights))
    else:
        known = {w.name: w for w in torchvision.models.get_model_weights(backbone)}
        if weights not in known:
            raise WeightsError(
                f"model.weights: {backbone} has no '{weights}'{nearest(weights, list(known))}; "
                f"known: {', '.join(known)}, a .pth or .safetensors file, or null"
            )
        state = download(known[weights].url)
    _fit(model.features, _backbone_keys(state), weights)


def download(url: str) -> dict[str, Tensor]:
    """A state dict through torch.hub's cache; a fresh download's hash is checked.

    Raises:
        WeightsError: what was tried, where to put the file, which key to set.
    """
    cache = Path(torch.hub.get_dir()) / "checkpoints"
    file = cache / url.rpartition("/")[2]
    advice = (
        f"put the file at {file}, or set model.weights to a local .pth or .safetensors file, "
        f"or to null for random weights"
    )
    try:
        # torch.hub announces the download on stdout, and would wait for a stalled server for ever.
        with redirect_stdout(sys.stderr), _socket_timeout(STALLED_S):
            state = torch.hub.load_state_dict_from_url(
                url, map_location="cpu", check_hash=True, weights_only=True
            )
    except Exception as error:
        if isinstance(error, HTTPError):
            error.close()
        if file.exists():
            raise WeightsError(_bad_cache(file, url, _first_line(error))) from error
        if not isinstance(error, OSError | RuntimeError | HTTPException | ValueError):
            raise
        raise WeightsError(f"cannot download {url}: {_first_line(error)}; {advice}") from error
    if not _is_state(state):
        raise WeightsError(_bad_cache(file, url, "it holds no state dict of tensors"))
    return state


@contextmanager
def _socket_timeout(seconds: float) -> Iterator[None]:
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _bad_cache(file: Path, url: str, why: str) -> str:
    return (
        f"{file} (the cached copy of {url}) cannot be loaded: {why}; delete it to download it again"
    )


def _read_file(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise WeightsError(f"model.weights: no such file: {path}") from error
    except SafetensorError as error:
        raise WeightsError(f"model.weights: {path} is no safetensors file: {error}") from error
    except Exception as error:  # torch.load raises whatever its unpickler raises
        raise WeightsError(
            f"model.weights: {path} cannot be loaded as plain weights "
            f"({_first_line(error)}); save its state_dict() alone, or as .safetensors"
        ) from error
    for wrapper in _WRAPPERS:
        if isinstance(state, dict) and isinstance(state.get(wrapper), dict):
            state = state[wrapper]
    if not _is_state(state):
        raise WeightsError(f"model.weights: {path} holds no state dict of tensors")
    return state


def _is_state(state: object) -> TypeGuard[dict[str, Tensor]]:
    return isinstance(state, dict) and all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in state.items()
    )


def _backbone_keys(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Without wrappers' prefixes and without a head."""
    for prefix in _PREFIXES:
        state = {key.removeprefix(prefix): value for key, value in state.items()}
    return {key: value for key, value in state.items() if not key.startswith(_HEADS)}


def misfits(state: dict[str, Tensor], wanted: dict[str, Tensor]) -> list[str]:
    """What keeps a state dict from being loaded where this one is wanted."""
    faults = [f"missing: {key}" for key in wanted if key not in state]
    faults += [f"unknown: {key[:200]}" for key in state if key not in wanted]
    for key, other in wanted.items():
        tensor = state.get(key, other)
        if tensor.shape != other.shape:
            faults.append(f"{key}: shape {tuple(tensor.shape)}, wanted {tuple(other.shape)}")
        if tensor.dtype not in (_FLOATS if other.is_floating_point() else _NUMBERS):
            faults.append(f"{key}: type {tensor.dtype}, wanted {other.dtype}")
    return faults


def _fit(features: nn.Module, state: dict[str, Tensor], origin: str) -> None:
    wanted = features.state_dict()
    optional = {key: wanted[key] for key in wanted if key.endswith("num_batches_tracked")}
    state = {**optional, **state}
    faults = misfits(state, wanted)
    faults += [
        f"{key}: holds values that are not finite"
        for key in wanted
        if not faults and not state[key].float().isfinite().all()
    ]
    if faults:
        raise WeightsError(f"model.weights: {origin} does not fit\n{listing(faults)}")
    features.load_state_dict(state)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
