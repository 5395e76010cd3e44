"""Mesh files: GLB, OBJ, PLY, STL and USDZ. Each is complete or absent, never half written."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import trimesh
from numpy.typing import NDArray
from PIL import Image
from trimesh.exchange.gltf import export_glb
from trimesh.exchange.ply import export_ply
from trimesh.visual import ColorVisuals, TextureVisuals
from trimesh.visual.material import PBRMaterial

from distill.export.choices import USUAL, check_files
from distill.export.frame import SAID, Pivot, Up, place_of, srgb_to_linear, turned, welded
from distill.export.lods import RATIO, levels
from distill.export.mesh import Floats, Mesh
from distill.export.usd import write_usdz
from distill.files.atomic import replacing
from distill.files.paths import user_path


def save_meshes(
    mesh: Mesh,
    folder: Path | str,
    *,
    formats: Sequence[str] | None = None,
    name: str = "mesh",
    pivot: Pivot = "scene",
    size_m: float | None = None,
    lods: int = 0,
    lod_as: str = "files",
    up: Up = "y",
) -> dict[str, Any]:
    """Write a mesh in several formats, with levels of detail; what every export of a scene goes through.

    Args:
        mesh: in the internal frame, with texture and vertex colours as far as the formats are to have them.
        folder: created if need be; files of the same names are replaced.
        formats: of glb, obj, ply, stl and usdz; None for the first three.
        name: of the files, without ending, and of the object and its material in them.
        pivot: where the origin is: ``scene``, ``centre`` or ``ground``, see ``distill.export.frame.place_of``.
        size_m: the largest extent in metres; None leaves one scene unit one metre.
        lods: simplified meshes besides the full one, each of half the faces of the one before.
        lod_as: where they go: ``files`` (NAME_lod1.glb and so on, of each format), ``msft`` (into the GLB, as MSFT_lod), or ``both``.
        up: "y" or "z", the files' upward axis.

    Returns:
        ``meshes``, the names of the files that hold the full mesh and of its levels; with levels also ``lods``, the ``faces`` and
        ``vertices`` of each.

    Raises:
        ValueError: the mesh is empty, an option is out of range, a package is missing, or an OBJ's MTL or PNG would replace what is
            not its own.
    """
    check_files(formats, name, lods, lod_as)
    return write_meshes(
        mesh, user_path(folder), formats=formats, name=name, pivot=pivot, size_m=size_m, lods=lods, lod_as=lod_as, up=up
    )  # fmt: skip


def write_meshes(
    mesh: Mesh,
    folder: Path,
    *,
    formats: Sequence[str] | None,
    name: str,
    pivot: Pivot,
    size_m: float | None,
    lods: int,
    lod_as: str,
    up: Up,
) -> dict[str, Any]:
    """Write a mesh as ``save_meshes`` does, with options that are checked and any name that the file system takes.

    Formats may be in capitals, as which the files' endings are then written.
    """
    endings = list(dict.fromkeys(USUAL if formats is None else formats))
    check_filled(mesh)
    place = place_of(mesh, pivot=pivot, size_m=size_m)
    for ending in endings:
        if mesh.texture is not None and ending.lower() == "obj":
            check_beside(folder / f"{name}.{ending}")
    folder.mkdir(parents=True, exist_ok=True)
    # Simplified in the scene's units, so that a size does not change which edges collapse.
    mesh, *lower = (place(level) for level in (mesh, *levels(mesh, lods)))
    made: list[str] = []
    for ending in endings:
        inside = ending.lower() == "glb" and lod_as != "files"
        path = folder / f"{name}.{ending}"
        if inside:
            write_glb(mesh, path, up=up, lods=lower)
        else:
            WRITERS[path.suffix.lower()](mesh, path, up=up)
        made.append(path.name)
        for number, level in enumerate(lower if lod_as != "msft" else (), start=1):
            path = folder / f"{name}_lod{number}.{ending}"
            WRITERS[path.suffix.lower()](level, path, up=up, of=name)
            made.append(path.name)
    sizes = [{"faces": len(level.faces), "vertices": len(level.vertices)} for level in lower]
    return {"meshes": made, **({"lods": sizes} if lods else {})}


def names_of(options: Mapping[str, Any]) -> list[str]:
    """The files that ``save_meshes`` may write with these options, pictures of OBJ files among them."""
    name, formats = options["name"], USUAL if options["formats"] is None else options["formats"]
    count = options["lods"] if options["lod_as"] != "msft" else 0
    stems = [name, *(f"{name}_lod{number + 1}" for number in range(count))]
    files = [f"{stem}.{ending}" for stem in stems for ending in dict.fromkeys(formats)]
    return [*files, f"{name}.mtl", f"{name}.png"] if "obj" in formats else files


def check_filled(mesh: Mesh) -> None:
    """Refuse a mesh without faces, which some formats cannot hold and no viewer shows.

    Raises:
        ValueError: it has none.
    """
    if not len(mesh.faces):
        raise ValueError(
            "expected a mesh with faces to save, got none (an empty scene); train longer, or choose a lower iso"
        )


def save_mesh(mesh: Mesh, path: Path | str, *, up: Up = "y") -> None:
    """Write a mesh in the format that the path's suffix names: .glb, .obj, .ply, .stl or .usdz.

    Args:
        mesh: in the internal frame.
        path: the file; its folder exists. Its object and its material are named as it is.
        up: "y" turns the front (+x) to +z and the top (+z) to +y, as glTF and most viewers want it;
            "z" keeps the internal frame.

    Raises:
        ValueError: an unknown suffix or ``up``, an empty mesh, or an OBJ's MTL or PNG would replace what is not its own.
    """
    path = user_path(path)
    suffix = path.suffix.lower()
    if suffix not in WRITERS:
        raise ValueError(f"Expected a mesh file ending in {', '.join(WRITERS)}, got {str(path)!r}.")
    check_filled(mesh)
    if suffix == ".obj" and mesh.texture is not None:
        check_beside(path)
    WRITERS[suffix](mesh, path, up=up)


#: Linear colours of vertices have this name until they are written: as bytes, in which trimesh writes its own, dark ones are lost.
COLOURS = "_distill_colours"
#: A rough material that is no metal.
MATT = {"metallicFactor": 0.0, "roughnessFactor": 0.9}


def write_glb(
    mesh: Mesh, path: Path, *, up: Up = "y", of: str | None = None, lods: Sequence[Mesh] = ()
) -> None:
    """Write binary glTF 2.0: normals, texture or else vertex colours, and a rough, non-metallic material.

    Args:
        mesh: in the internal frame.
        path: the file.
        up: as in ``save_mesh``.
        of: name of the full mesh, where this is a level of one and shares its material.
        lods: simplified meshes with the same texture, finest first, which are added as MSFT_lod.
    """
    material = PBRMaterial(name=of or path.stem, **MATT)
    if mesh.texture is not None:
        material.baseColorTexture = Image.fromarray(mesh.texture)
    scene = trimesh.Scene()
    names = [path.stem, *(f"{path.stem}_lod{number + 1}" for number in range(len(lods)))]
    for level, name in zip((mesh, *lods), names, strict=True):
        visual = None if mesh.texture is None else TextureVisuals(uv=level.uv, material=material)
        shape = _as_trimesh(level, up, visual)
        if mesh.texture is None and level.colours is not None:
            # In glTF a texture's values are sRGB, the vertices' colours linear.
            linear = srgb_to_linear(np.clip(level.colours, 0, 1))
            shape.vertex_attributes[COLOURS] = linear.astype(np.float32)
        scene.add_geometry(shape, node_name=name, geom_name=name)

    def finished(tree: dict[str, Any]) -> None:
        complete(tree)
        clamp(tree, {material.name})
        for image in tree.get("images", []):  # else Blender calls it Image_0, in every file
            image["name"] = material.name
        if mesh.texture is None:
            # trimesh writes a material only beside texture coordinates, and glTF's own is bare metal.
            tree["materials"] = [{"name": of or path.stem, "pbrMetallicRoughness": MATT}]
            for each in tree["meshes"]:
                each["primitives"][0]["material"] = 0
        if lods:
            chain(tree, names)

    with replacing(path) as part:
        part.write_bytes(export_glb(scene, include_normals=True, tree_postprocessor=finished))


def chain(tree: dict[str, Any], names: Sequence[str]) -> None:
    """Make nodes of a glTF's JSON the levels of the first one, as MSFT_lod says: only that one stays in the scene.

    A level is for as many pixels as keep the faces about as large on the screen as the full mesh's are where it covers half of
    it; the last one is for all that are fewer.
    """
    found = {node.get("name"): index for index, node in enumerate(tree["nodes"])}
    first, *others = (found[name] for name in names)
    for parent, key in [
        *((node, "children") for node in tree["nodes"]),
        *((one, "nodes") for one in tree["scenes"]),
    ]:
        if key in parent:
            parent[key] = [child for child in parent[key] if child not in others]
            if not parent[key]:  # of the node "world", which trimesh makes its root: glTF has no empty lists
                del parent[key]
    tree["nodes"][first]["extensions"] = {"MSFT_lod": {"ids": others}}
    coverage = [0.5 * RATIO**level for level in range(len(others))]
    tree["nodes"][first]["extras"] = {"MSFT_screencoverage": [*coverage, 0.0]}
    tree["extensionsUsed"] = [*tree.get("extensionsUsed", ()), "MSFT_lod"]


def write_obj(mesh: Mesh, path: Path, *, up: Up = "y", of: str | None = None) -> None:
    """Write Wavefront OBJ; with a texture, also an MTL and a PNG of the same name beside it, or those of the mesh ``of``.

    Without one, the vertices' sRGB colours follow their coordinates, which most readers understand.
    """
    vertices = turned(mesh.vertices, up)
    lines = [f"# OBJ has no units: 1 is 1 metre, as in glTF; {SAID[up]}; sRGB colours"]
    # A blank would end a name.
    lines.append(f"o {'_'.join(path.stem.split())}")
    if mesh.texture is not None:
        material = "_".join((of or path.stem).split())
        lines += [f"mtllib {of or path.stem}.mtl", f"usemtl {material}"]
    elif mesh.colours is not None:
        vertices = np.concatenate([vertices, mesh.colours], axis=1)
    lines += _rows("v", vertices)
    if mesh.uv is not None:
        lines += _rows("vt", mesh.uv)
    lines += _rows("vn", turned(mesh.normals, up))
    corner = "{0}/{0}/{0}" if mesh.uv is not None else "{0}//{0}"
    lines += ["f " + " ".join(corner.format(index) for index in face) for face in (mesh.faces + 1).tolist()]
    with replacing(path) as part:
        part.write_text("\n".join(lines) + "\n", "utf-8")
    if mesh.texture is not None and of is None:
        _write_material(mesh.texture, path, "_".join(path.stem.split()))


def _write_material(texture: NDArray[np.uint8], path: Path, name: str) -> None:
    """Write the MTL and the PNG of an OBJ, each after the file that names it, by which ``check_beside`` knows whose they are."""
    with replacing(path.with_suffix(".mtl")) as part:
        # Kd multiplies the texture: at its usual default of 0.4 it would darken it.
        text = f"newmtl {name}\nKa 0 0 0\nKd 1 1 1\nKs 0 0 0\nillum 1\nmap_Kd {path.stem}.png\n"
        part.write_text(text, "utf-8")
    with replacing(path.with_suffix(".png")) as part:
        Image.fromarray(texture).save(part)


def check_beside(path: Path) -> None:
    """Check that the MTL and the PNG of an OBJ replace none but its own.

    Args:
        path: of the OBJ, which may be there or not.

    Raises:
        ValueError: one is there, and the OBJ, or the MTL, does not name it.
    """
    material = path.with_suffix(".mtl")
    for owner, keyword, file in (
        (path, "mtllib", material),
        (material, "map_kd", path.with_suffix(".png")),
    ):
        if file.exists() and not _names(owner, keyword, file.name):
            raise ValueError(
                f"{file} is there and belongs to no earlier {path.name}, which would replace it; choose another name, or move it away"
            )


def _names(owner: Path, keyword: str, name: str) -> bool:
    """Whether a line of an OBJ or MTL names a file."""
    if not owner.is_file():
        return False
    with owner.open(encoding="utf-8", errors="replace") as lines:
        words = (line.strip().split(maxsplit=1) for line in lines)
        return any(len(word) == 2 and word[0].lower() == keyword and word[1] == name for word in words)


def write_ply(mesh: Mesh, path: Path, *, up: Up = "y", of: str | None = None) -> None:
    """Write binary PLY with normals and the vertices' colours, sRGB; vertices that seams had doubled are one again."""
    mesh = welded(mesh)
    visual = None if mesh.colours is None else ColorVisuals(vertex_colors=_bytes(mesh.colours))
    content = export_ply(_as_trimesh(mesh, up, visual), vertex_normal=True)
    comment = f"comment distill: 1 is 1 metre; {SAID[up]}; sRGB colours\nelement vertex"
    content = content.replace(b"element vertex", comment.encode(), 1)
    with replacing(path) as part:
        part.write_bytes(content)


def write_stl(mesh: Mesh, path: Path, *, up: Up = "y", of: str | None = None) -> None:
    """Write binary STL: the faces and their flat normals, in metres; the format has no colours, names or units."""
    corners = turned(mesh.vertices, up).astype(np.float64)[
        mesh.faces
    ]  # of small faces, areas are far below 1
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    rows = np.zeros(len(corners), [("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("attribute", "<u2")])
    rows["normal"] = normals / np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-30)
    rows["corners"] = corners
    # Readers take a file that begins with "solid" for text.
    header = f"binary STL of distill: 1 is 1 metre; {SAID[up]}".encode().ljust(80)
    with replacing(path) as part:
        part.write_bytes(header + np.uint32(len(corners)).astype("<u4").tobytes() + rows.tobytes())


#: The formats by suffix.
WRITERS: dict[str, Callable[..., None]] = {
    ".glb": write_glb,
    ".obj": write_obj,
    ".ply": write_ply,
    ".stl": write_stl,
    ".usdz": write_usdz,
}


def _as_trimesh(mesh: Mesh, up: Up, visual: TextureVisuals | ColorVisuals | None) -> trimesh.Trimesh:
    return trimesh.Trimesh(
        turned(mesh.vertices, up),
        mesh.faces,
        vertex_normals=turned(mesh.normals, up),
        visual=visual,
        process=False,
    )


def complete(tree: dict[str, Any]) -> None:
    """Name ``COLOURS`` in glTF's JSON as glTF does, and say what each buffer is for (34962 vertices, 34963 indices) and who wrote it."""
    tree["asset"]["generator"] = "distill"
    for primitive in (p for mesh in tree["meshes"] for p in mesh["primitives"]):
        if COLOURS in primitive["attributes"]:
            primitive["attributes"]["COLOR_0"] = primitive["attributes"].pop(COLOURS)
        for accessor in primitive["attributes"].values():
            tree["bufferViews"][tree["accessors"][accessor]["bufferView"]]["target"] = 34962
        tree["bufferViews"][tree["accessors"][primitive["indices"]]["bufferView"]]["target"] = 34963


def clamp(tree: dict[str, Any], names: Collection[str]) -> None:
    """Let the textures of the materials of these names end at their edges: glTF repeats them, and mixes the opposite edge's colours in."""
    for material in (one for one in tree.get("materials", []) if one.get("name") in names):
        for info in ({**material, **material.get("pbrMetallicRoughness", {})}).values():
            if isinstance(info, dict) and "index" in info:
                tree["samplers"] = [{"wrapS": 33071, "wrapT": 33071}]  # CLAMP_TO_EDGE
                tree["textures"][info["index"]]["sampler"] = 0


def _bytes(colours: Floats) -> NDArray[np.uint8]:
    return np.round(np.clip(colours, 0, 1) * 255).astype(np.uint8)


def _rows(keyword: str, values: Floats) -> list[str]:
    return [keyword + "".join(f" {value:.6g}" for value in row) for row in values.tolist()]
