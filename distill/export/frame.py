"""How a mesh is turned, placed and measured for a file, and what its colours are there."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from distill.export.choices import PIVOTS, SIZES
from distill.export.mesh import Floats, Mesh

Up = Literal["y", "z"]
Pivot = Literal["scene", "centre", "ground"]


#: What files say of their unit and axes, by their upward one; ``distill.meshes.read`` knows our own files by it.
SAID = {"y": "y up, front towards +z", "z": "z up, front towards +x"}


def turned(vectors: Floats, up: Up) -> Floats:
    """Turn from the internal frame: for "y", +x (front) to +z, +y to +x and +z (top) to +y."""
    if up not in ("y", "z"):
        raise ValueError(f"Expected up to be 'y' or 'z', got {up!r}.")
    return vectors[:, [1, 2, 0]] if up == "y" else vectors


class Place(NamedTuple):
    """Where a mesh goes: its vertices less ``origin``, shape ``[3]``, times ``scale``."""

    origin: NDArray[np.float64]
    scale: float

    def __call__(self, mesh: Mesh) -> Mesh:
        """Move a mesh there."""
        return replace(mesh, vertices=((mesh.vertices - self.origin) * self.scale).astype(np.float32))


def place_of(mesh: Mesh, *, pivot: Pivot = "scene", size_m: float | None = None) -> Place:
    """Say where a mesh goes for a file: its origin is moved, then it is scaled about it.

    Args:
        mesh: in the internal frame, z up.
        pivot: where the origin goes: ``scene`` leaves it where it is, ``centre`` is the middle of the bounding box, and
            ``ground`` the middle of its lowest face, so that the object stands on the ground.
        size_m: the longest edge of the bounding box, in metres; None leaves one scene unit one metre.

    Raises:
        ValueError: an unknown pivot, or a size that is out of range.
    """
    if pivot not in PIVOTS:
        raise ValueError(f"pivot must be {', '.join(PIVOTS)}, got {pivot!r}")
    if size_m is not None and not (isinstance(size_m, (int, float)) and SIZES[0] <= size_m <= SIZES[1]):
        raise ValueError(
            f"size_m is the largest extent in metres, {SIZES[0]:g} to {SIZES[1]:g}, got {size_m!r}; choose another"
        )
    low, high = mesh.vertices.min(0).astype(np.float64), mesh.vertices.max(0).astype(np.float64)
    origin = np.zeros(3) if pivot == "scene" else (low + high) / 2
    if pivot == "ground":
        origin[2] = low[2]
    return Place(origin, 1.0 if size_m is None else size_m / max((high - low).max(), 1e-20))


def welded(mesh: Mesh) -> Mesh:
    """Join vertices at the same place, which the charts' seams had doubled; drops the texture and its coordinates."""
    _, first, inverse = np.unique(mesh.vertices, axis=0, return_index=True, return_inverse=True)
    order = np.argsort(first)  # the order of the mesh
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    kept = first[order]
    return replace(
        mesh,
        vertices=mesh.vertices[kept],
        faces=rank[inverse.reshape(-1)][mesh.faces],
        normals=mesh.normals[kept],
        colours=None if mesh.colours is None else mesh.colours[kept],
        uv=None,
        texture=None,
    )


def srgb_to_linear(colour: Floats) -> Floats:
    """Decode sRGB (IEC 61966-2-1), values in [0, 1]."""
    return np.where(colour <= 0.04045, colour / 12.92, ((colour + 0.055) / 1.055) ** 2.4)
