"""The colours that a mesh file gives its faces, as sRGB, and their roughness and metallic."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import trimesh
from trimesh.visual import TextureVisuals
from trimesh.visual.material import PBRMaterial, SimpleMaterial, empty_material

from distill.export.files import COLOURS
from distill.export.frame import srgb_to_linear
from distill.files.grey import eight_bits
from distill.meshes.surface import Floats, Look

#: Larger textures are shrunk to this side.
MOST_TEXELS = 4096
#: The colour of what has none.
PLAIN = 0.8


#: Textures that have been read, by the identity of their picture and their factor; pictures must outlive it.
Known = dict[tuple[int, bytes], torch.Tensor]


def look_of(mesh: trimesh.Trimesh) -> tuple[Look, bool]:
    """Return what a geometry looks like, as it was read, and whether its file says so."""
    look, said = colours_of(mesh, {})
    visual: Any = mesh.visual
    return (_finished(look, mesh, visual) if isinstance(visual, TextureVisuals) else look), said


def colours_of(mesh: trimesh.Trimesh, known: Known) -> tuple[Look, bool]:
    """Return a geometry's colours without its roughness and metallic, and whether its file says so.

    Args:
        mesh: as it was read; colours of vertices are linear where they are its attribute ``COLOURS``, as ``load_gltf`` gives them, else sRGB.
        known: textures that other geometries share with it; those that it is the first to have are added.
    """
    visual: Any = mesh.visual
    if isinstance(visual, TextureVisuals):
        return _of_material(mesh, visual, known)
    tint = _tint(mesh)
    if tint is not None:
        return Look(_tensor(to_srgb(tint))), True
    if visual is not None and visual.kind == "vertex":
        colours = np.asarray(visual.vertex_colors, np.float32)[:, :3][mesh.faces] / 255
    elif visual is not None and visual.kind == "face":
        colours = np.repeat(np.asarray(visual.face_colors, np.float32)[:, None, :3], 3, axis=1) / 255
    else:
        return _plain(mesh, np.full(3, PLAIN)), False
    return Look(_tensor(colours)), True


def _tint(mesh: trimesh.Trimesh) -> Floats | None:
    """The linear colours of the corners of a glTF mesh, shape ``[f, 3, 3]``; None where its vertices have none."""
    found: Any = mesh.vertex_attributes.get(COLOURS)
    if found is None or len(found) != len(mesh.vertices):
        return None
    return np.asarray(found[:, :3][mesh.faces], np.float32)


def _of_material(mesh: trimesh.Trimesh, visual: TextureVisuals, known: Known) -> tuple[Look, bool]:
    material: Any = visual.material
    if isinstance(material, PBRMaterial):
        return _of_gltf(mesh, visual, material, known)
    if is_filler(material):
        return _plain(mesh, np.full(3, PLAIN)), False
    # Of an MTL file, whose colours are as they are shown.
    if material.image is None or visual.uv is None:
        said = "kd" in material.kwargs
        return _plain(mesh, _factor(material.diffuse) if said else np.full(3, PLAIN)), said
    return _textured(mesh, visual.uv, _texture(material.image, np.ones(3, np.float32), known)), True


def _of_gltf(
    mesh: trimesh.Trimesh, visual: TextureVisuals, material: PBRMaterial, known: Known
) -> tuple[Look, bool]:
    """The base colour: the product of a factor, the vertices' colours and a texture, linear."""
    image, factor = material.baseColorTexture, _factor(material.baseColorFactor)
    tint = _tint(mesh)
    if image is None or visual.uv is None:
        said = material.baseColorFactor is not None or tint is not None
        linear = np.ones((len(mesh.faces), 3, 3), np.float32) if tint is None else tint
        return Look(_tensor(to_srgb(np.asarray(linear * factor, np.float32)))), said
    texture = _texture(image, factor, known)
    return _textured(mesh, visual.uv, texture, None if tint is None or (tint == 1).all() else tint), True


def _texture(image: Any, factor: Floats, known: Known) -> torch.Tensor:
    """A picture times a linear factor, sRGB, shape ``[height, width, 3]``."""
    key = (id(image), factor.tobytes())
    if key not in known:
        shown = _picture(image)
        if (factor < 1).any():
            shown = to_srgb(srgb_to_linear(shown) * factor)
        known[key] = _tensor(shown)
    return known[key]


def _finished(look: Look, mesh: trimesh.Trimesh, visual: TextureVisuals) -> Look:
    """The look with the roughness and metallic of its material, as glTF has them where they are left out."""
    material: Any = visual.material
    if is_filler(material):
        return look
    if not isinstance(material, PBRMaterial):
        return replace(look, finish=(float(of_mtl(material).roughnessFactor), 0.0))
    factors = (material.roughnessFactor, material.metallicFactor)
    rough, metal = (1.0 if factor is None else float(factor) for factor in factors)
    look = replace(look, finish=(rough, metal))
    if material.metallicRoughnessTexture is None or visual.uv is None:
        return look
    # Green and blue.
    texture, uv = _picture(material.metallicRoughnessTexture)[..., 1:], look.uv
    return replace(look, finishes=_tensor(texture), uv=_at(mesh, visual.uv) if uv is None else uv)


def of_mtl(material: SimpleMaterial) -> PBRMaterial:
    """The glTF material of one of an MTL file: no metal, its roughness by the exponent Ns, and a texture for Kd where it has one.

    With a dissolve ``d`` below 1 it is blended; with an opacity map ``map_d``, the alpha of Kd's texture, it is cut out. Kd is as it is
    shown, and glTF's factor linear.
    """
    made = material.to_pbr()
    made.name, made.metallicFactor, made.baseColorFactor = material.name, 0.0, None
    opacity = min(max(float(material.kwargs.get("d", ["1"])[-1]), 0.0), 1.0)
    if material.image is None:
        shown = _factor(material.kwargs.get("kd", material.diffuse))
        set_factor(made, [*srgb_to_linear(shown.clip(0, 1)).tolist(), opacity])
    elif opacity < 1:
        set_factor(made, [1.0, 1.0, 1.0, opacity])
    if opacity < 1:
        made.alphaMode = "BLEND"
    elif "map_d" in material.kwargs:
        made.alphaMode, made.alphaCutoff = "MASK", 0.5
    return made


def set_factor(material: PBRMaterial, factor: Sequence[float]) -> None:
    """Give a material the linear colour and the opacity that multiply its texture, which trimesh itself would round to bytes."""
    material._data["baseColorFactor"] = np.array(factor, np.float64)


def is_filler(material: Any) -> bool:
    """Tell whether a material is the grey one that trimesh gives texture coordinates without any."""
    if not isinstance(material, SimpleMaterial) or material.image is None or material.kwargs:
        return False
    filler = empty_material().image
    return bool(material.image.size == filler.size and material.image.tobytes() == filler.tobytes())


def _textured(mesh: trimesh.Trimesh, uv: Any, texture: torch.Tensor, tint: Floats | None = None) -> Look:
    blank = _plain(mesh, np.full(3, PLAIN)).corners
    return Look(blank, _at(mesh, uv), texture, None if tint is None else _tensor(tint))


def _at(mesh: trimesh.Trimesh, uv: Any) -> torch.Tensor:
    return _tensor(np.nan_to_num(np.asarray(uv, np.float32))[mesh.faces])


def _plain(mesh: trimesh.Trimesh, colour: Floats) -> Look:
    return Look(_tensor(colour).expand(len(mesh.faces), 3, 3))


def _factor(colour: Any) -> Floats:
    if colour is None:
        return np.ones(3, np.float32)
    found = np.asarray(colour)[:3]  # bytes or shares
    return np.asarray(found / 255 if found.dtype.kind in "ui" else found, np.float32)


def _picture(image: Any) -> Floats:
    shown = eight_bits(image).convert("RGB")
    if max(shown.size) > MOST_TEXELS:
        shown.thumbnail((MOST_TEXELS, MOST_TEXELS))
    return np.asarray(np.asarray(shown) / 255, np.float32)


def _tensor(values: Any) -> torch.Tensor:
    return torch.from_numpy(np.array(values, np.float32))


def to_srgb(colour: Floats) -> Floats:
    """Encode linear values in [0, 1] as sRGB (IEC 61966-2-1)."""
    return np.where(
        colour <= 0.0031308, colour * 12.92, 1.055 * np.maximum(colour, 1e-9) ** (1 / 2.4) - 0.055
    )
