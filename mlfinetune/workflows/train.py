"""`mlfinetune train`: config -> examples -> setup -> best candidate -> results."""

import signal
import time
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from mlfinetune.config import Config
from mlfinetune.data.load import load_splits
from mlfinetune.data.manifest import Splits, digest_manifest
from mlfinetune.errors import CheckpointError, DataError
from mlfinetune.metrics.evaluation import evaluate, fit_decision_rule
from mlfinetune.metrics.logits import sigmoid
from mlfinetune.metrics.selection import estimate_selection
from mlfinetune.metrics.types import Evaluation
from mlfinetune.models.heat_map import build_explainer
from mlfinetune.models.inference import prepare_for_inference
from mlfinetune.report import MapSource, choose_most
from mlfinetune.report.write import write_report
from mlfinetune.runs import checkpoint, directory
from mlfinetune.runs.overview import RUN, describe_run, parse_history, sum_seconds
from mlfinetune.runs.results import write_results
from mlfinetune.runs.trackers import opened_trackers, require_trackers
from mlfinetune.runs.trained_on import describe_seen, read_trained_on
from mlfinetune.runtime.device import choose_precision, oom_as_device_error, read_peak_memory
from mlfinetune.runtime.distributed import World, init_distributed
from mlfinetune.runtime.log import RunLog
from mlfinetune.runtime.signals import catch_signals
from mlfinetune.runtime.threads import one_thread
from mlfinetune.storage.files import Stamp, read_stamp
from mlfinetune.storage.store import temporary_folder
from mlfinetune.text import display_path, format_duration
from mlfinetune.training.autotune import DRY_RUN_BATCH, get_batch_size_or
from mlfinetune.training.bottleneck import Passes, describe_freezing
from mlfinetune.training.build import (
    list_freezing_obstacles,
    locate_images,
    precomputes_features,
    require_lbfgs_fits,
)
from mlfinetune.training.loop import Candidate, validate
from mlfinetune.training.resume import ResumeState
from mlfinetune.training.select import select_best, solve_first
from mlfinetune.training.setup import TrainingSetup, reading_copies, set_up, with_features
from mlfinetune.training.start import (
    ResumeOptions,
    TrainRequest,
    describe_saved,
    find_run_data,
    find_run_to_resume,
    load_resume_state,
    open_run,
    resolve_config,
    try_run_directory,
)

_GOES_ON_FROM = (
    directory.CONFIG,
    directory.STATE,
    directory.PREVIOUS_STATE,
    directory.BEST,
    directory.HISTORY,
    directory.METRICS,
)
"""Files that decide how a resumed run goes on."""


@dataclass(frozen=True)
class TrainResult:
    """A finished run: its directory, and the numbers of its best candidate."""

    run: Path
    evaluation: Evaluation


def run(
    config: Config,
    device_name: str,
    log: RunLog,
    resume: ResumeOptions | None = None,
    command: str | None = None,
) -> TrainResult | None:
    """Train as `config` says; return when the run directory is complete.

    Args:
        config: names the data, the model and the run directory.
        device_name: as `runtime.device.prepare_device` takes it.
        log: says what is done.
        resume: resume the newest run directory of the config; None: begin a new one, unless an
            unfinished one has the same settings and data. See `find_run_to_resume`.
        command: that started the run, for metrics.json; None: no command did.

    Returns:
        None on all ranks but 0, which alone writes and prints.

    Raises:
        MlfinetuneError: data, weights, device, loss or run directory that cannot be used.
        KeyboardInterrupt, SystemExit: Ctrl-C, SIGTERM; the resume state is saved.
    """
    started = time.monotonic()
    with (
        catch_signals() as heard,
        init_distributed(device_name, config.train.deterministic) as world,
    ):
        try:
            config = find_run_data(config, resume, log)
            world.broadcast(lambda: try_run_directory(config, resume))
            with world.local_main_first():
                splits = load_splits(config, log)
            log.lap("data")
            request = TrainRequest(config, world, heard, resume, command=command, started=started)
            return _train(request, splits, log)
        except (KeyboardInterrupt, SystemExit):
            name = "SIGTERM" if heard.received == signal.SIGTERM else "Ctrl-C"
            log.say(f"stopped by {name}; {describe_saved(log.folder)}")
            raise


def dry_run(config: Config, device_name: str, log: RunLog) -> None:
    """Train, validate, save and write with one batch of everything; leave no file.

    Raises:
        MlfinetuneError: as `run`.
    """
    splits = load_splits(config, log if config.data.bad_images == "skip" else None)
    rows = list(range(get_batch_size_or(config, DRY_RUN_BATCH)))
    one_batch = replace(
        splits,
        train=splits.train.take(rows[: len(splits.train)]),
        val=splits.val.take(rows[: len(splits.val)]),
        contents=(),
    )
    with (
        temporary_folder() as folder,
        catch_signals() as heard,
        init_distributed(device_name, config.train.deterministic) as world,
    ):
        config = config.update_section("train", epochs=1, batch_size=len(rows), trackers=[])
        config = config.model_copy(update={"output": folder / "dry-run"})
        request = TrainRequest(
            config, world, heard, feature_root=folder / "features", copy_root=folder / "images"
        )
        _train(request, one_batch, log)


def _train(request: TrainRequest, splits: Splits, log: RunLog) -> TrainResult | None:
    """Find or make the run directory, and fill it; None on all ranks but 0."""
    world = request.world
    require_trackers(request.config.train.trackers)
    for note in splits.notes:
        log.say(note)
    _require_same_data(world, splits)
    resumed = world.broadcast(lambda: find_run_to_resume(request, splits, log))
    found = _read_stamps(resumed)
    config = world.broadcast(lambda: resolve_config(request.config, splits, resumed))
    require_lbfgs_fits(config, splits.train)
    setup = set_up(config, splits, world, log)
    if resumed is None and (line := _describe_fast_way(setup)):
        log.say(line)
    log.lap("model")
    state = world.broadcast(lambda: load_resume_state(resumed, setup, request, log))
    # Nothing has been written before: all that can be refused has been.
    wanted = request.config.output or directory.RUNS
    run = resumed or world.broadcast(lambda: directory.make_run_dir(wanted))
    setup = replace(setup, config=setup.config.model_copy(update={"output": run}))
    with directory.locked_run(run) if world.is_main else nullcontext(), oom_as_device_error():
        if resumed is not None and world.is_main:
            _require_same_files(resumed, found)
        result = _fill_run(setup, state, request, log)
        world.barrier()
        log.repeat_warnings(world.gather(log.take_warnings()))
        if result is None:
            return None
        best, evaluation = result
        (run / directory.PREVIOUS_STATE).unlink(missing_ok=True)
    peak = read_peak_memory(setup.device) / 2**30
    memory = f", peak memory {peak:.1f} GiB" if peak else ""
    took = format_duration(time.monotonic() - request.started)
    log.say(f"best: {best.name}; {took} in all{memory}")
    log.lap("results")
    log.say_seconds()
    return TrainResult(run, evaluation)


def _describe_fast_way(setup: TrainingSetup) -> str:
    """Return a line on the fast way for a CPU; empty where the run goes it, or needs a GPU's."""
    model, train = setup.config.model, setup.config.train
    if setup.device.type != "cpu" or model.freeze_backbone or model.weights is None:
        return ""
    sizes = len(setup.splits.train), len(setup.splits.val)
    passes = Passes(*sizes, train.epochs, train.solve_head_first + train.solve_head_last)
    return describe_freezing(passes, list_freezing_obstacles(setup.config))


def _read_stamps(run: Path | None) -> dict[str, Stamp | None]:
    """Return size and time of the files that a run goes on from; empty: it is a new one."""
    return {} if run is None else {name: read_stamp(str(run / name)) for name in _GOES_ON_FROM}


def _require_same_files(run: Path, found: dict[str, Stamp | None]) -> None:
    """Raise a CheckpointError where another process has written the run since it was read.

    It is read before it is locked: a run that is refused stays as it is, to the lock.
    """
    if _read_stamps(run) != found:
        raise CheckpointError(
            f"{display_path(run)} was written by another process a moment ago: give the command "
            f"again to go on from there"
        )


def _require_same_data(world: World, splits: Splits) -> None:
    """Raise a DataError where a rank has read other examples than rank 0.

    The ranks share each batch by the indices of examples, so these must mean the same everywhere.
    """
    sides = (splits.train, splits.val)
    digests = [digest_manifest(side) for side in sides] if world.is_distributed else []
    by_rank = world.gather(digests)
    if others := [rank for rank, theirs in enumerate(by_rank) if theirs != by_rank[0]]:
        raise DataError(
            f"process {others[0]} has read other examples than process 0: the table, the pictures "
            f"and data.bad_images have to say the same to all"
        )


def _fill_run(
    setup: TrainingSetup, state: ResumeState | None, request: TrainRequest, log: RunLog
) -> tuple[Candidate, Evaluation] | None:
    """Train in a run directory that this process has locked, and write its results.

    Returns:
        The best candidate and its numbers; None on all ranks but 0.
    """
    config, run, world = setup.config, setup.config.output, setup.world
    assert run is not None
    names = config.train.trackers if world.is_main else []
    with opened_trackers(names, run, config.model_dump(mode="json")) as write:
        if world.is_main:
            open_run(setup, run, state, log)
            log.add_tracker(write)
        start = None
        if precomputes_features(config):
            features = with_features(setup, request.feature_root, log)
            if features is None:
                return None
            setup = features
        elif config.train.solve_head_first and state is None:
            start = solve_first(setup, request.feature_root, log)
        with reading_copies(setup, request.copy_root, log):
            best = select_best(setup, start, state, request.signals, log)
        before = "" if state is None else state.content["history"]
        evaluation = _write_run_results(setup, best, run, request, before, log)
        return None if evaluation is None else (best, evaluation)


def _write_run_results(
    setup: TrainingSetup,
    best: Candidate,
    run: Path,
    request: TrainRequest,
    history: str,
    log: RunLog,
) -> Evaluation | None:
    """Fit thresholds and calibration, put them into best.safetensors, and write the results.

    Args:
        history: metrics.jsonl of earlier starts of a resumed run.

    Returns:
        None on all ranks but 0.
    """
    config, val, world, scores = setup.config, setup.splits.val, setup.world, best.scores
    # The resume state has no scores: a best epoch from before the resume is validated again.
    if world.broadcast(lambda: best.scores is None):
        weights = world.broadcast(lambda: checkpoint.load(run / directory.BEST).weights)
        setup.tagger.load_state_dict(weights)
        _, scores = validate(setup, log)
    if not world.is_main:
        return None
    assert scores is not None
    content = checkpoint.load(run / directory.BEST)
    rule = fit_decision_rule(config.eval, scores, setup.implies)
    # Of a resumed run the settings and the validation data may be others than at its best epoch.
    content = replace(
        content,
        decision=rule,
        views=config.eval.views,
        config=config.model_dump(mode="json"),
        data_digest=digest_manifest(val),
    )
    checkpoint.save(run / directory.BEST, content)
    evaluation = evaluate(config.eval, scores, rule, fitted_here=True)
    facts = replace(evaluation.facts, selection=estimate_selection(best.trials))
    evaluation = replace(evaluation, facts=facts)
    about = {"data": "validation", "epoch": best.number, **locate_images(config, val)}
    about |= {"candidate": best.name, "versions": content.versions, "views": config.eval.views}
    about["training_data"] = digest_manifest(setup.splits.train)
    earlier = sum_seconds(parse_history(history)) or 0.0
    seconds = earlier + time.monotonic() - request.started
    about[RUN] = describe_run(config, request.command, len(setup.splits.train), seconds)
    seen = None
    if setup.splits.contents:
        trained_on = read_trained_on(run)  # of a resumed run, whose data may have changed, all
        assert trained_on is not None
        seen = trained_on.find(setup.splits.contents[1], map(val.path, range(len(val))))
        if note := describe_seen(int(seen.sum()), len(seen)):
            log.say(f"warning: {note}")
    write_results(run, evaluation, sigmoid(evaluation.scores.logits), about, seen)
    write_report(run, log, _build_map_source(setup, content.weights))
    return evaluation


def _build_map_source(setup: TrainingSetup, weights: dict[str, Tensor]) -> MapSource:
    """Return the source of the page's heat maps, computed with these weights."""
    config, device = setup.config, setup.device
    dtype, _ = choose_precision(config.train.precision, device)
    with one_thread():
        setup.tagger.load_state_dict(weights)
        tagger, _ = prepare_for_inference(setup.tagger, setup.spec.image_size, device, dtype)
    mirrored, kept = config.eval.views == "mirror", precomputes_features(config)
    most = choose_most(len(setup.splits.val), kept, setup.spec.image_size, 1 + mirrored)
    return MapSource(*build_explainer(tagger, setup.spec, mirrored), most)
