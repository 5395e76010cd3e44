# mypy: disable-error-code="valid-type, misc, no-any-return, no-untyped-def"
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
from distill.renderers.hashgrid import PRIMES, Layout

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


@lru_cache(maxsize=4)
def _kernels(features: int) -> tuple[Any, Any]:
    """Forward and backward kernels for entries of this many numbers."""
    vector = wp.types.vector(length=features, dtype=wp.float32)

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
        one = wp.uint32(1)
        for i in range(begin, end):
            p = points[i]
            px = unit(p[0]) * level.scale + 0.5
            py = unit(p[1]) * level.scale + 0.5
            pz = unit(p[2]) * level.scale + 0.5
            # Truncation is floor, since positions are positive.
            cx = wp.uint32(wp.int32(px))
            cy = wp.uint32(wp.int32(py))
            cz = wp.uint32(wp.int32(pz))
            fx = px - wp.float32(wp.int32(px))
            fy = py - wp.float32(wp.int32(py))
            fz = pz - wp.float32(wp.int32(pz))
            x1 = cx + one
            y0 = cy * level.y_stride
            y1 = y0 + level.y_stride
            z0 = cz * level.z_stride
            z1 = z0 + level.z_stride
            a00 = entries[entry(level, cx, y0, z0)] * (1.0 - fx) + entries[entry(level, x1, y0, z0)] * fx
            a10 = entries[entry(level, cx, y1, z0)] * (1.0 - fx) + entries[entry(level, x1, y1, z0)] * fx
            a01 = entries[entry(level, cx, y0, z1)] * (1.0 - fx) + entries[entry(level, x1, y0, z1)] * fx
            a11 = entries[entry(level, cx, y1, z1)] * (1.0 - fx) + entries[entry(level, x1, y1, z1)] * fx
            a0 = a00 * (1.0 - fy) + a10 * fy
            a1 = a01 * (1.0 - fy) + a11 * fy
            out[i, k] = a0 * (1.0 - fz) + a1 * fz

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
        one = wp.uint32(1)
        for i in range(begin, end):
            p = points[i]
            g = grad_out[i, k]
            px = unit(p[0]) * level.scale + 0.5
            py = unit(p[1]) * level.scale + 0.5
            pz = unit(p[2]) * level.scale + 0.5
            cx = wp.uint32(wp.int32(px))
            cy = wp.uint32(wp.int32(py))
            cz = wp.uint32(wp.int32(pz))
            fx = px - wp.float32(wp.int32(px))
            fy = py - wp.float32(wp.int32(py))
            fz = pz - wp.float32(wp.int32(pz))
            x1 = cx + one
            y0 = cy * level.y_stride
            y1 = y0 + level.y_stride
            z0 = cz * level.z_stride
            z1 = z0 + level.z_stride
            i000 = entry(level, cx, y0, z0)
            i100 = entry(level, x1, y0, z0)
            i010 = entry(level, cx, y1, z0)
            i110 = entry(level, x1, y1, z0)
            i001 = entry(level, cx, y0, z1)
            i101 = entry(level, x1, y0, z1)
            i011 = entry(level, cx, y1, z1)
            i111 = entry(level, x1, y1, z1)
            g00 = g * ((1.0 - fy) * (1.0 - fz))
            g10 = g * (fy * (1.0 - fz))
            g01 = g * ((1.0 - fy) * fz)
            g11 = g * (fy * fz)
            wp.atomic_add(grad_entries, i000, g00 * (1.0 - fx))
            wp.atomic_add(grad_entries, i100, g00 * fx)
            wp.atomic_add(grad_entries, i010, g10 * (1.0 - fx))
            wp.atomic_add(grad_entries, i110, g10 * fx)
            wp.atomic_add(grad_entries, i001, g01 * (1.0 - fx))
            wp.atomic_add(grad_entries, i101, g01 * fx)
            wp.atomic_add(grad_entries, i011, g11 * (1.0 - fx))
            wp.atomic_add(grad_entries, i111, g11 * fx)
            if want_points == 1:
                d000 = wp.dot(g, entries[i000])
                d100 = wp.dot(g, entries[i100])
                d010 = wp.dot(g, entries[i010])
                d110 = wp.dot(g, entries[i110])
                d001 = wp.dot(g, entries[i001])
                d101 = wp.dot(g, entries[i101])
                d011 = wp.dot(g, entries[i011])
                d111 = wp.dot(g, entries[i111])
                gx = wp.lerp(wp.lerp(d100 - d000, d110 - d010, fy), wp.lerp(d101 - d001, d111 - d011, fy), fz)
                gy = wp.lerp(wp.lerp(d010 - d000, d110 - d100, fx), wp.lerp(d011 - d001, d111 - d101, fx), fz)
                gz = wp.lerp(wp.lerp(d001 - d000, d101 - d100, fx), wp.lerp(d011 - d010, d111 - d110, fx), fy)
                grad = wp.vec3(gx * inside(p[0]), gy * inside(p[1]), gz * inside(p[2])) * level.scale
                wp.atomic_add(grad_points, i, grad)

    return forward, backward


@lru_cache(maxsize=8)
def _levels(layout: Layout, device: str) -> Any:
    """The layout as an array of structs; for a hashed level the strides are the hash's primes."""
    table = []
    for level in layout.levels:
        item = GridLevel()
        item.scale = level.scale
        item.y_stride = level.resolution if level.dense else PRIMES[1]
        item.z_stride = level.resolution**2 if level.dense else PRIMES[2]
        item.size, item.offset, item.dense = level.size, level.offset, int(level.dense)
        table.append(item)
    return wp.array(table, dtype=GridLevel, device=device)


class _Encode(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, points: Tensor, params: Tensor, layout: Layout, active: int) -> Tensor:
        n, device = len(points), params.device
        complete = active == len(layout.levels)
        out = (torch.empty if complete else torch.zeros)(n, layout.width, device=device)
        ctx.save_for_backward(points, params)
        ctx.layout, ctx.active = layout, active
        if n and active:
            kernel, _ = _kernels(layout.features)
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
            _, kernel = _kernels(layout.features)
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


def _entries(params: Tensor, layout: Layout) -> Any:
    vector = wp.types.vector(length=layout.features, dtype=wp.float32)
    return _warp.view(params.view(-1, layout.features), vector)


def _rows(out: Tensor, layout: Layout) -> Any:
    vector = wp.types.vector(length=layout.features, dtype=wp.float32)
    return _warp.view(out.view(len(out), -1, layout.features), vector)


def _arrays(points: Tensor, params: Tensor, layout: Layout) -> list[Any]:
    levels = _levels(layout, str(params.device))
    return [_warp.view(points, wp.vec3), _entries(params, layout), levels]


def encode_warp(points: Tensor, params: Tensor, layout: Layout, active: int) -> Tensor:
    """See ``hashgrid.encode``; once differentiable in points and parameters, single precision."""
    return _Encode.apply(points.to(params).contiguous(), params.contiguous(), layout, active)
