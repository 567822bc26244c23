"""The page's sentences and number formats."""

import unicodedata

from markupsafe import Markup

from mlfinetune.report.view import LabelReport, Number, Report
from mlfinetune.text import pluralize

DASH = "—"

STANDING_WORDS = {
    "good": "good",
    "weak": "weak",
    "unsure": "cannot tell",
    "unmeasured": "not measured",
}


def number(value: float | None, digits: int = 3) -> str:
    """0.712, or a dash for what is undefined."""
    return DASH if value is None else f"{value:.{digits}f}"


def probability(value: float) -> str:
    """0.97; never 0 or 1, which no score is."""
    return ">0.99" if value >= 0.995 else "<0.01" if value < 0.005 else f"{value:.2f}"


def share(part: int, whole: int) -> str:
    """`83 %`, or a dash of nothing."""
    return f"{100 * part / whole:.0f} %" if whole else DASH


def interval(measured: Number) -> str:
    """`0.680 to 0.741`, or nothing."""
    if measured.low is None or measured.high is None:
        return ""
    return f"{measured.low:.3f} to {measured.high:.3f}"


def visible(value: object) -> object:
    """Text without control characters and half surrogates, which HTML cannot hold."""
    if not isinstance(value, str) or isinstance(value, Markup) or value.isprintable():
        return value
    return "".join("\ufffd" if unicodedata.category(c) in ("Cc", "Cs") else c for c in value)


def by_standing(report: Report) -> dict[str, list[LabelReport]]:
    """STANDINGS -> its labels: good ones by falling AP, others by rising AP."""
    groups: dict[str, list[LabelReport]] = {name: [] for name in STANDING_WORDS}
    for row in report.labels:
        groups[row.standing].append(row)
    groups["good"].reverse()
    return groups


def rule(standing: str, bar: float, sure: bool) -> str:
    """When a label stands so."""
    if standing == "unmeasured":
        return "no known positive or no known negative picture"
    if not sure:
        words = {
            "good": f"AP of at least {bar:g}",
            "unsure": "fewer than 10 positive pictures",
            "weak": f"AP below {bar:g}",
        }
        return words[standing]
    words = {
        "good": f"AP of at least {bar:g} over its whole interval",
        "unsure": f"the interval of AP holds {bar:g}; more positive pictures would tell",
        "weak": f"AP below {bar:g} over its whole interval",
    }
    return words[standing]


def has_intervals(report: Report) -> bool:
    """Does any label's AP come with an interval?"""
    return any(row.AP.low is not None for row in report.labels)


def verdict(report: Report) -> list[str]:
    """Is it good enough, for how many labels, how surely: plain sentences, without label names."""
    groups, sure = by_standing(report), has_intervals(report)
    sizes = {name: len(rows) for name, rows in groups.items()}
    total = len(report.labels)
    first = f"Of {pluralize(total, 'label')}, {_are(sizes['good'])} good"
    rest = [f"{_are(sizes['weak'])} weak"]
    if sizes["unsure"]:
        rest.append(f"for {sizes['unsure']} these pictures cannot tell")
    if sizes["unmeasured"]:
        rest.append(f"{sizes['unmeasured']} could not be measured")
    said = [f"{first}, {', '.join(rest[:-1])}{', ' if rest[:-1] else ''}and {rest[-1]}."]
    if not sure:
        said.append("There are no intervals, so how far chance goes is not known.")
    return said


def decisions(report: Report) -> str:
    """What the thresholds do, in one sentence."""
    d = report.decisions
    given, there = d.hits + d.false_positives, d.hits + d.false_negatives
    if not given and not there:
        return "No target is known, so nothing is known of the thresholds."
    if not given:
        return (
            f"At the chosen thresholds it gives no tag; {pluralize(there, 'tag')} belonged there."
        )
    right = (
        f"At the chosen thresholds, {share(d.hits, given)} of the {given:,} tags it gives are right"
    )
    if not there:
        return f"{right}; no known picture has a tag."
    return f"{right}, and it finds {share(d.hits, there)} of the {there:,} that belong there."


def _are(count: int) -> str:
    return f"{count} are" if count > 1 else "1 is" if count else "none is"
