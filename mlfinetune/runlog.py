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
from typing import Any, TextIO

from tqdm import tqdm

from mlfinetune import rundir
from mlfinetune.records import Batch
from mlfinetune.text import printable_lines

PLAIN_INTERVAL_S = 5.0
tqdm.monitor_interval = 0  # its thread would take signals while processes are forked


class RunLog:
    """Says things; with a run directory it also writes them down."""

    def __init__(self, stream: TextIO | None = None, rank: int = 0) -> None:
        """Of several processes that of rank 0 speaks; the others keep their warnings for it."""
        self._stream, self._speaks = stream or sys.stderr, rank == 0
        self._warnings: list[str] = []
        if rank:  # those of libraries too
            warnings.showwarning = lambda message, *_: self.say(f"warning: {_one_line(message)}")
        self.run: Path | None = None
        self._said: list[str] = []
        self._listeners: list[Callable[[int, dict[str, float]], None]] = []

    def keep_in(self, run: Path, history: str = "") -> None:
        """Write what was said so far, and what comes, to the run directory `run`.

        Its metrics.jsonl begins as `history`.

        Raises:
            CheckpointError: here and later, what comes cannot be written (a full disk).
        """
        self.run = run
        if history or (run / rundir.HISTORY).exists():
            rundir.write_atomic(run / rundir.HISTORY, history.encode())
        self._append(rundir.LOG, "".join(self._said))

    def say(self, text: str) -> None:
        """One line for the user, above any bar."""
        text = printable_lines(text)
        if not self._speaks:
            self._warnings += [text] * text.startswith("warning: ")
            return
        tqdm.write(text, file=self._stream)
        self._said.append(text + "\n")
        if self.run is not None:
            self._append(rundir.LOG, text + "\n")

    def kept_warnings(self) -> list[str]:
        """Those that were kept, each handed over once."""
        found, self._warnings = self._warnings, []
        return found

    def say_for(self, others: Sequence[Sequence[str]]) -> None:
        """The warnings of all processes, by rank, once: those that this one has not said itself."""
        for rank, kept in enumerate(others):
            for text in kept:
                line = f"warning: process {rank}: {text.removeprefix('warning: ')}"
                if not {text + "\n", line + "\n"} & set(self._said):
                    self.say(line)

    def also_to(self, write: Callable[[int, dict[str, float]], None]) -> None:
        """Give each epoch's numbers to `write` too."""
        self._listeners.append(write)

    def history(self, record: dict[str, Any]) -> None:
        """One line of metrics.jsonl, of the epoch `record["epoch"]`; None: undefined."""
        if self.run is not None:
            self._append(rundir.HISTORY, json.dumps(record) + "\n")
        numbers = {k: float(x) for k, x in record.items() if k != "epoch" and x is not None}
        for write in self._listeners:
            write(record["epoch"], numbers)

    @contextmanager
    def bar(self, what: str, total: int | None, shown: bool = True) -> Iterator["Bar"]:
        """Progress over `total` images: a bar on a terminal, else a line every few seconds.

        With `shown` false it only counts: the rows that go to the same screen tell enough.
        """
        bar = Bar(what, total, self._stream, shown and self._speaks)
        try:
            yield bar
        finally:
            bar.close()

    def _append(self, name: str, text: str) -> None:
        assert self.run is not None
        try:
            with (self.run / name).open("a", encoding="utf-8") as file:
                file.write(text)
        except OSError as error:
            raise rundir.unwritten(self.run / name, error) from error


def _one_line(message: Warning | str) -> str:
    return " ".join(str(message).split())


class Bar:
    """Counts images."""

    def __init__(self, what: str, total: int | None, stream: TextIO, shown: bool = True) -> None:
        self._shown, self._terminal = shown, shown and stream.isatty()
        self._stream, self._what, self._total = stream, what, total
        self._started = self._said = time.monotonic()
        self.done = self._before = 0
        self._tqdm = tqdm(
            total=total,
            desc=what,
            unit=" images",
            file=stream,
            leave=False,
            dynamic_ncols=True,
            miniters=1,
            disable=not self._terminal,
        )

    def update(self, images: int, note: str = "") -> None:
        """`images` more are done."""
        self.done += images
        if self._terminal:
            self._tqdm.set_postfix_str(note, refresh=False)
            self._tqdm.update(images)
        elif self._shown and time.monotonic() - self._said >= PLAIN_INTERVAL_S:
            self._said = time.monotonic()
            print(f"{self._what}: {self._line()}{note and ', ' + note}", file=self._stream)
            self._stream.flush()

    def skip(self, images: int) -> None:
        """So many were done before this bar began."""
        self._before += images
        self.done += images
        self._tqdm.update(images)

    def over(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """The batches; each is counted when the next one is asked for."""
        for batch in batches:
            yield batch
            self.update(len(batch.everyone))

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
        left = clock((self._total - self.done) / max(self.rate, 1e-9))
        return f"{self.done}/{self._total} images, {self.rate:.1f} images/s, {left} left"


def clock(seconds: float) -> str:
    """75 -> 1:15."""
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours}:{m:02}:{s:02}" if hours else f"{m}:{s:02}"


def age(seconds: float) -> str:
    """7200 -> 2 hours."""
    for unit, size in (("day", 86400), ("hour", 3600), ("minute", 60)):
        if seconds >= size:
            count = int(seconds // size)
            return f"{count} {unit}{'' if count == 1 else 's'}"
    return "just now"
