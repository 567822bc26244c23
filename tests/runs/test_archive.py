"""Files that an earlier version wrote are still read: archive/ holds some of the version before the
rooms were moved, of a frozen resnet6_tiny on 24 drawn pictures."""

import io
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import prepare
from faults import tiny  # registers its network

from mlfinetune.config import load_config, restore_config
from mlfinetune.data.load import load_splits
from mlfinetune.metrics.types import DecisionRule
from mlfinetune.report.write import write_report
from mlfinetune.runs import checkpoint, directory
from mlfinetune.runs.results import read_metrics, read_scores
from mlfinetune.runtime.distributed import init_distributed
from mlfinetune.runtime.log import RunLog
from mlfinetune.runtime.signals import catch_signals
from mlfinetune.training.build import build_ema, build_training_optimizer
from mlfinetune.training.loop import (
    train_epochs,
)
from mlfinetune.training.resume import StateSaver, load_state, require_same_run
from mlfinetune.training.setup import set_up, with_features
from mlfinetune.training.start import resolve_config

ARCHIVE = Path(__file__).parent / "archive"
CONFIG = """\
data: {train: tags.csv}
model: {backbone: resnet6_tiny, weights: null, image_size: 32, freeze_backbone: true}
train: {epochs: 3, batch_size: 8, precision: float32, workers: 0, optimizer: adamw, ema: 0.9}
eval: {calibration: platt, review: [0.2, 0.8]}
"""


def test_a_checkpoint_is_read() -> None:
    """Labels, thresholds, calibration and config are those that were written."""
    content = checkpoint.load(ARCHIVE / directory.BEST)
    rule = content.decision
    assert isinstance(rule, DecisionRule)
    assert (rule.how, rule.calibration, rule.review) == ("per_label", "platt", (0.2, 0.8))
    assert content.views == "plain"  # no others were known
    assert len(rule.thresholds) == len(rule.slope) == len(content.labels) == 8
    assert content.weights["head.weight"].shape == (8, 128)
    config = restore_config(content.config, ARCHIVE / directory.BEST)
    assert (config.model.backbone, config.train.ema) == (tiny.resnet6_tiny.__name__, 0.9)


def test_results_are_read_and_make_a_page(tmp_path: Path) -> None:
    """Scores and metrics; the report of a folder is made again from them."""
    scores = read_scores(ARCHIVE)
    content, thresholds = read_metrics(ARCHIVE, scores.labels)
    assert scores.logits.shape == (len(scores.names), len(thresholds))
    assert np.isfinite(scores.logits).all()
    for name in (directory.SCORES, directory.HISTORY):
        shutil.copy(ARCHIVE / name, tmp_path)
    gone = {**json.loads((ARCHIVE / directory.METRICS).read_text()), "images_root": str(tmp_path)}
    (tmp_path / directory.METRICS).write_text(json.dumps(gone))
    log = io.StringIO()
    page = write_report(tmp_path, RunLog(log)).read_text()
    assert f"{content['mAP']:.3f}" in page
    missing, report = log.getvalue().splitlines()
    assert " pictures of the page not there, the first " in missing
    assert report.startswith("report: ")


def test_a_resume_state_is_resumed(tmp_path: Path) -> None:
    """In the middle of an epoch, with a moving average and one level, to the end."""
    folder, log = prepare(tmp_path), RunLog(io.StringIO())
    (folder / "tiny.yaml").write_text(CONFIG)
    # A run's own config names the defaults of its time.
    former = load_config(folder / "tiny.yaml").model_dump(mode="json")
    former["augment"]["crop_scale"], former["train"]["cache_views"] = [0.35, 1.0], 2
    (folder / directory.CONFIG).write_text(yaml.safe_dump(former))
    shutil.copy(ARCHIVE / directory.STATE, folder)
    config = load_config(folder / "tiny.yaml", [f"output={folder}"])
    splits = load_splits(config, log)
    config = resolve_config(config, splits, folder)
    with catch_signals() as heard, init_distributed("cpu") as world:
        setup = with_features(set_up(config, splits, world, log), folder / "features", log)
        assert setup is not None
        setup = replace(setup, ema=build_ema(config, setup.net, 1))
        state = load_state(folder, log)
        assert state is not None
        require_same_run(state, setup.config, splits)
        saver = StateSaver(folder, setup, build_training_optimizer(config, setup.tagger), heard)
        saver.restore(state)
        assert (saver.position.step, saver.position.images) == (5, 16)
        assert saver.best is not None
        assert (saver.best.name, saver.best.mAP) == ("epoch 1/3", pytest.approx(0.5538, abs=1e-4))
        weight = setup.tagger.head.state_dict()["weight"].clone()
        assert torch.equal(weight, state.content["net"]["weight"])
        epochs = list(train_epochs(setup, saver.optimizer, saver.position, saver.save_point, log))
    assert [epoch.name for epoch in epochs] == ["epoch 2/3", "epoch 3/3"]
    assert not torch.equal(setup.tagger.head.state_dict()["weight"], weight)
