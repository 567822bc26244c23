"""A fast start of a command; no torch.

`import torch` and its companions make a million objects, none of them garbage. Python's collector
looks at all of them again and again, for up to a quarter of the time of the imports.
"""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def loading_modules() -> Iterator[None]:
    """Context for the imports of a command: nothing is collected in it.

    Nothing is frozen either (`gc.freeze`): some modules look at the end of the process whether all
    of theirs is freed, and report the rest as leaked.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
