"""The fused backbone: the numbers of the original, the original unchanged, and the fallbacks."""

import re
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torchvision
from torch import Tensor, nn

from mlfinetune.data.batches.batch import Batch
from mlfinetune.models.backbones import PooledResNet, build_backbone
from mlfinetune.models.inference import (
    AS_TRAINED,
    FOLDED,
    FUSED,
    FusedBackbone,
    fuse_for_cpu,
    prepare_for_inference,
)
from mlfinetune.models.scoring import compute_logits
from mlfinetune.models.tagger import Tagger

SIDE = 64
NAMES = ("resnet18", "resnet50", "resnext50_32x4d", "wide_resnet50_2")


def backbone(name: str = "resnet18", seed: int = 0) -> nn.Module:
    """Return random weights, and BatchNorm statistics that matter."""
    torch.manual_seed(seed)
    net = build_backbone(name)[0].eval()
    for norm in (module for module in net.modules() if isinstance(module, nn.BatchNorm2d)):
        norm.running_mean.normal_(0, 0.1)
        norm.running_var.uniform_(0.5, 1.5)
        nn.init.uniform_(norm.weight, 0.2, 0.6)
        nn.init.normal_(norm.bias, 0, 0.1)
    return net


def pictures(count: int, side: int = SIDE) -> Tensor:
    """Normalised noise."""
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(count))


@pytest.fixture(scope="module", params=NAMES)
def net(request: pytest.FixtureRequest) -> nn.Module:
    """Return every kind of block, grouped and wide ones too; no test changes it."""
    return backbone(request.param)


@pytest.fixture(scope="module")
def small() -> nn.Module:
    """Return a resnet18; no test changes it."""
    return backbone()


def plain(net: nn.Module, dtype: torch.dtype = torch.float32) -> nn.Module:
    """Return the folded backbone of a machine without oneDNN."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.backends.mkldnn, "enabled", False)
        fused, why = fuse_for_cpu(net, dtype, SIDE)
    assert why == f"{FOLDED}: torch.backends.mkldnn.enabled is False"
    assert isinstance(fused, FusedBackbone)
    return fused


def off(one: Tensor, two: Tensor) -> float:
    """Return the distance of two tensors, as a share of the second one's length."""
    return ((one - two).norm() / two.norm()).item()


# ---- the same numbers -------------------------------------------------------------------


@torch.inference_mode()
def test_float32_features_are_the_originals(net: nn.Module) -> None:
    """Odd batches, in float32, come out as the original says, to 1e-4 and in float32."""
    fused, why = fuse_for_cpu(net, torch.float32, SIDE)
    assert why == FUSED
    for count in (1, 3, 5):
        features = fused(pictures(count))
        torch.testing.assert_close(features, net(pictures(count)), rtol=1e-4, atol=1e-4)


@torch.inference_mode()
def test_bfloat16_features_are_near_the_originals(net: nn.Module) -> None:
    """bfloat16 with 8 bits is within 1 % of float32, and not float32 itself."""
    fused, why = fuse_for_cpu(net, torch.bfloat16, SIDE)
    assert why == FUSED
    for count in (1, 3, 5):
        features = fused(pictures(count))
        assert features.dtype == torch.bfloat16
        assert 0 < off(features.float(), net(pictures(count))) < 0.01


@pytest.mark.parametrize("side", [32, 63, 96])
@torch.inference_mode()
def test_another_size_comes_out_right(small: nn.Module, side: int) -> None:
    """Weights laid out for 64 px compute other sizes as well."""
    fused, _ = fuse_for_cpu(small, torch.float32, SIDE)
    torch.testing.assert_close(fused(pictures(3, side)), small(pictures(3, side)))


@torch.inference_mode()
def test_either_layout_is_taken_and_left_as_it_is(small: nn.Module) -> None:
    """NCHW and channels_last give one result, and the input stays what it was."""
    fused, _ = fuse_for_cpu(small, torch.float32, SIDE)
    x = pictures(3)
    last = x.contiguous(memory_format=torch.channels_last)
    assert torch.equal(fused(x), fused(last))
    assert torch.equal(x, pictures(3))
    assert torch.equal(last, x)


@torch.inference_mode()
def test_autocast_around_it_changes_nothing(small: nn.Module) -> None:
    """The type is chosen when fusing: under bfloat16 autocast float32 stays float32."""
    for fused in (fuse_for_cpu(small, torch.float32, SIDE)[0], plain(small)):
        expected = fused(pictures(2))
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(fused(pictures(2)), expected)


@torch.inference_mode()
def test_threads_share_it(small: nn.Module) -> None:
    """Eight threads at once get what one gets."""
    fused, _ = fuse_for_cpu(small, torch.bfloat16, SIDE)
    expected = [fused(pictures(count)) for count in (1, 2, 3, 4)]
    counts = [1, 2, 3, 4] * 8
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda count: fused(pictures(count)), counts))
    for count, features in zip(counts, found, strict=True):
        assert torch.equal(features, expected[count - 1])


# ---- the original -----------------------------------------------------------------------


def test_the_original_is_untouched() -> None:
    """Weights, statistics, gradient switches and the global generator stay what they were."""
    net = backbone()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    state = torch.get_rng_state()
    fused, _ = fuse_for_cpu(net, torch.bfloat16, SIDE)
    fused(pictures(2))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(net.state_dict()[name], value) for name, value in before.items())
    assert all(parameter.requires_grad for parameter in net.parameters())


@pytest.mark.parametrize("way", ["fused", "plain"])
def test_later_changes_of_the_original_do_not_reach_it(way: str) -> None:
    """A fused backbone is a copy: it does not see later changes of the weights."""
    net = backbone()
    fused = fuse_for_cpu(net, torch.float32, SIDE)[0] if way == "fused" else plain(net)
    expected = fused(pictures(2)).clone()
    for value in net.state_dict().values():
        value.zero_()
    assert torch.equal(fused(pictures(2)), expected)


def test_a_network_in_training_mode_is_fused_in_evaluation_mode(small: nn.Module) -> None:
    """Fusing takes the running statistics, leaves the original training, and needs no gradient."""
    net = backbone().train()
    for fused in (fuse_for_cpu(net, torch.float32, SIDE)[0], plain(net)):
        features = fused(pictures(2))
        with torch.no_grad():
            torch.testing.assert_close(features, small(pictures(2)))
        assert not features.requires_grad
    assert net.training


# ---- fallbacks --------------------------------------------------------------------------


@torch.inference_mode()
def test_plain_operators_say_the_same(net: nn.Module) -> None:
    """Without oneDNN the folded network serves: float32 to 1e-4, bfloat16 within 1 %."""
    expected = net(pictures(3))
    torch.testing.assert_close(plain(net)(pictures(3)), expected, rtol=1e-4, atol=1e-4)
    assert 0 < off(plain(net, torch.bfloat16)(pictures(3)), expected) < 0.01


def test_an_operator_that_refuses_is_replaced() -> None:
    """oneDNN has no float64: plain operators serve, exactly, and the log can say why."""
    net = backbone().double()
    fused, why = fuse_for_cpu(net, torch.float64, SIDE)
    assert re.fullmatch(f"{FOLDED}: .*tensor.*", why)
    with torch.no_grad():
        torch.testing.assert_close(fused(pictures(3)).float(), net(pictures(3).double()).float())


def test_features_that_are_not_finite_are_not_trusted() -> None:
    """Where the fused operators cannot be compared, the plain ones serve, and it is said."""
    net = backbone()
    nn.init.constant_(net.get_submodule("layer4.1.bn2").bias, torch.nan)
    fused, why = fuse_for_cpu(net, torch.float32, SIDE)
    assert why == f"{FOLDED}: they are off by nan of the features"
    assert fused(pictures(1)).isnan().all()


def other_network(kind: str) -> tuple[nn.Module, int]:
    """Return a network that cannot be folded, without its last layer, and its features."""
    torch.manual_seed(0)
    if kind == "mobilenet":
        net = torchvision.models.mobilenet_v3_small(weights=None)
        net.classifier = nn.Identity()
        return net, 576
    if kind == "densenet":
        net = torchvision.models.DenseNet(8, (2, 2), 16)
        width = net.classifier.in_features
        net.classifier = nn.Identity()
        return net, width
    if kind == "sequential":
        pooled = (nn.AdaptiveAvgPool2d(1), nn.Flatten())
        return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), *pooled), 8
    net = torchvision.models.resnet18(norm_layer=lambda width: nn.GroupNorm(4, width))
    return PooledResNet(net), 512


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("mobilenet", "a MobileNetV3 is not a ResNet of torchvision"),
        ("densenet", "a DenseNet is not a ResNet of torchvision"),
        ("sequential", "a Sequential is not a ResNet of torchvision"),
        ("groupnorm", "bn1 is a GroupNorm, not a BatchNorm2d with running statistics"),
    ],
)
def test_a_network_that_cannot_be_folded_predicts_as_trained(
    kind: str, reason: str, dtype: torch.dtype
) -> None:
    """Another architecture or another norm: the network as it is, the same logits, and why."""
    tagger = Tagger("resnet18", 3, mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2))
    net, width = other_network(kind)
    tagger.features, tagger.head = net, nn.Linear(width, 3)
    cpu = torch.device("cpu")
    served, how = prepare_for_inference(tagger, SIDE, cpu, dtype)
    assert how == f"{AS_TRAINED}: {reason}"
    images = torch.randint(0, 256, (2, 3, SIDE, SIDE), dtype=torch.uint8)
    batch = Batch(images, torch.zeros(2, 3, dtype=torch.int8), torch.arange(2))
    logits = torch.from_numpy(compute_logits(served, batch, cpu, dtype))
    with torch.no_grad(), torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        torch.testing.assert_close(logits, tagger.eval()(images).float())


def test_a_resnet_with_other_blocks_is_left_as_trained() -> None:
    """A subclass of a block may compute something else: it is not folded."""

    class Block(torchvision.models.resnet.BasicBlock):
        pass

    net = PooledResNet(torchvision.models.ResNet(Block, [1, 1, 1, 1]))
    assert fuse_for_cpu(net, torch.float32, SIDE) == (
        net,
        f"{AS_TRAINED}: layer1.0 is a Block, not a residual block of torchvision",
    )


@pytest.mark.parametrize("levels", [2, 4])
def test_the_means_of_several_stages_are_fused(levels: int) -> None:
    """From early to late, each as torchvision's own layers give it."""
    torch.manual_seed(0)
    net = build_backbone("resnet18", levels)[0].eval()
    assert isinstance(net, PooledResNet)
    with torch.no_grad():
        fused, why = fuse_for_cpu(net, torch.float32, SIDE)
        features = net(pictures(2))
        means = [each.mean((2, 3)) for each in net.compute_maps(pictures(2))]
        assert why == FUSED
        assert features.shape == (2, sum(net.widths)) == (2, sum((64, 128, 256, 512)[-levels:]))
        torch.testing.assert_close(features, torch.cat(means, 1))
        torch.testing.assert_close(fused(pictures(2)), features, rtol=1e-4, atol=1e-5)
