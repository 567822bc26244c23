"""The README is true: its commands run, its configs load, its links between files hold."""

import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torchvision
from conftest import CONFIG, Promise, prepare

from mlfinetune.config import load_config

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    """The fenced blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def run(command: str, cwd: Path, **environment: str) -> str:
    """A shell command's standard output; it must succeed."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", command],
        cwd=cwd,
        env={**os.environ, "PATH": path, "MAKEFLAGS": "", **environment},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_every_command_block_is_known() -> None:
    """Each bash block of the README is run by a test below."""
    first_words = [[line.split()[:2] for line in block.splitlines()] for block in blocks("bash")]
    assert first_words == [
        [["make", "demo"], ["make", "test"]],
        [["pip", "install"]],
        [["mlfinetune", "train"], ["mlfinetune", "eval"], ["mlfinetune", "predict"]],
        [["mlfinetune", "init"], ["mlfinetune", "check"], ["mlfinetune", "split"]],
        [["mlfinetune", "train"]],
        [["torchrun", "--standalone"]],
        [["mlfinetune", "bench"], ["mlfinetune", "cache"], ["mlfinetune", "cache"]],
    ]


def test_make_demo_reaches_its_figure_and_shows_where_things_are() -> None:
    """`make demo`: validation mAP of at least 0.95, and the names of what it left."""
    out = run("make demo", ROOT)
    metrics = json.loads((ROOT / "runs/demo/metrics.json").read_text())
    assert metrics["mAP"] >= 0.95
    evaluated = json.loads((ROOT / "runs/demo/eval/metrics.json").read_text())
    assert evaluated["mAP"] == metrics["mAP"]
    assert len((ROOT / "demo/predictions.csv").read_text().splitlines()) == 1001
    for name in ("runs/demo/", "demo/predictions.csv", "per_label.csv"):
        assert name in out
    assert "epoch" not in run("make demo 2>&1", ROOT)  # again: seconds, no training


def test_make_test_runs_the_checks_and_these_tests() -> None:
    """`make test` is what runs this; its recipe holds every check."""
    recipe = run("make -n -B check .venv/tested", ROOT)
    for command in ("ruff format --check", "ruff check", "mypy", "lint-imports", "-m pytest"):
        assert command in recipe
    assert "make test" in (ROOT / ".ci/run").read_text()


@pytest.mark.faults
def test_pip_install_gives_a_working_command(tmp_path: Path, promise: Promise) -> None:
    """A built and installed package answers, with every file that it needs."""
    (command,) = blocks("bash")[1].splitlines()
    assert command == "pip install ."
    run(f"python -m pip install --quiet --no-deps --no-build-isolation --target {tmp_path} .", ROOT)
    environment = {"PYTHONPATH": str(tmp_path), "PYTHONSAFEPATH": "1"}
    assert "mlfinetune" in run(f"{tmp_path}/bin/mlfinetune --version", tmp_path, **environment)
    where = run(
        "python -P -c 'import mlfinetune; print(mlfinetune.__file__)'", tmp_path, **environment
    )
    assert where.startswith(str(tmp_path))
    for file in ("config/schema.json", "report/templates/page.html.j2"):
        assert (tmp_path / "mlfinetune" / file).is_file()
    promise("P19", len(blocks("bash")[1].splitlines()), [])


@pytest.mark.faults
def test_the_three_commands(tmp_path: Path, promise: Promise) -> None:
    """Train, eval and predict on the README's own two-line config, weights from the cache."""
    prepare(tmp_path)
    (tmp_path / "images").rename(tmp_path / "photos")
    table = tmp_path / "tags.csv"
    table.write_text(table.read_text().replace("images/", "photos/"))
    (tmp_path / "pets.yaml").write_text(blocks("yaml")[0])
    cache = tmp_path / "torch/hub/checkpoints"
    cache.mkdir(parents=True)
    torch.save(torchvision.models.resnet50().state_dict(), cache / "resnet50-11ad3fa6.pth")
    out = run(blocks("bash")[2], tmp_path, TORCH_HOME=str(tmp_path / "torch"))
    assert out.count("mAP over") == 2
    assert (tmp_path / "runs/pets/eval/metrics.json").is_file()
    assert len((tmp_path / "predictions.csv").read_text().splitlines()) == 25
    promise("P19", len(blocks("bash")[2].splitlines()), [])


@pytest.mark.faults
def test_the_commands_for_data_sets(tmp_path: Path, promise: Promise) -> None:
    """Init, check and split on a table of drawn pictures."""
    prepare(tmp_path)
    out = run(blocks("bash")[3], tmp_path)
    assert "24 pictures, 8 labels" in out
    assert load_config(tmp_path / "tags.yaml").data.train == tmp_path / "tags.csv"
    assert (tmp_path / "tags.split.csv").read_text().startswith("image,labels,split")
    promise("P19", len(blocks("bash")[3].splitlines()), [])


@pytest.mark.faults
def test_the_command_that_goes_on(tmp_path: Path, promise: Promise) -> None:
    """Where nothing was stopped it trains; the second time nothing is left to train."""
    prepare(tmp_path)
    (tmp_path / "pets.yaml").write_text(CONFIG)
    (command,) = blocks("bash")[4].splitlines()
    assert "mAP over" in run(command, tmp_path)
    assert "mAP over" in run(command, tmp_path)
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["pets"]
    promise("P19", 1, [])


@pytest.mark.faults
def test_the_command_for_several_processes(tmp_path: Path, promise: Promise) -> None:
    """With two in place of eight: this machine may have no more cores."""
    prepare(tmp_path)
    (tmp_path / "pets.yaml").write_text(CONFIG)
    command = blocks("bash")[5].replace("-node 8", "-node 2")
    assert run(command, tmp_path).count("mAP over") == 1
    assert "2 processes, each with 4 pictures" in (tmp_path / "runs/pets/train.log").read_text()
    promise("P19", 1, [])


@pytest.mark.faults
def test_the_commands_for_speed(tmp_path: Path, promise: Promise) -> None:
    """Bench names what holds the run back; the cache is listed, and its features cleared."""
    prepare(tmp_path)
    config = "{data: {train: tags.csv}, model: {weights: null, image_size: 64}}"
    (tmp_path / "pets.yaml").write_text(config)
    features = tmp_path / "cache/features/some"
    features.mkdir(parents=True)
    out = run(blocks("bash")[6], tmp_path, MLFINETUNE_CACHE=str(tmp_path / "cache"))
    assert "held back by" in out
    assert "features/some" in out
    assert not features.exists()
    promise("P19", len(blocks("bash")[6].splitlines()), [])


@pytest.mark.parametrize("text", blocks("yaml"))
def test_the_configs_load(tmp_path: Path, text: str) -> None:
    """Every YAML block is a whole config."""
    (tmp_path / "pets.yaml").write_text(text)
    assert load_config(tmp_path / "pets.yaml").data.train == tmp_path / "tags.csv"


def test_the_example_names_every_default_as_it_is(tmp_path: Path) -> None:
    """The config by example differs from the defaults in its paths alone."""
    (tmp_path / "pets.yaml").write_text(blocks("yaml")[1])
    (tmp_path / "bare.yaml").write_text("data: {train: tags.csv}")
    example, bare = load_config(tmp_path / "pets.yaml"), load_config(tmp_path / "bare.yaml")
    for section in ("model", "augment", "train", "loss", "eval"):
        assert getattr(example, section) == getattr(bare, section)
    paths = {"train", "val", "images"}
    assert example.data.model_dump(exclude=paths) == bare.data.model_dump(exclude=paths)


def test_the_readme_shows_real_output() -> None:
    """No block is a placeholder, and the table has the form that the program prints."""
    assert all(len(block.splitlines()) > 1 for block in blocks("text"))
    assert re.search(r"^  mAP       0\.9[5-9]\d\d     macro F1", README, re.MULTILINE)


def test_the_file_map_names_every_room() -> None:
    """Each top-level file and folder of the package stands in the map."""
    rooms = {
        path.name + ("/" if path.is_dir() else "")
        for path in (ROOT / "mlfinetune").iterdir()
        if path.name not in ("__init__.py", "__pycache__")
    }
    assert {room for room in rooms if room not in README} == set()


def test_the_security_page_names_tests_that_are_there() -> None:
    """Each promise of SECURITY.md has its file; the commands stand in the Makefile."""
    text = (ROOT / "SECURITY.md").read_text()
    named = set(re.findall(r"`(tests/[\w/]+\.py)`", text))
    assert len(named) >= 8
    assert all((ROOT / name).is_file() for name in named)
    for target in set(re.findall(r"`make ([\w-]+)`", text)):
        assert f"\n{target}:" in (ROOT / "Makefile").read_text()


def test_the_promises_are_those_that_were_counted() -> None:
    counted = json.loads((ROOT / "benchmarks/results/faults.json").read_text())["promises"]
    rows = re.findall(r"^\| (P\d+) \| .* \| ([\d,]+) \| (\d+) \|$", README, re.MULTILINE)
    wanted = [(name, f"{row['trials']:,}", str(row["failures"])) for name, row in counted.items()]
    assert rows == wanted
    assert [name for name, *_ in rows] == [f"P{n}" for n in range(1, 21)]


def test_the_scripts_of_scale_can_be_read() -> None:
    """Each is one that bash takes, and torchrun knows its options."""
    page = (ROOT / "docs/scale.md").read_text()
    scripts = re.findall(r"^```bash\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    assert len(scripts) == 5
    for script in scripts:
        run(f"bash -n <<'END'\n{script}END", ROOT)
    known = run("torchrun --help", ROOT).replace("_", "-")
    options = {word for script in scripts for word in re.findall(r"--[a-z][a-z-]+", script)}
    ours = {"--checkpoint", "--shard", "--resume"}
    slurm = set(re.findall(r"#SBATCH (--[a-z-]+)", page)) | {"--nodes"}
    for option in options - ours - slurm:
        assert option in known, option


def test_the_table_of_scale_is_what_the_arithmetic_gives() -> None:
    model = runpy.run_path(str(ROOT / "benchmarks/scale_model.py"))
    assert "\n".join(model["lines"]()) in (ROOT / "docs/scale.md").read_text()
    kept = json.loads((ROOT / "benchmarks/results/scale_model.json").read_text())
    for row, now in zip(kept["rows"], model["table"](), strict=True):
        assert row == pytest.approx(now)
