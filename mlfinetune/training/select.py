"""Choice and saving of a run's result: the best epoch, or the best solution for the head.

TrainingSetup -> select_best  -> best Candidate; best.safetensors and last.safetensors of epochs
TrainingSetup -> solve_first  -> a tagger whose head is solved for, from which training starts

With `train.solve_head_each` the head is solved for after each epoch, and training goes on from it;
with `train.solve_head_last` once more after the last one.
"""

import copy
from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from mlfinetune.data.batches.loader import Loader
from mlfinetune.errors import LostError, MlfinetuneError
from mlfinetune.runs import checkpoint, directory
from mlfinetune.runs.checkpoint import Checkpoint
from mlfinetune.runtime.log import RunLog
from mlfinetune.runtime.signals import Signals
from mlfinetune.runtime.threads import ThreadChooser
from mlfinetune.storage.store import temporary_folder
from mlfinetune.text import pluralize
from mlfinetune.training.build import (
    build_checkpoint,
    build_ema,
    build_training_optimizer,
    uses_lbfgs,
)
from mlfinetune.training.head_rows import find_idle, read_rows
from mlfinetune.training.loop import (
    Candidate,
    train_epochs,
)
from mlfinetune.training.records import Penalty, Position
from mlfinetune.training.resume import ResumeState, StateSaver
from mlfinetune.training.setup import TrainingSetup, with_features
from mlfinetune.training.solve import (
    count_head_operations,
    rank_equal,
    solve_head,
)


def select_best(
    setup: TrainingSetup,
    start: Candidate | None,
    state: ResumeState | None,
    signals: Signals,
    log: RunLog,
) -> Candidate:
    """Train, or solve for the head; return the best candidate, which `read_best` finds.

    Args:
        start: the solved head that training starts from; None: from a random head.
        state: of the run that is resumed; None: a new run.
        signals: the signals that this process has heard.

    Raises:
        DataError: a picture that cannot be decoded, by name.
        TrainingError: numbers that are not finite.
        CheckpointError: a file cannot be written, or the state does not fit.
        KeyboardInterrupt, SystemExit: a signal was heard; the resume state is saved.
    """
    run = setup.config.output
    assert run is not None
    if uses_lbfgs(setup.config, setup.splits.train):
        log.say(
            "L-BFGS solves for the head: train.epochs, learning rates, weight_decay, ema and "
            "early_stopping do not apply; train.optimizer: adamw would use them"
        )
        return select_solution(setup, log, None if setup.choice is None else setup.choice.start)
    setup = replace(setup, ema=build_ema(setup.config, setup.net, setup.train.steps))
    optimizer = build_training_optimizer(setup.config, setup.tagger)
    saver = StateSaver(run, setup, optimizer, signals)
    if state is not None:
        saver.restore(state)
    elif start is not None:
        _save_candidate(setup, start, run, is_best=True, log=log)
        saver.best, saver.trials = start, list(start.trials)
    trains_head_alone = setup.net is setup.tagger.head
    threads = ThreadChooser().threads_for(count_head_operations(setup))
    with threads if trains_head_alone else nullcontext():
        best = _select_epoch(setup, saver, run, log)
    epoch, choice = saver.position.epoch(setup.train.steps), setup.choice
    solves = setup.config.train.solve_head_last if choice is None else choice.end is not None
    if not solves or saver.solved_after == epoch:
        return best
    return _solve_last(setup, saver, best, run, log)


def _select_epoch(setup: TrainingSetup, saver: StateSaver, run: Path, log: RunLog) -> Candidate:
    """Train and save every epoch; return the best one, or the best so far at an early stop."""
    each, choice = setup.config.train.solve_head_each, setup.choice
    if isinstance(setup.val, Loader) and not each:
        setup.val.start_workers()
    only = None if choice is None else choice.end
    solve = partial(_solve_epoch, setup, saver, run, only, log) if each else None
    epochs = train_epochs(setup, saver.optimizer, saver.position, saver.save_point, log, solve)
    with saver.signals.deferred(), closing(setup.train), closing(setup.val), closing(epochs):
        # A resumed run may have stopped just after the epoch at which it would stop early.
        if not _stops_early(setup, saver, saver.position.epoch(setup.train.steps), log):
            for candidate in epochs:
                saver.trials += candidate.try_epoch(setup.implies)
                log.lap("validation")
                if saver.best is None or candidate.beats(saver.best):
                    saver.best = candidate
                _save_candidate(setup, candidate, run, candidate is saver.best, log)
                log.say(_format_candidate(candidate, saver.best))
                log.repeat_warnings(setup.world.gather(log.take_warnings()))
                saver.position = Position(candidate.number * setup.train.steps)
                saver.solved_after = candidate.number if each else saver.solved_after
                saver.save(saver.position)
                log.lap("saving")
                if _stops_early(setup, saver, candidate.number, log):
                    break
    assert saver.best is not None
    return replace(saver.best, trials=tuple(saver.trials))


def _stops_early(setup: TrainingSetup, saver: StateSaver, epoch: int, log: RunLog) -> bool:
    """Tell whether there was no better epoch for `train.early_stopping` epochs, or none is wanted.

    With a choice that was made before, training stops at its epoch.
    """
    if setup.choice is not None:
        return epoch >= setup.choice.epoch
    patience, best = setup.config.train.early_stopping, saver.best
    if patience is None or best is None or epoch - best.number < patience:
        return False
    log.say(f"early stop: no better mAP for {pluralize(epoch - best.number, 'epoch')}")
    return True


def solve_first(setup: TrainingSetup, feature_root: Path | None, log: RunLog) -> Candidate:
    """Solve for the head of the pretrained backbone; fine-tuning then starts from that tagger.

    Args:
        setup: its tagger gets the solved head, on all ranks.
        feature_root: folder of the feature stores; None: the cache's.

    Returns:
        The candidate before the first epoch, of number 0; its scores are on rank 0 alone.
    """
    only = None if setup.choice is None else setup.choice.start
    solved = _solve(setup, feature_root, log, only)
    log.say(f"training starts from the head of {solved.name}, mAP {_format_map(solved)}")
    return replace(solved, number=0, name="the solved head, before training")


def _solve_last(
    setup: TrainingSetup, saver: StateSaver, best: Candidate, run: Path, log: RunLog
) -> Candidate:
    """Solve for the head of the backbone after the last epoch; return the better candidate.

    It is saved as an epoch is, and the state knows of it; more epochs would go on from the trained
    head.

    Args:
        best: the best epoch, or the solved head before the first one.
    """
    epoch, head = saver.position.epoch(setup.train.steps), setup.eval_tagger.head
    trained = copy.deepcopy(head.state_dict())
    only = None if setup.choice is None else setup.choice.end
    with _saying_how_to_go_on("train.solve_head_last", log):
        solved = _solve_tuned(setup, run, only, log)
    name = f"the head solved for after epoch {epoch}"
    solved = replace(solved, number=epoch, name=name)
    trials = (*best.trials, *solved.try_epoch(setup.implies))
    solved = replace(solved, trials=trials)
    best = solved if solved.beats(best) else replace(best, trials=trials)
    _save_candidate(setup, solved, run, best is solved, log)
    head.load_state_dict(trained)
    log.say(_format_candidate(solved, best))
    saver.best, saver.trials, saver.solved_after = best, list(trials), epoch
    saver.save(saver.position)
    return best


def _solve_epoch(
    setup: TrainingSetup, saver: StateSaver, run: Path, only: Penalty | None, log: RunLog
) -> Candidate:
    """Solve for the head of the backbone as it is after an epoch; training goes on from it."""
    with saver.signals.raised(), _saying_how_to_go_on("train.solve_head_each", log), log.hushed():
        solved = _solve_tuned(setup, run, only, log)
    setup.tagger.head.load_state_dict(setup.eval_tagger.head.state_dict())
    return solved


@contextmanager
def _saying_how_to_go_on(key: str, log: RunLog) -> Iterator[None]:
    """Say how to go on without the solution that `key` asks for, where it fails."""
    try:
        yield
    except LostError:
        raise
    except MlfinetuneError:
        log.say(
            f"the epochs are saved; to go on without this solution add {key}=false --resume "
            f"--allow-changed"
        )
        raise


def _solve_tuned(setup: TrainingSetup, run: Path, only: Penalty | None, log: RunLog) -> Candidate:
    """Solve for the head of the backbone that trains, which `eval_tagger` has afterwards.

    The features are of use to no other run, and are not kept.
    """
    tagger = setup.eval_tagger
    # Of labels that nothing tells, the trained rows stay; all others are solved for.
    idle = find_idle(setup.inherited.columns if setup.inherited else (), setup.splits.train)
    inherited = read_rows(tagger.head, idle)
    tuned = replace(setup, tagger=tagger, net=tagger, ema=None, inherited=inherited)
    if setup.device.type == "cuda":
        torch.cuda.empty_cache()  # what training has left has room for features
    with temporary_folder(run) if setup.world.is_main else nullcontext() as root:
        return _solve(tuned, root, log, only)


def _solve(setup: TrainingSetup, root: Path | None, log: RunLog, only: Penalty | None) -> Candidate:
    """Solve for the head of the backbone as it is.

    Args:
        setup: its tagger gets the solved head, on all ranks.
        root: folder of the feature stores; None: the cache's.
        only: the one solution to find; None: validation chooses.

    Returns:
        The best solution; its scores are on rank 0 alone.
    """
    features = with_features(setup, root, log)
    on_rank_0: list[Candidate] = []

    def solve() -> Candidate:
        assert features is not None
        on_rank_0.append(select_solution(features, log, only))
        return replace(on_rank_0[0], scores=None)

    # Only rank 0 needs the scores, which are large.
    without_scores = setup.world.broadcast(solve)
    head = setup.tagger.head
    weights = setup.world.broadcast(lambda: {k: v.cpu() for k, v in head.state_dict().items()})
    head.load_state_dict(weights)
    return on_rank_0[0] if on_rank_0 else without_scores


def select_solution(setup: TrainingSetup, log: RunLog, only: Penalty | None = None) -> Candidate:
    """Return the best solution for the head, which the head holds afterwards.

    Nothing is saved before the end: all solutions together take a few seconds, on stored features.

    Args:
        setup: its batches are features.
        only: the one solution to find; None: validation chooses.
    """
    best: Candidate | None = None
    weights: dict[str, Tensor] = {}
    trials = []
    for solution in solve_head(setup, log, only):
        if best is None or solution.beats(best) or _is_weaker_equal(solution, best):
            best = solution
            weights = copy.deepcopy(setup.tagger.head.state_dict())
        trials.append(solution.try_out(setup.implies))
        log.lap("validation")
        log.say(_format_candidate(solution, best))
    assert best is not None
    setup.tagger.head.load_state_dict(weights)
    return replace(best, trials=tuple(trials))


def _is_weaker_equal(solution: Candidate, best: Candidate) -> bool:
    """Tell whether a solution has the same mAP as the best one, and a milder penalty."""
    if solution.mAP != best.mAP or solution.penalty is None or best.penalty is None:
        return False
    return rank_equal(solution.penalty.l2) < rank_equal(best.penalty.l2)


def read_best(setup: TrainingSetup, best: Candidate) -> Checkpoint:
    """Return the checkpoint of the best candidate: the best epoch's file, or the solved head's.

    A head that L-BFGS has solved for is in no file yet: `save_best` writes it, with its thresholds.

    Raises:
        CheckpointError: the file is damaged.
    """
    run = setup.config.output
    assert run is not None
    if uses_lbfgs(setup.config, setup.splits.train):
        return _build_content(setup, best)
    return checkpoint.load(run / directory.BEST)


def save_best(setup: TrainingSetup, content: Checkpoint) -> None:
    """Write best.safetensors; of a head that L-BFGS has solved for, last.safetensors too.

    Raises:
        CheckpointError: a file cannot be written.
    """
    run = setup.config.output
    assert run is not None
    is_last = uses_lbfgs(setup.config, setup.splits.train)
    checkpoint.save(run / directory.BEST, content, [run / directory.LAST] if is_last else [])


def _save_candidate(
    setup: TrainingSetup, candidate: Candidate, run: Path, is_best: bool, log: RunLog
) -> None:
    """Write last.safetensors, and best.safetensors where this is the best; on rank 0 alone."""
    if not setup.world.is_main:
        return
    content = _build_content(setup, candidate)
    checkpoint.save(run / directory.LAST, content, [run / directory.BEST] if is_best else [])
    log.lap("saving")


def _build_content(setup: TrainingSetup, candidate: Candidate) -> Checkpoint:
    """Build the checkpoint of the tagger as it is."""
    content = build_checkpoint(
        setup.config, setup.eval_tagger, setup.splits.val, setup.spec, candidate.number
    )
    return replace(content, parent=setup.parent)


def _format_candidate(candidate: Candidate, best: Candidate) -> str:
    """Format a line of the log: `epoch 2/10  loss 0.1234  mAP 0.5678 (best)  98.7 images/s`."""
    mark = " (best)" if candidate is best else f" (best {_format_map(best)})"
    head = f"{candidate.name}  loss {candidate.loss:.4f}  mAP {_format_map(candidate)}{mark}"
    return f"{head}  {candidate.speed}"


def _format_map(candidate: Candidate) -> str:
    return "--" if candidate.mAP is None else f"{candidate.mAP:.4f}"
