"""Config -> parts that need torch; parts take plain values. `examples.py` reads `data`."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from mlfinetune import __version__
from mlfinetune.config import LOSS_SETTINGS, Config
from mlfinetune.data.batches.copies import SmallCopies, opened_copies
from mlfinetune.data.batches.loader import BatchShare, Loader, cut_batches, make_copies
from mlfinetune.data.images.transforms import TransformSpec
from mlfinetune.data.manifest import Manifest, digest_manifest
from mlfinetune.errors import ConfigError
from mlfinetune.loss import Loss, build_loss, choose_backend, try_triton
from mlfinetune.metrics.types import DecisionRule
from mlfinetune.models.inference import place_on_device
from mlfinetune.models.pretrained import load_pretrained
from mlfinetune.models.tagger import Tagger
from mlfinetune.runs.checkpoint import Checkpoint
from mlfinetune.runtime.log import RunLog
from mlfinetune.text import suggest
from mlfinetune.training.optim import build_ema_model, build_optimizer, lr_at
from mlfinetune.training.step import StepOptions

MAX_POS_WEIGHT = 100.0
"""`pos_weight: auto` stops here: one picture in ten thousand must not outweigh the rest."""

MANY_LABELS = 10_000
"""From here on the gradient of the whole head is not kept: at 2,048 features, 82 MB and more."""


MIN_BATCH_NORM_IMAGES = 16
"""Pictures from which a process's own are enough for BatchNorm, by our choice; the error of a
ResNet-50 rises fast as they get fewer (Wu & He 2018, Group Normalization)."""

MAX_EVAL_BATCH = 256
"""Pictures of a batch of evaluation: a batch of training may be many GPUs'."""


def build_transform_spec(config: Config) -> TransformSpec:
    """How pictures become input."""
    return TransformSpec(
        image_size=config.model.image_size,
        resize=config.model.resize,
        max_pixels=config.data.max_pixels,
        crop_scale=config.augment.crop_scale,
        horizontal_flip=config.augment.horizontal_flip,
        color_jitter=config.augment.color_jitter,
        rand_augment=config.augment.rand_augment,
    )


def get_batch_size(config: Config) -> int:
    """Images a step; `tune` has settled it where it was `auto`."""
    assert config.train.batch_size != "auto"
    return config.train.batch_size


def build_model(
    config: Config, train: Manifest, spec: TransformSpec, device: torch.device, processes: int = 1
) -> Tagger:
    """The tagger with its pretrained backbone, on the device.

    Args:
        processes: that train it together.

    Raises:
        ConfigError: an unknown backbone, or batches that BatchNorm cannot train on.
        WeightsError: the weights cannot be had, or do not fit.
    """
    settings = config.model
    _require_batches(config, len(train), spec.image_size, processes)
    prior = compute_log_odds(train) if settings.head_bias == "prior" else None
    tagger = Tagger(
        settings.backbone,
        len(train.labels),
        mean=spec.mean,
        std=spec.std,
        frozen=settings.freeze_backbone,
        bias=prior,
        chunked=chunks_head(config, train, processes),
    )
    if settings.weights is not None:
        load_pretrained(tagger, settings.backbone, settings.weights)
    return place_on_device(tagger, device)


def _require_batches(config: Config, images: int, side: int, processes: int) -> None:
    """Raise a ConfigError where a process would have too few pictures at a time to train on."""
    size = get_batch_size(config)
    if size < processes:
        raise ConfigError(
            f"train.batch_size {size} is that of all {processes} processes together: not one "
            f"picture for each"
        )
    if side > 32 or config.model.freeze_backbone:
        return
    if syncs_batch_norm(config, processes):
        processes = 1  # BatchNorm learns as if there were one
    sizes = {len(batch) for batch in cut_batches(list(range(images)), size)}
    pieces = {at // min(config.train.accumulate, at) for at in sizes}
    if 1 in {share for piece in pieces for share in (piece // processes, -(-piece // processes))}:
        raise ConfigError(
            "one picture of 32 px at a time gives BatchNorm one value a channel to learn from; "
            "raise train.batch_size or model.image_size, or set model.freeze_backbone: true"
        )


def syncs_batch_norm(config: Config, processes: int) -> bool:
    """Does BatchNorm learn from the pictures of all processes?"""
    if config.model.freeze_backbone or processes == 1:
        return False
    wanted = config.train.sync_batch_norm
    few = get_batch_size(config) < MIN_BATCH_NORM_IMAGES * config.train.accumulate * processes
    return few if wanted == "auto" else wanted


def chunks_head(config: Config, train: Manifest, processes: int = 1) -> bool:
    """Are the labels so many that the head's weights are stepped chunk by chunk?

    Several processes sum gradients first, so they keep all of them.
    """
    many = len(train.labels) >= MANY_LABELS and config.train.accumulate == processes == 1
    return many and config.train.optimizer != "lbfgs" and config.train.not_finite == "stop"


def precomputes_features(config: Config) -> bool:
    """Does the backbone stay what it is, so that a picture's features are computed once?"""
    return config.model.freeze_backbone and config.train.cache_features == "auto"


def uses_lbfgs(config: Config, train: Manifest) -> bool:
    """Is the head solved for? L-BFGS keeps twenty copies of it: too many for a very large one."""
    wanted = config.train.optimizer
    small = len(train.labels) < MANY_LABELS
    return wanted == "lbfgs" or (wanted == "auto" and precomputes_features(config) and small)


def require_lbfgs_fits(config: Config, train: Manifest) -> None:
    """Raise a ConfigError where a head is to be solved for first that has too many labels."""
    if config.train.solve_head_first and len(train.labels) >= MANY_LABELS:
        raise ConfigError(
            f"train.solve_head_first: L-BFGS keeps twenty copies of the head, too many for "
            f"{len(train.labels)} labels; below {MANY_LABELS} it is possible"
        )


def build_loader(
    config: Config,
    manifest: Manifest,
    spec: TransformSpec,
    device: torch.device,
    workers: int,
    *,
    train: bool,
    rank: int = 0,
    size: int = 1,
) -> Loader:
    """Batches of a manifest, to train or to evaluate; the part of process `rank` of `size`."""
    pictures = get_batch_size(config)
    return Loader(
        manifest,
        spec,
        batch_size=pictures if train else min(pictures, MAX_EVAL_BATCH),
        workers=workers,
        train_seed=config.train.seed if train else None,
        pin_memory=device.type == "cuda",
        share=BatchShare(rank, size, config.train.accumulate),
    )


@contextmanager
def opened_image_copies(
    config: Config, train: Manifest, spec: TransformSpec, root: Path | None, log: RunLog
) -> Iterator[SmallCopies | None]:
    """Small copies of train's large pictures, missing ones made first; None: this run has none."""
    once, epochs = precomputes_features(config), config.train.epochs
    with opened_copies(config.data.cache_images, train, spec, epochs, once, root) as found:
        log.say(found.why)
        with log.bar("small copies of large pictures", len(found.lacking)) as bar:
            for done in found.fill(make_copies(found.lacking, spec, config.train.workers)):
                bar.update(done)
        yield found.copies


def build_training_loss(config: Config, train: Manifest, device: torch.device) -> tuple[Loss, str]:
    """The loss with its weights on the device, and what there is to say of it.

    Raises:
        ConfigError: a weight for a label that is not there, or a backend that cannot be had.
    """
    wanted = config.loss
    try:
        backend, why = choose_backend(wanted.backend, device)
    except ValueError as error:
        raise ConfigError(f"loss.{error}") from error
    fault = try_triton(device) if backend == "triton" else None
    if fault and wanted.backend == "triton":
        raise ConfigError(
            f"loss.backend 'triton' does not run here: {fault}; use 'auto' or 'torch'"
        )
    if fault:
        backend, why = "torch", f"Triton's kernel does not run here: {fault}"
    weights = compute_pos_weight(wanted.pos_weight, train)
    own = {key: getattr(wanted, key) for key in LOSS_SETTINGS.get(wanted.name, ())}
    built = build_loss(
        wanted.name,
        pos_weight=None if weights is None else weights.to(device),
        label_smoothing=wanted.label_smoothing,
        backend=backend,
        **own,
    )
    settings = "".join(f", {key} {value:g}" for key, value in own.items())
    return built, f"loss {wanted.name}{settings}; backend {backend} ({why})"


def build_training_optimizer(config: Config, tagger: Tagger) -> torch.optim.Optimizer:
    """The optimizer of what trains."""
    train = config.train
    groups = tagger.parameter_groups(train.lr, train.head_lr, train.weight_decay)
    return build_optimizer(groups, train.optimizer, train.momentum)


def build_ema(config: Config, net: nn.Module) -> AveragedModel | None:
    """A running mean of what trains, where it is wanted."""
    return None if config.train.ema is None else build_ema_model(net, config.train.ema)


def build_schedule(config: Config, steps: int) -> Any:
    """Step -> share of the learning rates, over `steps` steps an epoch."""
    total = steps * config.train.epochs
    warmup = round(total * config.train.warmup_ratio)
    return lambda step: lr_at(step, total, warmup)


def build_step_options(config: Config, device: torch.device, dtype: torch.dtype) -> StepOptions:
    """How every training step is taken."""
    train = config.train
    skip = train.not_finite == "skip"
    return StepOptions(device, dtype, train.accumulate, train.clip_grad_norm, skip)


def build_checkpoint(
    config: Config, tagger: Tagger, val: Manifest, spec: TransformSpec, epoch: int
) -> Checkpoint:
    """Everything that predicting needs, weights copied to the CPU."""
    return Checkpoint(
        weights={k: v.detach().to("cpu", copy=True) for k, v in tagger.state_dict().items()},
        labels=val.labels,
        transform=spec,
        backbone=config.model.backbone,
        decision=DecisionRule.plain(len(val.labels)),
        config=config.model_dump(mode="json"),
        data_digest=digest_manifest(val),
        epoch=epoch,
        versions={
            "mlfinetune": __version__,
            "torch": torch.__version__,
            "torchvision": version("torchvision"),
        },
    )


def locate_images(config: Config, manifest: Manifest) -> dict[str, Any]:
    """Where the pictures of results are, for a report's thumbnails."""
    return {"images_root": str(manifest.root), "max_pixels": config.data.max_pixels}


def compute_pos_weight(wanted: str | dict[str, float] | None, train: Manifest) -> Tensor | None:
    """(L,) weights of the positive targets.

    Args:
        wanted: None; `auto`, the known negatives over the known positives of a label, at most
            100, and 1 for a label without positives; or label -> weight, 1 for the others.
        train: the training examples.

    Raises:
        ConfigError: a weight for a label that is not there.
    """
    if wanted is None:
        return None
    if wanted == "auto":
        positives, negatives = _count_targets(train)
        ratio = negatives / positives.clamp(min=1)
        return torch.where(positives > 0, ratio, 1).clamp(max=MAX_POS_WEIGHT).float()
    assert isinstance(wanted, dict)
    column = train.labels.column
    unknown = [name for name in wanted if name not in column]
    if unknown:
        hint = suggest(unknown[0], train.labels.names)
        raise ConfigError(f"loss.pos_weight: no label '{unknown[0]}'{hint}")
    weights = torch.ones(len(column))
    for name, weight in wanted.items():
        weights[column[name]] = weight
    return weights


def compute_log_odds(train: Manifest) -> Tensor:
    """(L,) log of positives over negatives, each counted one too many."""
    positives, negatives = _count_targets(train)
    return torch.log((positives + 1) / (negatives + 1)).float()


def _count_targets(manifest: Manifest) -> tuple[Tensor, Tensor]:
    positives, negatives, _ = manifest.targets.counts()
    return torch.from_numpy(positives).double(), torch.from_numpy(negatives).double()
