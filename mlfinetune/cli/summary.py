"""The table of numbers that train and eval print."""

from typing import Any

from mlfinetune.metrics.types import Evaluation
from mlfinetune.runs import directory
from mlfinetune.text import fit_width, make_printable

WIDTH = 80
SHOWN_LABELS = 40


def format_summary(verdict: Evaluation) -> str:
    """The numbers as a table of at most 80 columns, labels by falling AP."""
    table = verdict.table
    a = table.averages
    lines = [
        f"{table.images} images, mAP over {table.labels_scored} of {len(table.per_label)} labels",
        "",
        f"  mAP       {_format_number(a['mAP'])}     macro F1  {_format_number(a['macro_F1'])}"
        f"     CF1  {_format_number(a['CF1'])}",
        f"  micro AP  {_format_number(a['micro_AP'])}     micro F1  {_format_number(a['micro_F1'])}"
        f"     OF1  {_format_number(a['OF1'])}",
        *_how_sure(verdict.facts),
        "",
        f"  {'label':<44} {'AP':>7} {'F1':>7} {'positives':>10}",
    ]
    rows = sorted(table.per_label, key=lambda row: (row.AP is None, -(row.AP or 0.0)))
    half = SHOWN_LABELS // 2
    left_out = len(rows) - SHOWN_LABELS
    for at, row in enumerate(rows):
        if left_out > 0 and half <= at < len(rows) - half:
            if at == half:
                lines.append(f"  ... {left_out} labels in between: see {directory.PER_LABEL} ...")
            continue
        name = fit_width(make_printable(row.label), 44)
        lines.append(
            f"  {name} {_format_number(row.AP):>7} {_format_number(row.F1):>7} {row.positives:>10}"
        )
    return "\n".join(lines)


def _how_sure(facts: dict[str, Any]) -> list[str]:
    """Intervals, and what the thresholds of the F1s were fitted on."""
    names = {"mAP": "mAP", "macro_F1": "macro F1", "micro_F1": "micro F1"}
    intervals = {name: facts["intervals"][key] for key, name in names.items()}
    ranges = [f"{name} {x[0]:.3f} to {x[1]:.3f}" for name, x in intervals.items() if x]
    lines = [f"  95 %      {', '.join(ranges)}"] if ranges else []
    honest = facts.get("cross_fitted")
    if honest:
        lines.append(
            f"  F1 are at thresholds fitted on these images ({facts['threshold_source']}); "
            f"on others\n            macro F1 {_format_number(honest['macro_F1'])}, "
            f"micro F1 {_format_number(honest['micro_F1'])} (cross-fitted)"
        )
    elif facts["fitted_on"] == "other images":
        lines.append(f"  F1 are at the checkpoint's thresholds ({facts['threshold_source']})")
    if band := facts.get("review"):
        lines.append(
            f"  review    {band['images']} images have a probability between {band['low']:g} and "
            f"{band['high']:g};\n            {band['wrong_inside']} of {band['wrong']} wrong "
            f"decisions are among those {band['pairs']}"
        )
    return lines


def _format_number(value: float | None) -> str:
    return "    --" if value is None else f"{value:.4f}"
