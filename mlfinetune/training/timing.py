"""Timing, and the choices that follow from measured rates. Independent of model and config.

act, act, ...  -> time_rate          -> images a second
fits(size)     -> find_largest_power -> a batch size
rates          -> choose_fastest_size, choose_workers_for_gpu, choose_workers_beside_cpu
"""

import math
import time
from collections.abc import Callable, Sequence
from statistics import median

MAX_CALLS = 50
"""Greatest number of calls that are timed."""
MIN_EPOCH_STEPS = 20
"""Least number of steps in an epoch that a chosen batch size leaves."""
MIN_BATCH = 8
"""Smallest batch size that is chosen, even for few images: BatchNorm learns from the batch."""
PREFERRED_BATCH = 32
"""Batch size that is kept where no other is clearly faster."""
MIN_SPEEDUP = 0.05
"""A batch size has to be this much faster than PREFERRED_BATCH to be chosen."""
WORKER_MARGIN = 1.5
"""Factor of spare processes: decoding processes slow each other down, because they share caches,
memory and hyper-threads."""


# ---- measuring --------------------------------------------------------------------------


def time_rate(
    act: Callable[[], int], seconds: float, settle: Callable[[], None] = lambda: None
) -> float:
    """Return images a second: the median of at least three calls, after one that warms up.

    Args:
        act: does the work once, and returns its number of images.
        seconds: calls are timed for this long, or until there are MAX_CALLS of them.
        settle: waits for work that the call has only started, as on a GPU.
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
    """Return images a second of each batch size.

    Sizes take turns in three rounds, so that a busy moment of the machine slows all of them.

    Args:
        sizes: to try.
        step: works on a batch of this size, and returns its number of images.
        settle: waits for work that the call has only started.
    """
    for size in sizes:
        step(size)
    rates: dict[int, list[float]] = {size: [] for size in sizes}
    for _ in range(3):
        for size in sizes:
            settle()
            before = time.perf_counter()
            step(size)
            settle()
            rates[size].append(size / max(time.perf_counter() - before, 1e-9))
    return {size: median(each) for size, each in rates.items()}


# ---- batch size and processes -----------------------------------------------------------


def find_largest_batch_size(images: int, top: int) -> int:
    """Return the largest power of two up to `top` that leaves an epoch MIN_EPOCH_STEPS steps.

    With top 512: 10,000 images -> 256; 1,000 -> 32; 100 -> 8, which is MIN_BATCH.

    Args:
        images: in an epoch.
        top: largest size.
    """
    return max(MIN_BATCH, min(top, _round_to_power_of_two(images // MIN_EPOCH_STEPS)))


def find_largest_power(fits: Callable[[int], bool], start: int, top: int) -> int:
    """Return the largest power of two up to `top` that fits, from `start` upwards, else downwards.

    Args:
        fits: is called once a size, and never for a size above one that does not fit.
        start, top: powers of two, start <= top.

    Returns:
        The size; 0 where not even 1 fits.
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
    """Return the fastest batch size; PREFERRED_BATCH where that is hardly slower.

    If PREFERRED_BATCH was not measured, the largest size below it stands for it.

        {16: 90, 32: 97, 64: 100} -> 32        {16: 90, 32: 90, 64: 100} -> 64

    Args:
        rates: batch size -> images a second.
    """
    preferred = max(size for size in rates if size <= PREFERRED_BATCH)
    fastest = max(rates, key=lambda size: rates[size])
    return preferred if rates[preferred] >= (1 - MIN_SPEEDUP) * rates[fastest] else fastest


def choose_workers_for_gpu(work: float, decoded: float, cores: int) -> int:
    """Return how many processes decode at least as fast as a GPU works: from 1 to `cores`.

    Work 800, decoded 100, WORKER_MARGIN 1.5: 12 processes on 16 cores, 8 on 8 cores.

    Args:
        work: images a second that the model takes.
        decoded: images a second that one process decodes.
        cores: number of CPU cores.
    """
    return max(1, min(cores, math.ceil(WORKER_MARGIN * work / decoded)))


def choose_workers_beside_cpu(work: float, decoded: float, cores: int) -> int:
    """Return how many processes decode as fast as the model works on the remaining cores.

    A picture costs `cores / work` core-seconds in the model, and `1 / decoded` in a process. Cores
    are divided in the ratio of these two. More processes would only take cores from the model.

    Args:
        work: images a second of the model on all cores.
        decoded: images a second that one process decodes.
        cores: number of CPU cores.
    """
    seconds = 1 / decoded
    return max(1, math.ceil(cores * seconds / (cores / work + seconds)))


def _round_to_power_of_two(number: int) -> int:
    """Return the largest power of two up to `number`, at least 1."""
    power: int = 2 ** (max(1, number).bit_length() - 1)
    return power
