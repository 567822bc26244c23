"""Builders: the config becomes model, loss, optimizer, loaders, checkpoint.

    Config -> build_model, build_loader, build_training_loss, build_training_optimizer, ...

The config stops here: what is built takes plain values. `data/load.py` reads its `data` section.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from mlfinetune.config import LOSS_SETTINGS, SOLVED_HEADS, Config
from mlfinetune.data.batches.copies import SmallCopies
from mlfinetune.data.batches.copy_storage import opened_copies
from mlfinetune.data.batches.loader import BatchShare, Loader, cut_batches, make_copies
from mlfinetune.data.batches.sampling import choose_factors
from mlfinetune.data.images.transforms import TransformSpec
from mlfinetune.data.manifest import Manifest, digest_manifest
from mlfinetune.errors import ConfigError
from mlfinetune.loss import Loss, build_loss, choose_backend, try_triton
from mlfinetune.metrics.implies import list_pairs
from mlfinetune.metrics.types import DecisionRule
from mlfinetune.models.backbones import build_backbone, choose_levels
from mlfinetune.models.inference import place_on_device
from mlfinetune.models.sizes import takes_one_picture
from mlfinetune.models.tagger import Tagger
from mlfinetune.models.timm_backbones import is_timm
from mlfinetune.runs.checkpoint import Checkpoint
from mlfinetune.runtime.log import RunLog
from mlfinetune.runtime.threads import one_thread
from mlfinetune.text import suggest
from mlfinetune.training.network import LoadedWeights, load_weights, resolve_network
from mlfinetune.training.optim import build_ema_model, build_optimizer, compute_lr_factor
from mlfinetune.training.step import StepOptions
from mlfinetune.version import __version__

MAX_POS_WEIGHT = 100.0
"""Largest weight that `pos_weight: auto` gives: a label with one positive picture in ten thousand
must not outweigh the others."""

MANY_LABELS = 10_000
"""Number of labels from which a head counts as very large: its whole gradient is not kept (at 2,048
features it would take 82 MB and more), and L-BFGS is not chosen for it."""

MIN_BATCH_NORM_IMAGES = 16
"""Pictures of one rank that are enough for its own BatchNorm statistics. The limit is our choice:
the error of a ResNet-50 rises fast as they get fewer (Wu & He 2018, Group Normalization)."""

EMA_REACH = 0.5
"""Share of all steps that `train.ema: auto` reaches back (measured: `benchmarks/finetune.py`)."""

MAX_EVAL_BATCH = 256
"""Greatest number of pictures in a batch of evaluation, which one device computes. A batch of
training may be shared by many GPUs."""


def get_batch_size(config: Config) -> int:
    """Return the number of images in a step; `autotune` has replaced `auto` by a number."""
    assert config.train.batch_size != "auto"
    return config.train.batch_size


@one_thread()
def build_model(
    config: Config, train: Manifest, spec: TransformSpec, device: torch.device, processes: int = 1
) -> tuple[Tagger, LoadedWeights]:
    """Build the tagger with its pretrained backbone, on the device.

    Args:
        train: the training examples; they decide the number of labels and `head_bias: prior`.
        spec: has the mean and standard deviation of the channels, and the image size.
        processes: number of ranks that train it together.

    Returns:
        The tagger, and what was taken of a weights file.

    Raises:
        CheckpointError: the weights are a run directory without a checkpoint.
        ConfigError: an unknown backbone, or batches that BatchNorm cannot train on.
        WeightsError: the weights cannot be had, or do not fit.
    """
    config = resolve_network(config)
    model = config.model
    _require_batches(config, len(train), spec.image_size, processes)
    prior = compute_log_odds(train) if model.head_bias == "prior" else None
    tagger = Tagger(
        model.backbone,
        len(train.labels),
        levels=choose_levels(model.backbone, model.levels),
        image_size=spec.image_size,
        mean=spec.mean,
        std=spec.std,
        frozen=model.freeze_backbone,
        bias=prior,
        chunked=chunks_head(config, train, processes),
    )
    loaded = load_weights(config, tagger, train.labels.names)
    return place_on_device(tagger, device), loaded


def _require_batches(config: Config, images: int, side: int, processes: int) -> None:
    """Raise a ConfigError if a rank would have no picture of a batch, or too few for BatchNorm.

    Where the last map has one pixel (a ResNet's at 32 pixels), with one picture BatchNorm would see
    one value.

    Args:
        images: number of training images.
        side: of the input, in pixels.
    """
    size = get_batch_size(config)
    if size < processes:
        raise ConfigError(
            f"train.batch_size {size} is that of all {processes} processes together: not one "
            f"picture for each"
        )
    if config.model.freeze_backbone:
        return
    if syncs_batch_norm(config, processes):
        processes = 1  # BatchNorm learns as if there were one
    sizes = {len(batch) for batch in cut_batches(list(range(images)), size)}
    pieces = {count // min(config.train.accumulate, count) for count in sizes}
    # Shares of a piece differ by at most one picture. A share of 0 pictures is allowed, 1 is not.
    shares = {share for piece in pieces for share in (piece // processes, -(-piece // processes))}
    name = config.model.backbone
    if 1 in shares and not takes_one_picture(lambda s: build_backbone(name, 1, s)[0], side):
        raise ConfigError(
            f"one picture of {side} px at a time gives BatchNorm one value a channel to learn "
            "from; raise train.batch_size or model.image_size, or set model.freeze_backbone: true"
        )


def syncs_batch_norm(config: Config, processes: int) -> bool:
    """Tell whether BatchNorm learns from the pictures of all ranks.

    With `train.sync_batch_norm: auto`, 4 ranks: a batch of 32 is 8 for each: yes; 256: no.
    """
    if config.model.freeze_backbone or processes == 1:
        return False
    wanted = config.train.sync_batch_norm
    few = get_batch_size(config) < MIN_BATCH_NORM_IMAGES * config.train.accumulate * processes
    return few if wanted == "auto" else wanted


def chunks_head(config: Config, train: Manifest, processes: int = 1) -> bool:
    """Tell whether the head is so large that its weights are stepped chunk by chunk.

    Several ranks sum the gradients first, so they have to keep all of them.
    """
    many = len(train.labels) >= MANY_LABELS and config.train.accumulate == processes == 1
    return many and config.train.optimizer != "lbfgs" and config.train.not_finite == "stop"


def precomputes_features(config: Config) -> bool:
    """Tell whether the backbone is frozen, and features are computed once for every picture."""
    return config.model.freeze_backbone and config.train.cache_features == "auto"


def list_freezing_obstacles(config: Config) -> list[str]:
    """List the keys that are set, and that features computed once do not go with."""
    keys = (*SOLVED_HEADS, "layer_decay", "cache_features")
    fields = type(config.train).model_fields
    return [f"train.{key}" for key in keys if getattr(config.train, key) != fields[key].default]


def uses_lbfgs(config: Config, train: Manifest) -> bool:
    """Tell whether L-BFGS solves for the head.

    L-BFGS keeps forty copies of the head, so `auto` does not choose it for a very large one.
    """
    wanted = config.train.optimizer
    small = len(train.labels) < MANY_LABELS
    return wanted == "lbfgs" or (wanted == "auto" and precomputes_features(config) and small)


def require_lbfgs_fits(config: Config, train: Manifest) -> None:
    """Raise a ConfigError if the head is to be solved for, and labels are too many."""
    for key in SOLVED_HEADS:
        if getattr(config.train, key) and len(train.labels) >= MANY_LABELS:
            raise ConfigError(
                f"train.{key}: L-BFGS keeps forty copies of the head, too many for "
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
    """Build the loader of a manifest, to train or to evaluate.

    Args:
        workers: decoding processes.
        train: shuffle and augment.
        rank, size: this rank and the number of ranks: the loader gives this rank's share.
    """
    pictures = get_batch_size(config)
    return Loader(
        manifest,
        spec,
        batch_size=pictures if train else min(pictures, MAX_EVAL_BATCH),
        workers=workers,
        train_seed=config.train.seed if train else None,
        pin_memory=device.type == "cuda",
        share=BatchShare(rank, size, config.train.accumulate),
        factors=choose_factors(config.train.sampling, manifest.targets) if train else None,
    )


@contextmanager
def opened_image_copies(
    config: Config, train: Manifest, spec: TransformSpec, root: Path | None, log: RunLog
) -> Iterator[SmallCopies | None]:
    """Context with the small copies of large training pictures; missing ones are made first.

    Yields:
        None where this run reads no copies; the log says why.
    """
    once, epochs = precomputes_features(config), config.train.epochs
    with opened_copies(config.data.cache_images, train, spec, epochs, once, root) as found:
        log.say(found.message)
        with log.bar("small copies of large pictures", len(found.missing)) as bar:
            for done in found.fill(make_copies(found.missing, spec, config.train.workers)):
                bar.update(done)
        yield found.copies


def build_training_loss(config: Config, train: Manifest, device: torch.device) -> tuple[Loss, str]:
    """Build the loss with its weights on the device.

    Returns:
        The loss, and a line for the log: its settings, the backend and the reason for it.

    Raises:
        ConfigError: a weight for a label that does not exist, or a backend that does not run here.
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
    settings = {key: getattr(wanted, key) for key in LOSS_SETTINGS.get(wanted.name, ())}
    loss = build_loss(
        wanted.name,
        pos_weight=None if weights is None else weights.to(device),
        label_smoothing=wanted.label_smoothing,
        backend=backend,
        **settings,
    )
    shown = "".join(f", {key} {value:g}" for key, value in settings.items())
    return loss, f"loss {wanted.name}{shown}; backend {backend} ({why})"


def build_training_optimizer(config: Config, tagger: Tagger) -> torch.optim.Optimizer:
    """Build the optimizer of the parameters that train."""
    train = config.train
    groups = tagger.parameter_groups(train.lr, train.head_lr, train.weight_decay, train.layer_decay)
    return build_optimizer(groups, train.optimizer, train.momentum)


def build_ema(config: Config, net: nn.Module, steps: int) -> AveragedModel | None:
    """Build the exponential moving average of `net`; None where `train.ema` is not set.

    Args:
        steps: optimizer steps an epoch.
    """
    train = config.train
    if train.ema is None:
        return None
    if train.ema != "auto":
        return build_ema_model(net, train.ema)
    reach = max(2.0, EMA_REACH * steps * train.epochs)
    return build_ema_model(net, 1 - 1 / reach, from_start=train.solve_head_first)


def build_schedule(config: Config, steps: int) -> Callable[[int], float]:
    """Build the schedule: a function from the step to the factor of the learning rates.

    Args:
        steps: optimizer steps an epoch.
    """
    total = steps * config.train.epochs
    warmup = round(total * config.train.warmup_ratio)
    return lambda step: compute_lr_factor(step, total, warmup)


def build_step_options(config: Config, device: torch.device, dtype: torch.dtype) -> StepOptions:
    """Return the options of every training step, for one rank."""
    train = config.train
    skip = train.not_finite == "skip"
    return StepOptions(device, dtype, train.accumulate, train.clip_grad_norm, skip)


def build_checkpoint(
    config: Config, tagger: Tagger, val: Manifest, spec: TransformSpec, epoch: int
) -> Checkpoint:
    """Build the checkpoint: everything that prediction needs, weights copied to the CPU.

    Its thresholds are 0.5 until the run's end, when `fit_decision_rule` fits others.

    Args:
        val: validation examples, for the labels and the digest of the data.
        epoch: number of the candidate, see `Candidate.number`.
    """
    return Checkpoint(
        weights={k: v.detach().to("cpu", copy=True) for k, v in tagger.state_dict().items()},
        labels=val.labels,
        transform=spec,
        backbone=config.model.backbone,
        levels=choose_levels(config.model.backbone, config.model.levels),
        decision=replace(
            DecisionRule.plain(len(val.labels)), implies=list_pairs(config.data.implies, val.labels)
        ),
        config=config.model_dump(mode="json"),
        data_digest=digest_manifest(val),
        epoch=epoch,
        views=config.eval.views,
        versions=find_versions(config.model.backbone),
    )


def find_versions(backbone: str) -> dict[str, str]:
    """Return the versions of the packages that a network is computed with."""
    names = ["torchvision", *(["timm"] if is_timm(backbone) else [])]
    packages = {name: version(name) for name in names}
    return {"mlfinetune": __version__, "torch": torch.__version__, **packages}


def locate_images(config: Config, manifest: Manifest) -> dict[str, Any]:
    """Return what a report needs to read the pictures for its thumbnails."""
    return {"images_root": str(manifest.root), "max_pixels": config.data.max_pixels}


def compute_pos_weight(wanted: str | dict[str, float] | None, train: Manifest) -> Tensor | None:
    """Compute the weights of the positive targets: (L,), or None for weights of 1.

    Args:
        wanted: None; `auto`: the known negatives over the known positives of a label, at most
            100, and 1 for a label without positives; or label -> weight, 1 for other labels.
        train: the training examples.

    Raises:
        ConfigError: a weight for a label that does not exist.
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
    """Compute (L,) log((positives + 1) / (negatives + 1)); the ones keep it finite."""
    positives, negatives = _count_targets(train)
    return torch.log((positives + 1) / (negatives + 1)).float()


def _count_targets(manifest: Manifest) -> tuple[Tensor, Tensor]:
    positives, negatives, _ = manifest.targets.counts()
    return torch.from_numpy(positives).double(), torch.from_numpy(negatives).double()
