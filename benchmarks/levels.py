"""Features of one stage and of several, frozen: mAP by levels, by standardizing, by other levers.

python benchmarks/levels.py --train train.csv --val val.csv --images images --weights FILE

Heads are solved for as a run does it, on the whole of train and on subsets of it, and scored on
validation; some ways on the first subset of each size alone. All features come from one pass: means
and maxima of all four stages, of the picture and of its mirror image. Prints a table; writes
benchmarks/results/levels.json.
"""

import argparse
import json
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mlfinetune.config import Config, load_config
from mlfinetune.data.batches.feature_batches import FeatureLoader
from mlfinetune.data.batches.loader import Loader
from mlfinetune.data.images.transforms import TransformSpec
from mlfinetune.data.load import load_splits
from mlfinetune.data.manifest import Manifest, Splits
from mlfinetune.data.targets import LabelSpace, Targets
from mlfinetune.metrics.comparison import compare_tables
from mlfinetune.models.inference import FusedBackbone, fuse_for_cpu
from mlfinetune.models.tagger import Tagger
from mlfinetune.runtime.device import choose_precision, prepare_device
from mlfinetune.runtime.distributed import World
from mlfinetune.runtime.log import RunLog
from mlfinetune.runtime.torchrun import DistInfo
from mlfinetune.storage.atomic import write_atomic
from mlfinetune.training import feature_stats
from mlfinetune.training.build import build_model, build_training_loss
from mlfinetune.training.loop import (
    Candidate,
)
from mlfinetune.training.network import build_transform_spec
from mlfinetune.training.setup import TrainingSetup
from mlfinetune.training.solve import (
    solve_head,
)

CONFIG = Path(__file__).parents[1] / "configs" / "frozen.yaml"
RESULT = Path(__file__).parent / "results" / "levels.json"
BLOCKS = (3, 4, 6, 3)
"""Blocks of the four stages of a ResNet-50."""
WIDTHS = (256, 512, 1024, 2048)
AS_TRAINED, ANEW = "as trained", "BatchNorm estimated anew"
ANEW_SUBSET = ("1000", 0)
"""Size and seed of the subset that has features with BatchNorm's statistics estimated anew."""
BATCH_NORM_PICTURES = 320
"""Pictures of train that BatchNorm's statistics are estimated on anew."""


@dataclass(frozen=True)
class Extractor:
    """A folded backbone that gives means and maxima of all four stages."""

    tagger: Tagger
    net: FusedBackbone

    def embed(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) uint8 -> (B, 2, 3840): means, maxima, from early to late."""
        convolve, maxima = self.net._convolve, []

        def note(conv: Any, x: Tensor, other: Tensor | None) -> Tensor:
            y = convolve(conv, x, other)
            if other is not None:  # the end of a block; the next one may overwrite its map
                maxima.append(y.amax((2, 3)))
            return y

        x = (images.float() - self.tagger.mean) / self.tagger.std
        means = self.net.forward_with(x, note)
        ends = [sum(BLOCKS[: stage + 1]) - 1 for stage in range(4)]
        return torch.stack([means, torch.cat([maxima[end] for end in ends], 1)], 1)


def stream(
    manifest: Manifest, spec: TransformSpec, config: Config, rows: list[int] | None = None
) -> Iterator[tuple[list[int], Tensor]]:
    """Yield indices and pictures, as evaluation sees them."""
    loader = Loader(
        manifest, spec, batch_size=32, workers=1, train_seed=None, pin_memory=False, rows=rows
    )
    for number, batch in enumerate(loader.epoch()):
        batch.require_all(manifest.path)
        if number % 5 == 0:
            print(f"\r{len(batch.indices) * number} pictures", end="", flush=True)
        yield batch.indices.tolist(), batch.images
    print()


@torch.no_grad()
def estimate_batch_norm(
    tagger: Tagger, splits: Splits, spec: TransformSpec, config: Config
) -> None:
    """Replace BatchNorm's running statistics by those of pictures of train."""
    norms = [m for m in tagger.features.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean over all batches
        norm.train()
    # In random order: a batch of neighbors in the table varies less than the pictures do.
    rows = random.Random(0).sample(range(len(splits.train)), BATCH_NORM_PICTURES)
    for _, images in stream(splits.train, spec, config, rows):
        x = (images.float() - tagger.mean) / tagger.std
        tagger.features(x.contiguous(memory_format=torch.channels_last))
    for norm in norms:
        norm.eval()


@torch.inference_mode()
def compute_features(
    extractor: Extractor, splits: Splits, spec: TransformSpec, config: Config, rows: list[int]
) -> dict[str, Tensor]:
    """Return train (2, N, 2, 3840), pictures and their mirror images, and val (M, 2, 3840).

    Args:
        rows: of train; other rows stay NaN.
    """
    train = torch.full((2, len(splits.train), 2, sum(WIDTHS)), float("nan"), dtype=torch.bfloat16)
    val = torch.empty(len(splits.val), 2, sum(WIDTHS), dtype=torch.bfloat16)
    for indices, images in stream(splits.train, spec, config, rows):
        train[0, indices] = extractor.embed(images).bfloat16()
        train[1, indices] = extractor.embed(images.flip(-1)).bfloat16()
    for indices, images in stream(splits.val, spec, config):
        val[indices] = extractor.embed(images).bfloat16()
    return {"train": train, "val": val}


def read_features(asked: argparse.Namespace, config: Config, splits: Splits) -> dict[str, Any]:
    """Return the features with ImageNet's BatchNorm statistics and with those of train.

    The latter are of one subset alone. What is computed is kept in the file `asked.features`.
    """
    found: dict[str, Any] = {}
    if asked.features is not None and asked.features.exists():
        found = torch.load(asked.features, weights_only=True)
    device = prepare_device("cpu")
    dtype, _ = choose_precision("auto", device)
    spec = build_transform_spec(config)
    for name in (AS_TRAINED, ANEW):
        if name in found or (asked.without_anew and name == ANEW):
            continue
        tagger, _ = build_model(config, splits.train, spec, device)
        tagger.eval()
        rows = choose_rows(len(splits.train), "all", 0)
        if name == ANEW:
            rows = choose_rows(len(splits.train), *ANEW_SUBSET)
            estimate_batch_norm(tagger, splits, spec, config)
        net, how = fuse_for_cpu(tagger.features, dtype, spec.image_size)
        assert isinstance(net, FusedBackbone), how
        print(name, dtype, how, flush=True)
        found[name] = compute_features(Extractor(tagger, net), splits, spec, config, rows)
        if asked.features is not None:
            torch.save(found, asked.features)
    return found


def choose_rows(images: int, size: str, seed: int) -> list[int]:
    """Return the rows of a subset of train of `size` pictures, or of `all`."""
    rows = list(range(images))
    return rows if size == "all" else sorted(random.Random(seed).sample(rows, int(size)))


@dataclass(frozen=True)
class Way:
    """A way to make a head: which features, and how they are scaled.

    Attributes:
        levels: number of the last stages.
        scaled: "each feature" by its own deviation; "together", by one deviation, as before
            2026-11-30.
        maxima: maxima join the means.
        statistics: name of BatchNorm's statistics.
    """

    levels: int
    scaled: str = "each feature"
    maxima: bool = False
    statistics: str = AS_TRAINED

    @property
    def name(self) -> str:
        """Name in the result: `2 levels, together`."""
        parts = [f"{self.levels} levels" if self.levels > 1 else "1 level"]
        parts += [self.scaled] if self.scaled != "each feature" else []
        parts += ["maxima besides"] if self.maxima else []
        return ", ".join(parts + [self.statistics] * (self.statistics != AS_TRAINED))

    def select(self, features: Tensor) -> Tensor:
        """(..., 2, 3840) -> (..., F) float32."""
        kinds = [0, 1] if self.maxima else [0]
        return features[..., kinds, -sum(WIDTHS[-self.levels :]) :].flatten(-2).float()


FIRST_WAYS = (Way(1), Way(2), Way(1, "together"), Way(2, "together"))
WAYS = (
    *FIRST_WAYS,
    Way(3),
    Way(4),
    Way(2, maxima=True),
    Way(2, statistics=ANEW),
)


class Rows:
    """Features of one view for a FeatureLoader, without a copy where rows follow each other."""

    def __init__(self, features: Tensor) -> None:
        self._features = features

    def __getitem__(self, rows: list[int]) -> Tensor:
        if rows == list(range(rows[0], rows[0] + len(rows))):
            return self._features[rows[0] : rows[0] + len(rows)]
        return self._features[rows]

    def read_range(self, start: int, stop: int) -> Tensor:
        """Return the features of rows `start` to `stop`, (n, F) float32."""
        return self[list(range(start, stop))]


@contextmanager
def scaled_together(is_on: bool) -> Iterator[None]:
    """Context in which all features have one deviation, the root of their mean variance."""
    before = feature_stats._Moments.invert_deviation

    def invert(moments: feature_stats._Moments) -> Tensor:
        return (moments.squares.mean() / moments.images).rsqrt().expand_as(moments.mean)

    if is_on:
        feature_stats._Moments.invert_deviation = invert  # type: ignore[method-assign]
    try:
        yield
    finally:
        feature_stats._Moments.invert_deviation = before  # type: ignore[method-assign]


def keep_columns(manifest: Manifest, columns: list[int]) -> Manifest:
    """Return a manifest with some of its labels."""
    names = tuple(manifest.labels.names[column] for column in columns)
    targets = Targets.pack([manifest.targets[:][:, columns]], len(columns))
    return replace(manifest, targets=targets, labels=LabelSpace(names))


def cut_splits(splits: Splits, rows: list[int]) -> Splits:
    """Return some rows of train, and of all labels those that these rows have."""
    train = splits.train.take(rows)
    columns = np.flatnonzero((train.targets[:] == 1).any(0)).tolist()
    return replace(
        splits, train=keep_columns(train, columns), val=keep_columns(splits.val, columns)
    )


def solve(way: Way, splits: Splits, train: Tensor, val: Tensor, config: Config) -> Candidate:
    """Return the best head of a run on these features.

    Args:
        train: (2, N, 2, 3840), of the pictures and their mirror images.
        val: (M, 2, 3840).
    """
    device = torch.device("cpu")
    views = [Rows(view) for view in way.select(train)]
    spec = build_transform_spec(config)
    loss, _ = build_training_loss(config, splits.train, device)
    tagger = Tagger("resnet18", len(splits.train.labels), mean=spec.mean, std=spec.std)
    tagger.head = nn.Linear(way.select(val).shape[-1], len(splits.train.labels))
    setup = TrainingSetup(
        config,
        splits,
        spec,
        tagger,
        tagger.head,
        loss,
        FeatureLoader(splits.train, views, batch_size=256, train_seed=0),
        FeatureLoader(splits.val, [Rows(way.select(val))], batch_size=256, train_seed=None),
        device,
        torch.float32,
        World(device, DistInfo()),
    )
    best: Candidate | None = None
    with scaled_together(way.scaled == "together"):
        for candidate in solve_head(setup, RunLog(StringIO())):
            if best is None or candidate.beats(best):
                best = candidate
    assert best is not None
    return best


def compare(way: Way, best: Candidate, base: Candidate) -> dict[str, Any]:
    """Return a row of the result: mAP, and its difference from one level with its interval."""
    assert best.scores is not None
    assert base.scores is not None
    even = [0.5] * len(best.scores.labels)
    found = compare_tables(base.scores, best.scores, even, even).averages["mAP"]
    shown = " ".join(f"{number:+.4f}" for number in found.interval or ())
    print(f"  {way.name:<44} mAP {best.mAP:.4f}  {shown}  {best.name}", flush=True)
    return {
        "mAP": best.mAP,
        "solution": best.name,
        "difference": found.value,
        "interval": found.interval,
    }


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("train", "val", "images", "weights"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--features", type=Path, help="file that keeps the features")
    parser.add_argument("--without-anew", action="store_true", help="leave out BatchNorm anew")
    parser.add_argument("--only", choices=("300", "1000", "all"), help="pictures to train on")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of the subsets")
    asked = parser.parse_args()
    data = [f"data.{key}={getattr(asked, key).absolute()}" for key in ("train", "val", "images")]
    weights = f"model.weights={asked.weights.absolute()}"
    config = load_config(CONFIG, [*data, weights, "model.levels=4"])
    splits = load_splits(config, RunLog())
    features = read_features(asked, config, splits)
    for size in (asked.only,) if asked.only else ("300", "1000", "all"):
        for seed in [0] if size == "all" else asked.seeds:
            rows = choose_rows(len(splits.train), size, seed)
            print(f"{size} pictures, seed {seed}", flush=True)
            some = cut_splits(splits, rows)
            found, base = {}, None
            for way in WAYS if seed == 0 else FIRST_WAYS:
                is_computed = way.statistics == AS_TRAINED or (size, seed) == ANEW_SUBSET
                if way.statistics not in features or not is_computed:
                    continue
                kept = features[way.statistics]
                best = solve(way, some, kept["train"][:, rows], kept["val"], config)
                base = base or best
                found[way.name] = compare(way, best, base)
                write_result(size, seed, found)


def write_result(size: str, seed: int, found: dict[str, Any]) -> None:
    """Put the rows of one training set into the result; others stay."""
    result = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    sets = result.setdefault(size, {})
    sets[f"seed {seed}"] = {**sets.get(f"seed {seed}", {}), **found}
    write_atomic(RESULT, (json.dumps(result, indent=2, sort_keys=True) + "\n").encode())


if __name__ == "__main__":
    main()
