"""`mlfinetune eval`: checkpoint -> examples -> ScoreTable -> Verdict -> files."""

from dataclasses import dataclass, replace
from pathlib import Path

from mlfinetune import assemble, checkpoint, config, examples, machine, rundir, runtime, tables
from mlfinetune.data.manifest import read_one, read_val
from mlfinetune.errors import ConfigError, DataError
from mlfinetune.judge import decide, judge
from mlfinetune.names import Location
from mlfinetune.publish import publish
from mlfinetune.records import Checkpoint, Decision, Manifest, ScoreTable, Verdict
from mlfinetune.runlog import RunLog
from mlfinetune.runtime import World
from mlfinetune.score import probabilities, scored, tabulate


@dataclass(frozen=True)
class Asked:
    """What to evaluate; None where the command line says nothing."""

    checkpoint: Path
    data: Location | None = None
    split: str | None = None
    images: Location | None = None
    output: Path | None = None
    overrides: tuple[str, ...] = ()


def run(asked: Asked, device_name: str, log: RunLog) -> tuple[Path, Verdict | None]:
    """Score the validation data of a checkpoint's run, or other data; write the results.

    Returns:
        The folder that was written, and the numbers; of several processes the first has them.

    Raises:
        MlfinetuneError: a checkpoint, data or a device that cannot be used.
    """
    with runtime.joined(device_name) as world:
        return _evaluated(asked, world, log)


def _evaluated(asked: Asked, world: World, log: RunLog) -> tuple[Path, Verdict | None]:
    file = rundir.find_checkpoint(asked.checkpoint)
    loaded = checkpoint.load(file)
    settings = config.restore(loaded.config, file, asked.overrides)
    device, rank, size = world.device, world.place.rank, world.place.size
    with machine.device_faults():
        trained = assemble.model_of(loaded, device, file)
    folder = asked.output or file.parent / rundir.EVAL
    with world.turn():
        manifest, what = _examples(asked, settings, loaded, log)
    world.decide(lambda: rundir.make(folder))
    dtype, why = machine.choose_precision(settings.train.precision, device)
    log.say(
        f"checkpoint {rundir.shown(file)}, {what}; device {device}, "
        f"precision {str(dtype).removeprefix('torch.')} ({why})"
    )
    workers = machine.choose_workers(settings.train.workers, device)
    loader = assemble.loader(
        settings, manifest, loaded.transform, device, workers, train=False, rank=rank, size=size
    )
    with machine.device_faults(), log.bar("eval", len(manifest)) as bar:
        tagger, _ = assemble.serving(trained, loaded.transform.image_size, device, dtype)
        rows = scored(tagger, bar.over(loader.epoch()), manifest.path, device, dtype)
        found = list(world.merged(rows))
        log.say(f"{len(manifest)} images, {bar.rate:.1f} images/s")
    log.say_for(world.collected(log.kept_warnings()))
    if not world.main:
        return folder, None
    scores = tabulate(found, manifest)
    fitted_here = assemble.data_digest(manifest) == loaded.data_digest
    asked_then = config.restore(loaded.config, file).eval
    decision = _decision(settings.eval, asked_then, loaded, scores, fitted_here)
    verdict = judge(settings.eval, scores, decision, fitted_here)
    about = {"data": what, "checkpoint": str(file), "epoch": loaded.epoch}
    about |= assemble.whereabouts(settings, manifest)
    tables.write_results(folder, verdict, probabilities(verdict.scores.logits), about)
    publish(folder, log)
    return folder, verdict


def _decision(
    asked: config.EvalConfig,
    trained: config.EvalConfig,
    loaded: Checkpoint,
    scores: ScoreTable,
    fitted_here: bool,
) -> Decision:
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
    return decide(asked, scores)


def _examples(
    asked: Asked, settings: config.Config, loaded: Checkpoint, log: RunLog
) -> tuple[Manifest, str]:
    """What to score, and its description."""
    if asked.images is not None:
        root = asked.images if isinstance(asked.images, str) else asked.images.absolute()
        data = settings.data.model_copy(update={"images": root})
        settings = settings.model_copy(update={"data": data})
    if asked.data is None and asked.split is None:
        return _recorded(settings, loaded, log), "validation"
    options = examples.source_options(settings)
    if asked.data is not None:
        options = replace(options, images=asked.images, format="auto")
    source = asked.data or settings.data.train
    policy = examples.policy(settings, _scan_log(settings, log))
    manifest, notes = read_one(source, asked.split, options, loaded.labels, policy)
    for note in notes:
        log.say(note)
    return manifest, str(source) + (f", split {asked.split}" if asked.split else "")


def _recorded(settings: config.Config, loaded: Checkpoint, log: RunLog) -> Manifest:
    """The validation examples of the run, read again; says where they are not the same.

    Raises:
        DataError: validation was held out of data that has changed.
    """
    data = settings.data.model_copy(update={"labels": list(loaded.labels.names)})
    settings = settings.model_copy(update={"data": data})
    scan, drawn = _scan_log(settings, log), False
    if data.val is not None:
        options, policy = examples.source_options(settings), examples.policy(settings, scan)
        val, notes = read_val(data.val, options, loaded.labels, policy)
    else:
        found = examples.splits(settings, log)  # copies are held out together: it must know them
        val, notes, drawn = found.val, found.notes, found.drawn
    for note in notes if data.bad_images == "skip" else ():
        log.say(note)
    if assemble.data_digest(val) != loaded.data_digest:
        if drawn:
            raise DataError(
                f"{data.train} has changed since training: which of its images were held out then "
                f"cannot be told; score others with --data. `mlfinetune split` writes a table that "
                f"keeps its sides"
            )
        log.say("warning: the validation data has changed since training")
    return val


def _scan_log(settings: config.Config, log: RunLog) -> RunLog | None:
    """Pictures need a scan only where bad ones are to be left out: reading finds them too."""
    return log if settings.data.bad_images == "skip" else None
