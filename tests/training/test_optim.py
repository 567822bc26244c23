"""The optimizers and the schedule of their learning rates."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from mlfinetune.config import build_config
from mlfinetune.training.build import build_ema
from mlfinetune.training.optim import build_ema_model, build_optimizer, compute_lr_factor

TOTALS = st.integers(1, 500)


def groups(module: nn.Linear) -> list[dict[str, object]]:
    """Return two groups as the tagger gives them."""
    return [
        {"params": [module.weight], "initial_lr": 0.5, "weight_decay": 0.25},
        {"params": [module.bias], "initial_lr": 0.125, "weight_decay": 0.0},
    ]


# ---- the schedule -----------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(total=TOTALS, share=st.floats(0, 1))
def test_the_rate_rises_then_falls(total: int, share: float) -> None:
    """Positive shares of at most 1, up through warmup, down to the end, the same each time."""
    warmup = round(share * total)
    rates = [compute_lr_factor(step, total, warmup) for step in range(total)]
    assert all(0 < rate <= 1 for rate in rates)
    assert rates[:warmup] == sorted(set(rates[:warmup]))
    assert rates[warmup:] == sorted(set(rates[warmup:]), reverse=True)
    assert rates == [compute_lr_factor(step, total, warmup) for step in range(total)]


@settings(max_examples=100, deadline=None)
@given(total=TOTALS, share=st.floats(0, 1))
def test_the_peak_is_the_whole_rate(total: int, share: float) -> None:
    """The last step of warmup, or the first of all, has the rate of the config."""
    warmup = round(share * total)
    assert compute_lr_factor(max(0, warmup - 1), total, warmup) == 1.0


def test_warmup_is_linear() -> None:
    """Four steps of warmup: quarters, the first of them no zero."""
    assert [compute_lr_factor(step, 10, 4) for step in range(4)] == [0.25, 0.5, 0.75, 1.0]


def test_the_cosine_has_its_shape() -> None:
    """Half way the rate is a half, and the last of 1,000 steps is near 0."""
    assert compute_lr_factor(0, 1000, 0) == 1.0
    assert compute_lr_factor(500, 1000, 0) == pytest.approx(0.5)
    assert compute_lr_factor(250, 1000, 0) == pytest.approx(0.5 + 0.5 * 2**-0.5)
    assert compute_lr_factor(550, 1000, 100) == pytest.approx(0.5)
    assert 0 < compute_lr_factor(999, 1000, 0) < 1e-5


@pytest.mark.parametrize("warmup", [0, 1])
def test_a_run_of_one_step_has_the_whole_rate(warmup: int) -> None:
    """One step is neither warmup from 0 nor the end of a cosine."""
    assert compute_lr_factor(0, 1, warmup) == 1.0


# ---- the optimizers ---------------------------------------------------------------------


@pytest.mark.parametrize(("name", "kind"), [("adamw", torch.optim.AdamW), ("sgd", torch.optim.SGD)])
def test_groups_keep_their_rates_and_decay(name: str, kind: type[torch.optim.Optimizer]) -> None:
    """Each group starts with its own rate, remembers it, and has its own decay."""
    module = nn.Linear(2, 2)
    optimizer = build_optimizer(groups(module), name, 0.9)
    assert type(optimizer) is kind
    weight, bias = optimizer.param_groups
    assert (weight["lr"], weight["initial_lr"], weight["weight_decay"]) == (0.5, 0.5, 0.25)
    assert (bias["lr"], bias["initial_lr"], bias["weight_decay"]) == (0.125, 0.125, 0.0)
    assert (weight["params"], bias["params"]) == ([module.weight], [module.bias])


@pytest.mark.parametrize(("momentum", "nesterov"), [(0.9, True), (0.0, False)])
def test_sgd_takes_its_momentum(momentum: float, nesterov: bool) -> None:
    """Nesterov's update goes with momentum; without momentum it is plain SGD."""
    optimizer = build_optimizer(groups(nn.Linear(2, 2)), "sgd", momentum)
    for group in optimizer.param_groups:
        assert (group["momentum"], group["nesterov"]) == (momentum, nesterov)


def test_the_groups_that_are_given_stay_as_they_are() -> None:
    """The caller's dictionaries get no new keys."""
    given_groups = groups(nn.Linear(2, 2))
    build_optimizer(given_groups, "adamw", 0.9)
    assert all(group.keys() == {"params", "initial_lr", "weight_decay"} for group in given_groups)


def test_weight_decay_reaches_its_group_alone() -> None:
    """With gradients of zero AdamW shrinks the weights by lr * decay, and no bias."""
    module = nn.Linear(2, 2)
    nn.init.ones_(module.weight)
    nn.init.ones_(module.bias)
    optimizer = build_optimizer(groups(module), "adamw", 0.9)
    (module(torch.ones(1, 2)) * 0).sum().backward()
    optimizer.step()
    assert module.weight.flatten().tolist() == [1 - 0.5 * 0.25] * 4
    assert module.bias.tolist() == [1.0, 1.0]


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_each_optimizer_descends(name: str) -> None:
    """A few steps make a small loss smaller."""
    torch.manual_seed(0)
    module, losses = nn.Linear(2, 2), []
    settings_ = [{"params": list(module.parameters()), "initial_lr": 0.05, "weight_decay": 0.0}]
    optimizer = build_optimizer(settings_, name, 0.9)
    for _ in range(20):
        optimizer.zero_grad()
        loss = (module(torch.eye(2)) - 1).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2


@pytest.mark.parametrize("from_start", [False, True])
def test_a_running_mean_of_weights_is_the_recurrence(from_start: bool) -> None:
    """In float64: min(decay, (1 + n) / (10 + n)) of what was, the first step taken whole.

    From the start on: `decay` of what was at each step, and of the start before the first one.
    """
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)).double()
    mean = build_ema_model(model, 0.5, from_start)
    start = {k: v.detach().clone() for k, v in model.state_dict().items()}
    wanted = start if from_start else None
    for n in range(30):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter))
        model(torch.randn(4, 3, dtype=torch.float64))
        mean.update_parameters(model)
        now = {k: v.detach().clone() for k, v in model.state_dict().items()}
        kept = 0.5 if from_start else min(0.5, (1 + n) / (10 + n))
        if wanted is None:
            wanted = now
        else:
            wanted = {k: kept * wanted[k] + (1 - kept) * v for k, v in now.items()}
    assert wanted is not None
    found = mean.module.state_dict()
    assert int(found.pop("1.num_batches_tracked")) == 30
    assert int(mean.n_averaged) == 30 + from_start
    for name, value in found.items():
        torch.testing.assert_close(value, wanted[name], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("changes", "steps", "kept"),
    [
        (("train.epochs=10",), 8, 1 - 1 / 40),
        (("train.epochs=1",), 1, 0.5),
        (("train.ema=0.9",), 8, None),
    ],
)
def test_the_reach_of_an_automatic_mean(
    changes: tuple[str, ...], steps: int, kept: float | None
) -> None:
    """Half of all steps, from a solved head on; any other decay takes the first step whole."""
    config = build_config(
        {"data": {"train": "."}}, ("train.ema=auto", "train.solve_head_first=true", *changes)
    )
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    mean = build_ema(config, model, steps)
    assert mean is not None
    nn.init.ones_(model.weight)
    mean.update_parameters(model)
    wanted = 1.0 if kept is None else 1 - kept
    assert mean.module.weight.item() == pytest.approx(wanted)
