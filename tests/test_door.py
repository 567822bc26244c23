"""`import mlfinetune`: light, typed, and the same as the commands."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import run_command

import mlfinetune
from mlfinetune.data.images import scan


def test_importing_the_package_loads_nothing(tmp_path: Path) -> None:
    """No torch, no numpy, until a name is used; the names are listed all the same."""
    code = (
        "import sys, mlfinetune; heavy = {'torch', 'numpy', 'pydantic', 'fsspec', 'typer'};"
        "print(mlfinetune.__version__, sorted(heavy & set(sys.modules)), 'load' in dir(mlfinetune))"
    )
    done = run_command([sys.executable, "-c", code], tmp_path)
    assert done.stdout == f"{mlfinetune.__version__} [] True\n", done.stderr


def test_every_name_is_there() -> None:
    for name in mlfinetune.__all__:
        assert getattr(mlfinetune, name) is not None
    assert mlfinetune.Tagger.__name__ == "Tagger"
    with pytest.raises(AttributeError, match="has no attribute 'lod'"):
        _ = mlfinetune.lod


def test_the_loss_is_a_name_of_the_package() -> None:
    torch = pytest.importorskip("torch")
    loss = mlfinetune.loss.sigmoid_cross_entropy(torch.zeros(2, 3), torch.ones(2, 3))
    assert loss.item() == pytest.approx(np.log(2))


def test_a_run_from_python_is_the_one_of_the_command(
    trained: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same pictures and config give the same numbers; it is resumed and evaluated too."""
    monkeypatch.chdir(pictures)
    run = mlfinetune.train("pets.yaml", output="ours", device="cpu")
    wanted = json.loads((trained / "runs/pets/metrics.json").read_text())
    assert (run.path, run["mAP"]) == (pictures / "ours", wanted["mAP"])
    assert run.metrics["per_label"] == wanted["per_label"]
    again = mlfinetune.train(run.path / "config.yaml", resume=True, device="cpu")
    assert (again.path, again["mAP"]) == (run.path, run["mAP"])
    results = mlfinetune.evaluate(run, data="tags.csv", output="scored")
    assert (results.path, results["images"]) == (Path("scored"), 24)
    assert results.metrics == json.loads((pictures / "scored/metrics.json").read_text())
    assert run.load("cpu").labels == list(wanted["per_label"])


def test_a_config_of_python(
    pictures: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A dictionary, its paths from the current folder; nothing is printed."""
    monkeypatch.chdir(pictures)
    config = {
        "data": {"train": Path("tags.csv"), "label_delimiter": "|"},
        "model": {"backbone": "resnet6_tiny", "levels": 1, "weights": None, "image_size": 32},
        "train": {"epochs": 1, "batch_size": 8, "workers": 0, "precision": "float32"},
    }
    run = mlfinetune.train(config, {"train": {"lr": 1e-5}}, device="cpu")
    assert run.path == pictures / "runs/run"
    assert "\n  lr: 1.0e-05\n" in (run.path / "config.yaml").read_text()
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mlfinetune.train("none.yaml"), "cannot read the config none.yaml"),
        (lambda: mlfinetune.train({"data": {}}), "(?s)config: .*data.train"),
        (lambda: mlfinetune.train({}, {"train.epoch": 3}), "did you mean 'epochs'"),
        (lambda: mlfinetune.train({}, {"train.lr": object()}), "a config holds texts, numbers"),
        (lambda: mlfinetune.evaluate("none"), "no such checkpoint: .*none"),
        (lambda: mlfinetune.load("a.safetensors", device="tpu"), "device 'tpu'"),
        (lambda: mlfinetune.evaluate("none", data="s3://b/a.csv?token=x"), "no password, token"),
    ],
)
def test_errors_are_in_words(
    call: Callable[[], object], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(mlfinetune.MlfinetuneError, match=message):
        call()


def test_torchrun_is_for_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}
    numbers |= {"GROUP_RANK": "0", "TORCHELASTIC_RESTART_COUNT": "0", "MASTER_PORT": "1"}
    for name, value in {**numbers, "MASTER_ADDR": "127.0.0.1"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(mlfinetune.MlfinetuneError, match="give torchrun the command"):
        mlfinetune.train({})


def test_a_script_needs_no_guard(pictures: Path) -> None:
    """The processes that look at many pictures do not begin the training anew."""
    table = (pictures / "tags.csv").read_text().splitlines()
    for number in range(scan._WORTH_PROCESSES + 8):
        name, labels = table[1 + number % (len(table) - 1)].split(",")
        copy = pictures / f"images/copy{number}{Path(name).suffix}"
        copy.write_bytes((pictures / "images" / Path(name).name).read_bytes())
        table.append(f"images/{copy.name},{labels}")
    (pictures / "tags.csv").write_text("\n".join(table) + "\n")
    script = pictures / "script.py"
    script.write_text(
        "import mlfinetune\n"
        "config = {'data': {'train': 'tags.csv'}, 'model': {'backbone': "
        "'shufflenet_v2_x0_5', 'weights': None, 'image_size': 32}, "
        "'train': {'epochs': 1, 'workers': 0}}\n"
        "print('began')\n"
        "mlfinetune.train(config, output='run')\n"
    )
    done = subprocess.run(
        [sys.executable, str(script)], cwd=pictures, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "began\n"
    assert "Traceback" not in done.stderr
