"""ONNX files of a ResNet-50: difference from the checkpoint, size, images/s, mAP; int8 beside.

python benchmarks/export.py --train train.csv --val val.csv --images images --weights FILE

A frozen tagger of two levels is trained on 300 pictures, calibrated, and exported twice by
`mlfinetune export`. Rates are of CPU time on one core, medians of rounds in which checkpoint (as
predict computes it) and files take turns, at batches of 1 and 16. The script of docs/serve.md tags
64 validation pictures; its largest difference from predict is kept. Prints a table; writes
benchmarks/results/export.json. It takes some minutes.
"""

import argparse
import json
import os
import platform
import re
import runpy
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from resize import few, mlfinetune, names

from mlfinetune.data.batches.loader import stream_batches
from mlfinetune.door import load
from mlfinetune.predicting.backend import Backend, open_backend
from mlfinetune.runtime.device import read_cpu_flags
from mlfinetune.runtime.log import RunLog
from mlfinetune.workflows import export

ROOT = Path(__file__).parents[1]
RESULT = Path(__file__).parent / "results" / "export.json"
TRAINED, TAGGED, ROUNDS = 300, 64, 7


def train(args: argparse.Namespace, folder: Path) -> Path:
    """Train the tagger; return its run directory."""
    table = few(args.train, TRAINED, folder)
    missing = sorted(names(args.val) - names(table))
    run = folder / "run"
    mlfinetune(
        "train", str(ROOT / "configs/frozen.yaml"), f"data.train={table}", f"data.val={args.val}",
        f"data.images={args.images}", f"model.weights={args.weights}",
        f"data.ignore_labels={json.dumps(missing)}", "eval.calibration=platt", "-o", str(run),
    )  # fmt: skip
    return run


def measure_rates(
    backends: dict[str, Backend], images: torch.Tensor
) -> dict[str, dict[int, float]]:
    """Return images/s of CPU time of each backend, at batches of 1 and of all images."""
    rates: dict[str, dict[int, float]] = {name: {} for name in backends}
    for size in (1, len(images)):
        seconds: dict[str, list[float]] = {name: [] for name in backends}
        for turn in range(ROUNDS + 1):
            for name, backend in backends.items():
                start = time.process_time()
                backend.compute_logits(images[:size])
                if turn:  # the first one warms up
                    seconds[name].append(time.process_time() - start)
        for name, values in seconds.items():
            rates[name][size] = round(size / statistics.median(values), 2)
    return rates


def compare_script(file: Path, pictures: list[str]) -> float:
    """Return the largest difference of a probability between the page's script and predict."""
    page = (ROOT / "docs/serve.md").read_text()
    script = re.search(r"^```python\n(# tag\.py\n.*?)^```", page, re.MULTILINE | re.DOTALL)
    assert script is not None
    (file.parent / "tag.py").write_text(script[1])
    tagger = runpy.run_path(str(file.parent / "tag.py"))["Tagger"](str(file))
    scores = [tagger.tag([tagger.prepare(picture)])[0] for picture in pictures]
    found = np.array([list(row.values()) for row in scores])
    return float(np.abs(found - load(file).probabilities(pictures)).max())


def main() -> None:
    """Train, export, measure, write, print."""
    parser = argparse.ArgumentParser()
    for name in ("train", "val", "images", "weights"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run = train(args, folder)
        request = export.ExportRequest(run, folder / "float32.onnx")
        plain = export.run(request, RunLog())
        request = export.ExportRequest(run, folder / "int8.onnx", int8=True, max_drop=1.0)
        small = export.run(request, RunLog())
        assert small.costs is not None
        torch.set_num_threads(1)
        files = {
            "checkpoint": run / "best.safetensors",
            "float32": request.output.with_name("float32.onnx"),
            "int8": request.output,
        }
        cpu = torch.device("cpu")
        backends = {kind: open_backend(file, cpu) for kind, file in files.items()}
        pictures = sorted(map(str, args.images.iterdir()))[:: 3241 // TAGGED][:TAGGED]
        ((_, batch),) = stream_batches(
            pictures[:16], backends["int8"].spec, batch_size=16, workers=0, pin_memory=False
        )
        result: dict[str, Any] = {
            "torch": torch.__version__,
            "machine": platform.machine(),
            "flags": sorted(read_cpu_flags() & {"avx512_vnni", "avx_vnni", "amx_int8"}),
            "cores": os.cpu_count(),
            "pictures": plain.pictures,
            "largest difference": plain.difference,
            "script, largest difference": compare_script(files["float32"], pictures),
            "MB": {kind: round(file.stat().st_size / 1e6, 1) for kind, file in files.items()},
            "mAP": dict(zip(("float32", "int8"), (c.mean_ap for c in small.costs), strict=True)),
            "how": {kind: backend.how for kind, backend in backends.items()},
            "images/s of one core": measure_rates(backends, batch.images),
        }
    RESULT.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
