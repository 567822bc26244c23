"""Out-of-fold scores: each picture is scored by a model that has not seen it.

    Pool, Folds -> score_folds -> FoldScores     logits of the pictures that each holds out
    FoldScores  -> choose_by_folds -> Choice     of the model that all pictures train

An epoch or a penalty is chosen inside a fold, on pictures that it trains on: those that it holds
out decide nothing. Where the backbone is frozen and L-BFGS solves for the head, the other folds
choose the penalty, each held out in its turn, and the head is solved for on all of them. Otherwise
one part of the pictures chooses the epoch, and the model of that epoch scores the fold.

Models of other penalties or epochs have logits of other scales. The pictures that choose also tell
a slope, which brings them to one scale: calibrated, all labels together. So the scores of all folds
can be ranked together, and their thresholds fit the model that all pictures train.
"""

import shutil
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from io import StringIO
from pathlib import Path
from statistics import geometric_mean, mean, median

import numpy as np
from numpy.typing import NDArray

from mlfinetune.config import SOLVED_HEADS, Config
from mlfinetune.data.batches.feature_batches import FeatureLoader
from mlfinetune.data.batches.sampling import choose_factors
from mlfinetune.data.folds import Fold, Ints, Pool, draw_inner
from mlfinetune.data.manifest import DEFAULT_VAL_FRACTION, Splits
from mlfinetune.metrics.calibration import fit_slope
from mlfinetune.metrics.measure import measure
from mlfinetune.metrics.selection import Trial
from mlfinetune.runs import directory
from mlfinetune.runs.folds import FOLDS, FoldScores, read_fold, tabulate_rows, write_fold
from mlfinetune.runtime.device import choose_workers
from mlfinetune.runtime.log import RunLog
from mlfinetune.text import pluralize
from mlfinetune.training.build import (
    build_loader,
    build_training_loss,
    precomputes_features,
    uses_lbfgs,
)
from mlfinetune.training.loop import (
    validate,
)
from mlfinetune.training.records import Choice, Penalty
from mlfinetune.training.run import opened_training
from mlfinetune.training.select import read_best
from mlfinetune.training.setup import TrainingSetup, set_up, with_features
from mlfinetune.training.solve import rank_equal, solve_head
from mlfinetune.training.start import TrainRequest


def score_folds(
    request: TrainRequest, pool: Pool, folds: Sequence[Fold], log: RunLog
) -> list[FoldScores]:
    """Score the folds that no earlier start has finished; return the scores of all.

    Args:
        request: its output is the folder of all folds.
        log: says how good each fold is.

    Raises:
        MlfinetuneError, KeyboardInterrupt, SystemExit: as `opened_training`.
    """
    _score_missing(request, pool, folds, log)
    return request.world.broadcast(lambda: _read_folds(get_folder(request), pool, folds))


def _score_missing(request: TrainRequest, pool: Pool, folds: Sequence[Fold], log: RunLog) -> None:
    world, root = request.world, get_folder(request)
    missing = world.broadcast(lambda: _list_missing(root, pool, folds))
    if len(missing) < len(folds):
        log.say(f"{len(folds) - len(missing)} of {len(folds)} folds are kept from before")
    if not missing:
        return
    if precomputes_features(request.config) and uses_lbfgs(request.config, pool.examples):
        _solve_folds(request, pool, missing, folds, log)
        return
    for fold in missing:
        log.say(f"{fold.name} begins")
        world.broadcast(partial(clear_stub, root / FOLDS / fold.name))
        save = partial(_save_fold, root, pool, fold, log=log)
        own_log = RunLog(rank=world.info.rank)
        train_fold(move_output(request, root / FOLDS / fold.name), pool, fold, save, own_log)
        log.lap("folds")


def _solve_folds(
    request: TrainRequest, pool: Pool, missing: Sequence[Fold], folds: Sequence[Fold], log: RunLog
) -> None:
    """Compute features once, on all ranks; solve for the heads of the folds on rank 0."""
    examples = pool.examples
    splits = Splits(examples, examples, ())  # the pictures in training's views, and in evaluation's
    setup = set_up(request.config, splits, request.world, log)
    log.lap("model")
    features = with_features(setup, request.feature_root, log)
    if features is None:
        return
    for fold in missing:
        others = [one for one in folds if one.repeat == fold.repeat and one != fold]
        scores = solve_fold(features, pool, fold, others, RunLog(StringIO()))
        _save_fold(get_folder(request), pool, fold, scores, log)
        log.lap("learning")


def clear_stub(run: Path) -> None:
    """Remove a run directory that was left before it had anything to resume."""
    if run.is_dir() and not directory.list_states(run):
        shutil.rmtree(run)


def get_folder(request: TrainRequest) -> Path:
    """Return the folder of all folds."""
    assert request.config.output is not None
    return request.config.output


def move_output(request: TrainRequest, output: Path) -> TrainRequest:
    """Return the request for a run directory of its own."""
    return replace(request, config=request.config.model_copy(update={"output": output}))


def _list_missing(root: Path, pool: Pool, folds: Sequence[Fold]) -> list[Fold]:
    return [fold for fold in folds if read_fold(root / FOLDS / fold.name, pool, fold) is None]


def _read_folds(root: Path, pool: Pool, folds: Sequence[Fold]) -> list[FoldScores]:
    """Read the scores of all folds, which are there."""
    found = [read_fold(root / FOLDS / fold.name, pool, fold) for fold in folds]
    return [scores for scores in found if scores is not None]


def _save_fold(root: Path, pool: Pool, fold: Fold, scores: FoldScores, log: RunLog) -> None:
    """Write the scores of a fold, and say how good they are."""
    folder = root / FOLDS / fold.name
    folder.mkdir(parents=True, exist_ok=True)
    write_fold(folder, pool, fold, scores)
    mean_ap = measure(tabulate_rows(pool, scores.logits, fold.held_out)).averages["mAP"]
    shown = "--" if mean_ap is None else f"{mean_ap:.4f}"
    held_out = pluralize(len(fold.held_out), "picture")
    log.say(f"{fold.name}: {scores.chosen}; mAP {shown} of {held_out} that it holds out")


def divide(pool: Pool, fold: Fold, config: Config) -> Splits:
    """Return the pictures that a fold trains on, as train and val."""
    fraction = config.data.val_fraction or DEFAULT_VAL_FRACTION
    train, val = draw_inner(pool, fold.rest, fraction, config.train.seed)
    return _take(pool, train, val)


def _take(pool: Pool, train: Ints, val: Ints) -> Splits:
    sides = [pool.examples.take(rows.tolist()) for rows in (train, val)]
    return Splits(sides[0], sides[1], (), contents=(pool.contents[train], pool.contents[val]))


def require_inner_parts(config: Config, pool: Pool, folds: Sequence[Fold]) -> None:
    """Raise a DataError if a fold has nothing to choose on, before anything is computed."""
    solves = precomputes_features(config) and uses_lbfgs(config, pool.examples)
    if not solves or max(fold.number for fold in folds) == 2:
        for fold in folds:
            divide(pool, fold, config)


def solve_fold(
    setup: TrainingSetup, pool: Pool, fold: Fold, others: Sequence[Fold], log: RunLog
) -> FoldScores:
    """Choose a penalty by cross-validation among the other folds; then solve on all of them.

    One part of the pictures alone would choose: with few of them a penalty of 30 in one fold and of
    0.003 in the next. The logits of such folds have other scales, and cannot be ranked together.

    Args:
        setup: its batches are the features of the pool, for training and for scoring.
        fold: is held out.
        others: the other folds of its division.
        log: of the fold.
    """
    divisions = [(np.setdiff1d(fold.rest, one.held_out), one.held_out) for one in others]
    if len(divisions) == 1:  # of two folds: one part of the other one chooses
        fraction = setup.config.data.val_fraction or DEFAULT_VAL_FRACTION
        divisions = [draw_inner(pool, fold.rest, fraction, setup.config.train.seed)]
    inner = [_try_penalties(_narrow(setup, pool, *sides), log) for sides in divisions]
    trials = average_trials(inner)
    best = max(trials, key=lambda trial: trial.mAP or 0.0)
    penalty, slope = _get_penalty(best), best.slope or 1.0
    (solved,) = solve_head(_narrow(setup, pool, fold.rest, fold.held_out), log, penalty)
    assert solved.scores is not None
    logits = solved.scores.logits * np.float32(slope)
    return FoldScores(logits, penalty.describe(), tuple(trials), slope)


def _try_penalties(setup: TrainingSetup, log: RunLog) -> list[Trial]:
    """Return the mAP of each solution for the head, and the slope that calibrates it."""
    trials = []
    for found in solve_head(setup, log):
        assert found.penalty is not None
        assert found.scores is not None
        l2, iterations, slope = found.penalty.l2, found.penalty.iterations, fit_slope(found.scores)
        trials.append(Trial(found.mAP, l2=l2, iterations=iterations, slope=slope))
    return trials


def _narrow(setup: TrainingSetup, pool: Pool, train: Ints, val: Ints) -> TrainingSetup:
    """Return the setup that trains on some pictures of the pool, and scores others."""
    splits, sampling = _take(pool, train, val), setup.config.train.sampling
    assert isinstance(setup.train, FeatureLoader)
    assert isinstance(setup.val, FeatureLoader)
    return replace(
        setup,
        splits=splits,
        loss=build_training_loss(setup.config, splits.train, setup.device)[0],
        inherited=None,  # they may come from a run that has seen what is held out
        train=setup.train.take(train.tolist(), choose_factors(sampling, splits.train.targets)),
        val=setup.val.take(val.tolist()),
    )


def train_fold(
    request: TrainRequest,
    pool: Pool,
    fold: Fold,
    save: Callable[[FoldScores], None],
    log: RunLog,
) -> None:
    """Train on a part of the training pictures, choose on the others, score what is held out.

    Args:
        request: its output is the fold's own run directory.
        save: is given the scores, on rank 0, while the run directory is held; the weights, which
            nobody needs then, are removed afterwards.
        log: of the fold.

    Raises:
        MlfinetuneError, KeyboardInterrupt, SystemExit: as `opened_training`.
    """
    with opened_training(request, divide(pool, fold, request.config), log) as finished:
        if finished is None:
            return
        setup = finished.setup
        weights = setup.world.broadcast(lambda: read_best(setup, finished.best))
        setup.tagger.load_state_dict(weights.weights)
        _, inner = validate(replace(setup, ema=None), log)
        _, scores = validate(_hold_out(setup, pool, fold), log)
        if inner is not None and scores is not None:
            slope = fit_slope(inner)
            known = (trial for trial in finished.best.trials if trial is not None)
            trials = tuple(replace(trial, resampled=()) for trial in known)
            logits = scores.logits * np.float32(slope)
            save(FoldScores(logits, finished.best.name, trials, slope))
            remove_weights(finished.run)


def _hold_out(setup: TrainingSetup, pool: Pool, fold: Fold) -> TrainingSetup:
    """Return the setup that validates on the pictures that a fold holds out."""
    config, info = setup.config, setup.world.info
    val = pool.examples.take(fold.held_out.tolist())
    workers = choose_workers(config.train.workers, setup.device)
    ranks = {"rank": info.rank, "size": info.size}
    loader = build_loader(config, val, setup.spec, setup.device, workers, train=False, **ranks)
    splits = replace(setup.splits, val=val)
    return replace(setup, splits=splits, net=setup.tagger, val=loader, ema=None)


def remove_weights(run: Path) -> None:
    """Remove checkpoints and resume states of a run directory; logs and metrics stay."""
    states = (directory.STATE, directory.PREVIOUS_STATE)
    for name in (directory.BEST, directory.LAST, *states):
        (run / name).unlink(missing_ok=True)


def choose_by_folds(folds: Sequence[Sequence[Trial]]) -> Choice:
    """Return the choice whose mAP is the highest on average over the folds.

    Candidates that a fold has not tried, because its search had ended, are left out. The mAPs are
    those of the pictures that chose inside the folds.

    Args:
        folds: the trials of each fold.
    """
    start = _find_best(folds, lambda trial: trial.l2 is not None and not trial.epoch)
    epoch = _find_best(folds, lambda trial: trial.l2 is None)
    end = _find_best(folds, lambda trial: trial.l2 is not None and trial.epoch > 0)
    first = None if start is None else _get_penalty(start)
    choices: list[tuple[float, Choice]] = []
    if start is not None:
        choices.append((start.mAP or 0.0, Choice(first)))
    if epoch is not None:
        choices.append((epoch.mAP or 0.0, Choice(first, epoch.epoch)))
    if end is not None:
        choices.append((end.mAP or 0.0, Choice(first, end.epoch, _get_penalty(end))))
    return max(choices, key=lambda item: item[0])[1]


def compute_features(request: TrainRequest, pool: Pool, log: RunLog) -> NDArray[np.float32] | None:
    """Compute the (N, F) features of the pretrained backbone, of the pictures as they are.

    Returns:
        None on all ranks but 0.
    """
    config = request.config.update_section("train", **dict.fromkeys(SOLVED_HEADS, False))
    config = config.update_section("train", layer_decay=None, cache_views=1, cache_features="auto")
    config = config.update_section("eval", views="plain")
    config = config.update_section("model", freeze_backbone=True)
    splits = Splits(pool.examples.take([0]), pool.examples, ())
    log.say("near duplicates: the features of all pictures, by the pretrained backbone")
    built = set_up(config, splits, request.world, RunLog(StringIO()))
    setup = with_features(built, request.feature_root, log)
    if setup is None:
        return None
    batches = [batch.images.cpu().numpy() for batch in setup.val.epoch()]
    return np.concatenate(batches)


def find_slope(folds: Sequence[FoldScores], choice: Choice) -> float:
    """Return the slope that brings the logits of this choice to the scale of all folds' scores.

    It is the geometric mean of the slopes that this candidate had in the folds; of a solved head,
    after the epoch that is the nearest to the chosen one.
    """
    slopes = []
    for fold in folds:
        found = [trial for trial in fold.trials if _is_of(trial, choice)]
        nearest = min(found, key=lambda trial: abs(trial.epoch - choice.epoch), default=None)
        slopes.append(fold.slope if nearest is None else nearest.slope)
    return _average_slopes(slopes) or 1.0


def _is_of(trial: Trial, choice: Choice) -> bool:
    """Tell whether a candidate is the one that was chosen."""
    penalty = choice.end or (None if choice.epoch else choice.start)
    if penalty is None:
        return trial.l2 is None and trial.epoch == choice.epoch
    is_same = (trial.l2, trial.iterations) == (penalty.l2, penalty.iterations)
    return is_same and bool(trial.epoch) == (choice.end is not None)


def _average_slopes(slopes: Sequence[float | None]) -> float | None:
    """Return the geometric mean; None where a slope is not known."""
    known = [slope for slope in slopes if slope]
    return geometric_mean(known) if known and len(known) == len(slopes) else None


def _get_penalty(trial: Trial) -> Penalty:
    assert trial.l2 is not None
    assert trial.iterations is not None
    return Penalty(trial.l2, trial.iterations)


def _find_best(
    folds: Sequence[Sequence[Trial]], is_wanted: Callable[[Trial], bool]
) -> Trial | None:
    """Return the candidate of this kind with the highest mean mAP.

    Of equal ones it is the one with the lowest `rank_equal`, then the first.
    """
    wanted = [[trial for trial in trials if is_wanted(trial)] for trials in folds]
    found = average_trials(wanted)
    return max(found, key=lambda trial: (trial.mAP or 0.0, -rank_equal(trial.l2)), default=None)


def average_trials(folds: Sequence[Sequence[Trial]]) -> list[Trial]:
    """Return each candidate that all folds have tried, with its mean mAP.

    A head that is solved for after the last epoch comes after the median of the folds' last epochs.
    One that is solved for after each epoch is compared with those of the same epoch.
    """
    solved = [{trial.epoch for trial in trials if trial.l2 and trial.epoch} for trials in folds]
    of_each = any(len(epochs) > 1 for epochs in solved)
    by_key = defaultdict[tuple[object, ...], list[Trial]](list)
    for trials in folds:
        own: dict[tuple[object, ...], Trial] = {}
        for trial in trials:
            epoch = trial.epoch if trial.l2 is None or of_each else bool(trial.epoch)
            own.setdefault((epoch, trial.l2, trial.iterations), trial)
        for key, trial in own.items():
            by_key[key].append(trial)
    return [
        replace(
            trials[0],
            mAP=mean(trial.mAP or 0.0 for trial in trials),
            slope=_average_slopes([trial.slope for trial in trials]),
            epoch=round(median(trial.epoch for trial in trials)),
        )
        for trials in by_key.values()
        if len(trials) == len(folds)
    ]
