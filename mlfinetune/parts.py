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

from mlfinetune import assemble, frozen, machine, tune
from mlfinetune.batch_norm import synchronize
from mlfinetune.config import Config
from mlfinetune.data import cache
from mlfinetune.data.features import FeatureLoader
from mlfinetune.data.jpeg import decoder
from mlfinetune.data.loader import Loader, Share
from mlfinetune.data.manifest import Splits
from mlfinetune.errors import ConfigError
from mlfinetune.launch import Place
from mlfinetune.loss import Loss
from mlfinetune.model import Tagger
from mlfinetune.records import TransformSpec
from mlfinetune.runlog import RunLog
from mlfinetune.runtime import World


@dataclass(frozen=True)
class Parts:
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


def assembled(config: Config, splits: Splits, world: World, log: RunLog) -> Parts:
    """The parts of a run, on the device; says what was chosen.

    Raises:
        MlfinetuneError: weights, device, loss or batch size that cannot be used.
    """
    device, place = world.device, world.place
    precision = config.train.precision
    dtype, why = world.decide(lambda: machine.choose_precision(precision, device))
    with machine.device_faults():
        config, tried = world.decide(lambda: tune.batch_size(config, splits.train, device, dtype))
        workers, why_workers = tune.workers(config, splits.train, device, dtype)
    machine.seed_everything(config.train.seed)
    spec = assemble.transform_spec(config)
    with world.turn():  # the weights may have to be downloaded
        tagger = assemble.model(config, splits.train, spec, device, place.size)
    if assemble.synchronized(config, place.size):
        # A function, since a copy of the net (train.ema) would copy a method's World with it.
        synchronize(tagger, device, lambda tensor: world.add(tensor))
    log.say(
        f"{len(splits.train)} images to train, {len(splits.val)} to validate, "
        f"{len(splits.train.labels)} labels"
    )
    log.say(
        f"{config.model.backbone} with {config.model.weights or 'random weights'}"
        f"{', frozen' if config.model.freeze_backbone else ''}; "
        f"device {device}, precision {str(dtype).removeprefix('torch.')} ({why}), "
        f"{workers} decoding processes ({why_workers}); {decoder()[1]}"
    )
    if world.several:
        log.say(_shared(config, place))
    if tried is not None:
        log.say(tried)
    if assemble.head_in_chunks(config, splits.train, place.size):
        log.say(
            "the head is large: its weights are updated chunk by chunk in the backward pass; "
            "train.clip_grad_norm does not bound them, and grad_norm does not count them"
        )
    loss, about = assemble.loss(config, splits.train, device)
    log.say(about)
    rank, size = place.rank, place.size
    train, val = (
        assemble.loader(
            config, side, spec, device, workers, train=side is splits.train, rank=rank, size=size
        )
        for side in (splits.train, splits.val)
    )
    return Parts(config, splits, spec, tagger, tagger, loss, train, val, device, dtype, world)


def _shared(config: Config, place: Place) -> str:
    """How several processes share the work."""
    batch = assemble.batch_size(config)
    text = f"{place.size} processes"
    if assemble.features_once(config):
        return f"{text} compute features; the first one trains the head on them"
    text += f", each with {batch / place.size:g} pictures of a batch of {batch}"
    if config.model.freeze_backbone:
        return text
    synced = assemble.synchronized(config, place.size)
    learns = "from those of all" if synced else "in each from its own"
    return f"{text}; BatchNorm learns {learns} (train.sync_batch_norm)"


def on_features(parts: Parts, kept: Path | None, log: RunLog) -> Parts | None:
    """The same run on the features of its backbone as it is, which are computed once.

    All processes compute them; the first one has them, and the rest to itself.

    Args:
        kept: the folder of stores; None: that of all runs.
    """
    config, device, world, spec = parts.config, parts.device, parts.world, parts.spec
    workers = machine.choose_workers(config.train.workers, device)
    share = Share(world.place.rank, world.place.size)
    maker = frozen.embedder(config, parts.tagger, spec, device, parts.dtype, workers, share)
    store = None
    if world.main:
        root = kept or cache.folder("features")
        store = frozen.open_store(root, parts.tagger, spec, config.model.backbone, maker)
    room = machine.spare_memory(device) // 2
    found = frozen.loaders(config, parts.splits, maker, store, world, room, log)
    if found is None:
        return None
    train, val = found
    return replace(
        parts,
        net=parts.tagger.head,
        train=train,
        val=val,
        dtype=torch.float32,
        world=world.alone(),
    )


@contextmanager
def copies(parts: Parts, root: Path | None, log: RunLog) -> Iterator[None]:
    """Training reads small copies of large pictures where it pays, made once on a machine."""
    config, train, world = parts.config, parts.splits.train, parts.world
    if world.several and config.data.cache_images == "ram":
        raise ConfigError(
            "data.cache_images: ram is the memory of one process; of several use disk, with "
            "MLFINETUNE_CACHE=/dev/shm/mlfinetune where it is to be memory"
        )
    with ExitStack() as stack:
        with world.turn():
            opened = assemble.image_copies(config, train, parts.spec, root, log)
            found = stack.enter_context(opened)
        if found is not None:
            assert isinstance(parts.train, Loader)
            parts.train.read_copies(found)
        yield
