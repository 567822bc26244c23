"""The geometry of plots, and the words beside them."""

import pytest
from report_evidence import evidence

from mlfinetune.report import build, plots, words
from mlfinetune.report.view import Number, Series


def test_the_curve_is_drawn_in_steps() -> None:
    """Precision 1 to recall 1/2, then 2/3 to the end; the dot is where the threshold stands."""
    (row,) = build(evidence([[2], [1], [-1]], [[1], [0], [1]])).labels
    plot = plots.plot_precision_recall(row)
    assert plot.strokes[1].path == "M36 10.0V10.0H173.0V67.3H310.0"
    assert [stroke.kind for stroke in plot.strokes] == ["guide", "one"]
    assert plot.dots == ((173.0, 96.0, "one"),)
    assert "precision is 0.50 and recall 0.50" in plot.description


def test_precision_ends_where_nothing_passes() -> None:
    """No line is drawn at 0 for a precision that is undefined; recall goes on to the end."""
    (row,) = build(evidence([[0.5], [0.1]], [[1], [0]])).labels
    precision, recall, _ = plots.plot_by_threshold(row).strokes
    assert precision.path.count("L") < recall.path.count("L")
    assert recall.path.endswith(f" {plots.HEIGHT - plots.BOTTOM}.0")


@pytest.mark.parametrize(
    ("values", "log", "ticks"),
    [
        ((0.3, 0.1), False, ["0", "0.1", "0.2", "0.3"]),
        ((1e-3, 1e-5), True, ["1e-5", "1e-4", "1e-3"]),
        ((0.0, 0.0), False, ["0", "0.5", "1"]),
        ((1e-4, 0.0), True, ["1e-4", "1e-3"]),
    ],
)
def test_scales(values: tuple[float, float], log: bool, ticks: list[str]) -> None:
    """Round steps from 0 on, or powers of ten; a rate of 0 has no place on the latter."""
    plot = plots.plot_training([Series("x", ((1, values[0]), (2, values[1])))], "X", log)
    assert [tick.text for tick in plot.y_ticks] == ticks


def test_one_epoch_is_a_dot() -> None:
    """A run of one epoch is drawn in the middle."""
    plot = plots.plot_training([Series("mAP", ((3, 0.5),))], "mAP", False)
    assert [(x, kind) for x, _, kind in plot.dots] == [(173.0, "one")]
    assert [tick.text for tick in plot.x_ticks] == ["3"]


def test_numbers_in_words() -> None:
    """Undefined is a dash, and no probability is shown as 0 or 1."""
    assert (words.format_number(None), words.format_number(0.71249)) == ("—", "0.712")
    shown = [words.format_probability(p) for p in (0.0, 0.004, 0.005, 0.5, 0.994, 0.995, 1.0)]
    assert shown == ["<0.01", "<0.01", "0.01", "0.50", "0.99", ">0.99", ">0.99"]
    assert words.format_interval(Number("AP", 0.5, 0.4, 0.6)) == "0.400 to 0.600"
    assert words.format_share(1, 3) == "33 %"
