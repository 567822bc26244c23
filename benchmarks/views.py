"""Views at evaluation (`eval.views`): what the mirror image and a second scale gain, and cost.

python benchmarks/views.py --train train.csv --val val.csv --images images --weights FILE

Frozen: the head is solved for on features of 300, 1,000 and all training pictures and of their
mirror images. Each way of scoring chooses its own best solution by the mAP of validation, and is
compared with the plain way on the same resamples (`mlfinetune compare`). Fine-tuned:
one run from the solved head; its last epoch is scored plainly and with mirror images.
Cost: pictures from file to logits, the two ways taking turns. Prints a table; writes
benchmarks/results/views.json. `--only` measures a part of it again.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from resize import few, names
from torch import Tensor, nn

from mlfinetune.config import Config, load_config
from mlfinetune.data.batches.feature_batches import FeatureLoader, Features
from mlfinetune.data.batches.features import (
    MIRROR_VIEW,
    PLAIN_VIEW,
    compute_missing,
    find_missing,
)
from mlfinetune.data.batches.loader import Loader
from mlfinetune.data.images.transforms import TransformSpec
from mlfinetune.data.load import load_splits
from mlfinetune.data.manifest import Manifest, Splits
from mlfinetune.metrics.comparison import compare_tables
from mlfinetune.metrics.evaluation import fit_decision_rule
from mlfinetune.metrics.measure import measure
from mlfinetune.metrics.types import EvalViews, ScoreTable
from mlfinetune.models.inference import prepare_for_inference, restore_tagger
from mlfinetune.models.scoring import average_views, score_manifest
from mlfinetune.models.tagger import Tagger
from mlfinetune.runs import checkpoint
from mlfinetune.runtime.device import choose_precision
from mlfinetune.runtime.log import RunLog
from mlfinetune.storage.cache import get_cache_folder
from mlfinetune.training.build import build_model, build_training_loss
from mlfinetune.training.features import build_extractor, open_feature_store
from mlfinetune.training.lbfgs import PENALTIES, Solver
from mlfinetune.training.network import build_transform_spec

ROUNDS, TIMED = 5, 64
LARGER = 288
"""Side of the second scale, in pixels."""
CPU = torch.device("cpu")
CONFIGS = Path(__file__).parents[1] / "configs"
RESULT = Path(__file__).parent / "results" / "views.json"
Logits = dict[str, Tensor]
"""Way of scoring -> (N, L) logits."""


def embed(
    config: Config, spec: TransformSpec, tagger: Tagger, examples: Manifest
) -> tuple[Features, Features]:
    """Return the features of pictures and of their mirror images; those not kept are computed."""
    dtype, _ = choose_precision("auto", CPU)
    prepared = prepare_for_inference(tagger, spec.image_size, CPU, dtype)
    maker = build_extractor(config, prepared, spec, CPU, dtype, workers=1)
    store = open_feature_store(
        get_cache_folder("features"), tagger, spec, config.model.backbone, maker
    )
    wanted = find_missing(store, examples, (PLAIN_VIEW, MIRROR_VIEW), maker)
    with RunLog().bar("features", sum(len(view.missing) for view in wanted)) as bar:
        for rows in compute_missing(store, examples, wanted, maker):
            bar.update(rows)
    plain, mirror = (Features(store, view, maker, CPU, 2**40) for view in wanted)
    return plain, mirror


def average(head: nn.Module, views: list[Tensor]) -> Logits:
    """Return the logits of each way to score, from the features of four views.

    Args:
        views: (N, F) of the picture, its mirror image, and both at the larger scale.
    """
    with torch.inference_mode():
        plain, mirror, larger, larger_mirror = (head(view) for view in views)
    p = (plain.double().sigmoid() + mirror.double().sigmoid()) / 2
    return {
        "plain": plain,
        "mirror": (plain + mirror) / 2,
        "mirror, mean of probabilities": p.logit(eps=1e-15).float(),
        f"{LARGER} px": larger,
        f"224 and {LARGER} px": (plain + larger) / 2,
        f"224 and {LARGER} px, mirror": (plain + mirror + larger + larger_mirror) / 4,
    }


def solve(
    config: Config, splits: Splits, tagger: Tagger, train: tuple[Features, Features]
) -> Iterator[None]:
    """Solve for the head at each penalty; the tagger's head holds each solution in turn."""
    assert isinstance(tagger.head, nn.Linear)
    loader = FeatureLoader(splits.train, train, batch_size=32, train_seed=None)
    loss, _ = build_training_loss(config, splits.train, CPU)
    solver = Solver(tagger.head, loader.sweep, loss)
    for l2 in PENALTIES:
        for _ in solver.path(l2):
            yield


def frozen(config: Config) -> dict[str, Any]:
    """Return way -> its mAP, and its gain over the plain way."""
    splits, spec = load_splits(config, RunLog()), build_transform_spec(config)
    tagger, _ = build_model(config, splits.train, spec, CPU)
    larger = replace(spec, image_size=LARGER)
    train = embed(config, spec, tagger, splits.train)
    val = [*embed(config, spec, tagger, splits.val), *embed(config, larger, tagger, splits.val)]
    rows = list(range(len(splits.val)))
    views = [features[rows] for features in val]
    best: dict[str, tuple[float, ScoreTable]] = {}
    for _ in solve(config, splits, tagger, train):
        for way, logits in average(tagger.head, views).items():
            table = tabulate(splits.val, logits)
            mean_ap = measure(table).averages["mAP"]
            assert mean_ap is not None
            if way not in best or mean_ap > best[way][0]:
                best[way] = mean_ap, table
    return compare({way: table for way, (_, table) in best.items()}, config)


def tabulate(val: Manifest, logits: Tensor) -> ScoreTable:
    """Return the table of logits that are in the manifest's order."""
    return ScoreTable(val.names, logits.numpy(), val.targets[:], val.labels, groups=val.groups)


def compare(tables: dict[str, ScoreTable], config: Config) -> dict[str, Any]:
    """Return way -> mAP, macro F1, and their differences to the plain way with intervals."""
    found: dict[str, Any] = {}
    limits = {way: fit_decision_rule(config.eval, t).thresholds for way, t in tables.items()}
    for way, table in tables.items():
        result = compare_tables(tables["plain"], table, limits["plain"], limits[way])
        mean_ap, f1 = (result.averages[name] for name in ("mAP", "macro_F1"))
        found[way] = {"mAP": mean_ap.b, "gain": mean_ap.value, "interval": mean_ap.interval}
        found[way] |= {"F1 gain": f1.value, "F1 interval": f1.interval}
        low, high = mean_ap.interval or (0, 0)
        print(f"  {way:<30} mAP {mean_ap.b:.4f}  {mean_ap.value:+.4f} ({low:+.4f} to {high:+.4f})")
    sys.stdout.flush()
    return found


def finetuned(data: list[str], epochs: int, folder: Path) -> dict[str, Any]:
    """Fine-tune; return way -> mAP of the last checkpoint, and its gain."""
    run = folder / "tuned"
    settings = [f"train.epochs={epochs}", "train.early_stopping=null", "-o", str(run)]
    command = [sys.executable, "-m", "mlfinetune", "train", str(CONFIGS / "finetune.yaml")]
    subprocess.run([*command, *data, *settings], check=True, stdout=subprocess.DEVNULL)
    config = load_config(CONFIGS / "finetune.yaml", data)
    val = load_splits(config, None).val
    return compare({way: score(run, val, way) for way in ("plain", "mirror")}, config)


def score(run: Path, val: Manifest, views: EvalViews) -> ScoreTable:
    """Return the scores of a run's last checkpoint."""
    content = checkpoint.load(run / "last.safetensors")
    about = (content.backbone, content.levels, len(content.labels))
    tagger = restore_tagger(*about, content.weights, content.transform, CPU, run)
    dtype, _ = choose_precision("auto", CPU)
    tagger, _ = prepare_for_inference(tagger, content.transform.image_size, CPU, dtype)
    batches = load(val, content.transform).epoch()
    return score_manifest(average_views(tagger, views), batches, val, CPU, dtype)


def load(examples: Manifest, spec: TransformSpec) -> Loader:
    """Return the loader that evaluation uses on a CPU of two cores."""
    return Loader(examples, spec, batch_size=16, workers=0, train_seed=None, pin_memory=False)


def measure_cost(config: Config) -> dict[str, float]:
    """Return images/s from file to logits by way, medians of rounds that take turns."""
    splits, spec = load_splits(config, None), build_transform_spec(config)
    dtype, _ = choose_precision("auto", CPU)
    tagger, _ = build_model(config, splits.train, spec, CPU)
    tagger, _ = prepare_for_inference(tagger, spec.image_size, CPU, dtype)
    few_pictures = splits.val.take(list(range(0, len(splits.val), len(splits.val) // TIMED)))
    few_pictures = few_pictures.take(list(range(min(TIMED, len(few_pictures)))))
    ways: tuple[EvalViews, ...] = ("plain", "mirror")
    rates: dict[str, list[float]] = {way: [] for way in ways}
    for number in range(ROUNDS + 1):
        for way in ways:
            start = time.perf_counter()
            net = average_views(tagger, way)
            score_manifest(net, load(few_pictures, spec).epoch(), few_pictures, CPU, dtype)
            if number:  # the first round warms up
                rates[way].append(len(few_pictures) / (time.perf_counter() - start))
    found = {way: statistics.median(values) for way, values in rates.items()}
    pairs = zip(rates["mirror"], rates["plain"], strict=True)
    found["mirror / plain"] = statistics.median(mirror / plain for mirror, plain in pairs)
    print("images/s: " + ", ".join(f"{way} {rate:.2f}" for way, rate in found.items()), flush=True)
    return found


def choose_rows(
    asked: argparse.Namespace, rows: int | None = None, folder: Path = Path()
) -> list[str]:
    """Return the overrides for all or some rows of the training table, and for their labels."""
    train = asked.train.absolute() if rows is None else few(asked.train, rows, folder)
    unseen = sorted(names(asked.val) - names(train))
    return [
        f"data.train={train}",
        f"data.val={asked.val.absolute()}",
        f"data.images={asked.images.absolute()}",
        f"data.ignore_labels={json.dumps(unseen)}",
        f"model.weights={asked.weights.absolute()}",
    ]


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("train", "val", "images", "weights"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=300, help="to fine-tune on")
    parser.add_argument("--epochs", type=int, default=2, help="of fine-tuning")
    parser.add_argument("--only", choices=("frozen", "cost", "finetuned"))
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        if asked.only in (None, "frozen"):
            for rows in (300, 1000, None):
                folder = Path(name) / str(rows)
                folder.mkdir()
                config = load_config(CONFIGS / "frozen.yaml", choose_rows(asked, rows, folder))
                print(f"frozen, {rows or 'all'} training pictures")
                keep(f"frozen, {rows or 'all'}", frozen(config))
        if asked.only in (None, "cost"):
            keep("images/s", measure_cost(load_config(CONFIGS / "frozen.yaml", choose_rows(asked))))
        if asked.only in (None, "finetuned"):
            print(f"fine-tuned for {asked.epochs} epochs on {asked.rows} pictures")
            data = choose_rows(asked, asked.rows, Path(name))
            found = finetuned(data, asked.epochs, Path(name))
            keep("fine-tuned", {"rows": asked.rows, "epochs": asked.epochs, **found})


def keep(name: str, found: Any) -> None:
    """Write one part of the result; the others stay."""
    result = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    RESULT.write_text(json.dumps({**result, name: found}, indent=2) + "\n")


if __name__ == "__main__":
    main()
