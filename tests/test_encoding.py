"""The hash grid: its layout by hand, its values against a slow reading of the paper, and its backends."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from distill.renderers import hashgrid
from distill.renderers.hashgrid import Layout, encode, hash_layout

SMALL = hash_layout(levels=4, features=2, log2_table_size=7, base_resolution=3, finest_resolution=11)


def _params(layout: Layout, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(layout.num_params, generator=generator, dtype=dtype) - 0.5


def _points(n: int, seed: int = 1, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.rand(n, 3, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def _slow(point: np.ndarray, table: np.ndarray, layout: Layout) -> list[float]:
    """One point, one corner at a time, from the definition, in whole-number arithmetic of Python's own."""
    out = []
    for level in layout.levels:
        position = [float(x) * level.scale + 0.5 for x in point]
        cell = [math.floor(x) for x in position]
        value = np.zeros(layout.features)
        for corner in itertools.product((0, 1), repeat=3):
            x, y, z = (c + d for c, d in zip(cell, corner, strict=True))
            if level.resolution**3 <= level.size:
                index = (x + y * level.resolution + z * level.resolution**2) % level.size
            else:
                index = ((x ^ (y * 2654435761) ^ (z * 805459861)) % 2**32) % level.size
            weights = [(p - c) if d else 1 - (p - c) for p, c, d in zip(position, cell, corner, strict=True)]
            value += math.prod(weights) * table[level.offset + index]
        out += value.tolist()
    return out


def test_layout_has_the_numbers_worked_out_by_hand() -> None:
    # base 4, finest 16, 3 levels: growth 2, scales 3, 7, 15, resolutions 4, 8, 16; 64 and 512 entries fit
    # a table of 512, 4096 do not.
    layout = hash_layout(levels=3, features=2, log2_table_size=9, base_resolution=4, finest_resolution=16)
    assert [level.scale for level in layout.levels] == [3.0, 7.0, 15.0]
    assert [level.resolution for level in layout.levels] == [4, 8, 16]
    assert [level.size for level in layout.levels] == [64, 512, 512]
    assert [level.offset for level in layout.levels] == [0, 64, 576]
    assert [level.dense for level in layout.levels] == [True, True, False]
    assert (layout.num_params, layout.width) == (2 * 1088, 6)


def test_layout_pads_levels_to_multiples_of_eight() -> None:
    layout = hash_layout(levels=2, features=1, log2_table_size=10, base_resolution=3, finest_resolution=5)
    assert [level.size for level in layout.levels] == [32, 128]  # 27 and 125, padded


def test_layout_of_one_level_is_its_base() -> None:
    (level,) = hash_layout(levels=1, base_resolution=7, finest_resolution=7).levels
    assert (level.scale, level.resolution) == (6.0, 7)


@pytest.mark.parametrize(
    "options",
    [{"levels": 0}, {"features": 3}, {"log2_table_size": 30}, {"base_resolution": 9, "finest_resolution": 8}],
)
def test_layout_refuses_what_cannot_be(options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="expected"):
        hash_layout(**options)


@pytest.mark.parametrize("backend", ["torch", "warp"])
def test_values_match_a_slow_reading_of_the_definition(backend: str) -> None:
    points = torch.cat([_points(20), torch.tensor([[0.0, 0.0, 0.0], [1.0, 1.0, 1.0], [1.0, 0.0, 0.5]])])
    params = _params(SMALL)
    table = params.double().numpy().reshape(-1, SMALL.features)
    expected = [_slow(point, table, SMALL) for point in points.double().numpy()]
    torch.testing.assert_close(
        encode(points, params, SMALL, backend).double(),
        torch.tensor(expected, dtype=torch.float64),
        atol=2e-6,
        rtol=0,
    )


@pytest.mark.parametrize("backend", ["torch", "warp"])
def test_a_linear_field_on_a_dense_grid_is_reproduced(backend: str) -> None:
    # Trilinear interpolation is exact for linear functions: entry = its own x + 10 y + 100 z in grid units.
    layout = hash_layout(levels=1, features=1, log2_table_size=12, base_resolution=9, finest_resolution=9)
    z, y, x = torch.meshgrid(*[torch.arange(9.0)] * 3, indexing="ij")
    params = torch.zeros(layout.num_params)
    params[: 9**3] = (x + 10 * y + 100 * z).flatten()
    points = _points(50) * 0.9
    expected = (points * 8 + 0.5) @ torch.tensor([1.0, 10.0, 100.0])
    torch.testing.assert_close(encode(points, params, layout, backend)[:, 0], expected, atol=1e-3, rtol=1e-6)


def _run(points: Tensor, params: Tensor, layout: Layout, backend: str, active: int | None) -> list[Tensor]:
    points, params = points.clone().requires_grad_(), params.clone().requires_grad_()
    out = encode(points, params, layout, backend, active)
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(2))
    grads = torch.autograd.grad((out * weight).sum(), [points, params])
    return [out.detach(), *grads]


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("n", [0, 1, 2, 1003])
@pytest.mark.parametrize("features", [1, 2, 4])
def test_warp_agrees_with_the_reference_in_values_and_gradients(n: int, features: int, threads: int) -> None:
    layout = hash_layout(
        levels=5, features=features, log2_table_size=9, base_resolution=4, finest_resolution=32
    )
    points = _points(n)
    if n > 2:
        points[0], points[1], points[2] = 0, 1, torch.tensor([0.0, 1.0, 0.5])
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        expected, got = (_run(points, _params(layout), layout, name, None) for name in ("torch", "warp"))
    finally:
        torch.set_num_threads(before)
    for a, b in zip(expected, got, strict=True):
        assert a.shape == b.shape
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-5)


def test_warp_is_bitwise_the_same_from_run_to_run() -> None:
    runs = [_run(_points(5000), _params(SMALL), SMALL, "warp", None) for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


@pytest.mark.parametrize("backend", ["torch", "warp"])
def test_inactive_levels_are_zero_and_learn_nothing(backend: str) -> None:
    out, _, grad = _run(_points(30), _params(SMALL), SMALL, backend, 2)
    full, _, full_grad = _run(_points(30), _params(SMALL), SMALL, backend, None)
    border = SMALL.levels[2].offset * 2
    assert torch.equal(out[:, :4], full[:, :4])
    assert not out[:, 4:].any()
    assert not grad[border:].any()
    assert full_grad[border:].any()


@pytest.mark.parametrize("backend", ["torch", "warp"])
def test_points_outside_are_clamped_and_have_no_gradient(backend: str) -> None:
    outside = torch.tensor([[1.5, 0.3, -0.2]])
    out, grad, _ = _run(outside, _params(SMALL), SMALL, backend, None)
    assert torch.equal(out, encode(outside.clamp(0, 1), _params(SMALL), SMALL, backend))
    assert grad[0, 0] == 0
    assert grad[0, 2] == 0
    assert grad[0, 1] != 0


def test_reference_passes_first_and_second_derivative_checks() -> None:
    layout = hash_layout(levels=2, features=1, log2_table_size=5, base_resolution=2, finest_resolution=5)
    # Away from cell borders, where the interpolation has a kink.
    points = torch.tensor([[0.31, 0.62, 0.17], [0.82, 0.55, 0.4]], dtype=torch.float64, requires_grad=True)
    params = _params(layout, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda x, p: encode(x, p, layout, "torch"), (points, params))
    assert torch.autograd.gradgradcheck(lambda x, p: encode(x, p, layout, "torch"), (points, params))


def test_warp_refuses_a_second_derivative() -> None:
    points, params = _points(4).requires_grad_(), _params(SMALL).requires_grad_()
    (grad,) = torch.autograd.grad(
        encode(points, params, SMALL, "warp").square().sum(), points, create_graph=True
    )
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


def test_auto_takes_the_reference_for_double_precision() -> None:
    params = _params(SMALL, dtype=torch.float64)
    points = _points(3, dtype=torch.float64)
    assert hashgrid.choose_backend("auto", params) == "torch"
    assert hashgrid.choose_backend("auto", params.float()) == "warp"
    assert torch.equal(encode(points, params, SMALL), encode(points, params, SMALL, "torch"))


@pytest.mark.parametrize(
    ("points", "backend", "active"),
    [
        (torch.zeros(3), "torch", None),
        (torch.zeros(1, 2), "torch", None),
        (torch.zeros(1, 3), "numpy", None),
        (torch.zeros(1, 3), "tinycudann", None),
        (torch.zeros(1, 3), "torch", 9),
    ],
)
def test_bad_input_is_refused_with_what_was_expected(
    points: Tensor, backend: str, active: int | None
) -> None:
    with pytest.raises(ValueError, match="expect"):
        encode(points, _params(SMALL), SMALL, backend, active)
    with pytest.raises(ValueError, match=str(SMALL.num_params)):
        encode(torch.zeros(1, 3), torch.zeros(7), SMALL)


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["warp", "tinycudann"])
def test_cuda_backends_agree_with_the_reference(backend: str) -> None:
    if backend == "tinycudann":
        try:
            import tinycudann  # noqa: F401
        except (ImportError, OSError):
            pytest.skip("tinycudann is not installed")
    points, params = _points(1003).cuda(), _params(SMALL).cuda()

    def run(name: str) -> list[Tensor]:
        x, p = points.clone().requires_grad_(), params.clone().requires_grad_()
        out = encode(x, p, SMALL, name)
        return [out.detach(), *torch.autograd.grad(out.square().sum(), [x, p])]

    for a, b in zip(run("torch"), run(backend), strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)
