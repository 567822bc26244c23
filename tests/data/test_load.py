"""Files are told by their bytes, and each is read once."""

import hashlib
import io
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from mlfinetune.data import load
from mlfinetune.data.images.scan import scan_images
from mlfinetune.data.load import hash_files
from mlfinetune.data.manifest import Manifest
from mlfinetune.data.targets import LabelSpace, Targets
from mlfinetune.runtime.log import RunLog


def build(root: Path, names: tuple[str, ...]) -> Manifest:
    """Return examples of these names."""
    targets = Targets.pack([np.ones((len(names), 1), np.int8)], 1)
    return Manifest(root, names, targets, LabelSpace(("a",)))


def test_files_are_numbered_by_their_bytes(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In slices, in order; one that is scanned is not read; a URL and a missing one have none."""
    monkeypatch.setenv("MLFINETUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(load, "_SLICE", 3)
    names = tuple(sorted(path.name for path in (pictures / "images").iterdir()))[:8]
    files = [pictures / "images" / name for name in names]
    digests = [int(hashlib.sha256(file.read_bytes()).hexdigest()[:15], 16) for file in files]
    list(scan_images([str(file) for file in files[:2]], 10**6))
    read = []
    real = load._hash_file
    monkeypatch.setattr(load, "_hash_file", lambda path: read.append(path) or real(path))
    manifest = build(pictures / "images", (*names, "none.jpg", "https://host.invalid/a.jpg"))
    log = RunLog(io.StringIO())
    assert hash_files(manifest, range(10), log).tolist() == [*digests, -1, -1]
    assert [path for path in read if path in map(str, files)] == [str(file) for file in files[2:]]
    assert hash_files(manifest, range(1, 10, 4), log).tolist() == [digests[1], digests[5], -1]


def test_files_to_read_take_little_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two KB for each file that waits, and only a slice of them does."""
    monkeypatch.setattr(load, "_SLICE", 250)
    manifest = build(tmp_path, ("none.jpg",) * 2500)
    tracemalloc.start()
    try:
        hash_files(manifest, range(len(manifest)), RunLog(io.StringIO()))
        assert tracemalloc.get_traced_memory()[1] < 2e6
    finally:
        tracemalloc.stop()
