"""Resume state: a file of a run directory, never needed to predict.

line 1    mlfinetune state 1 <SHA-256 of the rest>
the rest  plain containers and tensors, by torch.save; read by torch.load(weights_only=True)
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
    """Write a resume state whole or not at all; the state that was at `path` moves to `previous`.

    A save renames two files. A process that is killed between the two renames leaves no `path`, but
    a whole `previous`.

    Raises:
        CheckpointError: the file cannot be written (a full disk, no permission).
        TrainingError: tensors are not finite; a file that was at `path` stays.
    """
    if problem := find_not_finite(dict(_iterate_tensors(content, ""))):
        raise TrainingError(
            f"{path} is not written: {problem}, training has diverged; lower train.lr and "
            f"train.head_lr, then resume the last saved state with --resume --allow-changed"
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
        CheckpointError: the file is missing, altered, cut short, or no state of mlfinetune.
    """
    try:
        file = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from error
    head, payload = file[:_STATE_HEAD], memoryview(file)[_STATE_HEAD:]
    if head != _STATE + hashlib.sha256(payload).hexdigest().encode() + b"\n":
        raise CheckpointError(f"{path} is damaged, or no state of this version of mlfinetune")
    try:
        content = torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises whatever its unpickler raises
        raise CheckpointError(
            f"{path} is no state of mlfinetune: it holds more than tensors and plain containers"
        ) from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} is no state of mlfinetune: it holds no mapping")
    return content


def _iterate_tensors(tree: Any, name: str) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield (dotted name, tensor) of every tensor in nested containers."""
    if isinstance(tree, torch.Tensor):
        yield name, tree
    elif isinstance(tree, Mapping | list | tuple):
        items = tree.items() if isinstance(tree, Mapping) else enumerate(tree)
        for key, value in items:
            yield from _iterate_tensors(value, f"{name}.{key}" if name else str(key))
