"""SIGTERM and Ctrl-C in any phase: the end comes soon, in order, and the run can go on."""

import random
import signal
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import demo_data
import pytest
from conftest import FULL, Promise

from faults import children
from faults.children import Child
from faults.conftest import CONFIG, Ground, last_weights, same
from mlfinetune.runs import directory

pytestmark = pytest.mark.faults

SOON_S = 25.0
MANY = 200
STEPS = 10
"""Steps of 16 an epoch, of the 160 pictures that are not held out."""
CALM = CONFIG.replace("batch_size: 8", "batch_size: 16").replace("1.0e-9", "10")
BUSY = "train.save_minutes=1e-9"
TRAIN = ("train", "tiny.yaml", "-o", "runs/{name}")
FROZEN = (*TRAIN, "model.freeze_backbone=true", "augment={crop_scale: [1, 1], horizontal_flip: 0}")
PRETRAINED = ("model.backbone=resnet18", "model.weights=IMAGENET1K_V1")
MODEL = "runs/trained/best.safetensors"
NUMBERS = count()


@dataclass(frozen=True)
class Phase:
    """A command, and when it is in the midst of something.

    Attributes:
        when: a line of standard error, or a call on a file of the run; `processes`: more than one.
        saved: there is a state by then.
    """

    command: tuple[str, ...]
    when: str
    saved: bool = False

    def there(self, child: Child) -> bool:
        """Return whether the phase has begun."""
        if self.when == "processes":
            return len(children.members(child.pid)) > 1
        calls = "\n".join(" ".join((c[0], *(Path(x).name for x in c[1:2]))) for c in child.traced)
        return self.when in child.said or self.when in calls


PHASES = {
    "scan": Phase(TRAIN, "processes"),
    "first batch": Phase(TRAIN, "small copies"),
    "step": Phase(TRAIN, "step", saved=True),
    "step, 2 workers": Phase((*TRAIN, "train.workers=2"), "step", saved=True),
    "validation": Phase(TRAIN, "step\n" * (STEPS - 1) + "step", saved=True),
    "save": Phase((*TRAIN, BUSY), "open .resume.pt", saved=True),
    "second epoch": Phase((*TRAIN, "train.workers=1"), "epoch 1/2", saved=True),
    "features": Phase(FROZEN, "features of train:"),
    "solving": Phase(FROZEN, "L-BFGS solves for"),
    "results": Phase(TRAIN, "rename scores.npz", saved=True),
    "report": Phase(TRAIN, "rename metrics.json", saved=True),
    "download": Phase(
        (*TRAIN, "model.backbone=resnet18", "model.weights=IMAGENET1K_V1"), "Downloading"
    ),
    "eval": Phase(("eval", "-c", MODEL, "-o", "runs/{name}"), "checkpoint "),
    "predict": Phase(("predict", "images", "-c", MODEL, "-o", "{name}.csv"), "checkpoint "),
    "check": Phase(("check", "tiny.yaml"), "processes"),
}

QUICK = ("scan", "step, 2 workers", "save", "features", "report", "download", "predict")


@pytest.fixture(scope="module")
def stalled() -> Iterator[str]:
    """Return the address of a server that accepts a connection and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory, server: None) -> Ground:
    """Make a folder of many pictures, so that phases last, and a finished run, runs/trained."""
    folder = tmp_path_factory.mktemp("many")
    demo_data.write(folder, count=MANY, size=32)
    (folder / "tiny.yaml").write_text(CALM)
    begun = Ground(folder, [], {})
    child = begun.start("trained")
    assert child.wait() == 0, child.said
    return Ground(folder, child.traced, last_weights(begun.run("trained")))


@dataclass(frozen=True)
class Way:
    """A way to stop a command."""

    number: signal.Signals
    group: bool

    @property
    def code(self) -> int:
        return 128 + self.number

    def stop(self, child: Child) -> float:
        """Send the signal; return the seconds until the process has ended."""
        sent = time.monotonic()
        (child.send_group if self.group else child.send)(self.number)
        child.wait()
        return time.monotonic() - sent


WAYS = [Way(n, group) for n in (signal.SIGTERM, signal.SIGINT) for group in (False, True)]


def faults_of(ground: Ground, phase: Phase, way: Way, pause: float, proxy: str) -> list[str]:
    """Return the faults of a command that is stopped in this phase."""
    name = f"stopped-{next(NUMBERS)}"
    command = [word.format(name=name) if "{name}" in word else word for word in phase.command]
    cache = str(ground.folder / name)  # nothing is known yet: all is scanned and computed
    environment = {"MLFINETUNE_CACHE": cache, "TORCH_HOME": cache, "https_proxy": proxy}
    child = children.start(*command, cwd=ground.folder, **environment)
    if not child.wait_until(lambda: phase.there(child)):
        return [f"never came there: {child.said}"]
    time.sleep(pause)
    took = way.stop(child)
    if child.wait() == 0 and pause:  # it was done before
        return faults_of(ground, phase, way, 0, proxy)
    wrong = [f"it took {took:.0f} s"] if took > SOON_S else []
    if child.wait() != way.code:
        wrong.append(f"exit code {child.wait()}: {child.said}")
    if "Traceback" in child.said:
        wrong.append(child.said)
    wrong += [f"process {left} runs on" for left in child.left_behind()]
    wrong += [f"left: {path}" for path in (ground.folder).glob(f"runs/{name}*/.*.tmp")]
    return wrong + (resumed(ground, phase, name, command, child) if command[0] == "train" else [])


def resumed(ground: Ground, phase: Phase, name: str, command: list[str], child: Child) -> list[str]:
    """Return the faults of a stopped training's messages, and of the run that resumes it."""
    run, wrong = ground.run(name), []
    saved = any((run / state).is_file() for state in (directory.STATE, directory.PREVIOUS_STATE))
    line = f"resume with\n  mlfinetune train runs/{name}/config.yaml --resume"
    if (
        "stopped by " not in child.said
        or (line if saved else "nothing saved yet") not in child.said
    ):
        wrong.append(f"with {'a' if saved else 'no'} state it says {child.said}")
    if phase.saved and not saved:
        wrong.append("no state is saved")
    if set(PRETRAINED) <= set(command):
        return wrong
    again = children.start(*command, "--resume", cwd=ground.folder)
    if again.wait() != 0:
        wrong.append(again.said)
    elif phase.command[4:] != FROZEN[4:] and not same(last_weights(run), ground.weights):
        wrong.append("the weights are not those of a run that nobody stops")
    return wrong


@pytest.mark.parametrize("where", PHASES if FULL else QUICK)
def test_a_signal_ends_it_in_order(
    many: Ground, stalled: str, promise: Promise, where: str
) -> None:
    """Soon, with the shell's exit code, without a trace of itself; and it can be gone on with."""
    draw = random.Random(where)
    failures = []
    ways = WAYS if FULL else [draw.choice(WAYS)]
    for way in ways:
        pause = draw.uniform(0, 0.05)
        failures += [(way, x) for x in faults_of(many, PHASES[where], way, pause, stalled)]
    promise("P7", len(ways), failures)
