"""BatchNorm's statistics before training: against the mean over the batches, by hand."""

import io
from pathlib import Path

import pytest
import torch
from faults.tiny import resnet6_tiny
from torch import nn

from mlfinetune.config import load_config
from mlfinetune.data.load import load_splits
from mlfinetune.runtime.distributed import World
from mlfinetune.runtime.log import RunLog
from mlfinetune.runtime.torchrun import DistInfo
from mlfinetune.training.batch_norm import MOST_BATCHES, estimate_batch_norm
from mlfinetune.training.setup import TrainingSetup, set_up

assert resnet6_tiny


def build(pictures: Path, *changes: str) -> TrainingSetup:
    """Return the setup of a run on the CPU, in float32."""
    asked = ("model.weights=null", "model.image_size=32", "train.precision=float32", *changes)
    config = load_config(pictures / "pets.yaml", asked)
    world = World(torch.device("cpu"), DistInfo())
    return set_up(config, load_splits(config, None), world, RunLog(io.StringIO()))


@pytest.mark.parametrize("most", [MOST_BATCHES, 2])
def test_statistics_are_the_means_over_the_batches(
    pictures: Path, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the first layer, whose input is the pictures as they are augmented."""
    monkeypatch.setattr("mlfinetune.training.batch_norm.MOST_BATCHES", most)
    setup = build(pictures, "model.backbone=resnet6_tiny", "train.batch_size=8")
    net = setup.tagger.features
    before = {name: value.clone() for name, value in net.named_parameters()}
    means, variances = [], []
    for batch in list(setup.train.epoch(0))[:most]:
        with torch.no_grad():
            x = net.get_submodule("conv1")(setup.tagger.normalize(batch.images))
        means.append(x.mean((0, 2, 3)))
        variances.append(x.var((0, 2, 3)))
    assert estimate_batch_norm(setup, RunLog(io.StringIO()))
    norm = net.get_submodule("bn1")
    assert isinstance(norm, nn.BatchNorm2d)
    torch.testing.assert_close(norm.running_mean, torch.stack(means).mean(0))
    torch.testing.assert_close(norm.running_var, torch.stack(variances).mean(0))
    assert norm.momentum == nn.BatchNorm2d(1).momentum
    torch.testing.assert_close(dict(net.named_parameters()), before)


def test_a_network_without_batch_norm_stays_as_it_is(pictures: Path) -> None:
    """No picture is read."""
    setup = build(pictures, "model.backbone=convnext_tiny", "model.levels=1")
    before = setup.tagger.state_dict()
    said = io.StringIO()
    assert not estimate_batch_norm(setup, RunLog(said))
    assert not said.getvalue()
    assert all(torch.equal(setup.tagger.state_dict()[key], before[key]) for key in before)
