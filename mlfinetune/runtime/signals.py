"""Ctrl-C and SIGTERM: the first ends a command in order, the second ends it at once.

A function that saves something defers the first signal until the save is complete.
This module imports no torch: the command line listens for signals before torch is imported.
"""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from mlfinetune.runtime.torchrun import dist_info

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
"""SIGINT is Ctrl-C; SIGTERM is sent by `kill`, by schedulers and by torchrun.

Windows sends no SIGTERM; there Ctrl-Break ends a process at once, and Ctrl-C in order.
"""
REPEATED_S = 5.0
"""With several ranks, the same signal again within so many seconds counts as one signal."""


class Signals:
    """Handler of SIGINT and SIGTERM: it raises the first, or keeps it until `check` is called.

        signal                              outside of `deferred()`   inside of `deferred()`
        the first                           raised at once            raised by the next `check()`
        the same again within 5 s, several  ignored: a scheduler sent it to each rank, and torchrun
        ranks                               passes its own on, so it is one signal (both columns)
        any other one after the first       kills the children, exits with 128 + number (both)

    Attributes:
        received: number of the first signal; None: no signal yet. A rank may also set it, to stop
            for a signal that another rank has received.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._deferring = False
        self._received_at = 0.0

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Let a save, a step or a batch end before a signal is raised.

        The block raises nothing by itself: call `check` after it.

        Raises:
            KeyboardInterrupt, SystemExit: as `check`, before the block begins.
        """
        self.check()
        self._deferring = True
        try:
            yield
        finally:
            self._deferring = False

    @contextmanager
    def raised(self) -> Iterator[None]:
        """Raise a signal at once again, inside of `deferred()`: all is saved, and work is long.

        Raises:
            KeyboardInterrupt, SystemExit: as `check`; also before the block begins.
        """
        self.check()
        deferring, self._deferring = self._deferring, False
        try:
            yield
        finally:
            self._deferring = deferring

    def check(self) -> None:
        """Raise the signal that was received, if any.

        That is a deferred one, or one that Python lost: where a handler raises in a destructor or
        in a callback from C, Python prints the exception and drops it.

        Raises:
            KeyboardInterrupt: SIGINT was received.
            SystemExit: SIGTERM was received; the exit code is 143.
        """
        if self.received == signal.SIGINT:
            raise KeyboardInterrupt
        if self.received is not None:
            raise SystemExit(128 + self.received)

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Handle one signal; `signal.signal` installs this method."""
        if self.received == number and self._is_repeat():
            return
        if self.received is not None:
            kill_children()
            os._exit(128 + number)
        self.received = number
        self._received_at = time.monotonic()
        if not self._deferring:
            self.check()

    def _is_repeat(self) -> bool:
        """Return whether a rank got one signal twice: from its sender, and from torchrun."""
        return dist_info().size > 1 and time.monotonic() - self._received_at < REPEATED_S


def kill_children() -> None:
    """Kill the processes that `multiprocessing` has started from this one."""
    if hasattr(signal, "SIGCHLD"):  # Windows tells nobody of the end of a child
        # torch's handler of SIGCHLD would raise an error for each worker that is killed.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for child in multiprocessing.active_children():
        child.kill()


@contextmanager
def catch_signals() -> Iterator[Signals]:
    """Handle SIGINT and SIGTERM inside the block.

    A signal that is ignored (by `nohup`), or that has another handler, keeps its handler. Inside
    of another `catch_signals` block it yields the Signals of that block. Python lets the main
    thread alone handle signals: in another one none is handled.
    """
    defaults = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    for outer in (getattr(signal.getsignal(n), "__self__", None) for n in defaults):
        if isinstance(outer, Signals):
            yield outer
            return
    signals = Signals()
    is_main = threading.current_thread() is threading.main_thread()
    handled = defaults if is_main else {}
    replaced = {n: handler for n, handler in handled.items() if signal.getsignal(n) == handler}
    for number in replaced:
        signal.signal(number, signals.handle)
    try:
        yield signals
    finally:
        for number, handler in replaced.items():
            signal.signal(number, handler)


@contextmanager
def blocked_signals() -> Iterator[None]:
    """Hold SIGINT and SIGTERM back while processes are started; they arrive after the block.

    A new process inherits that they are blocked. Without this, a signal could end it before it
    ignores signals. Windows blocks no signals: there the block is as any other code.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
