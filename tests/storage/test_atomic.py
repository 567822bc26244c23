"""A file gets its name when it is complete, and its folder is synced where that can be done."""

import errno
import os
import re
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mlfinetune.errors import CheckpointError
from mlfinetune.storage.atomic import (
    try_writing,
    try_writing_file,
    write_atomic,
    writing_binary,
)
from mlfinetune.text import mask_secrets


def test_a_file_is_replaced_and_the_last_one_kept(tmp_path: Path) -> None:
    """With the rights that the user's umask gives."""
    path, last = tmp_path / "a", tmp_path / "b"
    for content in (b"one", b"two", b"three"):
        with writing_binary(path, keep=last) as file:
            file.write(content)
    assert (path.read_bytes(), last.read_bytes()) == (b"three", b"two")
    before = os.umask(0)
    os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~before


def test_a_drive_that_is_missing_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """As `Z:` of Windows, which has no folder above it."""
    monkeypatch.setattr(os.path, "lexists", lambda path: False)
    with pytest.raises(CheckpointError, match="cannot write into /none/runs: /none/runs: No such"):
        try_writing(Path("/none/runs"))


@pytest.mark.parametrize("url", ["s3://b/runs", "https://h/a/b?token=abc", "gs://b", "HF://b/r"])
def test_a_url_is_no_place_for_results(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A path would make a folder `s3:` of it; the message has the URL, and no secret."""
    monkeypatch.chdir(tmp_path)
    shown = re.escape(mask_secrets(url))
    for path in (Path(url), Path(url).absolute()):
        with pytest.raises(CheckpointError, match=f"cannot write {shown}: results .* as --out,"):
            try_writing(path, "--out")
        with pytest.raises(CheckpointError, match=f"cannot write {shown}: results .* as --output,"):
            try_writing_file(path)
    assert not list(tmp_path.iterdir())


def test_a_folder_with_a_colon_is_a_folder(tmp_path: Path) -> None:
    """Where somebody has made one, results go there."""
    (tmp_path / "run:").mkdir()
    try_writing(tmp_path / "run:" / "a")
    try_writing(tmp_path / "12:30" / "a")


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP])
def test_a_folder_that_cannot_be_synced_is_no_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """Some file systems of a network sync files alone."""
    sync = os.fsync

    def sync_file(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(number, os.strerror(number))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", sync_file)
    write_atomic(tmp_path / "a", b"whole")
    assert (tmp_path / "a").read_bytes() == b"whole"


def test_a_disk_that_fails_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error for people, with the file; also where only the folder's sync has failed."""

    def fail(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(CheckpointError, match=r"cannot write .*a: Input/output error"):
        write_atomic(tmp_path / "a", b"whole")


HELD = """\
import os, sys, time
denied = []
def refuse(event, given):
    if event == "os.rename" and len(denied) < 3:
        denied.append(given)
        raise PermissionError(13, "in use by a virus scanner")
sys.addaudithook(refuse)
from pathlib import Path
from mlfinetune.storage.atomic import write_atomic
write_atomic(Path(sys.argv[1]), b"new")
assert len(denied) == 3
"""


def test_a_file_in_use_for_a_moment_is_waited_for(tmp_path: Path) -> None:
    """Windows renames no file that a virus scanner looks at."""
    started = time.monotonic()
    subprocess.run([sys.executable, "-c", HELD, str(tmp_path / "a")], check=True)
    assert (tmp_path / "a").read_bytes() == b"new"
    assert time.monotonic() - started < 30
