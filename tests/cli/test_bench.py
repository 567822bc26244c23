"""`mlfinetune bench`, and what `auto` chooses by measuring, as a user runs them."""

import re
from pathlib import Path

import pytest
import torch
from conftest import Run

from mlfinetune.config import load_config
from mlfinetune.data.load import load_splits
from mlfinetune.runs import checkpoint
from mlfinetune.training.autotune import choose_batch_size, measure_workers

FROZEN = "model.freeze_backbone=true"
SMALL = "model.image_size=32"


def files(folder: Path) -> set[Path]:
    """Return every path below `folder`."""
    return set(folder.rglob("*"))


def rows(text: str) -> dict[str, tuple[float, float]]:
    """Return stage -> images/s and milliseconds a batch."""
    found = re.findall(r"^(.+?) {2,}([\d,]+\.\d) +([\d,]+\.\d\d) ", text, re.MULTILINE)
    return {name: tuple(float(n.replace(",", "")) for n in numbers) for name, *numbers in found}


def test_every_stage_of_a_run_is_timed(pictures: Path, cli: Run) -> None:
    """The table, the bound, the time and one suggestion; images/s and ms say the same."""
    done = cli("bench", "pets.yaml", SMALL, cwd=pictures)
    assert done.returncode == 0, done.stderr
    found = rows(done.stdout)
    assert list(found) == ["loader (workers: 0)", "backbone forward", "training step", "loss alone"]
    for rate, ms in found.values():
        assert rate * ms / 1000 == pytest.approx(8, rel=0.1)
    assert len(re.findall("^the run is held back by: the ", done.stdout, re.MULTILINE)) == 1
    assert re.search(r"^about .* per epoch of 19 \+ 5 images", done.stdout, re.MULTILINE)
    assert len(re.findall("^suggestion: ", done.stdout, re.MULTILINE)) == 1


def test_a_frozen_run_says_what_is_paid_once(pictures: Path, cli: Run) -> None:
    """Loader and backbone once a view, the head every pass; no step through the backbone."""
    done = cli("bench", "pets.yaml", SMALL, FROZEN, cwd=pictures)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^loader .* once$", done.stdout, re.MULTILINE)
    assert re.search(r"^backbone forward .* once$", done.stdout, re.MULTILINE)
    assert re.search(r"^head step, on features .* every pass$", done.stdout, re.MULTILINE)
    assert "training step" not in done.stdout
    assert " once, for features of 19 + 5 images; then " in done.stdout


def test_a_frozen_run_without_features_is_told_of_them(pictures: Path, cli: Run) -> None:
    """Its steps go through the backbone, and the suggestion is to keep features."""
    settings = [FROZEN, "train.cache_features=off", "train.epochs=50"]
    done = cli("bench", "pets.yaml", SMALL, *settings, cwd=pictures)
    assert done.returncode == 0, done.stderr
    assert {"training step", "head step, on features"} < set(rows(done.stdout))
    assert "suggestion: train.cache_features: auto, " in done.stdout


def test_a_solved_head_is_part_of_the_time(pictures: Path, cli: Run) -> None:
    """The line says so."""
    done = cli("bench", "pets.yaml", SMALL, "train.solve_head_first=true", cwd=pictures)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^about .*, .* for \d+ and 1 solved head$", done.stdout, re.MULTILINE)


def test_bench_leaves_no_files(pictures: Path, cli: Run, tmp_path: Path) -> None:
    """Nothing beside the data, and nothing in the cache."""
    cache = tmp_path / "own-cache"
    before = files(pictures)
    for setting in (FROZEN, "data.cache_images=disk"):
        done = cli("bench", "pets.yaml", SMALL, setting, cwd=pictures, MLFINETUNE_CACHE=str(cache))
        assert done.returncode == 0, done.stderr
    assert files(pictures) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing.yaml"], "cannot read the config nothing.yaml"),
        (["pets.yaml", "train.batch_size=large"], "train.batch_size"),
        (["pets.yaml", "model.backbone=resnet17"], "no 'resnet17'"),
        (["pets.yaml", "--device", "gpu"], "device 'gpu'"),
        (["pets.yaml", "data.train=nothing.csv"], "nothing.csv"),
    ],
)
def test_errors_are_those_of_train(
    pictures: Path, cli: Run, arguments: list[str], message: str
) -> None:
    """The same words, and exit code 2."""
    bench, train = (cli(command, *arguments, cwd=pictures) for command in ("bench", "train"))
    assert (bench.returncode, train.returncode) == (2, 2)
    assert message in bench.stderr
    assert bench.stderr.splitlines()[-1] == train.stderr.splitlines()[-1]


def test_a_picture_that_cannot_be_decoded_is_named(pictures: Path, cli: Run) -> None:
    """What stops training stops the measurement."""
    for path in (pictures / "images").iterdir():
        path.write_bytes(path.read_bytes()[:100])
    done = cli("bench", "pets.yaml", SMALL, cwd=pictures)
    assert done.returncode == 2
    assert "images/0" in done.stderr


# ---- batch_size: auto, workers: auto ----------------------------------------------------


def test_a_run_with_auto_is_the_run_it_records(pictures: Path, cli: Run) -> None:
    """The run directory says a number, and training from it gives the same bits."""
    done = cli("train", "pets.yaml", "train.batch_size=auto", "-o", "first", cwd=pictures)
    assert done.returncode == 0, done.stderr
    assert "train.batch_size 8: " in done.stderr
    assert "batch_size: 8\n" in (pictures / "first/config.yaml").read_text()
    assert cli("train", "first/config.yaml", "-o", "second", cwd=pictures).returncode == 0
    one, two = (
        checkpoint.load(pictures / name / "last.safetensors").weights
        for name in ("first", "second")
    )
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("settings", [["--dry-run"], [FROZEN]])
def test_auto_works_with_the_rest(pictures: Path, cli: Run, settings: list[str]) -> None:
    """In a dry run, and with a frozen backbone."""
    done = cli("train", "pets.yaml", "train.batch_size=auto", *settings, cwd=pictures)
    assert done.returncode == 0, done.stderr


def test_trying_sizes_leaves_no_trace(pictures: Path) -> None:
    """Real steps of several sizes are timed, and the global generator is where it was."""
    settings = load_config(pictures / "pets.yaml", ["train.batch_size=auto", SMALL])
    train = load_splits(settings, None).train.take(list(range(19)) * 34)
    before = torch.get_rng_state()
    chosen, why = choose_batch_size(settings, train, torch.device("cpu"), torch.float32)
    assert torch.equal(torch.get_rng_state(), before)
    assert chosen.train.batch_size in (8, 16, 32)
    assert re.search(r"images/s were 8: .*, 16: .*, 32: .*; sizes up to 32", why or "")


def test_a_number_is_taken_as_it_is(pictures: Path) -> None:
    """Without `auto` nothing is tried and nothing is said."""
    settings = load_config(pictures / "pets.yaml")
    train = load_splits(settings, None).train
    tried = choose_batch_size(settings, train, torch.device("cpu"), torch.float32)
    assert tried == (settings, None)


def test_processes_are_chosen_for_the_models_speed(pictures: Path) -> None:
    """What a run on a GPU or many cores measures: decoding against steps, within the cores."""
    settings = load_config(pictures / "pets.yaml", [SMALL])
    train = load_splits(settings, None).train
    threads = torch.get_num_threads()
    number, why = measure_workers(settings, train, torch.device("cpu"), torch.float32)
    assert number >= 1
    assert re.match(r"of \d+ cores: one decodes \d+ images/s, a step takes \d+", why)
    assert torch.get_num_threads() == threads


def test_the_log_says_why_so_many_processes(pictures: Path, cli: Run) -> None:
    """As configured, or by the rule for a CPU."""
    fixed = cli("train", "pets.yaml", "--dry-run", cwd=pictures)
    assert "decoding processes: 0 (as configured)" in fixed.stderr
    auto = cli(
        "train", "pets.yaml", "--dry-run", "train.workers=auto", "--device", "cpu", cwd=pictures
    )
    assert re.search(r"decoding processes: [01] \(the model works on the same cores\)", auto.stderr)
