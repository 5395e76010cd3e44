"""Marching, compositing and encoding in plain torch: what kernels are compared with, also where none run on the CPU."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from distill.renderers import hashgrid, nerf, volume
from distill.renderers.march import Samples


def kernels_on_the_cpu() -> bool:
    """Whether Warp is installed with its compiler for the CPU, which a slimmed copy for a GPU machine may lack."""
    if importlib.util.find_spec("warp") is None:
        return False
    import warp

    return bool(warp.is_cpu_available())


def march(origins: Tensor, directions: Tensor, jitter: Tensor, grid: Any, step: float) -> Samples:
    """``distill.renderers.march.march``, by every step of every ray through the cube."""
    occupied = grid.binaries[0]
    safe = torch.where(directions < 0, -1.0, 1.0) * directions.abs().clamp(min=1e-9)
    sides = (-1 - origins) / safe, (1 - origins) / safe
    near, far = torch.minimum(*sides).amax(-1).clamp(min=0), torch.maximum(*sides).amin(-1)
    numbers = torch.arange(math.ceil(2 * math.sqrt(3) / step) + 1, device=origins.device)
    distance = near[:, None] + (numbers + jitter[:, None]) * step
    points = origins[:, None] + distance[..., None] * directions[:, None]
    cells = ((points + 1) * (len(occupied) / 2)).long().clamp(0, len(occupied) - 1)
    kept = (distance < far[:, None]) & occupied[tuple(cells.unbind(-1))]
    ray, _ = kept.nonzero(as_tuple=True)
    return Samples(ray, distance[kept], points[kept], kept.sum(1).int(), step)


def composite(density: Tensor, values: Tensor, samples: Samples) -> tuple[Tensor, Tensor, Tensor]:
    """``distill.renderers.march.composite``, by cumulative sums over all samples in double precision."""
    depth = density.double() * samples.step
    total = depth.cumsum(0)
    starts = samples.counts.long().cumsum(0) - samples.counts
    before = torch.cat([total.new_zeros(1), total])[starts][samples.ray]
    weights = torch.exp(-(total - depth - before)) * -torch.expm1(-depth)
    rays = len(samples.counts)
    sums = weights.new_zeros(rays, values.shape[1]).index_add(0, samples.ray, weights[:, None] * values)
    opacity = weights.new_zeros(rays).index_add(0, samples.ray, weights)
    return sums.to(values), opacity.to(values), weights.to(values)


def encode(points: Tensor, params: Tensor, layout: Any, backend: str, active: int | None = None) -> Tensor:
    """``distill.renderers.hashgrid.encode`` with the backend in plain torch, whichever is asked for."""
    return hashgrid.encode(points, params, layout, "torch", active)


@contextmanager
def without_kernels() -> Iterator[None]:
    """Render scenes in plain torch for a while."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(volume, "march", march)
        patch.setattr(volume, "composite", composite)
        patch.setattr(nerf, "encode", encode)
        patch.setattr(nerf.HashGridScene, "_fits", lambda *_: False)
        yield
