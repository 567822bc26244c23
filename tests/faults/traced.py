"""What a process does to the files of its run, call by call; and its death at one of them.

Python tells its audit hooks of open and rename before they are made. fsync is none of those: it is
wrapped.
"""

import os
import resource
import signal
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.optim.optimizer import register_optimizer_step_post_hook


@dataclass(frozen=True)
class Death:
    """Where a process is to die, by its own hand: as if killed from outside, but to the call.

    Attributes:
        call: `open` before a file is made, `write` in the midst of writing it, `fsync` before it,
            `rename` before it gets its name, `fsync-folder` after.
        file: the file's name in the run directory.
        nth: the time, from 1, that it is written.
        share: of `write`, how much of the file as it was before is written by then.
    """

    call: str
    file: str
    nth: int
    share: float = 0.5


class Trace:
    """A line a call: its name, the file, and for fsync its size, for rename its name before.

    A file NAME is written as `.NAME.*.tmp`. A training step is a line too.
    """

    def __init__(self, lines: int, death: Death | None) -> None:
        self._lines, self._death = lines, death
        self._pid, self._written, self._renamed = os.getpid(), Counter[str](), ""

    def begin(self) -> None:
        """Trace the calls of this process from now on."""
        sync = os.fsync

        def fsync(file: int) -> None:
            path = Path(os.readlink(f"/proc/self/fd/{file}"))
            if path.is_dir():
                self._note("fsync-folder", path / self._renamed)
            else:
                self._note("fsync", path, str(path.stat().st_size))
            sync(file)

        os.fsync = fsync
        sys.addaudithook(self._heard)
        register_optimizer_step_post_hook(lambda *_: self._write("step"))

    def _heard(self, event: str, given: tuple[Any, ...]) -> None:
        if event == "open" and isinstance(given[1], str) and given[1][:1] in "wax":
            self._note("open", Path(str(given[0])))
        elif event == "os.rename":
            before, after = map(Path, given[:2])
            self._renamed = after.name
            self._note("rename", after, str(before))

    def _note(self, call: str, path: Path, *more: str) -> None:
        if os.getpid() != self._pid or path.parent.parent.name != "runs":
            return
        self._write("\t".join((call, str(path), *more)))
        aside = path.name.endswith(".tmp")
        name = path.name[1:].rsplit(".", 2)[0] if aside else path.name
        self._written[name] += aside and call == "open"
        death = self._death
        if death is not None and (death.file, death.nth) == (name, self._written[name]):
            if death.call == call:
                os.kill(self._pid, signal.SIGKILL)
            if (death.call, call) == ("write", "open"):
                _die_beyond(path.with_name(name), death.share)

    def _write(self, line: str) -> None:
        os.write(self._lines, f"{line}\n".encode())


def _die_beyond(path: Path, share: float) -> None:
    """Make the system kill this process in the write that makes a file larger than this."""
    size = int(share * path.stat().st_size) if path.exists() else 1
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
