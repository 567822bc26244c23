"""A run that is stopped and goes on is, bit for bit, the run that was never stopped.

Stops are SIGTERMs that strike during a chosen step, or during a chosen batch of validation.
"""

import io
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import FULL, Promise

from faults.fault_runs import EPOCHS, STEPS, Runs, differences, left, stopped
from mlfinetune.errors import CheckpointError, ConfigError
from mlfinetune.runs import checkpoint, directory
from mlfinetune.runs.state import read_state, write_state
from mlfinetune.training.start import ResumeOptions

FROZEN = ("model.freeze_backbone=true", "train.optimizer=adamw")
RANDOM = ("augment.crop_scale=[0.3, 1.0]", "augment.color_jitter=0.4", "augment.rand_augment=1")
CASES = {
    "fine-tuning": (),
    "two workers": ("train.workers=2", *RANDOM),
    "ema": ("train.ema=0.7", *RANDOM),
    "accumulation, sgd": ("train.accumulate=3", "train.optimizer=sgd", "model.image_size=64"),
    "balanced, ema, two workers, accumulation": (
        "train.sampling=balanced",
        "train.ema=0.7",
        "train.workers=2",
        "train.accumulate=2",
        "model.image_size=64",
    ),
    "frozen": (*FROZEN, "train.cache_features=off", *RANDOM),
    "frozen, ema, two workers": (
        *FROZEN,
        "train.cache_features=off",
        "train.ema=0.7",
        "train.workers=2",
    ),
    "frozen, balanced, on kept features": (*FROZEN, "train.sampling=balanced"),
    "frozen, on kept features, ema, accumulation": (
        *FROZEN,
        "train.ema=0.7",
        "train.accumulate=2",
    ),
    "solved head": (
        "train.solve_head_first=true",
        "train.solve_head_last=true",
        "train.ema=auto",
        "loss.pos_weight=auto",
        "eval.views=mirror",
    ),
    "heads solved for after each epoch": (
        "train.solve_head_each=true",
        "train.ema=auto",
        "eval.views=mirror",
    ),
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Return the runs of one folder, for all tests."""
    return Runs(tmp_path_factory.mktemp("resume"))


@pytest.mark.faults
@pytest.mark.parametrize("case", CASES)
def test_a_resumed_run_is_the_undisturbed_run(runs: Runs, case: str, promise: Promise) -> None:
    """From every step: weights, optimizer, running mean, random numbers, history and results."""
    settings, name = CASES[case], case.replace(", ", "-").replace(" ", "-")
    wanted = left(runs.go(f"{name}-whole", *settings).run)
    stops = [{"step": n} for n in range(1, STEPS + 1)]
    stops += [{"scored": n} for n in range(1, EPOCHS + 1)]
    if not FULL:
        stops = random.Random(case).sample(stops, 1)
    failures = []
    for stop in stops:
        (at,) = stop.items()
        where = f"{name}-{at[0]}-{at[1]}"
        runs.stop(where, *settings, **stop)
        found = list(
            differences(wanted, left(runs.go(where, *settings, resume=ResumeOptions()).run))
        )
        failures += [(stop, found)] if found else []
        assert not list((runs.folder / where).glob(".*.tmp"))
        shutil.rmtree(runs.folder / where)
    shutil.rmtree(runs.folder / f"{name}-whole")
    promise("P5", len(stops), failures)


@pytest.mark.gpu
def test_a_resumed_run_on_a_gpu_is_the_undisturbed_run(tmp_path: Path) -> None:
    """In deterministic mode."""
    runs = Runs(tmp_path, "cuda")
    settings = ("train.deterministic=true", "train.precision=bfloat16", "train.ema=0.7", *RANDOM)
    wanted = left(runs.go("whole", *settings).run)
    runs.stop("stopped", *settings, step=4)
    found = left(runs.go("stopped", *settings, resume=ResumeOptions()).run)
    assert not [*differences(wanted, found)]


@pytest.mark.faults
def test_five_stops_repeat_and_skip_no_picture(runs: Runs, promise: Promise) -> None:
    """Steps see the same pictures in the same order, at epochs' ends too."""
    settings = ("train.ema=0.7", *RANDOM)
    with stopped() as wanted:
        whole = left(runs.go("once", *settings).run)
    seeds, failures = range(10 if FULL else 1), []
    for seed in seeds:
        ends = random.Random(seed).sample(range(1, STEPS), 5)
        taken, name = list[Any](), f"five-{seed}"
        for end in sorted(ends):
            resume = ResumeOptions() if taken else None
            taken += runs.stop(name, *settings, resume=resume, step=end - len(taken))
        with stopped() as rest:
            done = runs.go(name, *settings, resume=ResumeOptions())
        if taken + rest != wanted or [*differences(whole, left(done.run))]:
            failures.append((seed, ends))
    promise("P6", 5 * len(seeds), failures)


# ---- what may not change --------------------------------------------------------------------


@pytest.fixture(scope="module")
def halfway(runs: Runs) -> Callable[[str], Path]:
    """Make copies of a run that was stopped in its second epoch."""
    runs.stop("halfway", step=4)

    def copy(name: str) -> Path:
        return Path(shutil.copytree(runs.folder / "halfway", runs.folder / name))

    return copy


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("train.batch_size=7", "train.batch_size: 8 before, 7 now"),
        ("train.lr=1e-5", "train.lr: 0.001 before, 1e-05 now"),
        ("train.epochs=4", f"train.epochs: {EPOCHS} before, 4 now"),
        ("train.seed=1", "train.seed: 0 before, 1 now"),
        ("model.image_size=64", "model.image_size: 32 before, 64 now"),
        ("train.ema=0.5", "train.ema: None before, 0.5 now"),
        ("augment.crop_scale=[0.5, 1.0]", "augment.crop_scale: [1.0, 1.0] before, [0.5, 1.0] now"),
    ],
)
def test_changed_settings_are_refused_with_the_difference(
    runs: Runs, halfway: Callable[[str], Path], override: str, said: str
) -> None:
    """And what to do; nothing of the run is touched."""
    name = "changed-" + override.partition("=")[0]
    before = content(halfway(name))
    with pytest.raises(ConfigError) as caught:
        runs.go(name, override, resume=ResumeOptions())
    assert f"  {said}\n" in str(caught.value)
    assert "--allow-changed" in str(caught.value)
    assert content(runs.folder / name) == before


def content(run: Path) -> dict[str, bytes]:
    """Return the content of all files but the lock."""
    return {path.name: path.read_bytes() for path in run.iterdir() if path.name != directory.LOCK}


def test_changed_settings_can_be_meant(runs: Runs, halfway: Callable[[str], Path]) -> None:
    """More epochs, and a running mean from here on."""
    halfway("meant")
    changes = ("train.epochs=4", "train.ema=0.5", "train.lr=1e-4")
    done = runs.go("meant", *changes, resume=ResumeOptions(allow_changed=True))
    rows = [json.loads(line) for line in (done.run / directory.HISTORY).read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4]
    assert read_state(done.run / directory.STATE)["average"] is not None


@pytest.mark.parametrize("override", ["train.workers=1", "eval.thresholds=fixed"])
def test_what_training_does_not_depend_on_may_change(
    runs: Runs, halfway: Callable[[str], Path], override: str
) -> None:
    """Workers, thresholds, the names of files."""
    name = "free-" + override.partition("=")[0]
    halfway(name)
    whole = left(runs.go(f"{name}-whole").run)
    found = left(runs.go(name, override, resume=ResumeOptions()).run)
    assert not [*differences(whole[directory.LAST], found[directory.LAST])]


def test_the_same_command_goes_on(runs: Runs, halfway: Callable[[str], Path]) -> None:
    """Without --resume; with other settings a new run begins, and that is said."""
    whole = left(runs.go("same-whole").run)
    halfway("same")
    log = io.StringIO()
    other = runs.go("same", "train.seed=1", log=log).run
    assert other.name == "same-2"
    assert "same is unfinished, but has other settings or data" in log.getvalue()
    shutil.rmtree(other)
    done = runs.go("same", log=log).run
    assert done.name == "same"
    assert "resumes at epoch 2, after 1 of 3 steps" in log.getvalue()
    assert not [*differences(whole, left(done))]
    assert runs.go("same").run.name == "same-2"


def test_other_arithmetic_is_said(runs: Runs, halfway: Callable[[str], Path]) -> None:
    """A machine without fast bfloat16 goes on, but not bit for bit."""
    state = halfway("arithmetic") / directory.STATE
    content = read_state(state)
    content["arithmetic"]["precision"] = "bfloat16"
    write_state(state, state.with_name("before"), content)
    log = io.StringIO()
    runs.go("arithmetic", resume=ResumeOptions(), log=log)
    assert "warning: precision bfloat16 before, float32 now: the result will not" in log.getvalue()


def test_changed_data_is_refused(
    runs: Runs, halfway: Callable[[str], Path], tmp_path: Path
) -> None:
    """One more label at one picture."""
    halfway("other-data")
    table = runs.folder / "tags.csv"
    before = table.read_text()
    lines = before.splitlines()
    row = next(n for n, line in enumerate(lines) if n and "red" not in line)
    lines[row] += "|red"
    table.write_text("\n".join(lines) + "\n")
    try:
        with pytest.raises(ConfigError, match=r"data: other names, labels or targets than before"):
            runs.go("other-data", resume=ResumeOptions())
    finally:
        table.write_text(before)


def test_a_state_of_another_model_is_refused(runs: Runs, halfway: Callable[[str], Path]) -> None:
    """Whatever is allowed."""
    halfway("other-model")
    with pytest.raises(CheckpointError, match="before, resnet34 now: the state does not fit this"):
        runs.go("other-model", "model.backbone=resnet34", resume=ResumeOptions(allow_changed=True))


def test_a_solved_head_is_solved_for_again(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seconds on kept features: nothing is saved in between, and the run goes on by itself."""
    settings = ("model.freeze_backbone=true",)
    wanted = runs.go("solved-whole", *settings).run
    runs.stop("solved", *settings, scored=3)
    done = runs.go("solved", *settings, resume=ResumeOptions()).run
    assert done.name == "solved"
    loaded = [checkpoint.load(run / directory.BEST) for run in (wanted, done)]
    assert not [*differences(loaded[0].weights, loaded[1].weights)]


def test_the_precision_of_kept_features_is_no_other_arithmetic(runs: Runs) -> None:
    """The head trains in float32, whatever its features were computed in."""
    settings = (*FROZEN, "train.precision=bfloat16")
    runs.stop("kept", *settings, step=4)
    log = io.StringIO()
    runs.go("kept", *settings, log=log)
    assert "resumes at epoch 2" in log.getvalue()
    assert "warning" not in log.getvalue()


def test_early_stopping_counts_on(runs: Runs) -> None:
    """The epochs without a better mAP before the stop count too."""
    idle = ("train.lr=1e-12", "train.head_lr=1e-12", "train.epochs=9", "train.early_stopping=2")
    settings = ("model.freeze_backbone=true", "train.optimizer=adamw", *idle)
    whole = left(runs.go("early-whole", *settings).run)
    assert len(whole[directory.HISTORY]) == 3
    for step in (5, 9):  # under way, and at the very step after which it stops
        runs.stop(f"early-{step}", *settings, step=step)
        assert not [*differences(whole, left(runs.go(f"early-{step}", *settings).run))]


def test_a_solved_run_is_not_overwritten(runs: Runs) -> None:
    """L-BFGS leaves no state: the run's own config says which settings may resume it."""
    solved = "model.freeze_backbone=true"
    run = runs.go("solved", solved).run
    before = (run / directory.BEST).read_bytes()
    with pytest.raises(ConfigError, match="freeze_backbone: True before, False now"):
        runs.go("solved", resume=ResumeOptions())
    assert (run / directory.BEST).read_bytes() == before
    runs.go("solved", solved, resume=ResumeOptions())


def test_a_finished_run_is_finished_again(runs: Runs) -> None:
    """No step is taken; results are written anew, the same."""
    first = left(runs.go("finished").run)
    with stopped() as taken:
        again = left(runs.go("finished", resume=ResumeOptions()).run)
    assert taken == []
    assert not [*differences(first, again)]
