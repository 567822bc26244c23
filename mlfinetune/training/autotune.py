"""Measured settings: `train.batch_size: auto` and `train.workers: auto`, by a throw-away model.

    Config, examples -> build_trial -> TrialRun: its steps are timed -> a number, and the reason

Nothing of a trial stays. The run's own model is built afterwards, from a seed that is set
afterwards. So a run with `auto` is the run of the number that it records.
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
from mlfinetune.models.inference import prepare_for_inference
from mlfinetune.models.scoring import compute_logits
from mlfinetune.models.tagger import Tagger
from mlfinetune.runtime.device import (
    choose_workers,
    count_cores,
    read_free_memory,
    read_peak_memory,
    synchronize_device,
)
from mlfinetune.runtime.threads import one_thread
from mlfinetune.training.build import (
    build_loader,
    build_model,
    build_step_options,
    build_training_loss,
    build_training_optimizer,
    get_batch_size,
    precomputes_features,
)
from mlfinetune.training.network import build_transform_spec
from mlfinetune.training.step import StepOptions, train_step
from mlfinetune.training.timing import (
    MIN_BATCH,
    choose_fastest_size,
    choose_workers_beside_cpu,
    choose_workers_for_gpu,
    compare_rates,
    find_largest_batch_size,
    find_largest_power,
    time_rate,
)

CPU_SIZES = (8, 16, 32, 64)
DRY_RUN_BATCH = 32
"""Batch size of a dry run whose config says `auto`."""
MAX_GPU_BATCH = 512
"""Largest batch size that is tried on a GPU: a larger one would need another learning rate."""
FREE_MEMORY_SHARE = 0.1
"""Share of the GPU's memory that stays free, for fragmentation and for other programs."""
MIN_MEASURED_IMAGES = 1000
"""Least number of decodings in a run (images x epochs) for which a measurement of one or two
seconds pays."""
MIN_SHARED_CORES = 4
"""Least number of CPU cores with which more than one decoding process beside the model can pay."""
PIECE_IMAGES = 16
"""Pictures that are decoded between two readings of the clock."""


@dataclass(frozen=True)
class TrialRun:
    """Model, loss and optimizer as the run builds them, to be timed and thrown away.

    Attributes:
        tagger, loss, optimizer, options: see `training.step.train_step`.
        features_once: the run computes the features of its pictures once, by forward passes alone.
        side: S, height and width of the input in pixels.
    """

    tagger: Tagger
    loss: Loss
    optimizer: torch.optim.Optimizer
    options: StepOptions
    features_once: bool
    side: int

    def step(self, batch: Batch) -> int:
        """Take a training step; return the number of its images."""
        self.tagger.train()
        train_step(self.tagger, batch, self.loss, self.optimizer, self.options)
        return len(batch.images)

    def infer(self, batch: Batch) -> int:
        """Run a forward pass as evaluation does; return the number of its images."""
        compute_logits(self._inference_tagger, batch, self.options.device, self.options.dtype)
        return len(batch.images)

    @cached_property
    def _inference_tagger(self) -> Tagger:
        options = self.options
        return prepare_for_inference(self.tagger, self.side, options.device, options.dtype)[0]

    def work(self, batch: Batch) -> int:
        """Infer or train, as the run does with a loaded batch; return the number of images."""
        return self.infer(batch) if self.features_once else self.step(batch)


def build_trial(
    config: Config, train: Manifest, device: torch.device, dtype: torch.dtype
) -> TrialRun:
    """Build the trial of a run, on the device.

    Raises:
        MlfinetuneError: a setting that the run itself could not use either.
    """
    config = config.update_section("train", batch_size=get_batch_size_or(config, MIN_BATCH))
    spec = build_transform_spec(config)
    tagger, _ = build_model(config, train, spec, device)
    return TrialRun(
        tagger,
        build_training_loss(config, train, device)[0],
        build_training_optimizer(config, tagger),
        build_step_options(config, device, dtype),
        precomputes_features(config),
        spec.image_size,
    )


def get_batch_size_or(config: Config, other: int) -> int:
    """Return the config's batch size, or `other` where it is `auto`."""
    return other if config.train.batch_size == "auto" else config.train.batch_size


def choose_batch_size(
    config: Config, train: Manifest, device: torch.device, dtype: torch.dtype
) -> tuple[Config, str | None]:
    """Put a number in place of `batch_size: auto`.

    On a GPU: the largest power of two that fits into its memory, up to MAX_GPU_BATCH. Elsewhere:
    32, or the fastest size if 32 is more than 5 % slower. An epoch keeps at least 20 steps, unless
    that would need batches of fewer than 8.

    Returns:
        The config with a number, and the reason for it; None if it was a number already.

    Raises:
        MlfinetuneError: a setting that the run could not use either; or not one picture fits.
    """
    if config.train.batch_size != "auto":
        return config, None
    gpu = device.type == "cuda"
    top = find_largest_batch_size(len(train), MAX_GPU_BATCH if gpu else CPU_SIZES[-1])
    with torch.random.fork_rng(devices=[device] if gpu else []):
        trial = build_trial(config, train, device, dtype)
        size, why = _find_largest_that_fits(trial, top) if gpu else _find_fastest(trial, top)
    limit = f"sizes up to {top} were tried: an epoch keeps {-(-len(train) // top)} steps"
    config = config.update_section("train", batch_size=size)
    return config, f"train.batch_size {size}: {why}; {limit}"


def choose_worker_count(
    config: Config, train: Manifest, device: torch.device, dtype: torch.dtype
) -> tuple[int, str]:
    """Choose the number of decoding processes, and tell why.

    With `workers: auto` the number is measured if the run decodes MIN_MEASURED_IMAGES pictures or
    more, on a GPU or on a CPU with MIN_SHARED_CORES or more. Otherwise a rule gives it.

    Args:
        config: its batch size is a number.

    Raises:
        MlfinetuneError: a setting that the run could not use either.
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
    """Measure how many decoding processes keep up with the model; takes one or two seconds.

    Raises:
        MlfinetuneError: a setting that the run could not use either.
    """
    with one_thread():  # as in the processes that are to decode
        batches = repeat_epochs(build_trial_loader(config, train, device, workers=0))
        decoded = time_rate(lambda: len(next(batches).images), 1.0)
    trial = build_trial(config, train, device, dtype)
    most = CPU_SIZES[0] if device.type == "cpu" else MAX_GPU_BATCH
    batch = make_random_batch(trial, min(most, get_batch_size(config)))
    work = time_rate(lambda: trial.work(batch), 0.5, lambda: synchronize_device(device))
    cores = count_cores()
    choose = choose_workers_beside_cpu if device.type == "cpu" else choose_workers_for_gpu
    number = choose(work, decoded, cores)
    return number, f"of {cores} cores: one decodes {decoded:.0f} images/s, a step takes {work:.0f}"


def build_trial_loader(
    config: Config, train: Manifest, device: torch.device, workers: int
) -> Loader:
    """Build the run's loader of training pictures, but with small batches, for timing."""
    augmented = not precomputes_features(config)
    size = min(PIECE_IMAGES, get_batch_size_or(config, PIECE_IMAGES))
    few = config.update_section("train", batch_size=size)
    return build_loader(few, train, build_transform_spec(config), device, workers, train=augmented)


def repeat_epochs(loader: Loader) -> Iterator[Batch]:
    """Yield the batches of epoch after epoch, without end.

    Raises:
        DataError: a picture that cannot be decoded, by name.
    """
    for batch in chain.from_iterable(map(loader.epoch, count())):
        batch.require_all(loader.manifest.path)
        yield batch


def make_random_batch(trial: TrialRun, size: int) -> Batch:
    """Return a batch of (size, 3, S, S) random pictures, all targets 0."""
    generator = torch.Generator().manual_seed(0)
    shape = (size, 3, trial.side, trial.side)
    images = torch.randint(256, shape, dtype=torch.uint8, generator=generator)
    labels = trial.tagger.head.bias.numel()
    return Batch(images, torch.zeros(size, labels, dtype=torch.int8), torch.arange(size))


def _find_largest_that_fits(trial: TrialRun, top: int) -> tuple[int, str]:
    """Return the largest batch size that leaves memory free, and the reason in words."""
    device = trial.options.device
    room = (1 - FREE_MEMORY_SHARE) * (read_free_memory(device) + torch.cuda.memory_reserved(device))

    def fits(size: int) -> bool:
        try:
            # The first step does not count: cuDNN tries its algorithms, which take memory.
            trial.work(make_random_batch(trial, size))
            torch.cuda.reset_peak_memory_stats(device)
            trial.work(make_random_batch(trial, size))
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


def _find_fastest(trial: TrialRun, top: int) -> tuple[int, str]:
    """Return the fastest batch size, and the reason in words."""
    sizes = [size for size in CPU_SIZES if size <= top]
    if len(sizes) == 1:
        return sizes[0], "the data are few"
    batches = {size: make_random_batch(trial, size) for size in sizes}
    rates = compare_rates(
        sizes,
        lambda size: trial.work(batches[size]),
        lambda: synchronize_device(trial.options.device),
    )
    shown = ", ".join(f"{size}: {rate:.1f}" for size, rate in rates.items())
    return choose_fastest_size(rates), f"images/s were {shown}"
