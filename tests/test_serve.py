"""The scripts of docs/serve.md do what mlfinetune does, without it."""

import base64
import json
import re
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import mlfinetune
from mlfinetune.models.onnx_graph import finish, read_onnx
from mlfinetune.runs import checkpoint
from mlfinetune.runs.directory import BEST
from mlfinetune.runs.onnx_metadata import list_metadata

PAGE = (Path(__file__).parents[1] / "docs/serve.md").read_text()
SCRIPTS = dict(re.findall(r"^```python\n# (\w+\.py)\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL))


def draw_pictures(folder: Path) -> list[Path]:
    """Draw pictures of every kind that needs care, with smooth shapes as photos have."""
    folder.mkdir()
    y, x = np.mgrid[0:600, 0:840]
    photo = np.stack([x * 255 // 839, y * 255 // 599, 128 + 127 * np.sin((x + y) / 40)], -1)
    image = Image.fromarray(photo.astype(np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    alpha = image.resize((150, 130)).convert("RGBA")
    alpha.putalpha(Image.linear_gradient("L").resize((150, 130)))
    grey = Image.fromarray((photo[:200, :300, 2] * 257).astype(np.uint16))
    kinds: dict[str, tuple[Image.Image, dict[str, Any]]] = {
        "large.jpg": (image, {}),
        "turned.jpg": (image.resize((501, 333)), {"exif": exif}),
        "alpha.png": (alpha, {}),
        "palette.gif": (image.resize((90, 70)).convert("P"), {}),
        "deep.png": (grey, {}),
        "long.png": (image.resize((700, 41)), {}),
        "tall.webp": (image.resize((33, 260)), {"lossless": True}),
    }
    for name, (picture, options) in kinds.items():
        picture.save(folder / name, **options)
    return [folder / name for name in kinds]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the two scripts."""
    folder = tmp_path_factory.mktemp("site")
    for name, text in SCRIPTS.items():
        (folder / name).write_text(f"# {name}\n{text}")
    return folder


@pytest.fixture
def server(site: Path, exported: Path) -> Iterator[str]:
    """Serve the exported file on a free port of this machine; return its address."""
    code = "import serve, http.server as h; serve.TAGGER = serve.Tagger(serve.sys.argv[1]); "
    code += "s = h.ThreadingHTTPServer(('127.0.0.1', 0), serve.Handler); "
    code += "print(s.server_port, flush=True); s.serve_forever()"
    command = [sys.executable, "-c", code, str(exported / "pets.onnx")]
    with subprocess.Popen(
        command, cwd=site, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stdout is not None
        try:
            yield f"http://127.0.0.1:{process.stdout.readline().strip()}"
        finally:
            process.kill()


def post(url: str, body: bytes, **headers: str) -> tuple[int, Any]:
    """Return the status of a request, and its JSON."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, body, headers), timeout=30) as got:
            return got.status, json.load(got)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def test_the_scripts_are_short_and_need_three_packages() -> None:
    """At most 40 lines each; what else they import comes with Python."""
    assert [*SCRIPTS] == ["tag.py", "serve.py"]
    for text in SCRIPTS.values():
        assert len(text.splitlines()) + 1 <= 40
        lines = re.findall(r"^(?:import|from) (.*)$", text, re.MULTILINE)
        names = {
            name.split()[0] for line in lines for name in line.split(" import ")[0].split(", ")
        }
        own = {"numpy", "onnxruntime", "PIL", "tag"}
        assert {name.split(".")[0] for name in names} - own <= sys.stdlib_module_names


@pytest.mark.parametrize("resize", ["squash", "crop", "pad"])
def test_the_script_says_what_predict_says(
    exported: Path, site: Path, tmp_path: Path, resize: str
) -> None:
    """On pictures of every kind, in each way to make a square, bicubic once."""
    loaded = checkpoint.load(exported / "runs/pets" / BEST)
    filter = "bicubic" if resize == "crop" else "bilinear"
    spec = replace(loaded.transform, resize=resize, interpolation=filter, image_size=64)
    checkpoint.save(tmp_path / "a.safetensors", replace(loaded, transform=spec))
    pictures = draw_pictures(tmp_path / "pictures")
    metadata = list_metadata(checkpoint.load(tmp_path / "a.safetensors"), "", "float32", "")
    content = finish(read_onnx(exported / "pets.onnx"), metadata, False, "1")
    (tmp_path / "a.onnx").write_bytes(content)
    tagger = mlfinetune.load(tmp_path / "a.safetensors")
    expected = tagger.probabilities(pictures)
    command = [sys.executable, str(site / "tag.py"), "a.onnx", *map(str, pictures)]
    said = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    for line, path, row in zip(said.stdout.splitlines(), pictures, expected, strict=True):
        name, *named = line.split("\t")
        assert name == str(path)
        found = {label: float(p) for label, p in (each.rsplit(" ", 1) for each in named)}
        scores = dict(zip(tagger.labels, row.tolist(), strict=True))
        for label, threshold in tagger.thresholds.items():
            if label in found:
                assert found[label] == pytest.approx(scores[label], abs=0.01), (name, label)
            else:
                assert scores[label] < threshold + 0.01, (name, label)


def test_the_server_answers_one_picture_and_many(server: str, exported: Path) -> None:
    """The probabilities of predict; wrong requests are refused in words."""
    paths = sorted((exported / "images").iterdir())[:3]
    tagger = mlfinetune.load(exported / "pets.onnx")
    status, single = post(f"{server}/tag", paths[0].read_bytes())
    texts = [base64.b64encode(path.read_bytes()).decode() for path in paths]
    _, many = post(f"{server}/batch", json.dumps({"images": texts}).encode())
    assert (status, len(many)) == (200, 3)
    assert single["labels"] == many[0]["labels"] == list(next(tagger.predict(paths[:1])).labels)
    for row, found in zip(tagger.probabilities(paths), many, strict=True):
        assert list(found["scores"].values()) == pytest.approx(row.tolist(), abs=0.01)
    assert post(f"{server}/tag", b"no picture")[0] == 400
    assert post(f"{server}/batch", b"[]")[0] == 400
    assert post(f"{server}/batch", json.dumps({"images": texts * 30}).encode())[0] == 400
    assert post(f"{server}/other", b"x")[0] == 404
    status, answer = post(f"{server}/tag", b"x", **{"Content-Length": str(2**30)})
    assert (status, "at most" in answer["error"]) == (413, True)
