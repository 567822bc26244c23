"""The log of a command: bars on a terminal, lines elsewhere, and its files."""

import fcntl
import io
import json
import os
import struct
import termios
from datetime import datetime
from pathlib import Path

import pytest

from mlfinetune.runtime.log import RunLog
from mlfinetune.text import format_duration


def test_a_terminal_shows_a_bar_with_loss_rate_and_time_left() -> None:
    """On a real pseudo-terminal of 90 columns; the bar is gone at the end."""
    reader, writer = os.openpty()
    fcntl.ioctl(writer, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 90, 0, 0))
    with os.fdopen(writer, "w") as terminal:
        log = RunLog(terminal)
        with log.bar("epoch 1/3", 4) as bar:
            for _ in range(2):
                bar.update(2, "loss 0.123")
            bar._tqdm.refresh()
        log.say("done")
        terminal.flush()
        raw = b""
        while b"done" not in raw:  # a terminal gives what it has so far
            raw += os.read(reader, 65536)
        text = raw.decode()
    os.close(reader)
    assert "4/4" in text
    assert "images/s, loss 0.123]" in text
    assert text.rstrip().endswith("done")


def test_a_pipe_gets_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    """No carriage returns: a line with count, rate and time left every few seconds."""
    monkeypatch.setattr("mlfinetune.runtime.log.PLAIN_INTERVAL_S", 0.0)
    stream = io.StringIO()
    with RunLog(stream).bar("epoch 1/3", 4) as bar:
        bar.update(2, "loss 0.123")
    line = stream.getvalue()
    assert line.startswith("epoch 1/3: 2/4 images, ")
    assert line.endswith(" left, loss 0.123\n")
    assert "\r" not in line


def test_a_bar_that_is_not_shown_still_counts() -> None:
    """A bar is hidden if rows go to the same screen."""
    stream = io.StringIO()
    with RunLog(stream).bar("predict", None, shown=False) as bar:
        bar.update(3)
    assert (bar.done, stream.getvalue()) == (3, "")


def test_what_was_said_before_the_run_had_a_folder_is_kept(tmp_path: Path) -> None:
    """train.log holds every line, with its time; metrics.jsonl a record a line, with seconds."""
    log = RunLog(io.StringIO())
    log.say("early")
    log.attach_run(tmp_path / "train.log", tmp_path / "metrics.jsonl")
    log.say("late")
    log.log_epoch({"epoch": 1, "mAP": None})
    lines = (tmp_path / "train.log").read_text().splitlines()
    times = [datetime.fromisoformat(line[:19]) for line in lines]
    assert times[0] <= times[1] <= datetime.now()
    assert [line[19:] for line in lines] == ["  early", "  late"]
    record = json.loads((tmp_path / "metrics.jsonl").read_text())
    assert record == {"epoch": 1, "mAP": None, "seconds": pytest.approx(0, abs=5)}


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (75, "1:15"), (3675.4, "1:01:15")])
def test_clock(seconds: float, text: str) -> None:
    """Durations are minutes and seconds, with hours if there are some."""
    assert format_duration(seconds) == text


def test_a_name_in_a_line_moves_no_cursor(tmp_path: Path) -> None:
    """On the screen and in train.log."""
    stream = io.StringIO()
    log = RunLog(stream)
    log.attach_run(tmp_path / "train.log", tmp_path / "metrics.jsonl")
    log.say("warning: \x1b[2Jcat\r.jpg:\n  gone")
    for text in (stream.getvalue(), (tmp_path / "train.log").read_text()[21:]):
        assert text == "warning: \ufffd[2Jcat\ufffd.jpg:\n  gone\n"


def test_hushed_lines_are_left_out_and_warnings_are_not(tmp_path: Path) -> None:
    """On the screen and in the file."""
    stream = io.StringIO()
    log = RunLog(stream)
    log.attach_run(tmp_path / "train.log", tmp_path / "metrics.jsonl")
    with log.hushed():
        log.say("l2 0.1, 30 iterations")
        log.say("warning: cat.jpg has changed")
        log.say("warning: cat.jpg has changed")
    log.say("epoch 1/3")
    assert stream.getvalue() == "warning: cat.jpg has changed\nepoch 1/3\n"
    lines = (tmp_path / "train.log").read_text().splitlines()
    assert [line[21:] for line in lines] == stream.getvalue().splitlines()


def test_one_of_several_processes_speaks_for_all() -> None:
    """Its own warnings once; those of others with their number, the rest of theirs not at all."""
    stream, other = io.StringIO(), io.StringIO()
    first, second = RunLog(stream), RunLog(other, rank=1)
    for log in (first, second):
        log.say("read 24 images")
        log.say("warning: copies in train and in val")
    second.say("warning: a damaged file was deleted")
    with second.bar("epoch 1/3", 4) as bar:
        bar.update(4)
    first.repeat_warnings([first.take_warnings(), second.take_warnings()])
    assert other.getvalue() == ""
    assert second.take_warnings() == []
    assert stream.getvalue().splitlines() == [
        "read 24 images",
        "warning: copies in train and in val",
        "warning: process 1: a damaged file was deleted",
    ]
