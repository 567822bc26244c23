"""The optimizer and its saved state, its learning rate by the step, and the moving average."""

import math
import weakref
from collections.abc import Mapping, Sequence
from copy import deepcopy
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


def fit_optimizer_state(
    saved: Mapping[str, Any], optimizer: torch.optim.Optimizer
) -> dict[str, Any]:
    """Return a saved state of an optimizer, as `optimizer` can load it.

    Settings are those of `optimizer`, whose device may be another: `fused` differs by it. A very
    large head is one parameter for several processes, and its chunks for one process
    (`build.chunks_head`): what is kept for each row of its weight is cut as `optimizer` needs it.

    Raises:
        ValueError: another number of groups or of rows.
    """
    state: dict[int, Any] = {}
    groups, first = [], 0
    for old, new in zip(saved["param_groups"], optimizer.param_groups, strict=True):
        numbers = list(range(first, first + len(new["params"])))
        first += len(numbers)
        kept = {n: saved["state"][n] for n in old["params"] if n in saved["state"]}
        if len(old["params"]) == len(numbers):
            state |= {
                new_n: kept[n] for new_n, n in zip(numbers, old["params"], strict=True) if n in kept
            }
        elif kept:
            rows = [len(parameter) for parameter in new["params"]]
            state |= zip(numbers, _cut_rows(list(kept.values()), rows), strict=True)
        configured = {key: value for key, value in new.items() if key not in ("params", "lr")}
        groups.append({**old, **configured, "params": numbers})
    return {"state": state, "param_groups": groups}


def _cut_rows(kept: Sequence[Mapping[str, Any]], rows: Sequence[int]) -> list[dict[str, Any]]:
    """Cut what an optimizer keeps for parts of one weight into parts of other numbers of rows.

    Counts of steps have no rows; all parts have the same.
    """
    parts: list[dict[str, Any]] = [{} for _ in rows]
    for name, value in kept[0].items():
        has_rows = isinstance(value, torch.Tensor) and value.ndim > 0
        joined = torch.cat([part[name] for part in kept]) if has_rows else value
        values = torch.split(joined, list(rows)) if has_rows else None
        for index, part in enumerate(parts):
            part[name] = deepcopy(value) if values is None else values[index]
    return parts


def build_ema_model(model: nn.Module, decay: float, from_start: bool = False) -> AveragedModel:
    """Build the exponential moving average of the model's weights and buffers.

    `update_parameters` is one step of it. The n-th step keeps min(decay, (1 + n) / (10 + n)) of the
    average, so that a short run does not end with its first weights. Where these are good, the
    average begins with them, and each step keeps `decay`. Integers (BatchNorm's count of batches)
    are copied.

    Args:
        model: is copied, on its device.
        decay: above 0 and below 1; about the last 1 / (1 - decay) steps count.
        from_start: the average begins with the model's weights as they are now.
    """

    @torch.no_grad()
    def update(means: Any, values: Any, done: Any) -> None:
        if means[0].is_floating_point():
            kept = decay if from_start else min(decay, (1 + int(done)) / (10 + int(done)))
            torch._foreach_lerp_(means, values, 1 - kept)
        else:
            torch._foreach_copy_(means, values)

    average = AveragedModel(model, multi_avg_fn=update, use_buffers=True)
    if from_start:
        average.n_averaged.fill_(1)  # at 0, the first update copies the model instead
    return average


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
