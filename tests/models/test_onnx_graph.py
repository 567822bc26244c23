"""A tagger as one ONNX graph: what cannot be exported is refused in words."""

import pytest
import torch
from torch import Tensor, nn

from mlfinetune.errors import ConfigError
from mlfinetune.metrics.types import DecisionRule
from mlfinetune.models.onnx_graph import Graph, build_onnx
from mlfinetune.models.tagger import Tagger


def build_graph(labels: int, features: nn.Module | None = None) -> Graph:
    half = (0.5, 0.5, 0.5)
    tagger = Tagger("resnet6_tiny", labels, image_size=32, mean=half, std=half)
    if features is not None:
        tagger = tagger.with_features(features)
    return Graph(tagger, "plain", DecisionRule.plain(labels)).eval()


class BranchOnValues(nn.Module):
    """A network whose path depends on its input, which no graph can hold."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3)).repeat(1, 43)[:, :128] if x.sum() > 0 else x.flatten(1)[:, :128]


def test_a_network_that_torch_cannot_export_is_named() -> None:
    """The error names the backbone, torch's version and the reason, in one line."""
    with pytest.raises(
        ConfigError, match=r"torch 2\S+ cannot export the backbone odd to ONNX: "
    ) as e:
        build_onnx(build_graph(3, BranchOnValues()), 32, "odd")
    assert "\n" not in str(e.value)


def test_weights_beyond_one_file_are_refused_before_any_work() -> None:
    """Protobuf ends at 2 GiB; here are 5 million labels of 128 features."""
    with torch.device("meta"):
        tagger = Tagger("resnet6_tiny", 5_000_000, mean=(0.5, 0.5, 0.5), std=(1.0, 1.0, 1.0))
    with pytest.raises(ConfigError, match=r"wide has 2\.4 GiB of weights.*less than 2 GiB"):
        build_onnx(Graph(tagger, "plain", DecisionRule.plain(1)), 32, "wide")
