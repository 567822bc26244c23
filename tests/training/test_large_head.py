"""A head of very many labels: chunks of its weight, stepped in the backward pass."""

import csv
import gc
import weakref
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY, Run
from PIL import Image
from torch import Tensor, nn

from mlfinetune.config import load_config
from mlfinetune.data.batches.batch import Batch
from mlfinetune.data.load import load_splits
from mlfinetune.loss import build_loss
from mlfinetune.models import tagger as models
from mlfinetune.models.tagger import ChunkedLinear, Tagger
from mlfinetune.training import build
from mlfinetune.training.build import chunks_head
from mlfinetune.training.optim import build_optimizer, fit_optimizer_state
from mlfinetune.training.step import StepOptions, train_step

LABELS, CHUNK_LABELS = 11, models.CHUNK_LABELS


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Set four labels a chunk, so that eleven labels make two chunks and a rest."""
    monkeypatch.setattr(models, "CHUNK_LABELS", 4)


def tagger(chunked: bool, frozen: bool = True) -> Tagger:
    """Return a ResNet-18 with the weights of one state dict, whatever its head."""
    torch.manual_seed(0)
    plain = Tagger("resnet18", LABELS, mean=(0.5,) * 3, std=(0.2,) * 3, frozen=frozen)
    if not chunked:
        return plain
    made = Tagger("resnet18", LABELS, mean=(0.5,) * 3, std=(0.2,) * 3, frozen=frozen, chunked=True)
    made.load_state_dict(plain.state_dict())
    return made


def batch(seed: int) -> Batch:
    g = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (6, 3, 32, 32), dtype=torch.uint8, generator=g)
    targets = torch.randint(-1, 2, (6, LABELS), generator=g).to(torch.int8)
    return Batch(images, targets, torch.arange(6))


def trained(chunked: bool, optimizer_name: str, frozen: bool) -> tuple[dict[str, Tensor], Tensor]:
    """Return the state and the losses of four steps, the rate falling."""
    made = tagger(chunked, frozen).train()
    optimizer = build_optimizer(made.parameter_groups(1e-3, 1e-2, 0.1), optimizer_name, 0.9)
    losses = []
    for step in range(4):
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] / (step + 1)
        settings = StepOptions(torch.device("cpu"), torch.float32, 1, None)
        losses.append(train_step(made, batch(step), build_loss(), optimizer, settings)[0])
    return made.state_dict(), torch.stack(losses)


@pytest.mark.parametrize(("name", "frozen"), [("sgd", True), ("sgd", False), ("adamw", True)])
def test_the_numbers_are_those_of_a_plain_head(name: str, frozen: bool) -> None:
    """Four steps with momentum, decay and a falling rate: the same losses and weights."""
    plain, plain_losses = trained(False, name, frozen)
    chunked, losses = trained(True, name, frozen)
    torch.testing.assert_close(losses, plain_losses, rtol=1e-5, atol=1e-6)
    assert sorted(chunked) == sorted(plain)
    for key in ("head.weight", "head.bias", "features.conv1.weight"):
        torch.testing.assert_close(chunked[key], plain[key], rtol=1e-4, atol=1e-5)
    moved = chunked["head.weight"] - tagger(False).state_dict()["head.weight"]
    assert (moved.abs().amax(1) > 1e-3).all()


@pytest.mark.parametrize("name", ["sgd", "adamw"])
@pytest.mark.parametrize("chunked", [True, False])
def test_the_state_of_several_processes_goes_on_in_one(name: str, chunked: bool) -> None:
    """Several keep the head whole, one keeps its chunks: two steps of each, in either order."""
    kinds = (chunked, not chunked), (False, False)
    ended = []
    for first, second in kinds:
        made: Tagger | None = None
        state: dict[str, Any] | None = None
        for kind, steps in ((first, (0, 1)), (second, (2, 3))):
            before, made = made, tagger(kind).train()
            optimizer = build_optimizer(made.parameter_groups(1e-3, 1e-2, 0.1), name, 0.9)
            if before is not None and state is not None:
                made.load_state_dict(before.state_dict())
                optimizer.load_state_dict(fit_optimizer_state(state, optimizer))
            settings = StepOptions(torch.device("cpu"), torch.float32, 1, None)
            for step in steps:
                train_step(made, batch(step), build_loss(), optimizer, settings)
            state = deepcopy(optimizer.state_dict())
        assert made is not None
        ended.append(made.state_dict())
    for key in ("head.weight", "head.bias"):
        torch.testing.assert_close(ended[0][key], ended[1][key], rtol=1e-4, atol=1e-5)


def test_no_more_than_one_chunk_has_a_gradient() -> None:
    """Each chunk is stepped, and its gradient dropped, before the next one's is there."""
    made, alive = tagger(True).train(), []
    assert isinstance(made.head, ChunkedLinear)
    chunks = list(made.head.chunks)
    assert [len(chunk) for chunk in chunks] == [4, 4, 3]
    for chunk in chunks:
        chunk.register_post_accumulate_grad_hook(
            lambda _: alive.append(sum(c.grad is not None for c in chunks))
        )
    optimizer = build_optimizer(made.parameter_groups(1e-3, 1e-2, 0.0), "adamw", 0.9)
    settings = StepOptions(torch.device("cpu"), torch.float32, 1, 1.0)
    train_step(made, batch(0), build_loss(), optimizer, settings)
    assert alive == [1, 1, 1]
    assert all(chunk.grad is None for chunk in chunks)


def test_state_dicts_are_those_of_a_linear_layer() -> None:
    """A checkpoint of one loads into the other, and computes the same."""
    chunked, features = ChunkedLinear(5, LABELS), torch.randn(3, 5)
    plain = nn.Linear(5, LABELS)
    assert {k: v.shape for k, v in chunked.state_dict().items()} == {
        k: v.shape for k, v in plain.state_dict().items()
    }
    plain.load_state_dict(chunked.state_dict())
    torch.testing.assert_close(plain(features), chunked(features))
    other = ChunkedLinear(5, LABELS)
    other.load_state_dict(plain.state_dict())
    assert torch.equal(other(features), chunked(features))


def test_weights_are_kaiming_normal() -> None:
    """Standard deviation sqrt(2 / inputs) in every chunk, bias 0."""
    torch.manual_seed(0)
    made = ChunkedLinear(2000, LABELS)
    assert all(
        abs(float(chunk.detach().std()) / (2 / 2000) ** 0.5 - 1) < 0.05 for chunk in made.chunks
    )
    assert not made.bias.any()


def test_the_optimizer_s_state_holds_every_chunk() -> None:
    """Momentum of chunks is in the state dict, and comes back from it."""
    made = tagger(True).train()
    settings = StepOptions(torch.device("cpu"), torch.float32, 1, None)
    optimizer = build_optimizer(made.parameter_groups(1e-3, 1e-2, 0.0), "sgd", 0.9)
    train_step(made, batch(0), build_loss(), optimizer, settings)
    state, weights = deepcopy(optimizer.state_dict()), deepcopy(made.state_dict())
    assert len(state["state"]) == 4  # three chunks and the bias
    train_step(made, batch(1), build_loss(), optimizer, settings)
    wanted = made.state_dict()["head.weight"].clone()
    made.load_state_dict(weights)
    optimizer.load_state_dict(state)
    train_step(made, batch(1), build_loss(), optimizer, settings)
    assert torch.equal(made.state_dict()["head.weight"], wanted)


def test_a_rate_of_0_moves_nothing_after_loading() -> None:
    """The chunks follow the groups that the optimizer has now."""
    made = tagger(True).train()
    settings = StepOptions(torch.device("cpu"), torch.float32, 1, None)
    optimizer = build_optimizer(made.parameter_groups(1e-3, 1e-2, 0.0), "sgd", 0.9)
    train_step(made, batch(0), build_loss(), optimizer, settings)
    optimizer.load_state_dict(deepcopy(optimizer.state_dict()))
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    before = made.state_dict()["head.weight"]
    train_step(made, batch(1), build_loss(), optimizer, settings)
    assert torch.equal(made.state_dict()["head.weight"], before)


def test_a_finished_run_leaves_no_weights_behind() -> None:
    """Model and optimizer go with their last reference."""
    made = tagger(True).train()
    optimizer = build_optimizer(made.parameter_groups(1e-3, 1e-2, 0.0), "adamw", 0.9)
    settings = StepOptions(torch.device("cpu"), torch.float32, 1, None)
    train_step(made, batch(0), build_loss(), optimizer, settings)
    assert isinstance(made.head, ChunkedLinear)
    alive = [weakref.ref(chunk) for chunk in made.head.chunks]
    del made, optimizer
    gc.collect()
    assert [reference() for reference in alive] == [None] * 3


def test_weights_of_another_size_are_named() -> None:
    """As nn.Linear does."""
    with pytest.raises(RuntimeError, match=r"weight: wanted 11 rows, found \(12, 5\)"):
        ChunkedLinear(5, LABELS).load_state_dict(nn.Linear(5, 12).state_dict(), strict=False)


def test_very_many_labels_train_and_predict(
    tmp_path: Path, cli: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From so many labels on; the log says what is different; the checkpoint is an ordinary one."""
    monkeypatch.setattr(models, "CHUNK_LABELS", CHUNK_LABELS)
    monkeypatch.setattr(build, "MANY_LABELS", 1100)  # each of 10,000 costs milliseconds in results
    with (tmp_path / "tags.csv").open("w") as file:
        rows = csv.writer(file)
        rows.writerow(["image", "labels", "split"])
        for n in range(20):
            Image.new("RGB", (32, 32), (12 * n, 255 - 12 * n, 99)).save(tmp_path / f"{n}.png")
            labels = [f"tag{k}" for k in range(n % 10, 1100, 10)]
            side, labels = ("train", labels) if n < 16 else ("val", labels[:10])
            rows.writerow([f"{n}.png", "|".join(labels), side])
    (tmp_path / "many.yaml").write_text(TINY)
    done = cli("train", "many.yaml", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "updated chunk by chunk in the backward pass" in done.stderr
    done = cli("predict", "0.png", "--top", "3", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    config = load_config(tmp_path / "many.yaml")
    train = load_splits(config, None).train
    assert chunks_head(config, train)
    assert not chunks_head(config, train, processes=2)
    pieces = load_config(tmp_path / "many.yaml", ["train.accumulate=2"])
    assert not chunks_head(pieces, train)
