"""`mlfinetune compare`: prints the differences between two runs, as a table or JSON."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mlfinetune.runtime.streams import require_output

if TYPE_CHECKING:
    from mlfinetune.metrics.comparison import Comparison, Difference
    from mlfinetune.workflows.compare import CompareResult

SHOWN = 10
COLUMNS = 24, 56
"""Width of the column of names, and of all others."""
NAMES = {"mAP": "mAP", "macro_AUROC": "macro AUROC", "macro_F1": "macro F1", "micro_F1": "micro F1"}


def compare(
    run_a: Annotated[
        Path, typer.Argument(metavar="RUN_A", help="Run directory, or a folder that eval wrote.")
    ],
    others: Annotated[
        list[Path],
        typer.Argument(metavar="RUN_B...", help="Another one, or several, to compare with RUN_A."),
    ],
    resamples: Annotated[
        int, typer.Option(min=20, help="Number of bootstrap resamples of the images.")
    ] = 1000,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print every label as JSON, for programs.")
    ] = False,
) -> None:
    """Compare mAP and F1 of runs on the images that both scored, with 95 % intervals."""
    require_output()
    import json

    from mlfinetune.runtime.log import RunLog
    from mlfinetune.workflows import compare as workflow

    log = RunLog()
    results = [
        workflow.run(workflow.CompareRequest(run_a, other, resamples), log) for other in others
    ]
    if as_json:
        built = [_build_json(run_a, *pair) for pair in zip(others, results, strict=True)]
        content = built[0] if len(built) == 1 else {"comparisons": built}
        text = json.dumps(content, indent=2, ensure_ascii=False)
        print(text.encode(errors="backslashreplace").decode())
    elif len(others) == 1:
        print(_format_text(run_a, others[0], results[0]))
    else:
        print(_format_several(run_a, others, results))


def _format_several(a: Path, others: list[Path], results: list[CompareResult]) -> str:
    """Return the averages of several runs, each compared with the first one."""
    from mlfinetune.text import choose_column_width, make_printable

    names = [_name_side(number) for number in range(1, len(others) + 1)]
    width = " " * choose_column_width(*COLUMNS)
    lines = [f"A  {make_printable(str(a))}"]
    lines += [
        f"{name}  {make_printable(str(other))}" for name, other in zip(names, others, strict=True)
    ]
    lines.append("each beside A, on the images and labels that both scored; --json has the labels")
    head = f"  {width} {'A':>7} {'other':>7} {'- A':>8}   {'95 % interval':<17} {'above':>8}"
    for key, title in NAMES.items():
        lines.append("" if key != "mAP" else f"\n{head}")
        for name, result in zip(names, results, strict=True):
            if row := result.comparison.averages.get(key):
                lines.append(_format_row(f"{title} of {name}", row))
    lines.append("")
    for name, result in zip(names, results, strict=True):
        lines.append(
            f"A and {name}: {_format_verdict(result.comparison).replace('B is', f'{name} is')}"
        )
    return "\n".join(lines)


def _name_side(number: int) -> str:
    """Return A, B ... Z, then run 27 and so on, of a run's place from 0."""
    return chr(ord("A") + number) if number < 26 else f"run {number + 1}"


def _format_text(a: Path, b: Path, result: CompareResult) -> str:
    """Return the averages and the ten labels that differ most; 80 columns, but for the paths."""
    from mlfinetune.metrics.comparison import FEWEST
    from mlfinetune.text import choose_column_width, make_printable, pluralize

    comparison = result.comparison
    names = " " * choose_column_width(*COLUMNS)
    head = f"  {names} {'A':>7} {'B':>7} {'B - A':>8}   {'95 % interval':<17} {'B above':>8}"
    others = any(result.only_labels)  # then all labels that stay are of interest
    shown = sorted(
        (item for item in comparison.per_label.items() if item[1].sign or others),
        key=lambda item: (not item[1].sign, -abs(item[1].value or 0)),
    )
    labels = pluralize(len(comparison.per_label), "label")
    compared = comparison.wins + comparison.losses + comparison.ties
    lines = [
        f"A  {make_printable(str(a))}",
        f"B  {make_printable(str(b))}",
        f"{pluralize(result.images, 'image')} and {labels} that both scored, "
        f"{comparison.resamples} resamples"
        + (f" of {pluralize(result.groups, 'group')}" if result.groups else ""),
        *_format_only(result.only_labels),
        *_format_settings(result.settings),
        "",
        head,
        *(_format_row(NAMES[name], row) for name, row in comparison.averages.items()),
        "",
        f"AP of {labels}: {comparison.wins} better in B, "
        f"{comparison.losses} better in A, {comparison.ties} undecided",
        f"(by chance alone about {compared / 40:.1f} each way)",
        *(_format_row(name, row) for name, row in shown[:SHOWN]),
    ]
    if len(shown) > SHOWN:
        lines.append(f"  ... and {len(shown) - SHOWN} more: --json")
    if comparison.untold:
        lines.append(
            f"{pluralize(comparison.untold, 'label')} without a comparison: fewer than "
            f"{FEWEST} positives or negatives{' (by group)' if result.groups else ''} tell nothing"
        )
    return "\n".join([*lines, "", _format_verdict(comparison)])


def _format_only(only: tuple[tuple[str, ...], tuple[str, ...]]) -> list[str]:
    """Return a line on the labels that one side alone scored, for each side that has some."""
    from textwrap import wrap

    from mlfinetune.text import list_labels, make_printable

    return [
        line
        for name, labels in zip("AB", only, strict=True)
        if labels
        for line in wrap(f"only in {name}: {make_printable(list_labels(labels))}", 80)
    ]


def _format_settings(settings: Mapping[str, tuple[object, object]] | None) -> list[str]:
    """Return the settings that differ, one a line; long values are cut in their midst."""
    if settings is None:
        return ["settings that differ: not known, since one side is from an older version"]
    if not settings:
        return []
    from mlfinetune.text import fit_width, make_printable

    lines = ["", f"  {'settings that differ':<24} {'A':<25} B"]
    for key, values in settings.items():
        a, b = (_shorten(make_printable(_to_text(value))) for value in values)
        lines.append(f"  {fit_width(make_printable(key), 24)} {fit_width(a, 25)} {b}")
    return lines


def _to_text(value: object) -> str:
    """Return a setting as YAML has it."""
    import json

    if isinstance(value, str) and value.isprintable():
        return value
    return json.dumps(value, ensure_ascii=False)


def _shorten(text: str) -> str:
    """Return at most 25 characters: of a path the end tells most."""
    return text if len(text) <= 25 else f"{text[:5]}...{text[-17:]}"


def _format_row(name: str, row: Difference) -> str:
    from mlfinetune.text import choose_column_width, fit_width, make_printable

    a, b = ("--" if value is None else f"{value:.4f}" for value in (row.a, row.b))
    change = "--" if row.value is None else f"{row.value:+.4f}"
    interval, above = "--", "--"
    if row.interval is not None and row.share_above is not None:
        interval = "{:+.4f} {:+.4f}".format(*row.interval)
        above = f"{100 * row.share_above:.1f} %"
    cell = fit_width(make_printable(name), choose_column_width(*COLUMNS))
    return f"  {cell} {a:>7} {b:>7} {change:>8}   {interval:<17} {above:>8}"


def _format_verdict(comparison: Comparison) -> str:
    """Return one sentence, as `B is better: the interval of the difference in mAP is above 0`."""
    from mlfinetune.metrics.comparison import FEWEST

    row = comparison.averages["mAP"]
    if row.interval is None:
        reason = f"there are too few positives, fewer than {FEWEST} that count"
        if row.value is None:
            reason = "mAP is undefined"
    else:
        position = {1: "is above 0", -1: "is below 0", 0: "contains 0"}[row.sign]
        reason = f"the interval of the difference in mAP {position}"
    return f"{comparison.verdict}: {reason}"


def _build_json(a: Path, b: Path, result: CompareResult) -> dict[str, Any]:
    """Return the content of `--json`; undefined numbers are null."""
    comparison = result.comparison
    (images_a, images_b), (labels_a, labels_b) = result.only
    per_label = comparison.per_label.items()
    return {
        "a": str(a),
        "b": str(b),
        "images": result.images,
        "labels": len(comparison.per_label),
        "left_out": {
            "images": {"a": images_a, "b": images_b},
            "labels": {"a": labels_a, "b": labels_b},
        },
        "only_labels": {"a": result.only_labels[0], "b": result.only_labels[1]},
        "resamples": comparison.resamples,
        "groups": result.groups,
        "seen_in_training": {"a": result.seen[0], "b": result.seen[1]},
        **{name: _to_dict(row) for name, row in comparison.averages.items()},
        "per_label": {name: {"AP": _to_dict(row)} for name, row in per_label},
        "wins": comparison.wins,
        "losses": comparison.losses,
        "ties": comparison.ties,
        "untold": comparison.untold,
        "verdict": comparison.verdict,
        "settings": _list_settings(result.settings),
    }


def _list_settings(
    settings: Mapping[str, tuple[object, object]] | None,
) -> dict[str, dict[str, object]] | None:
    """Return the settings that differ as {key: {"a": value, "b": value}}; None: not known."""
    if settings is None:
        return None
    return {key: {"a": a, "b": b} for key, (a, b) in settings.items()}


def _to_dict(row: Difference) -> dict[str, Any]:
    return {
        "a": row.a,
        "b": row.b,
        "difference": row.value,
        "interval": row.interval,
        "share_above": row.share_above,
    }
