"""The environment variables by which torchrun tells each process its rank. No torch here."""

import os
from dataclasses import dataclass

from mlfinetune.errors import DeviceError


@dataclass(frozen=True)
class DistInfo:
    """Rank and world size of this process, on all machines and on its own.

    Example: the third process of two machines with two GPUs each is
    `DistInfo(rank=2, size=4, local_rank=0, local_size=2, machine=1)`.

    Attributes:
        rank: number of this process, from 0.
        size: number of processes on all machines.
        local_rank: number of this process on its machine, from 0.
        local_size: number of processes on its machine.
        machine: number of its machine, from 0.
        restarts: how often torchrun has started all processes again.
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
    """Read this process's rank and world size; without torchrun it is rank 0 of 1.

    Raises:
        DeviceError: WORLD_SIZE is above 1, and the other variables are missing or no numbers.
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
