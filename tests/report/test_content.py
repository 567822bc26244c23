"""The report's numbers and lists: scikit-learn's curves, and everything else by hand."""

import time
from string import ascii_lowercase

import numpy as np
import pytest
from report_evidence import evidence, plausible
from sklearn.metrics import (
    average_precision_score,
    precision_recall_curve,
    precision_recall_fscore_support,
)

from mlfinetune.report import build, list_suspect_rows, read_pictures, render
from mlfinetune.report.curves import POINTS, compute_by_threshold, compute_precision_recall


def tied(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return (K,) logits 1/4 apart, many of them tied, and targets."""
    rng = np.random.default_rng(seed)
    targets = (rng.random(count) < 0.3).astype(np.int8)
    targets[0] = 1
    return (rng.integers(-9, 9, count) / 4 + targets).astype(np.float32), targets


# ---- curves -----------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(10))
def test_the_curve_is_scikit_learns(seed: int) -> None:
    """Each point is one of its points, ties together; the steps' area is its average precision."""
    logits, targets = tied(40, seed)
    points = compute_precision_recall(logits, targets)
    precision, recall, _ = precision_recall_curve(targets, logits)
    theirs = set(zip(recall.round(12), precision.round(12), strict=True))
    assert {(round(r, 12), round(p, 12)) for r, p in points} <= theirs
    area = sum(p * (r - before) for (r, p), (before, _) in zip(points, [(0, 0), *points]))  # noqa: B905
    assert area == pytest.approx(average_precision_score(targets, logits), abs=1e-12)


def test_a_long_curve_is_thinned() -> None:
    """A curve keeps at most 60 points, the first and the last among them."""
    rng = np.random.default_rng(0)
    logits = rng.normal(size=5000).astype(np.float32)
    targets = (rng.random(5000) < 0.5).astype(np.int8)
    whole, thin = (
        compute_precision_recall(logits, targets, 10**6),
        compute_precision_recall(logits, targets),
    )
    assert len(whole) > 1000
    assert len(thin) == POINTS
    assert set(thin) <= set(whole)
    assert (thin[0], thin[-1]) == (whole[0], whole[-1])


def test_other_thresholds_are_scikit_learns() -> None:
    """Precision, recall and F1 at each threshold; no precision where nothing passes."""
    logits, targets = tied(60)
    points = compute_by_threshold(logits, targets, 0.123)
    assert 0.123 in [point.threshold for point in points]
    assert len(points) <= POINTS
    for point in points:
        passed = 1 / (1 + np.exp(-logits.astype(float))) >= point.threshold
        ours = (point.precision or 0.0, point.recall, point.F1)
        theirs = precision_recall_fscore_support(targets, passed, average="binary", zero_division=0)
        assert ours == pytest.approx(theirs[:3])
        assert (point.precision is None) == (not passed.any())


# ---- mistakes ---------------------------------------------------------------------------------


def test_the_lists_of_a_label_by_hand() -> None:
    """False positives and hits come highest first, false negatives lowest first, unknown never."""
    logits = [[3], [1], [2], [-1], [-2], [9], [-9]]
    report = build(evidence(logits, [[0], [0], [1], [1], [1], [-1], [-1]]))
    detail = report.labels[0].detail
    assert detail is not None
    lists = (detail.false_positives, detail.false_negatives, detail.hits)
    assert [[one.index for one in gallery.shown] for gallery in lists] == [[0, 1], [4, 3], [2]]
    assert [gallery.total for gallery in lists] == [2, 2, 1]
    assert detail.false_positives.shown[0].probability == pytest.approx(0.9526, abs=1e-4)
    assert (report.decisions.hits, report.decisions.false_positives) == (1, 2)


def test_a_threshold_counts_as_passed() -> None:
    """A score that equals the threshold is a hit, and one just below it is missed."""
    report = build(evidence([[1.0], [0.999]], [[1], [1]], thresholds=(1 / (1 + np.exp(-1.0)),)))
    assert (report.decisions.hits, report.decisions.false_negatives) == (1, 1)


def test_a_false_positive_shows_its_tags_and_a_miss_what_was_found() -> None:
    """Beside a picture stand the known labels, or the found ones by falling score."""
    report = build(evidence([[-1, 1, 2]], [[1, 0, 0]]))
    detail = {row.label: row.detail for row in report.labels}
    assert detail["b"].false_positives.shown[0].others == ("a",)
    assert detail["a"].false_negatives.shown[0].others == ("c", "b")


def test_missed_while_found_by_hand() -> None:
    """Counts pictures where A was there and missed while B was not there and found."""
    logits = [[-1, 1, 1], [-1, 1, -1], [-1, 1, 1], [1, -1, 1]]
    targets = [[1, 0, 0], [1, 0, 0], [1, -1, 1], [1, 1, 0]]
    report = build(evidence(logits, targets))
    pairs = [(one.label, one.found, one.count) for one in report.missed]
    assert pairs == [("a", "b", 2), ("a", "c", 1), ("b", "c", 1)]
    assert (report.matrix.rows, report.matrix.columns) == (("a", "b"), ("b", "c"))
    assert report.matrix.counts == ((2, 1), (0, 1))


def test_suspects_by_hand() -> None:
    """Missing tags first, the surest first; unknown targets and likely mistakes are not named."""
    logits = [[4], [3], [2], [0.1], [-5], [9], [-1], [2]]
    report = build(evidence(logits, [[0], [0], [1], [0], [1], [-1], [0], [1]]))
    assert [(one.index, one.given) for one in report.suspects] == [(0, 0), (1, 0), (4, 1)]
    assert report.suspects[0].why == "threshold 0.50, 3 tagged pictures, on average 0.59"


def test_a_rare_label_is_not_drowned() -> None:
    """Labels whose logits mean something else are ranked alike; a rank counts from 1 a kind."""
    rng = np.random.default_rng(0)
    targets = (rng.random((400, 2)) < [0.4, 0.05]).astype(np.int8)
    logits = rng.normal(0, 1, targets.shape) + 6 * (2 * targets - 1) - [0, 4]
    logits[:2] = [[1, -6], [-6, 1]]
    targets[:2] = 0
    shown = build(evidence(logits, targets, thresholds=(0.5, 0.1))).suspects
    assert [(one.index, one.label, one.rank) for one in shown[:2]] == [(1, "b", 1), (0, "a", 2)]


def test_suspects_as_rows() -> None:
    """The CSV has a header, and cells that a spreadsheet would run are inert."""
    report = build(evidence([[3], [1]], [[0], [1]], labels=("=1+1",), names=("-a.jpg", "b.jpg")))
    header, row = list_suspect_rows(report)
    assert header[:5] == ("image", "label", "given", "probability", "why")
    assert row[:4] == ("'-a.jpg", "'=1+1", "0", "0.952574")
    assert row[5:] == ("1", "")


def test_near_duplicates_with_different_tags() -> None:
    """They follow their suspect, each tag once; those without a suspect come last, unranked."""
    logits = [[4, -3], [3, -3], [-3, -3], [-4, 3], [-3, -2], [-3, 0], [-4, -5], [3, -3]]
    targets = [[0, 0], [1, 0], [0, 0], [0, 1], [0, 1], [0, -1], [0, 0], [1, 0]]
    report = build(evidence(logits, targets, near_duplicates=np.array([7, 7, 2, 3, 3, 3, 4, 4])))
    assert [one.pictures for one in report.torn] == [(0, 1), (6, 7)]
    rows = [(row[0][7:8], row[1], row[2], *row[5:]) for row in list_suspect_rows(report)]
    assert rows[1:] == [
        ("0", "a", "0", "1", "1"),
        ("1", "a", "1", "", "1"),
        ("4", "b", "1", "1", ""),
        ("6", "a", "0", "", "2"),
        ("7", "a", "1", "", "2"),
    ]
    assert "Near duplicates with different tags" in render(report)


def test_of_many_near_duplicates_few_are_listed() -> None:
    """The odd one, and the most doubted of those that agree."""
    logits = [[0], [3], [2], [-1], [3]]
    targets = [[0], [1], [1], [1], [1]]
    (group,) = build(evidence(logits, targets, near_duplicates=np.zeros(5, int))).torn
    assert group.pictures == (0, 3, 1, 2, 4)
    assert [(tag.index, tag.given, tag.why[-14:]) for tag in group.tags] == [
        (0, 0, "4 of 5 have it"),
        (3, 1, "4 of 5 have it"),
    ]


# ---- judgments ---------------------------------------------------------------------------------


def test_undefined_numbers_say_why() -> None:
    """Without known positives or negatives there is no AP, no curve, and a reason."""
    report = build(evidence([[1, 1], [2, 2], [3, 3]], [[0, 1], [0, 1], [-1, -1]]))
    a, b = sorted(report.labels, key=lambda row: row.label)
    assert (a.AP.value, a.AP.note, a.F1.value) == (None, "no known positive", None)
    assert (b.AP.value, b.AP.note, b.F1.value) == (None, "no known negative", 1.0)
    assert (a.unknown, a.verdict, b.verdict) == (1, "unmeasured", "unmeasured")
    assert a.detail is not None
    assert (a.detail.curve, a.detail.thresholds) == ((), ())
    assert report.headline[0].value is None
    assert "no label" in report.headline[0].note


@pytest.mark.parametrize(
    ("interval", "verdict"), [((0.7, 1), "good"), ((0.2, 0.69), "weak"), ((0.6, 0.8), "unsure")]
)
def test_the_interval_judges_a_label(interval: tuple[float, float], verdict: str) -> None:
    """Good where the whole interval reaches the bar, weak where none of it does."""
    report = build(evidence([[1], [0]], [[1], [0]], ap_intervals={"a": interval}))
    assert report.labels[0].verdict == verdict
    assert (report.labels[0].AP.low, report.labels[0].AP.high) == interval


def test_without_intervals_few_positives_are_not_judged() -> None:
    """Nine positives are too few, ten are enough."""
    nine, ten = ([[1]] * n + [[-1]] for n in (9, 10))
    targets = [[[1]] * n + [[0]] for n in (9, 10)]
    verdicts = [build(evidence(x, t)).labels[0].verdict for x, t in zip((nine, ten), targets)]  # noqa: B905
    assert verdicts == ["unsure", "good"]


def test_training_by_epoch() -> None:
    """Values that are not finite are left out, and a repeated epoch counts the last time."""
    history = [{"epoch": 1, "loss": 3}, {"epoch": 1, "loss": 2}, {"epoch": 2, "loss": float("nan")}]
    report = build(evidence([[1]], [[1]], history=history))
    assert [(one.name, one.points) for one in report.training] == [("loss", ((1, 2.0),))]


# ---- pictures -----------------------------------------------------------------------------------


def test_each_picture_is_read_once_within_the_budget() -> None:
    """Suspects come first; beyond the budget names stand alone, and no file is read."""
    report = build(plausible(60, tuple("abcdef")))
    read: list[str] = []

    def thumbnail(name: str, side: int) -> bytes:
        read.append(name)
        return b"123" * 100

    shown = read_pictures(report, thumbnail, budget=400 * 10)
    assert len(read) == len(set(read)) == 10
    assert read[0] == report.suspects[0].image
    assert sum(one.jpeg is not None for one in shown.pictures.values()) == 10
    assert list(shown.pictures) == list(report.pictures)


@pytest.mark.parametrize("budget", [0, 400 * 7, 400 * 10, 10**6])
def test_threads_read_the_same_pictures(budget: int) -> None:
    """In the same order, on any number of threads; beyond the budget only what was under way."""
    report, read = build(plausible(60, tuple("abcdef"))), []

    def thumbnail(name: str, side: int) -> bytes:
        read.append(name)
        time.sleep(0.002 * (len(read) % 3))  # those that were begun first are not done first
        return name.encode() * (300 // len(name))

    alone = read_pictures(report, thumbnail, budget)
    by_one = len(read)
    read.clear()
    assert read_pictures(report, thumbnail, budget, threads=4) == alone
    assert by_one <= len(read) < by_one + 4


def test_few_pictures_are_larger() -> None:
    """The side falls as their number grows."""
    sides = [
        read_pictures(build(plausible(n, tuple(ascii_lowercase))), lambda *_: b"").side
        for n in (30, 2000)
    ]
    assert sides[0] == 192
    assert sides[1] < 192


def test_of_very_many_labels_the_weakest_have_details() -> None:
    """Beyond 200 labels only the first rows, those of least AP, have curves and lists."""
    report = build(plausible(50, tuple(f"label {n}" for n in range(230))))
    assert [row.detail is not None for row in report.labels] == [True] * 200 + [False] * 30
