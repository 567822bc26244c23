"""Metadata of an ONNX file: everything that a checkpoint holds but its weights, as texts.

    Checkpoint -> list_metadata -> key: text, written into the file and read by any program
    key: text  -> read_metadata -> Checkpoint without weights
    Checkpoint -> write_labels  -> pets.labels.csv: index, label, threshold

    bytes of a file -> seal     -> the same bytes with their SHA-256, which require_seal verifies

A value is a text as it is (`squash`), or JSON: a number, a list, an object. No library is needed.
The digest is that of the whole file with 64 zeros in the digest's place, as a checkpoint's is.
"""

import csv
import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from mlfinetune.errors import CheckpointError
from mlfinetune.runs.checkpoint import FOREIGN, Checkpoint, describe, parse
from mlfinetune.text import neutralize

METADATA_FORMAT = "1"
LABELS_HEADER = ("index", "label", "threshold")
_NO_DIGEST = "0" * 64
_DIGEST = re.compile(rb"file_sha256\x12\x40([0-9a-f]{64})")
"""The entry of the digest as protobuf writes it: key, number of the field, length, value."""
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
    values["decision"] = {key: decision[key] for key in ("how", "review", "implies")}
    calibration = {key: decision[key] for key in ("slope", "intercept")}
    values["calibration"] = {"how": decision["calibration"], **calibration}
    texts = {k: v if k in _TEXTS else json.dumps(v) for k, v in values.items()}
    texts |= {"precision": precision, "checkpoint_sha256": digest, "exported_by": exporter}
    return {_MARK: METADATA_FORMAT, **texts, **_FIXED, "file_sha256": _NO_DIGEST}


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


def seal(content: bytes) -> bytes:
    """Return the bytes of a file with their digest in its place, where 64 zeros are."""
    found = _compute_digest(content)
    assert found is not None, "its metadata is that of list_metadata"
    digest, (start, end) = found
    return b"".join((content[:start], digest, content[end:]))


def require_seal(content: bytes, path: Path) -> None:
    """Raise a CheckpointError where a file is not, to the last bit, the one that was exported."""
    found = _compute_digest(content)
    if found is None or content[slice(*found[1])] != found[0]:
        raise CheckpointError(
            f"{path} is not the file that was verified: its SHA-256 is not the one written in it; "
            f"it is damaged, or another program changed it; export it again"
        )


def _compute_digest(content: bytes) -> tuple[bytes, tuple[int, int]] | None:
    """Return the SHA-256 of `content` with zeros in the digest's place, and that place."""
    match = _DIGEST.search(content)
    if match is None:
        return None
    start, end = match.span(1)
    view = memoryview(content)
    digest = hashlib.sha256(view[:start])
    digest.update(_NO_DIGEST.encode())
    digest.update(view[end:])
    return digest.hexdigest().encode(), (start, end)


def write_labels(checkpoint: Checkpoint, file: TextIO) -> None:
    """Write the labels and their thresholds as CSV, in the order of the outputs."""
    writer = csv.writer(file)
    writer.writerow(LABELS_HEADER)
    thresholds = checkpoint.decision.thresholds
    for index, (label, threshold) in enumerate(
        zip(checkpoint.labels.names, thresholds, strict=True)
    ):
        writer.writerow((index, neutralize(label), threshold))
