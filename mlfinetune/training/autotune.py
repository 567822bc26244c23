"""What a config leaves to measurement: `batch_size: auto` and `workers: auto`.

    Config, examples -> rehearsal: a model to throw away -> its steps, tried -> a number, and why

Nothing of a rehearsal stays. The run's own model is built afterwards, from a seed that is set
afterwards, so a run with `auto` is the run of the number that it records.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, count

import torch

from mlfinetune.config import Config
from mlfinetune.data.batches.batch import Batch
from mlfinetune.data.batches.loader import Loader
from mlfinetune.data.manifest import Manifest
from mlfinetune.errors import DeviceError
from mlfinetune.loss import Loss
from mlfinetune.models.inference import for_inference
from mlfinetune.models.scoring import compute_logits
from mlfinetune.models.tagger import Tagger
from mlfinetune.runtime.device import (
    choose_workers,
    count_cores,
    read_free_memory,
    read_peak_memory,
    synchronize_device,
)
from mlfinetune.training.build import (
    build_loader,
    build_model,
    build_step_options,
    build_training_loss,
    build_training_optimizer,
    build_transform_spec,
    get_batch_size,
    precomputes_features,
)
from mlfinetune.training.step import StepOptions, train_step
from mlfinetune.training.timing import (
    MIN_BATCH,
    choose_fastest_size,
    compare_rates,
    find_largest_power,
    largest_batch_size,
    time_rate,
    workers_beside_cpu,
    workers_for_gpu,
)

CPU_SIZES = (8, 16, 32, 64)
DRY_RUN_BATCH = 32
"""The batch size of a dry run of a config that says `auto`."""
MAX_GPU_BATCH = 512
"""The largest batch size that is tried on a GPU: a larger one would want another learning rate."""
FREE_MEMORY_SHARE = 0.1
"""Share of the GPU's memory that stays free, for fragments and for others."""
MIN_MEASURED_IMAGES = 1000
"""Pictures that a run decodes from which on a measurement of a second or two pays."""
MIN_SHARED_CORES = 4
"""Cores of a CPU from which on more than one process can be right beside the model."""
PIECE_IMAGES = 16
"""Pictures that are decoded between two looks at the clock."""


@dataclass(frozen=True)
class TrialRun:
    """A run's model, loss and optimizer, made as the run makes them, and trained for nothing."""

    tagger: Tagger
    loss: Loss
    optimizer: torch.optim.Optimizer
    settings: StepOptions
    features_once: bool
    side: int

    def step(self, batch: Batch) -> int:
        """A training step; the number of its images."""
        self.tagger.train()
        train_step(self.tagger, batch, self.loss, self.optimizer, self.settings)
        return len(batch.images)

    def look(self, batch: Batch) -> int:
        """A forward pass, as evaluation has it; the number of its images."""
        compute_logits(self._serving, batch, self.settings.device, self.settings.dtype)
        return len(batch.images)

    @cached_property
    def _serving(self) -> Tagger:
        settings = self.settings
        return for_inference(self.tagger, self.side, settings.device, settings.dtype)[0]

    def work(self, batch: Batch) -> int:
        """What the run does with the batches that it loads."""
        return self.look(batch) if self.features_once else self.step(batch)


def build_trial(
    config: Config, train: Manifest, device: torch.device, dtype: torch.dtype
) -> TrialRun:
    """The parts of a run, on the device.

    Raises:
        MlfinetuneError: as the run would.
    """
    config = _with_batches_of(config, batch_size_or(config, MIN_BATCH))
    tagger = build_model(config, train, build_transform_spec(config), device)
    return TrialRun(
        tagger,
        build_training_loss(config, train, device)[0],
        build_training_optimizer(config, tagger),
        build_step_options(config, device, dtype),
        precomputes_features(config),
        config.model.image_size,
    )


def batch_size_or(config: Config, other: int) -> int:
    """The config's batch size, or `other` where it is `auto`."""
    return other if config.train.batch_size == "auto" else config.train.batch_size


def choose_batch_size(
    config: Config, train: Manifest, device: torch.device, dtype: torch.dtype
) -> tuple[Config, str | None]:
    """The config with a batch size that is a number, and why this one where it was `auto`.

    On a GPU: the largest power of two that fits into its memory, up to TOP. Elsewhere: 32, or
    what is faster by 5 %. An epoch keeps 20 steps, or batches of 8.

    Raises:
        MlfinetuneError: as the run would, and where not one picture fits.
    """
    if config.train.batch_size != "auto":
        return config, None
    gpu = device.type == "cuda"
    top = largest_batch_size(len(train), MAX_GPU_BATCH if gpu else CPU_SIZES[-1])
    with torch.random.fork_rng(devices=[device] if gpu else []):
        parts = build_trial(config, train, device, dtype)
        size, why = _most_that_fits(parts, top) if gpu else _fastest(parts, top)
    limit = f"sizes up to {top} were tried: an epoch keeps {-(-len(train) // top)} steps"
    return _with_batches_of(config, size), f"train.batch_size {size}: {why}; {limit}"


def choose_worker_count(
    config: Config, train: Manifest, device: torch.device, dtype: torch.dtype
) -> tuple[int, str]:
    """Decoding processes, and why so many.

    They are measured where a run decodes MANY pictures: for a GPU, and on a CPU of SHARED cores.

    Args:
        config: its batch size is a number.
    """
    by_rule = choose_workers(config.train.workers, device)
    if config.train.workers != "auto":
        return by_rule, "as configured"
    if precomputes_features(config):
        return by_rule, "pictures are decoded once"
    if device.type == "cpu" and count_cores() < MIN_SHARED_CORES:
        return by_rule, "the model works on the same cores"
    if len(train) * config.train.epochs < MIN_MEASURED_IMAGES:
        return by_rule, "a short run"
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        return measure_workers(config, train, device, dtype)


def measure_workers(
    config: Config, train: Manifest, device: torch.device, dtype: torch.dtype
) -> tuple[int, str]:
    """As many as the model's speed asks for; takes a second or two.

    Raises:
        MlfinetuneError: as the run would.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in the processes that are to decode
    try:
        batches = repeat_epochs(build_trial_loader(config, train, device, workers=0))
        decoded = time_rate(lambda: len(next(batches).images), 1.0)
    finally:
        torch.set_num_threads(threads)
    parts = build_trial(config, train, device, dtype)
    most = CPU_SIZES[0] if device.type == "cpu" else MAX_GPU_BATCH
    batch = make_random_batch(parts, min(most, get_batch_size(config)))
    work = time_rate(lambda: parts.work(batch), 0.5, lambda: synchronize_device(device))
    cores = count_cores()
    choose = workers_beside_cpu if device.type == "cpu" else workers_for_gpu
    number = choose(work, decoded, cores)
    return number, f"of {cores} cores: one decodes {decoded:.0f} images/s, a step takes {work:.0f}"


def build_trial_loader(
    config: Config, train: Manifest, device: torch.device, workers: int
) -> Loader:
    """The training pictures as the run loads them, but in small batches, to time them by."""
    augmented = not precomputes_features(config)
    few = _with_batches_of(config, min(PIECE_IMAGES, batch_size_or(config, PIECE_IMAGES)))
    return build_loader(few, train, build_transform_spec(config), device, workers, train=augmented)


def repeat_epochs(loader: Loader) -> Iterator[Batch]:
    """The batches of epoch after epoch.

    Raises:
        DataError: a picture that cannot be decoded, by name.
    """
    for batch in chain.from_iterable(map(loader.epoch, count())):
        batch.require_all(loader.manifest.path)
        yield batch


def make_random_batch(parts: TrialRun, size: int) -> Batch:
    """(size, 3, S, S) random pictures without labels."""
    drawn, shape = torch.Generator().manual_seed(0), (size, 3, parts.side, parts.side)
    images = torch.randint(256, shape, dtype=torch.uint8, generator=drawn)
    labels = parts.tagger.head.bias.numel()
    return Batch(images, torch.zeros(size, labels, dtype=torch.int8), torch.arange(size))


def _most_that_fits(parts: TrialRun, top: int) -> tuple[int, str]:
    """The largest batch size that leaves memory free, and what to say of it."""
    device = parts.settings.device
    room = (1 - FREE_MEMORY_SHARE) * (read_free_memory(device) + torch.cuda.memory_reserved(device))

    def fits(size: int) -> bool:
        try:
            parts.work(
                make_random_batch(parts, size)
            )  # cuDNN tries its algorithms, in memory of their own
            torch.cuda.reset_peak_memory_stats(device)
            parts.work(make_random_batch(parts, size))
            synchronize_device(device)
        except torch.OutOfMemoryError:
            return False
        finally:
            torch.cuda.empty_cache()
        return read_peak_memory(device) <= room

    size = find_largest_power(fits, min(MIN_BATCH, top), top)
    torch.cuda.reset_peak_memory_stats(device)
    if not size:
        raise DeviceError("not one picture fits into the GPU's memory; lower model.image_size")
    return (
        size,
        f"the largest power of two that fits into {1 - FREE_MEMORY_SHARE:.0%} of the GPU's memory",
    )


def _fastest(parts: TrialRun, top: int) -> tuple[int, str]:
    """The batch size of the most images a second, and what to say of it."""
    sizes = [size for size in CPU_SIZES if size <= top]
    if len(sizes) == 1:
        return sizes[0], "the data are few"
    batches = {size: make_random_batch(parts, size) for size in sizes}
    found = compare_rates(
        sizes,
        lambda size: parts.work(batches[size]),
        lambda: synchronize_device(parts.settings.device),
    )
    shown = ", ".join(f"{size}: {rate:.1f}" for size, rate in found.items())
    return choose_fastest_size(found), f"images/s were {shown}"


def _with_batches_of(config: Config, size: int) -> Config:
    train = config.train.model_copy(update={"batch_size": size})
    return config.model_copy(update={"train": train})
