"""The resume state of a run: everything it needs to continue as if it had never stopped.

    capture_state   net, optimizer, random numbers, Position, best epoch -> content of resume.pt
    load_state      resume.pt, or the one before it where that is damaged -> ResumeState
    restore_state   ResumeState -> net, optimizer, random numbers, bit for bit

The order of pictures depends only on (seed, epoch), and each augmentation only on (seed, epoch,
index). So the position alone tells which batches are left.
"""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from mlfinetune.config import Config, EvalConfig
from mlfinetune.data.images.transforms import TransformSpec
from mlfinetune.data.manifest import Splits, digest_manifest
from mlfinetune.errors import CheckpointError, ConfigError
from mlfinetune.metrics.selection import Trial
from mlfinetune.runs import directory
from mlfinetune.runs.settings import NOT_SET, flatten_keys, leave_out, list_differences
from mlfinetune.runs.state import read_state, write_state
from mlfinetune.runtime.device import choose_precision, name_dtype
from mlfinetune.runtime.log import RunLog
from mlfinetune.runtime.signals import Signals
from mlfinetune.text import format_list
from mlfinetune.training.loop import (
    Candidate,
    SavePoint,
)
from mlfinetune.training.network import build_transform_spec
from mlfinetune.training.optim import fit_optimizer_state
from mlfinetune.training.records import Position
from mlfinetune.training.setup import TrainingSetup

_MAY_CHANGE = (
    "output",
    "note",
    "data.train",
    "data.val",
    "data.images",
    "loss.backend",
    "train.workers",
    "train.trackers",
    "train.save_minutes",
    *(f"eval.{name}" for name in EvalConfig.model_fields if name != "views"),
)
"""Keys that may change when a run is resumed, because they do not change what the run learns. If a
path of the data led to other examples, the digest of the data would differ. `eval.views` is none of
them: the mAPs of epochs that were scored otherwise cannot be compared."""

_PREPROCESSING = "preprocessing"
"""Key of a run's identity with what the weights may decide of the input."""

_DATA = ("training data", "validation data")
"""Keys of a run's identity that are digests of its data."""


@dataclass(frozen=True)
class ResumeState:
    """A resume state that was read from a run directory.

    Attributes:
        position: between two steps.
        best: the best epoch so far, without its scores; None before the first.
        trials: of all epochs so far; None for an epoch that an older version trained.
        solved_after: epoch after which the head was solved for last, which `best` and `trials`
            know; None: it was not.
        content: all of the state, as `capture_state` returned it.
    """

    position: Position
    best: Candidate | None
    trials: list[Trial | None]
    solved_after: int | None
    content: Mapping[str, Any]


def capture_state(
    setup: TrainingSetup,
    optimizer: torch.optim.Optimizer,
    position: Position,
    best: Candidate | None,
    trials: Sequence[Trial | None] = (),
    solved_after: int | None = None,
) -> dict[str, Any]:
    """Return everything that the rest of the run depends on, as tensors and plain containers.

    The keys are the format of resume.pt.
    """
    cuda = [torch.cuda.get_rng_state(setup.device)] if setup.device.type == "cuda" else []
    best_fields = None
    if best is not None:
        best_fields = {k: getattr(best, k) for k in ("number", "name", "mAP", "loss", "speed")}
    return {
        "made_of": collect_identity(setup.config, setup.splits, setup.spec),
        "arithmetic": _describe_arithmetic(setup),
        "position": asdict(position),
        "best": best_fields,
        "trials": [None if trial is None else asdict(trial) for trial in trials],
        "solved_after": solved_after,
        "history": _read_history(setup),
        "net": setup.net.state_dict(),
        "optimizer": optimizer.state_dict(),
        "average": None if setup.ema is None else setup.ema.state_dict(),
        "random": {"torch": torch.get_rng_state(), "cuda": cuda},
    }


def load_state(run: Path, log: RunLog) -> ResumeState | None:
    """Read the newest resume state of a run directory that is whole; None: there is none yet.

    Raises:
        CheckpointError: there are states, but all are damaged.
    """
    fault: CheckpointError | None = None
    for path in directory.list_states(run):
        try:
            return _parse_state(read_state(path), path)
        except CheckpointError as error:
            log.say(f"warning: {error}; looking for the state before it")
            fault = error
    if fault is not None:
        raise CheckpointError(
            f"{fault}; there is no other: train anew, without --resume"
        ) from fault
    return None


def is_same_run(run: Path, config: Config, splits: Splits) -> bool:
    """Tell whether the newest whole state of a run directory has these settings and data."""
    for path in directory.list_states(run):
        try:
            state = _parse_state(read_state(path), path)
        except CheckpointError:
            continue  # `load_state` will name the fault
        return not _list_changes_since(state, config, splits)
    return False


def require_same_run(state: ResumeState, config: Config, splits: Splits) -> None:
    """Raise a ConfigError that names the settings and data that differ from the state's."""
    require_no_changes(_list_changes_since(state, config, splits))


def _list_changes_since(state: ResumeState, config: Config, splits: Splits) -> list[str]:
    now = collect_identity(config, splits, build_transform_spec(config))
    return list_changes(state.content["made_of"], now)


def require_no_changes(changes: Sequence[str]) -> None:
    """Raise a ConfigError that lists the changes, and says what allows them."""
    if changes:
        raise ConfigError(
            f"the run was made with other settings or data:\n{format_list(changes)}\n"
            f"resume it with the former ones, or with --allow-changed if the change is meant; "
            f"without --resume a new run begins"
        )


def list_other_arithmetic(state: ResumeState, setup: TrainingSetup) -> Iterator[str]:
    """Yield each change that rounds numbers differently: device, precision, torch, processes."""
    before, now = state.content["arithmetic"], _describe_arithmetic(setup)
    yield from (f"{k} {before.get(k)} before, {now[k]} now" for k in now if before.get(k) != now[k])


_DECIDES_BATCHES = ("train.batch_size", "train.seed", "train.sampling", "training data")
"""Parts of a run's identity that decide the pictures of each step."""


def place_in_epochs(state: ResumeState, setup: TrainingSetup, log: RunLog) -> ResumeState:
    """Return the state with a position that counts the steps of this setup.

    Where `--allow-changed` brought other batches, an epoch has another number of steps, and other
    pictures are left of the one under way: it begins anew.
    """
    now = collect_identity(setup.config, setup.splits, setup.spec)
    before = _add_defaults(state.content["made_of"], now)
    if all(before.get(key) == now[key] for key in _DECIDES_BATCHES):
        return state
    rows = [json.loads(line) for line in state.content["history"].splitlines()]
    done = max((int(row["epoch"]) for row in rows), default=0)
    if state.position.images:
        log.say(f"warning: the batches are others than before: epoch {done + 1} begins anew")
    position = Position(done * setup.train.steps, last=state.position.last)
    return replace(state, position=position)


def restore_state(
    state: ResumeState, setup: TrainingSetup, optimizer: torch.optim.Optimizer
) -> None:
    """Load the state into net, optimizer, moving average and random number generators.

    Settings of the optimizer, such as weight decay, stay those of the config.

    Raises:
        CheckpointError: the state does not fit this model or optimizer.
    """
    content = state.content
    try:
        setup.net.load_state_dict(content["net"])
        optimizer.load_state_dict(fit_optimizer_state(content["optimizer"], optimizer))
        if setup.ema is not None:
            setup.ema.load_state_dict(_get_ema_state(content, setup))
        torch.set_rng_state(content["random"]["torch"])
        if setup.device.type == "cuda" and content["random"]["cuda"]:
            torch.cuda.set_rng_state(content["random"]["cuda"][0], setup.device)
    except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"the state does not fit this model, or this optimizer: {error}; train anew, without "
            f"--resume"
        ) from error


class StateSaver:
    """Saves the resume state of a run every `train.save_minutes`, and when a signal was heard.

    Attributes:
        optimizer: of the run.
        signals: the signals that this process has heard.
        position: the start of the run, or that of `restore`; then the end of the last epoch.
        best: the best epoch so far; the caller compares epochs and keeps it up to date.
        trials: of all epochs so far; the caller adds to them.
        solved_after: as in `ResumeState`; the caller keeps it up to date.
        save_point: the training loop asks it at every step.
    """

    def __init__(
        self, run: Path, setup: TrainingSetup, optimizer: torch.optim.Optimizer, signals: Signals
    ) -> None:
        self._run, self._setup = run, setup
        self.optimizer, self.signals = optimizer, signals
        self.position = Position()
        self.best: Candidate | None = None
        self.trials: list[Trial | None] = []
        self.solved_after: int | None = None
        self.save_point = SavePoint(self._should_save, self.save)
        self._saved_at = time.monotonic()

    def restore(self, state: ResumeState) -> None:
        """Load `state` into model and optimizer, and continue at its position.

        Raises:
            CheckpointError: as `restore_state`.
        """
        restore_state(state, self._setup, self.optimizer)
        self.position, self.best = state.position, state.best
        self.solved_after = state.solved_after
        # Resamples of other images say nothing of the epochs to come.
        before = state.content["made_of"].get("validation data")
        known = before == digest_manifest(self._setup.splits.val)
        self.trials = list(state.trials) if known else [None] * len(state.trials)

    def save(self, position: Position) -> None:
        """Save the state; then stop the run if any rank has heard a signal.

        Raises:
            CheckpointError: the file cannot be written (a full disk, no permission).
            KeyboardInterrupt, SystemExit: as `Signals.check`.
        """
        world = self._setup.world
        if world.is_main:
            done = (self.best, self.trials, self.solved_after)
            content = capture_state(self._setup, self.optimizer, position, *done)
            write_state(self._run / directory.STATE, self._run / directory.PREVIOUS_STATE, content)
        self._saved_at = time.monotonic()
        if heard := world.all_reduce_max(self.signals.received or 0):
            self.signals.received = heard
            world.barrier()  # a rank that left now would close a connection that others still read
            self.signals.check()

    def _should_save(self) -> bool:
        seconds = 60 * self._setup.config.train.save_minutes
        return self.signals.received is not None or time.monotonic() - self._saved_at >= seconds


def collect_identity(config: Config, splits: Splits, spec: TransformSpec) -> dict[str, Any]:
    """Return everything that must not change when a run is resumed: settings, and the data.

    For example {"train.lr": 0.0001, ..., "training data": "5f1d...", "validation data": "..."}.
    Mean, std, interpolation and crop are there also where the weights decide them.
    """
    decided = {name: getattr(spec, name) for name in ("interpolation", "crop_share")}
    return {
        **collect_settings(config),
        _PREPROCESSING: {"mean": list(spec.mean), "std": list(spec.std), **decided},
        "training data": digest_manifest(splits.train),
        "validation data": digest_manifest(splits.val),
    }


def collect_settings(config: Config) -> dict[str, Any]:
    """Return the settings that may not change when a run is resumed, by dotted name."""
    return leave_out(flatten_keys(config.model_dump(mode="json")), _MAY_CHANGE)


def _get_ema_state(content: Mapping[str, Any], setup: TrainingSetup) -> dict[str, Any]:
    """Return the state of the moving average.

    A saved state has none if `train.ema` was added with --allow-changed. The average then starts
    at the weights of the net.
    """
    state: dict[str, Any] = content["average"] or {
        "n_averaged": torch.tensor(0),
        **{f"module.{name}": value for name, value in setup.net.state_dict().items()},
    }
    return state


def _read_history(setup: TrainingSetup) -> str:
    """Read metrics.jsonl as it is; empty before the first epoch."""
    assert setup.config.output is not None
    path = setup.config.output / directory.HISTORY
    return path.read_text("utf-8") if path.is_file() else ""


def _describe_arithmetic(setup: TrainingSetup) -> dict[str, str]:
    """Name everything that decides how numbers are rounded.

    The precision is that of the backbone. On precomputed features the head computes in float32, but
    the features were computed in that precision.
    """
    dtype, _ = choose_precision(setup.config.train.precision, setup.device)
    return {
        "device": setup.device.type,
        "precision": name_dtype(dtype),
        "torch": str(torch.__version__),
        "processes": str(setup.world.info.size),
    }


def _parse_state(content: Mapping[str, Any], path: Path) -> ResumeState:
    """Check the fields of a state.

    Raises:
        CheckpointError: it has other fields than this version writes.
    """
    try:
        best = content["best"]
        position = Position(**content["position"])
        assert all(isinstance(content[name], dict) for name in ("made_of", "arithmetic"))
        assert isinstance(content["history"], str)
        candidate = None if best is None else Candidate(scores=None, **best)
        older = [None] * (content["history"].count("\n") if candidate else 0)
        kept = content.get("trials", older)
        trials = [None if trial is None else Trial(**trial) for trial in kept]
        solved_after = content.get("solved_after")
        assert solved_after is None or isinstance(solved_after, int)
        return ResumeState(position, candidate, trials, solved_after, content)
    except (KeyError, TypeError, AssertionError) as error:
        raise CheckpointError(f"{path} is no state of this version: {error!r}") from error


def list_changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Describe the settings and data that differ, by name.

    Mappings are compared by their keys, as `loss.pos_weight.red`; older states have them whole.
    """
    before = leave_out(flatten_keys(_add_defaults(before, now)), _MAY_CHANGE)
    changes = []
    for key, (old, new) in list_differences(before, flatten_keys(now)).items():
        if key in _DATA:
            changes.append(f"{key}: other names, labels or targets than before")
        elif not (old in (None, NOT_SET) and new in (None, NOT_SET)):
            changes.append(f"{key}: {_format_value(old)} before, {_format_value(new)} now")
    return changes


def _add_defaults(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """Return `before` with the defaults of settings that an older version did not know."""
    defaults = collect_settings(Config.model_validate({"data": {"train": "."}}))
    defaults["model.levels"] = 1  # the features of those versions, whatever the default is now
    if _PREPROCESSING in now:  # those versions did not write what the weights decide
        defaults[_PREPROCESSING] = now[_PREPROCESSING]
    return {**{key: value for key, value in defaults.items() if key in now}, **before}


def _format_value(value: object) -> str:
    return NOT_SET if value == NOT_SET else repr(value)
