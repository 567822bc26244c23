"""A stand-in for an Apple GPU on machines without one: tensors that say `mps`, computed on the CPU.

Like MPS it refuses float64, like an older one bfloat16 too, and operations that mix its tensors
with those of the CPU; a copy may go from one to the other. Below the level of Python the tensors
are the CPU's, so that autograd needs no threads of a device.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Self

import torch
from torch.overrides import TorchFunctionMode

MPS = torch.device("mps:0")
REFUSED = (torch.float64, torch.complex128, torch.bfloat16)
"""Types that MPS lacks; bfloat16 came with macOS 14."""


class OnMps(torch.Tensor):
    """A tensor that reports the device `mps`; `held` has its numbers."""

    held: torch.Tensor

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> Self:
        if held.dtype in REFUSED:
            raise TypeError(f"Cannot convert a MPS Tensor to {held.dtype}: MPS has no such numbers")
        tensor: Self = torch.Tensor._make_wrapper_subclass(
            cls, held.shape, dtype=held.dtype, strides=held.stride()
        )
        tensor.held = held
        return tensor

    @property
    def device(self) -> torch.device:
        return MPS

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Pickle the numbers, as a tensor of the CPU."""
        return self.held.__reduce_ex__(protocol)

    def __repr__(self, **options: Any) -> str:
        return f"OnMps({self.held})"

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any, kwargs: Any = None) -> Any:
        """Return the operation on the CPU; what it returns is on the stand-in."""
        copies = function is torch.ops.aten.copy_.default

        def take(x: torch.Tensor) -> torch.Tensor:
            assert isinstance(x, OnMps) or copies or not x.dim(), f"{function} mixes mps and cpu"
            return x.held if isinstance(x, OnMps) else x

        done = function(*_change(args, take), **_change(kwargs or {}, take))
        return args[0] if copies else _change(done, OnMps)


def _change(given: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """Return what an operation is given or returns, with its tensors changed; torch's is slow."""
    if isinstance(given, torch.Tensor):
        return change(given)
    if isinstance(given, tuple | list):
        return type(given)([_change(each, change) for each in given])
    if isinstance(given, dict):
        return {name: _change(each, change) for name, each in given.items()}
    return given


class _Move(torch.autograd.Function):
    """Autograd function: moves a tensor to the stand-in, or to the CPU."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.held.clone() if isinstance(x, OnMps) else OnMps(x.clone())

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        return grad.held.clone() if isinstance(grad, OnMps) else OnMps(grad.clone())


class _Devices(TorchFunctionMode):
    """Torch function mode: `device=`, `to(device)` and `cpu()` mean the stand-in for mps."""

    def __torch_function__(self, function: Any, types: Any, args: Any, kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if function is torch.Tensor.cpu:
            return to_cpu(args[0])
        if function is torch.Tensor.tolist and isinstance(args[0], OnMps):
            return args[0].held.tolist()
        if function is torch.Tensor.to:
            places = [x for x in (*args[1:], kwargs.pop("device", None)) if _is_place(x)]
            others = [x for x in args[1:] if isinstance(x, torch.dtype | torch.Tensor)]
            device = torch.device(places[0]) if places else args[0].device
            x = to_mps(args[0]) if device.type == "mps" else to_cpu(args[0])
            return function(x, *others, **kwargs) if others or kwargs else x
        if kwargs.get("device") is not None and torch.device(kwargs["device"]).type == "mps":
            return to_mps(function(*args, **{**kwargs, "device": "cpu"}))
        return function(*args, **kwargs)


def _is_place(x: object) -> bool:
    return isinstance(x, torch.device | str)


def to_mps(x: torch.Tensor) -> torch.Tensor:
    """Return the tensor on the stand-in; itself if it is there."""
    moved: torch.Tensor = x if isinstance(x, OnMps) else _Move.apply(x)
    return moved


def to_cpu(x: torch.Tensor) -> torch.Tensor:
    """Return the tensor on the CPU; itself if it is there."""
    moved: torch.Tensor = _Move.apply(x) if isinstance(x, OnMps) else x
    return moved


@contextmanager
def stand_in() -> Iterator[torch.device]:
    """Make the device `mps` available inside of the block, as far as the stand-in goes."""
    before = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        with _Devices():
            yield MPS
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(before)
