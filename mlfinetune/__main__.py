"""`python -m mlfinetune`, and the console script `mlfinetune`: `main` as a whole process."""

import atexit
import os
import sys
from contextlib import suppress
from multiprocessing import current_process

from mlfinetune.cli import main


def run_process() -> None:
    """Run `main`; then end the process without taking its modules apart.

    Python frees all modules one by one at its end, a second of work with torch's, for nothing: the
    system frees memory at once. All else happens before: threads are joined, and exit functions
    run that were registered later than this one, as those of torch and of trackers.
    """
    if getattr(current_process(), "_inheriting", False):  # a worker that imports the script
        return
    code = 1  # of an exception that `main` does not know
    atexit.register(lambda: _end(code))
    try:
        main()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        raise


def _end(code: int) -> None:
    """End the process with this exit code."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):  # closed, or there is none
            stream.flush()
    os._exit(code)


if __name__ == "__main__":
    run_process()
