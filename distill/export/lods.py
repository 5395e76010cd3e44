"""Levels of detail: simplified meshes that share the full mesh's texture."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from distill.export.frame import welded
from distill.export.mesh import Floats, Ints, Mesh, adjacency, decimate, vertex_normals
from distill.wording import counted

log = logging.getLogger(__name__)

#: Faces of a level, as a share of those of the level above it.
RATIO = 0.5
#: Samples of the full mesh near a point whose faces are looked at for the nearest one.
_NEAR = 16
#: Points whose nearest faces are looked for at a time; each takes some kilobytes.
_AT_ONCE = 16_384


class _Samples(NamedTuple):
    """Points spread over faces: a search tree of them, and the face that each is on."""

    tree: cKDTree
    face: Ints


def levels(mesh: Mesh, count: int) -> list[Mesh]:
    """Simplify a mesh to a half, a quarter, ... of its faces, each level from the full mesh.

    The shape is simplified without regard to the texture's seams, so they cost no faces. Then each face is given the chart that
    most of it lies on, and its corners the texture coordinates of the points of that chart that are nearest to them. Vertices
    are doubled where charts meet, and there alone.

    Args:
        mesh: the full mesh, closed except for vertices that are doubled along seams.
        count: of levels.

    Returns:
        ``count`` meshes, or fewer where the mesh cannot be simplified further; their texture is the full mesh's own.
    """
    whole, found = welded(mesh), list[Mesh]()
    before = len(mesh.faces)
    for level in range(1, count + 1):
        vertices, faces = decimate(whole.vertices, whole.faces, max(4, round(len(mesh.faces) * RATIO**level)))
        if not 4 <= len(faces) < before:
            log.warning(
                "only %s of %d: the mesh of %s cannot be simplified further",
                counted(level - 1, "level"), count, counted(before, "face"),
            )  # fmt: skip
            break
        before = len(faces)
        found.append(textured(mesh, vertices, faces))
    return found


def textured(mesh: Mesh, vertices: Floats, faces: Ints) -> Mesh:
    """Give a simplified shape the texture coordinates and the colours of a full mesh, see ``levels``.

    Args:
        mesh: the full mesh.
        vertices: of the shape, shape ``[v, 3]``.
        faces: shape ``[f, 3]``.
    """
    chart = charts(mesh) if mesh.uv is not None else np.zeros(len(mesh.faces), np.int64)
    triangles, corners = mesh.vertices[mesh.faces].astype(np.float64), vertices[faces].astype(np.float64)
    facing, own = _facing(triangles), _facing(corners)
    # The middle of a face and three points around it say which chart it is on.
    middle = corners.mean(1, keepdims=True)
    asked = np.concatenate([middle, (middle + 2 * corners) / 3], axis=1)
    near, _ = _nearest(
        _samples(triangles, np.arange(len(triangles))), triangles, facing, asked.reshape(-1, 3), np.repeat(own, 4, axis=0)
    )  # fmt: skip
    said = chart[near].reshape(-1, 4)
    votes = (said[:, :, None] == said[:, None, :]).sum(2)
    wanted = said[np.arange(len(said)), votes.argmax(1)]
    # A corner stands once for each chart of its faces.
    pairs, inverse = np.unique(
        np.stack([faces.ravel(), np.repeat(wanted, 3)], axis=1), axis=0, return_inverse=True
    )
    split = inverse.reshape(faces.shape)
    mean = np.stack(
        [np.bincount(split.ravel(), np.repeat(own[:, axis], 3), len(pairs)) for axis in range(3)], 1
    )
    places, face = vertices[pairs[:, 0]], np.zeros(len(pairs), np.int64)
    weight = np.zeros((len(pairs), 3))
    for one in np.unique(pairs[:, 1]):
        here = pairs[:, 1] == one
        samples = _samples(triangles, np.flatnonzero(chart == one))
        face[here], weight[here] = _nearest(
            samples, triangles, facing, places[here].astype(np.float64), mean[here]
        )

    def interpolated(values: Floats | None) -> Floats | None:
        return (
            None
            if values is None
            else np.einsum("nc,nck->nk", weight, values[mesh.faces[face]]).astype(np.float32)
        )

    return replace(
        mesh,
        vertices=places,
        faces=split.astype(np.int64),
        normals=vertex_normals(vertices, faces)[pairs[:, 0]],
        uv=interpolated(mesh.uv),
        colours=interpolated(mesh.colours),
    )


def charts(mesh: Mesh) -> Ints:
    """Number each face's chart: the pieces that the texture's seams leave, shape ``[f]``."""
    _, label = connected_components(adjacency(mesh.faces, len(mesh.vertices)), directed=False)
    return label[mesh.faces[:, 0]].astype(np.int64)


def _facing(corners: NDArray[np.float64]) -> NDArray[np.float64]:
    """Unit normals of triangles ``[n, 3, 3]``, 0 for one without area."""
    cross = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    return np.asarray(cross / np.maximum(np.linalg.norm(cross, axis=1, keepdims=True), 1e-30))


def _samples(triangles: NDArray[np.float64], chosen: Ints) -> _Samples:
    """Spread points over the chosen faces, more on the larger ones: the middles of equal parts about as large as most faces."""
    corners = triangles[chosen]
    longest = np.linalg.norm(corners - np.roll(corners, 1, axis=1), axis=2).max(1)
    parts = np.clip(np.ceil(longest / max(np.median(longest), 1e-20)), 1, 12).astype(np.int64)
    points, face = list[NDArray[np.float64]](), list[Ints]()
    for count in np.unique(parts):
        here = np.flatnonzero(parts == count)
        i, j = (axis.ravel() for axis in np.meshgrid(np.arange(count), np.arange(count), indexing="ij"))
        upright = np.stack([i + 1 / 3, j + 1 / 3], 1)[i + j < count]
        turned = np.stack([i + 2 / 3, j + 2 / 3], 1)[i + j < count - 1]
        at = np.concatenate([upright, turned]) / count
        weight = np.concatenate([at, 1 - at.sum(1, keepdims=True)], axis=1)
        points.append(np.einsum("sc,nck->nsk", weight, corners[here]).reshape(-1, 3))
        face.append(np.repeat(chosen[here], len(weight)))
    return _Samples(cKDTree(np.concatenate(points)), np.concatenate(face))


def _nearest(
    samples: _Samples,
    triangles: NDArray[np.float64],
    facing: NDArray[np.float64],
    points: NDArray[np.float64],
    normals: NDArray[np.float64],
) -> tuple[Ints, NDArray[np.float64]]:
    """Find the nearest point of the faces of ``samples`` that face the same way: its face ``[n]`` and weights ``[n, 3]``.

    Faces that are turned away, such as the other side of a thin wall, are taken only where there is nothing else nearby.
    """
    face, weight = np.zeros(len(points), np.int64), np.zeros((len(points), 3))
    for start in range(0, len(points), _AT_ONCE):
        here = slice(start, start + _AT_ONCE)
        _, index = samples.tree.query(points[here], k=min(_NEAR, len(samples.face)))
        near = samples.face[index.reshape(-1, min(_NEAR, len(samples.face)))]
        weights, distance = closest(points[here, None], triangles[near])
        away = np.einsum("nkc,nc->nk", facing[near], normals[here]) <= 0
        best = (distance + away * 1e6).argmin(1)
        row = np.arange(len(near))
        face[here], weight[here] = near[row, best], weights[row, best]
    return face, weight


def closest(
    point: NDArray[np.float64], triangle: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Find the point of a triangle that is nearest to a point.

    Args:
        point: shape ``[..., 3]``.
        triangle: corners, shape ``[..., 3, 3]``.

    Returns:
        Barycentric weights ``[..., 3]``, at least 0, and the distance ``[...]``.
    """
    a = triangle[..., 0, :]
    b, c, p = triangle[..., 1, :] - a, triangle[..., 2, :] - a, point - a
    bb, bc, cc, pb, pc = ((x * y).sum(-1) for x, y in ((b, b), (b, c), (c, c), (p, b), (p, c)))
    area = bb * cc - bc * bc
    flat = area <= 1e-14 * bb * cc
    safe = np.where(flat, 1, area)
    u, v = (cc * pb - bc * pc) / safe, (bb * pc - bc * pb) / safe

    def clipped(value: NDArray[np.float64], length: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.clip(value / np.where(length > 0, length, 1), 0, 1)

    # The foot of the perpendicular, where it is inside, and the nearest points of the three edges.
    ab, ac = clipped(pb, bb), clipped(pc, cc)
    on_bc = clipped(pc - pb - bc + bb, bb + cc - 2 * bc)
    zero = np.zeros_like(ab)
    candidates = np.stack(
        [np.stack([u, v], -1), np.stack([ab, zero], -1), np.stack([zero, ac], -1), np.stack([1 - on_bc, on_bc], -1)], axis=-2
    )  # fmt: skip
    offset = candidates[..., :1] * b[..., None, :] + candidates[..., 1:] * c[..., None, :] - p[..., None, :]
    distance = np.linalg.norm(offset, axis=-1)
    distance[..., 0] = np.where(flat | (u < 0) | (v < 0) | (u + v > 1), np.inf, distance[..., 0])
    best = distance.argmin(-1)
    found = np.take_along_axis(candidates, best[..., None, None], axis=-2)[..., 0, :]
    weight = np.concatenate([1 - found.sum(-1, keepdims=True), found], axis=-1)
    return np.maximum(weight, 0), np.take_along_axis(distance, best[..., None], axis=-1)[..., 0]
