"""Config -> examples: tables read, pictures scanned, sides chosen. Needs no torch."""

from collections.abc import Iterator, Sequence
from typing import Any

from mlfinetune.config import Config
from mlfinetune.data.images.decode import ImageInfo
from mlfinetune.data.images.scan import Found, scan_images
from mlfinetune.data.manifest import Splits
from mlfinetune.data.read import SplitOptions, read_splits
from mlfinetune.data.table import SourceOptions
from mlfinetune.runtime.log import RunLog


def source_options(config: Config) -> SourceOptions:
    """How to read tables and folders."""
    data = config.data
    return SourceOptions(
        format=data.format,
        images=data.images,
        image_column=data.image_column,
        label_column=data.label_column,
        label_columns=None if data.label_columns is None else tuple(data.label_columns),
        label_delimiter=data.label_delimiter,
        group_by=data.group_by,
        folder_labels=data.folder_labels,
        difficult=data.difficult,
        empty_labels=data.empty_labels,
        unknown=data.unknown,
        rename_labels=tuple(data.rename_labels.items()),
        ignore_labels=tuple(data.ignore_labels),
        allow_outside_root=data.allow_outside_root,
    )


def scan_pictures(config: Config, paths: Sequence[str], log: RunLog) -> Iterator[Found]:
    """What each picture is, with a bar; see `data.scan`."""
    with log.bar("scan", len(paths)) as bar:
        for found in scan_images(paths, config.data.max_pixels):
            bar.update(1)
            yield found


def split_options(config: Config, log: RunLog | None) -> SplitOptions:
    """What the run takes; pictures are scanned where there is a log to say so."""
    data = config.data

    contents: dict[str, int] = {}

    def bad_pictures(paths: Sequence[str]) -> dict[int, str]:
        assert log is not None
        bad = {}
        for at, found in enumerate(scan_pictures(config, paths, log)):
            if isinstance(found, str):
                bad[at] = found
            else:
                contents[paths[at]] = hash_content(found)
        return bad

    return SplitOptions(
        val_fraction=data.val_fraction,
        labels=data.labels,
        seed=config.train.seed,
        min_positives=data.min_positives,
        skip_bad=data.bad_images == "skip",
        scan=None if log is None else bad_pictures,
        contents=contents,
    )


def hash_content(picture: ImageInfo) -> int:
    """60 bits of the digest: the same for files of the same bytes, and for hardly any others."""
    return int(picture.digest[:15], 16)


def load_splits(config: Config, log: RunLog | None) -> Splits:
    """The examples of train and val.

    Args:
        config: names the data.
        log: shows the scan of the pictures; None scans none.

    Raises:
        DataError: as `read_splits`.
    """
    data = config.data
    return read_splits(data.train, data.val, source_options(config), split_options(config, log))


def record_choices(config: Config, found: Splits) -> Config:
    """The config with what the data decided: rare labels by name, what separates labels."""
    update: dict[str, Any] = {}
    if found.rare:
        ignored = [*config.data.ignore_labels, *found.rare]
        update = {"ignore_labels": ignored, "min_positives": 0}
    if found.delimiter is not None:
        update["label_delimiter"] = found.delimiter
    return config.model_copy(update={"data": config.data.model_copy(update=update)})
