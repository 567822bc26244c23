"""Promises about files: none is read outside, none is modified, none is passed over in silence."""

import csv
import hashlib
import io
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Promise, Run, prepare
from numpy.typing import NDArray
from PIL import Image

from mlfinetune.data.batches.loader import Loader, stream_batches
from mlfinetune.data.manifest import Manifest
from mlfinetune.data.targets import Targets
from mlfinetune.runs import checkpoint

OUTSIDE = (
    *("/etc/passwd", "//etc/passwd", "{out}/a.jpg", "/proc/self/environ", "/dev/zero", "~/a.jpg"),
    *("file:///etc/passwd", "../out/a.jpg", "./../out/a.jpg", "images/../../out/a.jpg"),
    *(
        "images/./../..//out/a.jpg",
        "../{root}-2/a.jpg",
        "..",
        "images/..",
        "../../../../etc/passwd",
    ),
    *("..\\out\\a.jpg", "C:\\out\\a.jpg", "C:/out/a.jpg", "\\\\server\\share\\a.jpg"),
    *("//server/share/a.jpg", "images/away/a.jpg", "images/away/../out/a.jpg", "images/link.jpg"),
    *("images/chain.jpg", "images/a.jpg\0", "../out/a.jpg\0.png", "%2e%2e/out/a.jpg"),
    "．．/out/a.jpg",
)


@pytest.mark.faults
def test_no_path_leaves_the_root(tmp_path: Path, cli: Run, promise: Promise) -> None:
    """P11: each of 28 names, in line 3 of a table, is refused by that line."""
    root, out = prepare(tmp_path / "root"), tmp_path / "out"
    for folder in (out, tmp_path / "root-2"):
        folder.mkdir()
        shutil.copy(root / "images/0000.jpg", folder / "a.jpg")
    for link, target in {"away": out, "link.jpg": out / "a.jpg", "chain.jpg": "link.jpg"}.items():
        (root / "images" / link).symlink_to(target)
    rows, failures = (root / "tags.csv").read_text().splitlines(), []
    for name in OUTSIDE:
        bad = name.format(out=out, root="root")
        with (root / "tags.csv").open("w", newline="") as file:
            csv.writer(file).writerows([["image", "labels"], rows[1].split(","), [bad, "red"]])
            file.write("\n".join(rows[2:]) + "\n")
        done = cli("check", "pets.yaml", "--json", cwd=root)
        found = [
            (item["kind"], text)
            for item in json.loads(done.stdout)["findings"]
            for text in item["items"]
            if text.startswith("line 3: ")
        ]
        kinds = {kind for kind, _ in found}
        if done.returncode != 2 or len(found) != 1 or not kinds <= {"bad_rows", "unreadable"}:
            failures.append((name, done.returncode, found))
    promise("P11", len(OUTSIDE), failures)


# ---- nothing is modified ----------------------------------------------------------------


def tree(folder: Path) -> dict[str, tuple[str, int, int]]:
    """Return file -> digest, mode, time of its last change."""
    return {
        str(path.relative_to(folder)): (
            hashlib.sha256(path.read_bytes()).hexdigest(),
            path.stat().st_mode,
            path.stat().st_mtime_ns,
        )
        for path in folder.rglob("*")
        if path.is_file()
    }


FROZEN = "model.freeze_backbone=true"
COMMANDS = (
    ("check", "pets.yaml", "data.bad_images=skip"),
    ("check", "pets.yaml"),
    ("init", "tags.csv", "-o", "new.yaml"),
    ("split", "tags.csv", "--val", "0.3", "-o", "new.csv"),
    ("train", "pets.yaml", "--dry-run", "data.bad_images=skip"),
    ("train", "pets.yaml"),
    ("train", "pets.yaml", "data.bad_images=skip", "data.cache_images=disk"),
    ("train", "pets.yaml", "data.bad_images=skip", *("--output", "runs/frozen", FROZEN)),
    ("predict", "images", "-c", "runs/pets", "-o", "new.jsonl"),
    ("eval", "--checkpoint", "runs/pets"),
    ("eval", "--checkpoint", "runs/pets", "--data", "good.csv", "-o", "evaluated"),
    ("report", "runs/pets"),
    ("compare", "runs/pets", "runs/frozen", "--resamples", "20"),
)


@pytest.mark.faults
def test_user_files_are_never_modified(tmp_path: Path, cli: Run, promise: Promise) -> None:
    """P12: after each of 13 commands, bad pictures, odd ones and tables are as they were."""
    prepare(tmp_path)
    (tmp_path / "good.csv").write_text((tmp_path / "tags.csv").read_text())
    with (tmp_path / "tags.csv").open("a") as file:
        file.write("images/cut.jpg,red\nimages/text.png,red\nimages/turned.jpg,red\n")
    images = tmp_path / "images"
    (images / "cut.jpg").write_bytes((images / "0000.jpg").read_bytes()[:400])
    (images / "text.png").write_text("no picture")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(images / "0000.jpg").save(images / "turned.jpg", exif=exif)
    before, failures = tree(tmp_path), []
    for command in COMMANDS:
        done = cli(*command, cwd=tmp_path)
        after = tree(tmp_path)
        changed = [name for name, facts in before.items() if after.get(name) != facts]
        wanted = {("check", "pets.yaml"): 2, ("train", "pets.yaml"): 2}.get(command, 0)
        wanted = 3 if command[0] == "predict" else wanted
        if changed or done.returncode not in (wanted, 2 * (command[0] == "check")):
            failures.append((command, changed, done.returncode, done.stderr[-500:]))
    promise("P12", len(COMMANDS), failures)


# ---- the same pixels --------------------------------------------------------------------


def drawn() -> NDArray[np.uint8]:
    """Return a picture of 40 x 30 with something on every side."""
    rows, columns = np.mgrid[0:30, 0:40]
    return np.stack([columns * 6, rows * 8, (rows + columns) * 3], axis=2).astype(np.uint8)


def saved(folder: Path) -> Iterator[str]:
    """Yield the names of 30 files of every format and mode."""
    rgb = Image.fromarray(drawn())
    grey = rgb.convert("L")
    deep = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    alpha = Image.fromarray(np.dstack([drawn(), drawn()[..., :1] + 10]))
    exif = Image.Exif()
    exif[0x0112] = 6
    kinds: dict[str, tuple[Image.Image, dict[str, Any]]] = {
        "rgb.png": (rgb, {}),
        "grey.png": (grey, {}),
        "bits.png": (rgb.convert("1"), {}),
        "palette.png": (rgb.convert("P"), {}),
        "palette-key.png": (rgb.convert("P"), {"transparency": 3}),
        "rgba.png": (alpha, {}),
        "grey-alpha.png": (alpha.convert("LA"), {}),
        "deep.png": (deep, {}),
        "turned.png": (rgb, {"exif": exif}),
        "rgb.jpg": (rgb, {}),
        "grey.jpg": (grey, {}),
        "cmyk.jpg": (rgb.convert("CMYK"), {}),
        "progressive.jpg": (rgb, {"progressive": True}),
        "444.jpg": (rgb, {"subsampling": 0, "quality": 97}),
        "turned.jpg": (rgb, {"exif": exif}),
        "large.jpg": (rgb.resize((1600, 1200)), {}),
        "rgb.webp": (rgb, {}),
        "lossless.webp": (rgb, {"lossless": True}),
        "rgba.webp": (alpha, {}),
        "rgb.gif": (rgb, {}),
        "frames.gif": (rgb, {"save_all": True, "append_images": [grey]}),
        "rgb.bmp": (rgb, {}),
        "bits.bmp": (rgb.convert("1"), {}),
        "rgb.tif": (rgb, {}),
        "lzw.tif": (rgb, {"compression": "tiff_lzw"}),
        "deep.tif": (deep, {}),
        "float.tif": (Image.fromarray(np.asarray(grey).astype(np.float32) / 255), {}),
        "cmyk.tif": (rgb.convert("CMYK"), {}),
        "pages.tif": (rgb, {"save_all": True, "append_images": [rgb.rotate(180)]}),
        "frames.mpo": (rgb, {"save_all": True, "append_images": [grey]}),
    }
    for name, (image, options) in kinds.items():
        image.save(folder / name, **options)
        yield name


def probabilities(text: str) -> dict[str, list[float]]:
    """Return picture -> probabilities, of a CSV as predict and eval write it."""
    rows = csv.DictReader(io.StringIO(text))
    skip = {"image", "labels", "error"}
    return {
        Path(row["image"]).name: [float(p) for key, p in row.items() if key not in skip]
        for row in rows
    }


@pytest.mark.faults
def test_the_same_pixels_everywhere(
    trained: Path, tmp_path: Path, cli: Run, promise: Promise
) -> None:
    """P14: of 30 files training's reader, eval and predict see the same bytes, and say the same."""
    (tmp_path / "odd").mkdir()
    names = list(saved(tmp_path / "odd"))
    labels = checkpoint.load(trained / "runs/pets/best.safetensors").labels.names
    rows = [f"odd/{name},{labels[at % len(labels)]}" for at, name in enumerate(names)]
    (tmp_path / "odd.csv").write_text("image,labels\n" + "\n".join(rows) + "\n")
    run = str(trained / "runs/pets")
    done = cli("eval", "--checkpoint", run, "--data", "odd.csv", "-o", "e", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    evaluated = probabilities((tmp_path / "e/predictions.csv").read_text())
    done = cli("predict", "odd", "--checkpoint", run, "--format", "csv", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    predicted = probabilities(done.stdout)
    failures = []
    for name in names:
        evals, predicts = seen(trained, tmp_path / "odd" / name)
        told = np.abs(np.subtract(evaluated[name], predicted[name])).max()
        if not torch.equal(evals, predicts) or told > 2e-6:
            failures.append((name, float(told)))
    promise("P14", len(names), failures)


def seen(trained: Path, path: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the model's input for a picture, in evaluation and in prediction."""
    loaded = checkpoint.load(trained / "runs/pets/best.safetensors")
    targets = Targets.pack([np.ones((1, len(loaded.labels)), np.int8)], len(loaded.labels))
    manifest = Manifest(path.parent, (path.name,), targets, loaded.labels)
    options: dict[str, Any] = {"batch_size": 1, "workers": 0, "pin_memory": False}
    loader = Loader(manifest, loaded.transform, train_seed=None, **options)
    (batch,) = loader.epoch()
    ((_, streamed),) = stream_batches([str(path)], loaded.transform, **options)
    assert not batch.failures
    return batch.images, streamed.images
