"""Batches in an order that depends on (seed, epoch) alone.

    draw_order(n, seed, epoch)     -> cut_batches -> Loader.epoch(k) -> Batch, Batch, ...
    stream_batches(paths)          -> batches in input order, in constant memory
    make_copies(items)             -> small copies of large pictures, in input order

The number of worker processes changes the speed and nothing else: the order is drawn here, and
each picture's augmentation is seeded by (seed, version, index). The version is the epoch, and
another number each time that balanced sampling draws the picture again (`sampling.py`). Paths go to
the workers with each batch, and targets are added here, so that starting a worker copies no
manifest.

With several ranks, each trains on its share of every batch. In evaluation each rank has whole
batches, every n-th: a picture is in the same batch for any number of ranks, so that its logits are
the same to the last bit.
"""

import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice, pairwise
from typing import Any, Literal

import numpy as np
import torch
from torch.utils.data import DataLoader, Sampler

from mlfinetune.data.batches.batch import Batch
from mlfinetune.data.batches.copies import CopyMaker, Item, MadeCopy, SmallCopies
from mlfinetune.data.batches.dataset import ImageDataset, Key, collate
from mlfinetune.data.batches.sampling import Factors, draw_order, split_draw
from mlfinetune.data.batches.workers import build_data_loader, start_workers
from mlfinetune.data.images.transforms import TransformSpec
from mlfinetune.data.lines import PAUSE_S
from mlfinetune.data.manifest import Manifest
from mlfinetune.text import format_list, pluralize

_COPIES_PER_TASK = 8
"""Number of pictures that a worker makes copies of before it returns them."""


def cut_batches(order: list[int], batch_size: int) -> list[list[int]]:
    """Cut the order into batches of `batch_size`; a single last example joins the batch before.

    BatchNorm cannot train on one example of one pixel, and a gradient of one example is noise.

        n   batch_size   sizes of the batches
        10  4            4, 4, 2
        9   4            4, 5
        1   4            1
        3   1            1, 1, 1
    """
    batches = [list(batch) for batch in _iter_chunks(order, batch_size)]
    if len(batches) > 1 and len(batches[-1]) == 1 < batch_size:
        last = batches.pop()
        batches[-1] += last
    return batches


@dataclass(frozen=True)
class BatchShare:
    """The part of each training batch that one rank computes.

    Attributes:
        rank: number of the rank, from 0.
        size: number of ranks.
        pieces: number of pieces that a batch is computed in (`train.accumulate`); a share has a
            part of each piece.
    """

    rank: int = 0
    size: int = 1
    pieces: int = 1

    def select(self, batch: list[int]) -> list[int]:
        """Return this rank's share of a training batch; it may be empty.

        The batch is split into pieces, and each piece into one part for each rank. The sizes of
        pieces differ by one example at most, and so do the parts of a piece. `train_step` splits
        the share at the same places. Example: the batch 0 .. 9, two ranks, two pieces:

                      piece 0   piece 1   share
            rank 0    0 1 2     5 6 7     0 1 2 5 6 7
            rank 1    3 4       8 9       3 4 8 9
        """
        if self.size == 1:
            return batch
        # Pieces first: all ranks together then have the same examples in each piece as one rank
        # would, so that synchronized BatchNorm has the same statistics.
        pieces = _split_evenly(batch, min(self.pieces, len(batch)))
        return [row for piece in pieces for row in _split_evenly(piece, self.size)[self.rank]]


WHOLE_SHARE = BatchShare()


def _split_evenly(rows: list[int], parts: int) -> list[list[int]]:
    """Split into `parts` runs, like torch.tensor_split: 5 rows in 3 parts have sizes 2, 2, 1."""
    size, longer = divmod(len(rows), parts)
    ends = [part * size + min(part, longer) for part in range(parts + 1)]
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
        factors: Factors | None = None,
    ) -> None:
        """Build the order and the dataset; workers start with the first epoch.

        Args:
            manifest: the examples.
            spec: settings of the transforms.
            batch_size: number of examples in a batch, of all ranks together.
            workers: number of worker processes; 0: pictures are decoded in this process.
            train_seed: examples are shuffled and augmented by it; None: neither.
            pin_memory: batches come in page-locked memory, for a GPU.
            rows: the examples to use, in this order and never shuffled; None: all.
            share: the part of the batches that is for this rank.
            factors: (N,), training draws pictures in proportion to these; None: each once an epoch.
        """
        self.manifest = manifest
        self._pin_memory = pin_memory
        self._share = share
        self._sampler = _EpochSampler(manifest, batch_size, train_seed, rows, share, factors)
        self._dataset = ImageDataset(spec, train_seed)
        self._workers = workers
        self._loader: DataLoader[Any] | None = None
        self._started: Iterator[Batch] | None = None
        self._changed: set[int] = set()
        self._named = 0

    @property
    def steps(self) -> int:
        """Number of batches in an epoch; in evaluation, of the rank that has most."""
        return len(self._sampler)

    def read_copies(self, copies: SmallCopies) -> None:
        """Read small copies in place of large pictures; to be called before the first epoch."""
        self._dataset.read_copies(copies)

    def start_workers(self) -> None:
        """Start the workers, which decode the first batches of epoch 0; `epoch(0)` must be next.

        It is called before training. A worker that is forked later shares the memory of the
        training process, and each page is copied when the next step writes to it. That took 10 s
        after training on 300 pictures.
        """
        if self._workers:
            self._started = self._start_epoch(0, 0)

    def close(self) -> None:
        """End the workers; another epoch would start new ones."""
        self._started = None
        self._loader = None

    def epoch(self, epoch: int = 0, first: int = 0) -> Iterator[Batch]:
        """Return this rank's batches of one epoch, from batch number `first` on."""
        if self._started is not None:
            assert (epoch, first) == (0, 0), "the workers have started epoch 0"
            batches = self._started
            self._started = None
        else:
            batches = self._start_epoch(epoch, first)
        global_batches = islice(self._sampler.global_batches, first, None)
        # Not strict: in evaluation the last step may have no batch for this rank.
        return (
            self._add_targets(batch, global_batch)
            for batch, global_batch in zip(batches, global_batches, strict=False)
        )

    def describe_changes(self) -> str:
        """Name the pictures whose size or time was not that of the scan; empty: no further ones."""
        new = len(self._changed) - self._named
        if not new:
            return ""
        self._named = len(self._changed)
        names = [self.manifest.names[row] for row in sorted(self._changed)]
        return (
            f"warning: {pluralize(len(names), 'picture')} changed while the run was under way "
            f"(size or time is not that of the scan); each epoch reads what a file holds then\n"
            f"{format_list(names)}"
        )

    def _note_changes(self, batch: Batch) -> None:
        """Keep the indices of pictures whose file is not the one that was scanned."""
        if self.manifest.stamps is None or not batch.stamps:
            return
        rows = batch.indices.numpy()
        now, before = np.array(batch.stamps), self.manifest.stamps[rows]
        self._changed.update(rows[(now != before) & (now != 0) & (before != 0)].tolist())

    def _start_epoch(self, epoch: int, first: int) -> Iterator[Batch]:
        """Set the order of an epoch, start the workers if there are none, and let them decode."""
        if self._loader is None:
            self._loader = build_data_loader(
                self._dataset, self._sampler, self._workers, self._pin_memory, collate
            )
        self._sampler.set_epoch(epoch, first)
        return start_workers(self._loader)

    def _add_targets(self, batch: Batch, global_batch: list[int]) -> Batch:
        """Add what the workers do not know: the targets, and the indices of all ranks' batch."""
        self._note_changes(batch)
        targets = torch.from_numpy(self.manifest.targets[batch.indices.numpy()])
        targets = targets.pin_memory() if self._pin_memory else targets
        if self._share.size == 1:
            return replace(batch, targets=targets)
        images = batch.images
        if not len(images):  # an empty share has the shape of a batch too, for the model
            side = self._dataset.spec.image_size
            images = images.view(0, 3, side, side)
        rows = tuple(draw % len(self.manifest) for draw in global_batch)
        return replace(batch, images=images, targets=targets, global_indices=rows)


def stream_batches(
    paths: Iterable[str | None],
    spec: TransformSpec,
    *,
    batch_size: int,
    workers: int,
    pin_memory: bool,
) -> Iterator[tuple[list[str], Batch]]:
    """Decode pictures in the order of `paths`; yield the paths of each batch, and the batch.

    `paths` may have no end: memory holds only the batches that are being decoded. The indices of a
    batch count from its own first path.

    None among the paths means that there is no other right now. A batch is then decoded as it is,
    and yielded without a wait for the next path:

        paths a b None c    batch_size 4    ->    batches [a, b], [c]

    DataLoader gives no batch back before it has the keys of some more. Where there are none, it
    gets batches without pictures, which are dropped here.
    """
    pending: deque[list[str]] = deque()  # of the batches that DataLoader has

    def iter_keys() -> Iterator[list[Key]]:
        for chunk in _iter_ready_chunks(paths, batch_size):
            if not chunk and not any(pending):
                time.sleep(PAUSE_S)  # nobody waits for a batch, so there is time for a path
                continue
            pending.append(chunk)
            yield [(0, index, path) for index, path in enumerate(chunk)]

    loader = build_data_loader(ImageDataset(spec), iter_keys(), workers, pin_memory, collate)
    for batch in start_workers(loader):
        if names := pending.popleft():
            yield names, batch


def make_copies(
    items: Sequence[Item], spec: TransformSpec, workers: int | Literal["auto"]
) -> Iterator[list[MadeCopy]]:
    """Make the copies of pictures in worker processes; yield a few at a time, in order.

    Args:
        items: keys and paths of the pictures.
        spec: their transform in training.
        workers: number of processes; auto: one for each core that torch uses, up to 16, since no
            model keeps the cores busy yet.
    """
    if items:
        count = workers if isinstance(workers, int) else min(16, torch.get_num_threads())
        batches = list(_iter_chunks(items, _COPIES_PER_TASK))
        yield from start_workers(build_data_loader(CopyMaker(spec), batches, count, False, list))


class _EpochSampler(Sampler[list[Key]]):
    """Yields the keys of this rank's batches, of the epoch that was set last.

    Attributes:
        global_batches: the draws (`sampling.py`) that all ranks together have in each step of that
            epoch; in evaluation these are rows.
    """

    def __init__(
        self,
        manifest: Manifest,
        batch_size: int,
        train_seed: int | None,
        rows: list[int] | None,
        share: BatchShare,
        factors: Factors | None,
    ) -> None:
        self._manifest = manifest
        self._batch_size = batch_size
        self._share = share
        self._factors = factors
        self._seed = train_seed
        self._rows = rows
        self._trains = train_seed is not None and rows is None
        self._steps = len(self._cut_steps(rows or list(range(len(manifest)))))
        self._epoch = self._first = 0
        self.global_batches: list[list[int]] = []

    def __len__(self) -> int:
        return self._steps

    def set_epoch(self, epoch: int, first: int) -> None:
        """Set the epoch of the next iteration, which begins at batch number `first`."""
        n = len(self._manifest)
        order = self._rows or list(range(n))
        if self._trains:
            assert self._seed is not None
            order = draw_order(n, self._seed, epoch, self._factors)
        self._epoch = epoch
        self._first = first
        self.global_batches = self._cut_steps(order)

    def __iter__(self) -> Iterator[list[Key]]:
        for global_batch in self.global_batches[self._first :]:
            draws = self._take_share(global_batch)
            if draws is not None:
                yield [self._make_key(draw) for draw in draws]

    def _make_key(self, draw: int) -> Key:
        row, version = split_draw(draw, len(self._manifest), self._epoch)
        return version, row, self._manifest.path(row)

    def _cut_steps(self, order: list[int]) -> list[list[int]]:
        """Return the draws of each step: a batch in training, one batch for each rank otherwise.

        Batches are cut before ranks get theirs, so that they are the same for any number of ranks.
        """
        batches = cut_batches(order, self._batch_size)
        if self._trains or self._share.size == 1:
            return batches
        steps = _iter_chunks(batches, self._share.size)
        return [[draw for batch in step for draw in batch] for step in steps]

    def _take_share(self, global_batch: list[int]) -> list[int] | None:
        """Return this rank's draws of a step; None: evaluation's last step has no batch for it."""
        if self._trains or self._share.size == 1:
            return self._share.select(global_batch)
        batches = cut_batches(global_batch, self._batch_size)  # the same cuts as in `_cut_steps`
        return batches[self._share.rank] if self._share.rank < len(batches) else None


def _iter_ready_chunks(paths: Iterable[str | None], size: int) -> Iterator[list[str]]:
    """Yield chunks of `size` paths; at a None the chunk so far, which may be empty."""
    chunk: list[str] = []
    for path in paths:
        if path is not None:
            chunk.append(path)
        if path is None or len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _iter_chunks(items: Iterable[Any], size: int) -> Iterator[tuple[Any, ...]]:
    """Yield chunks of `size` items; itertools.batched does so from Python 3.12 on."""
    iterator = iter(items)
    while chunk := tuple(islice(iterator, size)):
        yield chunk
