"""`mlfinetune eval`: checkpoint -> examples -> ScoreTable -> Evaluation -> files."""

from dataclasses import dataclass, replace
from pathlib import Path

from mlfinetune.config import Config, EvalConfig, restore_config
from mlfinetune.data.load import build_scan, build_source_options, load_splits
from mlfinetune.data.manifest import Manifest, digest_manifest
from mlfinetune.data.read import read_manifest, read_validation
from mlfinetune.data.rows import Scan
from mlfinetune.errors import ConfigError, DataError
from mlfinetune.location import Location
from mlfinetune.metrics.evaluation import evaluate, fit_decision_rule
from mlfinetune.metrics.logits import sigmoid
from mlfinetune.metrics.types import DecisionRule, Evaluation, ScoreTable
from mlfinetune.models.inference import prepare_for_inference, restore_tagger
from mlfinetune.models.scoring import ScoredBatch, score_batches, tabulate
from mlfinetune.models.tagger import Tagger
from mlfinetune.report.write import write_report
from mlfinetune.runs import checkpoint, directory
from mlfinetune.runs.checkpoint import Checkpoint
from mlfinetune.runs.moved import find_data
from mlfinetune.runs.results import write_results
from mlfinetune.runtime.device import (
    choose_precision,
    choose_workers,
    name_dtype,
    oom_as_device_error,
)
from mlfinetune.runtime.distributed import World, init_distributed
from mlfinetune.runtime.log import RunLog
from mlfinetune.storage.atomic import make_folder
from mlfinetune.text import display_path, pluralize
from mlfinetune.training.build import build_loader, locate_images


@dataclass(frozen=True)
class EvalRequest:
    """Arguments of `mlfinetune eval`; None where the command line says nothing.

    Attributes:
        checkpoint: run directory or checkpoint file.
        data: table or folder to score; None: the run's validation data.
        split: score only the rows with this value of the split column.
        images: root of the table's paths; None: the table's folder.
        output: folder for the results; None: `eval` beside the checkpoint.
        overrides: config keys, as `data.bad_images=skip`.
    """

    checkpoint: Path
    data: Location | None = None
    split: str | None = None
    images: Location | None = None
    output: Path | None = None
    overrides: tuple[str, ...] = ()


def run(request: EvalRequest, device_name: str, log: RunLog) -> tuple[Path, Evaluation | None]:
    """Score the validation data of a checkpoint's run, or other data, and write the results.

    Args:
        request: the checkpoint, and the data to score.
        device_name: auto, cpu, cuda, cuda:N or mps.
        log: says what is scored, and how fast.

    Returns:
        The folder of the results, and the numbers; with several ranks, None on all but rank 0.

    Raises:
        MlfinetuneError: a checkpoint, data or a device that cannot be used.
    """
    with init_distributed(device_name) as world:
        return _run_on_rank(request, world, log)


def _run_on_rank(request: EvalRequest, world: World, log: RunLog) -> tuple[Path, Evaluation | None]:
    file = directory.find_checkpoint(request.checkpoint)
    loaded = checkpoint.load(file)
    config = restore_config(loaded.config, file, request.overrides)
    recorded = restore_config(loaded.config, file)
    with oom_as_device_error():
        tagger = restore_tagger(
            loaded.backbone,
            len(loaded.labels),
            loaded.weights,
            loaded.transform,
            world.device,
            file,
        )
    with world.local_main_first():
        source = _Source(request, config, recorded, loaded, file.parent)
        config, manifest, description = _read_examples(source, log)
    folder = request.output or file.parent / directory.EVAL
    world.broadcast(lambda: make_folder(folder))
    intro = f"checkpoint {display_path(file)}, {description}"
    batches = _score_examples(tagger, config, manifest, loaded, world, log, intro)
    log.repeat_warnings(world.gather(log.take_warnings()))
    if not world.is_main:
        return folder, None
    scores = tabulate(batches, manifest)
    fitted_here = digest_manifest(manifest) == loaded.data_digest
    decision = _choose_decision(config.eval, recorded.eval, loaded, scores, fitted_here)
    evaluation = evaluate(config.eval, scores, decision, fitted_here)
    about = {"data": description, "checkpoint": str(file), "epoch": loaded.epoch}
    about |= locate_images(config, manifest)
    write_results(folder, evaluation, sigmoid(evaluation.scores.logits), about)
    write_report(folder, log)
    return folder, evaluation


# ---- scoring ----------------------------------------------------------------------------


def _score_examples(
    tagger: Tagger,
    config: Config,
    manifest: Manifest,
    loaded: Checkpoint,
    world: World,
    log: RunLog,
    intro: str,
) -> list[ScoredBatch]:
    """Score this rank's share of the manifest; rank 0 gets the batches of all ranks.

    Args:
        intro: start of the line of the log that names checkpoint and data.
    """
    device, spec = world.device, loaded.transform
    dtype, reason = choose_precision(config.train.precision, device)
    log.say(f"{intro}; device {device}, precision {name_dtype(dtype)} ({reason})")
    loader = build_loader(
        config,
        manifest,
        spec,
        device,
        choose_workers(config.train.workers, device),
        train=False,
        rank=world.info.rank,
        size=world.info.size,
    )
    with oom_as_device_error(), log.bar("eval", len(manifest)) as bar:
        tagger, _ = prepare_for_inference(tagger, spec.image_size, device, dtype)
        batches = bar.track(loader.epoch(), lambda batch: len(batch.step_indices))
        rows = score_batches(tagger, batches, manifest.path, device, dtype)
        gathered = list(world.gather_stream(rows))
        log.say(f"{pluralize(len(manifest), 'image')}, {bar.rate:.1f} images/s")
    return gathered


def _choose_decision(
    wanted: EvalConfig,
    trained_with: EvalConfig,
    loaded: Checkpoint,
    scores: ScoreTable,
    fitted_here: bool,
) -> DecisionRule:
    """Return the decision rule (thresholds and calibration) for these scores.

    Overrides of `eval.ap` and `eval.review` never need a new fit.

        other eval.* overrides           data               decision rule
        none                             any                the checkpoint's, with `wanted.review`
        any                              the run's val      fitted on these scores
        thresholds=fixed,
          calibration=none               other              fixed: nothing is fitted
        others                           other              ConfigError

    Args:
        wanted: `eval` of the config with the overrides.
        trained_with: `eval` of the config without them.
        loaded: the checkpoint, with its own rule.
        scores: to fit on.
        fitted_here: the data is the validation data that the checkpoint's rule was fitted on.

    Raises:
        ConfigError: the rule would be fitted on images that are not the run's validation data.
    """
    no_fit = {"ap": trained_with.ap, "review": trained_with.review}
    if wanted.model_copy(update=no_fit) == trained_with:
        return replace(loaded.decision, review=wanted.review)
    if not fitted_here and (wanted.thresholds != "fixed" or wanted.calibration != "none"):
        raise ConfigError(
            "eval.thresholds and eval.calibration are fitted on the run's validation data, never "
            "on other data; leave them out, or set eval.thresholds=fixed and eval.calibration=none"
        )
    return fit_decision_rule(wanted, scores)


# ---- examples ---------------------------------------------------------------------------


@dataclass(frozen=True)
class _Source:
    """Everything that decides which examples are scored.

    Attributes:
        request: names other data, or none.
        config: of the run, with the overrides.
        recorded: of the run, without them.
        loaded: the checkpoint.
        run: folder of the checkpoint: the run directory, which may have been moved.
    """

    request: EvalRequest
    config: Config
    recorded: Config
    loaded: Checkpoint
    run: Path


def _read_examples(source: _Source, log: RunLog) -> tuple[Config, Manifest, str]:
    """Read the examples to score.

    Returns:
        The config with the places that were read, the examples, and their description, such as
        `tags.csv, split test`.
    """
    request, config = source.request, source.config
    if request.images is not None:
        root = request.images if isinstance(request.images, str) else request.images.absolute()
        config = config.update_section("data", images=root)
    elif request.data is not None and config.data.images == source.recorded.data.images:
        config = config.update_section("data", images=None)  # other data, with its own pictures
    try:
        if request.data is not None:
            config = config.update_section("data", format="auto")
            manifest = _read_split(request.data, request.split, config, source.loaded, log)
            return config, manifest, _describe_data(request.data, request.split)
        config, is_elsewhere = _find_run_data(source, config, log)
        if request.split is None:
            manifest = _read_validation_again(config, source.loaded, is_elsewhere, log)
            return config, manifest, "validation"
        if is_elsewhere and config.data.val is None:  # validation stands in the same table
            _read_validation_again(config, source.loaded, is_elsewhere, log)
        manifest = _read_split(config.data.train, request.split, config, source.loaded, log)
        return config, manifest, _describe_data(config.data.train, request.split)
    except DataError as error:
        if ": no such file" not in str(error) or request.images is not None:
            raise
        raise DataError(f"{error}\n{_IF_PICTURES_MOVED}") from error


_IF_PICTURES_MOVED = (
    "where the pictures were moved, give the folder that their names start from: --images FOLDER"
)


def _describe_data(data: Location, split: str | None) -> str:
    return str(data) + (f", split {split}" if split else "")


def _find_run_data(source: _Source, config: Config, log: RunLog) -> tuple[Config, bool]:
    """Return the config with paths of the run's data that exist, and whether a table was moved.

    Raises:
        DataError: the data is neither where it was, nor beside the run.
    """
    table = "val" if config.data.val is not None and source.request.split is None else "train"
    advice = {table: f"data.{table}=TABLE for its new place, or other data with --data TABLE"}
    if config.data.images is None:
        advice[table] += "; where the pictures are not beside the table, --images FOLDER too"
    if source.request.images is None:
        advice["images"] = "the folder that the names of pictures start from: --images FOLDER"
    config, notes = find_data(config, source.recorded, source.run, advice)
    for note in notes:
        log.say(note)
    return config, getattr(config.data, table) != getattr(source.config.data, table)


def _read_split(
    data: Location, split: str | None, config: Config, loaded: Checkpoint, log: RunLog
) -> Manifest:
    """Read a table, or one of its splits, in the columns of the checkpoint's labels."""
    scan = _choose_scan(config, log)
    skip_bad = config.data.bad_images == "skip"
    options = build_source_options(config)
    manifest, notes = read_manifest(data, split, options, loaded.labels, skip_bad, scan)
    for note in notes:
        log.say(note)
    return manifest


def _read_validation_again(
    config: Config, loaded: Checkpoint, is_elsewhere: bool, log: RunLog
) -> Manifest:
    """Read the validation examples of the run again; warn where they have changed.

    Args:
        is_elsewhere: the table is not where it was, but was found beside the run.

    Raises:
        DataError: they have changed, and were held out at random, or the table was found: then it
            may be another one.
    """
    # What the run was trained on, torn groups too, is scored; the notes warn of it.
    given = {"labels": list(loaded.labels.names), "allow_torn_groups": True}
    config = config.update_section("data", **given)
    data, drawn = config.data, False
    if data.val is not None:
        options, scan = build_source_options(config), _choose_scan(config, log)
        skip_bad = data.bad_images == "skip"
        val, notes = read_validation(data.val, options, loaded.labels, skip_bad, scan)
    else:
        # The pictures are always scanned here: files with the same bytes are held out together.
        splits = load_splits(config, log)
        val, notes, drawn = splits.val, splits.notes, splits.drawn
    for note in notes:
        if data.bad_images == "skip" or note.startswith("warning: "):
            log.say(note)
    if digest_manifest(val) != loaded.data_digest:
        if is_elsewhere:
            raise DataError(
                f"{data.val or data.train}, found beside the run, has other validation examples "
                f"than the run had; give the right table as data.{'val' if data.val else 'train'}"
                f"=TABLE, or score others with --data TABLE"
            )
        if drawn:
            raise DataError(
                f"{data.train} has changed since training, so the images that were held out then "
                f"are not known any more; score others with --data. `mlfinetune split` writes a "
                f"table that keeps its sides"
            )
        log.say("warning: the validation data has changed since training")
    return val


def _choose_scan(config: Config, log: RunLog) -> Scan | None:
    """Return the function that scans pictures, or None: no scan.

    A scan is needed only where bad pictures are skipped. Otherwise scoring finds them itself.
    """
    return build_scan(config, log) if config.data.bad_images == "skip" else None
