"""A closed mesh of the surface where a signed distance is 0."""

from __future__ import annotations

import logging
from collections.abc import Callable

import numpy as np
import torch
from skimage.measure import marching_cubes
from torch import Tensor

from distill.contracts import View
from distill.export import mesh
from distill.export.choices import FACES, MIN_COMPONENT, RESOLUTION
from distill.export.mesh import Floats, Ints, Mesh
from distill.wording import counted

_log = logging.getLogger(__name__)


def zero_set(values: Floats) -> tuple[Floats, Ints]:
    """Marching cubes at level 0 of values at the nodes of a grid over the cube [-1, 1]^3, closed at its sides.

    Args:
        values: negative inside, x first, shape ``[r, r, r]``.

    Returns:
        Vertices ``[v, 3]`` and faces ``[f, 3]``, counter-clockwise seen from outside; none where nothing is negative.
    """
    if not (values < 0).any():
        return np.zeros((0, 3), np.float32), np.zeros((0, 3), np.int64)
    spacing = 2 / (len(values) - 1)
    # An object that the cube cuts ends half a cell outside it, as far out as its last node is deep, at most.
    outside = np.pad(values, 1, mode="edge")
    rim = np.ones(outside.shape, bool)
    rim[1:-1, 1:-1, 1:-1] = False
    outside[rim] = np.abs(outside[rim]) + np.float32(1e-6)
    mesh.off_level(outside)
    vertices, faces, _, _ = marching_cubes(outside, 0, gradient_direction="descent", allow_degenerate=False)
    return ((vertices - 1) * spacing - 1).astype(np.float32), faces.astype(np.int64)


def extract_zero_set(
    distance: Callable[[Tensor], Tensor],
    view: View,
    *,
    resolution: int = RESOLUTION,
    faces: int = FACES,
    min_component: float = MIN_COMPONENT,
    chunk: int = 262_144,
) -> Mesh:
    """Turn a signed distance into a closed mesh: marching cubes at level 0 over the cube [-1, 1]^3, then decimation.

    Args:
        distance: of points ``[n, 3]`` to ``[n]``, scene units, negative inside.
        view: takes the pictures whose silhouettes are compared with the mesh's, for the record.
        resolution: grid nodes along each edge of the cube, at least 8.
        faces: at most about this many triangles.
        min_component: drop floaters and the walls of inner cavities, as in ``distill.export.mesh.extract_mesh``.
        chunk: points per query.

    Raises:
        ValueError: nothing is inside, or an option is out of range.
    """
    if resolution < 8 or faces < 4 or not 0 <= min_component <= 1:
        raise ValueError(
            f"Expected resolution >= 8, faces >= 4 and min_component in [0, 1], got {resolution}, {faces} and {min_component}."
        )
    vertices, triangles = zero_set(_on_grid(distance, resolution, chunk))
    if not len(triangles):
        raise ValueError(
            "Expected a surface in [-1, 1]^3, got a signed distance that is negative nowhere (an empty scene): lower the "
            "learning rate scene.geometry_lr, or begin again with another init=."
        )
    vertices, triangles = mesh.without_floaters(vertices, triangles, min_component)
    vertices, triangles = mesh.decimate(vertices, triangles, faces)
    iou = mesh._silhouette_iou(vertices, triangles, mesh._silhouettes(view, size=96))
    _log.info("mesh of the zero set: %s, silhouette IoU %.3f", counted(len(triangles), "face"), iou)
    normals = mesh.vertex_normals(vertices, triangles)
    return Mesh(vertices, triangles, normals, iso_level=0.0, silhouette_iou=iou)


@torch.no_grad()
def _on_grid(distance: Callable[[Tensor], Tensor], resolution: int, chunk: int) -> Floats:
    def values(points: Floats) -> Floats:
        found: Floats = distance(torch.from_numpy(points)).float().cpu().numpy()
        return found

    return np.nan_to_num(mesh.on_grid(values, resolution, chunk), copy=False, nan=1.0)
