"""What check and split found, for people (80 columns) and for other programs (JSON)."""

import json
from collections.abc import Sequence
from typing import Any

from mlfinetune.errors import counted, listing
from mlfinetune.survey import Balance, Finding
from mlfinetune.text import fitted, printable

SHOWN_LABELS = 20
SHOWN_PAIRS = 5
WIDEST = 300
"""Letters of an item that the text shows: the JSON has all."""


def as_json(findings: Sequence[Finding], facts: dict[str, Any]) -> str:
    """Everything: each finding with all of its items, and the facts."""
    listed = [
        {"severity": f.severity, "kind": f.kind, "message": f.message, "items": f.items}
        for f in findings
    ]
    clean = all(f.severity != "error" for f in findings)
    content = {"clean": clean, "findings": listed, **facts}
    return json.dumps(content, indent=2, ensure_ascii=False).encode(errors="replace").decode()


def as_text(findings: Sequence[Finding], facts: dict[str, Any]) -> str:
    """Facts first, then the findings, errors before warnings, ten items each."""
    lines = [*facts["notes"], "", *_pictures(facts["pictures"])]
    if facts["labels"]:
        lines += ["", *_sides(facts["sides"]), "", *_labels(facts["labels"]), *_pairs(facts)]
    for finding in findings:
        lines += ["", f"{finding.severity}: {finding.message}"]
        shown = [item if len(item) <= WIDEST else item[:WIDEST] + "..." for item in finding.items]
        lines += [listing(shown)] if shown else []
    errors = sum(finding.severity == "error" for finding in findings)
    found = {"error": errors, "warning": len(findings) - errors}
    kinds = [f"{counted(n, 'kind')} of {word}s" for word, n in found.items() if n]
    verdict = ", ".join(kinds) or "clean"
    return "\n".join(printable_lines([*lines, "", verdict]))


def balance_text(balance: Balance) -> str:
    """Sizes of the sides, and how far each label's share is from that of all images."""
    sizes = ", ".join(f"{n} {side}" for side, n in zip(balance.sides, balance.sizes, strict=True))
    lines = [f"{sum(balance.sizes)} images: {sizes}", ""]
    lines.append(f"  {'label':<36} {'positives':>9} {'share held out':>15} {'by chance':>11}")
    rows = sorted(
        balance.rows, key=lambda row: (not row.positives, -abs(row.share - balance.wanted))
    )
    for row in rows[:SHOWN_LABELS]:
        name = fitted(printable(row.label), 36)
        lines.append(f"  {name} {row.positives:>9} {row.share:>14.1%} {row.by_chance:>11.1%}")
    if len(rows) > SHOWN_LABELS:
        lines.append(f"  ... {len(rows) - SHOWN_LABELS} labels nearer to their share")
    worst, chance = balance.worst
    lines += [
        "",
        f"of all images {balance.wanted:.1%} are held out; the worst label is {worst:.1%} off, "
        f"in a random split {chance:.1%}",
    ]
    return "\n".join(lines)


def printable_lines(lines: Sequence[str]) -> list[str]:
    """Each line without characters that would move the cursor."""
    return [printable(part) for line in lines for part in line.split("\n")]


def _pictures(facts: dict[str, Any]) -> list[str]:
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


def _sides(sides: dict[str, Any]) -> list[str]:
    return [
        f"{side}: {facts['images']} images, {facts['labels_an_image']} labels an image, "
        f"{facts['without_label']} without a label"
        for side, facts in sides.items()
    ]


def _labels(labels: dict[str, Any]) -> list[str]:
    sides = list(next(iter(labels.values())))
    lines = [f"  {'label':<44} " + " ".join(f"{side:>10}" for side in sides)]
    rows = sorted(labels.items(), key=lambda row: -row[1][sides[0]]["positives"])
    half = SHOWN_LABELS // 2
    for at, (name, counts) in enumerate(rows):
        if len(rows) > SHOWN_LABELS and half <= at < len(rows) - half:
            if at == half:
                lines.append(f"  ... {len(rows) - SHOWN_LABELS} labels in between (--json has all)")
            continue
        numbers = " ".join(f"{counts[side]['positives']:>10}" for side in sides)
        lines.append(f"  {fitted(printable(name), 44)} {numbers}")
    return lines


def _pairs(facts: dict[str, Any]) -> list[str]:
    pairs = [
        f"  {' + '.join(pair['labels'])}: {pair['images']} images, {pair['share']:.0%} of those "
        f"with either"
        for pair in facts["together"][:SHOWN_PAIRS]
    ]
    return ["", "labels that come together most", *pairs] if pairs else []
