"""`mlfinetune apply-fixes`: writes a corrected table, and prints what it changed."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mlfinetune.text import format_list, make_lines_printable, make_printable, pluralize

if TYPE_CHECKING:  # it loads numpy
    from mlfinetune.data.fixes import Tally

SOME_FAILED = 3


def format_tally(tally: "Tally") -> str:
    """Return the counts of the decisions, and the rows that could not be applied."""
    counts = (
        (tally.added, "added"),
        (tally.removed, "removed"),
        (tally.already, "so already"),
        (tally.repeated, "repeated"),
        (tally.rejected, "rejected"),
        (tally.undecided, "undecided"),
        (len(tally.lost), "not found"),
    )
    parts = [f"{number} {what}" for number, what in counts[:2]]
    parts += [f"{number} {what}" for number, what in counts[2:] if number]
    text = f"{pluralize(tally.rows, 'decision')}: {', '.join(parts)}"
    if tally.lost:
        text += f"\nnot found in the table:\n{format_list(tally.lost)}"
    return text


def apply_fixes(
    table: Annotated[Path, typer.Argument(help="CSV or TSV table of the data.")],
    decisions: Annotated[
        Path,
        typer.Argument(help="suspects.csv with one more column, decision: accept, reject, blank."),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Table to write; it may not be there yet.")
    ],
) -> None:
    """Write a corrected copy of a table, from suspects that a person has accepted or rejected."""
    from mlfinetune.runtime.log import RunLog
    from mlfinetune.text import display_path
    from mlfinetune.workflows import apply_fixes as workflow

    log = RunLog()
    tally = workflow.run(workflow.ApplyRequest(table, decisions, output), log)
    print(make_lines_printable(format_tally(tally)))
    log.say(f"written: {make_printable(display_path(output))}")
    if tally.lost:
        raise typer.Exit(SOME_FAILED)
