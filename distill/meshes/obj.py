"""OBJ and STL files as trimesh reads them, and PLY, with a word on textures that it leaves out."""

from __future__ import annotations

import logging
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import trimesh
from trimesh.visual import TextureVisuals

from distill.meshes.mtl import NAME, Library, library_of, named_as, plain_obj, shares, text_in
from distill.meshes.ply import load_ply
from distill.meshes.polygons import counted_from_the_start, obj_in_triangles
from distill.meshes.surface import Unfit

log = logging.getLogger(__name__)

#: Vertices that are so many times the mesh's size from its origin are moved: in glTF's 24 bits they would be rounded.
_FAR = 1000


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
    if path.suffix.lower() == ".obj":
        scene, library = _with_materials(path, keep, begin)
        named = {name: values["map_kd"] for name, values in library.materials.items() if "map_kd" in values}
    elif path.suffix.lower() == ".ply":
        scene, named = load_ply(path, begin), {}
    else:
        scene, named = trimesh.load_scene(path, process=False), {}
    _bring_near(scene)
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
            raise Unfit(
                f"{option} needs the texture {called} of {name} that cannot be read, in {path}; put it there, as PNG or JPEG, without "
                "options in the MTL file"
            )
    return scene


def _bring_near(scene: trimesh.Scene) -> None:
    """Move vertices that are far from their origin near it, such as those on a map, and the scene back by as much."""
    meshes = [one for one in scene.geometry.values() if isinstance(one, trimesh.Trimesh) and len(one.faces)]
    if not meshes or any(mesh.faces.max() >= len(mesh.vertices) for mesh in meshes):
        return  # which is an error later
    bounds = np.array([mesh.bounds for mesh in meshes])
    if not np.isfinite(bounds).all():
        return
    low, high = bounds[:, 0].min(0), bounds[:, 1].max(0)
    middle = ((low + high) / 2).astype(np.float32).astype(np.float64)  # as viewers read it
    if np.abs(middle).max() <= _FAR * (high - low).max():
        return
    for mesh in scene.geometry.values():
        mesh.apply_translation(-middle)
    scene.apply_transform(trimesh.transformations.translation_matrix(middle))


def _with_materials(path: Path, keep: frozenset[str], begin: bool) -> tuple[trimesh.Scene, Library]:
    """Read an OBJ with all of its MTL files."""
    text, named, used = plain_obj(text_in(path.read_bytes()))
    text = obj_in_triangles(counted_from_the_start(text))
    library = library_of(path, named)
    for name, meant in named_as(used, library.materials).items():
        bare = min(name, meant, key=len)
        text = text.replace(f"\nusemtl {name}\n", f"\nusemtl {bare}\n")
        used[used.index(name)] = bare
        library.materials[bare] = library.materials[meant]
    if begin or keep:
        text = shares(text)
    files: dict[str, bytes] = {name: file.read_bytes() for name, file in library.textures.items()}
    stream: Any = BytesIO(text.encode())
    stream.name = path.name  # of the part that has no other
    # With maintain_order, the corners of a vertex would share the texture coordinates that they do not share in the file.
    resolver: Any = {**files, NAME: library.text().encode()}
    scene = trimesh.load_scene(stream, file_type="obj", resolver=resolver, process=False, split_objects=True)
    without = [name for name in used if name not in library.materials]
    coloured = any(geometry.visual.kind == "vertex" for geometry in scene.geometry.values())
    if library.lost and (keep & {*without} or (begin and without and not coloured)):
        option = (
            f"mesh.keep={','.join(sorted(keep & {*without}))}"
            if keep & {*without}
            else "mesh.init_texture=true"
        )
        raise Unfit(
            f"{option} needs the material file {library.lost[0]}, which {path} names and which is not there; put it there, or leave the "
            "option out"
        )
    if begin and without and library.files and not coloured:
        log.warning(
            "%s uses the material %s, which %s does not have; its faces begin grey",
            path,
            without[0],
            library.files[0].name,
        )
    return scene, library


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
