"""Textures and normal maps painted over texture coordinates, up to and past the charts' edges."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from distill.export.mesh import vertex_normals
from distill.export.texture import GUTTER, rasterise
from distill.meshes.read import given_normals
from distill.meshes.surface import Floats, Ints, Part, Surface
from distill.meshes.tangents import in_tangent_space, tangents
from distill.meshes.unwrap import Mapped, chunks, first_place, named, stacked

#: Values at points in the scene's frame, ``[n, 3]`` to ``[n, channels]``.
Paint = Callable[[Tensor], Tensor]


def bake(
    surface: Surface,
    group: Sequence[tuple[Part, Mapped]],
    paint: Paint,
    size: int,
    more: Floats | None = None,
) -> NDArray[np.uint8]:
    """Paint a group's texture, up to and past the charts' edges.

    Args:
        surface: the mesh.
        group: its parts that share the texture.
        paint: gives values in [0, 1].
        size: in texels along each side.
        more: values of the faces' corners that the paint is given after the points, interpolated, shape ``[f, 3, k]``.

    Returns:
        The paint's values, the first row on top, shape ``[size, size, channels]``.
    """
    uv, faces, corners = stacked(surface, group)
    if more is not None:
        corners = np.concatenate([corners, more], axis=2)
    channels = paint(torch.zeros(1, corners.shape[2])).shape[1]
    texture, painted = np.zeros((size * size, channels), np.float32), np.zeros(size * size, bool)
    # First past the edges, then within: a chart's own texels are not painted over by a neighbour's rim.
    for reach in (GUTTER, 0.0):
        for chunk in chunks(uv, faces, size, reach):
            texel, face, weight = rasterise(uv, faces[chunk], size, reach=reach)
            points = np.einsum("nc,nck->nk", weight, corners[chunk][face]).astype(np.float32)
            texture[texel] = paint(torch.from_numpy(points)).numpy()
            painted[texel] = True
    if not painted.any():
        raise ValueError(
            f"the texture of {named([part for part, _ in group])} would be empty; choose a larger export.texture_size"
        )
    rows, columns = ndimage.distance_transform_edt(
        ~painted.reshape(size, size), return_distances=False, return_indices=True
    )
    filled = texture.reshape(size, size, channels)[rows, columns]
    return np.round(np.clip(filled, 0, 1) * 255).astype(np.uint8)


def bake_normals(
    surface: Surface, group: Sequence[tuple[Part, Mapped]], perturbation: Paint, size: int
) -> NDArray[np.uint8]:
    """Bake a group's normal map as glTF has it: 0.5 + 0.5 n, +y up, linear, in ``bake``'s shape."""

    def encoded(values: Tensor) -> Tensor:
        points, normal, tangent = values.split([3, 3, 4], dim=1)
        return 0.5 + 0.5 * in_tangent_space(perturbation(points), normal, tangent)

    frames = np.concatenate([_frames(surface, part, mapped) for part, mapped in group])
    return bake(surface, group, encoded, size, frames)


def _frames(surface: Surface, part: Part, mapped: Mapped) -> Floats:
    """Normals and tangents of the faces' corners in the scene's frame, shape ``[f, 3, 7]``."""
    vertices, faces = first_place(surface, part)
    begin, count = part.faces
    given: Floats | None = None
    if normals_of(surface, part) is not None:
        given = np.zeros_like(vertices)
        given[faces] = surface.normals[begin : begin + count]
        given = _mended(given, vertices, faces)
    corners = vertices[mapped.origin]
    normals = flat(corners) if given is None else given[mapped.origin]
    tangent = tangents(corners, mapped.faces, mapped.uv, normals)
    return np.concatenate([normals, tangent], axis=1)[mapped.faces]


def flat(vertices: Floats) -> Floats:
    """Unit normals of triangles that are apart, at each vertex, shape ``[v, 3]``."""
    corners = vertices.reshape(-1, 3, 3).astype(np.float64)
    across = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    length = np.linalg.norm(across, axis=1, keepdims=True)
    unit = np.where(length > 0, across / np.maximum(length, 1e-300), (0, 0, 1))
    return unit.astype(np.float32).repeat(3, axis=0)


def normals_of(surface: Surface, part: Part) -> Floats | None:
    """A part's unit normals as they are written, in its own frame; None where its file has none, or none that is whole.

    glTF wants unit normals, and viewers make flat ones where there are none.
    """
    mesh = surface.scene.geometry[part.name]
    normals = given_normals(mesh)
    if normals is None or not normals.any():
        return None
    return _mended(normals, np.asarray(mesh.vertices, np.float32), np.asarray(mesh.faces, np.int64))


def _mended(normals: Floats, vertices: Floats, faces: Ints) -> Floats:
    """Normals in which the faces' mean stands where one is 0, shape ``[v, 3]``."""
    broken = np.flatnonzero(~normals.any(1))
    if len(broken):
        made = vertex_normals(vertices, faces)
        if (made * normals).sum() < 0:  # a mirrored place turns its faces around
            made = -made
        normals = normals.copy()
        normals[broken] = made[broken]
    return normals
