"""Texture coordinates of a mesh's parts: their own where they are of use, else a new atlas."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import xatlas
from trimesh.visual import TextureVisuals

from distill.export.texture import rasterise
from distill.meshes.surface import Floats, Ints, Part, Surface

log = logging.getLogger(__name__)

#: Texels along a side, to see how much of a texture is used and how much twice.
_LOOK = 512
#: Own texture coordinates are used where they cover so much of the texture,
_LEAST = 0.02
#: where so much of their area is not covered by another face's,
_ALONE = 0.95
#: and where so much of the mesh's area has some.
_MAPPED = 0.98
#: Texels of faces' bounding boxes at a time.
_CHUNK = 2_000_000
#: Charts are packed at so many texels a side at most, and enlarged: packing finer takes minutes.
_PACKED = 1024


@dataclass(frozen=True)
class Mapped:
    """Texture coordinates of a part.

    Attributes:
        origin: the part's vertex that each vertex was, shape ``[v]``.
        faces: shape ``[f, 3]``, in the part's order.
        uv: in [0, 1], (0, 0) at the lower left, shape ``[v, 2]``.
    """

    origin: Ints
    faces: Ints
    uv: Floats


def mapped_groups(surface: Surface, size: int) -> tuple[list[list[tuple[Part, Mapped]]], float]:
    """Put parts that share a texture together: those of a material with usable coordinates, and all others on one atlas.

    Returns:
        The groups, and the share of parts that have their own coordinates.
    """
    wanted = [part for part in surface.parts if not part.kept]
    materials: dict[int, list[Part]] = {}
    for part in wanted:
        materials.setdefault(hash(_visual(surface, part)), []).append(part)
    groups, others = list[list[tuple[Part, Mapped]]](), list[Part]()
    for parts in materials.values():
        own = [own_of(surface, part) for part in parts]
        if usable(surface, parts, own):
            groups.append([(part, mapped) for part, mapped in zip(parts, own, strict=True) if mapped])
        else:
            others += parts
    if others:
        log.info("unwrapping %s: without usable texture coordinates of their own", named(others))
        groups.append(list(zip(others, unwrap(surface, others, size), strict=True)))
    return groups, 1 - len(others) / len(wanted)


def named(parts: Sequence[Part]) -> str:
    names = [part.name for part in parts]
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _visual(surface: Surface, part: Part) -> object:
    """What tells a part's material from others; its name where it has none."""
    visual = surface.scene.geometry[part.name].visual
    return (part.material, visual.material) if isinstance(visual, TextureVisuals) else part.name


def own_of(surface: Surface, part: Part) -> Mapped | None:
    """A part's own texture coordinates, where it has them within the texture."""
    mesh = surface.scene.geometry[part.name]
    uv = mesh.visual.uv if isinstance(mesh.visual, TextureVisuals) else None
    if uv is None or len(uv) != len(mesh.vertices):
        return None
    faces = np.asarray(mesh.faces, np.int64)
    used = np.asarray(uv, np.float32)[np.unique(faces)]
    if not np.isfinite(used).all() or used.min() < -1e-3 or used.max() > 1 + 1e-3:
        return None
    clean = np.clip(np.nan_to_num(np.asarray(uv, np.float32)), 0, 1)
    return Mapped(np.arange(len(clean)), faces, clean)


def usable(surface: Surface, parts: Sequence[Part], own: Sequence[Mapped | None]) -> bool:
    """Tell whether parts' own texture coordinates cover enough of one texture, and hardly any of it twice."""
    pairs = [(part, mapped) for part, mapped in zip(parts, own, strict=True) if mapped]
    if len(pairs) < len(parts):
        return False
    uv, faces, corners = stacked(surface, pairs)
    flat = uv[faces].astype(np.float64)
    b, c = flat[:, 1] - flat[:, 0], flat[:, 2] - flat[:, 0]
    area = np.abs(b[:, 0] * c[:, 1] - b[:, 1] * c[:, 0]) / 2
    edges = corners[:, 1:] - corners[:, :1]
    true = np.linalg.norm(np.cross(edges[:, 0], edges[:, 1]), axis=1) / 2
    # A face without area in the texture would be of one texel.
    mapped = true[area > 1e-4 / max(len(area), 1) * area.sum()].sum() / max(true.sum(), 1e-20)
    # More than the whole texture lies on itself: leaves that share a picture would be rasterised thousands of times over.
    if area.sum() < _LEAST or mapped < _MAPPED or _ALONE * area.sum() > 1:
        return False
    covered = np.zeros(_LOOK * _LOOK, bool)
    for chunk in chunks(uv, faces, _LOOK, 0.0):
        covered[rasterise(uv, faces[chunk], _LOOK)[0]] = True
    return bool(covered.mean() >= _ALONE * area.sum())


def unwrap(surface: Surface, parts: Sequence[Part], size: int) -> list[Mapped]:
    """Cut parts into charts, at one scale, and pack them into one unit square.

    Raises:
        ValueError: charts cannot be made of a part.
    """
    atlas = xatlas.Atlas()
    for part in parts:
        vertices, faces = first_place(surface, part)
        atlas.add_mesh(vertices, faces.astype(np.uint32))
    packing = xatlas.PackOptions()
    packing.resolution, packing.padding = min(size, _PACKED), 4
    atlas.generate(pack_options=packing)
    found = []
    for number, part in enumerate(parts):
        origin, faces, uv = atlas[number]
        if len(faces) != part.faces[1] or not np.isfinite(uv).all():
            raise ValueError(
                f"no texture coordinates can be made for {part.name} of {surface.file}; unwrap it in a 3D program first"
            )
        found.append(
            Mapped(origin.astype(np.int64), faces.astype(np.int64), np.clip(uv, 0, 1).astype(np.float32))
        )
    return found


def first_place(surface: Surface, part: Part) -> tuple[Floats, Ints]:
    """A part's vertices in the scene's frame, and its faces, as it is first placed."""
    at, count = part.vertices
    begin, faces = part.faces
    return surface.vertices[at : at + count], surface.faces[begin : begin + faces] - at


def stacked(surface: Surface, group: Sequence[tuple[Part, Mapped]]) -> tuple[Floats, Ints, Floats]:
    """Texture coordinates ``[v, 2]``, faces ``[f, 3]`` and their corners in the scene's frame ``[f, 3, 3]`` of a group."""
    uv, faces, corners, offset = [], [], [], 0
    for part, mapped in group:
        vertices, _ = first_place(surface, part)
        uv.append(mapped.uv)
        faces.append(mapped.faces + offset)
        corners.append(vertices[mapped.origin][mapped.faces])
        offset += len(mapped.uv)
    return np.concatenate(uv), np.concatenate(faces), np.concatenate(corners)


def apart(mapped: Mapped) -> Mapped:
    """The same triangles with vertices of their own, in turn."""
    corner = mapped.faces.ravel()
    return Mapped(mapped.origin[corner], np.arange(len(corner)).reshape(-1, 3), mapped.uv[corner])


def chunks(uv: Floats, faces: Ints, size: int, reach: float) -> Iterator[slice]:
    """Runs of faces whose bounding boxes have a bounded number of texels."""
    corner = uv[faces] * size
    boxes = (corner.max(1) - corner.min(1) + 2 * reach + 1).prod(1)
    begin = 0
    heap = np.cumsum(boxes)
    while begin < len(faces):
        before = heap[begin - 1] if begin else 0.0
        end = max(int(np.searchsorted(heap, before + _CHUNK, side="right")), begin + 1)
        yield slice(begin, end)
        begin = end
