"""A run that cannot be resumed as it is asked for stays as it is, to the last byte."""

import hashlib
import io
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import Run

from faults.fault_runs import EPOCHS, Runs
from mlfinetune.errors import CheckpointError, MlfinetuneError
from mlfinetune.runs import directory
from mlfinetune.runs.state import read_state, write_state
from mlfinetune.training.start import ResumeOptions

ALLOWED = ResumeOptions(allow_changed=True)
SOLVED = "model.freeze_backbone=true"
FROZEN = (SOLVED, "train.optimizer=adamw")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Return a folder with runs that are finished, stopped, frozen, and solved for."""
    runs = Runs(tmp_path_factory.mktemp("refused"))
    runs.go("done")
    runs.go("solved", SOLVED)
    runs.go("frozen", *FROZEN)
    runs.go("sgd", "train.optimizer=sgd")
    runs.stop("stopped", step=2)  # a state of the first epoch, and no checkpoint yet
    return runs


def digest(run: Path) -> dict[str, str]:
    """Return the SHA-256 of every file of a run directory, the lock's too."""
    files = (path for path in sorted(run.rglob("*")) if path.is_file())
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@contextmanager
def table(runs: Runs, change: Callable[[str], str]) -> Iterator[None]:
    """Change tags.csv inside of the block."""
    path = runs.folder / "tags.csv"
    before = path.read_text()
    path.write_text(change(before))
    try:
        yield
    finally:
        path.write_text(before)


def refuse(runs: Runs, name: str, *overrides: str) -> str:
    """Resume with --allow-changed, and return the error; nothing may be touched or made."""
    before, there = digest(runs.folder / name), sorted(runs.folder.iterdir())
    with pytest.raises(MlfinetuneError) as caught:
        runs.go(name, *overrides, resume=ALLOWED)
    assert digest(runs.folder / name) == before
    assert sorted(runs.folder.iterdir()) == there
    return str(caught.value)


LABELS = {
    "renamed": (lambda text: text.replace("red", "crimson"), "new: 'crimson'; gone: 'red'"),
    "more": (lambda text: text.replace("red", "red|odd", 9), "new: 'odd'"),
    "fewer": (lambda text: text.replace("|red", "").replace("red", ""), "gone: 'red'"),
}


@pytest.mark.parametrize("name", ["done", "solved", "frozen", "stopped"])
@pytest.mark.parametrize("change", LABELS)
def test_other_labels_are_never_allowed(runs: Runs, name: str, change: str) -> None:
    """The head has one output for each label, in the order of labels.txt."""
    edit, said = LABELS[change]
    with table(runs, edit):
        text = refuse(runs, name)
    assert f"{name} was trained on" in text
    assert said in text
    assert "train anew, without --resume" in text


def test_a_solved_run_is_not_solved_anew_on_other_data(runs: Runs) -> None:
    """It keeps no state, so its results would be overwritten by those of another model."""
    with table(runs, lambda text: text.rstrip("\n").rpartition("\n")[0] + "\n"):
        assert "training data" in refuse(runs, "solved", SOLVED)


def test_another_order_of_labels_is_never_allowed(runs: Runs) -> None:
    """The shapes agree, and every column would mean another label."""
    names = (runs.folder / "done" / directory.LABELS).read_text().split()
    for name in ("done", "solved", "stopped"):
        text = refuse(runs, name, f"data.labels=[{', '.join(reversed(names))}]")
        assert "the same ones in another order" in text


@pytest.mark.parametrize(
    ("name", "overrides", "said"),
    [
        ("done", ("model.backbone=resnet18",), "model.backbone: resnet6_tiny before, resnet18 now"),
        ("solved", ("model.backbone=resnet18", SOLVED), "the weights do not fit this model"),
        ("done", ("train.epochs=1",), f"train.epochs: 1, but {EPOCHS} are trained"),
        ("done", (SOLVED,), "L-BFGS solves for a head in one go"),
        ("done", FROZEN, "does not fit this model"),
        ("done", (*FROZEN, "train.cache_features=off"), "or this optimizer"),
        ("frozen", (), "does not fit this model"),
        ("done", ("train.optimizer=sgd",), "train.optimizer: adamw before, sgd now"),
        ("done", ("model.image_size=64",), "model.image_size: 32 before, 64 now"),
        ("stopped", ("model.resize=crop",), "model.resize: squash before, crop now"),
        ("sgd", ("train.optimizer=adamw",), "train.optimizer: sgd before, adamw now"),
        ("solved", (), "solved keeps no state to go on from"),
        ("solved", (SOLVED, "model.image_size=64"), "model.image_size: 32 before, 64 now"),
        ("done", ("loss.pos_weight={gren: 2}",), "no label 'gren'"),
        ("done", ("model.weights=none.pth",), "none.pth"),
        ("done", ("train.epochs=4", "data.train=none.csv"), "none.csv"),
    ],
)
def test_refused_changes_touch_nothing(
    runs: Runs, name: str, overrides: tuple[str, ...], said: str
) -> None:
    """The first byte is written after the last check."""
    assert said in refuse(runs, name, *overrides)


def test_a_damaged_file_is_found_before_anything_is_written(runs: Runs) -> None:
    """A finished run reads its best checkpoint at the end, and adds to what it was trained on."""
    shutil.copytree(runs.folder / "done", runs.folder / "damaged")
    trained_on = runs.folder / "damaged" / directory.TRAINED_ON
    whole = trained_on.read_bytes()
    trained_on.write_bytes(whole[:-9])
    assert "trained_on.npz is damaged" in refuse(runs, "damaged")
    trained_on.write_bytes(whole)
    best = runs.folder / "damaged" / directory.BEST
    best.write_bytes(best.read_bytes()[:-1] + b"!")
    assert "is damaged" in refuse(runs, "damaged")
    best.unlink()
    assert "cannot read" in refuse(runs, "damaged", "train.epochs=5")


def test_a_run_that_another_process_wrote_meanwhile_is_left_alone(runs: Runs) -> None:
    """It saves and ends between this one's look at the state and its lock."""
    shutil.copytree(runs.folder / "stopped", runs.folder / "raced")
    state = runs.folder / "raced" / directory.STATE

    class Screen(io.StringIO):
        def write(self, text: str) -> int:
            if "others than before" in text:  # said between the two
                state.write_bytes(state.read_bytes() + b" ")
            return super().write(text)

    with pytest.raises(CheckpointError, match="was written by another process a moment ago"):
        runs.go("raced", "train.batch_size=4", resume=ALLOWED, log=Screen())
    kept, stopped = (digest(runs.folder / name) for name in ("raced", "stopped"))
    changed = [one for one, two in zip(kept, stopped, strict=True) if kept[one] != stopped[two]]
    assert changed == [str(state)]


def test_other_batches_begin_the_epoch_anew(runs: Runs) -> None:
    """Two of three steps were taken; now an epoch has five: every epoch is counted once."""
    log = io.StringIO()
    shutil.copytree(runs.folder / "stopped", runs.folder / "batches")
    run = runs.go("batches", "train.batch_size=4", resume=ALLOWED, log=log).run
    assert "warning: the batches are others than before: epoch 1 begins anew" in log.getvalue()
    assert "resumes at epoch 1, after 0 of 5 steps" in log.getvalue()
    changes = ("train.batch_size=8", "train.sampling=balanced", "train.epochs=4")
    run = runs.go("batches", *changes, resume=ALLOWED).run
    rows = [json.loads(line) for line in (run / directory.HISTORY).read_text().splitlines()]
    assert [(row["epoch"], row["step"]) for row in rows] == [(1, 5), (2, 10), (3, 9), (4, 12)]


def test_other_sampling_begins_the_epoch_anew(runs: Runs) -> None:
    """It has as many steps, of other pictures; a state from before the key had uniform sampling."""
    shutil.copytree(runs.folder / "stopped", runs.folder / "sampling")
    state = runs.folder / "sampling" / directory.STATE
    content = read_state(state)
    del content["made_of"]["train.sampling"]
    write_state(state, state.with_name("before"), content)
    balanced = "train.sampling=balanced"
    said = []
    for name, overrides in (("older", ()), ("balanced", (balanced,))):
        shutil.copytree(runs.folder / "sampling", runs.folder / name)
        log = io.StringIO()
        runs.go(name, *overrides, resume=ALLOWED, log=log)
        said.append(log.getvalue())
    assert "resumes at epoch 1, after 2 of 3 steps" in said[0]
    assert "epoch 1 begins anew" in said[1]
    assert "resumes at epoch 1, after 0 of 3 steps" in said[1]


def test_a_new_run_that_is_refused_makes_no_folder(pictures: Path, cli: Run) -> None:
    """Neither the one asked for nor one with a number."""
    (pictures / "runs").mkdir()
    for overrides in (("model.weights=none.pth",), ("loss.pos_weight={gren: 2}",)):
        done = cli("train", "pets.yaml", *overrides, cwd=pictures)
        assert done.returncode == 2
    assert list((pictures / "runs").iterdir()) == []
