"""A table of 1,000,000 rows and 1,000 labels: seconds and memory to load it, and to start workers.

    python benchmarks/load_million.py [--rows N] [--labels L]

Each table is loaded in a process of its own: it is read, every path is looked up, rows are joined,
the sides are made.

list: three labels a row in one column, and a split column.
columns: one 0/1 column a label, a tenth of the rows; the numbers are for these rows.
hold_out: as list, without the split column, so that val is drawn by stratification.

Peak memory is that of the whole process, with the interpreter.
"""

import argparse
import csv
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

RESULTS = Path(__file__).with_name("results") / "load_million.json"
FILES_A_FOLDER = 1000


def main() -> None:
    """Draw the tables, load each in a process of its own, write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--labels", type=int, default=1_000)
    parser.add_argument("--load", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.load:
        print(json.dumps(load(asked.load)))
        return
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        names = files(root, asked.rows)
        tables = {
            "list": lists(root, names, asked.labels, split=True),
            "hold_out": lists(root, names, asked.labels, split=False),
            "columns": columns(root, names[: asked.rows // 10], asked.labels),
        }
        results = {"rows": asked.rows, "labels": asked.labels, "machine": platform.machine()}
        for name, table in tables.items():
            command = [sys.executable, __file__, "--load", str(table)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            results[name] = json.loads(done.stdout)
            print(name, results[name])
    RESULTS.write_text(json.dumps(results, indent=2) + "\n")


def files(root: Path, rows: int) -> list[str]:
    """Make empty files with the names of pictures, a thousand a folder; return the names."""
    names = []
    for start in range(0, rows, FILES_A_FOLDER):
        below = f"{start // FILES_A_FOLDER:05}"
        (root / below).mkdir()
        for row in range(start, min(start + FILES_A_FOLDER, rows)):
            names.append(f"{below}/{row:07}.jpg")
            os.close(os.open(root / names[-1], os.O_CREAT))
    return names


def lists(root: Path, names: list[str], labels: int, split: bool) -> Path:
    """Write a table with three labels a row in one column, drawn by a law like Zipf's."""
    rng = np.random.default_rng(0)
    drawn = (rng.pareto(0.6, (len(names), 3)) * 3).astype(np.int64) % labels
    path = root / f"lists-{split}.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "labels", *["split"] * split])
        for row, (name, three) in enumerate(zip(names, drawn.tolist(), strict=True)):
            cell = "|".join(f"label {at}" for at in sorted(set(three)))
            writer.writerow([name, cell, *["train" if row % 5 else "val"] * split])
    return path


def columns(root: Path, names: list[str], labels: int) -> Path:
    """Write a table with one column a label, half a percent of the cells 1."""
    rng = np.random.default_rng(0)
    path = root / "columns.csv"
    with path.open("w", newline="") as file:
        file.write(",".join(["image", *(f"label {at}" for at in range(labels))]) + "\n")
        for name in names:
            states = (rng.random(labels) < 0.005).astype(np.uint8) + ord("0")
            file.write(f"{name},{','.join(states.tobytes().decode())}\n")
    return path


def load(table: Path) -> dict[str, float]:
    """Return images, labels, seconds and peak GiB of read_splits, and the numbers of `workers`."""
    from mlfinetune.data.read import read_splits
    from mlfinetune.data.table import SourceOptions

    started = time.perf_counter()
    splits = read_splits(table, None, SourceOptions())
    seconds = time.perf_counter() - started
    # Not ru_maxrss, which begins with that of the process that started this one.
    status = Path("/proc/self/status").read_text()
    peak = int(next(x for x in status.splitlines() if x.startswith("VmHWM")).split()[1]) / 2**20
    return {
        "images": len(splits.train) + len(splits.val),
        "labels": len(splits.train.labels),
        "seconds": round(seconds, 1),
        "peak_GiB": round(peak, 2),
        **workers(splits.train),
    }


def workers(manifest: object) -> dict[str, float]:
    """Return seconds to a first batch, bytes of a worker's pickle, and a forked worker's MiB."""
    import pickle

    from mlfinetune.data.batches.loader import Loader
    from mlfinetune.data.images.transforms import TransformSpec
    from mlfinetune.data.manifest import Manifest

    assert isinstance(manifest, Manifest)
    spec = TransformSpec(224, "squash", 10**6)
    loader = Loader(manifest, spec, batch_size=32, workers=2, train_seed=0, pin_memory=False)
    started = time.perf_counter()
    next(loader.epoch(), None)
    seconds = time.perf_counter() - started
    children = [int(p.name) for p in Path("/proc").glob("[0-9]*") if _parent(p) == os.getpid()]
    private = sum(_private(pid) for pid in children) / max(1, len(children))
    return {
        "first_batch_s": round(seconds, 1),
        "worker_pickle_bytes": len(pickle.dumps(loader._loader.dataset)),
        "worker_private_MiB": round(private / 2**20),
    }


def _parent(process: Path) -> int:
    try:
        return int((process / "stat").read_text().rsplit(")", 1)[1].split()[1])
    except OSError:
        return -1


def _private(pid: int) -> int:
    """Return the bytes of a process that it shares with no other process."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    lines = [line.split() for line in text.splitlines() if line.startswith("Private_Dirty")]
    return sum(int(line[1]) for line in lines) * 1024


if __name__ == "__main__":
    main()
