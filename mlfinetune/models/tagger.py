"""The tagger: a torchvision ResNet without its last linear layer, and a new linear head.

    images (B, 3, S, S) uint8 -> normalise -> features (B, F) -> head -> logits (B, L) float32

The model returns logits; no sigmoid stands between it and the loss.
"""

import copy
import re
from typing import Any, Self

import torch
import torchvision
from torch import Tensor, nn
from torch.nn.functional import linear

from mlfinetune.errors import ConfigError
from mlfinetune.text import suggest

BACKBONES: tuple[str, ...] = tuple(
    name
    for name in torchvision.models.list_models(module=torchvision.models)
    if re.fullmatch(r"(wide_)?resne(x)?t\d+.*", name)
)
CHUNK_LABELS = 1024
"""Labels whose weights are stepped together (measured: `benchmarks/large_head.py`)."""


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
        sizes = [min(CHUNK_LABELS, labels - start) for start in range(0, labels, CHUNK_LABELS)]
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
                f"model.backbone: no '{backbone}'{suggest(backbone, BACKBONES)}; "
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
