"""The optimizer, and its learning rate as a pure function of the step."""

import math
import weakref
from functools import partial
from typing import Any

import torch
from torch import Tensor


def build_optimizer(
    groups: list[dict[str, Any]], name: str, momentum: float
) -> torch.optim.Optimizer:
    """AdamW or SGD over groups that carry `initial_lr` and `weight_decay`.

    The parameters of a group with `in_backward` are each stepped as soon as their gradient is
    complete, in the backward pass, and the gradient is dropped: no clipping, no accumulation.

    Args:
        groups: as `Tagger.parameter_groups` gives them.
        name: `adamw` or `sgd`.
        momentum: of sgd, with Nesterov's update where it is not 0.
    """
    groups = [{**group, "lr": group["initial_lr"]} for group in groups]
    optimizer: torch.optim.SGD | torch.optim.AdamW
    if name == "sgd":
        optimizer = torch.optim.SGD(groups, momentum=momentum, nesterov=momentum > 0)
    else:
        device = groups[0]["params"][0].device.type
        optimizer = torch.optim.AdamW(groups, fused=device in ("cpu", "cuda"))
    for index, group in enumerate(optimizer.param_groups):
        if group.get("in_backward"):
            for parameter in group["params"]:
                hook = partial(_step_alone, weakref.ref(optimizer), index)
                parameter.register_post_accumulate_grad_hook(hook)
    return optimizer


def _step_alone(
    reference: "weakref.ref[torch.optim.SGD | torch.optim.AdamW]", index: int, parameter: Tensor
) -> None:
    """One parameter's step, with its group's settings of now and the optimizer's own state.

    `optimizer.step()` passes over the parameter: by then it has no gradient.
    """
    optimizer = reference()
    if optimizer is None:
        return
    alone = type(optimizer)([{**optimizer.param_groups[index], "params": [parameter]}])
    alone.state = optimizer.state
    alone.step()
    parameter.grad = None


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
