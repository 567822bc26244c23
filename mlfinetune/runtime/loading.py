"""A fast start of a command; no torch.

`import torch` and its companions make a million objects, none of them garbage. Python's collector
looks at all of them again and again, for up to a quarter of the time of the imports, and three
times more afterwards: once for each generation that they pass through.
"""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def loading_modules() -> Iterator[None]:
    """Context for the imports of a command: nothing is collected in it.

    What is there at its end belongs to the oldest generation. It does not stay frozen: some modules
    look at the end of the process whether all of theirs is freed, and report the rest as leaked.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.unfreeze()  # puts what was frozen into the oldest generation
        if was_enabled:
            gc.enable()
