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
