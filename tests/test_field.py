"""The fused field against its definition in double precision, and against the separate kernels."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from distill.renderers import _warp, _warp_field, hashgrid
from distill.renderers.nerf import ACTIVATIONS, MAX_FUSED, HashGridScene

SMALL: dict[str, Any] = {"levels": 5, "log2_table_size": 9, "base_resolution": 4, "finest_resolution": 40}

HALVES = (("fused", "float16"), ("warp", "float16"), ("fused", "float32"))


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.fixture
def one_lane(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The kernels as CUDA has them, a point to a thread, run on the CPU by one thread, since nothing is atomic there."""
    whole = _warp_field._Evaluate.apply

    def apply(*given: Any) -> Any:
        *tensors, layout, shape, options = given
        return whole(*tensors, layout, dataclasses.replace(shape, lanes=1), options)

    monkeypatch.setattr(_warp_field._Evaluate, "apply", apply)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def made(backend: str = "fused", **options: Any) -> HashGridScene:
    """A scene whose features, weights and biases are all of order 1."""
    scene = HashGridScene(**SMALL | options | {"backend": backend})
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in scene.parameters():
            parameter.uniform_(-1, 1, generator=generator)
    return scene


def points_of(count: int, reach: float = 1.1) -> Tensor:
    return (torch.rand(count, 3, generator=torch.Generator().manual_seed(5)) * 2 - 1) * reach


def run(scene: HashGridScene, points: Tensor) -> list[Tensor]:
    """Density, colour and the gradients of a random combination of them, to every parameter."""
    generator = torch.Generator().manual_seed(7)
    density, colour = scene.query(points)
    upstream = [torch.randn(part.shape, generator=generator).to(part) for part in (density, colour)]
    torch.autograd.backward([density, colour], upstream)
    gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in scene.parameters()]
    return [density.detach(), colour.detach(), *gradients]


def definition(scene: HashGridScene, points: Tensor) -> list[Tensor]:
    """The same in double precision, from plain torch."""
    exact = HashGridScene(**SMALL | options_of(scene), backend="torch").double()
    exact.load_state_dict(scene.state_dict())
    exact._active = scene._active
    return run(exact, points.double())


def options_of(scene: HashGridScene) -> dict[str, Any]:
    return {
        "features": scene.layout.features,
        "hidden_width": scene.mlp[0].out_features,
        "density_activation": scene.density_activation,
    }


def assert_same(found: list[Tensor], expected: list[Tensor]) -> None:
    """Within 1e-4, or 1e-5 of the largest of its kind."""
    for value, exact in zip(found, expected, strict=True):
        torch.testing.assert_close(
            value.double(), exact.double(), rtol=1e-4, atol=1e-5 * float(exact.abs().max())
        )


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("features", [1, 2, 4, 8])
def test_values_and_gradients_are_those_of_the_definition(
    activation: str, features: int, threads: int
) -> None:
    # 101 points: whole blocks and a part of one.
    scene = made(density_activation=activation, features=features, hidden_width=12)
    assert_same(run(scene, points_of(101)), definition(scene, points_of(101)))


@pytest.mark.parametrize("lanes", ["", "one_lane"])
@pytest.mark.parametrize("features", [1, 2])
def test_half_precision_reads_rounded_entries_and_trains_whole_ones(
    features: int, lanes: str, request: pytest.FixtureRequest
) -> None:
    if lanes:
        request.getfixturevalue(lanes)
    scene, apart, rounded = (made(name, features=features, precision=p) for name, p in HALVES)
    with torch.no_grad():
        rounded.grid.copy_(rounded.grid.half())
    found, expected = run(scene, points_of(60)), definition(rounded, points_of(60))
    assert_same(found, expected)
    assert_same(run(apart, points_of(60)), expected)
    assert not torch.equal(found[1], run(made(features=features), points_of(60))[1])


@pytest.mark.parametrize("hidden", [1, 2, 7, 32])
def test_any_width_of_the_hidden_layer(hidden: int) -> None:
    scene = made(hidden_width=hidden)
    assert_same(run(scene, points_of(70)), definition(scene, points_of(70)))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_one_point_to_a_thread_is_the_same(activation: str, one_lane: None) -> None:
    scene = made(density_activation=activation)
    assert_same(run(scene, points_of(37)), definition(scene, points_of(37)))


def test_chunks_of_points_add_up(one_lane: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_warp_field, "_CHUNK", 16)
    assert_same(run(made(), points_of(37)), definition(made(), points_of(37)))


@pytest.mark.parametrize("lanes", ["", "one_lane"])
def test_levels_that_are_closed_count_for_nothing(lanes: str, request: pytest.FixtureRequest) -> None:
    if lanes:
        request.getfixturevalue(lanes)
    scene = made()
    scene._active = 2
    found = run(scene, points_of(50))
    assert_same(found, definition(scene, points_of(50)))
    opened = scene.layout.levels[2].offset * scene.layout.features
    assert found[2][:opened].abs().max() > 0
    assert not found[2][opened:].any()


def test_few_points_and_none() -> None:
    for count in (1, 31, 32, 33):
        scene = made()
        assert_same(run(scene, points_of(count)), definition(scene, points_of(count)))
    density, colour, *gradients = run(made(), points_of(0))
    assert (density.shape, colour.shape) == ((0,), (0, 3))
    assert not any(gradient.any() for gradient in gradients)


def test_points_that_are_not_numbers_stay_in_the_grid() -> None:
    bad = torch.tensor([[float("nan")] * 3, [float("inf")] * 3, [-float("inf")] * 3, [1e30] * 3])
    density, colour = made().query(bad)
    assert density.shape == (4,)
    corner = made().query(torch.tensor([[-1.0, -1, -1], [1, 1, 1]]))[1]
    torch.testing.assert_close(colour[:2], corner)  # NaN goes to the low corner


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_over_their_whole_range(name: str) -> None:
    """With the network's weights 0 the density is the activation of its bias alone."""
    # At the centre the blob adds its scale, 0 here.
    scene = made(density_activation=name, blob_scale=0.0)
    for x in (-150.0, -88.0, -30.0, -1.0, -1e-3, 0.0, 1e-3, 1.0, 14.0, 21.0, 60.0):
        with torch.no_grad():
            _, _, weight, bias = scene.mlp.parameters()
            weight.zero_()
            bias.copy_(torch.tensor([x, x, -x, 0]))
            density, colour = scene.query(torch.zeros(1, 3))
        exact = torch.tensor(x, dtype=torch.float64)
        wanted = {
            "softplus": torch.log1p(torch.exp(-exact.abs())) + exact.clamp(min=0),
            "exp": exact.clamp(max=15).exp(),
            "relu": exact.clamp(min=0),
        }[name]
        torch.testing.assert_close(density[0].double(), wanted, rtol=3e-6, atol=1e-37)
        torch.testing.assert_close(
            colour[0, :2].double(), torch.sigmoid(torch.stack([exact, -exact])), rtol=3e-6, atol=1e-37
        )


def test_the_same_threads_give_the_same_bits(threads: int) -> None:
    first, second = (run(made(), points_of(999)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_density_alone_is_the_first_of_both() -> None:
    scene = made()
    assert torch.equal(scene.density(points_of(40)), scene.query(points_of(40))[0])


def test_what_it_cannot_do_is_done_separately() -> None:
    points = points_of(20).requires_grad_()
    scene, apart = made(), made("warp")
    for one in (scene, apart):
        one.query(points)[0].sum().backward()
    assert points.grad is not None
    assert points.grad.abs().max() > 0
    deep = made("auto", hidden_layers=2)
    assert not deep._fits(points.detach())
    assert deep.query(points.detach())[0].isfinite().all()
    double = made("auto").double()
    assert double.query(points.detach().double())[0].dtype == torch.float64


@pytest.mark.parametrize(
    "options",
    [
        {"hidden_layers": 2},
        {"hidden_layers": 0},
        {"hidden_width": MAX_FUSED + 1},
        {"levels": 33, "features": 4},
    ],
)
def test_a_network_that_does_not_fit_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="backend 'fused' expects Warp, one hidden layer"):
        HashGridScene(**SMALL | options, backend="fused")


def test_the_encoding_alone_has_no_fused_way() -> None:
    scene = made()
    points = points_of(20)
    alone = [hashgrid.encode(points, scene.grid, scene.layout, name) for name in ("fused", "warp")]
    assert torch.equal(*alone)


def test_large_grids_have_fewer_copies_of_their_gradient(
    monkeypatch: pytest.MonkeyPatch, threads: int
) -> None:
    whole = run(made(), points_of(300))
    monkeypatch.setattr(_warp_field, "_COPIES", 1)
    assert_same(run(made(), points_of(300)), whole)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("features", [1, 2, 8])
def test_cuda_agrees_with_the_definition(activation: str, features: int) -> None:
    scene = made(density_activation=activation, features=features)
    exact = definition(scene, points_of(5000))
    found = run(scene.cuda(), points_of(5000).cuda())
    assert_same([value.cpu() for value in found], exact)


# Slices side by side


@pytest.mark.parametrize("openmp", [True, False])
def test_every_slice_is_done_once_whatever_runs_it(openmp: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not openmp:
        monkeypatch.setattr(_warp, "_openmp", lambda: None)
    for count in (1, 2, 7):
        done: list[int] = []
        _warp.in_parallel(done.append, count, torch.device("cpu"))
        assert sorted(done) == list(range(count))


@pytest.mark.parametrize("openmp", [True, False])
def test_an_error_in_a_slice_comes_out(openmp: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not openmp:
        monkeypatch.setattr(_warp, "_openmp", lambda: None)

    def task(number: int) -> None:
        if number == 1:
            raise KeyError("slice 1")

    with pytest.raises(KeyError, match="slice 1"):
        _warp.in_parallel(task, 3, torch.device("cpu"))


def test_the_threads_do_not_change_the_bits(monkeypatch: pytest.MonkeyPatch, threads: int) -> None:
    first = run(made(), points_of(500))
    monkeypatch.setattr(_warp, "_openmp", lambda: None)
    assert all(torch.equal(a, b) for a, b in zip(first, run(made(), points_of(500)), strict=True))
