"""The optimizer, its rate as a pure function of the step, and a running mean of the weights."""

import math
import weakref
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel


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


def build_ema_model(model: nn.Module, decay: float) -> AveragedModel:
    """A running mean of the model's weights and buffers; its `update_parameters` is a step of it.

    The n-th step keeps min(decay, (1 + n) / (10 + n)) of the mean, so that a short run does not
    end with its first weights. What is no float (BatchNorm's count of batches) is copied.

    Args:
        model: is copied, where it is.
        decay: above 0, below 1; the mean of about 1 / (1 - decay) steps.
    """

    @torch.no_grad()
    def step(means: Any, values: Any, done: Any) -> None:
        if means[0].is_floating_point():
            kept = min(decay, (1 + int(done)) / (10 + int(done)))
            torch._foreach_lerp_(means, values, 1 - kept)
        else:
            torch._foreach_copy_(means, values)

    return AveragedModel(model, multi_avg_fn=step, use_buffers=True)


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
