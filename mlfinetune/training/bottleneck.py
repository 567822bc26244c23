"""The stage that holds a run back, and one change that would help. Independent of model and config.

Speeds, Work -> estimate_times   seconds of the run
             -> find_bottleneck  the stage that the run waits for most
             -> suggest_change   the one change that saves most for least

Before anything is timed, numbers of pictures and epochs alone say how the backbone's work compares:

Passes -> compare_with_freezing   26: all epochs are so many times the work of freezing
       -> choose_way              the key that `init` sets on this machine
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from mlfinetune.text import pluralize

MIN_SAVING = 0.1
"""Smallest share of the time that a change has to save to be suggested."""
SLOW_DECODING = 150.0
"""Images/s of one process below which pictures must be large: of 500 px it decodes about 400."""
FREEZE_SPEEDUP, LONG_S = 3.0, 600.0
"""Freezing is suggested if it makes a run this many times as fast; on a GPU, where minutes buy a
better tagger, only if the run is this long."""
FIXED_S = 6.0
"""Seconds that a run takes beside its pictures: start, head, results (fixed_seconds.json)."""
STEP_PASSES = 3
"""Work of a training step in forward passes: the backward pass computes two gradients."""
GOES_WITH: dict[str, dict[str, bool | str]] = {
    "train.solve_head_first": {"train.solve_head_last": True, "train.ema": "auto"}
}
"""Settings that a chosen way has besides (measured: `benchmarks/finetune.py`)."""
FEW_PICTURES, FEW_LABELS = 50_000, 1000
"""Up to here a solved head to start from costs little beside one epoch of fine-tuning."""


@dataclass(frozen=True)
class Speeds:
    """Images a second of each stage; None where the run has no such stage.

    Attributes:
        loader: decoding and transforming, with the run's processes.
        copy: to the GPU.
        forward: the backbone as evaluation runs it.
        step: a training step, without loading.
        larger: a training step with twice the batch, where it was tried and fits.
        head: a training step of the head, on features.
        loss: forward and backward.
    """

    loader: float
    copy: float | None
    forward: float
    step: float | None
    larger: float | None
    head: float | None
    loss: float


@dataclass(frozen=True)
class Work:
    """Sizes and settings of a run that its time depends on, beside the speeds.

    Attributes:
        train, val: numbers of images.
        epochs, batch_size: as in the config.
        workers, cores: decoding processes, and cores for them.
        gpu: the model runs on a GPU; on a CPU it shares the cores with the decoding processes.
        frozen: the backbone does not train.
        views, decodings: number of views and of decodings of a picture, where features are
            computed once; views 0: every epoch goes through the backbone.
        copies_off: the config forbids small copies of large pictures.
        eval_views: number of views of a picture in validation, which share one decoding.
        slow_type: the hardware is fast at bfloat16, and the run does not use it.
        pretrained: the backbone starts from weights: frozen it is of use.
        cache_views: number of views whose features would be computed, if the backbone were frozen.
        solutions: how often the head is solved for beside the epochs, on features.
        obstacles: keys of the config that a frozen backbone does not go with.
    """

    train: int
    val: int
    epochs: int
    batch_size: int
    workers: int
    cores: int
    gpu: bool
    frozen: bool
    views: int
    decodings: int
    copies_off: bool
    slow_type: bool
    pretrained: bool
    eval_views: int = 1
    cache_views: int = 1
    solutions: int = 0
    obstacles: tuple[str, ...] = ()


@dataclass(frozen=True)
class Times:
    """Seconds that are paid once, for features, and those of an epoch or of a pass over them."""

    once: float
    epoch: float


def estimate_times(speeds: Speeds, work: Work) -> Times:
    """Estimate how long a run takes; saving and start-up are left out."""
    scored = speeds.forward / work.eval_views
    val = work.val * _compute_seconds_per_image(speeds.loader, scored, work)
    if work.views:
        decoded, seen = speeds.loader / work.decodings, speeds.forward / work.views
        assert speeds.head is not None
        once = work.train * _compute_seconds_per_image(decoded, seen, work) + val
        return Times(once, work.train / speeds.head)
    return Times(
        work.solutions * _estimate_seconds_if_frozen(speeds, work) if work.solutions else 0.0,
        work.train
        * _compute_seconds_per_image(speeds.loader, _compute_device_rate(speeds, work), work)
        + val,
    )


def find_bottleneck(speeds: Speeds, work: Work) -> str:
    """Return the field of Speeds that the run waits for most."""
    if work.views:
        return "loader" if _waits_for_loader(speeds, work) else "forward"
    if _waits_for_loader(speeds, work):
        return "loader"
    assert speeds.step is not None
    return "copy" if speeds.copy is not None and speeds.copy < speeds.step else "step"


def suggest_change(speeds: Speeds, work: Work) -> str:
    """Return the first change that pays, cheapest first, as a sentence; or `none: <reason>`."""
    now = _estimate_total_seconds(speeds, work)
    kept = _estimate_seconds_if_frozen(speeds, work)
    if work.frozen and kept < (1 - MIN_SAVING) * now:
        return f"train.cache_features: auto, for a run about {now / kept:.1f} times as fast"
    faster = (now + FIXED_S) / (kept + FIXED_S)
    can_freeze = work.pretrained and not work.frozen and faster > FREEZE_SPEEDUP
    if can_freeze and not work.gpu:
        return (
            f"model.freeze_backbone: true{_list_obstacles(work.obstacles)}, for a run about "
            f"{faster:.0f} times as fast (the head alone learns, on features computed once)"
        )
    more, with_more = _find_enough_workers(speeds, work)
    if with_more < (1 - MIN_SAVING) * now:
        return f"train.workers: {more}, for a run about {now / with_more:.1f} times as fast"
    if _waits_for_loader(speeds, work):
        each = speeds.loader / max(1, work.workers)
        if work.copies_off and each < SLOW_DECODING:
            return f"data.cache_images: disk, as a process decodes only {each:.0f} images/s"
        return f"none: decoding keeps {work.cores} cores busy"
    if work.slow_type:
        return "train.precision: bfloat16, which this hardware is fast at"
    gain = speeds.larger / speeds.step if speeds.larger and speeds.step else 1.0
    if gain > 1 / (1 - MIN_SAVING):
        return (
            f"train.batch_size: {2 * work.batch_size}, for a step of {gain:.1f} times as many "
            f"images/s (fewer steps: mind train.lr)"
        )
    if can_freeze and now > LONG_S:
        return (
            f"model.freeze_backbone: true{_list_obstacles(work.obstacles)} for first figures, "
            f"about {faster:.0f} times as quick (features are then computed once)"
        )
    return "none: no simple change would make it faster"


@dataclass(frozen=True)
class Passes:
    """Numbers that decide how often pictures go through the backbone.

    Attributes:
        train, val: numbers of images.
        epochs: as in the config.
        solutions: how often the head is solved for beside the epochs, on features.
        views: of a training picture, whose features are computed once.
    """

    train: int
    val: int
    epochs: int
    solutions: int = 0
    views: int = 1


def compare_with_freezing(passes: Passes) -> float:
    """Return the backbone's work in fine-tuning over that for the features of a frozen one.

    800 + 200 pictures, 10 epochs: 10 * (3 * 800 + 200) / (800 + 200) = 26. It is counted in
    forward passes; of a frozen backbone each is faster too.
    """
    features = passes.views * passes.train + passes.val
    tuning = passes.epochs * (STEP_PASSES * passes.train + passes.val)
    return (tuning + passes.solutions * features) / max(1, features)


def describe_freezing(passes: Passes, obstacles: Sequence[str] = ()) -> str:
    """Return a line on the fast way for a CPU; empty where it gains little.

    Args:
        passes: of the run.
        obstacles: keys of the config that a frozen backbone does not go with.
    """
    ratio = compare_with_freezing(passes)
    if ratio < FREEZE_SPEEDUP:
        return ""
    return (
        f"on a CPU: with model.freeze_backbone: true{_list_obstacles(obstacles)} the backbone has "
        f"{ratio:.0f} times less to do (the head alone learns, on features computed once)"
    )


def _list_obstacles(keys: Sequence[str]) -> str:
    """Return the keys to take out, as ` (without train.layer_decay)`; empty if there are none."""
    return f" (without {' and '.join(keys)})" if keys else ""


def choose_way(passes: Passes, labels: int, gpu: bool) -> tuple[str | None, str]:
    """Return the key to set to true, None where the defaults suit; and why.

    no GPU                               model.freeze_backbone
    a GPU, and pictures and labels few   train.solve_head_first
    a GPU, and many of them              neither
    """
    if not gpu:
        ratio = compare_with_freezing(passes)
        epochs = pluralize(passes.epochs, "epoch")
        times = f"{ratio:.0f}" if ratio >= 10 else f"{ratio:.1f}"
        why = f"no GPU here: {times} times less work than {epochs} of all layers"
        return "model.freeze_backbone", why
    if passes.train <= FEW_PICTURES and labels <= FEW_LABELS:
        why = "a GPU here, few pictures: start from the best head, not at random"
        return "train.solve_head_first", why
    return None, (
        f"all layers learn, with a new head: a GPU here, and over {FEW_PICTURES:,} pictures to "
        f"train or {FEW_LABELS:,} labels, where a solved head takes long"
    )


def _estimate_seconds_if_frozen(speeds: Speeds, work: Work) -> float:
    """Estimate the seconds of the run with a frozen backbone and features computed once."""
    if work.views:
        return _estimate_total_seconds(speeds, work)
    once = replace(work, frozen=True, views=work.cache_views, decodings=1)
    return estimate_times(replace(speeds, head=speeds.head or speeds.loss), once).once


def _compute_device_rate(speeds: Speeds, work: Work) -> float:
    """Compute how many loaded pictures the device can take in a second."""
    if work.views:
        return speeds.forward * work.decodings / work.views
    assert speeds.step is not None
    return 1 / (1 / speeds.step + (1 / speeds.copy if speeds.copy else 0))


def _waits_for_loader(speeds: Speeds, work: Work) -> bool:
    """Tell whether the model waits for pictures."""
    return speeds.loader < _compute_device_rate(speeds, work)


def _compute_seconds_per_image(loader: float, device: float, work: Work) -> float:
    """Compute the seconds that one image takes in the run.

    Worker processes decode while the model works, so the slower of the two decides. On a CPU the
    processes also take cores from the model.

    Args:
        loader, device: images a second of each.
    """
    if work.workers == 0:
        return 1 / loader + 1 / device
    shared = 0.0 if work.gpu else min(work.workers / work.cores, 1) / loader
    return max(1 / loader, 1 / device + shared)


def _estimate_total_seconds(speeds: Speeds, work: Work) -> float:
    """Estimate the seconds in which a run loads pictures: all epochs, or the features once."""
    times = estimate_times(speeds, work)
    return times.once if work.views else times.once + work.epochs * times.epoch


def _find_enough_workers(speeds: Speeds, work: Work) -> tuple[int, float]:
    """Return the fewest processes that come within 1 % of the best time, and the run's seconds."""
    each = speeds.loader / max(1, work.workers)
    seconds = {}
    for workers in range(work.workers + 1, work.cores + 1):
        faster = replace(speeds, loader=each * workers)
        seconds[workers] = _estimate_total_seconds(faster, replace(work, workers=workers))
    if not seconds:
        return work.workers, _estimate_total_seconds(speeds, work)
    least = min(seconds.values())
    return next(item for item in seconds.items() if item[1] <= 1.01 * least)
