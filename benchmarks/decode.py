"""From a JPEG file to a 224 px picture on one core: this package, and a usual loader with Pillow.

python benchmarks/decode.py  ->  benchmarks/results/decode.json

pillow: open, convert, torchvision's Resize and CenterCrop, or RandomResizedCrop, and ToTensor.
ours: `data.batches.dataset.ImageDataset` in evaluation and in training, with the same transforms.
The pictures are made here: noise whose detail falls off as in photographs, quality 91, 4:2:0.
Rounds take turns; images per second of CPU time are their median. `difference` is the mean
absolute difference, of 255, between Pillow's pixels and ours at the same crop. It is given for the
decoding that is used, and for decoding at full size.
"""

import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torchvision import transforms as v1

from mlfinetune.data.batches.dataset import ImageDataset, mix_seed
from mlfinetune.data.images.decode import decode_image
from mlfinetune.data.images.jpeg import choose_jpeg_decoder
from mlfinetune.data.images.transforms import (
    TransformSpec,
    build_eval_transform,
    build_random_crop,
    build_train_transform,
    to_tensor,
)

SIZES = ((500, 375), (640, 480), (4000, 3000))
ROUNDS, PIXELS_A_ROUND, PICTURES, SEEDS = 7, 2e7, 3, 8
SPECS = {
    "eval": TransformSpec(224, "crop", 10**9),
    "train": TransformSpec(224, "crop", 10**9, crop_scale=(0.35, 1.0)),
}
V1 = {
    "eval": v1.Compose([v1.Resize(256), v1.CenterCrop(224), v1.ToTensor()]),
    "train": v1.Compose([v1.RandomResizedCrop(224, scale=(0.35, 1.0)), v1.ToTensor()]),
}


def photograph(width: int, height: int, seed: int) -> Image.Image:
    """Return a picture like a photograph: octaves of noise, and grain.

    Each finer octave is weaker; only the coarse ones have color.
    """
    random = np.random.default_rng(seed)
    total = random.normal(0, 0.06, (height, width, 3))
    for octave in range(1, 10):
        grid = (min(height, 3 << octave), min(width, 4 << octave))
        grey = random.standard_normal(grid)
        for channel in range(3):
            tint = 0.4 * random.standard_normal(grid) if octave < 5 else 0.0
            layer = Image.fromarray((grey + tint).astype(np.float32))
            total[..., channel] += 0.62**octave * np.asarray(layer.resize((width, height)))
    pixels = 120 + 50 * (total - total.mean()) / total.std()
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def pillow(mode: str, path: str) -> torch.Tensor:
    """Return a picture as most loaders make it, (3, 224, 224) in [0, 1]."""
    picture: torch.Tensor = V1[mode](Image.open(path).convert("RGB"))
    return picture


def reference(mode: str, path: str, seed: int) -> torch.Tensor:
    """Return (3, 224, 224) of 0 to 255: decoded and resized by Pillow, with the crop of `ours`."""
    transform: Callable[[Any], Any] = v1.Compose(V1[mode].transforms[:-1])
    if mode == "train":
        transform = build_random_crop(SPECS[mode])  # it takes a Pillow image too
        torch.manual_seed(seed)
    pixels: torch.Tensor = v1.functional.pil_to_tensor(transform(Image.open(path).convert("RGB")))
    return pixels


def ours(dataset: ImageDataset, path: str) -> torch.Tensor:
    """Return (3, 224, 224) uint8, as training and evaluation load it."""
    image = dataset[0, 0, path].image
    assert image is not None
    return image


def unscaled(mode: str, path: str, seed: int) -> torch.Tensor:
    """Return (3, 224, 224) uint8, decoded at full size."""
    image = to_tensor(decode_image(Path(path), 10**9, None, choose_jpeg_decoder()[0]))
    spec = SPECS[mode]
    return (
        build_train_transform(spec)(image, seed)
        if mode == "train"
        else build_eval_transform(spec)(image)
    )


def difference(mode: str, paths: list[str], of: Callable[[str, int, int], torch.Tensor]) -> float:
    """Return the mean difference from `reference`, over pictures and over random crops."""
    found = []
    for path in paths:
        for trial in range(SEEDS if mode == "train" else 1):
            seed = mix_seed(trial, 0, 0)
            wanted = reference(mode, path, seed).float()
            found.append(float((of(path, seed, trial) - wanted).abs().mean()))
    return round(statistics.mean(found), 4)


def measure(mode: str, paths: list[str], calls: int) -> dict[str, Any]:
    """Return the rates of both and their ratio, and the differences of ours."""
    dataset = ImageDataset(SPECS[mode], 0 if mode == "train" else None)
    loaders: dict[str, Callable[[str], torch.Tensor]] = {
        "pillow": lambda path: pillow(mode, path),
        "ours": lambda path: ours(dataset, path),
    }
    rates: dict[str, list[float]] = {name: [] for name in loaders}
    for turn in range(ROUNDS + 1):
        for name, load in loaders.items():
            start = time.process_time()
            for call in range(calls):
                load(paths[call % len(paths)])
            if turn:  # the first is a warm-up
                rates[name].append(calls / (time.process_time() - start))
    medians = {name: round(statistics.median(values), 1) for name, values in rates.items()}
    train_seed = (lambda trial: trial) if mode == "train" else (lambda trial: None)
    return {
        **medians,
        "ratio": round(medians["ours"] / medians["pillow"], 2),
        "difference": difference(
            mode,
            paths,
            lambda path, _, trial: ours(ImageDataset(SPECS[mode], train_seed(trial)), path),
        ),
        "difference, unscaled": difference(
            mode, paths, lambda path, seed, _: unscaled(mode, path, seed)
        ),
    }


def main() -> None:
    """Make the pictures, measure, write, print."""
    torch.set_num_threads(1)
    result: dict[str, Any] = {
        "unit": "images/s a core",
        "rounds": ROUNDS,
        "decoder": choose_jpeg_decoder()[1],
    }
    with tempfile.TemporaryDirectory() as folder:
        for width, height in SIZES:
            paths = [f"{folder}/{width}-{i}.jpg" for i in range(PICTURES)]
            for i, path in enumerate(paths):
                photograph(width, height, i).save(path, quality=91, subsampling="4:2:0")
            size = sum(Path(path).stat().st_size for path in paths) / PICTURES / width / height
            calls = max(PICTURES, round(PIXELS_A_ROUND / width / height))
            rows = {mode: measure(mode, paths, calls) for mode in SPECS}
            result[f"{width} x {height}"] = {"bytes a pixel": round(size, 3), **rows}
            for mode, row in rows.items():
                print(f"{width} x {height}", f"{size:.2f} bytes/px", mode, row)
    results = Path(__file__).parent / "results" / "decode.json"
    results.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
