"""Ctrl-C and SIGTERM: every command ends in order on the first, and at once on the second.

Whoever saves defers the first until all is saved. No torch here: the command line listens before
it is imported.
"""

import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from mlfinetune.runtime.torchrun import dist_info

REPEATED_S = 5.0
"""A signal that comes again so soon, to one of several processes, is the same one."""


class Signals:
    """Ctrl-C and SIGTERM, the first of which ends a run in order, and the second at once.

    `heard` is the first one's number. Outside of `deferred` it raises where it strikes, as Ctrl-C
    always does; inside, whoever is there asks for it, and calls `check` when all is saved.
    """

    def __init__(self) -> None:
        self.heard: int | None = None
        self._deferring, self._since = False, 0.0

    def _repeated(self) -> bool:
        """Of several processes each may get a signal from torchrun, and from who sent it to all."""
        return dist_info().size > 1 and time.monotonic() - self._since < REPEATED_S

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Nothing is raised here: a save, a step, a batch ends first."""
        self.check()
        self._deferring = True
        try:
            yield
        finally:
            self._deferring = False

    def check(self) -> None:
        """Raise what was heard, and deferred, or dropped by Python, which it prints and drops
        where it is raised in a destructor or in a callback from C.

        Raises:
            KeyboardInterrupt: on SIGINT.
            SystemExit: on SIGTERM, with 143.
        """
        if self.heard == signal.SIGINT:
            raise KeyboardInterrupt
        if self.heard is not None:
            raise SystemExit(128 + self.heard)

    def handle(self, number: int, frame: FrameType | None) -> None:
        """The handler."""
        if self.heard == number and self._repeated():
            return
        if self.heard is not None:
            kill_children()
            os._exit(128 + number)
        self.heard, self._since = number, time.monotonic()
        if not self._deferring:
            self.check()


def kill_children() -> None:
    """Kill those that this process has started, before it ends."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's raises where a worker is killed
    for child in multiprocessing.active_children():
        child.kill()


@contextmanager
def catch_signals() -> Iterator[Signals]:
    """Listen. Where a signal is ignored, as by `nohup`, or has another handler, it stays so.

    Inside of another `signals()` it is that one.
    """
    found = Signals()
    usual = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    for outer in (getattr(signal.getsignal(n), "__self__", None) for n in usual):
        if isinstance(outer, Signals):
            yield outer
            return
    before = {n: h for n, h in usual.items() if signal.getsignal(n) == h}
    for number in before:
        signal.signal(number, found.handle)
    try:
        yield found
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
