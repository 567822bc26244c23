"""The optimizer, and its learning rate as a pure function of the step."""

import math
from typing import Any

import torch


def build_optimizer(
    groups: list[dict[str, Any]], name: str, momentum: float
) -> torch.optim.Optimizer:
    """AdamW or SGD over groups that carry `initial_lr` and `weight_decay`.

    Args:
        groups: as `Tagger.parameter_groups` gives them.
        name: `adamw` or `sgd`.
        momentum: of sgd, with Nesterov's update where it is not 0.
    """
    groups = [{**group, "lr": group["initial_lr"]} for group in groups]
    if name == "sgd":
        return torch.optim.SGD(groups, momentum=momentum, nesterov=momentum > 0)
    device = groups[0]["params"][0].device.type
    return torch.optim.AdamW(groups, fused=device in ("cpu", "cuda"))


def lr_at(step: int, total: int, warmup: int) -> float:
    """The share of the initial learning rate at `step`: linear warmup, then a cosine to 0.

    Args:
        step: from 0 to total - 1.
        total: steps of the whole run.
        warmup: steps of rising rate; the first of them already moves.
    """
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))
