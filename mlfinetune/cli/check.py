"""`mlfinetune check`: prints the findings about a data set, as text or JSON."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mlfinetune.runtime.streams import require_output
from mlfinetune.text import (
    choose_column_width,
    fit_width,
    format_list,
    make_printable,
    pluralize,
)

if TYPE_CHECKING:  # it loads numpy
    from mlfinetune.data.findings import Finding

SHOWN_LABELS = 20
SHOWN_PAIRS = 5
WIDEST = 300
"""Greatest number of characters of an item in the text; the JSON has all of them."""


def format_json(findings: "Sequence[Finding]", facts: dict[str, Any]) -> str:
    """Return a JSON object: each finding with all of its items, and the facts."""
    listed = [asdict(finding) for finding in findings]
    clean = all(f.severity != "error" for f in findings)
    content = {"clean": clean, "findings": listed, **facts}
    return json.dumps(content, indent=2, ensure_ascii=False).encode(errors="replace").decode()


def format_text(findings: "Sequence[Finding]", facts: dict[str, Any]) -> str:
    """Return the facts, then the findings, errors before warnings, with ten items each.

    Args:
        findings: errors first.
        facts: notes, pictures, sides, labels and pairs of labels, as `--json` adds them; perhaps
            a sample of the rows as read.
    """
    lines = [*facts["notes"], *facts["sample"], ""]
    lines += _format_picture_lines(facts["pictures"])
    if facts["labels"]:
        lines += [
            "",
            *_format_side_lines(facts["sides"]),
            "",
            *_format_label_lines(facts["labels"]),
            *_format_pair_lines(facts),
        ]
    for finding in findings:
        lines += ["", f"{finding.severity}: {finding.message}"]
        shown = [item if len(item) <= WIDEST else item[:WIDEST] + "..." for item in finding.items]
        lines += [format_list(shown)] if shown else []
        lines += [f"  to mend it: {finding.remedy}"] if finding.remedy else []
    errors = sum(finding.severity == "error" for finding in findings)
    counts = {"error": errors, "warning": len(findings) - errors}
    kinds = [
        f"{pluralize(n, 'kind')} of {word if n == 1 else word + 's'}"
        for word, n in counts.items()
        if n
    ]
    verdict = ("not clean: " if errors else "no errors, ") + ", ".join(kinds) if kinds else "clean"
    return "\n".join(_make_lines_printable([*lines, "", verdict]))


def _make_lines_printable(lines: Sequence[str]) -> list[str]:
    """Return the lines without characters that would move the cursor."""
    return [make_printable(part) for line in lines for part in line.split("\n")]


def _format_picture_lines(facts: dict[str, Any]) -> list[str]:
    if not facts["count"]:
        return ["no readable pictures"]
    spread = "; ".join(
        f"{side} {facts[side]['least']} to {facts[side]['most']} px, median {facts[side]['median']}"
        for side in ("width", "height")
    )
    kinds = ", ".join(f"{n} {name}" for name, n in {**facts["formats"]}.items())
    modes = ", ".join(f"{n} {name}" for name, n in {**facts["modes"]}.items())
    turned = f"; {facts['turned_by_exif']} turned by EXIF" if facts["turned_by_exif"] else ""
    return [f"{facts['count']} readable pictures: {kinds}; {modes}{turned}", spread]


def _format_side_lines(sides: dict[str, Any]) -> list[str]:
    return [
        f"{side}: {pluralize(facts['images'], 'image')}, "
        f"{facts['labels_an_image']} labels per image, {facts['without_label']} without a label"
        for side, facts in sides.items()
    ]


def _format_label_lines(labels: dict[str, Any]) -> list[str]:
    sides = list(next(iter(labels.values())))
    column = choose_column_width(44, 2 + 11 * len(sides))
    lines = [f"  {'label':<{column}} " + " ".join(f"{side:>10}" for side in sides)]
    rows = sorted(labels.items(), key=lambda row: -row[1][sides[0]]["positives"])
    half = SHOWN_LABELS // 2
    for index, (name, counts) in enumerate(rows):
        if len(rows) > SHOWN_LABELS and half <= index < len(rows) - half:
            if index == half:
                left_out = pluralize(len(rows) - SHOWN_LABELS, "label")
                lines.append(f"  ... {left_out} in between (--json has all)")
            continue
        numbers = " ".join(f"{counts[side]['positives']:>10}" for side in sides)
        lines.append(f"  {fit_width(make_printable(name), column)} {numbers}")
    return lines


def _format_pair_lines(facts: dict[str, Any]) -> list[str]:
    pairs = [
        f"  {' + '.join(pair['labels'])}: {pluralize(pair['images'], 'image')}, "
        f"{pair['share']:.0%} of those with either"
        for pair in facts["together"][:SHOWN_PAIRS]
    ]
    return ["", "labels that come together most", *pairs] if pairs else []


NOT_CLEAN = 2
"""Exit code where there are errors."""


def check(
    config: Annotated[Path, typer.Argument(help="YAML file, the same as for train.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE]...", help="Config keys to change, such as data.train=tags.csv."
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print all findings as JSON, for programs.")
    ] = False,
) -> None:
    """Look for errors in a data set, in every row and picture. Exit code 0: none, 2: a list."""
    require_output()
    from mlfinetune.config import load_config
    from mlfinetune.runtime.log import RunLog
    from mlfinetune.workflows import check as workflow

    result = workflow.run(load_config(config, overrides or ()), RunLog())
    format_result = format_json if as_json else format_text
    print(format_result(result.findings, result.facts))
    if not result.clean:
        raise typer.Exit(NOT_CLEAN)
