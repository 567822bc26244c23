"""`mlfinetune bench`: config -> examples -> parts -> each stage timed -> what holds the run back.

It trains a model that is thrown away, and leaves no files.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from mlfinetune.config import Config
from mlfinetune.data.batches.batch import Batch
from mlfinetune.data.batches.features import choose_views
from mlfinetune.data.load import load_splits
from mlfinetune.data.manifest import Manifest, Splits
from mlfinetune.runtime.device import (
    choose_precision,
    count_cores,
    oom_as_device_error,
    prepare_device,
    synchronize_device,
)
from mlfinetune.runtime.log import RunLog
from mlfinetune.training.autotune import (
    TrialRun,
    build_trial,
    build_trial_loader,
    choose_batch_size,
    choose_worker_count,
    repeat_epochs,
)
from mlfinetune.training.bottleneck import (
    Speeds,
    Times,
    Work,
    estimate_times,
    find_bottleneck,
    suggest_change,
)
from mlfinetune.training.build import (
    build_transform_spec,
    get_batch_size,
    opened_image_copies,
    precomputes_features,
)
from mlfinetune.training.step import train_step
from mlfinetune.training.timing import time_rate

LOADER_S, FORWARD_S, STEP_S, SMALL_S = 5.0, 3.0, 6.0, 0.5
"""Seconds that a stage is timed for; three calls at least."""
COPIED = 64
"""Pictures that small copies are made of, where the run would read such."""
CPU_BATCH = 8
"""Pictures of a step that is timed on a CPU: more are hardly any faster there, and take long."""
BOUNDS = {
    "loader": "the loader",
    "copy": "the copy to the GPU",
    "forward": "the backbone's forward pass",
    "step": "the training step",
}


@dataclass(frozen=True)
class Stage:
    """A row of the table: what is timed, images/s, and how often the run pays for it."""

    name: str
    rate: float
    paid: str


@dataclass(frozen=True)
class BenchResult:
    """What was found.

    Attributes:
        stages: in the order that a picture goes through them.
        bound: what holds the run back.
        times: of the run.
        work: the run.
        suggestion: one change.
    """

    stages: tuple[Stage, ...]
    bound: str
    times: Times
    work: Work
    suggestion: str


def run(config: Config, device_name: str, log: RunLog) -> BenchResult:
    """Time the stages of a run on its own pictures, half a minute in all.

    Raises:
        MlfinetuneError: what `train` could not use.
    """
    splits = load_splits(config, log if config.data.bad_images == "skip" else None)
    device = prepare_device(device_name)
    dtype, why = choose_precision(config.train.precision, device)
    with oom_as_device_error():
        config, tried = choose_batch_size(config, splits.train, device, dtype)
        workers, why_workers = choose_worker_count(config, splits.train, device, dtype)
        log.say(
            f"{config.model.backbone}; device {device}, precision "
            f"{str(dtype).removeprefix('torch.')} ({why}), "
            f"{workers} decoding processes ({why_workers})"
        )
        if tried is not None:
            log.say(tried)
        work = _work(config, splits, device, dtype, workers)
        speeds = _speeds(config, splits, device, dtype, work, log)
    stages = _stages(speeds, work)
    return BenchResult(
        tuple(stages.values()),
        BOUNDS[find_bottleneck(speeds, work)],
        estimate_times(speeds, work),
        work,
        suggest_change(speeds, work),
    )


def _work(
    config: Config, splits: Splits, device: torch.device, dtype: torch.dtype, workers: int
) -> Work:
    """What the run's time depends on, beside speeds."""
    once = precomputes_features(config)
    seen = choose_views(build_transform_spec(config), config.train.cache_views) if once else ()
    drawn = sum(view.epoch is not None for view in seen)
    fast, _ = choose_precision("auto", device)
    return Work(
        train=len(splits.train),
        val=len(splits.val),
        epochs=config.train.epochs,
        batch_size=get_batch_size(config),
        workers=workers,
        cores=count_cores(),
        gpu=device.type != "cpu",
        frozen=config.model.freeze_backbone,
        views=len(seen),
        decodings=drawn + any(view.epoch is None for view in seen),
        copies_off=config.data.cache_images == "off",
        slow_type=fast == torch.bfloat16 != dtype,
    )


def _speeds(
    config: Config,
    splits: Splits,
    device: torch.device,
    dtype: torch.dtype,
    work: Work,
    log: RunLog,
) -> Speeds:
    """Every stage, timed by itself."""
    loader, pictures = _loading(config, splits.train, device, work.workers, log)
    parts = build_trial(config, splits.train, device, dtype)
    size = work.batch_size if work.gpu else min(CPU_BATCH, work.batch_size)
    here = _of_size(pictures, size, pin=device.type == "cuda")
    there = replace(here, images=here.images.to(device), targets=here.targets.to(device))

    def settle() -> None:
        synchronize_device(device)

    def copy() -> int:
        return len(here.images.to(device, non_blocking=True))

    step = larger = head = None
    if not work.views:
        step = time_rate(lambda: parts.step(there), STEP_S, settle)
        larger = _larger(parts, there) if device.type == "cuda" else None
    if work.frozen:
        head = _head(parts, _of_size(there, work.batch_size))
    return Speeds(
        loader=loader,
        copy=time_rate(copy, SMALL_S, settle) if device.type == "cuda" else None,
        forward=time_rate(lambda: parts.look(there), FORWARD_S),
        step=step,
        larger=larger,
        head=head,
        loss=_loss(parts, _of_size(there, work.batch_size).targets),
    )


def _loading(
    config: Config, train: Manifest, device: torch.device, workers: int, log: RunLog
) -> tuple[float, Batch]:
    """Images a second of the loader, and some pictures; its processes end here."""
    few = train.take(list(range(0, len(train), -(-len(train) // COPIED))))
    spec = build_transform_spec(config)
    with (
        TemporaryDirectory() as folder,
        opened_image_copies(config, few, spec, Path(folder), log) as copies,
    ):
        loader = build_trial_loader(config, train if copies is None else few, device, workers)
        if copies is not None:
            loader.read_copies(copies)
        batches = repeat_epochs(loader)
        some = next(batches)

        def round_of_all() -> int:  # each process has sent a batch, on average
            return sum(len(next(batches).images) for _ in range(max(1, workers)))

        return time_rate(round_of_all, LOADER_S), some


def _of_size(some: Batch, size: int, pin: bool = False) -> Batch:
    """A batch of `size`, of these pictures over and over."""
    rows = torch.arange(size, device=some.images.device) % len(some.images)
    images, targets = some.images[rows], some.targets[rows]
    if pin:
        images, targets = images.pin_memory(), targets.pin_memory()
    return Batch(images, targets, torch.arange(size))


def _larger(parts: TrialRun, batch: Batch) -> float | None:
    """Images a second with twice the batch; None where it does not fit."""
    try:
        twice = _of_size(batch, 2 * len(batch.images))
        return time_rate(
            lambda: parts.step(twice), STEP_S / 2, lambda: synchronize_device(parts.settings.device)
        )
    except torch.OutOfMemoryError:
        return None
    finally:
        torch.cuda.empty_cache()


def _head(parts: TrialRun, batch: Batch) -> float:
    """Images a second of a step of the head alone."""
    device = parts.settings.device
    width = parts.tagger.head.in_features
    features = torch.randn(len(batch.images), width, device=device)
    known = replace(batch, images=features)
    plain = replace(parts.settings, dtype=torch.float32)

    def step() -> int:
        train_step(parts.tagger.head, known, parts.loss, parts.optimizer, plain)
        return len(features)

    return time_rate(step, SMALL_S, lambda: synchronize_device(device))


def _loss(parts: TrialRun, targets: Tensor) -> float:
    """Images a second of the loss, forward and backward."""
    logits = torch.randn(targets.shape, device=targets.device, requires_grad=True)
    known = (targets >= 0).sum().clamp(min=1)

    def step() -> int:
        logits.grad = None
        torch.autograd.backward(parts.loss(logits, targets, divisor=known))
        return len(targets)

    return time_rate(step, SMALL_S, lambda: synchronize_device(targets.device))


def _stages(speeds: Speeds, work: Work) -> dict[str, Stage]:
    """The table's rows, by their fields of Speeds."""
    often = "every epoch"
    early = f"once, {work.views} views" if work.views else often
    decoded = f"once, {work.decodings} decodings" if work.decodings > 1 else "once"
    rows = {
        "loader": (f"loader (workers: {work.workers})", decoded if work.views else often),
        "copy": ("copy to the GPU", early),
        "forward": ("backbone forward", early if work.views else "validation"),
        "step": ("training step", often),
        "larger": (f"training step, batch {2 * work.batch_size}", "tried"),
        "head": ("head step, on features", "every pass" if work.views else "in the step"),
        "loss": ("loss alone", "in the step"),
    }
    found = ((field, *row, getattr(speeds, field)) for field, row in rows.items())
    return {field: Stage(name, rate, paid) for field, name, paid, rate in found if rate}
