"""Heat maps are exact, and lie over the object that they mean."""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from faults import tiny
from PIL import Image
from torch import Tensor, nn

from mlfinetune.data.images.overlay import draw_overlay, stretch_map
from mlfinetune.data.images.transforms import TransformSpec
from mlfinetune.errors import ConfigError, ImageError
from mlfinetune.models.heat_map import (
    Explainer,
    build_explainer,
    count_explaining_threads,
    explain,
)
from mlfinetune.models.inference import fuse_for_cpu
from mlfinetune.models.tagger import ChunkedLinear, Tagger
from mlfinetune.report.heat import compute_maps
from mlfinetune.runtime.threads import one_thread

assert tiny.resnet6_tiny
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SIZES = {"landscape": (90, 60), "portrait": (60, 90), "square": (64, 64), "panorama": (300, 60)}


def build(backbone: str = "resnet18", levels: int = 1, **options: bool) -> Tagger:
    """Return a tagger with random weights, and BatchNorm statistics that matter."""
    torch.manual_seed(levels)
    tagger = Tagger(backbone, 5, levels=levels, mean=MEAN, std=STD, **options).eval()
    for norm in (one for one in tagger.modules() if isinstance(one, nn.BatchNorm2d)):
        norm.running_mean.normal_(0, 0.1)
        norm.running_var.uniform_(0.5, 1.5)
    nn.init.normal_(tagger.head.bias)
    return tagger


def pictures(side: int) -> Tensor:
    """Return two pictures of noise."""
    generator = torch.Generator().manual_seed(side)
    return torch.randint(0, 256, (2, 3, side, side), generator=generator).to(torch.uint8)


@pytest.mark.parametrize(("levels", "side"), [(1, 64), (4, 72)])
def test_mean_and_bias_are_the_logit(levels: int, side: int) -> None:
    """For one map, and for maps of 18, 9, 5 and 3 cells; fused and as trained."""
    tagger, labels = build(levels=levels), [3, 0]
    fused = tagger.with_features(fuse_for_cpu(tagger.features, torch.float32, side)[0])
    with torch.inference_mode():
        logits = tagger(pictures(side))[:, labels]
    for one in (tagger, fused):
        maps = explain(one, pictures(side), labels)
        assert maps.shape[:2] == (2, 2)
        assert maps.shape[2] == -(-side // {1: 32, 4: 4}[levels])
        sums = maps.mean((2, 3)) + tagger.head.bias[labels]
        assert torch.allclose(sums, logits, rtol=0, atol=1e-4)


def test_maps_of_mirror_views_are_exact_too() -> None:
    """Their means and the bias are the mean logits of both views."""
    tagger = build("resnet6_tiny")
    with torch.inference_mode():
        logits = (tagger(pictures(64)) + tagger(pictures(64).flip(3))) / 2
    maps = explain(tagger, pictures(64), range(5), mirror=True)
    assert torch.allclose(maps.mean((2, 3)) + tagger.head.bias, logits, rtol=0, atol=1e-4)
    assert not torch.allclose(maps, maps.flip(3))


def test_a_chunked_head_gives_its_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Labels of the first chunk, and of the short last one."""
    monkeypatch.setattr("mlfinetune.models.tagger.CHUNK_LABELS", 2)
    tagger = build("resnet6_tiny", chunked=True)
    assert isinstance(tagger.head, ChunkedLinear)
    with torch.inference_mode():
        logits = tagger(pictures(64))[:, [1, 4]]
    maps = explain(tagger, pictures(64), [1, 4])
    assert torch.allclose(maps.mean((2, 3)) + tagger.head.bias[[1, 4]], logits, rtol=0, atol=1e-4)


@pytest.mark.parametrize("backbone", ["regnet_y_400mf", "efficientnet_b0", "timm/resnet10t"])
@pytest.mark.parametrize("mirror", [False, True])
def test_any_pooled_backbone_has_a_map(backbone: str, mirror: bool) -> None:
    """It is that of what the last pooling layer gets; the network is what it was."""
    tagger, seen = build(backbone), list[Tensor]()
    maps = explain(tagger, pictures(64), [3, 0], mirror)
    pools = [one for one in tagger.modules() if isinstance(one, nn.AdaptiveAvgPool2d)]
    pools[-1].register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    with torch.no_grad():
        logits, turned = tagger(pictures(64))[:, [3, 0]], tagger(pictures(64).flip(3))[:, [3, 0]]
    wanted = [
        torch.einsum("kc,bchw->bkhw", tagger.head.weight.detach()[[3, 0]], one) for one in seen
    ]
    if mirror:
        wanted[0], logits = (wanted[0] + wanted[1].flip(3)) / 2, (logits + turned) / 2
    assert maps.shape == (2, 2, 2, 2)
    assert torch.allclose(maps, wanted[0], rtol=0, atol=1e-4)
    sums = maps.mean((2, 3)) + tagger.head.bias[[3, 0]]
    assert torch.allclose(sums, logits, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    "backbone",
    ["convnext_tiny", "mobilenet_v3_small", "mobilenet_v2", "timm/mobilenetv3_small_050"],
)
def test_layers_beyond_the_pooling_leave_no_map(backbone: str) -> None:
    """A norm, a linear layer, an activation; or no pooling layer to see the maps of.

    Of maps with one cell nobody can tell.
    """
    for side in (64, 32):
        with pytest.raises(ConfigError, match=r"has no heat map: .*ResNets have one$"):
            explain(build(backbone), pictures(side), [0])


def test_a_network_that_cannot_be_copied_has_no_map() -> None:
    """A run ends with its page all the same."""

    class Locked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lock, self.pool = threading.Lock(), nn.AdaptiveAvgPool2d(1)

        def forward(self, x: Tensor) -> Tensor:
            return self.pool(x).flatten(1)

    tagger = build("resnet6_tiny").with_features(Locked())
    explainer, reason = build_explainer(tagger, TransformSpec(32, "squash", 10**6))
    assert explainer is None
    assert reason.startswith("a backbone of type Locked has no heat map")


def test_other_backbones_have_no_map() -> None:
    """They say so in one line."""
    tagger = build("resnet6_tiny").with_features(nn.Flatten())
    with pytest.raises(ConfigError, match=r"of type Flatten has no heat map: .*ResNets have one$"):
        explain(tagger, pictures(32), [0])
    with pytest.raises(ConfigError, match="no heat map"):
        Explainer(tagger, TransformSpec(32, "squash", 10**6))
    assert build_explainer(tagger, TransformSpec(32, "squash", 10**6))[1].count("no heat map") == 1


# ---- places -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def red() -> Tagger:
    """Return a network whose first convolution sees red, and whose others hand it on."""
    tagger = Tagger("resnet6_tiny", 2, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)).eval()
    with torch.no_grad():
        for module in tagger.features.modules():
            if isinstance(module, nn.Conv2d):
                module.weight.zero_()
                middle = module.kernel_size[0] // 2
                if module.in_channels == 3:
                    module.weight[0, :, middle, middle] = torch.tensor([1.0, -1.0, -1.0])
                elif module.kernel_size == (1, 1):
                    module.weight[0, 0] = 1  # the shortcuts
        tagger.head.weight.zero_()
        tagger.head.weight[0, 0] = 60
    return tagger


def paint(path: Path, size: tuple[int, int], center: tuple[float, float], turn: int = 1) -> None:
    """Write a grey picture with a red square around `center`, in shares; EXIF says `turn`."""
    image = Image.new("RGB", size, (128, 128, 128))
    x, y = round(center[0] * size[0]), round(center[1] * size[1])
    image.paste((255, 0, 0), (x - 8, y - 8, x + 8, y + 8))
    exif = Image.Exif()
    exif[0x0112] = turn
    image.save(path, exif=exif)


def find_peak(strength: np.ndarray) -> tuple[float, float]:
    """Return x and y of the center of the strongest part, in shares."""
    y, x = np.nonzero(strength > 0.8 * strength.max())
    return (x.mean() + 0.5) / strength.shape[1], (y.mean() + 0.5) / strength.shape[0]


@pytest.mark.parametrize("shape", SIZES)
@pytest.mark.parametrize("resize", ["squash", "crop", "pad"])
def test_the_map_lies_over_the_object(red: Tagger, tmp_path: Path, resize: str, shape: str) -> None:
    """Stretched over the whole picture, its maximum is within a cell of the red square."""
    width, height = SIZES[shape]
    center = (0.5 + 0.25 * min(1, height / width), 0.5 - 0.25 * min(1, width / height))
    paint(tmp_path / "a.png", (width, height), center)
    seen = Explainer(red, TransformSpec(128, resize, 10**6))(str(tmp_path / "a.png"), [0, 1])
    strength = stretch_map(seen.values[0], seen.box, height, width)
    x, y = find_peak(strength)
    left, top, right, bottom = seen.box
    assert abs(x - center[0]) < (right - left) / seen.values.shape[2]
    assert abs(y - center[1]) < (bottom - top) / seen.values.shape[1]
    assert not seen.values[1].any()


def test_exif_turns_picture_and_map_together(red: Tagger, tmp_path: Path) -> None:
    """The overlay is upright, as the picture is decoded: orientation 6 turns it clockwise."""
    paint(tmp_path / "a.jpg", (90, 60), (0.8, 0.25), turn=6)
    seen = Explainer(red, TransformSpec(128, "pad", 10**6))(str(tmp_path / "a.jpg"), [0])
    drawn = draw_overlay(seen.pixels, seen.values[0], seen.box, 800)
    assert drawn.shape == (90, 60, 3)
    x, y = find_peak(stretch_map(seen.values[0], seen.box, 90, 60))
    assert (abs(x - 0.75) < 0.1, abs(y - 0.8) < 0.1) == (True, True)


def test_a_lost_picture_is_an_image_error(red: Tagger) -> None:
    """Its reason is the decoder's."""
    with pytest.raises(ImageError, match="no such file"):
        Explainer(red, TransformSpec(32, "squash", 10**6))("none.png", [0])


def test_several_threads_compute_the_maps_of_one(tmp_path: Path) -> None:
    """To the last bit; and torch has as many threads afterwards as before."""
    for number, size in enumerate(SIZES.values()):
        noise = np.random.default_rng(number).integers(0, 256, (size[1], size[0], 3), np.uint8)
        Image.fromarray(noise).save(tmp_path / f"{number}.png")
    spec, before = TransformSpec(64, "squash", 10**8, MEAN, STD), torch.get_num_threads()
    tagger = build(levels=2)
    fused = tagger.with_features(fuse_for_cpu(tagger.features, torch.float32, 64)[0])
    explainer, wanted = Explainer(fused, spec), {number: [0, 3] for number in range(len(SIZES))}
    with one_thread():
        alone, shared = (
            compute_maps(wanted, explainer, lambda row: str(tmp_path / f"{row}.png"), threads)
            for threads in (1, count_explaining_threads(torch.device("cpu")) + 1)
        )
        assert shared == alone
    assert torch.get_num_threads() == before
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(torch.get_num_threads).result() == before
