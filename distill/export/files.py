"""Mesh files: GLB, OBJ and PLY. Each is complete or absent, never half written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import trimesh
from numpy.typing import NDArray
from PIL import Image
from trimesh.exchange.gltf import export_glb
from trimesh.exchange.ply import export_ply
from trimesh.visual import ColorVisuals, TextureVisuals
from trimesh.visual.material import PBRMaterial

from distill.export.mesh import Floats, Mesh
from distill.files.atomic import replacing

Up = Literal["y", "z"]


def save_mesh(mesh: Mesh, path: Path | str, *, up: Up = "y") -> None:
    """Write a mesh in the format that the path's suffix names: .glb, .obj or .ply.

    Args:
        mesh: in the internal frame.
        path: the file; its folder exists.
        up: "y" turns the front (+x) to +z and the top (+z) to +y, as glTF and most viewers want it;
            "z" keeps the internal frame.

    Raises:
        ValueError: an unknown suffix or ``up``.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in WRITERS:
        raise ValueError(f"Expected a mesh file ending in {', '.join(WRITERS)}, got {str(path)!r}.")
    WRITERS[suffix](mesh, Path(path), up=up)


def write_glb(mesh: Mesh, path: Path, *, up: Up = "y") -> None:
    """Write binary glTF 2.0: normals, texture or else vertex colours, and a rough, non-metallic material."""
    material = PBRMaterial(name="surface", metallicFactor=0.0, roughnessFactor=0.9)
    visual: TextureVisuals | ColorVisuals | None = None
    if mesh.texture is not None:
        material.baseColorTexture = Image.fromarray(mesh.texture)
        visual = TextureVisuals(uv=mesh.uv, material=material)
    elif mesh.colours is not None:
        # In glTF a texture's values are sRGB, the vertices' colours linear.
        visual = ColorVisuals(vertex_colors=_bytes(srgb_to_linear(mesh.colours)))
    scene = trimesh.Scene()
    scene.add_geometry(_as_trimesh(mesh, up, visual), node_name="object", geom_name="object")
    with replacing(path) as part:
        part.write_bytes(export_glb(scene, include_normals=True, tree_postprocessor=complete))


def write_obj(mesh: Mesh, path: Path, *, up: Up = "y") -> None:
    """Write Wavefront OBJ; with a texture, also an MTL and a PNG of the same name beside it.

    Without one, the vertices' sRGB colours follow their coordinates, which most readers understand.
    """
    vertices = turned(mesh.vertices, up)
    lines = ["# sRGB colours; " + ("y up, front towards +z" if up == "y" else "z up, front towards +x")]
    if mesh.texture is not None:
        # Kd multiplies the texture: at its usual default of 0.4 it would darken it.
        material = f"newmtl surface\nKa 0 0 0\nKd 1 1 1\nKs 0 0 0\nillum 1\nmap_Kd {path.stem}.png\n"
        with replacing(path.with_suffix(".png")) as part:
            Image.fromarray(mesh.texture).save(part)
        with replacing(path.with_suffix(".mtl")) as part:
            part.write_text(material)
        lines += [f"mtllib {path.stem}.mtl", "usemtl surface"]
    elif mesh.colours is not None:
        vertices = np.concatenate([vertices, mesh.colours], axis=1)
    lines += _rows("v", vertices)
    if mesh.uv is not None:
        lines += _rows("vt", mesh.uv)
    lines += _rows("vn", turned(mesh.normals, up))
    corner = "{0}/{0}/{0}" if mesh.uv is not None else "{0}//{0}"
    lines += ["f " + " ".join(corner.format(index) for index in face) for face in (mesh.faces + 1).tolist()]
    with replacing(path) as part:
        part.write_text("\n".join(lines) + "\n")


def write_ply(mesh: Mesh, path: Path, *, up: Up = "y") -> None:
    """Write binary PLY with normals and the vertices' colours, sRGB."""
    visual = None if mesh.colours is None else ColorVisuals(vertex_colors=_bytes(mesh.colours))
    content = export_ply(_as_trimesh(mesh, up, visual), vertex_normal=True)
    with replacing(path) as part:
        part.write_bytes(content)


#: The formats by suffix.
WRITERS: dict[str, Callable[..., None]] = {".glb": write_glb, ".obj": write_obj, ".ply": write_ply}


def turned(vectors: Floats, up: Up) -> Floats:
    """Turn from the internal frame: for "y", +x (front) to +z, +y to +x and +z (top) to +y."""
    if up not in ("y", "z"):
        raise ValueError(f"Expected up to be 'y' or 'z', got {up!r}.")
    return vectors[:, [1, 2, 0]] if up == "y" else vectors


def srgb_to_linear(colour: Floats) -> Floats:
    """Decode sRGB (IEC 61966-2-1), values in [0, 1]."""
    return np.where(colour <= 0.04045, colour / 12.92, ((colour + 0.055) / 1.055) ** 2.4)


def _as_trimesh(mesh: Mesh, up: Up, visual: TextureVisuals | ColorVisuals | None) -> trimesh.Trimesh:
    return trimesh.Trimesh(
        turned(mesh.vertices, up),
        mesh.faces,
        vertex_normals=turned(mesh.normals, up),
        visual=visual,
        process=False,
    )


def complete(tree: dict[str, Any]) -> None:
    """Say in glTF's JSON what each buffer is for (34962 vertices, 34963 indices) and who wrote it."""
    tree["asset"]["generator"] = "distill"
    for primitive in (p for mesh in tree["meshes"] for p in mesh["primitives"]):
        for accessor in primitive["attributes"].values():
            tree["bufferViews"][tree["accessors"][accessor]["bufferView"]]["target"] = 34962
        tree["bufferViews"][tree["accessors"][primitive["indices"]]["bufferView"]]["target"] = 34963


def _bytes(colours: Floats) -> NDArray[np.uint8]:
    return np.round(np.clip(colours, 0, 1) * 255).astype(np.uint8)


def _rows(keyword: str, values: Floats) -> list[str]:
    return [keyword + "".join(f" {value:.6g}" for value in row) for row in values.tolist()]
