"""Small real pictures and runs, shared by the tests."""

import io
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import demo_data
import pytest
import torch

if not torch.cuda.is_available():  # before triton is imported: its kernels are then interpreted
    os.environ["TRITON_INTERPRET"] = "1"

from mlfinetune.cli import main

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    # Started in the background by a shell: processes would inherit it, and not hear Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)

ENVIRONMENT = {"NO_COLOR": "1", "COLUMNS": "100"}
CONFIG = """\
data:
  train: tags.csv
model:
  backbone: resnet18
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

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What runs keep between them stays in the tests' own folder."""
    os.environ["MLFINETUNE_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder with tags.csv, images/ (24 drawn pictures of 32 px) and pets.yaml."""
    return prepare(tmp_path)


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished tiny run: pets.yaml, tags.csv, images/ and runs/pets/."""
    folder = prepare(tmp_path_factory.mktemp("trained"))
    done = run_process("train", "pets.yaml", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def process() -> Run:
    """`mlfinetune ...` as its own process: process(*arguments, cwd=, stdin=, **environment)."""
    return run_process


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """The same call in this process: the console script's own `main`, seconds faster."""

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


def prepare(folder: Path) -> Path:
    """Draw 24 pictures into `folder`, with tags.csv and pets.yaml."""
    demo_data.write(folder, count=24, size=32)
    (folder / "pets.yaml").write_text(CONFIG)
    return folder


def run_process(
    *arguments: str, cwd: Path, stdin: str = "", **environment: str
) -> subprocess.CompletedProcess[str]:
    """`mlfinetune ...` as its own process."""
    return subprocess.run(
        [sys.executable, "-m", "mlfinetune", *arguments],
        cwd=cwd,
        input=stdin,
        env={**os.environ, **ENVIRONMENT, **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )


def pytest_runtest_setup(item: pytest.Item) -> None:
    """GPU tests run where there is a GPU; `make gpu-check` runs them and nothing else."""
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        # Without a device there is nothing to test; `make gpu-check` fails there, it skips nothing.
        pytest.skip("no CUDA device")
