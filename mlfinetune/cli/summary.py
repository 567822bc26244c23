"""The table of numbers that train and eval print."""

from mlfinetune.metrics.types import Evaluation, Facts
from mlfinetune.runs import directory
from mlfinetune.text import choose_column_width, fit_width, make_printable, pluralize

WIDTH = 80
SHOWN_LABELS = 40


def format_summary(evaluation: Evaluation) -> str:
    """Return the numbers as a table of at most 80 columns, labels by falling AP."""
    column = choose_column_width(44, 29)
    table = evaluation.table
    averages = {name: _format_number(value) for name, value in table.averages.items()}
    lines = [
        f"{pluralize(table.images, 'image')}, mAP over {table.labels_scored} of "
        f"{pluralize(len(table.per_label), 'label')}",
        "",
        f"  mAP       {averages['mAP']}     macro F1  {averages['macro_F1']}"
        f"     CF1  {averages['CF1']}",
        f"  micro AP  {averages['micro_AP']}     micro F1  {averages['micro_F1']}"
        f"     OF1  {averages['OF1']}",
        *_format_facts(evaluation.facts),
        "",
        f"  {'label':<{column}} {'AP':>7} {'F1':>7} {'positives':>10}",
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
        name = fit_width(make_printable(row.label), column)
        lines.append(
            f"  {name} {_format_number(row.AP):>7} {_format_number(row.F1):>7} {row.positives:>10}"
        )
    return "\n".join(lines)


def _format_facts(facts: Facts) -> list[str]:
    """Return lines on the intervals, the images that fitted the thresholds, the review band."""
    names = {"mAP": "mAP", "macro_F1": "macro F1", "micro_F1": "micro F1"}
    intervals = {name: facts.intervals.averages[key] for key, name in names.items()}
    ranges = [f"{name} {x[0]:.3f} to {x[1]:.3f}" for name, x in intervals.items() if x]
    lines = []
    if ranges:
        lines.append(f"  95 %      {', '.join(ranges)}")
    if rates := facts.cross_fitted:
        lines.append(
            f"  F1 above: thresholds fitted on these images ({facts.threshold_source}). "
            f"If fitted on\n            other images: macro F1 {_format_number(rates.macro_F1)}, "
            f"micro F1 {_format_number(rates.micro_F1)} (cross-fitted)"
        )
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
