"""The log of a command: lines and progress bars on standard error, train.log, metrics.jsonl.

Standard output is for results alone.
"""

import json
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, TextIO, TypeVar

from tqdm import tqdm

from mlfinetune.runtime.stopwatch import Stopwatch
from mlfinetune.storage.atomic import build_write_error, write_atomic
from mlfinetune.text import format_duration, make_lines_printable

T = TypeVar("T")
PLAIN_INTERVAL_S = 5.0
"""Seconds between two lines of progress where there is no terminal."""
tqdm.monitor_interval = 0  # no monitor thread: it would receive signals while workers are forked


class RunLog:
    """Writes lines to standard error, and to files of the run directory once one is attached."""

    def __init__(
        self, stream: TextIO | None = None, rank: int = 0, watch: Stopwatch | None = None
    ) -> None:
        """Open the log on `stream`; ranks above 0 print nothing and keep their warnings.

        Args:
            stream: None: standard error.
            rank: of this process.
            watch: runs already; None: one starts now.
        """
        self._stream = stream or sys.stderr
        self._prints = rank == 0
        self._hushed = False
        self._warnings: list[str] = []
        if rank:  # keep the warnings of libraries too
            warnings.showwarning = lambda message, *_: self.say(f"warning: {_join_lines(message)}")
        self._log_file: Path | None = None
        self._epoch_file: Path | None = None
        self._printed_lines: list[str] = []
        self._first_lines: list[str] = []
        self._epoch_began = time.monotonic()
        self._trackers: list[Callable[[int, dict[str, float]], None]] = []
        self._watch = watch or Stopwatch()

    @property
    def folder(self) -> Path | None:
        """Run directory that the log is written to; None before `attach_run`."""
        return None if self._log_file is None else self._log_file.parent

    def attach_run(self, log_file: Path, epoch_file: Path, history: str = "") -> None:
        """Write to a run directory from now on, beginning with the lines printed so far.

        Args:
            log_file: train.log; lines are appended.
            epoch_file: metrics.jsonl; one line is appended for each epoch.
            history: the first lines of `epoch_file`: the epochs before a run was resumed.

        Raises:
            CheckpointError: the files cannot be written (a full disk); `say` and `log_epoch` raise
                it too.
        """
        self._log_file, self._epoch_file = log_file, epoch_file
        if history or epoch_file.exists():
            write_atomic(epoch_file, history.encode())
        _append_text(log_file, "".join(self._first_lines))
        self._first_lines.clear()

    def say(self, text: str) -> None:
        """Print one line, above the progress bar, and append it to the log file with the time."""
        text = make_lines_printable(text)
        if not self._prints:
            if text.startswith("warning: "):
                self._warnings.append(text)
            return
        is_new_warning = text.startswith("warning: ") and text + "\n" not in self._printed_lines
        if self._hushed and not is_new_warning:
            return
        tqdm.write(text, file=self._stream)
        self._printed_lines.append(text + "\n")
        stamped = f"{datetime.now():%Y-%m-%d %H:%M:%S}  {text}\n"
        if self._log_file is None:
            self._first_lines.append(stamped)
        else:
            _append_text(self._log_file, stamped)

    @contextmanager
    def hushed(self) -> Iterator[None]:
        """Leave out all lines but warnings that are new, inside the block."""
        hushed, self._hushed = self._hushed, True
        try:
            yield
        finally:
            self._hushed = hushed

    def lap(self, part: str) -> None:
        """Count the time since the last lap to this part of the run."""
        self._watch.lap(part)

    def say_seconds(self) -> None:
        """Print the seconds of all parts: `seconds: 3.1 start, 0.2 data, 1.9 learning`."""
        if text := self._watch.describe():
            self.say(f"seconds: {text}")

    def take_warnings(self) -> list[str]:
        """Return the warnings that this rank has kept, and forget them."""
        taken, self._warnings = self._warnings, []
        return taken

    def repeat_warnings(self, by_rank: Sequence[Sequence[str]]) -> None:
        """Print the warnings of other ranks, each text once; skip those printed here before.

        Args:
            by_rank: the result of `take_warnings` on each rank.
        """
        for rank, taken in enumerate(by_rank):
            for text in taken:
                line = f"warning: process {rank}: {text.removeprefix('warning: ')}"
                if not {text + "\n", line + "\n"} & set(self._printed_lines):
                    self.say(line)

    def add_tracker(self, write: Callable[[int, dict[str, float]], None]) -> None:
        """Call `write(epoch, numbers)` after each epoch; `numbers` maps a name to its value."""
        self._trackers.append(write)

    def log_epoch(self, record: dict[str, Any]) -> None:
        """Append one line to metrics.jsonl, and give its numbers to the trackers.

        The seconds since the last one are added.

        Args:
            record: name -> number, or None where a metric is undefined; `epoch` among the names.
        """
        now = time.monotonic()
        record = {**record, "seconds": round(now - self._epoch_began, 3)}
        self._epoch_began = now
        if self._epoch_file is not None:
            _append_text(self._epoch_file, json.dumps(record) + "\n")
        numbers = {k: float(x) for k, x in record.items() if k != "epoch" and x is not None}
        for write in self._trackers:
            write(record["epoch"], numbers)

    @contextmanager
    def bar(self, title: str, total: int | None, shown: bool = True) -> Iterator["ProgressBar"]:
        """Show progress over `total` images: a bar on a terminal, else a line every 5 seconds.

        Args:
            title: text before the numbers.
            total: number of images; None: unknown.
            shown: False: only count, where rows of results go to the same screen.
        """
        bar = ProgressBar(title, total, self._stream, shown and self._prints)
        try:
            yield bar
        finally:
            bar.close()


def _append_text(path: Path, text: str) -> None:
    """Append to a file of the run directory.

    Raises:
        CheckpointError: it cannot be written.
    """
    try:
        with path.open("a", encoding="utf-8", newline="\n") as file:
            file.write(text)
    except OSError as error:
        raise build_write_error(path, error) from error


def _join_lines(message: Warning | str) -> str:
    return " ".join(str(message).split())


class ProgressBar:
    """Counts images, and shows how many are done.

    Attributes:
        done: number of images that are done, with those that were done before the bar.
    """

    def __init__(self, title: str, total: int | None, stream: TextIO, shown: bool = True) -> None:
        self._shown, self._terminal = shown, shown and stream.isatty()
        self._stream, self._title, self._total = stream, title, total
        self._started = self._printed = time.monotonic()
        self.done = self._before = 0
        self._tqdm = tqdm(
            total=total,
            desc=title,
            unit=" images",
            file=stream,
            leave=False,
            dynamic_ncols=True,
            miniters=1,
            disable=not self._terminal,
        )

    def update(self, images: int, note: str = "") -> None:
        """Add `images` to the count, and show `note` beside it."""
        self.done += images
        if self._terminal:
            self._tqdm.set_postfix_str(note, refresh=False)
            self._tqdm.update(images)
        elif self._shown and time.monotonic() - self._printed >= PLAIN_INTERVAL_S:
            self._printed = time.monotonic()
            print(
                f"{self._title}: {self._format_progress()}{note and ', ' + note}", file=self._stream
            )
            self._stream.flush()

    def start_at(self, images: int) -> None:
        """Count images that were done before the bar began; its rate does not count them."""
        self._before += images
        self.done += images
        self._tqdm.update(images)

    def track(self, items: Iterable[T], count: Callable[[T], int]) -> Iterator[T]:
        """Yield the items; count `count(item)` images when the next item is asked for."""
        for item in items:
            yield item
            self.update(count(item))

    def close(self) -> None:
        """Remove the bar from the screen."""
        self._tqdm.close()

    @property
    def rate(self) -> float:
        """Images per second so far."""
        return (self.done - self._before) / max(time.monotonic() - self._started, 1e-9)

    def _format_progress(self) -> str:
        """Return `320/1000 images, 41.3 images/s, 0:16 left`."""
        if self._total is None:
            return f"{self.done} images, {self.rate:.1f} images/s"
        left = format_duration((self._total - self.done) / max(self.rate, 1e-9))
        return f"{self.done}/{self._total} images, {self.rate:.1f} images/s, {left} left"
