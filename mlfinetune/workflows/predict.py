"""`mlfinetune predict`: paths -> batches -> probabilities -> rows, in order, in constant memory."""

import glob
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TextIO

import torch

from mlfinetune import assemble, checkpoint, rundir, runtime
from mlfinetune.config import restore
from mlfinetune.data.images import is_image_name, walk
from mlfinetune.data.loader import stream
from mlfinetune.errors import DataError
from mlfinetune.model import Tagger
from mlfinetune.records import Batch, Decision, Prediction
from mlfinetune.runlog import Bar, RunLog
from mlfinetune.score import forward, probabilities
from mlfinetune.signals import signals
from mlfinetune.tables import FORMATS, Choice

STDIN = "-"


@dataclass(frozen=True)
class Asked:
    """What to predict, and how to write it; None where the command line says nothing."""

    inputs: tuple[str, ...]
    checkpoint: Path | None = None
    format: str = "csv"
    threshold: float | None = None
    top: int | None = None
    only_labels: bool = False
    batch_size: int = 16


def run(
    asked: Asked,
    stdin: TextIO,
    open_output: Callable[[], AbstractContextManager[TextIO]],
    device_name: str,
    log: RunLog,
) -> list[str]:
    """Write one row a picture, as they come.

    Args:
        asked: what to predict.
        stdin: paths, where `-` is among the inputs.
        open_output: opens the output; called when everything else is known to be usable.
        device_name: as `runtime.prepare` takes it.
        log: says what is done.

    Returns:
        A line for each picture that could not be read.

    Raises:
        MlfinetuneError: inputs, checkpoint or device that cannot be used.
    """
    _check(asked.inputs)
    file = rundir.find_checkpoint(asked.checkpoint or rundir.newest_finished())
    loaded = checkpoint.load(file)
    device = runtime.prepare(device_name)
    dtype, _ = runtime.choose_precision(restore(loaded.config, file).train.precision, device)
    decision, labels = loaded.decision, loaded.labels
    if asked.threshold is not None:
        decision = replace(decision, how="fixed", thresholds=(asked.threshold,) * len(labels))
    tagger, how = assemble.serving(
        assemble.model_of(loaded, device, file), loaded.transform.image_size, device, dtype
    )
    log.say(
        f"checkpoint {rundir.shown(file)}: {len(labels)} labels, {_about(decision)}; "
        f"device {device}, precision {str(dtype).removeprefix('torch.')}, {how}"
    )
    batches = stream(
        expand(asked.inputs, stdin),
        loaded.transform,
        batch_size=asked.batch_size,
        workers=runtime.choose_workers("auto", device),
        pin_memory=device.type == "cuda",
    )
    choice, failed = Choice(labels, decision, asked.top), []
    with (
        signals() as heard,
        runtime.device_faults(),
        open_output() as output,
        log.bar("predict", None, shown=not output.isatty()) as bar,
    ):
        writer = FORMATS[asked.format](output, choice, asked.only_labels)
        for prediction in _predict(tagger, decision, batches, device, dtype, bar):
            writer.write(prediction)
            heard.check()
            if prediction.error is not None:
                failed.append(f"{prediction.name}: {prediction.error}")
        if not bar.done:
            raise DataError(f"no pictures in {' '.join(asked.inputs)}")
        log.say(f"{bar.done} images, {bar.rate:.1f} images/s")
    return failed


def expand(inputs: Iterable[str], stdin: TextIO) -> Iterator[str]:
    """Files, folders, globs and `-` become the paths of pictures, one after the other.

    Folders give their pictures in sorted order, by the endings of their names; files that are
    named, by a glob too, are taken whatever their ending.
    """
    for item in inputs:
        if item == STDIN:
            yield from (name for line in stdin if (name := line.rstrip("\r\n")))
        elif os.path.isdir(item):
            yield from (str(path) for path in walk(Path(item)) if is_image_name(path))
        elif os.path.exists(item):
            yield item
        else:
            found = sorted(glob.glob(item, recursive=True))
            yield from (path for path in found if not os.path.isdir(path))


def _check(inputs: Iterable[str]) -> None:
    missing = [
        item
        for item in inputs
        if item != STDIN and not os.path.exists(item) and not glob.glob(item, recursive=True)
    ]
    if missing:
        raise DataError(f"no such file or folder, and no file matches: {', '.join(missing)}")


def _about(decision: Decision) -> str:
    """Where labels begin, and whose probabilities these are."""
    low, high = min(decision.thresholds), max(decision.thresholds)
    source = "" if decision.how == "fixed" else f" ({decision.how})"
    text = f"threshold {low:g}" if low == high else f"thresholds {low:.2f} to {high:.2f}"
    calibrated = "" if decision.calibration == "none" else f", calibrated ({decision.calibration})"
    review = "" if not decision.review else ", review {:g} to {:g}".format(*decision.review)
    return text + source + calibrated + review


def _predict(
    tagger: Tagger,
    decision: Decision,
    batches: Iterable[tuple[list[str], Batch]],
    device: torch.device,
    dtype: torch.dtype,
    bar: Bar,
) -> Iterator[Prediction]:
    """One Prediction a path, in order."""
    for names, batch in batches:
        rows: dict[int, Prediction] = {
            f.index: Prediction(names[f.index], None, f.reason) for f in batch.failures
        }
        if len(batch.indices):
            logits = forward(tagger, batch, device, dtype)
            scored = probabilities(decision.calibrated(logits))
            for index, row in zip(batch.indices.tolist(), scored, strict=True):
                rows[index] = Prediction(names[index], row)
        yield from (rows[index] for index in range(len(names)))
        bar.update(len(names))
