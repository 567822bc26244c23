"""`mlfinetune train`: config -> examples -> parts -> epochs of (fit, score, save) -> results."""

import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from mlfinetune import assemble, checkpoint, examples, rundir, runtime, tables
from mlfinetune.config import Config, dump
from mlfinetune.data.loader import Loader
from mlfinetune.data.manifest import Splits
from mlfinetune.fit import fit
from mlfinetune.loss import Loss
from mlfinetune.metrics.measure import measure
from mlfinetune.model import Tagger
from mlfinetune.records import MetricTable, ScoreTable, StepRecord, TransformSpec
from mlfinetune.runlog import Bar, RunLog, clock
from mlfinetune.score import probabilities, score


@dataclass(frozen=True)
class Trained:
    """A finished run: its directory, and the numbers of its best epoch."""

    run: Path
    table: MetricTable


@dataclass(frozen=True)
class _Parts:
    """What a run is made of."""

    config: Config
    splits: Splits
    spec: TransformSpec
    tagger: Tagger
    loss: Loss
    train: Loader
    val: Loader
    device: torch.device
    dtype: torch.dtype


@dataclass(frozen=True)
class _Epoch:
    """One epoch's outcome; `number` counts from 1."""

    number: int
    table: MetricTable
    scores: ScoreTable
    loss: float
    images_per_s: float
    seconds_left: float

    def beats(self, other: "_Epoch") -> bool:
        """A higher mAP; where mAP is undefined the later epoch."""
        ours, theirs = self.table.averages["mAP"], other.table.averages["mAP"]
        return theirs is None or (ours is not None and ours > theirs)


def run(config: Config, device_name: str, log: RunLog) -> Trained:
    """Train as `config` says; returns when the run directory is complete.

    Raises:
        MlfinetuneError: data, weights, device or a loss that cannot be used.
    """
    return _train(config, examples.splits(config, log), device_name, log)


def dry_run(config: Config, device_name: str, log: RunLog) -> Trained:
    """One batch of everything: train, validate, save, write; no file is left."""
    splits = examples.splits(config, log if config.data.bad_images == "skip" else None)
    rows = list(range(config.train.batch_size))
    few = replace(
        splits,
        train=splits.train.take(rows[: len(splits.train)]),
        val=splits.val.take(rows[: len(splits.val)]),
    )
    with tempfile.TemporaryDirectory() as folder:
        once = config.train.model_copy(update={"epochs": 1})
        output = Path(folder) / "dry-run"
        config = config.model_copy(update={"train": once, "output": output})
        return _train(config, few, device_name, log)


def _train(config: Config, splits: Splits, device_name: str, log: RunLog) -> Trained:
    started = time.monotonic()
    for note in splits.notes:
        log.say(note)
    parts = _assemble(examples.settled(config, splits), splits, device_name, log)
    run = _open_run(parts, log)
    with runtime.device_faults():
        best = _best_epoch(parts, run, log)
    about = {"data": "validation", "epoch": best.number}
    scores = probabilities(best.scores.logits)
    tables.write_results(run, best.table, best.scores.names, scores, about)
    peak = runtime.peak_memory(parts.device) / 2**30
    log.say(
        f"best epoch {best.number} of {config.train.epochs}; "
        f"{clock(time.monotonic() - started)} in all, peak memory {peak:.1f} GiB"
    )
    return Trained(run, best.table)


def _open_run(parts: _Parts, log: RunLog) -> Path:
    """A run directory of its own, with the resolved config and the labels in it."""
    assert parts.config.output is not None
    run = rundir.claim(parts.config.output)
    rundir.write_atomic(run / rundir.CONFIG, dump(parts.config).encode())
    labels = "".join(f"{name}\n" for name in parts.splits.train.labels.names)
    rundir.write_atomic(run / rundir.LABELS, labels.encode(errors="surrogateescape"))
    if parts.splits.skipped:
        tables.write_skipped(run, parts.splits.skipped)
    log.keep_in(run)
    log.say(f"run directory: {rundir.shown(run)}")
    return run


def _best_epoch(parts: _Parts, run: Path, log: RunLog) -> _Epoch:
    """Train, saving every epoch; the best one, or the best so far where training stops early."""
    train, best = parts.config.train, None
    try:
        for epoch in _epochs(parts, log):
            best = epoch if best is None or epoch.beats(best) else best
            _save(parts, epoch, run, is_best=epoch is best)
            log.say(_epoch_line(epoch, best, train.epochs))
            since = epoch.number - best.number
            if train.early_stopping is not None and since >= train.early_stopping:
                log.say(f"early stop: no better mAP for {since} epochs")
                break
    except KeyboardInterrupt:
        saved = "nothing saved yet" if best is None else f"best so far: {run / rundir.BEST}"
        log.say(f"stopped by Ctrl-C; {saved}")
        raise
    assert best is not None
    return best


def _assemble(config: Config, splits: Splits, device_name: str, log: RunLog) -> _Parts:
    device = runtime.prepare(device_name)
    dtype, why = runtime.choose_precision(config.train.precision, device)
    workers = runtime.choose_workers(config.train.workers, device)
    runtime.seed_everything(config.train.seed)
    spec = assemble.transform_spec(config)
    tagger = assemble.model(config, splits.train, spec, device)
    log.say(
        f"{len(splits.train)} images to train, {len(splits.val)} to validate, "
        f"{len(splits.train.labels)} labels"
    )
    log.say(
        f"{config.model.backbone} with {config.model.weights or 'random weights'}"
        f"{', frozen' if config.model.freeze_backbone else ''}; "
        f"device {device}, precision {str(dtype).removeprefix('torch.')} ({why}), "
        f"{workers} decoding processes"
    )
    if assemble.head_in_chunks(config, splits.train):
        log.say(
            "the head is large: its weights are updated chunk by chunk in the backward pass; "
            "train.clip_grad_norm does not bound them, and grad_norm does not count them"
        )
    loss, about = assemble.loss(config, splits.train, device)
    log.say(about)
    train = assemble.loader(config, splits.train, spec, device, workers, train=True)
    val = assemble.loader(config, splits.val, spec, device, workers, train=False)
    return _Parts(config, splits, spec, tagger, loss, train, val, device, dtype)


def _epochs(parts: _Parts, log: RunLog) -> Iterator[_Epoch]:
    config, splits, epochs = parts.config, parts.splits, parts.config.train.epochs
    records = fit(
        parts.tagger,
        (parts.train.epoch(number) for number in range(epochs)),
        parts.loss,
        assemble.optimizer(config, parts.tagger),
        assemble.schedule(config, parts.train.steps),
        assemble.settings(config, parts.device, parts.dtype),
        lambda index: str(splits.train.path(index)),
    )
    started = time.monotonic()
    for number in range(1, epochs + 1):
        with log.bar(f"epoch {number}/{epochs}", len(splits.train)) as bar:
            mean_loss, last = _consume(records, bar)
        with log.bar("validation", len(splits.val)) as val_bar:
            batches = val_bar.over(parts.val.epoch())
            scores = score(parts.tagger, batches, splits.val, parts.device, parts.dtype)
        table = measure(scores)
        left = (time.monotonic() - started) / number * (epochs - number)
        log.history(
            {
                "epoch": number,
                "step": last.step + 1,
                "loss": mean_loss,
                "grad_norm": last.grad_norm,
                "lr": last.lr,
                "head_lr": last.head_lr,
                "images_per_s": bar.rate,
                **table.averages,
            }
        )
        yield _Epoch(number, table, scores, mean_loss, bar.rate, left)


def _epoch_line(epoch: _Epoch, best: _Epoch, epochs: int) -> str:
    value = epoch.table.averages["mAP"]
    shown = "--" if value is None else f"{value:.4f}"
    return (
        f"epoch {epoch.number}/{epochs}  loss {epoch.loss:.4f}  mAP {shown}"
        f"{' (best)' if epoch is best else ''}  {epoch.images_per_s:.1f} images/s  "
        f"{clock(epoch.seconds_left)} left"
    )


def _consume(records: Iterator[StepRecord], bar: Bar) -> tuple[float, StepRecord]:
    """The steps of one epoch: their mean loss an image, and the last record."""
    total = 0.0
    for record in records:
        total += record.loss * record.images
        bar.update(record.images, f"loss {record.loss:.4f}")
        if record.last_in_epoch:
            return total / bar.done, record
    raise AssertionError("an epoch without steps")


def _save(parts: _Parts, epoch: _Epoch, run: Path, is_best: bool) -> None:
    content = assemble.checkpoint(
        parts.config, parts.tagger, parts.splits.val, parts.spec, epoch.number
    )
    for name in (rundir.LAST, *([rundir.BEST] if is_best else [])):
        checkpoint.save(run / name, content)
