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

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from mlfinetune.errors import DeviceError, LostError
from mlfinetune.launch import Place, place
from mlfinetune.machine import prepare

T = TypeVar("T")
Apart = AbstractContextManager[None]
TIMEOUT = timedelta(minutes=10)
"""After so long a process that waits for the others gives up."""
_BUFFERS = "forward_sync_buffers"
if _BUFFERS not in inspect.signature(DistributedDataParallel).parameters:
    _BUFFERS = "broadcast_buffers"  # its name up to torch 2.14
_LOST = re.compile(r"gloo|nccl|connection|broken pipe|timed? ?out|store", re.IGNORECASE)
"""What torch says where another process has gone: plain RuntimeErrors, by gloo at least."""


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
        dist.broadcast_object_list(found, 0, group=self._control)
        return found[0]

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
    device = prepare(_own(wanted, here), deterministic)
    if here.size == 1:
        yield World(device, here)
        return
    store = _store()
    store.add("here", 1)
    _wait(lambda: store.add("here", 0) >= here.size)  # Python hears signals, the next call none
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
    yield World(device, here)
    dist.destroy_process_group()


def failure(error: Exception) -> Exception | None:
    """What there is to say of an error that ends this process.

    None: another process ended before, and has said why.
    """
    if place().size == 1:
        return error
    lost = isinstance(error, LostError) or (
        (type(error).__module__.startswith("torch") or type(error) is RuntimeError)
        and bool(_LOST.search(str(error)))
    )
    try:
        first = _store().add("failed", 1) == 1
    except RuntimeError:  # its machine has gone: who else has spoken cannot be told
        first = True
    if not first:
        return None
    return LostError(f"{LostError.ENDED} ({_first_line(error)})") if lost else error


@cache
def _store() -> Any:
    """What all processes write to and read from, at torchrun's own address."""
    found, _, _ = next(rendezvous("env://", timeout=TIMEOUT))
    return _named(f"mlfinetune {place().restarts}", found)


def _named(name: str, store: Any) -> Any:
    return dist.PrefixStore(name, store)  # type: ignore[attr-defined]


def _wait_for(key: str) -> None:
    _wait(lambda: bool(_store().check([key])))


def _wait(done: Callable[[], bool]) -> None:
    """For as long as it takes, unless a process fails."""
    pause = 0.005
    while not done():
        if _store().add("failed", 0):
            raise LostError(LostError.ENDED)
        time.sleep(pause)
        pause = min(0.5, 1.5 * pause)


def _own(wanted: str, here: Place) -> str:
    """The device of this process: of several on a machine each has its own GPU."""
    if here.size == 1:
        return wanted
    if wanted == "auto" and torch.cuda.is_available():
        wanted = "cuda"
    elif wanted == "auto":
        wanted = "cpu"
    if wanted == "cuda":
        count = torch.cuda.device_count()
        if here.local_rank >= count > 0:
            raise DeviceError(
                f"{here.local_size} processes on a machine with {count} GPUs: start one for each, "
                f"with torchrun --nproc-per-node {count}"
            )
        return f"cuda:{here.local_rank}"
    if wanted != "cpu":
        raise DeviceError(
            f"device '{wanted}' is one, and torchrun has started {here.size} processes: "
            f"leave --device out, or use --device cpu"
        )
    return wanted


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


def synchronize(net: nn.Module, device: torch.device) -> None:
    """Every BatchNorm in it learns from all processes' pictures; parameters stay those they are."""
    if device.type == "cuda":
        nn.SyncBatchNorm.convert_sync_batchnorm(net)  # type: ignore[no-untyped-call]
        return
    for module in list(net.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.BatchNorm2d):
                synced = SyncedBatchNorm(child.num_features, child.eps, child.momentum)
                synced._parameters, synced._buffers = child._parameters, child._buffers
                setattr(module, name, synced.train(child.training))
