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

from mlfinetune import assemble, checkpoint, machine, rundir, runtime
from mlfinetune.config import restore
from mlfinetune.data import files, tars
from mlfinetune.data.images import is_image_name, walk
from mlfinetune.data.loader import stream
from mlfinetune.errors import SHOWN, DataError, counted
from mlfinetune.model import Tagger
from mlfinetune.names import is_url, location
from mlfinetune.predictions import FORMATS, Choice, complete_rows, row_name
from mlfinetune.records import Batch, Decision, Prediction
from mlfinetune.runlog import RunLog
from mlfinetune.runtime import World
from mlfinetune.score import forward, probabilities
from mlfinetune.signals import Signals, signals

STDIN = "-"
TAR = ".tar"


@dataclass(frozen=True)
class Asked:
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
class Failed:
    """Pictures that could not be read: how many, and what is wrong with the first ones."""

    count: int = 0
    first: list[str] = field(default_factory=list)

    def add(self, fault: str) -> None:
        """One more."""
        self.count += 1
        if len(self.first) < SHOWN:
            self.first.append(fault)


def run(
    asked: Asked,
    stdin: TextIO,
    open_output: Callable[[], AbstractContextManager[TextIO]],
    device_name: str,
    log: RunLog,
) -> Failed:
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
    with signals() as heard, runtime.joined(device_name) as world:
        return _predicted(asked, stdin, open_output, _Run(world, heard, log))


@dataclass(frozen=True)
class _Run:
    """Who predicts, who may interrupt it, and who is told."""

    world: World
    heard: Signals
    log: RunLog


def _predicted(
    asked: Asked,
    stdin: TextIO,
    open_output: Callable[[], AbstractContextManager[TextIO]],
    of: _Run,
) -> Failed:
    _check(asked.inputs)
    if of.world.several:  # what is behind a URL is listed once
        asked = replace(asked, inputs=of.world.decide(lambda: tuple(_listed(asked.inputs))))
    world, log, device = of.world, of.log, of.world.device
    file = rundir.find_checkpoint(asked.checkpoint or rundir.newest_finished())
    loaded = checkpoint.load(file)
    dtype, _ = machine.choose_precision(restore(loaded.config, file).train.precision, device)
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
    choice, failed = Choice(labels, decision, asked.top), Failed()
    i, n = asked.shard
    ours = world.several and STDIN in asked.inputs
    names = world.decide(lambda: list(stdin)) if ours else stdin
    paths, begun = islice(expand(asked.inputs, names), i - 1, None, n), False
    if asked.begun is not None:
        done, begun = world.decide(lambda: _pass_over(asked, paths, choice, failed, log))
        if not world.main:
            next(islice(paths, done, done), None)
    mine = share(paths, asked.batch_size, world.place.rank, world.place.size)
    batches = stream(
        mine,
        loaded.transform,
        batch_size=asked.batch_size,
        workers=machine.choose_workers("auto", device),
        pin_memory=device.type == "cuda",
    )
    rows = world.merged(_predict(tagger, decision, batches, device, dtype))
    with (
        machine.device_faults(),
        open_output() if world.main else open(os.devnull, "w") as output,
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
        if world.main and not bar.done and not begun:
            raise DataError(f"no pictures in {' '.join(asked.inputs)}")
        log.say(f"{bar.done} images, {bar.rate:.1f} images/s")
    return failed


def share(paths: Iterator[str], batch_size: int, rank: int, size: int) -> Iterator[str]:
    """Those in every batch of process `rank`: of `size` batches in a row, one is each one's."""
    batches = iter(lambda: tuple(islice(paths, batch_size)), ())
    return chain.from_iterable(islice(batches, rank, None, size))


def expand(inputs: Iterable[str], stdin: Iterable[str]) -> Iterator[str]:
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
            yield from chain.from_iterable(map(_in_folder, walk(Path(item))))
        elif os.path.exists(item) or files.stamp(item):
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
    for name, *_ in tars.members(path):
        if is_image_name(Path(name)) and not os.path.basename(name).startswith("."):
            yield f"{path}/{name}"


def _behind(url: str) -> Iterator[str]:
    """The object, or the pictures below a URL that ends in `/`, or that its `*` match."""
    if url.endswith("/") or "*" in url:
        yield from (name for name in files.listing(url) if is_image_name(Path(name)))
    else:
        yield url


def _pass_over(
    asked: Asked, paths: Iterator[str], choice: Choice, failed: Failed, log: RunLog
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
    for row in complete_rows(path, asked.format, choice, asked.only_labels):
        end = row.end
        if not row.number:
            continue  # the header
        done, name = row.number, next(paths, None)
        if name is None or row_name(name, asked.format) != row.name:
            now = "there is none any more" if name is None else f"now it is {name}"
            raise DataError(
                f"{path}: row {row.number} is of {row.name}, {now}; go on with the same pictures, "
                f"or begin anew without --resume"
            )
        if row.failed:
            failed.add(f"{name}: as said before")
    os.truncate(path, end)
    log.say(f"{path}: {counted(done, 'row')} complete, going on after them")
    return done, bool(end)


def _check(inputs: Iterable[str]) -> None:
    missing = [
        item
        for item in inputs
        if item != STDIN
        and not is_url(item)
        and not os.path.exists(item)
        and not files.stamp(item)
        and not glob.glob(item, recursive=True)
    ]
    try:
        for item in inputs:
            location(item)
    except ValueError as error:
        raise DataError(str(error)) from error
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
) -> Iterator[list[Prediction]]:
    """One Prediction a path, in order, batch by batch."""
    for names, batch in batches:
        rows: dict[int, Prediction] = {
            f.index: Prediction(names[f.index], None, f.reason) for f in batch.failures
        }
        if len(batch.indices):
            logits = forward(tagger, batch, device, dtype)
            scored = probabilities(decision.calibrated(logits))
            for index, row in zip(batch.indices.tolist(), scored, strict=True):
                rows[index] = Prediction(names[index], row)
        yield [rows[index] for index in range(len(names))]
