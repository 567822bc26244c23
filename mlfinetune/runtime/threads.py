"""Threads of one computation: all of torch's, or a single one where the computation is small.

torch divides a product among all cores, and its threads wait for each other by spinning. Where
another process has one of the cores, each small product then waits for a time slice of that
process: a hundred times as long as it computes. One thread waits for nobody. On an idle machine it
loses little where products are small (`benchmarks/fixed_seconds.py` measures both).
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

FEWEST_OPERATIONS = 2**28
"""Multiplications from which a product has all threads: about 10 ms of one core, longer than most
time slices."""


class ThreadChooser:
    """Chooses the number of threads, operation by operation."""

    def __init__(self) -> None:
        """Take the number that torch has now for that of large operations."""
        self._all = torch.get_num_threads()

    @contextmanager
    def threads_for(self, operations: int) -> Iterator[None]:
        """Context in which torch has one thread, or all for a large product; then as before.

        Do not `yield` to a caller inside of it: the number is that of the whole process.

        Args:
            operations: multiplications of the largest product inside: (n, k) x (k, m) has nkm.
        """
        with _threads(self._all if operations >= FEWEST_OPERATIONS else 1):
            yield


@contextmanager
def one_thread() -> Iterator[None]:
    """Context, or decorator of a function, with one thread for torch; then as before.

    For work that is small, as one picture, or that moves memory, as the weights of a network:
    beside another busy process several threads wait for each other many times as long as they
    compute.
    """
    with _threads(1):
        yield


@contextmanager
def _threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    if before == number:
        yield
        return
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
