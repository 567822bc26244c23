"""Cores and memory of this machine, as each operating system tells them; no torch.

Linux has /proc, macOS and Linux have `resource` and `sysconf`, Windows has functions of its kernel.
A value that a system does not tell is 0, and its readers do without it.
"""

import ctypes
import os
import platform
import re
import shutil
import sys
from pathlib import Path

_MEMINFO = Path("/proc/meminfo")
_DEVICES = Path("/dev")


def count_process_cores() -> int:
    """Return the number of cores that this process may use: at least 1."""
    if hasattr(os, "process_cpu_count"):  # from Python 3.13 on
        return os.process_cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):  # neither Windows nor macOS has it
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def has_gpu() -> bool:
    """Tell whether a GPU seems to be here that torch can use: NVIDIA's, AMD's or Apple's.

    It takes no torch, which takes seconds to load; so it does not know for what torch was built.
    """
    if sys.platform == "darwin":
        return platform.machine() == "arm64"
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return False
    files = (*_DEVICES.glob("nvidia[0-9]*"), *_DEVICES.glob("kfd"))
    return bool(files) or shutil.which("nvidia-smi") is not None


def read_available_memory() -> int:
    """Return the bytes of memory that programs can still have; 0: unknown.

    macOS tells in a simple way only what the machine has: half of it is taken to be free.
    """
    if sys.platform == "win32":
        return _read_windows_memory()
    try:
        found = re.search(r"^MemAvailable:\s+(\d+) kB", _MEMINFO.read_text("ascii"), re.M)
        if found:
            return int(found[1]) * 1024
    except (OSError, ValueError):
        pass
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    except (AttributeError, OSError, ValueError):
        return 0


def read_peak_resident() -> int:
    """Return the most bytes of memory that this process has had; 0: unknown (Windows)."""
    try:
        import resource
    except ImportError:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # elsewhere it counts kilobytes


class _MemoryStatus(ctypes.Structure):
    """MEMORYSTATUSEX of Windows: its size in bytes, load in percent, then sizes in bytes."""

    _fields_ = (
        ("size", ctypes.c_uint32),
        ("load", ctypes.c_uint32),
        *((name, ctypes.c_uint64) for name in ("physical", "available", "page_total", "page_free")),
        *((name, ctypes.c_uint64) for name in ("virtual", "virtual_free", "extended_free")),
    )


def _read_windows_memory() -> int:
    """Return the bytes of free physical memory on Windows; 0 where it does not tell."""
    status = _MemoryStatus(size=ctypes.sizeof(_MemoryStatus))
    try:
        kernel = ctypes.CDLL("kernel32")
        done = kernel.GlobalMemoryStatusEx(ctypes.byref(status))
    except (OSError, AttributeError):
        return 0
    return int(status.available) if done else 0
