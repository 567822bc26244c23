"""Batches in an order that is a function of (seed, epoch).

    train_order(n, seed, epoch) -> cut into batches -> Loader.epoch(k) -> Batch, Batch, ...
    stream(paths)               -> batches in input order, in constant memory
    small_copies(items)         -> copies of large pictures, in input order

The number of worker processes changes speed and nothing else: the order is drawn here, and
each picture's augmentation is seeded by (seed, epoch, index). Paths go to the workers with each
batch and targets are added here, so that starting a worker copies no manifest.

Of several processes that train together each has its share of every batch; in evaluation each has
whole batches, every n-th, so that a picture is looked at in the company that it always has.
"""

import ctypes
import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import islice, pairwise
from multiprocessing import parent_process
from multiprocessing.util import Finalize
from typing import Any, Literal

import torch
from torch.utils.data import DataLoader, Sampler

from mlfinetune.data.batches.batch import Batch
from mlfinetune.data.batches.copies import CopyMaker, Item, MadeCopy, SmallCopies
from mlfinetune.data.batches.dataset import ImageDataset, Key, collate, mix_seed
from mlfinetune.data.images.transforms import TransformSpec
from mlfinetune.data.manifest import Manifest
from mlfinetune.runtime.signals import kill_children

_AT_ONCE = 8
"""Pictures that a worker makes copies of before it hands them over."""
_FOR_MAIN_PROCESS = (signal.SIGINT, signal.SIGTERM)


def shuffled_order(n: int, seed: int, epoch: int) -> list[int]:
    """The permutation of n examples in an epoch."""
    generator = torch.Generator().manual_seed(mix_seed(seed, epoch))
    order: list[int] = torch.randperm(n, generator=generator).tolist()
    return order


def cut_batches(order: list[int], batch_size: int) -> list[list[int]]:
    """Batches of `batch_size`; a lone last example joins the batch before it.

    BatchNorm cannot train on one example of one pixel, and a gradient of one is noise.
    """
    batches = [list(batch) for batch in _batched(order, batch_size)]
    if len(batches) > 1 and len(batches[-1]) == 1 < batch_size:
        lone = batches.pop()
        batches[-1] += lone
    return batches


@dataclass(frozen=True)
class BatchShare:
    """Which part of all batches is this process's: that of `rank` of `size`.

    Attributes:
        pieces: that a batch of training is computed in: a share is one of each.
    """

    rank: int = 0
    size: int = 1
    pieces: int = 1

    def of(self, batch: list[int]) -> list[int]:
        """Of a batch of training; may be empty. `fit.train_step` cuts it as it was put together.

        The shares of a piece differ by one example at most, and so do the pieces.
        """
        if self.size == 1:
            return batch
        pieces = _parted(batch, min(self.pieces, len(batch)))
        return [row for piece in pieces for row in _parted(piece, self.size)[self.rank]]


WHOLE_SHARE = BatchShare()


def _parted(rows: list[int], parts: int) -> list[list[int]]:
    """In `parts` runs, as torch.tensor_split has it: the first ones are longer by one."""
    small, longer = divmod(len(rows), parts)
    ends = [at * small + min(at, longer) for at in range(parts + 1)]
    return [rows[start:end] for start, end in pairwise(ends)]


class Loader:
    """The batches of a manifest, epoch by epoch; worker processes live as long as it does."""

    def __init__(
        self,
        manifest: Manifest,
        spec: TransformSpec,
        *,
        batch_size: int,
        workers: int,
        train_seed: int | None,
        pin_memory: bool,
        rows: list[int] | None = None,
        share: BatchShare = WHOLE_SHARE,
    ) -> None:
        """With `train_seed` examples are shuffled and augmented; with None neither.

        `rows` names the examples, in order and unshuffled, where not all of them are wanted;
        `share` says which batches are for this process, or which part of each.
        """
        self.manifest, self._pin_memory, self._share = manifest, pin_memory, share
        self._sampler = _EpochSampler(manifest, batch_size, train_seed, rows, share)
        self._dataset, self._workers = ImageDataset(spec, train_seed), workers
        self._loader: DataLoader[Any] | None = None
        self._begun: Iterator[Batch] | None = None

    @property
    def steps(self) -> int:
        """Batches in an epoch; in evaluation, of the process that has most."""
        return len(self._sampler)

    def read_copies(self, copies: SmallCopies) -> None:
        """Training, before its first epoch: read small copies of large pictures, where kept."""
        self._dataset.read_copies(copies)

    def begin(self) -> None:
        """Start the workers, and decode ahead for epoch 0, which has to come next.

        A process forked from one that has trained shares gigabytes with it, and each page is
        copied when the training writes to it: 10 s after 300 pictures.
        """
        if self._workers:
            self._begun = self._started(0, 0)

    def close(self) -> None:
        """End the workers; another epoch would start new ones."""
        self._begun = self._loader = None

    def epoch(self, epoch: int = 0, first: int = 0) -> Iterator[Batch]:
        """The batches of one epoch, from the batch `first` on."""
        if self._begun is not None:
            assert (epoch, first) == (0, 0), "epoch 0 has begun"
            batches, self._begun = self._begun, None
        else:
            batches = self._started(epoch, first)
        together = islice(self._sampler.together, first, None)
        return (
            self._completed(batch, all_of_it)
            for batch, all_of_it in zip(batches, together, strict=False)
        )

    def _started(self, epoch: int, first: int) -> Iterator[Batch]:
        """The workers are started now, if there are none."""
        if self._loader is None:
            self._loader = _data_loader(
                self._dataset, self._sampler, self._workers, self._pin_memory
            )
        self._sampler.begin(epoch, first)
        return _started(self._loader)

    def _completed(self, batch: Batch, together: list[int]) -> Batch:
        """With what the decoding processes do not know: targets, and the other processes."""
        targets = torch.from_numpy(self.manifest.targets[batch.indices.numpy()])
        targets = targets.pin_memory() if self._pin_memory else targets
        if self._share.size == 1:
            return replace(batch, targets=targets)
        images = batch.images
        if not len(images):
            images = images.view(0, 3, *2 * (self._dataset.spec.image_size,))
        return replace(batch, images=images, targets=targets, together=tuple(together))


def stream_batches(
    paths: Iterable[str], spec: TransformSpec, *, batch_size: int, workers: int, pin_memory: bool
) -> Iterator[tuple[list[str], Batch]]:
    """Paths, without end if need be -> (the paths of a batch, Batch) in input order.

    A batch's indices count from its first path. Memory holds the batches under way alone.
    """
    under_way: deque[list[str]] = deque()

    def keys() -> Iterator[list[Key]]:
        for chunk in _batched(paths, batch_size):
            under_way.append(list(chunk))
            yield [(0, index, path) for index, path in enumerate(chunk)]

    for batch in _started(_data_loader(ImageDataset(spec), keys(), workers, pin_memory)):
        yield under_way.popleft(), batch


def make_copies(
    items: Sequence[Item], spec: TransformSpec, workers: int | Literal["auto"]
) -> Iterator[list[MadeCopy]]:
    """The copies of pictures, made by worker processes, a few at a time.

    `auto`: a process for each core that torch uses, up to 16; no model keeps them busy yet.
    """
    if items:
        count = workers if isinstance(workers, int) else min(16, torch.get_num_threads())
        batches = list(_batched(items, _AT_ONCE))
        yield from _started(_data_loader(CopyMaker(spec), batches, count, False, list))


class _EpochSampler(Sampler[list[Key]]):
    """Yields the keys of each batch of the epoch it is set to.

    Attributes:
        together: what all processes look at in each step of that epoch.
    """

    def __init__(
        self,
        manifest: Manifest,
        batch_size: int,
        train_seed: int | None,
        rows: list[int] | None,
        share: BatchShare,
    ) -> None:
        self._manifest, self._batch_size, self._share = manifest, batch_size, share
        self._seed, self._rows = train_seed, rows
        self._trains = train_seed is not None and rows is None
        self._steps = len(self._cut(rows or list(range(len(manifest)))))
        self._epoch = self._first = 0
        self.together: list[list[int]] = []

    def __len__(self) -> int:
        return self._steps

    def begin(self, epoch: int, first: int) -> None:
        """The next iteration is of this epoch, from the batch `first` on."""
        n = len(self._manifest)
        order = self._rows or list(range(n))
        if self._trains:
            assert self._seed is not None
            order = shuffled_order(n, self._seed, epoch)
        self._epoch, self._first, self.together = epoch, first, self._cut(order)

    def __iter__(self) -> Iterator[list[Key]]:
        for together in self.together[self._first :]:
            own = self._own(together)
            if own is not None:
                yield [(self._epoch, index, self._manifest.path(index)) for index in own]

    def _cut(self, order: list[int]) -> list[list[int]]:
        if self._trains or self._share.size == 1:
            return cut_batches(order, self._batch_size)
        rounds = _batched(cut_batches(order, self._batch_size), self._share.size)
        return [[row for batch in one for row in batch] for one in rounds]

    def _own(self, together: list[int]) -> list[int] | None:
        """This process's part; None: it has no batch of an evaluation's last round."""
        if self._trains or self._share.size == 1:
            return self._share.of(together)
        batches = cut_batches(together, self._batch_size)
        return batches[self._share.rank] if self._share.rank < len(batches) else None


def _data_loader(
    dataset: Any,
    keys: Any,
    workers: int,
    pin_memory: bool,
    collate: Callable[[list[Any]], Any] = collate,
) -> DataLoader[Any]:
    return DataLoader(
        dataset,
        batch_sampler=keys,
        num_workers=workers,
        collate_fn=collate,
        pin_memory=pin_memory,
        persistent_workers=workers > 0,
        worker_init_fn=_ignore_signals,
        generator=torch.Generator(),  # else each epoch would draw from the global generator
    )


def _started(loader: DataLoader[Any]) -> Iterator[Any]:
    """Its batches, of workers that start now.

    They start with signals blocked: one that comes before they ignore it would end them.
    """
    if loader.num_workers:
        _end_at_exit()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _FOR_MAIN_PROCESS)
    try:
        return iter(loader)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@cache
def _end_at_exit() -> None:
    """Python sends its processes SIGTERM at exit, which workers ignore, and would wait for ever."""
    Finalize(None, kill_children, exitpriority=0)


def _ignore_signals(worker: int) -> None:
    """Ctrl-C and schedulers signal the whole group; the main process answers, and ends workers.

    They end with it however it ends: torch's own look at it comes too late for one that has just
    begun, or is stuck.
    """
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
    main = parent_process()
    if main is not None and main.pid != os.getppid():
        os._exit(1)  # it has ended as this one began
    for number in _FOR_MAIN_PROCESS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _FOR_MAIN_PROCESS)


def _batched(items: Iterable[Any], size: int) -> Iterator[tuple[Any, ...]]:
    """itertools.batched, which Python 3.11 lacks."""
    iterator = iter(items)
    while chunk := tuple(islice(iterator, size)):
        yield chunk
