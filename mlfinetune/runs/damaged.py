"""Files of a run that somebody has damaged: one error for all that parsing them may raise."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import numpy as np
from numpy.typing import NDArray

from mlfinetune.errors import CheckpointError

FOREIGN = (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError)
"""Errors that parsing raises for content that no run writes."""


@contextmanager
def explaining_damage(path: Path, loss: str) -> Iterator[None]:
    """Context that reads and parses a file of a run.

    Args:
        path: the file.
        loss: what is lost without it, for the message.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: it cannot be read, or holds what no run writes.
    """
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from error
    except FOREIGN as error:
        raise CheckpointError(f"{path} is damaged ({repr(error)[:200]}); {loss}") from error


def require_all_members(archive: ZipFile) -> None:
    """Raise a ValueError where a member of a .npz file has a comment; NumPy writes none.

    Its length is damaged then, and `zipfile` takes the members after it for the comment.
    """
    if names := [member.filename for member in archive.infolist() if member.comment]:
        raise ValueError(f"a comment of {names[0]}")


def load_arrays(path: Path, loss: str) -> dict[str, NDArray[Any]]:
    """Load the arrays of a .npz file by their names; nothing is unpickled.

    Args:
        path: the file.
        loss: what to do, and what is lost by it, for the message.

    Raises:
        CheckpointError: it cannot be read, or is no such file.
    """
    try:
        # Opened here: np.load leaves a damaged file open.
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            require_all_members(file.zip)
            return {name: file[name] for name in file.files}
    except Exception as error:  # numpy and zipfile raise whatever their parsers raise
        raise CheckpointError(f"{path} is damaged: {error}; {loss}") from error
