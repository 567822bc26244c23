"""Where a run stands, kept so that it can go on from there, bit for bit.

    capture: net, optimizer, random numbers, Position, best so far -> plain containers -> resume.pt
    restore: resume.pt, or where that is damaged the one before it -> the same, put back

The order of pictures is a function of (seed, epoch) and each augmentation one of (seed, epoch,
index), so a position is all that the data needs.
"""

import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from mlfinetune.config import Config
from mlfinetune.data.manifest import Splits, digest_manifest
from mlfinetune.errors import CheckpointError, ConfigError
from mlfinetune.runs import directory
from mlfinetune.runs.state import read_state, write_state
from mlfinetune.runtime.device import choose_precision
from mlfinetune.runtime.log import RunLog
from mlfinetune.runtime.signals import Signals
from mlfinetune.text import format_list
from mlfinetune.training.loop import Candidate, SavePoint
from mlfinetune.training.records import Position
from mlfinetune.training.setup import TrainingSetup

_FREE = (
    "output",
    "data.train",
    "data.val",
    "data.images",
    "train.workers",
    "train.trackers",
    "train.save_minutes",
    "eval",
)
"""Keys that may change between the parts of a run: they do not change what it learns, or, as the
paths of the data, are held to account by the data's digest."""


@dataclass(frozen=True)
class ResumeState:
    """Where a run stands.

    Attributes:
        at: between two steps.
        best: the best epoch so far, without its scores; None before the first.
        content: all of it, as `capture` gave it.
    """

    at: Position
    best: Candidate | None
    content: Mapping[str, Any]


def capture_state(
    parts: TrainingSetup, optimizer: torch.optim.Optimizer, at: Position, best: Candidate | None
) -> dict[str, Any]:
    """Everything that the rest of the run depends on, as tensors and plain containers."""
    cuda = [torch.cuda.get_rng_state(parts.device)] if parts.device.type == "cuda" else []
    kept = None
    if best is not None:
        kept = {k: getattr(best, k) for k in ("number", "name", "mAP", "loss", "speed")}
    return {
        "made_of": collect_identity(parts.config, parts.splits),
        "arithmetic": _arithmetic(parts),
        "position": asdict(at),
        "best": kept,
        "history": _history(parts),
        "net": parts.net.state_dict(),
        "optimizer": optimizer.state_dict(),
        "average": None if parts.average is None else parts.average.state_dict(),
        "random": {"torch": torch.get_rng_state(), "cuda": cuda},
    }


def save_state(run: Path, content: dict[str, Any]) -> None:
    """Write it; the one before it stays beside it.

    Raises:
        CheckpointError: it cannot be written (a full disk, no permission).
    """
    write_state(run / directory.STATE, run / directory.PREVIOUS_STATE, content)


def load_state(run: Path, log: RunLog) -> ResumeState | None:
    """The last good state of a run directory; None: it has none yet.

    Raises:
        CheckpointError: there is one, or two, and none is whole.
    """
    fault: CheckpointError | None = None
    for path in directory.list_states(run):
        try:
            return _standing(read_state(path), path)
        except CheckpointError as error:
            log.say(f"warning: {error}; looking for the state before it")
            fault = error
    if fault is not None:
        raise CheckpointError(
            f"{fault}; there is no other: train anew, without --resume"
        ) from fault
    return None


def is_same_run(run: Path, config: Config, splits: Splits) -> bool:
    """Is the last good state of a run directory one of these settings and data?"""
    for path in directory.list_states(run):
        try:
            standing = _standing(read_state(path), path)
        except CheckpointError:
            continue  # `load` will say so
        return not list(_changes(standing, config, splits))
    return False


def require_same_run(standing: ResumeState, config: Config, splits: Splits) -> None:
    """Raise a ConfigError that says in what settings or data are not those of the state."""
    if changed := list(_changes(standing, config, splits)):
        raise ConfigError(
            f"the run was made with other settings or data:\n{format_list(changed)}\n"
            f"go on with the former, or with --allow-changed if that is meant; without --resume a "
            f"new run begins"
        )


def find_other_arithmetic(standing: ResumeState, parts: TrainingSetup) -> Iterator[str]:
    """What computes now but did not before, in words."""
    before, now = standing.content["arithmetic"], _arithmetic(parts)
    yield from (f"{k} {before.get(k)} before, {now[k]} now" for k in now if before.get(k) != now[k])


def restore_state(
    standing: ResumeState, parts: TrainingSetup, optimizer: torch.optim.Optimizer
) -> None:
    """Put the state back into what was built anew.

    Raises:
        CheckpointError: it does not fit.
    """
    content = standing.content
    groups = [
        {k: v for k, v in one.items() if k not in ("params", "lr")}
        for one in optimizer.param_groups
    ]
    try:
        parts.net.load_state_dict(content["net"])
        optimizer.load_state_dict(content["optimizer"])
        if parts.average is not None:
            parts.average.load_state_dict(_average(content, parts))
        torch.set_rng_state(content["random"]["torch"])
        if parts.device.type == "cuda" and content["random"]["cuda"]:
            torch.cuda.set_rng_state(content["random"]["cuda"][0], parts.device)
    except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"the state does not fit this model, or this optimizer: {error}; train anew, without "
            f"--resume"
        ) from error
    for group, fresh in zip(optimizer.param_groups, groups, strict=True):
        group.update(fresh)


class StateSaver:
    """Saves where an epoch's training stands, when it is time to, or a signal was heard.

    Attributes:
        at: where training begins.
        best: the best epoch so far; kept up to date by whoever compares them.
    """

    def __init__(
        self, run: Path, parts: TrainingSetup, optimizer: torch.optim.Optimizer, signals: Signals
    ) -> None:
        self._run, self._parts = run, parts
        self.optimizer, self.signals = optimizer, signals
        self.at = Position()
        self.best: Candidate | None = None
        self.pause = SavePoint(self._due, self.keep)
        self._saved = time.monotonic()

    def go_on(self, standing: ResumeState) -> None:
        """From there; raises as `restore`."""
        restore_state(standing, self._parts, self.optimizer)
        self.at, self.best = standing.at, standing.best

    def keep(self, at: Position) -> None:
        """Save; then raise what was heard, by whichever process, as `Signals.check`."""
        world = self._parts.world
        if world.is_main:
            save_state(self._run, capture_state(self._parts, self.optimizer, at, self.best))
        self._saved = time.monotonic()
        if heard := world.all_reduce_max(self.signals.heard or 0):
            self.signals.heard = heard
            self.signals.check()

    def _due(self) -> bool:
        minutes = self._parts.config.train.save_minutes
        return self.signals.heard is not None or time.monotonic() - self._saved >= 60 * minutes


def collect_identity(config: Config, splits: Splits) -> dict[str, Any]:
    """What a run may not change under way: settings by their dotted names, and the data."""
    flat = dict(_flat(config.model_dump(mode="json"), ""))
    kept = {k: v for k, v in flat.items() if not any(_below(k, free) for free in _FREE)}
    return {
        **kept,
        "training data": digest_manifest(splits.train),
        "validation data": digest_manifest(splits.val),
    }


def _average(content: Mapping[str, Any], parts: TrainingSetup) -> dict[str, Any]:
    """The running mean as it was; where there was none (--allow-changed), that of the net alone."""
    assert parts.average is not None
    found: dict[str, Any] = content["average"] or {
        "n_averaged": torch.tensor(0),
        **{f"module.{name}": value for name, value in parts.net.state_dict().items()},
    }
    return found


def _history(parts: TrainingSetup) -> str:
    """metrics.jsonl as it is."""
    assert parts.config.output is not None
    path = parts.config.output / directory.HISTORY
    return path.read_text("utf-8") if path.is_file() else ""


def _arithmetic(parts: TrainingSetup) -> dict[str, str]:
    """What rounds; the precision is the backbone's, of kept features too."""
    dtype, _ = choose_precision(parts.config.train.precision, parts.device)
    precision = str(dtype).removeprefix("torch.")
    return {
        "device": parts.device.type,
        "precision": precision,
        "torch": str(torch.__version__),
        "processes": str(parts.world.info.size),
    }


def _standing(content: Mapping[str, Any], path: Path) -> ResumeState:
    try:
        best = content["best"]
        at = Position(**content["position"])
        assert all(isinstance(content[name], dict) for name in ("made_of", "arithmetic"))
        assert isinstance(content["history"], str)
        return ResumeState(at, None if best is None else Candidate(scores=None, **best), content)
    except (KeyError, TypeError, AssertionError) as error:
        raise CheckpointError(f"{path} is no state of this version: {error!r}") from error


def _changes(standing: ResumeState, config: Config, splits: Splits) -> Iterator[str]:
    before, now = standing.content["made_of"], collect_identity(config, splits)
    for key in sorted({*before, *now}):
        if before.get(key) != now.get(key):
            if key.endswith(" data"):
                yield f"{key}: other names, labels or targets than before"
            else:
                yield f"{key}: {before.get(key)!r} before, {now.get(key)!r} now"


def _flat(tree: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict) and not prefix:
            yield from _flat(value, f"{key}.")
        else:
            yield prefix + key, value


def _below(key: str, free: str) -> bool:
    return key == free or key.startswith(free + ".")
