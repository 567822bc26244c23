"""Near duplicates: how similar altered copies stay, and how similar different pictures are.

python benchmarks/near_duplicates.py --train train.csv --val val.csv --images images --weights FILE
    -> benchmarks/results/near_duplicates.json

Every sixteenth picture is altered in the ways of `alter`, and saved as a JPEG. Similarities are the
cosines of the features of a frozen run. For each bound: the share of copies within it, by kind, the
share of copies that are within it of another picture but their own, and the pairs and groups that
the pictures themselves form. Those are clip art, with real copies and series such as playing cards.
"""

import argparse
import io
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from head_path import CONFIG, read_features
from numpy.typing import NDArray
from PIL import Image, ImageEnhance

from mlfinetune.config import load_config
from mlfinetune.data.batches.features import (
    PLAIN_VIEW,
)
from mlfinetune.data.manifest import Manifest
from mlfinetune.data.targets import LabelSpace, Targets
from mlfinetune.location import parse_location
from mlfinetune.metrics.near_duplicates import NEAR, group_near_duplicates
from mlfinetune.models.inference import prepare_for_inference
from mlfinetune.models.tagger import Tagger
from mlfinetune.runtime.device import choose_precision, prepare_device
from mlfinetune.training.features import build_extractor
from mlfinetune.training.network import build_transform_spec

BOUNDS = (0.85, 0.9, 0.925, 0.95, 0.96, 0.97, 0.98, 0.99)
EVERY = 16
RESULT = Path(__file__).parent / "results" / "near_duplicates.json"


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("train", "val", "images", "weights"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    asked = parser.parse_args()
    train, val, tagger, _ = read_features(asked)
    features = np.concatenate([next(iter(side.sweep())).images.numpy() for side in (train, val)])
    targets = np.concatenate([side.manifest.targets[:] for side in (train, val)])
    names = [*train.manifest.names, *val.manifest.names]
    chosen = list(range(0, len(names), EVERY))
    copies: dict[str, NDArray[np.float32]] = {}
    with tempfile.TemporaryDirectory() as made:
        for kind in alter(Image.new("RGB", (8, 8))):
            for row in chosen:
                save_copy(asked.images / names[row], kind, Path(made) / f"{row}.jpg")
            copies[kind] = embed_folder(Path(made), [f"{row}.jpg" for row in chosen], asked, tagger)
            print(kind, flush=True)
    result = {
        "pictures": len(names),
        "copies_of_a_kind": len(chosen),
        "bound": NEAR,
        "bounds": {
            f"{bound:g}": {
                **describe_copies(features, copies, chosen, bound),
                **describe_pictures(features, targets, bound),
            }
            for bound in BOUNDS
        },
    }
    RESULT.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


def alter(image: Image.Image) -> dict[str, Image.Image]:
    """Return a picture as people alter copies of it."""
    width, height = image.size

    def cut(share: float) -> Image.Image:
        x, y = round(width * share), round(height * share)
        return image.crop((x, y, max(x + 1, width - x), max(y + 1, height - y)))

    half = image.resize((max(1, width // 2), max(1, height // 2)))
    return {
        "JPEG 30": image,
        "half size": half,
        "quarter size": image.resize((max(1, width // 4), max(1, height // 4))),
        "20 % brighter": ImageEnhance.Brightness(image).enhance(1.2),
        "20 % darker": ImageEnhance.Brightness(image).enhance(0.8),
        "cut by 3 % a side": cut(0.03),
        "cut by 8 % a side": cut(0.08),
        "half size, 10 % darker, cut by 3 %": ImageEnhance.Brightness(cut(0.03))
        .enhance(0.9)
        .resize(half.size),
    }


def save_copy(path: Path, kind: str, copy: Path) -> None:
    """Write one altered copy of a picture."""
    quality = 30 if kind == "JPEG 30" else 85
    alter(Image.open(io.BytesIO(path.read_bytes())).convert("RGB"))[kind].save(
        copy, quality=quality
    )


def embed_folder(
    folder: Path, names: list[str], asked: argparse.Namespace, tagger: Tagger
) -> NDArray[np.float32]:
    """Return the features of a folder's pictures, (N, F)."""
    data = [f"data.{key}={getattr(asked, key)}" for key in ("train", "val", "images")]
    config = load_config(CONFIG, [*data, f"model.weights={asked.weights}"])
    device = prepare_device("cpu")
    dtype, _ = choose_precision("auto", device)
    spec = build_transform_spec(config)
    prepared = prepare_for_inference(tagger, spec.image_size, device, dtype)
    maker = build_extractor(config, prepared, spec, device, dtype, workers=1)
    none = Targets.pack([np.zeros((len(names), 1), np.int8)], 1)
    manifest = Manifest(parse_location(str(folder)), tuple(names), none, LabelSpace(("none",)))
    found = np.zeros((len(names), maker.width), np.float32)
    for batch in maker.load(manifest, list(range(len(names))), PLAIN_VIEW):
        found[batch.indices.numpy()] = maker.embed(batch.images).float().cpu().numpy()
    return found


def describe_copies(
    features: NDArray[np.float32],
    copies: dict[str, NDArray[np.float32]],
    chosen: list[int],
    bound: float,
) -> dict[str, Any]:
    """Return the shares of copies within the bound of their own picture, and of another one."""
    unit = make_unit(features)
    own, other = {}, []
    for kind, copied in copies.items():
        similarity = make_unit(copied) @ unit.T
        mine = similarity[np.arange(len(chosen)), chosen]
        own[kind] = round(float((mine >= bound).mean()), 3)
        similarity[np.arange(len(chosen)), chosen] = -1
        other.append(similarity.max(axis=1) >= bound)
    return {"copies": own, "copies_near_another_picture": round(float(np.mean(other)), 3)}


def describe_pictures(
    features: NDArray[np.float32], targets: NDArray[np.int8], bound: float
) -> dict[str, int]:
    """Count the pairs of pictures within the bound, those without a common tag, the groups."""
    unit, tags = make_unit(features), (targets == 1).astype(np.float32)
    near = np.triu(unit @ unit.T >= bound, 1)
    groups = np.unique(group_near_duplicates(features, bound), return_counts=True)[1]
    return {
        "pairs": int(near.sum()),
        "pairs_without_a_common_tag": int((near & (tags @ tags.T == 0)).sum()),
        "groups": int((groups > 1).sum()),
        "pictures_in_groups": int(groups[groups > 1].sum()),
        "largest_group": int(groups.max()),
    }


def make_unit(features: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return rows of length 1."""
    unit: NDArray[np.float32] = features / np.linalg.norm(features, axis=1, keepdims=True)
    return unit


if __name__ == "__main__":
    main()
