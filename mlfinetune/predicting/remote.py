"""Checkpoints behind URLs, kept in the cache.

    URL -> the first bytes, which name the digest -> kept under it? else downloaded

A checkpoint names its SHA-256 in its header. So a later call asks for some kilobytes alone, and
hears of a new file at the same URL. A file of another kind is downloaded at every call.
"""

import os
from pathlib import Path
from urllib.parse import urlsplit

from mlfinetune.errors import CheckpointError, DataError
from mlfinetune.location import Location, find_ending, parse_location
from mlfinetune.runs import checkpoint, directory
from mlfinetune.storage.cache import get_cache_folder
from mlfinetune.storage.files import fetch_file, fetch_start
from mlfinetune.text import mask_secrets

_START = 2**16
"""Bytes of a checkpoint's start: the digest is the first thing that its header says."""


def parse_source(source: str | os.PathLike[str]) -> Location:
    """Return the path or URL of a checkpoint; `~` is the user's home folder.

    Raises:
        CheckpointError: a URL with a user or password.
    """
    try:
        location = parse_location(os.fspath(source))
        return location.expanduser() if isinstance(location, Path) else location
    except (ValueError, RuntimeError) as error:
        raise CheckpointError(str(error)) from error


def locate_checkpoint(
    source: str | os.PathLike[str], data: object | None, output: object | None
) -> Path:
    """Return the place on this machine of a checkpoint to evaluate; one behind a URL is fetched.

    Args:
        source: run directory, file, or the URL of one.
        data, output: of the evaluation; None: those of the run.

    Raises:
        CheckpointError: a URL, and no data or no output: its run directory is not here.
    """
    location = parse_source(source)
    if isinstance(location, Path):
        return location.absolute()
    if data is None or output is None:
        raise CheckpointError(
            f"{mask_secrets(location)} is far from its run's data and results: name the data to "
            f"score with --data TABLE (data=), and a folder with --output FOLDER (output=)"
        )
    return fetch_checkpoint(location)


def fetch_checkpoint(url: str) -> Path:
    """Return a file of this machine with the content of a checkpoint behind a URL.

    A URL without a file's ending is that of a run directory or of a repository of the hub: its
    best.safetensors is taken.

    Raises:
        CheckpointError: it cannot be fetched or kept.
    """
    parts = urlsplit(url)
    ending = find_ending(parts.path)
    if not parts.query and not ending[1:2].isalpha():  # hf://user/pets-v1.5 has no ending
        url, ending = f"{url.rstrip('/')}/{directory.BEST}", Path(directory.BEST).suffix
    try:
        digest = checkpoint.read_digest(fetch_start(url, _START))
        name = None if digest is None else f"{digest}{ending}"
        folder = None if name is None else get_cache_folder("checkpoints")
        if folder is not None and name is not None and checkpoint.is_whole(folder / name):
            return folder / name
        return fetch_file(url, "checkpoints", name)
    except DataError as error:
        raise CheckpointError(mask_secrets(str(error))) from error
