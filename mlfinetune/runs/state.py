"""The resume state: a file of a run directory, never needed to predict.

mlfinetune state 1 <SHA-256 of the rest>
plain containers and tensors, as torch.save writes and torch.load(weights_only=True) reads them
"""

import hashlib
import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from mlfinetune.errors import CheckpointError, TrainingError
from mlfinetune.runs.checkpoint import find_not_finite
from mlfinetune.storage.atomic import writing_binary

_STATE = b"mlfinetune state 1 "
_STATE_HEAD = len(_STATE) + 64 + 1


def write_state(path: Path, previous: Path, content: dict[str, Any]) -> None:
    """Write a resume state whole or not at all; the one that was there becomes `previous`.

    Between the two renames of a save there is no `path`, but a whole `previous`.

    Raises:
        CheckpointError: the file cannot be written (a full disk, no permission).
        TrainingError: tensors that are not finite; what was at `path` stays.
    """
    if odd := find_not_finite(dict(_tensors(content, ""))):
        raise TrainingError(
            f"{path} is not written: {odd}, training has diverged; lower train.lr and "
            f"train.head_lr, then --resume --allow-changed goes on from what is there"
        )
    buffer = io.BytesIO()
    torch.save(content, buffer)
    payload = buffer.getbuffer()
    head = _STATE + hashlib.sha256(payload).hexdigest().encode() + b"\n"
    with writing_binary(path, keep=previous) as file:
        file.write(head)
        file.write(payload)


def read_state(path: Path) -> dict[str, Any]:
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
        found = torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises whatever its unpickler raises
        raise CheckpointError(
            f"{path} is no state of mlfinetune: it holds more than tensors and plain containers"
        ) from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{path} is no state of mlfinetune: it holds no mapping")
    return found


def _tensors(tree: Any, name: str) -> Iterator[tuple[str, torch.Tensor]]:
    """Those of nested containers, by dotted names."""
    if isinstance(tree, torch.Tensor):
        yield name, tree
    elif isinstance(tree, Mapping | list | tuple):
        items = tree.items() if isinstance(tree, Mapping) else enumerate(tree)
        for key, value in items:
            yield from _tensors(value, f"{name}.{key}" if name else str(key))
