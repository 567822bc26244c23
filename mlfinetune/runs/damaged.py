"""Files of a run that somebody has damaged: one error for all that parsing them may raise."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

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
