"""Ray marching through the cube [-1, 1]^3, and compositing of samples.

Both are Warp kernels, on the CPU and on CUDA; nerfacc, whose packed functions need CUDA and are built at first use, does them
where it is asked to.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from nerfacc import OccGridEstimator

MARCHERS = ("auto", "warp", "nerfacc")


@dataclass(frozen=True)
class Samples:
    """Samples along rays, contiguous for each ray and ordered from near to far.

    Attributes:
        ray: index of each sample's ray, shape ``[m]``.
        distance: from the ray's origin, scene units, shape ``[m]``.
        points: in world space, shape ``[m, 3]``.
        counts: samples on each ray, int32, shape ``[rays]``.
        step: length of the section of each sample, scene units.
    """

    ray: Tensor
    distance: Tensor
    points: Tensor
    counts: Tensor
    step: float


@cache
def nerfacc_compiled() -> bool:
    """Tell whether nerfacc's CUDA kernels can be used; with nvcc and a C++ compiler, they are compiled on the first call."""
    try:
        from nerfacc.cuda._backend import _C
    except Exception:  # whatever a compiler fails with
        return False
    return _C is not None


def choose_marcher(marcher: str, device: torch.device) -> str:
    """Resolve ``auto``, which is Warp everywhere: it needs no build, and draws the same samples on every machine."""
    if marcher not in MARCHERS:
        raise ValueError(f"expected marcher in {', '.join(MARCHERS)}; got {marcher!r}")
    if marcher == "nerfacc" and device.type != "cuda":
        raise ValueError(f"marcher 'nerfacc' expects CUDA, got {device}; use 'warp'")
    return "warp" if marcher == "auto" else marcher


def march(
    origins: Tensor,
    directions: Tensor,
    jitter: Tensor,
    grid: OccGridEstimator,
    step: float,
    marcher: str = "auto",
) -> Samples:
    """Step along rays inside the cube, and keep the samples in occupied cells.

    Sample k of a ray lies ``(k + jitter) * step`` past the point where it enters the cube, whatever is
    occupied: skipping empty cells moves no sample.

    Args:
        origins: shape ``[rays, 3]``.
        directions: unit, shape ``[rays, 3]``.
        jitter: in [0, 1), shape ``[rays]``; 0.5 is the middle of the step.
        grid: from ``occupancy_grid``.
        step: scene units.
        marcher: ``warp``, ``nerfacc`` (CUDA only) or ``auto``.

    Raises:
        ValueError: the marcher is not known or cannot run on this device.
    """
    if choose_marcher(marcher, origins.device) == "warp":
        from distill.renderers._warp_march import march_rays

        return Samples(*march_rays(origins, directions, jitter, grid.binaries, step), step=step)
    return _march_nerfacc(origins, directions, jitter, grid, step)


def _march_nerfacc(
    origins: Tensor, directions: Tensor, jitter: Tensor, grid: OccGridEstimator, step: float
) -> Samples:
    sign = torch.where(directions < 0, -1.0, 1.0)
    safe = sign * directions.abs().clamp(min=1e-9)
    near = torch.minimum((-1 - origins) / safe, (1 - origins) / safe).amax(-1).clamp(min=0)
    # Nerfacc samples the middle of a step, hence the half; it starts no nearer than the cube.
    ray, start, end = grid.sampling(
        origins, directions, t_min=near + (jitter - 0.5) * step, render_step_size=step, stratified=False
    )
    distance = (start + end) / 2
    points = origins[ray] + distance[:, None] * directions[ray]
    counts = torch.bincount(ray, minlength=len(origins)).int()
    return Samples(ray, distance, points, counts, step)


def composite(
    density: Tensor, values: Tensor, samples: Samples, marcher: str = "auto"
) -> tuple[Tensor, Tensor, Tensor]:
    r"""Sum values along rays, weighted by the light that each sample absorbs.

    .. math:: w_i = T_i (1 - e^{-\sigma_i \delta}), \quad T_i = e^{-\sum_{j<i} \sigma_j \delta}

    Args:
        density: per scene unit, shape ``[m]``.
        values: values to composite, shape ``[m, channels]``.
        samples: from ``march``.
        marcher: as for ``march``.

    Returns:
        Sums of :math:`w_i v_i`, shape ``[rays, channels]``; opacities, the sums of :math:`w_i`, shape
        ``[rays]``; weights, shape ``[m]``. Once differentiable in density and values.

    Source: Max 1995; Mildenhall et al. 2020, arXiv:2003.08934, Eq. 3.
    """
    if choose_marcher(marcher, values.device) == "warp":
        from distill.renderers._warp_march import Composite

        return Composite.apply(density, values, samples.counts, samples.step)
    return _composite_nerfacc(density, values, samples)


def _composite_nerfacc(density: Tensor, values: Tensor, samples: Samples) -> tuple[Tensor, Tensor, Tensor]:
    from nerfacc import accumulate_along_rays, render_weight_from_density

    rays, half = len(samples.counts), samples.step / 2
    weights, _, _ = render_weight_from_density(
        samples.distance - half, samples.distance + half, density, ray_indices=samples.ray, n_rays=rays
    )
    sums = accumulate_along_rays(weights, values, ray_indices=samples.ray, n_rays=rays)
    opacity = accumulate_along_rays(weights, None, ray_indices=samples.ray, n_rays=rays)
    return sums, opacity[:, 0], weights
