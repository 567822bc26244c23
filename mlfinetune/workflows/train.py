"""`mlfinetune train`: config -> examples -> setup -> best candidate -> results."""

import signal
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from torch import Tensor

from mlfinetune.config import Config
from mlfinetune.data.load import load_splits
from mlfinetune.data.manifest import Splits, digest_manifest
from mlfinetune.metrics.evaluation import evaluate, fit_decision_rule
from mlfinetune.metrics.logits import sigmoid
from mlfinetune.metrics.selection import estimate_selection
from mlfinetune.metrics.types import Evaluation
from mlfinetune.models.heat_map import build_explainer, count_explaining_threads
from mlfinetune.models.inference import prepare_for_inference
from mlfinetune.report import MapSource, choose_most
from mlfinetune.report.write import write_report
from mlfinetune.runs import checkpoint, directory
from mlfinetune.runs.overview import RUN, describe_run, parse_history, sum_seconds
from mlfinetune.runs.results import write_results
from mlfinetune.runs.trained_on import describe_seen, read_former_labels, read_trained_on
from mlfinetune.runtime.device import choose_precision, read_peak_memory
from mlfinetune.runtime.distributed import init_distributed
from mlfinetune.runtime.log import RunLog
from mlfinetune.runtime.signals import catch_signals
from mlfinetune.runtime.threads import one_thread
from mlfinetune.storage.store import temporary_folder
from mlfinetune.text import format_duration
from mlfinetune.training.autotune import DRY_RUN_BATCH, get_batch_size_or
from mlfinetune.training.build import (
    locate_images,
    precomputes_features,
)
from mlfinetune.training.loop import (
    validate,
)
from mlfinetune.training.network import require_network
from mlfinetune.training.run import FinishedTraining, opened_training
from mlfinetune.training.select import read_best, save_best
from mlfinetune.training.setup import TrainingSetup
from mlfinetune.training.start import (
    ResumeOptions,
    TrainRequest,
    describe_saved,
    find_known_sides,
    find_run_data,
    try_run_directory,
)


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
            if world.broadcast(lambda: try_run_directory(config, resume)) is None:
                require_network(config)
            with world.local_main_first():
                known, former = find_known_sides(config, resume, log), read_former_labels(config)
                splits = load_splits(config, log, known, former=former)
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
    require_network(config)
    known, scan_log = find_known_sides(config, None, log), None
    if config.data.bad_images == "skip":
        scan_log = log
    splits = load_splits(config, scan_log, known, former=read_former_labels(config))
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
    with opened_training(request, splits, log) as finished:
        evaluation = None if finished is None else _write_run_results(finished, request, log)
    if finished is None or evaluation is None:
        return None
    peak = read_peak_memory(finished.setup.device) / 2**30
    memory = f", peak memory {peak:.1f} GiB" if peak else ""
    took = format_duration(time.monotonic() - request.started)
    log.say(f"best: {finished.best.name}; {took} in all{memory}")
    log.lap("results")
    log.say_seconds()
    return TrainResult(finished.run, evaluation)


def _write_run_results(
    finished: FinishedTraining, request: TrainRequest, log: RunLog
) -> Evaluation | None:
    """Fit thresholds and calibration, put them into best.safetensors, and write the results.

    Returns:
        None on all ranks but 0.
    """
    setup, best, run = finished.setup, finished.best, finished.run
    config, val, world, scores = setup.config, setup.splits.val, setup.world, best.scores
    # The resume state has no scores: a best epoch from before the resume is validated again.
    if world.broadcast(lambda: best.scores is None):
        weights = world.broadcast(lambda: checkpoint.load(run / directory.BEST).weights)
        setup.tagger.load_state_dict(weights)
        _, scores = validate(setup, log)
    if not world.is_main:
        return None
    assert scores is not None
    content = read_best(setup, best)
    rule = fit_decision_rule(config.eval, scores, setup.implies)
    # Of a resumed run the settings and the validation data may be others than at its best epoch.
    content = replace(
        content,
        decision=rule,
        views=config.eval.views,
        config=config.model_dump(mode="json"),
        data_digest=digest_manifest(val),
    )
    save_best(setup, content)
    log.lap("saving")
    evaluation = evaluate(config.eval, scores, rule, fitted_here=True)
    facts = replace(evaluation.facts, selection=estimate_selection(best.trials))
    evaluation = replace(evaluation, facts=facts)
    about = {"data": "validation", "epoch": best.number, **locate_images(config, val)}
    about |= {"candidate": best.name, "versions": content.versions, "views": config.eval.views}
    about["training_data"] = digest_manifest(setup.splits.train)
    earlier = sum_seconds(parse_history(finished.history)) or 0.0
    seconds = earlier + time.monotonic() - request.started
    parent = None if setup.parent is None else asdict(setup.parent)
    about[RUN] = describe_run(config, request.command, len(setup.splits.train), seconds, parent)
    seen = None
    if setup.splits.contents:
        trained_on = read_trained_on(run)  # of a resumed run, whose data may have changed, all
        assert trained_on is not None
        paths = [val.path(row) for row in range(len(val))]
        seen = trained_on.find_seen(setup.splits.contents[1], paths)
        if note := describe_seen(int(seen.sum()), len(seen)):
            log.say(f"warning: {note}")
    write_results(run, evaluation, sigmoid(evaluation.scores.logits), about, seen)
    with one_thread():
        write_report(run, log, _build_map_source(setup, content.weights))
    return evaluation


def _build_map_source(setup: TrainingSetup, weights: dict[str, Tensor]) -> MapSource:
    """Return the source of the page's heat maps, computed with these weights."""
    config, device = setup.config, setup.device
    dtype, _ = choose_precision(config.train.precision, device)
    setup.tagger.load_state_dict(weights)
    if setup.fast_backbone is None:
        tagger, _ = prepare_for_inference(setup.tagger, setup.spec.image_size, device, dtype)
    else:
        tagger = setup.tagger.with_features(setup.fast_backbone)
    mirrored, kept = config.eval.views == "mirror", precomputes_features(config)
    most = choose_most(len(setup.splits.val), kept, setup.spec.image_size, 1 + mirrored)
    explain, reason = build_explainer(tagger, setup.spec, mirrored)
    return MapSource(explain, reason, most, count_explaining_threads(device))
