"""`mlfinetune eval`: checkpoint -> examples -> ScoreTable -> Verdict -> files."""

from dataclasses import dataclass, replace
from pathlib import Path

from mlfinetune.config import Config, EvalConfig, restore_config
from mlfinetune.data.load import load_splits, source_options, split_options
from mlfinetune.data.manifest import Manifest, digest_manifest
from mlfinetune.data.read import read_manifest, read_validation
from mlfinetune.errors import ConfigError, DataError
from mlfinetune.location import Location
from mlfinetune.metrics.evaluation import evaluate, fit_decision_rule
from mlfinetune.metrics.logits import sigmoid
from mlfinetune.metrics.types import DecisionRule, Evaluation, ScoreTable
from mlfinetune.models.inference import for_inference, tagger_of
from mlfinetune.models.scoring import score_batches, tabulate
from mlfinetune.report.write import write_report
from mlfinetune.runs import checkpoint, directory
from mlfinetune.runs.checkpoint import Checkpoint
from mlfinetune.runs.results import write_results
from mlfinetune.runtime.device import choose_precision, choose_workers, oom_as_device_error
from mlfinetune.runtime.distributed import World, init_distributed
from mlfinetune.runtime.log import RunLog
from mlfinetune.storage.atomic import make_folder
from mlfinetune.text import display_path
from mlfinetune.training.build import build_loader, locate_images


@dataclass(frozen=True)
class EvalRequest:
    """What to evaluate; None where the command line says nothing."""

    checkpoint: Path
    data: Location | None = None
    split: str | None = None
    images: Location | None = None
    output: Path | None = None
    overrides: tuple[str, ...] = ()


def run(asked: EvalRequest, device_name: str, log: RunLog) -> tuple[Path, Evaluation | None]:
    """Score the validation data of a checkpoint's run, or other data; write the results.

    Returns:
        The folder that was written, and the numbers; of several processes the first has them.

    Raises:
        MlfinetuneError: a checkpoint, data or a device that cannot be used.
    """
    with init_distributed(device_name) as world:
        return _evaluated(asked, world, log)


def _evaluated(asked: EvalRequest, world: World, log: RunLog) -> tuple[Path, Evaluation | None]:
    file = directory.find_checkpoint(asked.checkpoint)
    loaded = checkpoint.load(file)
    settings = restore_config(loaded.config, file, asked.overrides)
    device, rank, size = world.device, world.info.rank, world.info.size
    with oom_as_device_error():
        trained = tagger_of(
            loaded.backbone, len(loaded.labels), loaded.weights, loaded.transform, device, file
        )
    folder = asked.output or file.parent / directory.EVAL
    with world.local_main_first():
        manifest, what = _examples(asked, settings, loaded, log)
    world.broadcast(lambda: make_folder(folder))
    dtype, why = choose_precision(settings.train.precision, device)
    log.say(
        f"checkpoint {display_path(file)}, {what}; device {device}, "
        f"precision {str(dtype).removeprefix('torch.')} ({why})"
    )
    workers = choose_workers(settings.train.workers, device)
    loader = build_loader(
        settings, manifest, loaded.transform, device, workers, train=False, rank=rank, size=size
    )
    with oom_as_device_error(), log.bar("eval", len(manifest)) as bar:
        tagger, _ = for_inference(trained, loaded.transform.image_size, device, dtype)
        rows = score_batches(
            tagger,
            bar.track(loader.epoch(), lambda batch: len(batch.everyone)),
            manifest.path,
            device,
            dtype,
        )
        found = list(world.gather_stream(rows))
        log.say(f"{len(manifest)} images, {bar.rate:.1f} images/s")
    log.repeat_warnings(world.gather(log.take_warnings()))
    if not world.is_main:
        return folder, None
    scores = tabulate(found, manifest)
    fitted_here = digest_manifest(manifest) == loaded.data_digest
    asked_then = restore_config(loaded.config, file).eval
    decision = _decision(settings.eval, asked_then, loaded, scores, fitted_here)
    verdict = evaluate(settings.eval, scores, decision, fitted_here)
    about = {"data": what, "checkpoint": str(file), "epoch": loaded.epoch}
    about |= locate_images(settings, manifest)
    write_results(folder, verdict, sigmoid(verdict.scores.logits), about)
    write_report(folder, log)
    return folder, verdict


def _decision(
    asked: EvalConfig,
    trained: EvalConfig,
    loaded: Checkpoint,
    scores: ScoreTable,
    fitted_here: bool,
) -> DecisionRule:
    """The checkpoint's, or, where overrides ask for another, the one that these scores lead to.

    Raises:
        ConfigError: it would be fitted on images that are no validation data of the run.
    """
    if asked.model_copy(update={"ap": trained.ap, "review": trained.review}) == trained:
        return replace(loaded.decision, review=asked.review)
    if not fitted_here and (asked.thresholds != "fixed" or asked.calibration != "none"):
        raise ConfigError(
            "eval.thresholds, eval.calibration: they are fitted on the run's validation data, and "
            "numbers on other data use what it gave; leave them out, or set eval.thresholds=fixed "
            "and eval.calibration=none"
        )
    return fit_decision_rule(asked, scores)


def _examples(
    asked: EvalRequest, settings: Config, loaded: Checkpoint, log: RunLog
) -> tuple[Manifest, str]:
    """What to score, and its description."""
    if asked.images is not None:
        root = asked.images if isinstance(asked.images, str) else asked.images.absolute()
        data = settings.data.model_copy(update={"images": root})
        settings = settings.model_copy(update={"data": data})
    if asked.data is None and asked.split is None:
        return _recorded(settings, loaded, log), "validation"
    options = source_options(settings)
    if asked.data is not None:
        options = replace(options, images=asked.images, format="auto")
    source = asked.data or settings.data.train
    policy = split_options(settings, _scan_log(settings, log))
    manifest, notes = read_manifest(source, asked.split, options, loaded.labels, policy)
    for note in notes:
        log.say(note)
    return manifest, str(source) + (f", split {asked.split}" if asked.split else "")


def _recorded(settings: Config, loaded: Checkpoint, log: RunLog) -> Manifest:
    """The validation examples of the run, read again; says where they are not the same.

    Raises:
        DataError: validation was held out of data that has changed.
    """
    data = settings.data.model_copy(update={"labels": list(loaded.labels.names)})
    settings = settings.model_copy(update={"data": data})
    scan, drawn = _scan_log(settings, log), False
    if data.val is not None:
        options, policy = source_options(settings), split_options(settings, scan)
        val, notes = read_validation(data.val, options, loaded.labels, policy)
    else:
        found = load_splits(settings, log)  # copies are held out together: it must know them
        val, notes, drawn = found.val, found.notes, found.drawn
    for note in notes if data.bad_images == "skip" else ():
        log.say(note)
    if digest_manifest(val) != loaded.data_digest:
        if drawn:
            raise DataError(
                f"{data.train} has changed since training: which of its images were held out then "
                f"cannot be told; score others with --data. `mlfinetune split` writes a table that "
                f"keeps its sides"
            )
        log.say("warning: the validation data has changed since training")
    return val


def _scan_log(settings: Config, log: RunLog) -> RunLog | None:
    """Pictures need a scan only where bad ones are to be left out: reading finds them too."""
    return log if settings.data.bad_images == "skip" else None
