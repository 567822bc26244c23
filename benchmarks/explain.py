"""Cost of heat maps: CPU seconds a picture, beside those of its prediction.

python benchmarks/explain.py  ->  benchmarks/results/explain.json

A ResNet-50 of random weights with 64 labels at 224 pixels, its last stage or its last two, and
drawn JPEGs of 800 x 600. All of it runs on one thread, and CPU time is taken, so that other
processes on the machine hardly count.
"""

import json
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import demo_data
import numpy as np
import torch
from PIL import Image

from mlfinetune.data.batches.dataset import ImageDataset, collate
from mlfinetune.data.images.decode import encode_jpeg
from mlfinetune.data.images.overlay import draw_overlay
from mlfinetune.data.images.transforms import TransformSpec
from mlfinetune.models.heat_map import Explainer
from mlfinetune.models.inference import prepare_for_inference
from mlfinetune.models.scoring import compute_logits
from mlfinetune.models.tagger import Tagger

PICTURES, BATCH = 16, 16
SPEC = TransformSpec(224, "squash", 10**8)
RESULT = Path(__file__).parent / "results" / "explain.json"


def main() -> None:
    """Measure both precisions and numbers of levels."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        paths = draw_pictures(Path(name), PICTURES)
        rows = [
            measure(paths, levels, dtype)
            for levels in (1, 2)
            for dtype in (torch.float32, torch.bfloat16)
        ]
    result = {"torch": torch.__version__, "machine": platform.machine(), "rows": rows}
    RESULT.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


def draw_pictures(folder: Path, count: int) -> list[str]:
    """Write JPEGs of 800 x 600 pixels; return their paths."""
    rng = np.random.default_rng(0)
    for number in range(count):
        pixels, _ = demo_data.draw(rng, 240)
        Image.fromarray(pixels).resize((800, 600)).save(folder / f"{number}.jpg", quality=90)
    return [str(folder / f"{number}.jpg") for number in range(count)]


def measure(paths: list[str], levels: int, dtype: torch.dtype) -> dict[str, object]:
    """Return CPU seconds: of preparing the network, and of each part for one picture."""
    torch.manual_seed(0)
    device = torch.device("cpu")
    built = Tagger("resnet50", 64, levels=levels, mean=SPEC.mean, std=SPEC.std).eval()
    prepare = time_once(lambda: prepare_for_inference(built, SPEC.image_size, device, dtype))
    tagger, how = prepare_for_inference(built, SPEC.image_size, device, dtype)
    dataset, explain = ImageDataset(SPEC), Explainer(tagger, SPEC)
    seen = explain(paths[0], [0, 1, 2])

    def predict() -> None:
        keys = [(0, index, path) for index, path in enumerate(paths[:BATCH])]
        compute_logits(tagger, collate(dataset.__getitems__(keys)), device, dtype)

    def draw() -> None:
        for values in seen.values:
            encode_jpeg(draw_overlay(seen.pixels, values, seen.box, 800))

    predict()
    return {
        "levels": levels,
        "dtype": str(dtype).removeprefix("torch."),
        "how": how,
        "prepare_s": round(prepare, 3),
        "predict_s": round(time_once(predict) / BATCH, 4),
        "map_s": round(
            time_once(lambda: [explain(path, [0, 1, 2]) for path in paths]) / PICTURES, 4
        ),
        "three_overlays_s": round(time_once(draw), 4),
    }


def time_once(call: Callable[[], object]) -> float:
    """Return the CPU seconds of this process for one call, the least of three."""
    spent = []
    for _ in range(3):
        started = time.process_time()
        call()
        spent.append(time.process_time() - started)
    return min(spent)


if __name__ == "__main__":
    main()
