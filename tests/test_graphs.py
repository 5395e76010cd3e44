"""CUDA graphs of predictions, on the CPU: a recorder that stands for CUDA's computes again into the same tensor."""

from __future__ import annotations

import dataclasses
import logging
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from test_novelview_pipeline import make as make_pipeline
from torch import Tensor, nn

from distill.cameras import turntable
from distill.priors import graphs, load_prior
from distill.priors.adapter import Student
from distill.priors.diffusion import DiffusionPrior
from distill.priors.graphs import FIRST, SHAPES, STALE, Graphs, graphs_for
from distill.priors.novel_view.prior import NovelViewPrior
from distill.run.assembly.assemble import assemble
from distill.run.config.compose import compose_config


class Recorder:
    """Records nothing, but does what a graph does: the same computation on the same tensors, into the same result."""

    def __init__(self) -> None:
        self.recorded = self.replayed = 0

    def __call__(self, compute: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        self.recorded += 1
        output = torch.full_like(compute(), torch.nan)  # recording computes nothing

        def replay() -> None:
            self.replayed += 1
            output.copy_(compute())

        return replay, output


def draw(seed: int, rows: int = 2) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, 12, 8, 8, generator=generator), torch.randint(1000, (rows,), generator=generator)


@pytest.fixture
def prior(pixel_folder: Path) -> DiffusionPrior:
    return dataclasses.replace(load_prior(pixel_folder, dtype=torch.float32), graphs=Graphs(Recorder()))


def recorder(prior: DiffusionPrior) -> Recorder:
    assert prior.graphs is not None and isinstance(prior.graphs.record, Recorder)
    return prior.graphs.record


def check(prior: DiffusionPrior, cond: dict[str, Tensor], seed: int, rows: int = 2) -> Tensor:
    """Predict, which must be bit for bit what the network gives."""
    x, t = draw(seed, rows)
    some = {name: value[:1].expand(rows, *value.shape[1:]) for name, value in cond.items()}
    found = prior.predict_noise(x, t, some)
    with torch.no_grad():
        assert torch.equal(found, prior.forward(x, t, some))
    return found


def test_predictions_are_the_networks_own_and_recorded_once_for_each_shape(prior: DiffusionPrior) -> None:
    cond, found = dict(prior.embed(["a mug"])), []
    for seed in range(FIRST + 3):
        found.append(check(prior, cond, seed))
        assert recorder(prior).recorded == (seed >= FIRST)
    assert recorder(prior).replayed == 3
    # Each result is the caller's own: the next prediction did not write into it.
    assert torch.equal(found[-2], check(prior, cond, FIRST + 1))
    for seed in range(FIRST + 1):
        check(prior, cond, seed, rows=3)
    check(prior, cond, 9)
    assert (recorder(prior).recorded, recorder(prior).replayed) == (2, 6)
    # A precision of its own is a shape of its own.
    x, t = draw(0)
    prior.predict_noise(x.double(), t, {name: value.expand(2, -1, -1) for name, value in cond.items()})
    assert recorder(prior).replayed == 6


def test_two_priors_keep_apart(prior: DiffusionPrior) -> None:
    other = dataclasses.replace(prior, graphs=Graphs(Recorder()))
    cond = dict(prior.embed(["a cat"]))
    for seed in range(FIRST + 2):
        check(prior, cond, seed)
        check(other, cond, seed)
    assert recorder(prior).replayed == recorder(other).replayed == 2
    # A prior made from another one has its graphs at first, and none of what they recorded.
    halved = dataclasses.replace(
        prior, schedule=dataclasses.replace(prior.schedule, time=prior.schedule.time / 2)
    )
    x, t = draw(1)
    told = {name: value.expand(2, -1, -1) for name, value in cond.items()}
    assert not torch.equal(halved.predict_noise(x, t, told), prior.forward(x, t, told).detach())


def test_a_changed_network_is_recorded_again(prior: DiffusionPrior) -> None:
    cond = dict(prior.embed(["a mug"]))

    def settle() -> int:
        for seed in range(FIRST + 1):
            check(prior, cond, seed)
        return recorder(prior).recorded

    assert settle() == 1
    weight = prior.network.conv_in.weight
    # In place: a graph reads the new numbers where the old ones were.
    with torch.no_grad():
        weight.mul_(1.5)
    check(prior, cond, 5)
    assert recorder(prior).recorded == 1
    # Elsewhere: it would read the old ones.
    weight.data = weight.data * 0.5
    check(prior, cond, 6)
    assert settle() == 2
    prior.network.conv_in.bias = nn.Parameter(
        torch.zeros_like(prior.network.conv_in.bias), requires_grad=False
    )
    assert settle() == 3
    prior.network.conv_norm_out = nn.Identity()
    assert settle() == 4
    handle = prior.network.conv_in.register_forward_hook(lambda module, args, output: 2 * output)
    assert settle() == 5
    handle.remove()
    assert settle() == 6


def test_with_adapters_and_with_gradients_nothing_is_recorded(prior: DiffusionPrior) -> None:
    cond = dict(prior.embed(["a mug"]))
    for seed in range(FIRST + 1):
        check(prior, cond, seed)
    graph_of = prior.graphs
    assert graph_of is not None and len(graph_of.recorded) == 1
    before = recorder(prior).replayed
    student = Student(
        prior, rank=2, alpha=2, targets=("to_q",), cameras=False, generator=torch.Generator().manual_seed(0)
    )
    for parameter in student.low_rank():
        nn.init.normal_(parameter)
    for seed in range(FIRST + 3):
        alone = check(prior, cond, seed)
        x, t = draw(seed)
        told = {name: value.expand(2, -1, -1) for name, value in cond.items()}
        own = student.predict_noise(x, t, told, None)
        assert own.requires_grad and not torch.allclose(own, alone)
    assert not graph_of.recorded
    prior.network.delete_adapters("student")
    prior.network.requires_grad_(True)
    for seed in range(FIRST + 3):
        check(prior, cond, seed)
    prior.network.requires_grad_(False)
    x, t = draw(0)
    for _ in range(FIRST + 2):
        graph_of.predict(prior, x, t, {name: value.expand(2, -1, -1) for name, value in cond.items()})
    assert recorder(prior).replayed == before


def test_a_recording_that_fails_is_told_once_and_not_tried_again(
    prior: DiffusionPrior, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(compute: Callable[[], Tensor]) -> Any:
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    failing = dataclasses.replace(prior, graphs=Graphs(fail))
    cond = dict(prior.embed(["a mug"]))
    with caplog.at_level(logging.WARNING):
        for seed in range(FIRST + 3):
            check(failing, cond, seed)
    (record,) = caplog.records
    assert (
        "kernel by kernel: operation not permitted when stream is capturing; prior_options.graphs=false"
        in (record.getMessage())
    )


def test_a_novel_view_priors_predictions_are_its_models_own(tmp_path: Path) -> None:
    pipeline = make_pipeline(tmp_path, latent=False)
    generator = torch.Generator().manual_seed(0)
    plain = NovelViewPrior.of(pipeline, torch.rand(3, 8, 8, generator=generator), turntable(1))
    assert plain.graphs is None
    recorded = dataclasses.replace(plain, graphs=Graphs(Recorder()))
    for number in range(FIRST + 3):
        x, t = (
            torch.randn(2, *plain.shape, generator=generator),
            torch.randint(900, (2,), generator=generator),
        )
        # The pose and whether the picture is kept change from call to call, as the timesteps do.
        cond, cameras = plain.embed(["", "a mug"][:: 1 - 2 * (number % 2)]), turntable(2, 10.0 * number)
        expected = plain.predict_noise(x, t, cond, cameras)
        assert torch.equal(recorded.predict_noise(x, t, cond, cameras), expected)
    graph_of = recorded.graphs
    assert graph_of is not None and isinstance(graph_of.record, Recorder)
    assert graph_of.record.replayed == 3


def test_adapters_of_a_part_are_never_recorded(tmp_path: Path) -> None:
    """VSD's layers lie in a novel-view model's UNet, and are switched off for the frozen prediction."""
    pipeline = make_pipeline(tmp_path, latent=False)
    prior = NovelViewPrior.of(pipeline, torch.rand(3, 8, 8), turntable(1))
    recorded = dataclasses.replace(prior, graphs=Graphs(Recorder()))
    x, t, cond = torch.zeros(2, *prior.shape), torch.full((2,), 500), prior.embed(["a mug", "a mug"])

    def ask() -> int:
        for _ in range(FIRST + 2):
            recorded.predict_noise(x, t, cond, turntable(2))
        assert recorded.graphs is not None and isinstance(recorded.graphs.record, Recorder)
        return recorded.graphs.record.replayed

    before = ask()
    assert before > 0
    pipeline.model.unet.peft_config = {"student": None}
    assert ask() == before
    assert recorded.graphs is not None and not recorded.graphs.recorded


def test_graphs_are_few_and_the_unused_ones_go(prior: DiffusionPrior) -> None:
    calls = Graphs(Recorder())

    class Doubling:
        network = nn.Linear(1, 1).requires_grad_(False)

        def forward(self, x_t: Tensor, t: Tensor, cond: Any) -> Tensor:
            return 2 * x_t

    def ask(rows: int) -> None:
        with torch.no_grad():
            assert calls.predict(one, torch.ones(rows), torch.zeros(1), {}).tolist() == [2.0] * rows

    one = Doubling()
    for rows in range(1, SHAPES + 3):
        for _ in range(FIRST + 1):
            ask(rows)
    assert len(calls.recorded) == SHAPES
    for _ in range(STALE):
        ask(1)
    ask(SHAPES + 2)
    # What was in use and what came now.
    assert len(calls.recorded) == 2
    # Without its graphs, nothing keeps a prior in memory.
    calls.forget()
    watched, one = weakref.ref(one), Doubling()
    assert watched() is None


def test_only_small_networks_on_cuda_are_recorded_without_being_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cuda, cpu = torch.device("cuda"), torch.device("cpu")
    network = nn.Linear(9, 9, bias=False)
    assert graphs_for(network, cpu, None) is graphs_for(network, cpu, False) is None
    assert graphs_for(network, cuda, None) is not None
    assert graphs_for(network, cuda, False) is None
    assert graphs_for(network, cuda, None, compiled=True) is None
    assert graphs_for(network, cuda, True, compiled=True) is not None
    monkeypatch.setattr(graphs, "LARGEST", 80)
    assert graphs_for(network, cuda, None) is None
    assert graphs_for(network, cuda, True) is not None


def test_graphs_without_cuda_are_refused_before_anything_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    said = "prior_options.graphs=true records CUDA graphs and needs device=cuda, got cpu; leave it out"
    monkeypatch.setattr("distill.priors.load.find", None)
    with pytest.raises(ValueError, match=said):
        load_prior("embedded", "cpu", graphs=True)
    with pytest.raises(ValueError, match=said):
        assemble(compose_config(["prompt=a red mug", "prior_options.graphs=true", "device=cpu"]))
    assert compose_config(["prompt=a red mug"]).prior_options.graphs is None
    with pytest.raises(ValueError, match=r"prior_options\.graphs"):
        compose_config(["prompt=a red mug", "prior_options.graphs=maybe"])


class Cuda:
    """Stands for ``torch.cuda``: notes what is done on which stream, and, as torch does, leaves it there if capturing fails."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, fails: bool = False) -> None:
        self.done: list[str] = []
        self.now, self.pools, self.fails = "main", 0, fails
        for name in (
            "device",
            "Stream",
            "current_stream",
            "stream",
            "graph",
            "CUDAGraph",
            "graph_pool_handle",
        ):
            monkeypatch.setattr(torch.cuda, name, getattr(self, name))
        # Recording holds the generator's state; a clone of it is free.
        self.generator = SimpleNamespace(
            state="held", clone_state=lambda: "free", graphsafe_set_state=self.set_state
        )
        monkeypatch.setattr(torch.cuda, "default_generators", {3: self.generator})
        monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)

    def set_state(self, state: str) -> None:
        self.generator.state = state

    @contextmanager
    def device(self, device: torch.device) -> Iterator[None]:
        yield

    def handle(self, name: str) -> Any:
        return SimpleNamespace(
            name=name, wait_stream=lambda other: self.done.append(f"{name} waits for {other.name}")
        )

    def Stream(self) -> Any:  # noqa: N802, the name is torch's
        return self.handle("side")

    def current_stream(self) -> Any:
        return self.handle(self.now)

    @contextmanager
    def stream(self, stream: Any) -> Iterator[None]:
        before, self.now = self.now, stream.name
        try:
            yield
        finally:
            self.now = before

    @contextmanager
    def graph(self, graph: Any, *, pool: int, stream: Any, capture_error_mode: str) -> Iterator[None]:
        self.done.append(f"begin in pool {pool}, {capture_error_mode}")
        self.now = stream.name
        yield
        if self.fails:
            self.now = "lost"
            raise RuntimeError("operation not permitted when stream is capturing")
        self.done.append("end")

    def CUDAGraph(self) -> Any:  # noqa: N802
        return SimpleNamespace(replay=lambda: self.done.append("replay"))

    def graph_pool_handle(self) -> int:
        self.pools += 1
        return self.pools

    def compute(self) -> Tensor:
        self.done.append(f"compute on {self.now}")
        return torch.ones(2)


def test_cuda_records_on_a_stream_of_its_own_after_a_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = Cuda(monkeypatch)
    record = graphs.Recorder(torch.device("cuda"))
    replay, output = record(cuda.compute)
    assert cuda.done == [
        "side waits for main", "compute on side", "compute on side", "main waits for side",
        "begin in pool 1, thread_local", "compute on side", "end",
    ]  # fmt: skip
    assert output.tolist() == [1, 1]
    replay()
    assert cuda.done[-1] == "replay" and cuda.now == "main"
    # All of a prior's graphs share their memory; another prior's have their own.
    record(cuda.compute)
    graphs.Recorder(torch.device("cuda"))(cuda.compute)
    assert [line for line in cuda.done if "pool" in line][1:] == [
        "begin in pool 1, thread_local", "begin in pool 2, thread_local",
    ]  # fmt: skip


def test_a_failed_recording_leaves_the_stream_and_the_generator_as_they_were(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cuda = Cuda(monkeypatch, fails=True)
    with pytest.raises(RuntimeError, match="capturing"):
        graphs.Recorder(torch.device("cuda"))(cuda.compute)
    assert cuda.now == "main"
    assert cuda.generator.state == "free"
