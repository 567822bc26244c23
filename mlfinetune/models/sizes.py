"""Tries of networks with shapes alone: nothing is computed, and no memory is taken.

build, S -> require_size       -> the error that names the network's own size, if need be
build, S -> takes_one_picture  -> whether BatchNorm can learn from one picture
module, S -> require_vectors   -> the error that the features are of places, not of a picture
build, S -> find_unused        -> parameters that the features do not depend on
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from mlfinetune.errors import ConfigError

Build = Callable[[int], nn.Module]
"""Builds a network for a side in pixels: (B, 3, S, S) float -> features (B, F)."""

MISFITS = (
    AssertionError, RuntimeError, ValueError, TypeError, IndexError, ZeroDivisionError,
)  # fmt: skip
"""Errors that networks raise for shapes that they do not take."""


def require_size(build: Build, name: str, side: int, own: int) -> None:
    """Raise a ConfigError where a network does not take pictures of a size, but of its own.

    Args:
        build: of the network for a side in pixels.
        name: of the backbone, for messages.
        side: S, in pixels.
        own: side of the pictures that its weights were trained on.
    """
    if side == own:
        return
    try:
        _try_forward(build, side, training=False)
    except MISFITS as error:
        try:
            _try_forward(build, own, training=False)
        except MISFITS:
            return  # it cannot be tried without computing
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ConfigError(
            f"model.image_size: {name} does not take pictures of {side} px ({reason}); its own "
            f"size is {own}: set model.image_size: auto"
        ) from error


def takes_one_picture(build: Build, side: int) -> bool:
    """Tell whether a network can be trained on one picture at a time.

    BatchNorm cannot where the map before it has one pixel: it would learn from one value a channel.
    """
    try:
        _try_forward(build, side, training=True)
    except ValueError as error:
        return "more than 1 value per channel" not in str(error)
    except MISFITS:
        pass
    return True


def require_vectors(backbone: nn.Module, name: str, side: int) -> None:
    """Raise a ConfigError where a network gives more than one vector of features a picture.

    Args:
        backbone: with shapes alone, for pictures of S.
        name: of the backbone, for messages.
        side: S, in pixels.
    """
    try:
        shape = _try_forward(lambda _: backbone, side, training=False)
    except MISFITS:
        return  # it cannot be tried without computing
    if len(shape) != 2:
        raise ConfigError(
            f"model.backbone: {name} cannot be a backbone: its features of a picture are "
            f"{' x '.join(map(str, shape[1:]))} numbers, not one vector"
        )


def find_unused(build: Build, side: int) -> set[str]:
    """Return the names of parameters that get no gradient from the features of pictures of S.

    Empty where the network cannot be tried without computing.
    """
    try:
        with torch.device("meta"):
            network = build(side).train()
            features: Tensor = network(torch.empty(2, 3, side, side))
            torch.autograd.backward(features.sum())
    except MISFITS:
        return set()
    return {name for name, parameter in network.named_parameters() if parameter.grad is None}


def _try_forward(build: Build, side: int, *, training: bool) -> torch.Size:
    """Compute the shape of the features of one picture."""
    with torch.device("meta"), torch.no_grad():
        features: Tensor = build(side).train(training)(torch.empty(1, 3, side, side))
    return features.shape
