"""Short measurements, and the choices that follow from them; knows no model and no config.

act, act, ...  -> pace          -> images a second
fits(size)     -> largest_power -> a batch size
rate(size)     -> best_size     -> a batch size
Speeds, Work   -> times, bound, suggestion
"""

import math
import time
from collections.abc import Callable, Sequence
from statistics import median

MAX_CALLS = 50
"""Calls that are timed at most."""
MIN_EPOCH_STEPS = 20
"""A batch size that is chosen leaves an epoch so many steps."""
MIN_BATCH = 8
"""It is no smaller than this, however small the data: BatchNorm learns from the batch."""
PREFERRED_BATCH = 32
MIN_SPEEDUP = 0.05
"""A batch size this much faster than PREFERRED is worth leaving it."""
WORKER_MARGIN = 1.5
"""Decoding processes slow each other down: they share caches, memory and hyper-threads."""


# ---- measuring --------------------------------------------------------------------------


def time_rate(
    act: Callable[[], int], seconds: float, settle: Callable[[], None] = lambda: None
) -> float:
    """Images a second: the median of at least three calls, after one that warms up.

    Args:
        act: does the work once, and returns its number of images.
        seconds: the calls go on for so long, or until there are CALLS of them.
        settle: waits for work that the call has only begun.
    """
    act()
    settle()
    rates: list[float] = []
    started = before = time.perf_counter()
    while len(rates) < 3 or (before - started < seconds and len(rates) < MAX_CALLS):
        images = act()
        settle()
        now = time.perf_counter()
        rates.append(images / max(now - before, 1e-9))
        before = now
    return median(rates)


def compare_rates(
    sizes: Sequence[int], step: Callable[[int], int], settle: Callable[[], None]
) -> dict[int, float]:
    """Images a second of each batch size, in turns, so that a busy moment hits all of them.

    Args:
        sizes: to try.
        step: works on so many images, and returns their number.
        settle: as in `pace`.
    """
    for size in sizes:
        step(size)
    found: dict[int, list[float]] = {size: [] for size in sizes}
    for _ in range(3):
        for size in sizes:
            settle()
            before = time.perf_counter()
            step(size)
            settle()
            found[size].append(size / max(time.perf_counter() - before, 1e-9))
    return {size: median(each) for size, each in found.items()}


# ---- batch size and processes -----------------------------------------------------------


def largest_batch_size(images: int, top: int) -> int:
    """The largest power of two up to `top` that leaves an epoch of `images` STEPS_AN_EPOCH steps.

    LEAST where that would be smaller.
    """
    return max(MIN_BATCH, min(top, _power_of_two(images // MIN_EPOCH_STEPS)))


def find_largest_power(fits: Callable[[int], bool], start: int, top: int) -> int:
    """The largest power of two up to `top` that fits, from `start` upwards, else downwards.

    Args:
        fits: is asked once a size, and never for a size above one that does not fit.
        start, top: powers of two, start <= top.

    Returns:
        0 where not even 1 fits.
    """
    size = start
    if fits(size):
        while size < top and fits(2 * size):
            size *= 2
        return size
    while size > 1:
        size //= 2
        if fits(size):
            return size
    return 0


def choose_fastest_size(rates: dict[int, float]) -> int:
    """The batch size of the most images a second; PREFERRED where that is hardly slower.

    Where PREFERRED was not measured the largest size below it stands for it.
    """
    preferred = max(size for size in rates if size <= PREFERRED_BATCH)
    fastest = max(rates, key=lambda size: rates[size])
    return preferred if rates[preferred] >= (1 - MIN_SPEEDUP) * rates[fastest] else fastest


def workers_for_gpu(work: float, decoded: float, cores: int) -> int:
    """Processes that decode at least as fast as a GPU works: from 1 to `cores`.

    Args:
        work: images a second that the model takes.
        decoded: images a second of one process.
        cores: that there are.
    """
    return max(1, min(cores, math.ceil(WORKER_MARGIN * work / decoded)))


def workers_beside_cpu(work: float, decoded: float, cores: int) -> int:
    """Processes that decode as fast as the model works on the cores that they leave it.

    A picture costs `cores / work` core-seconds in the model and `1 / decoded` in a process: the
    processes' share of the cores is their number. More would only take cores from the model.

    Args:
        work: images a second of the model on all cores.
        decoded: images a second of one process.
        cores: that there are.
    """
    seconds = 1 / decoded
    return max(1, math.ceil(cores * seconds / (cores / work + seconds)))


def _power_of_two(number: int) -> int:
    """The largest power of two that is not above `number`, at least 1."""
    power: int = 2 ** (max(1, number).bit_length() - 1)
    return power


# ---- what a run's time is made of -------------------------------------------------------
