"""Draw the demo's pictures: `python configs/demo_data.py FOLDER`.

Each picture holds one to three patches on a noisy ground; a patch has one of four colours
and one of four patterns, and both are labels of the picture. Writes FOLDER/tags.csv and
FOLDER/images/, half PNG, half JPEG, the same bytes every time.
"""

import csv
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Mask = NDArray[np.bool_]

COLORS = {
    "red": (220, 40, 40),
    "green": (40, 180, 60),
    "blue": (50, 80, 220),
    "yellow": (235, 205, 40),
}
PATTERNS: dict[str, Callable[[Mask, Mask], Mask]] = {
    "solid": lambda x, y: np.ones_like(x, bool),
    "stripes": lambda x, y: x // 3 % 2 == 0,
    "dots": lambda x, y: (x % 6 - 3) ** 2 + (y % 6 - 3) ** 2 < 6,
    "checks": lambda x, y: (x // 4 + y // 4) % 2 == 0,
}


def draw(rng: np.random.Generator, size: int) -> tuple[NDArray[np.uint8], set[str]]:
    """One (size, size, 3) picture and its labels."""
    ground = rng.integers(90, 166) + rng.normal(0, 12, (size, size, 3))
    labels: set[str] = set()
    for _ in range(rng.integers(1, 4)):
        color, pattern = rng.choice(list(COLORS)), rng.choice(list(PATTERNS))
        side = int(rng.integers(size * 3 // 8, size // 2 + 1))
        top, left = rng.integers(0, size - side + 1, 2)
        y, x = np.mgrid[0:side, 0:side]
        patch = ground[top : top + side, left : left + side]
        patch[:] = 245 + rng.normal(0, 6, patch.shape)
        patch[PATTERNS[pattern](x, y)] = COLORS[color]
        labels |= {str(color), str(pattern)}
    return ground.clip(0, 255).astype(np.uint8), labels


def write(folder: Path, count: int = 1000, size: int = 64, seed: int = 0) -> Path:
    """Draw `count` pictures into `folder`/images and their labels into `folder`/tags.csv."""
    rng = np.random.default_rng(seed)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    with (folder / "tags.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "labels"])
        for number in range(count):
            pixels, labels = draw(rng, size)
            name = f"images/{number:04}.{'png' if number % 2 else 'jpg'}"
            Image.fromarray(pixels).save(folder / name, quality=95)
            writer.writerow([name, "|".join(sorted(labels))])
    return folder / "tags.csv"


if __name__ == "__main__":
    table = write(Path(sys.argv[1]))
    print(f"drew 1000 pictures: {table}")
