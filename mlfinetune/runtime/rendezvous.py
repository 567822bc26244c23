"""The key-value store that the ranks of a run share: how they meet, wait, and learn of failures.

    meet_ranks -> a store of this start alone -> get_shared_store, wait_for_key, wait_until

torch calls it a Store; torchrun runs one (TCPStore), and tells its address to every rank. `add` is
atomic: it counts ranks. Two keys tell of trouble: `failed` and `stopped` count the ranks that have
ended by an error and by a signal.
"""

import time
from collections.abc import Callable
from datetime import timedelta
from functools import cache
from typing import Any
from uuid import uuid4

import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from mlfinetune.errors import LostError
from mlfinetune.runtime.signals import Signals, catch_signals
from mlfinetune.runtime.torchrun import DistInfo, dist_info

TIMEOUT = timedelta(minutes=10)
"""Time after which a rank that waits in a collective, or for the others to start, gives up."""

_run_stores: list[Any] = []
"""The store that the ranks of this start share, once they have met; the last one is in use.

A global, like torch's own default process group: a process belongs to one run at a time, and
`report_failure` needs it when the World is gone already.
"""


def meet_ranks(info: DistInfo, signals: Signals) -> Any:
    """Wait until all ranks of this start are here, and return a store of this start alone.

    The store of torchrun still holds the keys of earlier starts, and machines do not agree on the
    number of restarts. So rank 0 draws a random name for this start, and the ranks agree on it:

    1. Rank r > 0 draws a random name of its own and writes it: `hello r` = name.
    2. Rank 0 reads each `hello r` and writes `answer <name>` = the start's name. A greeting of an
       earlier start is answered under a name that nobody waits for; the new one follows.
    3. Rank r reads its answer and adds 1 to `known <start>`. Up to here it may leave on a signal.
    4. When `known <start>` is size - 1, rank 0 writes `go <start>` = yes. If a signal or the
       timeout ends rank 0 earlier, it writes no.
    5. All ranks read `go <start>`. On yes all of them connect. On no all of them leave.

    After step 3 a rank leaves only on a no, and after a yes nobody leaves. This matters because
    the next step, `init_process_group`, waits in C for all ranks and hears no signal.

    Raises:
        LostError: not all ranks have come within TIMEOUT, or rank 0 has left.
        KeyboardInterrupt, SystemExit: as `Signals.check`.
    """
    store = add_prefix("mlfinetune", _connect_agent_store())
    name = uuid4().hex
    deadline = time.monotonic() + TIMEOUT.total_seconds()

    def require_time() -> None:
        if time.monotonic() > deadline:
            raise LostError(f"not all of {info.size} processes have started within {TIMEOUT}")

    def require_time_and_no_signal() -> None:
        require_time()
        signals.check()

    if info.rank == 0:
        start, go = name, b"no"
        try:
            wait_until(lambda: _answer_ranks(store, start, info.size), require_time_and_no_signal)
            go = b"yes"
        finally:
            store.set(f"go {start}", go)
    else:
        store.set(f"hello {info.rank}", name)
        answer = f"answer {name}"
        wait_until(lambda: bool(store.check([answer])), require_time_and_no_signal)
        start = store.get(answer).decode()
        store.add(f"known {start}", 1)
        wait_until(lambda: bool(store.check([f"go {start}"])), require_time)
    if store.get(f"go {start}") != b"yes":
        signals.check()
        raise LostError(LostError.ENDED)
    _run_stores.append(add_prefix(start, store))
    return _run_stores[-1]


def _answer_ranks(store: Any, start: str, size: int) -> bool:
    """Tell the start's name to all ranks that have come; return whether all know it."""
    for rank in range(1, size):
        if store.check([f"hello {rank}"]):
            store.set(f"answer {store.get(f'hello {rank}').decode()}", start)
    known: int = store.add(f"known {start}", 0)
    return known == size - 1


def get_shared_store() -> Any:
    """Return the store that all ranks of this start read and write.

    Before they have met it is a part of torchrun's store, named by torchrun's count of restarts.
    """
    if _run_stores:
        return _run_stores[-1]
    return add_prefix(f"early {dist_info().restarts}", _connect_agent_store())


@cache
def _connect_agent_store() -> Any:
    """Return torchrun's own store.

    It is one for all restarts: it still holds the keys of earlier starts.
    """
    store, _, _ = next(rendezvous("env://", timeout=TIMEOUT))
    return store


def add_prefix(prefix: str, store: Any) -> Any:
    """Return a view of the store in which every key begins with `prefix`."""
    return dist.PrefixStore(prefix, store)  # type: ignore[attr-defined]


def require_all_alive() -> None:
    """Raise if another rank has failed or was stopped.

    Raises:
        LostError: another rank has failed, or was stopped by a signal.
        KeyboardInterrupt, SystemExit: another was stopped, and this rank has the signal too: then
            it ends by the signal, and prints no error.
    """
    if get_shared_store().add("failed", 0):
        raise LostError(LostError.ENDED)
    if get_shared_store().add("stopped", 0):
        with catch_signals() as signals:
            signals.check()
        raise LostError(LostError.STOPPED)


def wait_until(
    is_done: Callable[[], bool], require: Callable[[], None] = require_all_alive
) -> None:
    """Ask `is_done` again and again, at growing intervals; `require` may raise between.

    A loop in Python, since torch's own wait in C hears no signal.
    """
    pause = 0.005
    while not is_done():
        require()
        time.sleep(pause)
        pause = min(0.5, 1.5 * pause)


def wait_for_key(key: str) -> None:
    """Wait until another rank of this start has set `key`."""
    wait_until(lambda: bool(get_shared_store().check([key])))
