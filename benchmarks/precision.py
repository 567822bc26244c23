"""Effect of bfloat16 on probabilities and mAP of one checkpoint, beside float32.

python benchmarks/precision.py --train train.csv --val val.csv --images images --weights FILE

A frozen ResNet-50 is trained with `configs/frozen.yaml`. Its best checkpoint is evaluated by
`mlfinetune eval` with `train.precision` float32 and bfloat16, with the fused backbone that runs on
a CPU. Prints, and writes benchmarks/results/precision.json.
"""

import argparse
import csv
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

CONFIG = Path(__file__).parents[1] / "configs" / "frozen.yaml"
RESULT = Path(__file__).parent / "results" / "precision.json"
FACTS = {"image", "labels", "error"}


def mlfinetune(*arguments: str) -> None:
    """Run the command line, quietly."""
    command = [sys.executable, "-m", "mlfinetune", *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)


def evaluated(run: Path, precision: str) -> tuple[float, np.ndarray]:
    """Return mAP, and the (N, L) probabilities."""
    folder = run / precision
    settings = [f"train.precision={precision}", "--device", "cpu"]
    mlfinetune("eval", "--checkpoint", str(run), *settings, "-o", str(folder))
    with (folder / "predictions.csv").open(encoding="utf-8", newline="") as file:
        rows = [
            [float(x) for k, x in row.items() if k not in FACTS] for row in csv.DictReader(file)
        ]
    return json.loads((folder / "metrics.json").read_text())["mAP"], np.array(rows)


def main() -> None:
    """Train, evaluate twice, compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("train", "val", "images", "weights"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    options = parser.parse_args()
    data = [f"data.{key}={getattr(options, key).absolute()}" for key in ("train", "val", "images")]
    data.append(f"model.weights={options.weights.absolute()}")
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder, "run")
        mlfinetune("train", str(CONFIG), *data, "-o", str(run))
        found = {precision: evaluated(run, precision) for precision in ("float32", "bfloat16")}
    distance = np.abs(found["float32"][1] - found["bfloat16"][1])
    result = {
        "images": len(distance),
        "labels": distance.shape[1],
        "mAP": {precision: round(value, 5) for precision, (value, _) in found.items()},
        "difference of probabilities": {
            "mean": round(float(distance.mean()), 6),
            "99.9 %": round(float(np.quantile(distance, 0.999)), 5),
            "largest": round(float(distance.max()), 5),
            "share above 0.01": float(f"{(distance > 0.01).mean():.2g}"),
        },
    }
    RESULT.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
