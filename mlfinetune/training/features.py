"""A frozen backbone: Config -> batches of its features, which are computed once and kept.

open_store -> loaders: what is kept already, what has to be computed -> FeatureLoader a side
"""

import hashlib
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from mlfinetune.config import Config
from mlfinetune.data.batches.batch import Batch
from mlfinetune.data.batches.features import (
    PLAIN_VIEW,
    FeatureExtractor,
    FeatureLoader,
    Features,
    MissingRows,
    View,
    choose_views,
    compute_missing,
    find_missing,
)
from mlfinetune.data.batches.loader import WHOLE_SHARE, BatchShare, Loader
from mlfinetune.data.images import decode
from mlfinetune.data.images.jpeg import choose_jpeg_decoder
from mlfinetune.data.images.transforms import TransformSpec
from mlfinetune.data.manifest import Manifest, Splits
from mlfinetune.models.inference import for_inference
from mlfinetune.models.tagger import Tagger
from mlfinetune.runtime.distributed import World
from mlfinetune.runtime.log import RunLog
from mlfinetune.storage.cache import make_cache_folder
from mlfinetune.storage.store import Store, hash_key
from mlfinetune.text import pluralize
from mlfinetune.training.build import MAX_EVAL_BATCH, get_batch_size

FEATURES_VERSION = 1
"""Goes up where the same weights and pictures give other features."""


def build_feature_loaders(
    config: Config,
    splits: Splits,
    embedder: FeatureExtractor,
    store: Store | None,
    world: World,
    room: int,
    log: RunLog,
) -> tuple[FeatureLoader, FeatureLoader] | None:
    """Batches of features for train and val: what is not kept yet is computed.

    Args:
        embedder: what makes features.
        store: where they are kept; None in all processes but the first.
        world: the processes that compute.
        room: bytes that features may take in the device's memory.
        log: says what is reused, and why not.

    Returns:
        None in all processes but the first, whose features they are.

    Raises:
        DataError: a picture that cannot be decoded, or too little room on the disk.
    """
    wished = config.train.cache_views
    seen = choose_views(embedder.spec, wished)
    if len(seen) < wished:
        log.say(
            f"train.cache_views {wished}: augment makes only {pluralize(len(seen), 'view')} of a "
            f"picture (itself, its mirror image, then random crops and colours)"
        )
    sides = (splits.train, seen), (splits.val, (PLAIN_VIEW,))
    new, found = store is not None and not len(store), list[FeatureLoader]()
    told = 0
    for (examples, looks), what in zip(sides, ("train", "val"), strict=True):
        wanted, damaged = world.broadcast(partial(_missing, store, examples, looks, embedder, told))
        told += damaged
        lacking = sum(len(one.missing) for one in wanted)
        log.say(_reuse(what, len(examples), len(looks), lacking, new, damaged))
        with log.bar(f"features of {what}", lacking) as bar:
            for rows in compute_missing(store, examples, wanted, embedder, world.gather_stream):
                bar.update(rows)
        if store is None:
            continue
        share = room // (2 * len(looks))
        kept = [Features(store, one, embedder, world.device, share) for one in wanted]
        seed = config.train.seed if what == "train" else None
        size = get_batch_size(config)
        found.append(FeatureLoader(examples, kept, batch_size=size, train_seed=seed))
    return (found[0], found[1]) if found else None


def _missing(
    store: Store | None,
    examples: Manifest,
    looks: Sequence[View],
    embedder: FeatureExtractor,
    told: int,
) -> tuple[list[MissingRows], int]:
    """What is lacking, and how many files were found to be damaged beyond those `told`."""
    assert store is not None
    wanted = find_missing(store, examples, looks, embedder)
    return wanted, store.damaged - told


def _reuse(what: str, images: int, looks: int, lacking: int, new: bool, damaged: int) -> str:
    """What is reused, and why the rest is not."""
    rows = images * looks
    each = f" ({pluralize(images, 'picture')} x {looks} views)" if looks > 1 else ""
    text = f"features of {what}: {rows} wanted{each}, {rows - lacking} kept from before"
    if not lacking:
        return text
    why = "new or changed pictures or views"
    if new:
        why = "none kept for these weights and settings"
    if damaged:
        why = f"{pluralize(damaged, 'damaged file')} deleted"
    return f"{text}, {lacking} to compute ({why})"


def build_extractor(
    config: Config,
    tagger: Tagger,
    spec: TransformSpec,
    device: torch.device,
    dtype: torch.dtype,
    workers: int,
    share: BatchShare = WHOLE_SHARE,
) -> FeatureExtractor:
    """What makes the features of the frozen backbone; `share` of them here."""
    model, how = for_inference(tagger, spec.image_size, device, dtype)

    def embed(pictures: Tensor) -> Tensor:
        with (
            torch.inference_mode(),
            torch.autocast(device.type, dtype, enabled=dtype != torch.float32),
        ):
            return model.embed(pictures.to(device, non_blocking=True))

    def load(manifest: Manifest, rows: list[int], view: View) -> Iterable[Batch]:
        return Loader(
            manifest,
            spec,
            batch_size=min(get_batch_size(config), MAX_EVAL_BATCH),
            workers=workers,
            train_seed=None if view.epoch is None else config.train.seed,
            pin_memory=device.type == "cuda",
            rows=rows,
            share=share,
        ).epoch(view.epoch or 0)

    return FeatureExtractor(
        embed,
        tagger.head.in_features,
        dtype,
        load,
        spec,
        config.train.seed,
        how=f"{device.type}, {how}",
    )


def open_feature_store(
    root: Path, tagger: Tagger, spec: TransformSpec, backbone: str, embedder: FeatureExtractor
) -> Store:
    """The store of these features: all that they depend on, but for the picture, names it."""
    weights = hashlib.sha256()
    for name, tensor in tagger.features.state_dict().items():
        weights.update(name.encode())
        weights.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    looks = (
        spec.image_size,
        spec.resize,
        *spec.mean,
        *spec.std,
        decode.DECODE_VERSION,
        choose_jpeg_decoder()[1],
    )
    made = (
        FEATURES_VERSION,
        backbone,
        weights.hexdigest(),
        embedder.dtype,
        torch.__version__,
        embedder.how,
    )
    key = hash_key(*made, *looks)
    return Store(make_cache_folder(root / f"{backbone}-{spec.image_size}-{spec.resize}-{key:016x}"))
