"""`mlfinetune predict`: paths -> batches -> probabilities -> rows, in order, in constant memory."""

import glob
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
from mlfinetune.data.images.decode import is_image_name, walk_files
from mlfinetune.errors import DataError
from mlfinetune.location import is_url, parse_location
from mlfinetune.metrics.logits import sigmoid
from mlfinetune.metrics.types import DecisionRule, Prediction
from mlfinetune.models.inference import for_inference, tagger_of
from mlfinetune.models.scoring import compute_logits
from mlfinetune.models.tagger import Tagger
from mlfinetune.runs import checkpoint, directory
from mlfinetune.runs.predictions import FORMATS, LabelSelector, format_row_name, read_complete_rows
from mlfinetune.runtime.device import choose_precision, choose_workers, oom_as_device_error
from mlfinetune.runtime.distributed import World, init_distributed
from mlfinetune.runtime.log import RunLog
from mlfinetune.runtime.signals import Signals, catch_signals
from mlfinetune.storage import files
from mlfinetune.storage.tars import list_members
from mlfinetune.text import MAX_LISTED, display_path, pluralize

STDIN = "-"
TAR = ".tar"


@dataclass(frozen=True)
class PredictRequest:
    """What to predict, and how to write it; None where the command line says nothing.

    Attributes:
        shard: (i, n), i from 1: every n-th picture from the i-th on.
        begun: a file whose complete rows stay; the output goes on after them.
    """

    inputs: tuple[str, ...]
    checkpoint: Path | None = None
    format: str = "csv"
    threshold: float | None = None
    top: int | None = None
    only_labels: bool = False
    batch_size: int = 16
    shard: tuple[int, int] = (1, 1)
    begun: Path | None = None


@dataclass
class FailedImages:
    """Pictures that could not be read: how many, and what is wrong with the first ones."""

    count: int = 0
    first: list[str] = field(default_factory=list)

    def add(self, fault: str) -> None:
        """One more."""
        self.count += 1
        if len(self.first) < MAX_LISTED:
            self.first.append(fault)


def run(
    asked: PredictRequest,
    stdin: TextIO,
    open_output: Callable[[], AbstractContextManager[TextIO]],
    device_name: str,
    log: RunLog,
) -> FailedImages:
    """Write one row a picture, as they come.

    Args:
        asked: what to predict.
        stdin: paths, where `-` is among the inputs.
        open_output: opens the output, at its end where it is begun; called when everything else
            is known to be usable.
        device_name: as `machine.prepare` takes it.
        log: says what is done.

    Returns:
        What could not be read.

    Raises:
        MlfinetuneError: inputs, checkpoint or device that cannot be used.
    """
    with catch_signals() as heard, init_distributed(device_name) as world:
        return _predicted(asked, stdin, open_output, _Run(world, heard, log))


@dataclass(frozen=True)
class _Run:
    """Who predicts, who may interrupt it, and who is told."""

    world: World
    heard: Signals
    log: RunLog


def _predicted(
    asked: PredictRequest,
    stdin: TextIO,
    open_output: Callable[[], AbstractContextManager[TextIO]],
    of: _Run,
) -> FailedImages:
    _check(asked.inputs)
    if of.world.is_distributed:  # what is behind a URL is listed once
        asked = replace(asked, inputs=of.world.broadcast(lambda: tuple(_listed(asked.inputs))))
    world, log, device = of.world, of.log, of.world.device
    file = directory.find_checkpoint(asked.checkpoint or directory.find_newest_checkpoint())
    loaded = checkpoint.load(file)
    dtype, _ = choose_precision(restore_config(loaded.config, file).train.precision, device)
    decision, labels = loaded.decision, loaded.labels
    if asked.threshold is not None:
        decision = replace(decision, how="fixed", thresholds=(asked.threshold,) * len(labels))
    trained = tagger_of(
        loaded.backbone, len(labels), loaded.weights, loaded.transform, device, file
    )
    tagger, how = for_inference(trained, loaded.transform.image_size, device, dtype)
    log.say(
        f"checkpoint {display_path(file)}: {len(labels)} labels, {_about(decision)}; "
        f"device {device}, precision {str(dtype).removeprefix('torch.')}, {how}"
    )
    choice, failed = LabelSelector(labels, decision, asked.top), FailedImages()
    i, n = asked.shard
    ours = world.is_distributed and STDIN in asked.inputs
    names = world.broadcast(lambda: list(stdin)) if ours else stdin
    paths, begun = islice(expand_inputs(asked.inputs, names), i - 1, None, n), False
    if asked.begun is not None:
        done, begun = world.broadcast(lambda: _pass_over(asked, paths, choice, failed, log))
        if not world.is_main:
            next(islice(paths, done, done), None)
    mine = share_paths(paths, asked.batch_size, world.info.rank, world.info.size)
    batches = stream_batches(
        mine,
        loaded.transform,
        batch_size=asked.batch_size,
        workers=choose_workers("auto", device),
        pin_memory=device.type == "cuda",
    )
    rows = world.gather_stream(_predict(tagger, decision, batches, device, dtype))
    with (
        oom_as_device_error(),
        open_output() if world.is_main else open(os.devnull, "w") as output,
        log.bar("predict", None, shown=not output.isatty()) as bar,
    ):
        writer = FORMATS[asked.format](output, choice, asked.only_labels, begun)
        for predictions in rows:
            for prediction in predictions:
                writer.write(prediction)
                of.heard.check()
                if prediction.error is not None:
                    failed.add(f"{prediction.name}: {prediction.error}")
            bar.update(len(predictions))
        if world.is_main and not bar.done and not begun:
            raise DataError(f"no pictures in {' '.join(asked.inputs)}")
        log.say(f"{bar.done} images, {bar.rate:.1f} images/s")
    return failed


def share_paths(paths: Iterator[str], batch_size: int, rank: int, size: int) -> Iterator[str]:
    """Those in every batch of process `rank`: of `size` batches in a row, one is each one's."""
    batches = iter(lambda: tuple(islice(paths, batch_size)), ())
    return chain.from_iterable(islice(batches, rank, None, size))


def expand_inputs(inputs: Iterable[str], stdin: Iterable[str]) -> Iterator[str]:
    """Files, folders, tars, URLs, globs and `-` become the paths of pictures, one after the other.

    Folders give their pictures in sorted order, by the endings of their names; files that are
    named, by a glob too, are taken whatever their ending.
    """
    for item in inputs:
        if item == STDIN:
            yield from (name for line in stdin if (name := line.rstrip("\r\n")))
        elif is_url(item):
            yield from _behind(item)
        elif os.path.isdir(item):
            yield from chain.from_iterable(map(_in_folder, walk_files(Path(item))))
        elif os.path.exists(item) or files.read_stamp(item):
            yield from _named(item)
        else:
            found = sorted(glob.glob(item, recursive=True))
            yield from chain.from_iterable(_named(p) for p in found if not os.path.isdir(p))


def _listed(inputs: Iterable[str]) -> Iterator[str]:
    """The inputs, but for folders and patterns behind URLs their pictures."""
    for item in inputs:
        yield from _behind(item) if is_url(item) else (item,)


def _in_folder(path: Path) -> Iterator[str]:
    """A picture by its name, or those of a tar."""
    if path.suffix == TAR or is_image_name(path):
        yield from _named(str(path))


def _named(path: str) -> Iterator[str]:
    """A file as it is; of a tar its pictures, but for hidden ones."""
    if not (path.endswith(TAR) and os.path.isfile(path)):
        yield path
        return
    for name, *_ in list_members(path):
        if is_image_name(Path(name)) and not os.path.basename(name).startswith("."):
            yield f"{path}/{name}"


def _behind(url: str) -> Iterator[str]:
    """The object, or the pictures below a URL that ends in `/`, or that its `*` match."""
    if url.endswith("/") or "*" in url:
        yield from (name for name in files.list_urls(url) if is_image_name(Path(name)))
    else:
        yield url


def _pass_over(
    asked: PredictRequest,
    paths: Iterator[str],
    choice: LabelSelector,
    failed: FailedImages,
    log: RunLog,
) -> tuple[int, bool]:
    """Take from `paths` those that a file has complete rows of, and cut off the rest of the file.

    Returns:
        How many, and whether it has its header.

    Raises:
        DataError: it has rows of other pictures, labels or columns.
    """
    path = asked.begun
    assert path is not None
    if not path.exists():
        return 0, False
    end = done = 0
    for row in read_complete_rows(path, asked.format, choice, asked.only_labels):
        end = row.end
        if not row.number:
            continue  # the header
        done, name = row.number, next(paths, None)
        if name is None or format_row_name(name, asked.format) != row.name:
            now = "there is none any more" if name is None else f"now it is {name}"
            raise DataError(
                f"{path}: row {row.number} is of {row.name}, {now}; go on with the same pictures, "
                f"or begin anew without --resume"
            )
        if row.failed:
            failed.add(f"{name}: as said before")
    os.truncate(path, end)
    log.say(f"{path}: {pluralize(done, 'row')} complete, going on after them")
    return done, bool(end)


def _check(inputs: Iterable[str]) -> None:
    missing = [
        item
        for item in inputs
        if item != STDIN
        and not is_url(item)
        and not os.path.exists(item)
        and not files.read_stamp(item)
        and not glob.glob(item, recursive=True)
    ]
    try:
        for item in inputs:
            parse_location(item)
    except ValueError as error:
        raise DataError(str(error)) from error
    if missing:
        raise DataError(f"no such file or folder, and no file matches: {', '.join(missing)}")


def _about(decision: DecisionRule) -> str:
    """Where labels begin, and whose probabilities these are."""
    low, high = min(decision.thresholds), max(decision.thresholds)
    source = "" if decision.how == "fixed" else f" ({decision.how})"
    text = f"threshold {low:g}" if low == high else f"thresholds {low:.2f} to {high:.2f}"
    calibrated = "" if decision.calibration == "none" else f", calibrated ({decision.calibration})"
    review = "" if not decision.review else ", review {:g} to {:g}".format(*decision.review)
    return text + source + calibrated + review


def _predict(
    tagger: Tagger,
    decision: DecisionRule,
    batches: Iterable[tuple[list[str], Batch]],
    device: torch.device,
    dtype: torch.dtype,
) -> Iterator[list[Prediction]]:
    """One Prediction a path, in order, batch by batch."""
    for names, batch in batches:
        rows: dict[int, Prediction] = {
            f.index: Prediction(names[f.index], None, f.reason) for f in batch.failures
        }
        if len(batch.indices):
            logits = compute_logits(tagger, batch, device, dtype)
            scored = sigmoid(decision.calibrated(logits))
            for index, row in zip(batch.indices.tolist(), scored, strict=True):
                rows[index] = Prediction(names[index], row)
        yield [rows[index] for index in range(len(names))]
