"""An ONNX file is compared with the model that it was made of, on real pictures.

    tagger, pictures          -> compute_reference -> logits, probabilities
    .onnx, pictures, those    -> verify            -> largest difference, or a CheckpointError

torch's exporter and onnxruntime have had faults that no exception shows: a batch frozen to 1,
biases of a wrong shape, wrong numbers at some versions. So nothing of the graph is trusted.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mlfinetune.errors import CheckpointError
from mlfinetune.metrics.logits import sigmoid
from mlfinetune.metrics.types import DecisionRule
from mlfinetune.models.onnx_graph import IMAGES, LOGITS, PROBABILITIES
from mlfinetune.models.onnx_session import OnnxModel, open_onnx
from mlfinetune.models.scoring import infer

MOST = 1e-4
"""Largest difference of a probability; of a logit, as a share of the largest one."""
SMALL_BATCHES = (1, 3)


@dataclass(frozen=True)
class Reference:
    """Results that a file has to repeat.

    Attributes:
        images: (N, 3, S, S) uint8.
        logits: (N, L) float32, the model's own.
        probabilities: (N, L) float64, calibrated.
    """

    images: NDArray[np.uint8]
    logits: NDArray[np.float32]
    probabilities: NDArray[np.float64]


@torch.inference_mode()
def compute_reference(network: nn.Module, decision: DecisionRule, images: Tensor) -> Reference:
    """Compute what the checkpoint says of pictures, in float32, one by one.

    Args:
        network: the mean of the tagger's views, as it was trained: on the CPU, nothing fused.
        decision: has the calibration.
        images: (N, 3, S, S) uint8.
    """
    cpu = torch.device("cpu")
    alone = (images[row : row + 1] for row in range(len(images)))
    each = [infer(network.eval(), image, cpu, torch.float32) for image in alone]
    logits: NDArray[np.float32] = torch.cat(each).numpy()
    return Reference(images.numpy(), logits, sigmoid(decision.calibrate(logits)))


def verify(path: Path, reference: Reference, most: float = MOST) -> float:
    """Compare an ONNX file with its reference, at batches of 1, of 3, and of all pictures.

    Args:
        path: the file.
        reference: N pictures; where N is 1 or 2, some come twice in a batch of 3.
        most: the largest difference that passes.

    Returns:
        The largest difference of a probability.

    Raises:
        CheckpointError: the file has other inputs or outputs, fails, or gives other numbers.
    """
    model = open_onnx(path, with_logits=True)
    count, labels = reference.logits.shape
    _check_shapes(model, reference.images.shape[1:], labels)
    scale = max(1.0, float(np.abs(reference.logits).max()))
    wanted: dict[str, tuple[NDArray[Any], float]] = {PROBABILITIES: (reference.probabilities, most)}
    if LOGITS in model.outputs:
        wanted[LOGITS] = (reference.logits, most * scale)
    largest = 0.0
    for size in list_batches(count):
        for start in range(0, count, size):
            rows = np.arange(start, start + size) % count
            for output, (expected, limit) in wanted.items():
                computed = model.compute(reference.images[rows], output)
                difference = _compare(computed, expected[rows], limit, output)
                largest = max(largest, difference if output == PROBABILITIES else 0.0)
    return largest


def list_batches(count: int) -> list[int]:
    """Return the sizes of batches that `count` pictures are tried in: 1, 3, and all."""
    return sorted({*SMALL_BATCHES, max(count, *SMALL_BATCHES)})


def _check_shapes(model: OnnxModel, picture: tuple[int, ...], labels: int) -> None:
    """Raise a CheckpointError where inputs and outputs are not those of an exported file."""
    kind, shape = model.inputs.get(IMAGES, ("none", [None]))
    if [*model.inputs] != [IMAGES] or kind != "tensor(uint8)" or tuple(shape[1:]) != picture:
        raise CheckpointError(
            f"the graph takes {model.inputs}, not one input '{IMAGES}' of uint8 (N, "
            f"{', '.join(map(str, picture))})"
        )
    for name, (kind, shape) in model.outputs.items():
        if name not in (PROBABILITIES, LOGITS) or kind != "tensor(float)" or shape[1:] != [labels]:
            raise CheckpointError(f"the graph gives {name} {kind} {shape}, for {labels} labels")
    if PROBABILITIES not in model.outputs:
        raise CheckpointError(f"the graph has no output '{PROBABILITIES}'")
    sizes = {shape[0] for _, shape in (*model.inputs.values(), *model.outputs.values())}
    if frozen := [size for size in sizes if isinstance(size, int)]:
        raise CheckpointError(f"the graph's batch is frozen to {frozen[0]} pictures")


def _compare(
    computed: NDArray[np.float32], expected: NDArray[Any], limit: float, output: str
) -> float:
    """Return the largest difference; raise a CheckpointError where it is above `limit`."""
    at_batch = f"at a batch of {len(expected)} the graph"
    if computed.shape != expected.shape:
        raise CheckpointError(f"{at_batch} gives {output} of shape {computed.shape}")
    difference = float(np.abs(computed - expected).max())
    if not difference <= limit:  # written so that NaN fails too
        raise CheckpointError(
            f"{at_batch} gives {output} that differ from the checkpoint's by {difference:.2g}, "
            f"more than {limit:.2g}"
        )
    return difference
