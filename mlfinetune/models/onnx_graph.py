"""A tagger becomes one ONNX graph, from uint8 pixels to probabilities, by torch's exporter.

    tagger, views, decision -> Graph -> build_onnx -> ModelProto -> finish -> bytes of one file

    images uint8 (N, 3, S, S) RGB -> normalize -> backbone -> head -> mean of the views = logits
                                  -> slope * logits + intercept -> sigmoid = probabilities (N, L)

This module alone imports onnx, an extra; torch's exporter needs onnxscript besides.
"""

import logging
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mlfinetune.errors import CheckpointError, ConfigError
from mlfinetune.metrics.implies import group_children
from mlfinetune.metrics.types import DecisionRule, EvalViews
from mlfinetune.models.tagger import Tagger

IMAGES, PROBABILITIES, LOGITS = "images", "probabilities", "logits"
"""Names of the input and of the outputs; `logits` is inside every file, and an output of some."""
MISSING = 'ONNX files need more packages: pip install "mlfinetune[onnx]"'
MAX_BYTES = 2**31 - 2**24
"""Bytes of weights that one file holds: protobuf ends at 2 GiB, and the graph needs room too."""


class Graph(nn.Module):
    """A tagger in float32 with all that comes before and after it.

    It has no branch on the number of pictures, as `Tagger.embed` has one: torch's exporter would
    take the branch of its example, and freeze the batch.
    """

    mean: Tensor
    std: Tensor
    slope: Tensor
    intercept: Tensor

    def __init__(self, tagger: Tagger, views: EvalViews, decision: DecisionRule) -> None:
        """Hold the tagger, in evaluation mode on the CPU, and the calibration as (L,) buffers."""
        super().__init__()
        self.features, self.head = tagger.features, tagger.head
        self.is_mirrored = views == "mirror"
        self.register_buffer("mean", tagger.mean)
        self.register_buffer("std", tagger.std)
        self.register_buffer("slope", torch.tensor(decision.slope))
        self.register_buffer("intercept", torch.tensor(decision.intercept))
        self.implies = group_children(decision.implies)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(N, 3, S, S) uint8 -> (N, L) float32 calibrated probabilities, and the model's logits."""
        if self.is_mirrored:  # one batch of both views: the graph holds the network once
            images = torch.cat([images, images.flip(-1)])
        x = (images.to(torch.float32) - self.mean) / self.std
        logits: Tensor = self.head(self.features(x))
        if self.is_mirrored:
            logits = logits.reshape(2, -1, logits.shape[1]).mean(0)
        calibrated = logits * self.slope + self.intercept
        return torch.sigmoid(self.raise_parents(calibrated)), logits

    def raise_parents(self, calibrated: Tensor) -> Tensor:
        """Return (N, L) logits in which each parent is the highest of itself and its children."""
        if not self.implies:
            return calibrated
        raised = [calibrated[:, [p, *children]].amax(1) for p, children in self.implies.items()]
        order = list(range(calibrated.shape[1]))
        for place, parent in enumerate(self.implies):
            order[parent] = len(order) + place
        return torch.cat([calibrated, torch.stack(raised, 1)], 1)[:, order]


def build_onnx(graph: Graph, side: int, name: str) -> Any:
    """Export a graph with torch's exporter; N is dynamic.

    Args:
        graph: on the CPU, in evaluation mode.
        side: S, of the pictures.
        name: the backbone's, for messages.

    Returns:
        An onnx.ModelProto that holds its weights, with the outputs `probabilities` and `logits`.

    Raises:
        ConfigError: an extra is missing; the network is too large; torch cannot export it.
    """
    weights = sum(each.numel() * each.element_size() for each in graph.state_dict().values())
    if weights > MAX_BYTES:
        raise ConfigError(
            f"{name} has {weights / 2**30:.1f} GiB of weights, and one ONNX file holds less than "
            f"2 GiB; export a smaller backbone, or one with fewer labels"
        )
    require_onnx()
    example = torch.zeros(2, 3, side, side, dtype=torch.uint8)
    try:
        with warnings.catch_warnings(), quiet_logging():
            warnings.simplefilter("ignore")  # the exporter's, on its own code
            program = torch.onnx.export(
                graph,
                (example,),
                input_names=[IMAGES],
                output_names=[PROBABILITIES, LOGITS],
                dynamic_shapes=({0: torch.export.Dim("N", min=1)},),
                dynamo=True,
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        reason = str(error.__cause__ or error).strip().splitlines() or [type(error).__name__]
        raise ConfigError(
            f"torch {torch.__version__} cannot export the backbone {name} to ONNX: "
            f"{reason[0][:200]}"
        ) from error
    assert program is not None
    return program.model_proto


@contextmanager
def quiet_logging() -> Iterator[None]:
    """Drop what exporter and quantizer log, of their own work; errors are raised besides."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)


def finish(model: Any, metadata: Mapping[str, str], with_logits: bool, version: str) -> bytes:
    """Return the bytes of the file: with metadata, and without traces of this machine.

    Args:
        model: of `build_onnx`, or a quantized one; it is changed.
        metadata: key -> text.
        with_logits: logits are an output too.
        version: of this package.

    Raises:
        CheckpointError: it is larger than a file may be.
    """
    import onnx

    _drop_traces(model.graph)
    names = [PROBABILITIES, LOGITS] if with_logits else [PROBABILITIES]
    outputs = {output.name: output for output in model.graph.output}
    kept = [type(outputs[name]).FromString(outputs[name].SerializeToString()) for name in names]
    del model.graph.output[:]
    model.graph.output.extend(kept)
    model.producer_name, model.producer_version = "mlfinetune", version
    onnx.helper.set_model_props(model, dict(metadata))
    try:
        content: bytes = model.SerializeToString()
    except ValueError as error:
        raise CheckpointError(f"the graph is larger than one ONNX file can be: {error}") from error
    return content


def _drop_traces(graph: Any) -> None:
    """Drop what the exporter notes of itself: paths and lines of code, a megabyte of a ResNet."""
    for kind in ("node", "input", "output", "value_info", "initializer"):
        for each in getattr(graph, kind):
            each.ClearField("metadata_props")
            each.ClearField("doc_string")
    graph.ClearField("metadata_props")


def describe_exporter() -> str:
    """Return the versions of what builds a graph, as `torch 2.11.0, onnx 1.18.0`."""
    import onnx

    return f"torch {torch.__version__}, onnx {onnx.__version__}"


def read_onnx(path: Path) -> Any:
    """Return the onnx.ModelProto of a file of this package's own."""
    import onnx

    return onnx.load(os.fspath(path))


def add_logits(content: bytes) -> bytes:
    """Return a file's bytes with the output `logits`, which is inside every exported graph.

    A foreign file may have no tensor of that name; it stays as it is.

    Raises:
        ValueError: it is no ONNX model.
    """
    import onnx

    try:
        model = onnx.load_from_string(content)
    except Exception as error:  # protobuf's own kinds of errors, by version
        raise ValueError(str(error)) from error
    graph = model.graph
    is_output = any(output.name == LOGITS for output in graph.output)
    if is_output or not any(LOGITS in node.output for node in graph.node):
        return content
    graph.output.append(onnx.helper.make_empty_tensor_value_info(LOGITS))
    added: bytes = model.SerializeToString()
    return added


def require_onnx() -> None:
    """Raise a ConfigError where the extra is missing; it names the command that installs it."""
    try:
        # Unused here: the exporter imports onnxscript itself, and fails late without it.
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ConfigError(f"{MISSING} ({error})") from error
