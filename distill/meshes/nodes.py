"""The scene graph of a glTF's JSON, made plain before trimesh reads it.

trimesh loses a node that has a camera or no triangles, with the places of all that hangs on it, keeps numbers of lights and of levels of
detail that it does not write, draws lots for the names of nodes of several primitives, and fails on points.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import trimesh
from numpy.typing import NDArray

from distill.meshes.surface import Unfit

Json = dict[str, Any]
Doubles = NDArray[np.float64]

#: Matrices that differ by less than this share are the same one.
_SAME = 0.01


def make_plain(tree: Json) -> None:
    """Leave triangles alone in a glTF's JSON: points, lines, cameras and what extends nodes and meshes are taken out of it.

    Each primitive of several gets a mesh and a node of its own, named after the node that had them, and a file without scenes gets one.
    """
    meshes, made = list[Json](), list[list[int]]()
    for mesh in tree.get("meshes", []):
        drawn = [primitive for primitive in mesh["primitives"] if primitive.get("mode", 4) >= 4]
        made.append([*range(len(meshes), len(meshes) + len(drawn))])
        common = {key: value for key, value in mesh.items() if key != "extensions"}
        meshes += [{**common, "primitives": [primitive]} for primitive in drawn]
    tree["meshes"] = meshes
    nodes = tree.setdefault("nodes", [])
    if not tree.get("scenes"):
        children = _parents(nodes)
        tree["scenes"] = [{"nodes": [number for number in range(len(nodes)) if number not in children]}]
        tree["scene"] = 0
    for number, node in enumerate([*nodes]):
        for key in ("camera", "extensions"):
            node.pop(key, None)
        own = made[node.pop("mesh")] if "mesh" in node else []
        if len(own) == 1:
            node["mesh"] = own[0]
        elif own:
            name = node.get("name", number)
            node["children"] = [*node.get("children", ()), *range(len(nodes), len(nodes) + len(own))]
            nodes += [{"name": f"{name}_{count}", "mesh": mesh} for count, mesh in enumerate(own, start=1)]
    for key in ("cameras", "extensions"):
        tree.pop(key, None)


def check_skins(path: Path, tree: Json, values: Callable[[int], Doubles]) -> None:
    """Refuse a skeleton that shows a mesh at another size or otherwise turned than its node would: skeletons are not read.

    glTF places such a mesh by its joints alone. A pose, which turns joints by different angles, is no reason.

    Args:
        path: of the file, for errors.
        tree: its JSON, with all of its meshes.
        values: what an accessor says, by its number.

    Raises:
        Unfit: there is one.
    """
    nodes = tree.get("nodes", [])
    parents = _parents(nodes)
    scenes = tree.get("scenes")
    shown = set(scenes[tree.get("scene", 0)].get("nodes", ())) if scenes else None
    for number, node in enumerate(nodes):
        if "skin" not in node or "mesh" not in node:
            continue
        if shown is not None and _line(parents, number)[-1] not in shown:
            continue
        skin = tree["skins"][node["skin"]]
        joints = np.array([_placed(nodes, parents, joint) for joint in skin["joints"]])
        if "inverseBindMatrices" in skin:
            # Columns come first in glTF, and there may be more of them than joints.
            rest = values(skin["inverseBindMatrices"]).reshape(-1, 4, 4).transpose(0, 2, 1)
            joints = joints @ rest[: len(joints)]
        own, turns = _placed(nodes, parents, number)[:3, :3], joints[:, :3, :3]
        size, sizes = (np.cbrt(np.abs(np.linalg.det(each))) for each in (own, turns))
        alike = np.abs(turns - turns[0]).max() <= _SAME * size
        if (np.abs(sizes - size) > _SAME * size).all() or (
            alike and np.abs(turns[0] - own).max() > _SAME * size
        ):
            raise Unfit(
                f"{path} has a skeleton that turns or scales {node.get('name', number)}, which mesh= does not read; apply it in a 3D "
                "program, and export it without"
            )


def _parents(nodes: Sequence[Json]) -> dict[int, int]:
    return {child: number for number, node in enumerate(nodes) for child in node.get("children", ())}


def _placed(nodes: Sequence[Json], parents: Mapping[int, int], number: int) -> Doubles:
    """A node's matrix in the scene, shape ``[4, 4]``."""
    matrix = np.eye(4)
    for one in _line(parents, number):
        matrix = _matrix(nodes[one]) @ matrix
    return matrix


def _line(parents: Mapping[int, int], number: int) -> list[int]:
    """A node, its parent and so on to a root; each once, as a broken file's nodes may run in a circle."""
    line = [number]
    while (number := parents.get(number, number)) not in line:
        line.append(number)
    return line


def _matrix(node: Json) -> Doubles:
    """A node's own matrix, shape ``[4, 4]``."""
    if "matrix" in node:
        return np.reshape(node["matrix"], (4, 4)).T.astype(np.float64)
    x, y, z, w = node.get("rotation", (0, 0, 0, 1))
    matrix = np.asarray(trimesh.transformations.quaternion_matrix((w, x, y, z)), np.float64)
    matrix[:3, :3] *= node.get("scale", (1, 1, 1))
    matrix[:3, 3] = node.get("translation", (0, 0, 0))
    return matrix
