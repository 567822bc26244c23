"""Tables, configs and pictures of a gigabyte: refused by name, in little memory and time."""

import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from itertools import repeat
from pathlib import Path

import pytest
from conftest import FULL

SIZE = 2**30 if FULL else 2**25
MEMORY = 2 * 2**30
CHILD = """
import sys
from pathlib import Path
from mlfinetune.errors import MlfinetuneError
path = Path(sys.argv[1])
try:
    if path.suffix == ".csv":
        from mlfinetune.data.readers.csv_table import read_csv
        from mlfinetune.data.table import SourceOptions
        read_csv(path, SourceOptions())
    elif path.suffix == ".yaml":
        from mlfinetune.config import load_config
        load_config(path)
    else:
        from mlfinetune.data.images.decode import decode_image, inspect_image
        (decode_image if sys.argv[2] == "decode" else inspect_image)(path, 89_000_000)
except MlfinetuneError as error:
    print(error)
"""


def verdict(path: Path, how: str = "") -> str:
    """Return the output of a process with 2 GiB of address space for a file, which ends soon."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))

    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(path), how],
        env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        preexec_fn=limit,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.strip()


def filled(path: Path, start: str, unit: str) -> Path:
    """Return a file of SIZE bytes: `start`, then `unit` again and again."""

    def blocks() -> Iterator[str]:
        yield start
        block = unit * (2**20 // len(unit))
        yield from repeat(block, SIZE // len(block))

    with path.open("w") as file:
        file.writelines(blocks())
    return path


@pytest.mark.parametrize(
    ("start", "unit"),
    [
        ("", "a"),
        ("", "a,"),
        ("", ","),
        ("", '"'),
        ("", "\0"),
        ("image,labels\n", "a"),
        ("image,labels\n", "a,"),
        ("image,labels\n", '"a\n",'),
        ("image,labels\n", '"a\n'),
        ('image,labels\n"', "a"),
        ('image,labels\n"', "\n"),
    ],
)
def test_a_row_of_a_gigabyte_is_refused(tmp_path: Path, start: str, unit: str) -> None:
    """In one line or in many, in one cell or in millions."""
    path = filled(tmp_path / "giant.csv", start, unit)
    refused = (f"{path}, line ", f"{path}: this looks like UTF-16")  # zeros alone
    assert verdict(path).startswith(refused), unit


def test_blank_lines_are_no_row(tmp_path: Path) -> None:
    """Many of them are passed over, one by one."""
    path = tmp_path / "blank.csv"
    path.write_text("image,labels\n" + (" " * 1000 + "\r\n") * 20_000)
    assert verdict(path) == ""


@pytest.mark.parametrize("unit", ["a", "- a\n", "[", "\0", "#"])
def test_a_config_of_a_gigabyte_is_refused(tmp_path: Path, unit: str) -> None:
    """By its length, before any of it is parsed."""
    path = filled(tmp_path / "giant.yaml", "", unit)
    assert verdict(path) == f"{path}: more than 8,000,000 bytes, too large for a config"


@pytest.mark.parametrize("how", ["decode", "inspect"])
@pytest.mark.parametrize("start", [b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"II*\0"])
def test_a_picture_of_a_terabyte_is_refused(tmp_path: Path, how: str, start: bytes) -> None:
    """By its length: nothing of it is read, nor its digest taken."""
    path = tmp_path / "giant.jpg"
    path.write_bytes(start)
    os.truncate(path, 2**40)
    assert verdict(path, how) == f"{path}: 1,099,511,627,776 bytes, more than 4,294,967,296"
