# mypy: ignore-errors
# Kernels are typed by Warp, whose types Python checkers do not follow.
"""The whole field as one Warp kernel each way: hash grid, network with one hidden layer, blob and activations.

One C++ source for CPU and CUDA. Points go in blocks of lanes, which the CPU's compiler turns into vector instructions; on CUDA a
block is one point and a thread. Features never leave a block: the backward pass interpolates them again. What the blocks of a
thread add to the network's gradient stays with the thread on the CPU; on CUDA the factors are written, and multiplied by torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import warp as wp
from torch import Tensor

from distill.renderers import _warp
from distill.renderers._warp_hashgrid import GridLevel, grid_levels
from distill.renderers.layout import Layout

wp.set_module_options({"enable_backward": False})

#: Points of a block on the CPU: two or four vector registers of floats.
_LANES = 32
#: Blocks that a CPU thread takes at a time in the forward pass.
_SPAN = 8
#: Most numbers in all threads' copies of the grid's gradient: 256 MiB.
_COPIES = 2**26
#: Points of a launch of the backward pass on CUDA, where each has some hundred factors of the network's gradient.
_CHUNK = 2**20
#: Names of activations of the density, as numbers in the kernels.
ACTIVATIONS = ("softplus", "exp", "relu")


@dataclass(frozen=True)
class Shape:
    """What a kernel is compiled for."""

    levels: int
    features: int
    hidden: int
    activation: str
    lanes: int
    half: bool = False

    @property
    def width(self) -> int:
        """Numbers of a point's features."""
        return self.levels * self.features

    @property
    def padded(self) -> int:
        """The same, in whole vectors of eight."""
        return -(-self.width // 8) * 8

    def constants(self) -> str:
        """Return it as C++: numbers, and the types of a block's lanes."""
        rows = next(r for r in (4, 2, 1) if self.hidden % r == 0)
        return (
            f"constexpr int L = {self.lanes}, K = {self.levels}, F = {self.features}, W = {self.hidden}, N = K * F, "
            f"P = {self.padded}, R = {rows}, ACTIVATION = {ACTIVATIONS.index(self.activation)};"
            f"using Stored = {'wp::half' if self.half else 'float'};"
        ) + (_SCALAR if self.lanes == 1 else _VECTORS)


# A block of one point.
_SCALAR = r"""
using Lane = float;
using Whole = int;
using Place = unsigned;
using Eight = float;
auto whole = [](Lane x) { return (Whole)x; };
auto real = [](Whole x) { return (Lane)x; };
auto places = [](Whole x) { return (Place)x; };
auto accumulate = [](float* entry, float weight, const float* values) {
    for (int f = 0; f < F; ++f) {
#ifdef __CUDA_ARCH__
        atomicAdd(entry + f, weight * values[f]);
#else
        entry[f] += weight * values[f];
#endif
    }
};
"""
# A block of several: the compiler makes of these types what the processor has.
_VECTORS = r"""
typedef float Lane __attribute__((ext_vector_type(L)));
typedef int Whole __attribute__((ext_vector_type(L)));
typedef unsigned Place __attribute__((ext_vector_type(L)));
typedef float Eight __attribute__((ext_vector_type(8), aligned(4)));
typedef float Entry __attribute__((ext_vector_type(F), aligned(4)));
auto whole = [](Lane x) { return __builtin_convertvector(x, Whole); };
auto real = [](Whole x) { return __builtin_convertvector(x, Lane); };
auto places = [](Whole x) { return __builtin_convertvector(x, Place); };
auto accumulate = [](float* entry, float weight, const float* values) {
    *(Entry*)entry += weight * *(const Entry*)values;
};
"""

# What both passes begin with. Lambdas, since a snippet is a function's body.
_COMMON = r"""
const int n = field.density.shape[0], active = field.active;
const float* position = field.points.data;
const Stored* grid = (const Stored*)field.entries.data;
const float *weight1 = field.weight1.data, *bias1 = field.bias1.data, *weight2 = field.weight2.data, *bias2 = field.bias2.data;
float *density = field.density.data, *colour = field.colour.data;
const auto* level = field.levels.data;

auto bits = [](Whole x) { union { Whole i; Lane f; } u; u.i = x; return u.f; };
auto fill = [](float x) { return (Lane)x; };

// exp, to 2 units in the last place: written out, so that it becomes vector instructions.
auto exponential = [&](Lane x) {
    x = x < -87.0f ? fill(-87.0f) : x;
    x = x > 88.0f ? fill(88.0f) : x;
    const Lane y = x * 1.44269504f;
    const Whole i = whole(y + (y < 0.0f ? fill(-0.5f) : fill(0.5f)));
    const Lane power = real(i), r = (x - power * 0.693359375f) + power * 2.12194440e-4f;
    Lane p = r * (1.0f / 5040.0f) + 1.0f / 720.0f;
    p = p * r + 1.0f / 120.0f;
    p = p * r + 1.0f / 24.0f;
    p = p * r + 1.0f / 6.0f;
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    return p * bits((i + 127) << 23);
};

// Points of a block in the unit cube, one row per axis; lanes past the end repeat its first point.
Lane unit[3], radius;
auto read = [&](int begin, int count) {
    for (int l = 0; l < L; ++l) {
        const float* p = position + 3 * (begin + (l < count ? l : 0));
        for (int d = 0; d < 3; ++d) ((float*)&unit[d])[l] = p[d];
        ((float*)&radius)[l] = sqrtf(p[0] * p[0] + p[1] * p[1] + p[2] * p[2]);
    }
    for (int d = 0; d < 3; ++d) {
        // Written so that NaN becomes 0: an index made from it would be out of bounds.
        const Lane u = 0.5f + 0.5f * unit[d], low = u > 0.0f ? u : fill(0.0f);
        unit[d] = low < 1.0f ? low : fill(1.0f);
    }
};

// Where the eight corners around each point are stored at level k, and their weights.
auto locate = [&](int k, Place* index, Lane* weight) {
    const unsigned sy = level[k].y_stride, sz = level[k].z_stride, size = level[k].size, offset = level[k].offset;
    Lane fraction[3];
    Place corner[3];
    for (int d = 0; d < 3; ++d) {
        const Lane x = unit[d] * level[k].scale + 0.5f;
        const Whole i = whole(x);  // floor, since positions are positive
        fraction[d] = x - real(i);
        corner[d] = places(i);
    }
    for (int c = 0; c < 8; ++c) {
        const Place x = corner[0] + (unsigned)(c & 1);
        const Place y = (corner[1] + (unsigned)((c >> 1) & 1)) * sy, z = (corner[2] + (unsigned)(c >> 2)) * sz;
        if (level[k].dense) {
            const Place sum = x + y + z;
            index[c] = (offset + (sum >= size ? sum - size : sum)) * (unsigned)F;
        } else {
            index[c] = (offset + ((x ^ y ^ z) & (size - 1u))) * (unsigned)F;
        }
        weight[c] = (c & 1 ? fraction[0] : 1.0f - fraction[0]) * (c & 2 ? fraction[1] : 1.0f - fraction[1])
            * (c & 4 ? fraction[2] : 1.0f - fraction[2]);
    }
};

auto interpolate = [&](int l, const Place* index, const Lane* weight, float* sum) {
    for (int f = 0; f < F; ++f) sum[f] = 0.0f;
    for (int c = 0; c < 8; ++c) {
        const Stored* entry = grid + ((const unsigned*)&index[c])[l];
        const float w = ((const float*)&weight[c])[l];
        for (int f = 0; f < F; ++f) sum[f] += w * (float)entry[f];
    }
};

auto gather = [&](Lane* feature) {
    for (int k = 0; k < active; ++k) {
        Place index[8];
        Lane weight[8];
        locate(k, index, weight);
        for (int l = 0; l < L; ++l) {
            float sum[F];
            interpolate(l, index, weight, sum);
            for (int f = 0; f < F; ++f) ((float*)&feature[k * F + f])[l] = sum[f];
        }
    }
};

// Rows h .. h + R - 1 of the hidden layer, before ReLU.
auto layer = [&](int h, const Lane* feature, Lane* out) {
    Lane sum[R];
    for (int r = 0; r < R; ++r) sum[r] = fill(bias1[h + r]);
    for (int j = 0; j < active * F; ++j)
        for (int r = 0; r < R; ++r) sum[r] += weight1[(h + r) * N + j] * feature[j];
    for (int r = 0; r < R; ++r) out[r] = sum[r];
};
"""

_FORWARD = r"""
for (int block = first; block < last; ++block) {
    const int begin = block * L, count = n - begin < L ? n - begin : L;
    Lane feature[N], raw[4];
    read(begin, count);
    gather(feature);
    for (int o = 0; o < 4; ++o) raw[o] = fill(bias2[o]);
    for (int h = 0; h < W; h += R) {
        Lane sum[R];
        layer(h, feature, sum);
        for (int r = 0; r < R; ++r) {
            const Lane unit = sum[r] > 0.0f ? sum[r] : fill(0.0f);
            for (int o = 0; o < 4; ++o) raw[o] += weight2[o * W + h + r] * unit;
        }
    }
    const Lane x = raw[0] + (field.blob_scale - field.blob_slope * radius), positive = x > 0.0f ? x : fill(0.0f);
    if (ACTIVATION == 0) {
        // log(1 + t) = 2 artanh(t / (2 + t)), as a series: t is in (0, 1].
        const Lane t = exponential(x < 0.0f ? x : -x), s = t / (2.0f + t), q = s * s;
        Lane p = q * (1.0f / 13.0f) + 1.0f / 11.0f;
        p = p * q + 1.0f / 9.0f;
        p = p * q + 1.0f / 7.0f;
        p = p * q + 1.0f / 5.0f;
        p = p * q + 1.0f / 3.0f;
        p = p * q + 1.0f;
        raw[0] = positive + 2.0f * s * p;
    } else {
        raw[0] = ACTIVATION == 1 ? exponential(x < 15.0f ? x : fill(15.0f)) : positive;
    }
    for (int o = 1; o < 4; ++o) raw[o] = 1.0f / (1.0f + exponential(-raw[o]));
    for (int l = 0; l < count; ++l) {
        density[begin + l] = ((float*)&raw[0])[l];
        for (int o = 0; o < 3; ++o) colour[3 * (begin + l) + o] = ((float*)&raw[o + 1])[l];
    }
}
"""

_BACKWARD = r"""
// The sum of a block's lanes.
auto add = [](Lane x) {
    float sum = 0.0f;
    for (int l = 0; l < L; ++l) sum += ((float*)&x)[l];
    return sum;
};
const int slice = grad.entry_stride > 0 ? item : 0;
float* entry_sums = grad.entries.data + (long long)slice * grad.entry_stride;
// This thread's sums: of the hidden layer's weights, of its biases, of the last layer's weights and biases.
float sum1[W][P];
Lane sum_bias1[W], sum2[4][W], sum_bias2[4];
for (int h = 0; h < W; ++h) {
    for (int j = 0; j < P; ++j) sum1[h][j] = 0.0f;
    sum_bias1[h] = fill(0.0f);
    for (int o = 0; o < 4; ++o) sum2[o][h] = fill(0.0f);
}
for (int o = 0; o < 4; ++o) sum_bias2[o] = fill(0.0f);

for (int block = first; block < last; ++block) {
    const int begin = block * L, count = n - begin < L ? n - begin : L;
    Lane feature[N], back[4], grad_feature[N];
    float row[L][P];
    read(begin, count);
    for (int l = 0; l < L; ++l)
        for (int j = active * F; j < P; ++j) row[l][j] = 0.0f;
    gather(feature);
    for (int j = 0; j < active * F; ++j)
        for (int l = 0; l < L; ++l) row[l][j] = ((float*)&feature[j])[l];
    {
        Lane value[4];
        for (int l = 0; l < L; ++l) {
            // Lanes past the end count for nothing.
            const int i = begin + (l < count ? l : 0);
            const float there = l < count ? 1.0f : 0.0f;
            ((float*)&value[0])[l] = density[i];
            ((float*)&back[0])[l] = there * grad.density.data[i];
            for (int o = 0; o < 3; ++o) {
                ((float*)&value[o + 1])[l] = colour[3 * i + o];
                ((float*)&back[o + 1])[l] = there * grad.colour.data[3 * i + o];
            }
        }
        if (ACTIVATION == 0) back[0] *= 1.0f - exponential(-value[0]);
        if (ACTIVATION == 1) back[0] *= value[0];
        if (ACTIVATION == 2) back[0] = value[0] > 0.0f ? back[0] : fill(0.0f);
        for (int o = 1; o < 4; ++o) back[o] *= value[o] * (1.0f - value[o]);
    }
    for (int j = 0; j < active * F; ++j) grad_feature[j] = fill(0.0f);
    for (int h = 0; h < W; h += R) {
        Lane hidden[R], delta[R];
        layer(h, feature, hidden);
        for (int r = 0; r < R; ++r) {
            delta[r] = fill(0.0f);
            for (int o = 0; o < 4; ++o) delta[r] += weight2[o * W + h + r] * back[o];
            delta[r] = hidden[r] > 0.0f ? delta[r] : fill(0.0f);
            hidden[r] = hidden[r] > 0.0f ? hidden[r] : fill(0.0f);
        }
        for (int j = 0; j < active * F; ++j) {
            Lane sum = grad_feature[j];
            for (int r = 0; r < R; ++r) sum += weight1[(h + r) * N + j] * delta[r];
            grad_feature[j] = sum;
        }
        if (L == 1) {
            for (int r = 0; r < R; ++r) {
                grad.hidden.data[(long long)begin * W + h + r] = add(hidden[r]);
                grad.delta.data[(long long)begin * W + h + r] = add(delta[r]);
            }
            continue;
        }
        for (int r = 0; r < R; ++r) {
            sum_bias1[h + r] += delta[r];
            for (int o = 0; o < 4; ++o) sum2[o][h + r] += back[o] * hidden[r];
        }
        // Eight features at a time, so that the sums over lanes stay in registers.
        for (int j = 0; j < P; j += 8) {
            Eight total[R];
            for (int r = 0; r < R; ++r) total[r] = *(Eight*)&sum1[h + r][j];
            for (int l = 0; l < L; ++l) {
                const Eight part = *(Eight*)&row[l][j];
                for (int r = 0; r < R; ++r) total[r] += ((float*)&delta[r])[l] * part;
            }
            for (int r = 0; r < R; ++r) *(Eight*)&sum1[h + r][j] = total[r];
        }
    }
    if (L == 1) {
        for (int j = 0; j < N; ++j) grad.features.data[(long long)begin * N + j] = row[0][j];
        for (int o = 0; o < 4; ++o) grad.raw.data[(long long)begin * 4 + o] = add(back[o]);
    } else {
        for (int o = 0; o < 4; ++o) sum_bias2[o] += back[o];
    }
    for (int k = 0; k < active; ++k) {
        Place index[8];
        Lane weight[8];
        locate(k, index, weight);
        for (int l = 0; l < count; ++l) {
            float values[F];
            for (int f = 0; f < F; ++f) values[f] = ((const float*)&grad_feature[k * F + f])[l];
            for (int c = 0; c < 8; ++c)
                accumulate(entry_sums + ((const unsigned*)&index[c])[l], ((const float*)&weight[c])[l], values);
        }
    }
}
if (L > 1) {
    float* out = grad.sums.data + slice * (W * (N + 1) + 4 * (W + 1));
    for (int h = 0; h < W; ++h) {
        for (int j = 0; j < N; ++j) out[h * N + j] = sum1[h][j];
        out[W * N + h] = add(sum_bias1[h]);
        for (int o = 0; o < 4; ++o) out[W * (N + 1) + o * W + h] = add(sum2[o][h]);
    }
    for (int o = 0; o < 4; ++o) out[W * (N + 1) + 4 * W + o] = add(sum_bias2[o]);
}
"""


@wp.struct
class Inputs:
    """What the field is made of, and what it gave."""

    points: wp.array(dtype=wp.float32)
    entries: wp.array(dtype=wp.float32)
    levels: wp.array(dtype=GridLevel)
    weight1: wp.array(dtype=wp.float32)
    bias1: wp.array(dtype=wp.float32)
    weight2: wp.array(dtype=wp.float32)
    bias2: wp.array(dtype=wp.float32)
    density: wp.array(dtype=wp.float32)
    colour: wp.array(dtype=wp.float32)
    active: wp.int32
    blob_scale: wp.float32
    blob_slope: wp.float32


@wp.struct
class Gradients:
    """Gradients that come in, and where they go."""

    density: wp.array(dtype=wp.float32)
    colour: wp.array(dtype=wp.float32)
    entries: wp.array(dtype=wp.float32)
    entry_stride: wp.int32  # from one thread's copy to the next; 0 where all threads share one
    sums: wp.array(dtype=wp.float32)  # of the network, a row for each thread
    # Where blocks are points: the factors of the network's gradient.
    features: wp.array(dtype=wp.float32)
    hidden: wp.array(dtype=wp.float32)
    delta: wp.array(dtype=wp.float32)
    raw: wp.array(dtype=wp.float32)


@lru_cache(maxsize=8)
def forward_kernel(shape: Shape) -> wp.Kernel:
    """Return the kernel that evaluates the field."""

    @wp.func_native(shape.constants() + _COMMON + _FORWARD)
    def evaluate(field: Inputs, first: int, last: int): ...

    @wp.kernel(enable_backward=False, module="unique")
    def field_forward(first: int, field: Inputs, span: int, blocks: int):
        begin = (first + wp.tid()) * span
        evaluate(field, begin, wp.min(begin + span, blocks))

    return field_forward


@lru_cache(maxsize=8)
def backward_kernel(shape: Shape) -> wp.Kernel:
    """Return its adjoint, to the entries and the network."""

    @wp.func_native(shape.constants() + _COMMON + _BACKWARD)
    def pull_back(field: Inputs, grad: Gradients, item: int, first: int, last: int): ...

    @wp.kernel(enable_backward=False, module="unique")
    def field_backward(first: int, field: Inputs, grad: Gradients, span: int, blocks: int):
        item = first + wp.tid()
        begin = item * span
        pull_back(field, grad, item, begin, wp.min(begin + span, blocks))

    return field_backward


class _Evaluate(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        points: Tensor,
        entries: Tensor,
        weight1: Tensor,
        bias1: Tensor,
        weight2: Tensor,
        bias2: Tensor,
        layout: Layout,
        shape: Shape,
        options: tuple[int, float, float],
    ) -> tuple[Tensor, Tensor]:
        n, device = len(points), points.device
        density, colour = points.new_empty(n), points.new_empty(n, 3)
        # Half precision comes in pairs, since Warp's struct has one type of entries; levels are multiples of 8 entries.
        stored = entries.half().view(torch.float32) if shape.half else entries
        tensors = (points, stored, weight1, bias1, weight2, bias2, density, colour)
        ctx.save_for_backward(*tensors)
        ctx.layout, ctx.shape, ctx.options = layout, shape, options
        if n:
            blocks, span = -(-n // shape.lanes), _SPAN if shape.lanes > 1 else 1
            inputs = [_inputs(tensors, layout, options), span, blocks]
            _warp.launch(forward_kernel(shape), -(-blocks // span), inputs, device)
        return density, colour

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_density: Tensor, grad_colour: Tensor) -> tuple[Tensor | None, ...]:
        points, entries, *network, density, colour = ctx.saved_tensors
        shape, n = ctx.shape, len(points)
        numbers = len(entries) * (2 if shape.half else 1)
        copies, size = 1, _CHUNK
        if shape.lanes > 1:
            copies, size = (
                max(1, min(_warp.workers(points.device), -(-n // shape.lanes), _COPIES // numbers)),
                max(n, 1),
            )
        grad_entries = entries.new_zeros(copies, numbers)
        sums = entries.new_zeros(copies, sum(p.numel() for p in network))
        for begin in range(0, n, size):
            part = slice(begin, begin + size)
            tensors = (points[part], entries, *network, density[part], colour[part])
            upstream = (grad_density[part].contiguous(), grad_colour[part].contiguous())
            _pull_back(tensors, (*upstream, grad_entries, sums), shape, ctx.layout, ctx.options)
        first, *others = grad_entries.unbind(0)
        for other in others:  # in this order, so that the same threads give the same sum
            first += other
        parts = sums.sum(0).split([p.numel() for p in network])
        whole = [part.view(p.shape) for part, p in zip(parts, network, strict=True)]
        return None, first, *whole, None, None, None


def _pull_back(
    tensors: tuple[Tensor, ...],
    gradients: tuple[Tensor, Tensor, Tensor, Tensor],
    shape: Shape,
    layout: Layout,
    options: tuple[int, float, float],
) -> None:
    """Add some points' share to the gradients of the entries and the network, the last two given, a row for each thread."""
    n, (_, _, grad_entries, sums) = len(tensors[0]), gradients
    apart = shape.lanes == 1
    widths = (shape.width, shape.hidden, shape.hidden, 4)
    factors = [sums.new_empty(n if apart else 0, width) for width in widths]
    grad = Gradients()
    grad.entry_stride = 0 if apart else grad_entries.shape[1]
    for name, tensor in zip(_GRADIENTS, (*gradients, *factors), strict=True):
        setattr(grad, name, _warp.view(tensor.view(-1), wp.float32))
    blocks = -(-n // shape.lanes)
    span = 1 if apart else -(-blocks // len(sums))
    inputs = [_inputs(tensors, layout, options), grad, span, blocks]
    _warp.launch(backward_kernel(shape), -(-blocks // span), inputs, sums.device)
    if apart:
        features, hidden, delta, raw = factors
        products = (delta.T @ features, delta.sum(0), raw.T @ hidden, raw.sum(0))
        sums += torch.cat([product.flatten() for product in products])


_GRADIENTS = ("density", "colour", "entries", "sums", "features", "hidden", "delta", "raw")
_TENSORS = ("points", "entries", "weight1", "bias1", "weight2", "bias2", "density", "colour")


def _inputs(tensors: tuple[Tensor, ...], layout: Layout, options: tuple[int, float, float]) -> Inputs:
    field = Inputs()
    for name, tensor in zip(_TENSORS, tensors, strict=True):
        setattr(field, name, _warp.view(tensor.view(-1), wp.float32))
    field.levels = grid_levels(layout, str(tensors[0].device))
    field.active, field.blob_scale, field.blob_slope = options
    return field


def evaluate_warp(
    points: Tensor,
    entries: Tensor,
    network: tuple[Tensor, Tensor, Tensor, Tensor],
    layout: Layout,
    active: int,
    activation: str,
    blob: tuple[float, float],
    half: bool = False,
) -> tuple[Tensor, Tensor]:
    """Density and colour at points; once differentiable in the entries and the network, in single precision.

    Args:
        points: in the cube [-1, 1]^3, shape ``[n, 3]``.
        entries: of the hash grid, shape ``[layout.num_params]``.
        network: weight and bias of the hidden layer, then of the last.
        layout: of the grid.
        active: only this many of the coarsest levels count.
        activation: of the density.
        blob: its scale and radius.
        half: read the entries in half precision; the gradient is that of single precision.

    Returns:
        Shapes ``[n]`` and ``[n, 3]``.
    """
    lanes = _LANES if points.device.type == "cpu" else 1
    shape = Shape(len(layout.levels), layout.features, len(network[1]), activation, lanes, half)
    points = points.to(entries).contiguous()
    return _Evaluate.apply(
        points,
        entries,
        *(p.contiguous() for p in network),
        layout,
        shape,
        (active, blob[0], blob[0] / blob[1]),
    )
