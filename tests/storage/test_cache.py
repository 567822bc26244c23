"""A cache that cannot be used: every command goes on without it, and says so in one line."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import COMMAND, ENVIRONMENT, Run, lacking, run_child
from PIL import Image

from mlfinetune.errors import DataError
from mlfinetune.storage.cache import make_in_cache
from mlfinetune.storage.store import Store

SAID = "warning: cache not used: "
FROZEN = ("model.freeze_backbone=true", "train.optimizer=adamw")
NOBODY = 54321
"""A user without an entry in passwd, and so without a home."""


@pytest.mark.parametrize("command", [("check",), ("train", *FROZEN)])
@pytest.mark.parametrize("name", ["MLFINETUNE_CACHE", "XDG_CACHE_HOME", "HOME"])
def test_a_file_in_place_of_the_cache(pictures: Path, command: tuple[str, ...], name: str) -> None:
    """The line has the fault, and the variable to set."""
    verb, *settings = command
    place = {"MLFINETUNE_CACHE": "", "XDG_CACHE_HOME": "", name: str(pictures / "tags.csv")}
    done = run_child(verb, "pets.yaml", *settings, cwd=pictures, **place)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count(SAID) == 1
    assert "tags.csv/" in done.stderr
    assert "Not a directory; this run takes longer; set MLFINETUNE_CACHE to" in done.stderr


def test_a_user_without_a_home(pictures: Path) -> None:
    """As in a container that runs under any number, with no HOME at all."""
    places = ("HOME", "XDG_CACHE_HOME", "MLFINETUNE_CACHE")
    own = {**os.environ, **ENVIRONMENT}
    environment = {name: value for name, value in own.items() if name not in places}
    command = [*COMMAND, "train", "pets.yaml", *FROZEN]
    if os.geteuid() == 0:
        if shutil.which("setpriv") is None:
            lacking("setpriv starts a command as another user")
        pictures.chmod(0o777)
        reads = ("--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search")
        command = ["setpriv", f"--reuid={NOBODY}", "--clear-groups", *reads, *command]
    done = subprocess.run(
        command, cwd=pictures, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count(SAID) == 1
    assert "set MLFINETUNE_CACHE to" in done.stderr


@pytest.fixture
def full(tmp_path: Path) -> Iterator[Path]:
    """Return a cache folder on a disk that has no byte left."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        lacking("a small disk can be mounted by root alone", required=False)
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize(
    ("settings", "usual"),
    [(("data.cache_images=disk",), ("data.cache_images=off",)), (FROZEN,) * 2],
)
def test_a_full_disk(
    pictures: Path, full: Path, settings: tuple[str, ...], usual: tuple[str, ...]
) -> None:
    """Neither the scan, nor features, nor small copies need it; the result is the same."""
    for path in (pictures / "images").iterdir():
        with Image.open(path) as picture:
            large = picture.convert("RGB").resize((300, 300))
        large.save(path)
    wanted = run_child("train", "pets.yaml", *usual, cwd=pictures)
    (full / "ballast").write_bytes(bytes(44_000))
    done = run_child("train", "pets.yaml", *settings, cwd=pictures, MLFINETUNE_CACHE=str(full))
    assert done.returncode == 0, done.stderr
    assert done.stderr.count(SAID) == 1
    assert done.stdout.partition("images")[2] == wanted.stdout.partition("images")[2]


def test_values_that_cannot_be_written_stay_in_memory(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Those from before are found too; the line is said once."""
    folder = tmp_path / "store"
    folder.mkdir()
    store = Store(folder)
    store.keep(np.array([1], np.uint64), [b"one"])
    shutil.rmtree(folder)
    for key, value in ((2, b"two!"), (3, b"three")):
        store.keep(np.array([key], np.uint64), [value])
    positions = store.find(np.array([3, 2, 1], np.uint64))
    assert [bytes(store.get(int(row))) for row in positions] == [b"three", b"two!", b"one"]
    assert capsys.readouterr().err.count(SAID) == 1


def test_files_that_a_run_needs_go_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A downloaded table is there until the run ends."""
    monkeypatch.setenv("MLFINETUNE_CACHE", str(tmp_path / "file"))
    (tmp_path / "file").touch()

    def make(folder: Path) -> Path:
        (folder / "table.csv").write_text("image\n")
        return folder / "table.csv"

    assert make_in_cache("tables", make).read_text() == "image\n"


def test_a_fault_of_the_data_is_none_of_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is raised at once; what cannot be written is made elsewhere."""
    monkeypatch.setenv("MLFINETUNE_CACHE", str(tmp_path))
    folders = []

    def make(folder: Path) -> Path:
        folders.append(folder)
        raise DataError("cannot read a.parquet")

    with pytest.raises(DataError, match="cannot read"):
        make_in_cache("parquet", make)
    assert folders == [tmp_path / "parquet"]
    assert capsys.readouterr().err == ""


LEAVE = """
from mlfinetune.cli import _leave
from mlfinetune.storage.cache import make_temporary_folder
print(make_temporary_folder("tables"), flush=True)
_leave(2)
"""


def test_a_process_that_leaves_at_once_leaves_no_files(tmp_path: Path) -> None:
    """One of several ranks does not wait for the others."""
    command = [sys.executable, "-c", LEAVE]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert Path(done.stdout.strip()).parents[1] == tmp_path
    assert list(tmp_path.iterdir()) == []


def test_the_list_of_what_is_kept_needs_a_home(tmp_path: Path, cli: Run) -> None:
    """`mlfinetune cache` says what to set."""
    done = cli("cache", cwd=tmp_path, MLFINETUNE_CACHE="", XDG_CACHE_HOME="", HOME="~")
    assert (done.returncode, done.stdout) == (2, "")
    assert "set MLFINETUNE_CACHE" in done.stderr
