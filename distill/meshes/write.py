"""A mesh written as it was read, with a new texture over its own unwrapping, or over a new one where that is of no use."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import trimesh
from numpy.typing import NDArray
from PIL import Image
from trimesh.exchange.gltf import export_glb
from trimesh.visual import TextureVisuals
from trimesh.visual.material import PBRMaterial

from distill.export.files import clamp, complete
from distill.export.pictures import timed
from distill.files.atomic import replacing
from distill.meshes.bake import Paint, bake, bake_normals, flat, normals_of
from distill.meshes.gltf import EXTENSIONS
from distill.meshes.kept import extend, kept
from distill.meshes.surface import Part, Surface
from distill.meshes.tangents import tangents
from distill.meshes.unwrap import Mapped, apart, mapped_groups

#: Tangents have this name until they are written: trimesh keeps those without an underscore for itself.
_TANGENT = "_distill_tangent"


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
            [(part, m if normals_of(surface, part) is not None else apart(m)) for part, m in group]
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
    vertices, normals = np.asarray(mesh.vertices)[mapped.origin], normals_of(surface, part)
    normals = None if normals is None else normals[mapped.origin]
    attributes: dict[str, Any] = {}
    if material.normalTexture is not None:
        normals = flat(vertices) if normals is None else normals
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
