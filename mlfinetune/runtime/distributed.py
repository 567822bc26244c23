"""The processes of a run that torchrun has started together.

    joined -> World: (rank, size), sums, turns, one decision for all, one order of what all find

The only room that knows torch.distributed. Alone, a World costs nothing.
"""

import inspect
import re
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from functools import cache
from typing import Any, TypeVar
from uuid import uuid4

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from mlfinetune.errors import LostError
from mlfinetune.runtime.device import choose_rank_device, prepare_device
from mlfinetune.runtime.signals import Signals, catch_signals
from mlfinetune.runtime.torchrun import DistInfo, dist_info

T = TypeVar("T")
Apart = AbstractContextManager[None]
TIMEOUT = timedelta(minutes=10)
"""After so long a process that waits for the others gives up."""
_BUFFERS = "forward_sync_buffers"
if _BUFFERS not in inspect.signature(DistributedDataParallel).parameters:
    _BUFFERS = "broadcast_buffers"  # its older name
_LOST = re.compile(r"connection|broken pipe|remote|peer|abort|time(d )?out|recv", re.IGNORECASE)
"""What torch says where another process has gone: plain RuntimeErrors, by gloo at least."""
_stores: list[Any] = []
"""What the processes of this start share, the newest last."""


class World:
    """The processes of a run.

    Attributes:
        info: rank, world size, local rank and local size of this process.
        device: this process's.
    """

    def __init__(self, device: torch.device, info: DistInfo) -> None:
        """A process that is not alone has to have joined the others."""
        self.device, self.info = device, info
        self._control: Any = None  # the one group that there is
        if self.is_distributed and device.type != "cpu":
            self._control = dist.new_group(backend="gloo", timeout=TIMEOUT)
        self._waits = 0

    @property
    def is_distributed(self) -> bool:
        """Are there others?"""
        return self.info.size > 1

    @property
    def is_main(self) -> bool:
        """Is this the process that writes and prints?"""
        return self.info.rank == 0

    def single(self) -> "World":
        """This process without the others."""
        return World(self.device, DistInfo())

    def all_reduce_sum_(self, tensor: Tensor) -> None:
        """Sum it over all processes, in place; it is on the device."""
        if self.is_distributed:
            dist.all_reduce(tensor)

    def all_reduce_max(self, number: int) -> int:
        """The largest of all processes' numbers."""
        if not self.is_distributed:
            return number
        found = torch.tensor(number)
        dist.all_reduce(found, dist.ReduceOp.MAX, group=self._control)
        return int(found)

    def broadcast(self, choose: Callable[[], T]) -> T:
        """What process 0 makes of it, for all; the others wait, however long it takes."""
        if not self.is_distributed:
            return choose()
        key = self._next("broadcast")
        found = [choose()] if self.is_main else list[T]()
        if self.is_main:
            _store().set(key, "")
        else:
            _wait_for(key)
            found = [None]  # type: ignore[list-item]
        self.barrier()
        dist.broadcast_object_list(found, 0, group=self._control)
        return found[0]

    def barrier(self) -> None:
        """Go on when all have come here, however long it takes: what follows may wait for less."""
        if self.is_distributed:
            key = self._next("barrier")
            _store().add(key, 1)
            _wait(lambda: _store().add(key, 0) >= self.info.size)

    @contextmanager
    def local_main_first(self) -> Iterator[None]:
        """One process of a machine first; the others then find what it has kept on the disk."""
        key = self._next(f"machine {self.info.machine}")
        if self.info.local_rank:
            _wait_for(key)
        yield
        if self.is_distributed and not self.info.local_rank:
            _store().set(key, "")

    def gather_stream(self, items: Iterable[T]) -> Iterator[T]:
        """Everyone's items, on process 0: the first of each, the second of each, and so on.

        The others send theirs one by one, get none, and are never more than one ahead.
        """
        if not self.is_distributed:
            yield from items
        elif not self.is_main:
            for item in items:
                dist.send_object_list([item], 0, group=self._control)
            dist.send_object_list([_End()], 0, group=self._control)
        else:
            sources = {rank: self._from(rank) for rank in range(1, self.info.size)}
            own: dict[int, Iterator[T]] = {0: iter(items)}
            left = own | sources
            while left:
                for rank in list(left):
                    found = next(left[rank], _END)
                    if isinstance(found, _End):
                        del left[rank]
                    else:
                        yield found

    def _from(self, rank: int) -> Iterator[Any]:
        while True:
            box: list[Any] = [None]
            dist.recv_object_list(box, rank, group=self._control)
            if isinstance(box[0], _End):
                return
            yield box[0]

    def gather(self, item: T) -> list[T]:
        """Everyone's item, by rank, on process 0; nothing elsewhere."""
        return list(self.gather_stream([item]))

    def ddp(self, net: nn.Module) -> tuple[nn.Module, Callable[[], Apart]]:
        """The net to train, and in what its gradients are not summed over processes yet.

        All processes' begin as process 0's.
        """
        if not self.is_distributed:
            return net, nullcontext
        self.barrier()
        options: dict[str, Any] = {_BUFFERS: False}  # `fit` averages BatchNorm's statistics
        if self.device.type == "cuda":
            options["device_ids"] = [self.device]
        replica = DistributedDataParallel(net, gradient_as_bucket_view=True, **options)
        replica.register_comm_hook(None, lambda _, bucket: _sum(bucket))
        return replica, replica.no_sync

    def _next(self, what: str) -> str:
        """A key that all processes come to in the same order."""
        self._waits += 1
        return f"{what} {self._waits}"


class _End:
    """Nothing follows."""


_END = _End()


@contextmanager
def init_distributed(wanted: str, deterministic: bool = False) -> Iterator[World]:
    """This process among those that torchrun has started with it, if it has; on its own device.

    Args:
        wanted, deterministic: as `prepare`.

    Raises:
        DeviceError: as `prepare`, and where a process has no GPU of its own.
    """
    here = dist_info()
    device = prepare_device(choose_rank_device(wanted, here), deterministic)
    if here.size == 1:
        yield World(device, here)
        return
    with catch_signals() as heard:
        with heard.deferred():
            store = _met(here, heard)
            _stores.append(store)
            world = _connected(device, here, store)
        heard.check()
    try:
        yield world
    except (KeyboardInterrupt, SystemExit):
        _store().add("stopped", 1)
        raise
    world.barrier()
    dist.destroy_process_group()


def report_failure(error: Exception) -> Exception | None:
    """What there is to say of an error that ends this process.

    None: another process ended before, and has said why.
    """
    if dist_info().size == 1:
        return error
    of_torch = type(error) is RuntimeError or isinstance(error, dist.DistError)
    lost = of_torch and bool(_LOST.search(str(error)))
    try:
        first = _store().add("failed", 1) == 1
    except RuntimeError:  # its machine has gone: who else has spoken cannot be told
        first = True
    if not first:
        return None
    first_line = str(error).strip().partition("\n")[0]
    what = LostError.STOPPED if _stores and _stores[-1].add("stopped", 0) else LostError.ENDED
    return LostError(f"{what} ({first_line})") if lost else error


def _store() -> Any:
    """What all processes of this start write to and read from."""
    return _stores[-1] if _stores else _named(f"early {dist_info().restarts}", _agent())


@cache
def _agent() -> Any:
    """The store at torchrun's own address: one for all starts, so that it holds what is stale."""
    found, _, _ = next(rendezvous("env://", timeout=TIMEOUT))
    return found


def _connected(device: torch.device, here: DistInfo, store: Any) -> World:
    gpu = device.type == "cuda"
    if gpu:
        torch.cuda.set_device(device)
    dist.init_process_group(
        "nccl" if gpu else "gloo",
        store=_named("group", store),
        rank=here.rank,
        world_size=here.size,
        timeout=TIMEOUT,
        device_id=device if gpu else None,
    )
    return World(device, here)


def _met(here: DistInfo, heard: Signals) -> Any:
    """A store of this start alone, once all of its processes have come, and are about to connect.

    Machines count restarts each by itself, so a start has a name that process 0 draws: it answers
    every process by the name that this one has drawn, until all have said that they know. Then it
    says whether all go on. torch waits for all to connect, and hears no signal meanwhile: one that
    has said that it knows leaves only if process 0 says so, and nobody leaves after that.

    Raises:
        LostError: they do not come.
        KeyboardInterrupt, SystemExit: as `Signals.check`.
    """
    store, mine = _named("mlfinetune", _agent()), uuid4().hex
    end = time.monotonic() + TIMEOUT.total_seconds()

    def require_patience() -> None:
        if time.monotonic() > end:
            raise LostError(f"not all of {here.size} processes have come in {TIMEOUT}")

    def require_quiet() -> None:
        require_patience()
        heard.check()

    if here.rank:
        store.set(f"hello {here.rank}", mine)
        answer = f"answer {mine}"
        _wait(lambda: bool(store.check([answer])), require_quiet)
        start = store.get(answer).decode()
        store.add(f"known {start}", 1)
        _wait(lambda: bool(store.check([f"go {start}"])), require_patience)
    else:
        start, go = mine, b"no"
        try:
            _wait(lambda: _answered(store, start, here.size), require_quiet)
            go = b"yes"
        finally:
            store.set(f"go {start}", go)
    if store.get(f"go {start}") != b"yes":
        heard.check()
        raise LostError(LostError.ENDED)
    return _named(start, store)


def _answered(store: Any, start: str, size: int) -> bool:
    """Tell all that have come so far; True: all know."""
    for rank in range(1, size):
        if store.check([f"hello {rank}"]):
            store.set(f"answer {store.get(f'hello {rank}').decode()}", start)
    known: int = store.add(f"known {start}", 0)
    return known == size - 1


def _named(name: str, store: Any) -> Any:
    return dist.PrefixStore(name, store)  # type: ignore[attr-defined]


def _wait_for(key: str) -> None:
    _wait(lambda: bool(_store().check([key])))


def _require_all() -> None:
    """Raise a LostError where a process has failed; one that was stopped stops those that heard."""
    if _store().add("failed", 0):
        raise LostError(LostError.ENDED)
    if _store().add("stopped", 0):
        with catch_signals() as heard:
            heard.check()
        raise LostError(LostError.STOPPED)


def _wait(done: Callable[[], bool], require: Callable[[], None] = _require_all) -> None:
    """For as long as it takes, or `require` allows; in Python, so that signals are heard."""
    pause = 0.005
    while not done():
        require()
        time.sleep(pause)
        pause = min(0.5, 1.5 * pause)


def _sum(bucket: Any) -> torch.futures.Future[Tensor]:
    """DDP's own would be the mean; the loss is divided by everyone's known targets already."""
    work = dist.all_reduce(bucket.buffer(), async_op=True)
    assert work is not None
    return work.get_future().then(lambda done: done.value()[0])
