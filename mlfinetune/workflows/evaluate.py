"""`mlfinetune eval`: checkpoint -> examples -> ScoreTable -> Evaluation -> files."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mlfinetune.config import Config, restore_config
from mlfinetune.data.images.transforms import TransformSpec
from mlfinetune.data.load import build_scan, build_source_options, hash_files, load_splits
from mlfinetune.data.manifest import Manifest, digest_manifest
from mlfinetune.data.read import read_manifest, read_validation
from mlfinetune.data.rows import Scan
from mlfinetune.errors import DataError
from mlfinetune.location import Location, Locations, name_locations
from mlfinetune.metrics.evaluation import evaluate
from mlfinetune.metrics.logits import sigmoid
from mlfinetune.metrics.types import Evaluation
from mlfinetune.models.scoring import (
    ScoredBatch,
    describe_views,
    score_batches,
    tabulate,
)
from mlfinetune.predicting.scorer import Scorer, build_scorer, load_network
from mlfinetune.report import MapSource, choose_most
from mlfinetune.report.write import write_report
from mlfinetune.runs import directory
from mlfinetune.runs.checkpoint import OUT_OF_FOLD, Checkpoint
from mlfinetune.runs.moved import find_data
from mlfinetune.runs.questions import Question, is_replaced, make_eval_folder, try_eval_folder
from mlfinetune.runs.results import read_selection, write_results
from mlfinetune.runs.rule import choose_decision, describe_other_views, require_rule
from mlfinetune.runs.settings import flatten_settings, list_differences
from mlfinetune.runs.trained_on import TrainedOn, read_known_sides, read_trained_on
from mlfinetune.runtime.device import choose_workers, oom_as_device_error
from mlfinetune.runtime.distributed import World, init_distributed
from mlfinetune.runtime.log import RunLog
from mlfinetune.runtime.threads import one_thread
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
        output: folder for the results; None: as `questions.make_eval_folder`.
        overrides: config keys, as `data.bad_images=skip`.
    """

    checkpoint: Path
    data: Location | None = None
    split: str | None = None
    images: Location | None = None
    output: Path | None = None
    overrides: tuple[str, ...] = ()


@dataclass(frozen=True)
class EvalResult:
    """Numbers of an evaluation, and where they were written.

    Attributes:
        folder: of the results.
        evaluation: the numbers.
        seen: number of pictures that the model was trained on; None: not known.
    """

    folder: Path
    evaluation: Evaluation
    seen: int | None


def run(request: EvalRequest, device_name: str, log: RunLog) -> EvalResult | None:
    """Score the validation data of a checkpoint's run, or other data, and write the results.

    Args:
        request: the checkpoint, and the data to score.
        device_name: auto, cpu, cuda, cuda:N or mps.
        log: says what is scored, and how fast.

    Returns:
        The results; with several ranks, None on all but rank 0.

    Raises:
        MlfinetuneError: a checkpoint, data, device or output that cannot be used.
    """
    with init_distributed(device_name) as world:
        return _run_on_rank(request, world, log)


def _run_on_rank(request: EvalRequest, world: World, log: RunLog) -> EvalResult | None:
    file = directory.find_checkpoint(request.checkpoint)
    loaded, network = load_network(file, world.device)
    config, recorded = _restore_configs(loaded, file, request.overrides)
    question = _ask(request, file, config, recorded)
    world.broadcast(lambda: try_eval_folder(question, request.output))
    trained_on = read_trained_on(file.parent)  # now: a damaged file would lose the scores
    with world.local_main_first():
        source = _Source(request, config, recorded, loaded, file.parent)
        config, manifest, description = _read_examples(source, log)
    if config.data.group_by is not None and manifest.groups is None:
        log.say(
            f"warning: {description} has no column '{config.data.group_by}' (data.group_by): "
            f"intervals take each picture for itself, and may be too narrow"
        )
    fitted_here = digest_manifest(manifest) == loaded.data_digest
    require_rule(config.eval, recorded.eval, fitted_here)
    views, spec = config.eval.views, loaded.transform
    with oom_as_device_error():
        precision = config.train.precision
        scorer = build_scorer(network, loaded, file, views, precision, world.device)
    log.say(f"checkpoint {display_path(file)}, {description}; {describe_views(views)}{scorer.how}")
    if loaded.data_digest == OUT_OF_FOLD:
        log.say("its thresholds and calibration were fitted to out-of-fold scores (crossval)")
    batches = _score_examples(scorer, config, manifest, spec, world, log)
    is_train = request.data is None and request.split == "train"
    seen = _find_seen(trained_on, manifest, is_train, world, log)
    log.repeat_warnings(world.gather(log.take_warnings()))
    if not world.is_main:
        return None
    scores = tabulate(batches, manifest)
    decision = choose_decision(config.eval, recorded.eval, loaded, scores, fitted_here)
    fitted_under = config.eval.views if fitted_here else loaded.views
    if warning := describe_other_views(views, fitted_under, decision):
        log.say(warning)
    evaluation = evaluate(config.eval, scores, decision, fitted_here)
    if fitted_here and file.name == directory.BEST:  # these scores chose the checkpoint
        facts = replace(evaluation.facts, selection=read_selection(file.parent))
        evaluation = replace(evaluation, facts=facts)
    folder = _make_folder(question, request.output, log)
    about = {"data": description, "checkpoint": str(file), "epoch": loaded.epoch, "views": views}
    about |= {"versions": loaded.versions, "question": question.to_dict(folder)}
    about |= {"settings": config.model_dump(mode="json"), **locate_images(config, manifest)}
    write_results(folder, evaluation, sigmoid(evaluation.scores.logits), about, seen)
    most = choose_most(len(manifest), False, spec.image_size, 1 + (views == "mirror"))
    maps = MapSource(scorer.explainer, scorer.no_maps, most, scorer.explaining_threads)
    with one_thread():
        write_report(folder, log, maps)
    return EvalResult(folder, evaluation, None if seen is None else int(seen.sum()))


def _restore_configs(
    loaded: Checkpoint, file: Path, overrides: Sequence[str]
) -> tuple[Config, Config]:
    """Return the run's config with the overrides, and without; the checkpoint's facts go first."""
    facts = (("eval", "views", loaded.views), ("model", "levels", loaded.levels))
    tree = loaded.config
    for name, key, fact in facts:
        if isinstance(section := tree.get(name, {}), dict):  # else `restore_config` says so
            tree = {**tree, name: {**section, key: fact}}
    return restore_config(tree, file, overrides), restore_config(tree, file)


# ---- results ----------------------------------------------------------------------------


def _ask(request: EvalRequest, file: Path, config: Config, recorded: Config) -> Question:
    """Return the question that this command asks, with the overrides that change an answer."""
    kept, now = (flatten_settings(side.model_dump(mode="json")) for side in (recorded, config))
    overrides = {key: value for key, (_, value) in list_differences(kept, now).items()}
    return Question(file, request.data, request.split, request.images, overrides)


def _make_folder(question: Question, output: Path | None, log: RunLog) -> Path:
    """Make the folder of the results; say where that is another one, or holds former results."""
    folder = make_eval_folder(question, output)
    if output not in (None, folder):
        log.say(f"warning: another command has written {output}: the results are in {folder}")
    if is_replaced(folder):
        log.say(f"{display_path(folder.absolute())}: results of the same question are replaced")
    return folder


# ---- scoring ----------------------------------------------------------------------------


def _score_examples(
    scorer: Scorer,
    config: Config,
    manifest: Manifest,
    spec: TransformSpec,
    world: World,
    log: RunLog,
) -> list[ScoredBatch]:
    """Score this rank's share of the manifest; rank 0 gets the batches of all ranks."""
    device = world.device
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
        batches = bar.track(loader.epoch(), lambda batch: len(batch.step_indices))
        rows = score_batches(scorer.net, batches, manifest.path, device, scorer.dtype)
        gathered = list(world.gather_stream(rows))
        log.say(f"{pluralize(len(manifest), 'image')}, {bar.rate:.1f} images/s")
    return gathered


def _find_seen(
    trained_on: TrainedOn | None, manifest: Manifest, is_train: bool, world: World, log: RunLog
) -> NDArray[np.bool_] | None:
    """Return (N,) whether the run's model was trained on each picture; None: not known.

    Each rank reads a share of the files; rank 0 gets the result.

    Args:
        trained_on: the run's training pictures; None: it is of an older version.
        manifest: the N pictures.
        is_train: they are the rows of train of the run's own table.
    """
    images, rank, size = len(manifest), world.info.rank, world.info.size
    if trained_on is None:
        return np.ones(images, bool) if is_train else None
    shares = world.gather(hash_files(manifest, range(rank, images, size), log))
    if not world.is_main:
        return None
    contents = np.empty(images, np.int64)
    for other, share in enumerate(shares):
        contents[other::size] = share
    return trained_on.find_seen(contents, [manifest.path(row) for row in range(images)], log)


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
        _require_held_out(source)
        config, is_elsewhere = _find_run_data(source, config, log)
        if request.split is None:
            manifest = _read_validation_again(config, source.loaded, source.run, is_elsewhere, log)
            return config, manifest, "validation"
        if is_elsewhere and config.data.val is None:  # validation stands in the same table
            _read_validation_again(config, source.loaded, source.run, is_elsewhere, log)
        manifest = _read_split(config.data.train, request.split, config, source.loaded, log)
        return config, manifest, _describe_data(config.data.train, request.split)
    except DataError as error:
        if ": no such file" not in str(error) or request.images is not None:
            raise
        raise DataError(f"{error}\n{_IF_PICTURES_MOVED}") from error


def _require_held_out(source: _Source) -> None:
    """Raise a DataError where the model was trained on all pictures of its run."""
    if source.loaded.data_digest == OUT_OF_FOLD and source.request.split != "test":
        numbers = display_path((source.run / directory.METRICS).absolute())
        sides = (source.config.data.train, source.config.data.val)
        tables = " and ".join(name_locations(side) for side in sides if side is not None)
        raise DataError(
            f"the model was trained on all pictures of {tables}: none was held "
            f"out. Its numbers, each picture scored by a model that has not seen it, are in "
            f"{numbers}; score other pictures with --data TABLE"
        )


_IF_PICTURES_MOVED = (
    "where the pictures were moved, give the folder that their names start from: --images FOLDER"
)


def _describe_data(data: Locations, split: str | None) -> str:
    return name_locations(data) + (f", split {split}" if split else "")


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
    data: Locations, split: str | None, config: Config, loaded: Checkpoint, log: RunLog
) -> Manifest:
    """Read a table, or one of its splits, in the columns of the checkpoint's labels."""
    scan = _choose_scan(config, data, log)
    skip_bad = config.data.bad_images == "skip"
    options = build_source_options(config)
    manifest, notes = read_manifest(data, split, options, loaded.labels, skip_bad, scan)
    for note in notes:
        log.say(note)
    return manifest


def _read_validation_again(
    config: Config, loaded: Checkpoint, run: Path, is_elsewhere: bool, log: RunLog
) -> Manifest:
    """Read the validation examples of the run again; warn where they have changed.

    Args:
        run: folder of the checkpoint.
        is_elsewhere: the table is not where it was, but was found beside the run.

    Raises:
        DataError: they have changed, and were held out at random, or the table was found: then it
            may be another one.
    """
    # What the run was trained on, torn groups too, is scored; the notes warn of it.
    given = {"labels": list(loaded.labels.names), "allow_torn_groups": True}
    config = config.update_section("data", **given)
    data, drawn, known = config.data, False, read_known_sides(run)
    if data.val is not None:
        options, scan = build_source_options(config), _choose_scan(config, data.val, log)
        skip_bad = data.bad_images == "skip"
        val, notes = read_validation(data.val, options, loaded.labels, skip_bad, scan)
    else:
        # The pictures are always scanned here: files with the same bytes are held out together.
        splits = load_splits(config, log, known, former=tuple(data.rename_labels))
        val, notes, drawn = splits.val, splits.notes, splits.drawn
    for note in notes:
        if data.bad_images == "skip" or note.startswith("warning: "):
            log.say(note)
    if digest_manifest(val) != loaded.data_digest:
        if is_elsewhere:
            key = "val" if data.val else "train"
            raise DataError(
                f"{name_locations(data.val or data.train)}, found beside the run, has other "
                f"validation examples than the run had; give the right table as data.{key}=TABLE, "
                f"or score others with --data TABLE"
            )
        if drawn:
            why = "in the images that were held out then"
            if known is None:  # of an older version
                why = "so the images that were held out then are not known any more"
            raise DataError(
                f"{name_locations(data.train)} has changed since training, {why}; score others "
                f"with --data. `mlfinetune split` writes a table that keeps its sides"
            )
        log.say("warning: the validation data has changed since training")
    return val


def _choose_scan(config: Config, data: Locations, log: RunLog) -> Scan | None:
    """Return the function that scans pictures, or None: no scan.

    Needed to skip bad pictures, else scoring finds them, and to join copies of several tables.
    """
    is_needed = config.data.bad_images == "skip" or isinstance(data, tuple)
    return build_scan(config, log) if is_needed else None
