"""`mlfinetune train`: config -> examples -> parts -> epochs of (fit, score, save) -> results."""

import copy
import shlex
import signal
import tempfile
import time
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from mlfinetune import (
    assemble,
    checkpoint,
    examples,
    frozen,
    resume,
    rundir,
    runtime,
    tables,
    trackers,
    tune,
)
from mlfinetune.config import Config, dump, load
from mlfinetune.data import cache
from mlfinetune.data.jpeg import decoder
from mlfinetune.data.loader import Loader
from mlfinetune.data.manifest import Splits
from mlfinetune.epochs import Outcome, Parts, epochs, solutions, validate
from mlfinetune.judge import decide, judge
from mlfinetune.publish import publish
from mlfinetune.records import Position, Verdict
from mlfinetune.runlog import RunLog, clock
from mlfinetune.score import probabilities
from mlfinetune.signals import Signals, signals


@dataclass(frozen=True)
class Trained:
    """A finished run: its directory, and the numbers of its best epoch."""

    run: Path
    verdict: Verdict


@dataclass(frozen=True)
class Going:
    """How to go on with a run.

    Attributes:
        own: the config is a run directory's own, so that its output is the very directory.
        allow_changed: with other settings or data too.
    """

    own: bool = False
    allow_changed: bool = False


@dataclass(frozen=True)
class _Order:
    """What `_train` is asked for; stores of features and of copies where they are not the usual."""

    config: Config
    device_name: str
    signals: Signals
    resume: Going | None = None
    kept: Path | None = None
    images: Path | None = None


def run(config: Config, device_name: str, log: RunLog, resume: Going | None = None) -> Trained:
    """Train as `config` says; returns when the run directory is complete.

    Args:
        resume: go on with the newest run directory of the config's; None: a new one.

    Raises:
        MlfinetuneError: data, weights, device, loss or run directory that cannot be used.
        KeyboardInterrupt, SystemExit: Ctrl-C, SIGTERM; what was learnt is saved.
    """
    with signals() as heard:
        try:
            splits = examples.splits(config, log)
            return _train(_Order(config, device_name, heard, resume), splits, log)
        except (KeyboardInterrupt, SystemExit):
            name = "SIGTERM" if heard.heard == signal.SIGTERM else "Ctrl-C"
            log.say(f"stopped by {name}; {_saved(log.run)}")
            raise


def dry_run(config: Config, device_name: str, log: RunLog) -> Trained:
    """One batch of everything: train, validate, save, write; no file is left."""
    splits = examples.splits(config, log if config.data.bad_images == "skip" else None)
    rows = list(range(tune.settled_or(config, tune.UNTRIED)))
    few = replace(
        splits,
        train=splits.train.take(rows[: len(splits.train)]),
        val=splits.val.take(rows[: len(splits.val)]),
    )
    with tempfile.TemporaryDirectory() as folder, signals() as heard:
        few_steps = {"epochs": 1, "batch_size": len(rows), "trackers": []}
        once = config.train.model_copy(update=few_steps)
        kept = Path(folder)
        config = config.model_copy(update={"train": once, "output": kept / "dry-run"})
        order = _Order(config, device_name, heard, None, kept / "features", kept / "images")
        return _train(order, few, log)


def _train(order: _Order, splits: Splits, log: RunLog) -> Trained:
    started = time.monotonic()
    trackers.require(order.config.train.trackers)
    for note in splits.notes:
        log.say(note)
    begun = _begun(order, splits, log)
    config = _settled(order.config, splits, begun)
    assemble.require_solvable(config, splits.train)
    parts = _assemble(config, splits, order.device_name, log)
    run = begun or rundir.claim(order.config.output or rundir.RUNS)
    parts = replace(parts, config=parts.config.model_copy(update={"output": run}))
    with rundir.locked(run), runtime.device_faults():
        standing = None if begun is None else _standing(begun, parts, order, log)
        best, verdict = _run(parts, standing, order, log)
        (run / rundir.PREVIOUS_STATE).unlink(missing_ok=True)
    peak = runtime.peak_memory(parts.device) / 2**30
    log.say(
        f"best: {best.name}; {clock(time.monotonic() - started)} in all, peak memory {peak:.1f} GiB"
    )
    return Trained(run, verdict)


def _run(
    parts: Parts, standing: resume.Standing | None, order: _Order, log: RunLog
) -> tuple[Outcome, Verdict]:
    """The best outcome of a run whose directory is ours, and what it is worth."""
    config, run = parts.config, parts.config.output
    assert run is not None
    with trackers.opened(config.train.trackers, run, config.model_dump(mode="json")) as write:
        _open_run(parts, run, standing, log)
        log.also_to(write)
        start = None
        if assemble.features_once(config):
            parts = _on_features(parts, order.kept, log)
        elif config.train.solve_head_first and standing is None:
            start = _solved_first(parts, order.kept, log)
        images, train = order.images, parts.splits.train
        with assemble.image_copies(config, train, parts.spec, images, log) as copies:
            if copies is not None:
                assert isinstance(parts.train, Loader)
                parts.train.read_copies(copies)
            best = _best(parts, start, standing, order, log)
        return best, _results(parts, best, run, log)


def _standing(run: Path, parts: Parts, order: _Order, log: RunLog) -> resume.Standing | None:
    """Where a run stands that was begun; None: no state was saved.

    Raises:
        ConfigError: of other settings or data, where that is not allowed.
        CheckpointError: no state is whole.
    """
    standing = resume.load(run, log)
    if standing is not None and not (order.resume and order.resume.allow_changed):
        resume.require_same(standing, parts.config, parts.splits)
    return standing


def _begun(order: _Order, splits: Splits, log: RunLog) -> Path | None:
    """The run directory to go on with, if that is what was asked for, and there is one.

    An unfinished one of the very same settings and data too: the end is that of a new run.
    """
    wanted = order.config.output
    assert wanted is not None
    found = wanted if order.resume and order.resume.own else rundir.begun(wanted)
    if order.resume is not None:
        if found is None:
            log.say(f"nothing to resume at {rundir.shown(wanted)}: a new run begins")
        return found
    if found is None or not rundir.unfinished(found):
        return None
    if resume.is_of(found, _settled(order.config, splits, found), splits):
        return found
    log.say(
        f"{rundir.shown(found)} was not finished, and has other settings or data: a new run "
        f"begins; --resume would say which, and with --allow-changed go on"
    )
    return None


def _settled(config: Config, splits: Splits, begun: Path | None) -> Config:
    """The config with what data, and a run that it goes on with, decided."""
    config = examples.settled(config, splits)
    kept = None if begun is None else begun / rundir.CONFIG
    if kept is not None and kept.is_file() and config.train.batch_size == "auto":
        size = load(kept).train.batch_size
        train = config.train.model_copy(update={"batch_size": size})
        config = config.model_copy(update={"train": train})
    return config


def _open_run(parts: Parts, run: Path, standing: resume.Standing | None, log: RunLog) -> None:
    """The resolved config and the labels go into the run directory; leftovers go."""
    rundir.sweep(run)
    rundir.write_atomic(run / rundir.CONFIG, dump(parts.config).encode())
    labels = "".join(f"{name}\n" for name in parts.splits.train.labels.names)
    rundir.write_atomic(run / rundir.LABELS, labels.encode(errors="surrogateescape"))
    if parts.splits.skipped:
        tables.write_skipped(run, parts.splits.skipped)
    steps = parts.train.steps
    log.keep_in(run, "" if standing is None else standing.content["history"])
    log.say(f"run directory: {rundir.shown(run)}")
    if standing is not None:
        epoch, step = divmod(standing.at.step, steps)
        trained = epoch == parts.config.train.epochs
        where = f"epoch {epoch + 1}, after {step} of {steps} steps"
        log.say("all epochs are trained" if trained else f"goes on with {where}")
        for change in resume.other_arithmetic(standing, parts):
            log.say(f"warning: {change}: the rest will not be what it would have been, bit for bit")


def _saved(run: Path | None) -> str:
    """What there is to go on from, in words."""
    if run is None or not rundir.states(run):
        return "nothing saved yet"
    command = f"mlfinetune train {shlex.quote(rundir.shown(run / rundir.CONFIG))} --resume"
    return f"all saved; go on with\n  {command}"


def _best(
    parts: Parts,
    start: Outcome | None,
    standing: resume.Standing | None,
    order: _Order,
    log: RunLog,
) -> Outcome:
    """What the run ends with, saved: the best solution for the head, or the best epoch."""
    run = parts.config.output
    assert run is not None
    if not assemble.solves(parts.config, parts.splits.train):
        parts = replace(parts, average=assemble.average(parts.config, parts.net))
        optimizer = assemble.optimizer(parts.config, parts.tagger)
        keeper = resume.Keeper(run, parts, optimizer, order.signals)
        if standing is not None:
            keeper.go_on(standing)
        elif start is not None:
            _save(parts, start, run, is_best=True)
            keeper.best = start
        return _best_epoch(parts, keeper, run, log)
    log.say(
        "the head is solved for by L-BFGS: train.epochs, rates, weight_decay, ema and "
        "early_stopping do not apply; train.optimizer: adamw would heed them"
    )
    best = _solved(parts, log)
    _save(parts, best, run, is_best=True)
    return best


def _best_epoch(parts: Parts, keeper: resume.Keeper, run: Path, log: RunLog) -> Outcome:
    """Train, saving every epoch; the best one, or the best so far where training stops early."""
    if isinstance(parts.val, Loader):
        parts.val.begin()
    going = epochs(parts, keeper.optimizer, keeper.at, keeper.pause, log)
    with keeper.signals.deferred(), closing(parts.train), closing(parts.val), closing(going):
        if not _early(parts, keeper, keeper.at.epoch(parts.train.steps), log):
            for epoch in going:
                best = keeper.best
                keeper.best = epoch if best is None or epoch.beats(best) else best
                _save(parts, epoch, run, is_best=epoch is keeper.best)
                log.say(_epoch_line(epoch, keeper.best))
                keeper.keep(Position(epoch.number * parts.train.steps))
                if _early(parts, keeper, epoch.number, log):
                    break
    assert keeper.best is not None
    return keeper.best


def _early(parts: Parts, keeper: resume.Keeper, epoch: int, log: RunLog) -> bool:
    """Has there been no better epoch for as long as the config has patience?"""
    patience, best = parts.config.train.early_stopping, keeper.best
    if patience is None or best is None or epoch - best.number < patience:
        return False
    log.say(f"early stop: no better mAP for {epoch - best.number} epochs")
    return True


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
    for one in solutions(parts, log):
        if best is None or one.beats(best):
            best, weights = one, copy.deepcopy(parts.tagger.head.state_dict())
        log.say(_epoch_line(one, best))
    assert best is not None
    parts.tagger.head.load_state_dict(weights)
    return best


def _assemble(config: Config, splits: Splits, device_name: str, log: RunLog) -> Parts:
    device = runtime.prepare(device_name, config.train.deterministic)
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
    return "--" if epoch.mAP is None else f"{epoch.mAP:.4f}"


def _results(parts: Parts, best: Outcome, run: Path, log: RunLog) -> Verdict:
    """Judge the best outcome, and give its checkpoint the thresholds that validation asks for."""
    config, val = parts.config, parts.splits.val
    content, scores = checkpoint.load(run / rundir.BEST), best.scores
    if scores is None:  # of an epoch before the run went on
        parts.tagger.load_state_dict(content.weights)
        _, scores = validate(parts, log)
    decision = decide(config.eval, scores)
    checkpoint.save(run / rundir.BEST, replace(content, decision=decision))
    verdict = judge(config.eval, scores, decision, fitted_here=True)
    about = {"data": "validation", "epoch": best.number, **assemble.whereabouts(config, val)}
    tables.write_results(run, verdict, probabilities(verdict.scores.logits), about)
    publish(run, log)
    return verdict


def _save(parts: Parts, epoch: Outcome, run: Path, is_best: bool) -> None:
    content = assemble.checkpoint(
        parts.config, parts.saved, parts.splits.val, parts.spec, epoch.number
    )
    for name in (rundir.LAST, *([rundir.BEST] if is_best else [])):
        checkpoint.save(run / name, content)
