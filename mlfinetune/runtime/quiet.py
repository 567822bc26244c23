"""A context without Python's warnings, for several threads; no torch."""

import warnings
from threading import Lock


class _Unwarned:
    """Context in which no warning is shown.

    Python's `catch_warnings` puts back the filters that it has found. Of two threads that overlap,
    the second would find those of the first, and would leave the process without warnings. Here the
    first thread that enters sets the filters, and the last one that leaves puts them back.
    """

    def __init__(self) -> None:
        self._lock, self._inside = Lock(), 0

    def __enter__(self) -> None:
        with self._lock:
            if not self._inside:
                self._caught = warnings.catch_warnings()
                self._caught.__enter__()
                warnings.simplefilter("ignore")
            self._inside += 1

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                self._caught.__exit__(None, None, None)


unwarned = _Unwarned()
"""`with unwarned:`, of all threads of this process."""
