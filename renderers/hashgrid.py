"""Multiresolution hash-grid encoding, one function over interchangeable backends.

Source: Mueller et al. 2022, "Instant Neural Graphics Primitives", arXiv:2201.05989; the level layout is
tiny-cuda-nn's, so that one flat parameter tensor means the same to every backend.
"""

from __future__ import annotations

import importlib.util
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from distill.renderers.layout import PRIMES, Layout, Level, hash_layout

__all__ = ["BACKENDS", "Layout", "choose_backend", "encode", "hash_layout"]

BACKENDS = ("auto", "fused", "torch", "warp", "tinycudann")


def encode(
    points: Tensor, params: Tensor, layout: Layout, backend: str = "auto", active_levels: int | None = None
) -> Tensor:
    """Interpolate the grid's features trilinearly at points.

    Args:
        points: in the unit cube, shape ``[n, 3]``; clamped to it.
        params: the grid, shape ``[layout.num_params]``.
        layout: how ``params`` is divided.
        backend: ``torch`` works everywhere and can be differentiated twice; ``warp`` is fused and once
            differentiable, on CPU (all threads) and CUDA, in single precision; ``tinycudann`` needs CUDA and
            that package. ``auto`` is ``warp`` for single precision if it is installed, else ``torch``;
            ``fused``, which a scene evaluates with its network in one kernel, is ``auto`` here.
        active_levels: only this many of the coarsest levels; the rest of the features are 0.

    Returns:
        Features, coarse to fine, shape ``[n, layout.width]``.

    Raises:
        ValueError: a shape, the backend's name or ``active_levels`` does not fit.
    """
    if points.ndim != 2 or points.shape[1] != 3:
        raise ValueError(f"expected points of shape [n, 3], got {list(points.shape)}")
    if params.shape != (layout.num_params,):
        raise ValueError(f"expected params of shape [{layout.num_params}], got {list(params.shape)}")
    active = len(layout.levels) if active_levels is None else active_levels
    if not 0 <= active <= len(layout.levels):
        raise ValueError(f"expected active_levels in 0..{len(layout.levels)}, got {active_levels}")
    chosen = choose_backend(backend, params)
    if chosen == "warp":
        from distill.renderers._warp_hashgrid import encode_warp

        return encode_warp(points, params, layout, active)
    if chosen == "tinycudann":
        return _encode_tinycudann(points, params, layout, active)
    return _encode_torch(points, params, layout, active)


@lru_cache(maxsize=1)
def has_warp() -> bool:
    """Tell whether Warp is installed."""
    return importlib.util.find_spec("warp") is not None


def choose_backend(backend: str, params: Tensor) -> str:
    """Resolve ``auto``, and refuse a backend that cannot work with these parameters."""
    if backend not in BACKENDS:
        raise ValueError(f"expected backend in {', '.join(BACKENDS)}; got {backend!r}")
    if backend in ("auto", "fused"):
        fits = params.dtype == torch.float32 and params.device.type in ("cpu", "cuda")
        return "warp" if fits and has_warp() else "torch"
    if backend == "warp" and params.dtype != torch.float32:
        raise ValueError(f"backend 'warp' expects float32 parameters, got {params.dtype}; use 'torch'")
    if backend == "tinycudann" and params.device.type != "cuda":
        raise ValueError(f"backend 'tinycudann' expects CUDA, got {params.device}; use 'warp' or 'torch'")
    return backend


def _encode_torch(points: Tensor, params: Tensor, layout: Layout, active: int) -> Tensor:
    """Reference: plain indexing, differentiable any number of times in points and parameters."""
    points = points.clamp(0, 1)
    entries = params.view(-1, layout.features)
    features = [_interpolate(points, entries, level) for level in layout.levels[:active]]
    blank = points.new_zeros(len(points), (len(layout.levels) - active) * layout.features)
    return torch.cat([*features, blank], dim=1)


def _interpolate(points: Tensor, entries: Tensor, level: Level) -> Tensor:
    position = points * level.scale + 0.5
    cell = position.detach().floor()
    fraction = position - cell
    corners = torch.tensor([[c & 1, c >> 1 & 1, c >> 2] for c in range(8)], device=points.device)
    vertex = cell.long()[:, None] + corners
    weight = torch.where(corners.bool(), fraction[:, None], 1 - fraction[:, None]).prod(-1, keepdim=True)
    return (weight * entries[level.offset + _index(vertex, level)]).sum(1)


def _index(vertex: Tensor, level: Level) -> Tensor:
    """Entry of each vertex in its level's table; whole numbers ``[..., 3]`` to ``[...]``."""
    x, y, z = vertex.unbind(-1)
    if level.dense:
        # One vertex past the last wraps into the next row, and past the end to the start, as in tiny-cuda-nn.
        return (x + level.resolution * (y + level.resolution * z)) % level.size
    return (x * PRIMES[0] ^ y * PRIMES[1] ^ z * PRIMES[2]) % level.size


@lru_cache(maxsize=8)
def _tinycudann_module(layout: Layout, device: torch.device) -> Any:
    try:
        import tinycudann
    except (ImportError, OSError) as error:  # without CUDA its import raises EnvironmentError
        raise ValueError(
            f"backend 'tinycudann' is not usable ({error}); install it or use backend 'warp'"
        ) from error
    with torch.cuda.device(device):
        return tinycudann.Encoding(
            3,
            {
                "otype": "HashGrid",
                "n_levels": len(layout.levels),
                "n_features_per_level": layout.features,
                "log2_hashmap_size": layout.log2_table_size,
                "base_resolution": layout.base_resolution,
                "per_level_scale": layout.growth,
                "interpolation": "Linear",
            },
            dtype=torch.float32,
        )


def _encode_tinycudann(points: Tensor, params: Tensor, layout: Layout, active: int) -> Tensor:
    """Tiny-cuda-nn's encoding in single precision, run on our parameters."""
    module = _tinycudann_module(layout, params.device)
    if module.params.numel() != layout.num_params:
        raise ValueError(
            f"tinycudann lays this grid out in {module.params.numel()} parameters, expected "
            f"{layout.num_params}; use backend 'warp' for it"
        )
    features = torch.func.functional_call(module, {"params": params}, (points.clamp(0, 1),))
    mask = torch.arange(layout.width, device=params.device) < active * layout.features
    return features.to(params.dtype) * mask
