"""A tagger for pictures: the door of `predict`, and of Python.

pictures -> PictureReader.stream -> predict_batches -> Predictions -> TaggedImages
command line: data.batches.loader -> predict_batches -> Predictions -> rows
"""

import copy
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import replace
from numbers import Integral, Real
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from mlfinetune.data.batches.batch import Batch
from mlfinetune.data.images.overlay import Explanation, draw_overlay, stretch_map
from mlfinetune.data.images.sources import (
    PillowImage,
    find_scale,
    name_picture,
    read_content,
    to_image,
)
from mlfinetune.errors import ConfigError, DataError, ImageError
from mlfinetune.metrics.logits import sigmoid
from mlfinetune.metrics.types import CalibrationHow, EvalViews, Prediction
from mlfinetune.predicting.backend import Backend
from mlfinetune.predicting.pictures import Picture, PictureReader, Pictures, list_pictures
from mlfinetune.predicting.records import TaggedImage, require_read, tag_image
from mlfinetune.runs.overlays import SIDE
from mlfinetune.runs.predictions import LabelSelector
from mlfinetune.runs.rule import describe_other_views
from mlfinetune.runtime.device import oom_as_device_error
from mlfinetune.text import suggest

BATCH_SIZE = 16
"""Pictures that the network takes at once, where nobody says otherwise."""


class Tagger:
    """Multi-label tagger, ready to predict; several threads may use it at once.

    `mlfinetune.load` makes one.

    Attributes:
        backend: computes; it holds what its file says.
    """

    def __init__(self, backend: Backend) -> None:
        """Predict with a backend of `open_backend`."""
        self.backend = backend
        self._reader = PictureReader(backend.spec, backend.device)

    def __repr__(self) -> str:
        return f"<Tagger {self.source}: {self.backbone}, {len(self.labels)} labels, {self.device}>"

    # ---- what it is -------------------------------------------------------------------------

    @property
    def labels(self) -> list[str]:
        """Names of the L labels, in the order of columns."""
        return list(self.backend.labels.names)

    @property
    def thresholds(self) -> dict[str, float]:
        """Label -> probability from which it is given, in the labels' order; 1: never."""
        return dict(zip(self.labels, self.backend.decision.thresholds, strict=True))

    @property
    def image_size(self) -> int:
        """Side in pixels of the square that the network sees."""
        return self.backend.spec.image_size

    @property
    def backbone(self) -> str:
        """Name of the network, such as `resnet50`."""
        return self.backend.backbone

    @property
    def calibration(self) -> CalibrationHow:
        """Kind of calibration of the probabilities; `none`: they are the network's own."""
        return self.backend.decision.calibration

    @property
    def views(self) -> EvalViews:
        """Versions of a picture that are scored: `plain`, or `mirror` for its mirror image too."""
        return self.backend.views

    @property
    def device(self) -> torch.device:
        """Device that the network computes on."""
        return self.backend.device

    @property
    def source(self) -> str:
        """File or URL that the tagger was loaded from."""
        return self.backend.name

    # ---- what it does -----------------------------------------------------------------------

    def predict(
        self,
        images: Pictures,
        batch_size: int = BATCH_SIZE,
        on_error: Literal["return", "raise"] = "return",
        threshold: float | None = None,
        top: int | None = None,
        views: EvalViews | None = None,
    ) -> Iterator[TaggedImage]:
        """Tag pictures, one result for each, in order, with the numbers of `mlfinetune predict`.

        Args:
            images: paths, URLs, bytes, open files, Pillow images, uint8 arrays (H, W, 3) in RGB,
                (H, W) or (H, W, 4), or tensors (3, H, W); also endless. One alone is taken for a
                list of one; the path of a folder, a tar or a glob for the pictures there.
            batch_size: pictures that the network takes at once. One further batch is read ahead;
                with 1, nothing is.
            on_error: a picture that cannot be read gives a result with an `error`, or is raised.
            threshold: replaces the thresholds of the checkpoint.
            top: give the K most probable labels instead of those over their thresholds.
            views: `plain` or `mirror`; None: those that the thresholds were fitted under.

        Returns:
            An iterator: pictures are read as results are asked for.

        Raises:
            ConfigError: an argument that cannot be.
            ImageError: a picture that cannot be read, with `on_error="raise"`.
            DataError: `images` are no pictures.
            DeviceError: the device has too little memory.
        """
        _require("on_error", on_error, on_error in ("return", "raise"), "'return' or 'raise'")
        fits = threshold is None or (isinstance(threshold, Real) and 0 <= threshold <= 1)
        _require("threshold", threshold, fits, "a number from 0 to 1")
        is_count = top is None or (isinstance(top, Integral) and top >= 1)
        _require("top", top, is_count, "a whole number, 1 or more")
        tagger, decision = self._with_views(views), self.backend.decision
        if threshold is not None:
            decision = decision.with_threshold(threshold)
        selector = LabelSelector(self.backend.labels, decision, top)
        applied = decision if top is None else replace(decision, how="fixed")
        fitted_views = self.backend.fitted_views
        if warning := describe_other_views(tagger.views, fitted_views, applied):
            warnings.warn(warning.removeprefix("warning: "), stacklevel=2)
        batches = tagger._predict(images, batch_size)
        raises = on_error == "raise"
        return (
            tag_image(require_read(row) if raises else row, selector)
            for predictions in batches
            for row in predictions
        )

    def probabilities(
        self, images: Pictures, batch_size: int = BATCH_SIZE, views: EvalViews | None = None
    ) -> NDArray[np.float32]:
        """Return (N, L) float32 probabilities, calibrated where the checkpoint is.

        Args:
            images, batch_size, views: as `predict` takes them.

        Raises:
            ImageError: a picture that cannot be read; others as `predict`.
        """
        batches = self._with_views(views)._predict(images, batch_size)
        rows = [require_read(row).probabilities for batch in batches for row in batch]
        shape = len(rows), len(self.backend.labels)
        return np.array(rows, np.float32).reshape(shape)

    def embed(
        self, images: Pictures, batch_size: int = BATCH_SIZE, views: EvalViews | None = None
    ) -> NDArray[np.float32]:
        """Return (N, F) float32 features: what the network's last layer gets.

        Args:
            images, batch_size, views: as `predict` takes them.

        Raises:
            ImageError: a picture that cannot be read; others as `predict`.
            MlfinetuneError: the file holds no network that gives features, as an .onnx.
        """
        backend, rows = self._with_views(views).backend, []
        for names, batch in self._stream(images, batch_size):
            if batch.failures:
                failure = batch.failures[0]
                raise ImageError(names[failure.index], failure.reason)
            with oom_as_device_error():
                rows.append(backend.compute_features(batch.images).numpy())
        if rows:
            return np.concatenate(rows)
        side = self.image_size  # of no pictures the width is wanted too
        none = torch.zeros(1, 3, side, side, dtype=torch.uint8)
        return backend.compute_features(none).numpy()[:0]

    def explain(self, image: Picture, label: str) -> NDArray[np.float32]:
        """Return where a picture speaks for a label.

        Args:
            image: one picture, as `predict` takes it.
            label: one of `labels`.

        Returns:
            (H, W) float32 over the upright picture: at each place, the part that it has in the
            label's logit. What is above 0 speaks for the label, what is below 0 against it. The
            network's mean over its square, and a constant of the label, make the logit. Outside of
            the square, where `resize` is `crop`, it is 0.

        Raises:
            ImageError: the picture cannot be read.
            DataError: there is no such label; the message names the nearest.
            MlfinetuneError: the network has no heat map.
        """
        found, (height, width) = self._explain(image, label)
        return stretch_map(found.values[0], found.box, height, width)

    def draw_explanation(self, image: Picture, label: str, side: int = SIDE) -> PillowImage:
        """Return the picture with the heat map of a label over it, as `predict --explain` draws it.

        Args:
            image, label: as `explain` takes them.
            side: greatest length of the longer side in pixels.

        Raises:
            MlfinetuneError: as `explain`.
        """
        is_side = isinstance(side, Integral) and side >= 1
        _require("side", side, is_side, "a whole number, 1 or more")
        found, _ = self._explain(image, label)
        return to_image(draw_overlay(found.pixels, found.values[0], found.box, side))

    def predict_batches(
        self, batches: Iterable[tuple[list[str], Batch]]
    ) -> Iterator[list[Prediction]]:
        """Yield the predictions of each batch, one for each name, in order.

        Args:
            batches: the names of pictures, and the pictures; indices are places among the names.

        Raises:
            DeviceError: the device has too little memory.
        """
        for names, batch in batches:
            yield self._predict_batch(names, batch)

    # ---- parts ------------------------------------------------------------------------------

    def _with_views(self, views: EvalViews | None) -> "Tagger":
        """Return a tagger that scores these views; both share the network."""
        if views is None or views == self.views:
            return self
        _require("views", views, views in get_args(EvalViews), "'plain' or 'mirror'")
        other = copy.copy(self)
        other.backend = self.backend.with_views(views)
        return other

    def _stream(self, images: Pictures, batch_size: int) -> Iterator[tuple[list[str], Batch]]:
        is_number = isinstance(batch_size, Integral) and batch_size >= 1
        _require("batch_size", batch_size, is_number, "1 or more")
        return self._reader.stream(list_pictures(images), batch_size)

    def _predict(self, images: Pictures, batch_size: int) -> Iterator[list[Prediction]]:
        return self.predict_batches(self._stream(images, batch_size))

    def _predict_batch(self, names: list[str], batch: Batch) -> list[Prediction]:
        """Return one Prediction for each name; a picture that failed has its reason."""
        rows: dict[int, Prediction] = {
            failure.index: Prediction(names[failure.index], None, failure.reason)
            for failure in batch.failures
        }
        if len(batch.indices):
            with oom_as_device_error():
                logits = self.backend.compute_logits(batch.images).numpy()
            probabilities = sigmoid(self.backend.decision.calibrate(logits))
            for index, row in zip(batch.indices.tolist(), probabilities, strict=True):
                rows[index] = Prediction(names[index], row)
        return [rows[index] for index in range(len(names))]

    def _explain(self, image: Picture, label: str) -> tuple[Explanation, tuple[int, int]]:
        """Return the map of a label, and height and width of the whole upright picture."""
        names = self.backend.labels.names
        if label not in names:
            raise DataError(f"no label {label!r}{suggest(str(label), names)}")
        explainer = self.backend.build_explainer()
        name = name_picture(image, 0)
        picture = read_content(image, name) if hasattr(image, "read") else image
        pixels = self._reader.read_pixels(picture, name)
        found = explainer.explain_pixels(pixels, [names.index(label)])
        scale = find_scale(picture, name, pixels, self.backend.spec.max_pixels)
        return found, (scale * pixels.shape[0], scale * pixels.shape[1])


def _require(name: str, value: Any, fits: bool, wanted: str) -> None:
    if not fits:
        raise ConfigError(f"{name}={value!r}: wanted {wanted}")
