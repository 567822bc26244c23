"""A batch of decoded pictures with their targets.

Shapes: B images in a batch, L labels, S pixels on a side, F features.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from mlfinetune.errors import DataError
from mlfinetune.text import format_list


@dataclass(frozen=True)
class Failure:
    """A picture that could not be decoded, and why."""

    index: int
    reason: str


@dataclass(frozen=True)
class Batch:
    """Decoded pictures with their targets; undecodable ones stand in `failures` instead.

    Attributes:
        images: (B, 3, S, S) uint8; or (B, F) float32, a frozen backbone's features.
        targets: (B, L) int8 in {1, 0, -1}; (B, 0) where there are none (prediction).
        indices: (B,) int64, the pictures' places in their manifest or input order.
        together: the indices of all that is looked at in this step, where several processes each
            have a share; empty: this batch is all.
    """

    images: torch.Tensor
    targets: torch.Tensor
    indices: torch.Tensor
    failures: tuple[Failure, ...] = ()
    together: tuple[int, ...] = ()

    @property
    def everyone(self) -> tuple[int, ...]:
        """The indices of the batch in all processes."""
        return self.together or tuple(self.indices.tolist())

    def require_all(self, name_of: Callable[[int], str]) -> None:
        """Raise a DataError that names the pictures that could not be decoded, if any."""
        if self.failures:
            faults = [f"{name_of(failure.index)}: {failure.reason}" for failure in self.failures]
            raise DataError(
                f"{len(faults)} unreadable in one batch; repair them or take them out\n"
                f"{format_list(faults)}"
            )

    def pin_memory(self) -> "Batch":
        """In page-locked memory; DataLoader asks a batch for it by this name."""
        return replace(self, images=self.images.pin_memory(), targets=self.targets.pin_memory())
