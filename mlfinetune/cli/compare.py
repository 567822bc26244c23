"""`mlfinetune compare`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from mlfinetune.metrics.bootstrap import Comparison, Difference
    from mlfinetune.workflows.compare import CompareResult

SHOWN = 10
NAMES = {"mAP": "mAP", "macro_F1": "macro F1", "micro_F1": "micro F1"}


def compare(
    run_a: Annotated[
        Path, typer.Argument(metavar="RUN_A", help="Run directory, or a folder that eval wrote.")
    ],
    run_b: Annotated[
        Path, typer.Argument(metavar="RUN_B", help="The one that is compared with it.")
    ],
    resamples: Annotated[
        int, typer.Option(min=20, help="How many times the images are drawn again.")
    ] = 1000,
    as_json: Annotated[bool, typer.Option("--json", help="Every label, for programs.")] = False,
) -> None:
    """Tell whether two runs differ on the images that both scored: mAP and F1 by bootstrap."""
    import json

    from mlfinetune.runtime.log import RunLog
    from mlfinetune.workflows import compare as workflow

    compared = workflow.run(workflow.CompareRequest(run_a, run_b, resamples), RunLog())
    if as_json:
        content = json.dumps(_content(run_a, run_b, compared), indent=2, ensure_ascii=False)
        print(content.encode(errors="backslashreplace").decode())
    else:
        print(_text(run_a, run_b, compared))


def _text(a: Path, b: Path, compared: CompareResult) -> str:
    """At most 80 columns, the paths aside; of the labels those that differ, the most first."""
    from mlfinetune.text import make_printable, pluralize

    result = compared.comparison
    head = f"  {'':<24} {'A':>7} {'B':>7} {'B - A':>8}   {'95 % interval':<17} {'B above':>8}"
    decided = sorted(
        (item for item in result.per_label.items() if item[1].sign),
        key=lambda item: -abs(item[1].value or 0),
    )
    labels = pluralize(len(result.per_label), "label")
    lines = [
        f"A  {make_printable(str(a))}",
        f"B  {make_printable(str(b))}",
        f"{pluralize(compared.images, 'image')} and {labels} that both scored, "
        f"{result.resamples} resamples",
        "",
        head,
        *(_line(NAMES[name], one) for name, one in result.averages.items()),
        "",
        f"AP of {pluralize(len(result.per_label), 'label')}: {result.wins} better in B, "
        f"{result.losses} better in A, {result.ties} undecided",
        f"(by chance alone about {len(result.per_label) / 40:.1f} each way)",
        *(_line(name, one) for name, one in decided[:SHOWN]),
        *([f"  ... and {len(decided) - SHOWN} more: --json"] if len(decided) > SHOWN else []),
        "",
        _verdict(result),
    ]
    return "\n".join(lines)


def _line(name: str, one: Difference) -> str:
    from mlfinetune.text import fit_width, make_printable

    a, b = ("--" if value is None else f"{value:.4f}" for value in (one.a, one.b))
    change = "--" if one.value is None else f"{one.value:+.4f}"
    low_high, above = "--", "--"
    if one.interval is not None and one.share_above is not None:
        low_high = "{:+.4f} {:+.4f}".format(*one.interval)
        above = f"{100 * one.share_above:.1f} %"
    cell = fit_width(make_printable(name), 24)
    return f"  {cell} {a:>7} {b:>7} {change:>8}   {low_high:<17} {above:>8}"


def _verdict(result: Comparison) -> str:
    """One sentence."""
    one = result.averages["mAP"]
    if one.interval is None:
        why = "mAP is undefined in half of the resamples or more"
    else:
        where = {1: "is above 0", -1: "is below 0", 0: "holds 0"}[one.sign]
        why = f"the interval of the difference in mAP {where}"
    return f"{result.verdict}: {why}"


def _content(a: Path, b: Path, compared: CompareResult) -> dict[str, Any]:
    """For programs; null where undefined."""
    result = compared.comparison
    (images_a, images_b), (labels_a, labels_b) = compared.only
    return {
        "a": str(a),
        "b": str(b),
        "images": compared.images,
        "labels": len(result.per_label),
        "left_out": {
            "images": {"a": images_a, "b": images_b},
            "labels": {"a": labels_a, "b": labels_b},
        },
        "resamples": result.resamples,
        **{name: _numbers(one) for name, one in result.averages.items()},
        "per_label": {name: {"AP": _numbers(one)} for name, one in result.per_label.items()},
        "wins": result.wins,
        "losses": result.losses,
        "ties": result.ties,
        "verdict": result.verdict,
    }


def _numbers(one: Difference) -> dict[str, Any]:
    return {
        "a": one.a,
        "b": one.b,
        "difference": one.value,
        "interval": one.interval,
        "share_above": one.share_above,
    }
