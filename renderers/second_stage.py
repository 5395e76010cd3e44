"""From a finished field to a surface: the level, the distance to it, and how much the pictures change."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from distill.cameras import Cameras, orbit
from distill.contracts import Render, Scene
from distill.export.choices import BLUR_WIDTH
from distill.export.mesh import DEEPEST, depth_of
from distill.export.zero_set import zero_set
from distill.renderers.grids import interpolated, nodes
from distill.renderers.march import march
from distill.renderers.nerf import HashGridScene
from distill.silhouettes import silhouette_iou
from distill.viewing import DISTANCE, FOV_Y_DEG

log = logging.getLogger(__name__)

#: Views, and side in pixels, of the pictures that are compared; levels that are tried.
VIEWS, SIZE, LEVELS = 8, 96, 96
#: How much less of the silhouettes a smooth surface may keep than a rough one.
LOSS = 0.05


def views() -> Cameras:
    """Return fixed cameras around the object: every 45 degrees, at four heights in turn."""
    azimuth = torch.arange(VIEWS, dtype=torch.float32) * (360 / VIEWS)
    return orbit(azimuth, torch.tensor([0.0, 20.0, 45.0, 70.0]).repeat(VIEWS // 4), DISTANCE, FOV_Y_DEG)


@torch.no_grad()
def begin(scene: Any, field: HashGridScene) -> dict[str, float]:
    """Let a scene of a signed distance begin with a field: its surface, its colours and its background.

    Args:
        scene: has ``begin_with``, and ``base``, its grid of distances; see ``distill.renderers.sdf.SdfScene``; with the field's grid and radius.
        field: what an earlier run made.

    Returns:
        ``level``, the density of the surface, per scene unit; ``silhouette_iou`` and ``psnr_db``, of the scene's pictures and
        the field's, from ``views``.

    Raises:
        ValueError: the field is empty.
    """
    cameras = views()
    before = look(field, cameras)
    level, depth = surface_of(field, cameras, before.opacity[..., 0] > 0.5, len(scene.base))
    if not (depth > 0).any():
        raise ValueError(
            f"init= holds a field with no surface at density {level / field.radius:.3g}; begin with another run, or train that one longer"
        )
    scene.begin_with(field, distances(depth))
    found = {"level": level / field.radius, **compared(look(scene, cameras), before)}
    log.info(
        "converted the field at density %.3g: PSNR %.1f dB and silhouette IoU %.3f with the field's pictures",
        found["level"], found["psnr_db"], found["silhouette_iou"],
    )  # fmt: skip
    return found


def look(scene: Scene, cameras: Cameras) -> Render:
    """Pictures of ``SIZE`` pixels without gradient, one view at a time."""
    with torch.no_grad():
        return Render.joined([scene.render(one, SIZE, SIZE) for one in cameras.split(1)])


def compared(after: Render, before: Render) -> dict[str, float]:
    """Mean over views of the silhouettes' IoU, and the PSNR of all pictures together, in dB."""
    error = (after.rgb - before.rgb).square().mean().clamp(min=1e-10).item()
    iou = silhouette_iou(after.opacity[..., 0] > 0.5, before.opacity[..., 0] > 0.5).mean().item()
    return {"silhouette_iou": round(iou, 4), "psnr_db": round(-10 * math.log10(error), 2)}


@torch.no_grad()
def surface_of(
    field: HashGridScene, cameras: Cameras, masks: Tensor, resolution: int
) -> tuple[float, Tensor]:
    """Choose the density whose isosurface has the silhouettes that the field's own pictures have, and smooth the field there.

    A distilled field is rough, and its surface would have pits. Smoothing moves the surface, so that the level is chosen again. A
    field that is so thin that its silhouettes would suffer is not smoothed.

    Args:
        field: a finished one.
        cameras: of the pictures.
        masks: where they are more than half opaque, shape ``[views, height, width]``.
        resolution: nodes along the cube's edge.

    Returns:
        The level, a density per radius, and at the nodes of a grid over the cube the logarithm of the smooth density over it, positive
        inside, x first, shape ``[resolution] * 3``; see ``distill.export.mesh.depth_of``.

    Raises:
        ValueError: the masks are empty.
    """
    if not masks.any():
        raise ValueError(
            "init= holds an empty scene: no view of it is half opaque anywhere; begin with another run, or train that one longer"
        )
    peak = largest(field, field.density, 0.0, cameras, masks.shape[1:])
    lowest, highest = math.log(math.log(2) / 2), math.log(max(peak.max().item(), 1.0))
    level, kept = _best(
        peak, torch.linspace(lowest, highest, LEVELS + 1, device=peak.device)[:-1].exp(), masks
    )
    density = torch.cat([field.density(part) for part in nodes(resolution, field.grid.device).split(2**18)])
    density = density.nan_to_num(0.0).view((resolution,) * 3)
    smooth = torch.from_numpy(depth_of(density.cpu().numpy(), level, BLUR_WIDTH / field.radius)).to(density)
    peak = largest(field, lambda points: interpolated(smooth, points), -DEEPEST, cameras, masks.shape[1:])
    shifts = torch.linspace(-DEEPEST, DEEPEST, LEVELS + 2, device=peak.device)[1:-1]
    shift, score = _best(peak, shifts, masks)
    if score < kept - LOSS:
        log.warning(
            "the field is so thin that it is not smoothed: silhouettes would agree by %.3f instead of %.3f",
            score,
            kept,
        )
        return level, torch.from_numpy(depth_of(density.cpu().numpy(), level)).to(density)
    return level * math.exp(shift), smooth - shift


def _best(peak: Tensor, levels: Tensor, masks: Tensor) -> tuple[float, float]:
    """The level above which the rays' largest values are where the masks are, and the IoU; of a range of equally good levels, the middle."""
    scores = torch.stack([silhouette_iou(peak > level, masks).mean() for level in levels])
    good = (scores >= scores.max() - 1e-3).nonzero()[:, 0]
    return float(levels[good[len(good) // 2]]), scores.max().item()


def largest(
    field: HashGridScene,
    values: Callable[[Tensor], Tensor],
    empty: float,
    cameras: Cameras,
    shape: Sequence[int],
) -> Tensor:
    """The largest of some values along each ray of pictures, at twice the renderer's samples, shape ``[views, *shape]``.

    A ray meets an isosurface where its largest value is above the level, so that one march tells it of every level.
    """
    device, seen = field.grid.device, []
    for camera in cameras.split(1):
        rays = camera.scaled(1 / field.radius).to(device).rays(*shape)
        origins, directions = (value.reshape(-1, 3) for value in rays)
        jitter = torch.full((len(origins),), 0.5, device=device)
        samples = march(origins, directions, jitter, field.occupancy, field.step_size / 2)
        start = torch.full((len(origins),), empty, device=device)
        seen.append(start.scatter_reduce(0, samples.ray, values(samples.points), "amax").view(*shape))
    return torch.stack(seen)


@torch.no_grad()
def distances(depth: Tensor) -> Tensor:
    """Signed distances, negative inside, to the surface where ``depth`` is 0, at the nodes of a grid over the cube.

    The surface is that of marching cubes on the same nodes; the distance to its triangles is exact. What it encloses is solid.

    Args:
        depth: positive inside, somewhere at least, x first, shape ``[r, r, r]``.

    Returns:
        In radii, in the shape of ``depth``.
    """
    from distill.renderers._warp_mesh import Caster

    device, values = depth.device, np.array((-depth).cpu().numpy())
    inside = ndimage.binary_fill_holes(values < 0)
    values[inside & (values >= 0)] = -DEEPEST  # cavities, which no picture shows
    vertices, faces = zero_set(values)
    there = Caster(torch.from_numpy(vertices).to(device), torch.from_numpy(faces).to(device))
    found = there.distance(nodes(len(depth), device)).view(depth.shape)
    return torch.where(torch.from_numpy(inside).to(device), -found, found)
