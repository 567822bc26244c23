"""Worker processes under each of Python's start methods: same batches, same end."""

import ctypes
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import run_child
from faults import children

from mlfinetune.data.batches.workers import build_data_loader, start_workers
from mlfinetune.errors import LostError

METHODS = ("fork", "forkserver", "spawn")


class Stuck:
    """A dataset whose decoder never ends, and holds the interpreter's lock."""

    def __getitem__(self, path: str) -> None:
        Path(path).write_text(str(os.getpid()))
        ctypes.PyDLL(None).sleep(60)

    def __reduce__(self) -> tuple[type, tuple[()]]:
        """Be sent to a worker while signals wait, though Python's resource tracker is started."""
        assert signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, ())
        return Stuck, ()


def strand(method: str, folder: str) -> None:
    """Start two workers, wait until both are stuck, and end as by `kill -9`."""
    multiprocessing.set_start_method(method, force=True)
    paths = [Path(folder, "0"), Path(folder, "1")]
    loader = build_data_loader(Stuck(), [[str(path)] for path in paths], 2, False, list)
    workers = start_workers(loader)
    while not all(path.exists() and path.read_text() for path in paths):
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGKILL)
    del workers


@pytest.mark.parametrize("method", METHODS)
def test_a_stuck_worker_ends_with_the_main_process(tmp_path: Path, method: str) -> None:
    """Also where its parent is a fork server, which lives on."""
    children.prepare_server()
    main = children.CONTEXT.Process(target=strand, args=(method, str(tmp_path)))
    main.start()
    main.join(60)
    ended = main.exitcode
    main.kill()
    assert ended == -signal.SIGKILL
    workers = [int((tmp_path / name).read_text()) for name in "01"]
    for _ in range(500):
        alive = [worker for worker in workers if is_alive(worker)]
        if not alive:
            return
        time.sleep(0.01)
    raise AssertionError(f"left behind: {alive}")


def is_alive(process: int) -> bool:
    """Return whether a process runs; one that nobody has waited for yet does not."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(") ")[2][0] not in "ZX"
    except OSError:
        return False


@pytest.mark.parametrize("method", ["forkserver", "spawn"])
def test_a_run_is_the_same_however_workers_start(
    pictures: Path, trained: Path, method: str
) -> None:
    """Training, as macOS, Windows and Python 3.14 start workers; prediction is below."""
    start = {"MLFINETUNE_TEST_START": method}
    done = run_child("train", "pets.yaml", "train.workers=1", cwd=pictures, **start)
    assert done.returncode == 0, done.stderr
    usual, other = (
        run_child("predict", "images", "--checkpoint", "runs/pets", cwd=folder)
        for folder in (trained, pictures)
    )
    assert other.returncode == 0, other.stderr
    assert other.stdout == usual.stdout


def test_predictions_are_the_same_from_a_fork_server(trained: Path) -> None:
    """The script below predicts by workers that are spawned."""
    usual, other = (
        run_child("predict", "images", "--checkpoint", "runs/pets", cwd=trained, **start)
        for start in ({}, {"MLFINETUNE_TEST_START": "forkserver"})
    )
    assert other.returncode == 0, other.stderr
    assert other.stdout == usual.stdout


class Deadly:
    """A dataset whose decoder kills its process, as a system without memory does."""

    def __getitem__(self, key: int) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_worker_is_no_bug() -> None:
    """The message says what may have happened, and what to set."""
    with pytest.raises(LostError, match=r"killed, or out of memory\?.*train\.workers: 0"):
        list(start_workers(build_data_loader(Deadly(), [[1]], 1, False, list)))


SCRIPT = """\
import multiprocessing
from pathlib import Path
from faults import tiny
from mlfinetune.cli import main
Path("imported").open("a").write(".")
if not multiprocessing.get_start_method(allow_none=True):
    multiprocessing.set_start_method("spawn")
main()
"""


def test_a_script_that_calls_the_command_without_a_guard(trained: Path, tmp_path: Path) -> None:
    """A worker imports the script again, and the call does nothing there; the rows are the same."""
    (tmp_path / "script.py").write_text(SCRIPT)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    predict = ("predict", str(trained / "images"), "--checkpoint", str(trained / "runs/pets"))
    command = [sys.executable, "script.py", *predict]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert len((tmp_path / "imported").read_text()) > 1
    assert len(done.stdout.splitlines()) == 25
    assert done.stdout == run_child(*predict, cwd=tmp_path).stdout
