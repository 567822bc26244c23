"""`mlfinetune crossval`: config -> folds -> out-of-fold scores -> results; a model on request."""

import shutil
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlfinetune.config import Config, dump_config
from mlfinetune.data.folds import Fold, Pool, count_torn, draw_folds, pool_sides
from mlfinetune.data.load import load_splits, resolve_data_config
from mlfinetune.data.manifest import Splits, digest_manifest
from mlfinetune.errors import MlfinetuneError
from mlfinetune.metrics.evaluation import evaluate, fit_decision_rule
from mlfinetune.metrics.implies import list_pairs
from mlfinetune.metrics.logits import sigmoid
from mlfinetune.metrics.near_duplicates import group_near_duplicates
from mlfinetune.metrics.types import DecisionRule, Evaluation
from mlfinetune.report.write import write_report
from mlfinetune.runs import checkpoint, directory
from mlfinetune.runs.folds import (
    CROSSVAL,
    FOLDS,
    FoldScores,
    copy_folds,
    describe_folds,
    is_same_plan,
    join_logits,
    tabulate_rows,
    write_fold_table,
    write_plan,
)
from mlfinetune.runs.near_duplicates import read_near_duplicates, write_near_duplicates
from mlfinetune.runs.overview import RUN, describe_run
from mlfinetune.runs.results import write_results, write_skipped
from mlfinetune.runs.trained_on import read_former_labels, read_parent
from mlfinetune.runtime.device import oom_as_device_error
from mlfinetune.runtime.distributed import init_distributed
from mlfinetune.runtime.log import RunLog
from mlfinetune.runtime.signals import catch_signals
from mlfinetune.storage.atomic import remove_leftovers, try_writing, write_atomic
from mlfinetune.text import display_path, format_duration, pluralize
from mlfinetune.training.build import (
    find_versions,
    locate_images,
    require_lbfgs_fits,
)
from mlfinetune.training.folds import (
    choose_by_folds,
    clear_stub,
    compute_features,
    find_slope,
    get_folder,
    move_output,
    remove_weights,
    require_inner_parts,
    score_folds,
)
from mlfinetune.training.network import require_network, resolve_network
from mlfinetune.training.records import Choice
from mlfinetune.training.run import opened_training
from mlfinetune.training.select import read_best
from mlfinetune.training.start import TrainRequest

ALL = "all"
"""Folder, below FOLDS, of the training on all pictures."""
NOTHING = np.empty(0, np.int64)
EVAL = "eval"
"""Key of the plan that decides nothing about the scores of the folds."""
MOST_COMPARED = 100_000
"""Pictures among which near duplicates are looked for."""


@dataclass(frozen=True)
class CrossvalOptions:
    """Arguments of `mlfinetune crossval`.

    Attributes:
        output: folder for the results; None: the config's run directory, with `-crossval`.
        folds: number of folds.
        repeats: number of divisions into folds.
        then_train: train on all pictures in the end.
    """

    output: Path | None = None
    folds: int = 5
    repeats: int = 1
    then_train: bool = False


@dataclass(frozen=True)
class CrossvalResult:
    """Numbers of the out-of-fold scores, and where they were written.

    Attributes:
        folder: of the results.
        evaluation: the numbers.
        facts: of the folds, as metrics.json has them.
    """

    folder: Path
    evaluation: Evaluation
    facts: dict[str, Any]


def run(
    config: Config,
    options: CrossvalOptions,
    device_name: str,
    log: RunLog,
    command: str | None = None,
) -> CrossvalResult | None:
    """Score every picture by a model that has not seen it, and write the results.

    Folds that an earlier start has finished, with the same config and data, are used again.

    Args:
        config: names the data and the model.
        options: the folds.
        device_name: as `runtime.device.prepare_device` takes it.
        log: says what is done.
        command: that started it, for metrics.json.

    Returns:
        None on all ranks but 0, which alone writes and prints.

    Raises:
        MlfinetuneError: data, weights, device, loss or folder that cannot be used.
        KeyboardInterrupt, SystemExit: Ctrl-C, SIGTERM; the finished folds are kept.
    """
    started = time.monotonic()
    with (
        catch_signals() as heard,
        init_distributed(device_name, config.train.deterministic) as world,
    ):
        assert config.output is not None
        output = options.output or config.output.with_name(f"{config.output.name}-crossval")
        world.broadcast(lambda: try_writing(output.parent))
        require_network(config)
        with world.local_main_first():
            splits = load_splits(config, log, None, False, read_former_labels(config))
        for note in splits.notes:
            log.say(note)
        log.lap("data")
        config = resolve_network(resolve_data_config(config, splits))
        config = config.model_copy(update={"output": output})
        if config.train.trackers:
            log.say("train.trackers is not used: there is no one run that it could follow")
        config = config.update_section("train", trackers=[])
        request = TrainRequest(config, world, heard, command=command, started=started)
        return _cross_validate(request, splits, options, log)


def _cross_validate(
    request: TrainRequest, splits: Splits, options: CrossvalOptions, log: RunLog
) -> CrossvalResult | None:
    """Find or make the folder, and fill it; None on all ranks but 0."""
    world, pool = request.world, pool_sides(splits)
    require_lbfgs_fits(request.config, pool.examples)
    folds = draw_folds(pool, options.folds, options.repeats, request.config.train.seed)
    require_inner_parts(request.config, pool, folds)
    plan = _build_plan(request.config, pool, options)
    folder = world.broadcast(lambda: _find_folder(request.config, plan, options.then_train))
    request = move_output(request, folder)
    with directory.locked_run(folder) if world.is_main else nullcontext(), oom_as_device_error():
        if world.is_main:
            _open_folder(request.config, pool, splits, folds, plan, log)
        log.say(_describe(pool, folds, options))
        seen = _find_seen(request.config, pool)
        if seen is not None and seen.any():
            log.say(
                f"warning: model.weights was trained on {seen.sum():,} of these {len(seen):,} "
                f"pictures: no fold hides them from it, so the numbers are too good"
            )
        scores = score_folds(request, pool, folds, log)
        _write_near_duplicates(request, pool, folds, log)
        result = None
        if world.is_main:
            result = _write_results(request, pool, folds, scores, seen, log)
            log.lap("results")
        if options.then_train:
            choice = choose_by_folds([found.trials for found in scores])
            rule = None if result is None else result.evaluation.decision
            _train_on_all(request, pool, choice, find_slope(scores, choice), rule, log)
    log.say(f"{format_duration(time.monotonic() - request.started)} in all")
    log.say_seconds()
    return result


def _build_plan(config: Config, pool: Pool, options: CrossvalOptions) -> dict[str, object]:
    """Return everything that decides the scores of the folds."""
    settings = config.model_dump(mode="json", exclude={"output", "note", "eval"})
    return {
        "folds": options.folds,
        "repeats": options.repeats,
        "data": digest_manifest(pool.examples),
        "settings": settings | {"views": config.eval.views},
        "versions": find_versions(config.model.backbone),
        EVAL: config.eval.model_dump(mode="json"),
    }


def _find_folder(config: Config, plan: dict[str, object], then_train: bool) -> Path:
    """Return the folder of an earlier start that has something left to do, or a new one.

    earlier folder of the same folds                 result
    not finished                                     that folder
    finished, same `eval`; --then-train is left      that folder
    finished, and nothing is left, or other `eval`   a new one, with a copy of what its folds found
    """
    assert config.output is not None
    same = [run for run in directory.find_runs(config.output) if is_same_plan(run, plan, EVAL)]
    for run in same:
        is_finished = (run / directory.METRICS).is_file()
        lacks_model = then_train and not (run / directory.BEST).is_file()
        if not is_finished or (lacks_model and is_same_plan(run, plan)):
            return run
    made = directory.make_run_dir(config.output)
    if same:
        copy_folds(same[0], made)
    return made


def _open_folder(
    config: Config,
    pool: Pool,
    splits: Splits,
    folds: Sequence[Fold],
    plan: dict[str, object],
    log: RunLog,
) -> None:
    """Write what the folds are, and attach the log to the folder."""
    folder = config.output
    assert folder is not None
    remove_leftovers(folder)
    write_atomic(folder / directory.CONFIG, dump_config(config).encode())
    labels = "".join(f"{name}\n" for name in pool.examples.labels.names)
    write_atomic(folder / directory.LABELS, labels.encode(errors="surrogateescape"))
    if splits.skipped:
        write_skipped(folder, splits.skipped)
    write_fold_table(folder, pool, folds)
    write_plan(folder, plan)
    log.attach_run(folder / directory.LOG, folder / directory.HISTORY)
    log.say(f"folder: {display_path(folder)}")


def _find_seen(config: Config, pool: Pool) -> NDArray[np.bool_] | None:
    """Return (N,) pictures that the run of model.weights was trained on; None: no run's weights."""
    known, examples = read_parent(config), pool.examples
    if known is None:
        return None
    return known.find_seen(pool.contents, [examples.path(row) for row in range(len(examples))])


def _describe(pool: Pool, folds: Sequence[Fold], options: CrossvalOptions) -> str:
    sizes = sorted({len(fold.held_out) for fold in folds})
    held_out = f"{sizes[0]}" + (f" to {sizes[-1]}" if len(sizes) > 1 else "")
    times = f", {options.repeats} times" if options.repeats > 1 else ""
    return (
        f"{pluralize(len(pool.examples), 'image')}, {pluralize(len(pool.examples.labels), 'label')}"
        f": {options.folds} folds{times}, each holds out {held_out}"
    )


# ---- results ----------------------------------------------------------------------------


def _write_near_duplicates(
    request: TrainRequest, pool: Pool, folds: Sequence[Fold], log: RunLog
) -> None:
    """Write which pictures look alike: suspects say where such pictures have other tags.

    Nothing is written where the backbone has learned nothing, or the pictures are so many that to
    compare all pairs takes hours. A failure is said, and costs no results.
    """
    folder, names = get_folder(request), pool.examples.names
    if request.config.model.weights is None:
        return
    if len(names) > MOST_COMPARED:
        log.say(f"near duplicates are not looked for among more than {MOST_COMPARED:,} pictures")
        return
    groups = request.world.broadcast(lambda: read_near_duplicates(folder, names))
    if groups is None:
        try:
            features = compute_features(request, pool, log)
        except MlfinetuneError as error:
            if request.world.is_distributed:  # the other ranks would wait for this one
                raise
            log.say(f"warning: near duplicates are not looked for: {error}")
            return
        if features is None:
            return
        groups = group_near_duplicates(features)
        write_near_duplicates(folder, names, groups)
    log.lap("near duplicates")
    if torn := count_torn(groups, folds):
        log.say(
            f"{pluralize(torn, 'picture')} with a near duplicate in another fold: where these show "
            f"one thing, scores are too high; data.group_by keeps such pictures together"
        )


def _write_results(
    request: TrainRequest,
    pool: Pool,
    folds: Sequence[Fold],
    scores: Sequence[FoldScores],
    seen: NDArray[np.bool_] | None,
    log: RunLog,
) -> CrossvalResult:
    """Fit thresholds and calibration to the scores of all folds, and write the results.

    Of several repeats the first one gives the scores: a mean of several models would be better than
    the one model that is to be judged. The others tell how much the division decides.

    Args:
        seen: (N,) pictures that the starting weights were trained on; None: not known.
    """
    config, folder, examples = request.config, get_folder(request), pool.examples
    rows = np.arange(len(examples))
    table = tabulate_rows(pool, join_logits(pool, folds, scores, repeat=1), rows)
    implies = list_pairs(config.data.implies, examples.labels)
    rule = fit_decision_rule(config.eval, table, implies)
    evaluation = evaluate(config.eval, table, rule, fitted_here=True)
    facts = describe_folds(pool, folds, scores, rule, config.eval.ap)
    about: dict[str, Any] = {"data": "out-of-fold", CROSSVAL: facts, "views": config.eval.views}
    about |= {"versions": find_versions(config.model.backbone), **locate_images(config, examples)}
    seconds = time.monotonic() - request.started
    about[RUN] = describe_run(config, request.command, len(examples), seconds)
    write_results(folder, evaluation, sigmoid(evaluation.scores.logits), about, seen)
    write_report(folder, log)
    return CrossvalResult(folder, evaluation, facts)


def _train_on_all(
    request: TrainRequest,
    pool: Pool,
    choice: Choice,
    slope: float,
    rule: DecisionRule | None,
    log: RunLog,
) -> None:
    """Train on all pictures with the choice of the folds, and save the model with their rule.

    Args:
        slope: factor for the head, which brings its logits to the scale of the folds' scores.
        rule: thresholds and calibration; None on all ranks but 0.
    """
    folder = get_folder(request)
    log.say(f"training on all pictures: {choice.describe()}, the best on average over the folds")
    splits = Splits(pool.examples, pool.examples.take([]), (), contents=(pool.contents, NOTHING))
    own = move_output(request, folder / FOLDS / ALL)
    request.world.broadcast(partial(clear_stub, folder / FOLDS / ALL))
    with opened_training(own, splits, RunLog(rank=request.world.info.rank), choice) as finished:
        if finished is None or rule is None:
            return
        content = read_best(finished.setup, finished.best)
        for name in ("head.weight", "head.bias"):
            content.weights[name].mul_(slope)
        config = request.config.model_dump(mode="json")
        content = replace(content, decision=rule, config=config)
        content = replace(content, data_digest=checkpoint.OUT_OF_FOLD)
        shutil.copyfile(finished.run / directory.TRAINED_ON, folder / directory.TRAINED_ON)
        checkpoint.save(folder / directory.BEST, content)
        remove_weights(finished.run)
    log.say(f"model: {display_path(folder / directory.BEST)}")
    log.lap("final model")
