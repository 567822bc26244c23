"""Short measurements, and the choices that follow from them; knows no model and no config.

act, act, ...  -> pace          -> images a second
fits(size)     -> largest_power -> a batch size
rate(size)     -> best_size     -> a batch size
Speeds, Work   -> times, bound, suggestion
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import median

CALLS = 50
"""Calls that are timed at most."""
STEPS_AN_EPOCH = 20
"""A batch size that is chosen leaves an epoch so many steps."""
LEAST = 8
"""It is no smaller than this, however small the data: BatchNorm learns from the batch."""
PREFERRED = 32
SLACK = 0.05
"""A batch size this much faster than PREFERRED is worth leaving it."""
MARGIN = 1.5
"""Decoding processes slow each other down: they share caches, memory and hyper-threads."""
WORTH = 0.1
"""A change that saves less than this share of the time is not suggested."""
LARGE = 150.0
"""Images/s below which a process must be decoding large pictures; of 500 px they are 400."""
QUICK, LONG_S = 3.0, 600.0
"""Freezing is suggested where it makes a run so many times quicker, and the run takes so long."""


# ---- measuring --------------------------------------------------------------------------


def pace(
    act: Callable[[], int], seconds: float, settle: Callable[[], None] = lambda: None
) -> float:
    """Images a second: the median of at least three calls, after one that warms up.

    Args:
        act: does the work once, and returns its number of images.
        seconds: the calls go on for so long, or until there are CALLS of them.
        settle: waits for work that the call has only begun.
    """
    act()
    settle()
    rates: list[float] = []
    started = before = time.perf_counter()
    while len(rates) < 3 or (before - started < seconds and len(rates) < CALLS):
        images = act()
        settle()
        now = time.perf_counter()
        rates.append(images / max(now - before, 1e-9))
        before = now
    return median(rates)


def rates(
    sizes: Sequence[int], step: Callable[[int], int], settle: Callable[[], None]
) -> dict[int, float]:
    """Images a second of each batch size, in turns, so that a busy moment hits all of them.

    Args:
        sizes: to try.
        step: works on so many images, and returns their number.
        settle: as in `pace`.
    """
    for size in sizes:
        step(size)
    found: dict[int, list[float]] = {size: [] for size in sizes}
    for _ in range(3):
        for size in sizes:
            settle()
            before = time.perf_counter()
            step(size)
            settle()
            found[size].append(size / max(time.perf_counter() - before, 1e-9))
    return {size: median(each) for size, each in found.items()}


# ---- batch size and processes -----------------------------------------------------------


def largest_batch(images: int, top: int) -> int:
    """The largest power of two up to `top` that leaves an epoch of `images` STEPS_AN_EPOCH steps.

    LEAST where that would be smaller.
    """
    return max(LEAST, min(top, _power_of_two(images // STEPS_AN_EPOCH)))


def largest_power(fits: Callable[[int], bool], start: int, top: int) -> int:
    """The largest power of two up to `top` that fits, from `start` upwards, else downwards.

    Args:
        fits: is asked once a size, and never for a size above one that does not fit.
        start, top: powers of two, start <= top.

    Returns:
        0 where not even 1 fits.
    """
    size = start
    if fits(size):
        while size < top and fits(2 * size):
            size *= 2
        return size
    while size > 1:
        size //= 2
        if fits(size):
            return size
    return 0


def best_size(rates: dict[int, float]) -> int:
    """The batch size of the most images a second; PREFERRED where that is hardly slower.

    Where PREFERRED was not measured the largest size below it stands for it.
    """
    preferred = max(size for size in rates if size <= PREFERRED)
    fastest = max(rates, key=lambda size: rates[size])
    return preferred if rates[preferred] >= (1 - SLACK) * rates[fastest] else fastest


def workers_for(work: float, decoded: float, cores: int) -> int:
    """Processes that decode at least as fast as a GPU works: from 1 to `cores`.

    Args:
        work: images a second that the model takes.
        decoded: images a second of one process.
        cores: that there are.
    """
    return max(1, min(cores, math.ceil(MARGIN * work / decoded)))


def workers_beside(work: float, decoded: float, cores: int) -> int:
    """Processes that decode as fast as the model works on the cores that they leave it.

    A picture costs `cores / work` core-seconds in the model and `1 / decoded` in a process: the
    processes' share of the cores is their number. More would only take cores from the model.

    Args:
        work: images a second of the model on all cores.
        decoded: images a second of one process.
        cores: that there are.
    """
    seconds = 1 / decoded
    return max(1, math.ceil(cores * seconds / (cores / work + seconds)))


def _power_of_two(number: int) -> int:
    """The largest power of two that is not above `number`, at least 1."""
    power: int = 2 ** (max(1, number).bit_length() - 1)
    return power


# ---- what a run's time is made of -------------------------------------------------------


@dataclass(frozen=True)
class Speeds:
    """Images a second of each stage; None where the run has none such.

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
    """What else a run's time depends on.

    Attributes:
        train, val, epochs, batch_size: as they are called in the config.
        workers, cores: decoding processes, and cores for them.
        gpu: the model has a machine of its own; on a CPU it shares the cores.
        frozen: the backbone does not train.
        views, decodings: of a picture, for features that are computed once; 0: every epoch
            goes through the backbone.
        copies_off: the config forbids small copies of large pictures.
        slow_type: the hardware is fast at bfloat16, and the run does without.
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


@dataclass(frozen=True)
class Times:
    """Seconds: what is paid once, and what an epoch or a pass over the features takes."""

    once: float
    epoch: float


def times(speeds: Speeds, work: Work) -> Times:
    """About how long a run takes; saving and start-up are left out."""
    val = work.val * _image_s(speeds.loader, speeds.forward, work)
    if work.views:
        decoded, seen = speeds.loader / work.decodings, speeds.forward / work.views
        assert speeds.head is not None
        once = work.train * _image_s(decoded, seen, work) + val
        return Times(once, work.train / speeds.head)
    return Times(0.0, work.train * _image_s(speeds.loader, _device(speeds, work), work) + val)


def bound(speeds: Speeds, work: Work) -> str:
    """The field of Speeds that the run waits for most."""
    if work.views:
        return "loader" if _loads(speeds, work) else "forward"
    if _loads(speeds, work):
        return "loader"
    assert speeds.step is not None
    return "copy" if speeds.copy is not None and speeds.copy < speeds.step else "step"


def suggestion(speeds: Speeds, work: Work) -> str:
    """The one change that gains most for least, or that there is none."""
    now = _total(speeds, work)
    kept = _with_features(speeds, work)
    if work.frozen and kept < (1 - WORTH) * now:
        return f"train.cache_features: auto, for a run about {now / kept:.1f} times as fast"
    more, with_more = _more_workers(speeds, work)
    if with_more < (1 - WORTH) * now:
        return f"train.workers: {more}, for a run about {now / with_more:.1f} times as fast"
    if _loads(speeds, work):
        each = speeds.loader / max(1, work.workers)
        if work.copies_off and each < LARGE:
            return f"data.cache_images: disk, as a process decodes only {each:.0f} images/s"
        return f"none: decoding keeps {work.cores} cores busy"
    if work.slow_type:
        return "train.precision: bfloat16, which this hardware is fast at"
    gain = speeds.larger / speeds.step if speeds.larger and speeds.step else 1.0
    if gain > 1 / (1 - WORTH):
        return (
            f"train.batch_size: {2 * work.batch_size}, for a step of {gain:.1f} times as many "
            f"images/s (fewer steps: mind train.lr)"
        )
    if now > LONG_S and kept * QUICK < now:
        return (
            f"model.freeze_backbone: true for first figures, about {now / kept:.0f} times as "
            f"quick (features are then computed once)"
        )
    return "none: nothing is to be gained simply"


def _with_features(speeds: Speeds, work: Work) -> float:
    """Seconds of the run if the backbone were frozen and two views' features computed once."""
    if work.views:
        return _total(speeds, work)
    once = replace(work, frozen=True, views=2, decodings=1)
    return times(replace(speeds, head=speeds.head or speeds.loss), once).once


def _device(speeds: Speeds, work: Work) -> float:
    """Images a second of what the model's device does for every picture that is loaded."""
    if work.views:
        return speeds.forward * work.decodings / work.views
    assert speeds.step is not None
    return 1 / (1 / speeds.step + (1 / speeds.copy if speeds.copy else 0))


def _loads(speeds: Speeds, work: Work) -> bool:
    """Does the model wait for pictures?"""
    return speeds.loader < _device(speeds, work)


def _image_s(loader: float, device: float, work: Work) -> float:
    """Seconds an image. Decoding goes on beside the model; on a CPU it takes cores from it."""
    if work.workers == 0:
        return 1 / loader + 1 / device
    shared = 0.0 if work.gpu else min(work.workers / work.cores, 1) / loader
    return max(1 / loader, 1 / device + shared)


def _total(speeds: Speeds, work: Work) -> float:
    """Seconds of the whole run, as far as pictures are loaded."""
    found = times(speeds, work)
    return found.once if work.views else work.epochs * found.epoch


def _more_workers(speeds: Speeds, work: Work) -> tuple[int, float]:
    """The fewest processes that come near the best time, and the run's seconds with them."""
    each = speeds.loader / max(1, work.workers)
    found = {}
    for workers in range(work.workers + 1, work.cores + 1):
        faster = replace(speeds, loader=each * workers)
        found[workers] = _total(faster, replace(work, workers=workers))
    if not found:
        return work.workers, _total(speeds, work)
    least = min(found.values())
    return next((n, s) for n, s in found.items() if s <= 1.01 * least)
