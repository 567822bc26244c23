"""`mlfinetune train`: config -> examples -> parts -> epochs of (fit, score, save) -> results."""

import copy
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from mlfinetune import (
    assemble,
    checkpoint,
    examples,
    frozen,
    rundir,
    runtime,
    tables,
    trackers,
    tune,
)
from mlfinetune.config import Config, dump
from mlfinetune.data import cache
from mlfinetune.data.jpeg import decoder
from mlfinetune.data.loader import Loader
from mlfinetune.data.manifest import Splits
from mlfinetune.epochs import Outcome, Parts, epochs, solutions
from mlfinetune.judge import decide, judge
from mlfinetune.publish import publish
from mlfinetune.records import Verdict
from mlfinetune.runlog import RunLog, clock
from mlfinetune.score import probabilities


@dataclass(frozen=True)
class Trained:
    """A finished run: its directory, and the numbers of its best epoch."""

    run: Path
    verdict: Verdict


def run(config: Config, device_name: str, log: RunLog) -> Trained:
    """Train as `config` says; returns when the run directory is complete.

    Raises:
        MlfinetuneError: data, weights, device or a loss that cannot be used.
    """
    return _train(config, examples.splits(config, log), device_name, None, None, log)


def dry_run(config: Config, device_name: str, log: RunLog) -> Trained:
    """One batch of everything: train, validate, save, write; no file is left."""
    splits = examples.splits(config, log if config.data.bad_images == "skip" else None)
    rows = list(range(tune.settled_or(config, tune.UNTRIED)))
    few = replace(
        splits,
        train=splits.train.take(rows[: len(splits.train)]),
        val=splits.val.take(rows[: len(splits.val)]),
    )
    with tempfile.TemporaryDirectory() as folder:
        few_steps = {"epochs": 1, "batch_size": len(rows), "trackers": []}
        once = config.train.model_copy(update=few_steps)
        output = Path(folder) / "dry-run"
        config = config.model_copy(update={"train": once, "output": output})
        kept = Path(folder)
        return _train(config, few, device_name, kept / "features", kept / "images", log)


def _train(
    config: Config,
    splits: Splits,
    device_name: str,
    kept: Path | None,
    images: Path | None,
    log: RunLog,
) -> Trained:
    started = time.monotonic()
    trackers.require(config.train.trackers)
    for note in splits.notes:
        log.say(note)
    parts = _assemble(examples.settled(config, splits), splits, device_name, log)
    first = assemble.solves_first(config, splits.train)
    run = _open_run(parts, log)
    start = None
    content = parts.config.model_dump(mode="json")
    with (
        runtime.device_faults(),
        trackers.opened(config.train.trackers, run, content) as write,
    ):
        log.also_to(write)
        if assemble.features_once(config):
            parts = _on_features(parts, kept, log)
        elif first:
            start = _solved_first(parts, kept, log)
        with assemble.image_copies(parts.config, splits.train, parts.spec, images, log) as copies:
            if copies is not None:
                assert isinstance(parts.train, Loader)
                parts.train.read_copies(copies)
            best = _best(parts, start, run, log)
    verdict = _results(parts, best, run, log)
    peak = runtime.peak_memory(parts.device) / 2**30
    log.say(
        f"best: {best.name}; {clock(time.monotonic() - started)} in all, peak memory {peak:.1f} GiB"
    )
    return Trained(run, verdict)


def _open_run(parts: Parts, log: RunLog) -> Path:
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


def _best(parts: Parts, start: Outcome | None, run: Path, log: RunLog) -> Outcome:
    """What the run ends with, saved: the best solution for the head, or the best epoch."""
    if not assemble.solves(parts.config, parts.splits.train):
        return _best_epoch(parts, start, run, log)
    log.say(
        "the head is solved for by L-BFGS: train.epochs, rates, weight_decay and early_stopping do "
        "not apply; train.optimizer: adamw would heed them"
    )
    best = _solved(parts, log)
    _save(parts, best, run, is_best=True)
    return best


def _best_epoch(parts: Parts, start: Outcome | None, run: Path, log: RunLog) -> Outcome:
    """Train, saving every epoch; the best one, or the best so far where training stops early.

    `start`: what the tagger is before it trains, if that is worth keeping.
    """
    best = start
    if start is not None:
        _save(parts, start, run, is_best=True)
    patience = parts.config.train.early_stopping
    if isinstance(parts.val, Loader):
        parts.val.begin()
    try:
        with runtime.interrupts() as heard:
            for epoch in epochs(parts, heard, log):
                best = epoch if best is None or epoch.beats(best) else best
                _save(parts, epoch, run, is_best=epoch is best)
                log.say(_epoch_line(epoch, best))
                heard()
                since = epoch.number - best.number
                if patience is not None and since >= patience:
                    log.say(f"early stop: no better mAP for {since} epochs")
                    break
    except KeyboardInterrupt:
        saved = "nothing saved yet" if best is None else f"best so far: {run / rundir.BEST}"
        log.say(f"stopped by Ctrl-C; {saved}")
        raise
    assert best is not None
    return best


def _solved_first(parts: Parts, kept: Path | None, log: RunLog) -> Outcome:
    """The tagger with the best head for its backbone as it is, as the epoch before the first."""
    found = _solved(_on_features(parts, kept, log), log)
    log.say(f"training starts from the head of {found.name}, mAP {_map(found)}")
    return replace(found, number=0, name="the solved head, before training")


def _solved(parts: Parts, log: RunLog) -> Outcome:
    """The best of the head's solutions, which the head holds afterwards.

    Nothing is saved in between: a few seconds in all, on features that are kept.
    """
    best, weights = None, dict[str, torch.Tensor]()
    try:
        for one in solutions(parts, log):
            if best is None or one.beats(best):
                best, weights = one, copy.deepcopy(parts.tagger.head.state_dict())
            log.say(_epoch_line(one, best))
    except KeyboardInterrupt:
        log.say("stopped by Ctrl-C; nothing saved yet")
        raise
    assert best is not None
    parts.tagger.head.load_state_dict(weights)
    return best


def _assemble(config: Config, splits: Splits, device_name: str, log: RunLog) -> Parts:
    device = runtime.prepare(device_name)
    dtype, why = runtime.choose_precision(config.train.precision, device)
    with runtime.device_faults():
        config, tried = tune.batch_size(config, splits.train, device, dtype)
        workers, why_workers = tune.workers(config, splits.train, device, dtype)
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
        f"{workers} decoding processes ({why_workers}); {decoder()[1]}"
    )
    if tried is not None:
        log.say(tried)
    if assemble.head_in_chunks(config, splits.train):
        log.say(
            "the head is large: its weights are updated chunk by chunk in the backward pass; "
            "train.clip_grad_norm does not bound them, and grad_norm does not count them"
        )
    loss, about = assemble.loss(config, splits.train, device)
    log.say(about)
    train = assemble.loader(config, splits.train, spec, device, workers, train=True)
    val = assemble.loader(config, splits.val, spec, device, workers, train=False)
    return Parts(config, splits, spec, tagger, tagger, loss, train, val, device, dtype)


def _on_features(parts: Parts, kept: Path | None, log: RunLog) -> Parts:
    """The same run on the features of its backbone as it is, which are computed once.

    `kept`: the folder of stores; None: that of all runs.
    """
    config, device = parts.config, parts.device
    workers = runtime.choose_workers(config.train.workers, device)
    embedder = frozen.embedder(config, parts.tagger, parts.spec, device, parts.dtype, workers)
    root = kept or cache.folder("features")
    store = frozen.open_store(root, parts.tagger, parts.spec, config.model.backbone, embedder)
    room = runtime.spare_memory(device) // 2
    train, val = frozen.loaders(config, parts.splits, embedder, store, device, room, log)
    return replace(parts, net=parts.tagger.head, train=train, val=val, dtype=torch.float32)


def _epoch_line(epoch: Outcome, best: Outcome) -> str:
    mark = " (best)" if epoch is best else f" (best {_map(best)})"
    return f"{epoch.name}  loss {epoch.loss:.4f}  mAP {_map(epoch)}{mark}  {epoch.speed}"


def _map(epoch: Outcome) -> str:
    value = epoch.table.averages["mAP"]
    return "--" if value is None else f"{value:.4f}"


def _results(parts: Parts, best: Outcome, run: Path, log: RunLog) -> Verdict:
    """Judge the best outcome, and give its checkpoint the thresholds that validation asks for."""
    config, val = parts.config, parts.splits.val
    decision = decide(config.eval, best.scores)
    content = checkpoint.load(run / rundir.BEST)
    checkpoint.save(run / rundir.BEST, replace(content, decision=decision))
    verdict = judge(config.eval, best.scores, decision, fitted_here=True)
    about = {"data": "validation", "epoch": best.number, **assemble.whereabouts(config, val)}
    tables.write_results(run, verdict, probabilities(verdict.scores.logits), about)
    publish(run, log)
    return verdict


def _save(parts: Parts, epoch: Outcome, run: Path, is_best: bool) -> None:
    content = assemble.checkpoint(
        parts.config, parts.tagger, parts.splits.val, parts.spec, epoch.number
    )
    for name in (rundir.LAST, *([rundir.BEST] if is_best else [])):
        checkpoint.save(run / name, content)
