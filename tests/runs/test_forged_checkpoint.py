"""Checkpoints whose digest is right and whose content is not; pickles that want to run."""

import gzip
import hashlib
import io
import json
import pickle
import re
import resource
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Promise, Run
from safetensors.torch import load_file
from safetensors.torch import save as save_bytes
from torch import Tensor

from mlfinetune.errors import CheckpointError, MlfinetuneError
from mlfinetune.models.pretrained import load_pretrained
from mlfinetune.models.tagger import Tagger
from mlfinetune.runs import directory
from mlfinetune.runs.checkpoint import load
from mlfinetune.runs.results import read_scores
from mlfinetune.runs.state import read_state

About = dict[str, Any]
State = dict[str, Tensor]
Forgery = Callable[[About, State], object]
"""Changes what a checkpoint says, or holds; text between @ signs is written as it stands."""

HEAD = "head.weight"


def within(about: About, *keys: str, value: object) -> None:
    """Set one field of nested dicts."""
    for key in keys[:-1]:
        about = about[key]
    about[keys[-1]] = value


def setting(*keys: str, value: object) -> Forgery:
    """Return a forgery of one field."""
    return lambda about, _: within(about, *keys, value=value)


def weight(value: Tensor | None, name: str = HEAD) -> Forgery:
    """Return a forgery of one tensor, or without it."""
    if value is None:
        return lambda _, state: state.pop(name)
    return lambda _, state: state.__setitem__(name, value)


def renamed(_: About, state: State) -> None:
    """Give every tensor another name."""
    for name in list(state):
        state[f"module.{name}"] = state.pop(name)


FORGERIES: dict[str, Forgery] = {
    "labels repeated": lambda a, _: a["labels"].__setitem__(1, a["labels"][0]),
    "label no text": lambda a, _: a["labels"].__setitem__(1, 7),
    "labels text": lambda a, _: a.update(labels="abcdefgh"),
    "labels mapping": lambda a, _: a.update(labels=dict.fromkeys(a["labels"])),
    "labels none": setting("labels", value=[]),
    "labels too many": lambda a, _: a["labels"].extend(map(str, range(100_000))),
    "labels of another head": lambda a, _: (
        [a["decision"][k].append(0.5) for k in ("thresholds", "slope", "intercept")]
        + [a["labels"].append("one more")]
    ),
    "thresholds NaN": lambda a, _: a["decision"]["thresholds"].__setitem__(0, "@NaN@"),
    "thresholds infinite": lambda a, _: a["decision"]["thresholds"].__setitem__(0, "@Infinity@"),
    "thresholds 1e999": lambda a, _: a["decision"]["thresholds"].__setitem__(0, "@1e999@"),
    "thresholds negative": lambda a, _: a["decision"]["thresholds"].__setitem__(0, -0.1),
    "thresholds above 1": lambda a, _: a["decision"]["thresholds"].__setitem__(0, 1.1),
    "thresholds 10**400": lambda a, _: a["decision"]["thresholds"].__setitem__(0, 10**400),
    "thresholds text": lambda a, _: a["decision"]["thresholds"].__setitem__(0, "0.5"),
    "thresholds true": lambda a, _: a["decision"]["thresholds"].__setitem__(0, True),
    "thresholds too few": lambda a, _: a["decision"]["thresholds"].pop(),
    "thresholds number": setting("decision", "thresholds", value=0.5),
    "slope infinite": lambda a, _: a["decision"]["slope"].__setitem__(0, "@-Infinity@"),
    "intercept null": lambda a, _: a["decision"]["intercept"].__setitem__(0, None),
    "views unknown": setting("views", value="four"),
    "views none": setting("views", value=None),
    "views list": setting("views", value=["plain"]),
    "review reversed": setting("decision", "review", value=[0.8, 0.2]),
    "review of three": setting("decision", "review", value=[0.1, 0.2, 0.3]),
    "review beyond 1": setting("decision", "review", value=[0.1, 2]),
    "decision list": setting("decision", value=[]),
    "how number": setting("decision", "how", value=3),
    "calibration list": setting("decision", "calibration", value=[]),
    "backbone unknown": setting("backbone", value="resnet19"),
    "backbone of another kind": setting("backbone", value="vgg16"),
    "backbone another": setting("backbone", value="resnet34"),
    "backbone list": setting("backbone", value=["resnet18"]),
    "backbone path": setting("backbone", value="../../etc/passwd"),
    "image_size huge": setting("transform", "image_size", value=10**9),
    "image_size above the cap": setting("transform", "image_size", value=4097),
    "image_size zero": setting("transform", "image_size", value=0),
    "image_size negative": setting("transform", "image_size", value=-64),
    "image_size float": setting("transform", "image_size", value=64.0),
    "image_size text": setting("transform", "image_size", value="64"),
    "image_size true": setting("transform", "image_size", value=True),
    "max_pixels huge": setting("transform", "max_pixels", value=2**70),
    "max_pixels none": setting("transform", "max_pixels", value=None),
    "mean of two": setting("transform", "mean", value=[0.5, 0.5]),
    "mean NaN": setting("transform", "mean", value=[0.5, 0.5, "@NaN@"]),
    "mean number": setting("transform", "mean", value=0.5),
    "std zero": setting("transform", "std", value=[0.5, 0, 0.5]),
    "resize unknown": setting("transform", "resize", value="stretch"),
    "crop_scale nested": setting("transform", "crop_scale", value=[[0.5], 1]),
    "interpolation unknown": setting("transform", "interpolation", value="sinc"),
    "crop_share tiny": setting("transform", "crop_share", value=1e-6),
    "rand_augment huge": setting("transform", "rand_augment", value=10**6),
    "horizontal_flip text": setting("transform", "horizontal_flip", value="often"),
    "config list": setting("config", value=[]),
    "config empty": setting("config", value={}),
    "config of another kind": setting("config", "train", "epochs", value="many"),
    "config with another key": setting("config", "exec", value="import os"),
    "config nested": setting("config", "deep", value="@" + "[" * 400 + "]" * 400 + "@"),
    "epoch text": setting("epoch", value="3"),
    "epoch huge": setting("epoch", value="@" + "9" * 5000 + "@"),
    "versions text": setting("versions", value="0.1"),
    "data_digest number": setting("data_digest", value=1),
    "format text": setting("format", value="2"),
    "format missing": lambda a, _: a.pop("format"),
    "nested beyond the parser": setting("config", value="@" + "[" * 10**6 + "]" * 10**6 + "@"),
    "weight missing": weight(None),
    "weight unknown": weight(torch.zeros(3), "head.extra"),
    "weight unknown, 1 MB of name": weight(torch.zeros(3), "x" * 10**6),
    "weight transposed": lambda _, s: s.__setitem__(HEAD, s[HEAD].T.contiguous()),
    "weight empty": weight(torch.zeros(0)),
    "weight scalar": weight(torch.tensor(1.0)),
    "weight integers": lambda _, s: s.__setitem__(HEAD, s[HEAD].to(torch.int8)),
    "weight complex": lambda _, s: s.__setitem__(HEAD, s[HEAD].to(torch.complex64)),
    "weights renamed": renamed,
    "no weights": lambda _, s: s.clear(),
}


def forge(good: Path, path: Path, forgery: Forgery) -> Path:
    """Make a checkpoint as `good`, changed and sealed anew."""
    content = good.read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    about = json.loads(header["__metadata__"]["mlfinetune"])
    state = load_file(good)
    forgery(about, state)
    about = {"sha256": "0" * 64, **{k: v for k, v in about.items() if k != "sha256"}}
    text = re.sub('"@(.*?)@"', r"\1", json.dumps(about, separators=(",", ":")))
    blank = save_bytes(state, {"mlfinetune": text})
    path.write_bytes(blank.replace(b"0" * 64, hashlib.sha256(blank).hexdigest().encode(), 1))
    return path


@pytest.mark.parametrize("name", FORGERIES)
def test_a_forged_checkpoint_is_refused_by_predict_and_eval(
    trained: Path, tmp_path: Path, cli: Run, name: str
) -> None:
    """Exit code 2 and one message that names the file; no traceback, whatever the header says."""
    path = forge(trained / "runs/pets/best.safetensors", tmp_path / "f.ckpt", FORGERIES[name])
    for arguments in (("predict", "images/0000.jpg"), ("eval", "-o", str(tmp_path / "eval"))):
        done = cli(*arguments, "--checkpoint", str(path), cwd=trained)
        assert done.returncode == 2, done.stderr[-2000:]
        assert f"error: {path}" in done.stderr, done.stderr[-2000:]
        assert len(done.stderr) < 10_000
        assert done.stdout == ""


def test_a_resealed_checkpoint_predicts(trained: Path, tmp_path: Path, cli: Run) -> None:
    """The seal of these tests is right; labels of a megabyte each are labels."""

    def long(about: About, _: State) -> None:
        about["labels"] = [f"{name}{'x' * 10**6}" for name in about["labels"]]

    for forgery in (lambda *_: None, long):
        path = forge(trained / "runs/pets/best.safetensors", tmp_path / "f.ckpt", forgery)
        done = cli("predict", "images/0000.jpg", "--checkpoint", str(path), cwd=trained)
        assert done.returncode == 0, done.stderr[-2000:]


def refused(path: Path) -> str:
    """Return the message."""
    with pytest.raises(CheckpointError) as caught:
        load(path)
    return str(caught.value)


@pytest.mark.parametrize("length", [100_000_001, 2**31, 2**40 - 8])
def test_a_giant_header_is_not_read(tmp_path: Path, length: int) -> None:
    """A header beyond any checkpoint's, in a file that is as long (a hole, which takes no room)."""
    path = tmp_path / "giant.safetensors"
    path.write_bytes(length.to_bytes(8, "little") + b"{")
    with path.open("r+b") as file:
        file.truncate(2**40)
    assert f"{path}: a header of {length:,} bytes, more than the 100,000,000" in refused(path)


def test_a_file_longer_than_its_header_says_is_not_read(trained: Path, tmp_path: Path) -> None:
    """A terabyte behind the tensors is refused by its length alone."""
    path = tmp_path / "long.safetensors"
    path.write_bytes((trained / "runs/pets/best.safetensors").read_bytes())
    with path.open("r+b") as file:
        file.truncate(2**40)
    message = refused(path)
    assert f"{path} is not a complete checkpoint: it is cut short" in message
    assert "it has 1,099,511,627,776 bytes, but its header says " in message


@pytest.fixture
def terabyte() -> Iterator[None]:
    """Limit this process's address space, whatever memory the system would promise."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (2**40, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.mark.usefixtures("terabyte")
def test_a_file_larger_than_memory_is_named(tmp_path: Path) -> None:
    """A header that tells of 8 TiB, in a file of that size."""
    about = {"a": {"dtype": "U8", "shape": [2**43], "data_offsets": [0, 2**43]}}
    header = json.dumps(about, separators=(",", ":")).encode()
    path = tmp_path / "vast.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    with path.open("r+b") as file:
        file.truncate(8 + len(header) + 2**43)
    assert refused(path) == f"{path} is larger than the memory of this machine"


# ---- pickles ----------------------------------------------------------------------------


@dataclass
class Payload:
    """Makes a folder when it is unpickled."""

    canary: Path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return Path.mkdir, (self.canary,)


def zipped(member: bytes, name: str = "archive/data.pkl") -> bytes:
    """Return a zip as torch writes it, with this pickle."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(name, member)
        archive.writestr("archive/version", "3\n")
        archive.writestr("archive/byteorder", "little")
    return file.getvalue()


def saved(content: object, new: bool) -> bytes:
    """Return the bytes that torch.save writes."""
    file = io.BytesIO()
    torch.save(content, file, _use_new_zipfile_serialization=new)
    return file.getvalue()


def by_hand(call: str, argument: str) -> bytes:
    """Return a pickle of GLOBAL and REDUCE, as no pickler writes it."""
    module, name = call.split()
    return f"c{module}\n{name}\n(V{argument}\ntR.".encode()


def payloads(canary: Path) -> Iterator[tuple[str, bytes]]:
    """Yield name -> a file that makes the folder `canary` where it is unpickled, or unpacked."""
    code = f"__import__('os').mkdir({str(canary)!r})"
    state = {"head.bias": Payload(canary)}
    for protocol in range(6):
        yield f"protocol {protocol}", pickle.dumps(state, protocol)
    plain = pickle.dumps(state, 2)
    yield "torch zip", saved(state, new=True)
    yield "torch legacy", saved(state, new=False)
    yield "nested zip", zipped(zipped(plain), "archive/data.pkl")
    yield "zip in a zip", zipped(saved(state, new=True), "archive/inner.pt")
    yield "eval by hand", by_hand("builtins eval", code)
    yield "exec by hand", by_hand("builtins exec", code)
    yield "os.mkdir in a zip", zipped(by_hand("os mkdir", str(canary)))
    yield "torch's own loader", zipped(by_hand("torch.serialization load", str(canary)))
    yield "INST", f"(V{code}\nibuiltins\neval\n.".encode()
    yield "in a list of a class", pickle.dumps([[Payload(canary)] * 2], 4)
    yield "gzip", gzip.compress(plain)
    yield "behind a header", (2).to_bytes(8, "little") + b"{}" + plain
    yield "as a header", len(plain).to_bytes(8, "little") + plain


def try_doors(
    folder: Path, name: str, content: bytes, tagger: Tagger
) -> Iterator[tuple[str, Path]]:
    """(What was not refused, or not by its name; the file), at every door that reads files."""
    sealed = b"mlfinetune state 1 " + hashlib.sha256(content).hexdigest().encode() + b"\n" + content
    doors: dict[str, tuple[bytes, Callable[[Path], object]]] = {
        "best.safetensors": (content, load),
        "resume.pt": (sealed, read_state),
        "weights.pth": (content, lambda p: load_pretrained(tagger, "resnet18", str(p))),
        "weights.safetensors": (content, lambda p: load_pretrained(tagger, "resnet18", str(p))),
        directory.SCORES: (content, lambda p: read_scores(p.parent)),
    }
    for file, (bytes_, open_) in doors.items():
        path = folder / file
        path.write_bytes(bytes_)
        said = "accepted"
        try:
            open_(path)
        except MlfinetuneError as error:
            said = "" if str(path) in str(error) else f"does not name the file: {error}"
        except BaseException as error:
            said = repr(error)
        yield f"{name}, {file}: {said}" if said else "", path


@pytest.mark.faults
def test_no_pickle_runs(tmp_path: Path, promise: Promise) -> None:
    """P8: 19 pickles at the five doors that read files; each is refused, and none runs."""
    tagger = Tagger("resnet18", 2, mean=(0, 0, 0), std=(1, 1, 1))
    canary, failures, trials = tmp_path / "canary", [], 0
    for name, content in payloads(canary):
        for fault, path in try_doors(tmp_path, name, content, tagger):
            trials += 1
            ran = canary.exists()
            if fault or ran:
                failures.append(fault or f"{name}, {path.name}: ran")
            if ran:
                canary.rmdir()
    assert trials == 19 * 5
    promise("P8", trials, failures)


def test_the_payloads_would_run(tmp_path: Path) -> None:
    """Each that pickle or torch can read makes its folder where nothing guards it."""
    canary, ran = tmp_path / "canary", set()
    for name, content in payloads(canary):
        inner = content
        if zipfile.is_zipfile(io.BytesIO(content)):
            with zipfile.ZipFile(io.BytesIO(content)) as archive:
                names = [name for name in archive.namelist() if name.endswith(".pkl")]
                inner = archive.read(names[0]) if names else b""
        for bytes_ in (inner, content[8:]):
            try:
                pickle.loads(bytes_)
            except Exception:  # a zip in a zip, gzip: for those who unpack first
                continue
        if canary.exists():
            ran.add(name)
            canary.rmdir()
    assert len(ran) >= 12
