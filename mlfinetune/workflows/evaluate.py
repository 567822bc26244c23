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
        manifest, description = _read_examples(request, config, loaded, log)
    folder = request.output or file.parent / directory.EVAL
    world.broadcast(lambda: make_folder(folder))
    intro = f"checkpoint {display_path(file)}, {description}"
    batches = _score_examples(tagger, config, manifest, loaded, world, log, intro)
    log.repeat_warnings(world.gather(log.take_warnings()))
    if not world.is_main:
        return folder, None
    scores = tabulate(batches, manifest)
    fitted_here = digest_manifest(manifest) == loaded.data_digest
    trained_with = restore_config(loaded.config, file).eval
    decision = _choose_decision(config.eval, trained_with, loaded, scores, fitted_here)
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


def _read_examples(
    request: EvalRequest, config: Config, loaded: Checkpoint, log: RunLog
) -> tuple[Manifest, str]:
    """Read the examples to score; return them and their description, as `tags.csv, split test`."""
    if request.images is not None:
        root = request.images if isinstance(request.images, str) else request.images.absolute()
        config = config.update_section("data", images=root)
    if request.data is None and request.split is None:
        return _read_validation_again(config, loaded, log), "validation"
    options = build_source_options(config)
    if request.data is not None:
        options = replace(options, images=request.images, format="auto")
    source = request.data or config.data.train
    scan = _choose_scan(config, log)
    skip_bad = config.data.bad_images == "skip"
    manifest, notes = read_manifest(source, request.split, options, loaded.labels, skip_bad, scan)
    for note in notes:
        log.say(note)
    return manifest, str(source) + (f", split {request.split}" if request.split else "")


def _read_validation_again(config: Config, loaded: Checkpoint, log: RunLog) -> Manifest:
    """Read the validation examples of the run again; warn where they have changed.

    Raises:
        DataError: validation was held out at random from data that has changed since.
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
