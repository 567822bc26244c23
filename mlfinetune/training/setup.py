"""Everything one training run needs, built from its config and its data.

Config, Splits, World -> set_up          -> TrainingSetup: the whole tagger trains on pictures
TrainingSetup         -> with_features   -> the same run, the head alone on precomputed features
TrainingSetup         -> reading_copies  -> training reads small copies of large pictures
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from mlfinetune.config import Config
from mlfinetune.data.batches.feature_batches import FeatureLoader
from mlfinetune.data.batches.loader import BatchShare, Loader
from mlfinetune.data.batches.sampling import describe_sampling
from mlfinetune.data.images.jpeg import choose_jpeg_decoder
from mlfinetune.data.images.transforms import TransformSpec
from mlfinetune.data.manifest import Splits
from mlfinetune.errors import ConfigError
from mlfinetune.loss import Loss
from mlfinetune.metrics.implies import Pairs, list_pairs
from mlfinetune.models.backbones import choose_levels
from mlfinetune.models.inference import prepare_for_inference
from mlfinetune.models.sync_batch_norm import sync_batch_norm
from mlfinetune.models.tagger import Tagger
from mlfinetune.runs.checkpoint import Parent
from mlfinetune.runtime.device import (
    choose_precision,
    choose_workers,
    name_dtype,
    oom_as_device_error,
    read_free_memory,
    seed_everything,
)
from mlfinetune.runtime.distributed import World
from mlfinetune.runtime.log import RunLog
from mlfinetune.runtime.torchrun import DistInfo
from mlfinetune.storage.cache import get_cache_folder
from mlfinetune.training.autotune import choose_batch_size, choose_worker_count
from mlfinetune.training.build import (
    build_loader,
    build_model,
    build_training_loss,
    chunks_head,
    get_batch_size,
    opened_image_copies,
    precomputes_features,
    syncs_batch_norm,
    uses_lbfgs,
)
from mlfinetune.training.features import build_extractor, build_feature_loaders, open_feature_store
from mlfinetune.training.head_rows import HeadRows, read_rows
from mlfinetune.training.network import build_transform_spec
from mlfinetune.training.records import Choice


@dataclass(frozen=True)
class TrainingSetup:
    """Everything one training run needs: config, data, model, loss, loaders, device, ranks.

    Each rank has one. They differ in `world` and in the batches that the loaders give.

    Attributes:
        config: with numbers in place of `auto`.
        splits: examples of train and validation.
        spec: how pictures become input.
        tagger: backbone and head.
        net: the module that is trained on the batches: the whole tagger, or only its head on
            precomputed features.
        loss: from `mlfinetune.loss.build_loss`.
        train, val: batches of pictures (`Loader`) or of features (`FeatureLoader`).
        device, dtype: where the net runs, and autocast's type; float32 means no autocast.
        world: the ranks that share the run.
        ema: exponential moving average of `net` (`train.ema`); None: not configured.
        choice: of the candidate, made before; None: validation chooses.
        inherited: rows of the head that come from the checkpoint `parent`; None: there are none.
        parent: checkpoint that the run begins with; None: other weights.
        fast_backbone: computes the features of a frozen backbone; None: it trains.
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
    ema: AveragedModel | None = None
    choice: Choice | None = None
    inherited: HeadRows | None = None
    parent: Parent | None = None
    fast_backbone: nn.Module | None = None

    @property
    def implies(self) -> Pairs:
        """Columns of labels and of those that they imply."""
        return list_pairs(self.config.data.implies, self.splits.val.labels)

    @property
    def eval_net(self) -> nn.Module:
        """The module that is validated: the moving average where there is one, else `net`."""
        return self.net if self.ema is None else self.ema.module

    @property
    def eval_tagger(self) -> Tagger:
        """The whole tagger with the weights of `eval_net`; this is what is saved."""
        net = self.eval_net
        if net is self.net:
            return self.tagger
        return net if isinstance(net, Tagger) else self.tagger.with_head(net)


def set_up(config: Config, splits: Splits, world: World, log: RunLog) -> TrainingSetup:
    """Build everything the run needs, on the device, and log what was chosen.

    Raises:
        MlfinetuneError: weights, device, loss or batch size that cannot be used.
    """
    device, info = world.device, world.info
    _require_copies_fit(config, world)
    about_backbone = _describe_backbone(config)
    levels = choose_levels(config.model.backbone, config.model.levels)
    config = config.update_section("model", levels=levels)
    dtype, why = world.broadcast(lambda: choose_precision(config.train.precision, device))
    with oom_as_device_error():
        config, tried = world.broadcast(
            lambda: choose_batch_size(config, splits.train, device, dtype)
        )
        workers, why_workers = choose_worker_count(config, splits.train, device, dtype)
    # Seeded after the trials, so that their random numbers do not change those of the run.
    seed_everything(config.train.seed)
    spec = build_transform_spec(config)
    with world.local_main_first():  # the weights may have to be downloaded
        tagger, loaded = build_model(config, splits.train, spec, device, info.size)
    if syncs_batch_norm(config, info.size):
        # A function, since a copy of the net (train.ema) would copy a method's World with it.
        sync_batch_norm(tagger, device, lambda tensor: world.all_reduce_sum_(tensor))
    loss, about_loss = build_training_loss(config, splits.train, device)
    log.say(
        f"{about_backbone}; device {device}, precision {name_dtype(dtype)} ({why}), "
        f"decoding processes: {workers} ({why_workers}); {choose_jpeg_decoder()[1]}"
    )
    head = _describe_head(config, splits, info)
    weighs = uses_lbfgs(config, splits.train)
    drawn = describe_sampling(config.train.sampling, splits.train.targets, weighs)
    for line in (loaded.about, *_describe_sharing(config, info), tried, head, about_loss, drawn):
        if line:
            log.say(line)
    ranks = {"rank": info.rank, "size": info.size}
    train = build_loader(config, splits.train, spec, device, workers, train=True, **ranks)
    val = build_loader(config, splits.val, spec, device, workers, train=False, **ranks)
    inherited = read_rows(tagger.head, loaded.inherited) if loaded.inherited else None
    return TrainingSetup(
        config,
        splits,
        spec,
        tagger,
        tagger,
        loss,
        train,
        val,
        device,
        dtype,
        world,
        inherited=inherited,
        parent=loaded.parent,
    )


def _require_copies_fit(config: Config, world: World) -> None:
    """Raise a ConfigError for copies in memory for several ranks; features need no copies."""
    in_memory = config.data.cache_images == "ram" and not precomputes_features(config)
    if world.is_distributed and in_memory:
        raise ConfigError(
            "data.cache_images: ram keeps pictures in the memory of one process; for several "
            "processes use disk, with MLFINETUNE_CACHE=/dev/shm/mlfinetune to keep them in memory"
        )


def _describe_backbone(config: Config) -> str:
    """Describe the backbone: `resnet50 with IMAGENET1K_V2, the means of its last 2 stages`."""
    model = config.model
    levels = choose_levels(model.backbone, model.levels)
    parts = [f"{model.backbone} with {model.weights or 'random weights'}"]
    chosen = " (model.levels: auto)" if model.levels == "auto" else ""
    parts += [f"the means of its last {levels} stages{chosen}"] if levels > 1 else []
    parts += ["frozen"] if model.freeze_backbone else []
    return ", ".join(parts)


def _describe_sharing(config: Config, info: DistInfo) -> list[str]:
    """Describe how several ranks share the work, in one line; no line where there is one rank."""
    if info.size == 1:
        return []
    batch = get_batch_size(config)
    text = f"{info.size} processes"
    if precomputes_features(config):
        return [f"{text} compute features; the first one trains the head on them"]
    text += f", each with {batch / info.size:g} pictures of a batch of {batch}"
    if config.model.freeze_backbone:
        return [text]
    synced = syncs_batch_norm(config, info.size)
    learns = "from those of all" if synced else "in each from its own"
    return [f"{text}; BatchNorm learns {learns} (train.sync_batch_norm)"]


def _describe_head(config: Config, splits: Splits, info: DistInfo) -> str:
    """Describe how a very large head is trained; empty for any other head."""
    if not chunks_head(config, splits.train, info.size):
        return ""
    return (
        "the head is large: its weights are updated chunk by chunk in the backward pass; "
        "train.clip_grad_norm does not bound them, and grad_norm does not count them"
    )


def with_features(setup: TrainingSetup, root: Path | None, log: RunLog) -> TrainingSetup | None:
    """Return the same run on precomputed features: only the head is trained from here on.

    All ranks compute features. Rank 0 gets all of them and trains the head alone.

    Args:
        root: folder of the feature stores; None: the cache's.

    Returns:
        The new setup; None on all ranks but 0.

    Raises:
        DataError: a picture that cannot be decoded, or too little room on the disk.
    """
    config, device, world, spec = setup.config, setup.device, setup.world, setup.spec
    workers = choose_workers(config.train.workers, device)
    share = BatchShare(world.info.rank, world.info.size)
    fast = prepare_for_inference(setup.tagger, spec.image_size, device, setup.dtype)
    extractor = build_extractor(config, fast, spec, device, setup.dtype, workers, share, log.say)
    store = None
    if world.is_main:
        root = root or get_cache_folder("features")
        store = open_feature_store(root, setup.tagger, spec, config.model.backbone, extractor)
    room = read_free_memory(device) // 2
    loaders = build_feature_loaders(config, setup.splits, extractor, store, world, room, log)
    log.lap("features")
    if loaders is None:
        return None
    train, val = loaders
    return replace(
        setup,
        net=setup.tagger.head,
        train=train,
        val=val,
        dtype=torch.float32,
        world=world.single(),
        fast_backbone=fast[0].features,
    )


@contextmanager
def reading_copies(setup: TrainingSetup, root: Path | None, log: RunLog) -> Iterator[None]:
    """Context in which training reads small copies of large pictures, where that pays.

    Missing copies are made first, by the first rank of each machine.

    Args:
        root: folder of the copies; None: the cache's.

    Raises:
        DataError: a picture that cannot be decoded, or too little room.
    """
    config, train, world = setup.config, setup.splits.train, setup.world
    with ExitStack() as stack:
        with world.local_main_first():
            opened = opened_image_copies(config, train, setup.spec, root, log)
            copies = stack.enter_context(opened)
        if copies is not None:
            assert isinstance(setup.train, Loader)
            setup.train.read_copies(copies)
        yield
