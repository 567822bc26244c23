"""`mlfinetune predict`: paths -> batches -> probabilities -> rows, in order, in constant memory.

Inputs (files, folders, tars, URLs, globs, stdin) become one stream of paths that is never held in
memory as a whole. With R ranks, rank r predicts the batches r, r + R, r + 2R, ... (see
`share_paths`), and rank 0 writes all rows in order.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from pathlib import Path
from typing import TextIO

import torch

from mlfinetune.config import restore_config
from mlfinetune.data.batches.batch import Batch
from mlfinetune.data.batches.loader import stream_batches
from mlfinetune.data.images.transforms import TransformSpec
from mlfinetune.data.inputs import STDIN, expand_inputs, expand_url, require_inputs
from mlfinetune.data.lines import read_lines, wait_for_lines
from mlfinetune.errors import DataError
from mlfinetune.location import is_url
from mlfinetune.metrics.types import DecisionRule, EvalViews, Prediction
from mlfinetune.models.scoring import describe_views
from mlfinetune.predicting.backend import Backend, open_backend
from mlfinetune.predicting.remote import parse_source
from mlfinetune.predicting.tagger import BATCH_SIZE, Tagger
from mlfinetune.runs import directory
from mlfinetune.runs.label_studio_tasks import find_interface, name_model
from mlfinetune.runs.overlays import OverlayWriter
from mlfinetune.runs.predictions import FORMATS, TASKS, LabelSelector, RowWriter, TaskWriter
from mlfinetune.runs.rule import describe_decision, describe_other_views
from mlfinetune.runs.sidecars import (
    Change,
    ChangeLines,
    SidecarError,
    SidecarWriter,
    name_checkpoint,
    refuse_distant,
)
from mlfinetune.runs.written_rows import format_row_name, read_complete_rows
from mlfinetune.runtime.device import choose_workers, oom_as_device_error
from mlfinetune.runtime.distributed import World, init_distributed
from mlfinetune.runtime.log import RunLog
from mlfinetune.runtime.signals import Signals, catch_signals
from mlfinetune.text import MAX_LISTED, display_path, pluralize


@dataclass(frozen=True)
class PredictRequest:
    """Arguments of `mlfinetune predict`; None where the command line says nothing.

    Attributes:
        inputs: files, folders, tars, URLs, globs, or `-` for paths on stdin.
        checkpoint: run directory, file, or the URL of one; None: the newest run in runs/.
        format: csv, jsonl, text or label-studio.
        threshold: replaces the checkpoint's thresholds.
        top: name the K most probable labels instead of those over their thresholds.
        only_labels: leave the probabilities out.
        batch_size: images that the model takes at once.
        shard: (i, n), i from 1: every n-th picture from the i-th on.
        resume_from: a file of an earlier run; its complete rows stay, and new rows follow them.
        views: versions of a picture that are scored; None: the checkpoint's.
        explain: folder for overlays that show where the model looked; None: none are written.
        sidecars: xmp, lightroom or txt: files of labels beside the pictures; None: none.
        dry_run: write no sidecar and no row, but a line for each sidecar that would change.
    """

    inputs: tuple[str, ...]
    checkpoint: str | None = None
    format: str = "csv"
    threshold: float | None = None
    top: int | None = None
    only_labels: bool = False
    batch_size: int = BATCH_SIZE
    shard: tuple[int, int] = (1, 1)
    resume_from: Path | None = None
    views: EvalViews | None = None
    explain: Path | None = None
    sidecars: str | None = None
    dry_run: bool = False


@dataclass
class Faults:
    """Faults: their number, and the first ones."""

    count: int = 0
    first: list[str] = field(default_factory=list)

    def add(self, fault: str) -> None:
        """Count a fault; keep it if it is among the first."""
        self.count += 1
        if len(self.first) < MAX_LISTED:
            self.first.append(fault)


@dataclass
class FailedImages(Faults):
    """Pictures that could not be read; and sidecars that could not be written."""

    sidecars: Faults = field(default_factory=Faults)


def run(
    request: PredictRequest,
    stdin: TextIO,
    open_output: Callable[[], AbstractContextManager[TextIO]],
    device_name: str,
    log: RunLog,
) -> FailedImages:
    """Write one row for each picture, as soon as it is predicted.

    Args:
        request: inputs, checkpoint and format.
        stdin: paths, one a line, read where `-` is among the inputs.
        open_output: opens the output, at its end with `resume_from`. It is called when the first
            batch is predicted, so that a mistake does not empty an older file.
        device_name: auto, cpu, cuda, cuda:N or mps.
        log: says what predicts, and how fast.

    Returns:
        The pictures that could not be read.

    Raises:
        MlfinetuneError: inputs, checkpoint or device that cannot be used.
    """
    with catch_signals() as signals, init_distributed(device_name) as world:
        return _run_on_rank(request, stdin, open_output, world, signals, log)


def _run_on_rank(
    request: PredictRequest,
    stdin: TextIO,
    open_output: Callable[[], AbstractContextManager[TextIO]],
    world: World,
    signals: Signals,
    log: RunLog,
) -> FailedImages:
    require_inputs(request.inputs)
    if request.sidecars is not None:
        refuse_distant(request.inputs)
    inputs = _share_listings(request.inputs, world)
    tagger, decision = _open_tagger(request, world.device, log)
    selector = LabelSelector(tagger.backend.labels, decision, request.top)
    sidecars = _build_sidecars(request, tagger.backend, selector, log)
    failed = FailedImages()
    paths = _stream_paths(inputs, request.shard, stdin, world)
    has_header = False
    if request.resume_from is not None:
        skipped, has_header = world.broadcast(
            lambda: _skip_complete_rows(request, paths, selector, failed, log)
        )
        if not world.is_main:
            next(islice(paths, skipped, skipped), None)
    batches = _read_share(tagger.backend.spec, paths, request.batch_size, world)
    share = tagger.predict_batches(batches)
    if request.explain is not None:
        explain = tagger.backend.build_explainer()
        share = OverlayWriter(request.explain, selector, explain).write_before(share, log.say)
    rows = world.gather_stream(share)
    first = next(rows, None)
    if world.is_main and first is None and not has_header:
        raise DataError(f"no pictures in {' '.join(request.inputs)}")
    with (
        oom_as_device_error(),
        open_output() if world.is_main else open(os.devnull, "w") as output,
        log.bar("predict", None, shown=not output.isatty()) as bar,
    ):
        writer = _build_writer(request, tagger.backend, output, selector, has_header, log)
        for predictions in chain([first] if first else [], rows):
            _write_batch(writer, sidecars, predictions, failed, signals)
            output.flush()  # whoever sends paths one by one waits for this row
            bar.update(len(predictions))
        if isinstance(writer, TaskWriter):
            writer.finish()
        log.say(f"{pluralize(bar.done, 'image')}, {bar.rate:.1f} images/s")
        if sidecars is not None:
            log.say(sidecars.counts.describe(request.dry_run))
    return failed


def _build_writer(
    request: PredictRequest,
    backend: Backend,
    output: TextIO,
    selector: LabelSelector,
    begun: bool,
    log: RunLog,
) -> RowWriter | ChangeLines:
    """Return what writes the rows, or the changes of `--dry-run`."""
    if request.dry_run:
        return ChangeLines(output)
    if request.format != TASKS:
        return FORMATS[request.format](output, selector, request.only_labels, begun)
    interface, names = find_interface(restore_config(backend.config, backend.file))
    log.say(names)
    model = name_model(name_checkpoint(backend.name, backend.file))
    return TaskWriter(output, selector, request.only_labels, begun, model, interface)


def _build_sidecars(
    request: PredictRequest, backend: Backend, selector: LabelSelector, log: RunLog
) -> SidecarWriter | None:
    """Return what writes the sidecars, on rank 0, which has the rows of all; None: none are wanted.

    Each rank has one, so that all refuse labels that cannot be written.
    """
    if request.sidecars is None:
        return None
    origin = name_checkpoint(backend.name, backend.file)
    return SidecarWriter(request.sidecars, selector, origin, log.say, request.dry_run)


def _write_batch(
    writer: RowWriter | ChangeLines,
    sidecars: SidecarWriter | None,
    predictions: Iterable[Prediction],
    failed: FailedImages,
    signals: Signals,
) -> None:
    """Write a row for each prediction, and count the failed ones; signals act between two rows.

    The sidecar comes before its row: a resumed run goes on after the last row, and leaves none out.
    """
    for prediction in predictions:
        change = _write_sidecar(sidecars, prediction, failed.sidecars)
        if isinstance(writer, ChangeLines):
            writer.write(change)
        else:
            writer.write(prediction)
        signals.check()
        if prediction.error is not None:
            failed.add(f"{prediction.name}: {prediction.error}")


def _write_sidecar(
    sidecars: SidecarWriter | None, prediction: Prediction, failed: Faults
) -> Change | None:
    """Write the sidecar of a prediction, and count it where it cannot be written."""
    try:
        return sidecars.write(prediction) if sidecars is not None else None
    except SidecarError as error:
        failed.add(str(error))
        return None


# ---- the pictures of each rank ----------------------------------------------------------


def _share_listings(inputs: tuple[str, ...], world: World) -> tuple[str, ...]:
    """List the pictures behind URLs on rank 0, so that all ranks have the same ones."""
    if not world.is_distributed:
        return inputs
    listed = (expand_url(item) if is_url(item) else (item,) for item in inputs)
    return world.broadcast(lambda: tuple(chain.from_iterable(listed)))


def _stream_paths(
    inputs: tuple[str, ...], shard: tuple[int, int], stdin: TextIO, world: World
) -> Iterator[str | None]:
    """Return the paths of one shard of the inputs; all ranks get the same ones.

    With one rank stdin is read line by line, so that it may be endless, and gives None where it
    has no line right now (`data.lines`). With several ranks, only
    rank 0 has a stdin: it reads all lines, and sends them to the others.
    """
    lines = read_lines(stdin)
    if world.is_distributed and STDIN in inputs:
        lines = world.broadcast(lambda: list(wait_for_lines(lines)))
    return _take_shard(expand_inputs(inputs, lines), *shard)


def _take_shard(paths: Iterable[str | None], i: int, n: int) -> Iterator[str | None]:
    """Yield every n-th path from the i-th on, and each None between them."""
    number = 0
    for path in paths:
        number += path is not None
        if path is None or number % n == i % n:
            yield path


def share_paths(
    paths: Iterator[str | None], batch_size: int, rank: int, size: int
) -> Iterator[str | None]:
    """Yield the paths of one rank: batch number `rank` of every `size` consecutive batches.

        paths a b c d e f g h i, batch_size 2, size 2
        rank 0: a b e f i        rank 1: c d g h

    `World.gather_stream` takes one batch of each rank in turn, which restores the order.
    """
    if size == 1:
        return paths
    batches = iter(lambda: tuple(islice(paths, batch_size)), ())
    return chain.from_iterable(islice(batches, rank, None, size))


# ---- resuming ---------------------------------------------------------------------------


def _skip_complete_rows(
    request: PredictRequest,
    paths: Iterator[str | None],
    selector: LabelSelector,
    failed: FailedImages,
    log: RunLog,
) -> tuple[int, bool]:
    """Skip the paths whose rows are complete in the file of an earlier run.

    The file is cut after its last complete row. Rows of pictures that failed are added to `failed`.

    | the CSV file holds                | paths before  | returns    | next path | file is cut to |
    |-----------------------------------|---------------|------------|-----------|----------------|
    | (there is no such file)           | a b c         | (0, False) | a         |                |
    | half a header                     | a b c         | (0, False) | a         | nothing        |
    | the header                        | a b c         | (0, True)  | a         | the header     |
    | the header, a's row, half a row   | a b c         | (1, True)  | b         | a's row        |
    | the header, b's row               | a b c         | DataError  |           |                |

    Returns:
        The number of complete rows, and whether the file holds anything complete. A CSV file then
        has its header.

    Raises:
        DataError: the file has rows of other pictures, labels or columns.
    """
    path = request.resume_from
    assert path is not None
    if not path.exists():
        return 0, False
    ready = wait_for_lines(paths)
    end = done = 0
    for row in read_complete_rows(path, request.format, selector, request.only_labels):
        end = row.end
        if row.number == 0:
            continue  # the header of a CSV file
        done = row.number
        name = next(ready, None)
        if name is None or format_row_name(name, request.format) != row.name:
            now = "there is none any more" if name is None else f"now it is {name}"
            raise DataError(
                f"{path}: row {row.number} is of {row.name}, {now}; --resume needs the same "
                f"pictures in the same order, or begin anew without it"
            )
        if row.failed:
            failed.add(f"{name}: failed in the earlier run, see its row")
    os.truncate(path, end)
    log.say(f"{path}: {pluralize(done, 'row')} complete, resuming after them")
    return done, bool(end)


# ---- predicting -------------------------------------------------------------------------


def _open_tagger(
    request: PredictRequest, device: torch.device, log: RunLog
) -> tuple[Tagger, DecisionRule]:
    """Open the checkpoint; log its path, thresholds, device and precision.

    Returns:
        The tagger, and the decision rule with the request's threshold.
    """
    named = request.checkpoint
    source = directory.find_newest_checkpoint() if named is None else parse_source(named)
    backend = open_backend(source, device)
    if request.views is not None:
        backend = backend.with_views(request.views)
    decision, views = backend.decision, backend.views
    if request.threshold is not None:
        decision = decision.with_threshold(request.threshold)
    log.say(
        f"checkpoint {_describe_source(backend.name)}: "
        f"{pluralize(len(backend.labels), 'label')}, {describe_decision(decision)}; "
        f"{describe_views(views)}device {backend.device}, {backend.how}"
    )
    applied = decision if request.top is None else replace(decision, how="fixed")
    if warning := describe_other_views(views, backend.fitted_views, applied):
        log.say(warning)
    return Tagger(backend), decision


def _describe_source(name: str) -> str:
    return name if is_url(name) else display_path(Path(name))


def _read_share(
    spec: TransformSpec, paths: Iterator[str | None], batch_size: int, world: World
) -> Iterator[tuple[list[str], Batch]]:
    """Decode this rank's share of the paths, batch by batch."""
    return stream_batches(
        share_paths(paths, batch_size, world.info.rank, world.info.size),
        spec,
        batch_size=batch_size,
        workers=choose_workers("auto", world.device),
        pin_memory=world.device.type == "cuda",
    )
