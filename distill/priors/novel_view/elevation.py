"""Estimate a picture's elevation: the one at which the model's own views are consistent with a solid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import grid_sample

from distill.cameras import Cameras, orbit
from distill.priors.novel_view.pipeline import NovelViewPipeline
from distill.priors.novel_view.pose import relative_cameras
from distill.viewing import DISTANCE, FOV_Y_DEG

CANDIDATES = tuple(range(-90, 95, 5))
#: Elevations of most pictures. Another must fit better by ``MARGIN``: to the silhouettes of a sphere, all fit about equally.
USUAL, MARGIN = (-10, 60), 0.03


@dataclass(frozen=True)
class Estimate:
    """An elevation and how well each candidate fits.

    Attributes:
        elevation_deg: of the best candidate, degrees, refined between its neighbours.
        fits: mean IoU of the views' silhouettes and those of the solid that they allow, by candidate.
    """

    elevation_deg: float
    fits: dict[float, float]


def draw_around(
    pipeline: NovelViewPipeline,
    rgb: Tensor,
    *,
    generator: torch.Generator,
    views: int = 8,
    rise_deg: float = 0.0,
    from_deg: float = 0.0,
    steps: int = 20,
    scale: float = 2.0,
) -> Tensor:
    """Draw the object from all around, at the picture's own height or another; on the CPU, ``[views, 3, size, size]``.

    A novel-view model is given turns and differences of height, so it can do so without knowing how high the picture is.

    Args:
        pipeline: draws.
        rgb: the picture over white, in [0, 1], shape ``[3, h, w]``; it is the first of the views where ``rise_deg`` is 0.
        generator: of the drawing.
        views: around the object, evenly spaced.
        rise_deg: of the views above the picture, degrees.
        from_deg: elevation of the picture, degrees; only their difference is told.
        steps: of the sampler.
        scale: of classifier-free guidance.
    """
    azimuth = torch.arange(views) * (360.0 / views)
    first = orbit(azimuth[:1], torch.tensor([from_deg]), DISTANCE, FOV_Y_DEG)
    around = orbit(azimuth, torch.full((views,), from_deg + rise_deg), DISTANCE, FOV_Y_DEG)
    given = 1 if rise_deg == 0 else 0
    pose = relative_cameras(first, around, pipeline.fourth)[given:]
    drawn = pipeline(rgb, pose, generator=generator, steps=steps, scale=scale).cpu()
    if not given:
        return drawn
    size = drawn.shape[-2:]
    own = torch.nn.functional.interpolate(rgb[None].cpu(), size, mode="bilinear", antialias=True)
    return torch.cat([own, drawn])


def estimate_elevation(
    around: Tensor,
    *,
    distance: float = DISTANCE,
    fov_y_deg: float = FOV_Y_DEG,
    candidates: Sequence[float] = CANDIDATES,
) -> Estimate:
    """Find the height at which views from all around, at the picture's own height, agree.

    How such views fit together depends on the height: seen from above, what is in front turns one way and what is behind
    the other. For each candidate the silhouettes are carved into a solid; the candidate whose solid fills them best is
    taken.

    Args:
        around: of ``draw_around``, shape ``[views, 3, size, size]``.
        distance: of the cameras, scene units.
        fov_y_deg: vertical field of view, degrees.
        candidates: elevations, degrees, in order.

    Source: ours; render and compare, as in One-2-3-45 (Liu et al. 2023, arXiv:2306.16928, Sec. 3.2), with silhouettes
    in place of matched points.
    """
    masks, azimuth = silhouettes(around), torch.arange(len(around)) * (360.0 / len(around))
    fits = {}
    for elevation in candidates:
        cameras = orbit(azimuth, torch.full_like(azimuth, float(elevation)), distance, fov_y_deg)
        fits[float(elevation)] = agreement(masks, cameras)
    return Estimate(_peak(likely(fits)), fits)


def likely(fits: dict[float, float]) -> dict[float, float]:
    """All candidates where a steep one is clearly the best, else the ``USUAL`` ones."""
    usual = {angle: fit for angle, fit in fits.items() if USUAL[0] <= angle <= USUAL[1]}
    if not usual or max(fits.values()) > max(usual.values()) + MARGIN:
        return fits
    return usual


def silhouettes(rgb: Tensor) -> Tensor:
    """Return a mask of the pixels that are not white, as 0 or 1, ``[views, 3, h, w]`` to ``[views, 1, h, w]``."""
    return ((1 - rgb).amax(1, keepdim=True) > 0.12).float()


def agreement(masks: Tensor, cameras: Cameras, resolution: int = 48) -> float:
    """Mean IoU of silhouettes and those of the largest solid that none of them forbids.

    Args:
        masks: 0 or 1, shape ``[views, 1, size, size]``.
        cameras: of each.
        resolution: of the solid's grid, nodes along each side of [-1, 1].
    """
    ends = torch.linspace(-1, 1, resolution)
    points = torch.stack(torch.meshgrid(ends, ends, ends, indexing="ij"), dim=-1).view(-1, 3)
    spots = cameras.project(points)
    inside = grid_sample(masks, spots[:, None], mode="bilinear", align_corners=False)[:, 0, 0]
    # One silhouette may be wrong somewhere: a point needs all but one of them.
    kept = (inside > 0.5).sum(0) >= len(masks) - 1
    return sum(_overlap(mask[0], spot[kept]) for mask, spot in zip(masks, spots, strict=True)) / len(masks)


def _overlap(mask: Tensor, spots: Tensor) -> float:
    """IoU of a silhouette and of splatted points, which cover a pixel and its neighbours."""
    size = mask.shape[-1]
    drawn = torch.zeros(size, size)
    cells = ((spots + 1) / 2 * size).long().clamp(0, size - 1)
    drawn[cells[:, 1], cells[:, 0]] = 1
    # The grid's nodes are further apart than pixels: close the gaps between them.
    grown = torch.nn.functional.max_pool2d(drawn[None, None], 3, 1, 1)
    closed = -torch.nn.functional.max_pool2d(-grown, 3, 1, 1)[0, 0]
    both, either = (closed * mask).sum(), torch.maximum(closed, mask).sum()
    return float(both / either.clamp(min=1))


def _peak(fits: dict[float, float]) -> float:
    """The best candidate, moved to the top of the parabola through it and its neighbours."""
    angles = sorted(fits)
    best = max(range(len(angles)), key=lambda i: fits[angles[i]])
    if not 0 < best < len(angles) - 1:
        return angles[best]
    low, mid, high = (fits[angles[best + i]] for i in (-1, 0, 1))
    bend = low - 2 * mid + high
    shift = 0.5 * (low - high) / bend if bend < 0 else 0.0
    return angles[best] + shift * (angles[best + 1] - angles[best])
