"""Files of `predict --explain`: pictures with the heat map of a predicted label over them."""

import hashlib
import os
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

from mlfinetune.data.images.decode import encode_jpeg
from mlfinetune.data.images.overlay import Explain, draw_overlay
from mlfinetune.errors import ImageError
from mlfinetune.location import is_url
from mlfinetune.metrics.types import Prediction
from mlfinetune.runs.predictions import LabelSelector
from mlfinetune.storage.atomic import build_write_error
from mlfinetune.storage.files import prefetched

MOST = 3
"""Greatest number of overlays of one picture: of its most probable labels."""
SIDE = 800
"""Pixels of an overlay's longer side."""

_MAX_BYTES = 80  # of a name's part; file systems take 255 for the whole
_DIGITS = 10


class OverlayWriter:
    """Writes an overlay for each predicted label of a picture, at most MOST a picture."""

    def __init__(self, folder: Path, selector: LabelSelector, explain: Explain) -> None:
        """Make the folder, unless it is there.

        Args:
            folder: other files in it stay.
            selector: names the labels of a prediction.
            explain: computes the maps of one picture.

        Raises:
            CheckpointError: it cannot be made.
        """
        self._folder, self._selector, self._explain = folder, selector, explain
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise build_write_error(folder, error) from error

    def write_before(
        self, batches: Iterable[list[Prediction]], say: Callable[[str], None]
    ) -> Iterator[list[Prediction]]:
        """Yield the batches, each after its overlays: a row that is there has its overlays.

        Args:
            batches: of predictions.
            say: takes a warning for a picture that could not be read again.
        """
        for predictions in batches:
            names = [row.name for row in predictions if row.probabilities is not None]
            with prefetched(names):  # those behind URLs, at the same time
                for prediction in predictions:
                    if reason := self.write(prediction):
                        say(f"warning: no overlay of {prediction.name}: {reason}")
            yield predictions

    def write(self, prediction: Prediction) -> str | None:
        """Write the overlays of one prediction; one without labels, or that failed, has none.

        Returns:
            The reason why the picture, predicted a moment ago, could not be read again.

        Raises:
            CheckpointError: a file cannot be written.
        """
        p = prediction.probabilities
        if p is None:
            return None
        columns = sorted(self._selector(prediction), key=lambda column: -p[column])[:MOST]
        if not columns:
            return None
        try:
            explanation = self._explain(prediction.name, columns)
        except ImageError as error:
            return error.reason
        for column, values in zip(columns, explanation.values, strict=True):
            drawn = draw_overlay(explanation.pixels, values, explanation.box, SIDE)
            name = name_overlay(prediction.name, self._selector.labels.names[column])
            self._write_file(self._folder / name, encode_jpeg(drawn))
        return None

    def _write_file(self, path: Path, content: bytes) -> None:
        """Write a file that has its name when it is whole; nothing waits for the disk."""
        temporary = path.with_name(f".{path.stem[-_DIGITS:]}.{os.getpid()}.tmp")
        try:
            temporary.write_bytes(content)
            temporary.replace(path)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise build_write_error(path, error) from error


def name_overlay(picture: str, label: str) -> str:
    """Return the file name of an overlay: the same picture and label always give the same.

        photos/cat 1.jpg, cat                  cat_1-cat-2f9a3c01be.jpg
        https://host/a.jpg?token=x, cat/tabby  a-cat_tabby-0b7d52e41c.jpg

    The digits belong to the whole path and label, so that pictures of one name in two folders, or
    labels that differ in a sign alone, have their own files.
    """
    text = f"{picture}\0{label}".encode("utf-8", "surrogatepass")
    path = urlsplit(picture).path if is_url(picture) else picture
    stem = re.split(r"[/\\]", path)[-1].rpartition(".")[0] or path
    parts = (_simplify(stem), _simplify(label), hashlib.sha256(text).hexdigest()[:_DIGITS])
    return "-".join(parts) + ".jpg"


def _simplify(text: str) -> str:
    """Return text that each file system takes in a name: letters and digits of any script."""
    text = re.sub(r"[^\w]+", "_", unicodedata.normalize("NFC", text)).strip("_") or "x"
    return text.encode()[:_MAX_BYTES].decode(errors="ignore")
