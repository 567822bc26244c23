"""Pictures that a run was trained or validated on, found again by path and by content.

config, run directory -> read_labelled -> Labelled
other pictures        -> Labelled.find -> which of them are among the run's
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mlfinetune.config import Config
from mlfinetune.data.known_sides import Numbers, number_paths
from mlfinetune.data.load import build_hash_scan, build_source_options, build_split_options
from mlfinetune.data.manifest import Manifest
from mlfinetune.data.read import read_splits
from mlfinetune.data.targets import LabelSpace
from mlfinetune.errors import DataError
from mlfinetune.runs.moved import find_data
from mlfinetune.runs.trained_on import read_trained_on
from mlfinetune.runtime.log import RunLog


@dataclass(frozen=True)
class Labelled:
    """Pictures of a run.

    Attributes:
        sides: examples of train and val; none where the tables are gone.
        positives: (L,) number of them that have each label.
        contents, numbers: sorted numbers of the files' bytes, and of the paths; also of pictures
        contents, numbers: sorted numbers of the files' bytes, and of the paths; also of pictures
            whose place is not known.
        is_first: (K,) of the examples, side by side: whether none before has the same bytes.
    """

    sides: tuple[Manifest, ...]
    positives: NDArray[np.int64]
    contents: Numbers
    numbers: Numbers
    is_first: NDArray[np.bool_]

    @property
    def paths(self) -> tuple[str, ...]:
        """Paths of the K examples, side by side."""
        return tuple(side.path(row) for side in self.sides for row in range(len(side)))

    def read_targets(self, rows: NDArray[np.int64]) -> NDArray[np.int8]:
        """Return the (n, L') targets of some examples, numbered as `paths`; L' as in the tables."""
        if not self.sides:
            return np.empty((0, 0), np.int8)
        ends = np.cumsum([len(side) for side in self.sides])
        sides = np.searchsorted(ends, rows, side="right")
        out = np.empty((len(rows), len(self.sides[0].labels)), np.int8)
        for number, side in enumerate(self.sides):
            own = sides == number
            out[own] = side.targets[rows[own] - ends[number] + len(side)]
        return out


def read_labelled(config: Config, run: Path, labels: LabelSpace, log: RunLog) -> Labelled:
    """Read which pictures a run has, from its tables as they are now, and from trained_on.npz.

    Where the tables are gone it says so, and the latter alone counts.

    Args:
        config: of the run.
        run: folder of its checkpoint, which may have been moved.
        labels: L of the checkpoint; the tables may have others by now.
        log: says what is missing.

    Raises:
        CheckpointError: trained_on.npz is damaged.
    """
    trained_on = read_trained_on(run)
    before = [] if trained_on is None else [trained_on.trained, trained_on.held]
    contents = [np.empty(0, np.int64), *(kept.contents for kept in before if kept is not None)]
    numbers = [np.empty(0, np.int64), *(kept.paths for kept in before if kept is not None)]
    positives = np.zeros(len(labels), np.int64)
    sides, bytes_of_sides = _read_sides(config, run, log)
    own = np.concatenate([np.empty(0, np.int64), *bytes_of_sides])
    contents.append(own)
    for side in sides:
        numbers.append(number_paths(side.path(row) for row in range(len(side))))
        for name, count in zip(side.labels.names, side.targets.counts()[0], strict=True):
            if name in labels.column:
                positives[labels.column[name]] += count
    known = np.unique(np.concatenate(contents))
    paths = np.unique(np.concatenate(numbers))
    return Labelled(sides, positives, known[known >= 0], paths, mark_first(own) | (own < 0))


def mark_first(numbers: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return (N,) whether no number before is the same."""
    is_first = np.zeros(len(numbers), bool)
    is_first[np.unique(numbers, return_index=True)[1]] = True
    return is_first


def _read_sides(
    config: Config, run: Path, log: RunLog
) -> tuple[tuple[Manifest, ...], tuple[NDArray[np.int64], ...]]:
    """Return the examples of train and val, and numbers of their bytes; -1: not known.

    Pictures of several tables are joined as training joins them. There are none where the tables
    cannot be read any more.
    """
    data = config.data
    needed = {"train": data.train, "val": data.val, "images": data.images}
    advice = {key: f"data.{key}" for key, place in needed.items() if place is not None}
    try:
        found, notes = find_data(config, config, run, advice)
        # Neither a torn group nor a picture that is lost since keeps the others from being known.
        found = found.update_section("data", allow_torn_groups=True, bad_images="skip")
        splits = read_splits(
            found.data.train,
            found.data.val,
            build_source_options(found),
            build_split_options(found, former=tuple(found.data.rename_labels)),
            build_hash_scan(log),
        )
    except DataError as error:
        log.say(
            f"warning: the run's own pictures are not read: {str(error).partition('; give ')[0]}; "
            f"only what trained_on.npz knows of them is left out, near duplicates of them are not, "
            f"and no label counts as rare"
        )
        return (), ()
    for note in notes:
        log.say(note)
    return (splits.train, splits.val), splits.contents
