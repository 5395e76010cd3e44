"""What people get: each format read back by another reader, names, places and sizes, levels of detail, and a run exported again."""

from __future__ import annotations

import io
import json
import os
import struct
import zipfile
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import khronos
import numpy as np
import pytest
import torch
import trimesh
from PIL import Image
from test_report import tetrahedron
from trimesh.ray.ray_pyembree import RayMeshIntersector
from usual import optimiser_of

from distill.asset import Asset
from distill.cameras import Cameras, turntable
from distill.cli import main
from distill.contracts import Render
from distill.export import choices
from distill.export.asset import MeshWriter
from distill.export.choices import FORMATS, check_files
from distill.export.colours import surface_albedo
from distill.export.files import WRITERS, names_of, save_mesh, save_meshes
from distill.export.frame import place_of, welded
from distill.export.lods import charts, closest, levels
from distill.export.mesh import Mesh, vertex_normals
from distill.export.texture import bake_texture, colour_vertices
from distill.files.checkpoint import save_checkpoint
from distill.job import State
from distill.run.assembly.scenes import look, scene_maker
from distill.run.config.compose import compose_config
from distill.run.config.overrides import as_overrides, quote_text
from distill.run.execute import describe_and_export
from distill.run.folder.reexport import _config

#: Of the box: its middle and its edges, in the scene's frame; +x is the front, +y the left, +z the top.
MIDDLE, EDGES = np.array([0.1, -0.2, 0.3]), np.array([0.4, 0.2, 0.8])
#: Colours of its sides +x, -x, +y, -y, +z, -z.
COLOURS = np.array(
    [[200, 10, 20], [30, 190, 40], [50, 60, 180], [170, 160, 70], [80, 150, 140], [120, 90, 130]], np.uint8
)
#: Texels of a side's square; there are three in a row, and two rows.
TILE = 16


def crate() -> Mesh:
    """A box of 12 triangles whose sides are charts of one colour each, the vertices coloured by where they are."""
    vertices, faces, uv = [], [], []
    for side in range(6):
        axis, sign = side // 2, 1 - 2 * (side % 2)
        across, up = np.roll(np.eye(3), -axis, axis=0)[1:]
        # Counter-clockwise from outside.
        corners = [(-1, -1), (1, -1), (1, 1), (-1, 1)][::sign]
        vertices += [sign * np.eye(3)[axis] + a * across + b * up for a, b in corners]
        faces += [[4 * side, 4 * side + 1, 4 * side + 2], [4 * side, 4 * side + 2, 4 * side + 3]]
        left, top = side % 3, side // 3
        uv += [((left + 0.5 + 0.4 * a) / 3, 1 - (top + 0.5 + 0.4 * b) / 2) for a, b in corners]
    unit = np.array(vertices)
    texture = np.repeat(np.repeat(COLOURS.reshape(2, 3, 3), TILE, axis=0), TILE, axis=1)
    # Three and two tiles are no square, which a texture need not be.
    placed = (MIDDLE + unit * EDGES / 2).astype(np.float32)
    shape = Mesh(
        placed,
        np.array(faces),
        placed,
        np.array(uv, np.float32),
        texture,
        ((unit + 1) / 2).astype(np.float32),
    )
    joined = welded(replace(shape, normals=np.zeros_like(placed)))
    normals = vertex_normals(joined.vertices, joined.faces)
    found = [np.flatnonzero((joined.vertices == one).all(1))[0] for one in placed]
    return replace(shape, normals=normals[found])


def read_glb(path: Path) -> tuple[dict[str, Any], bytes]:
    content = path.read_bytes()
    magic, version, whole, length = struct.unpack("<4sIII", content[:16])
    assert (magic, version, whole) == (b"glTF", 2, len(content))
    return json.loads(content[20 : 20 + length]), content[28 + length :]


def in_scene(tree: dict[str, Any]) -> int:
    """The one node of a scene, which may be inside another one; neither moves it."""
    (index,) = tree["scenes"][tree["scene"]]["nodes"]
    assert not {"matrix", "translation", "rotation", "scale"} & {*tree["nodes"][index]}
    inside = tree["nodes"][index].get("children", [])
    if not inside:
        return int(index)
    (child,) = inside
    assert not {"matrix", "translation", "rotation", "scale", "children"} & {*tree["nodes"][child]}
    return int(child)


def accessor(tree: dict[str, Any], data: bytes, index: int) -> np.ndarray:
    told = tree["accessors"][index]
    view = tree["bufferViews"][told["bufferView"]]
    kind: Any = {5125: np.uint32, 5123: np.uint16, 5126: np.float32}[told["componentType"]]
    width = {"SCALAR": 1, "VEC2": 2, "VEC3": 3}[told["type"]]
    start = view.get("byteOffset", 0) + told.get("byteOffset", 0)
    return np.frombuffer(data, kind, told["count"] * width, start).reshape(told["count"], width)


class Read:
    """What a reader found in a file; ``texel`` gives the texture's colour at coordinates with (0, 0) at the lower left."""

    def __init__(self, vertices: Any, faces: Any, normals: Any, names: set[str]) -> None:
        self.vertices, self.faces = np.asarray(vertices, np.float64), np.asarray(faces).reshape(-1, 3)
        self.normals: Any = None if normals is None else np.asarray(normals)
        self.names = names
        self.uv: Any = None
        self.picture: Any = None
        self.colours: Any = None

    def texels(self) -> np.ndarray:
        """The texture's colours at the faces' middles."""
        u, v = self.uv[self.faces].mean(1).T
        height, width = self.picture.shape[:2]
        return self.picture[((1 - v) * height).astype(int), (u * width).astype(int)]


def by_hand(path: Path) -> Read:
    """A GLB, from its chunks."""
    tree, data = read_glb(path)
    node = tree["nodes"][in_scene(tree)]
    mesh = tree["meshes"][node["mesh"]]
    (primitive,) = mesh["primitives"]
    at = primitive["attributes"]
    material = tree["materials"][primitive["material"]]
    found = Read(
        accessor(tree, data, at["POSITION"]), accessor(tree, data, primitive["indices"]), accessor(tree, data, at["NORMAL"]),
        {node["name"], mesh["name"], material["name"]},
    )  # fmt: skip
    uv = accessor(tree, data, at["TEXCOORD_0"])
    found.uv = np.stack([uv[:, 0], 1 - uv[:, 1]], axis=1)  # glTF counts from the top
    source = tree["textures"][material["pbrMetallicRoughness"]["baseColorTexture"]["index"]]["source"]
    found.names.add(tree["images"][source]["name"])
    view = tree["bufferViews"][tree["images"][source]["bufferView"]]
    start = view.get("byteOffset", 0)
    found.picture = np.asarray(
        Image.open(io.BytesIO(data[start : start + view["byteLength"]])).convert("RGB")
    )
    return found


def by_trimesh(path: Path) -> Read:
    """An OBJ, PLY or STL."""
    mesh: Any = trimesh.load_mesh(path, process=False, maintain_order=True)
    words = [line.split() for line in path.read_text().splitlines()] if path.suffix == ".obj" else []
    names = {word[1] for word in words if word[0] in ("o", "usemtl")}
    given: Any = None  # those of the file, which trimesh would otherwise make
    if path.suffix == ".obj":
        given = [[float(number) for number in word[1:]] for word in words if word[0] == "vn"]
    elif path.suffix == ".ply":
        rows = mesh.metadata["_ply_raw"]["vertex"]["data"]
        given = np.stack([rows[axis].ravel() for axis in ("nx", "ny", "nz")], axis=1)
    found = Read(mesh.vertices, mesh.faces, given, names)
    if path.suffix == ".obj":
        found.uv, found.picture = mesh.visual.uv, np.asarray(mesh.visual.material.image.convert("RGB"))
    elif path.suffix == ".ply":
        found.colours = np.asarray(mesh.visual.vertex_colors)[:, :3]
    return found


def by_pxr(path: Path) -> Read:
    """A USDZ package, by Pixar's library."""
    from pxr import Usd, UsdGeom, UsdShade

    stage = Usd.Stage.Open(str(path))
    root = stage.GetDefaultPrim()
    (prim,) = (prim for prim in stage.Traverse() if prim.IsA(UsdGeom.Mesh))
    mesh = UsdGeom.Mesh(prim)
    material, _ = UsdShade.MaterialBindingAPI(prim).ComputeBoundMaterial()
    assert set(mesh.GetFaceVertexCountsAttr().Get()) == {3}
    assert (
        mesh.GetOrientationAttr().Get() == "rightHanded" and mesh.GetSubdivisionSchemeAttr().Get() == "none"
    )
    assert mesh.GetNormalsInterpolation() == "vertex"
    names = {root.GetName(), prim.GetName(), material.GetPrim().GetName()}
    found = Read(
        mesh.GetPointsAttr().Get(), mesh.GetFaceVertexIndicesAttr().Get(), mesh.GetNormalsAttr().Get(), names
    )
    surface = material.ComputeSurfaceSource()[0]
    assert surface.GetIdAttr().Get() == "UsdPreviewSurface"
    texture = UsdShade.Shader(surface.GetInput("diffuseColor").GetConnectedSources()[0][0].source.GetPrim())
    assert texture.GetInput("sourceColorSpace").Get() == "sRGB"
    reader = UsdShade.Shader(texture.GetInput("st").GetConnectedSources()[0][0].source.GetPrim())
    found.uv = np.asarray(UsdGeom.PrimvarsAPI(prim).GetPrimvar(reader.GetInput("varname").Get()).Get())
    inside = texture.GetInput("file").Get().path.removeprefix("./")
    with zipfile.ZipFile(path) as package:
        found.picture = np.asarray(Image.open(io.BytesIO(package.read(inside))).convert("RGB"))
    return found


READERS = {"glb": by_hand, "obj": by_trimesh, "ply": by_trimesh, "stl": by_trimesh, "usdz": by_pxr}
#: Of the box, where its origin is beneath it and its longest edge, 0.8, is 0.25 m: x is the left, y the top, z the front.
LOW, HIGH = np.array([-0.03125, 0, -0.0625]), np.array([0.03125, 0.25, 0.0625])


@pytest.mark.parametrize("kind", FORMATS)
def test_another_reader_finds_the_box_in_its_place_with_its_colours_and_names(
    tmp_path: Path, kind: str
) -> None:
    if kind == "usdz":
        pytest.importorskip("pxr", reason="usd-core is not installed")
    told = save_meshes(crate(), tmp_path, formats=[kind], name="crate", pivot="ground", size_m=0.25)
    assert told == {"meshes": [f"crate.{kind}"]}
    assert {path.name for path in tmp_path.iterdir()} == set(names_of(
        {"formats": [kind], "name": "crate", "lods": 0, "lod_as": "files"}
    ))  # fmt: skip
    read = READERS[kind](tmp_path / f"crate.{kind}")
    np.testing.assert_allclose([read.vertices.min(0), read.vertices.max(0)], [LOW, HIGH], atol=1e-7)
    assert len(read.faces) == 12
    a, b, c = np.moveaxis(read.vertices[read.faces], 1, 0)
    middle = (LOW + HIGH) / 2
    assert (np.einsum("nk,nk->n", np.cross(b - a, c - a), (a + b + c) / 3 - middle) > 0).all()
    assert read.names == ({"crate"} if kind not in ("ply", "stl") else set())
    if kind != "stl":
        # Of a box, a corner's normal is the mean of three sides at right angles.
        outward = np.sign(read.vertices - middle) / np.sqrt(3)
        np.testing.assert_allclose(read.normals, outward, atol=1e-5)
    if kind in ("glb", "obj", "usdz"):
        # The sides +x, -x, +y, -y, +z, -z of the scene are +z, -z, +x, -x, +y, -y of the file.
        np.testing.assert_array_equal(read.texels(), np.repeat(COLOURS, 2, axis=0))
        side = ((a + b + c) / 3 - middle) / (HIGH - LOW) * 2
        expected = np.repeat(np.eye(3)[[2, 2, 0, 0, 1, 1]] * np.tile([[1], [-1]], (3, 1)), 2, axis=0)
        np.testing.assert_allclose(np.where(np.abs(side) > 0.9, side, 0), expected, atol=1e-5)
    if kind == "ply":
        assert len(read.vertices) == 8
        np.testing.assert_array_equal(read.colours, (read.vertices[:, [2, 0, 1]] > middle[[2, 0, 1]]) * 255)


def test_stl_begins_with_what_no_reader_takes_for_text_and_says_its_unit(tmp_path: Path) -> None:
    save_mesh(crate(), tmp_path / "crate.stl")
    content = (tmp_path / "crate.stl").read_bytes()
    assert len(content) == 84 + 50 * 12 and not content.lower().startswith(b"solid")
    assert b"1 is 1 metre" in content[:80]
    # The first triangle is of the scene's side +x, the file's +z.
    np.testing.assert_allclose(struct.unpack("<3f", content[84:96]), [0, 0, 1], atol=1e-6)


def test_obj_says_its_unit_and_its_axes(tmp_path: Path) -> None:
    save_mesh(crate(), tmp_path / "my crate.obj")
    first, second, *_ = (tmp_path / "my crate.obj").read_text().splitlines()
    assert first == "# OBJ has no units: 1 is 1 metre, as in glTF; y up, front towards +z; sRGB colours"
    assert second == "o my_crate"


def test_every_format_has_a_writer() -> None:
    assert tuple(suffix[1:] for suffix in WRITERS) == FORMATS


# --- places and names ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pivot", "size_m", "low", "high"),
    [
        ("scene", None, MIDDLE - EDGES / 2, MIDDLE + EDGES / 2),
        ("centre", None, -EDGES / 2, EDGES / 2),
        ("ground", None, [-0.2, -0.1, 0], [0.2, 0.1, 0.8]),
        ("ground", 4.0, [-1, -0.5, 0], [1, 0.5, 4]),
        ("scene", 1.6, 2 * MIDDLE - EDGES, 2 * MIDDLE + EDGES),
    ],
)
def test_pivot_and_size_are_those_worked_out_by_hand(
    pivot: Any, size_m: float | None, low: Any, high: Any
) -> None:
    mesh = place_of(crate(), pivot=pivot, size_m=size_m)(crate())
    np.testing.assert_allclose([mesh.vertices.min(0), mesh.vertices.max(0)], [low, high], atol=1e-6)


@pytest.mark.parametrize("size_m", [0.0, -1.0, 1e39, np.inf, np.nan])
def test_a_size_that_no_file_holds_is_refused(tmp_path: Path, size_m: float) -> None:
    with pytest.raises(ValueError, match=r"size_m is the largest extent in metres, 1e-06 to 1e\+06, got"):
        save_meshes(crate(), tmp_path / "new", size_m=size_m)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("size_m", [1e-6, 1e6])
def test_the_smallest_and_the_largest_mesh_are_whole(tmp_path: Path, size_m: float) -> None:
    save_meshes(crate(), tmp_path, formats=["stl", "obj", "glb"], size_m=size_m)
    for suffix in ("stl", "obj"):
        read = by_trimesh(tmp_path / f"mesh.{suffix}")
        assert np.ptp(read.vertices, axis=0).max() == pytest.approx(size_m, rel=1e-5)
    rows = np.frombuffer((tmp_path / "mesh.stl").read_bytes()[84:], np.dtype([("normal", "<f4", 3), ("rest", "V38")]))  # fmt: skip
    np.testing.assert_allclose(
        np.abs(rows["normal"]).max(1), 1, atol=1e-6
    )  # a box has normals along the axes


def test_corner_normals_do_not_depend_on_how_sides_are_cut() -> None:
    mesh = welded(crate())
    other = mesh.faces.reshape(6, 2, 3).copy()
    a, b, c, d = other[:, 0, 0], other[:, 0, 1], other[:, 0, 2], other[:, 1, 2]
    flipped = np.stack([np.stack([a, b, d], 1), np.stack([b, c, d], 1)], 1).reshape(-1, 3)
    for faces in (mesh.faces, flipped):
        found = vertex_normals(mesh.vertices, faces)
        np.testing.assert_allclose(found, np.sign(mesh.vertices - MIDDLE) / np.sqrt(3), atol=1e-5)


@pytest.mark.parametrize(
    "name", ["", "a mug", "../mug", "mug.v2", "-mug", "größe", "m" * 65, "a/b", "contact", "Wall", "COM1"]
)
def test_names_that_some_program_cannot_read_or_that_are_taken_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"export\.name") as caught:
        check_files(None, name, 0, "files")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "word", ["export.formats=glb,stl", "export.formats=[glb,stl]", "export.formats='glb,stl'"]
)
def test_formats_are_a_list_however_it_is_written(word: str) -> None:
    assert list(compose_config(["prompt=x", word]).export.formats) == ["glb", "stl"]


def test_formats_are_a_list_from_python_too() -> None:
    for given in ("stl", ["stl"], ("stl",)):
        assert list(
            compose_config(as_overrides({"prompt": "x", "export.formats": given})).export.formats
        ) == ["stl"]
    assert compose_config(["prompt=x", "export.formats=null"]).export.formats is None


REFUSED = [
    (["export.name='a mug'"], r"export\.name must be 1 to 64 letters.*got 'a mug'"),
    (["export.formats=glb,fbx"], r"export\.formats must be glb, obj, ply, stl or usdz.*fbx"),
    (["export.formats=[]"], r"export\.formats must be"),
    (["export.pivot=top"], r"export\.pivot must be scene, centre or ground, got 'top'"),
    (["export.size_m=0"], r"export\.size_m must be .*in \[1e-06, 1e\+06\].*got 0"),
    (["export.size_m=1e39"], r"export\.size_m must be .*in \[1e-06, 1e\+06\].*got 1e\+39"),
    (["export.lods=9"], r"export\.lods must be .*\[0, 8\]"),
    (["export.lod_as=msft"], r"export\.lod_as=msft would do nothing: add export\.lods=3"),
    (
        ["export.lod_as=msft", "export.lods=2", "export.formats=obj"],
        r"into the GLB; add glb to export\.formats",
    ),
    (
        ["mesh=x.glb", "export.pivot=ground"],
        r"export\.pivot=ground would do nothing: a mesh that is textured stays as it is",
    ),
    (["mesh=x.glb", "export.size_m=1"], r"export\.size_m=1\.0 would do nothing"),
    (["mesh=x.glb", "export.lods=2"], r"export\.lods=2 would do nothing"),
    (["mesh=x.glb", "export.formats=usdz"], r"comes back with its nodes and materials, as GLB alone"),
]


@pytest.mark.parametrize(("words", "said"), REFUSED)
def test_what_cannot_be_exported_is_refused_before_anything_is_loaded(words: list[str], said: str) -> None:
    with pytest.raises(ValueError, match=said) as caught:
        compose_config(["prompt=x", *words])
    assert "\n" not in str(caught.value)


def test_without_usd_core_a_line_says_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(choices, "find_spec", lambda name: None)
    said = r"usd-core; install it with pip install usd-core"
    with pytest.raises(ValueError, match=said):
        compose_config(["prompt=x", "export.formats=usdz"])
    with pytest.raises(ValueError, match=said):
        save_mesh(crate(), tmp_path / "crate.usdz")
    assert not list(tmp_path.iterdir())


# --- USDZ ---------------------------------------------------------------------------------------


def complaints(path: Path) -> list[str]:
    """What Pixar's validators find in a package; an older library has them as a checker."""
    from pxr import Usd, UsdUtils

    try:
        from pxr import UsdValidation
    except ImportError:
        checker = UsdUtils.ComplianceChecker(arkit=True)
        checker.CheckCompliance(str(path))
        return [*checker.GetErrors(), *checker.GetFailedChecks()]
    validators = UsdValidation.ValidationRegistry().GetOrLoadAllValidators()
    context = UsdValidation.ValidationContext(validators)
    return [f"{each.GetName()}: {each.GetMessage()}" for each in context.Validate(Usd.Stage.Open(str(path)))]


@pytest.mark.parametrize("kind", ["textured", "coloured", "plain"])
@pytest.mark.parametrize("up", ["y", "z"])
def test_usdz_is_valid_aligned_in_metres_and_upright(tmp_path: Path, kind: str, up: Any) -> None:
    pytest.importorskip("pxr", reason="usd-core is not installed")
    from pxr import Usd, UsdGeom

    textured = crate()
    mesh = {
        "textured": textured,
        "coloured": welded(textured),
        "plain": replace(welded(textured), colours=None),
    }[kind]
    path = tmp_path / "3d-crate.usdz"  # a prim's name begins with a letter and has no minus
    save_mesh(mesh, path, up=up)
    assert complaints(path) == []
    stage = Usd.Stage.Open(str(path))
    assert UsdGeom.GetStageMetersPerUnit(stage) == 1.0 and UsdGeom.GetStageUpAxis(stage) == up.upper()
    assert stage.GetDefaultPrim().GetPath() == "/_d_crate"
    with zipfile.ZipFile(path) as package:
        inside = package.infolist()
        assert [Path(each.filename).suffix for each in inside] == [
            ".usdc",
            *([".png"] if kind == "textured" else []),
        ]
        content = path.read_bytes()
        for each in inside:
            named, extra = struct.unpack("<HH", content[each.header_offset + 26 : each.header_offset + 30])
            assert (each.header_offset + 30 + named + extra) % 64 == 0
            assert each.compress_type == zipfile.ZIP_STORED
    save_mesh(mesh, path, up=up)
    assert path.read_bytes() == content and os.listdir(tmp_path) == [path.name]


def test_a_usdz_has_one_thing_to_place_beneath_its_root(tmp_path: Path) -> None:
    """What is imageable has a place, and programs list it as an object; materials are not, nor is what holds them."""
    pytest.importorskip("pxr", reason="usd-core is not installed")
    from pxr import Usd, UsdGeom, UsdShade

    save_mesh(crate(), tmp_path / "crate.usdz")
    stage = Usd.Stage.Open(str(tmp_path / "crate.usdz"))
    placed = [prim for prim in stage.Traverse() if prim.IsA(UsdGeom.Imageable)]
    assert [str(prim.GetPath()) for prim in placed] == ["/crate", "/crate/crate"]
    (material,) = (prim for prim in stage.Traverse() if prim.IsA(UsdShade.Material))
    assert material.GetPath() == "/crate/Materials/crate"


@pytest.mark.parametrize("name", ["Materials", "Looks", "surface", "st", "colour", "displayColor"])
def test_no_name_of_a_usdz_meets_one_of_its_own_prims(tmp_path: Path, name: str) -> None:
    pytest.importorskip("pxr", reason="usd-core is not installed")
    save_meshes(crate(), tmp_path, formats=["usdz"], name=name)
    read = by_pxr(tmp_path / f"{name}.usdz")
    assert len(read.faces) == 12 and read.names == {name} and complaints(tmp_path / f"{name}.usdz") == []
    np.testing.assert_array_equal(read.texels(), np.repeat(COLOURS, 2, axis=0))


def test_the_validators_see_a_package_without_its_texture(tmp_path: Path) -> None:
    pytest.importorskip("pxr", reason="usd-core is not installed")
    save_mesh(crate(), tmp_path / "crate.usdz")
    with zipfile.ZipFile(tmp_path / "crate.usdz") as package:
        layer = package.read("crate.usdc")
    with zipfile.ZipFile(tmp_path / "bare.usdz", "w") as package:
        package.writestr("crate.usdc", layer)
    assert complaints(tmp_path / "bare.usdz")


# --- levels of detail ---------------------------------------------------------------------------


def wavy(points: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A ball of radius 0.6, with colours that change smoothly and an edge between front and back."""
    colour = 0.5 + 0.3 * torch.sin(4 * points)
    colour = torch.where(points[:, :1] > 0, colour, 1 - colour)
    return 4 * torch.exp(20 * (0.6 - points.norm(dim=-1))), colour


@pytest.fixture(scope="module")
def ball() -> Mesh:
    """A sphere of 1,280 faces with a baked texture."""
    made = trimesh.creation.icosphere(3, 0.6)
    vertices, faces = np.asarray(made.vertices, np.float32), np.asarray(made.faces)
    bare = Mesh(vertices, faces, vertex_normals(vertices, faces))
    paint = partial(surface_albedo, wavy)
    return bake_texture(colour_vertices(bare, paint), paint, size=128)


@pytest.fixture(scope="module")
def lower(ball: Mesh) -> list[Mesh]:
    return levels(ball, 3)


def shown(mesh: Mesh, cameras: Cameras, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Pictures of a mesh, one ray a pixel, its texture read at the nearest texel; and where they show it."""
    assert mesh.texture is not None and mesh.uv is not None
    origins, directions = (rays.reshape(-1, 3).numpy() for rays in cameras.rays(size, size))
    solid = trimesh.Trimesh(mesh.vertices, mesh.faces, process=False)
    face, ray, place = RayMeshIntersector(solid).intersects_id(
        origins, directions, multiple_hits=False, return_locations=True
    )
    weight = trimesh.triangles.points_to_barycentric(solid.triangles[face], place)
    u, v = np.einsum("nc,nck->kn", weight, mesh.uv[mesh.faces[face]])
    height, width = mesh.texture.shape[:2]
    row, column = (
        np.clip(at, 0, most - 1).astype(int) for at, most in (((1 - v) * height, height), (u * width, width))
    )
    picture, seen = np.ones((len(origins), 3)), np.zeros(len(origins), bool)
    picture[ray], seen[ray] = mesh.texture[row, column] / 255, True
    return picture, seen


def test_levels_halve_the_faces_stay_closed_and_share_the_texture(ball: Mesh, lower: list[Mesh]) -> None:
    assert [len(mesh.faces) for mesh in lower] == [640, 320, 160]
    for mesh in lower:
        assert mesh.texture is ball.texture
        joined = welded(mesh)
        solid = trimesh.Trimesh(joined.vertices, joined.faces, process=False)
        assert solid.is_watertight and solid.volume == pytest.approx(4 / 3 * np.pi * 0.6**3, rel=0.12)
        assert (np.einsum("nk,nk->n", mesh.normals, mesh.vertices) > 0.55).all()  # outward, of length 1


def test_levels_look_like_the_full_mesh(ball: Mesh, lower: list[Mesh]) -> None:
    cameras = turntable(4, 25.0)
    full, there = shown(ball, cameras, 96)
    errors = []
    for mesh in lower:
        picture, seen = shown(mesh, cameras, 96)
        assert (there & seen).sum() > 0.93 * (there | seen).sum()
        errors.append(np.abs(picture - full)[there & seen].mean())
    # The colours' own spread is 0.2: coordinates of other charts, or of other places of one, would be as wrong as that.
    assert np.abs(full[there] - full[there].mean(0)).mean() > 0.15
    assert errors[0] < 0.005 and errors[1] < 0.01 and errors[2] < 0.015, errors


def test_a_level_s_coordinates_lead_back_to_the_place_that_they_colour(ball: Mesh, lower: list[Mesh]) -> None:
    assert ball.uv is not None
    (u0, v0), (u1, v1), (u2, v2) = np.moveaxis(ball.uv[ball.faces].astype(np.float64), 0, -1)
    area = (u1 - u0) * (v2 - v0) - (u2 - u0) * (v1 - v0)
    for mesh, far in zip(lower, (0.03, 0.05, 0.08), strict=True):
        assert mesh.uv is not None
        u, v = mesh.uv[:, :1].astype(np.float64), mesh.uv[:, 1:].astype(np.float64)
        b = ((u - u0) * (v2 - v0) - (u2 - u0) * (v - v0)) / area
        c = ((u1 - u0) * (v - v0) - (u - u0) * (v1 - v0)) / area
        inside = np.minimum(np.minimum(b, c), 1 - b - c)
        face = inside.argmax(1)
        assert (inside.max(1) > -1e-3).all()  # every vertex is in some face of the atlas
        row = np.arange(len(face))
        weight = np.stack([1 - b[row, face] - c[row, face], b[row, face], c[row, face]], axis=1)
        place = np.einsum("nc,nck->nk", weight, ball.vertices[ball.faces[face]])
        apart = np.linalg.norm(place - mesh.vertices, axis=1)
        # At a seam the nearest point of a face's chart is a little away.
        assert np.median(apart) < far / 3 and np.quantile(apart, 0.99) < 4 * far
        assert len(np.unique(charts(ball)[face])) > 1


def test_no_vertex_is_doubled_but_for_other_coordinates(lower: list[Mesh]) -> None:
    for mesh in lower:
        assert mesh.uv is not None
        both = np.concatenate([mesh.vertices, mesh.uv], axis=1)
        assert len(np.unique(both, axis=0)) == len(both) > len(np.unique(mesh.vertices, axis=0))
        assert set(np.unique(mesh.faces)) == set(range(len(mesh.vertices)))


def test_a_single_chart_needs_no_doubled_vertices(ball: Mesh) -> None:
    (mesh,) = levels(welded(ball), 1)
    assert len(mesh.vertices) == len(np.unique(mesh.vertices, axis=0)) and mesh.uv is None
    assert mesh.colours is not None
    # Colours of vertices are those of the nearest place, where the field has them.
    wanted = wavy(torch.from_numpy(mesh.vertices))[1].numpy()
    assert np.abs(mesh.colours - wanted).mean() < 0.025


def test_the_nearest_point_of_a_triangle_is_trimesh_s() -> None:
    random = np.random.default_rng(0)
    triangles, points = random.normal(size=(500, 3, 3)), random.normal(size=(500, 3)) * 1.5
    weight, distance = closest(points, triangles)
    found = trimesh.triangles.closest_point(triangles, points)
    np.testing.assert_allclose(np.einsum("nc,nck->nk", weight, triangles), found, atol=1e-9)
    np.testing.assert_allclose(distance, np.linalg.norm(found - points, axis=1), atol=1e-9)
    line = np.array([[[0, 0, 0], [1, 0, 0], [2, 0, 0]]], float)  # without area
    np.testing.assert_allclose(closest(np.array([[1.5, 1, 0]]), line)[1], [1.0])


def test_what_cannot_be_simplified_has_fewer_levels() -> None:
    vertices = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]], np.float32)
    faces = np.array([[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]])
    assert levels(Mesh(vertices, faces, vertex_normals(vertices, faces)), 3) == []


def test_levels_are_files_of_every_format_that_share_one_material(tmp_path: Path, ball: Mesh) -> None:
    told = save_meshes(ball, tmp_path, formats=["glb", "obj", "stl"], name="ball", lods=2, size_m=0.3)
    assert [level["faces"] for level in told["lods"]] == [640, 320]
    assert {path.name for path in tmp_path.iterdir()} == {*told["meshes"], "ball.mtl", "ball.png"}
    for number, faces in enumerate((1280, 640, 320)):
        stem = "ball" if number == 0 else f"ball_lod{number}"
        glb, obj = by_hand(tmp_path / f"{stem}.glb"), by_trimesh(tmp_path / f"{stem}.obj")
        assert len(glb.faces) == len(obj.faces) == len(by_trimesh(tmp_path / f"{stem}.stl").faces) == faces
        assert glb.names == obj.names == {stem, "ball"}
        assert ball.texture is not None
        np.testing.assert_array_equal(obj.picture, ball.texture)
        np.testing.assert_array_equal(glb.picture, ball.texture)
        assert np.ptp(glb.vertices, axis=0).max() == pytest.approx(0.3, rel=0.06)


def test_msft_lod_puts_the_levels_into_one_file_with_one_texture(tmp_path: Path, ball: Mesh) -> None:
    told = save_meshes(ball, tmp_path, formats=["glb"], name="ball", lods=2, lod_as="msft")
    assert told["meshes"] == ["ball.glb"] == os.listdir(tmp_path)
    tree, _ = read_glb(tmp_path / "ball.glb")
    assert tree["extensionsUsed"] == ["MSFT_lod"] and "extensionsRequired" not in tree
    first = in_scene(tree)  # the full mesh alone
    ids = tree["nodes"][first]["extensions"]["MSFT_lod"]["ids"]
    assert tree["nodes"][first]["extras"] == {"MSFT_screencoverage": [0.5, 0.25, 0.0]}
    chain = [tree["nodes"][index] for index in (first, *ids)]
    assert [node["name"] for node in chain] == ["ball", "ball_lod1", "ball_lod2"]
    primitives = [tree["meshes"][node["mesh"]]["primitives"][0] for node in chain]
    assert [tree["accessors"][each["indices"]]["count"] // 3 for each in primitives] == [1280, 640, 320]
    assert {each["material"] for each in primitives} == {0} and len(tree["images"]) == 1
    assert len(trimesh.load_mesh(tmp_path / "ball.glb", process=False).faces) == 1280
    # The validator does not know MSFT_lod and takes its levels for unused, but has nothing else to say.
    said = {each["code"] for each in khronos.findings(tmp_path / "ball.glb")}
    assert said == {"UNSUPPORTED_EXTENSION", "UNUSED_OBJECT"}


# --- assets and runs ----------------------------------------------------------------------------


def unseen(cameras: Cameras, height: int, width: int) -> Render:
    raise AssertionError("no picture is needed")


def test_an_asset_is_saved_as_one_file_or_as_a_folder(tmp_path: Path) -> None:
    scene: Any = None
    asset = Asset("a crate", tmp_path, scene, unseen, {})
    asset.__dict__["mesh"] = crate()  # as if it had been made
    assert asset.save(tmp_path / "my crate.glb", pivot="ground", size_m=0.25) == tmp_path / "my crate.glb"
    read = by_hand(tmp_path / "my crate.glb")
    np.testing.assert_allclose([read.vertices.min(0), read.vertices.max(0)], [LOW, HIGH], atol=1e-7)
    assert read.names == {"my crate"}
    asset.save(tmp_path / "all", formats=["glb", "stl"], name="crate")
    assert set(os.listdir(tmp_path / "all")) == {"crate.glb", "crate.stl"}
    with pytest.raises(ValueError, match=r"glb, obj, ply, stl, usdz, got fbx"):
        asset.save(tmp_path / "crate.fbx")
    with pytest.raises(ValueError, match="name= is for a folder"):
        asset.save(tmp_path / "crate.glb", name="box")
    with pytest.raises(ValueError, match="lods is 0 to 8"):
        check_files(["glb"], "crate", 9, "files")


def test_an_asset_says_where_it_is(tmp_path: Path) -> None:
    scene: Any = None
    asset = Asset("a crate", tmp_path, scene, unseen, {})
    asset.__dict__["mesh"] = crate()
    written = asset.save(tmp_path / "Big.GLB")
    assert written.is_file() and os.listdir(tmp_path) == ["Big.GLB"] and written == tmp_path / "Big.GLB"
    assert by_hand(written).names == {"Big"}


@pytest.mark.parametrize("ending", ["glb", "GLB", "Obj", "PLY", "stl"])
def test_a_mesh_file_is_named_as_its_path_says(tmp_path: Path, ending: str) -> None:
    scene: Any = None
    asset = Asset("a crate", tmp_path, scene, unseen, {})
    asset.__dict__["mesh"] = crate()
    path = tmp_path / f"m.{ending}"
    assert asset.save(path, lods=1) == path
    sidecars = ["m.mtl", "m.png"] if ending == "Obj" else []
    assert sorted(os.listdir(tmp_path)) == sorted([path.name, f"m_lod1.{ending}", *sidecars])
    asset.save(tmp_path / "small" / f"m.{ending.lower()}")
    # The same bytes as under the usual name, except for a level that an OBJ does not name.
    asset.save(tmp_path / "capitals" / path.name)
    usual = (tmp_path / "small" / f"m.{ending.lower()}").read_bytes()
    assert (tmp_path / "capitals" / path.name).read_bytes() == usual


@pytest.mark.parametrize("name", ["q.glb", "q.PLY", "q.obj"])
def test_a_file_for_a_folder_of_formats_is_refused(tmp_path: Path, name: str) -> None:
    scene: Any = None
    asset = Asset("a crate", tmp_path, scene, unseen, {})
    asset.__dict__["mesh"] = crate()
    with pytest.raises(ValueError, match=rf"path is a folder, and .*{name} ends as a file does"):
        asset.save(tmp_path / name, formats=["ply"])
    with pytest.raises(ValueError, match=r"a list such as \['glb'\], got 'glb'"):
        asset.save(tmp_path / "folder", formats="glb")
    assert not os.listdir(tmp_path)
    asset.save(tmp_path / "v1.2", formats=["ply"])  # a folder may have a dot
    assert os.listdir(tmp_path / "v1.2") == ["mesh.ply"]


@pytest.mark.parametrize("ending", ["glb", "obj", "ply", "stl"])
def test_a_mesh_that_cannot_be_written_names_the_path_that_was_given(tmp_path: Path, ending: str) -> None:
    scene: Any = None
    asset = Asset("a crate", tmp_path, scene, unseen, {})
    asset.__dict__["mesh"] = crate()
    path = tmp_path / f"m.{ending}"
    path.mkdir()
    with pytest.raises(IsADirectoryError) as caught:
        asset.save(path)
    assert str(path) in str(caught.value) and ".part" not in str(caught.value)


#: Of an OBJ, what replaces the texture of another one: without an OBJ, with one of its own, and with one that is not ours.
STRANGE: list[dict[str, str]] = [
    {"mug.png": "mine"},
    {"mug.mtl": "mine"},
    {"mug.png": "mine", "mug.mtl": "newmtl a\nmap_Kd other.png\n", "mug.obj": "mtllib mug.mtl\n"},
    {"mug.mtl": "newmtl a\n", "mug.obj": "mtllib other.mtl\nv 0 0 0\n"},
    {"mug.png": "mine", "mug.obj": "v 0 0 0\n"},
]


@pytest.mark.parametrize("there", STRANGE)
@pytest.mark.parametrize("how", ["asset", "folder", "mesh"])
def test_an_obj_replaces_no_picture_or_material_of_another(
    tmp_path: Path, there: dict[str, str], how: str
) -> None:
    for name, text in there.items():
        (tmp_path / name).write_text(text)
    scene: Any = None
    asset = Asset("a crate", tmp_path, scene, unseen, {})
    asset.__dict__["mesh"] = crate()
    with pytest.raises(ValueError, match=r"mug\.(png|mtl) is there and .* choose another name") as caught:
        if how == "asset":
            asset.save(tmp_path / "mug.obj")
        elif how == "folder":
            asset.save(tmp_path, formats=["glb", "obj"], name="mug")
        else:
            save_mesh(crate(), tmp_path / "mug.obj")
    assert "\n" not in str(caught.value)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == there


def test_an_obj_replaces_its_own_texture_and_one_without_needs_none(tmp_path: Path) -> None:
    darker = replace(crate(), texture=np.zeros((2 * TILE, 3 * TILE, 3), np.uint8))
    for mesh in (crate(), darker):
        save_mesh(mesh, tmp_path / "my crate.obj")
        np.testing.assert_array_equal(by_trimesh(tmp_path / "my crate.obj").picture, mesh.texture)
    (tmp_path / "bare.png").write_text("mine")
    save_mesh(welded(crate()), tmp_path / "bare.obj")
    assert (tmp_path / "bare.png").read_text() == "mine" and not (tmp_path / "bare.mtl").exists()


def test_an_empty_mesh_is_one_line(tmp_path: Path) -> None:
    empty = Mesh(np.zeros((0, 3), np.float32), np.zeros((0, 3), np.int64), np.zeros((0, 3), np.float32))
    with pytest.raises(ValueError, match="expected a mesh with faces to save, got none") as caught:
        save_meshes(empty, tmp_path / "new")
    assert "\n" not in str(caught.value) and not (tmp_path / "new").exists()


#: Options of scenes with a mesh, as small as they may be, and another choice of what shapes it.
MESHED = {
    "hash_grid": ["scene.levels=2", "export.iso=2"],
    "sdf": ["scene.levels=2", "scene.resolution=16", "init=x"],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MESHED)
def test_an_asset_s_mesh_is_the_one_that_its_run_writes(tmp_path: Path, name: str) -> None:
    config = compose_config(
        ["prompt=a red mug", f"scene={name}", *MESHED[name], "scene.occupancy_resolution=16", "export.resolution=20", "export.faces=150",
         "export.texture_size=64", "export.frames=1", "export.picture_size=16", "export.formats=glb"]
    )  # fmt: skip
    scene = scene_maker(config)(seed=torch.Generator().manual_seed(0))
    asset = describe_and_export(
        config, tmp_path, scene, look(scene, torch.device("cpu")), {"prompt": "a red mug", "seconds": {}}
    )
    asset.save(tmp_path / "again" / "mesh.glb")
    assert 50 < len(asset.mesh.faces) <= 150 and asset.mesh.texture is not None
    assert asset.mesh.texture.shape == (64, 64, 3)
    assert (tmp_path / "again" / "mesh.glb").read_bytes() == (tmp_path / "mesh.glb").read_bytes()
    if name == "sdf":  # which begins as a ball of radius 0.5, in cubes of 0.1 along their edge
        radii = np.linalg.norm(asset.mesh.vertices, axis=1)
        assert np.abs(radii - 0.5).max() < 0.02 and asset.mesh.iso_level == 0


SMALL = ["prompt=a red mug", "iterations=3", "scene.levels=2", "scene.occupancy_resolution=16", "export.resolution=24", "export.faces=300", "export.texture_size=64",
         "export.formats=stl", "export.iso=2", "device=cpu"]  # fmt: skip


@pytest.fixture
def run(tmp_path: Path) -> tuple[Path, Any]:
    """The folder of a run of three steps that was exported as STL, and its scene."""
    from omegaconf import OmegaConf

    config = compose_config(SMALL)
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.yaml").write_text(OmegaConf.to_yaml(config))
    generator = torch.Generator().manual_seed(0)
    scene = scene_maker(config)(seed=generator)
    state = State(scene, optimiser_of(scene, (0.9, 0.99), 1e-15, 0.0), generator)
    save_checkpoint(folder / "checkpoints", 3, {**state.state_dict(), "step": 3})
    (folder / "manifest.json").write_text('{"prompt": "a red mug", "state": "failed", "why": "no surface"}')
    return folder, scene


def command(*arguments: str) -> int:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert isinstance(caught.value.code, int)
    return caught.value.code


def test_a_finished_run_is_exported_again_without_its_prior(
    run: tuple[Path, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, scene = run
    assert command("export", str(folder), "export.formats=glb,ply", "export.name=mug", "export.lods=1") == 0
    names = ["mug.glb", "mug_lod1.glb", "mug.ply", "mug_lod1.ply"]
    assert capsys.readouterr().out.splitlines() == [str(folder / name) for name in names]
    options = {**compose_config(SMALL).export, "formats": ["glb", "ply"], "name": "mug", "lods": 1}
    (tmp_path / "own").mkdir()
    MeshWriter(scene.field())(tmp_path / "own", look(scene, torch.device("cpu")), options)
    assert all((folder / name).read_bytes() == (tmp_path / "own" / name).read_bytes() for name in names)
    manifest = json.loads((folder / "manifest.json").read_text())
    (said,) = manifest["exports"]
    assert said["meshes"] == names and said["lods"][0]["faces"] == said["faces"] // 2
    assert said["options"] == ["export.formats=glb,ply", "export.name=mug", "export.lods=1"]
    assert "state" not in manifest and {*names} <= {*manifest["files"]}
    assert (folder / "report.html").is_file()


def test_exporting_again_replaces_nothing(run: tuple[Path, Any], capsys: pytest.CaptureFixture[str]) -> None:
    folder, _ = run
    (folder / "mesh.png").write_text("mine")
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    refused = [
        (
            ["export.formats=obj"],
            r"mesh.png is there already, and distill export replaces nothing; choose another export.name=",
        ),
        (["iterations=4"], "takes options of export"),
        (["export.formats=fbx"], "export.formats must be"),
        *(
            ([f"export.{word}"], f"export.{word.partition('=')[0]} would do nothing: distill export writes meshes alone")
            for word in ("enabled=true", "frames=3", "picture_size=64", "elevation_deg=5")
        ),
        (["export.lod_as=msft"], "export.lod_as=msft would do nothing: add export.lods=3"),
        (["export.name=1_000", "export.name=true", "export.name=a.b"], "got 'a.b'"),
    ]  # fmt: skip
    for words, said in refused:
        assert command("export", str(folder), *words) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert said in line
    assert command("export", str(folder / "nowhere")) == 2
    assert command("export") == 2
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*") if ".lock" not in path.name} == before


def rewritten(folder: Path, **export: Any) -> None:
    """Give a run other options of export than it had."""
    from omegaconf import OmegaConf

    stored = OmegaConf.load(folder / "config.yaml")
    for name, value in export.items():
        OmegaConf.update(stored, f"export.{name}", value)
    (folder / "config.yaml").write_text(OmegaConf.to_yaml(stored))


@pytest.mark.parametrize("lod_as", ["msft", "both"])
@pytest.mark.parametrize(
    ("words", "files"),
    [
        (["export.lods=0"], ["mesh.glb", "mesh.ply"]),
        (["export.formats=ply"], ["mesh.ply", "mesh_lod1.ply"]),
        (["export.lod_as=files", "export.formats=glb"], ["mesh.glb", "mesh_lod1.glb"]),
    ],
)
def test_a_run_s_own_levels_are_no_one_s_mistake(
    run: tuple[Path, Any], lod_as: str, words: list[str], files: list[str]
) -> None:
    folder, _ = run
    rewritten(folder, lods=1, lod_as=lod_as, formats=["glb", "ply"])
    assert sorted(names_of(_config(folder, words).export)) == files


@pytest.mark.parametrize("name", ["1_000", "true", "1e3", "0x10"])
def test_a_name_is_a_text_whatever_it_looks_like(run: tuple[Path, Any], name: str) -> None:
    word = f"export.name={name}"
    assert _config(run[0], [word]).export.name == name
    assert compose_config(["prompt=x", quote_text(word)]).export.name == name  # as the command line does


def tree_of(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and ".lock" not in path.name
    }


@pytest.mark.parametrize(
    "where", ["distill.export.files.write_ply", "distill.run.folder.manifest.write_report"]
)
def test_an_export_that_fails_half_way_leaves_nothing_and_can_be_done_again(
    run: tuple[Path, Any], monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    folder, _ = run
    before = tree_of(folder)

    def full(*given: Any, **named: Any) -> None:
        raise OSError(28, "No space left on device")

    words = ["export.formats=obj,stl,ply", "export.name=mug"]
    with monkeypatch.context() as patched:
        patched.setattr(where, full)
        patched.setitem(WRITERS, ".ply", full if where.endswith("ply") else WRITERS[".ply"])
        assert command("export", str(folder), *words) == 1
    assert tree_of(folder) == before
    assert command("export", str(folder), *words) == 0
    assert {path.name for path in folder.glob("mug*")} == {
        "mug.obj",
        "mug.mtl",
        "mug.png",
        "mug.stl",
        "mug.ply",
    }


@pytest.mark.parametrize(
    ("files", "said"), [(("mesh", "spheres"), "mesh, spheres"), (("spheres",), "spheres"), ((), "no mesh")]
)
def test_a_scene_that_writes_other_files_than_a_mesh_is_not_exported_again(
    run: tuple[Path, Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    files: tuple[str, ...],
    said: str,
) -> None:
    folder, _ = run

    def own(scene: Any) -> dict[str, Any]:
        return dict.fromkeys(files, unseen)

    monkeypatch.setattr("distill.renderers.nerf.HashGridScene.assets", own)
    before = tree_of(folder)
    assert command("export", str(folder), "export.name=mug") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"a scene that writes {said}, and distill export writes meshes alone" in line
    assert tree_of(folder) == before


def test_what_does_nothing_for_the_run_s_own_scene_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from omegaconf import OmegaConf

    config = compose_config(["prompt=x", "scene=sdf", "init=y"])
    (tmp_path / "config.yaml").write_text(OmegaConf.to_yaml(config))
    assert command("export", str(tmp_path), "export.iso=2") == 2
    assert "export.iso=2.0 would do nothing: the surface is where the signed" in capsys.readouterr().err


def test_continuing_a_run_keeps_what_was_exported_again(run: tuple[Path, Any]) -> None:
    folder, _ = run
    (folder / "manifest.json").write_text('{"prompt": "a red mug"}')
    small = ["export.frames=1", "export.picture_size=16"]
    rewritten(folder, frames=1, picture_size=16)
    assert command("export", str(folder), "export.name=mug") == 0
    (before,) = json.loads((folder / "manifest.json").read_text())["exports"]
    assert command(*SMALL, *small, f"output_dir={folder}", "resume=true") == 0
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["exports"] == [before] and manifest["export"]["meshes"] == ["mesh.stl"]
    assert {"mug.stl", "mesh.stl"} <= {*manifest["files"]}


# --- odd meshes and paths ---------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".obj", ".stl", ".ply", ".glb", ".usdz"])
def test_an_empty_mesh_is_one_line_and_no_file(suffix: str, tmp_path: Path) -> None:
    nothing = Mesh(np.zeros((0, 3), np.float32), np.zeros((0, 3), np.int64), np.zeros((0, 3), np.float32))
    with pytest.raises(ValueError, match="expected a mesh with faces to save, got none"):
        save_mesh(nothing, tmp_path / f"mesh{suffix}")
    assert not list(tmp_path.iterdir())


def test_a_path_may_begin_with_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "home").mkdir()
    save_mesh(tetrahedron(), "~/one.ply")
    save_meshes(tetrahedron(), "~/more", formats=["ply"])
    asset = Asset("", tmp_path, SimpleNamespace(), None, {})  # type: ignore[arg-type]
    asset.__dict__["mesh"] = tetrahedron()
    asset.save("~/asset.ply")
    assert [path.name for path in tmp_path.iterdir()] == ["home"]
    names = {"one.ply", "more", "asset.ply"}
    assert {path.name for path in (tmp_path / "home").iterdir()} == names


def test_levels_that_are_left_out_are_told(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("WARNING"):
        assert levels(tetrahedron(), 3) == []
    assert caplog.messages == ["only 0 levels of 3: the mesh of 4 faces cannot be simplified further"]
