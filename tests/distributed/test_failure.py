"""A rank is stopped, killed or fails: all ranks end, and one of them prints the reason."""

import json
import os
import re
import shutil
import signal
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from conftest import FULL, Promise
from torch import Tensor

from distributed.conftest import draw, pack
from distributed.group import meeting, run, start, start_agent
from mlfinetune.runs import checkpoint, directory
from mlfinetune.runtime.distributed import World
from mlfinetune.runtime.signals import Signals
from mlfinetune.runtime.torchrun import DistInfo
from mlfinetune.training.records import Position
from mlfinetune.training.resume import StateSaver

EPOCHS = 12
ASKED = ("train", "tiny.yaml", f"train.epochs={EPOCHS}", "train.save_minutes=1000")
LONG = ("train.epochs=400", "train.save_minutes=1000")


def trained(run: Path) -> int:
    """Return the number of epochs that were trained so far."""
    history = run / directory.HISTORY
    return history.read_text().count("\n") if history.exists() else 0


def begun(run: Path) -> bool:
    """Return whether the run is training."""
    return trained(run) > 1


def ended(ground: Path, name: str) -> dict[str, Tensor]:
    """Return the weights of a run that has ended."""
    return checkpoint.load(ground / "runs" / name / directory.LAST).weights


def same(one: dict[str, Tensor], two: dict[str, Tensor]) -> bool:
    """Return whether the weights are equal to the bit."""
    return all(bool((one[name] == two[name]).all()) for name in one)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, server: None) -> dict[str, Tensor]:
    """Return the weights of a run by two processes that nothing disturbs."""
    folder = draw(tmp_path_factory.mktemp("undisturbed"))
    run(2, *ASKED, cwd=folder)
    return ended(folder, "tiny")


BOTH = [("all", signal.SIGTERM), ("one", signal.SIGINT)]
SIGNALS = [*BOTH, ("all", signal.SIGINT), ("one", signal.SIGTERM)] if FULL else BOTH


@pytest.mark.faults
@pytest.mark.parametrize(("whom", "number"), SIGNALS)
def test_a_signal_saves_once_and_ends_all(
    ground: Path, undisturbed: dict[str, Tensor], whom: str, number: int, promise: Promise
) -> None:
    """Sent to one rank, or by a scheduler to all and by torchrun again; a new start resumes."""
    group = start(2, *ASKED, cwd=ground)
    group[0].wait_until(lambda: begun(ground / "runs/tiny"))
    for child in 2 * group if whom == "all" else group[1:]:
        child.send(number)
    codes = [child.wait() for child in group]
    assert codes == [128 + number] * 2, [child.said for child in group]
    assert group[0].said.count("everything is saved; resume with") == 1
    assert "Traceback" not in group[0].said + group[1].said
    promise("P7", 1, [])
    assert "resumes at epoch" in run(2, *ASKED, cwd=ground).said
    promise("P5", 1, [] if same(ended(ground, "tiny"), undisturbed) else [whom])


def test_a_rank_ends_by_its_own_signal_where_the_other_is_gone(ground: Path) -> None:
    """A scheduler sends SIGTERM to all and kills one; the lost connection is no error then."""
    group = start(2, "train", "tiny.yaml", *LONG, cwd=ground)
    group[0].wait_until(lambda: begun(ground / "runs/tiny"))
    group[1].send(signal.SIGTERM)
    group[0].send(signal.SIGKILL)
    assert [child.wait() for child in group] == [-signal.SIGKILL, 143]
    assert group[1].said == ""


def test_no_rank_leaves_while_another_still_reads(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """After the ranks have agreed to stop they wait for each other: the connection stays open."""
    calls: list[str] = []
    monkeypatch.setattr(World, "all_reduce_max", lambda self, number: signal.SIGTERM)
    monkeypatch.setattr(World, "barrier", lambda self: calls.append("barrier"))
    other = SimpleNamespace(world=World(torch.device("cpu"), DistInfo(rank=1, size=2)))
    saver = StateSaver(tmp_path, cast(Any, other), cast(Any, None), Signals())
    with pytest.raises(SystemExit) as end:
        saver.save(Position())
    assert (end.value.code, calls) == (143, ["barrier"])


@pytest.mark.parametrize("seconds", [0.05, 0.3, 0.6])
def test_a_signal_at_the_start_ends_all(ground: Path, seconds: float) -> None:
    """Before the ranks have met, and while they meet."""
    group = start(3, "train", "tiny.yaml", *LONG, cwd=ground)
    time.sleep(seconds)
    for child in group:
        child.send(signal.SIGTERM)
    sent = time.monotonic()
    codes = [child.wait() for child in group]
    assert time.monotonic() - sent < 25
    assert set(codes) <= {143, -signal.SIGTERM, 2}
    assert "Traceback" not in "".join(child.said for child in group)


def test_tar_shards_are_shared_shuffled_and_resumed(ground: Path) -> None:
    """By processes and their workers, in an order that is that of the files themselves."""
    pack(ground)
    more = ("train.workers=1", "data.val_fraction=0.25", "train.epochs=6")
    for name, train in (("files", "plain.csv"), ("shards", "shards")):
        run(2, *ASKED, f"data.train={train}", *more, "-o", f"runs/{name}", cwd=ground)
    assert same(ended(ground, "files"), ended(ground, "shards"))
    asked = (*ASKED, "data.train=shards", *more, "-o", "runs/stopped")
    group = start(2, *asked, cwd=ground)
    group[0].wait_until(lambda: begun(ground / "runs/stopped"))
    group[1].send(signal.SIGTERM)
    assert [child.wait() for child in group] == [143, 143]
    assert "resumes at epoch" in run(2, *asked, cwd=ground).said
    assert same(ended(ground, "stopped"), ended(ground, "shards"))


def test_another_number_of_processes_goes_on(ground: Path) -> None:
    """Four, then two or one: with the same losses and weights but for rounding, and says so."""
    group = start(4, *ASKED, cwd=ground)
    group[0].wait_until(lambda: begun(ground / "runs/tiny"))
    group[0].send(signal.SIGTERM)
    assert [child.wait() for child in group] == [143] * 4
    run(1, *ASKED, "-o", "runs/whole", cwd=ground)
    for size in (2, 1):
        shutil.copytree(ground / "runs/tiny", ground / f"runs/{size}")
        said = run(size, *ASKED, "-o", f"runs/{size}", "--resume", cwd=ground).said
        assert f"warning: processes 4 before, {size} now" in said
        rows = (ground / f"runs/{size}" / directory.HISTORY).read_text().splitlines()
        assert [json.loads(row)["epoch"] for row in rows] == list(range(1, EPOCHS + 1))
        one, other = ended(ground, "whole"), ended(ground, str(size))
        for name in one:
            torch.testing.assert_close(other[name], one[name], rtol=1e-2, atol=1e-3)


def test_one_is_killed(ground: Path) -> None:
    """The others notice, and one of them prints it, once."""
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
    """Rank 0 is gone: the others end without it."""
    group = start(2, "train", "tiny.yaml", *LONG, cwd=ground)
    group[0].wait_until(lambda: begun(ground / "runs/tiny"))
    group[0].send(signal.SIGKILL)
    assert [child.wait() for child in group] == [-signal.SIGKILL, 2]
    assert group[1].said.count("another process of this run ended without saying why") == 1


def test_a_start_is_told_apart_from_those_before(
    ground: Path, undisturbed: dict[str, Tensor]
) -> None:
    """The store outlives a start, and machines count restarts differently."""
    port = meeting()
    group = start(2, *ASKED, cwd=ground, port=port)
    group[0].wait_until(lambda: begun(ground / "runs/tiny"))
    for child in group:
        child.send(signal.SIGKILL)
        child.wait()
    second = start(2, *ASKED, cwd=ground, port=port, restarts=(0, 1))
    assert [child.wait() for child in second] == [0, 0], second[0].said + second[1].said
    assert same(ended(ground, "tiny"), undisturbed)


def test_what_all_get_wrong_is_said_once(ground: Path) -> None:
    group = start(3, "train", "tiny.yaml", "train.epoch=1", cwd=ground)
    assert [child.wait() for child in group] == [2, 2, 2]
    said = "".join(child.said for child in group)
    assert said.count("train.epoch") == 1


def test_processes_that_read_other_examples(ground: Path) -> None:
    """Ranks with different examples are an error: their shares would be of different batches."""
    group = start(3, "train", "tiny.yaml", cwd=ground, last=("data.val_fraction=0.4",))
    assert [child.wait() for child in group] == [2, 2, 2]
    said = "".join(child.said for child in group)
    assert said.count("process 2 has read other examples than process 0") == 1


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


@pytest.mark.faults
def test_torchrun_restarts_what_was_killed(
    ground: Path, undisturbed: dict[str, Tensor], promise: Promise
) -> None:
    """Again and again; the weights at the end are those of the run that nobody disturbed."""
    times = 2 if FULL else 1
    config = (ground / "tiny.yaml").read_text() + "output: runs/restarted\n"
    (ground / "restarted.yaml").write_text(config)
    asked = ("train", "restarted.yaml", *ASKED[2:])
    agent = start_agent(2, times, *asked, cwd=ground)
    folder = ground / "runs/restarted"
    for kill in range(times):
        assert agent.wait_until(lambda lines=2 + 4 * kill: trained(folder) >= lines)
        holder = (folder / directory.LOCK).read_text()
        os.kill(int(holder), signal.SIGKILL)
        lock = folder / directory.LOCK
        assert agent.wait_until(lambda here=lock, before=holder: here.read_text() != before)
    assert agent.wait() == 0, agent.said
    assert agent.said.count("by torchrun, after a process has failed") == times
    assert agent.out.count("mAP over") == 1
    assert not (ground / "runs/restarted-2").exists()
    promise("P5", times, [] if same(ended(ground, "restarted"), undisturbed) else ["torchrun"])
    rows = (folder / directory.HISTORY).read_text().splitlines()
    assert [json.loads(row)["epoch"] for row in rows] == list(range(1, EPOCHS + 1))
