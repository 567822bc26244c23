"""Every file of a run is on the disk before it gets its name, and its name is before all else."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import Promise, lacking

from faults.conftest import Ground
from mlfinetune.runs import directory

pytestmark = pytest.mark.faults

APPENDED = {directory.LOG, directory.HISTORY, directory.LOCK}
"""Files that grow: what they end with does not matter to a run that goes on."""


def test_each_save_syncs_renames_and_syncs_the_folder(ground: Ground, promise: Promise) -> None:
    """write, fsync(file), rename, fsync(folder), for all that the undisturbed run has written."""
    calls = [call for call in ground.calls if call != ["step"]]
    calls = [call for call in calls if Path(call[1]).name not in APPENDED]
    failures, renamed = [], set()
    for at, (call, path, *more) in enumerate(calls):
        name = Path(path).name
        if call != "rename" or name == directory.PREVIOUS_STATE:
            continue
        renamed.add(name)
        before = [one for one in calls[:at] if Path(one[1]).name != directory.PREVIOUS_STATE]
        if [one[:2] for one in before[-2:]] != [["open", more[0]], ["fsync", more[0]]]:
            failures.append(f"{name}: {before[-2:]} before the rename")
        if calls[at + 1 : at + 2] != [["fsync-folder", path]]:
            failures.append(f"{name}: {calls[at + 1 : at + 2]} after the rename")
    left = {path.name for path in ground.run("undisturbed").iterdir() if path.is_file()}
    failures += [f"{name} is written in place" for name in sorted(left - renamed - APPENDED)]
    promise("P2", sum(call[0] == "rename" for call in calls), failures)


def test_nothing_is_written_after_the_sync(ground: Ground, promise: Promise) -> None:
    """What is synced is the whole file: its size is the size that is left."""
    sizes = {Path(call[1]).name[1:].rsplit(".", 2)[0]: call[2] for call in synced(ground)}
    run = ground.run("undisturbed")
    failures = [
        name
        for name, size in sizes.items()
        if (run / name).exists() and (run / name).stat().st_size != int(size)
    ]
    promise("P2", len(sizes), failures)


def synced(ground: Ground) -> list[list[str]]:
    """Return the calls of fsync on files, in order."""
    return [call for call in ground.calls if call[0] == "fsync"]


SAVES = """
import sys, torch
from pathlib import Path
from mlfinetune.runs import directory
from mlfinetune.runs.state import write_state
from mlfinetune.storage import atomic
run = Path(sys.argv[1])
for number in range(3):
    write_state(run / directory.STATE, run / directory.PREVIOUS_STATE, {"a": torch.ones(9)})
atomic.write_atomic(run / directory.METRICS, b"{}")
with atomic.writing_text(run / directory.PREDICTIONS) as file:
    file.write("image,labels\\n")
"""


def test_the_system_sees_the_same_order(tmp_path: Path, promise: Promise) -> None:
    """Asked of the kernel: the last write, fsync of that file, its rename, fsync of the folder."""
    if shutil.which("strace") is None:
        # A second witness: the tests above have seen every save of a run from within Python.
        lacking("no strace: apt-get install strace")
    log = tmp_path / "calls"
    watched = "trace=write,pwrite64,fsync,rename,renameat,renameat2"
    # By a filter in the kernel, or every call of the imports would be stopped at.
    traced = ["strace", "-f", "--seccomp-bpf", "-y", "-e", watched, "-o", str(log)]
    command = [*traced, sys.executable, "-c", SAVES]
    run = tmp_path / "run"
    run.mkdir()
    subprocess.run([*command, str(run)], check=True, timeout=300)
    found = []
    for line in log.read_text().splitlines():
        if aside := re.search(r" (p?write)\w*\(\d+<(/[^>]*\.tmp)>| (fsync)\(\d+<(/[^>]*)>", line):
            found.append((aside[1] or aside[3], aside[2] or aside[4]))
        moved = re.search(r' rename\w*\(.*?"(/[^"]*)".*?"(/[^"]*)"', line)
        if moved and not moved[2].endswith(directory.PREVIOUS_STATE):
            found.append(("rename", moved[1]))
    saves = [at for at, (call, _) in enumerate(found) if call == "rename"]
    failures = []
    for at in saves:
        aside = found[at][1]
        wanted = [("write", aside), ("fsync", aside), ("rename", aside), ("fsync", str(run))]
        if found[at - 2 : at + 2] != wanted:
            failures.append(found[at - 2 : at + 2])
    assert len(saves) == 5
    promise("P2", len(saves), failures)
