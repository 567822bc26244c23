"""Locations of tables and pictures: paths of this machine, or URLs such as `s3://bucket/a.jpg`.

Also the endings by which files of data are told.
"""

import os
import re
from pathlib import Path

Location = Path | str
"""A path, or a URL as text: Path would make `s3:/bucket` of `s3://bucket`."""

TABLE_ENDINGS = (".csv", ".tsv", ".jsonl")
"""Endings that tables in text alone have; `.gz` may follow."""

FORMATS = {
    **dict.fromkeys((".csv", ".tsv", ".txt"), "csv"),
    ".jsonl": "huggingface",
    ".json": "json",
    ".parquet": "parquet",
    ".tar": "webdataset",
}
"""Ending of a file of data -> its format, as `data.format` names it."""

SHARED_ENDINGS = (".json", ".txt")
"""Endings of `FORMATS` that much else has too, so that the ending alone tells no data."""

_URL = re.compile(r"[a-z][a-z0-9+.-]*://[^/]", re.IGNORECASE)


def is_url(name: object) -> bool:
    """Return whether `name` is text that begins with a protocol, such as `https://`."""
    return isinstance(name, str) and _URL.match(name) is not None


def parse_location(text: str) -> Location:
    """Return the Path or URL that a command line or a config names.

    Raises:
        ValueError: a URL with a user or password; it would end up in logs and checkpoints.
    """
    if is_url(text) and "@" in text.partition("://")[2].partition("/")[0]:
        raise ValueError(
            "no user or password in a URL: it would be kept in the run's files; fsspec reads its "
            "own settings, and those of AWS, Google and ~/.netrc"
        )
    return text if is_url(text) else Path(text)


def find_ending(path: Path | str) -> str:
    """Return the file ending in small letters, without that of gzip: `.csv` of `A.CSV.gz`."""
    path = Path(path)
    return Path(path.stem if path.suffix.lower() == ".gz" else path.name).suffix.lower()


def join_location(root: Location, name: str) -> str:
    """Return `name` below `root`; a URL or an absolute path is returned as it is."""
    return name if is_url(name) else os.path.join(root, name)


def parent_url(url: str) -> str:
    """Return the URL without its last part: `s3://b/x/a.csv` -> `s3://b/x`."""
    return url.rpartition("/")[0]
