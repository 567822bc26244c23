"""Features and logits of any pictures, as training and predict compute them."""

from pathlib import Path

import numpy as np
import pytest
import torch

import mlfinetune
from mlfinetune.config import restore_config
from mlfinetune.metrics.logits import sigmoid
from mlfinetune.models.tagger import Tagger
from mlfinetune.predicting.scorer import load_network
from mlfinetune.runtime.log import RunLog
from mlfinetune.training.pool import FeaturePool


def open_pool(run: Path) -> FeaturePool:
    file = run / "best.safetensors"
    loaded, network = load_network(file, torch.device("cpu"))
    assert isinstance(network, Tagger)
    config = restore_config(loaded.config, file)
    return FeaturePool(loaded, network, config, torch.device("cpu"), RunLog())


def test_numbers_are_those_of_predict(exported: Path, tmp_path: Path) -> None:
    """Probabilities of mirror views and features are the tagger's; a bad file has a reason."""
    (tmp_path / "bad.jpg").write_text("no picture")
    paths = sorted(map(str, (exported / "images").iterdir()))
    paths.insert(5, str(tmp_path / "bad.jpg"))
    pool, tagger = open_pool(exported / "runs/pets"), mlfinetune.load(exported / "runs/pets")
    part = pool.read(paths, "pictures")
    assert list(part.faults) == [5]
    assert part.rows.tolist() == [row for row in range(len(paths)) if row != 5]
    features, logits = pool.tabulate(part)
    del paths[5]
    own = tagger.embed(paths)
    own /= np.linalg.norm(own, axis=1, keepdims=True)
    assert features == pytest.approx(own, abs=2e-3)
    p = sigmoid(tagger.backend.decision.calibrate(logits))
    assert p == pytest.approx(tagger.probabilities(paths), abs=1e-5)
