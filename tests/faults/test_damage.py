"""An altered resume state is refused; the run goes on from the one before it, and says so."""

import random
import shutil
from pathlib import Path

import pytest
import torch
from conftest import Promise
from runs.altered import accepted, flipped

from faults.children import Death
from faults.conftest import Ground, last_weights, same
from mlfinetune.runs import directory
from mlfinetune.runs.state import read_state, write_state

pytestmark = pytest.mark.faults


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """Return a complete resume state."""
    content = {"position": {"step": 3}, "net": {"weight": torch.arange(1000.0)}, "best": None}
    write_state(tmp_path / "resume.pt", tmp_path / "resume-previous.pt", content)
    assert read_state(tmp_path / "resume.pt")["position"] == {"step": 3}
    return tmp_path / "resume.pt"


def test_no_flipped_bit_of_a_state_is_accepted(state: Path, promise: Promise) -> None:
    """1,000 bits: all of the first line's, and others anywhere in the file."""
    whole = state.read_bytes()
    head = 8 * (whole.index(b"\n") + 1)
    bits = [*range(head), *random.Random(0).sample(range(head, 8 * len(whole)), 1000 - head)]
    assert accepted(read_state, state, iter([whole])) == [0]
    promise(
        "P4",
        len(bits),
        accepted(read_state, state, (flipped(whole, bit) for bit in bits)),
    )


def test_no_truncated_state_is_accepted(state: Path, promise: Promise) -> None:
    """200 lengths from 0 to one byte short, and bytes too many."""
    whole = state.read_bytes()
    lengths = [0, 1, 84, 85, len(whole) - 1]
    lengths += random.Random(1).sample(range(2, len(whole) - 1), 195)
    changed = [*(whole[:length] for length in lengths), whole + b"\0", b"\0" + whole, whole * 2]
    promise("P4", len(changed), accepted(read_state, state, iter(changed)))


@pytest.fixture(scope="module")
def broken_off(ground: Ground) -> str:
    """Return the name of a run that died in its second epoch, with two states."""
    child = ground.start("broken-off", death=Death("open", directory.STATE, 8))
    assert child.wait() < 0
    return "broken-off"


@pytest.mark.parametrize("how", ["flipped", "cut short", "empty", "foreign"])
def test_a_run_goes_on_from_the_state_before(
    ground: Ground, broken_off: str, promise: Promise, how: str
) -> None:
    """It says so, and ends with the very weights of a run that nobody disturbed."""
    name = f"damaged-{how.replace(' ', '-')}"
    run = ground.run(name)
    shutil.copytree(ground.run(broken_off), run)
    whole = (run / directory.STATE).read_bytes()
    damaged = {
        "flipped": flipped(whole, 4 * len(whole)),
        "cut short": whole[:-1],
        "empty": b"",
        "foreign": b"PK\x03\x04" + whole,
    }
    (run / directory.STATE).write_bytes(damaged[how])
    child = ground.start(name, "--resume")
    failures = [] if child.wait() == 0 else [child.said]
    if f"{directory.STATE} is damaged" not in child.said or "the state before it" not in child.said:
        failures.append(child.said)
    if not failures and not same(last_weights(run), ground.weights):
        failures.append("other weights")
    promise("P4", 1, failures)


def test_two_damaged_states_are_an_error_that_says_what_to_do(
    ground: Ground, broken_off: str, promise: Promise
) -> None:
    """Exit code 2, nothing is touched."""
    run = ground.run("damaged-both")
    shutil.copytree(ground.run(broken_off), run)
    for name in (directory.STATE, directory.PREVIOUS_STATE):
        (run / name).write_bytes(flipped((run / name).read_bytes(), 9999))
    child = ground.start("damaged-both", "--resume")
    failures = []
    if child.wait() != 2 or "Traceback" in child.said:
        failures.append(child.said)
    if not child.said.splitlines()[-1].endswith("there is no other: train anew, without --resume"):
        failures.append(child.said)
    promise("P4", 1, failures)
