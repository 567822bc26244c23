"""Windows and macOS, as far as they can be tried on Linux: what they lack is taken away."""

import ast
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import demo_data
import numpy as np
import pytest
from bare import take_away
from conftest import ENVIRONMENT, TINY, Run

from mlfinetune.errors import CheckpointError
from mlfinetune.storage.atomic import write_atomic
from mlfinetune.storage.store import Store

ROOT = Path(__file__).parents[1]
BARE = Path(__file__).with_name("bare.py")
MODULES = sorted((ROOT / "mlfinetune").rglob("*.py"))
POSIX = {
    *("fcntl", "resource", "pwd", "grp", "termios", "tty", "pty", "syslog", "posix", "readline"),
    *("curses", "crypt", "spwd", "nis", "ossaudiodev", "_posixshmem"),
}
"""Modules that Python has not on Windows."""


def imports_at_load(tree: ast.Module) -> Iterator[str]:
    """Yield the modules that are imported when the module is, and not in a function later."""
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            yield node.module.partition(".")[0]
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            waiting += ast.iter_child_nodes(node)


def test_no_module_needs_what_windows_lacks() -> None:
    """Every command would end before it begins."""
    needed = {path.name: set(imports_at_load(ast.parse(path.read_text()))) for path in MODULES}
    assert {name: modules & POSIX for name, modules in needed.items() if modules & POSIX} == {}


def is_binary(call: ast.Call, place: int) -> bool:
    """Return whether a call of `open` names a binary mode, as its argument number `place`."""
    modes = [*call.args[place : place + 1], *(k.value for k in call.keywords if k.arg == "mode")]
    return any(isinstance(mode, ast.Constant) and "b" in str(mode.value) for mode in modes)


def vague_texts(text: str) -> Iterator[str]:
    """Yield each call that opens a text file without an encoding, or writes one without newline.

    The encoding would be the system's, cp1252 for one, and \\n would become \\r\\n on Windows.
    """
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.Call):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else ""
        name = node.func.id if isinstance(node.func, ast.Name) else name
        given = {keyword.arg for keyword in node.keywords}
        if name == "open":
            place = int(isinstance(node.func, ast.Name))
            module = ast.unparse(node.func).partition(".")[0]
            is_null = "os.devnull" in ast.unparse(node)
            if is_null or is_binary(node, place) or module in ("os", "Image", "tarfile", "gzip"):
                continue
            reads = len(node.args) <= place
            if "encoding" not in given or not (reads or "newline" in given):
                yield ast.unparse(node)
        if name == "read_text" and not node.args and "encoding" not in given:
            yield ast.unparse(node)
        if name == "write_text" and not {"encoding", "newline"} <= given:
            yield ast.unparse(node)


def test_text_files_are_the_same_bytes_everywhere() -> None:
    """UTF-8, and the line ends that the code gives."""
    assert [(path.name, call) for path in MODULES for call in vague_texts(path.read_text())] == []


@pytest.mark.parametrize(
    "text",
    [
        "open(path)",
        "path.open('w', encoding='utf-8')",
        "path.read_text()",
        "path.write_text(text, encoding='utf-8')",
        "import fcntl",
        "from resource import getrusage",
        "try:\n    import pwd\nexcept ImportError:\n    pwd = None",
    ],
)
def test_it_would_be_seen(text: str) -> None:
    assert list(vague_texts(text)) or set(imports_at_load(ast.parse(text))) & POSIX


# ---- commands -------------------------------------------------------------------------------

COMMANDS = [
    ["--help"],
    ["init", "images", "--table", "new.csv"],
    ["init", "tags.csv", "-o", "tags.yaml"],
    ["split", "tags.csv", "-o", "split.csv"],
    ["check", "pets.yaml"],
    ["train", "pets.yaml", "data.cache_images=disk", "model.image_size=32"],
    ["train", "pets.yaml", "data.cache_images=disk", "model.image_size=32", "--resume"],
    ["train", "pets.yaml", "model.freeze_backbone=true", "--dry-run"],
    ["eval", "--checkpoint", "runs/pets"],
    ["eval", "--checkpoint", "runs/pets", "--output", "again"],
    ["predict", "images", "shards/a.tar", "--checkpoint", "runs/pets", "-o", "out.csv"],
    ["predict", "images", "shards/a.tar", "--checkpoint", "runs/pets", "-o", "out.csv", "--resume"],
    ["report", "runs/pets"],
    ["compare", "runs/pets", "runs/pets"],
    ["bench", "pets.yaml", "data.cache_images=disk", "model.image_size=32"],
    ["cache", "--clear"],
    ["workers"],
    ["train", "pets.yaml", "train.workers=1"],
]


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run all commands in one process that lacks what Windows lacks; return their folder."""
    folder = tmp_path_factory.mktemp("bare here")
    demo_data.write(folder, count=24, size=96)
    (folder / "pets.yaml").write_text(TINY)
    (folder / "shards").mkdir()
    with tarfile.open(folder / "shards" / "a.tar", "w") as tar:
        tar.add(folder / "images" / "0001.png", "0001.png")
    (folder / "temporary").mkdir()
    environment = {**ENVIRONMENT, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    environment |= {"MLFINETUNE_CACHE": str(folder / "cache"), "TMPDIR": str(folder / "temporary")}
    done = subprocess.run(
        [sys.executable, "-X", "warn_default_encoding", BARE, json.dumps(COMMANDS)],
        cwd=folder,
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-5000:]
    assert done.stderr.count("exit code 0") == len(COMMANDS) - 1
    return folder


def test_all_commands_run_where_windows_has_nothing_for_them(bare: Path) -> None:
    """Each of them, with its files; nothing temporary is left."""
    run = bare / "runs" / "pets"
    for file in (
        "best.safetensors",
        "metrics.json",
        "report.html",
        "eval/report.html",
        "train.log",
    ):
        assert (run / file).is_file()
    assert sorted(path.name for path in (bare / "again").iterdir()) == sorted(
        path.name for path in (run / "eval").iterdir()
    )
    assert list((bare / "temporary").iterdir()) == []
    assert [path for path in bare.rglob("*") if path.name.endswith((".tmp", ".part"))] == []


def test_rows_and_numbers_are_those_of_linux(bare: Path, cli: Run, tmp_path: Path) -> None:
    """A picture in a tar is found too; the run's own process here predicts the same bytes."""
    shutil.copytree(bare / "images", tmp_path / "images")
    shutil.copytree(bare / "shards", tmp_path / "shards")
    run = str(bare / "runs" / "pets")
    done = cli(
        "predict", "images", "shards/a.tar", "--checkpoint", run, "-o", "out.csv", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    here, there = (folder / "out.csv" for folder in (tmp_path, bare))
    assert here.read_bytes() == there.read_bytes()
    assert b"shards/a.tar/0001.png" in here.read_bytes()


# ---- files ----------------------------------------------------------------------------------


def run_bare(work: Callable[[Path], None], folder: Path) -> None:
    """Do the work in a process forked from this one, which then lacks what Windows lacks."""
    child = multiprocessing.get_context("fork").Process(target=_work_bare, args=(work, folder))
    child.start()
    child.join(60)
    assert child.exitcode == 0


def _work_bare(work: Callable[[Path], None], folder: Path) -> None:
    take_away()
    work(folder)


def test_a_damaged_store_is_repaired_beside_its_mapped_file(tmp_path: Path) -> None:
    """Windows neither deletes nor replaces a file that is mapped; its values are kept elsewhere."""
    keys, values = np.arange(3, dtype=np.uint64), [b"one", b"two", b"three"]
    Store(tmp_path).add(keys, values)
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:-1] + b"?")

    def repair(folder: Path) -> None:
        store = Store(folder)
        store.verify(store.find(keys))
        assert store.damaged == 1
        assert (store.find(keys) == -1).all()
        store.add(keys, values)
        for opened in (store, Store(folder)):
            opened.verify(places := opened.find(keys))
            assert [bytes(opened.get(place)) for place in places.tolist()] == values

    run_bare(repair, tmp_path)
    assert [bytes(Store(tmp_path).get(place)) for place in range(3)] == values


def test_a_file_that_a_program_holds_open_is_named(tmp_path: Path) -> None:
    """A spreadsheet that shows it, for example; the file stays, and nothing lies beside it."""

    def write(folder: Path) -> None:
        with (folder / "table.csv").open("rb"):
            with pytest.raises(CheckpointError, match=r"cannot write .*table\.csv: in use"):
                write_atomic(folder / "table.csv", b"new")
            assert os.listdir(folder) == ["table.csv"]
        write_atomic(folder / "table.csv", b"newer")

    (tmp_path / "table.csv").write_bytes(b"old")
    run_bare(write, tmp_path)
    assert (tmp_path / "table.csv").read_bytes() == b"newer"
