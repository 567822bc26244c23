"""Thresholds that are fitted to few images and measured on new ones, by simulation.

python benchmarks/thresholds.py  ->  benchmarks/results/thresholds.json

Each round draws 30 labels. A label has a prevalence from 0.5 % to 30 % (even in its logarithm), a
separation from 1 to 4 standard deviations, and a slope and a shift that make its logits
miscalibrated. Scores have one of five distributions:

normal, heavy (Student's t, 4 degrees), mixture (30 % of the positives are hard), skewed
(exponential noise), look_alike (10 % of the negatives lie 0.6 of the way to the positives).

The constants were chosen on other seeds and spreads of the first four; `look_alike` had no part in
that. Thresholds are fitted to N images. F1 and precision on new images are limits for infinitely
many images, computed from the distributions. `raw` is each label's F1-best threshold. `raw_shrunk`
moves that one toward the global one, as per_label moves its mean of near-best ones.
"""

import json
import platform
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from scipy.special import logit
from sklearn.metrics import precision_recall_curve

from mlfinetune.metrics import thresholds

ROUNDS, CROSS_ROUNDS, LABELS, SEED = 200, 50, 30, 31_416
SIZES = (200, 1000, 5000)
NOISE = {
    "normal": stats.norm,
    "heavy": stats.t(4),
    "mixture": stats.norm,
    "skewed": stats.expon(-1),
    "look_alike": stats.norm,
}
PRECISION = 0.9

Logits, Targets = NDArray[np.float32], NDArray[np.int8]
Places = tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class World:
    """Parameters of L labels, (L,) each; the visible logit is calibrated logit * slope + shift."""

    scores: str
    prevalence: NDArray[np.float64]
    separation: NDArray[np.float64]
    slope: NDArray[np.float64]
    shift: NDArray[np.float64]

    @classmethod
    def draw(cls, rng: np.random.Generator, scores: str, spread: float) -> "World":
        """Draw labels; log slope and shift have deviations of 0.3 and 1 times `spread`."""
        prevalence = np.exp(rng.uniform(np.log(0.005), np.log(0.3), LABELS))
        slope, shift = rng.normal(0, 0.3 * spread, LABELS), rng.normal(0, spread, LABELS)
        return cls(scores, prevalence, rng.uniform(1, 4, LABELS), np.exp(slope), shift)

    def places(self) -> tuple[Places, Places]:
        """Return (share, mean in separations) of the positives' and of the negatives' parts."""
        positives = ((0.7, 1.0), (0.3, 0.3)) if self.scores == "mixture" else ((1.0, 1.0),)
        negatives = ((0.9, 0.0), (0.1, 0.6)) if self.scores == "look_alike" else ((1.0, 0.0),)
        return positives, negatives

    def sample(self, rng: np.random.Generator, images: int) -> tuple[Logits, Targets]:
        """Draw (N, L) logits and targets."""
        shape = images, LABELS
        truth = rng.random(shape) < self.prevalence
        score = NOISE[self.scores].rvs(size=shape, random_state=rng)
        for kind, places in zip((truth, ~truth), self.places(), strict=True):
            first = rng.random(shape) < places[0][0]
            score += self.separation * np.where(first, places[0][1], places[-1][1]) * kind
        prior = logit(self.prevalence) - self.separation**2 / 2
        seen = self.slope * (self.separation * score + prior) + self.shift
        return seen.astype(np.float32), truth.astype(np.int8)

    def beyond(self, cuts: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return (L,) shares of all images: positives, and negatives, with logits above the cut."""
        prior = logit(self.prevalence) - self.separation**2 / 2
        score = ((cuts - self.shift) / self.slope - prior) / self.separation
        right, wrong = (
            sum(share * NOISE[self.scores].sf(score - at * self.separation) for share, at in places)
            for places in self.places()
        )
        return self.prevalence * right, (1 - self.prevalence) * wrong

    def f1(self, cuts: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the (L,) F1 of new images."""
        right, wrong = self.beyond(cuts)
        return 2 * right / (right + wrong + self.prevalence)


def macro_f1(said: NDArray[np.bool_], targets: Targets) -> float:
    """Return the mean F1 over the labels with a positive."""
    some = (targets == 1).any(axis=0)
    said, truth = said[:, some], targets[:, some] == 1
    return float(np.mean(2 * (said & truth).sum(0) / (said.sum(0) + truth.sum(0))))


def cuts_of(logits: Logits, targets: Targets) -> dict[str, NDArray[np.float64]]:
    """Return method -> (L,) cuts."""
    found = thresholds.fit(logits, targets, "per_label")
    ones = [at for at in range(LABELS) if targets[:, at].any()]
    raw = np.full(LABELS, found.common)
    for at in ones:  # the global threshold of an only label is its F1-best
        raw[at] = thresholds.fit(logits[:, [at]], targets[:, [at]], "global").cuts[0]
    pooled = thresholds.fit(logits.reshape(-1, 1), targets.reshape(-1, 1), "global")
    return {
        "fixed_0.5": np.zeros(LABELS),
        "global": np.full(LABELS, found.common),
        "global_micro": np.full(LABELS, pooled.cuts[0]),
        "raw": raw,
        "raw_shrunk": found.common + found.own * (raw - found.common),
        "per_label": found.cuts,
    }


def compare(scores: str, images: int) -> dict[str, object]:
    """Return the mean macro F1 of every method, and what per_label gains, with standard errors."""
    rng = np.random.default_rng((SEED, list(NOISE).index(scores), images))
    rows = []
    for _ in range(ROUNDS):
        world = World.draw(rng, scores, rng.uniform(0, 1))
        methods = cuts_of(*world.sample(rng, images))
        rows.append([world.f1(cuts).mean() for cuts in methods.values()])
    table, names = np.array(rows), list(methods)
    more = table[:, -1:] - table[:, :-1]
    error = more.std(axis=0, ddof=1) / np.sqrt(ROUNDS)
    return {
        "macro_F1": dict(zip(names, table.mean(axis=0).round(4).tolist(), strict=True)),
        "per_label_minus": {
            name: {"mean": round(float(mean), 4), "standard_error": round(float(se), 4)}
            for name, mean, se in zip(names[:-1], more.mean(axis=0), error, strict=True)
        },
    }


def honesty(images: int) -> dict[str, float]:
    """Return macro F1 of per_label on the fitting data, by cross-fitting, and on new images."""
    rng = np.random.default_rng((SEED, 8, images))
    rows = []
    for _ in range(CROSS_ROUNDS):
        world = World.draw(rng, "normal", 0.5)
        logits, targets = world.sample(rng, images)
        found = thresholds.fit(logits, targets, "per_label")
        crossed = thresholds.cross_fit(logits, targets, "per_label")
        known = targets.any(axis=0)  # the same labels in all three
        rows.append(
            [
                macro_f1(found.predict(logits), targets),
                macro_f1(crossed, targets),
                world.f1(found.cuts)[known].mean(),
            ]
        )
    means = np.mean(rows, axis=0).round(4).tolist()
    return dict(zip(("fitting_data", "cross_fitted", "fresh"), means, strict=True))


def lowest(logits: Logits, targets: Targets) -> NDArray[np.float64]:
    """Return the (L,) lowest scores that reach the wanted precision on the fitting data."""
    cuts = np.full(LABELS, thresholds.NEVER)
    for at in range(LABELS):
        if targets[:, at].any():
            precision, _, scores = precision_recall_curve(targets[:, at], logits[:, at])
            cuts[at] = scores[precision[:-1] >= PRECISION].min(initial=thresholds.NEVER)
    return cuts


def ours(logits: Logits, targets: Targets) -> NDArray[np.float64]:
    """Return the (L,) cuts of `precision`."""
    return thresholds.fit(logits, targets, "precision", precision=PRECISION).cuts


def promise(
    images: int, rule: Callable[[Logits, Targets], NDArray[np.float64]]
) -> dict[str, float]:
    """Return how well a wanted precision holds on new images, for labels that reached it."""
    rng = np.random.default_rng((SEED, 9, images))
    rows = []
    for _ in range(CROSS_ROUNDS):
        world = World.draw(rng, "normal", rng.uniform(0, 1))
        cuts = rule(*world.sample(rng, images))
        right, wrong = world.beyond(cuts)
        some = cuts < thresholds.NEVER
        precision = right[some] / (right + wrong)[some]
        kept = np.mean(precision >= PRECISION), np.mean(precision >= PRECISION - 0.1)
        recall = np.where(some, right / world.prevalence, 0)
        rows.append([some.mean(), precision.mean(), *kept, recall.mean()])
    names = ("labels_reached", "mean_precision", "kept", "kept_within_0.1", "mean_recall")
    return dict(zip(names, np.mean(rows, axis=0).round(3).tolist(), strict=True))


def main() -> None:
    """Measure, and write the result."""
    result = {
        "rounds": ROUNDS,
        "labels": LABELS,
        **{f"{s}, N = {n}": compare(s, n) for s in NOISE for n in SIZES},
        "macro_F1_of_per_label_by_data": {f"N = {n}": honesty(n) for n in SIZES},
        "precision_0.9": {
            f"N = {n}": {"lowest": promise(n, lowest), "ours": promise(n, ours)} for n in SIZES
        },
        "python": platform.python_version(),
        "machine": platform.machine(),
    }
    path = Path(__file__).parent / "results" / "thresholds.json"
    path.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
