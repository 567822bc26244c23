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
from mlfinetune.launch import Place, place
from mlfinetune.machine import own_device, prepare

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


# ---- processes --------------------------------------------------------------------------


class World:
    """The processes of a run.

    Attributes:
        place: this process's among them.
        device: this process's.
    """

    def __init__(self, device: torch.device, place: Place) -> None:
        """A process that is not alone has to have joined the others."""
        self.device, self.place = device, place
        self._control: Any = None  # the one group that there is
        if self.several and device.type != "cpu":
            self._control = dist.new_group(backend="gloo", timeout=TIMEOUT)
        self._waits = 0

    @property
    def several(self) -> bool:
        """Are there others?"""
        return self.place.size > 1

    @property
    def main(self) -> bool:
        """Is this the process that writes and prints?"""
        return self.place.rank == 0

    def alone(self) -> "World":
        """This process without the others."""
        return World(self.device, Place())

    def add(self, tensor: Tensor) -> None:
        """Sum it over all processes, in place; it is on the device."""
        if self.several:
            dist.all_reduce(tensor)

    def most(self, number: int) -> int:
        """The largest of all processes' numbers."""
        if not self.several:
            return number
        found = torch.tensor(number)
        dist.all_reduce(found, dist.ReduceOp.MAX, group=self._control)
        return int(found)

    def decide(self, choose: Callable[[], T]) -> T:
        """What process 0 makes of it, for all; the others wait, however long it takes."""
        if not self.several:
            return choose()
        key = self._next("decided")
        found = [choose()] if self.main else list[T]()
        if self.main:
            _store().set(key, "")
        else:
            _wait_for(key)
            found = [None]  # type: ignore[list-item]
        self.meet()
        dist.broadcast_object_list(found, 0, group=self._control)
        return found[0]

    def meet(self) -> None:
        """Go on when all have come here, however long it takes: what follows may wait for less."""
        if self.several:
            key = self._next("met")
            _store().add(key, 1)
            _wait(lambda: _store().add(key, 0) >= self.place.size)

    @contextmanager
    def turn(self) -> Iterator[None]:
        """One process of a machine first; the others then find what it has kept on the disk."""
        key = self._next(f"machine {self.place.machine}")
        if self.place.local_rank:
            _wait_for(key)
        yield
        if self.several and not self.place.local_rank:
            _store().set(key, "")

    def merged(self, items: Iterable[T]) -> Iterator[T]:
        """Everyone's items, on process 0: the first of each, the second of each, and so on.

        The others send theirs one by one, get none, and are never more than one ahead.
        """
        if not self.several:
            yield from items
        elif not self.main:
            for item in items:
                dist.send_object_list([item], 0, group=self._control)
            dist.send_object_list([_End()], 0, group=self._control)
        else:
            sources = {rank: self._from(rank) for rank in range(1, self.place.size)}
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

    def collected(self, item: T) -> list[T]:
        """Everyone's item, by rank, on process 0; nothing elsewhere."""
        return list(self.merged([item]))

    def replica(self, net: nn.Module) -> tuple[nn.Module, Callable[[], Apart]]:
        """The net to train, and in what its gradients are not summed over processes yet.

        All processes' begin as process 0's.
        """
        if not self.several:
            return net, nullcontext
        self.meet()
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
def joined(wanted: str, deterministic: bool = False) -> Iterator[World]:
    """This process among those that torchrun has started with it, if it has; on its own device.

    Args:
        wanted, deterministic: as `prepare`.

    Raises:
        DeviceError: as `prepare`, and where a process has no GPU of its own.
    """
    here = place()
    device = prepare(own_device(wanted, here), deterministic)
    if here.size == 1:
        yield World(device, here)
        return
    store = _met(here)
    _stores.append(store)
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
    world = World(device, here)
    yield world
    world.meet()
    dist.destroy_process_group()


def failure(error: Exception) -> Exception | None:
    """What there is to say of an error that ends this process.

    None: another process ended before, and has said why.
    """
    if place().size == 1:
        return error
    of_torch = type(error) is RuntimeError or isinstance(error, dist.DistError)
    lost = isinstance(error, LostError) or (of_torch and bool(_LOST.search(str(error))))
    try:
        first = _store().add("failed", 1) == 1
    except RuntimeError:  # its machine has gone: who else has spoken cannot be told
        first = True
    if not first:
        return None
    return LostError(f"{LostError.ENDED} ({_first_line(error)})") if lost else error


def _store() -> Any:
    """What all processes of this start write to and read from."""
    return _stores[-1] if _stores else _named(f"early {place().restarts}", _agent())


@cache
def _agent() -> Any:
    """The store at torchrun's own address: one for all starts, so that it holds what is stale."""
    found, _, _ = next(rendezvous("env://", timeout=TIMEOUT))
    return found


def _met(here: Place) -> Any:
    """A store of this start alone, once all of its processes have come.

    Machines count restarts each by itself, so a start has a name that process 0 draws: it answers
    every process by the name that this one has drawn, until all have said that they know.

    Raises:
        LostError: they do not come.
    """
    store, mine = _named("mlfinetune", _agent()), uuid4().hex
    end = time.monotonic() + TIMEOUT.total_seconds()

    def require_patience() -> None:
        if time.monotonic() > end:
            raise LostError(f"not all of {here.size} processes have come in {TIMEOUT}")

    if here.rank:
        store.set(f"hello {here.rank}", mine)
        answer = f"answer {mine}"
        _wait(lambda: bool(store.check([answer])), require_patience)
        start = store.get(answer).decode()
        store.add(f"known {start}", 1)
    else:
        start = mine
        _wait(lambda: _answered(store, start, here.size), require_patience)
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
    """Raise a LostError where a process has failed."""
    if _store().add("failed", 0):
        raise LostError(LostError.ENDED)


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


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


class SyncedBatchNorm(nn.BatchNorm2d):
    """What nn.SyncBatchNorm is on a GPU, for the CPU, where torch has none."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the same; B may be 0."""
        if not self.training:
            normalised: Tensor = super().forward(x)
            return normalised
        wide = x.float()
        count = x.new_full((1,), x.numel() // x.shape[1], dtype=torch.float32)
        sums = _Sum.apply(torch.cat([wide.sum((0, 2, 3)), count]))
        count = sums[-1].detach()
        mean = sums[:-1] / count
        centred = wide - mean[:, None, None]
        variance = _Sum.apply(centred.square().sum((0, 2, 3))) / count
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * (count / (count - 1)), self.momentum)
        scale = self.weight * torch.rsqrt(variance + self.eps)
        out: Tensor = centred * scale[:, None, None] + self.bias[:, None, None]
        return out.to(x.dtype)


class _Sum(torch.autograd.Function):
    """The sum over all processes, of whose loss everyone's is the sum."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x = x.clone()
        dist.all_reduce(x)
        return x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        grad = grad.contiguous().clone()
        dist.all_reduce(grad)
        return grad


class _SyncedOnGpu(nn.SyncBatchNorm):
    """torch's own; of no pictures it would exchange bfloat16 where the others exchange float32."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the same; B may be 0."""
        if len(x):
            whole: Tensor = super().forward(x)
            return whole
        none: Tensor = super().forward(x.float())
        return none.to(x.dtype)


def synchronize(net: nn.Module, device: torch.device) -> None:
    """Every BatchNorm in it learns from all processes' pictures; parameters stay those they are."""
    if device.type == "cuda":
        nn.SyncBatchNorm.convert_sync_batchnorm(net)  # type: ignore[no-untyped-call]
        for module in net.modules():
            if type(module) is nn.SyncBatchNorm:
                module.__class__ = _SyncedOnGpu
        return
    for module in list(net.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.BatchNorm2d):
                synced = SyncedBatchNorm(child.num_features, child.eps, child.momentum)
                synced._parameters, synced._buffers = child._parameters, child._buffers
                setattr(module, name, synced.train(child.training))
