"""Colours for a mesh: at its vertices, or as a texture over an unwrapping."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
import xatlas
from numpy.typing import NDArray
from scipy import ndimage

from distill.contracts import Field
from distill.export.choices import TEXTURE_SIZE
from distill.export.mesh import Floats, Ints, Mesh, evaluate

#: How far around the surface a ray is followed, in scene units, and in how many steps.
_OUTSIDE, _INSIDE, _STEPS = 0.05, 0.1, 15
#: Density, per scene unit, of less than which is the empty space between a surface and what is in front of it.
_EMPTY = 0.1

#: How far around the charts their own colours continue, in texels: as far as bilinear filtering looks.
GUTTER = 1.5


def colour_vertices(mesh: Mesh, query: Field, *, device: torch.device | str = "cpu") -> Mesh:
    """Give the mesh's vertices the field's colours, sRGB as the prior sees them."""
    return replace(mesh, colours=surface_albedo(query, mesh.vertices, mesh.normals, device=device))


def bake_texture(
    mesh: Mesh, query: Field, *, size: int = TEXTURE_SIZE, device: torch.device | str = "cpu"
) -> Mesh:
    """Unwrap a mesh and paint the field's albedo onto its texture, up to and past the charts' edges.

    Renders are compared with sRGB pictures, so the albedo is sRGB already and is stored unchanged.

    Args:
        mesh: at most some 20,000 faces; unwrapping slows down steeply beyond.
        query: the field, called on points on ``device``.
        size: of the square texture, in texels, at least 64.
        device: where ``query`` wants its points.

    Returns:
        The mesh with ``uv`` and ``texture``, its vertices doubled along the charts' seams.

    Raises:
        ValueError: ``size`` is too small.
    """
    if size < 64:
        raise ValueError(f"Expected a texture size of at least 64 texels, got {size}; the default is 512.")
    mesh = unwrap(mesh, size)
    assert mesh.uv is not None
    texel, face, weight = rasterise(mesh.uv, mesh.faces, size, reach=GUTTER)
    corners = mesh.faces[face]
    points = np.einsum("nc,nck->nk", weight, mesh.vertices[corners])
    normals = np.einsum("nc,nck->nk", weight, mesh.normals[corners])
    normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-8)
    texture = np.zeros((size * size, 3), np.float32)
    texture[texel] = surface_albedo(query, points, normals, device=device)
    empty = np.ones(size * size, bool)
    empty[texel] = False
    rows, columns = ndimage.distance_transform_edt(
        empty.reshape(size, size), return_distances=False, return_indices=True
    )
    filled = texture.reshape(size, size, 3)[rows, columns]
    return replace(mesh, texture=np.round(filled * 255).astype(np.uint8))


def surface_albedo(
    query: Field, points: Floats, normals: Floats, *, device: torch.device | str = "cpu"
) -> Floats:
    """Albedo where a ray against the normal stops: volume rendering over a short stretch of it.

    A soft field has no colour just at its surface; what renders show lies a little beneath, or in the haze in front of it. Beyond empty
    space, what is in front is another part.

    Args:
        query: the field.
        points: on the surface, shape ``[n, 3]``.
        normals: outward and unit, shape ``[n, 3]``.
        device: where ``query`` wants its points.

    Returns:
        Albedo in [0, 1], shape ``[n, 3]``.
    """
    step = (_OUTSIDE + _INSIDE) / _STEPS
    colour, everything = np.zeros_like(points, np.float32), np.zeros_like(points, np.float32)
    total, joined = np.zeros((len(points), 1), np.float32), np.ones((len(points), 1), bool)
    # From the inside outwards, each in front of what is there: so many places at once would take ten times the memory.
    for offset in (np.arange(_STEPS) + 0.5) * step - _INSIDE:
        # A field need not be defined outside the cube.
        along = np.clip(points + offset * normals, -1, 1).astype(np.float32)
        density, albedo = evaluate(query, along, device=device)
        if offset > 0:
            joined &= density[:, None] > _EMPTY
        opaque = 1 - np.exp(-np.maximum(density[:, None] * joined, 0) * step)
        colour += opaque * (albedo - colour)
        total += opaque * (1 - total)
        everything += albedo
    # The small addition lets what is thin all the way through have its mean colour.
    return np.clip(np.nan_to_num((colour + 1e-6 * everything) / (total + 1e-6 * _STEPS)), 0, 1)


def unwrap(mesh: Mesh, size: int) -> Mesh:
    """Cut a mesh into charts and pack them into the unit square, some two gutters apart."""
    atlas = xatlas.Atlas()
    atlas.add_mesh(mesh.vertices, mesh.faces.astype(np.uint32), mesh.normals)
    packing = xatlas.PackOptions()
    packing.resolution, packing.padding = size, 4
    atlas.generate(pack_options=packing)
    origin, faces, uv = atlas[0]
    return replace(
        mesh,
        vertices=mesh.vertices[origin],
        normals=mesh.normals[origin],
        colours=None if mesh.colours is None else mesh.colours[origin],
        faces=faces.astype(np.int64),
        uv=uv.astype(np.float32),
    )


def rasterise(uv: Floats, faces: Ints, size: int, reach: float = 0.0) -> tuple[Ints, Ints, Floats]:
    """Find the texels whose centres lie in a triangle, or near one.

    Args:
        uv: in [0, 1], (0, 0) at the lower left, shape ``[v, 2]``.
        faces: shape ``[f, 3]``.
        size: of the square texture, in texels.
        reach: how far outside a triangle a centre may lie, in texels.

    Returns:
        The texels (``row * size + column``, row 0 at the top), each at most once, ``[n]``; the faces nearest
        to them, ``[n]``; and the barycentric weights of a point of the face there, ``[n, 3]``.
    """
    # Pixel coordinates in which a texel's centre is a whole number.
    corner = (np.stack([uv[:, 0], 1 - uv[:, 1]], axis=1).astype(np.float64) * size - 0.5)[faces]
    low = np.clip(np.ceil(corner.min(1) - reach), 0, size).astype(np.int64)
    high = np.clip(np.floor(corner.max(1) + reach), -1, size - 1).astype(np.int64)
    span = np.maximum(high - low + 1, 0)
    face, nth = _enumerate(span[:, 0] * span[:, 1])
    texel = low[face] + np.stack([nth % span[face, 0], nth // span[face, 0]], axis=1)
    weight = np.maximum(_barycentric(corner, face, texel), 0)
    weight /= weight.sum(1, keepdims=True)
    distance = np.linalg.norm(np.einsum("nc,nck->nk", weight, corner[face]) - texel, axis=1)
    near = np.flatnonzero(distance <= reach + 1e-6)
    near = near[np.argsort(distance[near], kind="stable")]
    flat, first = np.unique((texel[:, 1] * size + texel[:, 0])[near], return_index=True)
    chosen = near[first]
    return flat, face[chosen], weight[chosen].astype(np.float32)


def _barycentric(corner: NDArray[np.float64], face: Ints, point: Ints) -> NDArray[np.float64]:
    """Weights of the corners at points in the plane, negative outside; the middle of a face of no area."""
    edge_b, edge_c = corner[:, 1] - corner[:, 0], corner[:, 2] - corner[:, 0]
    area = edge_b[:, 0] * edge_c[:, 1] - edge_b[:, 1] * edge_c[:, 0]
    flat = np.abs(area) < 1e-12
    offset = point - corner[face, 0]
    edge_b, edge_c, area = edge_b[face], edge_c[face], np.where(flat, 1, area)[face]
    b = (offset[:, 0] * edge_c[:, 1] - offset[:, 1] * edge_c[:, 0]) / area
    c = (edge_b[:, 0] * offset[:, 1] - edge_b[:, 1] * offset[:, 0]) / area
    return np.where(flat[face, None], 1 / 3, np.stack([1 - b - c, b, c], axis=1))


def _enumerate(counts: Ints) -> tuple[Ints, NDArray[np.int64]]:
    """``[2, 0, 3]`` gives owners ``[0, 0, 2, 2, 2]`` and places ``[0, 1, 0, 1, 2]``."""
    owner = np.repeat(np.arange(len(counts)), counts)
    start = np.cumsum(counts) - counts
    return owner, np.arange(len(owner)) - start[owner]
