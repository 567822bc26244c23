"""`mlfinetune models`: names, sizes, and the weights on this machine."""

import json
from pathlib import Path

import pytest
from conftest import Run


def test_backbones_of_torchvision_are_listed(tmp_path: Path, cli: Run) -> None:
    """One line each: millions of parameters, pixels, weights; standard error knows of timm."""
    (tmp_path / "hub/checkpoints").mkdir(parents=True)
    (tmp_path / "hub/checkpoints/resnet18-f37072fd.pth").touch()
    done = cli("models", cwd=tmp_path, TORCH_HOME=str(tmp_path))
    rows = {line.split()[0]: line.split()[1:] for line in done.stdout.splitlines()}
    assert rows["resnet18"] == ["11.7", "224", "IMAGENET1K_V1"]
    assert rows["efficientnet_b4"] == ["19.3", "380", "-"]
    assert not {"googlenet", "resnet6_tiny"} & set(rows)
    assert "timm has more: mlfinetune models 'timm/*'" in done.stderr


def test_json_names_all_weights(tmp_path: Path, cli: Run) -> None:
    """The best ones first, as `auto` takes them."""
    (entry,) = json.loads(cli("models", "resnet50", "--json", cwd=tmp_path).stdout)[:1]
    assert entry["name"] == "resnet50"
    assert (entry["parameters"], entry["image_size"]) == (25557032, 224)
    assert entry["weights"] == ["IMAGENET1K_V2", "IMAGENET1K_V1"]


def test_models_of_timm_are_found_by_a_part_of_their_name(tmp_path: Path, cli: Run) -> None:
    """Few are counted, and more are not; a name that nothing matches is refused."""
    done = cli("models", "test_vit", cwd=tmp_path)
    assert "timm/test_vit.r160_in1k" in done.stdout
    assert ["timm/test_vit2.r160_in1k", "0.5", "160", "-"] in [
        line.split() for line in done.stdout.splitlines()
    ]
    many = cli("models", "timm/efficientvit*", cwd=tmp_path)
    assert "their parameters are counted where at most 20 match" in many.stderr
    assert "  -   224  -\n" in many.stdout
    none = cli("models", "timm/test_vitt2", cwd=tmp_path)
    assert (none.returncode, "did you mean 'timm/test_vit2" in none.stderr) == (2, True)


def test_without_timm_the_list_says_so(
    tmp_path: Path, cli: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Names of torchvision are listed all the same."""
    monkeypatch.setattr("mlfinetune.models.timm_backbones.find_spec", lambda _: None)
    done = cli("models", "*vit_b*", cwd=tmp_path)
    assert (done.returncode, "vit_b_16" in done.stdout) == (0, True)
    assert 'pip install "mlfinetune[timm]"' in done.stderr
