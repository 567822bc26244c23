"""Random bytes at every door that reads files: nothing but MlfinetuneErrors may come out.

    python tests/fuzz.py csv 120        two minutes at the door `csv`; `make fuzz` visits all

Not a test that pytest collects: it takes as long as it is given. Inputs are grown by atheris
(libFuzzer) from whole files, toward new branches of the code; what was found stays in .fuzz/DOOR,
where the next visit goes on, and an input that crashes is left as .fuzz/DOOR-crash-... . A crash
that is mended becomes a test beside the others of its door.
"""

import hashlib
import io
import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import atheris

with atheris.instrument_imports(include=["mlfinetune", "yaml", "PIL"]):
    from mlfinetune.config import load_config
    from mlfinetune.data.images.decode import decode_image, inspect_image
    from mlfinetune.data.images.heif import load_heif
    from mlfinetune.data.images.xmp_packet import (
        XmpError,
        decode_packet,
        parse_packet,
        read_keywords,
    )
    from mlfinetune.data.readers.csv_table import read_csv
    from mlfinetune.data.table import SourceOptions
    from mlfinetune.errors import MlfinetuneError
    from mlfinetune.runs import checkpoint
    from mlfinetune.runs.state import read_state
    from mlfinetune.runs.xmp_merge import merge_keywords

import numpy as np
import torch
from PIL import Image
from runs.sidecar_samples import SAMPLES
from safetensors.torch import save as save_tensors

MAX_PIXELS = 2**20
FOUND = Path(__file__).parents[1] / ".fuzz"


class Door(NamedTuple):
    """A function that reads a file: its name, the call, and whole examples of its content.

    `file` makes the content of the file from the random bytes.
    """

    name: str
    enter: Callable[[Path], object]
    examples: Callable[[], Iterator[bytes]]
    file: Callable[[bytes], bytes] = bytes


def tables() -> Iterator[bytes]:
    """Yield CSV of both kinds, quoted, with a BOM, with every kind of cell."""
    yield b'image,labels\na.jpg,cat|dog\n"b,c.jpg","a ""b"""\n'
    yield "\ufeffimage;cat;dog;split\r\na.jpg;1;0;train\r\nb.jpg;;-1;val\r\n".encode()
    yield b"filename\ttags\tunknown\nx.png\t['a', 'b']\tc\n"


def configs() -> Iterator[bytes]:
    """Yield a config with every section, and YAML of every form."""
    yield b"data: {train: a.csv, labels: [a, 'no', \"b\\x41\"]}\ntrain:\n  lr: 1e-3\n  seed: 0x10\n"
    yield b"data:\n  train: >-\n    a\n    b\n  val: |\n    c\nloss: {pos_weight: {cat: 2.}}\n"
    yield b"%YAML 1.2\n---\n? data\n: &a !!map {train: ~/a}\n...\n"


def about() -> dict[str, Any]:
    """Return the content of a small checkpoint's header."""
    transform = {"image_size": 64, "resize": "pad", "max_pixels": 9, "mean": [0.5] * 3}
    numbers = {"thresholds": [0.5, 0.5], "slope": [1.0, 1.0], "intercept": [0.0, 0.0]}
    decision = {"how": "fixed", "calibration": "none", "review": [0.2, 0.8], **numbers}
    return {
        "format": checkpoint.FORMAT,
        "labels": ["cat", "dog"],
        "transform": {**transform, "std": [0.5] * 3, "crop_scale": [0.5, 1.0]},
        "backbone": "resnet18",
        "decision": decision,
        "config": {"train": {"lr": 1e-3}},
        "data_digest": "ab",
        "epoch": 3,
        "versions": {"mlfinetune": "0.1"},
    }


def sealed_header(content: bytes) -> bytes:
    """Return a checkpoint whose header is JSON of these bytes, with the right digest."""
    text = json.dumps({"sha256": "0" * 64}, separators=(",", ":"))[:-1] + ","
    text += content.decode("utf-8", "surrogateescape").encode("utf-8", "replace").decode()
    blank = save_tensors({"a": torch.ones(1)}, {"mlfinetune": text})
    return blank.replace(b"0" * 64, hashlib.sha256(blank).hexdigest().encode(), 1)


def states() -> Iterator[bytes]:
    """Yield tensors and containers in both of torch's formats."""
    content = {"net": {"a": torch.ones(2, 3).bfloat16()}, "position": {"step": 3, "last": [1.5]}}
    for new in (True, False):
        file = io.BytesIO()
        torch.save(content, file, _use_new_zipfile_serialization=new)
        yield file.getvalue()


def sealed_state(content: bytes) -> bytes:
    """Return a resume state of these bytes, with the right digest."""
    return b"mlfinetune state 1 " + hashlib.sha256(content).hexdigest().encode() + b"\n" + content


def pictures() -> Iterator[bytes]:
    """Yield a small picture of every format."""
    pixels = np.random.default_rng(0).integers(0, 256, (9, 7, 4), dtype=np.uint8)
    load_heif()
    for kind in ("PNG", "WEBP", "GIF", "TIFF", "BMP", "JPEG", "MPO", "AVIF", "HEIF"):
        file = io.BytesIO()
        whole = Image.fromarray(pixels if kind in ("PNG", "WEBP", "TIFF") else pixels[..., :3])
        whole.save(file, kind)
        yield file.getvalue()


def look(path: Path) -> None:
    """Decode and inspect a picture; both must agree on whether it is one."""
    outcomes = []
    for way in (decode_image, inspect_image):
        try:
            way(path, MAX_PIXELS)
            outcomes.append("")
        except MlfinetuneError as error:
            outcomes.append(str(error))
    assert outcomes[0] == outcomes[1], outcomes


def merge(path: Path) -> None:
    """Merge labels into a sidecar: what others wrote stays, and a second time nothing changes."""
    content, labels = path.read_bytes(), ["cat", "a|b"]
    try:
        merged = merge_keywords(content, labels, "run sha256:0", {}).content
    except XmpError as error:
        raise MlfinetuneError(f"{path}: {error}") from error
    if merged is not None:
        both = [read_keywords(parse_packet(decode_packet(x)[0])) for x in (content, merged)]
        assert both[0].by_people == both[1].by_people
        assert merge_keywords(merged, labels, "run sha256:0", {}).content is None


DOORS = {
    "csv": Door("t.csv", lambda path: read_csv(path, SourceOptions()), tables),
    "config": Door("c.yaml", load_config, configs),
    "checkpoint": Door(
        "c.safetensors",
        checkpoint.load,
        lambda: iter([json.dumps(about()).encode()[1:]]),
        sealed_header,
    ),
    "state": Door("resume.pt", read_state, states, sealed_state),
    "picture": Door("p.jpg", look, pictures),
    "sidecar": Door("p.xmp", merge, lambda: (text.encode() for text in SAMPLES.values())),
}


def main(name: str, seconds: int) -> None:
    """Test one door for the given seconds; then the process ends."""
    door, corpus = DOORS[name], FOUND / name
    corpus.mkdir(parents=True, exist_ok=True)
    for number, content in enumerate(door.examples()):
        (corpus / f"example-{number}").write_bytes(content)
    path = Path(tempfile.mkdtemp()) / door.name

    def visit(content: bytes) -> None:
        path.write_bytes(door.file(content))
        try:
            door.enter(path)
        except MlfinetuneError as error:
            if str(path) not in str(error):
                raise AssertionError("does not name the file") from error

    limits = [f"-max_total_time={seconds}", "-timeout=60", "-rss_limit_mb=4096", "-verbosity=0"]
    places = [f"-artifact_prefix={FOUND}/{name}-", str(corpus)]
    atheris.Setup([sys.argv[0], *limits, "-print_final_stats=1", *places], visit)
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
