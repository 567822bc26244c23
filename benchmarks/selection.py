"""Optimism of the best of several candidates, chosen by the validation mAP that is then reported.

python benchmarks/selection.py [--train train.csv --val val.csv --images images --weights FILE]
    -> benchmarks/results/selection.json

Optimism: the chosen candidate's mAP, minus the mean mAP of that same candidate over many other
sets of as many images. What all candidates of a set share is left out of both, since it moves no
choice. `estimated` is the estimate of metrics/selection.py, from one set alone.

Simulated: 20 labels of 2 % to 30 % prevalence; C candidates whose scores share 80 % of their noise.
`equal`: all are equally good; `close`: their separations lie within 3 % of the mean; `apart`: 10 %.

Real, with the four paths: the 28 heads of an L-BFGS path on frozen features, solved for on half of
train; sets are drawn from all other pictures. Without the paths the former real numbers stay.
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from mlfinetune.data.targets import LabelSpace
from mlfinetune.metrics import selection
from mlfinetune.metrics.measure import measure
from mlfinetune.metrics.types import ScoreTable

SEED, LABELS, SHARED = 27_182, 20, 0.8
ROUNDS = {60: 200, 200: 120, 655: 60, 1000: 40}
ESTIMATED = {60: 16, 200: 10, 655: 6, 1000: 4}
CELLS = ((5, "equal"), (12, "equal"), (12, "close"), (12, "apart"), (30, "close"))
SPREADS = {"equal": 0.0, "close": 0.03, "apart": 0.1}
RESULT = Path(__file__).parent / "results" / "selection.json"

Draw = Callable[[], list[ScoreTable]]


def make_table(logits: NDArray[np.float32], targets: NDArray[np.int8]) -> ScoreTable:
    """Make a table of these scores; names do not matter."""
    labels = LabelSpace(tuple(str(label) for label in range(logits.shape[1])))
    return ScoreTable(("",) * len(logits), logits, targets, labels)


def simulate(rng: np.random.Generator, images: int, candidates: int, spread: float) -> Draw:
    """Return a function that draws images, and the scores that each candidate gives them."""
    prevalence = np.exp(rng.uniform(np.log(0.02), np.log(0.3), LABELS))
    separation = rng.uniform(0.8, 3, LABELS)
    quality = 1 + spread * np.linspace(-1, 1, candidates)

    def draw() -> list[ScoreTable]:
        truth = rng.random((images, LABELS)) < prevalence
        common = rng.normal(size=truth.shape) * np.sqrt(SHARED)
        scores = (
            separation * factor * truth + common + rng.normal(0, np.sqrt(1 - SHARED), truth.shape)
            for factor in quality
        )
        return [make_table(x.astype(np.float32), truth.astype(np.int8)) for x in scores]

    return draw


def study(draw: Draw, images: int) -> dict[str, float]:
    """Return the optimism, its standard error, and its estimates from single sets."""
    own: list[list[float]] = []
    guesses: list[float] = []
    for number in range(ROUNDS[images]):
        tables = draw()
        own.append([measure(table).averages["mAP"] or 0.0 for table in tables])
        if number < ESTIMATED[images]:
            pairs = zip(tables, own[-1], strict=True)
            trials = [selection.try_candidate(table, value) for table, value in pairs]
            optimism = selection.estimate_selection(trials).optimism
            assert optimism is not None
            guesses.append(optimism)
    luck = np.array(own) - np.mean(own, axis=0)
    luck -= luck.mean(axis=1, keepdims=True)
    chosen = luck[np.arange(len(own)), np.argmax(own, axis=1)]
    return {
        "optimism": round(float(chosen.mean()), 4),
        "standard_error": round(float(chosen.std(ddof=1) / np.sqrt(len(own))), 4),
        "estimated": round(float(np.mean(guesses)), 4),
        "scatter_of_estimates": round(float(np.std(guesses, ddof=1)), 4),
        "error_left": round(float(chosen.mean() - np.mean(guesses)), 4),
    }


def solve_heads(asked: argparse.Namespace) -> tuple[NDArray[np.float32], NDArray[np.int8]]:
    """Return (C, N, L) logits of the path's heads, and (N, L) targets, of pictures held out."""
    from head_path import read_features  # it reads stored features as a run would

    from mlfinetune.training.lbfgs import PENALTIES, Solver

    train, val, tagger, loss = read_features(asked)
    batches = list(train.sweep())
    features, targets = (torch.cat([getattr(b, k) for b in batches]) for k in ("images", "targets"))
    count = len(train.manifest)
    order = torch.from_numpy(np.random.default_rng(SEED).permutation(count))
    half, rest = order[: count // 2], order[count // 2 :]
    views = range(0, len(features), count)
    fitted = torch.cat([half + view for view in views])
    fit = replace(batches[0], images=features[fitted], targets=targets[fitted])
    held = [*val.sweep()]
    fresh = torch.cat([features[rest], *(batch.images for batch in held)]).float()
    truth = torch.cat([targets[rest], *(batch.targets for batch in held)])
    assert isinstance(tagger.head, torch.nn.Linear)
    solver, logits = Solver(tagger.head, lambda: [fit], loss), []
    for l2 in PENALTIES:
        for _ in solver.path(l2):
            with torch.no_grad():
                logits.append(tagger.head(fresh).numpy())
    return np.array(logits, np.float32), truth.numpy().astype(np.int8)


def measure_real(asked: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Return the optimism of sets of 60, 200 and 655 real pictures."""
    logits, targets = solve_heads(asked)
    rng, cells = np.random.default_rng(SEED), {}
    for images in (60, 200, 655):

        def draw(images: int = images) -> list[ScoreTable]:
            rows = rng.permutation(len(targets))[:images]
            return [make_table(own[rows], targets[rows]) for own in logits]

        cells[f"N = {images}"] = study(draw, images)
        print(images, cells[f"N = {images}"], flush=True)
    return cells


def main() -> None:
    """Measure, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("train", "val", "images", "weights"):
        parser.add_argument(f"--{name}", type=Path)
    asked = parser.parse_args()
    result = json.loads(RESULT.read_text()) if RESULT.is_file() else {}
    if asked.train:
        result["real, 28 heads"] = measure_real(asked)
    else:
        for images in (60, 200, 1000):
            for candidates, name in CELLS:
                rng = np.random.default_rng((SEED, images, candidates))
                draw = simulate(rng, images, candidates, SPREADS[name])
                cell = f"N = {images}, {candidates} {name}"
                result[cell] = study(draw, images)
                print(cell, result[cell], flush=True)
    RESULT.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
