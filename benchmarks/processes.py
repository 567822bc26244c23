"""Two processes beside one, on a CPU: images/s of training and of prediction.

A round runs each setting once, in turn; numbers are medians of the rounds, without start-up. The
model is a ResNet-50 on drawn pictures of 224 px. With as many processes as cores each has one
thread.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import demo_data

RESULTS = Path(__file__).parent / "results"
CONFIG = """\
data: {train: tags.csv}
model: {weights: null, image_size: 224}
train: {epochs: 2, batch_size: 32, workers: 0}
"""
WAYS = {"1 process, 1 thread": (1, 1), "1 process, 2 threads": (1, 2), "2 processes": (2, 1)}


def launched(processes: int, threads: int, *arguments: str, cwd: Path) -> str:
    """Run a command in one or several processes; return what it writes to standard error."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    start = [sys.executable, *(launcher if processes > 1 else []), "-m", "mlfinetune"]
    done = subprocess.run(
        [*start, *arguments],
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": str(threads), "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stderr


def trained(processes: int, threads: int, cwd: Path, name: str) -> float:
    """Return the images/s of the second epoch."""
    launched(processes, threads, "train", "config.yaml", "-o", name, cwd=cwd)
    rows = (cwd / name / "metrics.jsonl").read_text().splitlines()
    return float(json.loads(rows[-1])["images_per_s"])


def predicted(processes: int, threads: int, cwd: Path, run: str) -> float:
    """Return the images/s of predict, with loading of the pictures."""
    asked = ("predict", *["images"] * 4, "-c", run, "-o", "predictions.csv")
    said = launched(processes, threads, *asked, cwd=cwd)
    return float(re.findall(r"([\d.]+) images/s", said)[-1])


def main() -> None:
    """Measure, write and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as folder:
        cwd = Path(folder)
        os.environ["MLFINETUNE_CACHE"] = str(cwd / "cache")
        demo_data.write(cwd, count=120, size=224)
        (cwd / "config.yaml").write_text(CONFIG)
        found: dict[str, dict[str, list[float]]] = {"train": {}, "predict": {}}
        for number in range(rounds):
            for way, (processes, threads) in WAYS.items():
                name = f"run-{number}-{processes}-{threads}"
                speed = trained(processes, threads, cwd, name)
                found["train"].setdefault(way, []).append(speed)
                speed = predicted(processes, threads, cwd, "run-0-1-1")
                found["predict"].setdefault(way, []).append(speed)
    rows = []
    for what, ways in found.items():
        medians = {way: statistics.median(speeds) for way, speeds in ways.items()}
        for way, speed in medians.items():
            ratio = speed / medians["1 process, 1 thread"]
            rows.append({"what": what, "way": way, "images/s": speed, "ratio": ratio})
            print(f"{what:<8} {way:<22} {speed:7.1f} images/s  {ratio:.2f}x")
    result = {"rounds": rounds, "cores": os.cpu_count(), "rows": rows}
    (RESULTS / "processes.json").write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
