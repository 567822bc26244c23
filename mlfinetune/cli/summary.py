"""The table of numbers that train and eval print."""

import textwrap

from mlfinetune.metrics.selection import describe_selection
from mlfinetune.metrics.types import Evaluation, Facts, MetricTable, describe_need, is_top
from mlfinetune.runs import directory
from mlfinetune.text import choose_column_width, fit_width, list_some, make_printable, pluralize

WIDTH = 80
SHOWN_LABELS = 40


def format_summary(evaluation: Evaluation) -> str:
    """Return the numbers as a table of at most 80 columns, labels by falling AP."""
    table = evaluation.table
    columns = ["AP", "precision", "recall", "F1"] if evaluation.facts.precision else ["AP", "F1"]
    averages = {name: _format_number(value) for name, value in table.averages.items()}
    lines = [
        f"{pluralize(table.images, 'image')}, mAP over {table.labels_scored} of "
        f"{pluralize(len(table.per_label), 'label')}",
        "",
        f"  mAP       {averages['mAP']}     macro F1  {averages['macro_F1']}"
        f"     CF1  {averages['CF1']}",
        f"  micro AP  {averages['micro_AP']}     micro F1  {averages['micro_F1']}"
        f"     OF1  {averages['OF1']}",
        *_format_precision(table, evaluation.facts),
        *_format_facts(evaluation.facts, table.averages["mAP"]),
        "",
        _format_row("label", columns, columns, "positives"),
    ]
    rows = sorted(table.per_label, key=lambda row: (row.AP is None, -(row.AP or 0.0)))
    half = SHOWN_LABELS // 2
    left_out = len(rows) - SHOWN_LABELS
    for index, row in enumerate(rows):
        if left_out > 0 and half <= index < len(rows) - half:
            if index == half:
                count = pluralize(left_out, "label")
                lines.append(f"  ... {count} in between: see {directory.PER_LABEL} ...")
            continue
        numbers = [_format_number(getattr(row, name)) for name in columns]
        lines.append(_format_row(row.label, columns, numbers, str(row.positives)))
    return "\n".join(lines)


def _format_row(label: str, columns: list[str], cells: list[str], positives: str) -> str:
    """Return a row of the table: a label, its numbers in `columns`, its positives."""
    widths = [max(7, len(name)) for name in columns]
    numbers = "".join(f" {x:>{width}}" for x, width in zip(cells, widths, strict=True))
    others = 2 + len(numbers) + 11
    width = choose_column_width(min(44, WIDTH - others), others)
    return f"  {fit_width(make_printable(label), width)}{numbers} {positives:>10}"


def _format_precision(table: MetricTable, facts: Facts) -> list[str]:
    """Return lines on a wanted precision: the rates, and labels that are never given."""
    promise = facts.precision
    if promise is None:
        return []
    given = sum(row.precision is not None for row in table.per_label)
    rates = {name: _format_number(value).strip() for name, value in table.averages.items()}
    line = (
        f"precision {rates['macro_precision']} (mean of {pluralize(given, 'label')} given), "
        f"{rates['micro_precision']} of all tags; recall {rates['macro_recall']}, "
        f"{rates['micro_recall']} of all tags"
    )
    lines = [_wrap(line)]
    if promise.never_given:
        names = [make_printable(name) for name in promise.never_given]
        lines.append(
            _wrap(
                f"never given: {pluralize(len(names), 'label')} that {_name_images(table, facts)} "
                f"cannot show to be right in {100 * promise.wanted:g} % of the cases: "
                f"{list_some(names)}; a label needs "
                f"{describe_need(promise.positives_needed, facts.intervals.groups)}"
            )
        )
    return lines


def _name_images(table: MetricTable, facts: Facts) -> str:
    """Name the images that fitted the thresholds."""
    if facts.fitted_on == "the same images":
        return pluralize(table.images, "image")
    return "the images that fitted the thresholds"


def _wrap(text: str) -> str:
    """Return the text as an entry of the summary, in lines of at most 80 columns."""
    return textwrap.fill(text, WIDTH, initial_indent="  ", subsequent_indent=" " * 12)


def _format_facts(facts: Facts, mean_ap: float | None) -> list[str]:
    """Return lines on the intervals, the images that fitted the thresholds, the review band."""
    names = {"mAP": "mAP", "macro_F1": "macro F1", "micro_F1": "micro F1"}
    intervals = {name: facts.intervals.averages[key] for key, name in names.items()}
    ranges = [f"{name} {x[0]:.3f} to {x[1]:.3f}" for name, x in intervals.items() if x]
    lines = []
    if ranges:
        lines.append(f"  95 %      {', '.join(ranges)}")
    if is_top(facts.intervals.averages["mAP"], mean_ap):
        lines.append("            few positives make mAP too high by chance: it is the upper end")
    if facts.intervals.groups is not None:
        lines.append(f"            from {pluralize(facts.intervals.groups, 'group')}, drawn whole")
    if text := describe_selection(facts.selection):
        lines.append(f"  chosen    {text}")
    if rates := facts.cross_fitted:
        lines.append(
            f"  F1 above: thresholds fitted on these images ({facts.threshold_source}). "
            f"If fitted on\n            other images: macro F1 {_format_number(rates.macro_F1)}, "
            f"micro F1 {_format_number(rates.micro_F1)} (cross-fitted)"
        )
        if facts.precision:
            macro, micro = map(_format_number, (rates.macro_precision, rates.micro_precision))
            lines.append(f"            precision {macro.strip()}, {micro.strip()} of all tags")
    elif facts.fitted_on == "other images":
        lines.append(f"  F1 above: the checkpoint's thresholds ({facts.threshold_source})")
    if band := facts.review:
        lines.append(
            f"  review    {pluralize(band.images, 'image')} with a probability between "
            f"{band.low:g} and {band.high:g};\n            {band.wrong_inside} of "
            f"{band.wrong} wrong decisions are among those {band.pairs}"
        )
    return lines


def _format_number(value: float | None) -> str:
    """Return `0.7120`, or dashes of the same width for an undefined number."""
    return "    --" if value is None else f"{value:.4f}"
