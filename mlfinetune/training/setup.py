"""What a run is made of.

Config, Splits, World -> Parts -> the same on features, or on small copies
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from mlfinetune.config import Config
from mlfinetune.data.batches.features import FeatureLoader
from mlfinetune.data.batches.loader import BatchShare, Loader
from mlfinetune.data.images.jpeg import choose_jpeg_decoder
from mlfinetune.data.images.transforms import TransformSpec
from mlfinetune.data.manifest import Splits
from mlfinetune.errors import ConfigError
from mlfinetune.loss import Loss
from mlfinetune.models.sync_batch_norm import sync_batch_norm
from mlfinetune.models.tagger import Tagger
from mlfinetune.runtime.device import (
    choose_precision,
    choose_workers,
    oom_as_device_error,
    read_free_memory,
    seed_everything,
)
from mlfinetune.runtime.distributed import World
from mlfinetune.runtime.log import RunLog
from mlfinetune.runtime.torchrun import DistInfo
from mlfinetune.storage.cache import cache_folder
from mlfinetune.training.autotune import choose_batch_size, choose_worker_count
from mlfinetune.training.build import (
    build_loader,
    build_model,
    build_training_loss,
    build_transform_spec,
    chunks_head,
    get_batch_size,
    opened_image_copies,
    precomputes_features,
    syncs_batch_norm,
)
from mlfinetune.training.features import build_extractor, build_feature_loaders, open_feature_store


@dataclass(frozen=True)
class TrainingSetup:
    """What a run is made of; `net` is what trains on the batches: the tagger, or its head.

    `average`: its running mean, which is then what is validated and saved. `world`: the processes
    that the run is shared by, each of which has all of this but for the batches of the others.
    """

    config: Config
    splits: Splits
    spec: TransformSpec
    tagger: Tagger
    net: nn.Module
    loss: Loss
    train: Loader | FeatureLoader
    val: Loader | FeatureLoader
    device: torch.device
    dtype: torch.dtype
    world: World
    average: AveragedModel | None = None

    @property
    def scored(self) -> nn.Module:
        """What is validated on the batches."""
        return self.net if self.average is None else self.average.module

    @property
    def saved(self) -> Tagger:
        """The whole tagger of what is validated."""
        scored = self.scored
        if scored is self.net:
            return self.tagger
        return scored if isinstance(scored, Tagger) else self.tagger.with_head(scored)


def set_up(config: Config, splits: Splits, world: World, log: RunLog) -> TrainingSetup:
    """The parts of a run, on the device; says what was chosen.

    Raises:
        MlfinetuneError: weights, device, loss or batch size that cannot be used.
    """
    device, place = world.device, world.info
    precision = config.train.precision
    dtype, why = world.broadcast(lambda: choose_precision(precision, device))
    with oom_as_device_error():
        config, tried = world.broadcast(
            lambda: choose_batch_size(config, splits.train, device, dtype)
        )
        workers, why_workers = choose_worker_count(config, splits.train, device, dtype)
    seed_everything(config.train.seed)
    spec = build_transform_spec(config)
    with world.local_main_first():  # the weights may have to be downloaded
        tagger = build_model(config, splits.train, spec, device, place.size)
    if syncs_batch_norm(config, place.size):
        # A function, since a copy of the net (train.ema) would copy a method's World with it.
        sync_batch_norm(tagger, device, lambda tensor: world.all_reduce_sum_(tensor))
    log.say(
        f"{len(splits.train)} images to train, {len(splits.val)} to validate, "
        f"{len(splits.train.labels)} labels"
    )
    log.say(
        f"{config.model.backbone} with {config.model.weights or 'random weights'}"
        f"{', frozen' if config.model.freeze_backbone else ''}; "
        f"device {device}, precision {str(dtype).removeprefix('torch.')} ({why}), "
        f"{workers} decoding processes ({why_workers}); {choose_jpeg_decoder()[1]}"
    )
    if world.is_distributed:
        log.say(_describe_sharing(config, place))
    if tried is not None:
        log.say(tried)
    if chunks_head(config, splits.train, place.size):
        log.say(
            "the head is large: its weights are updated chunk by chunk in the backward pass; "
            "train.clip_grad_norm does not bound them, and grad_norm does not count them"
        )
    loss, about = build_training_loss(config, splits.train, device)
    log.say(about)
    rank, size = place.rank, place.size
    train, val = (
        build_loader(
            config, side, spec, device, workers, train=side is splits.train, rank=rank, size=size
        )
        for side in (splits.train, splits.val)
    )
    return TrainingSetup(
        config, splits, spec, tagger, tagger, loss, train, val, device, dtype, world
    )


def _describe_sharing(config: Config, place: DistInfo) -> str:
    """How several processes share the work."""
    batch = get_batch_size(config)
    text = f"{place.size} processes"
    if precomputes_features(config):
        return f"{text} compute features; the first one trains the head on them"
    text += f", each with {batch / place.size:g} pictures of a batch of {batch}"
    if config.model.freeze_backbone:
        return text
    synced = syncs_batch_norm(config, place.size)
    learns = "from those of all" if synced else "in each from its own"
    return f"{text}; BatchNorm learns {learns} (train.sync_batch_norm)"


def with_features(parts: TrainingSetup, kept: Path | None, log: RunLog) -> TrainingSetup | None:
    """The same run on the features of its backbone as it is, which are computed once.

    All processes compute them; the first one has them, and the rest to itself.

    Args:
        kept: the folder of stores; None: that of all runs.
    """
    config, device, world, spec = parts.config, parts.device, parts.world, parts.spec
    workers = choose_workers(config.train.workers, device)
    share = BatchShare(world.info.rank, world.info.size)
    maker = build_extractor(config, parts.tagger, spec, device, parts.dtype, workers, share)
    store = None
    if world.is_main:
        root = kept or cache_folder("features")
        store = open_feature_store(root, parts.tagger, spec, config.model.backbone, maker)
    room = read_free_memory(device) // 2
    found = build_feature_loaders(config, parts.splits, maker, store, world, room, log)
    if found is None:
        return None
    train, val = found
    return replace(
        parts,
        net=parts.tagger.head,
        train=train,
        val=val,
        dtype=torch.float32,
        world=world.single(),
    )


@contextmanager
def reading_copies(parts: TrainingSetup, root: Path | None, log: RunLog) -> Iterator[None]:
    """Training reads small copies of large pictures where it pays, made once on a machine."""
    config, train, world = parts.config, parts.splits.train, parts.world
    if world.is_distributed and config.data.cache_images == "ram":
        raise ConfigError(
            "data.cache_images: ram is the memory of one process; of several use disk, with "
            "MLFINETUNE_CACHE=/dev/shm/mlfinetune where it is to be memory"
        )
    with ExitStack() as stack:
        with world.local_main_first():
            opened = opened_image_copies(config, train, parts.spec, root, log)
            found = stack.enter_context(opened)
        if found is not None:
            assert isinstance(parts.train, Loader)
            parts.train.read_copies(found)
        yield
