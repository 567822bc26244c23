"""Locations of tables and pictures: paths of this machine, or URLs such as `s3://bucket/a.jpg`.

Also the endings by which files of data are told.
"""

import os
import re
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

Location = Path | str
"""A path, or a URL as text: Path would make `s3:/bucket` of `s3://bucket`."""

Locations = Location | tuple[Location, ...]
"""One table or folder, or several that are read as one."""

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

_URL = re.compile(r"[a-z][a-z0-9+.-]+://[^/]", re.IGNORECASE)
"""A protocol has two letters or more: `c://a` is a path of Windows."""
_LOCAL_FILE = re.compile(r"file:(?://(?:localhost)?)?/(?!/)", re.IGNORECASE)

_UNPORTABLE = re.compile(
    r'[<>:"/\\|?*\x00-\x1f]|[. ]$|^(con|prn|aux|nul|(com|lpt)[0-9\xb9\xb2\xb3]) *(\.|$)',
    re.IGNORECASE,
)
"""Windows keeps these characters and these names of devices for itself."""


def is_url(name: object) -> bool:
    """Return whether `name` is text that begins with a protocol, such as `https://`."""
    return isinstance(name, str) and _URL.match(name) is not None


def parse_location(text: str) -> Location:
    """Return the Path or URL that a command line or a config names; `file:///a` is a path.

    Raises:
        ValueError: a URL with a user or password; it would end up in logs and checkpoints.
    """
    text = strip_file_protocol(text)
    if is_url(text) and "@" in text.partition("://")[2].partition("/")[0]:
        raise ValueError(
            "no user or password in a URL: it would be kept in the run's files; fsspec reads its "
            "own settings, and those of AWS and Google"
        )
    return text if is_url(text) else Path(text)


def name_locations(places: Locations) -> str:
    """Return a table or folder as text, or several: `old.csv + new.csv`."""
    return " + ".join(map(str, places)) if isinstance(places, tuple) else str(places)


def strip_file_protocol(text: str) -> str:
    """Return the path of a `file:` URL, as `/a b` of `file:///a%20b`; other text as it is."""
    return url2pathname(urlsplit(text).path) if _LOCAL_FILE.match(text) else text


def to_slashes(path: str) -> str:
    """Return a path with `/` between its parts: of Windows's `a\\b.jpg`, `a/b.jpg`.

    Names of pictures are so in every file that a run writes, whatever the system. Where `/` is the
    separator, `\\` is a letter of a name, and stays.
    """
    return path if os.sep == "/" else path.replace(os.sep, "/")


def is_on_other_drive(root: str, name: str) -> bool:
    """Return whether a name has a drive or a server of Windows, and not the root's.

    It is told without a look at the disk: to look at `\\\\server\\share` would log in there.

    Args:
        root: an absolute path.
        name: a path, absolute or not; `D:a.jpg` is below the current folder of D:.
    """
    drive = os.path.normcase(os.path.splitdrive(name)[0])
    return bool(drive) and drive != os.path.normcase(os.path.splitdrive(root)[0])


def is_portable_name(name: str) -> bool:
    """Return whether each system can have a file of this name: no `a?.jpg`, `con.jpg` or `..`."""
    return bool(name) and _UNPORTABLE.search(name) is None


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
