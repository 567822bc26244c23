"""The choice of device, precision and number of processes, and the reasons for the log."""

import os
import sys
from pathlib import Path

import pytest
import torch

from mlfinetune.errors import DeviceError
from mlfinetune.runtime.device import (
    choose_device,
    choose_precision,
    choose_workers,
    count_cores,
    oom_as_device_error,
    prepare_device,
    read_cpu_flags,
    read_peak_memory,
    seed_everything,
)

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
GPUS = torch.cuda.device_count()


def refusal(device: str) -> str:
    """Return the message with which a device is refused."""
    with pytest.raises(DeviceError) as caught:
        choose_device(device)
    return str(caught.value)


# ---- the device -------------------------------------------------------------------------


def test_the_cpu_is_always_there() -> None:
    """`cpu` is taken by its word."""
    assert choose_device("cpu") == CPU


def test_auto_takes_the_best_there_is() -> None:
    """A GPU where torch sees one, else the CPU."""
    accelerated = "cuda" if torch.cuda.is_available() else "cpu"
    wanted = "mps" if torch.backends.mps.is_available() else accelerated
    assert choose_device("auto").type == wanted


def test_cuda_is_taken_or_refused() -> None:
    """Without a GPU the error says so, what torch sees, and what to do; with one it is taken."""
    if GPUS:
        assert choose_device("cuda").type == "cuda"
        return
    message = refusal("cuda")
    assert message.startswith("device 'cuda': torch ")
    assert torch.__version__ in message
    assert message.endswith("look at nvidia-smi, or use --device cpu")


@pytest.mark.parametrize("number", [GPUS, GPUS + 1, 127, 128, 255, 256, 999, 65536, 2**31, 10**20])
def test_a_gpu_that_is_not_there_is_refused(number: int) -> None:
    """cuda:N beyond the last one is an error, however large N is."""
    assert refusal(f"cuda:{number}").startswith(f"device 'cuda:{number}': ")


@pytest.mark.parametrize(
    "name",
    [
        *("", " ", "gpu", "CPU", "cpu ", "0", "cuda:", "cuda:x", "cuda:-1", "cuda:0:0", "cuda:0 "),
        *("meta", "xpu", "hip", "vulkan", "tpu", "cpu\0", "Auto", "autos", "mkldnn", "opengl"),
    ],
)
def test_nonsense_is_refused(name: str) -> None:
    """Other names are errors that list the ones there are; torch's own devices too."""
    assert "wanted auto, cpu, cuda, cuda:N or mps" in refusal(name)


def test_mps_is_taken_or_refused() -> None:
    """An Apple GPU is used where there is one, and else refused in words."""
    if torch.backends.mps.is_available():
        assert choose_device("mps").type == "mps"
    else:
        assert refusal("mps") == "device 'mps': no Apple GPU here; use --device cpu"


# ---- precision --------------------------------------------------------------------------


@pytest.mark.parametrize("device", [CPU, CUDA])
def test_a_configured_precision_is_taken(device: torch.device) -> None:
    """Nothing is asked of the machine where the config has decided."""
    assert choose_precision("float32", device) == (torch.float32, "as configured")
    assert choose_precision("bfloat16", device) == (torch.bfloat16, "as configured")


def test_auto_takes_bfloat16_where_the_cpu_is_fast_at_it() -> None:
    """The choice follows this CPU's flags, and says which."""
    dtype, why = choose_precision("auto", CPU)
    fast = read_cpu_flags() & {"amx_bf16", "avx512_bf16"}
    assert dtype == (torch.bfloat16 if fast else torch.float32)
    assert any(flag in why for flag in fast) or why == "no fast bfloat16 here"


def test_auto_is_float32_where_nothing_is_known() -> None:
    """An Apple GPU gets the type that is always right."""
    assert choose_precision("auto", torch.device("mps"))[0] == torch.float32


@pytest.mark.parametrize(
    ("text", "flags"),
    [
        ("processor\t: 0\nflags\t\t: fpu sse2 amx_bf16\nbugs\t: spectre\n", {"sse2", "amx_bf16"}),
        ("flags : fpu avx512_bf16\n\nprocessor : 1\nflags : fpu\n", {"fpu", "avx512_bf16"}),
        ("flags: fpu avx512_bf16x\n", {"fpu", "avx512_bf16x"}),
    ],
)
def test_flags_are_read_from_cpuinfo(tmp_path: Path, text: str, flags: set[str]) -> None:
    """The first processor's flags, whole words, and nothing of the other lines."""
    (tmp_path / "cpuinfo").write_text(text)
    found = read_cpu_flags(tmp_path / "cpuinfo")
    assert flags <= found
    assert not found & {"spectre", "processor"}
    assert ("avx512_bf16" in found) == ("avx512_bf16" in flags)


@pytest.mark.parametrize("text", ["", "processor: 0\nFeatures: fp asimd\n"])
def test_without_flags_nothing_is_known(tmp_path: Path, text: str) -> None:
    """A cpuinfo of another kind of CPU, and none at all, have no flags."""
    (tmp_path / "cpuinfo").write_text(text)
    assert read_cpu_flags(tmp_path / "cpuinfo") == frozenset()
    assert read_cpu_flags(tmp_path / "absent") == frozenset()


# ---- processes --------------------------------------------------------------------------


@pytest.mark.parametrize("device", [CPU, CUDA])
@pytest.mark.parametrize("count", [0, 1, 7])
def test_a_configured_number_of_workers_is_taken(count: int, device: torch.device) -> None:
    """The config's number is used on every device."""
    assert choose_workers(count, device) == count


def test_auto_workers_fit_the_machine() -> None:
    """One beside the model on a CPU, none where there is one core; a GPU gets up to 16."""
    cores = count_cores()
    assert choose_workers("auto", CPU) == (1 if cores > 1 else 0)
    assert choose_workers("auto", CUDA) == min(16, cores)


def test_cores_are_those_of_this_process() -> None:
    """A process that may use one core has one, and then no worker beside it."""
    if sys.platform != "linux":
        assert count_cores() == (os.cpu_count() or 1)
        return
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert (count_cores(), choose_workers("auto", CPU)) == (1, 0)
    finally:
        os.sched_setaffinity(0, before)
    assert count_cores() == len(before)


# ---- seeds and memory -------------------------------------------------------------------


def test_a_seed_repeats_the_weights() -> None:
    """One seed always gives the same random numbers, another gives others."""
    drawn = []
    for seed in (3, 3, 4):
        seed_everything(seed)
        drawn.append(torch.rand(5))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_peak_memory_is_in_bytes() -> None:
    """A Python with torch needs more than 50 MiB and less than 1 TiB."""
    assert 50 * 2**20 < read_peak_memory(CPU) < 2**40


def test_running_out_of_gpu_memory_says_what_to_change() -> None:
    """torch's error becomes one of ours, with the keys to set; others pass through."""
    advice = r"Tried to .*; in training halve train\.batch_size, or .*accumulate: 2"
    with pytest.raises(DeviceError, match=advice), oom_as_device_error():
        raise torch.OutOfMemoryError("Tried to allocate 2 GiB. GPU 0 has 1 GiB free.")
    with pytest.raises(RuntimeError, match="another"), oom_as_device_error():
        raise RuntimeError("another")


@pytest.mark.gpu
def test_deterministic_mode_is_set_and_left() -> None:
    """The one switch of torch, and no search for the fastest kernel."""
    for wanted in (True, False):
        prepare_device("cuda", wanted)
        assert torch.are_deterministic_algorithms_enabled() == wanted
        assert torch.backends.cudnn.benchmark != wanted
