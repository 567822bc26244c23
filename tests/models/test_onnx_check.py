"""An ONNX file is verified: every way in which exporters have been wrong is refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from mlfinetune.data.batches.loader import stream_batches
from mlfinetune.errors import CheckpointError
from mlfinetune.metrics.types import DecisionRule
from mlfinetune.models.inference import restore_tagger
from mlfinetune.models.onnx_check import Reference, compute_reference, list_batches, verify
from mlfinetune.models.onnx_graph import Graph, build_onnx, finish
from mlfinetune.models.scoring import average_views
from mlfinetune.models.tagger import Tagger
from mlfinetune.runs import checkpoint

Alter = Callable[[Any], None]


@pytest.fixture(scope="module")
def reference(exported: Path) -> Reference:
    """Return what the checkpoint says of five real pictures."""
    file = exported / "runs/pets/best.safetensors"
    loaded, cpu = checkpoint.load(file), torch.device("cpu")
    about = (loaded.backbone, loaded.levels, len(loaded.labels))
    tagger = restore_tagger(*about, loaded.weights, loaded.transform, cpu, file)
    paths = [str(exported / f"images/000{n}.{'png' if n % 2 else 'jpg'}") for n in range(5)]
    batches = stream_batches(paths, loaded.transform, batch_size=5, workers=0, pin_memory=False)
    ((_, batch),) = batches
    return compute_reference(average_views(tagger, "mirror"), loaded.decision, batch.images)


def find_weight(model: Any, shape: tuple[int, ...]) -> Any:
    """Return the last weight of this shape; None stands for any size."""
    *_, found = (
        each
        for each in model.graph.initializer
        if len(each.dims) == len(shape)
        and all(b in (None, a) for a, b in zip(each.dims, shape, strict=True))
    )
    return found


def set_weight(weight: Any, values: Any) -> None:
    weight.CopyFrom(numpy_helper.from_array(np.asarray(values, np.float32), weight.name))


def freeze_batch(model: Any) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1


def keep_first_row(model: Any) -> None:
    """Freeze the batch where no declared shape shows it."""
    *_, last = (node for node in model.graph.node if "probabilities" in node.output)
    last.output[0] = "all"
    for name, values in (("first", [0]), ("one", [1])):
        model.graph.initializer.append(helper.make_tensor(name, TensorProto.INT64, [1], values))
    model.graph.node.append(helper.make_node("Slice", ["all", "first", "one"], ["probabilities"]))


def find_bias(model: Any) -> Any:
    (head,) = (node for node in model.graph.node if node.op_type == "Gemm")
    (bias,) = (each for each in model.graph.initializer if each.name == head.input[2])
    return bias


def swap_biases(model: Any) -> None:
    bias = find_bias(model)
    set_weight(bias, numpy_helper.to_array(bias)[::-1] + np.arange(8))


def lengthen_bias(model: Any) -> None:
    set_weight(find_bias(model), np.zeros(9))


def spoil_bias(model: Any) -> None:
    set_weight(find_bias(model), [np.nan, *[0] * 7])


def change_one_weight(model: Any) -> None:
    weight = find_weight(model, (64, 3, 7, 7))
    values = numpy_helper.to_array(weight).copy()
    values[np.unravel_index(np.abs(values).argmax(), values.shape)] *= 100
    set_weight(weight, values)


def change_std(model: Any) -> None:
    weight = find_weight(model, (1, 3, 1, 1))
    set_weight(weight, numpy_helper.to_array(weight) * 1.01)


def take_floats(model: Any) -> None:
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.FLOAT


def drop_output(model: Any) -> None:
    model.graph.output[0].name = "logits"


ALTERATIONS = {
    freeze_batch: "frozen to 1",
    keep_first_row: "at a batch of 3 the graph gives probabilities of shape (1, 8)",
    swap_biases: "differ from the checkpoint's by",
    lengthen_bias: "onnx",
    spoil_bias: "by nan",
    change_one_weight: "at a batch of 1 the graph gives probabilities that differ",
    change_std: "differ from the checkpoint's by",
    take_floats: "no ONNX model that can be used",
    drop_output: "no output 'probabilities'",
}


def test_the_exported_file_passes(exported: Path, reference: Reference) -> None:
    """At batches of 1, 3 and 5, far below the limit."""
    assert verify(exported / "pets.onnx", reference) < 1e-5
    assert list_batches(5) == [1, 3, 5]
    assert list_batches(2) == [1, 3]


@pytest.mark.parametrize("alter", ALTERATIONS, ids=lambda alter: alter.__name__)
def test_an_altered_graph_is_refused(
    exported: Path, reference: Reference, tmp_path: Path, alter: Alter
) -> None:
    """Each with what is wrong, in words."""
    model = onnx.load(exported / "pets.onnx")
    alter(model)
    onnx.save(model, tmp_path / "altered.onnx")
    with pytest.raises(CheckpointError) as error:
        verify(tmp_path / "altered.onnx", reference)
    assert ALTERATIONS[alter] in str(error.value)


@pytest.mark.parametrize(
    ("backbone", "levels", "labels", "side"),
    [("resnet6_tiny", 4, 10_000, 32), ("timm/test_efficientnet", 1, 3, 32)],
)
def test_other_networks_export_too(
    tmp_path: Path, backbone: str, levels: int, labels: int, side: int
) -> None:
    """Several levels, a head of 10,000 labels in chunks, a network of timm."""
    torch.manual_seed(0)
    normal = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    network = Tagger(
        backbone, labels, levels=levels, image_size=side, mean=normal[0], std=normal[1],
        chunked=labels > 9999,
    ).eval()  # fmt: skip
    decision = DecisionRule.plain(labels)
    model = build_onnx(Graph(network, "plain", decision).eval(), side, backbone)
    (tmp_path / "net.onnx").write_bytes(finish(model, {}, True, "1"))
    images = torch.randint(0, 256, (2, 3, side, side), dtype=torch.uint8)
    found = compute_reference(network, decision, images)
    assert verify(tmp_path / "net.onnx", found) < 1e-4
