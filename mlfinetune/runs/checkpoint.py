"""Checkpoint: one safetensors file, sealed by a SHA-256 over all of it.

    header metadata {"mlfinetune": JSON of everything but the weights, with the digest}
    tensors         the model's state dict

The digest is that of the whole file with 64 zeros in the digest's place. So a file with a flipped
bit or a cut end is refused. Nothing is unpickled. This module is independent of the model.

A correct digest says that a file is whole, not that its writer is honest. So the lengths in the
header are compared with the file's length before the tensors are read, and every field is checked.
"""

import hashlib
import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from reprlib import repr as shown
from typing import Any, cast, get_args

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import nn

from mlfinetune.config import MAX_IMAGE_SIZE
from mlfinetune.data.images.transforms import TransformSpec
from mlfinetune.data.targets import LabelSpace
from mlfinetune.errors import CheckpointError, TrainingError
from mlfinetune.metrics.implies import is_pairs, to_pairs
from mlfinetune.metrics.types import CalibrationHow, DecisionRule, EvalViews, ThresholdHow
from mlfinetune.runtime.threads import one_thread
from mlfinetune.storage.atomic import writing_binary
from mlfinetune.text import to_finite


@dataclass(frozen=True)
class Parent:
    """Checkpoint that a run began with: its path at that time, and its SHA-256."""

    path: str
    sha256: str


@dataclass(frozen=True)
class Checkpoint:
    """Everything that predicting needs, in one file.

    Attributes:
        weights: state dict of the whole model, on the CPU.
        labels: names of the head's outputs, in order.
        transform: preprocessing that makes a picture the model's input.
        backbone: name of the network, as `model.backbone` takes it.
        decision: calibration and thresholds.
        views: versions of a picture whose mean logits these were fitted to, and are applied to.
        config: the resolved config of the run, as plain containers.
        data_digest: SHA-256 over image names, labels and targets of the validation data;
            `OUT_OF_FOLD`: none was held out, and the decision was fitted to out-of-fold scores.
        epoch: the epoch after which the weights were saved, from 1; of L-BFGS the number of the
            solution; 0: the solved head before training.
        versions: of mlfinetune and of the packages that compute the network, when it was written.
        levels: number of the backbone's last stages that the features come from.
        parent: the checkpoint that `model.weights` named; None: other weights, or not known.
    """

    weights: dict[str, torch.Tensor]
    labels: LabelSpace
    transform: TransformSpec
    backbone: str
    decision: DecisionRule
    config: dict[str, Any]
    data_digest: str
    epoch: int
    versions: dict[str, str]
    levels: int = 1
    views: EvalViews = "plain"
    parent: Parent | None = None


@dataclass(frozen=True)
class Origin:
    """Facts of a checkpoint, as its header names them: its network, labels, transform, SHA-256."""

    backbone: str
    labels: tuple[str, ...]
    transform: TransformSpec | None
    levels: int = 1
    sha256: str = ""


FORMAT = 2
OUT_OF_FOLD = "out of fold"
_KEY = "mlfinetune"
_NO_DIGEST = "0" * 64
_DIGEST = re.compile(rb'\\"sha256\\":\\"([0-9a-f]{64})\\"')
_END = re.compile(rb'"data_offsets":\[\d{1,20},(\d{1,20})\]')
"""End of one tensor's bytes, in the header."""
_MAX_HEADER = 100_000_000
"""Bytes: the limit of safetensors itself; enough for a million labels."""
_INCOMPLETE = "is not a complete checkpoint: it is cut short, or another kind of file"
_PICKLES = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


def save(path: Path, checkpoint: Checkpoint, also: Sequence[Path] = ()) -> None:
    """Write `checkpoint` whole or not at all.

    Args:
        path: the file.
        checkpoint: its content.
        also: files that get the same content, after the first; it is packed and hashed once.

    Raises:
        CheckpointError: the file cannot be written (a full disk, no permission).
        TrainingError: weights are not finite; a file that was at `path` stays.
    """
    if problem := find_not_finite(checkpoint.weights):
        raise TrainingError(f"{path} is not written: {problem}; lower train.lr and train.head_lr")
    about = {"sha256": _NO_DIGEST, **describe(checkpoint)}
    weights = {name: tensor.contiguous() for name, tensor in checkpoint.weights.items()}
    content = save_tensors(weights, {_KEY: json.dumps(about, separators=(",", ":"))})
    start, end = _find_digest(content[: 8 + _read_header_length(content, len(content), path)], path)
    digest, whole = _compute_digest(content, start, end), memoryview(content)
    for file_path in (path, *also):
        with writing_binary(file_path) as file:
            file.writelines((whole[:start], digest, whole[end:]))


def describe(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return everything but the weights, as plain containers; `parse` reads them."""
    return {
        "format": FORMAT,
        "labels": checkpoint.labels.names,
        "transform": asdict(checkpoint.transform),
        "backbone": checkpoint.backbone,
        "levels": checkpoint.levels,
        "decision": asdict(checkpoint.decision),
        "config": checkpoint.config,
        "data_digest": checkpoint.data_digest,
        "epoch": checkpoint.epoch,
        "versions": checkpoint.versions,
        "views": checkpoint.views,
        "parent": None if checkpoint.parent is None else asdict(checkpoint.parent),
    }


def load(path: Path) -> Checkpoint:
    """Read and verify a checkpoint.

    Raises:
        CheckpointError: the file is missing, altered, cut short, or no checkpoint of mlfinetune.
    """
    content, length = _read_verified(path)
    try:
        about = json.loads(json.loads(content[8 : 8 + length])["__metadata__"][_KEY])
        weights = load_tensors(content)
        if problem := find_not_finite(weights):
            raise CheckpointError(f"{path} cannot be used: {problem}")
        return parse(about, weights, path)
    except FOREIGN as error:
        raise CheckpointError(
            f"{path} is no checkpoint of mlfinetune: {repr(error)[:200]}"
        ) from error


def is_whole(path: Path) -> bool:
    """Tell whether a file is a checkpoint with the SHA-256 that is written in it."""
    try:
        _read_verified(path)
    except CheckpointError:
        return False
    return True


def read_digest(start: bytes) -> str | None:
    """Return the SHA-256 that a checkpoint names in its first bytes; None: it names none there."""
    match = _DIGEST.search(start, 8)
    return None if match is None else match[1].decode()


def read_origin(path: Path) -> Origin | None:
    """Read backbone, labels and transform from a header alone; None: another kind of file.

    Nothing is verified but the transform; `load` does that.
    """
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            header = file.read(_read_header_length(file.read(8), size, path))
        about = json.loads(json.loads(header)["__metadata__"][_KEY])
        labels = tuple(map(str, about["labels"]))
        transform = about.get("transform")
        spec = None if transform is None else _parse_transform(transform)
        levels = _parse_levels(about.get("levels", 1))
        return Origin(str(about["backbone"]), labels, spec, levels, str(about.get("sha256", "")))
    except (OSError, CheckpointError, *FOREIGN):
        return None


def parse(about: dict[str, Any], weights: dict[str, Any], path: Path) -> Checkpoint:
    """Check every field that `describe` gives, and build the checkpoint; raises one of `FOREIGN`.

    Raises:
        CheckpointError: the file has the format of another version.
    """
    if about["format"] != FORMAT:
        raise CheckpointError(
            f"{path} has checkpoint format {about['format']}, this version reads {FORMAT}; "
            f"it was written by mlfinetune {about['versions'].get('mlfinetune')}"
        )
    labels = about["labels"]
    _require(labels, "labels", type(labels) is list and all(type(name) is str for name in labels))
    _require(labels, "labels", 0 < len(labels) == len(set(labels)))
    about = {"levels": 1, "views": "plain", "parent": None, **about}  # version 0.1 knew no others
    _parse_levels(about["levels"])
    for name, kind in _KINDS.items():
        _require(about[name], name, type(about[name]) is kind)
    _require(about["views"], "views", about["views"] in get_args(EvalViews))
    return Checkpoint(
        weights=weights,
        labels=LabelSpace(tuple(labels)),
        transform=_parse_transform(about["transform"]),
        decision=_parse_decision(about["decision"], len(labels)),
        views=about["views"],
        parent=_parse_parent(about["parent"]),
        **{name: about[name] for name in _KINDS},
    )


_KINDS = {
    "backbone": str, "levels": int, "config": dict, "data_digest": str, "epoch": int,
    "versions": dict,
}  # fmt: skip
FOREIGN = (
    SafetensorError, ValueError, KeyError, TypeError, AttributeError, ArithmeticError,
    RuntimeError, MemoryError,
)  # fmt: skip
"""Errors that parsers, and the checks here, raise for a file with a correct digest that mlfinetune
did not write."""


def _parse_levels(value: object) -> int:
    """Return a number of stages; raises ValueError for one that no network has."""
    _require(value, "levels", type(value) is int and value in range(1, 5))
    return cast(int, value)


def _parse_parent(about: dict[str, Any] | None) -> Parent | None:
    """Parse the parent; raises ValueError for anything but two texts."""
    if about is None:
        return None
    parent = Parent(**about)
    _require(about, "parent", type(parent.path) is str and type(parent.sha256) is str)
    return parent


def _parse_transform(about: dict[str, Any]) -> TransformSpec:
    """Parse the transform; raises ValueError for a value that no config may have."""
    fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in about.items()}
    spec = TransformSpec(**fields)
    ranges = {"image_size": (1, MAX_IMAGE_SIZE), "max_pixels": (1, 2**40), "rand_augment": (0, 10)}
    for name, (least, most) in ranges.items():
        value = getattr(spec, name)
        _require(value, name, type(value) is int and least <= value <= most)
    _require(spec.resize, "resize", spec.resize in ("squash", "crop", "pad"))
    for name, length in {"mean": 3, "std": 3, "crop_scale": 2}.items():
        value = getattr(spec, name)
        _require(value, name, len(value) == length and all(0 <= to_finite(x) <= 1 for x in value))
    _require(spec.std, "std", min(spec.std) > 0)
    _require(spec.interpolation, "interpolation", spec.interpolation in ("bilinear", "bicubic"))
    _require(spec.crop_share, "crop_share", 0.1 <= to_finite(spec.crop_share) <= 2)
    for name in ("horizontal_flip", "color_jitter"):
        _require(getattr(spec, name), name, 0 <= to_finite(getattr(spec, name)) <= 1)
    return spec


def _parse_decision(about: dict[str, Any], labels: int) -> DecisionRule:
    """Parse the decision on `labels` labels; raises ValueError for values that do not fit."""
    lists = {k: tuple(map(to_finite, about[k])) for k in ("thresholds", "slope", "intercept")}
    if any(len(values) != labels for values in lists.values()):
        raise ValueError("the decision is not of these labels")
    thresholds = lists["thresholds"]
    _require(thresholds, "thresholds", min(thresholds) >= 0 and max(thresholds) <= 1)
    implies = about.get("implies", [])  # version 0.2 knew none
    _require(implies, "implies", is_pairs(implies, labels))
    low, high = map(to_finite, about["review"] or (0, 0))
    _require(about["review"], "review", 0 <= low <= high <= 1)
    _require(about["how"], "how", about["how"] in get_args(ThresholdHow))
    _require(about["calibration"], "calibration", about["calibration"] in get_args(CalibrationHow))
    return DecisionRule(
        how=about["how"],
        calibration=about["calibration"],
        review=(low, high) if about["review"] else None,
        implies=to_pairs(implies),
        **lists,
    )


@one_thread()
def find_not_finite(tensors: Mapping[str, torch.Tensor]) -> str:
    """Return a sentence on a tensor that holds NaN or infinity; empty if none does.

    If all are finite, the device is synchronized only once, whatever the number of tensors.
    """
    floats = {name: x for name, x in tensors.items() if x.is_floating_point()}
    if not floats or nn.utils.get_total_norm(floats.values(), math.inf).isfinite():
        return ""
    first = next(name for name, x in floats.items() if not x.isfinite().all())
    return f"{first} holds values that are not finite"


def _require(value: object, name: str, right: bool) -> None:
    if not right:
        raise ValueError(f"its {name} cannot be {shown(value)}")


def _read_verified(path: Path) -> tuple[bytes, int]:
    """Read a file that has the SHA-256 that is written in it; return it, and its header's length.

    Raises:
        CheckpointError: it cannot be read, or is damaged.
    """
    try:
        content, length = _read_whole(path)
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from error
    except MemoryError as error:
        raise CheckpointError(f"{path} is larger than the memory of this machine") from error
    start, end = _find_digest(content[: 8 + length], path)
    if _compute_digest(content, start, end) != content[start:end]:
        raise CheckpointError(
            f"{path} is damaged: its SHA-256 is not the one written in it; copy it again, "
            f"or use another checkpoint"
        )
    return content, length


def _read_whole(path: Path) -> tuple[bytes, int]:
    """Read a file that is as long as its header says; return it, and the header's length."""
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        start = file.read(8)
        length = _read_header_length(start, size, path)
        start += file.read(length)
        ends = 8 + length + max(map(int, _END.findall(start)), default=0)
        if ends != size:
            raise CheckpointError(
                f"{path} {_INCOMPLETE}; it has {size:,} bytes, but its header says {ends:,}"
            )
        file.seek(0)
        return file.read(), length


def _read_header_length(start: bytes, size: int, path: Path) -> int:
    """Return the length in bytes of the JSON header, which follows the first eight bytes.

    Args:
        start: the first bytes of the file.
        size: of the file, in bytes.
    """
    length = int.from_bytes(start[:8], "little")
    if size >= 8 and length <= min(size - 8, _MAX_HEADER):
        return length
    if start.startswith(_PICKLES):
        raise CheckpointError(
            f"{path} is a pickle (torch.save), not a safetensors file; pickles can run code "
            f"and are not loaded"
        )
    if size >= 8 and length <= size - 8:
        raise CheckpointError(
            f"{path}: a header of {length:,} bytes, more than the {_MAX_HEADER:,} of a checkpoint"
        )
    raise CheckpointError(f"{path} {_INCOMPLETE}")


def _compute_digest(content: bytes, start: int, end: int) -> bytes:
    """Return the SHA-256 of `content`, with zeros in the digest's place."""
    view = memoryview(content)
    digest = hashlib.sha256(view[:start])
    digest.update(_NO_DIGEST.encode())
    digest.update(view[end:])
    return digest.hexdigest().encode()


def _find_digest(header: bytes, path: Path) -> tuple[int, int]:
    """Return start and end of the 64 characters of the digest: the first match."""
    match = _DIGEST.search(header, 8)
    if match is None:
        raise CheckpointError(
            f"{path} is no checkpoint of mlfinetune, or is damaged: it holds no SHA-256"
        )
    return match.span(1)
