"""Mesh files of the user's own: read whole, checked, turned and placed."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import trimesh

from distill.files.errors import first_line, no_file
from distill.files.paths import user_path
from distill.meshes.gltf import load_gltf
from distill.meshes.look import is_filler, look_of
from distill.meshes.obj import load_obj
from distill.meshes.surface import Floats, Part, Surface, Unfit
from distill.wording import counted

log = logging.getLogger(__name__)

#: The farthest point of a placed mesh is so far from the origin, as the embedded world's objects are.
RADIUS = 0.95
#: Most triangles, placed ones counted each time.
MOST_FACES = 2_000_000
#: Up and front by a file's suffix, where they are not given: glTF says so, OBJ is mostly written so; PLY and STL come from
#: scanners and CAD programs, whose front view looks along +y.
USUAL = {
    ".glb": ("+y", "+z"),
    ".gltf": ("+y", "+z"),
    ".obj": ("+y", "+z"),
    ".ply": ("+z", "-y"),
    ".stl": ("+z", "-y"),
}
#: What our own OBJ, PLY and STL say of their axes near their beginning, and what it means; see ``distill.export.frame.SAID``.
_OWN = re.compile(rb"1 is 1 metre[^;\n]*; ([yz]) up")
_OWN_AXES = {b"y": ("+y", "+z"), b"z": ("+z", "+x")}


def read_surface(options: Mapping[str, Any]) -> Surface:
    """Read a mesh, turn its front to +x and its top to +z, and place it as scenes are placed.

    Args:
        options: the group ``mesh``: ``file``, ``up`` and ``front`` (``auto`` or an axis of the file), ``keep`` and
            ``init_texture``.

    Raises:
        ValueError: the file is not there, is no mesh or a broken one, or the options do not fit it; in one line.
    """
    path = user_path(options["file"])
    keep = frozenset(options["keep"])
    scene = _load(path, keep, bool(options["init_texture"]))
    turn, said = rotation(path, options["up"], options["front"])
    surface = surface_of(path, scene, turn, keep)
    faces, parts = counted(len(surface.faces), "face"), counted(len(surface.parts), "part")
    log.info("%s: %s in %s; %s", path.name, faces, parts, said)
    return surface


def rotation(path: Path, up: str, front: str) -> tuple[Floats, str]:
    """Return the rotation of a file's axes to the scene's, shape ``[3, 3]``, and what it was chosen by, in words.

    Raises:
        ValueError: up and front are not at right angles.
    """
    own = _own_axes(path)
    usual = own or USUAL[path.suffix.lower()]
    guessed = [name for name, value in (("mesh.up", up), ("mesh.front", front)) if value == "auto"]
    up = usual[0] if up == "auto" else up
    if front == "auto":
        front = next(axis for axis in (usual[1], "-y", "+x", "+z") if axis[1] != up[1])
    if up[1] == front[1]:
        raise ValueError(
            f"mesh.up and mesh.front must be different axes, got {up} and {front}; give both, such as mesh.up=+y mesh.front=+z"
        )
    top, ahead = _axis(up), _axis(front)
    source = "as the file of distill says" if own else f"guessed for {path.suffix.lower()}"
    why = f" ({source}: {' and '.join(f'{name}=' for name in guessed)} say otherwise)" if guessed else ""
    return np.stack([ahead, np.cross(top, ahead), top]), f"up {up}, front {front}{why}"


def _own_axes(path: Path) -> tuple[str, str] | None:
    """Up and front of a file that this library wrote, where it says them."""
    if path.suffix.lower() not in (".obj", ".ply", ".stl") or not path.is_file():
        return None
    with path.open("rb") as file:
        found = _OWN.search(file.read(400))
    return _OWN_AXES[found[1]] if found else None


def _axis(name: str) -> Floats:
    return np.eye(3, dtype=np.float32)["xyz".index(name[1])] * (-1 if name[0] == "-" else 1)


def _load(path: Path, keep: frozenset[str], begin: bool) -> trimesh.Scene:
    """A file as trimesh reads it, faces in their order."""
    expected = f"mesh.file must be a mesh in {', '.join(USUAL)}"
    if path.suffix.lower() not in USUAL:
        raise ValueError(f"{expected}, got {path.name}; convert it, for example with Blender")
    if not path.is_file():
        raise ValueError(f"{expected}, and {path} {no_file(path)}; check the path")
    if not path.stat().st_size:
        raise ValueError(f"{expected}, and {path} is empty; export it again")
    try:
        load = load_gltf if path.suffix.lower() in (".glb", ".gltf") else load_obj
        scene = load(path, keep, begin)
    except Unfit:
        raise
    except Exception as error:  # whatever a reader fails with on a broken file
        raise ValueError(
            f"{expected}, and {path} cannot be read ({first_line(error)[:120]}); export it again, as GLB without compression"
        ) from error
    if not any(isinstance(one, trimesh.Trimesh) and len(one.faces) for one in scene.geometry.values()):
        raise ValueError(f"{expected}, and {path} has no faces; export it again as triangles")
    return scene


def surface_of(path: Path, scene: trimesh.Scene, turn: Floats, keep: frozenset[str]) -> Surface:
    """Flatten a scene's graph: what is placed several times is first itself, then repeats.

    Args:
        path: of its file, for errors.
        scene: as it was read.
        turn: rotation to the scene's frame, shape ``[3, 3]``.
        keep: names of materials that stay as they are.

    Raises:
        ValueError: it is broken, too large, or has no such materials.
    """
    pieces, parts, index, left = _Pieces(), list[Part](), dict[str, int](), list[str]()
    nodes = [scene.graph[node] for node in scene.graph.nodes_geometry]
    placed = [(matrix, str(name)) for matrix, name in nodes]
    whole = [(matrix, name) for matrix, name in placed if isinstance(scene.geometry[name], trimesh.Trimesh)]
    count = sum(len(scene.geometry[name].faces) for _, name in whole)
    if not whole:
        raise ValueError(f"{path} has meshes, and no scene places one of them; export it again")
    if count > MOST_FACES:
        raise ValueError(
            f"{path} has {count:,} faces, and mesh= takes at most {MOST_FACES:,}; decimate it first"
        )
    for matrix, name in whole:
        mesh = scene.geometry[name]
        if not len(mesh.faces):
            continue
        _check(path, name, mesh, np.asarray(matrix))
        if _flat(mesh):
            left.append(name)
            continue
        if name not in index:
            index[name] = len(parts)
            parts.append(_part(name, mesh, pieces, keep))
        pieces.add(mesh, np.asarray(matrix), turn, index[name], parts[index[name]].faces[0])
    if not parts:
        raise ValueError(f"{path} has faces without area; export it again")
    if left:
        log.info(
            "%s: nothing can be seen of %s, whose faces have no area", path.name, ", ".join(sorted({*left}))
        )
    _check_kept(path, parts, keep)
    vertices = pieces.joined("vertices")
    used = vertices[np.unique(pieces.joined("faces"))]
    low, high = used.min(0), used.max(0)
    reach = np.linalg.norm(used - (low + high) / 2, axis=1).max()
    if not reach > 0:
        raise ValueError(
            f"{path} has faces without area: all of its vertices are in one place; export it again"
        )
    surface = Surface(
        path,
        scene,
        ((vertices - (low + high) / 2) * (RADIUS / reach)).astype(np.float32),
        pieces.joined("faces").astype(np.int64),
        pieces.joined("normals").astype(np.float32),
        pieces.joined("part"),
        pieces.joined("origin"),
        tuple(parts),
    )
    if not surface.areas().sum() > 1e-9:
        raise ValueError(f"{path} has faces without area; export it again")
    return surface


class _Pieces:
    """What has been placed so far."""

    def __init__(self) -> None:
        self.lists: dict[str, list[Any]] = {
            name: [] for name in ("vertices", "faces", "normals", "part", "origin")
        }
        self.vertices = self.faces = 0

    def joined(self, name: str) -> Any:
        return np.concatenate(self.lists[name])

    def add(self, mesh: trimesh.Trimesh, matrix: Floats, turn: Floats, part: int, first: int) -> None:
        """Add one placement of a geometry, whose first placement's faces begin at ``first``."""
        vertices, faces = np.asarray(mesh.vertices, np.float64), np.asarray(mesh.faces, np.int64)
        self.lists["vertices"].append((vertices @ matrix[:3, :3].T + matrix[:3, 3]) @ turn.T)
        self.lists["faces"].append(faces + self.vertices)
        self.lists["normals"].append(_normals(mesh, matrix, turn)[faces])
        self.lists["part"].append(np.full(len(faces), part))
        self.lists["origin"].append(first + np.arange(len(faces)))
        self.vertices += len(vertices)
        self.faces += len(faces)


def given_normals(mesh: trimesh.Trimesh) -> Floats | None:
    """The unit normals of vertices that a file has, shape ``[v, 3]``, 0 where one is broken; None where it has none."""
    found = mesh._cache.cache.get("vertex_normals")  # asking for them would make them
    if found is None or len(found) != len(mesh.vertices):
        return None
    length = np.linalg.norm(found, axis=1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        unit = np.where((length > 1e-6) & np.isfinite(length), found / length, 0)
    return np.asarray(unit, np.float32)


def _normals(mesh: trimesh.Trimesh, matrix: Floats, turn: Floats) -> Floats:
    found = given_normals(mesh)
    if found is None:
        return np.zeros((len(mesh.vertices), 3), np.float32)
    turned = found @ np.linalg.inv(matrix[:3, :3]) @ turn.T
    return np.asarray(turned / np.maximum(np.linalg.norm(turned, axis=1, keepdims=True), 1e-12))


def _check(path: Path, name: str, mesh: trimesh.Trimesh, matrix: Floats) -> None:
    vertices, faces = mesh.vertices, mesh.faces
    if not (np.isfinite(vertices).all() and np.isfinite(matrix).all()):
        raise ValueError(f"{path} has vertices that are nan or infinite, in {name}; export it again")
    if faces.min() < 0 or faces.max() >= len(vertices):
        raise ValueError(f"{path} has faces of vertices that are not there, in {name}; export it again")
    if abs(np.linalg.det(matrix[:3, :3])) < 1e-30:
        raise ValueError(f"{path} places {name} with a scale of 0; apply or remove that transform")


def _flat(mesh: trimesh.Trimesh) -> bool:
    """Whether all faces of a geometry are collapsed to points or lines, as some exporters leave them."""
    a, b, c = np.moveaxis(np.asarray(mesh.vertices, np.float64)[mesh.faces], 1, 0)
    reach = np.ptp(np.concatenate([a, b, c]), axis=0).max()
    area = np.linalg.norm(np.cross(b - a, c - a), axis=1).sum() / 2
    return bool(area <= 1e-10 * reach**2)


def _part(name: str, mesh: trimesh.Trimesh, pieces: _Pieces, keep: frozenset[str]) -> Part:
    look, coloured = look_of(mesh)
    own = getattr(mesh.visual, "material", None)
    material = str(name if is_filler(own) else getattr(own, "name", None) or name)
    return Part(
        name, material, material in keep, coloured, (pieces.faces, len(mesh.faces)), (pieces.vertices, len(mesh.vertices)), look
    )  # fmt: skip


def _check_kept(path: Path, parts: Sequence[Part], keep: frozenset[str]) -> None:
    there = list(dict.fromkeys(part.material for part in parts))
    if unknown := sorted(keep - {*there}):
        named = ", ".join(there[:12]) + (", ..." if len(there) > 12 else "")
        raise ValueError(
            f"mesh.keep names materials of the mesh, and {path} has none called {unknown[0]!r}; it has {named}"
        )
    if all(part.kept for part in parts):
        raise ValueError(
            f"mesh.keep names every material of {path}, so that nothing is left to texture; leave one out"
        )
