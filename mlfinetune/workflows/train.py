"""`mlfinetune train`: config -> examples -> parts -> epochs of (fit, score, save) -> results."""

import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from mlfinetune import assemble, checkpoint, rundir, runtime, tables
from mlfinetune.config import Config, dump
from mlfinetune.data.loader import Loader
from mlfinetune.data.manifest import Splits
from mlfinetune.fit import fit
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
    train: Loader
    val: Loader
    device: torch.device
    dtype: torch.dtype


@dataclass(frozen=True)
class _Epoch:
    """One epoch's outcome."""

    number: int
    table: MetricTable
    scores: ScoreTable

    @property
    def rank(self) -> float:
        """mAP; below every mAP where it is undefined."""
        value = self.table.averages["mAP"]
        return -1.0 if value is None else value


def run(config: Config, device_name: str, log: RunLog) -> Trained:
    """Train as `config` says; returns when the run directory is complete.

    Raises:
        MlfinetuneError: data, weights, device or a loss that cannot be used.
    """
    return _train(config, assemble.splits(config), device_name, log)


def dry_run(config: Config, device_name: str, log: RunLog) -> Trained:
    """One batch of everything: train, validate, save, write; no file is left."""
    splits = assemble.splits(config)
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
    parts = _assemble(config, splits, device_name, log)
    assert config.output is not None
    run = rundir.claim(config.output)
    rundir.write_atomic(run / rundir.CONFIG, dump(config).encode())
    rundir.write_atomic(run / rundir.LABELS, "\n".join([*splits.train.labels.names, ""]).encode())
    log.keep_in(run)
    log.say(f"run directory: {rundir.shown(run)}")
    best: _Epoch | None = None
    try:
        with runtime.device_faults():
            for epoch in _epochs(parts, log):
                is_best = best is None or epoch.rank > best.rank
                best = epoch if best is None or is_best else best
                _save(parts, epoch, run, is_best)
                if _should_stop(config, epoch, best):
                    log.say(f"early stop: no better mAP for {epoch.number - best.number} epochs")
                    break
    except KeyboardInterrupt:
        saved = "nothing saved yet" if best is None else f"best so far: {run / rundir.BEST}"
        log.say(f"stopped by Ctrl-C; {saved}")
        raise
    assert best is not None
    about = {"data": "validation", "epoch": best.number + 1, "threshold_source": "fixed"}
    tables.write_results(
        run, best.table, best.scores.names, probabilities(best.scores.logits), about
    )
    peak = runtime.peak_memory(parts.device) / 2**30
    log.say(
        f"best epoch {best.number + 1} of {config.train.epochs}; "
        f"{clock(time.monotonic() - started)} in all, peak memory {peak:.1f} GiB"
    )
    return Trained(run, best.table)


def _assemble(config: Config, splits: Splits, device_name: str, log: RunLog) -> _Parts:
    device = runtime.choose_device(device_name)
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
    train = assemble.loader(config, splits.train, spec, device, workers, train=True)
    val = assemble.loader(config, splits.val, spec, device, workers, train=False)
    return _Parts(config, splits, spec, tagger, train, val, device, dtype)


def _epochs(parts: _Parts, log: RunLog) -> Iterator[_Epoch]:
    config, splits, epochs = parts.config, parts.splits, parts.config.train.epochs
    records = fit(
        parts.tagger,
        (parts.train.epoch(number) for number in range(epochs)),
        assemble.loss(config, splits.train, parts.device),
        assemble.optimizer(config, parts.tagger),
        assemble.schedule(config, parts.train.steps),
        assemble.settings(config, parts.device, parts.dtype),
        lambda index: str(splits.train.path(index)),
    )
    best, started = -2.0, time.monotonic()
    for number in range(epochs):
        with log.bar(f"epoch {number + 1}/{epochs}", len(splits.train)) as bar:
            loss, last = _consume(records, bar)
        with log.bar("validation", len(splits.val)) as val_bar:
            batches = val_bar.over(parts.val.epoch())
            scores = score(parts.tagger, batches, splits.val, parts.device, parts.dtype)
        epoch = _Epoch(number, measure(scores), scores)
        left = (time.monotonic() - started) / (number + 1) * (epochs - number - 1)
        mark = " (best)" if epoch.rank > best else ""
        best = max(best, epoch.rank)
        log.say(
            f"epoch {number + 1}/{epochs}  loss {loss:.4f}  mAP {max(epoch.rank, 0):.4f}{mark}  "
            f"{bar.rate:.1f} images/s  {clock(left)} left"
        )
        log.history(
            {**asdict(last), "epoch": number + 1, "loss": loss, "images_per_s": bar.rate}
            | epoch.table.averages
        )
        yield epoch


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
        parts.config, parts.tagger, parts.splits.val, parts.spec, epoch.number + 1
    )
    for name in (rundir.LAST, *([rundir.BEST] if is_best else [])):
        checkpoint.save(run / name, content)


def _should_stop(config: Config, epoch: _Epoch, best: _Epoch) -> bool:
    patience = config.train.early_stopping
    return patience is not None and epoch.number - best.number >= patience
