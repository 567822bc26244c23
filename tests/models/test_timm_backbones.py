"""Weights of timm: its cache, files of other sizes, heads, and its BatchNorm."""

import copy
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import save_file
from torch import Tensor, nn

from mlfinetune.errors import ConfigError, WeightsError
from mlfinetune.models.backbones import build_backbone
from mlfinetune.models.preprocessing import resolve_weights
from mlfinetune.models.pretrained import is_cached, load_pretrained
from mlfinetune.models.sizes import find_unused, require_vectors
from mlfinetune.models.sync_batch_norm import sync_batch_norm
from mlfinetune.models.tagger import Tagger

VIT, TAG = "timm/test_vit", "r160_in1k"
COLORS = {"mean": (0.5,) * 3, "std": (0.2,) * 3}


def build(side: int = 160, name: str = VIT) -> Tagger:
    """Build a tagger of a tiny network."""
    return Tagger(name, 2, image_size=side, **COLORS)


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> nn.Module:
    """Return the model whose weights are in the hub's cache of this test."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    import timm  # not for every process that collects this file

    model = timm.create_model("test_vit", pretrained=False)
    repository = tmp_path / "hub" / f"models--timm--test_vit.{TAG}"
    snapshot = repository / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text("0" * 40)
    save_file(model.state_dict(), snapshot / "model.safetensors")
    return model


def test_weights_in_the_cache_are_taken(published: nn.Module) -> None:
    """By the name that `auto` finds, without a network, at another size too."""
    assert resolve_weights(VIT, "auto") == TAG
    assert is_cached(VIT, TAG)
    tagger, other = build(), build(64)
    load_pretrained(tagger, VIT, TAG, 160)
    load_pretrained(other, VIT, TAG, 64)
    picture = torch.randn(1, 3, 160, 160)
    expected = published.eval().forward_head(published.forward_features(picture), pre_logits=True)
    torch.testing.assert_close(tagger.eval().features(picture), expected)
    assert other.features.pos_embed.shape == (1, 17, 64)
    assert other.features.blocks[0].attn.qkv.weight.equal(published.blocks[0].attn.qkv.weight)


def test_no_weights_and_no_network_say_what_to_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The message names the weights, the cache, and the keys to set."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    assert not is_cached(VIT, TAG)
    with pytest.raises(WeightsError) as caught:
        load_pretrained(build(), VIT, TAG, 160)
    message = str(caught.value)
    assert message.startswith("cannot get the weights test_vit.r160_in1k of timm: ")
    assert f"timm keeps timm/test_vit.r160_in1k in {tmp_path} (HF_HOME)" in message
    assert "set model.weights to a local .safetensors or .pth file with timm's keys" in message


def test_a_file_of_another_size_is_resized(published: nn.Module, tmp_path: Path) -> None:
    """As timm does it; the head is counted and not taken, and a wrong file is refused."""
    save_file(published.state_dict(), tmp_path / "vit.safetensors")
    tagger = build(64)
    outputs = load_pretrained(tagger, VIT, str(tmp_path / "vit.safetensors"), 64)
    cached = build(64)
    load_pretrained(cached, VIT, TAG, 64)
    assert outputs == 1000
    assert all(
        value.equal(cached.features.state_dict()[key])
        for key, value in tagger.features.state_dict().items()
    )
    state = {key: value for key, value in published.state_dict().items() if "blocks.1" not in key}
    save_file(state, tmp_path / "part.safetensors")
    with pytest.raises(WeightsError, match=r"missing: blocks\.1\."):
        load_pretrained(build(64), VIT, str(tmp_path / "part.safetensors"), 64)


def test_a_norm_in_the_head_belongs_to_the_backbone(tmp_path: Path) -> None:
    """ConvNeXt has `head.norm` before `head.fc`."""
    import timm

    model = timm.create_model("test_convnext", pretrained=False)
    nn.init.normal_(model.head.norm.weight)
    save_file(model.state_dict(), tmp_path / "convnext.safetensors")
    tagger = build(name="timm/test_convnext")
    path = str(tmp_path / "convnext.safetensors")
    assert load_pretrained(tagger, "timm/test_convnext", path, 160) == 1000
    assert tagger.features.head.norm.weight.equal(model.head.norm.weight)


def test_features_of_places_are_refused() -> None:
    """An encoder for a language model gives a vector for each place, and no vector of all."""
    with torch.device("meta"):
        encoder, _ = build_backbone("timm/gemma4_vit_167m_enc", 1, 96)
        whole, _ = build_backbone(VIT, 1, 96)
    require_vectors(whole, VIT, 96)
    with pytest.raises(ConfigError, match=r"gemma4\w+ cannot be a .* are 4 x 768 numbers, not one"):
        require_vectors(encoder, "timm/gemma4_vit_167m_enc", 96)


@pytest.mark.parametrize("name", [VIT, "timm/test_vit_relpos", "timm/test_efficientnet"])
def test_a_rank_without_pictures_has_no_gradient(name: str) -> None:
    """A transformer cannot reshape nothing; every parameter takes part, and none moves."""
    tagger = build(64, name).eval()
    logits = tagger(torch.zeros(0, 3, 64, 64, dtype=torch.uint8))
    logits.sum().backward()
    assert logits.shape == (0, 2)
    assert all(not p.grad.any() for p in tagger.parameters())


def alone(_: Tensor) -> None:
    """The sum over one rank."""


def test_activations_inside_batch_norm_stay() -> None:
    """timm's BatchNormAct2d: same keys, output and statistics as one process without ranks."""
    torch.manual_seed(0)
    plain = build(64, "timm/test_efficientnet").features
    synced = copy.deepcopy(plain)
    sync_batch_norm(synced, torch.device("cpu"), alone)
    assert list(synced.state_dict()) == list(plain.state_dict())
    picture = torch.randn(4, 3, 64, 64)
    torch.testing.assert_close(synced(picture), plain(picture), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(
        dict(synced.named_buffers()), dict(plain.named_buffers()), rtol=1e-3, atol=1e-4
    )
    torch.testing.assert_close(synced.eval()(picture), plain.eval()(picture), rtol=1e-3, atol=1e-4)


def test_another_batch_norm_is_refused() -> None:
    """A layer that computes something else besides would lose it."""

    class Doubled(nn.BatchNorm2d):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    with pytest.raises(ConfigError, match="a Doubled of this backbone cannot learn from the pict"):
        sync_batch_norm(nn.Sequential(Doubled(3)), torch.device("cpu"), alone)


@pytest.mark.parametrize(
    ("name", "side", "unused"),
    [("timm/efficientvim_m1", 64, {"weights"}), (VIT, 96, set()), ("densenet121", 64, set())],
)
def test_parameters_that_take_no_part_are_found(name: str, side: int, unused: set[str]) -> None:
    """With shapes alone, as in training."""
    assert find_unused(lambda size: build_backbone(name, 1, size)[0], side) == unused


def test_a_network_that_cannot_be_tried_has_none() -> None:
    """As one whose forward pass asks for a number."""

    class Asking(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.idle = torch.nn.Parameter(torch.ones(1))

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images.mean((2, 3)) * images.sum().item()

    assert find_unused(lambda _: Asking(), 8) == set()
