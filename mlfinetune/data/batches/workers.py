"""Worker processes of a DataLoader: how they start, and how they end with the main process.

Ctrl-C and schedulers send their signal to the whole process group. Only the main process answers
it, by saving. If a worker died of it, the batch that the main process waits for would be lost. So:

1. workers start with SIGINT and SIGTERM blocked (`start_workers`);
2. each ignores them from its first moment on (`_init_worker`);
3. the kernel kills a worker as soon as the main process has ended, however it has ended;
4. at a normal exit the main process kills those that are left (`_kill_workers_at_exit`).
"""

import ctypes
import os
import signal
import sys
from collections.abc import Callable, Iterator
from functools import cache
from multiprocessing import parent_process
from multiprocessing.util import Finalize
from typing import Any

import torch
from torch.utils.data import DataLoader

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
    with blocked_signals():
        return iter(loader)


@cache
def _kill_workers_at_exit() -> None:
    """Have the workers killed when this process exits; once a process.

    Python itself would send them SIGTERM, which they ignore, and would wait for them for ever.
    """
    Finalize(None, kill_children, exitpriority=0)


def _init_worker(worker: int) -> None:
    """Make this worker ignore signals, and end with the main process.

    torch's own check of the main process comes too late for a worker that has just begun, or that
    is stuck in a decoder.
    """
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
    main = parent_process()
    if main is not None and main.pid != os.getppid():
        os._exit(1)  # the main process ended before the line above took effect
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
