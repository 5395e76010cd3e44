"""A mesh written as it was read, with a new texture over its own unwrapping, or over a new one where that is of no use."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
import trimesh
import xatlas
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage
from torch import Tensor
from trimesh.exchange.gltf import export_glb
from trimesh.visual import TextureVisuals
from trimesh.visual.material import PBRMaterial

from distill.export.files import clamp, complete
from distill.export.mesh import vertex_normals
from distill.export.pictures import timed
from distill.export.texture import GUTTER, rasterise
from distill.files.atomic import replacing
from distill.meshes.gltf import EXTENSIONS
from distill.meshes.kept import extend, kept
from distill.meshes.read import given_normals
from distill.meshes.surface import Floats, Ints, Part, Surface
from distill.meshes.tangents import in_tangent_space, tangents

log = logging.getLogger(__name__)

#: Values at points in the scene's frame, ``[n, 3]`` to ``[n, channels]``.
Paint = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Paints:
    """What is baked.

    Attributes:
        albedo: the new colours, sRGB in [0, 1], three channels.
        finish: roughness and metallic in [0, 1], two channels; None for a rough material that is no metal.
        perturbation: of normals, see ``distill.renderers.environment.perturbed``, three channels; None for no normal map.
    """

    albedo: Paint
    finish: Paint | None = None
    perturbation: Paint | None = None


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
#: Tangents have this name until they are written: trimesh keeps those without an underscore for itself.
_TANGENT = "_distill_tangent"
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


def write_textured(surface: Surface, paints: Paints, path: Path, *, size: int) -> dict[str, Any]:
    """Write a GLB file of a mesh with all of its nodes, names and transforms, and a baked texture.

    Args:
        surface: the mesh; parts that are kept are written as they were read.
        paints: what is baked.
        path: the file.
        size: of each texture, in texels.

    Returns:
        Figures: ``seconds`` by part, ``vertices``, ``faces``, ``textures``, and ``own_uv``, the share of textured parts that
        have their own texture coordinates.

    Raises:
        ValueError: charts cannot be made of a part.
    """
    seconds: dict[str, float] = {}
    with timed(seconds, "unwrap"):
        groups, own = mapped_groups(surface, size)
    if paints.perturbation:
        # Frames need normals: where a file has none, viewers make flat ones, which triangles do not share.
        groups = [
            [(part, m if _normals(surface, part) is not None else _apart(m)) for part, m in group]
            for group in groups
        ]
    geometry, made = dict(surface.scene.geometry), set[str]()
    with timed(seconds, "texture"):
        for group in groups:
            colour = bake(surface, group, paints.albedo, size)
            finish = bake(surface, group, paints.finish, size) if paints.finish else None
            bumps = bake_normals(surface, group, paints.perturbation, size) if paints.perturbation else None
            material = _material(surface, [part for part, _ in group], colour, finish, bumps)
            made.add(material.name)
            for part, mapped in group:
                geometry[part.name] = _textured(surface, part, mapped, material)
    for part in surface.parts:
        if part.kept:
            geometry[part.name] = kept(geometry[part.name], part.material, surface.file)
    scene = trimesh.Scene(geometry=geometry, graph=surface.scene.graph.copy())

    def finished(tree: dict[str, Any]) -> None:
        for attributes in (p["attributes"] for mesh in tree["meshes"] for p in mesh["primitives"]):
            if _TANGENT in attributes:
                attributes["TANGENT"] = attributes.pop(_TANGENT)
        complete(tree)
        clamp(tree, made)
        extend(tree, surface.scene.metadata.get(EXTENSIONS, {}))

    with timed(seconds, "files"), replacing(path) as part_file:
        part_file.write_bytes(export_glb(scene, tree_postprocessor=finished))
    meshes = [mesh for mesh in geometry.values() if isinstance(mesh, trimesh.Trimesh)]
    return {
        "seconds": seconds,
        "vertices": sum(len(mesh.vertices) for mesh in meshes),
        "faces": sum(len(mesh.faces) for mesh in meshes),
        "textures": len(groups),
        "own_uv": own,
    }


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
        own = [_own(surface, part) for part in parts]
        if usable(surface, parts, own):
            groups.append([(part, mapped) for part, mapped in zip(parts, own, strict=True) if mapped])
        else:
            others += parts
    if others:
        log.info("unwrapping %s: without usable texture coordinates of their own", _named(others))
        groups.append(list(zip(others, unwrap(surface, others, size), strict=True)))
    return groups, 1 - len(others) / len(wanted)


def _named(parts: Sequence[Part]) -> str:
    names = [part.name for part in parts]
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _visual(surface: Surface, part: Part) -> object:
    """What tells a part's material from others; its name where it has none."""
    visual = surface.scene.geometry[part.name].visual
    return (part.material, visual.material) if isinstance(visual, TextureVisuals) else part.name


def _own(surface: Surface, part: Part) -> Mapped | None:
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
    uv, faces, corners = _stacked(surface, pairs)
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
    for chunk in _chunks(uv, faces, _LOOK, 0.0):
        covered[rasterise(uv, faces[chunk], _LOOK)[0]] = True
    return bool(covered.mean() >= _ALONE * area.sum())


def unwrap(surface: Surface, parts: Sequence[Part], size: int) -> list[Mapped]:
    """Cut parts into charts, at one scale, and pack them into one unit square.

    Raises:
        ValueError: charts cannot be made of a part.
    """
    atlas = xatlas.Atlas()
    for part in parts:
        vertices, faces = _first_place(surface, part)
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


def _first_place(surface: Surface, part: Part) -> tuple[Floats, Ints]:
    """A part's vertices in the scene's frame, and its faces, as it is first placed."""
    at, count = part.vertices
    begin, faces = part.faces
    return surface.vertices[at : at + count], surface.faces[begin : begin + faces] - at


def _stacked(surface: Surface, group: Sequence[tuple[Part, Mapped]]) -> tuple[Floats, Ints, Floats]:
    """Texture coordinates ``[v, 2]``, faces ``[f, 3]`` and their corners in the scene's frame ``[f, 3, 3]`` of a group."""
    uv, faces, corners, offset = [], [], [], 0
    for part, mapped in group:
        vertices, _ = _first_place(surface, part)
        uv.append(mapped.uv)
        faces.append(mapped.faces + offset)
        corners.append(vertices[mapped.origin][mapped.faces])
        offset += len(mapped.uv)
    return np.concatenate(uv), np.concatenate(faces), np.concatenate(corners)


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
    vertices, faces = _first_place(surface, part)
    begin, count = part.faces
    given: Floats | None = None
    if _normals(surface, part) is not None:
        given = np.zeros_like(vertices)
        given[faces] = surface.normals[begin : begin + count]
        given = _mended(given, vertices, faces)
    corners = vertices[mapped.origin]
    normals = _flat(corners) if given is None else given[mapped.origin]
    tangent = tangents(corners, mapped.faces, mapped.uv, normals)
    return np.concatenate([normals, tangent], axis=1)[mapped.faces]


def _apart(mapped: Mapped) -> Mapped:
    """The same triangles with vertices of their own, in turn."""
    corner = mapped.faces.ravel()
    return Mapped(mapped.origin[corner], np.arange(len(corner)).reshape(-1, 3), mapped.uv[corner])


def _flat(vertices: Floats) -> Floats:
    """Unit normals of triangles that are apart, at each vertex, shape ``[v, 3]``."""
    corners = vertices.reshape(-1, 3, 3).astype(np.float64)
    across = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    length = np.linalg.norm(across, axis=1, keepdims=True)
    unit = np.where(length > 0, across / np.maximum(length, 1e-300), (0, 0, 1))
    return unit.astype(np.float32).repeat(3, axis=0)


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
    uv, faces, corners = _stacked(surface, group)
    if more is not None:
        corners = np.concatenate([corners, more], axis=2)
    channels = paint(torch.zeros(1, corners.shape[2])).shape[1]
    texture, painted = np.zeros((size * size, channels), np.float32), np.zeros(size * size, bool)
    # First past the edges, then within: a chart's own texels are not painted over by a neighbour's rim.
    for reach in (GUTTER, 0.0):
        for chunk in _chunks(uv, faces, size, reach):
            texel, face, weight = rasterise(uv, faces[chunk], size, reach=reach)
            points = np.einsum("nc,nck->nk", weight, corners[chunk][face]).astype(np.float32)
            texture[texel] = paint(torch.from_numpy(points)).numpy()
            painted[texel] = True
    if not painted.any():
        raise ValueError(
            f"the texture of {_named([part for part, _ in group])} would be empty; choose a larger export.texture_size"
        )
    rows, columns = ndimage.distance_transform_edt(
        ~painted.reshape(size, size), return_distances=False, return_indices=True
    )
    filled = texture.reshape(size, size, channels)[rows, columns]
    return np.round(np.clip(filled, 0, 1) * 255).astype(np.uint8)


def _chunks(uv: Floats, faces: Ints, size: int, reach: float) -> Iterator[slice]:
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


def _material(
    surface: Surface,
    parts: Sequence[Part],
    texture: NDArray[np.uint8],
    finish: NDArray[np.uint8] | None,
    bumps: NDArray[np.uint8] | None,
) -> PBRMaterial:
    """A material with the texture; named, and seen from both sides, as the parts' own was."""
    visuals = [surface.scene.geometry[part.name].visual for part in parts]
    own = [visual.material for visual in visuals if isinstance(visual, TextureVisuals)]
    names = {part.material for part in parts}
    double = any(bool(getattr(material, "doubleSided", False)) for material in own)
    factors: dict[str, Any] = {"metallicFactor": 0.0, "roughnessFactor": 0.9}
    if finish is not None:
        # glTF reads roughness from green and metallic from blue; red is for occlusion, which is not told.
        packed = np.concatenate([np.full_like(finish[..., :1], 255), finish], axis=-1)
        factors |= {
            "metallicFactor": 1.0,
            "roughnessFactor": 1.0,
            "metallicRoughnessTexture": Image.fromarray(packed),
        }
    if bumps is not None:
        factors["normalTexture"] = Image.fromarray(bumps)
    return PBRMaterial(
        name=names.pop() if len(names) == 1 else _free(surface), baseColorTexture=Image.fromarray(texture), doubleSided=double, **factors
    )  # fmt: skip


def _free(surface: Surface) -> str:
    """The name of a material of several parts, which no kept one has: extensions are given back by their names."""
    taken = {part.material for part in surface.parts if part.kept}
    names = ("surface" if number == 1 else f"surface{number}" for number in count(1))
    return next(name for name in names if name not in taken)


def _textured(surface: Surface, part: Part, mapped: Mapped, material: PBRMaterial) -> trimesh.Trimesh:
    """A part in its own frame; its vertices are doubled along the charts' seams."""
    mesh = surface.scene.geometry[part.name]
    vertices, normals = np.asarray(mesh.vertices)[mapped.origin], _normals(surface, part)
    normals = None if normals is None else normals[mapped.origin]
    attributes: dict[str, Any] = {}
    if material.normalTexture is not None:
        normals = _flat(vertices) if normals is None else normals
        attributes[_TANGENT] = tangents(vertices, mapped.faces, mapped.uv, normals)
    return trimesh.Trimesh(
        vertices,
        mapped.faces,
        vertex_normals=normals,
        vertex_attributes=attributes,
        visual=TextureVisuals(uv=mapped.uv, material=material),
        metadata={name: value for name, value in mesh.metadata.items() if name != "from_gltf_primitive"},
        process=False,
    )


def _normals(surface: Surface, part: Part) -> Floats | None:
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
