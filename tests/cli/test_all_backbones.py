"""Backbones of several kinds, from random weights through every command."""

import json
import sys
from pathlib import Path

import pytest
import yaml
from conftest import Run
from safetensors.torch import save_file

from mlfinetune.runs import checkpoint

KINDS = {
    "timm/test_vit": ["model.image_size=32"],
    "timm/test_convnext": ["model.image_size=64", "model.resize=crop"],
    "timm/test_efficientnet": ["model.image_size=64"],
    "timm/test_resnet": ["model.image_size=64"],
    "shufflenet_v2_x0_5": ["model.image_size=32"],
}
"""A transformer, LayerNorm, activations inside of BatchNorm, timm's ResNet, one of torchvision."""


@pytest.fixture
def few(pictures: Path) -> Path:
    """Return a folder with a table of twelve pictures."""
    rows = (pictures / "tags.csv").read_text().splitlines()
    (pictures / "tags.csv").write_text("\n".join(rows[:13]))
    return pictures


@pytest.mark.parametrize("name", KINDS)
def test_a_backbone_goes_through_every_command(few: Path, cli: Run, name: str) -> None:
    """Trained, resumed, evaluated with the same numbers, and asked for predictions."""
    asked = (f"model.backbone={name}", *KINDS[name])
    assert cli("train", "pets.yaml", *asked, "train.layer_decay=0.7", cwd=few).returncode == 0
    more = ("train.epochs=2", "--resume", "--allow-changed")
    done = cli("train", "runs/pets/config.yaml", *more, cwd=few)
    assert (done.returncode, "resumes at epoch 2" in done.stderr) == (0, True)
    assert cli("eval", "--checkpoint", "runs/pets", cwd=few).returncode == 0
    before, after = (
        json.loads((few / path).read_text())["per_label"]
        for path in ("runs/pets/metrics.json", "runs/pets/eval/metrics.json")
    )
    assert after == before
    done = cli("predict", "images", "--checkpoint", "runs/pets", "-o", "out.csv", cwd=few)
    assert (done.returncode, "as trained: a " in done.stderr) == (0, True)
    assert len((few / "out.csv").read_text().splitlines()) == 25
    done = cli("train", "pets.yaml", *asked, "model.freeze_backbone=true", cwd=few)
    assert (done.returncode, "10 to compute" in done.stderr) == (0, True)


def test_a_frozen_backbone_keeps_its_features(few: Path, cli: Run) -> None:
    """They are found again for the same weights, computed anew for others, and change nothing."""
    model = ("model.backbone=timm/test_efficientnet", "model.image_size=64")
    asked = ("train", "pets.yaml", *model, "model.freeze_backbone=true")
    first, second, other = (
        cli(*asked, f"train.seed={seed}", cwd=few, MLFINETUNE_CACHE=str(few / "kept")).stderr
        for seed in (0, 0, 1)
    )
    assert "0 kept from before, 10 to compute (none kept for these weights and settings)" in first
    assert "features of train: 10 wanted, 10 kept from before\n" in second
    assert "none kept for these weights and settings" in other
    weights = [
        checkpoint.load(few / f"runs/pets{end}/best.safetensors").weights
        for end in ("", "-2", "-3")
    ]
    backbones = [{k: v for k, v in each.items() if "head." not in k} for each in weights]
    same = [all(v.equal(backbone[k]) for k, v in backbones[0].items()) for backbone in backbones]
    assert same == [True, True, False]


def test_what_the_weights_want_is_recorded(few: Path, cli: Run) -> None:
    """The config names size and weights; the checkpoint has mean, interpolation and crop too."""
    asked = ("model.backbone=timm/test_convnext.r160_in1k", "model.image_size=auto")
    assert cli("train", "pets.yaml", *asked, cwd=few).returncode == 0
    config = yaml.safe_load((few / "runs/pets/config.yaml").read_text())
    assert config["model"]["image_size"] == 160
    spec = checkpoint.load(few / "runs/pets/best.safetensors").transform
    assert (spec.mean, spec.std, spec.interpolation) == ((0.5,) * 3, (0.5,) * 3, "bicubic")
    assert (spec.image_size, spec.crop_share) == (160, 0.95)


def test_a_run_gives_its_backbone_and_its_colors(few: Path, cli: Run) -> None:
    """Weights of a run bring mean, std and size; those of a file are said to be ImageNet's."""
    asked = ("train", "pets.yaml", "model.backbone=shufflenet_v2_x0_5")
    color = ("model.mean=[0, 0, 0]", "model.std=[1, 1, 1]", "model.image_size=32")
    assert cli(*asked, *color, cwd=few).returncode == 0
    first = checkpoint.load(few / "runs/pets/best.safetensors")
    assert (first.transform.mean, first.transform.std) == ((0.0,) * 3, (1.0,) * 3)
    again = ("model.weights=runs/pets", "model.image_size=auto", "-o", "runs/again")
    assert cli(*asked, *again, cwd=few).returncode == 0
    spec = checkpoint.load(few / "runs/again/best.safetensors").transform
    assert (spec.mean, spec.std, spec.image_size) == ((0.0,) * 3, (1.0,) * 3, 32)


def test_a_file_of_weights_may_want_other_colors(few: Path, cli: Run) -> None:
    """The log says which mean and std are used, unless the config says so."""
    assert cli("train", "pets.yaml", cwd=few).returncode == 0
    weights = checkpoint.load(few / "runs/pets/best.safetensors").weights
    state = {k.removeprefix("features."): v for k, v in weights.items() if "head." not in k}
    save_file(state, few / "plain.safetensors")
    asked = ("train", "pets.yaml", "model.weights=plain.safetensors", "--dry-run")
    said = "mean and std of ImageNet: weights that were trained otherwise need model.mean and"
    assert said in cli(*asked, cwd=few).stderr
    assert said not in cli(*asked, "model.mean=[0, 0, 0]", cwd=few).stderr


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("model.mean=[0, 0]", "model.mean"),
        ("model.mean=[123, 116, 103]", "model.mean"),
        ("model.std=[1, 0, 1]", "wanted three numbers above 0, got [1.0, 0.0, 1.0]"),
        ("model.image_size=big", "model.image_size"),
        ("model.backbone=timm/test_vitt", "no 'timm/test_vitt'; did you mean 'timm/test_vit'?"),
        ("model.backbone=timm/hf-hub:me/evil", "no 'timm/hf-hub:me/evil'"),
        ("model.backbone=timm/test_vit.r160_in2k", "no weights 'r160_in2k'; did you mean 'r160"),
        ("model.backbone=efficientnet-b0", "no 'efficientnet-b0'; did you mean 'efficientnet_b0'?"),
        ("model.backbone=test_vit", "no 'test_vit'; did you mean 'timm/test_vit'?"),
        ("model.backbone=hf-hub:timm/test_vit.r160_in1k", "did you mean 'timm/test_vit.r160_in1k'"),
        ("model.backbone=timm/gemma4_vit_167m_enc; model.image_size=96", "are 4 x 768 numbers"),
        ("model.backbone=googlenet", "googlenet cannot be a backbone: in training it gives the"),
        ("model.backbone=vit_b_32", "vit_b_32 does not take pictures of 65 px (Input shape"),
        ("model.backbone=timm/test_vit", "(Input height (65) should be divisible by patch size"),
        ("model.backbone=mobilenet_v2; model.levels=2", "model.levels: 2 is for ResNets of"),
        ("model.backbone=timm/test_vit; model.levels=2", "model.levels: 2 is for ResNets of"),
        ("model.backbone=timm/test_vit4; model.weights=auto", "there are none of timm/test_vit4"),
        ("model.backbone=timm/test_vit; model.weights=r160", "timm/test_vit has no 'r160'"),
        ("model.freeze_backbone=true; train.layer_decay=0.5", "train.layer_decay is for fine"),
        ("model.backbone=alexnet; train.layer_decay=0.5", "alexnet has no layers to count"),
        ("train.layer_decay=1.5", "train.layer_decay"),
    ],
)
def test_what_cannot_be_is_named(few: Path, cli: Run, override: str, said: str) -> None:
    """The key, the nearest name, the size that is right; no picture is scanned, nothing is left."""
    done = cli("train", "pets.yaml", "model.image_size=65", *override.split("; "), cwd=few)
    assert (done.returncode, (few / "runs").exists()) == (2, False)
    assert (said in done.stderr, "images found" in done.stderr) == (True, False)


def test_timm_is_an_extra(few: Path, cli: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it the error names the command that installs it."""
    monkeypatch.setitem(sys.modules, "timm", None)
    done = cli("train", "pets.yaml", "model.backbone=timm/test_vit", cwd=few)
    assert (done.returncode, 'pip install "mlfinetune[timm]"' in done.stderr) == (2, True)
