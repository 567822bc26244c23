"""Time until the first line: `--help`, and the first row of `predict`.

python benchmarks/start_up.py  ->  benchmarks/results/start_up.json

Processes take turns. Seconds are medians of wall time from the start of a process to its end; for
predict to its first row of probabilities, of a ResNet-50 with 64 labels on the CPU. The files are
in the system's memory already.
"""

import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from PIL import Image

from mlfinetune.data.images.transforms import TransformSpec
from mlfinetune.data.targets import LabelSpace
from mlfinetune.metrics.types import DecisionRule
from mlfinetune.models.tagger import Tagger
from mlfinetune.runs import checkpoint
from mlfinetune.runs.checkpoint import Checkpoint

ROUNDS = 9
COMMAND = str(Path(sys.executable).with_name("mlfinetune"))
RESULT = Path(__file__).parent / "results" / "start_up.json"


def commands(folder: Path) -> dict[str, list[str]]:
    """Return the commands that are timed; predict has one picture."""
    spec = TransformSpec(224, "squash", 10**8)
    labels = LabelSpace(tuple(f"label {i}" for i in range(64)))
    tagger = Tagger("resnet50", len(labels), mean=spec.mean, std=spec.std)
    config = {"data": {"train": "none.csv"}}
    plain = DecisionRule.plain(len(labels))
    content = Checkpoint(tagger.state_dict(), labels, spec, "resnet50", plain, config, "", 1, {})
    checkpoint.save(folder / "best.safetensors", content)
    Image.effect_noise((500, 375), 50).convert("RGB").save(folder / "picture.jpg")
    predict = ["predict", "picture.jpg", "--checkpoint", "best.safetensors", "--device", "cpu"]
    return {
        "python -c pass": [sys.executable, "-c", "pass"],
        "mlfinetune --help": [COMMAND, "--help"],
        "python -c 'import torch'": [sys.executable, "-c", "import torch"],
        "python -c 'import torchvision'": [sys.executable, "-c", "import torchvision"],
        "mlfinetune predict, first row": [COMMAND, *predict],
    }


def seconds(command: list[str], folder: Path) -> float:
    """Return wall time to the end of a process, or to the second line that it prints."""
    start = time.perf_counter()
    with subprocess.Popen(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        assert process.stdout is not None
        if "predict" in command:
            process.stdout.readline()
            assert process.stdout.readline().startswith(b"picture.jpg"), "no first row"
            took = time.perf_counter() - start
        process.stdout.read()
    if process.returncode:
        sys.exit(f"failed: {command}")
    return took if "predict" in command else time.perf_counter() - start


def main() -> None:
    """Time all in turn, and write the medians."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        asked = commands(folder)
        times: dict[str, list[float]] = {name: [] for name in asked}
        for round_ in range(ROUNDS + 1):
            for name, command in asked.items():
                took = seconds(command, folder)
                if round_:  # the first one warms up
                    times[name].append(took)
    medians = {name: round(statistics.median(values), 2) for name, values in times.items()}
    result = {
        "rounds": ROUNDS,
        "median_s": medians,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "machine": platform.machine(),
    }
    RESULT.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
