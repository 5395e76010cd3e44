"""Colours for a mesh: at its vertices, or as a texture over an unwrapping."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import xatlas
from numpy.typing import NDArray
from scipy import ndimage

from distill.export.choices import TEXTURE_SIZE
from distill.export.colours import Paint
from distill.export.mesh import Floats, Ints, Mesh

#: How far around the charts their own colours continue, in texels: as far as bilinear filtering looks.
GUTTER = 1.5


def colour_vertices(mesh: Mesh, paint: Paint) -> Mesh:
    """Give the mesh's vertices their colours, sRGB as the prior sees them; see ``distill.export.colours.paint_of``."""
    return replace(mesh, colours=paint(mesh.vertices, mesh.normals))


def bake_texture(mesh: Mesh, paint: Paint, *, size: int = TEXTURE_SIZE) -> Mesh:
    """Unwrap a mesh and paint its texture, up to and past the charts' edges.

    Renders are compared with sRGB pictures, so their colours are sRGB already and are stored unchanged.

    Args:
        mesh: at most some 20,000 faces; unwrapping slows down steeply beyond.
        paint: gives points of the surface their colours, see ``distill.export.colours.paint_of``.
        size: of the square texture, in texels, at least 64.

    Returns:
        The mesh with ``uv`` and ``texture``, its vertices doubled along the charts' seams.

    Raises:
        ValueError: ``size`` is too small.
    """
    if size < 64:
        raise ValueError(
            f"Expected a texture size of at least 64 texels, got {size}; the default is {TEXTURE_SIZE}."
        )
    mesh = unwrap(mesh, size)
    assert mesh.uv is not None
    texel, face, weight = rasterise(mesh.uv, mesh.faces, size, reach=GUTTER)
    corners = mesh.faces[face]
    points = np.einsum("nc,nck->nk", weight, mesh.vertices[corners])
    normals = np.einsum("nc,nck->nk", weight, mesh.normals[corners])
    normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-8)
    texture = np.zeros((size * size, 3), np.float32)
    texture[texel] = paint(points, normals)
    empty = np.ones(size * size, bool)
    empty[texel] = False
    rows, columns = ndimage.distance_transform_edt(
        empty.reshape(size, size), return_distances=False, return_indices=True
    )
    filled = texture.reshape(size, size, 3)[rows, columns]
    return replace(mesh, texture=np.round(filled * 255).astype(np.uint8))


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
