"""Ray marching through the cube [-1, 1]^3, and compositing of samples; both are Warp kernels, on the CPU and on CUDA."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from nerfacc import OccGridEstimator


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


def march(
    origins: Tensor,
    directions: Tensor,
    jitter: Tensor,
    grid: OccGridEstimator,
    step: float,
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
    """
    from distill.renderers._warp_march import march_rays

    return Samples(*march_rays(origins, directions, jitter, grid.binaries, step), step=step)


def composite(density: Tensor, values: Tensor, samples: Samples) -> tuple[Tensor, Tensor, Tensor]:
    r"""Sum values along rays, weighted by the light that each sample absorbs.

    .. math:: w_i = T_i (1 - e^{-\sigma_i \delta}), \quad T_i = e^{-\sum_{j<i} \sigma_j \delta}

    Args:
        density: per scene unit, shape ``[m]``.
        values: values to composite, shape ``[m, channels]``.
        samples: from ``march``.

    Returns:
        Sums of :math:`w_i v_i`, shape ``[rays, channels]``; opacities, the sums of :math:`w_i`, shape
        ``[rays]``; weights, shape ``[m]``. Once differentiable in density and values.

    Source: Max 1995; Mildenhall et al. 2020, arXiv:2003.08934, Eq. 3.
    """
    from distill.renderers._warp_march import Composite

    return Composite.apply(density, values, samples.counts, samples.step)
