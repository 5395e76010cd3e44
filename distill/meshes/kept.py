"""Parts that stay as they are: how they are written to a GLB, which knows no materials but glTF's own."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import trimesh
from PIL.JpegImagePlugin import get_sampling
from trimesh.visual import TextureVisuals
from trimesh.visual.material import PBRMaterial

from distill.export.files import COLOURS, MATT
from distill.export.frame import srgb_to_linear
from distill.meshes.look import PLAIN, is_filler, of_mtl, set_factor


def kept(mesh: trimesh.Trimesh, name: str, file: Path) -> trimesh.Trimesh:
    """A part that looks in a GLB as it does in its file.

    A glTF material stays, and so does the lack of one in a glTF file. One of an MTL file is translated; a part of another file that has none
    gets a rough one, where glTF's own would be bare metal, with its vertices' colours or the grey that pictures show.

    Args:
        mesh: as it was read.
        name: of the material, where the part has none.
        file: that it was read from.
    """
    visual: Any = mesh.visual
    own = visual.material if isinstance(visual, TextureVisuals) else None
    if isinstance(own, PBRMaterial) or (own is None and file.suffix.lower() in (".glb", ".gltf")):
        _spare(own)
        return mesh
    made = mesh.copy(include_cache=True)  # with the normals that the file has
    if own is not None and not is_filler(own):
        material = of_mtl(own)
        _spare(material)
        made.visual = TextureVisuals(uv=visual.uv, material=material)
        return made
    material = PBRMaterial(name=name, **MATT)
    if visual.kind == "vertex":
        shown = np.asarray(visual.vertex_colors[:, :3] / 255, np.float32)
        made.vertex_attributes[COLOURS] = srgb_to_linear(shown).astype(np.float32)
    else:
        grey = float(srgb_to_linear(np.array(PLAIN, np.float32)))
        set_factor(material, [grey, grey, grey, 1.0])
    made.visual = TextureVisuals(material=material)
    return made


def _spare(material: PBRMaterial | None) -> None:
    """Let a material's JPEG pictures be saved nearly as they are: trimesh asks for Pillow's usual quality of 75.

    Their own tables keep what has its colours in full; those of colours at half the size would be halved once more.
    """
    for image in () if material is None else material._data.values():
        if getattr(image, "format", None) == "JPEG":
            full = get_sampling(image) in (0, -1)  # 4:4:4, or grey
            options = {"quality": "keep"} if full else {"quality": 95, "subsampling": 0}
            image.save = partial(image.save, **options)


def extend(tree: dict[str, Any], extensions: Mapping[str, Mapping[str, Any]]) -> None:
    """Give materials of a glTF's JSON their extensions, by their names."""
    for material in tree.get("materials", []):
        if own := extensions.get(material.get("name")):
            material["extensions"] = dict(own)
            tree["extensionsUsed"] = sorted({*tree.get("extensionsUsed", ()), *own})
