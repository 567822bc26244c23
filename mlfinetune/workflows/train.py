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

from mlfinetune.config import Config, dump_config, load_config
from mlfinetune.data.batches.loader import Loader
from mlfinetune.data.load import load_splits, record_choices
from mlfinetune.data.manifest import Splits, digest_manifest
from mlfinetune.errors import DataError
from mlfinetune.metrics.evaluation import evaluate, fit_decision_rule
from mlfinetune.metrics.logits import sigmoid
from mlfinetune.metrics.types import Evaluation
from mlfinetune.report.write import write_report
from mlfinetune.runs import checkpoint, directory
from mlfinetune.runs.results import write_results, write_skipped
from mlfinetune.runs.trackers import opened_trackers, require_trackers
from mlfinetune.runtime.device import oom_as_device_error, read_peak_memory
from mlfinetune.runtime.distributed import World, init_distributed
from mlfinetune.runtime.log import RunLog
from mlfinetune.runtime.signals import Signals, catch_signals
from mlfinetune.storage.atomic import remove_leftovers, write_atomic
from mlfinetune.text import display_path, format_duration
from mlfinetune.training import resume
from mlfinetune.training.autotune import DRY_RUN_BATCH, batch_size_or
from mlfinetune.training.build import (
    build_checkpoint,
    build_ema,
    build_training_optimizer,
    locate_images,
    precomputes_features,
    require_lbfgs_fits,
    uses_lbfgs,
)
from mlfinetune.training.loop import Candidate, solve_head, train_epochs, validate
from mlfinetune.training.records import Position
from mlfinetune.training.setup import TrainingSetup, reading_copies, set_up, with_features


@dataclass(frozen=True)
class TrainResult:
    """A finished run: its directory, and the numbers of its best epoch."""

    run: Path
    verdict: Evaluation


@dataclass(frozen=True)
class ResumeOptions:
    """How to go on with a run.

    Attributes:
        own: the config is a run directory's own, so that its output is the very directory.
        allow_changed: with other settings or data too.
    """

    own: bool = False
    allow_changed: bool = False


@dataclass(frozen=True)
class TrainRequest:
    """What `_train` is asked for; stores of features and of copies where they are not the usual."""

    config: Config
    world: World
    signals: Signals
    resume: ResumeOptions | None = None
    kept: Path | None = None
    images: Path | None = None


def run(
    config: Config, device_name: str, log: RunLog, resume: ResumeOptions | None = None
) -> TrainResult | None:
    """Train as `config` says; returns when the run directory is complete.

    Of several processes the first one writes and speaks, and returns something.

    Args:
        resume: go on with the newest run directory of the config's; None: a new one.

    Raises:
        MlfinetuneError: data, weights, device, loss or run directory that cannot be used.
        KeyboardInterrupt, SystemExit: Ctrl-C, SIGTERM; what was learnt is saved.
    """
    with (
        catch_signals() as heard,
        init_distributed(device_name, config.train.deterministic) as world,
    ):
        try:
            with world.local_main_first():
                splits = load_splits(config, log)
            return _train(TrainRequest(config, world, heard, resume), splits, log)
        except (KeyboardInterrupt, SystemExit):
            name = "SIGTERM" if heard.heard == signal.SIGTERM else "Ctrl-C"
            log.say(f"stopped by {name}; {_saved(log.folder)}")
            raise


def dry_run(config: Config, device_name: str, log: RunLog) -> None:
    """One batch of everything: train, validate, save, write; no file is left."""
    splits = load_splits(config, log if config.data.bad_images == "skip" else None)
    rows = list(range(batch_size_or(config, DRY_RUN_BATCH)))
    few = replace(
        splits,
        train=splits.train.take(rows[: len(splits.train)]),
        val=splits.val.take(rows[: len(splits.val)]),
    )
    with (
        tempfile.TemporaryDirectory() as folder,
        catch_signals() as heard,
        init_distributed(device_name, config.train.deterministic) as world,
    ):
        few_steps = {"epochs": 1, "batch_size": len(rows), "trackers": []}
        once = config.train.model_copy(update=few_steps)
        kept = Path(folder)
        config = config.model_copy(update={"train": once, "output": kept / "dry-run"})
        order = TrainRequest(config, world, heard, None, kept / "features", kept / "images")
        _train(order, few, log)


def _train(order: TrainRequest, splits: Splits, log: RunLog) -> TrainResult | None:
    started, world = time.monotonic(), order.world
    require_trackers(order.config.train.trackers)
    for note in splits.notes:
        log.say(note)
    _require_same_data(world, splits)
    begun = world.broadcast(lambda: _begun(order, splits, log))
    config = world.broadcast(lambda: _settled(order.config, splits, begun))
    require_lbfgs_fits(config, splits.train)
    parts = set_up(config, splits, world, log)
    run = begun or world.broadcast(
        lambda: directory.make_run_dir(order.config.output or directory.RUNS)
    )
    parts = replace(parts, config=parts.config.model_copy(update={"output": run}))
    with directory.locked_run(run) if world.is_main else nullcontext(), oom_as_device_error():
        standing = world.broadcast(lambda: _standing(begun, parts, order, log))
        done = _run(parts, standing, order, log)
        world.barrier()
        log.repeat_warnings(world.gather(log.take_warnings()))
        if done is None:
            return None
        best, verdict = done
        (run / directory.PREVIOUS_STATE).unlink(missing_ok=True)
    peak = read_peak_memory(parts.device) / 2**30
    duration = format_duration(time.monotonic() - started)
    log.say(f"best: {best.name}; {duration} in all, peak memory {peak:.1f} GiB")
    return TrainResult(run, verdict)


def _require_same_data(world: World, splits: Splits) -> None:
    """Raise a DataError where a process has read other examples, so that shares were of those."""
    sides = (splits.train, splits.val)
    found = world.gather([digest_manifest(side) for side in sides] if world.is_distributed else [])
    if others := [rank for rank, digests in enumerate(found) if digests != found[0]]:
        raise DataError(
            f"process {others[0]} has read other examples than process 0: the table, the pictures "
            f"and data.bad_images have to say the same to all"
        )


def _run(
    parts: TrainingSetup, standing: resume.ResumeState | None, order: TrainRequest, log: RunLog
) -> tuple[Candidate, Evaluation] | None:
    """The best outcome of a run whose directory is ours, and what it is worth, to process 0."""
    config, run, world = parts.config, parts.config.output, parts.world
    assert run is not None
    names = config.train.trackers if world.is_main else []
    with opened_trackers(names, run, config.model_dump(mode="json")) as write:
        if world.is_main:
            _open_run(parts, run, standing, log)
            log.add_tracker(write)
        start = None
        if precomputes_features(config):
            features = with_features(parts, order.kept, log)
            if features is None:
                return None
            parts = features
        elif config.train.solve_head_first and standing is None:
            start = _solved_first(parts, order.kept, log)
        with reading_copies(parts, order.images, log):
            best = _best(parts, start, standing, order, log)
        verdict = _results(parts, best, run, log)
        return None if verdict is None else (best, verdict)


def _standing(
    run: Path | None, parts: TrainingSetup, order: TrainRequest, log: RunLog
) -> resume.ResumeState | None:
    """Where a run stands that was begun; None: no state was saved.

    Raises:
        ConfigError: of other settings or data, where that is not allowed.
        CheckpointError: no state is whole.
    """
    standing = None if run is None else resume.load_state(run, log)
    if standing is not None and not (order.resume and order.resume.allow_changed):
        resume.require_same_run(standing, parts.config, parts.splits)
    return standing


def _begun(order: TrainRequest, splits: Splits, log: RunLog) -> Path | None:
    """The run directory to go on with, if that is what was asked for, and there is one.

    An unfinished one of the very same settings and data too: the end is that of a new run.
    """
    wanted = order.config.output
    assert wanted is not None
    found = wanted if order.resume and order.resume.own else directory.find_run(wanted)
    restarts = order.world.info.restarts
    if restarts and order.resume is None and found and _is_ours(found, order, splits):
        log.say(f"restart {restarts} by torchrun, after a process has failed")
        return found
    if order.resume is not None:
        if found is None:
            log.say(f"nothing to resume at {display_path(wanted)}: a new run begins")
        return found
    if found is None or not directory.is_unfinished(found):
        return None
    if resume.is_same_run(found, _settled(order.config, splits, found), splits):
        return found
    log.say(
        f"{display_path(found)} was not finished, and has other settings or data: a new run "
        f"begins; --resume would say which, and with --allow-changed go on"
    )
    return None


def _is_ours(run: Path, order: TrainRequest, splits: Splits) -> bool:
    """Is it the run that this command has begun, before torchrun started it anew?"""
    if (run / directory.METRICS).is_file():
        return False
    config = _settled(order.config, splits, run)
    if directory.list_states(run):
        return resume.is_same_run(run, config, splits)
    kept = run / directory.CONFIG
    return kept.is_file() and load_config(kept) == config.model_copy(
        update={"output": run.absolute()}
    )


def _settled(config: Config, splits: Splits, begun: Path | None) -> Config:
    """The config with what data, and a run that it goes on with, decided."""
    config = record_choices(config, splits)
    kept = None if begun is None else begun / directory.CONFIG
    if kept is not None and kept.is_file() and config.train.batch_size == "auto":
        size = load_config(kept).train.batch_size
        train = config.train.model_copy(update={"batch_size": size})
        config = config.model_copy(update={"train": train})
    return config


def _open_run(
    parts: TrainingSetup, run: Path, standing: resume.ResumeState | None, log: RunLog
) -> None:
    """The resolved config and the labels go into the run directory; leftovers go."""
    remove_leftovers(run)
    write_atomic(run / directory.CONFIG, dump_config(parts.config).encode())
    labels = "".join(f"{name}\n" for name in parts.splits.train.labels.names)
    write_atomic(run / directory.LABELS, labels.encode(errors="surrogateescape"))
    if parts.splits.skipped:
        write_skipped(run, parts.splits.skipped)
    steps = parts.train.steps
    log.attach_run(
        run / directory.LOG,
        run / directory.HISTORY,
        "" if standing is None else standing.content["history"],
    )
    log.say(f"run directory: {display_path(run)}")
    if standing is not None:
        epoch, step = divmod(standing.at.step, steps)
        trained = epoch == parts.config.train.epochs
        where = f"epoch {epoch + 1}, after {step} of {steps} steps"
        log.say("all epochs are trained" if trained else f"goes on with {where}")
        for change in resume.find_other_arithmetic(standing, parts):
            log.say(f"warning: {change}: the rest will not be what it would have been, bit for bit")


def _saved(run: Path | None) -> str:
    """What there is to go on from, in words."""
    if run is None or not directory.list_states(run):
        return "nothing saved yet"
    command = f"mlfinetune train {shlex.quote(display_path(run / directory.CONFIG))} --resume"
    return f"all saved; go on with\n  {command}"


def _best(
    parts: TrainingSetup,
    start: Candidate | None,
    standing: resume.ResumeState | None,
    order: TrainRequest,
    log: RunLog,
) -> Candidate:
    """What the run ends with, saved: the best solution for the head, or the best epoch."""
    run = parts.config.output
    assert run is not None
    if not uses_lbfgs(parts.config, parts.splits.train):
        parts = replace(parts, average=build_ema(parts.config, parts.net))
        optimizer = build_training_optimizer(parts.config, parts.tagger)
        keeper = resume.StateSaver(run, parts, optimizer, order.signals)
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


def _best_epoch(
    parts: TrainingSetup, keeper: resume.StateSaver, run: Path, log: RunLog
) -> Candidate:
    """Train, saving every epoch; the best one, or the best so far where training stops early."""
    if isinstance(parts.val, Loader):
        parts.val.begin()
    going = train_epochs(parts, keeper.optimizer, keeper.at, keeper.pause, log)
    with keeper.signals.deferred(), closing(parts.train), closing(parts.val), closing(going):
        if not _early(parts, keeper, keeper.at.epoch(parts.train.steps), log):
            for epoch in going:
                best = keeper.best
                keeper.best = epoch if best is None or epoch.beats(best) else best
                _save(parts, epoch, run, is_best=epoch is keeper.best)
                log.say(_epoch_line(epoch, keeper.best))
                log.repeat_warnings(parts.world.gather(log.take_warnings()))
                keeper.keep(Position(epoch.number * parts.train.steps))
                if _early(parts, keeper, epoch.number, log):
                    break
    assert keeper.best is not None
    return keeper.best


def _early(parts: TrainingSetup, keeper: resume.StateSaver, epoch: int, log: RunLog) -> bool:
    """Has there been no better epoch for as long as the config has patience?"""
    patience, best = parts.config.train.early_stopping, keeper.best
    if patience is None or best is None or epoch - best.number < patience:
        return False
    log.say(f"early stop: no better mAP for {epoch - best.number} epochs")
    return True


def _solved_first(parts: TrainingSetup, kept: Path | None, log: RunLog) -> Candidate:
    """The tagger with the best head for its backbone as it is, as the epoch before the first."""
    features, own = with_features(parts, kept, log), list[Candidate]()

    def solved() -> Candidate:
        assert features is not None
        found = _solved(features, log)
        log.say(f"training starts from the head of {found.name}, mAP {_map(found)}")
        own.append(replace(found, number=0, name="the solved head, before training"))
        return replace(own[0], scores=None)

    told = parts.world.broadcast(solved)
    return own[0] if own else told


def _solved(parts: TrainingSetup, log: RunLog) -> Candidate:
    """The best of the head's solutions, which the head holds afterwards.

    Nothing is saved in between: a few seconds in all, on features that are kept.
    """
    best, weights = None, dict[str, torch.Tensor]()
    for one in solve_head(parts, log):
        if best is None or one.beats(best):
            best, weights = one, copy.deepcopy(parts.tagger.head.state_dict())
        log.say(_epoch_line(one, best))
    assert best is not None
    parts.tagger.head.load_state_dict(weights)
    return best


def _epoch_line(epoch: Candidate, best: Candidate) -> str:
    mark = " (best)" if epoch is best else f" (best {_map(best)})"
    return f"{epoch.name}  loss {epoch.loss:.4f}  mAP {_map(epoch)}{mark}  {epoch.speed}"


def _map(epoch: Candidate) -> str:
    return "--" if epoch.mAP is None else f"{epoch.mAP:.4f}"


def _results(parts: TrainingSetup, best: Candidate, run: Path, log: RunLog) -> Evaluation | None:
    """Judge the best outcome, and give its checkpoint the thresholds that validation asks for."""
    config, val, world, scores = parts.config, parts.splits.val, parts.world, best.scores
    if world.broadcast(lambda: best.scores is None):  # of an epoch before the run went on
        weights = world.broadcast(lambda: checkpoint.load(run / directory.BEST).weights)
        parts.tagger.load_state_dict(weights)
        _, scores = validate(parts, log)
    if not world.is_main:
        return None
    assert scores is not None
    content = checkpoint.load(run / directory.BEST)
    decision = fit_decision_rule(config.eval, scores)
    checkpoint.save(run / directory.BEST, replace(content, decision=decision))
    verdict = evaluate(config.eval, scores, decision, fitted_here=True)
    about = {"data": "validation", "epoch": best.number, **locate_images(config, val)}
    write_results(run, verdict, sigmoid(verdict.scores.logits), about)
    write_report(run, log)
    return verdict


def _save(parts: TrainingSetup, epoch: Candidate, run: Path, is_best: bool) -> None:
    if not parts.world.is_main:
        return
    content = build_checkpoint(
        parts.config, parts.saved, parts.splits.val, parts.spec, epoch.number
    )
    for name in (directory.LAST, *([directory.BEST] if is_best else [])):
        checkpoint.save(run / name, content)
