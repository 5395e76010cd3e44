"""PLY files as trimesh reads them, with what it loses: colours of two bytes, colours under other names, and concave polygons."""

from __future__ import annotations

import re
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import trimesh
from PIL import Image
from trimesh.resolvers import FilePathResolver

from distill.meshes.polygons import Ints, concave, in_triangles
from distill.meshes.surface import Unfit

_COLOURS = ("red", "green", "blue")


def load_ply(path: Path, begin: bool) -> trimesh.Scene:
    """Read a PLY file, whose colours may be called ``diffuse_red`` and so on.

    Args:
        path: of the file.
        begin: its texture is needed, too.

    Raises:
        Unfit: the texture is needed and cannot be read.
        Exception: it is broken, in whatever way.
    """
    head, end, rest = path.read_bytes().partition(b"end_header")
    if b" diffuse_red" in head and b" red" not in head:
        head = re.sub(rb" diffuse_(red|green|blue)\b", rb" \1", head)
        stream: Any = BytesIO(head + end + rest)
        resolver = FilePathResolver(str(path))
        scene = trimesh.load_scene(stream, file_type="ply", resolver=resolver, process=False)
    else:
        scene = trimesh.load_scene(path, process=False)
    meshes: list[Any] = [mesh for mesh in scene.geometry.values() if isinstance(mesh, trimesh.Trimesh)]
    # Without texture coordinates, vertices or faces may have the colours.
    if begin and all(mesh.visual.kind in (None, "texture") for mesh in meshes):
        _check_texture(path, head)
    for mesh in meshes:
        raw = mesh.metadata.get("_ply_raw", {})  # the file's own values
        _restore_colours(mesh, raw.get("vertex", {}))
        _restore_polygons(mesh, raw.get("face", {}))
    return scene


def _check_texture(path: Path, head: bytes) -> None:
    """Refuse a picture that the file's header names, for vertices or faces with texture coordinates, and that cannot be read."""
    if not re.search(rb"\nproperty [^\n]*\b(texture_u|u|s|texcoord)\s", head + b"\n"):
        return
    found = re.search(rb"(?i)\ncomment +texturefile +([^\r\n]+)", head)
    name = found[1].decode(errors="replace").strip() if found else ""
    try:
        if name:
            with Image.open(path.parent / name) as opened:
                opened.load()
    except (OSError, Image.DecompressionBombError):
        raise Unfit(
            f"mesh.init_texture=true needs the texture {name} that cannot be read, in {path}; put it there, as PNG or JPEG, or remove "
            "that line from the file for plain grey"
        ) from None


def _restore_colours(mesh: Any, vertex: dict[str, Any]) -> None:
    """Scale colours of two bytes, of which trimesh takes the lower one."""
    properties = vertex.get("properties", {})
    kinds = {str(properties.get(name, ""))[1:] for name in _COLOURS}  # such as <u2
    if kinds == {"u2"} and mesh.visual.kind == "vertex":
        colours = np.column_stack([vertex["data"][name] for name in _COLOURS])
        mesh.visual.vertex_colors = np.round(colours / 257).astype(np.uint8)


def _restore_polygons(mesh: Any, face: dict[str, Any]) -> None:
    """Cut the faces anew where one is a concave polygon; not with texture coordinates or colours of faces, which were cut with them."""
    groups = _polygons(face.get("data"))
    places = np.asarray(mesh.vertices, np.float64)
    bad = {size: concave(places, group) for size, group in groups.items() if size > 3}
    if mesh.visual.kind in ("texture", "face") or not any(len(rows) for rows in bad.values()):
        return
    made = list[Ints]()
    for size, group in groups.items():
        rows = bad.get(size, np.zeros(0, np.int64))
        fans = np.delete(group, rows, axis=0)
        made += [fans[:, [0, i, i + 1]] for i in range(1, size - 1)]
        made += [polygon[in_triangles(places[polygon])] for polygon in group[rows]]
    normals = mesh._cache.cache.get("vertex_normals")  # which new faces forget
    mesh.faces = np.concatenate(made)
    if normals is not None:
        mesh.vertex_normals = normals


def _polygons(data: Any) -> dict[int, Ints]:
    """The faces of a PLY by how many corners they have, shapes ``[p, n]``, from what trimesh keeps of them."""
    fields = data if isinstance(data, dict) else getattr(getattr(data, "dtype", None), "names", None) or ()
    name = next((name for name in ("vertex_index", "vertex_indices") if name in fields), None)
    if name is None:
        return {}
    rows = data[name] if isinstance(data, dict) else data[name]["f1"]
    if rows.dtype != object:
        rows = np.atleast_2d(rows)
        return {rows.shape[1]: rows.astype(np.int64)}
    sizes = np.array([len(row) for row in rows])
    return {int(size): np.stack(rows[sizes == size]).astype(np.int64) for size in np.unique(sizes)}
