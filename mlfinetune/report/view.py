"""Everything the page shows, as frozen dataclasses: no arrays, no files, no markup.

Probabilities and metrics lie in [0, 1]; an `index` is a picture's row in the ScoreTable; a
`column` is a label's place in the LabelSpace. None means undefined; a `note` says why.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from mlfinetune.metrics.types import is_top

Point = tuple[float, float]


@dataclass(frozen=True)
class Number:
    """A measured number.

    Attributes:
        name: such as mAP.
        value: None where undefined.
        low, high: ends of its 95 % interval, None where there is none.
        note: its meaning, or the reason why it is undefined.
    """

    name: str
    value: float | None
    low: float | None = None
    high: float | None = None
    note: str = ""

    @property
    def is_top(self) -> bool:
        """Return whether the interval lies below the number, as `is_top` of metrics says."""
        has_interval = self.low is not None and self.high is not None
        return has_interval and is_top((self.low or 0.0, self.high or 0.0), self.value)


@dataclass(frozen=True)
class Shown:
    """A picture in a list: its probability for the list's label, and up to four other labels."""

    index: int
    probability: float
    others: tuple[str, ...] = ()


@dataclass(frozen=True)
class Gallery:
    """The first pictures of a list, and how many the whole list holds."""

    total: int
    shown: tuple[Shown, ...]


@dataclass(frozen=True)
class ThresholdPoint:
    """Rates at one threshold; precision is None where no picture passes."""

    threshold: float
    precision: float | None
    recall: float
    F1: float


@dataclass(frozen=True)
class Detail:
    """Curves and pictures of one label, beside its table row.

    Attributes:
        curve: (recall, precision) where recall grows, by falling score; steps, not slopes. Empty
            without a known positive and a known negative.
        thresholds: by rising threshold, the chosen one among them; empty as `curve`.
        chosen: (recall, precision) at the label's threshold, None where no picture passes.
        false_positives: known negatives at or above the threshold, highest first.
        false_negatives: known positives below it, lowest first.
        hits: known positives at or above it, highest first.
    """

    curve: tuple[Point, ...]
    thresholds: tuple[ThresholdPoint, ...]
    chosen: Point | None
    false_positives: Gallery
    false_negatives: Gallery
    hits: Gallery


@dataclass(frozen=True)
class LabelReport:
    """One label's row; `detail` is None where the page has no room for it.

    Attributes:
        column: the label's place in the LabelSpace.
        positives, negatives, unknown: numbers of pictures.
        verdict: one of VERDICTS.
    """

    column: int
    label: str
    positives: int
    negatives: int
    unknown: int
    threshold: float
    AP: Number
    F1: Number
    AUROC: Number
    precision: Number
    recall: Number
    verdict: str
    detail: Detail | None = None


VERDICTS = ("good", "weak", "unsure", "unmeasured")
"""Verdicts on a label's AP, by its interval.

good: surely at or above the bar; weak: surely below it; unsure: too few pictures to tell;
unmeasured: AP is undefined.
"""


@dataclass(frozen=True)
class Decisions:
    """Counts of all known (picture, label) pairs at the thresholds."""

    hits: int
    false_positives: int
    false_negatives: int


@dataclass(frozen=True)
class Series:
    """One quantity by epoch; epochs without it are left out."""

    name: str
    points: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Bin:
    """Known pairs whose probability lies in one range: mean probability, share positive.

    `low` and `high` are the ends of the 95 % interval of the share.
    """

    probability: float
    observed: float
    count: int
    low: float
    high: float


@dataclass(frozen=True)
class Calibration:
    """A reliability curve, and the expected calibration error of the same probabilities.

    `by_chance` is the error that perfect probabilities would show on so few pairs.
    """

    name: str
    bins: tuple[Bin, ...]
    error: float | None
    by_chance: float | None = None


@dataclass(frozen=True)
class Missed:
    """Number of pictures where `label` was missed while `found` was wrongly found."""

    label: str
    found: str
    count: int


@dataclass(frozen=True)
class Matrix:
    """Matrix: counts[i][j] pictures where rows[i] was missed while columns[j] was found."""

    rows: tuple[str, ...]
    columns: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Suspect:
    """A given tag that disagrees with the scores.

    Attributes:
        image: the picture's name.
        given: 0: the tag may be missing; 1: it may be wrong.
        probability: of the label.
        why: the reason, in words.
        tags: the picture's other known labels.
        rank: 1 for the least likely to be right, counted apart for missing and wrong tags; 0: none,
            only its near duplicates speak against it.
    """

    index: int
    image: str
    label: str
    given: int
    probability: float
    why: str
    tags: tuple[str, ...]
    rank: int = 0


@dataclass(frozen=True)
class TornGroup:
    """Near duplicates whose tags differ.

    Attributes:
        number: of the group, from 1 on.
        pictures: indices of all its pictures, those of `tags` first.
        tags: tags of the labels that some of them have and others lack, label by label.
    """

    number: int
    pictures: tuple[int, ...]
    tags: tuple[Suspect, ...]


@dataclass(frozen=True)
class Picture:
    """A picture that the page shows; `jpeg` is None until it is read, or without room for it."""

    name: str
    jpeg: bytes | None = None


@dataclass(frozen=True)
class Heat:
    """Heat map of a picture for one label, to be drawn over the picture's square tile.

    Attributes:
        levels: characters of `overlay.ALPHABET`, row by row; as many rows as columns.
        place: left, top, width and height of the map in percent of the tile; and the part of the
            map to cut off at the left and the right, and at the top and the bottom, in percent of
            the map: there it reaches over the picture's edge.
        spot: where it is strongest, as `upper left`; empty: nothing speaks for the label.
    """

    levels: str
    place: str
    spot: str


@dataclass(frozen=True)
class Report:
    """Everything that the page shows.

    Attributes:
        title: of the page, such as the run's name.
        about: data and protocol, (name, value) lines.
        images: N.
        bar: AP from which a label is called good.
        headline: the numbers to read first.
        averages: all others.
        labels: by rising AP, undefined AP last.
        training: empty where nothing was trained.
        calibration: curves of the model's own probabilities, then of calibrated ones, if any.
        missed: most frequent first.
        suspects: missing tags, then wrong ones; the least likely to be right first.
        torn: near duplicates with different tags, the surest first.
        pictures: by index, all that any list shows, the most useful first.
        side: of the thumbnails, in pixels.
        warning: a sentence to read before the numbers; empty: none.
        heat: heat maps by index of the picture and column of the label.
        no_heat: why the model has no heat maps; empty: it has, or it is not known.
        out_of_fold: the pictures are all that the data has, training's too.
    """

    title: str
    about: tuple[tuple[str, str], ...]
    images: int
    bar: float
    headline: tuple[Number, ...]
    averages: tuple[Number, ...]
    decisions: Decisions
    labels: tuple[LabelReport, ...]
    training: tuple[Series, ...]
    calibration: tuple[Calibration, ...]
    missed: tuple[Missed, ...]
    matrix: Matrix
    suspects: tuple[Suspect, ...]
    torn: tuple[TornGroup, ...] = ()
    out_of_fold: bool = False
    pictures: Mapping[int, Picture] = field(default_factory=dict)
    side: int = 0
    warning: str = ""
    heat: Mapping[tuple[int, int], Heat] = field(default_factory=dict)
    no_heat: str = ""
