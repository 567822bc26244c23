"""Labels for pictures that `mlfinetune next` chooses, against random ones: mAP by number of labels.

python benchmarks/next.py --train train.csv --val val.csv --images images --weights FILE
    -> benchmarks/results/next.json, docs/images/next.svg
python benchmarks/next.py --plot     -> docs/images/next.svg, from next.json
python benchmarks/next.py --large    -> benchmarks/results/next_large.json

300 pictures of train are labelled, drawn at random. A head is solved for on their kept features, as
a frozen run does it; by its scores 100 more are chosen, and get their labels from train.csv. That
is repeated until 800 are labelled. Ways to choose:

    next           metrics.next_choice, as the command calls it
    random         100 at random
    uncertainty    the greatest mean entropy of the labels' probabilities
    spread         the farthest from all labelled pictures, one after the other (k-center)
    no rarity      next, where all labels weigh alike
    no spread      next, where pictures may be alike: the greatest nearness and rarity

mAP is of the fixed validation set, which also chooses the penalty and fits the thresholds, in all
ways alike. Five seeds draw the first 300. Gains over random are means over the five larger numbers
of labels, paired by seed, with the standard error over seeds. The large choice is of 100,000
pictures, drawn at random: seconds of one core, and memory, of the choice alone.
"""

import argparse
import copy
import io
import json
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from mlfinetune.config import load_config
from mlfinetune.data.batches.feature_batches import FeatureLoader
from mlfinetune.data.load import load_splits
from mlfinetune.metrics.evaluation import fit_decision_rule
from mlfinetune.metrics.logits import sigmoid
from mlfinetune.metrics.next_choice import choose_pictures, weigh_labels
from mlfinetune.metrics.types import DecisionRule
from mlfinetune.runtime.device import prepare_device, read_peak_memory
from mlfinetune.runtime.distributed import World
from mlfinetune.runtime.log import RunLog
from mlfinetune.runtime.torchrun import DistInfo
from mlfinetune.training.loop import Candidate
from mlfinetune.training.setup import TrainingSetup, set_up, with_features
from mlfinetune.training.solve import solve_head

FIRST, MORE, ROUNDS, SEEDS = 300, 100, 5, range(5)
ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "configs" / "frozen.yaml"
RESULT = ROOT / "benchmarks" / "results" / "next.json"
LARGE = RESULT.with_name("next_large.json")
PLOT = ROOT / "docs" / "images" / "next.svg"

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Pool:
    """The pictures without labels, as a trained head sees them.

    Attributes:
        probabilities: (N, L), calibrated where the rule is.
        rule: thresholds and calibration.
        positives: (L,) labelled pictures of each label.
        features: (N, F).
        known: (K, F) features of the labelled ones.
        rng: of the seed.
    """

    probabilities: NDArray[np.float64]
    rule: DecisionRule
    positives: NDArray[np.int64]
    features: NDArray[np.float16]
    known: NDArray[np.float16]
    rng: np.random.Generator


def choose_next(pool: Pool) -> Rows:
    """Choose as the command does."""
    thresholds = np.array(pool.rule.thresholds)
    about = (pool.probabilities, thresholds, pool.positives, pool.features, pool.known)
    return np.array([pick.row for pick in choose_pictures(*about, MORE).picks])


def choose_random(pool: Pool) -> Rows:
    """Choose at random."""
    return pool.rng.permutation(len(pool.features))[:MORE]


def choose_uncertain(pool: Pool) -> Rows:
    """Choose the greatest mean entropy."""
    p = np.clip(pool.probabilities, 1e-12, 1 - 1e-12)
    entropy = -(p * np.log(p) + (1 - p) * np.log1p(-p)).mean(axis=1)
    return np.argsort(-entropy, kind="stable")[:MORE]


def choose_spread(pool: Pool) -> Rows:
    """Choose the picture that is least similar to all labelled and chosen ones, again and again."""
    new, known = (
        x / np.linalg.norm(x, axis=1, keepdims=True)
        for x in (pool.features.astype(np.float32), pool.known.astype(np.float32))
    )
    nearest, rows = (new @ known.T).max(axis=1), list[int]()
    for _ in range(MORE):
        rows.append(int(nearest.argmin()))
        nearest = np.maximum(nearest, new @ new[rows[-1]])
        nearest[rows] = np.inf
    return np.array(rows)


def choose_without_rarity(pool: Pool) -> Rows:
    """Choose as the command would if no label was rare."""
    return choose_next(replace(pool, positives=np.zeros_like(pool.positives)))


def choose_without_spread(pool: Pool) -> Rows:
    """Choose the greatest sums of squared weights, without a look at the features."""
    weights = weigh_labels(pool.probabilities, np.array(pool.rule.thresholds), pool.positives)
    return np.argsort(-np.square(weights).sum(axis=1), kind="stable")[:MORE]


WAYS: dict[str, Callable[[Pool], Rows]] = {
    "next": choose_next,
    "random": choose_random,
    "uncertainty": choose_uncertain,
    "spread": choose_spread,
    "no rarity": choose_without_rarity,
    "no spread": choose_without_spread,
}


def main() -> None:
    """Measure, print, write, plot."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("train", "val", "images", "weights"):
        parser.add_argument(f"--{name}", type=Path)
    parser.add_argument("--plot", action="store_true")
    parser.add_argument("--large", action="store_true")
    asked = parser.parse_args()
    if asked.large:
        LARGE.write_text(json.dumps(measure_large(), indent=2) + "\n")
        return
    if not asked.plot:
        measure(asked)
    PLOT.write_text(draw(json.loads(RESULT.read_text())))


def measure(asked: argparse.Namespace) -> None:
    """Simulate each way with each seed, in two processes; write the result after each."""
    data = [f"data.{key}={getattr(asked, key)}" for key in ("train", "val", "images")]
    overrides = [*data, f"model.weights={asked.weights}"]
    read_features(build_setup(overrides))  # once, before two processes would
    curves: dict[str, dict[int, list[float]]] = {way: {} for way in WAYS}
    jobs = [(way, seed) for way in WAYS for seed in SEEDS]
    with ProcessPoolExecutor(2) as processes:
        for (way, seed), curve in zip(
            jobs, processes.map(simulate, repeat(overrides), *zip(*jobs, strict=True)), strict=False
        ):
            curves[way][seed] = curve
            print(way, seed, *(f"{mean_ap:.4f}" for mean_ap in curve), flush=True)
            RESULT.write_text(json.dumps(summarize(curves), indent=2) + "\n")


def build_setup(overrides: list[str]) -> TrainingSetup:
    """Return the run on all of train."""
    torch.set_num_threads(1)
    config, log = load_config(CONFIG, overrides), RunLog(io.StringIO())
    return set_up(config, load_splits(config, log), World(prepare_device("cpu"), DistInfo()), log)


def simulate(overrides: list[str], way: str, seed: int) -> list[float]:
    """Return the validation mAP at each number of labels."""
    whole = build_setup(overrides)
    rng, found = np.random.default_rng(seed), list[float]()
    features, targets = read_features(whole), whole.splits.train.targets
    order = rng.permutation(len(features))
    labelled, rest = order[:FIRST], order[FIRST:]
    for turn in range(ROUNDS + 1):
        best, head = solve(whole, labelled)
        assert best.mAP is not None
        assert best.scores is not None
        found.append(best.mAP)
        if turn == ROUNDS:
            break
        rule = fit_decision_rule(whole.config.eval, best.scores)
        with torch.no_grad():
            probabilities = sigmoid(rule.calibrate(head(features[rest]).numpy()))
        positives = targets.take(labelled).counts()[0]
        new, known = (features[rows].half().numpy() for rows in (rest, labelled))
        rows = WAYS[way](Pool(probabilities, rule, positives, new, known, rng))
        labelled = np.concatenate([labelled, rest[rows]])
        rest = np.delete(rest, rows)
    return found


def read_features(setup: TrainingSetup) -> torch.Tensor:
    """Return the features of the pictures as they are, (N, F), of all of train."""
    loader = use_features(setup, np.arange(len(setup.splits.train))).train
    assert isinstance(loader, FeatureLoader)
    return loader._features[0].read_range(0, len(setup.splits.train))


def use_features(whole: TrainingSetup, rows: Rows) -> TrainingSetup:
    """Return the run on kept features, with these pictures of train alone."""
    splits = replace(whole.splits, train=whole.splits.train.take(rows.tolist()), contents=())
    setup = with_features(replace(whole, splits=splits), None, RunLog(io.StringIO()))
    assert setup is not None
    return setup


def solve(whole: TrainingSetup, rows: Rows) -> tuple[Candidate, nn.Module]:
    """Solve for the head on these pictures; return the best candidate, and its head."""
    setup = use_features(whole, rows)
    best, head = None, nn.Module()
    for candidate in solve_head(setup, RunLog(io.StringIO())):
        if best is None or candidate.beats(best):
            best, head = candidate, copy.deepcopy(setup.tagger.head)
    assert best is not None
    return best, head


def summarize(curves: dict[str, dict[int, list[float]]]) -> dict[str, Any]:
    """Return curves, means and gains over random, of the ways that have all seeds."""
    ways: dict[str, Any] = {}
    for way, by_seed in curves.items():
        rows = np.array([by_seed[seed] for seed in sorted(by_seed)])
        if len(rows) < len(SEEDS):
            continue
        ways[way] = {"mAP": rows.mean(axis=0).tolist(), "by_seed": rows.tolist()}
    if "random" in ways:
        for found in ways.values():
            gain = np.subtract(found["by_seed"], ways["random"]["by_seed"])[:, 1:].mean(axis=1)
            found["gain"] = float(gain.mean())
            found["standard_error"] = float(gain.std(ddof=1) / len(gain) ** 0.5)
    return {"labelled": [FIRST + MORE * turn for turn in range(ROUNDS + 1)], "ways": ways}


def measure_large(pictures: int = 100_000, known: int = 5_000, labels: int = 100) -> dict[str, Any]:
    """Choose 200 pictures among many, of the features of a ResNet-50 at two levels."""
    rng, width = np.random.default_rng(0), 3072
    features = np.empty((pictures + known, width), np.float16)
    for start in range(0, len(features), 1000):
        features[start : start + 1000] = rng.random((min(1000, len(features) - start), width)) ** 4
    p = rng.beta(0.2, 2, (pictures, labels))
    before, started = read_peak_memory(torch.device("cpu")), time.process_time()
    about = (p, np.full(labels, 0.3), rng.integers(0, 500, labels))
    picks = choose_pictures(*about, features[known:], features[:known], 200).picks
    return {
        "pictures": pictures,
        "labelled": known,
        "labels": labels,
        "width": width,
        "chosen": len(picks),
        "cpu_seconds": round(time.process_time() - started, 1),
        "GB_of_features": features.nbytes / 1e9,
        "GB_more_at_most": (read_peak_memory(torch.device("cpu")) - before) / 1e9,
    }


# ---- the plot ---------------------------------------------------------------------------

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 640, 390, 56, 110, 34, 44
COLORS = {"next": "#0b5cad", "random": "#596069", "uncertainty": "#b3541e", "spread": "#5a8a3a"}


def draw(result: dict[str, Any]) -> str:
    """Return the mAP of the main ways by the number of labels, as SVG."""
    labels, curves = result["labelled"], {way: result["ways"][way]["mAP"] for way in COLORS}
    low = min(map(min, curves.values())) // 0.05 * 0.05
    high = max(map(max, curves.values())) // 0.05 * 0.05 + 0.05

    def place(count: float, mean_ap: float) -> tuple[float, float]:
        across = (count - labels[0]) / (labels[-1] - labels[0])
        up = (mean_ap - low) / (high - low)
        x, y = (
            LEFT + across * (WIDTH - LEFT - RIGHT),
            HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM),
        )
        return round(x, 1), round(y, 1)

    parts = []
    for step in range(round((high - low) / 0.05) + 1):
        value = low + 0.05 * step
        x, y = place(labels[0], value)
        parts.append(f'<path class="grid" d="M{x} {y}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text x="{x - 8}" y="{y + 4}" text-anchor="end">{value:.2f}</text>')
    for count in labels:
        x, y = place(count, low)
        parts.append(f'<text x="{x}" y="{y + 18}" text-anchor="middle">{count}</text>')
    parts.append(f'<text x="{LEFT}" y="{HEIGHT - 6}">labelled pictures</text>')
    parts.append(f'<text x="{LEFT}" y="{TOP - 14}">mAP of validation, mean of 5 seeds</text>')
    ends = spread_out({way: place(labels[-1], curve[-1])[1] for way, curve in curves.items()})
    for way, curve in curves.items():
        points = [place(*pair) for pair in zip(labels, curve, strict=True)]
        path = "M" + "L".join(f"{x} {y}" for x, y in points)
        parts.append(f'<path class="line" stroke="{COLORS[way]}" d="{path}"/>')
        parts += [f'<circle fill="{COLORS[way]}" cx="{x}" cy="{y}" r="3.5"/>' for x, y in points]
        at = f'x="{WIDTH - RIGHT + 10}" y="{ends[way] + 4}"'
        parts.append(f'<text class="name" fill="{COLORS[way]}" {at}>{way}</text>')
    first, last = (f"{way} {curve[-1]:.3f}" for way, curve in list(curves.items())[:2])
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="Validation mAP by number of labelled pictures; with {labels[-1]}: {first}, '
        f'{last}">\n<style>text {{ font: 13px system-ui, sans-serif }} '
        f".name {{ font-weight: 600 }} .grid {{ stroke: #d8dbe0 }} "
        f".line {{ fill: none; stroke-width: 2.5 }}</style>\n"
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>\n'
        + "\n".join(parts)
        + "\n</svg>\n"
    )


def spread_out(heights: dict[str, float]) -> dict[str, float]:
    """Return heights of the names beside the lines' ends, so that none covers another."""
    placed, before = {}, 0.0
    for way, y in sorted(heights.items(), key=lambda pair: pair[1]):
        placed[way] = before = max(y, before + 16)
    return placed


if __name__ == "__main__":
    main()
