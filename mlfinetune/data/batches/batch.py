"""A batch of decoded pictures with their targets.

Shapes: B images in a batch, L labels, S pixels on a side, F features.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from mlfinetune.errors import DataError
from mlfinetune.text import format_list


@dataclass(frozen=True)
class Failure:
    """A picture that could not be decoded, and the reason."""

    index: int
    reason: str


@dataclass(frozen=True)
class Batch:
    """Decoded pictures with their targets; pictures that cannot be decoded are in `failures`.

    Attributes:
        images: (B, 3, S, S) uint8; or (B, F) float32, the features of a frozen backbone.
        targets: (B, L) int8 in {1, 0, -1}; -1 is unknown; (B, 0) in prediction, without targets.
        indices: (B,) int64, positions of the pictures in their manifest or input.
        failures: pictures of this batch that could not be decoded.
        global_indices: indices of the step's batch on all ranks, of which this is one rank's
            share; empty: this batch is all of it.
        stamps: of each index, the number of the file's size and time (`files.number_stamp`) when
            it was read; 0: a small copy was read, or an object behind a URL. Empty: not known.
        weights: (B,) float32, on the images' device: weight of each picture's loss, in a sweep of
            the L-BFGS solver; None: all weigh 1.
    """

    images: torch.Tensor
    targets: torch.Tensor
    indices: torch.Tensor
    failures: tuple[Failure, ...] = ()
    global_indices: tuple[int, ...] = ()
    stamps: tuple[int, ...] = ()
    weights: torch.Tensor | None = None

    @property
    def step_indices(self) -> tuple[int, ...]:
        """Indices of the step's batch on all ranks; with one rank those of this batch."""
        return self.global_indices or tuple(self.indices.tolist())

    def require_all(self, name_of: Callable[[int], str]) -> None:
        """Raise if a picture of the batch could not be decoded.

        Args:
            name_of: index -> name of the picture for the message.

        Raises:
            DataError: names the pictures and the reasons.
        """
        if self.failures:
            raise build_unreadable_error(
                [f"{name_of(failure.index)}: {failure.reason}" for failure in self.failures]
            )

    def pin_memory(self) -> "Batch":
        """Return the batch in page-locked memory; DataLoader calls this method by its name."""
        return replace(self, images=self.images.pin_memory(), targets=self.targets.pin_memory())


def build_unreadable_error(faults: Sequence[str]) -> DataError:
    """Return the error for pictures of one batch that cannot be decoded, one fault a line."""
    return DataError(
        f"{len(faults)} unreadable in one batch; repair them or take them out\n"
        f"{format_list(faults)}"
    )
