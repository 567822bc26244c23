"""`mlfinetune export`: checkpoint -> ONNX graph -> verified on real pictures -> one file.

The file gets its name only after its numbers were those of the checkpoint. With --int8 it is then
quantized, and gets its name only if validation mAP stays.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mlfinetune.config import Config, restore_config
from mlfinetune.data.batches.loader import stream_batches
from mlfinetune.data.images.transforms import TransformSpec
from mlfinetune.data.inputs import expand_inputs, require_inputs
from mlfinetune.data.load import build_scan, build_source_options, load_splits
from mlfinetune.data.manifest import Manifest, Splits, digest_manifest
from mlfinetune.data.read import read_validation
from mlfinetune.errors import CheckpointError, DataError
from mlfinetune.location import name_locations
from mlfinetune.models.inference import restore_tagger
from mlfinetune.models.onnx_check import Reference, compute_reference, list_batches, verify
from mlfinetune.models.onnx_graph import (
    Graph,
    build_onnx,
    describe_exporter,
    finish,
    read_onnx,
)
from mlfinetune.models.onnx_session import quantize, require_onnxruntime
from mlfinetune.models.scoring import average_views
from mlfinetune.predicting.int8 import BATCH, Cost, compare, require_small_drop
from mlfinetune.runs import checkpoint, directory
from mlfinetune.runs.checkpoint import OUT_OF_FOLD, Checkpoint
from mlfinetune.runs.moved import find_data
from mlfinetune.runs.onnx_metadata import LABELS_HEADER, list_metadata, seal, write_labels
from mlfinetune.runs.trained_on import read_known_sides
from mlfinetune.runtime.device import prepare_device
from mlfinetune.runtime.log import RunLog
from mlfinetune.storage.atomic import replacing_file, try_writing_file, writing_text
from mlfinetune.text import display_path, pluralize
from mlfinetune.version import __version__

SUFFIX = ".onnx"
LABELS_SUFFIX = ".labels.csv"
CHECKED = 16
"""Pictures that a file is verified on."""
CALIBRATED = 128
"""Training pictures that the scales of int8 are taken from."""


@dataclass(frozen=True)
class ExportRequest:
    """Arguments of `mlfinetune export`.

    Attributes:
        checkpoint: run directory or checkpoint file.
        output: the .onnx file; its labels go beside it.
        images: pictures to verify and to calibrate on; None: those of the run.
        with_logits: logits are an output too.
        int8: quantize to 8-bit integers.
        max_drop: of validation mAP, that int8 may cost.
    """

    checkpoint: Path
    output: Path
    images: Path | None = None
    with_logits: bool = False
    int8: bool = False
    max_drop: float = 0.01


@dataclass(frozen=True)
class ExportResult:
    """Facts of an exported file.

    Attributes:
        difference: largest difference of a probability from the checkpoint's, in float32.
        pictures: number of pictures that it was verified on.
        batches: sizes of the batches in which they were tried.
        size: of the file, in bytes.
        labels: the table of its labels.
        costs: of float32 and int8; None without int8.
    """

    difference: float
    pictures: int
    batches: list[int]
    size: int
    labels: Path
    costs: tuple[Cost, Cost] | None


@dataclass(frozen=True)
class _Source:
    """A checkpoint, and where its run's data is.

    Attributes:
        file: the checkpoint.
        loaded: its content.
        config: of the run; missing pictures are left out.
        recorded: of the run, as it is in the checkpoint.
    """

    file: Path
    loaded: Checkpoint
    config: Config
    recorded: Config


def run(request: ExportRequest, log: RunLog) -> ExportResult:
    """Write the ONNX file and the table of its labels, both or neither.

    Raises:
        MlfinetuneError: a checkpoint, pictures or a folder that cannot be used; a graph that does
            not give the checkpoint's numbers; int8 that costs too much mAP.
    """
    require_onnxruntime()
    source = _open_source(request)
    spec, decision = source.loaded.transform, source.loaded.decision
    prepare_device("cpu")
    images, where = _read_pictures(request, source, log)
    log.say(f"checkpoint {display_path(source.file)}, to be verified on {where}")
    tagger = restore_tagger(
        source.loaded.backbone,
        source.loaded.levels,
        len(source.loaded.labels),
        source.loaded.weights,
        spec,
        images.device,
        source.file,
    )
    reference = compute_reference(average_views(tagger, source.loaded.views), decision, images)
    graph = Graph(tagger, source.loaded.views, decision).eval()
    model = build_onnx(graph, spec.image_size, source.loaded.backbone)
    labels = request.output.with_suffix(LABELS_SUFFIX)
    costs = None
    with replacing_file(request.output) as temporary, writing_text(labels) as table:
        temporary.write_bytes(_finish(model, source, request, "float32"))
        difference = _verify(temporary, reference, request)
        if request.int8:
            costs = _quantize(temporary, images, request, source, log)
        write_labels(source.loaded, table)
        size = temporary.stat().st_size
    batches = list_batches(len(images))
    return ExportResult(difference, len(images), batches, size, labels, costs)


def _open_source(request: ExportRequest) -> _Source:
    """Load the checkpoint, and try to write; raises a CheckpointError."""
    if request.output.suffix.lower() != SUFFIX:
        raise CheckpointError(f"{request.output}: wanted a name that ends in {SUFFIX}")
    file = directory.find_checkpoint(request.checkpoint)
    if file.suffix.lower() == SUFFIX:
        raise CheckpointError(f"{file} is an ONNX file already; name the run or its checkpoint")
    _require_own(request.output, b"mlfinetune")
    _require_own(request.output.with_suffix(LABELS_SUFFIX), ",".join(LABELS_HEADER).encode())
    loaded = checkpoint.load(file)
    recorded = restore_config(loaded.config, file)
    # What the run was trained on, torn groups too, is read again.
    given = {"labels": list(loaded.labels.names), "allow_torn_groups": True, "bad_images": "skip"}
    return _Source(file, loaded, recorded.update_section("data", **given), recorded)


def _require_own(path: Path, start: bytes) -> None:
    """Try to write `path`; what is there already must be an earlier export.

    Args:
        path: the file.
        start: a text in the first bytes of such a file.

    Raises:
        CheckpointError: it cannot be written, or something else would be overwritten.
    """
    try_writing_file(path)
    if not path.exists():
        return
    with path.open("rb") as file:
        if start not in file.read(64):
            raise CheckpointError(
                f"{path} is there already, and `mlfinetune export` did not write it; name another "
                f"file with --output"
            )


def _finish(model: Any, source: _Source, request: ExportRequest, precision: str) -> bytes:
    """Return the bytes of the file."""
    with source.file.open("rb") as file:
        digest = checkpoint.read_digest(file.read(2**16))
    assert digest is not None, "it was verified when it was loaded"
    exporter = f"mlfinetune {__version__}, {describe_exporter()}"
    metadata = list_metadata(source.loaded, digest, precision, exporter)
    return seal(finish(model, metadata, request.with_logits, __version__))


def _verify(path: Path, reference: Reference, request: ExportRequest) -> float:
    """Verify a file that has no name yet; an error names the one that it would get."""
    try:
        return verify(path, reference)
    except CheckpointError as error:
        text = str(error).replace(str(path), "the file")
        raise CheckpointError(f"{request.output} is not written: {text}") from error


# ---- pictures ---------------------------------------------------------------------------


def _read_pictures(request: ExportRequest, source: _Source, log: RunLog) -> tuple[Tensor, str]:
    """Return up to CHECKED pictures, (N, 3, S, S) uint8, and words on where they are from."""
    paths: Iterable[str]
    if request.images is not None:
        paths, place = _list_images(request.images), str(request.images)
    else:
        paths, place = _list_validation(source, log)
    spec = source.loaded.transform
    images = list(islice(_decode(paths, spec), CHECKED))
    if not images:
        raise DataError(
            f"none of the pictures of {place} can be read; give others with --images FOLDER"
        )
    return torch.stack(images), f"{pluralize(len(images), 'picture')} of {place}"


def _list_images(folder: Path) -> Iterator[str]:
    """Yield the paths of the pictures of a folder, or of a single file."""
    require_inputs([str(folder)])
    return (path for path in expand_inputs([str(folder)], ()) if path is not None)


def _list_validation(source: _Source, log: RunLog) -> tuple[Iterable[str], str]:
    """Return the paths of the run's validation pictures that are there, and their name.

    Raises:
        DataError: its tables cannot be read.
    """
    try:
        key = "val" if source.config.data.val is not None else "train"
        config = _find_data(source, (key,), log)
        if config.data.val is None:
            # Where validation was held out at random, pictures are scanned: copies of the same
            # bytes were held out together.
            known, former = read_known_sides(source.file.parent), tuple(config.data.rename_labels)
            manifest = load_splits(config, log, known, former=former).val
        else:
            options = build_source_options(config)
            labels = source.loaded.labels
            # Copies in several tables were joined.
            scan = build_scan(config, log) if isinstance(config.data.val, tuple) else None
            manifest, _ = read_validation(config.data.val, options, labels, True, scan)
    except DataError as error:
        raise DataError(
            f"the run's validation pictures, on which an ONNX file is verified, cannot be read; "
            f"give others with --images FOLDER\n{error}"
        ) from error
    is_same = digest_manifest(manifest) == source.loaded.data_digest
    place = "the run's validation data" if is_same else "the run's data, as it is now"
    return map(manifest.path, range(len(manifest))), place


def _find_data(source: _Source, keys: Sequence[str], log: RunLog) -> Config:
    """Return the config with the places where the run's data is now."""
    advice = dict.fromkeys((*keys, "images"), "it its old place, or one beside the run")
    config, notes = find_data(source.config, source.recorded, source.file.parent, advice)
    for note in notes:
        log.say(note)
    return config


def _decode(paths: Iterable[str], spec: TransformSpec) -> Iterator[Tensor]:
    """Yield the (3, S, S) pictures that can be decoded."""
    batches = stream_batches(paths, spec, batch_size=BATCH, workers=0, pin_memory=False)
    return chain.from_iterable(batch.images for _, batch in batches if len(batch.indices))


# ---- int8 -------------------------------------------------------------------------------


def _quantize(
    path: Path, images: Tensor, request: ExportRequest, source: _Source, log: RunLog
) -> tuple[Cost, Cost]:
    """Replace a float32 file, which has no name yet, by one of int8; return what both cost.

    Raises:
        DataError: the run's data cannot be read, or validation scores no label.
        CheckpointError: int8 costs too much mAP, or cannot be computed.
    """
    splits = _read_splits(source, log)
    calibrating = _read_calibrating(request, source, splits.train)
    log.say(f"int8: scales from {pluralize(len(calibrating), 'picture')}")
    with replacing_file(path) as target:
        quantize(path, target, np.split(calibrating.numpy(), range(BATCH, len(calibrating), BATCH)))
        target.write_bytes(_finish(read_onnx(target), source, request, "int8"))
        try:
            about = splits.val, source.loaded.transform, source.loaded.decision.implies
            costs = compare(path, target, images.numpy(), *about, log)
            require_small_drop(*costs, request.max_drop)
        except CheckpointError as error:
            raise CheckpointError(f"{request.output} is not written: {error}") from error
    return costs


def _read_splits(source: _Source, log: RunLog) -> Splits:
    """Read the run's examples again.

    Raises:
        DataError: they are gone, or validation is not what it was.
    """
    if source.loaded.data_digest == OUT_OF_FOLD:
        raise DataError(
            "--int8 measures mAP on pictures that were held out; this model was trained on all of "
            "them (crossval --then-train): export a run of `mlfinetune train`, or float32"
        )
    keys = ("train",) if source.config.data.val is None else ("train", "val")
    try:
        config = _find_data(source, keys, log)
        known, former = read_known_sides(source.file.parent), tuple(config.data.rename_labels)
        splits = load_splits(config, log, known, former=former)
    except DataError as error:
        raise DataError(
            f"--int8 measures mAP on the run's validation data, which cannot be read\n{error}"
        ) from error
    if digest_manifest(splits.val) != source.loaded.data_digest:
        if splits.drawn:
            raise DataError(
                f"--int8 measures mAP on the run's validation data; "
                f"{name_locations(config.data.train)} or its pictures have changed since training: "
                f"those held out are not known any more"
            )
        log.say("warning: the validation data has changed since training")
    return splits


def _read_calibrating(request: ExportRequest, source: _Source, train: Manifest) -> Tensor:
    """Return pictures to take the scales of int8 from, (N, 3, S, S) uint8."""
    rows = np.linspace(0, len(train) - 1, min(len(train), CALIBRATED)).astype(int).tolist()
    spec = source.loaded.transform
    images = list(_decode(map(train.path, rows), spec))
    if not images and request.images is not None:
        images = list(islice(_decode(_list_images(request.images), spec), CALIBRATED))
    if not images:
        raise DataError(
            "none of the run's training pictures, from which int8 takes its scales, can be read; "
            "give others with --images FOLDER"
        )
    return torch.stack(images)
