"""What torchrun tells each process that it starts, in environment variables. No torch here."""

import os
from dataclasses import dataclass

from mlfinetune.errors import DeviceError


@dataclass(frozen=True)
class DistInfo:
    """Where a process stands among those that were started together.

    Attributes:
        rank, size: its number, from 0, and how many there are on all machines.
        local_rank, local_size: the same on its machine.
        machine: its machine's number, from 0.
        restarts: how often torchrun has started all of them anew.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    machine: int = 0
    restarts: int = 0


_VARIABLES = {
    "rank": "RANK",
    "size": "WORLD_SIZE",
    "local_rank": "LOCAL_RANK",
    "local_size": "LOCAL_WORLD_SIZE",
    "machine": "GROUP_RANK",
    "restarts": "TORCHELASTIC_RESTART_COUNT",
}


def dist_info() -> DistInfo:
    """This process's.

    Raises:
        DeviceError: the environment says that there are several, and not which one this is.
    """
    if os.environ.get("WORLD_SIZE", "1") == "1":
        return DistInfo(restarts=int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")))
    try:
        return DistInfo(**{name: int(os.environ[key]) for name, key in _VARIABLES.items()})
    except (KeyError, ValueError) as error:
        raise DeviceError(
            f"WORLD_SIZE is {os.environ['WORLD_SIZE']}, but torchrun did not start this process "
            f"({error}); run `torchrun --nproc-per-node N -m mlfinetune ...`, or unset WORLD_SIZE"
        ) from error
