"""Cores and memory are what the system says, or unknown."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mlfinetune.runtime import machine


def test_the_memory_is_that_of_the_system() -> None:
    """In bytes: what this process has had is less than what the machine has."""
    everything = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert 2**20 < machine.read_peak_resident() < everything
    assert 2**20 < machine.read_available_memory() <= everything


@pytest.mark.parametrize("text", ["", "MemTotal: 1 kB\n", "MemAvailable: some kB\n"])
def test_without_the_kernels_word_half_the_memory_is_free(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """macOS has no such file, a kernel older than 3.14 no such line."""
    half = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    monkeypatch.setattr(machine, "_MEMINFO", tmp_path / "meminfo")
    assert machine.read_available_memory() == half
    (tmp_path / "meminfo").write_text(text)
    assert machine.read_available_memory() == half


BARE = """\
import os, sys
sys.modules["resource"] = None
del os.sched_getaffinity
from mlfinetune.runtime import machine
assert machine.read_peak_resident() == 0
if not hasattr(os, "process_cpu_count"):
    assert machine.count_process_cores() == os.cpu_count()
sys.platform = "win32"
assert machine.read_available_memory() == 0
"""


def test_a_system_may_tell_nothing() -> None:
    """macOS has no affinity, Windows no `resource`; here Windows's kernel is missing too."""
    subprocess.run([sys.executable, "-c", BARE], check=True)


def test_the_record_of_windows_has_its_size() -> None:
    """Windows compares the size with its own: 64 bytes; `available` follows load and total."""
    import ctypes

    assert ctypes.sizeof(machine._MemoryStatus) == 64
    assert machine._MemoryStatus.available.offset == 16


def test_a_gpu_is_seen_by_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """NVIDIA's or AMD's driver has made them; none counts that the environment hides."""
    monkeypatch.setattr(machine, "_DEVICES", tmp_path)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    (tmp_path / "nvidiactl").touch()
    assert not machine.has_gpu()
    (tmp_path / "nvidia3").touch()
    assert machine.has_gpu()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert not machine.has_gpu()
