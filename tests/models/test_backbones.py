"""Backbones by name: all of torchvision, and the weights, sizes and layers of them."""

import re
from pathlib import Path

import pytest
import torch
import torchvision
from safetensors.torch import save_file

from mlfinetune.errors import WeightsError
from mlfinetune.models.backbones import BACKBONES, REFUSED, build_backbone, find_own_size, is_resnet
from mlfinetune.models.layers import list_undecayed, number_layers
from mlfinetune.models.preprocessing import find_preprocessing, list_weights, resolve_weights
from mlfinetune.models.pretrained import load_pretrained
from mlfinetune.models.sizes import takes_one_picture
from mlfinetune.models.tagger import Tagger

OTHERS = [name for name in BACKBONES if not is_resnet(name)]
SMALL = (
    *("alexnet", "convnext_tiny", "densenet121", "efficientnet_b0", "maxvit_t", "mobilenet_v2"),
    *("mobilenet_v3_small", "regnet_y_400mf", "shufflenet_v2_x0_5", "swin_t", "swin_v2_t"),
    *("vgg11", "vit_b_32"),
)
"""The smallest network of each class."""
COLORS = {"mean": (0.5,) * 3, "std": (0.2,) * 3}


def test_every_classifier_of_torchvision_is_a_backbone_or_refused() -> None:
    """None is forgotten; each has weights, and a size that they want."""
    known = torchvision.models.list_models(module=torchvision.models)
    refused = [name for name in known if any(re.fullmatch(p, name) for p in REFUSED)]
    assert {*BACKBONES, *refused} == set(known)
    assert refused == [
        *("googlenet", "inception_v3", "mnasnet0_5", "mnasnet0_75", "mnasnet1_0", "mnasnet1_3"),
        *("squeezenet1_0", "squeezenet1_1"),
    ]
    for name in OTHERS:
        weights = resolve_weights(name, "auto")
        assert find_preprocessing(name, weights).image_size == find_own_size(name)


@pytest.mark.parametrize("name", SMALL)
def test_a_classifier_loses_its_last_linear_layer(name: str) -> None:
    """No tensor of 1,000 classes is left; features of its width, by shapes alone."""
    side = find_own_size(name)
    with torch.device("meta"), torch.no_grad():
        backbone, width = build_backbone(name, 1, side)
        assert backbone.eval()(torch.empty(1, 3, side, side)).shape == (1, width)
    assert not [
        key
        for key, value in backbone.state_dict().items()
        if len(value.shape) and len(value) == 1000
    ]


def test_all_small_networks_are_of_a_class() -> None:
    """Every other name of torchvision begins as one of them does."""
    starts = tuple(
        re.split(r"_?(?:tiny|small|\d+|b0|t|y|v2_x0|b)(?:_|$|\d)", name)[0] for name in SMALL
    )
    assert [name for name in OTHERS if not name.startswith(starts)] == []


@pytest.mark.parametrize(
    ("name", "size", "share", "interpolation", "mean"),
    [
        ("resnet50", 224, 224 / 256, "bilinear", 0.485),
        ("efficientnet_b4", 380, 380 / 384, "bicubic", 0.485),
        ("efficientnet_v2_l", 480, 1.0, "bicubic", 0.5),
        ("timm/test_vit", 160, 0.95, "bicubic", 0.5),
    ],
)
def test_preprocessing_is_that_of_the_weights(
    name: str, size: int, share: float, interpolation: str, mean: float
) -> None:
    """ResNets of torchvision keep 224 and bilinear; all others have what they were trained with."""
    for weights in (None, list_weights(name)[0], "file.pth"):
        found = find_preprocessing(name, weights)
        assert (found.image_size, found.crop_share) == (size, share)
        assert (found.interpolation, found.mean[0]) == (interpolation, mean)


def test_weights_in_former_keys_load(tmp_path: Path) -> None:
    """DenseNet is published with `norm.1`; its head is not taken."""
    state = torchvision.models.densenet121(weights=None).state_dict()
    state["classifier.bias"][:] = 7
    old = {re.sub(r"(denselayer\d+\.(?:norm|conv))(\d)", r"\1.\2", k): v for k, v in state.items()}
    assert old.keys() != state.keys()
    save_file({f"module.{key}": value for key, value in old.items()}, tmp_path / "old.safetensors")
    model = Tagger("densenet121", 2, **COLORS)
    assert load_pretrained(model, "densenet121", str(tmp_path / "old.safetensors")) == 1000
    for key, value in model.features.state_dict().items():
        assert value.equal(state[key])


def test_weights_of_a_transformer_are_for_one_size() -> None:
    """The error names the size; nothing is downloaded first."""
    with torch.device("meta"):
        model = Tagger("vit_b_32", 2, image_size=64, **COLORS)
    with pytest.raises(
        WeightsError, match="of vit_b_32 are for pictures of 224 px alone, not of 64"
    ):
        load_pretrained(model, "vit_b_32", "IMAGENET1K_V1", 64)


@pytest.mark.parametrize(
    ("name", "layers", "first", "last"),
    [
        ("resnet18", 5, "conv1.weight", "layer4.0.conv1.weight"),
        ("convnext_tiny", 5, "features.0.0.weight", "features.7.0.block.0.weight"),
        ("swin_t", 5, "features.0.0.weight", "norm.weight"),
        ("vit_b_32", 13, "class_token", "encoder.ln.weight"),
        ("mobilenet_v3_small", 13, "features.0.0.weight", "features.12.0.weight"),
        ("vgg11_bn", 8, "features.1.weight", "features.26.weight"),
        ("timm/test_vit", 7, "pos_embed", "norm.weight"),
        ("timm/test_convnext", 11, "stem.0.weight", "head.norm.weight"),
    ],
)
def test_layers_are_counted(name: str, layers: int, first: str, last: str) -> None:
    """From the stem, 0, to the last one; none is left out."""
    with torch.device("meta"):
        backbone, _ = build_backbone(name, 1, find_preprocessing(name, None).image_size)
    numbers = number_layers(backbone, name)
    assert sorted(set(numbers.values())) == list(range(layers))
    assert numbers.keys() == dict(backbone.named_parameters()).keys()
    assert (numbers[first], numbers[last]) == (0, layers - 1)


@pytest.mark.parametrize("name", ["regnet_x_400mf", "timm/test_efficientnet"])
def test_batch_norm_needs_two_values(name: str) -> None:
    """One picture is enough where the last map has more than one pixel."""
    assert not takes_one_picture(lambda side: build_backbone(name, 1, side)[0], 32)
    assert takes_one_picture(lambda side: build_backbone(name, 1, side)[0], 64)


def test_layers_have_falling_rates() -> None:
    """The last layer learns at lr and comes first, so that the log shows it; the head is apart."""
    model = Tagger("resnet18", 2, **COLORS)
    groups = model.parameter_groups(1.0, 9.0, 0.01, 0.5)
    assert [group["initial_lr"] for group in groups] == [
        *(1, 1, 0.5, 0.5, 0.25, 0.25, 0.125, 0.125, 0.0625, 0.0625, 9, 9)
    ]
    assert groups[0]["params"][0] is model.features.layer4[0].conv1.weight
    assert {id(p) for g in groups for p in g["params"]} == {id(p) for p in model.parameters()}
    whole = model.parameter_groups(1.0, 9.0, 0.01, 1.0)
    assert {group["initial_lr"] for group in whole} == {1, 9}


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("vit_b_32", {"class_token", "encoder.pos_embedding"}),
        ("swin_t", {"features.1.0.attn.relative_position_bias_table"}),
        ("convnext_tiny", {"features.1.0.layer_scale"}),
        ("timm/test_vit", {"cls_token", "pos_embed"}),
    ],
)
def test_places_and_scales_do_not_decay(name: str, kept: set[str]) -> None:
    """Nor do biases and norms; all other weights do."""
    with torch.device("meta"):
        backbone, _ = build_backbone(name, 1, find_preprocessing(name, None).image_size)
    undecayed = list_undecayed(backbone)
    shapes = dict(backbone.named_parameters())
    assert kept <= undecayed
    assert all(shapes[key].ndim > 1 for key in kept)
    rest = [key for key in shapes if key not in undecayed]
    assert rest
    assert all(key.endswith("weight") and shapes[key].ndim > 1 for key in rest)
