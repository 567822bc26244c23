"""`mlfinetune train`: config -> examples -> parts -> epochs of (fit, score, save) -> results."""

import copy
import shlex
import signal
import tempfile
import time
from contextlib import closing, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from mlfinetune import (
    assemble,
    checkpoint,
    examples,
    machine,
    resume,
    rundir,
    runtime,
    tables,
    trackers,
    tune,
)
from mlfinetune.config import Config, dump, load
from mlfinetune.data.loader import Loader
from mlfinetune.data.manifest import Splits
from mlfinetune.epochs import Outcome, epochs, solutions, validate
from mlfinetune.errors import DataError
from mlfinetune.judge import decide, judge
from mlfinetune.parts import Parts, assembled, copies, on_features
from mlfinetune.publish import publish
from mlfinetune.records import Position, Verdict
from mlfinetune.runlog import RunLog, clock
from mlfinetune.runtime import World
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
    world: World
    signals: Signals
    resume: Going | None = None
    kept: Path | None = None
    images: Path | None = None


def run(
    config: Config, device_name: str, log: RunLog, resume: Going | None = None
) -> Trained | None:
    """Train as `config` says; returns when the run directory is complete.

    Of several processes the first one writes and speaks, and returns something.

    Args:
        resume: go on with the newest run directory of the config's; None: a new one.

    Raises:
        MlfinetuneError: data, weights, device, loss or run directory that cannot be used.
        KeyboardInterrupt, SystemExit: Ctrl-C, SIGTERM; what was learnt is saved.
    """
    with signals() as heard, runtime.joined(device_name, config.train.deterministic) as world:
        try:
            with world.turn():
                splits = examples.splits(config, log)
            return _train(_Order(config, world, heard, resume), splits, log)
        except (KeyboardInterrupt, SystemExit):
            name = "SIGTERM" if heard.heard == signal.SIGTERM else "Ctrl-C"
            log.say(f"stopped by {name}; {_saved(log.run)}")
            raise


def dry_run(config: Config, device_name: str, log: RunLog) -> None:
    """One batch of everything: train, validate, save, write; no file is left."""
    splits = examples.splits(config, log if config.data.bad_images == "skip" else None)
    rows = list(range(tune.settled_or(config, tune.UNTRIED)))
    few = replace(
        splits,
        train=splits.train.take(rows[: len(splits.train)]),
        val=splits.val.take(rows[: len(splits.val)]),
    )
    with (
        tempfile.TemporaryDirectory() as folder,
        signals() as heard,
        runtime.joined(device_name, config.train.deterministic) as world,
    ):
        few_steps = {"epochs": 1, "batch_size": len(rows), "trackers": []}
        once = config.train.model_copy(update=few_steps)
        kept = Path(folder)
        config = config.model_copy(update={"train": once, "output": kept / "dry-run"})
        order = _Order(config, world, heard, None, kept / "features", kept / "images")
        _train(order, few, log)


def _train(order: _Order, splits: Splits, log: RunLog) -> Trained | None:
    started, world = time.monotonic(), order.world
    trackers.require(order.config.train.trackers)
    for note in splits.notes:
        log.say(note)
    _require_same_data(world, splits)
    begun = world.decide(lambda: _begun(order, splits, log))
    config = world.decide(lambda: _settled(order.config, splits, begun))
    assemble.require_solvable(config, splits.train)
    parts = assembled(config, splits, world, log)
    run = begun or world.decide(lambda: rundir.claim(order.config.output or rundir.RUNS))
    parts = replace(parts, config=parts.config.model_copy(update={"output": run}))
    with rundir.locked(run) if world.main else nullcontext(), machine.device_faults():
        standing = world.decide(lambda: _standing(begun, parts, order, log))
        done = _run(parts, standing, order, log)
        world.meet()
        log.say_for(world.collected(log.kept_warnings()))
        if done is None:
            return None
        best, verdict = done
        (run / rundir.PREVIOUS_STATE).unlink(missing_ok=True)
    peak = machine.peak_memory(parts.device) / 2**30
    log.say(
        f"best: {best.name}; {clock(time.monotonic() - started)} in all, peak memory {peak:.1f} GiB"
    )
    return Trained(run, verdict)


def _require_same_data(world: World, splits: Splits) -> None:
    """Raise a DataError where a process has read other examples, so that shares were of those."""
    sides = (splits.train, splits.val)
    found = world.collected([assemble.data_digest(side) for side in sides] if world.several else [])
    if others := [rank for rank, digests in enumerate(found) if digests != found[0]]:
        raise DataError(
            f"process {others[0]} has read other examples than process 0: the table, the pictures "
            f"and data.bad_images have to say the same to all"
        )


def _run(
    parts: Parts, standing: resume.Standing | None, order: _Order, log: RunLog
) -> tuple[Outcome, Verdict] | None:
    """The best outcome of a run whose directory is ours, and what it is worth, to process 0."""
    config, run, world = parts.config, parts.config.output, parts.world
    assert run is not None
    names = config.train.trackers if world.main else []
    with trackers.opened(names, run, config.model_dump(mode="json")) as write:
        if world.main:
            _open_run(parts, run, standing, log)
            log.also_to(write)
        start = None
        if assemble.features_once(config):
            features = on_features(parts, order.kept, log)
            if features is None:
                return None
            parts = features
        elif config.train.solve_head_first and standing is None:
            start = _solved_first(parts, order.kept, log)
        with copies(parts, order.images, log):
            best = _best(parts, start, standing, order, log)
        verdict = _results(parts, best, run, log)
        return None if verdict is None else (best, verdict)


def _standing(run: Path | None, parts: Parts, order: _Order, log: RunLog) -> resume.Standing | None:
    """Where a run stands that was begun; None: no state was saved.

    Raises:
        ConfigError: of other settings or data, where that is not allowed.
        CheckpointError: no state is whole.
    """
    standing = None if run is None else resume.load(run, log)
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
    restarts = order.world.place.restarts
    if restarts and order.resume is None and found and _is_ours(found, order, splits):
        log.say(f"restart {restarts} by torchrun, after a process has failed")
        return found
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


def _is_ours(run: Path, order: _Order, splits: Splits) -> bool:
    """Is it the run that this command has begun, before torchrun started it anew?"""
    if (run / rundir.METRICS).is_file():
        return False
    config = _settled(order.config, splits, run)
    if rundir.states(run):
        return resume.is_of(run, config, splits)
    kept = run / rundir.CONFIG
    return kept.is_file() and load(kept) == config.model_copy(update={"output": run.absolute()})


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
                log.say_for(parts.world.collected(log.kept_warnings()))
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
    features, own = on_features(parts, kept, log), list[Outcome]()

    def solved() -> Outcome:
        assert features is not None
        found = _solved(features, log)
        log.say(f"training starts from the head of {found.name}, mAP {_map(found)}")
        own.append(replace(found, number=0, name="the solved head, before training"))
        return replace(own[0], scores=None)

    told = parts.world.decide(solved)
    return own[0] if own else told


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


def _epoch_line(epoch: Outcome, best: Outcome) -> str:
    mark = " (best)" if epoch is best else f" (best {_map(best)})"
    return f"{epoch.name}  loss {epoch.loss:.4f}  mAP {_map(epoch)}{mark}  {epoch.speed}"


def _map(epoch: Outcome) -> str:
    return "--" if epoch.mAP is None else f"{epoch.mAP:.4f}"


def _results(parts: Parts, best: Outcome, run: Path, log: RunLog) -> Verdict | None:
    """Judge the best outcome, and give its checkpoint the thresholds that validation asks for."""
    config, val, world, scores = parts.config, parts.splits.val, parts.world, best.scores
    if world.decide(lambda: best.scores is None):  # of an epoch before the run went on
        weights = world.decide(lambda: checkpoint.load(run / rundir.BEST).weights)
        parts.tagger.load_state_dict(weights)
        _, scores = validate(parts, log)
    if not world.main:
        return None
    assert scores is not None
    content = checkpoint.load(run / rundir.BEST)
    decision = decide(config.eval, scores)
    checkpoint.save(run / rundir.BEST, replace(content, decision=decision))
    verdict = judge(config.eval, scores, decision, fitted_here=True)
    about = {"data": "validation", "epoch": best.number, **assemble.whereabouts(config, val)}
    tables.write_results(run, verdict, probabilities(verdict.scores.logits), about)
    publish(run, log)
    return verdict


def _save(parts: Parts, epoch: Outcome, run: Path, is_best: bool) -> None:
    if not parts.world.main:
        return
    content = assemble.checkpoint(
        parts.config, parts.saved, parts.splits.val, parts.spec, epoch.number
    )
    for name in (rundir.LAST, *([rundir.BEST] if is_best else [])):
        checkpoint.save(run / name, content)
