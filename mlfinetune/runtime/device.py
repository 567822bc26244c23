"""Device, precision, worker processes, memory and seeds: choices that depend on the machine."""

import ctypes
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from mlfinetune.errors import DeviceError
from mlfinetune.runtime.machine import (
    count_process_cores,
    read_available_memory,
    read_peak_resident,
)
from mlfinetune.runtime.torchrun import DistInfo, dist_info


def prepare_device(wanted: str, deterministic: bool = False) -> torch.device:
    """Choose the device, and set torch and the memory allocator up for it.

    Args:
        wanted: `auto`, `cpu`, `cuda`, `cuda:1` or `mps`; see `choose_device`.
        deterministic: use slower GPU kernels that give the same bits in every run; those of a CPU
            always do.

    Raises:
        DeviceError: as `choose_device`.
    """
    device = choose_device(wanted)
    if device.type == "cpu":
        keep_freed_memory()
    if device.type == "cuda":
        # In benchmark mode cuDNN times its kernels once for each shape; all batches but the last
        # have one shape. Its choice may differ from run to run: off for deterministic runs.
        torch.backends.cudnn.benchmark = not deterministic
        torch.use_deterministic_algorithms(deterministic)
        if deterministic:
            os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # cuBLAS reads it when it starts
    return device


def choose_rank_device(wanted: str, info: DistInfo) -> str:
    """Return the device of this rank, as text for `prepare_device`: each rank has its own GPU.

    Example: `auto` or `cuda` on a machine with 4 GPUs gives `cuda:2` to local rank 2.

    Raises:
        DeviceError: a machine has more ranks than GPUs, or one device is named for all ranks.
    """
    if info.size == 1:
        return wanted
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    if wanted == "cuda":
        count = torch.cuda.device_count()
        if info.local_rank >= count > 0:
            raise DeviceError(
                f"{info.local_size} processes on a machine with {count} GPUs: start one for each, "
                f"with torchrun --nproc-per-node {count}"
            )
        return f"cuda:{info.local_rank}"
    if wanted != "cpu":
        raise DeviceError(
            f"device '{wanted}' is a single device, but torchrun has started {info.size} "
            f"processes: leave --device out, or use --device cpu"
        )
    return wanted


def choose_device(wanted: str) -> torch.device:
    """Return the torch.device for `wanted`; `auto` takes the first GPU there is, else the CPU.

    `auto` looks for an Apple GPU (MPS), then for CUDA; no machine has both. MPS has no float64:
    code that needs it must compute that part on the CPU.

    Args:
        wanted: `auto`, `cpu`, `cuda`, `cuda:1`, `mps`.

    Raises:
        DeviceError: this machine, or this build of torch, has no such device.
    """
    if wanted == "auto":
        if torch.backends.mps.is_available():
            return torch.device("mps")
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    named = re.fullmatch(r"(cpu|mps|cuda)(?::(\d{1,9}))?", wanted, re.ASCII)
    if named is None or (named[2] and named[1] != "cuda"):
        raise DeviceError(f"device '{wanted}': wanted auto, cpu, cuda, cuda:N or mps")
    if named[1] == "cuda" and int(named[2] or 0) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        built = "built without CUDA" if torch.version.cuda is None else "built for CUDA"
        raise DeviceError(
            f"device '{wanted}': torch {torch.__version__}, {built}, sees {count} GPUs here; "
            f"look at nvidia-smi, or use --device cpu"
        )
    if named[1] == "mps" and not torch.backends.mps.is_available():
        raise DeviceError(f"device '{wanted}': no Apple GPU here; use --device cpu")
    return torch.device(wanted)


def choose_precision(wanted: str, device: torch.device) -> tuple[torch.dtype, str]:
    """Return the dtype of the backbone's arithmetic (autocast), and the reason for the log.

    Args:
        wanted: `auto`, `float32` or `bfloat16`; auto takes bfloat16 where the hardware is
            fast at it: GPUs from Ampere on, CPUs with AMX or AVX512-BF16.
        device: where the model runs.
    """
    if wanted == "bfloat16" and device.type == "mps" and not _has_bfloat16(device):
        return torch.float32, "this device has no bfloat16: before macOS 14"
    if wanted != "auto":
        return getattr(torch, wanted), "as configured"
    if device.type == "cuda":
        fast = torch.cuda.get_device_capability(device) >= (8, 0)
        return (torch.bfloat16, "the GPU is fast at it") if fast else (torch.float32, "older GPU")
    fast_flags = [flag for flag in ("amx_bf16", "avx512_bf16") if flag in read_cpu_flags()]
    if device.type == "cpu" and fast_flags:
        return torch.bfloat16, f"the CPU has {fast_flags[0]}"
    return torch.float32, "no fast bfloat16 here"


def _has_bfloat16(device: torch.device) -> bool:
    """Tell whether the device takes tensors of that type."""
    try:
        torch.zeros(1, dtype=torch.bfloat16, device=device)
    except (TypeError, RuntimeError):
        return False
    return True


def name_dtype(dtype: torch.dtype) -> str:
    """Return the name of a dtype without its module: torch.bfloat16 -> `bfloat16`."""
    return str(dtype).removeprefix("torch.")


def read_cpu_flags(cpuinfo: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """Return the CPU's features by Linux's names (`avx2`, `amx_bf16`); empty elsewhere."""
    try:
        lines = cpuinfo.read_text("utf-8", "replace").splitlines()
    except OSError:
        return frozenset()
    return frozenset(next((x.split() for x in lines if x.startswith("flags")), ()))


def choose_workers(wanted: int | str, device: torch.device) -> int:
    """Return the number of processes that decode pictures; `auto` depends on the device.

    With a GPU all cores decode, up to 16. On a CPU one process decodes: the model keeps the cores
    busy by itself.
    """
    if wanted != "auto":
        return int(wanted)
    cores = count_cores()
    if device.type == "cpu":
        return 1 if cores > 1 else 0
    return min(16, cores)


def count_cores() -> int:
    """Return the number of cores for this rank: those of the machine over its local ranks."""
    return max(1, count_process_cores() // dist_info().local_size)


def keep_freed_memory() -> None:
    """Tell glibc to keep freed memory in the process, for the next training step.

    Otherwise each step on a CPU pays for fresh pages of memory; `benchmarks/allocator.py` measures
    it. The price: freed memory stays with the process until it ends. A C library other than glibc
    is left as it is.
    """
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return
    m_trim_threshold, m_top_pad, m_mmap_threshold = -1, -2, -3  # as malloc.h numbers them
    mallopt(m_mmap_threshold, 2**30)  # blocks below 1 GiB come from the heap, which is kept
    mallopt(m_trim_threshold, 2**31 - 1)  # free memory at the heap's end is not given back
    mallopt(m_top_pad, 2**28)  # the heap grows by 256 MiB at a time


def seed_everything(seed: int) -> None:
    """Seed torch's global generators, which initialise weights."""
    torch.manual_seed(seed)


def read_peak_memory(device: torch.device) -> int:
    """Return the peak memory in bytes: allocated on the GPU, or resident in this process.

    0: unknown, without a GPU on Windows.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return read_peak_resident()


def synchronize_device(device: torch.device) -> None:
    """Wait until the device has finished all work that was queued; a CPU has no queue."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    if device.type == "mps":
        torch.mps.synchronize()


def read_free_memory(device: torch.device) -> int:
    """Return the free bytes on the GPU, or else in this machine's memory; 0: unknown."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return read_available_memory()


@contextmanager
def oom_as_device_error() -> Iterator[None]:
    """Raise a DeviceError, with what to change, where the block runs out of GPU memory."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise DeviceError(
            f"out of GPU memory ({str(error).split('.')[0]}); in training halve train.batch_size, "
            f"or keep it and set train.accumulate: 2; predict has --batch-size"
        ) from error
