"""Cameras: where a view is taken from, and the rays it casts.

World frame: right-handed, z up, an object's front towards +x. Azimuth 0 looks at the front; it grows
counter-clockwise seen from above, so azimuth 90 sees the object's own left side (+y).
Camera frame (OpenGL): x right, y up, looking along -z.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated, TypeVar

import torch
from torch import Tensor

from distill.cameras import Cameras, moved, orbit
from distill.contracts import CameraSampler
from distill.domains import Angle, Count, Fraction, NotNegative, Positive, Range
from distill.parts.registered import check_own

_registered: dict[str, Callable[..., CameraSampler]] = {}

Make = TypeVar("Make", bound=Callable[..., CameraSampler])


def register(sampler: Make) -> Make:
    """Register a custom camera sampler as ``cameras=<its name in lower case>``; usable as a decorator.

    It takes only options and returns ``(progress, batch, generator) -> Cameras``. If a name is registered again, as in a notebook,
    the later one counts.

    Raises:
        ValueError: it has no name, one that is taken, is defined inside a function, or has an option without a default.
    """
    _registered[check_own("camera sampler", sampler, _shipped(), ())] = sampler
    return sampler


def available() -> dict[str, Callable[..., CameraSampler]]:
    """Return every camera sampler by name."""
    return {**_shipped(), **_registered}


def _shipped() -> dict[str, Callable[..., CameraSampler]]:
    return {"ranges": ranges, "groups": groups}


def ranges(
    distance: tuple[Positive, Positive] = (3.0, 3.4),
    elevation_deg: Annotated[tuple[float, float], Range(-90, 90)] = (0.0, 45.0),
    azimuth_deg: tuple[float, float] = (-180.0, 180.0),
    fov_y_deg: Annotated[tuple[float, float], Range(0, 180, above=True, below=True)] = (40.0, 40.0),
    look_at_jitter: NotNegative = 0.0,
    by_area: Fraction = 0.0,
    area_elevation_deg: Annotated[tuple[float, float] | None, Range(-90, 90)] = None,
    front_back: Fraction = 0.0,
    front_back_deg: Angle = 30.0,
    position_jitter: NotNegative = 0.0,
    look_at_std: NotNegative = 0.0,
    up_std: NotNegative = 0.0,
) -> Callable[[float, int, torch.Generator], Cameras]:
    """Draw cameras uniformly from ranges, the azimuth stratified over the batch.

    Stratified: element i of n draws from the i-th of n equal parts of the azimuth range, the whole comb
    shifted at random, so that each batch sees all sides and each azimuth is equally likely.

    Args:
        distance: distance of the cameras from the origin, scene units.
        elevation_deg: degrees above the horizon.
        azimuth_deg: degrees, 0 at the front.
        fov_y_deg: vertical field of view, degrees.
        look_at_jitter: the cameras face a point within this distance of the origin along each axis.
        by_area: fraction of cameras whose elevation is drawn so that every part of the sphere's area is equally likely, rather
            than every degree, which favours the poles.
        area_elevation_deg: elevations of these cameras, for example [-90, 90] for the whole sphere; ``elevation_deg`` by default.
        front_back: fraction of cameras that see the front or the back, with equal probability.
        front_back_deg: largest deviation of these cameras from azimuth 0 or 180, degrees.
        position_jitter: the cameras are shifted by up to this distance along each axis.
        look_at_std: standard deviation of the point that the cameras face, along each axis, scene units.
        up_std: standard deviation of the noise added to each component of the up vector.

    A camera's angles and distance, by which the prompt's view word is chosen, are those before it is shifted and turned.

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
        elevation, far, field = uniform(*elevation_deg), uniform(*distance), uniform(*fov_y_deg)
        if by_area:
            sine = torch.tensor(area_elevation_deg or elevation_deg).deg2rad().sin().tolist()
            spread = uniform(*sine).clamp(-1, 1).asin().rad2deg()
            elevation = torch.where(torch.rand(batch, generator=generator) < by_area, spread, elevation)
        if front_back:
            chosen, behind, off = torch.rand(3, batch, generator=generator)
            facing = 180 * (behind < 0.5) + front_back_deg * (2 * off - 1)
            azimuth = torch.where(chosen < front_back, facing, azimuth)
        cameras = orbit(azimuth, elevation, far, field, look_at)
        if not (position_jitter or look_at_std or up_std):
            return cameras
        by = position_jitter * (2 * torch.rand(batch, 3, generator=generator) - 1)
        look_at = look_at + look_at_std * torch.randn(batch, 3, generator=generator)
        up = torch.tensor([0.0, 0.0, 1.0]) + up_std * torch.randn(batch, 3, generator=generator)
        return moved(cameras, by, look_at, up)

    return sample


def groups(
    views: Count = 4,
    distance: tuple[Positive, Positive] = (3.0, 3.4),
    elevation_deg: Annotated[tuple[float, float], Range(-90, 90)] = (0.0, 45.0),
    fov_y_deg: Annotated[tuple[float, float], Range(0, 180, above=True, below=True)] = (40.0, 40.0),
    relative_distance: bool = False,
) -> Callable[[float, int, torch.Generator], Cameras]:
    """Draw cameras for multi-view priors: evenly around an object, at one elevation, distance and field of view.

    The cameras of an object are in consecutive rows. Their azimuths are a ring turned by a random angle, stratified over the
    objects of a batch as ``ranges`` does it.

    Args:
        views: views of an object, 360 / views degrees of azimuth apart.
        distance: distance of the cameras from the origin, scene units.
        elevation_deg: degrees above the horizon.
        fov_y_deg: vertical field of view, degrees.
        relative_distance: ``distance`` is half of the height that a picture shows at the origin, scene units, as in MVDream: it is
            divided by the tangent of half the field of view, so that the object keeps its size.

    Returns:
        A camera sampler ``(progress, batch, generator) -> Cameras``.

    Source: Shi et al. 2023 (MVDream), arXiv:2308.16512, and the authors' configuration in threestudio. Differs: the elevation
    is uniform in degrees for all objects, theirs for half of the steps.
    """

    def sample(progress: float, batch: int, generator: torch.Generator) -> Cameras:
        if batch % views:
            raise ValueError(
                f"render.batch must be a multiple of cameras.views={views}, whose cameras are drawn together, got {batch}"
            )
        objects = batch // views

        def uniform(low: float, high: float) -> Tensor:
            return low + (high - low) * torch.rand(objects, generator=generator)

        comb = (torch.arange(objects) + torch.rand(objects, generator=generator)) / objects
        comb = torch.remainder(comb + torch.rand(1, generator=generator), 1.0)
        azimuth = (comb[:, None] + torch.arange(views)) * (360 / views)
        elevation, far, field = uniform(*elevation_deg), uniform(*distance), uniform(*fov_y_deg)
        if relative_distance:
            far = far / torch.tan(field * (math.pi / 360))
        return orbit(azimuth.flatten(), *(each.repeat_interleave(views) for each in (elevation, far, field)))

    return sample
