"""Config -> Splits: build the options, read the tables, scan the pictures. Needs no torch."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlfinetune.config import Config
from mlfinetune.data.images.decode import ImageInfo
from mlfinetune.data.images.scan import ScanResult, find_digests, scan_images
from mlfinetune.data.known_sides import KnownSides
from mlfinetune.data.manifest import Manifest, Splits
from mlfinetune.data.read import SplitOptions, read_splits
from mlfinetune.data.rows import PictureScan, Scan
from mlfinetune.data.table import SourceOptions
from mlfinetune.location import is_url
from mlfinetune.runtime.log import RunLog
from mlfinetune.storage.files import open_binary

_DIGITS = 15
"""Hexadecimal digits of a SHA-256 that are kept of it: 60 bits."""
_READERS = 8
"""Threads that read files: they wait for the disk."""
_SLICE = 10_000
"""Files that wait for these threads at a time: each takes 2 KB of memory."""


def build_source_options(config: Config) -> SourceOptions:
    """Return how to read tables and folders, from the config's `data` section."""
    data = config.data
    return SourceOptions(
        format=data.format,
        images=data.images,
        image_column=data.image_column,
        label_column=_list_names(data.label_column),
        label_columns=None if data.label_columns is None else tuple(data.label_columns),
        label_delimiter=data.label_delimiter,
        split_column=data.split_column,
        value_column=data.value_column,
        group_by=data.group_by,
        folder_labels=data.folder_labels,
        difficult=data.difficult,
        empty_labels=data.empty_labels,
        unknown=data.unknown,
        rename_labels=tuple(data.rename_labels.items()),
        ignore_labels=tuple(data.ignore_labels),
        implies=data.implies,
        find_by_name=data.find_by_name,
        allow_outside_root=data.allow_outside_root,
        allow_torn_groups=data.allow_torn_groups,
        partial=isinstance(data.train, tuple) or isinstance(data.val, tuple),
    )


def _list_names(value: str | list[str] | None) -> tuple[str, ...]:
    """Return one name, several, or none as a tuple."""
    return (value,) if isinstance(value, str) else tuple(value or ())


def build_split_options(
    config: Config, hold_out: bool = True, former: Sequence[str] = ()
) -> SplitOptions:
    """Return how the run takes its train and val examples from the tables.

    Args:
        hold_out, former: as in `SplitOptions`.
    """
    data = config.data
    return SplitOptions(
        val_fraction=data.val_fraction,
        labels=data.labels,
        seed=config.train.seed,
        min_positives=data.min_positives,
        skip_bad=data.bad_images == "skip",
        hold_out=hold_out,
        former=former,
    )


def build_scan(config: Config, log: RunLog, stamps: dict[str, int] | None = None) -> Scan:
    """Return the function that decodes every picture of a table, with a progress bar.

    Args:
        stamps: gets path -> `ImageInfo.stamp` of each picture.
    """

    def scan(paths: Sequence[str]) -> PictureScan:
        bad: dict[int, str] = {}
        contents: dict[str, int] = {}
        for index, result in enumerate(scan_pictures(config, paths, log)):
            if isinstance(result, str):
                bad[index] = result
            else:
                contents[paths[index]] = hash_content(result)
                if stamps is not None:
                    stamps[paths[index]] = result.stamp
        return PictureScan(bad, contents)

    return scan


def build_hash_scan(log: RunLog) -> Scan:
    """Return a scan that decodes nothing: it finds what files hold, so that copies are joined."""

    def scan(paths: Sequence[str]) -> PictureScan:
        numbers = _hash_paths(paths, log)
        read = zip(paths, numbers.tolist(), strict=True)
        return PictureScan({}, {path: number for path, number in read if number >= 0})

    return scan


def scan_pictures(config: Config, paths: Sequence[str], log: RunLog) -> Iterator[ScanResult]:
    """Yield the result of `scan_images` for each path, and advance a progress bar."""
    with log.bar("scan", len(paths)) as bar:
        for result in scan_images(paths, config.data.max_pixels):
            bar.update(1)
            yield result


def hash_content(picture: ImageInfo) -> int:
    """Return 60 bits of the file's SHA-256: the same number means the same bytes.

    With a million different files, the chance that two of them share a number is 4e-7.
    """
    return _shorten(picture.digest)


def hash_files(manifest: Manifest, rows: range, log: RunLog) -> NDArray[np.int64]:
    """Return `hash_content` of the files of these rows; -1: behind a URL, or unreadable.

    None is decoded, and none that was scanned is read again.
    """
    return _hash_paths([manifest.path(row) for row in rows], log)


def _hash_paths(paths: Sequence[str], log: RunLog) -> NDArray[np.int64]:
    numbers = np.full(len(paths), -1, np.int64)
    with log.bar("compare with training", len(paths)) as bar, ThreadPoolExecutor(_READERS) as pool:
        for start in range(0, len(paths), _SLICE):
            some = paths[start : start + _SLICE]
            known = find_digests(some)
            for index, digest in known.items():
                numbers[start + index] = _shorten(digest)
            bar.update(len(known))
            unknown = [index for index in range(len(some)) if index not in known]
            hashed = pool.map(_hash_file, [some[index] for index in unknown])
            for index, number in zip(unknown, hashed, strict=True):
                numbers[start + index] = number
                bar.update(1)
    return numbers


def _hash_file(path: str) -> int:
    if is_url(path):  # it would be fetched once more
        return -1
    try:
        with open_binary(path) as file:
            return _shorten(hashlib.file_digest(file, "sha256").hexdigest())
    except (OSError, ValueError):
        return -1


def _shorten(digest: str) -> int:
    return int(digest[:_DIGITS], 16)


def load_splits(
    config: Config,
    log: RunLog | None,
    known: KnownSides | None = None,
    hold_out: bool = True,
    former: Sequence[str] = (),
) -> Splits:
    """Read the examples of train and val.

    Args:
        config: names the data.
        log: shows the progress of the picture scan; None: pictures are not scanned.
        known: sides that pictures had before, which they keep where val is drawn.
        hold_out, former: as in `SplitOptions`.

    Raises:
        DataError: as `read_splits`.
    """
    data = config.data
    stamps: dict[str, int] = {}
    splits = read_splits(
        data.train,
        data.val,
        build_source_options(config),
        build_split_options(config, hold_out, former),
        None if log is None else build_scan(config, log, stamps),
        known,
    )
    if log is None:
        return splits
    train, val = (_add_stamps(side, stamps) for side in (splits.train, splits.val))
    return replace(splits, train=train, val=val)


def _add_stamps(side: Manifest, stamps: Mapping[str, int]) -> Manifest:
    """Return the examples with the stamps that the scan has seen."""
    numbers = (stamps.get(side.path(row), 0) for row in range(len(side)))
    return replace(side, stamps=np.fromiter(numbers, np.int64, len(side)))


def resolve_data_config(config: Config, splits: Splits) -> Config:
    """Return the config with the choices that the data decided.

    Labels that were left out as rare go into `ignore_labels` by name, and `min_positives` becomes
    0. The detected delimiter goes into `label_delimiter`. A run with the returned config reads
    the same examples and decides nothing anew.
    """
    update: dict[str, Any] = {}
    if splits.rare:
        ignored = [*config.data.ignore_labels, *splits.rare]
        update = {"ignore_labels": ignored, "min_positives": 0}
    if splits.delimiter is not None:
        update["label_delimiter"] = splits.delimiter
    return config.update_section("data", **update)
