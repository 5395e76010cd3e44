"""Anti-aliased pictures of coloured meshes, by casting rays on the CPU."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from trimesh.ray.ray_pyembree import RayMeshIntersector
from trimesh.transformations import rotation_matrix

from distill.cameras import Cameras
from distill.embedded.shapes import Part, joined

Array = NDArray[np.floating[Any]]

# A key light from above left of the front and a weaker one from behind, fixed in the world.
_LIGHTS = ((0.30, (0.55, 0.35, 0.75)), (0.12, (-0.6, -0.5, 0.4)))
_AMBIENT, _SKY = 0.50, 0.16


@dataclass(frozen=True)
class Layers:
    """One object's pictures, before its colour is chosen.

    Attributes:
        painted: shaded, premultiplied sRGB of the parts with a paint of their own, ``[views, h, w, 3]``.
        tint: shading of the parts that take the prompt's colour, ``[views, h, w]``.
        alpha: coverage, ``[views, h, w]``.
        depth: mean distance along the rays that hit, 0 where none does, ``[views, h, w]``.
    """

    painted: Array
    tint: Array
    alpha: Array
    depth: Array

    def rgba(self, colour: tuple[float, float, float]) -> Array:
        """Premultiplied RGBA with the prompt's colour filled in, shape ``[views, h, w, 4]``."""
        rgb = self.painted + self.tint[..., None] * np.asarray(colour, np.float32)
        return np.concatenate([rgb, self.alpha[..., None]], axis=-1)


def over(rgba: Array, background: float | Array) -> Array:
    """Composite premultiplied RGBA over a grey level or an RGB colour."""
    return rgba[..., :3] + (1 - rgba[..., 3:]) * np.asarray(background, np.float32)


def shade(normals: Array) -> Array:
    """Soft light on outward unit normals, shape ``[n, 3]`` to ``[n]``, between 0.5 and about 1."""
    value = _AMBIENT + _SKY * (0.5 + 0.5 * normals[:, 2])
    for strength, direction in _LIGHTS:
        unit = np.asarray(direction) / np.linalg.norm(direction)
        value = value + strength * np.clip(normals @ unit, 0, None)
    return np.minimum(value, 1.0).astype(np.float32)


def render(
    parts: list[Part], cameras: Cameras, size: int = 64, samples: int = 3, lights_deg: float = 0.0
) -> Layers:
    """Render an object from every camera.

    Args:
        parts: the object, from ``shapes.build``.
        cameras: where from.
        size: height and width in pixels.
        samples: rays per pixel along each axis.
        lights_deg: the lights are turned about the vertical axis by so much.
    """
    whole = joined(parts)
    own = np.concatenate([np.full(len(p.mesh.faces), p.paint is not None) for p in parts])
    paint = np.concatenate([np.tile(p.paint or (0, 0, 0), (len(p.mesh.faces), 1)) for p in parts])
    normals = whole.face_normals
    turn = rotation_matrix(-np.radians(lights_deg), [0, 0, 1])[:3, :3]
    light = shade(normals @ turn.T)
    # The last row answers for rays that hit nothing (embree gives face -1).
    painted = np.append(paint * (light * own)[:, None], [[0, 0, 0]], axis=0).astype(np.float32)
    tint = np.append(light * ~own, 0).astype(np.float32)

    fine = size * samples
    origins, directions = (rays.double().numpy() for rays in cameras.rays(fine, fine))
    intersector = RayMeshIntersector(whole)
    pictures = []
    for origin, direction in zip(origins, directions, strict=True):
        o, d = origin.reshape(-1, 3), direction.reshape(-1, 3)
        face = intersector.intersects_first(o, d)
        hit = face >= 0
        normal = normals[face]
        facing = np.where(hit, (normal * d).sum(-1), 1.0)
        plane = ((whole.triangles[face, 0] - o) * normal).sum(-1)
        depth = np.where(hit, plane / np.where(np.abs(facing) < 1e-6, -1e-6, facing), 0.0)
        layers = np.concatenate([painted[face], np.stack([tint[face], hit, depth], -1)], axis=-1)
        pictures.append(layers.reshape(size, samples, size, samples, 6).mean((1, 3)))
    stacked = np.stack(pictures).astype(np.float32)
    alpha = stacked[..., 4]
    return Layers(stacked[..., :3], stacked[..., 3], alpha, stacked[..., 5] / alpha.clip(1e-6))
