"""The head solved for, against scikit-learn and against the objective in float64."""

from collections.abc import Iterable, Iterator
from copy import deepcopy
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn
from torch.nn.functional import linear

from mlfinetune.data.batches.batch import Batch
from mlfinetune.errors import TrainingError
from mlfinetune.loss import build_loss
from mlfinetune.training import feature_stats
from mlfinetune.training.lbfgs import ITERATIONS, PENALTIES, Solver
from mlfinetune.training.records import StepRecord

FORMS = {
    "sce": {"name": "sce"},
    "pos_weight": {"name": "sce", "pos_weight": torch.tensor([5.0, 1.0, 0.2])},
    "smooth": {"name": "sce", "label_smoothing": 0.1},
    "asl": {"name": "asl", "gamma_neg": 4.0, "gamma_pos": 1.0, "clip": 0.05},
    "focal": {"name": "focal", "gamma": 2.0, "alpha": 0.25},
}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Such small matrices gain nothing from more, and on a busy machine lose."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def data(
    n: int = 120, width: int = 10, labels: int = 3, together: float = 1.0, unknown: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Return correlated features far from 0, like pooled ones, and targets that depend on them."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(n, width, generator=g) + together * torch.randn(n, 1, generator=g)
    logits = 2 * x[:, :1] - torch.arange(labels) + torch.randn(n, labels, generator=g)
    y = (logits > 0).to(torch.int8)
    y[torch.rand(n, labels, generator=g) < unknown] = -1
    return x + 3, y


def batches(x: Tensor, y: Tensor, size: int = 50) -> list[Batch]:
    """Return the data in batches, in order; the last one is smaller."""
    rows = torch.arange(len(x)).split(size)
    return [Batch(x[part], y[part], part) for part in rows]


def solved(
    x: Tensor, y: Tensor, strengths: Iterable[float], **form: object
) -> list[tuple[StepRecord, nn.Linear]]:
    """Return the last record and its head at each strength."""
    head, path, parts = nn.Linear(x.shape[1], y.shape[1]), [], batches(x, y)
    solver = Solver(head, lambda: parts, build_loss(**form))
    for l2 in strengths:
        *_, record = solver.path(l2)
        path.append((record, deepcopy(head)))
    return path


def ridges(y: Tensor, l2: float, **form: object) -> Tensor:
    """Return the (L,) factors of ||c||^2 / 2: l2 h, by the module's definition, in float64.

    h is the curvature of the loss, without smoothing, at its minimum among logits that all images
    share.
    """
    form = {name: value for name, value in form.items() if name != "label_smoothing"}
    positives, negatives = (y == 1).sum(0) + 1.0, (y == 0).sum(0) + 1.0
    share = (positives / (positives + negatives)).double()
    if form.get("name", "sce") == "sce" and len(form) < 2:
        return l2 * share * (1 - share)
    loss, found = build_loss(**form), []
    grid = torch.arange(-12, 12, 0.01, dtype=torch.float64)
    logits = grid[:, None].expand(-1, len(share))
    curves = sum(
        part * loss(logits, torch.full(logits.shape, state, dtype=torch.int8), reduction="none")
        for state, part in ((1, share), (0, 1 - share))
    )
    for label in range(len(share)):
        best = int(curves[:, label].argmin())
        near = slice(best - 20, best + 21)
        found.append(2 * np.polyfit(grid[near] - grid[best], curves[near, label], 4)[2])
    return l2 * torch.tensor(found, dtype=torch.float64)


def deviations(x: Tensor) -> Tensor:
    """Return the (F,) standard deviations in float64; 1 for a feature that does not vary."""
    found = x.double().std(0, correction=0)
    rounding = (1e-6 * x.double().mean(0).abs()).clamp(min=1e-37)
    return torch.where(found > rounding, found, 1.0)


def objective(
    head: nn.Linear, x: Tensor, y: Tensor, l2: float, **form: object
) -> tuple[float, float]:
    """Return the objective of all labels, in float64, and the size of its gradient."""
    weight, bias = (p.detach().double().requires_grad_() for p in (head.weight, head.bias))
    deviation = deviations(x)
    loss = build_loss(**form)(linear(x.double(), weight, bias), y) * y.shape[1]
    total = loss + 0.5 * (ridges(y, l2, **form) * (deviation * weight).square().sum(1)).sum()
    gradients = torch.autograd.grad(total, [weight, bias])
    size = torch.cat([(gradients[0] / deviation).flatten(), gradients[1]]).norm()
    return float(total.detach()), float(size)


def oracle(x: Tensor, y: Tensor, l2: float) -> nn.Linear:
    """Return the head by scikit-learn on standardized features, from known targets."""
    known_a_label = float((y >= 0).sum()) / y.shape[1]
    head = nn.Linear(x.shape[1], y.shape[1])
    mean, deviation = x.double().mean(0), deviations(x)
    for label, ridge in enumerate(ridges(y, l2).tolist()):
        known = y[:, label] >= 0
        model = LogisticRegression(
            C=1 / (ridge * known_a_label), solver="newton-cholesky", tol=1e-10
        ).fit(((x[known] - mean) / deviation).numpy(), y[known, label].numpy())
        weight = torch.from_numpy(model.coef_[0]) / deviation
        head.weight.data[label] = weight
        head.bias.data[label] = float(model.intercept_[0]) - weight @ mean
    return head


# ---- the solution -----------------------------------------------------------------------


def assert_near(head: nn.Linear, exact: nn.Linear) -> None:
    """Assert that weights differ by a five-hundredth of the largest weight at most."""
    near = 2e-3 * float(exact.weight.detach().abs().max())
    torch.testing.assert_close(head.weight, exact.weight, rtol=0, atol=near)
    torch.testing.assert_close(head.bias, exact.bias, rtol=0, atol=0.02)


@pytest.mark.parametrize("unknown", [0.0, 0.4])
@pytest.mark.parametrize("shape", [(120, 10, 3), (60, 5, 1)])
def test_solutions_are_scikit_learns(shape: tuple[int, int, int], unknown: float) -> None:
    """All along the path, unknown targets masked; one label too."""
    x, y = data(*shape, unknown=unknown)
    for record, head in solved(x, y, PENALTIES[::2]):
        exact = oracle(x, y, record.rates["l2"])
        assert_near(head, exact)
        value, best = (objective(one, x, y, record.rates["l2"])[0] for one in (head, exact))
        assert value == pytest.approx(best, rel=1e-5)


def test_features_of_other_scales_are_standardized() -> None:
    """From a thousandth to a thousand: scikit-learn's solution of the standardized ones."""
    x, y = data(unknown=0.2)
    x *= torch.logspace(-3, 3, x.shape[1])
    for record, head in solved(x, y, PENALTIES[::3]):
        exact = oracle(x, y, record.rates["l2"])
        value, best = (objective(one, x, y, record.rates["l2"])[0] for one in (head, exact))
        assert value == pytest.approx(best, rel=1e-5)
        with torch.no_grad():
            torch.testing.assert_close(head(x), exact(x), rtol=5e-3, atol=2e-2)


@pytest.mark.parametrize("unknown", [0.0, 0.4])
def test_more_features_than_examples(unknown: float) -> None:
    """Only the penalty says which of many solutions: its objective is scikit-learn's."""
    x, y = data(40, 90, 3, unknown=unknown)
    for record, head in solved(x, y, PENALTIES[:4]):
        exact = oracle(x, y, record.rates["l2"])
        value, best = (objective(one, x, y, record.rates["l2"])[0] for one in (head, exact))
        assert value == pytest.approx(best, rel=1e-3)


def test_small_products_have_one_thread() -> None:
    """In every pass; between two solutions the process has its threads again."""
    torch.set_num_threads(3)
    x, y = data()
    parts, loss, seen = batches(x, y), build_loss(name="sce"), []

    def watched_loss(*arguments: Tensor, **options: Tensor) -> Tensor:
        seen.append(torch.get_num_threads())
        return loss(*arguments, **options)

    for _ in Solver(nn.Linear(10, 3), lambda: parts, watched_loss).path(1.0):
        assert torch.get_num_threads() == 3
    assert set(seen) == {1}


def test_the_space_of_the_examples_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few examples: the solution in the coordinates of their space is that of all features."""
    x, y = data(40, 60, 3)
    few = solved(x, y, (1.0, 0.1))
    monkeypatch.setattr(feature_stats, "SMALL_SPAN", 0.0)
    for (one, head), (other, same) in zip(few, solved(x, y, (1.0, 0.1)), strict=True):
        assert one.loss == pytest.approx(other.loss, rel=1e-4)
        for solution in (head, same):
            best = oracle(x, y, one.rates["l2"]).weight
            torch.testing.assert_close(solution.weight, best, rtol=0.01, atol=4e-4)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("together", [0.0, 10.0])
def test_no_gradient_is_left(form: str, together: float) -> None:
    """In float64, with features that are all but one and the same too."""
    x, y = data(together=together, unknown=0.2)
    for record, head in solved(x, y, PENALTIES, **FORMS[form]):
        _, left = objective(head, x, y, record.rates["l2"], **FORMS[form])
        assert left < 0.01


@pytest.mark.parametrize("form", FORMS)
def test_a_weaker_penalty_lowers_the_loss(form: str) -> None:
    """Down the path; `loss` is that of the head as it is yielded, without the penalty."""
    x, y = data(unknown=0.2)
    path = solved(x, y, PENALTIES, **FORMS[form])
    losses = [record.loss for record, _ in path]
    assert all(after <= before + 1e-6 for before, after in pairwise(losses))
    for record, head in path:
        with torch.no_grad():
            own = float(build_loss(**FORMS[form])(head(x), y))
        assert record.loss == pytest.approx(own, rel=1e-5)


def test_the_solver_keeps_forty_copies_of_the_head(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many iterations there are: a head of thousands of labels must fit in memory."""
    made, make = [], torch.optim.LBFGS.__init__

    def watched(self: torch.optim.LBFGS, *arguments: Any, **options: Any) -> None:
        make(self, *arguments, **options)
        made.append(self)

    monkeypatch.setattr(torch.optim.LBFGS, "__init__", watched)
    x, y = data(200, 60, 3, together=30.0)
    (((record, _),), (optimizer,)) = solved(x, y, [1e-4]), made
    (state,) = optimizer.state.values()
    assert record.rates["iterations"] == ITERATIONS[-1]
    assert state["n_iter"] > 21
    assert len(state["old_dirs"]) == len(state["old_stps"]) == 20


def test_the_start_does_not_matter() -> None:
    """Weights that the head had, and strengths that were tried before, leave no trace."""
    x, y = data()
    heads = [solved(x, y, strengths)[-1][1] for strengths in ((0.1, 0.01), (0.01,))]
    assert torch.equal(heads[0].weight, heads[1].weight)


def test_batches_are_only_pieces() -> None:
    """Seven at a time or all at once: the loss is one mean over the known targets."""
    x, y = data(unknown=0.3)
    heads = [nn.Linear(10, 3), nn.Linear(10, 3)]
    for head, size in zip(heads, (7, 1000), strict=True):
        parts = batches(x, y, size)
        list(Solver(head, lambda parts=parts: parts, build_loss()).path(0.01))
    torch.testing.assert_close(heads[0].weight, heads[1].weight, atol=2e-3, rtol=1e-3)


@pytest.mark.parametrize("form", ["sce", "asl", "pos_weight"])
def test_a_weight_is_so_many_pictures(form: str) -> None:
    """Weights of 0, 1 and 2 solve as the pictures left out, once and twice, unknown targets too."""
    x, y = data(unknown=0.2)
    times = torch.tensor([0, 1, 2, 1]).repeat(len(x) // 4)
    heads = []
    for parts in (
        [replace(batch, weights=times[batch.indices].float()) for batch in batches(x, y)],
        batches(x.repeat_interleave(times, 0), y.repeat_interleave(times, 0)),
    ):
        head = nn.Linear(x.shape[1], y.shape[1])
        solver = Solver(head, lambda parts=parts: parts, build_loss(**FORMS[form]))
        records = list(solver.path(0.1, (3, 30)))
        heads.append(head)
    assert records[-1].images == len(x)
    assert_near(heads[0], heads[1])


@pytest.mark.parametrize("scale", [1e-6, 1e-3, 1e3, 1e6])
def test_the_scale_of_features_does_not_matter(scale: float) -> None:
    """A strength is in units of their variance: predictions are the same, and so is the loss."""
    x, y = data()
    for (one, small), (two, large) in zip(
        solved(x, y, PENALTIES[::2]), solved(x * scale, y, PENALTIES[::2]), strict=True
    ):
        assert one.loss == pytest.approx(two.loss, rel=1e-4)
        with torch.no_grad():
            torch.testing.assert_close(small(x), large(x * scale), atol=2e-2, rtol=1e-2)


@pytest.mark.parametrize("factor", [1e-6, -1.0, 1e3])
def test_a_factor_on_one_feature_changes_no_logit(factor: float) -> None:
    """After few iterations as after many: it has no part in how the solver goes on."""
    x, y = data()
    other = x.clone()
    other[:, 3] *= factor
    for l2 in (0.3, 0.003):
        for stops in ((3,), (30,)):
            heads = [nn.Linear(10, 3), nn.Linear(10, 3)]
            for head, features in zip(heads, (x, other), strict=True):
                parts = batches(features, y)
                list(Solver(head, lambda parts=parts: parts, build_loss()).path(l2, stops))
            with torch.no_grad():
                torch.testing.assert_close(heads[0](x), heads[1](other), atol=1e-2, rtol=1e-3)


# ---- records ----------------------------------------------------------------------------


def test_records_say_what_was_done() -> None:
    """Strength and iterations, passes so far, every example; more iterations: a lower objective."""
    x, y = data()
    passes, parts, head = [0], batches(x, y), nn.Linear(10, 3)

    def counted() -> list[Batch]:
        passes[0] += 1
        return parts

    solver = Solver(head, counted, build_loss())
    for l2 in (0.1, 0.001):
        values = []
        for number, record in enumerate(solver.path(l2)):
            assert record.rates == {"l2": l2, "iterations": ITERATIONS[number]}
            assert (record.images, record.settled) == (len(x), True)
            assert record.step + 1 == solver.passes == passes[0]
            values.append(objective(head, x, y, l2)[0])
        assert len(values) == len(ITERATIONS)
        assert all(after <= before + 1e-6 for before, after in pairwise(values))
    assert not any(p.grad is not None for p in head.parameters())


# ---- data at the edge -------------------------------------------------------------------


def test_constant_features_leave_the_biases() -> None:
    """Each label's log-odds, and weights of no consequence."""
    x, y = data()
    _, head = solved(torch.full_like(x, 0.1), y, PENALTIES)[-1]
    share = y.double().mean(0)
    with torch.no_grad():
        found = head(torch.full((1, x.shape[1]), 0.1))[0]
    torch.testing.assert_close(found.double(), torch.logit(share), atol=1e-2, rtol=1e-2)


@pytest.mark.parametrize("value", [0.0, 1e-40, 0.1, 10.0])
def test_one_constant_feature_among_others(value: float) -> None:
    """A channel that is always 0, as ReLUs make them, or that only rounding moves: no weight."""
    x, y = data()
    x[:, 4] = value
    x[::2, 4] = float(np.nextafter(np.float32(value), np.float32(2 * value)))
    for record, head in solved(x, y, PENALTIES[::2]):
        assert_near(head, oracle(x, y, record.rates["l2"]))
        assert float(head.weight[:, 4].detach().abs().max()) == 0


@pytest.mark.parametrize("value", [0, 1, -1])
def test_a_label_of_one_kind(value: int) -> None:
    """No positives, no negatives, nothing known: finite, and the other labels as without it."""
    x, y = data()
    y[:, 1] = value
    path = solved(x, y, PENALTIES)
    for record, head in path:
        assert all(bool(p.isfinite().all()) for p in head.parameters())
        assert np.isfinite([record.loss, record.grad_norm]).all()
    with torch.no_grad():
        scores = path[0][1](x)[:, 1].sigmoid()
    if value >= 0:
        assert float((scores - value).abs().max()) < 0.02
        exact = oracle(x, y[:, [0, 2]], PENALTIES[2])
        found = path[2][1].weight[[0, 2]]
        torch.testing.assert_close(found, exact.weight, rtol=0, atol=5e-3)


def test_one_example() -> None:
    """Nothing varies; it ends, and is finite."""
    _, head = solved(torch.ones(1, 4), torch.tensor([[1, 0]], dtype=torch.int8), PENALTIES)[-1]
    assert all(bool(p.isfinite().all()) for p in head.parameters())


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("where", [slice(None), slice(3, 4)])
def test_features_that_are_not_finite_are_an_error_to_mend(bad: float, where: slice) -> None:
    """One of them, or all: weights that overflow in their precision make such."""
    x, y = data()
    x[where] = bad
    with pytest.raises(TrainingError, match=r"look at model.weights, or lower train.lr"):
        solved(x, y, PENALTIES)


def test_a_loss_that_overflows_is_an_error_to_mend() -> None:
    """A frozen run trains instead; fine-tuning has an optimizer already."""
    with pytest.raises(TrainingError, match=r"set .*: adamw, .* train.solve_head_first: false"):
        solved(*data(), PENALTIES, pos_weight=torch.full((3,), 1e38))


@pytest.mark.parametrize("mean", [0, 1, 10])
def test_features_that_are_all_but_one(mean: float) -> None:
    """2,048 of them in one direction, as from a backbone of random weights."""
    g = torch.Generator().manual_seed(0)
    direction, noise = torch.rand(1, 2048, generator=g), torch.randn(60, 2048, generator=g)
    one = torch.randn(60, 1, generator=g)
    y = (one > 0.3).to(torch.int8)
    record, head = solved(one @ direction + mean + 1e-4 * noise, y, PENALTIES[-1:])[0]
    assert record.loss < 0.1
    assert bool(head.weight.isfinite().all())


@pytest.mark.parametrize(
    "form",
    [
        {"name": "sce", "pos_weight": torch.tensor([0.0, 1e4, 1.0])},
        {"name": "asl", "gamma_neg": 10.0, "gamma_pos": 0.0, "clip": 0.5},
    ],
)
def test_a_loss_without_a_minimum_starts_at_the_log_odds(form: dict[str, object]) -> None:
    """Where it falls for ever among logits that all images share; weights are finite."""
    x, y = data()
    constant = feature_stats.compute_feature_stats(
        lambda: batches(x, y), torch.device("cpu"), build_loss(**form)
    ).constant
    positives, negatives = (y == 1).sum(0) + 1.0, (y == 0).sum(0) + 1.0
    assert constant[0].item() == pytest.approx((positives / negatives).log()[0].item(), abs=1e-4)
    for _, head in solved(x, y, PENALTIES[:2], **form):
        assert head.weight.isfinite().all()
