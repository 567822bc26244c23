"""The tagger: a backbone of backbones.py and a new linear head.

    images (B, 3, S, S) uint8 -> normalize -> backbone -> features (B, F) -> head -> logits (B, L)

Logits are float32, and the loss takes them as they are: the model has no sigmoid.

The word `features` has two uses, as in torchvision: `Tagger.features` is the backbone module (its
name is part of every checkpoint's keys), and features are its output (B, F).
"""

import copy
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from mlfinetune.models.backbones import build_backbone
from mlfinetune.models.layers import list_undecayed, number_layers
from mlfinetune.models.sync_batch_norm import is_synced

CHUNK_LABELS = 1024
"""Number of labels in one chunk of `ChunkedLinear` (measured: `benchmarks/large_head.py`)."""


class ChunkedLinear(nn.Module):
    """Linear layer for very many labels, its weight in chunks of labels.

    It computes what nn.Linear computes, and its state dict has the same entries: `weight` (L, F)
    and `bias` (L,). Each chunk is a parameter of its own, so an optimizer can step a chunk as soon
    as its gradient is complete. The gradient of the whole weight never exists.

        L = 2500  ->  chunks (1024, F), (1024, F), (452, F)

    Attributes:
        chunks: (at most CHUNK_LABELS, F) each.
        bias: (L,).
    """

    def __init__(self, features: int, labels: int) -> None:
        """Draw Kaiming-normal weights; the bias is 0."""
        super().__init__()
        self.in_features = features
        sizes = [min(CHUNK_LABELS, labels - start) for start in range(0, labels, CHUNK_LABELS)]
        self.chunks = nn.ParameterList(torch.empty(size, features) for size in sizes)
        self.bias = nn.Parameter(torch.zeros(labels))
        for chunk in self.chunks:
            nn.init.kaiming_normal_(chunk)
        self.register_state_dict_post_hook(self._join_chunks)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_pre_hook(self._split_weight)  # type: ignore[no-untyped-call]

    def forward(self, features: Tensor) -> Tensor:
        """(B, F) -> (B, L)."""
        return torch.cat([linear(features, chunk) for chunk in self.chunks], 1).add_(self.bias)

    @staticmethod
    def _join_chunks(
        module: "ChunkedLinear", state: dict[str, Tensor], prefix: str, _: Any
    ) -> None:
        """Put one `weight` in place of the chunks, in a state dict that was just made."""
        names = [f"{prefix}chunks.{i}" for i in range(len(module.chunks))]
        # On the CPU: the whole weight may not fit beside its chunks where they are.
        state[f"{prefix}weight"] = torch.cat([state.pop(name).cpu() for name in names])

    @staticmethod
    def _split_weight(
        module: "ChunkedLinear", state: dict[str, Tensor], prefix: str, *rest: Any
    ) -> None:
        """Put chunks in place of `weight`, in a state dict that is about to be loaded."""
        weight = state.pop(f"{prefix}weight", None)
        sizes = [len(chunk) for chunk in module.chunks]
        if weight is None or len(weight) != sum(sizes):
            found = "none" if weight is None else f"{tuple(weight.shape)}"
            errors: list[str] = rest[-1]
            errors.append(f"{prefix}weight: wanted {sum(sizes)} rows, found {found}")
            return
        chunks = weight.split(sizes)  # type: ignore[no-untyped-call]
        state.update({f"{prefix}chunks.{i}": chunk for i, chunk in enumerate(chunks)})


def _build_head(features: int, labels: int, chunked: bool) -> nn.Linear | ChunkedLinear:
    """Build the linear head with Kaiming-normal weights and a bias of 0."""
    if chunked:
        return ChunkedLinear(features, labels)
    head = nn.Linear(features, labels)
    nn.init.kaiming_normal_(head.weight)
    nn.init.zeros_(head.bias)
    return head


class Tagger(nn.Module):
    """Multi-label image classifier: a backbone and a linear head.

    Attributes:
        features: the backbone module, (B, 3, S, S) float -> (B, F).
        head: nn.Linear(F, L), or ChunkedLinear.
        backbone: name of the backbone.
        frozen: training does not change the backbone's parameters and BatchNorm statistics.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        backbone: str,
        labels: int,
        *,
        levels: int = 1,
        image_size: int = 224,
        mean: tuple[float, float, float],
        std: tuple[float, float, float],
        frozen: bool = False,
        bias: Tensor | None = None,
        chunked: bool = False,
    ) -> None:
        """Build a tagger with random weights; the head is Kaiming-normal.

        Args:
            backbone, levels, image_size: as `build_backbone` takes them.
            labels: L, the number of labels.
            mean, std: of each channel of the images, for pixels scaled to [0, 1].
            frozen: train the head alone.
            bias: (L,) initial bias of the head; None: 0.
            chunked: the head is a ChunkedLinear, which the optimizer steps chunk by chunk during
                the backward pass.

        Raises:
            ConfigError: there is no such backbone, or it does not take this size.
        """
        super().__init__()
        self.features, width = build_backbone(backbone, levels, image_size)
        self.head = _build_head(width, labels, chunked)
        if bias is not None:
            self.head.bias.data.copy_(bias)
        for name, values in (("mean", mean), ("std", std)):
            scaled = 255 * torch.tensor(values, device="cpu").view(1, 3, 1, 1)
            self.register_buffer(name, scaled, persistent=False)
        self.backbone, self.frozen = backbone, frozen
        self.features.requires_grad_(not frozen)

    def train(self, mode: bool = True) -> Self:
        """Set training mode; a frozen backbone and its BatchNorm stay in evaluation mode."""
        super().train(mode)
        if self.frozen:
            self.features.eval()
        return self

    def with_features(self, features: nn.Module) -> "Tagger":
        """Return a copy with another backbone, in evaluation mode; both share the head.

        The copy is for inference alone. `self` is the one that trains and is saved.
        """
        return self._copy_with("features", features).eval()

    def with_head(self, head: nn.Module) -> "Tagger":
        """Return a copy with another head; both share the backbone."""
        return self._copy_with("head", head)

    def _copy_with(self, name: str, part: nn.Module) -> "Tagger":
        other = copy.copy(self)
        other._modules = {**self._modules, name: part}
        return other

    def normalize(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) uint8 -> the backbone's input, float32."""
        x = (images.to(torch.float32) - self.mean) / self.std
        return x.contiguous(memory_format=torch.channels_last)

    def embed(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) uint8 -> (B, F) features, in the type of autocast where that is on."""
        count = len(images)
        if not count and not self._learns_with_other_ranks():
            # Many networks cannot reshape a batch of no pictures: they get one, which is dropped.
            images = images.new_zeros(1, *images.shape[1:])
        x = self.normalize(images)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            features: Tensor = self.features(x)
        return features if count else features[:0]

    def _learns_with_other_ranks(self) -> bool:
        """Tell whether BatchNorm waits for the pictures of all ranks, and must see no other."""
        return self.training and any(map(is_synced, self.features.modules()))

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) uint8 -> (B, L) float32 logits."""
        return self.apply_head(self.embed(images))

    def apply_head(self, features: Tensor) -> Tensor:
        """(B, F) features of any type -> (B, L) float32 logits."""
        # The head computes in float32: with bfloat16's 8 bits many images would have equal logits.
        with torch.autocast(features.device.type, enabled=False):
            logits: Tensor = self.head(features.float())
        return logits

    def parameter_groups(
        self, lr: float, head_lr: float, weight_decay: float, layer_decay: float | None = None
    ) -> list[dict[str, Any]]:
        """Return optimizer groups of the parameters that train; biases and norms do not decay.

        group               initial_lr   weight_decay
        backbone weights    lr           weight_decay
        backbone others     lr           0
        head weights        head_lr      weight_decay
        head bias           head_lr      0

        With a `layer_decay` d, each layer of the backbone has two groups, the last layer first. Its
        rate is lr * d^n, n layers before the last one.

        A group with `in_backward` true is stepped during the backward pass, by the optimizer that
        `training.optim.build_optimizer` builds.

        Raises:
            ConfigError: layer_decay is given, and the backbone has no layers to count.
        """
        groups: list[dict[str, Any]] = []
        undecayed = list_undecayed(self.features)
        trained = {k: p for k, p in self.features.named_parameters() if p.requires_grad}
        for names, rate in self._split_layers(list(trained), lr, layer_decay):
            weights = [trained[name] for name in names if name not in undecayed]
            others = [trained[name] for name in names if name in undecayed]
            groups += _build_groups(weights, others, rate, weight_decay)
        weights = [p for p in self.head.parameters() if p.ndim > 1]
        groups += _build_groups(weights, [self.head.bias], head_lr, weight_decay)
        for group in groups:
            group["in_backward"] = isinstance(self.head, ChunkedLinear) and (
                group["params"][0] is weights[0]
            )
        return groups

    def _split_layers(
        self, names: list[str], lr: float, layer_decay: float | None
    ) -> list[tuple[list[str], float]]:
        """Split the backbone's parameters into layers with their rates, the last layer first."""
        if layer_decay is None or not names:
            return [(names, lr)]
        layers = number_layers(self.features, self.backbone)
        last = max(layers.values())
        return [
            ([name for name in names if layers[name] == layer], lr * layer_decay ** (last - layer))
            for layer in range(last, -1, -1)
        ]


def _build_groups(
    weights: list[nn.Parameter], others: list[nn.Parameter], lr: float, weight_decay: float
) -> list[dict[str, Any]]:
    """Return a group of parameters that decay, and one of those that do not; none is empty."""
    return [
        {"params": parameters, "initial_lr": lr, "weight_decay": decay}
        for parameters, decay in ((weights, weight_decay), (others, 0.0))
        if parameters
    ]
