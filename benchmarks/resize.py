"""mAP by `model.resize` (how a picture becomes a square) and by the bound of random crops.

python benchmarks/resize.py --train train.csv --val val.csv --images images --weights FILE

Frozen: the head is solved for on features of each `model.resize`, and of 1, 2 and 4 views of a
picture (itself; its mirror image; two random crops). Fine-tuned: one run for each lower bound of
`augment.crop_scale`, from the solved head, and one from a Kaiming-initialised head. The last epoch
of each is scored with every `model.resize`. Runs are processes of the command line. Prints a table;
writes benchmarks/results/resize.json. It takes an hour on two cores; `--rows` and `--epochs`
shorten the fine-tuned half, `--only frozen` leaves it out.
"""

import argparse
import csv
import json
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from shutil import rmtree

from mlfinetune.runs import checkpoint

CONFIGS = Path(__file__).parents[1] / "configs"
RESULT = Path(__file__).parent / "results" / "resize.json"
RESIZES = ("squash", "crop", "pad")
SCALES = (0.08, 0.35, 1.0)
DEFAULT_SCALE = 0.35


def mlfinetune(*arguments: str) -> None:
    """Run the command line, quietly."""
    command = [sys.executable, "-m", "mlfinetune", *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)


def train(config: str, data: list[str], output: Path, *settings: str) -> float:
    """Return the best mAP of a run."""
    mlfinetune("train", str(CONFIGS / config), *data, *settings, "-o", str(output))
    return json.loads((output / "metrics.json").read_text())["mAP"]


def scored(run: Path, resize: str, folder: Path) -> float:
    """Return the mAP of a run's last checkpoint with another resize."""
    content = checkpoint.load(run / "last.safetensors")
    file = folder / f"{resize}.safetensors"
    transform = replace(content.transform, resize=resize)
    checkpoint.save(file, replace(content, transform=transform))
    mlfinetune("eval", "--checkpoint", str(file), "-o", str(folder / resize))
    return json.loads((folder / resize / "metrics.json").read_text())["mAP"]


def few(table: Path, rows: int, folder: Path) -> Path:
    """Return some rows of a table, evenly spread."""
    with table.open(newline="", encoding="utf-8") as file:
        header, *lines = list(csv.reader(file))
    step = max(1, len(lines) // rows)
    target = folder / table.name
    with target.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *lines[::step][:rows]])
    return target


def names(table: Path) -> set[str]:
    """Return the labels of a table."""
    with table.open(newline="", encoding="utf-8") as file:
        return {label for row in csv.DictReader(file) for label in row["labels"].split("|")}


def frozen(data: list[str], folder: Path) -> dict[str, float]:
    """Return mAP by resize and by number of views."""
    found = {}
    for resize in RESIZES:
        for views in (1, 2, 4) if resize == "squash" else (1, 2):
            crops = ["augment.crop_scale=[0.35, 1.0]"] if views > 2 else []
            name = f"{resize}, {views} views"
            settings = [f"model.resize={resize}", f"train.cache_views={views}", *crops]
            found[name] = train("frozen.yaml", data, folder / name, *settings)
            print(f"frozen      {name:<20} mAP {found[name]:.4f}", flush=True)
    return found


def finetuned(data: list[str], folder: Path, epochs: int) -> dict[str, dict[str, float]]:
    """Return mAP by head, crop scale and resize."""
    found: dict[str, dict[str, float]] = {}
    ways = [("solved", scale) for scale in SCALES] + [("kaiming", DEFAULT_SCALE)]
    for head, scale in ways:
        name = f"{head} head, crops of {scale} to 1"
        run = folder / name
        settings = [f"augment.crop_scale=[{scale}, 1.0]", f"train.epochs={epochs}"]
        settings += ["train.early_stopping=null", f"train.solve_head_first={head == 'solved'}"]
        train("finetune.yaml", data, run, *settings)
        found[name] = {resize: scored(run, resize, folder) for resize in RESIZES}
        rmtree(run)
        shown = "  ".join(f"{resize} {value:.4f}" for resize, value in found[name].items())
        print(f"fine-tuned  {name:<32} mAP {shown}", flush=True)
    return found


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("train", "val", "images", "weights"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=1200, help="to fine-tune on")
    parser.add_argument("--epochs", type=int, default=4, help="of fine-tuning")
    parser.add_argument("--only", choices=("frozen", "finetuned"))
    asked = parser.parse_args()
    shared = [f"data.images={asked.images.absolute()}", f"model.weights={asked.weights.absolute()}"]
    result = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if asked.only != "finetuned":
            data = [
                f"data.train={asked.train.absolute()}",
                f"data.val={asked.val.absolute()}",
                *shared,
            ]
            result["frozen"] = frozen(data, folder)
        if asked.only != "frozen":
            train_rows = few(asked.train, asked.rows, folder)
            unseen = sorted(names(asked.val) - names(train_rows))
            data = [f"data.train={train_rows}", f"data.val={asked.val.absolute()}", *shared]
            data.append(f"data.ignore_labels={json.dumps(unseen)}")
            result["rows"], result["epochs"] = asked.rows, asked.epochs
            result["finetuned"] = finetuned(data, folder, asked.epochs)
    RESULT.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
