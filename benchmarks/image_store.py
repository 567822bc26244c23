"""Small copies of large pictures beside the pictures themselves, as training reads them.

python benchmarks/image_store.py  ->  benchmarks/results/image_store.json

file: `data.batches.dataset.ImageDataset` decodes the picture, and makes a random crop of 224 px.
copy: the same with `data.batches.copies.SmallCopies`, its look-up and checksum included.
raw: reading uncompressed pixels of the copy's size.
fill: making a copy, and writing it.
Rates are images per second of CPU time on one core, the median of rounds that take turns; files are
in the system's memory. `pays after`: number of epochs from which making and reading copies costs
less than reading the files. `difference`: mean absolute difference of pixels, of 255, between the
random crops of the file at full size and of the copy, with the same seeds. `contrast`: share of the
mean difference between neighboring pixels that copies keep.
"""

import itertools
import json
import statistics
import tempfile
import time
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from decode import photograph

from mlfinetune.data.batches.copies import CopyMaker, MadeCopy, SmallCopies, compute_copy_side
from mlfinetune.data.batches.dataset import ImageDataset, mix_seed
from mlfinetune.data.images.decode import decode_image
from mlfinetune.data.images.jpeg import choose_jpeg_decoder
from mlfinetune.data.images.transforms import TransformSpec, build_train_transform, to_tensor
from mlfinetune.data.manifest import Manifest
from mlfinetune.data.targets import LabelSpace, Targets

SIZES = ((500, 375), (1000, 750), (1500, 1000), (4000, 3000))
ROUNDS, PIXELS_A_ROUND, PICTURES, SEEDS = 7, 2e7, 4, 8
SPEC = TransformSpec(224, "squash", 10**9, crop_scale=(0.35, 1.0), horizontal_flip=0.5)


def manifest(folder: Path, width: int, height: int) -> Manifest:
    """Return pictures made here: noise like a photograph's, quality 91, 4:2:0."""
    names = tuple(f"{width}-{i}.jpg" for i in range(PICTURES))
    for i, name in enumerate(names):
        photograph(width, height, i).save(folder / name, quality=91, subsampling="4:2:0")
    targets = Targets.pack([np.zeros((PICTURES, 1), np.int8)], 1)
    return Manifest(folder, names, targets, LabelSpace(("a",)))


def rates(ways: dict[str, Callable[[int], object]], calls: int) -> dict[str, float]:
    """Return calls per second of CPU time, the median of rounds that take turns."""
    found: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(ROUNDS + 1):
        for name, way in ways.items():
            start = time.process_time()
            for call in range(calls):
                way(call)
            if turn:  # the first is a warm-up
                found[name].append(calls / (time.process_time() - start))
    return {name: round(statistics.median(values), 1) for name, values in found.items()}


def likeness(examples: Manifest, copies: SmallCopies) -> dict[str, float]:
    """Compare crops of the copies with those of the files at full size, with the same seeds."""
    train, jpeg = build_train_transform(SPEC), choose_jpeg_decoder()[0]
    differences, contrasts = [], []
    for index in range(PICTURES):
        small = copies.read(examples.path(index))
        assert small is not None
        whole = decode_image(Path(examples.path(index)), SPEC.max_pixels, None, jpeg)
        for seed in range(SEEDS):
            ours, theirs = (
                train(to_tensor(pixels), mix_seed(seed, 0, index)).float()
                for pixels in (small, whole)
            )
            differences.append(float((ours - theirs).abs().mean()))
            edges = [view.diff(dim=-1).abs().mean() for view in (ours, theirs)]
            contrasts.append(float(edges[0] / edges[1]))
    return {
        "difference": round(statistics.mean(differences), 3),
        "contrast": round(statistics.mean(contrasts), 3),
    }


def measure(folder: Path, width: int, height: int) -> dict[str, Any]:
    """Return the numbers for one size of pictures."""
    examples = manifest(folder, width, height)
    copies = SmallCopies(folder / "store", SPEC)
    items = copies.find_missing(examples)
    made = [CopyMaker(SPEC)[item] for item in items]
    sum(copies.fill([made]))
    paths = [examples.path(index) for index in range(PICTURES)]
    train, maker = build_train_transform(SPEC), CopyMaker(SPEC)
    files, ours = ImageDataset(SPEC, 0), ImageDataset(SPEC, 0, copies)
    ways: dict[str, Callable[[int], object]] = {
        "file": lambda call: files[call, 0, paths[call % PICTURES]],
        "copy": lambda call: ours[call, 0, paths[call % PICTURES]],
    }
    sizes = [Path(path).stat().st_size for path in paths]
    row: dict[str, Any] = {"bytes of the file": round(statistics.mean(sizes))}
    pixels = [copies.read(path) for path in paths]
    if raw := [small for small in pixels if small is not None]:
        row |= {
            "bytes of the copy": round(statistics.mean(len(one.value or b"") for one in made)),
            "bytes of raw pixels": round(statistics.mean(small.nbytes for small in raw)),
        }

        def read_raw(call: int) -> object:
            small = raw[call % PICTURES]
            return zlib.crc32(small.data), train(to_tensor(small.copy()), call)

        ways["raw"] = read_raw
    calls = max(PICTURES, round(PIXELS_A_ROUND / width / height))
    spare, kept = SmallCopies(folder / "spare", SPEC), itertools.count()

    def fill(call: int) -> None:
        """Make a copy; the last call of a round writes them all."""
        waiting.append(replace(maker[items[call % PICTURES]], key=next(kept)))
        if call == calls - 1:
            sum(spare.fill([waiting]))
            waiting.clear()

    waiting: list[MadeCopy] = []
    ways["fill"] = fill
    row |= rates(ways, calls)
    if raw:
        saved = 1 / row["file"] - 1 / row["copy"]
        row["times as fast"] = round(row["copy"] / row["file"], 1)
        row["pays after"] = round(1 / row["fill"] / saved, 1)
        row |= likeness(examples, copies)
    return row


def main() -> None:
    """Make the pictures, measure, write, print."""
    torch.set_num_threads(1)
    result: dict[str, Any] = {
        "unit": "images/s a core",
        "rounds": ROUNDS,
        "bound": compute_copy_side(SPEC),
    }
    for width, height in SIZES:
        with tempfile.TemporaryDirectory() as folder:
            row = measure(Path(folder), width, height)
        result[f"{width} x {height}"] = row
        print(f"{width} x {height}", row)
    path = Path(__file__).parent / "results" / "image_store.json"
    path.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
