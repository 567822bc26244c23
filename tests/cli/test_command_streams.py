"""Standard streams that are full or closed, or whose reader has gone: real shells, real pipes."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from threading import Timer

import pytest
from conftest import lacking, prepare, run_command
from faults import children

from mlfinetune.runs import directory

CHEAP = {
    "help": "--help",
    "version": "--version",
    "check": "check pets.yaml",
    "compare": "compare runs/pets runs/pets --resamples 20",
    "cache": "cache",
    "split": "split tags.csv -o {out}.csv",
    "init": "init tags.csv -o {out}.yaml",
}
"""Commands that import no torch: a third of a second each."""

SHELL = f"{shlex.quote(sys.executable)} -m mlfinetune"


def shell(command: str, redirection: str, cwd: Path, **environment: str) -> tuple[int, str, str]:
    """Run a cheap command in bash; return its exit code, and what it wrote to both streams."""
    script = f"{SHELL} {command} {redirection}; exit ${{PIPESTATUS[0]}}"
    done = run_command(["bash", "-c", script], cwd, **environment)
    assert "Traceback" not in done.stderr + done.stdout
    assert "Exception ignored" not in done.stderr
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("command", CHEAP.values(), ids=CHEAP)
def test_a_full_disk_under_standard_output_is_one_line(
    trained: Path, tmp_path: Path, command: str
) -> None:
    """The exit code is 2: the user can mend it."""
    code, _, said = shell(command.format(out=tmp_path / "out"), "> /dev/full", trained)
    assert code == 2
    error = "error: standard output cannot be written: No space left on device; redirect it to a"
    assert [line.startswith(error) for line in said.splitlines()].count(True) == 1


@pytest.mark.parametrize("command", ["help", "check", "split"])
def test_a_reader_that_has_read_enough_is_no_error(
    trained: Path, tmp_path: Path, command: str
) -> None:
    """`mlfinetune ... | true` ends with 0, without a word of it."""
    code, _, said = shell(CHEAP[command].format(out=tmp_path / "out"), "| true", trained)
    assert code == 0
    assert "pipe" not in said.lower()


@pytest.mark.parametrize(
    "command",
    [
        "check pets.yaml",
        "cache",
        "bench pets.yaml",
        "predict images",
        "compare runs/pets runs/pets",
    ],
)
def test_results_that_can_go_nowhere_are_refused_at_once(trained: Path, command: str) -> None:
    """A closed standard output is named before work is done."""
    code, _, said = shell(command, ">&-", trained)
    assert code == 2
    assert said.startswith("error: standard output is closed")


def test_paths_from_a_closed_standard_input(trained: Path) -> None:
    """It is named in one line."""
    code, _, said = shell("predict -", "<&-", trained)
    assert (code, said.count("\n")) == (2, 1)
    assert said.startswith("error: standard input is closed")


def test_prints_never_go_into_a_file(trained: Path, tmp_path: Path) -> None:
    """With all streams closed, a file that is opened gets no stream's number."""
    for redirection, name in (("", "a"), ("<&- >&- 2>&-", "b"), (">&- 2>/dev/full", "c")):
        code, *_ = shell(f"split tags.csv -o {tmp_path}/{name}.csv", redirection, trained)
        assert code == 0
    first, *others = ((tmp_path / f"{name}.csv").read_text() for name in "abc")
    assert others == [first, first]


@pytest.mark.parametrize("redirection", ["2>&-", "2> /dev/full", "2> >(true)"])
def test_messages_that_nobody_can_read_stop_nothing(trained: Path, redirection: str) -> None:
    """The results are those of any other day; a mistake still has its exit code."""
    usual = shell(CHEAP["compare"], "", trained)
    assert shell(CHEAP["compare"], redirection, trained)[:2] == usual[:2]
    assert shell("check none.yaml", redirection, trained)[:2] == (2, "")
    assert shell("train --nonsense", redirection, trained)[:2] == (2, "")


@pytest.mark.parametrize(
    "streams",
    [{"stderr": None}, {"stderr": "/dev/full"}, dict.fromkeys(("stdin", "stdout", "stderr"))],
    ids=["closed", "full", "all-closed"],
)
def test_a_run_needs_no_stream(tmp_path: Path, streams: dict[str, str | None]) -> None:
    """Train goes on to its end; nothing is printed into the files of the run."""
    children.prepare_server()
    child = children.start("train", "pets.yaml", cwd=prepare(tmp_path), streams=streams)
    assert child.wait() == 0
    run = tmp_path / "runs/pets"
    assert {directory.METRICS, directory.REPORT} <= {file.name for file in run.iterdir()}
    assert json.loads((run / directory.METRICS).read_text())["images"] == 5
    text = (run / directory.LOG).read_text()
    assert text[19:].startswith("  train: read as")  # after the time
    assert "results in" in text


def test_every_row_is_written_without_standard_error(trained: Path, tmp_path: Path) -> None:
    """`predict ... 2>&-` has a row for each picture, on standard output and in a file."""
    children.prepare_server()
    arguments = ("predict", str(trained / "images"), "-c", str(trained / "runs/pets"))
    child = children.start(*arguments, cwd=tmp_path, streams={"stderr": None})
    assert child.wait() == 0
    assert child.out.count("\n") == 25
    rows = child.out
    closed = {"stderr": None, "stdout": None}
    child = children.start(*arguments, "-o", "rows.csv", cwd=tmp_path, streams=closed)
    assert child.wait() == 0
    assert (tmp_path / "rows.csv").read_text() == rows


# ---- other places ---------------------------------------------------------------------------


def test_a_locale_that_lacks_characters(tmp_path: Path) -> None:
    """JSON is JSON, and a file name that the locale cannot say is explained."""
    prepare(tmp_path)
    table = (tmp_path / "tags.csv").read_text().replace("dots", "K\u00e4se\U0001f600")
    (tmp_path / "tags.csv").write_text(table + "images/\u00e4.png,solid\n", encoding="utf-8")
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii"}
    code, out, said = shell("check pets.yaml --json", "", tmp_path, **ascii_only)
    assert code == 2
    (fault,) = json.loads(out)["findings"][0]["items"]
    assert "it holds characters that the encoding ascii lacks" in fault
    assert said.startswith("note: this locale reads file names as ascii")
    code, out, _ = shell("check pets.yaml --json", "data.bad_images=skip", tmp_path, **ascii_only)
    assert "K\u00e4se\U0001f600" in json.loads(out)["labels"]


def test_a_german_locale_in_a_folder_with_spaces(tmp_path: Path) -> None:
    """Numbers keep their points, names their letters, results their paths."""
    folder = tmp_path / "Bilder gr\u00f6\u00dfe 1"
    folder.mkdir()
    prepare(folder)
    wanted = shell("check pets.yaml", "", folder, LC_ALL="C.UTF-8")
    make = ["localedef", "-i", "de_DE", "-f", "UTF-8", str(tmp_path / "de_DE.UTF-8")]
    if shutil.which("localedef") is None or run_command(make, tmp_path).returncode:
        lacking("no German locale can be made: localedef, or its sources, are not installed")
    german = {"LOCPATH": str(tmp_path), "LC_ALL": "de_DE.UTF-8", "LANG": "de_DE.UTF-8"}
    assert shell("check pets.yaml", "", folder, **german) == wanted
    assert "24 images" in wanted[1]


def test_a_current_folder_that_is_gone(tmp_path: Path) -> None:
    """It is named; --help and --version need none."""
    (tmp_path / "gone").mkdir()
    done = subprocess.run(
        ["bash", "-c", f"cd gone; rmdir ../gone; {SHELL} --version && {SHELL} cache"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout.count("\n")) == (2, 1)
    assert done.stderr.startswith("error: the current folder cannot be used")


def test_a_table_of_labels_fits_a_narrow_terminal(trained: Path) -> None:
    """Names are cut, numbers are not."""
    code, out, _ = shell("check pets.yaml", "", trained, COLUMNS="40")
    assert code == 0
    rows = out[out.index("  label ") :].split("\n\n")[0].splitlines()
    assert len(rows) == 9
    assert {len(row) for row in rows} == {40}


# ---- a pipe that is held open ---------------------------------------------------------------


@pytest.mark.parametrize("options", [("--format", "jsonl", "--batch-size", "1"), ()])
def test_a_row_appears_when_it_is_ready(
    trained: Path, tmp_path: Path, options: tuple[str, ...]
) -> None:
    """Each path is sent when the row of the one before has come."""
    streams: dict[str, str | None] = {name: str(tmp_path / name) for name in ("stdin", "stdout")}
    for name in streams:
        os.mkfifo(tmp_path / name)
    children.prepare_server()
    arguments = ("predict", "-", "-c", "runs/pets", *options)
    child = children.start(*arguments, cwd=trained, streams=streams)
    watchdog = Timer(60, child.send, (signal.SIGKILL,))
    watchdog.start()
    with (tmp_path / "stdin").open("w", buffering=1) as paths, (tmp_path / "stdout").open() as out:
        for number, name in enumerate(("images/0000.jpg", "images/0001.png", "images/0002.jpg")):
            paths.write(f"{name}\n")
            if number == 0 and not options:
                assert out.readline().startswith("image,labels")
            assert name in out.readline()
        paths.close()
        assert out.read() == ""
    watchdog.cancel()
    assert child.wait() == 0


HOOKED = """
import atexit, sys, threading, time
from mlfinetune.__main__ import run_process
class Part:
    def __del__(self): print("taken apart")
kept = Part()
def work():
    atexit.register(print, "exit function of a package")
    time.sleep(0.2)
    print("thread has ended")
sys.argv = ["mlfinetune", *sys.argv[1:]]
threading.Timer(0.01, work).start()
run_process()
"""


@pytest.mark.parametrize(("arguments", "code"), [(["--version"], 0), (["check", "none.yaml"], 2)])
def test_the_process_ends_by_its_code_after_all_exit_functions(
    tmp_path: Path, arguments: list[str], code: int
) -> None:
    """Threads are joined and exit functions run; only modules are not taken apart one by one."""
    done = run_command([sys.executable, "-c", HOOKED, *arguments], tmp_path)
    assert done.returncode == code
    assert "taken apart" not in done.stdout
    assert done.stdout.splitlines()[-2:] == ["thread has ended", "exit function of a package"]
