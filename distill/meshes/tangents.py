"""Tangent space: the frames in which a normal map is kept, and normals within them."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize

from distill.meshes.surface import Floats, Ints

Doubles = NDArray[np.float64]


def tangents(vertices: Floats, faces: Ints, uv: Floats, normals: Floats) -> Floats:
    """Tangents of vertices as glTF has them: where u grows, at right angles to the normal.

    The bitangent, where v grows, is ``cross(normal, tangent) * w``. A vertex has the mean of its faces' tangents, by their angles there, as
    in MikkTSpace (Mikkelsen 2008, "Simulation of Wrinkled Surfaces Revisited"), which would divide one whose faces are mirrored in the
    texture: here the larger angle has it.

    Args:
        vertices: shape ``[v, 3]``.
        faces: shape ``[f, 3]``.
        uv: texture coordinates, (0, 0) at the lower left, shape ``[v, 2]``.
        normals: unit, shape ``[v, 3]``.

    Returns:
        Unit tangents and w, 1 or -1, shape ``[v, 4]``; some tangent where the coordinates tell none.
    """
    corners, flat = vertices[faces].astype(np.float64), uv[faces].astype(np.float64)
    b, c = np.moveaxis(corners[:, 1:] - corners[:, :1], 1, 0)
    (bu, bv), (cu, cv) = (edge.T[..., None] for edge in np.moveaxis(flat[:, 1:] - flat[:, :1], 1, 0))
    mirrored = np.sign(bu * cv - cu * bv)
    # dP/du and dP/dv, up to a factor above 0.
    along, up = mirrored * (b * cv - c * bv), mirrored * (c * bu - b * cu)
    normal = normals[faces].astype(np.float64)
    tangent = _unit(_rejected(along[:, None], normal))
    after, before = np.roll(corners, -1, axis=1) - corners, np.roll(corners, 1, axis=1) - corners
    angle = np.arctan2(np.linalg.norm(np.cross(after, before), axis=2), (after * before).sum(2))[..., None]
    side = np.sign((np.cross(normal, tangent) * up[:, None]).sum(2, keepdims=True))
    heap = np.zeros((len(vertices), 4))
    np.add.at(heap, faces, angle * np.concatenate([tangent, side], axis=2))
    found, normal = heap[:, :3], normals.astype(np.float64)
    # Where nothing is left, the axis that is farthest from the normal.
    other = np.eye(3)[np.abs(normal).argmin(1)]
    found = np.where(np.linalg.norm(found, axis=1, keepdims=True) > 1e-6, found, other)
    unit = _unit(_rejected(found, normal))
    return np.concatenate([unit, np.where(heap[:, 3:] < 0, -1, 1)], axis=1).astype(np.float32)


def in_tangent_space(vector: Tensor, normal: Tensor, tangent: Tensor) -> Tensor:
    """The normal that ``distill.renderers.environment.perturbed`` makes of a vector, within a frame.

    Args:
        vector: shape ``[n, 3]``.
        normal: of any length, as it is interpolated, shape ``[n, 3]``.
        tangent: likewise, with w, shape ``[n, 4]``.

    Returns:
        Unit, along the tangent, the bitangent and the normal, shape ``[n, 3]``.
    """
    n = normalize(normal, dim=-1)
    t = tangent[:, :3] - n * (n * tangent[:, :3]).sum(-1, keepdim=True)
    t = normalize(t, dim=-1)
    b = torch.linalg.cross(n, t) * torch.where(tangent[:, 3:] < 0, -1.0, 1.0)
    x, y = ((vector * axis).sum(-1) for axis in (t, b))
    return normalize(torch.stack([x, y, torch.ones_like(x)], dim=-1), dim=-1)


def _rejected(vector: Doubles, normal: Doubles) -> Doubles:
    """The part of vectors at right angles to unit normals."""
    return np.asarray(vector - normal * (vector * normal).sum(-1, keepdims=True))


def _unit(vector: Doubles) -> Doubles:
    return np.asarray(vector / np.maximum(np.linalg.norm(vector, axis=-1, keepdims=True), 1e-30))
