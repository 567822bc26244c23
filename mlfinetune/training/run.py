"""One run from its request to its best candidate, in a run directory that this process holds.

TrainRequest, Splits -> opened_training -> FinishedTraining, while the run directory is locked

Who opens it writes the results: `train` validation's, `crossval` those of the held-out fold.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

from mlfinetune.data.manifest import Splits, digest_manifest
from mlfinetune.errors import CheckpointError, DataError
from mlfinetune.runs import directory
from mlfinetune.runs.trackers import opened_trackers, require_trackers
from mlfinetune.runtime.device import oom_as_device_error
from mlfinetune.runtime.distributed import World
from mlfinetune.runtime.log import RunLog
from mlfinetune.storage.files import Stamp, read_stamp
from mlfinetune.text import display_path, pluralize
from mlfinetune.training.bottleneck import Passes, describe_freezing
from mlfinetune.training.build import (
    list_freezing_obstacles,
    precomputes_features,
    require_lbfgs_fits,
)
from mlfinetune.training.loop import (
    Candidate,
)
from mlfinetune.training.records import Choice
from mlfinetune.training.resume import ResumeState
from mlfinetune.training.select import select_best, solve_first
from mlfinetune.training.setup import TrainingSetup, reading_copies, set_up, with_features
from mlfinetune.training.start import (
    TrainRequest,
    find_run_to_resume,
    load_resume_state,
    open_run,
    resolve_config,
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
class FinishedTraining:
    """A run whose best candidate is chosen, and whose results are still to be written.

    Attributes:
        setup: of the run, on this rank; its config names the run directory.
        best: the best candidate.
        history: metrics.jsonl of earlier starts of a resumed run.
    """

    setup: TrainingSetup
    best: Candidate
    history: str

    @property
    def run(self) -> Path:
        """The run directory."""
        assert self.setup.config.output is not None
        return self.setup.config.output


@contextmanager
def opened_training(
    request: TrainRequest, splits: Splits, log: RunLog, choice: Choice | None = None
) -> Iterator[FinishedTraining | None]:
    """Context that trains, and then holds the run directory, so that its results are written.

    Args:
        request: names the config and the run directory.
        splits: the examples; val may be empty where a choice is given.
        log: says what is done.
        choice: of the candidate, made before; None: validation chooses.

    Yields:
        The run; None on ranks that have no part in its results: all but 0 where features are
        computed once.

    Raises:
        MlfinetuneError: weights, device, loss or a run directory that cannot be used.
        KeyboardInterrupt, SystemExit: a signal was heard; the resume state is saved.
    """
    world = request.world
    require_trackers(request.config.train.trackers)
    for note in splits.notes:
        log.say(note)
    _require_same_data(world, splits)
    resumed = world.broadcast(lambda: find_run_to_resume(request, splits, log))
    found = _read_stamps(resumed)
    config = world.broadcast(lambda: resolve_config(request.config, splits, resumed))
    require_lbfgs_fits(config, splits.train)
    log.say(
        f"{pluralize(len(splits.train), 'image')} to train, {len(splits.val)} to validate, "
        f"{pluralize(len(splits.train.labels), 'label')}"
    )
    setup = replace(set_up(config, splits, world, log), choice=choice)
    if resumed is None and (line := _describe_fast_way(setup)):
        log.say(line)
    log.lap("model")
    state = world.broadcast(lambda: load_resume_state(resumed, setup, request, log))
    # Nothing has been written before: all that can be refused has been.
    wanted = request.config.output or directory.RUNS
    run = resumed or world.broadcast(lambda: directory.make_run_dir(wanted))
    setup = replace(setup, config=setup.config.model_copy(update={"output": run}))
    with ExitStack() as stack:
        stack.enter_context(directory.locked_run(run) if world.is_main else nullcontext())
        stack.enter_context(oom_as_device_error())
        if resumed is not None and world.is_main:
            _require_same_files(resumed, found)
        yield _train(setup, state, request, log, stack)
        world.barrier()
        log.repeat_warnings(world.gather(log.take_warnings()))
        if world.is_main:
            (run / directory.PREVIOUS_STATE).unlink(missing_ok=True)


def _train(
    setup: TrainingSetup,
    state: ResumeState | None,
    request: TrainRequest,
    log: RunLog,
    stack: ExitStack,
) -> FinishedTraining | None:
    """Train in a run directory that this process has locked.

    Args:
        stack: gets the trackers, which stay open while the results are written.
    """
    config, run, world = setup.config, setup.config.output, setup.world
    assert run is not None
    names = config.train.trackers if world.is_main else []
    write = stack.enter_context(opened_trackers(names, run, config.model_dump(mode="json")))
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
    elif state is not None and _asks_late(setup, state):
        log.say("train.solve_head_first comes too late: the run has begun; a new run solves first")
    with reading_copies(setup, request.copy_root, log):
        best = select_best(setup, start, state, request.signals, log)
    return FinishedTraining(setup, best, "" if state is None else state.content["history"])


def _asks_late(setup: TrainingSetup, state: ResumeState) -> bool:
    """Tell whether `train.solve_head_first` was added to a run that began without it."""
    before = state.content["made_of"].get("train.solve_head_first", False)
    return setup.config.train.solve_head_first and not before


def _describe_fast_way(setup: TrainingSetup) -> str:
    """Return a line on the fast way for a CPU; empty where the run goes it, or needs a GPU's."""
    model, train = setup.config.model, setup.config.train
    if setup.device.type != "cpu" or model.freeze_backbone or model.weights is None:
        return ""
    sizes = len(setup.splits.train), len(setup.splits.val)
    passes = Passes(*sizes, train.epochs, train.count_solutions(), train.cache_views)
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
