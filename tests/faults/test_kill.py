"""kill -9 at any moment: what is on the disk loads, and the next start finishes the run."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import FULL, Promise

from faults.children import Child, Death
from faults.conftest import Ground, last_weights, same
from mlfinetune.errors import CheckpointError
from mlfinetune.runs import checkpoint, directory
from mlfinetune.runs.state import read_state

pytestmark = pytest.mark.faults

CALLS = ("open", "write", "fsync", "rename", "fsync-folder")
PARTS = 10 if FULL else 1
ROTATION, SAVE, TIMED = (3, 6, 11) if FULL else (1, 3, 2)
"""Trials a part: between the two renames of a state; in the midst of some save; at any time."""


def writes(ground: Ground) -> list[tuple[str, int]]:
    """Return every file that the undisturbed run writes, once for each write."""
    names = [Path(call[1]).name for call in ground.calls if call[0] == "rename"]
    names = [name for name in names if name != directory.PREVIOUS_STATE]
    return [(name, names[: at + 1].count(name)) for at, name in enumerate(names)]


def kill_some_time(child: Child, draw: random.Random, calls: int) -> None:
    """Kill the run from outside, after any number of its calls and a moment more."""
    after = draw.randrange(-calls // 8, calls)  # below 0: while it looks at the pictures
    child.wait_until(lambda: len(child.traced) > after)
    time.sleep(draw.uniform(0, 0.4 if after < 0 else 0.02))
    child.send(signal.SIGKILL)


def damage(run: Path) -> list[str]:
    """Return the error of each file that does not load."""
    wrong = []
    for path in (*run.glob("*.safetensors"), *run.glob("resume*.pt")):
        try:
            read_state(path) if path.suffix == ".pt" else checkpoint.load(path)
        except CheckpointError as error:
            wrong.append(str(error))
    return wrong


def saved_steps(run: Path) -> int:
    """Return the steps in the state that a run resumes from; 0: there is no state."""
    for name in (directory.STATE, directory.PREVIOUS_STATE):
        if (run / name).exists():
            return int(read_state(run / name)["position"]["step"])
    return 0


def after_kill(ground: Ground, name: str, child: Child) -> list[str]:
    """Return the faults of the killed run, and then those of the resumed one."""
    run, taken = ground.run(name), sum(call == ["step"] for call in child.traced)
    wrong = damage(run)
    if not wrong and saved_steps(run) < taken - 1:
        wrong.append(f"{taken} steps were taken, and {saved_steps(run)} are saved")
    second = ground.start(name, "--resume")
    if second.wait() != 0:
        return [*wrong, second.said]
    (found,) = re.findall(r"^results in (.*)$", second.said, re.M)
    run = ground.folder / found
    if not same(last_weights(run), ground.weights):
        wrong.append("the weights are not those of the undisturbed run")
    lines = (run / directory.HISTORY).read_text().splitlines()
    epochs = [json.loads(line)["epoch"] for line in lines]
    if epochs != [1, 2]:
        wrong.append(f"metrics.jsonl has epochs {epochs}")
    wrong += [f"left: {path}" for path in (ground.folder / "runs").glob(f"{name}*/.*.tmp")]
    with directory.locked_run(run):
        shutil.rmtree(ground.run(name))
    return wrong


@pytest.mark.parametrize("part", range(PARTS))
def test_a_killed_run_can_be_read_and_goes_on(ground: Ground, promise: Promise, part: int) -> None:
    """Nothing on the disk is broken, one step is lost at most, and the end is the same."""
    draw, failures = random.Random(part), []
    states = [(name, nth) for name, nth in writes(ground) if name == directory.STATE]
    deaths: list[Death | None] = [
        Death("rename", *one) for one in draw.sample(states[1:], ROTATION)
    ]
    for _ in range(SAVE):
        call = draw.choice(CALLS)
        deaths.append(Death(call, *draw.choice(writes(ground)), share=draw.uniform(0.01, 0.99)))
    for number, death in enumerate([*deaths, *[None] * TIMED]):
        name = f"killed-{part}-{number}"
        child = ground.start(name, death=death)
        if death is None:
            kill_some_time(child, draw, len(ground.calls))
        code = child.wait()
        if death is not None and code not in (-signal.SIGKILL, -signal.SIGXFSZ):
            failures.append((death, f"did not die: {code}"))
        failures += [(death, fault) for fault in after_kill(ground, name, child)]
    promise("P1", len(deaths) + TIMED, failures)


@pytest.mark.parametrize(("minutes", "steps"), [("1e-6", 2), ("10", 0)] if FULL else [("1e-6", 2)])
def test_the_clock_saves_an_epoch_under_way(
    ground: Ground, promise: Promise, minutes: str, steps: int
) -> None:
    """Killed at its third step, a run goes on after the second; saved rarely, from the start."""
    name = f"clock-{steps}"
    call = Death("open", directory.STATE, 3) if steps else Death("open", directory.HISTORY, 0)
    child = ground.start(name, f"train.save_minutes={minutes}", death=call)
    assert child.wait() == -signal.SIGKILL
    assert child.traced.count(["step"]) == 3
    failures = [] if saved_steps(ground.run(name)) == steps else ["not saved"]
    second = ground.start(name, "--resume")
    failures += [second.said] if second.wait() else []
    if steps and "resumes at epoch 1, after 2 of 3 steps" not in second.said:
        failures.append(second.said)
    if not same(last_weights(ground.run(name)), ground.weights):
        failures.append("other weights")
    promise("P1", 1, failures)


def test_processes_that_are_not_forked_go_on_as_well(ground: Ground, promise: Promise) -> None:
    """A whole `python -m mlfinetune`, as the user starts it, of a network of torchvision's own."""
    asked = ("model.backbone=shufflenet_v2_x0_5", f"train.epochs={2 if FULL else 1}")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "mlfinetune", "train", "tiny.yaml", *asked]
    undisturbed = ground.start("whole", *asked)
    assert undisturbed.wait() == 0, undisturbed.said
    failures, moments = [], (1, 4) if FULL else (1,)
    for after in moments:
        name = f"whole-at-{after}"
        run, where = ground.run(name), ["-o", f"runs/{name}", "--resume"]
        with subprocess.Popen([*command, *where], cwd=ground.folder, env=environment) as process:
            while saved_steps_or_none(run) < after and process.poll() is None:
                time.sleep(0.02)
            process.kill()
        failures += damage(run)
        done = subprocess.run(
            [*command, *where], cwd=ground.folder, env=environment, capture_output=True, text=True
        )
        failures += [done.stderr] if done.returncode else []
        if not same(last_weights(run), last_weights(ground.run("whole"))):
            failures.append(f"{after}: other weights")
    promise("P1", len(moments), failures)


def saved_steps_or_none(run: Path) -> int:
    """Return `saved_steps` of a run that still writes; 0 where its state cannot be read."""
    try:
        return saved_steps(run)
    except CheckpointError:
        return 0
