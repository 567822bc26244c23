"""Difference hashes: how far that of a copy moves, and how many different pictures are as near.

python benchmarks/look_alikes.py [FOLDER]     without FOLDER: drawn pictures, and nothing written

Every tenth picture is recompressed at quality 60, halved in size, made 8 % brighter, and all three
at once. For each kind the share of copies within the bound of `check` is given. Of all pairs of
different files those within the bound are counted: `check` would report them.
"""

import argparse
import io
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image

from mlfinetune.data.checks import FEW_STEPS, NEAR_BITS, find_near_pairs
from mlfinetune.data.images.decode import inspect_image
from mlfinetune.data.images.names import is_image_name, walk_files

RESULTS = Path(__file__).with_name("results") / "look_alikes.json"
DRAW = Path(__file__).parents[1] / "configs/demo_data.py"
EVERY = 10


def main() -> None:
    """Hash pictures and their copies, write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?")
    folder = parser.parse_args().folder
    with tempfile.TemporaryDirectory() as drawn:
        if folder is None:
            subprocess.run([sys.executable, DRAW, drawn], check=True, stdout=subprocess.DEVNULL)
        results = measured(folder or Path(drawn))
    print(json.dumps(results, indent=2))
    if folder is not None:
        RESULTS.write_text(json.dumps(results, indent=2) + "\n")


def measured(folder: Path) -> dict[str, Any]:
    """Return the numbers for the pictures of a folder."""
    files = [path for path in walk_files(folder) if is_image_name(path)]
    digests = {}
    for path in files:
        picture = inspect_image(path, 89_000_000)
        if int(picture.dhash, 16).bit_count() >= FEW_STEPS:
            digests[picture.digest] = picture.dhash
    pairs = find_near_pairs(list(digests.values()), NEAR_BITS)
    return {
        "pictures": len(files),
        "hashed": len(digests),
        "bound_bits": NEAR_BITS,
        "copies_within": copies_within(files[::EVERY]),
        "pairs_of_different_pictures_within": len(pairs),
        "pictures_in_such_pairs": len({at for pair in pairs for at in pair}),
    }


def copies_within(files: list[Path]) -> dict[str, float]:
    """Return, for each kind of copy, the share whose hash is within the bound."""
    near: dict[str, int] = {}
    for path in files:
        own = int(inspect_image(path, 89_000_000).dhash, 16)
        for kind, copy in altered(Image.open(path).convert("RGB")).items():
            moved = (own ^ int(hash_of(copy, 60 if "recompressed" in kind else 95), 16)).bit_count()
            near[kind] = near.get(kind, 0) + (moved <= NEAR_BITS)
    return {kind: round(count / len(files), 3) for kind, count in near.items()}


def altered(image: Image.Image) -> dict[str, Image.Image]:
    """Return usual copies of a picture: smaller, brighter, both."""
    half = image.resize((max(1, image.width // 2), max(1, image.height // 2)))
    return {
        "recompressed": image,
        "half size": half,
        "8 % brighter": image.point(lambda value: value * 1.08),
        "all three, recompressed": half.point(lambda value: value * 1.08),
    }


def hash_of(image: Image.Image, quality: int) -> str:
    """Return the hash of the picture as a JPEG."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    with tempfile.NamedTemporaryFile(suffix=".jpg") as file:
        file.write(buffer.getvalue())
        file.flush()
        return inspect_image(Path(file.name), 89_000_000).dhash


if __name__ == "__main__":
    main()
