"""Commands in one process that lacks all that Windows lacks, as far as Linux can be made to.

python bare.py '[["check", "pets.yaml"], ...]'    ends at the first command that fails

modules, functions, signals     gone before anything of the package is imported
/proc, the C library            not there, for code of the package
folders                         cannot be opened, so not be synced
a file that is open or mapped   cannot be renamed, replaced or deleted
names with : ? * < > | "        cannot be made, nor CON, NUL, `a.` and `a `
a path below a file             is missing, and not "not a directory"
text files                      have to name their encoding

After the command ["workers"], processes that decode have what torch itself needs for them on Linux.
"""

import json
import ntpath
import os
import re
import shutil
import signal
import sys
import warnings
from pathlib import Path
from types import FrameType
from typing import Any

import mlfinetune

PACKAGE = os.path.dirname(os.path.abspath(mlfinetune.__file__))
MODULES = ("fcntl", "resource", "pwd", "grp", "termios", "tty", "pty", "syslog", "readline")
OS = (
    *("fork", "forkpty", "sched_getaffinity", "sched_setaffinity", "getuid"),
    *("geteuid", "getgid", "getgroups", "setsid", "killpg", "getpgid", "mkfifo"),
    *("chown", "fchown", "fchmod", "sysconf", "getloadavg", "pread", "pwrite", "sendfile"),
    *("O_DIRECTORY", "O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC", "posix_fallocate", "posix_fadvise"),
)
SIGNALS = (
    *("pthread_sigmask", "pthread_kill", "sigwait", "setitimer", "alarm", "SIG_BLOCK", "SIGCHLD"),
    *("SIGKILL", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2", "SIGPIPE", "SIGALRM", "SIGXFSZ"),
)
RESERVED = re.compile(r'[<>:"|?*\\\x00-\x1f]|[. ]$|^(con|prn|aux|nul|com\d|lpt\d)(\.|$)', re.I)
NEEDED = (
    (os, "fork", os.fork),
    (os, "cpu_count", os.cpu_count),
    *((signal, name, getattr(signal, name)) for name in ("SIGCHLD", "SIGKILL")),
)
PASSED_ON = ("pathlib", "ctypes", "tempfile", "shutil", "io", "os")
"""Modules that open what their caller names."""


class Windows:
    """An audit hook, which Python calls before it opens, renames or deletes a file."""

    def __init__(self) -> None:
        self._looking = False

    def __call__(self, event: str, given: tuple[Any, ...]) -> None:
        """Raise the error of Windows where there is one."""
        if self._looking:
            return
        if event == "open" and isinstance(given[0], str | bytes | os.PathLike):
            self._open(os.fsdecode(given[0]), given[1], given[2])
        elif event == "os.rename":
            self._require_free(given[0])
            self._require_free(given[1])
            require_name(given[1])
        elif event in ("os.remove", "os.rmdir"):
            self._require_free(given[0])
        elif event == "os.mkdir":
            require_name(given[0])
        elif event == "os.symlink":
            raise OSError(1314, "A required privilege is not held by the client")
        elif event == "ctypes.dlopen" and given[0] in (None, "libc.so.6") and is_ours():
            raise OSError("Could not find module")

    def _open(self, path: str, mode: str | None, flags: int) -> None:
        if path.startswith("/proc") and is_ours():
            raise FileNotFoundError(2, "The system cannot find the path specified", path)
        if flags & (os.O_WRONLY | os.O_RDWR):
            require_name(path)
        elif mode is None and os.path.isdir(path):
            raise PermissionError(13, "Permission denied", path)

    def _require_free(self, name: Any) -> None:
        """Raise PermissionError for a file that this process has open, or mapped."""
        path = os.path.realpath(os.fsdecode(name))
        self._looking = True
        try:
            mapped = Path("/proc/self/maps").read_text("utf-8", "replace")
            opened = {
                os.path.realpath(f"/proc/self/fd/{number}")
                for number in os.listdir("/proc/self/fd")
            }
        finally:
            self._looking = False
        if path in opened or f" {path}\n" in mapped:
            raise PermissionError(13, "in use by this process", path)


def require_name(path: Any) -> None:
    """Raise the error for a name that Windows keeps for itself, or cannot have."""
    base = os.path.basename(os.fsdecode(path))
    if RESERVED.search(base):
        raise OSError(22, "Invalid argument", path)


def is_ours() -> bool:
    """Return whether code of the package has made the call, itself or by Python's own modules."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        module = str(frame.f_globals.get("__name__", "")).partition(".")[0]
        if module != "__main__" and module not in PASSED_ON:
            return frame.f_code.co_filename.startswith(PACKAGE)
        frame = frame.f_back
    return False


def take_away() -> None:
    """Make this process as poor as one on Windows."""
    import ctypes  # it opens the interpreter itself

    assert ctypes.pythonapi
    for name in MODULES:
        dict.__setitem__(sys.modules, name, None)
    for holder, names in ((os, OS), (signal, SIGNALS)):
        for name in names:
            if hasattr(holder, name):
                delattr(holder, name)
    vars(shutil)["_use_fd_functions"] = False
    os.cpu_count = lambda: 1  # no worker processes: torch starts them with what is gone here
    look = os.stat

    def stat_path(path: Any, **options: Any) -> os.stat_result:
        try:
            return look(path, **options)
        except NotADirectoryError as error:
            raise FileNotFoundError(2, "The system cannot find the path specified", path) from error

    os.stat = stat_path
    warnings.filterwarnings("error", category=EncodingWarning, module="mlfinetune")
    sys.addaudithook(Windows())


def use_drives(drives: dict[str, Path]) -> None:
    """Give this process paths as Windows has them; drives["C:"] is the folder that C: stands for.

    A look at any other drive, or at a server, ends the process.
    """

    names = os.listdir

    def translate(path: Any) -> str:
        full = ntpath.abspath(ntpath.join("C:\\", os.fsdecode(path)))
        drive, rest = ntpath.splitdrive(full)
        if drive.upper() not in drives:
            print("a look at", path, file=sys.stderr)
            os._exit(9)
        found = str(drives[drive.upper()])
        for part in rest.split("\\")[1:]:  # without regard to case
            try:
                same = [name for name in names(found) if name.lower() == part.lower()]
            except NotADirectoryError as error:
                raise FileNotFoundError(2, "The system cannot find the path", path) from error
            found += "/" + (same or [part])[0]
        return found

    for name in ("stat", "lstat", "scandir", "listdir"):
        call = getattr(os, name)
        setattr(os, name, lambda path, call=call, **options: call(translate(path), **options))
    vars(os).update(path=ntpath, sep="\\", altsep="/")
    sys.modules["os.path"] = ntpath


def run(arguments: list[str]) -> int:
    """Run one command, and return its exit code."""
    from mlfinetune.cli import main

    sys.argv = ["mlfinetune", *arguments]
    try:
        main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


if __name__ == "__main__":
    take_away()
    from faults import tiny

    assert tiny.resnet6_tiny
    for command in json.loads(sys.argv[1]):
        if command == ["workers"]:
            for holder, name, value in NEEDED:
                setattr(holder, name, value)
            continue
        print("$", *command, file=sys.stderr, flush=True)
        code = run(command)
        print("exit code", code, file=sys.stderr, flush=True)
        if code:
            sys.exit(code)
