"""Numbers -> the geometry of a plot, which a template writes as SVG.

The plots are drawn here for two reasons. Matplotlib would be a dependency of 30 MB for a few
polylines. And its pictures would not follow the page's dark and light themes, nor speak to a screen
reader.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from mlfinetune.report.view import Calibration, LabelReport, Point, Series

WIDTH, HEIGHT = 320, 216
LEFT, RIGHT, TOP, BOTTOM = 36, 10, 10, 34


@dataclass(frozen=True)
class Tick:
    """A line of the grid: its position in SVG units, and its text."""

    position: float
    text: str


@dataclass(frozen=True)
class Stroke:
    """An SVG path; `kind` is its class: one, two, three, or guide."""

    path: str
    kind: str


@dataclass(frozen=True)
class Plot:
    """A plot of WIDTH x HEIGHT units.

    Attributes:
        caption: text above the plot.
        title, description: texts for screen readers.
        legend: (kind, text) of the strokes that need one.
        dots: (x, y, kind) of circles.
        rule: x of a vertical line.
        remark: text below the plot.
    """

    caption: str
    title: str
    description: str
    x_name: str
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    strokes: tuple[Stroke, ...]
    legend: tuple[tuple[str, str], ...] = ()
    dots: tuple[tuple[float, float, str], ...] = field(default=())
    rule: float | None = None
    remark: str = ""


def plot_precision_recall(row: LabelReport) -> Plot:
    """Plot the curve in steps, chance as a guide, the threshold as a dot."""
    assert row.detail is not None
    detail, base = row.detail, row.positives / (row.positives + row.negatives)
    path = [f"M{_place_x(0)} {_place_y(detail.curve[0][1])}"]
    for recall, precision in detail.curve:
        path.append(f"V{_place_y(precision)}H{_place_x(recall)}")
    chosen = "the threshold passes no picture"
    dots: tuple[tuple[float, float, str], ...] = ()
    if detail.chosen:
        recall, precision = detail.chosen
        dots = ((_place_x(recall), _place_y(precision), "one"),)
        chosen = f"at the threshold precision is {precision:.2f} and recall {recall:.2f}"
    return Plot(
        caption="Precision by recall",
        title=f"Precision by recall of {row.label}",
        description=f"Average precision {row.AP.value or 0:.3f}; {chosen}; by chance {base:.2f}.",
        x_name="recall",
        x_ticks=_make_unit_ticks(_place_x),
        y_ticks=_make_unit_ticks(_place_y),
        strokes=(Stroke(_draw_line([(0, base), (1, base)]), "guide"), Stroke("".join(path), "one")),
        legend=(("guide", f"chance, {base:.2f}"), ("dot", "at the threshold")),
        dots=dots,
    )


def plot_by_threshold(row: LabelReport) -> Plot:
    """Plot precision, recall and F1 by threshold, the chosen threshold as a vertical line."""
    assert row.detail is not None
    points = row.detail.thresholds
    best = max(points, key=lambda point: point.F1)
    passing = [(p.threshold, p.precision) for p in points if p.precision is not None]
    return Plot(
        caption="What another threshold would give",
        title=f"Precision, recall and F1 of {row.label} by threshold",
        description=f"The threshold is {row.threshold:.2f}, where F1 is {row.F1.value or 0:.3f}; "
        f"on these pictures the best F1 is {best.F1:.3f}, at {best.threshold:.2f}.",
        x_name="threshold",
        x_ticks=_make_unit_ticks(_place_x),
        y_ticks=_make_unit_ticks(_place_y),
        strokes=(
            Stroke(_draw_line(passing), "two"),
            Stroke(_draw_line([(p.threshold, p.recall) for p in points]), "three"),
            Stroke(_draw_line([(p.threshold, p.F1) for p in points]), "one"),
        ),
        legend=(("one", "F1"), ("two", "precision"), ("three", "recall"), ("rule", "threshold")),
        rule=_place_x(row.threshold),
        remark=f"Best F1 on these pictures: {best.F1:.3f}, at {best.threshold:.2f}.",
    )


def plot_reliability(curves: Sequence[Calibration]) -> Plot:
    """Plot the share of positives by probability; perfect calibration is the diagonal.

    Vertical lines are the 95 % intervals of the shares.
    """
    kinds = ("one", "two")
    strokes = [Stroke(_draw_line([(0, 0), (1, 1)]), "guide")]
    dots: list[tuple[float, float, str]] = []
    for kind, curve in zip(kinds, curves, strict=False):
        points = [(point.probability, point.observed) for point in curve.bins]
        strokes.append(Stroke(_draw_line(points), kind))
        dots += [(_place_x(x), _place_y(y), kind) for x, y in points]
        strokes += [
            Stroke(_draw_line([(one.probability, one.low), (one.probability, one.high)]), "guide")
            for one in curve.bins
        ]
    errors = [f"{c.error:.3f} ({c.name})" for c in curves if c.error is not None]
    off = f"off by {' and '.join(errors)}" if errors else "nothing is known"
    return Plot(
        caption="Share of positives by probability",
        title="Share of positives by probability",
        description=f"On average over all pairs: {off}.",
        x_name="probability",
        x_ticks=_make_unit_ticks(_place_x),
        y_ticks=_make_unit_ticks(_place_y),
        strokes=tuple(strokes),
        legend=(
            *((kind, curve.name) for kind, curve in zip(kinds, curves, strict=False)),
            ("guide", "perfect; upright: 95 %"),
        ),
        dots=tuple(dots),
    )


def plot_training(group: Sequence[Series], title: str, log: bool) -> Plot:
    """Plot quantities of one scale by epoch."""
    scale = math.log10 if log else float
    shown = [
        [(epoch, scale(value)) for epoch, value in line.points if value > 0 or not log]
        for line in group
    ]
    values = [value for points in shown for _, value in points] or [0.0]
    low, high, ticks = _choose_axis(values, log)
    epochs = [epoch for points in shown for epoch, _ in points] or [0]
    first, last = min(epochs), max(epochs)

    def place(epoch: float, value: float) -> Point:
        across = (epoch - first) / (last - first) if last > first else 0.5
        return across, (value - low) / (high - low)

    marks = range(first, last + 1, max(1, math.ceil((last - first) / 6)))
    lines = [[place(*point) for point in points] for points in shown]
    kinds = ("one", "two", "three")
    ends = "; ".join(
        f"{line.name} goes from {line.points[0][1]:.3g} to {line.points[-1][1]:.3g}"
        for line in group
    )
    return Plot(
        caption=title,
        title=f"{title} by epoch",
        description=f"From epoch {first} to {last} {ends}.",
        x_name="epoch",
        x_ticks=tuple(Tick(_place_x(place(e, low)[0]), str(e)) for e in marks),
        y_ticks=tuple(Tick(_place_y(place(first, v)[1]), text) for v, text in ticks),
        strokes=tuple(Stroke(_draw_line(line), k) for line, k in zip(lines, kinds, strict=False)),
        legend=tuple((k, line.name) for k, line in zip(kinds, group, strict=False)),
        dots=tuple(
            (_place_x(x), _place_y(y), kind)
            for line, kind in zip(lines, kinds, strict=False)
            for x, y in (line if len(line) <= 12 else line[-1:])
        ),
    )


# ---- scales -----------------------------------------------------------------------------------


def _place_x(value: float) -> float:
    return round(LEFT + value * (WIDTH - LEFT - RIGHT), 1)


def _place_y(value: float) -> float:
    return round(HEIGHT - BOTTOM - value * (HEIGHT - TOP - BOTTOM), 1)


def _draw_line(points: Sequence[Point]) -> str:
    """Return the SVG path of a polyline through points of the unit square."""
    return "M" + "L".join(f"{_place_x(x)} {_place_y(y)}" for x, y in points) if points else ""


def _make_unit_ticks(scale: Callable[[float], float]) -> tuple[Tick, ...]:
    return tuple(Tick(scale(n / 4), f"{n / 4:g}") for n in range(5))


def _choose_axis(
    values: Sequence[float], log: bool
) -> tuple[float, float, list[tuple[float, str]]]:
    """Return (low, high, ticks) of the vertical axis; a linear one holds 0."""
    return _make_decade_ticks(values) if log else _make_nice_ticks(min(*values, 0), max(values))


def _make_nice_ticks(low: float, high: float) -> tuple[float, float, list[tuple[float, str]]]:
    """Return (low, high, ticks) of a linear axis, in steps of 1, 2 or 5 times a power of ten."""
    high = high if high > low else low + 1
    span = high - low
    step = 10 ** math.floor(math.log10(span / 3))
    step *= next(m for m in (1, 2, 5, 10) if span / (step * m) <= 4)
    first, last = math.floor(low / step), math.ceil(high / step)
    last = max(last, first + 1)
    return (
        first * step,
        last * step,
        [(n * step, f"{n * step:.3g}") for n in range(first, last + 1)],
    )


def _make_decade_ticks(logs: Sequence[float]) -> tuple[float, float, list[tuple[float, str]]]:
    """Return (low, high, ticks) of an axis of logarithms: powers of ten, five ticks at most."""
    first, last = math.floor(min(logs)), math.ceil(max(logs))
    last = max(last, first + 1)
    step = math.ceil((last - first) / 4)
    last = first + step * math.ceil((last - first) / step)
    return first, last, [(n, f"1e{n}") for n in range(first, last + 1, step)]
