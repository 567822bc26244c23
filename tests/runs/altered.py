"""Files with a bit turned or an end cut off, and who takes them for whole."""

from collections.abc import Callable, Iterable
from pathlib import Path

from mlfinetune.errors import CheckpointError


def accepted(load: Callable[[Path], object], path: Path, contents: Iterable[bytes]) -> list[int]:
    """Return the numbers of the contents that load, or are refused without the file's name."""
    wrong = []
    for at, changed in enumerate(contents):
        path.write_bytes(changed)
        try:
            load(path)
            wrong.append(at)
        except CheckpointError as error:
            if str(path) not in str(error):
                wrong.append(at)
    return wrong


def flipped(whole: bytes, bit: int) -> bytes:
    """Return the bytes with one bit changed."""
    changed = bytearray(whole)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)
