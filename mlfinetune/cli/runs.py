"""`mlfinetune runs`: prints one table of all runs, or JSON."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mlfinetune.runtime.streams import require_output

if TYPE_CHECKING:
    from mlfinetune.runs.overview import RunOverview
    from mlfinetune.workflows.runs import RunTable

WIDEST = 30
"""Columns of a setting; longer ones are cut in their midst."""


class Sort(StrEnum):
    """Order of the runs."""

    name = "name"
    when = "when"
    mAP = "mAP"
    F1 = "F1"
    minutes = "minutes"


def runs(
    folder: Annotated[
        Path, typer.Argument(help="Folder to search. Default: runs/.", show_default=False)
    ] = Path("runs"),
    sort: Annotated[
        Sort, typer.Option(help="Order: the best mAP or F1 first, the newest run last.")
    ] = Sort.when,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False,
) -> None:
    """List runs: when, what, how good, how long, and the settings in which they differ."""
    require_output()
    from mlfinetune.workflows import runs as workflow

    table = workflow.run(folder, sort.value)
    if as_json:
        content = json.dumps(_build_json(table), indent=2, ensure_ascii=False)
        print(content.encode(errors="backslashreplace").decode())
    else:
        print(_format_table(_list_cells(folder, table)))


def _list_cells(folder: Path, table: RunTable) -> list[list[str]]:
    """Return the rows of the table, its head first; columns that are empty are left out."""
    head = ["run", "when", "state", "backbone", "learns", "labels", "pictures", "mAP"]
    head += ["95 %", "F1", "minutes", "began with", *table.differing, "note"]
    rows = [head, *([*_list_facts(folder, run, table.differing)] for run in table.runs)]
    columns = [column for column in zip(*rows, strict=True) if any(column[1:])]
    return [list(row) for row in zip(*columns, strict=True)]


def _list_facts(folder: Path, run: RunOverview, differing: tuple[str, ...]) -> list[str]:
    name = str(run.folder.relative_to(folder)) if run.folder != folder else run.folder.name
    learns = "" if run.frozen is None else "head" if run.frozen else "all"
    when = "" if run.when is None else _format_time(run.when)
    interval = "" if run.interval is None else "{:.3f} to {:.3f}".format(*run.interval)
    cells = [name, when, run.state, run.backbone or "", learns]
    cells += [_format_count(run.labels), _format_count(run.images), _format_share(run.mAP)]
    cells += [interval, _format_share(run.macro_F1)]
    cells.append("" if run.seconds is None else f"{run.seconds / 60:.1f}")
    cells.append(_name_parent(folder, run.parent))
    cells += [_shorten(_format_setting(run.settings.get(key))) for key in differing]
    return [*cells, run.note or ""]


def _name_parent(folder: Path, parent: str | None) -> str:
    """Return the name of the run that a checkpoint is of, as the table has it where it is there."""
    if parent is None:
        return ""
    run = Path(parent).parent
    return (
        str(run.relative_to(folder.absolute()))
        if run.is_relative_to(folder.absolute())
        else run.name
    )


def _format_time(text: str) -> str:
    """Return a time of ISO 8601 as this machine's clock has it, as train.log does."""
    from datetime import datetime

    try:
        return f"{datetime.fromisoformat(text).astimezone():%Y-%m-%d %H:%M}"
    except ValueError:
        return text


def _format_count(number: int | None) -> str:
    return "" if number is None else f"{number:,}"


def _format_share(number: float | None) -> str:
    return "" if number is None else f"{number:.4f}"


def _format_setting(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _format_table(rows: list[list[str]]) -> str:
    """Return a table whose columns are as wide as their widest cell."""
    from mlfinetune.text import fit_width, make_printable

    cells = [[make_printable(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join("  ".join(map(fit_width, row, widths)).rstrip() for row in cells)


def _shorten(text: str) -> str:
    return text if len(text) <= WIDEST else f"{text[:9]}...{text[-18:]}"


def _build_json(table: RunTable) -> dict[str, Any]:
    return {
        "runs": [
            {
                "folder": str(run.folder),
                "state": run.state,
                "when": run.when,
                "backbone": run.backbone,
                "frozen": run.frozen,
                "labels": run.labels,
                "images": run.images,
                "mAP": run.mAP,
                "interval": run.interval,
                "macro_F1": run.macro_F1,
                "micro_F1": run.micro_F1,
                "seconds": run.seconds,
                "note": run.note,
                "parent": run.parent,
                "settings": {key: run.settings.get(key) for key in table.differing},
            }
            for run in table.runs
        ],
        "differing": list(table.differing),
    }
