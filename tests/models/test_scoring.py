"""Scoring: probabilities, the order of rows, every image once, evaluation mode."""

import copy
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Promise
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from scipy.special import expit
from torch import nn

from mlfinetune.data.batches.batch import Batch, Failure
from mlfinetune.data.manifest import Manifest
from mlfinetune.data.targets import LabelSpace, Targets
from mlfinetune.errors import DataError, TrainingError
from mlfinetune.metrics.logits import sigmoid
from mlfinetune.metrics.measure import measure
from mlfinetune.metrics.types import ScoreTable
from mlfinetune.models.scoring import average_views, compute_logits, score_manifest
from mlfinetune.models.tagger import Tagger

CPU = torch.device("cpu")
CORNERS = [0.0, -0.0, 1e-45, 16.7, 36.8, 88.8, 103.9, 709.8, 745.2, 1e4, np.inf]
LOGITS = st.floats(-1e4, 1e4, width=32) | st.sampled_from(CORNERS + [-x for x in CORNERS])


@pytest.fixture(scope="module")
def model() -> Tagger:
    """Return a resnet18 with random weights, whose BatchNorm has seen nothing."""
    torch.manual_seed(0)
    return Tagger("resnet18", 3, mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2))


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    """Return seven pictures of noise, each of its own brightness."""
    noise = torch.rand(7, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    return (noise * torch.linspace(30, 255, 7).view(7, 1, 1, 1)).to(torch.uint8)


def manifest(count: int) -> Manifest:
    """Return as many images, each with its own targets."""
    targets = (np.arange(count * 3).reshape(count, 3) % 3 - 1).astype(np.int8)
    names = tuple(f"{i}.jpg" for i in range(count))
    return Manifest(Path("/data"), names, Targets.pack([targets], 3), LabelSpace(("a", "b", "c")))


def batches(images: torch.Tensor, *parts: Sequence[int]) -> list[Batch]:
    """Return one batch a part, with the images that it names."""
    targets = torch.from_numpy(manifest(len(images)).targets[:])
    return [Batch(images[list(p)], targets[list(p)], torch.tensor(p)) for p in parts]


def scored(model: nn.Module, images: torch.Tensor, *parts: Sequence[int]) -> ScoreTable:
    """Return the table of all images, seen in these parts."""
    of = manifest(len(images))
    return score_manifest(model, batches(images, *parts), of, CPU, torch.float32)


def test_the_logits_of_a_picture_and_its_mirror_image_are_averaged(
    model: Tagger, images: torch.Tensor
) -> None:
    """The same bits for a mirrored picture, and as of mean features; plain is the model itself."""
    net, parts = average_views(model, "mirror"), ([0, 1, 2], [3, 4, 5, 6])
    both = [scored(model, x, *parts).logits for x in (images, images.flip(-1))]
    found = scored(net, images, *parts).logits
    np.testing.assert_allclose(found, (both[0] + both[1]) / 2, rtol=1e-5, atol=1e-6)
    assert np.array_equal(scored(net, images.flip(-1), *parts).logits, found)
    with torch.inference_mode():
        views = [model.embed(view[[0, 1, 2]]) for view in (images, images.flip(-1))]
        assert np.array_equal(model.head(torch.stack(views).mean(0)).numpy(), found[:3])
    assert not np.array_equal(*both)
    assert average_views(model, "plain") is model


@pytest.mark.faults
def test_numbers_do_not_depend_on_batches_or_their_order(promise: Promise) -> None:
    """Batches of 1 to 17 of 21 images, in any order: the same metrics, bit by bit."""
    pixels = torch.randint(0, 256, (21, 3, 4, 4), generator=torch.Generator().manual_seed(0))
    images = pixels.to(torch.uint8)
    found = []
    for size in range(1, 18):
        parts = [list(range(21))[start : start + size] for start in range(0, 21, size)]
        for shuffled in (parts, random.Random(size).sample(parts, len(parts))):
            found.append(measure(scored(Means(), images, *shuffled)))
    promise("P15", len(found), [table for table in found if table != found[0]])


class Means(nn.Module):
    """Mean colours for logits: row by row, so that no kernel rounds by the size of its batch."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return (B, 3, S, S) -> (B, 3)."""
        return images.double().sum((2, 3)).sub(2000).div(500).float()


# ---- probabilities ----------------------------------------------------------------------


@settings(max_examples=300, deadline=None)
@given(logits=arrays(np.float32, (4, 3), elements=LOGITS))
def test_probabilities_are_the_sigmoid_in_float64(logits: NDArray[np.float32]) -> None:
    """To the last digits of float64, at any logit, down to 1e-300."""
    p = sigmoid(logits)
    assert (p.dtype, p.shape) == (np.float64, logits.shape)
    np.testing.assert_allclose(p, expit(logits.astype(np.float64)), rtol=4e-16, atol=1e-300)
    assert ((p >= 0) & (p <= 1)).all()


def test_probabilities_rise_with_the_logits() -> None:
    """A greater logit has no smaller probability, all the way from -10,000 to 10,000."""
    logits = np.linspace(-1e4, 1e4, 200_001, dtype=np.float32)
    p = sigmoid(logits)
    assert (np.diff(p) >= 0).all()
    assert (p[0], p[100_000], p[-1]) == (0.0, 0.5, 1.0)
    np.testing.assert_allclose(p, expit(logits.astype(np.float64)), rtol=4e-16, atol=1e-300)


# ---- score ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "parts",
    [([0, 1, 2], [3, 4, 5], [6]), ([6, 2, 4], [0, 5], [3, 1]), ([6, 5, 4, 3, 2, 1, 0],)],
)
def test_rows_come_back_in_the_order_of_the_manifest(
    model: Tagger, images: torch.Tensor, parts: tuple[list[int], ...]
) -> None:
    """However the images were batched and shuffled, row i is image i."""
    table, of = scored(model, images, *parts), manifest(7)
    alone = np.concatenate([scored(model, images[i : i + 1], [0]).logits for i in range(7)])
    assert (table.names, table.labels) == (of.names, of.labels)
    np.testing.assert_array_equal(table.targets, of.targets[:])
    np.testing.assert_allclose(table.logits, alone, atol=1e-5)
    assert (np.abs(np.diff(alone, axis=0)).max(axis=1) > 1e-3).all()


def test_logits_are_those_of_the_model(model: Tagger, images: torch.Tensor) -> None:
    """float32 arrays of what the model says in evaluation mode."""
    with torch.no_grad():
        wanted = model.eval()(images).numpy()
    logits = compute_logits(model.train(), batches(images, range(7))[0], CPU, torch.float32)
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, wanted, atol=1e-6)


def test_bfloat16_gives_float32_logits(model: Tagger, images: torch.Tensor) -> None:
    """The narrow type stays inside; its logits are near, and not the same."""
    batch = batches(images, range(7))[0]
    exact = compute_logits(model, batch, CPU, torch.float32)
    narrow = compute_logits(model, batch, CPU, torch.bfloat16)
    assert narrow.dtype == np.float32
    assert 0 < np.abs(narrow - exact).max() < 0.1


def test_scoring_teaches_batchnorm_nothing(model: Tagger, images: torch.Tensor) -> None:
    """A model in training mode is put into evaluation mode, and no buffer moves."""
    before = {name: value.clone() for name, value in model.state_dict().items()}
    scored(model.train(), images, range(7))
    assert not any(module.training for module in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("count", "parts"),
    [
        (7, ([0, 1, 2], [3, 4, 5])),
        (7, ([0, 1, 2, 3], [3, 4, 5, 6])),
        (7, ([0, 1, 2], [3, 4, 5], [5])),
        (2, ([0],)),
        (1, ([0], [0])),
        (1, ([0, 0],)),
    ],
)
def test_every_image_is_scored_once(
    model: Tagger, images: torch.Tensor, count: int, parts: tuple[list[int], ...]
) -> None:
    """A missing or a repeated image is never passed over."""
    with pytest.raises((AssertionError, ValueError)):
        scored(model, images[:count], *parts)


def test_unreadable_pictures_are_named(model: Tagger, images: torch.Tensor) -> None:
    """The error holds the path and the reason, ten of them and a count."""
    first = batches(images, [0])[0]
    failures = tuple(Failure(i, f"reason {i}") for i in range(12))
    bad = Batch(first.images, first.targets, first.indices, failures)
    with pytest.raises(DataError) as caught:
        score_manifest(model, [bad], manifest(12), CPU, torch.float32)
    head, *shown, last = str(caught.value).splitlines()
    assert head == "12 unreadable in one batch; repair them or take them out"
    assert shown == [f"  /data/{i}.jpg: reason {i}" for i in range(10)]
    assert last == "  ... and 2 more"


def test_scores_that_are_not_finite_stop_by_name(model: Tagger, images: torch.Tensor) -> None:
    """Diverged weights are said to be so before a metric chokes on them."""
    broken = copy.deepcopy(model)
    broken.head.bias.data[0] = float("nan")
    with pytest.raises(TrainingError, match="scores of 7 pictures are not finite"):
        scored(broken, images, range(7))
