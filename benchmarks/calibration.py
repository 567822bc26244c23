"""Calibrations that are fitted to few images and measured on many new ones, by simulation.

python benchmarks/calibration.py  ->  benchmarks/results/calibration.json

The labels are those of benchmarks/thresholds.py, normal and skewed. All their logits are 1.3 times
too large, and then 0.5 too high. `platt_alone` fits each label's line with almost no penalty. The
numbers are log loss in nats, and the mean ECE of the labels, on 10,000 new images.
"""

import json
import platform
from dataclasses import replace
from pathlib import Path

import numpy as np
from scipy.special import expit
from thresholds import LABELS, SEED, SIZES, World

from mlfinetune.metrics import calibration

ROUNDS, FRESH = 10, 10_000
HOWS: tuple[calibration.CalibrationHow, ...] = ("none", "temperature", "platt")
SPREADS = {"alike": 0.1, "apart": 0.5, "far apart": 1.2}


def judge(
    found: calibration.Calibration, logits: np.ndarray, targets: np.ndarray
) -> tuple[float, float]:
    """Return the log loss, and the mean ECE of the labels."""
    seen = found.apply(logits).astype(np.float64)
    columns = zip(expit(seen).T, targets.T, strict=True)
    errors = [calibration.ece(p, truth) for p, truth in columns]
    loss = np.logaddexp(0, np.where(targets == 1, -seen, seen))[targets != -1].mean()
    return float(loss), float(np.mean(errors))


def alone(logits: np.ndarray, targets: np.ndarray) -> calibration.Calibration:
    """Fit Platt's lines with almost no penalty."""
    kept = calibration.SLOPE_SD, calibration.SHIFT_SD
    calibration.SLOPE_SD = calibration.SHIFT_SD = 30.0
    found = calibration.fit(logits, targets, "platt")
    calibration.SLOPE_SD, calibration.SHIFT_SD = kept
    return found


def compare(scores: str, spread: float, images: int) -> dict[str, dict[str, float]]:
    """Return method -> its numbers, with log loss minus that of platt and its standard error."""
    rng = np.random.default_rng((SEED, int(spread * 10), images))
    rows = []
    for _ in range(ROUNDS):
        world = World.draw(rng, scores, spread)
        world = replace(world, slope=world.slope * 1.3, shift=world.shift + 0.5)
        logits, targets = world.sample(rng, images)
        found = {how: calibration.fit(logits, targets, how) for how in HOWS}
        found["platt_alone"] = alone(logits, targets)
        fresh = world.sample(rng, FRESH)
        rows.append([judge(one, *fresh) for one in found.values()])
    table = np.array(rows, np.float64)
    more = table[:, :, 0] - table[:, [list(found).index("platt")], 0]
    return {
        name: {
            "log_loss": round(float(table[:, at, 0].mean()), 5),
            "ece": round(float(table[:, at, 1].mean()), 5),
            "log_loss_above_platt": round(float(more[:, at].mean()), 5),
            "standard_error": round(float(more[:, at].std(ddof=1) / np.sqrt(ROUNDS)), 5),
        }
        for at, name in enumerate(found)
    }


def main() -> None:
    """Measure, and write the result."""
    result = {
        "rounds": ROUNDS,
        "labels": LABELS,
        "fresh_images": FRESH,
        **{
            f"{scores}, {name}, N = {images}": compare(scores, spread, images)
            for scores in ("normal", "skewed")
            for name, spread in SPREADS.items()
            for images in SIZES
        },
        "python": platform.python_version(),
        "machine": platform.machine(),
    }
    path = Path(__file__).parent / "results" / "calibration.json"
    path.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
