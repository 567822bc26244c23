"""Warnings are off for as long as any thread wants them off, and then as before."""

import threading
import warnings

from mlfinetune.runtime.quiet import unwarned


def test_threads_that_overlap_leave_the_filters_as_they_were() -> None:
    """The first to enter is the first to leave: `catch_warnings` would leave all ignored."""
    before = warnings.filters[:]
    entered, left = threading.Event(), threading.Event()

    def stay() -> None:
        with unwarned:
            entered.set()
            left.wait(30)
            warnings.warn("not shown", stacklevel=1)

    thread = threading.Thread(target=stay)
    with unwarned:
        thread.start()
        entered.wait(30)
    assert warnings.filters != before
    left.set()
    thread.join()
    assert warnings.filters == before
