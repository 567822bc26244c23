"""The ranks of a run, started together by torchrun: sums, barriers, broadcasts, gathers.

    init_distributed -> World: rank and size, all_reduce, barrier, broadcast, gather, ddp

This module and rendezvous.py alone import torch.distributed. With one process, every method of
World returns at once and starts nothing.

Two ways to talk are used. Tensors and objects go through torch's process groups. Waiting goes
through the key-value store of rendezvous.py: a rank asks for a key in a Python loop, so that it
hears signals while it waits, and learns that another rank has failed. torch's own collectives do
neither, and give up after TIMEOUT.
"""

import inspect
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mlfinetune.errors import LostError
from mlfinetune.runtime.device import choose_rank_device, prepare_device
from mlfinetune.runtime.rendezvous import (
    TIMEOUT,
    add_prefix,
    get_shared_store,
    meet_ranks,
    wait_for_key,
    wait_until,
)
from mlfinetune.runtime.signals import Signals, catch_signals
from mlfinetune.runtime.torchrun import DistInfo, dist_info

T = TypeVar("T")
NoSync = AbstractContextManager[None]
"""A block in which DDP does not sum gradients over ranks: `with no_sync():`."""
_BUFFERS_OPTION = "forward_sync_buffers"
"""The argument of DistributedDataParallel that broadcasts buffers before each forward pass."""
if _BUFFERS_OPTION not in inspect.signature(DistributedDataParallel).parameters:
    _BUFFERS_OPTION = "broadcast_buffers"  # its name in older versions of torch
_CONNECTION_FAULT = re.compile(
    r"connection|broken pipe|remote|peer|abort|time(d )?out|recv", re.IGNORECASE
)
"""Words in the errors that torch raises when another rank is gone: plain RuntimeErrors, in gloo."""


class World:
    """The ranks of a run, and the collectives among them.

    Each method must be called by all ranks, in the same order.

    Attributes:
        info: rank, world size, local rank and local size of this process.
        device: device of this process.
    """

    def __init__(self, device: torch.device, info: DistInfo) -> None:
        """Keep device and ranks; with `info.size` above 1, torch's process group must exist."""
        self.device, self.info = device, info
        self._cpu_group: Any = None  # None is torch's word for the default group
        if self.is_distributed and device.type != "cpu":
            # Objects and numbers travel between CPUs; NCCL moves tensors on GPUs only.
            self._cpu_group = dist.new_group(backend="gloo", timeout=TIMEOUT)
        self._keys_taken = 0

    @property
    def is_distributed(self) -> bool:
        """Whether the run has more than one rank."""
        return self.info.size > 1

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which writes files and prints."""
        return self.info.rank == 0

    def single(self) -> "World":
        """Return a World of this process alone, on the same device."""
        return World(self.device, DistInfo())

    def all_reduce_sum_(self, tensor: Tensor) -> None:
        """Sum a tensor of `self.device` over all ranks, in place."""
        if self.is_distributed:
            dist.all_reduce(tensor)

    def all_reduce_max(self, number: int) -> int:
        """Return the largest of all ranks' numbers, on every rank."""
        if not self.is_distributed:
            return number
        largest = torch.tensor(number)
        dist.all_reduce(largest, dist.ReduceOp.MAX, group=self._cpu_group)
        return int(largest)

    def broadcast(self, choose: Callable[[], T]) -> T:
        """Run `choose` on rank 0 and return its result on all ranks.

        The others wait for as long as `choose` takes; TIMEOUT does not apply.
        """
        if not self.is_distributed:
            return choose()
        key = self._next_key("broadcast")
        box: list[Any] = [None]
        if self.is_main:
            box = [choose()]
            get_shared_store().set(key, "")
        else:
            wait_for_key(key)
        self.barrier()
        dist.broadcast_object_list(box, 0, group=self._cpu_group)
        result: T = box[0]
        return result

    def barrier(self) -> None:
        """Wait until all ranks are here, without a timeout.

        Called before collectives of torch that would time out where one rank is late.
        """
        if self.is_distributed:
            key = self._next_key("barrier")
            get_shared_store().add(key, 1)
            wait_until(lambda: get_shared_store().add(key, 0) >= self.info.size)

    @contextmanager
    def local_main_first(self) -> Iterator[None]:
        """Run the block on local rank 0 of each machine first, then on the other ranks.

        Example: local rank 0 downloads the weights; the others find them in the cache.
        """
        key = self._next_key(f"machine {self.info.machine}")
        if self.info.local_rank:
            wait_for_key(key)
        yield
        if self.is_distributed and not self.info.local_rank:
            get_shared_store().set(key, "")

    def gather_stream(self, items: Iterable[T]) -> Iterator[T]:
        """Yield all ranks' items on rank 0: the first of each rank, the second of each, and so on.

        Example: rank 0 has a, b and rank 1 has x, y, z -> rank 0 yields a, x, b, y, z. The other
        ranks send their items one by one, at most one ahead of rank 0, and yield nothing.

        In evaluation rank r has batches r, r + size, r + 2 * size ... of the manifest. Taken in
        turns, the batches of all ranks come in the manifest's order, and rank 0 holds one of each
        rank at most.
        """
        if not self.is_distributed:
            yield from items
        elif not self.is_main:
            for item in items:
                dist.send_object_list([item], 0, group=self._cpu_group)
            dist.send_object_list([_EndOfStream()], 0, group=self._cpu_group)
        else:
            streams: dict[int, Iterator[Any]] = {0: iter(items)}
            streams |= {rank: self._receive_from(rank) for rank in range(1, self.info.size)}
            # Ranks may have different numbers of items: a stream that ends leaves the turns, so
            # that nobody waits for an item that is never sent.
            while streams:
                for rank in list(streams):
                    item_or_end = next(streams[rank], _END_OF_STREAM)
                    if isinstance(item_or_end, _EndOfStream):
                        del streams[rank]
                    else:
                        yield item_or_end

    def _receive_from(self, rank: int) -> Iterator[Any]:
        """Yield the objects that `rank` sends, up to its _EndOfStream."""
        while True:
            box: list[Any] = [None]
            dist.recv_object_list(box, rank, group=self._cpu_group)
            if isinstance(box[0], _EndOfStream):
                return
            yield box[0]

    def gather(self, item: T) -> list[T]:
        """Return the items of all ranks, by rank, on rank 0; an empty list on the others."""
        return list(self.gather_stream([item]))

    def ddp(self, net: nn.Module) -> tuple[nn.Module, Callable[[], NoSync]]:
        """Wrap the net for training on all ranks, with the weights of rank 0.

        Returns:
            The module to call in training, and its `no_sync`: gradients are not summed over ranks
            inside of `with no_sync():`. With one rank: the net itself, and `nullcontext`.
        """
        if not self.is_distributed:
            return net, nullcontext
        self.barrier()
        # No broadcast of BatchNorm's buffers: `training.step` averages its statistics.
        options: dict[str, Any] = {_BUFFERS_OPTION: False}
        if self.device.type == "cuda":
            options["device_ids"] = [self.device]
        replica = DistributedDataParallel(net, gradient_as_bucket_view=True, **options)
        replica.register_comm_hook(None, lambda _, bucket: _sum_gradients(bucket))
        return replica, replica.no_sync

    def _next_key(self, purpose: str) -> str:
        """Return a key of the store; all ranks come to the same keys in the same order."""
        self._keys_taken += 1
        return f"{purpose} {self._keys_taken}"


class _EndOfStream:
    """The last object that a rank sends to `gather_stream`."""


_END_OF_STREAM = _EndOfStream()


@contextmanager
def init_distributed(wanted: str, deterministic: bool = False) -> Iterator[World]:
    """Join the ranks that torchrun has started, and yield the World; one process alone joins none.

    Args:
        wanted: a device, `auto` or one that `choose_rank_device` takes.
        deterministic: argument of `prepare_device`.

    Raises:
        DeviceError: as `prepare_device`; or there is no GPU for this rank.
        LostError: not all ranks have started within TIMEOUT.
    """
    info = dist_info()
    device = prepare_device(choose_rank_device(wanted, info), deterministic)
    if info.size == 1:
        yield World(device, info)
        return
    with catch_signals() as signals:
        with signals.deferred():
            world = _init_process_group(device, info, meet_ranks(info, signals))
        signals.check()
        try:
            with _signal_before_loss(signals):
                yield world
        except (KeyboardInterrupt, SystemExit):
            get_shared_store().add("stopped", 1)  # the ranks that wait for this one will stop too
            raise
    world.barrier()
    dist.destroy_process_group()


@contextmanager
def _signal_before_loss(signals: Signals) -> Iterator[None]:
    """Raise the signal that this rank has heard where another rank, after the signal, is lost.

    A scheduler sends SIGTERM to all ranks. One of them may be gone already when this one, in a
    collective, learns of it by a lost connection.
    """
    try:
        yield
    except Exception as error:
        if _is_connection_lost(error):
            signals.check()
        raise


def report_failure(error: Exception) -> Exception | None:
    """Tell the other ranks that this one fails, and return the error to print.

    One rank's error makes the collectives of the others fail. So only the first rank that comes
    here prints: the cause, or a LostError where the cause is that another rank has gone.

    Args:
        error: the exception that ends this process.

    Returns:
        The exception to print; None: another rank has printed its own already.
    """
    if dist_info().size == 1:
        return error
    try:
        is_first = get_shared_store().add("failed", 1) == 1
        was_stopped = get_shared_store().add("stopped", 0) > 0
    except RuntimeError:  # the machine with the store has gone: nobody knows who has printed
        is_first, was_stopped = True, False
    if not is_first:
        return None
    if not _is_connection_lost(error):
        return error
    first_line = str(error).strip().partition("\n")[0]
    return LostError(f"{LostError.STOPPED if was_stopped else LostError.ENDED} ({first_line})")


def _is_connection_lost(error: Exception) -> bool:
    """Return whether torch has raised the error because another rank is gone."""
    from_torch = type(error) is RuntimeError or isinstance(error, dist.DistError)
    return from_torch and bool(_CONNECTION_FAULT.search(str(error)))


def _init_process_group(device: torch.device, info: DistInfo, store: Any) -> World:
    """Connect this rank with all others: NCCL between GPUs, gloo between CPUs."""
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.set_device(device)
    dist.init_process_group(
        "nccl" if on_gpu else "gloo",
        store=add_prefix("group", store),
        rank=info.rank,
        world_size=info.size,
        timeout=TIMEOUT,
        device_id=device if on_gpu else None,
    )
    return World(device, info)


def _sum_gradients(bucket: Any) -> torch.futures.Future[Tensor]:
    """Sum one bucket of gradients over ranks, where DDP's own hook would take the mean.

    The loss of each rank is divided by the known targets of all ranks already.
    """
    work = dist.all_reduce(bucket.buffer(), async_op=True)
    assert work is not None
    return work.get_future().then(lambda done: done.value()[0])
