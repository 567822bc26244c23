"""A fast start of a command; no torch.

`import torch` and its companions make a million objects, none of them garbage. Python's collector
looks at all of them again and again: a quarter of the time of the imports
(`benchmarks/fixed_seconds.py`).
"""

import atexit
import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def loading_modules() -> Iterator[None]:
    """Context for the imports of a command: nothing is collected in it.

    What was imported stays until the process ends, so the collector never looks at it again.
    """
    was_enabled, loaded = gc.isenabled(), len(sys.modules)
    gc.disable()
    try:
        yield
    finally:
        if len(sys.modules) > loaded:
            gc.freeze()
            atexit.register(gc.unfreeze)  # some modules look then whether all of theirs is freed
        if was_enabled:
            gc.enable()
