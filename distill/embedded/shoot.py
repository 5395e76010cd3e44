"""Pictures of real objects by casting rays on the CPU: both sides of their faces, and through what is not opaque."""

from __future__ import annotations

from typing import Any

import numpy as np
import trimesh
from numpy.typing import NDArray
from trimesh.ray.ray_pyembree import RayMeshIntersector

from distill.cameras import Cameras
from distill.embedded import obj, raycast

Array = NDArray[np.floating[Any]]
#: Surfaces that a ray goes through at most: panes, and leaves cut out of their textures.
DEPTH = 6
#: Glass is never thinner than this, or a picture would not show it.
LEAST_OPACITY = 0.35


def shoot(
    model: obj.Model, paint: tuple[float, float, float] | None, cameras: Cameras, size: int, samples: int
) -> Array:
    """Render a thing, both sides of its faces, through what is not opaque.

    Args:
        model: placed.
        paint: the plain colour whose faces take the prompt's colour, or None.
        cameras: where from.
        size: height and width in pixels.
        samples: rays per pixel along each axis.

    Returns:
        Painted premultiplied sRGB, tint and alpha, as ``raycast.Layers`` has them, shape ``[views, size, size, 5]``.
    """
    mesh = trimesh.Trimesh(model.vertices, model.faces, process=False)
    corners = model.vertices[model.faces]
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    normals /= np.linalg.norm(normals, axis=1, keepdims=True).clip(1e-12)
    chosen = obj.painted(model, paint)[model.material]
    caster, fine = RayMeshIntersector(mesh), size * samples
    pictures = []
    for origin, direction in zip(*(rays.double().numpy() for rays in cameras.rays(fine, fine)), strict=True):
        o, d = origin.reshape(-1, 3), direction.reshape(-1, 3)
        sums, through, open_ = np.zeros((len(o), 5)), np.ones(len(o)), np.arange(len(o))
        for _ in range(DEPTH):
            face = np.asarray(caster.intersects_first(o[open_], d[open_]))
            hit, open_ = face[face >= 0], open_[face >= 0]
            if not len(open_):
                break
            across = (normals[hit] * d[open_]).sum(1)
            safe = np.where(np.abs(across) < 1e-9, -1e-9, across)
            distance = ((corners[hit, 0] - o[open_]) * normals[hit]).sum(1) / safe
            point = o[open_] + distance[:, None] * d[open_]
            where = trimesh.triangles.points_to_barycentric(corners[hit], point, method="cross")
            rgba = obj.colours(model, hit, np.nan_to_num(where).clip(0, 1))
            light = raycast.shade(np.where(across[:, None] > 0, -normals[hit], normals[hit]))
            glass = (rgba[:, 3] > 0.04) & (rgba[:, 3] < LEAST_OPACITY)
            opacity = np.where(glass, LEAST_OPACITY, rgba[:, 3])
            weight = (through[open_] * opacity)[:, None]
            own = ~chosen[hit][:, None]
            shaded = np.concatenate([rgba[:, :3] * light[:, None] * own, light[:, None] * ~own], axis=1)
            sums[open_] += weight * np.concatenate([shaded, np.ones_like(weight)], axis=1)
            through[open_] *= 1 - opacity
            o[open_] = point + 1e-4 * d[open_]
            open_ = open_[through[open_] > 0.02]
        pictures.append(sums.reshape(size, samples, size, samples, 5).mean((1, 3)))
    return np.stack(pictures).astype(np.float32).clip(0, 1)
