"""Seconds of a frozen run beside its forward passes: a first run, and one on kept features.

python benchmarks/fixed_seconds.py --train train.csv --val val.csv --images images --weights FILE

Each run is `mlfinetune train configs/frozen.yaml` as a process; its parts are those of the last
line of its log. The first run has FIRST_TRAIN + FIRST_VAL pictures, the second SECOND_TRAIN +
SECOND_VAL, drawn with a seed. Seconds are medians of wall time over ROUNDS, with CPU seconds beside
them; the machine should be quiet. Python keeps its compiled modules, as in an installed package.
Then the second run has a busy process beside it for each core, as it is and with all threads for
every product, taking turns (`--without-busy` leaves that out). Last, one pass of the solver is
timed by threads, quiet and beside a busy process.

Prints the result; writes benchmarks/results/fixed_seconds.json.
"""

import argparse
import csv
import json
import os
import platform
import random
import re
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import linear

ROUNDS = 5
FIRST_TRAIN, FIRST_VAL = 300, 150
SECOND_TRAIN, SECOND_VAL = 533, 150
CONFIG = Path(__file__).parents[1] / "configs" / "frozen.yaml"
RESULT = Path(__file__).parent / "results" / "fixed_seconds.json"
SPINNING = "while True: pass"
ALL_THREADS = (
    "import mlfinetune.runtime.threads as threads; threads.FEWEST_OPERATIONS = 0; "
    "from mlfinetune.cli import main; main()"
)
"""The command with all threads for every product."""
EXAMPLES = (256, 1024, 4096, 16384)
"""Numbers of examples in a pass of the solver that is timed by threads."""
FEATURES, LABELS = 2048, 64
PASSES = 30


def draw_rows(table: Path, count: int, target: Path) -> Path:
    """Write a table of `count` rows, drawn with a seed; return its path."""
    with table.open(encoding="utf-8-sig", newline="") as file:
        head, *rows = csv.reader(file)
    random.Random(0).shuffle(rows)
    with target.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([head, *rows[:count]])
    return target


def run(
    settings: list[str], cache: Path, folder: Path, all_threads: bool = False
) -> dict[str, Any]:
    """Run once; return wall and CPU seconds of the process, its parts, and the best mAP."""
    start_of = ["-c", ALL_THREADS] if all_threads else ["-m", "mlfinetune"]
    output = folder / f"run-{time.monotonic_ns()}"
    command = [sys.executable, *start_of, "train", str(CONFIG), *settings, "-o", str(output)]
    environment = {**os.environ, "MLFINETUNE_CACHE": str(cache)}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    wall = time.perf_counter() - started
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        sys.exit(done.stderr)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    (line,) = re.findall(r"^seconds: (.*)$", done.stderr, re.MULTILINE)
    parts = {name: float(took) for took, name in re.findall(r"([\d.]+) (\w+)", line)}
    best = json.loads((output / "metrics.json").read_text())["mAP"]
    shutil.rmtree(output)  # a virtual machine is slow to get new memory for more and more files
    return {"wall_s": wall, "cpu_s": cpu, "parts_s": parts, "mAP": best}


def summarize(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the medians of several runs."""
    names = dict.fromkeys(name for one in runs for name in one["parts_s"])
    parts = {
        name: round(statistics.median(one["parts_s"].get(name, 0.0) for one in runs), 1)
        for name in names
    }
    return {
        "wall_s": round(statistics.median(one["wall_s"] for one in runs), 1),
        "cpu_s": round(statistics.median(one["cpu_s"] for one in runs), 1),
        "parts_s": {name: took for name, took in parts.items() if took},
        "mAP": round(runs[0]["mAP"], 4),
    }


@contextmanager
def busy_processes(count: int) -> Iterator[None]:
    """Context with `count` processes that compute without end."""
    others = [subprocess.Popen([sys.executable, "-c", SPINNING]) for _ in range(count)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def time_pass(examples: int, threads: int) -> float:
    """Return milliseconds of the products of one pass of the solver, the median of PASSES."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(examples, FEATURES, generator=generator)
    weight = torch.randn(LABELS, FEATURES, generator=generator, requires_grad=True)
    vector = torch.randn(LABELS * FEATURES, generator=generator)
    torch.set_num_threads(threads)
    times = []
    for _ in range(PASSES + 1):
        started = time.perf_counter()
        linear(features, weight).square().mean().backward()  # type: ignore[no-untyped-call]
        for _ in range(40):  # an iteration of L-BFGS: its history of gradients
            vector.mul_(0.999).add_(vector, alpha=0.001).dot(vector)
        times.append(1000 * (time.perf_counter() - started))
    return statistics.median(times[1:])


def compare_threads() -> list[dict[str, float]]:
    """Return milliseconds a pass by number of examples: one thread and all, quiet and not."""
    every, rows = torch.get_num_threads(), []
    for examples in EXAMPLES:
        row: dict[str, float] = {"examples": examples, "threads": every}
        for name, count in (("quiet", 0), ("busy", 1)):
            with busy_processes(count):
                row[f"one_{name}_ms"] = round(time_pass(examples, 1), 2)
                row[f"all_{name}_ms"] = round(time_pass(examples, every), 2)
        rows.append(row)
    torch.set_num_threads(every)
    return rows


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("train", "val", "images", "weights"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--without-busy", action="store_true")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root)
        common = [f"data.images={asked.images}", f"model.weights={asked.weights}"]

        def tables(label: str, train: int, val: int) -> list[str]:
            drawn = [
                f"data.{side}={draw_rows(table, count, folder / f'{label}-{side}.csv')}"
                for side, table, count in (("train", asked.train, train), ("val", asked.val, val))
            ]
            return [*drawn, *common]

        first = tables("first", FIRST_TRAIN, FIRST_VAL)
        second = tables("second", SECOND_TRAIN, SECOND_VAL)
        kept = folder / "kept"
        run(second, kept, folder)  # computes the features
        firsts, seconds = [], []
        for number in range(asked.rounds):
            firsts.append(run(first, folder / f"cache-{number}", folder))
            seconds.append(run(second, kept, folder))
        result: dict[str, Any] = {
            "rounds": asked.rounds,
            "first": {"train": FIRST_TRAIN, "val": FIRST_VAL, **summarize(firsts)},
            "second": {"train": SECOND_TRAIN, "val": SECOND_VAL, **summarize(seconds)},
        }
        if not asked.without_busy:
            with busy_processes(os.cpu_count() or 1):
                turns: dict[str, list[dict[str, Any]]] = {"as_it_is": [], "all_threads": []}
                for _ in range(asked.rounds):
                    for name, runs in turns.items():
                        runs.append(run(second, kept, folder, name == "all_threads"))
                beside = {name: summarize(runs) for name, runs in turns.items()}
            learning = [beside[key]["parts_s"]["learning"] for key in ("all_threads", "as_it_is")]
            result["beside_busy"] = {
                **beside,
                "learning_ratio": round(learning[0] / learning[1], 1),
            }
            result["pass_by_threads"] = compare_threads()
    result |= {"python": platform.python_version(), "torch": torch.__version__}
    result["machine"] = platform.machine()
    RESULT.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
