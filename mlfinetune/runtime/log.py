"""What a run says while it runs: lines and bars on standard error, train.log, metrics.jsonl.

Standard output is for results alone.
"""

import json
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO, TypeVar

from tqdm import tqdm

from mlfinetune.storage.atomic import write_atomic, write_error
from mlfinetune.text import format_duration, make_lines_printable

T = TypeVar("T")
PLAIN_INTERVAL_S = 5.0
"""Seconds between two lines of progress where there is no terminal."""
tqdm.monitor_interval = 0  # its thread would take signals while processes are forked


class RunLog:
    """The log of a command: on standard error, and in the run directory once one is attached."""

    def __init__(self, stream: TextIO | None = None, rank: int = 0) -> None:
        """Of several processes only rank 0 prints; the others keep their warnings for it."""
        self._stream, self._prints = stream or sys.stderr, rank == 0
        self._warnings: list[str] = []
        if rank:  # the warnings of libraries too
            warnings.showwarning = lambda message, *_: self.say(f"warning: {_join_lines(message)}")
        self._log_file: Path | None = None
        self._epoch_file: Path | None = None
        self._said: list[str] = []
        self._trackers: list[Callable[[int, dict[str, float]], None]] = []

    @property
    def folder(self) -> Path | None:
        """The run directory that the log is written to; None before `attach_run`."""
        return None if self._log_file is None else self._log_file.parent

    def attach_run(self, log_file: Path, epoch_file: Path, history: str = "") -> None:
        """Write to a run directory from now on, and first of all the lines said so far.

        Args:
            log_file: train.log; lines are appended.
            epoch_file: metrics.jsonl; a line an epoch is appended.
            history: the first lines of `epoch_file`, of the epochs before a run was resumed.

        Raises:
            CheckpointError: here and later, the files cannot be written (a full disk).
        """
        self._log_file, self._epoch_file = log_file, epoch_file
        if history or epoch_file.exists():
            write_atomic(epoch_file, history.encode())
        _append(log_file, "".join(self._said))

    def say(self, text: str) -> None:
        """Print one line for the user, above any bar, and write it to the log file."""
        text = make_lines_printable(text)
        if not self._prints:
            if text.startswith("warning: "):
                self._warnings.append(text)
            return
        tqdm.write(text, file=self._stream)
        self._said.append(text + "\n")
        if self._log_file is not None:
            _append(self._log_file, text + "\n")

    def take_warnings(self) -> list[str]:
        """Return the warnings that this rank has kept, and keep them no more."""
        taken, self._warnings = self._warnings, []
        return taken

    def repeat_warnings(self, by_rank: Sequence[Sequence[str]]) -> None:
        """Say the warnings of all ranks, each text once, but for those that this rank has said.

        Args:
            by_rank: what `take_warnings` returned on each rank.
        """
        for rank, taken in enumerate(by_rank):
            for text in taken:
                line = f"warning: process {rank}: {text.removeprefix('warning: ')}"
                if not {text + "\n", line + "\n"} & set(self._said):
                    self.say(line)

    def add_tracker(self, write: Callable[[int, dict[str, float]], None]) -> None:
        """Give the numbers of each epoch to `write(epoch, numbers)` too."""
        self._trackers.append(write)

    def log_epoch(self, record: dict[str, Any]) -> None:
        """Append one line to metrics.jsonl, of the epoch `record["epoch"]`; None: undefined."""
        if self._epoch_file is not None:
            _append(self._epoch_file, json.dumps(record) + "\n")
        numbers = {k: float(x) for k, x in record.items() if k != "epoch" and x is not None}
        for write in self._trackers:
            write(record["epoch"], numbers)

    @contextmanager
    def bar(self, title: str, total: int | None, shown: bool = True) -> Iterator["ProgressBar"]:
        """Progress over `total` images: a bar on a terminal, else a line every few seconds.

        With `shown` false it only counts: the rows that go to the same screen tell enough.
        """
        bar = ProgressBar(title, total, self._stream, shown and self._prints)
        try:
            yield bar
        finally:
            bar.close()


def _append(path: Path, text: str) -> None:
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise write_error(path, error) from error


def _join_lines(message: Warning | str) -> str:
    return " ".join(str(message).split())


class ProgressBar:
    """Counts images, and shows how many are done.

    Attributes:
        done: images that are done, those before this bar began among them.
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
        """Count `images` more, and show `note` beside them."""
        self.done += images
        if self._terminal:
            self._tqdm.set_postfix_str(note, refresh=False)
            self._tqdm.update(images)
        elif self._shown and time.monotonic() - self._printed >= PLAIN_INTERVAL_S:
            self._printed = time.monotonic()
            print(f"{self._title}: {self._line()}{note and ', ' + note}", file=self._stream)
            self._stream.flush()

    def start_at(self, images: int) -> None:
        """Count images that were done before this bar began; they are no part of its rate."""
        self._before += images
        self.done += images
        self._tqdm.update(images)

    def track(self, items: Iterable[T], count: Callable[[T], int]) -> Iterator[T]:
        """Yield the items; `count(item)` images are done when the next item is asked for."""
        for item in items:
            yield item
            self.update(count(item))

    def close(self) -> None:
        """Take the bar off the screen."""
        self._tqdm.close()

    @property
    def rate(self) -> float:
        """Images a second so far."""
        return (self.done - self._before) / max(time.monotonic() - self._started, 1e-9)

    def _line(self) -> str:
        if self._total is None:
            return f"{self.done} images, {self.rate:.1f} images/s"
        left = format_duration((self._total - self.done) / max(self.rate, 1e-9))
        return f"{self.done}/{self._total} images, {self.rate:.1f} images/s, {left} left"
