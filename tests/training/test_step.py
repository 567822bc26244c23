"""Training steps on a small real network."""

from collections.abc import Iterator

import pytest
import torch
from torch import nn

from mlfinetune.data.batches.batch import Batch, Failure
from mlfinetune.errors import DataError, TrainingError
from mlfinetune.loss import build_loss
from mlfinetune.training.records import Position
from mlfinetune.training.step import StepOptions, fit, train_step

CPU = torch.device("cpu")


class Linear(nn.Module):
    """Mean colour -> logits: no BatchNorm, so that pieces of a batch are exact."""

    def __init__(self, labels: int) -> None:
        super().__init__()
        self.layer = nn.Linear(3, labels)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.layer(images.float().mean((2, 3)) / 255)


def settings(accumulate: int = 1, clip: float | None = None, skip: bool = False) -> StepOptions:
    return StepOptions(CPU, torch.float32, accumulate, clip, skip)


def batch(n: int = 7, labels: int = 4, seed: int = 0) -> Batch:
    """Return random pictures; a third of the targets is unknown, unevenly over the rows."""
    g = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (n, 3, 8, 8), dtype=torch.uint8, generator=g)
    targets = torch.randint(-1, 2, (n, labels), generator=g).to(torch.int8)
    targets[0] = -1
    return Batch(images, targets, torch.arange(n))


def model_and_optimizer(lr: float = 0.5) -> tuple[Linear, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = Linear(4)
    groups = [{"params": list(model.parameters()), "initial_lr": lr, "lr": lr}]
    return model, torch.optim.SGD(groups)


@pytest.mark.parametrize("pieces", [2, 3, 4, 7, 100])
def test_accumulation_changes_nothing(pieces: int) -> None:
    """A batch in unequal pieces with unevenly known targets gives the step of the whole."""
    results = []
    for accumulate in (1, pieces):
        model, optimizer = model_and_optimizer()
        numbers = train_step(model, batch(), build_loss(), optimizer, settings(accumulate))
        results.append((numbers, model.layer.weight.detach().clone()))
    torch.testing.assert_close(results[0], results[1], rtol=1e-5, atol=1e-7)


def test_a_step_is_the_gradient_of_the_mean_over_known_targets() -> None:
    """One SGD step against autograd of torch's own loss on the known entries."""
    model, optimizer = model_and_optimizer(lr=0.5)
    b, before = batch(), model.layer.weight.detach().clone()
    known = b.targets >= 0
    reference = nn.functional.binary_cross_entropy_with_logits(
        model(b.images)[known], b.targets[known].float()
    )
    (gradient,) = torch.autograd.grad(reference, [model.layer.weight])
    numbers = train_step(model, b, build_loss(), optimizer, settings())
    assert numbers[0].item() == pytest.approx(reference.item(), rel=1e-6)
    torch.testing.assert_close(model.layer.weight.detach(), before - 0.5 * gradient)


def test_clipping_bounds_the_step() -> None:
    """The gradient's norm is reported before clipping, and the step taken is shorter."""
    model, optimizer = model_and_optimizer(lr=1.0)
    before = [p.detach().clone() for p in model.parameters()]
    numbers = train_step(model, batch(), build_loss(), optimizer, settings(clip=1e-3))
    moved = torch.stack(
        [(p.detach() - q).norm() for p, q in zip(model.parameters(), before, strict=True)]
    ).norm()
    assert numbers[1] > 1e-2
    assert moved.item() == pytest.approx(1e-3, rel=1e-3)


def test_fit_yields_every_step_and_marks_the_last_of_an_epoch() -> None:
    """Two epochs of three batches: six records, in order, with the scheduled rates."""
    model, optimizer = model_and_optimizer(lr=2.0)
    batches = [batch(seed=b) for b in range(6)]
    records = list(
        fit(model, batches, 3, build_loss(), optimizer, lambda s: 1 / (s + 1), settings(), str)
    )
    assert [(r.epoch, r.step) for r in records] == [(0, 0), (0, 1), (0, 2), (1, 3), (1, 4), (1, 5)]
    assert [r.settled for r in records] == [False, False, True] * 2
    assert [r.rates["lr"] for r in records] == [2.0 / (s + 1) for s in range(6)]
    assert {r.images for r in records} == {7}


def test_a_loss_that_is_not_finite_stops_with_step_and_files() -> None:
    """The message names the step and the pictures of that batch."""
    model, optimizer = model_and_optimizer()

    def batches() -> Iterator[Batch]:
        yield batch()
        with torch.no_grad():
            model.layer.weight.fill_(float("nan"))
        yield batch()
        yield batch()

    records = fit(
        model, batches(), 3, build_loss(), optimizer, lambda s: 1.0, settings(), "{}.jpg".format
    )
    assert next(records).step == 0
    with pytest.raises(TrainingError, match=r"step 1 of epoch 1(.|\n)*3\.jpg"):
        list(records)


def test_a_gradient_that_is_not_finite_stops_too() -> None:
    """A finite loss with an infinite gradient is no step to go on from."""
    model, optimizer = model_and_optimizer()
    model.layer.weight.register_hook(lambda grad: grad * float("inf"))
    with pytest.raises(TrainingError, match="gradient norm"):
        list(fit(model, [batch()], 1, build_loss(), optimizer, lambda s: 1.0, settings(), str))


def test_an_unreadable_picture_stops_by_name() -> None:
    """Training never goes on without a picture, or with another in its place."""
    model, optimizer = model_and_optimizer()
    bad = Batch(*vars(batch()).values())
    bad = Batch(bad.images, bad.targets, bad.indices, (Failure(5, "cut short"),))
    with pytest.raises(DataError, match=r"5\.jpg: cut short"):
        list(
            fit(
                model, [bad], 1, build_loss(), optimizer, lambda s: 1.0, settings(), "{}.jpg".format
            )
        )


def test_a_batch_without_known_targets_is_no_nan() -> None:
    """All unknown: loss 0, no gradient."""
    model, optimizer = model_and_optimizer()
    b = batch()
    unknown = Batch(b.images, torch.full_like(b.targets, -1), b.indices)
    numbers = train_step(model, unknown, build_loss(), optimizer, settings(clip=1.0))
    assert numbers.tolist() == [0.0, 0.0, 0.0]
    assert all(p.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("where", ["features", "loss", "gradient"])
def test_a_skipped_step_leaves_everything_as_it_was(where: str) -> None:
    """Weights, optimizer and BatchNorm's statistics; the next step is as if it had not been."""
    torch.manual_seed(0)
    model = nn.Sequential(Linear(4), nn.BatchNorm1d(4))
    groups = [{"params": list(model.parameters()), "initial_lr": 0.5, "lr": 0.5}]
    optimizer = torch.optim.AdamW(groups)
    odd, real = [False], build_loss()

    def spoilt(values: torch.Tensor) -> torch.Tensor:
        return values * float("nan") if odd[0] else values

    def loss(logits: torch.Tensor, targets: torch.Tensor, **rest: object) -> torch.Tensor:
        value: torch.Tensor = real(logits, targets, **rest)
        return spoilt(value) if where == "loss" else value

    if where == "features":
        model[0].register_forward_hook(lambda module, images, out: spoilt(out))
    if where == "gradient":
        model[0].layer.weight.register_hook(spoilt)
    skip = settings(clip=1.0, skip=True)
    train_step(model, batch(), loss, optimizer, skip)
    before = [x.clone() for x in (*model.parameters(), *model.buffers())]
    state = [x.clone() for one in optimizer.state.values() for x in one.values()]
    odd[0] = True
    assert not train_step(model, batch(seed=1), loss, optimizer, skip).isfinite().all()
    assert all(map(torch.equal, before, (*model.parameters(), *model.buffers())))
    after = [x for one in optimizer.state.values() for x in one.values()]
    assert all(map(torch.equal, state, after))


def test_a_skipped_step_is_said_with_its_pictures() -> None:
    """A record of it, and training goes on."""
    model, optimizer = model_and_optimizer()
    model.layer.weight.register_hook(lambda grad: grad * (float("inf") if bad else 1.0))
    records, bad = [], False
    batches = iter([batch(), batch(), batch()])

    def fed() -> Iterator[Batch]:
        nonlocal bad
        for number, one in enumerate(batches):
            bad = number == 1
            yield one

    loss, name = build_loss(), "{}.jpg".format
    records = list(fit(model, fed(), 3, loss, optimizer, lambda s: 1.0, settings(skip=True), name))
    assert [bool(record.skipped) for record in records] == [False, True, False]
    assert "step 1 of epoch 1" in records[1].skipped
    assert "3.jpg" in records[1].skipped
    at = Position()
    for record in records:
        at = at.after(record)
    assert (at.step, at.images, at.skipped) == (3, 14, 0)
    assert at.loss_sum == pytest.approx(7 * (records[0].loss + records[2].loss))
