"""Faces of more than three corners, and faces that count their vertices backwards, made plain before trimesh reads them.

trimesh cuts each polygon into a fan about its first corner, parts of which lie outside a concave one, and counts negative indices of an
OBJ from the end of the file.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import mapbox_earcut
import numpy as np
from numpy.typing import NDArray

Doubles = NDArray[np.float64]
Ints = NDArray[np.int64]

#: A triangle of a fan lies outside its polygon where it is turned the other way, with more than this share of the polygon's area.
_TURNED = 1e-6


def counted_from_the_start(text: str) -> str:
    """Replace the negative indices of an OBJ's faces, which count from the last ``v``, ``vt`` or ``vn`` above the face, -1 being that one.

    Args:
        text: as ``plain_obj`` returns it.

    Raises:
        ValueError: a face counts back to before the first one.
    """
    if not re.search(r"\nf [^\n]*-", text):
        return text
    above = {"v": 0, "vt": 0, "vn": 0}
    lines = text.split("\n")
    for number, line in enumerate(lines):
        key, _, rest = line.partition(" ")
        if key in above:
            above[key] += 1
        elif key == "f" and "-" in rest:
            ends = tuple(above.values())
            lines[number] = "f " + " ".join(_counted(corner, ends) for corner in rest.split())
    return "\n".join(lines)


def _counted(corner: str, ends: Sequence[int]) -> str:
    """A corner ``v/vt/vn`` with positive indices, where there are so many of each above it."""
    words = corner.split("/")
    for at, (word, end) in enumerate(zip(words, ends, strict=False)):
        if word.startswith("-"):
            if int(word) < -end:
                raise ValueError(f"a face counts {-int(word)} back, and {end} are above it")
            words[at] = str(int(word) + end + 1)
    return "/".join(words)


def obj_in_triangles(text: str) -> str:
    """Cut the concave polygons of an OBJ's text into triangles; a fan serves the other ones, and they stay.

    Args:
        text: as ``counted_from_the_start`` returns it.
    """
    lines = text.split("\n")
    sizes = dict[int, list[int]]()
    for number, line in enumerate(lines):
        if line.startswith("f ") and (size := len(line.split()) - 1) > 3:
            sizes.setdefault(size, []).append(number)
    if not sizes:
        return text
    places = np.array([line.split()[1:4] for line in lines if line.startswith("v ")], np.float64)
    for numbers in sizes.values():
        words = [lines[number].split()[1:] for number in numbers]
        polygons = np.array([[int(word.partition("/")[0]) - 1 for word in row] for row in words])
        for row in concave(places, polygons):
            triangles = in_triangles(places[polygons[row]])
            lines[numbers[row]] = "\n".join("f " + " ".join(words[row][i] for i in one) for one in triangles)
    return "\n".join(lines)


def concave(places: Doubles, polygons: Ints) -> Ints:
    """Which polygons have triangles outside them if they are cut into a fan about their first corner.

    Args:
        places: of vertices, shape ``[v, 3]``.
        polygons: indices of their corners, shape ``[p, n]``; those of vertices that are not there are left out.

    Returns:
        Rows of ``polygons``, shape ``[c]``.
    """
    known = np.flatnonzero(((polygons >= 0) & (polygons < len(places))).all(1))
    corners = places[polygons[known]]
    corners -= corners[:, :1].copy()  # far from the origin, products of coordinates would be rounded
    parts = np.cross(corners[:, 1:-1], corners[:, 2:])
    whole = parts.sum(1)
    area = np.linalg.norm(whole, axis=1, keepdims=True)
    turned = (parts * whole[:, None]).sum(2) < -_TURNED * area**2
    return known[turned.any(1)]


def in_triangles(corners: Doubles) -> Ints:
    """Cut a polygon into triangles that are turned as it is, seen along its mean normal.

    Args:
        corners: in turn, shape ``[n, 3]``.

    Returns:
        Indices of corners, shape ``[t, 3]``; a fan about the first one where no triangles fill the polygon, as it crosses itself or has no
        area.
    """
    corners = corners - corners[0]
    normal = np.cross(corners[1:-1], corners[2:]).sum(0)
    along = np.cross(normal, np.eye(3)[np.abs(normal).argmin()])
    area = np.linalg.norm(normal)
    # At right angles to the normal: of a polygon that is not flat, another view may cross itself.
    axes = np.stack([along * area, np.cross(normal, along)], axis=1)
    ends = np.array([len(corners)], np.uint32)
    found = mapbox_earcut.triangulate_float64(corners @ axes, ends).reshape(-1, 3).astype(np.int64)
    a, b, c = np.moveaxis(corners[found], 1, 0)
    sizes = np.cross(b - a, c - a) @ normal
    if not area or abs(np.abs(sizes).sum() - area**2) > _TURNED * area**2:
        return np.array([(0, i, i + 1) for i in range(1, len(corners) - 1)])
    found[sizes < 0] = found[sizes < 0, ::-1]
    return found
