"""Labels that are added later: the ways to go on, and how far the automatic split moves.

python benchmarks/other_labels.py --train train.csv --val val.csv --images images --weights FILE
    -> benchmarks/results/other_labels.json

A first run knows three quarters of the labels, on 1,500 pictures. Later 300 other pictures come,
tagged with all labels. Frozen, solved by L-BFGS, three draws; mAP over the old and the new labels
on all validation pictures, which are tagged with all labels:

    new table         the 300 pictures alone, from the pretrained backbone
    new table, run    the 300 pictures alone, from the first run
    both              both tables as a list: new labels are unknown for the first 1,500 pictures
    both, run         the same, from the first run
    one table         both tables as one: new labels are negative for the first 1,500 pictures

The split: shares of the pictures that were held out and moved to train, where rows are added to a
table, by a draw without memory, and where the first run is known. Features are read from the cache,
or computed and added to it.
"""

import argparse
import csv
import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from mlfinetune.config import load_tree
from mlfinetune.data.known_sides import KnownSides, PictureSet
from mlfinetune.data.manifest import Splits
from mlfinetune.data.read import read_splits
from mlfinetune.data.table import SourceOptions
from mlfinetune.runtime.log import RunLog
from mlfinetune.workflows import train

DRAWS, OLD_ROWS, NEW_ROWS = 3, 1500, 300
GROWN = ((400, 40), (2000, 20), (2000, 200))
RESULT = Path(__file__).parent / "results" / "other_labels.json"
Row = tuple[str, list[str]]


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("train", "val", "images", "weights"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    asked = parser.parse_args()
    rows = read_rows(asked.train)
    result: dict[str, Any] = {"split": measure_split(rows), "labels": {}}
    for seed in range(DRAWS):
        with TemporaryDirectory() as folder:
            for way, found in measure_ways(rows, asked, Path(folder), seed).items():
                result["labels"].setdefault(way, []).append(found)
                print(seed, way, found, flush=True)
        RESULT.write_text(json.dumps(result, indent=2) + "\n")


def read_rows(path: Path) -> list[Row]:
    """Return name and labels of each picture of a table."""
    with path.open(newline="") as file:
        return [(row["image"], row["labels"].split("|")) for row in csv.DictReader(file)]


def write_rows(path: Path, rows: list[Row], labels: list[str]) -> Path:
    """Write a table with a column for each of these labels."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", *labels])
        writer.writerows([name, *(int(label in own) for label in labels)] for name, own in rows)
    return path


# ---- labels -----------------------------------------------------------------------------


def measure_ways(
    rows: list[Row], asked: argparse.Namespace, folder: Path, seed: int
) -> dict[str, dict[str, float]]:
    """Return way -> mAP over the old and the new labels."""
    order = np.random.default_rng(seed).permutation(len(rows)).tolist()
    labels = sorted({label for _, own in rows for label in own})
    new = labels[::4]
    old = [label for label in labels if label not in new]
    first, later = ([rows[i] for i in part] for part in (order[:OLD_ROWS], order[OLD_ROWS:]))
    later = later[:NEW_ROWS]
    tables = [
        write_rows(folder / "old.csv", first, old),
        write_rows(folder / "new.csv", later, labels),
    ]
    naive = [(name, [label for label in own if label in old]) for name, own in first]
    one = write_rows(folder / "one.csv", [*naive, *later], labels)
    vals = read_rows(asked.val)
    val_old = write_rows(folder / "val_old.csv", vals, old)
    val = write_rows(folder / "val.csv", vals, labels)

    def run(name: str, table: Any, val_table: Path, weights: Path) -> Path:
        data = {"train": table, "val": val_table, "images": asked.images}
        model = {"freeze_backbone": True, "weights": weights}
        tree = {"data": data, "model": model, "train": {"cache_views": 1}}
        config = load_tree({**tree, "output": folder / name})
        done = train.run(config, "cpu", RunLog())
        assert done is not None
        return done.run

    before = run("first", tables[0], val_old, asked.weights)
    ways = {
        "new table": (tables[1], asked.weights),
        "new table, run": (tables[1], before),
        "both": (tables, asked.weights),
        "both, run": (tables, before),
        "one table": (one, asked.weights),
    }
    found = {"first run": average(before, old, [])}
    for way, (table, weights) in ways.items():
        found[way] = average(run(way.replace(", ", "-"), table, val, weights), old, new)
    return found


def average(run: Path, old: list[str], new: list[str]) -> dict[str, float]:
    """Return the mean AP of the old labels and of the new ones."""
    rows = json.loads((run / "metrics.json").read_text())["per_label"]
    means = {}
    for name, labels in (("old", old), ("new", new)):
        scores = [rows[label]["AP"] for label in labels if rows[label]["AP"] is not None]
        if scores:
            means[name] = round(float(np.mean(scores)), 4)
    return means


# ---- the split --------------------------------------------------------------------------


def measure_split(rows: list[Row]) -> dict[str, dict[str, float]]:
    """Return `2000 + 200` -> share of held-out pictures in train later, without and with memory."""
    result = {}
    for size, added in GROWN:
        moved: dict[str, list[float]] = {"drawn anew": [], "first run known": []}
        for seed in range(DRAWS):
            order = np.random.default_rng(seed).permutation(len(rows))[: size + added].tolist()
            with TemporaryDirectory() as folder:
                part = [rows[i] for i in order]
                before = split(part[:size], Path(folder))
                sides = [
                    PictureSet.of(np.full(len(side), -1, np.int64), list_paths(side))
                    for side in (before.train, before.val)
                ]
                known = KnownSides("first", *sides, seen=PictureSet.none())
                for name, memory in (("drawn anew", None), ("first run known", known)):
                    val = set(split(part, Path(folder), memory).val.names)
                    moved[name].append(1 - len(val & {*before.val.names}) / len(before.val))
        result[f"{size} + {added}"] = {k: round(float(np.mean(v)), 3) for k, v in moved.items()}
        print(size, added, result[f"{size} + {added}"], flush=True)
    return result


def split(rows: list[Row], folder: Path, known: KnownSides | None = None) -> Splits:
    """Return the automatic split of these rows; the pictures are empty files."""
    for name, _ in rows:
        (folder / name).touch()
    labels = sorted({label for _, own in rows for label in own})
    table = write_rows(folder / "table.csv", rows, labels)
    return read_splits(table, None, SourceOptions(), known=known)


def list_paths(side: Any) -> list[str]:
    """Return the paths of the pictures of one side."""
    return [side.path(row) for row in range(len(side))]


if __name__ == "__main__":
    main()
