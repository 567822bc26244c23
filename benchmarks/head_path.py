"""The head of a frozen backbone by L-BFGS: mAP by strength of the penalty and by iterations.

python benchmarks/head_path.py --train train.csv --val val.csv --images images --weights FILE

mAP and macro F1 (at 0.5) are of validation. The iterations continue after the point where a run
would stop. Prints a table; writes benchmarks/results/head_path.json. Features are read from the
cache, or computed and added to it.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mlfinetune.config import load_config
from mlfinetune.data.batches.feature_batches import FeatureLoader
from mlfinetune.data.load import load_splits
from mlfinetune.metrics.measure import measure
from mlfinetune.models.inference import prepare_for_inference
from mlfinetune.models.scoring import score_manifest
from mlfinetune.models.tagger import Tagger
from mlfinetune.runtime.device import choose_precision, prepare_device, read_free_memory
from mlfinetune.runtime.distributed import World
from mlfinetune.runtime.log import RunLog
from mlfinetune.runtime.torchrun import DistInfo
from mlfinetune.storage.cache import get_cache_folder
from mlfinetune.training.build import build_model, build_training_loss
from mlfinetune.training.features import build_extractor, build_feature_loaders, open_feature_store
from mlfinetune.training.lbfgs import PENALTIES, Solver
from mlfinetune.training.network import build_transform_spec

STOPS = (1, 3, 10, 30, 100)
CONFIG = Path(__file__).parents[1] / "configs" / "frozen.yaml"
RESULT = Path(__file__).parent / "results" / "head_path.json"


def read_features(
    asked: argparse.Namespace,
) -> tuple[FeatureLoader, FeatureLoader, Tagger, Callable[..., Tensor]]:
    """Return the features of train and validation, a tagger whose head fits them, and the loss."""
    data = [f"data.{key}={getattr(asked, key)}" for key in ("train", "val", "images")]
    config, log = load_config(CONFIG, [*data, f"model.weights={asked.weights}"]), RunLog()
    device = prepare_device("cpu")
    dtype, _ = choose_precision("auto", device)
    splits, spec = load_splits(config, log), build_transform_spec(config)
    tagger, _ = build_model(config, splits.train, spec, device)
    prepared = prepare_for_inference(tagger, spec.image_size, device, dtype)
    maker = build_extractor(config, prepared, spec, device, dtype, workers=1)
    store = open_feature_store(get_cache_folder("features"), tagger, spec, "resnet50", maker)
    room = read_free_memory(device) // 2
    found = build_feature_loaders(
        config, splits, maker, store, World(device, DistInfo()), room, log
    )
    assert found is not None
    loss, _ = build_training_loss(config, splits.train, device)
    return *found, tagger, loss


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("train", "val", "images", "weights"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    asked = parser.parse_args()
    train, val, tagger, loss = read_features(asked)
    assert isinstance(tagger.head, nn.Linear)
    solver = Solver(tagger.head, train.sweep, loss)
    rows: list[dict[str, Any]] = []
    for l2 in PENALTIES:
        for record in solver.path(l2, STOPS):
            scores = score_manifest(
                tagger.head, val.epoch(), val.manifest, torch.device("cpu"), torch.float32
            )
            averages = measure(scores).averages
            best = {name: averages[name] for name in ("mAP", "macro_F1")}
            rows.append({**record.rates, "loss": record.loss, **best})
            values = "  ".join(f"{name} {value:.4f}" for name, value in best.items())
            print(f"l2 {l2:<6g} {record.rates['iterations']:>3g} iterations  {values}", flush=True)
    RESULT.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
