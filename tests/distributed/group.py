"""`mlfinetune ...` as several processes: as torchrun starts them, and by torchrun's agent."""

import os
import socket
from collections.abc import Sequence
from pathlib import Path

from faults import children
from faults.children import Child
from torch.distributed import TCPStore
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

_stores: list[TCPStore] = []
"""What processes meet at; torchrun holds it, so that it outlives them."""


def start(
    size: int,
    *arguments: str,
    cwd: Path,
    last: tuple[str, ...] = (),
    port: int | None = None,
    restarts: Sequence[int] = (),
    **environment: str,
) -> list[Child]:
    """Return the processes of one machine, with the environment that torchrun gives to each.

    Args:
        last: what the last one is given beside, as if its machine had other files.
        port: of `meeting`, where others have met before.
        restarts: how often each one's machine thinks that it was started anew.
    """
    if size == 1:
        return [children.start(*arguments, cwd=cwd, **environment)]
    restarts = restarts or (0,) * size
    given = {
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "WORLD_SIZE": str(size),
        "LOCAL_WORLD_SIZE": str(size),
        "GROUP_RANK": "0",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port or meeting()),
        **environment,
    }
    return [
        children.start(
            *arguments,
            *(last if rank == size - 1 else ()),
            cwd=cwd,
            RANK=str(rank),
            LOCAL_RANK=str(rank),
            TORCHELASTIC_RESTART_COUNT=str(restarts[rank]),
            **given,
        )
        for rank in range(size)
    ]


def run(size: int, *arguments: str, cwd: Path, **environment: str) -> Child:
    """Run the processes to a good end; return the one that prints."""
    group = start(size, *arguments, cwd=cwd, **environment)
    codes = [child.wait() for child in group]
    assert not any(codes), "\n".join(child.said for child in group)
    for child in group[1:]:
        assert (child.said, child.out) == ("", ""), "process 0 alone prints"
    return group[0]


def start_agent(size: int, restarts: int, *arguments: str, cwd: Path) -> Child:
    """Start what `torchrun --standalone` starts, its agent, with processes that are forked.

    They need no imports. tests/test_pages.py runs torchrun itself.
    """
    folder = cwd / "said" / "agent"
    folder.mkdir(parents=True)
    for name in ("out", "err", "calls"):
        (folder / name).touch()
    given = (size, restarts, arguments, str(cwd), str(folder), dict(os.environ))
    agent = children.CONTEXT.Process(target=_lead, args=given)
    agent.start()
    return Child(agent, folder)


def _lead(
    size: int,
    restarts: int,
    arguments: tuple[str, ...],
    cwd: str,
    folder: str,
    environment: dict[str, str],
) -> None:
    """Be the agent: start the processes, and all of them again when one has failed."""
    os.environ.update(environment, OMP_NUM_THREADS="1")
    os.dup2(os.open(f"{folder}/err", os.O_WRONLY | os.O_APPEND), 2)
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=size,
        run_id="restarted",
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=restarts,
        start_method="fork",
    )
    elastic_launch(config, _follow)(arguments, cwd, folder)


def _follow(arguments: tuple[str, ...], cwd: str, folder: str) -> None:
    """Be one of its processes, with the environment that it gives."""
    children.run_command(arguments, cwd, folder, dict(os.environ), "fork")


def meeting() -> int:
    """Return the port of a store that outlives a start, as torchrun's does."""
    port = free_port()
    _stores.append(TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False))
    return port


def free_port() -> int:
    """Return a port on which nobody listens."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port
