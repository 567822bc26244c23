"""The start of a run: a new run directory or one to resume, and the resolved config.

TrainRequest, Splits -> find_run_to_resume -> run directory, or None: a new run
Config, Splits, run  -> resolve_config     -> Config
run directory        -> load_resume_state, open_run
"""

import os
import shlex
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from mlfinetune.config import Config, dump_config, load_config
from mlfinetune.data.known_sides import KnownSides, PictureSet
from mlfinetune.data.load import resolve_data_config
from mlfinetune.data.manifest import Splits
from mlfinetune.errors import ConfigError
from mlfinetune.models.preprocessing import is_weights_path
from mlfinetune.runs import directory
from mlfinetune.runs.folds import holds_folds
from mlfinetune.runs.moved import find_data
from mlfinetune.runs.results import write_skipped
from mlfinetune.runs.trained_on import (
    read_known_sides,
    read_parent,
    read_sides_before,
    read_trained_on,
    write_trained_on,
)
from mlfinetune.runtime.distributed import World
from mlfinetune.runtime.log import RunLog
from mlfinetune.runtime.signals import Signals
from mlfinetune.storage.atomic import remove_leftovers, try_writing, write_atomic
from mlfinetune.text import display_path, pluralize
from mlfinetune.training.network import is_own_checkpoint, resolve_network
from mlfinetune.training.resumable import require_resumable
from mlfinetune.training.resume import (
    ResumeState,
    is_same_run,
    list_other_arithmetic,
    load_state,
    place_in_epochs,
)
from mlfinetune.training.setup import TrainingSetup

FORMER_DEFAULTS = (("augment", "crop_scale", (0.35, 1.0)), ("train", "cache_views", 2))
"""Section, key and value of defaults of earlier versions."""


@dataclass(frozen=True)
class ResumeOptions:
    """Options of `--resume`.

    Attributes:
        recorded: the run directory's own config.yaml, without overrides, where that is the config
            to resume; its output is where the run directory was when the file was written.
        allow_changed: resume with other settings or data too (`--allow-changed`).
    """

    recorded: Config | None = None
    allow_changed: bool = False


@dataclass(frozen=True)
class TrainRequest:
    """A request to train.

    Attributes:
        config: as the user wrote it, with its output.
        world: the ranks that share the run.
        signals: signals that this process has heard.
        resume: options of `--resume`; None: it was not given.
        feature_root: folder of feature stores; None: the cache's.
        copy_root: folder of small copies of pictures; None: the cache's.
        command: that started it, for metrics.json; None: no command did.
        started: seconds of `time.monotonic` when it started.
    """

    config: Config
    world: World
    signals: Signals
    resume: ResumeOptions | None = None
    feature_root: Path | None = None
    copy_root: Path | None = None
    command: str | None = None
    started: float = field(default_factory=time.monotonic)


def plan_start(
    path: Path | None,
    config: Config,
    output: Path | None,
    resume: bool,
    allow_changed: bool = False,
) -> tuple[Config, ResumeOptions | None]:
    """Return the config with its run directory, and the options of `--resume` where it is given.

    Args:
        path: the YAML file; it may be the config.yaml of a run directory. None: there is none.
        config: its content, with overrides.
        output: run directory that the user names; None: the config's.
        resume, allow_changed: whether these options are given.

    Raises:
        ConfigError: `--allow-changed` without `--resume`.
    """
    if allow_changed and not resume:
        raise ConfigError("--allow-changed is for --resume")
    if output is not None:
        config = config.model_copy(update={"output": output.absolute()})
    recorded = None
    if path is not None and output is None and _is_config_of_run(path):
        recorded = load_config(path)
        if resume or _is_gone(recorded, config):
            config = config.model_copy(update={"output": path.parent.absolute()})
    return config, ResumeOptions(recorded, allow_changed) if resume else None


def _is_config_of_run(path: Path) -> bool:
    """Tell whether a config lies in the run directory that wrote it."""
    return path.name == directory.CONFIG and (path.parent / directory.LABELS).is_file()


def _is_gone(recorded: Config, config: Config) -> bool:
    """Tell whether the run directory that its config.yaml names was moved.

    A new run then goes beside the config, not to where the former one was.
    """
    output = config.output
    assert output is not None
    return output == recorded.output and not output.exists()


def find_run_data(config: Config, resume: ResumeOptions | None, log: RunLog) -> Config:
    """Return the config with the places where the data is now, where its run is resumed in place.

    Raises:
        ConfigError: a file of weights is gone.
        DataError: the data is neither where it was, nor beside the run.
    """
    if resume is None or resume.recorded is None:
        return config
    assert config.output is not None
    advice = {"train": "data.train=TABLE", "val": "data.val=TABLE", "images": "data.images=FOLDER"}
    if config.data.images is None:
        advice["train"] += " (data.images=FOLDER where the pictures are not beside it)"
    config, notes = find_data(config, resume.recorded, config.output, advice)
    for note in notes:
        log.say(note)
    weights = config.model.weights or ""
    if is_weights_path(weights) and not os.path.exists(weights):
        raise ConfigError(
            f"model.weights: no such file: {weights}; give its new place, model.weights=FILE, "
            f"together with --allow-changed"
        )
    return config


def try_run_directory(config: Config, resume: ResumeOptions | None) -> Path | None:
    """Try to write where the run directory is or will be, before the pictures are scanned.

    Returns:
        The run directory that `resume` asks for; None: a new run, or one that is found later.

    Raises:
        CheckpointError: nothing can be written there.
    """
    run, output = _find_asked_run(config, resume), config.output
    assert output is not None
    try_writing(run or (output.parent if os.path.lexists(output) else output))
    return run


def _find_asked_run(config: Config, resume: ResumeOptions | None) -> Path | None:
    """Return the run directory that `resume` asks for; None: it does not, or there is none."""
    assert config.output is not None
    if resume is None:
        return None
    return config.output if resume.recorded else directory.find_run(config.output)


def find_run_to_resume(request: TrainRequest, splits: Splits, log: RunLog) -> Path | None:
    """Return the run directory to resume; None: a new run begins.

    The newest run directory is the one of `runs/NAME`, `runs/NAME-2` ... that was written last.
    "Its own config": the config is the config.yaml of a run directory (`ResumeOptions.recorded`).

        --resume  its own config  newest run directory                    result
        yes       yes             any                                     the config's directory
        yes       no              none                                    new run, and say so
        yes       no              there is one                            the newest directory
        no        any             this start's, after a torchrun restart  the newest, and say so
        no        any             none, finished, stateless, or in use    new run
        no        any             unfinished, same settings and data      the newest directory
        no        any             unfinished, other settings or data      new run, and say so

    An unfinished run with the same settings and data is resumed without `--resume`: its result is
    the same as that of a new run.
    """
    output = request.config.output
    assert output is not None
    if request.resume is not None:
        run = _find_asked_run(request.config, request.resume)
        if run is not None and holds_folds(run):
            raise ConfigError(
                f"{display_path(run)} holds a cross-validation, no run: give the `mlfinetune "
                f"crossval` command again to go on with it; for a run choose another --output"
            )
        if run is None:
            log.say(f"nothing to resume at {display_path(output)}: a new run begins")
        return run
    run = directory.find_run(output)
    if run is None:
        return None
    restarts = request.world.info.restarts
    if restarts and _is_run_of_this_start(run, request, splits):
        log.say(f"restart {restarts} by torchrun, after a process has failed")
        return run
    if not directory.is_unfinished(run):
        return None
    if is_same_run(run, resolve_config(request.config, splits, run), splits):
        return run
    log.say(
        f"{display_path(run)} is unfinished, but has other settings or data: a new run begins; "
        f"--resume names the differences, and --resume --allow-changed resumes it all the same"
    )
    return None


def _is_run_of_this_start(run: Path, request: TrainRequest, splits: Splits) -> bool:
    """Tell whether this command began the run, before torchrun restarted the command."""
    if (run / directory.METRICS).is_file():
        return False
    config = resolve_config(request.config, splits, run)
    if directory.list_states(run):
        return is_same_run(run, config, splits)
    kept = run / directory.CONFIG  # it failed before the first state was saved
    if not kept.is_file():
        return False
    return load_config(kept) == config.model_copy(update={"output": run.absolute()})


def resolve_config(config: Config, splits: Splits, run: Path | None) -> Config:
    """Return the config with what data and weights decide, and numbers of the resumed run.

    Args:
        run: the run directory to resume, whose batch size and levels replace `auto`; values that
            were an earlier version's default stay. None: a new run.
    """
    config = resolve_data_config(config, splits)
    kept = None if run is None else run / directory.CONFIG
    if kept is not None and kept.is_file():
        before = load_config(kept)
        if config.train.batch_size == "auto":
            config = config.update_section("train", batch_size=before.train.batch_size)
        if config.model.levels == "auto":
            # A run records a number; one of an earlier version records none, and had one level.
            levels = 1 if before.model.levels == "auto" else before.model.levels
            config = config.update_section("model", levels=levels)
        for section, key, former in FORMER_DEFAULTS:
            is_default = key not in getattr(config, section).model_fields_set
            if is_default and getattr(getattr(before, section), key) == former:
                config = config.update_section(section, **{key: former})
        config = _keep_input(config, before)
    return resolve_network(config)


def _keep_input(config: Config, before: Config) -> Config:
    """Return the config with the input of the resumed run, where it began with a checkpoint.

    An earlier version took over less of the checkpoint's run.
    """
    model = config.model
    if not is_weights_path(model.weights or ""):
        return config
    values: dict[str, object] = {}
    if model.image_size == "auto":
        values["image_size"] = before.model.image_size
    if "resize" not in model.model_fields_set:
        values["resize"] = before.model.resize
    return config.update_section("model", **values)


def load_resume_state(
    run: Path | None, setup: TrainingSetup, request: TrainRequest, log: RunLog
) -> ResumeState | None:
    """Read the state of the run to resume; None: a new run, or no state was saved yet.

    Nothing is written: a run that is refused stays as it is.

    Raises:
        ConfigError, CheckpointError: as `require_resumable`; or all states are damaged.
    """
    if run is None:
        return None
    state = load_state(run, log)
    if state is not None:
        state = place_in_epochs(state, setup, log)
    allow_changed = request.resume is not None and request.resume.allow_changed
    require_resumable(run, state, setup, allow_changed)
    return state


def open_run(setup: TrainingSetup, run: Path, state: ResumeState | None, log: RunLog) -> None:
    """Write the resolved config and the labels into the run directory, and attach the log to it.

    Leftovers of processes that were killed are removed.
    """
    remove_leftovers(run)
    write_atomic(run / directory.CONFIG, dump_config(setup.config).encode())
    labels = "".join(f"{name}\n" for name in setup.splits.train.labels.names)
    write_atomic(run / directory.LABELS, labels.encode(errors="surrogateescape"))
    if setup.splits.skipped:
        write_skipped(run, setup.splits.skipped)
    _write_trained_on(setup, run, state is not None)
    history = "" if state is None else state.content["history"]
    log.attach_run(run / directory.LOG, run / directory.HISTORY, history)
    log.say(f"run directory: {display_path(run)}")
    if state is not None:
        _say_where_it_resumes(setup, state, log)


def _write_trained_on(setup: TrainingSetup, run: Path, resumed: bool) -> None:
    """Keep which pictures the run and those before it are trained on, and which they hold out."""
    splits = setup.splits
    sides = splits.train, splits.val
    contents = splits.contents or tuple(np.full(len(side), -1, np.int64) for side in sides)
    paths = [[side.path(row) for row in range(len(side))] for side in sides]
    trained, val = map(PictureSet.of, contents, paths)
    known = (read_trained_on(run) if resumed else None, read_parent(setup.config))
    before, seen = [one for one in known if one is not None], np.zeros(len(splits.val), bool)
    for one in before:
        seen |= one.find_seen(contents[1], paths[1])
    new = np.flatnonzero(~seen)
    held = PictureSet.of(contents[1][new], [paths[1][row] for row in new])
    write_trained_on(run, trained, held, val, *before)


def find_known_sides(
    config: Config, resume: ResumeOptions | None, log: RunLog
) -> KnownSides | None:
    """Return the sides of pictures that are kept; None: none are known.

    These are the sides in the run to resume, else those of `read_sides_before`.

    Raises:
        CheckpointError: the file that knows them is damaged.
    """
    run = _find_asked_run(config, resume)
    if run is not None and (known := read_known_sides(run)):
        return known
    if run is not None and (directory.list_states(run) or (run / directory.METRICS).is_file()):
        return None  # of an older version
    if is_own_checkpoint(config) and read_parent(config) is None:
        log.say(
            f"warning: nothing tells which pictures {config.model.weights} was trained on: "
            f"validation may hold some of them"
        )
    return read_sides_before(config)


def _say_where_it_resumes(setup: TrainingSetup, state: ResumeState, log: RunLog) -> None:
    steps = setup.train.steps
    epoch, step = divmod(state.position.step, steps)
    if epoch == setup.config.train.epochs:
        log.say("all epochs are trained")
    else:
        log.say(f"resumes at epoch {epoch + 1}, after {step} of {pluralize(steps, 'step')}")
    for change in list_other_arithmetic(state, setup):
        log.say(f"warning: {change}: the result will not be bit for bit that of one run")


def describe_saved(run: Path | None) -> str:
    """Tell what was saved, and the command that resumes the run."""
    if run is None or not directory.list_states(run):
        return "nothing saved yet"
    command = f"mlfinetune train {shlex.quote(display_path(run / directory.CONFIG))} --resume"
    return f"everything is saved; resume with\n  {command}"
