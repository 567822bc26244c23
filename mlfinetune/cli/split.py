"""`mlfinetune split`: writes a table with a split column, and prints its balance."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mlfinetune.text import choose_column_width, fit_width, make_printable, pluralize

if TYPE_CHECKING:  # it loads numpy
    from mlfinetune.data.checks import Balance

SHOWN_LABELS = 20


def format_balance(balance: "Balance") -> str:
    """Return the sizes of the sides, and each label's share held out, the worst labels first."""
    sizes = ", ".join(f"{n} {side}" for side, n in zip(balance.sides, balance.sizes, strict=True))
    lines = [f"{pluralize(sum(balance.sizes), 'image')}: {sizes}", ""]
    column = choose_column_width(36, 40)
    lines.append(f"  {'label':<{column}} {'positives':>9} {'share held out':>15} {'by chance':>11}")
    rows = sorted(
        balance.rows, key=lambda row: (not row.positives, -abs(row.share - balance.wanted))
    )
    for row in rows[:SHOWN_LABELS]:
        name = fit_width(make_printable(row.label), column)
        lines.append(f"  {name} {row.positives:>9} {row.share:>14.1%} {row.by_chance:>11.1%}")
    if len(rows) > SHOWN_LABELS:
        lines.append(f"  ... {pluralize(len(rows) - SHOWN_LABELS, 'label')} nearer to their share")
    worst, chance = balance.worst
    lines += [
        "",
        f"of all images {balance.wanted:.1%} are held out; the worst label is {worst:.1%} off, "
        f"in a random split {chance:.1%}",
    ]
    return "\n".join(lines)


def split(
    data: Annotated[
        Path, typer.Argument(help="Table or folder, the same as data.train in a config.")
    ],
    val: Annotated[
        float, typer.Option(min=0, max=1, help="Share of the images held out for validation.")
    ] = 0.2,
    test: Annotated[
        float, typer.Option(min=0, max=1, help="Share of the images held out for testing.")
    ] = 0.0,
    group_by: Annotated[
        str | None,
        typer.Option(help="Column of the table; rows with the same value stay on one side."),
    ] = None,
    images: Annotated[
        Path | None,
        typer.Option(help="Folder that the table's paths start from. Default: its own."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="CSV file to write.", show_default="NAME.split.csv"),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the random choices.")] = 0,
) -> None:
    """Split a data set into train, val and test, with every label's share kept on each side."""
    from mlfinetune.runtime.log import RunLog
    from mlfinetune.text import display_path
    from mlfinetune.workflows import split as workflow

    log = RunLog()
    request = workflow.SplitRequest(data.absolute(), val, test, group_by, images, output, seed)
    result = workflow.run(request, log)
    print(format_balance(result.balance))
    written = display_path(result.file)
    log.say(f"written: {written}; train on it with data.train: {written}")
