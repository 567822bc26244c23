"""A full disk: what was there before stays whole, the error says what to do, the run goes on."""

import io
import random
import resource
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import FULL, Promise, lacking
from runs.test_checkpoint import content

from faults import children
from faults.conftest import Ground, last_weights, same
from mlfinetune.errors import CheckpointError
from mlfinetune.runs import checkpoint, directory
from mlfinetune.runs.state import read_state, write_state
from mlfinetune.runtime.log import RunLog

pytestmark = pytest.mark.faults

ADVICE = "make room there and start it again, `mlfinetune train` with --resume"


def save_under_limits(path: Path, told: Path) -> None:
    """Save 3, save 4 at 20 limits of a file's size, then without; write down what is there."""

    def save(number: int) -> None:
        if path.suffix == ".pt":
            state = {"number": number, "net": content().weights}
            write_state(path, path.with_name("resume-previous.pt"), state)
        else:
            checkpoint.save(path, content(epoch=number))

    def tell(error: str) -> None:
        resumes = path.suffix == ".pt"
        number = read_state(path)["number"] if resumes else checkpoint.load(path).epoch
        lines.append(f"{number} {len(list(path.parent.iterdir()))} {error}")

    lines: list[str] = []
    save(3)
    size = path.stat().st_size
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    for limit in [0, 1, *range(100, size, size // 18), size - 1]:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        try:
            save(4)
        except CheckpointError as error:
            tell(str(error))
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    save(4)
    tell("no error")
    told.write_text("\n".join(lines))


@pytest.mark.parametrize(("name", "files"), [("best.safetensors", 1), ("resume.pt", 2)])
def test_no_room_at_any_size_harms_no_file(
    tmp_path: Path, promise: Promise, name: str, files: int
) -> None:
    """Cut off at 20 sizes, writing leaves the old file, nothing else, and a clear error."""
    path, told = tmp_path / "run" / name, tmp_path / "told"
    path.parent.mkdir()
    process = children.CONTEXT.Process(target=save_under_limits, args=(path, told))
    process.start()
    process.join(children.PATIENCE_S)
    assert process.exitcode == 0
    *cut, last = told.read_text().splitlines()
    assert last == f"4 {files} no error"
    assert len(cut) >= 20
    wanted = f"3 1 cannot write {path}: File too large; {ADVICE}"
    promise("P3", len(cut), [line for line in cut if line != wanted])


def mounted(*arguments: str) -> bool:
    """Return whether `mount` succeeded."""
    return subprocess.run(["mount", *arguments], capture_output=True, check=False).returncode == 0


@pytest.fixture
def disk(ground: Ground) -> Iterator[Callable[[int], None]]:
    """Make a small disk for ground's runs/small; disk(KILOBYTES) sets its size."""
    place = ground.run("small")
    place.mkdir(exist_ok=True)
    if not mounted("-t", "tmpfs", "-o", "size=4k", "tmpfs", str(place)):
        # Root alone can make a disk that is full. Who is not root still tests every writer of a run
        # above and below, by limits on a file's size and by /dev/full; so this is never required of
        # `make test`, but it is of `make test-faults`.
        lacking("a small disk can be mounted by root alone", required=False)

    def resize(kilobytes: int) -> None:
        assert mounted("-o", f"remount,size={kilobytes}k", str(place))

    yield resize
    subprocess.run(["umount", str(place)], check=True)


def test_a_run_that_fills_the_disk_goes_on_when_there_is_room(
    ground: Ground, disk: Callable[[int], None], promise: Promise
) -> None:
    """`train` at 20 sizes of disk: exit code 2, what was saved loads, --resume ends the same."""
    draw, failures = random.Random(0), []
    sizes = [4, 8, 16, *(draw.randrange(100, 9000) for _ in range(17))]
    sizes = sizes if FULL else [8, sizes[3]]
    for size in sizes:
        disk(size)
        name = f"small/runs/{size}"
        child = ground.start(name)
        code = child.wait()
        if code != 2 or "Traceback" in child.said or "No space left on device" not in child.said:
            failures.append((size, code, child.said))
        disk(64 * 1024)
        if ADVICE not in child.said:
            failures.append((size, child.said))
        again = ground.start(name, "--resume")
        if again.wait() != 0:
            failures.append((size, again.wait(), again.said))
            continue
        (found,) = (path.parent for path in ground.run("small").glob(f"runs/{size}*/report.html"))
        if not same(last_weights(found), ground.weights):
            failures.append((size, 0, "other weights"))
        if len((found / directory.HISTORY).read_text().splitlines()) != 2:
            failures.append((size, 0, "metrics.jsonl is not whole"))
        failures += [(size, 0, f"left: {path}") for path in found.glob(".*.tmp")]
        for path in found.parent.glob("*/*"):
            path.unlink()
    promise("P3", len(sizes), failures)


@pytest.mark.parametrize("name", [directory.LOG, directory.HISTORY])
def test_no_room_for_a_line_is_an_error_in_words(
    tmp_path: Path, promise: Promise, name: str
) -> None:
    """train.log and metrics.jsonl grow a line at a time; /dev/full is a disk without room."""
    log = RunLog(io.StringIO())
    log.attach_run(tmp_path / directory.LOG, tmp_path / directory.HISTORY)
    (tmp_path / name).unlink(missing_ok=True)
    (tmp_path / name).symlink_to("/dev/full")
    failures = []
    try:
        log.say("hello") if name == directory.LOG else log.log_epoch({"epoch": 1})
        failures.append("nothing was raised")
    except CheckpointError as error:
        if str(error) != f"cannot write {tmp_path / name}: No space left on device; {ADVICE}":
            failures.append(str(error))
    promise("P3", 1, failures)


def test_a_half_written_line_is_left_out(ground: Ground, promise: Promise) -> None:
    """metrics.jsonl cut off in the midst of the second epoch's line, and of the first's."""
    failures, trials = [], ((1, 9), (0, 30)) if FULL else ((1, 9),)
    for whole, part in trials:
        name = f"half-{whole}"
        child = ground.start(name, death=children.Death("rename", directory.LAST, whole + 1))
        assert child.wait() < 0
        history = ground.run(name) / directory.HISTORY
        lines = history.read_text().splitlines(keepends=True)
        history.write_text("".join(lines[:whole]) + lines[whole][:part])
        again = ground.start(name, "--resume")
        if again.wait() != 0 or len(history.read_text().splitlines()) != 2:
            failures.append((whole, again.said))
        if not same(last_weights(ground.run(name)), ground.weights):
            failures.append((whole, "other weights"))
    promise("P3", len(trials), failures)
