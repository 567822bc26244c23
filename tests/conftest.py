"""Small real pictures and runs, and the account of what is promised, shared by the tests."""

import atexit
import functools
import gc
import importlib
import io
import json
import multiprocessing
import os
import platform
import shutil
import signal
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import NoReturn

import demo_data
import pytest
import torch
import typer.main

if not torch.cuda.is_available():  # before triton is imported: its kernels are then interpreted
    os.environ["TRITON_INTERPRET"] = "1"

os.environ["HF_HUB_OFFLINE"] = "1"  # before timm is imported: its hub is never asked

from faults import children  # before the tagger: it registers the tiny network

from mlfinetune.cli import main
from mlfinetune.runtime import loading
from mlfinetune.runtime.device import count_cores
from mlfinetune.runtime.log import RunLog
from mlfinetune.storage.cache import _reported
from mlfinetune.workflows import export

if START := os.environ.get("MLFINETUNE_TEST_START"):  # `make test-spawn` sets it
    multiprocessing.set_start_method(START, force=True)  # a worker of a test imports this too

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    # Started in the background by a shell: processes would inherit it, and not hear Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)

ENVIRONMENT = {"NO_COLOR": "1", "COLUMNS": "100"}
TINY = """\
data:
  train: tags.csv
model:
  backbone: resnet6_tiny
  levels: 1
  weights: null
  image_size: 64
augment:
  crop_scale: [1.0, 1.0]
train:
  epochs: 1
  batch_size: 8
  lr: 1e-3
  precision: float32
  workers: 0
"""
"""Runs of half a second: in this process, in `run_child` and by COMMAND."""

COMMAND = (sys.executable, str(Path(__file__).with_name("command.py")))
"""`mlfinetune` as a new process that knows the tiny network."""

LONGEST = (
    "test_pages",  # the demo takes minutes
    "distributed/test_failure",
    "faults/test_kill",
    "data/batches/test_workers",
    "test_systems",
    "training/test_large_head",
    "data/images/test_hostile",
    "report/test_browser",
    "storage/test_cache",
)
"""Files with tests of more than five seconds."""

Run = Callable[..., subprocess.CompletedProcess[str]]
Promise = Callable[[str, int, Collection[object]], None]

FULL = os.environ.get("MLFINETUNE_FAULTS") == "full"
"""`make test-faults`: as many trials as the table of docs/reliability.md says."""
PROMISES = 20
FAULTS = Path(__file__).parents[1] / "benchmarks" / "results" / "faults.json"


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Use a cache folder of the tests' own."""
    os.environ["MLFINETUNE_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session", autouse=True)
def lasting() -> Iterator[None]:
    """Make once what each new process makes: a million objects of modules, the command line.

    The collector would look through the modules again and again, a quarter of the time of tiny
    runs; commands in this process import nothing, and do not hand them back to it.
    """
    importlib.import_module("hypothesis")  # it asks the collector for what refers to its numbers
    gc.freeze()
    atexit.register(gc.unfreeze)  # some modules then look whether all of theirs is freed
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loading, "loading_modules", nullcontext)
        patch.setattr(typer.main, "get_command", functools.cache(typer.main.get_command))
        yield


@pytest.fixture(autouse=True)
def unreported() -> None:
    """Let each test hear of a cache that cannot be used; a process tells it once."""
    _reported.clear()


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Return a folder with tags.csv, images/ (24 drawn pictures of 32 px) and pets.yaml."""
    return prepare(tmp_path)


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a finished tiny run: pets.yaml, tags.csv, images/ and runs/pets/."""
    folder = prepare(tmp_path_factory.mktemp("trained"))
    done = run_child("train", "pets.yaml", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a tiny run with its pets.onnx: calibrated, mirror views, a hierarchy."""
    folder = prepare(tmp_path_factory.mktemp("exported"))
    settings = ["eval.calibration=platt", "eval.views=mirror", "data.val_fraction=0.5"]
    settings.append("data.implies={dots: red, checks: [dots]}")
    done = run_child("train", "pets.yaml", "train.epochs=8", *settings, cwd=folder)
    assert done.returncode == 0, done.stderr
    export.run(export.ExportRequest(folder / "runs/pets", folder / "pets.onnx"), RunLog())
    return folder


@pytest.fixture
def process() -> Run:
    """`python -m mlfinetune ...`: process(*arguments, cwd=, **environment)."""
    return run_process


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """Return a function that runs the command in this process, by the script's own `main`."""

    def run(
        *arguments: str, cwd: Path, stdin: str = "", **environment: str
    ) -> subprocess.CompletedProcess[str]:
        capfd.readouterr()
        with monkeypatch.context() as patch:
            patch.chdir(cwd)
            patch.setattr("sys.argv", ["mlfinetune", *arguments])
            patch.setattr("sys.stdin", io.StringIO(stdin))
            for name, value in {**ENVIRONMENT, **environment}.items():
                patch.setenv(name, value)
            with pytest.raises(SystemExit) as exit:
                main()
        out, err = capfd.readouterr()
        return subprocess.CompletedProcess(arguments, int(exit.value.code or 0), out, err)

    return run


@pytest.fixture
def promise(record_property: Callable[[str, object], None]) -> Promise:
    """promise("P4", trials, failures): count the trials of a promise; fail if a trial failed."""

    def check(name: str, trials: int, failures: Collection[object]) -> None:
        assert trials > 0
        record_property("promise", (name, trials, len(failures)))
        assert not failures, f"{name}: {len(failures)} of {trials} trials failed: {failures}"

    return check


def lacking(
    what: str, required: bool = os.environ.get("MLFINETUNE_TOOLS") == "required"
) -> NoReturn:
    """Skip a test for what this machine lacks, with the reason; fail it where it is required.

    `make test-faults` requires every trial.
    """
    if required or FULL:
        pytest.fail(what)
    # What is lacking is a program or a right of this machine, and no fault of the code: `make test`
    # is for people without root too, who would else never see it pass. It installs the programs
    # where it can. .ci/run sets MLFINETUNE_TOOLS=required, and `make test-faults` asks for all of
    # it: both fail above. A skip is listed with its reason at the end (-ra).
    pytest.skip(what)


def prepare(folder: Path, count: int = 24) -> Path:
    """Draw pictures (24, or another number) into `folder`, with tags.csv and pets.yaml."""
    demo_data.write(folder, count=count, size=32)
    (folder / "pets.yaml").write_text(TINY)
    return folder


def run_process(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `python -m mlfinetune ...` as a user starts it; it does not know the tiny network."""
    return run_command([sys.executable, "-m", "mlfinetune", *arguments], cwd, **environment)


def run_command(
    command: list[str], cwd: Path, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run a command without standard input; return its exit code and what it wrote."""
    return subprocess.run(
        command,
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        env={**os.environ, **ENVIRONMENT, **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )


def run_child(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `mlfinetune ...` in a process forked after all imports, which saves seconds."""
    children.prepare_server()
    child = children.start(*arguments, cwd=cwd, **environment)
    done = subprocess.CompletedProcess(arguments, child.wait(), child.out, child.said)
    shutil.rmtree(cwd / "said")
    return done


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Return two workers more than cores: tests wait, as for the disk and for processes."""
    return count_cores() + 2


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest tests first in the share of each process: none is left for the end.

    A share is a part of the list, and is taken from its end by a process that has no tests left.
    """
    processes = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    shares: list[list[pytest.Item]] = [[] for _ in range(processes)]
    for number, name in enumerate(LONGEST):
        part = shares[number % processes]
        part += [item for item in items if item.nodeid.startswith(f"tests/{name}.py::")]
    placed = {item.nodeid for part in shares for item in part}
    others = [item for item in items if item.nodeid not in placed]
    for number, part in enumerate(shares):
        end = len(items) * (number + 1) // processes - len(items) * number // processes
        taken = max(0, end - len(part))
        part += others[:taken]
        others = others[taken:]
    items[:] = [*(item for part in shares for item in part), *others]


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip GPU tests without a GPU; `make gpu-check` runs only them."""
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        # Without a device there is nothing to test; `make gpu-check` fails there, it skips nothing.
        pytest.skip("no CUDA device")


ACCOUNT: dict[str, list[tuple[str, int, int]]] = defaultdict(list)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Collect the trials of promises from a test's report."""
    if report.when == "call":
        for key, value in report.user_properties:
            if key == "promise":
                name, trials, failures = value
                ACCOUNT[name].append((report.nodeid, trials, failures))


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Write the account of a full run, one row a promise."""
    everything = len(ACCOUNT) == PROMISES and not session.config.option.keyword
    if not FULL or not everything or hasattr(session.config, "workerinput"):
        return
    rows = {
        name: {
            "trials": sum(trials for _, trials, _ in found),
            "failures": sum(failures for *_, failures in found),
            "tests": sorted(node for node, *_ in found),
        }
        for name, found in sorted(ACCOUNT.items(), key=lambda item: int(item[0][1:]))
    }
    about = {"torch": torch.__version__, "cpu": platform.machine(), "cores": os.cpu_count()}
    FAULTS.write_text(json.dumps({"about": about, "promises": rows}, indent=1) + "\n")
