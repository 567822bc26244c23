"""Worker processes of a DataLoader: how they start, and how they end with the main process.

Ctrl-C and schedulers send their signal to the whole process group. Only the main process answers
it, by saving. If a worker died of it, the batch that the main process waits for would be lost. So:

1. workers start with SIGINT and SIGTERM blocked (`start_workers`);
2. each ignores them from its first moment on (`_init_worker`);
3. a worker ends as soon as the main process has ended, however it has ended (`_end_with_main`);
4. at a normal exit the main process kills those that are left (`_kill_workers_at_exit`).

All of it holds for each start method of Python: `fork`, `forkserver` (the default on Linux from
Python 3.14 on) and `spawn` (Windows, macOS). The parent of a worker is the main process or the fork
server. So nothing here asks for the parent's process number, or for its death.
"""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from functools import cache
from multiprocessing import get_start_method, parent_process, set_forkserver_preload
from multiprocessing.util import Finalize
from threading import Thread
from typing import Any

import torch
from torch.utils.data import DataLoader

from mlfinetune.errors import LostError
from mlfinetune.runtime.signals import STOP_SIGNALS, blocked_signals, kill_children


def build_data_loader(
    dataset: Any,
    keys: Any,
    workers: int,
    pin_memory: bool,
    collate: Callable[[list[Any]], Any],
) -> DataLoader[Any]:
    """Build torch's DataLoader over `keys`, the lists of keys of the batches.

    Args:
        dataset: a key -> an item, or keys -> items at once (`__getitems__`).
        keys: an iterable of lists of keys, one list a batch; read again for every epoch.
        workers: number of processes; 0: items are made in this one.
        pin_memory: batches come in page-locked memory, for a GPU.
        collate: items -> what the loader yields.
    """
    return DataLoader(
        dataset,
        batch_sampler=keys,
        num_workers=workers,
        collate_fn=collate,
        pin_memory=pin_memory,
        persistent_workers=workers > 0,
        worker_init_fn=_init_worker,
        generator=torch.Generator(),  # else each epoch would draw from the global generator
    )


def start_workers(loader: DataLoader[Any]) -> Iterator[Any]:
    """Start the workers now, if they are not running, and return the iterator over the batches."""
    if loader.num_workers:
        _kill_workers_at_exit()
        _prepare_start()
    with blocked_signals():
        batches = iter(loader)
    return _naming_lost(batches)


def _naming_lost(batches: Iterator[Any]) -> Iterator[Any]:
    """Yield the batches.

    Raises:
        LostError: a worker has ended; torch's own error would look like a bug of this program.
    """
    try:
        yield from batches
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise LostError(
            f"a process that decodes pictures has ended: killed, or out of memory? Look at the "
            f"lines above and at dmesg; train.workers: 0 does without. A script that starts a run "
            f'must do so below `if __name__ == "__main__":`, since such a process imports it '
            f"({_first_line(error)})"
        ) from error


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]


@cache
def _kill_workers_at_exit() -> None:
    """Have the workers killed when this process exits; once a process.

    Python itself would send them SIGTERM, which they ignore, and would wait for them for ever.
    """
    Finalize(None, kill_children, exitpriority=0)


@cache
def _prepare_start() -> None:
    """Do what a start method needs before the first worker; once a process.

    The resource tracker of multiprocessing would else start inside of `blocked_signals`, where
    Python unblocks the signals after it. A fork server imports torch once, for all workers.
    """
    method = get_start_method()
    if method == "forkserver":
        set_forkserver_preload(["__main__", "mlfinetune.data.batches.loader"])
    if method != "fork" and sys.platform != "win32":
        from multiprocessing import resource_tracker

        resource_tracker.ensure_running()


def _init_worker(worker: int) -> None:
    """Make this worker ignore signals, and end with the main process."""
    _end_with_main()
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)


def _end_with_main() -> None:
    """End this worker as soon as the main process has ended.

    torch's own check comes too late for a worker that has just begun or that is stuck in a decoder,
    and under a fork server it looks at the server. A thread waits for the end of the main process.
    It cannot run while a decoder holds the interpreter's lock, so Linux kills the worker too.
    """
    main = parent_process()
    assert main is not None
    Thread(target=_exit_after, args=(main,), daemon=True).start()
    if sys.platform == "linux":
        _kill_after(main.sentinel)


def _exit_after(main: Any) -> None:
    """End this process when the main process has ended."""
    main.join()
    os._exit(1)


def _kill_after(sentinel: int) -> None:
    """Let the kernel kill this process when the main process ends.

    The sentinel is a pipe whose other end the main process holds; after fork, workers that started
    later hold it too, and they end first. The kernel's signal for a pipe with news is SIGIO;
    here it is SIGKILL.
    """
    try:
        from fcntl import F_GETFL, F_SETFL, F_SETOWN, F_SETSIG, fcntl
    except ImportError:  # then the thread has to do
        return
    fcntl(sentinel, F_SETOWN, os.getpid())
    fcntl(sentinel, F_SETSIG, signal.SIGKILL)
    fcntl(sentinel, F_SETFL, fcntl(sentinel, F_GETFL) | os.O_ASYNC)
