"""Inputs of predict: files, folders, tars, URLs, globs and stdin become paths of pictures.

inputs -> require_inputs -> expand_inputs -> paths, one after the other
"""

import glob
import os
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path

from mlfinetune.data.images.names import is_hidden_name, is_image_name, is_lost_folder, walk_files
from mlfinetune.errors import DataError
from mlfinetune.location import Location, is_url, parse_location, to_slashes
from mlfinetune.storage import files
from mlfinetune.storage.tars import list_members
from mlfinetune.text import mask_secrets

STDIN = "-"
TAR = ".tar"


def parse_data(name: str | os.PathLike[str] | None) -> Location | None:
    """Return the path or URL of data; None for None.

    Raises:
        DataError: a URL with a secret, which the results would keep.
    """
    if name is None:
        return None
    text = os.fspath(name)
    if is_url(text) and mask_secrets(text) != text:
        raise DataError(
            f"{text}: no password, token or signature in a URL, it would be kept with the results; "
            f"download the table, and name the file"
        )
    try:
        return parse_location(text)
    except ValueError as error:
        raise DataError(str(error)) from error


def require_inputs(inputs: Iterable[str]) -> None:
    """Check that every input is there; URLs are not looked up.

    Raises:
        DataError: inputs that are no file, folder, glob with a match, or well-formed URL.
    """
    missing = [
        item
        for item in inputs
        if item != STDIN
        and not is_url(item)
        and not os.path.exists(item)
        and not files.read_stamp(item)
        and not glob.glob(item, recursive=True)
    ]
    try:
        for item in inputs:
            parse_location(item)
    except ValueError as error:
        raise DataError(str(error)) from error
    if missing:
        raise DataError(f"no such file or folder, and no file matches: {', '.join(missing)}")


def find_input_in(folder: Path, inputs: Iterable[str]) -> str | None:
    """Return the first input with pictures in `folder`, or that would take new ones from there.

    None: there is none. Lines of stdin and URLs are not looked at, nor links below a folder.
    """
    wanted = Path(os.path.realpath(folder))
    for item in inputs:
        if os.path.isdir(item):
            top = Path(os.path.realpath(item))
            is_in = wanted.is_relative_to(top) and not _is_hidden(wanted.relative_to(top))
        else:
            matches = [item] if os.path.exists(item) else glob.iglob(item, recursive=True)
            folders = {os.path.dirname(path) for path in matches if not path.endswith(TAR)}
            is_in = any(Path(os.path.realpath(each)) == wanted for each in folders)
        if is_in:
            return item
    return None


def _is_hidden(path: Path) -> bool:
    """Tell whether a folder of the path is one that `walk_files` leaves out."""
    return any(map(is_hidden_name, path.parts))


def expand_inputs(inputs: Iterable[str], stdin: Iterable[str | None]) -> Iterator[str | None]:
    """Yield the path of every picture that the inputs name, input by input.

    None is yielded where stdin has no line right now (see lines.py).

    | input                         | pictures                                             |
    |-------------------------------|------------------------------------------------------|
    | `-`                           | the lines of stdin                                   |
    | `https://x/a.jpg`             | this URL                                             |
    | `s3://x/folder/`, `s3://x/*`  | objects whose names end like a picture's             |
    | a folder                      | files whose names end like a picture's, and tars;    |
    |                               | also those that cannot be decoded, as .cr2           |
    | a file                        | the file, whatever its ending                        |
    | a tar                         | its pictures, as `x.tar/a.jpg`, without hidden ones  |
    | a glob                        | each file that it matches; no folders                |

    Folders and globs come in sorted order.

    Raises:
        DataError: the objects below a URL cannot be listed.
        OSError: a folder or a tar cannot be read.
    """
    for item in inputs:
        if item == STDIN:
            names = (None if line is None else line.rstrip("\r\n") for line in stdin)
            yield from (name for name in names if name != "")
        elif is_url(item):
            yield from expand_url(item)
        elif os.path.isdir(item):
            yield from chain.from_iterable(map(_expand_folder_entry, walk_files(Path(item))))
        elif os.path.exists(item) or files.read_stamp(item):
            yield from _expand_file(item)
        else:
            matches = sorted(glob.glob(item, recursive=True))
            yield from chain.from_iterable(
                _expand_file(path) for path in matches if not os.path.isdir(path)
            )


def _expand_folder_entry(path: Path) -> Iterator[str]:
    """Yield the path of a file that is named like a picture, or those of the pictures in a tar.

    A link to a folder that is not there is yielded too: its pictures cannot be read.
    """
    if path.suffix == TAR or is_image_name(path) or is_lost_folder(path):
        yield from _expand_file(str(path))


def _expand_file(path: str) -> Iterator[str]:
    """Yield the path of a file, or those of the pictures in a tar, but for hidden ones."""
    if not (path.endswith(TAR) and os.path.isfile(path)):
        yield to_slashes(path)
        return
    for name, *_ in list_members(path):
        if is_image_name(Path(name)) and not os.path.basename(name).startswith("."):
            yield f"{to_slashes(path)}/{name}"


def expand_url(url: str) -> Iterator[str]:
    """Yield the URL; if it ends in `/` or has a `*`, yield the URLs of the pictures there.

    Raises:
        DataError: they cannot be listed.
    """
    if url.endswith("/") or "*" in url:
        yield from (name for name in files.list_urls(url) if is_image_name(Path(name)))
    else:
        yield url
