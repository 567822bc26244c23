"""A checkpoint is one safetensors file, sealed by a SHA-256 over all of it.

    header metadata {"mlfinetune": JSON of everything but the weights, with the digest}
    tensors         the model's state dict

The digest is of the whole file with 64 zeros in the digest's place, so that any flipped bit,
wherever it falls, and any truncation is refused. Nothing is unpickled. Knows no model.

A resume state is another file, of a run's own folder, never needed to predict:

    mlfinetune state 1 <SHA-256 of the rest>
    plain containers and tensors, as torch.save writes and torch.load(weights_only=True) reads them
"""

import hashlib
import io
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import nn

from mlfinetune.errors import CheckpointError, TrainingError
from mlfinetune.records import Checkpoint, Decision, LabelSpace, TransformSpec
from mlfinetune.rundir import write_atomic, writing_bytes

FORMAT = 2
_KEY = "mlfinetune"
_STATE = b"mlfinetune state 1 "
_STATE_HEAD = len(_STATE) + 64 + 1
_NO_DIGEST = "0" * 64
_DIGEST = re.compile(rb'\\"sha256\\":\\"([0-9a-f]{64})\\"')
_PICKLES = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


def save(path: Path, checkpoint: Checkpoint) -> None:
    """Write `checkpoint` whole or not at all.

    Raises:
        CheckpointError: the file cannot be written (a full disk, no permission).
        TrainingError: weights that are not finite; what was at `path` stays.
    """
    if odd := _not_finite(checkpoint.weights):
        raise TrainingError(f"{path} is not written: {odd}; lower train.lr and train.head_lr")
    about = {
        "sha256": _NO_DIGEST,
        "format": FORMAT,
        "labels": checkpoint.labels.names,
        "transform": asdict(checkpoint.transform),
        "backbone": checkpoint.backbone,
        "decision": asdict(checkpoint.decision),
        "config": checkpoint.config,
        "data_digest": checkpoint.data_digest,
        "epoch": checkpoint.epoch,
        "versions": checkpoint.versions,
    }
    weights = {name: tensor.contiguous() for name, tensor in checkpoint.weights.items()}
    content = save_tensors(weights, {_KEY: json.dumps(about, separators=(",", ":"))})
    start, end = _digest_span(content, path)
    digest = hashlib.sha256(content).hexdigest().encode()
    write_atomic(path, content[:start] + digest + content[end:])


def load(path: Path) -> Checkpoint:
    """Read and verify a checkpoint.

    Raises:
        CheckpointError: the file is missing, altered, cut short, or no checkpoint of ours.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from error
    start, end = _digest_span(content, path)
    blank = content[:start] + _NO_DIGEST.encode() + content[end:]
    if hashlib.sha256(blank).hexdigest().encode() != content[start:end]:
        raise CheckpointError(
            f"{path} is damaged: its SHA-256 is not the one written in it; copy it again, "
            f"or use another checkpoint"
        )
    try:
        length = int.from_bytes(content[:8], "little")
        about = json.loads(json.loads(content[8 : 8 + length])["__metadata__"][_KEY])
        weights = load_tensors(content)
        if odd := _not_finite(weights):
            raise CheckpointError(f"{path} cannot be used: {odd}")
        return _to_checkpoint(about, weights, path)
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} is no checkpoint of mlfinetune: {error!r}") from error


def save_state(path: Path, previous: Path, content: dict[str, Any]) -> None:
    """Write a resume state whole or not at all; the one that was there becomes `previous`.

    Between the two renames of a save there is no `path`, but a whole `previous`.

    Raises:
        CheckpointError: the file cannot be written (a full disk, no permission).
        TrainingError: tensors that are not finite; what was at `path` stays.
    """
    if odd := _not_finite(dict(_tensors(content, ""))):
        raise TrainingError(
            f"{path} is not written: {odd}, training has diverged; lower train.lr and "
            f"train.head_lr, then --resume --allow-changed goes on from what is there"
        )
    buffer = io.BytesIO()
    torch.save(content, buffer)
    payload = buffer.getbuffer()
    head = _STATE + hashlib.sha256(payload).hexdigest().encode() + b"\n"
    with writing_bytes(path, keep=previous) as file:
        file.write(head)
        file.write(payload)


def load_state(path: Path) -> dict[str, Any]:
    """Read and verify a resume state, tensors on the CPU.

    Raises:
        CheckpointError: the file is missing, altered, cut short, or no state of ours.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from error
    head, payload = content[:_STATE_HEAD], memoryview(content)[_STATE_HEAD:]
    if head != _STATE + hashlib.sha256(payload).hexdigest().encode() + b"\n":
        raise CheckpointError(f"{path} is damaged, or no state of this version of mlfinetune")
    try:
        found: dict[str, Any] = torch.load(
            io.BytesIO(payload), map_location="cpu", weights_only=True
        )
    except Exception as error:  # torch.load raises whatever its unpickler raises
        raise CheckpointError(
            f"{path} is no state of mlfinetune: it holds more than tensors and plain containers"
        ) from error
    return found


def _to_checkpoint(about: dict[str, Any], weights: dict[str, Any], path: Path) -> Checkpoint:
    if about["format"] != FORMAT:
        raise CheckpointError(
            f"{path} has checkpoint format {about['format']}, this version reads {FORMAT}; "
            f"it was written by mlfinetune {about['versions'].get('mlfinetune')}"
        )
    transform: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in about["transform"].items()
    }
    return Checkpoint(
        weights=weights,
        labels=LabelSpace(tuple(about["labels"])),
        transform=TransformSpec(**transform),
        backbone=about["backbone"],
        decision=_decision(about["decision"], len(about["labels"])),
        config=about["config"],
        data_digest=about["data_digest"],
        epoch=about["epoch"],
        versions=about["versions"],
    )


def _decision(about: dict[str, Any], labels: int) -> Decision:
    """Raises ValueError where it is not of so many labels."""
    lists = {k: tuple(map(float, about[k])) for k in ("thresholds", "slope", "intercept")}
    if any(len(values) != labels for values in lists.values()):
        raise ValueError("the decision is not of these labels")
    low, high = map(float, about["review"] or (0, 0))
    return Decision(
        how=str(about["how"]),
        calibration=str(about["calibration"]),
        review=(low, high) if about["review"] else None,
        **lists,
    )


def _not_finite(tensors: Mapping[str, torch.Tensor]) -> str:
    """Which holds NaN or infinity, in words; empty: none does. Waits for the device once."""
    floats = {name: x for name, x in tensors.items() if x.is_floating_point()}
    if not floats or nn.utils.get_total_norm(floats.values(), math.inf).isfinite():
        return ""
    odd = next(name for name, x in floats.items() if not x.isfinite().all())
    return f"{odd} holds values that are not finite"


def _tensors(tree: Any, name: str) -> Iterator[tuple[str, torch.Tensor]]:
    """Those of nested containers, by dotted names."""
    if isinstance(tree, torch.Tensor):
        yield name, tree
    elif isinstance(tree, Mapping | list | tuple):
        items = tree.items() if isinstance(tree, Mapping) else enumerate(tree)
        for key, value in items:
            yield from _tensors(value, f"{name}.{key}" if name else str(key))


def _digest_span(content: bytes, path: Path) -> tuple[int, int]:
    """Where the 64 characters of the digest stand: the first match, in the header."""
    length = int.from_bytes(content[:8], "little")
    if len(content) < 8 or length > len(content) - 8:
        if content.startswith(_PICKLES):
            raise CheckpointError(
                f"{path} is a pickle (torch.save), not a safetensors file; pickles can run code "
                f"and are not loaded"
            )
        raise CheckpointError(f"{path} is cut short, or no safetensors file")
    found = _DIGEST.search(content, 8, 8 + length)
    if found is None:
        raise CheckpointError(
            f"{path} is no checkpoint of mlfinetune, or is damaged: it holds no SHA-256"
        )
    return found.span(1)
