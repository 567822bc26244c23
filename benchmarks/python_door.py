"""Cost of one warm picture in Python, beside decoding it and a bare forward pass.

python benchmarks/python_door.py  ->  benchmarks/results/python_door.json

ResNets of random weights with 64 labels, and drawn JPEGs of 800 x 600. The calls alternate:
decoding alone, the forward pass alone, `Tagger.predict` of one path. Each round has all pictures;
the ratio is that of a round's sums, and the median of the rounds counts. All of it runs on one
thread, and the CPU time of the process is taken, so that other processes hardly count.
"""

import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from explain import draw_pictures

import mlfinetune
from mlfinetune.data.images.transforms import TransformSpec
from mlfinetune.data.targets import LabelSpace
from mlfinetune.metrics.types import DecisionRule
from mlfinetune.models.tagger import Tagger as Network
from mlfinetune.runs import checkpoint
from mlfinetune.runs.checkpoint import Checkpoint

PICTURES, ROUNDS, LABELS = 8, 9, 64
CASES = (("resnet50", 224, "float32"), ("resnet50", 224, "bfloat16"), ("resnet18", 96, "float32"))
RESULT = Path(__file__).parent / "results" / "python_door.json"


def main() -> None:
    """Measure each network, size and precision."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = draw_pictures(folder, PICTURES)
        rows = [measure(folder, paths, *case) for case in CASES]
    result = {"torch": torch.__version__, "machine": platform.machine(), "rows": rows}
    RESULT.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


def write_checkpoint(path: Path, backbone: str, side: int, precision: str) -> None:
    """Write a checkpoint of random weights."""
    torch.manual_seed(0)
    spec = TransformSpec(side, "squash", 10**8)
    network = Network(backbone, LABELS, mean=spec.mean, std=spec.std)
    config = {"data": {"train": "tags.csv"}, "train": {"precision": precision}}
    content = Checkpoint(
        network.state_dict(),
        LabelSpace(tuple(f"label {number}" for number in range(LABELS))),
        spec,
        backbone,
        DecisionRule.plain(LABELS),
        config,
        data_digest="",
        epoch=1,
        versions={},
    )
    checkpoint.save(path, content)


def measure(
    folder: Path, paths: list[str], backbone: str, side: int, precision: str
) -> dict[str, object]:
    """Return milliseconds a picture of each part, and the ratio of the whole to its parts."""
    write_checkpoint(folder / "a.safetensors", backbone, side, precision)
    tagger = mlfinetune.load(folder / "a.safetensors", device="cpu")
    reader, backend = tagger._reader, tagger.backend
    squares = {path: reader.make_square(reader.read_pixels(path, path))[None] for path in paths}
    parts: dict[str, Callable[[str], object]] = {
        "decode": lambda path: reader.make_square(reader.read_pixels(path, path)),
        "forward": lambda path: backend.compute_logits(squares[path]),
        "predict": lambda path: next(tagger.predict([path])),
    }
    rounds = [time_round(parts, paths) for _ in range(1 + ROUNDS)][1:]  # the first one warms up
    ratios = [each["predict"] / (each["decode"] + each["forward"]) for each in rounds]
    medians = {name: statistics.median(each[name] for each in rounds) for name in parts}
    return {
        "backbone": backbone,
        "side": side,
        "precision": precision,
        **{f"{name}_ms": round(1000 * seconds / PICTURES, 2) for name, seconds in medians.items()},
        "ratio": round(statistics.median(ratios), 3),
        "ratios": [round(ratio, 3) for ratio in sorted(ratios)],
        "how": backend.how,
    }


def time_round(parts: dict[str, Callable[[str], object]], paths: list[str]) -> dict[str, float]:
    """Return the CPU seconds of each part for all pictures, the parts in turn."""
    seconds = dict.fromkeys(parts, 0.0)
    for path in paths:
        for name, call in parts.items():
            started = time.process_time()
            call(path)
            seconds[name] += time.process_time() - started
    return seconds


if __name__ == "__main__":
    main()
