"""Precomputed features of a frozen backbone, from the config to batches of them.

open_feature_store -> build_feature_loaders: find what is kept, compute the rest
                   -> FeatureLoader for train, FeatureLoader for validation
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from mlfinetune.config import Config
from mlfinetune.data.batches.batch import Batch
from mlfinetune.data.batches.feature_batches import FeatureLoader, Features, MeanFeatures
from mlfinetune.data.batches.features import (
    MIRROR_VIEW,
    PLAIN_VIEW,
    FeatureExtractor,
    MissingRows,
    View,
    choose_views,
    compute_missing,
    find_missing,
)
from mlfinetune.data.batches.loader import WHOLE_SHARE, BatchShare, Loader
from mlfinetune.data.batches.sampling import choose_factors
from mlfinetune.data.images import decode
from mlfinetune.data.images.jpeg import choose_jpeg_decoder
from mlfinetune.data.images.transforms import TransformSpec
from mlfinetune.data.manifest import Manifest, Splits
from mlfinetune.errors import DataError
from mlfinetune.metrics.types import EvalViews
from mlfinetune.models.tagger import Tagger
from mlfinetune.runtime.distributed import World
from mlfinetune.runtime.log import RunLog
from mlfinetune.storage.cache import report_unused
from mlfinetune.storage.store import Store, hash_key
from mlfinetune.text import pluralize
from mlfinetune.training.build import MAX_EVAL_BATCH, find_versions, get_batch_size

FEATURES_VERSION = 1
"""Part of the store's key; goes up when the same weights and pictures give other features."""
EVAL_VIEWS: dict[EvalViews, tuple[View, ...]] = {
    "plain": (PLAIN_VIEW,),
    "mirror": (PLAIN_VIEW, MIRROR_VIEW),
}
"""`eval.views` -> the views of a validation picture whose features are averaged."""


def build_feature_loaders(
    config: Config,
    splits: Splits,
    extractor: FeatureExtractor,
    store: Store | None,
    world: World,
    room: int,
    log: RunLog,
) -> tuple[FeatureLoader, FeatureLoader] | None:
    """Build the feature loaders of train and validation; features that are not kept are computed.

    Args:
        extractor: computes features.
        store: keeps features; None on all ranks but 0.
        world: the ranks that compute.
        room: bytes that features may take in the device's memory.
        log: says how many features are reused, and why the others are not.

    Returns:
        The loaders of train and validation; None on all ranks but 0, which alone has the features.

    Raises:
        DataError: a picture that cannot be decoded, or too little room on disk and in memory.
    """
    views = _choose_train_views(config, extractor, log)
    is_new = store is not None and not len(store)
    damaged_before = 0
    loaders: list[FeatureLoader] = []
    work = (("train", splits.train, views), ("val", splits.val, EVAL_VIEWS[config.eval.views]))
    for split, examples, split_views in work:
        find = partial(_find_missing, store, examples, split_views, extractor, damaged_before)
        by_view, damaged = world.broadcast(find)
        damaged_before += damaged
        missing = sum(len(view.missing) for view in by_view)
        log.say(_describe_reuse(split, len(examples), len(split_views), missing, is_new, damaged))
        with log.bar(f"features of {split}", missing) as bar:
            for rows in compute_missing(store, examples, by_view, extractor, world.gather_stream):
                bar.update(rows)
        if store is not None:
            view_room = room // (2 * len(split_views))  # half of it for train, half for val
            features = [Features(store, v, extractor, world.device, view_room) for v in by_view]
            loaders.append(_build_loader(config, examples, features, train=split == "train"))
    return (loaders[0], loaders[1]) if loaders else None


def _build_loader(
    config: Config, examples: Manifest, features: list[Features], *, train: bool
) -> FeatureLoader:
    """Build the loader of one split: training sees view after view, validation their mean."""
    return FeatureLoader(
        examples,
        features if train else [MeanFeatures(features)],
        batch_size=get_batch_size(config),
        train_seed=config.train.seed if train else None,
        factors=choose_factors(config.train.sampling if train else "uniform", examples.targets),
    )


def _choose_train_views(
    config: Config, extractor: FeatureExtractor, log: RunLog
) -> tuple[View, ...]:
    """Return `train.cache_views` views of a training picture, or as many as augment makes."""
    wanted = config.train.cache_views
    views = choose_views(extractor.spec, wanted)
    if len(views) < wanted:
        log.say(
            f"train.cache_views {wanted}: augment makes only {pluralize(len(views), 'view')} of a "
            f"picture (itself, its mirror image, then random crops and colors)"
        )
    return views


def _find_missing(
    store: Store | None,
    examples: Manifest,
    views: Sequence[View],
    extractor: FeatureExtractor,
    damaged_before: int,
) -> tuple[list[MissingRows], int]:
    """Find the features that the store lacks.

    Returns:
        A record for each view; and the number of damaged files, without the `damaged_before` that
        were reported already.
    """
    assert store is not None
    by_view = find_missing(store, examples, views, extractor)
    return by_view, store.damaged - damaged_before


def _describe_reuse(
    split: str, images: int, views: int, missing: int, is_new: bool, damaged: int
) -> str:
    """Tell how many features are reused, and why the others are not."""
    rows = images * views
    each = f" ({pluralize(images, 'picture')} x {views} views)" if views > 1 else ""
    text = f"features of {split}: {rows} wanted{each}, {rows - missing} kept from before"
    if not missing:
        return text
    why = "new or changed pictures or views"
    if is_new:
        why = "none kept for these weights and settings"
    if damaged:
        why = f"{pluralize(damaged, 'damaged file')} deleted"
    return f"{text}, {missing} to compute ({why})"


def build_extractor(
    config: Config,
    prepared: tuple[Tagger, str],
    spec: TransformSpec,
    device: torch.device,
    dtype: torch.dtype,
    workers: int,
    share: BatchShare = WHOLE_SHARE,
    say: Callable[[str], None] | None = None,
) -> FeatureExtractor:
    """Build the extractor that computes the features of the frozen backbone on this rank.

    Args:
        prepared: as `prepare_for_inference` returns it.
        share: the part of all batches that this rank computes.
        say: is given a warning where pictures have changed since the scan.
    """
    model, how = prepared

    def embed(pictures: Tensor) -> Tensor:
        with (
            torch.inference_mode(),
            torch.autocast(device.type, dtype, enabled=dtype != torch.float32),
        ):
            return model.embed(pictures.to(device, non_blocking=True))

    def load(manifest: Manifest, rows: list[int], view: View) -> Iterator[Batch]:
        loader = Loader(
            manifest,
            spec,
            batch_size=min(get_batch_size(config), MAX_EVAL_BATCH),
            workers=workers,
            train_seed=None if view.epoch is None else config.train.seed,
            pin_memory=device.type == "cuda",
            rows=rows,
            share=share,
        )
        yield from loader.epoch(view.epoch or 0)
        if say is not None and (changes := loader.describe_changes()):
            say(changes)

    return FeatureExtractor(
        embed,
        model.head.in_features,
        dtype,
        load,
        spec,
        config.train.seed,
        how=f"{device.type}, {how}",
    )


def open_feature_store(
    root: Path | None,
    tagger: Tagger,
    spec: TransformSpec,
    backbone: str,
    extractor: FeatureExtractor,
) -> Store:
    """Open the store of these features; without a folder that can be used, one in memory.

    The name of its folder has a hash of everything that a feature depends on, except the picture:
    weights, preprocessing, JPEG decoder, versions. So a change of any of them opens another store.
    """
    if root is None:
        return Store(None)
    weights = hashlib.sha256()
    for name, tensor in tagger.features.state_dict().items():
        weights.update(name.encode())
        weights.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    view = (
        spec.image_size,
        spec.resize,
        *spec.mean,
        *spec.std,
        spec.interpolation,
        spec.crop_share,
        decode.DECODE_VERSION,
        choose_jpeg_decoder()[1],
    )
    made_by = (
        FEATURES_VERSION,
        backbone,
        extractor.width,
        weights.hexdigest(),
        extractor.dtype,
        *(number for name, number in find_versions(backbone).items() if name != "mlfinetune"),
        extractor.how,
    )
    key = hash_key(*made_by, *view)
    folder = root / f"{backbone.replace('/', '-')}-{spec.image_size}-{spec.resize}-{key:016x}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return Store(folder)
    except (OSError, DataError) as error:
        report_unused(error)
        return Store(None)
