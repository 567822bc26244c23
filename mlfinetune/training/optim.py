"""The optimizer, its learning rate as a pure function of the step, and the moving average."""

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
    """Build AdamW or SGD over groups that carry `initial_lr` and `weight_decay`.

    Each parameter of a group with `in_backward` is stepped in the backward pass, as soon as its
    gradient is complete, and the gradient is dropped. So it is neither clipped nor accumulated.

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
    """Step one parameter, with the current settings of its group and the optimizer's state.

    The reference is weak, because a hook of a parameter must not keep the optimizer alive.
    `optimizer.step()` then skips the parameter, since it has no gradient any more.
    """
    optimizer = reference()
    if optimizer is None:
        return
    alone = type(optimizer)([{**optimizer.param_groups[index], "params": [parameter]}])
    alone.state = optimizer.state
    alone.step()
    parameter.grad = None


def build_ema_model(model: nn.Module, decay: float) -> AveragedModel:
    """Build the exponential moving average of the model's weights and buffers.

    `update_parameters` is one step of it. The n-th step keeps min(decay, (1 + n) / (10 + n)) of the
    average, so that a short run does not end with its first weights. Integers (BatchNorm's count of
    batches) are copied.

    Args:
        model: is copied, on its device.
        decay: above 0 and below 1; about the last 1 / (1 - decay) steps count.
    """

    @torch.no_grad()
    def update(means: Any, values: Any, done: Any) -> None:
        if means[0].is_floating_point():
            kept = min(decay, (1 + int(done)) / (10 + int(done)))
            torch._foreach_lerp_(means, values, 1 - kept)
        else:
            torch._foreach_copy_(means, values)

    return AveragedModel(model, multi_avg_fn=update, use_buffers=True)


def compute_lr_factor(step: int, total: int, warmup: int) -> float:
    """Return the factor of the initial learning rate at `step`: linear warmup, then a cosine to 0.

    With total 6 and warmup 2 the factors are 0.5, 1, 1, 0.85, 0.5, 0.15.

    Args:
        step: from 0 to total - 1.
        total: steps of the whole run.
        warmup: number of steps with a rising rate; the first has a factor of 1 / warmup, not 0.
    """
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))
