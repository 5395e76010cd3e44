# mypy: ignore-errors
# Kernels are typed by Warp, whose types Python checkers do not follow.
"""The hash grid as fused Warp kernels: one source for CPU and CUDA, the backward pass written by hand.

Points go in blocks, and each block through the levels in turn: a block's outputs stay in the cache, and a
level's constants in registers. On the CPU the forward pass is cut by blocks; the backward pass by levels,
whose tables are disjoint, so that threads never write to the same place and the sum's order is fixed.
"""

from functools import lru_cache
from typing import Any

import torch
import warp as wp
from torch import Tensor

from distill.renderers import _warp
from distill.renderers.layout import PRIMES, Layout

_BLOCK = 256

wp.set_module_options({"enable_backward": False})


@wp.struct
class GridLevel:
    scale: wp.float32
    y_stride: wp.uint32
    z_stride: wp.uint32
    size: wp.uint32
    offset: wp.uint32
    dense: wp.int32


@wp.func
def unit(x: wp.float32) -> wp.float32:
    # Written so that NaN becomes 0: an index made from it would be out of bounds.
    if x > 0.0:
        return wp.min(x, 1.0)
    return 0.0


@wp.func
def inside(x: wp.float32) -> wp.float32:
    if x >= 0.0 and x <= 1.0:
        return 1.0
    return 0.0


@wp.func
def entry(level: GridLevel, x: wp.uint32, y: wp.uint32, z: wp.uint32) -> wp.int32:
    # y and z come multiplied: by their strides where dense, by their primes where hashed.
    index = x + y + z
    if level.dense == 1:
        if index >= level.size:
            index -= level.size
    else:
        index = (x ^ y ^ z) & (level.size - wp.uint32(1))
    # The mask changes nothing, but shows the compiler a sign: it then drops Warp's code for negative
    # indices, a third of the kernel's time.
    return wp.int32((level.offset + index) & wp.uint32(0x7FFFFFFF))


@wp.struct
class Cell:
    fraction: wp.vec3
    x: wp.uint32
    y: wp.uint32
    z: wp.uint32


@wp.func
def locate(level: GridLevel, point: wp.vec3) -> Cell:
    position = wp.vec3(unit(point[0]), unit(point[1]), unit(point[2])) * level.scale
    x = position[0] + 0.5
    y = position[1] + 0.5
    z = position[2] + 0.5
    # Truncation is floor, since positions are positive.
    i = wp.int32(x)
    j = wp.int32(y)
    k = wp.int32(z)
    cell = Cell()
    cell.fraction = wp.vec3(x - wp.float32(i), y - wp.float32(j), z - wp.float32(k))
    cell.x = wp.uint32(i)
    cell.y = wp.uint32(j) * level.y_stride
    cell.z = wp.uint32(k) * level.z_stride
    return cell


@lru_cache(maxsize=4)
def _forward_kernel(features: int) -> wp.Kernel:
    """Interpolate entries of this many numbers."""
    vector = wp.types.vector(length=features, dtype=wp.float32)

    @wp.func
    def edge(
        level: GridLevel, entries: wp.array(dtype=vector), cell: Cell, y: wp.uint32, z: wp.uint32
    ) -> vector:
        low = entries[entry(level, cell.x, y, z)]
        high = entries[entry(level, cell.x + wp.uint32(1), y, z)]
        return low * (1.0 - cell.fraction[0]) + high * cell.fraction[0]

    @wp.kernel(enable_backward=False, module="unique")
    def forward(
        first: int,
        points: wp.array(dtype=wp.vec3),
        entries: wp.array(dtype=vector),
        levels: wp.array(dtype=GridLevel),
        block: int,
        out: wp.array2d(dtype=vector),
    ):
        b, k = wp.tid()
        level = levels[k]
        begin = (first + b) * block
        end = wp.min(begin + block, points.shape[0])
        for i in range(begin, end):
            c = locate(level, points[i])
            y = c.fraction[1]
            z = c.fraction[2]
            a00 = edge(level, entries, c, c.y, c.z)
            a10 = edge(level, entries, c, c.y + level.y_stride, c.z)
            a01 = edge(level, entries, c, c.y, c.z + level.z_stride)
            a11 = edge(level, entries, c, c.y + level.y_stride, c.z + level.z_stride)
            a0 = a00 * (1.0 - y) + a10 * y
            a1 = a01 * (1.0 - y) + a11 * y
            out[i, k] = a0 * (1.0 - z) + a1 * z

    return forward


def _slope(features: int) -> wp.Function:
    """The interpolation's derivative by position, for entries of this many numbers."""
    vector = wp.types.vector(length=features, dtype=wp.float32)

    @wp.func
    def slope(g: vector, level: GridLevel, c: Cell, entries: wp.array(dtype=vector)) -> wp.vec3:
        # The gradient, in grid units, of the interpolation of dot(g, entry).
        total = wp.vec3()
        for corner in range(8):
            dx = wp.uint32(corner % 2)
            dy = wp.uint32((corner / 2) % 2)
            dz = wp.uint32(corner / 4)
            index = entry(level, c.x + dx, c.y + dy * level.y_stride, c.z + dz * level.z_stride)
            value = wp.dot(g, entries[index])
            sx = 2.0 * wp.float32(dx) - 1.0
            sy = 2.0 * wp.float32(dy) - 1.0
            sz = 2.0 * wp.float32(dz) - 1.0
            wx = 1.0 - wp.float32(dx) + sx * c.fraction[0]
            wy = 1.0 - wp.float32(dy) + sy * c.fraction[1]
            wz = 1.0 - wp.float32(dz) + sz * c.fraction[2]
            total += wp.vec3(sx * wy * wz, wx * sy * wz, wx * wy * sz) * value
        return total

    return slope


@lru_cache(maxsize=4)
def _backward_kernel(features: int) -> wp.Kernel:
    """The forward kernel's adjoint, to the entries and, if wanted, to the points."""
    vector = wp.types.vector(length=features, dtype=wp.float32)

    slope = _slope(features)

    @wp.kernel(enable_backward=False, module="unique")
    def backward(
        first: int,
        stride: int,
        points: wp.array(dtype=wp.vec3),
        entries: wp.array(dtype=vector),
        levels: wp.array(dtype=GridLevel),
        block: int,
        grad_out: wp.array2d(dtype=vector),
        want_points: int,
        grad_entries: wp.array(dtype=vector),
        grad_points: wp.array(dtype=wp.vec3),
    ):
        b, nth = wp.tid()
        k = first + nth * stride
        level = levels[k]
        begin = b * block
        end = wp.min(begin + block, points.shape[0])
        for i in range(begin, end):
            p = points[i]
            c = locate(level, p)
            g = grad_out[i, k]
            for edge in range(4):
                dy = wp.uint32(edge % 2)
                dz = wp.uint32(edge / 2)
                y = c.y + dy * level.y_stride
                z = c.z + dz * level.z_stride
                wy = wp.where(edge % 2 == 1, c.fraction[1], 1.0 - c.fraction[1])
                wz = wp.where(edge / 2 == 1, c.fraction[2], 1.0 - c.fraction[2])
                part = g * (wy * wz)
                wp.atomic_add(grad_entries, entry(level, c.x, y, z), part * (1.0 - c.fraction[0]))
                wp.atomic_add(grad_entries, entry(level, c.x + wp.uint32(1), y, z), part * c.fraction[0])
            if want_points == 1:
                mask = wp.vec3(inside(p[0]), inside(p[1]), inside(p[2])) * level.scale
                wp.atomic_add(grad_points, i, wp.cw_mul(slope(g, level, c, entries), mask))

    return backward


@lru_cache(maxsize=8)
def grid_levels(layout: Layout, device: str) -> wp.array:
    """The layout as an array of structs; for a hashed level the strides are the hash's primes."""
    table = []
    for level in layout.levels:
        item = GridLevel()
        item.scale = level.scale
        item.y_stride = level.resolution if level.dense else PRIMES[1]
        item.z_stride = level.resolution**2 if level.dense else PRIMES[2]
        item.size, item.offset, item.dense = level.size, level.offset, int(level.dense)
        table.append(item)
    levels = wp.array(table, dtype=GridLevel, device=device)
    wp.synchronize_device(device)  # copied once, on Warp's own stream, and used on any of torch's
    return levels


class _Encode(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, points: Tensor, params: Tensor, layout: Layout, active: int) -> Tensor:
        n, device = len(points), params.device
        complete = active == len(layout.levels)
        out = (torch.empty if complete else torch.zeros)(n, layout.width, device=device)
        ctx.save_for_backward(points, params)
        ctx.layout, ctx.active = layout, active
        if n and active:
            kernel = _forward_kernel(layout.features)
            block = _BLOCK if device.type == "cpu" else 1
            inputs = [*_arrays(points, params, layout), block, _rows(out, layout)]
            _warp.launch(kernel, -(-n // block), inputs, device, inner=active)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        points, params = ctx.saved_tensors
        layout, active, n, device = ctx.layout, ctx.active, len(points), params.device
        want_points, want_params, *_ = ctx.needs_input_grad
        slices = min(_warp.workers(device), max(active, 1))
        grad_params = torch.zeros_like(params)
        # One copy a thread, since every level adds to every point.
        grad_points = torch.zeros(slices, n if want_points else 1, 3, device=device)
        if n and active:
            kernel = _backward_kernel(layout.features)
            _warp.load(kernel, device)
            block = _BLOCK if device.type == "cpu" else 1
            arrays = [*_arrays(points, params, layout), block, _rows(grad_out.contiguous(), layout)]
            arrays += [int(want_points), _entries(grad_params, layout)]

            def task(i: int) -> None:
                dim = (-(-n // block), len(range(i, active, slices)))
                inputs = [i, slices, *arrays, _warp.view(grad_points[i], wp.vec3)]
                wp.launch(kernel, dim, inputs, device=str(device))

            _warp.in_parallel(task, slices, device)
        return grad_points.sum(0) if want_points else None, grad_params if want_params else None, None, None


def _entries(params: Tensor, layout: Layout) -> wp.array:
    vector = wp.types.vector(length=layout.features, dtype=wp.float32)
    return _warp.view(params.view(-1, layout.features), vector)


def _rows(out: Tensor, layout: Layout) -> wp.array:
    vector = wp.types.vector(length=layout.features, dtype=wp.float32)
    return _warp.view(out.view(len(out), -1, layout.features), vector)


def _arrays(points: Tensor, params: Tensor, layout: Layout) -> list[wp.array]:
    levels = grid_levels(layout, str(params.device))
    return [_warp.view(points, wp.vec3), _entries(params, layout), levels]


def encode_warp(points: Tensor, params: Tensor, layout: Layout, active: int) -> Tensor:
    """See ``hashgrid.encode``; once differentiable in points and parameters, single precision."""
    return _Encode.apply(points.to(params).contiguous(), params.contiguous(), layout, active)
