"""OBJ, PLY and STL files as trimesh reads them, with a word on textures that it leaves out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import trimesh
from trimesh.visual import TextureVisuals

from distill.meshes.surface import Unfit


def load_obj(path: Path, keep: frozenset[str], begin: bool) -> trimesh.Scene:
    """Read an OBJ file with its MTL file, or PLY or STL.

    Args:
        path: of the file.
        keep: names of materials that are written as they were read.
        begin: the textures of the other ones are needed, too.

    Raises:
        Unfit: a texture that is needed cannot be read.
        Exception: it is broken, in whatever way.
    """
    # With maintain_order, the corners of a vertex would share the texture coordinates that they do not share in the file.
    options: dict[str, Any] = {"split_objects": True} if path.suffix.lower() == ".obj" else {}
    scene = trimesh.load_scene(path, process=False, **options)
    named = _textures(path) if path.suffix.lower() == ".obj" else {}
    for geometry in scene.geometry.values():
        if not isinstance(geometry.visual, TextureVisuals):
            continue
        material: Any = geometry.visual.material
        name = material.name
        if name in keep:
            _check_opacity(path, material)
        if (name in keep or begin) and material.image is not None and geometry.visual.uv is None:
            option = f"mesh.keep={name}" if name in keep else "mesh.init_texture=true"
            raise Unfit(
                f"{option} needs texture coordinates on all faces of {name}, and some have none, in {path}; unwrap them, or leave the "
                "option out"
            )
        if _whole(material) and (material.image is not None or name not in named):
            continue
        material.image = None
        if name in keep or begin:
            option = f"mesh.keep={name}" if name in keep else "mesh.init_texture=true"
            called = named.get(name, "beside it")
            remedy = "put it there, as PNG or JPEG, without options in the MTL file"
            remedy = "write / for \\ in the MTL file" if "\\" in called else remedy
            raise Unfit(
                f"{option} needs the texture {called} of {name} that cannot be read, in {path}; {remedy}"
            )
    return scene


def _check_opacity(path: Path, material: Any) -> None:
    """Refuse to keep an opacity map that is another picture than the colour's, whose alpha alone is written."""
    opacity = " ".join(getattr(material, "kwargs", {}).get("map_d", ()))
    image = getattr(material, "image", None)
    colour = image.info.get("file_path") if image is not None else None
    if opacity and opacity != colour:
        raise Unfit(
            f"mesh.keep={material.name} has an opacity map {opacity} beside {colour or 'no texture'}, in {path}; put it into "
            "the alpha of the texture, and name that as map_d, or leave map_d out"
        )


def _whole(material: Any) -> bool:
    try:
        if material.image is not None:
            material.image.load()
    except OSError:
        return False
    return True


def _textures(path: Path) -> dict[str, str]:
    """What an MTL file calls the textures of its materials, by their names."""
    with path.open(encoding="utf-8", errors="replace") as lines:
        library = next((line[6:].strip() for line in lines if line.startswith("mtllib")), "")
    found, name = dict[str, str](), ""
    if library and (path.parent / library).is_file():
        for line in (path.parent / library).read_text("utf-8", errors="replace").splitlines():
            key, value = (*line.split(None, 1), "", "")[:2]
            if key.lower() == "newmtl":
                name = " ".join(value.split())
            elif key.lower() == "map_kd":
                found[name] = value.strip()
    return found
