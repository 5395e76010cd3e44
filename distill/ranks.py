"""The processes that train one scene, or one generator, together, as ``accelerate launch`` and ``torchrun`` start them."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

T = TypeVar("T")

#: How long a process waits for the others: longer than any of them loads, draws previews or saves.
PATIENCE = timedelta(hours=1)


class Ended(RuntimeError):
    """Another process failed, and reports the reason itself."""


class Lost(RuntimeError):
    """Another process ended without a report."""


class Ranks:
    """One of several processes with the same parameters, each of which does its part of every step.

    All of them ``meet`` once before they begin, in each step, and at the end. A process that fails meets the others once more,
    so that they end too, rather than wait. On a single process, nothing here does anything.

    Args:
        rank: number of this process, from 0; process 0 alone writes files.
        size: number of processes.
    """

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.rank, self.size = rank, size
        self.parted = size == 1
        self.asked, self.stop = threading.Event(), threading.Event()

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """Return this process's part of some work: consecutive, and equal in size to the others'."""
        count = len(items)
        return items[self.rank * count // self.size : (self.rank + 1) * count // self.size]

    def heed(self, asked: threading.Event) -> threading.Event:
        """Return what is set, on all processes after the same step, once ``asked`` was set on any of them."""
        if self.size == 1:
            return asked
        self.asked = asked
        return self.stop

    def meet(self, weights: int = 0, failed: bool = False) -> None:
        """Synchronise all processes, and agree whether to stop.

        Args:
            weights: parameters that this process trains; all must have as many.
            failed: this process cannot continue.

        Raises:
            Ended: another process fails, which says why; of several, the first.
            Lost: another process is gone.
            ValueError: a scene has grown differently here and there.
        """
        if self.parted:
            return
        said = [-self.rank if failed else -self.size, int(self.asked.is_set()), weights, -weights]
        found = torch.tensor(said)
        self._with_all(lambda: dist.all_reduce(found, dist.ReduceOp.MAX))
        first, stop, most, least = found.tolist()
        self.parted = first > -self.size
        if self.parted and -first != self.rank:
            raise Ended(f"process {-first} failed, and says why")
        if stop:
            self.stop.set()
        if not self.parted and most != -least:
            self.parted = True
            if self.rank:
                raise Ended("process 0 says why")
            raise ValueError(
                f"the scene has {most:,} parameters on one process and {-least:,} on another: it grows by what it renders, and "
                "each process renders other views; train it on one process"
            )

    def part(self) -> None:
        """Synchronise for the last time: from here on, processes are independent."""
        self.meet()
        self.parted = True

    def tell(self, value: Any = None) -> Any:
        """Return the value of process 0."""
        if self.parted:
            return value
        self.meet()
        told = [value]
        self._with_all(lambda: dist.broadcast_object_list(told, 0, device=torch.device("cpu")))
        return told[0]

    def begin(self, parameters: Sequence[nn.Parameter]) -> None:
        """Give all processes the parameters of process 0, since results on several GPUs may differ in the last bit."""
        if self.parted:
            return
        self.meet(weights_of(parameters))
        for parameter in parameters:
            value = parameter.data
            self._with_all(lambda value=value: dist.broadcast(value, 0))  # type: ignore[misc]

    def add(self, parameters: Sequence[nn.Parameter]) -> None:
        """Synchronise, then sum each gradient over all processes; gradients that no process has stay None."""
        if self.parted:
            return
        self.meet(weights_of(parameters))
        device = parameters[0].device
        given = torch.tensor([float(p.grad is not None) for p in parameters]).to(device)
        for parameter in parameters:
            own = parameter.grad
            parameter.grad = torch.zeros_like(parameter) if own is None else own.contiguous()
        sums = [given, *(p.grad for p in parameters if p.grad is not None)]

        def reduce() -> None:
            for work in [dist.all_reduce(value, async_op=True) for value in sums]:
                work.wait()

        self._with_all(reduce)
        for parameter, count in zip(parameters, given.tolist(), strict=True):
            if not count:
                parameter.grad = None

    def mean(self, values: Tensor) -> Tensor:
        """Return the mean over all processes, right after ``add``."""
        if self.parted:
            return values
        self._with_all(lambda: dist.all_reduce(values))
        return values / self.size

    def _with_all(self, collective: Callable[[], Any]) -> None:
        try:
            collective()
        except RuntimeError as error:
            self.parted = True
            raise Lost(
                "another process ended without a word, so this one ends too; the launcher says which; continue with resume=true"
            ) from error


#: A process of its own.
ALONE = Ranks()


def weights_of(parameters: Sequence[nn.Parameter]) -> int:
    """Return the number of values in some parameters."""
    return sum(parameter.numel() for parameter in parameters)


def streams(generator: torch.Generator, count: int) -> list[torch.Generator]:
    """Return generators for the parts of a step: each part draws the same numbers on any process.

    Args:
        generator: of the step, which is returned for a single part, and seeds those of several.
        count: of parts.
    """
    if count == 1:
        return [generator]
    seeds = torch.randint(2**62, (count,), generator=generator).tolist()
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def launched() -> int:
    """Return the number of processes that a launcher started, 1 for none."""
    return int(os.environ.get("WORLD_SIZE") or 1) if "RANK" in os.environ else 1


def speaks() -> bool:
    """Return whether this process reports for all: only the first one does."""
    return launched() == 1 or os.environ["RANK"] == "0"


@contextlib.contextmanager
def joined(device: str) -> Iterator[Ranks]:
    """Join the processes that a launcher started, for as long as the context lasts; without a launcher, there are none.

    Each takes a GPU of its own, number ``LOCAL_RANK`` of the machine; gradients go over NCCL there, and over gloo on CPUs.

    Args:
        device: as for ``distill.devices.pick_device``.

    Raises:
        ValueError: there is no GPU for this process.
        Ended: another process failed.
        Lost: another process is gone.
    """
    if launched() == 1:
        yield ALONE
        return
    gpu = device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())
    dist.init_process_group("cpu:gloo,cuda:nccl" if gpu else "gloo", timeout=PATIENCE)
    ranks = Ranks(dist.get_rank(), dist.get_world_size())
    if ranks.rank:
        logging.getLogger("distill").setLevel(logging.ERROR)
    try:
        if gpu:
            _take_gpu(int(os.environ.get("LOCAL_RANK", ranks.rank)))
        yield ranks
    except BaseException:
        with contextlib.suppress(Lost):
            ranks.meet(failed=True)
        raise
    finally:
        dist.destroy_process_group()


def _take_gpu(number: int) -> None:
    """Make a GPU this process's own.

    Raises:
        ValueError: there is none of this number.
    """
    count = torch.cuda.device_count()
    if number >= count:
        raise ValueError(
            f"process {number} of this machine has no GPU of its own, for there are {count}; start at most {count} processes on "
            "it, or add device=cpu"
        )
    torch.cuda.set_device(number)
