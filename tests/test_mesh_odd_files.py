"""Mesh files with what viewers read and few programs write: polygons, indices, places, nodes and pictures, against values by hand."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import khronos
import numpy as np
import pytest
import torch
import trimesh
from PIL import Image
from test_mesh_files import BOX, Built, boxes_of, thirds, tree_of, triangles
from test_surface import reading

from distill.export.files import save_meshes
from distill.export.mesh import Mesh, vertex_normals
from distill.meshes.polygons import concave, in_triangles
from distill.meshes.surface import Surface
from distill.meshes.write import Paints, write_textured

#: Outlines, counter-clockwise, and their areas: a triangle of 2 less one of 1, an L of three unit squares, a square of 4 less a triangle of
#: 1, the L with a further corner on two of its sides, and a bar of 5 with three teeth of 1.
OUTLINES: dict[str, tuple[list[Any], float]] = {
    "arrow": ([(0, 0), (2, 0), (0.5, 0.5), (0, 2)], 1.0),
    "L": ([(0, 0), (2, 0), (2, 1), (1, 1), (1, 2), (0, 2)], 3.0),
    "notch": ([(0, 0), (2, 0), (2, 2), (1, 1), (0, 2)], 3.0),
    "straight": ([(0, 0), (1, 0), (2, 0), (2, 1), (1, 1), (1, 2), (0, 2), (0, 1)], 3.0),
    "comb": ([(0, 0), (1, 0), (1, 1), (2, 1), (2, 0), (3, 0), (3, 1), (4, 1), (4, 0), (5, 0), (5, 2), (0, 2)], 8.0),
}  # fmt: skip
#: Two axes at right angles, and the normal of their plane.
ALONG, UP = np.array([1, 2, 2]) / 3, np.array([2, 1, -2]) / 3
NORMAL = np.cross(ALONG, UP)
#: On a map, in metres.
FAR = np.array([500_000.25, 100.5, 4_649_776.125])


def written(surface: Surface, folder: Path, **more: Any) -> Path:
    write_textured(surface, Paints(torch.abs, **more), folder / "out.glb", size=64)
    return folder / "out.glb"


def alone(surface: Surface) -> Any:
    (mesh,) = surface.scene.geometry.values()
    return mesh


def areas(mesh: trimesh.Trimesh) -> Any:
    """Of the triangles, as vectors along their normals."""
    a, b, c = np.moveaxis(mesh.vertices[mesh.faces], 1, 0)
    return np.cross(b - a, c - a) / 2


def ply(
    path: Path,
    rows: Any,
    faces: Sequence[Sequence[int]],
    binary: bool = False,
    kinds: Any = None,
    head: str = "",
) -> Path:
    """A PLY file of vertices with the properties ``kinds``, by default x, y and z as doubles, and of polygons."""
    kinds = kinds or {"x": "double", "y": "double", "z": "double"}
    sizes = {"double": "<f8", "ushort": "<u2", "float": "<f4"}
    lines = ["ply", f"format {'binary_little_endian' if binary else 'ascii'} 1.0", *([head] if head else [])]
    lines += [f"element vertex {len(rows)}", *(f"property {kind} {name}" for name, kind in kinds.items())]
    lines += [f"element face {len(faces)}", "property list uchar int vertex_indices", "end_header"]
    if binary:
        table = np.array([tuple(row) for row in rows], [(name, sizes[kind]) for name, kind in kinds.items()])
        data = table.tobytes() + b"".join(
            bytes([len(face)]) + np.array(face, "<i4").tobytes() for face in faces
        )
    else:
        text = [" ".join(map(str, row)) for row in rows]
        text += [" ".join(map(str, [len(face), *face])) for face in faces]
        data = ("\n".join(text) + "\n").encode()
    path.write_bytes("\n".join(lines).encode() + b"\n" + data)
    return path


# --- polygons and indices -----------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["obj", "ascii", "binary"])
@pytest.mark.parametrize("name", OUTLINES)
def test_a_concave_polygon_is_cut_within_its_outline_wherever_it_begins(
    tmp_path: Path, name: str, kind: str
) -> None:
    outline, area = OUTLINES[name]
    for turn in range(len(outline)):
        for way in (1, -1):
            flat = np.array([*outline[turn:], *outline[:turn]])[::way]
            places = flat @ [ALONG, UP] + (3, 4, 5)
            count = len(flat)
            if kind == "obj":
                lines = [f"v {x} {y} {z}" for x, y, z in places] + [f"vt {x / 5} {y / 5}" for x, y in flat]
                lines.append("f " + " ".join(f"{i}/{i}" for i in range(1, count + 1)))
                (tmp_path / "m.obj").write_text("\n".join(lines) + "\n")
                mesh = alone(reading(tmp_path / "m.obj"))
                np.testing.assert_allclose((mesh.vertices - (3, 4, 5)) @ ALONG, 5 * mesh.visual.uv[:, 0], atol=1e-6)  # fmt: skip
            else:
                path = ply(tmp_path / "m.ply", places.tolist(), [range(count)], kind == "binary")
                mesh = alone(reading(path))
            along = way * areas(mesh) @ NORMAL
            assert (along > -1e-9).all() and along.sum() == pytest.approx(area, abs=1e-6)


def test_polygons_of_several_sizes_and_normals_of_a_ply_are_kept(tmp_path: Path) -> None:
    """An L beside a square and a triangle: 3 + 1 + 0.5."""
    outline, _ = OUTLINES["L"]
    flat = [*outline, (3, 0), (4, 0), (4, 1), (3, 1)]
    kinds = dict.fromkeys(("x", "y", "z", "nx", "ny", "nz"), "float")
    normals = np.random.default_rng(0).normal(size=(10, 3))
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    rows = np.column_stack([flat, np.zeros(10), normals]).tolist()
    faces = [[1, 2, 3, 4, 5, 0], [6, 7, 8, 9], [6, 9, 5]]
    surface = reading(ply(tmp_path / "m.ply", rows, faces, kinds=kinds), up="+z", front="+x")
    mesh = alone(surface)
    assert len(mesh.faces) == 4 + 2 + 1
    assert areas(mesh)[:, 2].sum() == pytest.approx(3 + 1 + 3 / 2 * 1)  # the triangle (3, 0), (3, 1), (0, 2)
    np.testing.assert_allclose(surface.normals, normals[mesh.faces], atol=1e-5)


@pytest.mark.parametrize(
    "outline",
    [[(0, 0), (1, 0), (2, 0), (3, 0)], [(0, 0)] * 5, [(0, 0), (1, 1), (1, 0), (0, 1)], [(0, 0), (1, 0), (1, 0), (1, 1), (0, 1)]],
)  # fmt: skip
def test_a_polygon_without_area_or_that_crosses_itself_is_no_error(tmp_path: Path, outline: Any) -> None:
    lines = [f"v {x} {y} 0" for x, y in [*outline, (5, 0), (6, 0), (5, 1)]]
    count = len(outline)
    lines += ["f " + " ".join(str(i + 1) for i in range(count)), f"f {count + 1} {count + 2} {count + 3}"]
    (tmp_path / "m.obj").write_text("\n".join(lines) + "\n")
    mesh = alone(reading(tmp_path / "m.obj"))
    assert len(mesh.faces) == count - 1


@pytest.mark.parametrize("turn", range(4))
@pytest.mark.parametrize(
    "outline",
    [
        [(0, 0, 0), (3, 2, 0), (3, 0, 0), (0, 1, 0)],
        # Of a robe: no view of it along its mean normal has four sides that do not cross.
        [(0, 0, 0), (0.1115, -0.1785, 0), (-0.1388, -0.1806, -0.0464), (-0.1297, -0.2193, 0.0056)],
    ],
)
def test_a_polygon_that_no_triangles_fill_loses_none(outline: Any, turn: int) -> None:
    assert in_triangles(np.roll(outline, turn, axis=0)).tolist() == [[0, 1, 2], [0, 2, 3]]


def test_a_polygon_without_area_is_a_fan_and_vertices_that_are_not_there_are_left() -> None:
    assert in_triangles(np.zeros((4, 3))).tolist() == [[0, 1, 2], [0, 2, 3]]
    places = np.array([(x, y, 0.0) for x, y in OUTLINES["arrow"][0]])
    polygons = np.array([[1, 2, 3, 0], [0, 1, 2, 3], [1, 2, 3, 9], [1, 2, 3, -1]])
    assert concave(places + np.array([1e7, 0, 0]), polygons).tolist() == [0]
    assert in_triangles(places[[1, 2, 3, 0]]).shape == (2, 3)


@pytest.mark.parametrize("corner", ["v", "v/vt", "v//vn", "v/vt/vn"])
def test_negative_indices_count_from_the_last_one_above_the_face(tmp_path: Path, corner: str) -> None:
    """Two triangles, each behind its own three v, vt and vn, as streaming exporters write them."""
    places, uv, normals = triangles(2), np.random.default_rng(1).random((6, 2)), np.eye(3)[[0, 1, 2, 2, 0, 1]]
    lines = []
    for first in (0, 3):
        for key, rows in (("v", places), ("vt", uv), ("vn", normals)):
            lines += [f"{key} {' '.join(map(str, row))}" for row in rows[first : first + 3].tolist()]
        back = corner.replace("vt", "%").replace("vn", "%").replace("v", "%")
        lines.append("f " + " ".join(back.replace("%", str(i)) for i in (-3, -2, -1)))
    (tmp_path / "m.obj").write_text("\n".join(lines) + "\n")
    surface = reading(tmp_path / "m.obj", up="+z", front="+x")
    mesh = alone(surface)
    order = np.argsort(mesh.triangles[:, 0, 0])
    np.testing.assert_array_equal(mesh.triangles[order].reshape(-1, 3), places)
    if "vt" in corner:
        np.testing.assert_allclose(mesh.visual.uv[mesh.faces][order].reshape(-1, 2), uv, atol=1e-6)
    if "vn" in corner:
        np.testing.assert_allclose(surface.normals[order].reshape(-1, 3), normals, atol=1e-6)


def test_an_index_that_counts_back_too_far_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "m.obj").write_text("v 0 0 0\nv 1 0 0\nv 0 1 0\nf -4 -2 -1\nv 0 0 1\n")
    with pytest.raises(
        ValueError, match=r"m\.obj cannot be read \(a face counts 4 back, and 3 are above it\)"
    ):
        reading(tmp_path / "m.obj")


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace(" ", "\t"),
        lambda text: text.replace("f 1", "f\t1"),
        lambda text: text.replace("\n", " # a comment, 4 5 6\n"),
        lambda text: text.replace("\n", "\t#-1\n"),
        lambda text: text.replace("f ", "f  ").replace("v ", "v   "),
    ],
)  # fmt: skip
def test_tabs_and_comments_in_an_obj_lose_no_line(tmp_path: Path, change: Any) -> None:
    lines = [f"v {x} {y} {z}" for x, y, z in BOX.vertices]
    lines += [f"f {' '.join(str(v + 1) for v in face)}" for face in BOX.faces]
    (tmp_path / "m.obj").write_text(change("\n".join(lines) + "\n"))
    np.testing.assert_array_equal(alone(reading(tmp_path / "m.obj")).triangles, BOX.triangles)


# --- places -------------------------------------------------------------------------------------


def ball_on_a_map(folder: Path, suffix: str, at: Any) -> tuple[Path, trimesh.Trimesh]:
    """A file of a unit sphere at a place, with normals, and the sphere."""
    ball = trimesh.creation.icosphere(subdivisions=2)
    rows = [
        [*place, *normal]
        for place, normal in zip((ball.vertices + at).tolist(), ball.vertices.tolist(), strict=True)
    ]
    path = folder / f"m.{suffix}"
    if suffix == "ply":
        kinds = dict.fromkeys(("x", "y", "z", "nx", "ny", "nz"), "double")
        return ply(path, rows, ball.faces.tolist(), True, kinds), ball
    if suffix == "stl":
        lines = ["solid m"]
        for corners in (ball.vertices + at)[ball.faces].tolist():
            lines += [
                "facet normal 0 0 0",
                "outer loop",
                *(f"vertex {x!r} {y!r} {z!r}" for x, y, z in corners),
            ]
            lines += ["endloop", "endfacet"]
        path.write_text("\n".join([*lines, "endsolid m"]) + "\n")
        return path, ball
    lines = [
        f"{key} {x!r} {y!r} {z!r}" for row in rows for key, (x, y, z) in (("v", row[:3]), ("vn", row[3:]))
    ]
    lines += ["f " + " ".join(f"{v + 1}//{v + 1}" for v in face) for face in ball.faces.tolist()]
    path.write_text("\n".join(lines) + "\n")
    return path, ball


@pytest.mark.parametrize("suffix", ["obj", "ply", "stl"])
def test_a_mesh_far_from_its_origin_keeps_its_shape_and_its_place(tmp_path: Path, suffix: str) -> None:
    """Coordinates of 4,649,776 m in 24 bits are 0.5 m apart; beside the middle of a sphere of 2 m, 6e-8 m."""
    path, ball = ball_on_a_map(tmp_path, suffix, FAR)
    surface = reading(path, up="+z", front="+x")
    out = written(surface, tmp_path)
    scene = trimesh.load_scene(out, process=False)
    (node,) = scene.graph.nodes_geometry
    matrix, name = scene.graph[node]
    found = (scene.geometry[name].vertices + matrix[:3, 3])[scene.geometry[name].faces]
    np.testing.assert_allclose(found, ball.triangles + FAR, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(matrix[:3, :3], np.eye(3))
    if suffix != "stl":
        np.testing.assert_allclose(surface.normals, ball.vertices[ball.faces], atol=1e-5)
        assert "NORMAL" in tree_of(out)["meshes"][0]["primitives"][0]["attributes"]
    assert khronos.wrong(out) == []


def test_a_mesh_near_its_origin_keeps_its_coordinates(tmp_path: Path) -> None:
    path, ball = ball_on_a_map(tmp_path, "obj", (100, 0, -100))
    out = written(reading(path), tmp_path)
    mesh = alone(reading(out))
    np.testing.assert_array_equal(
        mesh.triangles, (ball.triangles + np.array([100, 0, -100])).astype(np.float32)
    )
    assert all("matrix" not in node for node in tree_of(out)["nodes"])


# --- nodes --------------------------------------------------------------------------------------


def box_in(built: Built, name: str, at: Sequence[float] = (0, 0, 0)) -> dict[str, Any]:
    place = (BOX.vertices + at).astype(np.float32)
    primitive = built.mesh(
        name, {"POSITION": built.accessor(place, min=place.min(0).tolist(), max=place.max(0).tolist())}
    )
    primitive["indices"] = built.accessor(BOX.faces.ravel().astype(np.uint16))
    return primitive


def bounds(surface: Surface) -> dict[str, Any]:
    """Of the parts, as they are placed in the file's frame."""
    graph = surface.scene.graph
    places = ((graph[node][1], graph[node][0]) for node in graph.nodes_geometry)
    return {
        str(name): (surface.scene.geometry[name].bounds @ matrix[:3, :3].T + matrix[:3, 3]).round(5).tolist()
        for name, matrix in places
    }


@pytest.mark.parametrize(
    ("where", "mode"),
    [
        ("apart", 0),
        ("apart", 1),
        ("above", 0),
        ("above", 3),
        ("within", 0),
        ("within", 2),
        ("camera", 0),
        ("camera and mesh", 0),
    ],
)
def test_what_is_no_triangle_costs_no_part_its_place(tmp_path: Path, where: str, mode: int) -> None:
    """Points, lines and cameras beside, above and within the node of a box that stands 10 above another one."""
    built = Built()
    box_in(built, "high")
    box_in(built, "low", at=(5, 0, 0))
    loose = {"attributes": {"POSITION": built.accessor(triangles(1))}, "mode": mode}
    nodes, roots = built.tree["nodes"], built.tree["scenes"][0]["nodes"]
    nodes[0]["translation"] = [0, 10, 0]
    if where == "within":
        built.tree["meshes"][0]["primitives"].insert(0, loose)
    elif where == "camera and mesh":
        nodes[0]["camera"] = 0
    else:
        above = {"name": "above", **({"camera": 0} if where == "camera" else {"mesh": 2})}
        nodes.append(above)
        if where == "apart":
            roots.append(2)
        else:
            above |= {"children": [0], "translation": [0, 10, 0]}
            del nodes[0]["translation"]
            roots[0] = 2
        if where != "camera":
            built.tree["meshes"].append({"name": "loose", "primitives": [loose]})
    if where.startswith("camera"):
        built.tree["cameras"] = [{"type": "perspective", "perspective": {"yfov": 1, "znear": 0.1}}]
    expected = {"high": [[-0.5, 9.5, -0.5], [0.5, 10.5, 0.5]], "low": [[4.5, -0.5, -0.5], [5.5, 0.5, 0.5]]}
    surface = reading(built.save(tmp_path / "m.gltf"))
    assert bounds(surface) == expected
    out = written(surface, tmp_path)
    assert bounds(reading(out)) == expected
    assert khronos.wrong(out) == []


def test_a_file_of_points_alone_has_no_faces(tmp_path: Path) -> None:
    built = Built()
    built.mesh("cloud", {"POSITION": built.accessor(triangles(1))})["mode"] = 0
    with pytest.raises(ValueError, match="has no faces"):
        reading(built.save(tmp_path / "m.gltf"))


def test_the_nodes_of_several_primitives_have_the_same_names_each_time(tmp_path: Path) -> None:
    built = Built()
    seat = box_in(built, "chair")
    back = box_in(built, "other", at=(0, 1, 0))
    built.tree["meshes"].pop(), built.tree["nodes"].pop(), built.tree["scenes"][0]["nodes"].pop()
    built.tree["meshes"][0]["primitives"].append(back)
    built.tree["materials"] = [{"name": "oak"}, {"name": "felt"}]
    seat["material"], back["material"] = 0, 1
    built.tree["nodes"] += [{"name": "second", "mesh": 0, "translation": [3, 0, 0]}]
    built.tree["scenes"][0]["nodes"].append(1)
    path = built.save(tmp_path / "m.gltf")
    found = [(written(reading(path), tmp_path).read_bytes(), tree_of(tmp_path / "out.glb")) for _ in (0, 1)]
    assert found[0][0] == found[1][0]
    names = {node["name"] for node in found[0][1]["nodes"]} - {"world"}
    assert names == {"chair node", "chair node_1", "chair node_2", "second", "second_1", "second_2"}
    assert len(reading(path).faces) == 4 * 12 and len(found[0][1]["meshes"]) == 2


def test_extensions_of_nodes_and_meshes_are_left_out_with_what_they_number(tmp_path: Path) -> None:
    built = Built()
    box_in(built, "lamp")
    box_in(built, "coarse")
    built.tree["nodes"][0]["extensions"] = {"KHR_lights_punctual": {"light": 0}, "MSFT_lod": {"ids": [1]}}
    built.tree["scenes"][0]["nodes"] = [0]
    built.tree["extensions"] = {"KHR_lights_punctual": {"lights": [{"type": "point"}]}}
    built.tree["meshes"][0]["extensions"] = {"EXT_structural_metadata": {"propertyTable": 0}}
    built.tree["extensionsUsed"] = ["KHR_lights_punctual", "MSFT_lod", "EXT_structural_metadata"]
    out = written(reading(built.save(tmp_path / "m.gltf")), tmp_path)
    tree = tree_of(out)
    assert "extensionsUsed" not in tree and "extensions" not in str(tree["nodes"]) + str(tree["meshes"])
    assert khronos.wrong(out) == []


@pytest.mark.parametrize("scenes", [None, []])
def test_a_gltf_without_a_scene_shows_all_of_its_nodes(tmp_path: Path, scenes: Any) -> None:
    built = Built()
    box_in(built, "child")
    built.tree["nodes"].append({"name": "parent", "children": [0], "translation": [0, 2, 0]})
    box_in(built, "apart")
    del built.tree["scene"], built.tree["scenes"]
    if scenes is not None:
        built.tree["scenes"] = scenes
    found = bounds(reading(built.save(tmp_path / "m.gltf")))
    assert found == {"child": [[-0.5, 1.5, -0.5], [0.5, 2.5, 0.5]], "apart": [[-0.5] * 3, [0.5] * 3]}


def test_a_scene_that_places_no_mesh_is_said(tmp_path: Path) -> None:
    built = Built()
    box_in(built, "box")
    built.tree["nodes"].append({"name": "empty"})
    built.tree["scenes"][0]["nodes"] = [1]
    with pytest.raises(ValueError, match=r"m\.gltf has meshes, and no scene places one of them"):
        reading(built.save(tmp_path / "m.gltf"))


def turned(degrees: float) -> Any:
    return trimesh.transformations.rotation_matrix(np.radians(degrees), (0, 0, 1))


@pytest.mark.parametrize(
    ("joints", "refused"),
    [
        ([np.eye(4), turned(40)], False),  # a pose
        ([turned(5), turned(40)], False),  # a pose that moves every joint
        ([trimesh.transformations.translation_matrix((3, 0, 0))], False),
        ([np.diag([0.01, 0.01, 0.01, 1])], True),
        ([np.diag([0.01, 0.01, 0.01, 1]), 0.01 * turned(40) + np.diag([0, 0, 0, 0.99])], True),
        ([turned(90), turned(90)], True),
    ],
)  # fmt: skip
@pytest.mark.parametrize(("split", "shown"), [(False, True), (True, True), (False, False)])
def test_a_skeleton_that_shows_a_mesh_otherwise_than_its_node_is_refused(
    tmp_path: Path, joints: Any, refused: bool, split: bool, shown: bool
) -> None:
    """The node's own matrix is a scale of 2 by its parent, and the inverse bind matrices undo half of the joints' scale of 4."""
    built = Built()
    primitive = box_in(built, "body")
    if split:
        built.tree["meshes"][0]["primitives"].append({**primitive})
    nodes = built.tree["nodes"]
    nodes[0]["skin"] = 0
    nodes.append({"name": "rig", "scale": [2, 2, 2], "children": [0]})
    for number, joint in enumerate(joints):
        nodes.append(
            {"name": f"joint {number}", "matrix": (np.diag([4, 4, 4, 1]) @ joint).T.ravel().tolist()}
        )
    count = len(joints)
    rest = np.tile(np.diag([0.5, 0.5, 0.5, 1]), (count, 1, 1)).astype(np.float32)
    accessor = built.accessor(rest.reshape(-1, 16))
    built.tree["accessors"][accessor]["type"] = "MAT4"
    built.tree["skins"] = [{"joints": [*range(2, 2 + count)], "inverseBindMatrices": accessor}]
    built.tree["scenes"][0]["nodes"] = [*range(1, 2 + count)]
    path = built.save(tmp_path / "m.gltf")
    if not shown:
        box_in(built, "another")
        built.tree["scenes"].insert(0, {"nodes": [len(nodes) - 1]})
        built.tree["scene"] = 0
        assert len(reading(built.save(path)).faces) == 12
    elif refused:
        with pytest.raises(
            ValueError, match=r"m\.gltf has a skeleton that turns or scales body node, which mesh= does not"
        ) as caught:
            reading(path)
        assert "\n" not in str(caught.value)
    else:
        assert len(reading(path).faces) == 12 * (2 if split else 1)


def test_levels_in_one_file_leave_no_node_with_an_empty_list_of_children(tmp_path: Path) -> None:
    """A file called as the root that trimesh makes."""
    ball = trimesh.creation.icosphere(subdivisions=3)
    vertices, faces = ball.vertices.astype(np.float32), ball.faces.astype(np.int64)
    mesh = Mesh(vertices, faces, vertex_normals(vertices, faces), colours=np.full_like(vertices, 0.5))
    save_meshes(mesh, tmp_path, formats=["glb"], name="world", lods=1, lod_as="msft")
    assert all(node.get("children") != [] for node in tree_of(tmp_path / "world.glb")["nodes"])
    assert khronos.wrong(tmp_path / "world.glb") == []


# --- what is kept -------------------------------------------------------------------------------


@pytest.mark.parametrize("colour", ["vertices", "none", "coordinates"])
def test_a_kept_part_without_a_material_is_rough_and_as_pictures_show_it(tmp_path: Path, colour: str) -> None:
    """sRGB of 0.5, or else the grey of 0.8, which are written as linear values."""
    lines, more = ["vt 0.1 0.1", "vt 0.9 0.1", "vt 0.1 0.9"], " 0.5 0.5 0.5" if colour == "vertices" else ""
    for number, name in enumerate(("new", "old")):
        lines += [f"o {name}", *(f"v {x + 2 * number} {y} {z}{more}" for x, y, z in BOX.vertices)]
        for face in BOX.faces + 1 + 8 * number:
            words = (f"{v}/{i + 1}" if colour == "coordinates" else str(v) for i, v in enumerate(face))
            lines.append("f " + " ".join(words))
    (tmp_path / "m.obj").write_text("\n".join(lines) + "\n")
    out = written(reading(tmp_path / "m.obj", keep=["old"]), tmp_path)
    tree = tree_of(out)
    (primitive,) = next(mesh["primitives"] for mesh in tree["meshes"] if mesh["name"] == "old")
    material = tree["materials"][primitive["material"]]["pbrMetallicRoughness"]
    assert (material["metallicFactor"], material["roughnessFactor"]) == (0, 0.9)
    assert "baseColorTexture" not in material and ("COLOR_0" in primitive["attributes"]) == (
        colour == "vertices"
    )
    (part,) = (each for each in reading(out).parts if each.name == "old")
    shown = 128 / 255 if colour == "vertices" else 0.8
    np.testing.assert_allclose(thirds(part), shown, atol=1e-3)
    assert khronos.wrong(out) == []


def jpeg(subsampling: int) -> bytes:
    """Smooth waves, and lines between them, at a quality of 95; colours in full for 0, at half the size for 2."""
    y, x = np.mgrid[:128, :128] / 128
    pixels = np.stack([x, y, (np.sin(40 * x) * np.sin(40 * y) + 1) / 2], axis=2)
    pixels[::16] = 1 - pixels[::16]
    data = BytesIO()
    Image.fromarray((255 * pixels).astype(np.uint8)).save(data, "JPEG", quality=95, subsampling=subsampling)
    return data.getvalue()


def pictures_of(path: Path) -> list[Any]:
    """The pictures of a GLB file."""
    tree, content = tree_of(path), path.read_bytes()
    begin = 28 + int.from_bytes(content[12:16], "little")
    views = (tree["bufferViews"][image["bufferView"]] for image in tree["images"])
    return [
        Image.open(BytesIO(content[begin + view["byteOffset"] :][: view["byteLength"]])) for view in views
    ]


@pytest.mark.parametrize(("subsampling", "most"), [(0, 0.8), (2, 2.0)])
@pytest.mark.parametrize("suffix", ["gltf", "obj"])
def test_a_kept_jpeg_keeps_its_quality_each_time(
    tmp_path: Path, suffix: str, subsampling: int, most: float
) -> None:
    (tmp_path / "p.jpg").write_bytes(jpeg(subsampling))
    if suffix == "obj":
        path = boxes_of(tmp_path, ["old", "new"], "newmtl old\nmap_Kd p.jpg\nnewmtl new\nKd 1 1 1\n")
    else:
        built = Built()
        built.tree["images"], built.tree["textures"] = (
            [{"uri": "p.jpg", "mimeType": "image/jpeg"}],
            [{"source": 0}],
        )
        for name in ("old", "new"):
            uv = built.accessor(np.random.default_rng(0).random((3, 2)).astype(np.float32))
            material: dict[str, Any] = {"name": name}
            if name == "old":
                material |= {
                    "pbrMetallicRoughness": {"baseColorTexture": {"index": 0}},
                    "normalTexture": {"index": 0},
                }
            built.mesh(name, {"POSITION": built.accessor(triangles(1)), "TEXCOORD_0": uv}, material)
        path = built.save(tmp_path / "m.gltf")
    surface, before = (
        reading(path, keep=["old"]),
        np.asarray(Image.open(BytesIO(jpeg(subsampling))), np.float64),
    )
    for _ in range(2):
        found = [image for image in pictures_of(written(surface, tmp_path)) if image.size == (128, 128)]
        assert found and {image.format for image in found} == {"JPEG"}
        for image in found:
            # Rounded twice with the same tables, or once with finer ones; with those of the quality 75, it is above 3.
            assert np.sqrt(np.mean((np.asarray(image, np.float64) - before) ** 2)) < most


def test_a_kept_material_called_surface_stays_apart_from_the_new_one(tmp_path: Path) -> None:
    built, glass = Built(), {"KHR_materials_transmission": {"transmissionFactor": 1.0}}
    for number, name in enumerate(("a", "b", "surface", "surface2")):
        box_in(built, name, at=(2 * number, 0, 0))["material"] = number
    built.tree["materials"] = [
        {"name": "a"},
        {"name": "b"},
        {"name": "surface", "extensions": glass},
        {"name": "surface2"},
    ]
    built.tree["extensionsUsed"] = [*glass]
    out = written(reading(built.save(tmp_path / "m.gltf"), keep=["surface", "surface2"]), tmp_path)
    found = {material["name"]: "extensions" in material for material in tree_of(out)["materials"]}
    assert found == {"surface": True, "surface2": False, "surface3": False}


# --- normals and textures -----------------------------------------------------------------------


@pytest.mark.parametrize("bumps", [False, True])
@pytest.mark.parametrize("broken", [(0, 0, 0), (np.nan, 0, 0)])
def test_one_broken_normal_leaves_the_others_and_is_mended(tmp_path: Path, broken: Any, bumps: bool) -> None:
    """A sphere's normals are its places, those of its vertices' faces within 0.01 of them."""
    ball, built = trimesh.creation.icosphere(subdivisions=2), Built()
    given = ball.vertices.copy()
    given[[0, 7]] = broken
    built.mesh("ball", {
        "POSITION": built.accessor(ball.vertices.astype(np.float32)), "NORMAL": built.accessor(given.astype(np.float32)),
    })["indices"] = built.accessor(ball.faces.ravel().astype(np.uint16))  # fmt: skip
    more = {"perturbation": lambda points: 0 * points[:, :3]} if bumps else {}
    out = written(reading(built.save(tmp_path / "m.gltf")), tmp_path, **more)
    mesh = alone(reading(out))
    normals = mesh._cache.cache["vertex_normals"]
    assert len(mesh.vertices) < 3 * len(ball.faces)  # smooth: triangles share vertices
    np.testing.assert_allclose(normals, mesh.vertices, atol=0.01)
    whole = ~np.isclose(mesh.vertices[:, None], ball.vertices[[0, 7]], atol=1e-6).all(2).any(1)
    np.testing.assert_allclose(normals[whole], mesh.vertices[whole], atol=1e-6)
    if bumps:  # the frames are as good: no bumps are (0.5, 0.5, 1) everywhere
        (picture,) = (p for p in pictures_of(out) if np.asarray(p)[..., 2].min() > 250)
        assert np.abs(np.asarray(picture, np.float64)[..., :2] - 127.5).max() < 1
    assert khronos.wrong(out) == []


def test_a_broken_normal_of_a_mirrored_part_is_mended_outwards(tmp_path: Path) -> None:
    """The same bumps with and without broken normals: of a sphere, the faces' means are within 0.01 of the normals."""
    ball, maps = trimesh.creation.icosphere(subdivisions=2), list[Any]()
    for step in (9, len(ball.vertices) + 1):
        built, given = Built(), ball.vertices.copy()
        given[1::step] = 0
        built.mesh("ball", {
            "POSITION": built.accessor(ball.vertices.astype(np.float32)), "NORMAL": built.accessor(given.astype(np.float32)),
        })["indices"] = built.accessor(ball.faces.ravel().astype(np.uint16))  # fmt: skip
        built.tree["nodes"][0]["scale"] = [-1, 1, 1]
        out = written(
            reading(built.save(tmp_path / "m.gltf")), tmp_path,
            perturbation=lambda points: points.new_tensor([0.3, 0.2, 0.1]).expand(len(points), 3),
        )  # fmt: skip
        maps.append(np.asarray(pictures_of(out)[-1], np.float64))
    assert np.abs(maps[0] - maps[1]).max() <= 4  # inwards, it would be 66
    assert maps[1][..., :2].std() > 5


def test_new_textures_end_at_their_edges_and_kept_ones_stay(tmp_path: Path) -> None:
    """A square whose coordinates reach the edges: repeated, its left edge would be half of the right edge's colour."""
    built = Built()
    place = np.array([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]], np.float32)
    for number, name in enumerate(("new", "old")):
        at = built.accessor(place + np.array([2 * number, 0, 0], np.float32))
        uv = built.accessor(np.array([[0, 1], [1, 1], [1, 0], [0, 0]], np.float32))
        info = built.picture(np.full((4, 4, 3), 200, np.uint8), tmp_path, f"{name}.png")
        built.mesh(name, {"POSITION": at, "TEXCOORD_0": uv}, {"name": name, "pbrMetallicRoughness": {"baseColorTexture": info}})[
            "indices"] = built.accessor(np.array([0, 1, 2, 0, 2, 3], np.uint16))  # fmt: skip
    surface = reading(built.save(tmp_path / "m.gltf"), keep=["old"])
    out = written(
        surface, tmp_path, finish=lambda points: points[:, :2].abs(), perturbation=lambda points: points
    )
    tree = tree_of(out)
    assert tree["samplers"] == [{"wrapS": 33071, "wrapT": 33071}]
    for material in tree["materials"]:
        rough = material["pbrMetallicRoughness"]
        infos = [
            rough.get("baseColorTexture"),
            rough.get("metallicRoughnessTexture"),
            material.get("normalTexture"),
        ]
        wraps = {tree["textures"][info["index"]].get("sampler") for info in infos if info}
        assert wraps == ({0} if material["name"] == "new" else {None})
    assert khronos.wrong(out) == []


def test_a_picture_of_too_many_pixels_is_refused_only_where_it_is_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = Built()
    info = built.picture(np.zeros((8, 8, 3), np.uint8), tmp_path, "p.png")
    uv = built.accessor(np.zeros((3, 2), np.float32))
    built.mesh("m", {"POSITION": built.accessor(triangles(1)), "TEXCOORD_0": uv},
               {"name": "m", "pbrMetallicRoughness": {"baseColorTexture": info}})  # fmt: skip
    path = built.save(tmp_path / "m.gltf")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 31)  # twice as many are refused by Pillow
    assert len(reading(path).parts) == 1
    with pytest.raises(ValueError, match=r"needs a texture of m that cannot be read \(too large\)"):
        reading(path, init_texture=True)


@pytest.mark.parametrize("spoil", ["gone", "cut", "too large"])
def test_a_plys_texture_that_cannot_be_read_is_refused_only_where_it_is_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spoil: str
) -> None:
    rows = [[0, 0, 0, 0, 0], [1, 0, 0, 1, 0], [0, 1, 0, 0, 1]]
    kinds = dict.fromkeys(("x", "y", "z", "s", "t"), "float")
    path = ply(tmp_path / "m.ply", rows, [[0, 1, 2]], kinds=kinds, head="comment TextureFile a picture.png")
    Image.new("RGB", (8, 8), (255, 0, 51)).save(tmp_path / "a picture.png")
    (part,) = reading(path, init_texture=True).parts
    np.testing.assert_allclose(thirds(part)[0], [1, 0, 0.2], atol=1e-6)
    if spoil == "gone":
        (tmp_path / "a picture.png").unlink()
    elif spoil == "cut":
        (tmp_path / "a picture.png").write_bytes((tmp_path / "a picture.png").read_bytes()[:50])
    else:
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 31)
    assert len(reading(path).parts) == 1
    with pytest.raises(
        ValueError, match=r"^mesh\.init_texture=true needs the texture a picture\.png that cannot be read"
    ):
        reading(path, init_texture=True)


def test_a_plys_picture_that_nothing_is_taken_from_may_be_missing(tmp_path: Path) -> None:
    kinds = {**dict.fromkeys("xyz", "float"), **dict.fromkeys(("red", "green", "blue"), "float")}
    rows, head = (
        [[0, 0, 0, 1, 0, 0.2], [1, 0, 0, 1, 0, 0.2], [0, 1, 0, 1, 0, 0.2]],
        "comment TextureFile gone.png",
    )
    (part,) = reading(ply(tmp_path / "m.ply", rows, [[0, 1, 2]], False, kinds, head), init_texture=True).parts
    np.testing.assert_allclose(thirds(part)[0], [1, 0, 0.2], atol=0.003)


@pytest.mark.parametrize("binary", [False, True])
def test_a_plys_colours_of_two_bytes_are_shares_of_65535(tmp_path: Path, binary: bool) -> None:
    rows = [[x, y, 0, 32768, 16384, 65535] for x, y in ((0, 0), (1, 0), (0, 1))]
    kinds = {**dict.fromkeys("xyz", "float"), **dict.fromkeys(("red", "green", "blue"), "ushort")}
    (part,) = reading(ply(tmp_path / "m.ply", rows, [[0, 1, 2]], binary, kinds), init_texture=True).parts
    assert part.coloured
    np.testing.assert_allclose(part.look.corners[0, 0], [32768 / 65535, 16384 / 65535, 1], atol=0.5 / 255)
