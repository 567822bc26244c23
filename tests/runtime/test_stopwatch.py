"""Seconds of the parts of a run add up to those of the run."""

import io
import time

from mlfinetune.runtime.log import RunLog
from mlfinetune.runtime.stopwatch import Stopwatch


def test_parts_add_up() -> None:
    """A part that comes again is one number; short ones are not named."""
    started, watch = time.monotonic(), Stopwatch()
    for part in ("learning", "validation", "learning"):
        time.sleep(0.06 if part == "learning" else 0.001)
        watch.lap(part)
    assert list(watch.seconds) == ["learning", "validation"]
    assert sum(watch.seconds.values()) <= time.monotonic() - started
    assert watch.seconds["learning"] >= 0.12
    assert watch.describe() == f"{watch.seconds['learning']:.1f} learning"


def test_the_log_says_them_in_one_line() -> None:
    """With the part that ended before the log was there; nothing, where nothing took time."""
    stream, watch = io.StringIO(), Stopwatch()
    RunLog(stream, watch=watch).say_seconds()
    assert stream.getvalue() == ""
    watch.seconds["start"] = 3.14
    log = RunLog(stream, watch=watch)
    log.lap("data")
    log.say_seconds()
    assert stream.getvalue() == "seconds: 3.1 start\n"
