"""Ctrl-C and SIGTERM: the first ends a command in order, the second at once."""

import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from mlfinetune.runtime.signals import Signals, catch_signals


class Drops:
    """An object whose destructor gets the signal: Python drops what is raised there."""

    def __del__(self) -> None:
        signal.raise_signal(signal.SIGINT)


def test_an_interrupt_that_python_drops_is_raised_at_the_next_check(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Ctrl-C in a destructor must not be lost."""
    dropped: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda what: dropped.append(what.exc_type))
    with catch_signals() as signals:
        signals.check()
        Drops()
        assert dropped == [KeyboardInterrupt]
        with pytest.raises(KeyboardInterrupt):
            signals.check()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_signal_is_raised_at_once() -> None:
    """A wait for a slow disk is interrupted too; SIGTERM ends with the shell's code for it."""
    with pytest.raises(KeyboardInterrupt), catch_signals():
        signal.raise_signal(signal.SIGINT)
    with pytest.raises(SystemExit) as caught, catch_signals():
        signal.raise_signal(signal.SIGTERM)
    assert caught.value.code == 143
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_deferred_signal_waits_for_its_check() -> None:
    """A save is completed first."""
    with catch_signals() as signals:
        with signals.deferred():
            signal.raise_signal(signal.SIGTERM)
            assert signals.received == signal.SIGTERM
        with pytest.raises(SystemExit):
            signals.check()
        with pytest.raises(SystemExit), signals.deferred():
            raise AssertionError("begins nothing more")


def test_long_work_inside_of_a_deferred_block_is_ended_at_once() -> None:
    """A signal that came before does not let it begin; after it signals are deferred again."""
    with catch_signals() as signals, signals.deferred():
        with signals.raised():
            pass
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(SystemExit), signals.raised():
            raise AssertionError("begins nothing more")
    signals = Signals()
    with signals.deferred(), signals.raised(), pytest.raises(KeyboardInterrupt):
        signals.handle(signal.SIGINT, None)


def runs(process: int) -> bool:
    """Return whether the process runs, and is no zombie."""
    try:
        return " Z " not in Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return False


def test_a_second_signal_ends_the_process_and_its_workers_at_once() -> None:
    """Even inside of a deferred block."""
    code = (
        "import multiprocessing, signal, time\n"
        "from mlfinetune.runtime.signals import Signals, catch_signals\n"
        "child = multiprocessing.get_context('fork').Process(target=time.sleep, args=(60,))\n"
        "child.start()\n"
        "with catch_signals() as signals, signals.deferred():\n"
        "    print(child.pid, flush=True)\n"
        "    signal.raise_signal(signal.SIGTERM)\n"
        "    signal.raise_signal(signal.SIGINT)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 130, done.stderr
    until = time.monotonic() + 20
    while runs(int(done.stdout)):
        assert time.monotonic() < until
        time.sleep(0.05)


def test_an_ignored_ctrl_c_stays_ignored() -> None:
    """`nohup` and a shell's background jobs mean it."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with catch_signals() as signals:
            signal.raise_signal(signal.SIGINT)
            signals.check()
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_inside_of_another_it_is_the_same_one() -> None:
    """A workflow defers the signals that the command line catches."""
    with catch_signals() as outer:
        with catch_signals() as inner:
            assert inner is outer
        assert signal.getsignal(signal.SIGTERM) == outer.handle


def test_a_thread_handles_no_signals() -> None:
    """Python lets the main thread alone do it; a command in another one runs without."""
    ran: list[object] = []

    def work() -> None:
        with catch_signals() as signals, signals.deferred():
            ran.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert ran == [signal.SIG_DFL]
