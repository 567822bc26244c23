"""Thresholds that are fitted to few images and measured on new ones, by simulation.

python benchmarks/thresholds.py        ->  benchmarks/results/thresholds.json
python benchmarks/thresholds.py few    ->  the parts on wanted precision and on few positives alone

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
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from scipy.special import betainc, logit
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
POSITIVES, SEPARATIONS = (1, 2, 3, 5, 10, 20, 50), {"easy": 3.5, "hard": 1.5}
WANTED, PROMISE_ROUNDS = (0.3, 0.6, 0.9, 0.95), 200

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
        shape = images, len(self.prevalence)
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


def draw_few(rng: np.random.Generator, scores: str, images: int) -> World:
    """Draw a label for each number of positives and each difficulty; a little miscalibrated."""
    positives = np.repeat(POSITIVES, len(SEPARATIONS))
    separation = np.tile(list(SEPARATIONS.values()), len(POSITIVES))
    slope, shift = np.exp(rng.normal(0, 0.15, len(positives))), rng.normal(0, 0.5, len(positives))
    return World(scores, positives / images, separation, slope, shift)


def lowest(logits: Logits, targets: Targets, wanted: float) -> NDArray[np.float64]:
    """Return the (L,) lowest scores that reach the wanted precision on the fitting data."""
    cuts = np.full(logits.shape[1], thresholds.NEVER)
    for at in np.flatnonzero(targets.any(axis=0)):
        precision, _, scores = precision_recall_curve(targets[:, at], logits[:, at])
        cuts[at] = scores[precision[:-1] >= wanted].min(initial=thresholds.NEVER)
    return cuts


def lowest_by(
    logits: Logits, targets: Targets, wanted: float, borrowed: float
) -> NDArray[np.float64]:
    """Return the (L,) lowest thresholds whose own counts show the wanted precision, in 80 %.

    With `borrowed`, so many predictions with the precision of all labels at the next positive's
    score are added: the rule of `precision`.
    """
    every, good = np.sort(logits.ravel()), np.sort(logits[targets == 1])
    cuts = np.full(logits.shape[1], thresholds.NEVER)
    for at in np.flatnonzero(targets.any(axis=0)):
        order = np.argsort(-logits[:, at], kind="stable")
        scores, right = logits[order, at].astype(float), np.cumsum(targets[order, at] == 1)
        middle = (scores + np.append(scores[1:], scores[-1] - 1)) / 2
        wrong = np.arange(1, len(order) + 1) - right
        if borrowed:
            next_up = good[np.minimum(good.searchsorted(middle), len(good) - 1)]
            hits = len(good) - good.searchsorted(next_up)
            share = (hits + 0.5) / (len(every) - every.searchsorted(next_up) + 1)
            chance = betainc(right + borrowed * share, wrong + borrowed * (1 - share), wanted)
        else:
            chance = np.where(right > 0, betainc(np.maximum(right, 1), wrong + 1, wanted), 1)
        if len(passed := np.flatnonzero(chance <= 1 - thresholds.CONFIDENCE)):
            cuts[at] = middle[passed[-1]]
    return cuts


RULES: dict[str, Callable[[Logits, Targets, float], NDArray[np.float64]]] = {
    "lowest": lowest,
    "borrowing": partial(lowest_by, borrowed=5.0),
    "lowest_shown": partial(lowest_by, borrowed=0.0),
    "ours": lambda x, t, wanted: thresholds.fit(x, t, "precision", precision=wanted).cuts,
}


def promise(scores: str, images: int, wanted: float) -> dict[str, dict[str, object]]:
    """Return rule -> how often a wanted precision holds on other images, and the recall it costs.

    kept: share of the labels given whose precision on other images is the wanted one; worst: the
    greatest share of samples, of any label, in which it was given with a lower precision.
    """
    rng = np.random.default_rng((SEED, 9, images, list(NOISE).index(scores)))
    rows: dict[str, list[NDArray[np.float64]]] = {name: [] for name in RULES}
    for _ in range(PROMISE_ROUNDS):
        world = draw_few(rng, scores, images)
        sample = world.sample(rng, images)
        for name, rule in RULES.items():
            cuts = rule(*sample, wanted)
            given = cuts < thresholds.NEVER
            right, wrong = world.beyond(np.where(given, cuts, 0))
            held = given & (right >= wanted * (right + wrong))
            rows[name].append(np.array([given, held, given * right / world.prevalence], float))
    return {name: sum_up(np.mean(table, axis=0)) for name, table in rows.items()}


def sum_up(means: NDArray[np.float64]) -> dict[str, object]:
    """Sum up (3, L) mean given, held and recall: of all labels, by positives, by difficulty."""
    cells = means.reshape(3, len(POSITIVES), len(SEPARATIONS))

    def rates(part: NDArray[np.float64]) -> dict[str, float | None]:
        given, held, recall = part.reshape(3, -1).mean(axis=1)
        kept = round(held / given, 3) if given else None
        return {"given": round(given, 3), "kept": kept, "recall": round(recall, 3)}

    return {
        **rates(cells),
        "worst": round(float((cells[0] - cells[1]).max()), 3),
        "positives": {str(p): rates(cells[:, at]) for at, p in enumerate(POSITIVES)},
        "difficulty": {name: rates(cells[:, :, at]) for at, name in enumerate(SEPARATIONS)},
    }


def honesty_of_few(images: int) -> dict[str, dict[str, float]]:
    """Return positives -> mean F1 of per_label on the fitting data, cross-fitted, on new images.

    Only samples in which the label has as many positives as the row says.
    """
    rng = np.random.default_rng((SEED, 10, images))
    rows: dict[int, list[tuple[float, ...]]] = {count: [] for count in (2, 3, 5, 10, 20)}
    for _ in range(PROMISE_ROUNDS):
        world = draw_few(rng, "normal", images)
        logits, targets = world.sample(rng, images)
        found = thresholds.fit(logits, targets, "per_label")
        fresh = world.f1(found.cuts)
        pair = found.predict(logits), thresholds.cross_fit(logits, targets, "per_label")
        for at, count in enumerate(targets.sum(axis=0).tolist()):
            if count in rows:
                rates = (macro_f1(said[:, [at]], targets[:, [at]]) for said in pair)
                rows[count].append((*rates, float(fresh[at])))
    names = ("fitting_data", "cross_fitted", "fresh")
    return {
        str(count): dict(zip(names, np.mean(table, axis=0).round(3).tolist(), strict=True))
        for count, table in rows.items()
    }


def measure_f1() -> dict[str, object]:
    """Return the results on F1."""
    return {
        "rounds": ROUNDS,
        "labels": LABELS,
        **{f"{s}, N = {n}": compare(s, n) for s in NOISE for n in SIZES},
        "macro_F1_of_per_label_by_data": {f"N = {n}": honesty(n) for n in SIZES},
        "python": platform.python_version(),
        "machine": platform.machine(),
    }


def main() -> None:
    """Measure, and write the result."""
    path = Path(__file__).parent / "results" / "thresholds.json"
    result = json.loads(path.read_text()) if "few" in sys.argv[1:] else measure_f1()
    result["wanted_precision"] = {
        f"{scores}, N = {images}, {wanted:g}": promise(scores, images, wanted)
        for scores in ("normal", "skewed")
        for images in (200, 2000)
        for wanted in WANTED
    }
    result["cross_fitted_F1_by_positives"] = {f"N = {n}": honesty_of_few(n) for n in (200, 2000)}
    path.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
