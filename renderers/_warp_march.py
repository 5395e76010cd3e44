# mypy: ignore-errors
# Kernels are typed by Warp, whose types Python checkers do not follow.
"""Marching and compositing, one ray at a time, as Warp kernels for CPU and CUDA."""

from typing import Any

import torch
import warp as wp
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from distill.renderers import _warp

wp.set_module_options({"enable_backward": False})


@wp.func
def span(origin: wp.vec3, direction: wp.vec3, low: wp.vec3, high: wp.vec3) -> wp.vec2:
    """Distances at which a ray enters and leaves a box; the second is smaller where it misses."""
    near = wp.float32(0.0)
    far = wp.float32(1.0e10)
    for axis in range(3):
        d = direction[axis]
        if wp.abs(d) < 1.0e-9:
            d = wp.where(d < 0.0, -1.0e-9, 1.0e-9)
        a = (low[axis] - origin[axis]) / d
        b = (high[axis] - origin[axis]) / d
        near = wp.max(near, wp.min(a, b))
        far = wp.min(far, wp.max(a, b))
    return wp.vec2(near, far)


@wp.kernel
def march(
    first: int,
    origins: wp.array(dtype=wp.vec3),
    directions: wp.array(dtype=wp.vec3),
    jitter: wp.array(dtype=wp.float32),
    occupied: wp.array3d(dtype=wp.uint8),
    low: wp.vec3,
    high: wp.vec3,
    step: float,
    write: int,
    counts: wp.array(dtype=wp.int32),
    ends: wp.array(dtype=wp.int64),
    ray: wp.array(dtype=wp.int64),
    distance: wp.array(dtype=wp.float32),
    points: wp.array(dtype=wp.vec3),
):
    r = first + wp.tid()
    origin = origins[r]
    direction = directions[r]
    resolution = occupied.shape[0]
    half = 0.5 * wp.float32(resolution)
    # Steps are counted from the cube; the box around what is occupied only says which to look at.
    cube = span(origin, direction, wp.vec3(-1.0, -1.0, -1.0), wp.vec3(1.0, 1.0, 1.0))
    tight = span(origin, direction, low, high)
    found = wp.int32(0)
    if tight[1] > tight[0] and (write == 0 or counts[r] > 0):
        k = wp.max(wp.int32((tight[0] - cube[0]) / step) - 1, 0)
        at = wp.int64(0)
        if write == 1:
            at = ends[r] - wp.int64(counts[r])
        t = cube[0] + (wp.float32(k) + jitter[r]) * step
        while t < tight[1]:
            p = origin + direction * t
            x = wp.int32((p[0] + 1.0) * half)
            y = wp.int32((p[1] + 1.0) * half)
            z = wp.int32((p[2] + 1.0) * half)
            x = wp.clamp(x, 0, resolution - 1)
            y = wp.clamp(y, 0, resolution - 1)
            z = wp.clamp(z, 0, resolution - 1)
            if t >= tight[0] and occupied[x, y, z] != wp.uint8(0):
                if write == 1:
                    ray[at] = wp.int64(r)
                    distance[at] = t
                    points[at] = p
                    at += wp.int64(1)
                found += 1
            k += 1
            t = cube[0] + (wp.float32(k) + jitter[r]) * step
    if write == 0:
        counts[r] = found


@wp.kernel
def gather(
    first: int,
    density: wp.array(dtype=wp.float32),
    values: wp.array2d(dtype=wp.float32),
    counts: wp.array(dtype=wp.int32),
    ends: wp.array(dtype=wp.int64),
    step: float,
    sums: wp.array2d(dtype=wp.float32),
    opacity: wp.array(dtype=wp.float32),
    weights: wp.array(dtype=wp.float32),
):
    r = first + wp.tid()
    channels = values.shape[1]
    end = wp.int32(ends[r])
    depth = wp.float32(0.0)
    through = wp.float32(1.0)
    for i in range(end - counts[r], end):
        depth += density[i] * step
        after = wp.exp(-depth)
        weight = through - after
        through = after
        weights[i] = weight
        for c in range(channels):
            sums[r, c] = sums[r, c] + weight * values[i, c]
    opacity[r] = 1.0 - through


@wp.kernel
def scatter(
    first: int,
    density: wp.array(dtype=wp.float32),
    values: wp.array2d(dtype=wp.float32),
    counts: wp.array(dtype=wp.int32),
    ends: wp.array(dtype=wp.int64),
    step: float,
    opacity: wp.array(dtype=wp.float32),
    weights: wp.array(dtype=wp.float32),
    grad_sums: wp.array2d(dtype=wp.float32),
    grad_opacity: wp.array(dtype=wp.float32),
    grad_weights: wp.array(dtype=wp.float32),
    grad_density: wp.array(dtype=wp.float32),
    grad_values: wp.array2d(dtype=wp.float32),
):
    r = first + wp.tid()
    channels = values.shape[1]
    end = wp.int32(ends[r])
    begin = end - counts[r]
    # With q_i = dL/dw_i:  dL/d(density_i step) = q_i T_{i+1} - sum_{j>i} q_j w_j, so first q, then
    # back to front.
    for i in range(begin, end):
        q = grad_opacity[r] + grad_weights[i]
        for c in range(channels):
            q += grad_sums[r, c] * values[i, c]
            grad_values[i, c] = grad_sums[r, c] * weights[i]
        grad_density[i] = q
    later = wp.float32(0.0)
    through = 1.0 - opacity[r]
    for n in range(end - begin):
        i = end - 1 - n
        q = grad_density[i]
        grad_density[i] = (q * through - later) * step
        later += q * weights[i]
        through += weights[i]


def march_rays(
    origins: Tensor, directions: Tensor, jitter: Tensor, occupied: Tensor, step: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Samples in occupied cells, shape ``[1, x, y, z]``, packed; see ``march.march``.

    Returns:
        Ray of each sample ``[m]``, distance ``[m]``, point ``[m, 3]``, and samples of each ray ``[r]``.
    """
    device, rays = origins.device, len(origins)
    low, high = _bounds(occupied)
    counts = torch.zeros(rays, dtype=torch.int32, device=device)
    inputs = [
        _warp.view(origins.contiguous(), wp.vec3),
        _warp.view(directions.contiguous(), wp.vec3),
        _warp.view(jitter.contiguous(), wp.float32),
        _warp.view(occupied[0].contiguous().view(torch.uint8), wp.uint8),
        wp.vec3(*low),
        wp.vec3(*high),
        step,
    ]

    def launch(write: int, ends: Tensor, ray: Tensor, distance: Tensor, points: Tensor) -> None:
        outputs = [_warp.view(counts, wp.int32), _warp.view(ends, wp.int64), _warp.view(ray, wp.int64)]
        outputs += [_warp.view(distance, wp.float32), _warp.view(points, wp.vec3)]
        _warp.launch(march, rays, [*inputs, write, *outputs], device)

    nothing = torch.zeros(1, 3, device=device)
    launch(0, counts.long()[:1], counts.long()[:1], nothing[0], nothing)
    ends = counts.cumsum(0)
    total = int(ends[-1]) if rays else 0
    ray = torch.empty(total, dtype=torch.int64, device=device)
    distance, points = torch.empty(total, device=device), torch.empty(total, 3, device=device)
    if total:
        launch(1, ends, ray, distance, points)
    return ray, distance, points, counts


#: Boxes of grids, with the version of the grid that each is of: on a GPU finding one waits for the device, and a grid stays for
#: many steps.
_boxes: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def _bounds(occupied: Tensor) -> tuple[list[float], list[float]]:
    """The box around the occupied cells, a little larger; low and high corners in the cube."""
    if occupied.is_inference():  # has no version
        return _box(occupied[0])
    version, box = _boxes.get(occupied, (-1, ([], [])))
    if version != occupied._version:
        box = _box(occupied[0])
        _boxes[occupied] = occupied._version, box
    return box


def _box(occupied: Tensor) -> tuple[list[float], list[float]]:
    # Which planes across each axis hold a cell, in one transfer: each would wait for the device.
    planes = torch.stack(
        [occupied.flatten(1).any(1), occupied.movedim(1, 0).flatten(1).any(1), occupied.flatten(0, 1).any(0)]
    )
    low, high = [], []
    for filled in planes.tolist():
        first, last = (filled.index(True), len(filled) - filled[::-1].index(True)) if any(filled) else (0, 0)
        low.append(first / len(filled) * 2 - 1.0001)
        high.append(last / len(filled) * 2 - 0.9999)
    return low, high


class Composite(torch.autograd.Function):
    """Weighted sums along rays; see ``march.composite``."""

    @staticmethod
    def forward(
        ctx: Any, density: Tensor, values: Tensor, counts: Tensor, step: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        density, values = density.contiguous(), values.contiguous()
        sums = values.new_zeros(len(counts), values.shape[1])
        opacity, weights = values.new_zeros(len(counts)), torch.empty_like(density)
        ctx.save_for_backward(density, values, counts, opacity, weights)
        ctx.step = step
        if len(density):
            outputs = [_warp.view(x, wp.float32) for x in (sums, opacity, weights)]
            _warp.launch(
                gather, len(counts), [*_inputs(density, values, counts, step), *outputs], values.device
            )
        return sums, opacity, weights

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(
        ctx: Any, grad_sums: Tensor, grad_opacity: Tensor, grad_weights: Tensor
    ) -> tuple[Tensor, Tensor, None, None]:
        density, values, counts, opacity, weights = ctx.saved_tensors
        grad_density, grad_values = torch.empty_like(density), torch.empty_like(values)
        if len(density):
            given = [
                opacity,
                weights,
                grad_sums.contiguous(),
                grad_opacity.contiguous(),
                grad_weights.contiguous(),
            ]
            arrays = [_warp.view(x, wp.float32) for x in (*given, grad_density, grad_values)]
            _warp.launch(
                scatter, len(counts), [*_inputs(density, values, counts, ctx.step), *arrays], values.device
            )
        return grad_density, grad_values, None, None


def _inputs(density: Tensor, values: Tensor, counts: Tensor, step: float) -> list[Any]:
    arrays = [_warp.view(density, wp.float32), _warp.view(values, wp.float32), _warp.view(counts, wp.int32)]
    return [*arrays, _warp.view(counts.cumsum(0), wp.int64), step]
