"""A process of several is stopped, killed, or fails: all end, and one of them says why."""

import json
import os
import re
import signal
import sys
import time
from pathlib import Path

import pytest

from distributed.group import run, start, torchrun
from mlfinetune import checkpoint, rundir

NET = """\
import runpy
from faults import tiny  # registers its network
runpy.run_module("mlfinetune", run_name="__main__")
"""
LONG = ("train.epochs=400", "train.save_minutes=1000")


def begun(run: Path) -> bool:
    """Has an epoch been trained?"""
    history = run / rundir.HISTORY
    return history.exists() and history.read_text().count("\n") > 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("whom", ["all", "one"])
def test_a_signal_saves_once_and_ends_all(ground: Path, number: int, whom: str) -> None:
    """As the group gets it from a scheduler, or one process alone."""
    group = start(2, "train", "tiny.yaml", *LONG, cwd=ground)
    group[0].wait_until(lambda: begun(ground / "runs/tiny"))
    for child in group if whom == "all" else group[1:]:
        child.send(number)
    assert [child.wait() for child in group] == [128 + number] * 2
    assert group[0].said.count("all saved; go on with") == 1
    assert "Traceback" not in group[0].said + group[1].said
    taken = checkpoint.load_state(ground / "runs/tiny" / rundir.STATE)["position"]["step"]
    done = run(1, "train", "tiny.yaml", *LONG, f"train.epochs={400}", "--dry-run", cwd=ground)
    assert "dry run" in done.out
    assert taken > 3


def test_one_is_killed(ground: Path) -> None:
    """Nobody says why: the other one does, once, and says what it can."""
    group = start(3, "train", "tiny.yaml", *LONG, cwd=ground)
    group[0].wait_until(lambda: begun(ground / "runs/tiny"))
    killed = time.monotonic()
    group[1].send(signal.SIGKILL)
    assert [child.wait() for child in group] == [2, -signal.SIGKILL, 2]
    assert time.monotonic() - killed < 30
    said = "".join(child.said for child in group)
    assert said.count("another process of this run ended without saying why") == 1
    assert "Traceback" not in said


def test_the_first_one_is_killed(ground: Path) -> None:
    """It holds what the others meet at: they end without it."""
    group = start(2, "train", "tiny.yaml", *LONG, cwd=ground)
    group[0].wait_until(lambda: begun(ground / "runs/tiny"))
    group[0].send(signal.SIGKILL)
    assert [child.wait() for child in group] == [-signal.SIGKILL, 2]
    assert group[1].said.count("another process of this run ended without saying why") == 1


def test_what_all_get_wrong_is_said_once(ground: Path) -> None:
    group = start(3, "train", "tiny.yaml", "train.epoch=1", cwd=ground)
    assert [child.wait() for child in group] == [2, 2, 2]
    said = "".join(child.said for child in group)
    assert said.count("train.epoch") == 1


def test_commands_of_one_process(ground: Path) -> None:
    group = start(2, "check", "tiny.yaml", cwd=ground)
    assert [child.wait() for child in group] == [2, 2]
    assert "".join(c.said for c in group).count("check runs in one process") == 1


def test_steps_that_are_not_finite_name_the_pictures_of_all(ground: Path) -> None:
    more = ("train.lr=1e30", "train.clip_grad_norm=null", "train.sync_batch_norm=true")
    group = start(2, "train", "tiny.yaml", *more, cwd=ground)
    assert [child.wait() for child in group] == [2, 2]
    said = "".join(child.said for child in group)
    assert said.count("not finite at step") + said.count("are not finite") == 1
    if "not finite at step" in said:
        assert len(re.findall(r"images/\d+\.", said)) == 8


def test_torchrun_restarts_what_was_killed(ground: Path) -> None:
    """Twice; the weights at the end are those of the run that nobody disturbed."""
    config = (ground / "tiny.yaml").read_text() + "output: runs/restarted\n"
    (ground / "net.py").write_text(NET)
    (ground / "restarted.yaml").write_text(config)
    paths = {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    more = ("train.epochs=60",)
    run(2, "train", "tiny.yaml", *more, cwd=ground)
    launcher = torchrun(
        "--nproc-per-node=2", "--max-restarts=2", "net.py", "train", "restarted.yaml", *more,
        cwd=ground, **paths,
    )  # fmt: skip
    folder = ground / "runs/restarted"
    for lines in (2, 30):
        deadline = time.monotonic() + 120
        while not (folder / rundir.HISTORY).exists() or (
            (folder / rundir.HISTORY).read_text().count("\n") < lines
        ):
            assert time.monotonic() < deadline
            assert launcher.poll() is None, launcher.communicate()
            time.sleep(0.01)
        holder = int((folder / rundir.LOCK).read_text())
        os.kill(holder, signal.SIGKILL)
        while (folder / rundir.LOCK).read_text().strip() == str(holder):
            assert launcher.poll() is None, launcher.communicate()
            time.sleep(0.05)
    out, err = launcher.communicate(timeout=120)
    assert launcher.returncode == 0, err
    assert err.count("by torchrun, after a process has failed") == 2
    assert out.count("mAP over") == 1
    assert not (ground / "runs/restarted-2").exists()
    ends = [
        checkpoint.load(ground / "runs" / name / rundir.LAST).weights
        for name in ("tiny", "restarted")
    ]
    assert all(bool((ends[0][k] == ends[1][k]).all()) for k in ends[0])
    rows = (folder / rundir.HISTORY).read_text().splitlines()
    assert [json.loads(row)["epoch"] for row in rows] == list(range(1, 61))
