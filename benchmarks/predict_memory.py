"""Memory of `mlfinetune predict` for any number of pictures.

python benchmarks/predict_memory.py [--pictures N]  ->  benchmarks/results/predict_memory.json

A ResNet-18 with 64 labels reads N paths from standard input: those of a thousand drawn pictures of
64 px, again and again; one in a thousand cannot be read. The resident memory of the process and of
its children is sampled every second. The slope is that of a line through the second half of the
samples. Then predict is killed at half of the rows and resumed: the file has to be the same.
"""

import argparse
import json
import platform
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import demo_data
import numpy as np
import torch

from mlfinetune.data.images.transforms import TransformSpec
from mlfinetune.data.targets import LabelSpace
from mlfinetune.metrics.types import DecisionRule
from mlfinetune.models.tagger import Tagger
from mlfinetune.runs import checkpoint
from mlfinetune.runs.checkpoint import Checkpoint

DISTINCT = 1000
RESULT = Path(__file__).parent / "results" / "predict_memory.json"


def main() -> None:
    """Predict twice, and write seconds and memory."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pictures", type=int, default=200_000)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder, asked.pictures)
        readings, rate = predict(folder, "whole.jsonl")
        late = readings[len(readings) // 2 :]
        slope = np.polyfit([n for n, _ in late], [memory for _, memory in late], 1)[0]
        predict(folder, "killed.jsonl", kill_at=asked.pictures // 2)
        predict(folder, "killed.jsonl", "--resume")
        whole, killed = ((folder / f"{x}.jsonl").read_bytes() for x in ("whole", "killed"))
        result = {
            "pictures": asked.pictures,
            "images_per_s": round(rate, 1),
            "MiB_at_a_tenth": round(readings[len(readings) // 10][1] / 2**20),
            "MiB_at_the_end": round(readings[-1][1] / 2**20),
            "bytes_a_picture": round(float(slope), 1),
            "killed_and_resumed_is_the_same": whole == killed,
            "torch": torch.__version__,
            "machine": platform.machine(),
        }
    RESULT.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


def prepare(folder: Path, pictures: int) -> None:
    """Make a checkpoint, pictures, and the list of paths."""
    spec = TransformSpec(64, "squash", 10**8)
    labels = LabelSpace(tuple(f"label {i}" for i in range(64)))
    tagger = Tagger("resnet18", len(labels), mean=spec.mean, std=spec.std)
    config, plain = {"data": {"train": "none.csv"}}, DecisionRule.plain(len(labels))
    content = Checkpoint(tagger.state_dict(), labels, spec, "resnet18", plain, config, "", 1, {})
    checkpoint.save(folder / "best.safetensors", content)
    demo_data.write(folder, count=DISTINCT)
    names = sorted(f"images/{path.name}" for path in (folder / "images").iterdir())
    (folder / names[0]).write_bytes(b"no picture")
    with (folder / "paths.txt").open("w") as file:
        file.writelines(f"{names[n % DISTINCT]}\n" for n in range(pictures))


def predict(
    folder: Path, output: str, *more: str, kill_at: int | None = None
) -> tuple[list[tuple[int, int]], float]:
    """Return (rows, bytes of memory) of every second, and pictures/s."""
    command = [sys.executable, "-m", "mlfinetune", "predict", "-", "-c", "best.safetensors"]
    started, readings = time.monotonic(), list[tuple[int, int]]()
    out = folder / output
    with (
        (folder / "paths.txt").open() as paths,
        subprocess.Popen(
            [*command, "-o", output, "--only-labels", "--device", "cpu", *more],
            cwd=folder,
            stdin=paths,
            stderr=subprocess.DEVNULL,
        ) as process,
    ):
        rows = at = 0
        while process.poll() is None:
            time.sleep(1)
            new = read_from(out, at)
            rows, at = rows + new.count(b"\n"), at + len(new)
            readings.append((rows, resident(process.pid)))
            if kill_at is not None and rows >= kill_at:
                process.send_signal(signal.SIGKILL)
                kill_at = None
    if process.returncode not in (3, -signal.SIGKILL):
        sys.exit(f"predict ended with {process.returncode}")
    readings = [(rows, memory) for rows, memory in readings if rows and memory]
    return readings, readings[-1][0] / (time.monotonic() - started)


def read_from(path: Path, at: int) -> bytes:
    """Return what a growing file has from a position on."""
    if not path.exists():
        return b""
    with path.open("rb") as file:
        file.seek(at)
        return file.read()


def resident(process: int) -> int:
    """Return the bytes of a process and its children in memory; shared pages are divided."""
    found = 0
    try:
        children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
        for one in (process, *children):
            text = Path(f"/proc/{one}/smaps_rollup").read_text()
            found += next(int(x.split()[1]) for x in text.splitlines() if x.startswith("Pss:"))
    except (OSError, StopIteration):
        return 0
    return found * 1024


if __name__ == "__main__":
    main()
