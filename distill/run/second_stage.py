"""From a finished field to a surface: the level, the distance to it, and how much the pictures change."""

from __future__ import annotations

import logging
import math
from typing import Any

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from distill.cameras import Cameras, orbit
from distill.contracts import Render, Scene
from distill.export.choices import BLUR, RESOLUTION
from distill.export.zero_set import zero_set
from distill.renderers.march import Samples, march
from distill.renderers.nerf import HashGridScene
from distill.renderers.sdf import interpolated

log = logging.getLogger(__name__)

#: Views, and side in pixels, of the pictures that are compared; levels that are tried.
VIEWS, SIZE, LEVELS = 8, 96, 96
#: Standard deviation of the Gaussian that smooths a field, scene units: that of an exported mesh.
SMOOTHING = BLUR * 2 / (RESOLUTION - 1)
#: Largest depth that is told apart, in factors e of the density.
DEEPEST = 3.0


def views() -> Cameras:
    """Return fixed cameras around the object: every 45 degrees, at four heights in turn."""
    azimuth = torch.arange(VIEWS, dtype=torch.float32) * (360 / VIEWS)
    return orbit(azimuth, torch.tensor([0.0, 20.0, 45.0, 70.0]).repeat(VIEWS // 4), 3.2, 40.0)


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
    masks = before.opacity[..., 0] > 0.5
    level = choose_level(field, cameras, masks)
    depth, shift = smoothed(field, depths(field, level, len(scene.base)), cameras, masks)
    level *= math.exp(shift)
    scene.begin_with(field, distances(depth, level))
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
    iou = _iou(after.opacity[..., 0] > 0.5, before.opacity[..., 0] > 0.5).item()
    return {"silhouette_iou": round(iou, 4), "psnr_db": round(-10 * math.log10(error), 2)}


def _iou(a: Tensor, b: Tensor) -> Tensor:
    """Mean intersection over union of masks ``[..., views, height, width]``, shape ``[...]``; 1 where both are empty."""
    union = (a | b).sum((-2, -1))
    return torch.where(union == 0, 1.0, (a & b).sum((-2, -1)) / union.clamp(min=1)).mean(-1)


@torch.no_grad()
def choose_level(field: HashGridScene, cameras: Cameras, masks: Tensor) -> float:
    """Choose the density, per radius, whose isosurface has the silhouettes that the field's own pictures have.

    A ray meets an isosurface where its largest density is above the level, so that one march tells it of every level. Of levels
    that are as good, the middle one.

    Args:
        field: a finished one.
        cameras: of the pictures.
        masks: where they are more than half opaque, shape ``[views, height, width]``.

    Raises:
        ValueError: they are empty.
    """
    if not masks.any():
        raise ValueError(
            "init= holds an empty scene: no view of it is half opaque anywhere; begin with another run, or train that one longer"
        )
    peak = torch.stack([_densest(field, one, masks.shape[1:]) for one in cameras.split(1)])
    lowest, highest = math.log(math.log(2) / 2), math.log(max(peak.max().item(), 1.0))
    return _best(peak, torch.linspace(lowest, highest, LEVELS + 1, device=peak.device)[:-1].exp(), masks)


def _best(peak: Tensor, levels: Tensor, masks: Tensor) -> float:
    """The level above which the rays' largest values are where the masks are; of levels that are as good, the middle one."""
    scores = torch.stack([_iou(peak > level, masks) for level in levels])
    good = (scores >= scores.max() - 1e-3).nonzero()[:, 0]
    return float(levels[good[len(good) // 2]])


def _densest(field: HashGridScene, camera: Cameras, shape: torch.Size) -> Tensor:
    """The largest density along each ray of a picture, per radius."""
    samples, rays = _along(field, camera, shape)
    empty = torch.zeros(rays, device=samples.ray.device)
    return empty.scatter_reduce(0, samples.ray, field.density(samples.points), "amax").view(shape)


def _deepest(field: HashGridScene, depth: Tensor, camera: Cameras, shape: torch.Size) -> Tensor:
    """The largest depth along each ray of a picture, of those at the nodes of a grid."""
    samples, rays = _along(field, camera, shape)
    empty = torch.full((rays,), -DEEPEST, device=samples.ray.device)
    return empty.scatter_reduce(0, samples.ray, interpolated(depth, samples.points), "amax").view(shape)


def _along(field: HashGridScene, camera: Cameras, shape: torch.Size) -> tuple[Samples, int]:
    """Samples of a picture's rays, twice as many as the renderer's, and how many rays there are."""
    device = field.grid.device
    rays = camera.scaled(1 / field.radius).to(device).rays(*shape)
    origins, directions = (value.reshape(-1, 3) for value in rays)
    jitter = torch.full((len(origins),), 0.5, device=device)
    return march(origins, directions, jitter, field.occupancy, field.step_size / 2), len(origins)


@torch.no_grad()
def depths(field: HashGridScene, level: float, resolution: int) -> Tensor:
    """The logarithm of a field's density over a level, within ``DEEPEST`` of 0, at the nodes of a grid over its cube.

    It is interpolated rather than the density, which grows about exponentially at an object's rim.

    Args:
        field: a finished one.
        level: density per radius.
        resolution: nodes along the cube's edge.

    Returns:
        Positive inside, x first, shape ``[resolution] * 3``.
    """
    axis = torch.linspace(-1, 1, resolution, device=field.grid.device)
    nodes = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), dim=-1).view(-1, 3)
    density = torch.cat([field.density(part) for part in nodes.split(2**18)]).nan_to_num(0.0)
    least, most = math.exp(-DEEPEST), math.exp(DEEPEST)
    return (density / level).clamp(least, most).log().view((resolution,) * 3)


@torch.no_grad()
def smoothed(field: HashGridScene, depth: Tensor, cameras: Cameras, masks: Tensor) -> tuple[Tensor, float]:
    """Smooth ``depths`` by a Gaussian, and shift them so that the surface keeps the silhouettes of the field's pictures.

    A distilled field is rough, and its surface would have pits.

    Args:
        field: a finished one.
        depth: of it, shape ``[r, r, r]``.
        cameras: of the pictures.
        masks: where they are more than half opaque, shape ``[views, height, width]``.

    Returns:
        The smooth depths, and what was taken from them.
    """
    steps = SMOOTHING / field.radius * (len(depth) - 1) / 2
    smooth = torch.from_numpy(ndimage.gaussian_filter(depth.cpu().numpy(), steps, mode="nearest")).to(depth)
    peak = torch.stack([_deepest(field, smooth, one, masks.shape[1:]) for one in cameras.split(1)])
    shift = _best(peak, torch.linspace(-DEEPEST / 2, DEEPEST / 2, LEVELS + 1, device=peak.device), masks)
    return smooth - shift, shift


@torch.no_grad()
def distances(depth: Tensor, level: float) -> Tensor:
    """Signed distances, negative inside, to the surface where a field's depth is 0, at the nodes of a grid over its cube.

    The surface is that of marching cubes on the same nodes; the distance to its triangles is exact. What it encloses is solid.

    Args:
        depth: at the nodes, positive inside, x first, shape ``[r, r, r]``.
        level: density per radius, for the message.

    Returns:
        In radii, in the shape of ``depth``.

    Raises:
        ValueError: nothing is inside.
    """
    from distill.renderers._warp_mesh import Caster

    device, resolution = depth.device, len(depth)
    values = np.array((-depth).cpu().numpy())
    inside = ndimage.binary_fill_holes(values < 0)
    values[inside & (values >= 0)] = -DEEPEST  # cavities, which no picture shows
    vertices, faces = zero_set(values)
    if not len(faces):
        raise ValueError(
            f"init= holds a field with no surface at density {level:.3g}; begin with another run, or train that one longer"
        )
    there = Caster(torch.from_numpy(vertices).to(device), torch.from_numpy(faces).to(device))
    axis = torch.linspace(-1, 1, resolution, device=device)
    nodes = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), dim=-1).view(-1, 3)
    found = there.distance(nodes).view((resolution,) * 3)
    return torch.where(torch.from_numpy(inside).to(device), -found, found)
