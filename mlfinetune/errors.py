"""Errors that the user can fix: a wrong file, a wrong setting, a full disk.

    MlfinetuneError
    ├── ConfigError          a YAML file or an override
    ├── DataError            a table, a folder, a picture
    │   ├── ImageError       one file that cannot be decoded
    │   └── UnwritableError  a file that a run needs, where there is no room for it
    ├── WeightsError         pretrained weights: download, file, shapes
    ├── CheckpointError      a checkpoint or a run directory
    ├── DeviceError          a device that is missing, or out of memory
    ├── TrainingError        a loss or gradient that is not finite
    ├── OutputError          standard output that is full or closed
    └── LostError            another process of the run has ended, one that decodes pictures too

Each message says what is wrong, where, and what to do. `mlfinetune.cli` catches MlfinetuneError
once and exits with 2; any other exception is a bug and keeps its traceback.
"""


class MlfinetuneError(Exception):
    """An error that the user can fix; its text says what is wrong, where, and what to do."""


class ConfigError(MlfinetuneError):
    """A config file or an override that cannot be used."""


class DataError(MlfinetuneError):
    """A table, folder or label that cannot be used."""


class ImageError(DataError):
    """A picture that cannot be decoded.

    Attributes:
        name: path or URL of the picture.
        reason: the reason, without the name.
    """

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(name, reason)
        self.name, self.reason = name, reason

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}"


class UnwritableError(DataError):
    """A file that a run needs, and that cannot be written: no room, no permission."""


class WeightsError(MlfinetuneError):
    """Pretrained weights that cannot be downloaded or read, or that do not fit the model."""


class CheckpointError(MlfinetuneError):
    """A checkpoint or run directory that cannot be used."""


class DeviceError(MlfinetuneError):
    """A device that this machine does not have, or that has too little memory."""


class TrainingError(MlfinetuneError):
    """Training that cannot continue: a loss or a gradient is not finite."""


class OutputError(MlfinetuneError):
    """Standard output that cannot be written: a full disk, or no output at all."""


class LostError(MlfinetuneError):
    """Another process of a run with several ranks has ended, and this one cannot continue."""

    ENDED = (
        "another process of this run ended without saying why: killed, or out of memory? Look at "
        "the lines above, and at its machine's log (dmesg)"
    )
    STOPPED = "another process of this run was stopped by a signal, so this one cannot continue"
