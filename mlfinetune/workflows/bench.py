"""`mlfinetune bench`: config -> examples -> each stage of a run, timed -> its bottleneck.

It trains a model that is thrown away, and leaves no files.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from mlfinetune.config import Config
from mlfinetune.data.batches.batch import Batch
from mlfinetune.data.batches.features import (
    View,
    choose_views,
)
from mlfinetune.data.load import load_splits
from mlfinetune.data.manifest import Manifest, Splits
from mlfinetune.runs.trained_on import read_former_labels
from mlfinetune.runtime.device import (
    choose_precision,
    count_cores,
    name_dtype,
    oom_as_device_error,
    prepare_device,
    synchronize_device,
)
from mlfinetune.runtime.log import RunLog
from mlfinetune.runtime.threads import ThreadChooser
from mlfinetune.storage.store import temporary_folder
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
    get_batch_size,
    list_freezing_obstacles,
    opened_image_copies,
    precomputes_features,
)
from mlfinetune.training.features import EVAL_VIEWS
from mlfinetune.training.network import build_transform_spec, require_network
from mlfinetune.training.step import train_step
from mlfinetune.training.timing import time_rate

LOADER_S, FORWARD_S, STEP_S, SMALL_S = 5.0, 3.0, 6.0, 0.5
"""Seconds for which each kind of stage is timed; at least three calls are timed."""
COPIED = 64
"""Pictures to make small copies of, where the run would read such copies."""
CPU_BATCH = 8
"""Pictures in a step that is timed on a CPU: a larger batch is hardly faster, and takes long."""
STAGE_NAMES = {
    "loader": "the loader",
    "copy": "the copy to the GPU",
    "forward": "the backbone's forward pass",
    "step": "the training step",
}


@dataclass(frozen=True)
class Stage:
    """A row of the table: the stage, its images/s, and when a run pays for it (`every epoch`)."""

    name: str
    rate: float
    paid: str


@dataclass(frozen=True)
class BenchResult:
    """Speeds of a run's stages, and the conclusion.

    Attributes:
        stages: in the order that a picture goes through them.
        bound: the stage that holds the run back (its bottleneck), in words.
        times: estimated times of the run.
        work: the amounts that these times depend on.
        suggestion: the one change that helps most, in words.
    """

    stages: tuple[Stage, ...]
    bound: str
    times: Times
    work: Work
    suggestion: str


def run(config: Config, device_name: str, log: RunLog) -> BenchResult:
    """Time the stages of a run on its own pictures; it takes half a minute.

    Args:
        config: of the run, as `train` takes it.
        device_name: auto, cpu, cuda, cuda:N or mps.
        log: says which device, precision and number of processes are timed.

    Raises:
        MlfinetuneError: data, weights or a device that cannot be used, as in `train`.
    """
    require_network(config)
    scan_log = log if config.data.bad_images == "skip" else None
    splits = load_splits(config, scan_log, former=read_former_labels(config))
    device = prepare_device(device_name)
    dtype, reason = choose_precision(config.train.precision, device)
    with oom_as_device_error():
        config, batch_note = choose_batch_size(config, splits.train, device, dtype)
        workers, worker_reason = choose_worker_count(config, splits.train, device, dtype)
        log.say(
            f"{config.model.backbone}; device {device}, precision {name_dtype(dtype)} ({reason}), "
            f"decoding processes: {workers} ({worker_reason})"
        )
        if batch_note is not None:
            log.say(batch_note)
        work = _describe_work(config, splits, device, dtype, workers)
        speeds = _measure_speeds(config, splits, device, dtype, work, log)
    return BenchResult(
        _build_stages(speeds, work),
        STAGE_NAMES[find_bottleneck(speeds, work)],
        estimate_times(speeds, work),
        work,
        suggest_change(speeds, work),
    )


def _describe_work(
    config: Config, splits: Splits, device: torch.device, dtype: torch.dtype, workers: int
) -> Work:
    """Collect the amounts of work of a run: images, epochs, views, processes."""
    views: tuple[View, ...] = ()
    if precomputes_features(config):
        views = choose_views(build_transform_spec(config), config.train.cache_views)
    random_views = sum(view.epoch is not None for view in views)
    has_plain_view = len(views) > random_views
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
        views=len(views),
        decodings=random_views + has_plain_view,  # the picture and its mirror image share one
        copies_off=config.data.cache_images == "off",
        slow_type=fast == torch.bfloat16 != dtype,
        eval_views=len(EVAL_VIEWS[config.eval.views]),
        pretrained=config.model.weights is not None,
        cache_views=config.train.cache_views,
        solutions=config.train.count_solutions(),
        obstacles=tuple(list_freezing_obstacles(config)),
    )


def _measure_speeds(
    config: Config,
    splits: Splits,
    device: torch.device,
    dtype: torch.dtype,
    work: Work,
    log: RunLog,
) -> Speeds:
    """Time every stage by itself."""
    loader_rate, pictures = _time_loader(config, splits.train, device, work.workers, log)
    trial = build_trial(config, splits.train, device, dtype)
    size = work.batch_size if work.gpu else min(CPU_BATCH, work.batch_size)
    host_batch = _repeat_to_size(pictures, size, pin=device.type == "cuda")
    images, targets = host_batch.images.to(device), host_batch.targets.to(device)
    batch = replace(host_batch, images=images, targets=targets)

    def settle() -> None:
        synchronize_device(device)

    def copy() -> int:
        return len(host_batch.images.to(device, non_blocking=True))

    step = larger = head = None
    if not work.views:
        step = time_rate(lambda: trial.step(batch), STEP_S, settle)
        larger = _time_larger_step(trial, batch) if device.type == "cuda" else None
    if work.frozen:
        head = _time_head_step(trial, _repeat_to_size(batch, work.batch_size))
    return Speeds(
        loader=loader_rate,
        copy=time_rate(copy, SMALL_S, settle) if device.type == "cuda" else None,
        forward=time_rate(lambda: trial.infer(batch), FORWARD_S),
        step=step,
        larger=larger,
        head=head,
        loss=_time_loss(trial, _repeat_to_size(batch, work.batch_size).targets),
    )


def _time_loader(
    config: Config, train: Manifest, device: torch.device, workers: int, log: RunLog
) -> tuple[float, Batch]:
    """Return images/s of the loader, and one batch; its processes have ended on return."""
    with temporary_folder() as folder:
        return _time_loader_with_copies(config, train, device, workers, folder, log)


def _time_loader_with_copies(
    config: Config, train: Manifest, device: torch.device, workers: int, folder: Path, log: RunLog
) -> tuple[float, Batch]:
    """Return the same; small copies, where the run would make them, are made in the folder."""
    few = train.take(list(range(0, len(train), -(-len(train) // COPIED))))
    spec = build_transform_spec(config)
    with opened_image_copies(config, few, spec, folder, log) as copies:
        loader = build_trial_loader(config, train if copies is None else few, device, workers)
        if copies is not None:
            loader.read_copies(copies)
        batches = repeat_epochs(loader)
        first = next(batches)

        # As many batches as there are processes: on average, one from each of them.
        def load_round() -> int:
            return sum(len(next(batches).images) for _ in range(max(1, workers)))

        return time_rate(load_round, LOADER_S), first


def _repeat_to_size(batch: Batch, size: int, pin: bool = False) -> Batch:
    """Return a batch of `size` images, those of `batch` over and over: a b, size 5 -> a b a b a."""
    rows = torch.arange(size, device=batch.images.device) % len(batch.images)
    images, targets = batch.images[rows], batch.targets[rows]
    if pin:
        images, targets = images.pin_memory(), targets.pin_memory()
    return Batch(images, targets, torch.arange(size))


def _time_larger_step(trial: TrialRun, batch: Batch) -> float | None:
    """Return images/s of a training step with twice the batch; None where it does not fit."""
    device = trial.options.device
    try:
        twice = _repeat_to_size(batch, 2 * len(batch.images))
        return time_rate(lambda: trial.step(twice), STEP_S / 2, lambda: synchronize_device(device))
    except torch.OutOfMemoryError:
        return None
    finally:
        torch.cuda.empty_cache()


def _time_head_step(trial: TrialRun, batch: Batch) -> float:
    """Return images/s of a training step of the head alone, on random features."""
    device = trial.options.device
    width = trial.tagger.head.in_features
    features = torch.randn(len(batch.images), width, device=device)
    feature_batch = replace(batch, images=features)
    options = replace(trial.options, dtype=torch.float32)

    def step() -> int:
        train_step(trial.tagger.head, feature_batch, trial.loss, trial.optimizer, options)
        return len(features)

    with ThreadChooser().threads_for(features.numel() * batch.targets.shape[1]):
        return time_rate(step, SMALL_S, lambda: synchronize_device(device))


def _time_loss(trial: TrialRun, targets: Tensor) -> float:
    """Return images/s of the loss, forward and backward, on random logits."""
    logits = torch.randn(targets.shape, device=targets.device, requires_grad=True)
    known = (targets >= 0).sum().clamp(min=1)

    def step() -> int:
        logits.grad = None
        torch.autograd.backward(trial.loss(logits, targets, divisor=known))
        return len(targets)

    return time_rate(step, SMALL_S, lambda: synchronize_device(targets.device))


def _build_stages(speeds: Speeds, work: Work) -> tuple[Stage, ...]:
    """Build the rows of the table, without the stages that were not timed."""
    every_epoch = "every epoch"
    seen = f"once, {work.views} views" if work.views > 1 else "once"
    on_device = seen if work.views else every_epoch
    validation = f"validation, {work.eval_views} views" if work.eval_views > 1 else "validation"
    decoded = f"once, {work.decodings} decodings" if work.decodings > 1 else "once"
    rows = (
        (
            f"loader (workers: {work.workers})",
            speeds.loader,
            decoded if work.views else every_epoch,
        ),
        ("copy to the GPU", speeds.copy, on_device),
        ("backbone forward", speeds.forward, on_device if work.views else validation),
        ("training step", speeds.step, every_epoch),
        (f"training step, batch {2 * work.batch_size}", speeds.larger, "tried"),
        ("head step, on features", speeds.head, "every pass" if work.views else "in the step"),
        ("loss alone", speeds.loss, "in the step"),
    )
    return tuple(Stage(name, rate, paid) for name, rate, paid in rows if rate)
