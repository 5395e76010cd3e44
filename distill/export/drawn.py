"""Pictures of a mesh as it is exported, by casting rays on the CPU."""

from __future__ import annotations

import numpy as np
import torch
import trimesh
from numpy.typing import NDArray
from trimesh.ray.ray_pyembree import RayMeshIntersector

from distill.cameras import Cameras
from distill.contracts import Render, View
from distill.export.mesh import Floats, Ints, Mesh

#: Rays at a time, which bounds memory.
CHUNK = 262_144


def mesh_view(mesh: Mesh, samples: int = 2) -> View:
    """Return a view of a mesh in the plain colours of its texture, without light, over white.

    The colours are those of the scene's renders, which are lit already.

    Args:
        mesh: with a texture, or else with colours of its vertices.
        samples: rays per pixel along each axis.

    Returns:
        Takes pictures as a scene does, on the CPU; depths are means over the rays that hit, 0 where none does.

    Raises:
        ValueError: the mesh has no faces or no colours, or a texture without coordinates alone, or ``samples`` is below 1.
    """
    if not len(mesh.faces) or samples < 1:
        raise ValueError(
            f"Expected a mesh with faces and samples >= 1, got {len(mesh.faces)} faces and {samples}."
        )
    if mesh.colours is None and (mesh.texture is None or mesh.uv is None):
        raise ValueError(
            "Expected a mesh with a texture and its coordinates or with colours of its vertices, got one with neither."
        )
    caster = RayMeshIntersector(trimesh.Trimesh(mesh.vertices, mesh.faces, process=False))

    def pixels(origins: Floats, directions: Floats) -> Floats:
        """Colour, opacity and depth along rays ``[n, 3]``, shape ``[n, 5]``, premultiplied."""
        face = np.asarray(caster.intersects_first(origins, directions))
        hit = face >= 0
        found = np.zeros((len(origins), 5), np.float32)
        weight, found[hit, 4] = _hit(mesh.vertices[mesh.faces[face[hit]]], origins[hit], directions[hit])
        found[hit, :3], found[hit, 3] = _colours(mesh, mesh.faces[face[hit]], weight), 1
        return found

    def view(cameras: Cameras, height: int, width: int) -> Render:
        origins, directions = (
            rays.double().cpu().numpy() for rays in cameras.rays(height * samples, width * samples)
        )
        o, d = origins.reshape(-1, 3), directions.reshape(-1, 3)
        fine = [pixels(o[i : i + CHUNK], d[i : i + CHUNK]) for i in range(0, len(o), CHUNK)]
        seen = torch.from_numpy(np.concatenate(fine))
        seen = seen.view(len(cameras), height, samples, width, samples, 5).mean((2, 4))
        opacity = seen[..., 3:4]
        return Render(seen[..., :3] + 1 - opacity, opacity, seen[..., 4:] / opacity.clamp(min=1e-6))

    return view


def _hit(
    corners: NDArray[np.floating], origins: Floats, directions: Floats
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Where rays meet the planes of triangles ``[n, 3, 3]``: weights of the corners ``[n, 3]`` and distances ``[n]``.

    Source: Möller and Trumbore 1997, Fast, minimum storage ray/triangle intersection, J. Graphics Tools 2(1).
    """
    a, b, c = corners.astype(np.float64).transpose(1, 0, 2)
    across = np.cross(directions, c - a)
    area = (across * (b - a)).sum(1)
    area = np.where(np.abs(area) < 1e-20, 1e-20, area)
    offset = origins - a
    one = (offset * across).sum(1) / area
    turned = np.cross(offset, b - a)
    two = (directions * turned).sum(1) / area
    # Rounding may put the hit of an edge just outside.
    weight = np.stack([1 - one - two, one, two], axis=1).clip(0, 1)
    return weight / weight.sum(1, keepdims=True), ((c - a) * turned).sum(1) / area


def _colours(mesh: Mesh, corners: Ints, weight: NDArray[np.float64]) -> NDArray[np.floating]:
    """Colours at points of faces, sRGB in [0, 1], shape ``[n, 3]``: of the nearest texel, or between the vertices."""
    if mesh.texture is None or mesh.uv is None:
        assert mesh.colours is not None
        return np.einsum("nc,nck->nk", weight, mesh.colours[corners])
    uv = np.einsum("nc,nck->nk", weight, mesh.uv[corners])
    height, width = mesh.texture.shape[:2]
    column = (uv[:, 0] * width).astype(int).clip(0, width - 1)
    row = ((1 - uv[:, 1]) * height).astype(int).clip(0, height - 1)
    return mesh.texture[row, column] / 255
