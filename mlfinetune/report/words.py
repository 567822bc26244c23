"""Sentences and number formats of the page."""

import unicodedata

from markupsafe import Markup

from mlfinetune.report.view import LabelReport, Number, Report
from mlfinetune.text import mask_secrets, pluralize

DASH = "—"

VERDICT_WORDS = {
    "good": "good",
    "weak": "weak",
    "unsure": "cannot tell",
    "unmeasured": "not measured",
}


def format_number(value: float | None, digits: int = 3) -> str:
    """Return `0.712`, or a dash for None."""
    return DASH if value is None else f"{value:.{digits}f}"


def format_probability(value: float) -> str:
    """Return `0.97`; `>0.99` and `<0.01` near the ends, because no probability is 0 or 1."""
    return ">0.99" if value >= 0.995 else "<0.01" if value < 0.005 else f"{value:.2f}"


def format_share(part: int, whole: int) -> str:
    """Return `83 %`, or a dash if `whole` is 0."""
    return f"{100 * part / whole:.0f} %" if whole else DASH


def format_interval(measured: Number) -> str:
    """Return `0.680 to 0.741`, or an empty string without an interval."""
    if measured.low is None or measured.high is None:
        return ""
    return f"{measured.low:.3f} to {measured.high:.3f}"


def replace_unprintable(value: object) -> object:
    """Return text without control characters and lone surrogates, which HTML cannot hold.

    Secrets in URLs are masked.
    """
    if not isinstance(value, str) or isinstance(value, Markup):
        return value
    value = mask_secrets(value)
    if value.isprintable():
        return value
    return "".join("\ufffd" if unicodedata.category(c) in ("Cc", "Cs") else c for c in value)


def group_by_verdict(report: Report) -> dict[str, list[LabelReport]]:
    """Return verdict -> labels: good ones by falling AP, the others by rising AP."""
    groups: dict[str, list[LabelReport]] = {name: [] for name in VERDICT_WORDS}
    for row in report.labels:
        groups[row.verdict].append(row)
    groups["good"].reverse()
    return groups


def explain_verdict(verdict: str, bar: float, sure: bool) -> str:
    """Return the condition of a verdict, in words.

    Args:
        verdict: one of VERDICTS.
        bar: AP from which a label is good.
        sure: whether AP has intervals.
    """
    if verdict == "unmeasured":
        return "no known positive or no known negative picture"
    if not sure:
        words = {
            "good": f"AP of at least {bar:g}",
            "unsure": "fewer than 10 positive pictures",
            "weak": f"AP below {bar:g}",
        }
        return words[verdict]
    words = {
        "good": f"AP of at least {bar:g} over its whole interval",
        "unsure": f"the interval of AP contains {bar:g}; more positive pictures would tell",
        "weak": f"AP below {bar:g} over its whole interval",
    }
    return words[verdict]


def has_intervals(report: Report) -> bool:
    """Return whether any label's AP has an interval."""
    return any(row.AP.low is not None for row in report.labels)


def summarize_verdicts(report: Report) -> list[str]:
    """Return sentences on how many labels are good, weak, or cannot be told."""
    groups, sure = group_by_verdict(report), has_intervals(report)
    sizes = {name: len(rows) for name, rows in groups.items()}
    total = len(report.labels)
    first = f"Of {pluralize(total, 'label')}, {_count_are(sizes['good'])} good"
    rest = [f"{_count_are(sizes['weak'])} weak"]
    if sizes["unsure"]:
        rest.append(f"for {sizes['unsure']} the pictures are too few to tell")
    if sizes["unmeasured"]:
        rest.append(f"{sizes['unmeasured']} could not be measured")
    sentences = [f"{first}, {', '.join(rest[:-1])}{', ' if rest[:-1] else ''}and {rest[-1]}."]
    if not sure:
        sentences.append("There are no intervals, so it is not known how much of this is chance.")
    return sentences


def summarize_decisions(report: Report) -> str:
    """Return one sentence on the tags that the thresholds give and miss."""
    counts = report.decisions
    given = counts.hits + counts.false_positives
    there = counts.hits + counts.false_negatives
    if not given and not there:
        return "No target is known, so nothing is known of the thresholds."
    if not given:
        return (
            f"At the chosen thresholds it gives no tag; {pluralize(there, 'tag')} belonged there."
        )
    precision, recall = format_share(counts.hits, given), format_share(counts.hits, there)
    right = f"At the chosen thresholds, {precision} of the {given:,} tags it gives are right"
    if not there:
        return f"{right}; no known picture has a tag."
    return f"{right}, and it finds {recall} of the {there:,} that belong there."


def summarize_heat(report: Report) -> str:
    """Return one sentence on how many of the pictures have a heat map."""
    mapped = len({index for index, _ in report.heat})
    if mapped == len(report.pictures):
        return ""
    return (
        f"{mapped:,} of the {len(report.pictures):,} pictures have a map, the worst and best first."
    )


def _count_are(count: int) -> str:
    return f"{count} are" if count > 1 else "1 is" if count else "none is"
