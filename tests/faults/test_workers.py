"""Stuck processes and orphans: a second signal ends at once, and nobody is left behind."""

import os
import shutil
import signal
import time
from pathlib import Path

import pytest
from conftest import FULL, Promise

from faults import children
from faults.children import Child
from faults.conftest import Ground
from mlfinetune.runs import directory

pytestmark = pytest.mark.faults

AT_ONCE_S = 5.0
PAIRS = [("TERM", "INT"), ("TERM", "TERM"), ("INT", "INT"), ("INT", "TERM")]
WORKERS = (0, 1, 2) if FULL else (0, 2)


def stuck(ground: Ground, name: str, *more: str) -> Child:
    """A training that waits in the midst of an epoch's end, as for a file server that is gone.

    Its log is a pipe without a reader, which cannot be opened.
    """
    child = ground.start(name, *more)
    assert child.wait_until(lambda: ["step"] in child.traced)
    log = ground.run(name) / directory.LOG
    log.unlink()
    os.mkfifo(log)
    assert child.wait_until(lambda: "epoch 1/2  loss" in child.said)
    return child


@pytest.mark.parametrize("workers", WORKERS)
@pytest.mark.parametrize("numbers", PAIRS if FULL else PAIRS[:1])
def test_a_second_signal_ends_what_is_stuck(
    ground: Ground, promise: Promise, workers: int, numbers: tuple[str, str]
) -> None:
    """The first waits for what is under way, for ever; the second waits for nothing."""
    child = stuck(ground, f"stuck-{workers}-{'-'.join(numbers)}", f"train.workers={workers}")
    first, second = (signal.Signals[f"SIG{name}"] for name in numbers)
    child.send_group(first)
    time.sleep(1)
    failures = [] if child.exitcode is None else [f"it was not stuck: {child.said}"]
    child.send_group(second)
    sent = time.monotonic()
    code, took = child.wait(), time.monotonic() - sent
    if code != 128 + second or took > AT_ONCE_S:
        failures.append(f"exit code {code} after {took:.1f} s")
    if "Traceback" in child.said:
        failures.append(child.said)
    failures += [f"process {left} runs on" for left in child.left_behind()]
    promise("P7", 1, failures)


@pytest.mark.parametrize("workers", [1, 2] if FULL else [2])
def test_workers_of_a_killed_training_end_by_themselves(
    ground: Ground, promise: Promise, workers: int
) -> None:
    """kill -9 of the main process alone, at several moments of the training."""
    failures, moments = [], (1, 2, 3, 4) if FULL else (2,)
    for steps in moments:
        child = ground.start(f"orphans-{workers}-{steps}", f"train.workers={workers}")
        wanted = [["step"]] * steps
        child.wait_until(lambda here=child, some=wanted: here.traced.count(["step"]) >= len(some))
        if len(children.members(child.pid)) <= workers:
            failures.append(f"no workers at step {steps}")
        child.send(signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL
        failures += [f"process {left} runs on" for left in child.left_behind()]
    promise("P7", len(moments), failures)


def test_those_that_look_at_pictures_end_too(
    ground: Ground, tmp_path: Path, promise: Promise
) -> None:
    """kill -9 while a data set is scanned, as its processes start and as they work."""
    images = tmp_path / "images"
    images.mkdir()
    for number in range(10):
        for path in (ground.folder / "images").iterdir():
            shutil.copy(path, images / f"{number}-{path.name}")
    rows = [f"images/{path.name},red" for path in images.iterdir()]
    (tmp_path / "tags.csv").write_text("\n".join(["image,labels", *rows]))
    shutil.copy(ground.folder / "tiny.yaml", tmp_path)
    failures, pauses = [], (0.0, 0.1, 0.3, 0.6) if FULL else (0.3,)
    for pause in pauses:
        cache = str(tmp_path / f"cache-{pause}")
        child = children.start("check", "tiny.yaml", cwd=tmp_path, MLFINETUNE_CACHE=cache)
        assert child.wait_until(lambda here=child: len(children.members(here.pid)) > 1)
        time.sleep(pause)
        child.send(signal.SIGKILL)
        child.wait()
        failures += [f"process {left} runs on" for left in child.left_behind()]
    promise("P7", len(pauses), failures)
