"""A fast start of a command: imports without what no command of this kind uses.

`import torch` and its companions make a million objects, none of them garbage. Python's collector
looks at all of them again and again, for up to a quarter of the time of the imports, and three
times more afterwards: once for each generation that they pass through.

torchvision loads torch's compiler while it is imported, a third of the time of all imports, only
to mark two functions for it. They are marked when they are called; nothing here calls them.
"""

import functools
import gc
import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

_COMPILER = "torch._dynamo"
_ASKED = "is_compile_supported"
"""Function of the compiler's `utils` that torchvision's operators import and call when compiled."""


@contextmanager
def loading_modules() -> Iterator[None]:
    """Context for the imports of a command: nothing is collected in it, and no compiler loaded.

    What is there at its end belongs to the oldest generation. It does not stay frozen: some modules
    look at the end of the process whether all of theirs is freed, and report the rest as leaked.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        with _deferring_compiler():
            yield
    finally:
        gc.freeze()
        gc.unfreeze()  # puts what was frozen into the oldest generation
        if was_enabled:
            gc.enable()


@contextmanager
def _deferring_compiler() -> Iterator[None]:
    """Context in which torchvision can be imported without torch's compiler."""
    if _COMPILER in sys.modules:
        yield
        return
    import torch.compiler

    utils, disable = _Utils(f"{_COMPILER}.utils"), torch.compiler.disable
    sys.modules[utils.__name__] = utils
    torch.compiler.disable = _defer(disable)
    try:
        yield
    finally:
        torch.compiler.disable = disable
        if sys.modules.get(utils.__name__) is utils:
            del sys.modules[utils.__name__]


class _Utils(ModuleType):
    """Stand-in of the compiler's `utils`: one function is found when it is called, all else now."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if name == _ASKED:
            return lambda *args, **kwargs: getattr(self._load(), name)(*args, **kwargs)
        return getattr(self._load(), name)

    def _load(self) -> ModuleType:
        """Return the module itself."""
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        return importlib.import_module(self.__name__)


def _defer(disable: Callable[..., Any]) -> Callable[..., Any]:
    """Return `torch.compiler.disable` as a decorator that marks a function at its first call."""

    def deferred(function: Callable[..., Any] | None = None, *args: Any, **kwargs: Any) -> Any:
        if function is None:
            return disable(function, *args, **kwargs)
        marked = functools.cache(lambda: disable(function, *args, **kwargs))
        return functools.wraps(function)(lambda *given, **named: marked()(*given, **named))

    return deferred
