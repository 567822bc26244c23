"""Pictures that a run was trained on, and those that it held out: trained_on.npz.

PictureSets of a run and of those before it -> write_trained_on -> trained_on.npz
trained_on.npz, pictures                    -> TrainedOn.find   -> which the model has seen
config of a new run -> read_sides_before  -> sides that its split keeps
                    -> read_former_labels -> labels that its weights know already
"""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mlfinetune.config import Config, load_config
from mlfinetune.data.known_sides import KnownSides, Numbers, PictureSet
from mlfinetune.errors import CheckpointError, ConfigError
from mlfinetune.location import Location, join_location, parent_url, parse_location
from mlfinetune.runs import directory
from mlfinetune.runs.damaged import FOREIGN, explaining_damage, load_arrays
from mlfinetune.runs.moved import find_again
from mlfinetune.runs.results import read_scores
from mlfinetune.runtime.log import RunLog
from mlfinetune.storage.atomic import writing_binary
from mlfinetune.text import display_path

_MAX_HEADER = 100_000_000
"""Bytes: the limit of safetensors itself."""


@dataclass(frozen=True)
class TrainedOn:
    """Pictures of a run, and of the runs that its weights come from.

    Attributes:
        trained: the model has learned from them.
        held: held out of training, by all of these runs; None: an older version, which did not say.
        val: validation pictures of the run itself, also those that a run before has learned from;
            None: an older version, which did not tell them from those of other runs.
    """

    trained: PictureSet
    held: PictureSet | None = None
    val: PictureSet | None = None

    def find_seen(
        self, contents: Numbers, paths: Sequence[str], log: RunLog | None = None
    ) -> NDArray[np.bool_]:
        """Return (N,) whether the model has learned from each picture.

        Args:
            contents, paths: as PictureSet.find takes them.
            log: says how many files have other bytes now; they count.
        """
        held = PictureSet.none() if self.held is None else self.held
        known = KnownSides("training", self.trained, held, self.trained)
        if log is not None:
            for note in known.warn_of_edited(known.find(contents, paths), contents, "picture"):
                log.say(note)
        return known.find_seen(contents, paths)


def write_trained_on(
    run: Path, trained: PictureSet, held: PictureSet, val: PictureSet, *before: TrainedOn
) -> None:
    """Write trained_on.npz.

    Args:
        run: the run directory.
        trained: pictures of train.
        held: pictures of val, without those that one before has learned from.
        val: all pictures of val.
        before: what the run was trained on before it was resumed, and the run that it began with.

    Raises:
        CheckpointError: it cannot be written (a full disk, no permission).
    """
    for other in before:
        trained |= other.trained
        held = held if other.held is None else held | other.held
    held -= trained
    with writing_binary(run / directory.TRAINED_ON) as file:
        np.savez(
            file,
            allow_pickle=False,
            contents=trained.contents,
            paths=trained.paths,
            held_contents=held.contents,
            held_paths=held.paths,
            val_contents=val.contents,
            val_paths=val.paths,
        )


def read_trained_on(run: Path) -> TrainedOn | None:
    """Read trained_on.npz; None: a run of an older version, or a checkpoint that lies alone.

    Raises:
        CheckpointError: the file is damaged.
    """
    path = run / directory.TRAINED_ON
    if not path.is_file():
        return None
    loss = "remove it, and nothing is said of training pictures"
    arrays = load_arrays(path, loss)
    with explaining_damage(path, loss):
        if any(array.dtype != np.int64 or array.ndim != 1 for array in arrays.values()):
            raise ValueError("arrays of other types")
        trained = PictureSet(arrays["contents"], arrays["paths"])
        if "held_paths" not in arrays:
            return TrainedOn(trained)
        held = PictureSet(arrays["held_contents"], arrays["held_paths"])
        if "val_paths" not in arrays:
            return TrainedOn(trained, held)
        return TrainedOn(trained, held, PictureSet(arrays["val_contents"], arrays["val_paths"]))


def find_parent_folder(weights: str | None) -> Path | None:
    """Return the folder of a checkpoint that `model.weights` names; None: it names another thing.

    A path of the config is absolute; a name of published weights is not.
    """
    if weights is None or not os.path.isabs(weights):
        return None
    path = Path(weights)
    if path.is_dir():
        return path
    return path.parent if path.suffix == ".safetensors" and path.is_file() else None


def read_former_labels(config: Config) -> tuple[str, ...]:
    """Read the labels of the checkpoint that `model.weights` names, where some are renamed.

    Of a checkpoint that is gone any label that the config renames may have been one.
    """
    weights = config.model.weights
    if weights is None or not os.path.isabs(weights) or not config.data.rename_labels:
        return ()
    if not os.path.exists(weights):
        return tuple(config.data.rename_labels)
    path = Path(weights) / directory.BEST if os.path.isdir(weights) else Path(weights)
    try:
        with path.open("rb") as file:
            header = file.read(min(int.from_bytes(file.read(8), "little"), _MAX_HEADER))
        labels = json.loads(json.loads(header)["__metadata__"]["mlfinetune"])["labels"]
        return tuple(map(str, labels))
    except (OSError, *FOREIGN):
        return ()


def read_parent(config: Config) -> TrainedOn | None:
    """Read the pictures of the run that `model.weights` comes from; None: they are not known.

    Raises:
        CheckpointError: the file is damaged.
    """
    folder = find_parent_folder(config.model.weights)
    return None if folder is None else _read_with_held(folder, config)


def _read_with_held(run: Path, config: Config) -> TrainedOn | None:
    """Read the pictures of a run; of an older version, those held out are those that it scored.

    Args:
        run: the run directory.
        config: of the new run, whose tables tell where pictures are now.
    """
    found = read_trained_on(run)
    if found is None or found.held is not None:
        return found
    try:
        names = read_scores(run).names
        root = json.loads((run / directory.METRICS).read_bytes())["images_root"]
        roots = _list_roots(parse_location(root), run, config)
        paths = [join_location(root, name) for root in roots for name in names]
    except (OSError, CheckpointError, ConfigError, *FOREIGN):
        paths = []
    return TrainedOn(found.trained, PictureSet.of(np.empty(0, np.int64), paths) - found.trained)


def _list_roots(root: Location, run: Path, config: Config) -> list[Location]:
    """Return the folders from which a run's names of pictures may start now.

    These are the recorded one, and where it is as seen from a run directory that was moved. Where
    the recorded one is gone, also those of the tables as they are now.
    """
    roots = [root]
    if not isinstance(root, Path):
        return roots
    recorded = load_config(run / directory.CONFIG).output
    again = None if recorded is None else find_again(root, recorded, run)
    if again is not None:
        roots.append(again)
    if not root.exists():
        train, images = config.data.train, config.data.images
        tables = train if isinstance(train, tuple) else (train,)
        now = [images] if images is not None else [_find_folder(table) for table in tables]
        roots += [folder for folder in now if folder not in roots]
    return roots


def _find_folder(table: Location) -> Location:
    """Return the folder from which the names in a table start."""
    if isinstance(table, str):
        return parent_url(table)
    return table if table.is_dir() else table.parent


def read_known_sides(run: Path) -> KnownSides | None:
    """Read the sides that the pictures of a run had, which it has when it is read again.

    None: a run of an older version, whose sides follow from its table and seed alone.

    Raises:
        CheckpointError: the file is damaged.
    """
    found = read_trained_on(run)
    if found is None or found.held is None:
        return None
    own = found.held if found.val is None else found.val
    trained = found.trained if found.val is None else found.trained - found.val
    return KnownSides(display_path(run), trained, own, found.trained, complete=True)


def read_sides_before(config: Config) -> KnownSides | None:
    """Read the sides that pictures had before a new run; None: they are not known.

    These are the sides in the run that its weights come from, and in those before that one. Then
    those in the newest run of its own name, which asked for the same split: rows that were added
    since do not move the others.

    Raises:
        CheckpointError: a file is damaged.
    """
    weights, parent = config.model.weights, read_parent(config)
    former = _read_former_sides(config)
    if weights is None or parent is None or parent.held is None:
        return former
    origin = display_path(Path(weights))
    known = KnownSides(origin, parent.trained, parent.held, parent.trained)
    return known if former is None else known.join(former)


def _read_former_sides(config: Config) -> KnownSides | None:
    """Read the sides in the newest run directory of the config's name; None: another split."""
    run = None if config.output is None else directory.find_run(config.output)
    if run is None or not (run / directory.TRAINED_ON).is_file():
        return None
    try:
        before = load_config(run / directory.CONFIG)
    except ConfigError:
        return None
    asked = ("val", "val_fraction", "group_by", "split_column")
    same = all(getattr(before.data, key) == getattr(config.data, key) for key in asked)
    found = _read_with_held(run, config)
    if not same or before.train.seed != config.train.seed or found is None or found.held is None:
        return None
    return KnownSides(display_path(run), found.trained, found.held, seen=PictureSet.none())


def describe_seen(seen: int, images: int) -> str:
    """Return a sentence on scored pictures that the model was trained on; empty: there are none."""
    if not seen:
        return ""
    if seen < images:
        return (
            f"the model was trained on {seen:,} of these {images:,} pictures: it has seen their "
            f"answers, so the numbers are too good"
        )
    pictures = "this picture" if images == 1 else f"all {images:,} of these pictures"
    return (
        f"the model was trained on {pictures}: it has seen the answers, so the numbers say nothing "
        f"about new pictures"
    )
