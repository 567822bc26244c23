"""Data of a run that was moved: looked for where it would lie as seen from the run directory.

    recorded: run, data          run now           looked for
    /a/p/runs/pets, /a/p/t.csv   /b/q/runs/pets    /b/q/t.csv, /b/q/runs/t.csv, /b/q/runs/pets/t.csv

Nothing more is recorded than the absolute paths in config.yaml. Whether a path that was found holds
the same data is for the caller to verify.
"""

import os
import re
from collections.abc import Mapping
from itertools import takewhile
from pathlib import Path, PurePath, PurePosixPath, PureWindowsPath

from mlfinetune.config import Config
from mlfinetune.errors import DataError
from mlfinetune.location import Locations

_DRIVE = re.compile(r"[A-Za-z]:[\\/]|\\\\")


def find_data(
    config: Config, recorded: Config, run: Path, advice: Mapping[str, str]
) -> tuple[Config, tuple[str, ...]]:
    """Return the config with paths of the data that exist, and a note on each that was found anew.

    Args:
        config: the run's config, perhaps with overrides. Only paths that are still the recorded
            ones are looked for.
        recorded: the config as the run recorded it; its `output` is where the run was.
        run: where the run directory is now.
        advice: key of `data` that is needed (train, val, images) -> what the user can give where it
            is lost. Only what is lost is asked for.

    Raises:
        DataError: a path is at neither place; one line.
    """
    found: dict[str, Locations] = {}
    lost, notes = list[tuple[str, Path]](), list[str]()
    for key in advice:
        places = getattr(config.data, key)
        if places != getattr(recorded.data, key):
            continue
        now = []
        for path in places if isinstance(places, tuple) else (places,):
            now.append(path)
            if not isinstance(path, Path) or _exists(path):
                continue
            again = None if recorded.output is None else find_again(path, recorded.output, run)
            if again is None:
                lost.append((key, path))
                continue
            now[-1] = again
            notes.append(f"data.{key}: {path} is gone; {again}, found beside the run, is read")
        found[key] = tuple(now) if isinstance(places, tuple) else now[0]
    if lost:
        gone = ", no ".join(f"{path} (data.{key})" for key, path in lost)
        asked = dict.fromkeys(advice[key] for key, _ in lost)
        raise DataError(
            f"the run's data is not where it was, nor beside the run: no {gone}; give "
            f"{', and '.join(asked)}"
        )
    return config.update_section("data", **found), tuple(notes)


def find_again(path: Path, recorded_run: Path, run: Path) -> Path | None:
    """Return where a recorded path is now, or None; it need not hold the same.

    The path below the folder that it shared with the run is looked for in that folder as it is
    now, then in those between it and the run, last in the run directory itself. Paths that Windows
    has recorded are understood.

    Args:
        path: the recorded, absolute path.
        recorded_run: the run directory when `path` was recorded.
        run: the run directory now.
    """
    parts, run_parts = (_parse(str(recorded)).parts for recorded in (path, recorded_run))
    pairs = zip(parts, run_parts, strict=False)
    shared = len(list(takewhile(lambda pair: pair[0] == pair[1], pairs)))
    below, levels = parts[shared:], len(run_parts) - shared
    run = Path(os.path.abspath(run))
    folders = [run, *run.parents][: levels + 1]
    if not shared or len(folders) <= levels:
        return None
    if not below:  # the folder itself holds the run; every folder between them exists
        return folders[-1]
    candidates = (folder.joinpath(*below) for folder in reversed(folders))
    return next((candidate for candidate in candidates if _exists(candidate)), None)


def _parse(path: str) -> PurePath:
    return PureWindowsPath(path) if _DRIVE.match(path) else PurePosixPath(path)


def _exists(path: Path) -> bool:
    """Tell whether a path exists; one below a file may lie in a tar."""
    return os.path.exists(path) or any(map(os.path.isfile, path.parents))
