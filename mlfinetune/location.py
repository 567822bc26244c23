"""Names of tables and pictures: paths of this machine, or URLs, as `s3://bucket/a.jpg`."""

import os
import re
from pathlib import Path

Location = Path | str
"""A path, or a URL, which no Path can hold: it would take `//` for `/`."""

_URL = re.compile(r"[a-z][a-z0-9+.-]*://[^/]", re.IGNORECASE)


def is_url(name: object) -> bool:
    """Does it name something behind a protocol?"""
    return isinstance(name, str) and _URL.match(name) is not None


def parse_location(text: str) -> Location:
    """What a command line or a config names.

    Raises:
        ValueError: a URL with a password, which would stand in logs and checkpoints.
    """
    if is_url(text) and "@" in text.partition("://")[2].partition("/")[0]:
        raise ValueError(
            "no user or password in a URL: it would be kept in the run's files; fsspec reads its "
            "own settings, and those of AWS, Google and ~/.netrc"
        )
    return text if is_url(text) else Path(text)


def join_location(root: Location, name: str) -> str:
    """Where a name below `root` leads; one that stands by itself leads where it says."""
    return name if is_url(name) else os.path.join(root, name)


def parent_url(url: str) -> str:
    """The URL without its last part."""
    return url.rpartition("/")[0]
