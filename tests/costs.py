"""CPU time of two calls, side by side: a busy machine slows both, and changes no ratio."""

import statistics
import time
from collections.abc import Callable

ROUNDS = 5


def compare_costs(one: Callable[[], object], other: Callable[[], object]) -> float:
    """Return the CPU time of `one` in multiples of that of `other`: medians of ROUNDS, in turns."""
    took: dict[Callable[[], object], list[float]] = {one: [], other: []}
    for _ in range(ROUNDS):
        for call, seconds in took.items():
            began = time.process_time()
            call()
            seconds.append(time.process_time() - began)
    return statistics.median(took[one]) / max(statistics.median(took[other]), 1e-5)
