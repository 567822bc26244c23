"""Metadata of an ONNX file: everything that a checkpoint holds but its weights, as texts.

    Checkpoint -> list_metadata -> key: text, written into the file and read by any program
    key: text  -> read_metadata -> Checkpoint without weights
    Checkpoint -> write_labels  -> pets.labels.csv: index, label, threshold

A value is a text as it is (`squash`), or JSON: a number, a list, an object. No library is needed.
"""

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from mlfinetune.errors import CheckpointError
from mlfinetune.runs.checkpoint import FOREIGN, Checkpoint, describe, parse
from mlfinetune.text import neutralize

METADATA_FORMAT = "1"
_MARK = "mlfinetune"
"""Key whose value is METADATA_FORMAT; a file without it is foreign."""
_INPUT = ("image_size", "resize", "interpolation", "crop_share", "max_pixels", "mean", "std")
"""Fields of the transform that say how a picture becomes the input; the others are training's."""
_KEYS = (
    *_INPUT, "checkpoint_format", "labels", "thresholds", "decision", "calibration", "backbone",
    "levels", "views", "config", "data_digest", "epoch", "versions",
)  # fmt: skip
"""Keys that make a checkpoint."""
_TEXTS = ("resize", "interpolation", "backbone", "views", "data_digest")
"""Keys whose values are texts as they are."""
_FIXED = {
    "color": "RGB",
    "exif_orientation": "applied",
    "transparency": "on white",
    "antialias": "true",
    "outputs": "probabilities are calibrated; logits are the model's own, not calibrated",
}
"""Facts of every file: how a picture is decoded and resized, and what comes out."""


def list_metadata(
    checkpoint: Checkpoint, digest: str, precision: str, exporter: str
) -> dict[str, str]:
    """Return key -> text of everything but the weights.

    Args:
        checkpoint: the one that was exported.
        digest: its SHA-256.
        precision: float32 or int8.
        exporter: names and versions of the packages that write the file.
    """
    about = describe(checkpoint)
    transform, decision = about.pop("transform"), about.pop("decision")
    values: dict[str, Any] = {key: transform[key] for key in _INPUT}
    values |= {"checkpoint_format": about.pop("format"), **about}
    values["thresholds"] = decision["thresholds"]
    values["decision"] = {key: decision[key] for key in ("how", "review")}
    calibration = {key: decision[key] for key in ("slope", "intercept")}
    values["calibration"] = {"how": decision["calibration"], **calibration}
    texts = {k: v if k in _TEXTS else json.dumps(v) for k, v in values.items()}
    texts |= {"precision": precision, "checkpoint_sha256": digest, "exported_by": exporter}
    return {_MARK: METADATA_FORMAT, **texts, **_FIXED}


def read_metadata(metadata: Mapping[str, str], path: Path) -> Checkpoint:
    """Check the metadata of an ONNX file, and return its checkpoint, without weights.

    Raises:
        CheckpointError: `mlfinetune export` has not written the file, or another version has.
    """
    found = metadata.get(_MARK)
    if found is None:
        raise CheckpointError(
            f"{path} is an ONNX file that `mlfinetune export` did not write: it does not say what "
            f"its labels are and how a picture becomes its input"
        )
    if found != METADATA_FORMAT:
        raise CheckpointError(
            f"{path} has metadata of format {found[:20]}, this version reads {METADATA_FORMAT}; it "
            f"was written by {metadata.get('exported_by', 'another')[:60]}"
        )
    try:
        texts = {key: metadata[key] for key in _KEYS}
        values: dict[str, Any] = {k: v if k in _TEXTS else json.loads(v) for k, v in texts.items()}
        calibration = values.pop("calibration")
        decision = {"thresholds": values.pop("thresholds"), **values.pop("decision")}
        decision |= {key: calibration[key] for key in ("slope", "intercept")}
        decision["calibration"] = calibration["how"]
        transform = {key: values.pop(key) for key in _INPUT}
        about = {**values, "transform": transform, "decision": decision}
        return parse({**about, "format": about.pop("checkpoint_format")}, {}, path)
    except FOREIGN as error:
        raise CheckpointError(
            f"{path}: its metadata is not as `mlfinetune export` writes it: {repr(error)[:200]}"
        ) from error


def write_labels(checkpoint: Checkpoint, file: TextIO) -> None:
    """Write the labels and their thresholds as CSV, in the order of the outputs."""
    writer = csv.writer(file)
    writer.writerow(("index", "label", "threshold"))
    thresholds = checkpoint.decision.thresholds
    for index, (label, threshold) in enumerate(
        zip(checkpoint.labels.names, thresholds, strict=True)
    ):
        writer.writerow((index, neutralize(label), threshold))
