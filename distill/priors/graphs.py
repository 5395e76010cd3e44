"""CUDA graphs of a prior's predictions: all kernels of a call recorded once, and launched together from then on.

Where a network's kernels are shorter than it takes to launch them, the host is the bottleneck, and most of a prediction's time
is spent on launches. A graph is only good for the shapes, precisions and addresses that it was recorded with, so that each
shape gets its own, and none outlives a change of the network.
"""

from __future__ import annotations

import logging
import weakref
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import chain
from operator import is_
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from distill.contracts import Embedding
from distill.files.errors import first_line

log = logging.getLogger(__name__)

#: Without being asked, only networks with at most so many parameters are recorded: Stable Diffusion 1's and 2's have 0.87e9.
#: Kernels of larger ones take longer than their launches, and what a graph keeps in memory grows with them.
LARGEST = 1_000_000_000
#: Calls of a shape that are not recorded, so that what is asked once or twice costs nothing more.
FIRST = 2
#: Graphs at the same time.
SHAPES = 8
#: Calls after which a graph that was not used gives its place, and its memory, to another one.
STALE = 200

Computation = Callable[[], Tensor]


class Record(Protocol):
    """Records a computation; returns what does it again, with the same inputs' current values, and where its result lies."""

    def __call__(self, compute: Computation, /) -> tuple[Callable[[], None], Tensor]: ...


class Predicting(Protocol):
    """A prior whose predictions can be recorded."""

    @property
    def network(self) -> nn.Module: ...

    def forward(self, x_t: Tensor, t: Tensor, cond: Embedding) -> Tensor: ...


class Recorder:
    """Records CUDA graphs of one device that share their memory; they must be replayed one after another.

    Sharing is safe because a graph's result is copied before another one is replayed, and nothing else of it is kept.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream: torch.cuda.Stream | None = None
        self.pool: Any = None

    def __call__(self, compute: Computation) -> tuple[Callable[[], None], Tensor]:
        with torch.cuda.device(self.device):
            if self.stream is None:
                self.stream, self.pool = torch.cuda.Stream(), torch.cuda.graph_pool_handle()
            graph, before = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
            self.stream.wait_stream(before)
            # Libraries choose algorithms and take their workspaces now, not while it is recorded.
            with torch.cuda.stream(self.stream):
                compute()
                compute()
            before.wait_stream(self.stream)
            # The outer context: torch's own does not put the stream back if recording fails.
            recording = torch.cuda.graph(
                graph, pool=self.pool, stream=self.stream, capture_error_mode="thread_local"
            )
            try:
                with torch.cuda.stream(self.stream), recording:
                    output = compute()
            except BaseException:
                _release_generator()
                raise
        return graph.replay, output


def _release_generator() -> None:
    """Let the current device's generator draw again: a recording that failed leaves it waiting for the rest."""
    generator = torch.cuda.default_generators[torch.cuda.current_device()]
    generator.graphsafe_set_state(generator.clone_state())


@dataclass
class _Recorded:
    """A graph with the tensors that it reads and writes, and the number of the call that used it last."""

    inputs: list[Tensor]
    output: Tensor
    replay: Callable[[], None]
    used: int


class _Seen:
    """What a network consisted of: its modules and hooks, its parameters and buffers, and where these lie."""

    def __init__(self, network: nn.Module) -> None:
        modules = list(network.modules())
        self.held: list[dict[str, Any]] = [
            own for m in modules for own in (m._modules, m._parameters, m._buffers) if own
        ]
        self.hooks = [own for m in modules for own in (m._forward_hooks, m._forward_pre_hooks)]
        self.parts = self._parts()
        self.tensors = [part for part in self.parts if isinstance(part, Tensor)]
        self.places, self.hooked = self._places(), sum(map(len, self.hooks))
        self.trained = any(tensor.requires_grad for tensor in self.tensors)

    def _parts(self) -> list[Any]:
        return list(chain.from_iterable(own.values() for own in self.held))

    def _places(self) -> list[int]:
        return list(map(Tensor.data_ptr, self.tensors))

    def still(self) -> bool:
        """Whether it is the same network; asked before every replay, in some 0.2 ms."""
        parts = self._parts()
        same = len(parts) == len(self.parts) and all(map(is_, parts, self.parts))
        return same and self._places() == self.places and sum(map(len, self.hooks)) == self.hooked


class Graphs:
    """Predictions of one prior, from graphs where its shapes have one.

    Everything that a graph does not cover is computed as without it: the first calls of a shape, networks with adapters or with
    trained parameters, and everything from a failed recording on. Not for several threads at a time.

    Args:
        record: a ``Recorder``, or what stands for one.
    """

    def __init__(self, record: Record) -> None:
        self.record = record
        self.recorded: dict[tuple[Any, ...], _Recorded] = {}
        self.asked: Counter[tuple[Any, ...]] = Counter()
        self.calls = 0
        self.failed = False
        self._owner: Callable[[], object] = lambda: None
        self._seen: _Seen | None = None

    def predict(self, prior: Predicting, x_t: Tensor, t: Tensor, cond: Embedding) -> Tensor:
        """Predict as ``prior.forward`` does, without gradient; the result is the caller's own."""
        self.calls += 1
        if self.failed or not self._may(prior):
            return prior.forward(x_t, t, cond)
        inputs = [x_t, t, *cond.values()]
        key = (*cond, *((value.shape, value.dtype, value.device) for value in inputs))
        found = self.recorded.get(key)
        if found is None:
            self.asked[key] += 1
            if self.asked[key] <= FIRST or not self._room():
                return prior.forward(x_t, t, cond)
            found = self._made(prior, inputs, cond)
            if found is None:
                return prior.forward(x_t, t, cond)
            self.recorded[key] = found
        for kept, value in zip(found.inputs, inputs, strict=True):
            kept.copy_(value)
        found.replay()
        found.used = self.calls
        return found.output.clone()

    def forget(self) -> None:
        """Drop every graph, and the memory that they keep."""
        self.recorded.clear()
        self.asked.clear()

    def _may(self, prior: Predicting) -> bool:
        """Whether graphs can be used for a prior as it is now; drops those that were recorded before it changed."""
        if torch.is_grad_enabled() or torch.is_inference_mode_enabled():
            return False
        if any("peft_config" in vars(part) for part in (prior.network, *prior.network.children())):
            # Adapters are switched on and off without a trace in the modules. A novel-view model has them in its UNet.
            self.forget()
            self._seen = None
            return False
        if self._seen is None or self._owner() is not prior or not self._seen.still():
            self.forget()
            self._seen, self._owner = _Seen(prior.network), weakref.ref(prior)
        return not self._seen.trained

    def _room(self) -> bool:
        """Whether one more graph may be recorded; makes room by dropping those that were not used lately."""
        if len(self.recorded) >= SHAPES:
            self.recorded = {k: one for k, one in self.recorded.items() if self.calls - one.used < STALE}
        return len(self.recorded) < SHAPES

    def _made(self, prior: Predicting, inputs: list[Tensor], cond: Mapping[str, Tensor]) -> _Recorded | None:
        """Record a prediction; None if that is not possible, with one warning."""
        kept = [value.detach().clone() for value in inputs]
        told = dict(zip(cond, kept[2:], strict=True))
        try:
            replay, output = self.record(lambda: prior.forward(kept[0], kept[1], told))
        except (RuntimeError, ValueError) as error:
            self.failed = True
            self.forget()
            log.warning(
                "the prior's predictions cannot be recorded as a CUDA graph and are launched kernel by kernel: %s; "
                "prior_options.graphs=false says so from the start",
                first_line(error)[:200],
            )
            return None
        return _Recorded(kept, output, replay, self.calls)


def check_graphs(wanted: bool | None, device: torch.device) -> None:
    """Refuse graphs where there are none.

    Raises:
        ValueError: they are asked for, and the device is not CUDA.
    """
    if wanted and device.type != "cuda":
        raise ValueError(
            f"prior_options.graphs=true records CUDA graphs and needs device=cuda, got {device.type}; leave it out"
        )


def graphs_for(
    network: nn.Module, device: torch.device, wanted: bool | None, *, compiled: bool = False
) -> Graphs | None:
    """Return graphs for a network, or None for a network that is called as it is.

    Args:
        network: predicts.
        device: where it lies.
        wanted: None decides: on CUDA for networks with at most ``LARGEST`` parameters that are not compiled.
        compiled: whether the network is compiled.

    Raises:
        ValueError: they are asked for, and the device is not CUDA.
    """
    check_graphs(wanted, device)
    if wanted is None:
        small = sum(parameter.numel() for parameter in network.parameters()) <= LARGEST
        wanted = device.type == "cuda" and small and not compiled
    return Graphs(Recorder(device)) if wanted else None
