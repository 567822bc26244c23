"""ONNX files computed by onnxruntime, on the CPU; and files with 8-bit integers made of them.

    .onnx           -> open_onnx -> OnnxModel: uint8 (N, 3, S, S) -> probabilities, logits (N, L)
    .onnx, pictures -> quantize  -> .onnx whose convolutions and products are of int8

This module alone imports onnxruntime, an extra.
"""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mlfinetune.errors import CheckpointError, ConfigError
from mlfinetune.models.onnx_graph import (
    IMAGES,
    LOGITS,
    MISSING,
    add_logits,
    quiet_logging,
    require_onnx,
)

_QUANTIZED = ("Conv", "Add", "MaxPool", "Relu", "MatMul")
"""Operators that compute in int8. The others stay float32: normalization, norms, softmax."""


@dataclass(frozen=True)
class OnnxModel:
    """An ONNX file that is ready to compute.

    Attributes:
        metadata: key -> text, as the file has it.
        inputs, outputs: name -> (type, shape), as onnxruntime names them; a dimension that may
            vary is a text or None.
        session: of onnxruntime; several threads may call it at once.
    """

    metadata: dict[str, str]
    inputs: dict[str, tuple[str, list[Any]]]
    outputs: dict[str, tuple[str, list[Any]]]
    session: Any

    def compute(self, images: NDArray[np.uint8], output: str) -> NDArray[np.float32]:
        """(N, 3, S, S) uint8 -> one output, (N, L) float32.

        Raises:
            CheckpointError: onnxruntime cannot compute it.
        """
        try:
            (array,) = self.session.run([output], {IMAGES: images})
        except Exception as error:  # onnxruntime's own kinds have no common base
            raise CheckpointError(f"onnxruntime fails: {_shorten(error)}") from error
        result: NDArray[np.float32] = array
        return result


class OnnxNetwork(nn.Module):
    """An ONNX file in a model's place: (N, 3, S, S) uint8 -> (N, L) float32 logits, on the CPU.

    Attributes:
        how: what computes, for the log.
    """

    def __init__(self, model: OnnxModel) -> None:
        """Wrap a model that was opened with its logits."""
        super().__init__()
        self.onnx = model
        self.how = f"onnxruntime, {model.metadata.get('precision', 'float32')}"

    def forward(self, images: Tensor) -> Tensor:
        """Compute the logits of pictures that may be on any device."""
        logits = self.onnx.compute(images.cpu().numpy(), LOGITS)
        return torch.from_numpy(logits).to(images.device)


def open_onnx(path: Path, with_logits: bool = False) -> OnnxModel:
    """Open an ONNX file with as many threads as torch uses.

    Args:
        path: the file.
        with_logits: its logits can be computed too, though they may be no output of the file; a
            foreign file may have none.

    Raises:
        CheckpointError: it cannot be read, is cut short, or no ONNX model.
        ConfigError: the extra is missing.
    """
    onnxruntime = require_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # its warnings are about its own graph
    try:
        content: bytes | str = add_logits(path.read_bytes()) if with_logits else os.fspath(path)
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from error
    except Exception as error:  # onnxruntime's own kinds have no common base
        raise CheckpointError(
            f"{path} is no ONNX model that can be used, or is cut short: {_shorten(error)}"
        ) from error
    inputs = {each.name: (each.type, each.shape) for each in session.get_inputs()}
    outputs = {each.name: (each.type, each.shape) for each in session.get_outputs()}
    metadata = session.get_modelmeta().custom_metadata_map
    return OnnxModel(dict(metadata), inputs, outputs, session)


def quantize(source: Path, target: Path, batches: Iterable[NDArray[np.uint8]]) -> None:
    """Write a copy of an ONNX file that computes with 8-bit integers.

    Weights have a scale for each channel, maps one each, by the least and the largest value that
    the pictures give. The head stays float32: so do the names and types of inputs and outputs.

    Args:
        source: file with float32 weights.
        target: the new file.
        batches: (N, 3, S, S) each, of pictures as the model will see.

    Raises:
        ConfigError: the extra is missing.
        CheckpointError: onnxruntime cannot quantize it.
    """
    require_onnxruntime()
    from onnxruntime.quantization import (
        CalibrationDataReader,
        QuantFormat,
        QuantType,
        quantize_static,
    )

    class Reader(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
        def __init__(self, batches: Iterator[NDArray[np.uint8]]) -> None:
            self.batches = batches

        def get_next(self) -> dict[str, NDArray[np.uint8]] | None:
            batch = next(self.batches, None)
            return None if batch is None else {IMAGES: batch}

    try:
        with quiet_logging():
            quantize_static(
                os.fspath(source),
                os.fspath(target),
                Reader(iter(batches)),
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                op_types_to_quantize=list(_QUANTIZED),
            )
    except MemoryError:
        raise
    except Exception as error:  # its kinds are many: of onnx, numpy and onnxruntime
        raise CheckpointError(
            f"onnxruntime cannot quantize this graph: {_shorten(error)}"
        ) from error


def require_onnxruntime() -> Any:
    """Return onnxruntime, imported; a ConfigError names the command that installs the extra."""
    require_onnx()
    # It would send the events of each session to its maker.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    try:
        import onnxruntime
    except ImportError as error:
        raise ConfigError(f"{MISSING} ({error})") from error
    return onnxruntime


def _shorten(error: Exception) -> str:
    """Return the first line of an error's text."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
