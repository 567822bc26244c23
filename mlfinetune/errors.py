"""The errors that people can mend.

    MlfinetuneError
    ├── ConfigError       a YAML file or an override
    ├── DataError         a table, a folder, a picture
    │   └── ImageError    one file that cannot be decoded
    ├── WeightsError      pretrained weights: download, file, shapes
    ├── CheckpointError   a checkpoint or a run directory
    ├── DeviceError       a device that is not there
    ├── TrainingError     a loss or gradient that is not finite
    └── LostError         another process of the run has ended

Each message says what is wrong, where, and what to do. `mlfinetune.cli` catches the family
once and exits with 2; any other exception is a bug and keeps its traceback.
"""

import math
import reprlib
from collections.abc import Sequence
from difflib import get_close_matches
from typing import cast

SHOWN = 10


class MlfinetuneError(Exception):
    """Something the user can mend."""


class ConfigError(MlfinetuneError):
    """A config file or an override that cannot be used."""


class DataError(MlfinetuneError):
    """A table, folder or label that cannot be used."""


class ImageError(DataError):
    """One picture that cannot be decoded.

    Attributes:
        name: the file.
        reason: why, without the file's name.
    """

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(name, reason)
        self.name, self.reason = name, reason

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}"


class WeightsError(MlfinetuneError):
    """Pretrained weights that cannot be had or do not fit."""


class CheckpointError(MlfinetuneError):
    """A checkpoint or run directory that cannot be used."""


class DeviceError(MlfinetuneError):
    """A device that this machine lacks."""


class TrainingError(MlfinetuneError):
    """Training that cannot go on."""


class LostError(MlfinetuneError):
    """A process of a run that several share has ended without a word."""

    ENDED = (
        "another process of this run ended without saying why: killed, or out of memory? The lines "
        "above may tell, and its machine's log (dmesg)"
    )
    STOPPED = "another process of this run was stopped by a signal, before all could be"


def listing(faults: Sequence[str], total: int | None = None) -> str:
    """Lines for a message: the first ten faults, the rest (of `total`) counted."""
    lines = [f"  {fault}" for fault in faults[:SHOWN]]
    total = len(faults) if total is None else total
    if total > len(lines):
        lines.append(f"  ... and {total - len(lines)} more")
    return "\n".join(lines)


def counted(number: int, noun: str) -> str:
    """`1 label`, `2 labels`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def finite(value: object) -> float:
    """The number that a file says; raises ValueError where it is none, or not finite."""
    if type(value) not in (int, float) or not math.isfinite(number := float(cast(float, value))):
        raise ValueError(f"{reprlib.repr(value)} is no finite number")
    return number


def nearest(name: str, known: Sequence[str]) -> str:
    """`; did you mean 'x'?` for the known name most like `name`, or nothing."""
    by_case = {candidate.casefold().strip(): candidate for candidate in known}
    close = get_close_matches(name.casefold().strip(), list(by_case), n=1, cutoff=0.6)
    return f"; did you mean '{by_case[close[0]]}'?" if close else ""
