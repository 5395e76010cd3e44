"""Cameras: where a view is taken from, and the rays it casts.

World frame: right-handed, z up, an object's front towards +x. Azimuth 0 looks at the front; it grows
counter-clockwise seen from above, so azimuth 90 sees the object's own left side (+y).
Camera frame (OpenGL): x right, y up, looking along -z.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import torch
from torch import Tensor

from distill.cameras import Cameras, orbit
from distill.domains import NotNegative, Positive, Range


def ranges(
    distance: tuple[Positive, Positive] = (3.0, 3.4),
    elevation_deg: Annotated[tuple[float, float], Range(-90, 90)] = (0.0, 45.0),
    azimuth_deg: tuple[float, float] = (-180.0, 180.0),
    fov_y_deg: Annotated[tuple[float, float], Range(0, 180, above=True, below=True)] = (40.0, 40.0),
    look_at_jitter: NotNegative = 0.0,
) -> Callable[[float, int, torch.Generator], Cameras]:
    """Draw cameras uniformly from ranges, the azimuth stratified over the batch.

    Stratified: element i of n draws from the i-th of n equal parts of the azimuth range, the whole comb
    shifted at random, so that each batch sees all sides and each azimuth is equally likely.

    Args:
        distance: from the origin, scene units.
        elevation_deg: degrees above the horizon.
        azimuth_deg: degrees, 0 at the front.
        fov_y_deg: vertical field of view, degrees.
        look_at_jitter: the cameras face a point within this distance of the origin along each axis.

    Returns:
        A camera sampler ``(progress, batch, generator) -> Cameras``.
    """

    def sample(progress: float, batch: int, generator: torch.Generator) -> Cameras:
        def uniform(low: float, high: float) -> Tensor:
            return low + (high - low) * torch.rand(batch, generator=generator)

        comb = (torch.arange(batch) + torch.rand(batch, generator=generator)) / batch
        comb = torch.remainder(comb + torch.rand(1, generator=generator), 1.0)
        azimuth = azimuth_deg[0] + (azimuth_deg[1] - azimuth_deg[0]) * comb
        look_at = look_at_jitter * (2 * torch.rand(batch, 3, generator=generator) - 1)
        return orbit(azimuth, uniform(*elevation_deg), uniform(*distance), uniform(*fov_y_deg), look_at)

    return sample
