"""`mlfinetune export`: writes a checkpoint as one ONNX file, verified on real pictures."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mlfinetune.errors import DataError
from mlfinetune.text import pluralize

if TYPE_CHECKING:  # it loads torch
    from mlfinetune.workflows.export import ExportResult

MAX_DROP = 0.01


def export(
    checkpoint: Annotated[
        Path, typer.Option("--checkpoint", "-c", help="Run directory or checkpoint file.")
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The .onnx file; pets.labels.csv goes beside it.")
    ],
    images: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH",
            help="Pictures to verify on. Default: the run's validation pictures.",
        ),
    ] = None,
    logits: Annotated[
        bool,
        typer.Option("--logits", help="A second output: the model's logits, not calibrated."),
    ] = False,
    int8: Annotated[
        bool,
        typer.Option("--int8", help="Compute with 8-bit integers: a smaller file, often faster."),
    ] = False,
    max_drop: Annotated[
        float | None,
        typer.Option(
            min=0, max=1, help=f"Validation mAP that --int8 may cost. Default: {MAX_DROP}."
        ),
    ] = None,
) -> None:
    """Write a checkpoint as an ONNX file: uint8 pictures in, calibrated probabilities out."""
    if max_drop is not None and not int8:
        raise DataError("--max-drop says what --int8 may cost: give both, or neither")
    from mlfinetune.runtime.loading import loading_modules
    from mlfinetune.runtime.log import RunLog

    with loading_modules():
        from mlfinetune.workflows import export as workflow

    request = workflow.ExportRequest(
        checkpoint=checkpoint,
        output=output,
        images=images,
        with_logits=logits,
        int8=int8,
        max_drop=MAX_DROP if max_drop is None else max_drop,
    )
    print(_format(workflow.run(request, RunLog()), output))


def _format(result: "ExportResult", output: Path) -> str:
    """Return what was verified and measured, and the files."""
    first = "".join(f"{size}, " for size in result.batches[:-2]) + f"{result.batches[-2]} and "
    lines = [
        f"largest difference from the checkpoint in float32: {result.difference:.1e}, on "
        f"{pluralize(result.pictures, 'picture')}, at batches of {first}{result.batches[-1]}"
    ]
    if result.costs is not None:
        lines.append("            MB   images/s     mAP")
        for name, cost in zip(("float32", "int8"), result.costs, strict=True):
            megabytes = cost.size / 1e6
            lines.append(f"{name:8}{megabytes:6.1f}   {cost.rate:8.1f}  {cost.mean_ap:.4f}")
    lines.append(f"{output}, {result.size / 1e6:.1f} MB; labels in {result.labels}")
    return "\n".join(lines)
