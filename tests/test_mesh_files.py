"""Mesh files as they are in the wild: what each says of coordinates, colours and parts, against values worked out by hand."""

from __future__ import annotations

import base64
import json
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import khronos
import numpy as np
import pytest
import torch
import trimesh
from PIL import Image
from test_run import QUICK, command, error_of
from test_surface import decibels, generator, halves, reading, shown, small, triangles_apart

from distill.cameras import turntable
from distill.export.files import save_mesh
from distill.export.mesh import Mesh
from distill.meshes.read import given_normals
from distill.meshes.surface import Surface
from distill.meshes.write import Paints, write_textured
from distill.renderers.surface import SurfaceScene, own_points

BOX = trimesh.creation.box()
#: One texel of each triangle's colour; twelve of them, 4 x 3.
CELLS = np.random.default_rng(0).integers(0, 255, (3, 4, 3), np.uint8)
CORNERS = ("v/vt", "v//vn", "v/vt/vn")


def decoded(colour: Any) -> Any:
    return np.where(colour <= 0.04045, colour / 12.92, ((colour + 0.055) / 1.055) ** 2.4)


def encoded(linear: Any) -> Any:
    return np.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear ** (1 / 2.4) - 0.055)


def thirds(part: Any) -> Any:
    """Colours in the middle of a part's faces."""
    count = part.faces[1]
    return part.look.colours(torch.arange(count), torch.full((count, 3), 1 / 3)).numpy()


# --- OBJ ----------------------------------------------------------------------------------------


def obj(path: Path, corner: str = "v/vt", back: bool = False, head: str = "", picture: bool = False) -> Any:
    """A cube of eight v whose corners have a vt and a vn of their own; returns these, ``[12, 3, 2]`` and ``[12, 3, 3]``."""
    uv = np.random.default_rng(1).permutation(triangles_apart().reshape(12, 3, 2))
    normals = np.random.default_rng(2).normal(size=(12, 3, 3))
    normals /= np.linalg.norm(normals, axis=2, keepdims=True)
    lines = [head] if head else []
    lines += [f"{key} " + " ".join(f"{v:.7f}" for v in row) for key, rows in
              (("v", BOX.vertices), ("vt", uv.reshape(-1, 2)), ("vn", normals.reshape(-1, 3))) for row in rows]  # fmt: skip
    if picture:
        lines.append("usemtl wood")
    for number, face in enumerate(BOX.faces):
        words = []
        for i, v in enumerate(face):
            at = 3 * number + i
            index = (
                {"v": v - 8, "vt": at - 36, "vn": at - 36}
                if back
                else {"v": v + 1, "vt": at + 1, "vn": at + 1}
            )
            words.append("/".join(str(index[key]) if key else "" for key in corner.split("/")))
        lines.append("f " + " ".join(words))
    path.write_text("\n".join(lines) + "\n")
    return uv, normals


def with_picture(path: Path) -> Any:
    """The cube with an MTL file; returns its coordinates and each face's colour, by where its middle lies."""
    uv, _ = obj(path, "v/vt/vn", head="mtllib m.mtl", picture=True)
    (path.parent / "m.mtl").write_text("newmtl wood\nKd 1 1 1\nmap_Kd p.png\n")
    Image.fromarray(CELLS).resize((256, 192), Image.Resampling.NEAREST).save(path.parent / "p.png")
    middle = uv.mean(1)
    column, row = (middle[:, 0] * 4).astype(int), ((1 - middle[:, 1]) * 3).astype(int)
    return uv, CELLS[row, column] / 255


@pytest.mark.parametrize("back", [False, True])
@pytest.mark.parametrize("corner", CORNERS)
def test_corners_that_share_a_vertex_keep_what_they_do_not_share(
    tmp_path: Path, corner: str, back: bool
) -> None:
    uv, normals = obj(tmp_path / "m.obj", corner, back)
    surface = reading(tmp_path / "m.obj", up="+z", front="+x")
    (mesh,) = surface.scene.geometry.values()
    np.testing.assert_allclose(mesh.triangles, BOX.triangles, atol=1e-6)
    if "vt" in corner:
        np.testing.assert_allclose(mesh.visual.uv[mesh.faces], uv, atol=1e-6)
    if "vn" in corner:
        found = given_normals(mesh)
        assert found is not None
        np.testing.assert_allclose(found[mesh.faces], normals, atol=1e-5)
        np.testing.assert_allclose(surface.normals, normals, atol=1e-5)  # what is shaded
    (part,) = surface.parts
    assert (
        not part.coloured and part.material == part.name
    )  # coordinates alone are no colours, and no material


def test_an_objs_texture_is_shown_where_its_file_puts_it_and_stays_there(tmp_path: Path) -> None:
    uv, colours = with_picture(tmp_path / "m.obj")
    surface = reading(tmp_path / "m.obj", init_texture=True)
    face, weight, colour = own_points(surface, 500, generator())
    np.testing.assert_allclose(colour, colours[face], atol=1e-6)
    assert weight.shape == (500, 3) and surface.parts[0].coloured
    np.testing.assert_allclose(np.asarray(surface.parts[0].look.uv), uv, atol=1e-6)
    figures = write_textured(surface, Paints(lambda points: (points + 1) / 2), tmp_path / "out.glb", size=256)
    assert figures["own_uv"] == 1
    (after,) = reading(tmp_path / "out.glb").parts
    np.testing.assert_allclose(np.asarray(after.look.uv), uv, atol=1e-6)


def test_a_meshs_texture_that_cannot_be_read_is_refused_only_where_it_is_needed(tmp_path: Path) -> None:
    with_picture(tmp_path / "m.obj")
    for spoil in (lambda path: path.write_bytes(path.read_bytes()[:200]), Path.unlink):
        spoil(tmp_path / "p.png")
        assert len(reading(tmp_path / "m.obj").parts) == 1
        with pytest.raises(ValueError, match=r"^mesh\.init_texture=true needs the texture p\.png of wood"):
            reading(tmp_path / "m.obj", init_texture=True)


@pytest.mark.parametrize(
    "called",
    [r"pictures\p.png", "Pictures/P.PNG", '"pictures/p.png"', r"C:\work\wood.png", "../m/pictures/p.png"],
)
def test_a_texture_is_found_however_another_system_wrote_its_path(tmp_path: Path, called: str) -> None:
    (tmp_path / "m" / "pictures").mkdir(parents=True)
    _, colours = with_picture(tmp_path / "m" / "m.obj")
    (tmp_path / "m" / "p.png").rename(tmp_path / "m" / ("wood.png" if "wood" in called else "pictures/p.png"))
    library = tmp_path / "m" / "m.mtl"
    library.write_text(library.read_text().replace("p.png", called))
    surface = reading(tmp_path / "m" / "m.obj", init_texture=True)
    np.testing.assert_allclose(thirds(surface.parts[0]), colours, atol=1e-6)


def test_textures_lie_beside_the_mtl_file_or_else_the_obj(tmp_path: Path) -> None:
    (tmp_path / "materials").mkdir()
    _, colours = with_picture(tmp_path / "m.obj")
    (tmp_path / "m.mtl").rename(tmp_path / "materials" / "m.mtl")
    text = (tmp_path / "m.obj").read_text().replace("mtllib m.mtl", "mtllib materials/m.mtl")
    (tmp_path / "m.obj").write_text(text)
    Image.new("RGB", (2, 2), "red").save(tmp_path / "other.png")
    for move, expected in (
        (None, colours),
        ("materials/p.png", colours),
        ("p.png", np.ones((12, 1)) * (1, 0, 0)),
    ):
        if move == "p.png":  # both are there now, and the one beside the MTL file counts
            (tmp_path / "materials" / "p.png").rename(tmp_path / "p.png")
            (tmp_path / "other.png").rename(tmp_path / "materials" / "p.png")
        elif move:
            (tmp_path / "p.png").rename(tmp_path / move)
        surface = reading(tmp_path / "m.obj", init_texture=True)
        np.testing.assert_allclose(thirds(surface.parts[0]), expected, atol=1e-6)


def red_and_blue(
    path: Path, head: str, change: Any = lambda text: text
) -> dict[str, tuple[bool, list[float]]]:
    """A cube of which half is red, by a.mtl, and half blue, by b c.mtl; returns how its parts are coloured, by their materials."""
    (path.parent / "a.mtl").write_text("newmtl red one\nKd 1 0 0\n")
    (path.parent / "b c.mtl").write_text("newmtl blue\nKd 0 0 1\nnewmtl red one\nKd 0 1 0\n")
    lines = [head, *(f"v {x} {y} {z}" for x, y, z in BOX.vertices)]
    for name, faces in (("red one", BOX.faces[:6]), ("blue", BOX.faces[6:])):
        lines += [f"usemtl {name}", *("f " + " ".join(str(v + 1) for v in face) for face in faces)]
    path.write_bytes(change("\n".join(lines) + "\n").encode())
    return {part.material: (part.coloured, thirds(part)[0].tolist()) for part in reading(path).parts}


@pytest.mark.parametrize(
    ("head", "change"),
    [
        ("mtllib a.mtl\nmtllib b c.mtl", str),
        ("mtllib b c.mtl\nmtllib a.mtl", lambda text: text.replace("b c.mtl\nmtllib a.mtl", "a.mtl\nmtllib b c.mtl")),
        ("# mtllib gone.mtl\nmtllib a.mtl\n  # and mtllib too\nmtllib b c.mtl", str),
        ('mtllib\ta.mtl  \nmtllib "b c.mtl"', str),
        ("mtllib .\\A.MTL\nmtllib B C.mtl", lambda text: text.replace("usemtl ", "usemtl\t")),
        ("mtllib a.mtl\nmtllib b c.mtl", lambda text: "\ufeff" + text.replace("\n", "\r\n")),
        ("mtllib a.mtl\nmtllib b c.mtl", lambda text: text.replace("\n", "\r")),
        ("mtllib a.mtl\nmtllib b c.mtl", lambda text: "  " + text.replace("\n", "\n\t ")),
        ("mtllib a.mtl\nmtllib b c.mtl", lambda text: text.replace("f 1 3 0", "f 1 3\\\n0").replace(" one", "   one")),
    ],
)  # fmt: skip
def test_all_material_files_are_read_however_an_obj_names_them(
    tmp_path: Path, head: str, change: Any
) -> None:
    """Of a material that is in both, the first counts."""
    found = red_and_blue(tmp_path / "m.obj", head, change)
    assert found == {"red one": (True, [1, 0, 0]), "blue": (True, [0, 0, 1])}


def test_several_material_files_on_one_line_are_read(tmp_path: Path) -> None:
    (tmp_path / "d.mtl").write_text("newmtl blue\nKd 0 0 1\n")
    found = red_and_blue(tmp_path / "m.obj", "mtllib a.mtl d.mtl")
    assert found == {"red one": (True, [1, 0, 0]), "blue": (True, [0, 0, 1])}


def test_a_material_that_no_file_has_is_named_where_its_colour_is_needed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "red.mtl").write_text("newmtl red one\nKd 1 0 0\n")
    red_and_blue(tmp_path / "m.obj", "mtllib red.mtl")
    caplog.clear()
    reading(tmp_path / "m.obj")
    assert not caplog.messages
    reading(tmp_path / "m.obj", init_texture=True)
    (said,) = caplog.messages
    assert said.endswith("m.obj uses the material blue, which red.mtl does not have; its faces begin grey")


def test_a_material_file_that_is_not_there_is_refused_only_where_it_is_needed(tmp_path: Path) -> None:
    found = red_and_blue(tmp_path / "m.obj", "mtllib gone.mtl")
    assert len(found) == 2 and not any(coloured for coloured, _ in found.values())
    for option in ({"init_texture": True}, {"keep": ["blue"]}):
        said = "mesh.keep=blue" if "keep" in option else "mesh.init_texture=true"
        with pytest.raises(
            ValueError, match=rf"^{said} needs the material file gone\.mtl, which .*m\.obj names"
        ):
            reading(tmp_path / "m.obj", **option)
    text = (tmp_path / "m.obj").read_text().replace("0.5\n", "0.5 1 0 0\n")
    (tmp_path / "m.obj").write_text(text)
    assert thirds(reading(tmp_path / "m.obj", init_texture=True).parts[0])[0].tolist() == [1, 0, 0]


@pytest.mark.parametrize(
    ("line", "colour"),
    [("Kd 0.2", (0.2, 0.2, 0.2)), ("kd 1 0 0 # red", (1, 0, 0)), ("Ka 0.1\nKs 0.5\nKd 0 1 0", (0, 1, 0)),
     ("Kd 2 -1 0", (1, 0, 0)), ("Ka spectral x.rfl\nKd\t0\t0 1", (0, 0, 1))],
)  # fmt: skip
def test_a_line_of_an_mtl_file_costs_no_other_its_colour(tmp_path: Path, line: str, colour: Any) -> None:
    path = boxes_of(tmp_path, ["odd", "new"], f"newmtl odd\n{line}\nnewmtl new\nKd 0 1 1\n")
    looks = {part.material: thirds(part)[0] for part in reading(path).parts}
    np.testing.assert_allclose(looks["odd"], colour, atol=0.003)
    np.testing.assert_allclose(looks["new"], [0, 1, 1], atol=1e-6)


@pytest.mark.parametrize("line", ["Kd 1 0", "Kd 0,5 0 1", "d nan", "Ns shiny", "Tr inf", "Kd spectral x.rfl"])
def test_a_number_of_an_mtl_file_that_cannot_be_read_is_named(tmp_path: Path, line: str) -> None:
    path = boxes_of(tmp_path, ["odd"], f"newmtl odd\n{line}\n")
    with pytest.raises(ValueError, match=rf"line 2 of m\.mtl, {line}: expected one finite number") as caught:
        reading(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("lines", "opacity"),
    [("Tr 0.75", 0.25), ("tr 0.75 # glass", 0.25), ("Tr 1", 0), ("Tr 0", None), ("Tr 0.75\nd 0.5", 0.5), ("d 0.5\nTr 0.75", 0.5),
     ("d 1\nTr 1", None), ("d -halo 0.5", 0.5)],
)  # fmt: skip
def test_transparency_is_one_less_the_dissolve_where_there_is_none(
    tmp_path: Path, lines: str, opacity: float | None
) -> None:
    library = f"newmtl glass\nKd 1 0 0\n{lines}\nnewmtl new\nKd 1 1 1\n"
    surface = reading(boxes_of(tmp_path, ["glass", "new"], library), keep=["glass"])
    write_textured(surface, Paints(torch.abs), tmp_path / "out.glb", size=64)
    (kept,) = (one for one in tree_of(tmp_path / "out.glb")["materials"] if one["name"] == "glass")
    assert kept.get("alphaMode") == (None if opacity is None else "BLEND")
    expected = [1, 0, 0, 1 if opacity is None else opacity]
    assert kept["pbrMetallicRoughness"]["baseColorFactor"] == pytest.approx(expected)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.02, 0.3, 0.6, 0.99])
def test_a_glb_that_is_cut_short_is_one_line(tmp_path: Path, share: float) -> None:
    BOX.export(tmp_path / "whole.glb")
    data = (tmp_path / "whole.glb").read_bytes()
    (tmp_path / "m.glb").write_bytes(data[: max(4, int(share * len(data)))])
    with pytest.raises(ValueError, match=r"m\.glb cannot be read \(it ends too early\)") as caught:
        reading(tmp_path / "m.glb")
    assert "\n" not in str(caught.value)


def test_an_objs_objects_are_parts_with_their_names(tmp_path: Path) -> None:
    (tmp_path / "m.mtl").write_text("newmtl wood\nKd 0.5 0.25 0\n")
    lines = ["mtllib m.mtl"]
    for number, name in enumerate(("seat", "back")):
        lines += [f"o {name}", *(f"v {x + 2 * number} {y} {z}" for x, y, z in BOX.vertices), "usemtl wood"]
        lines += ["f " + " ".join(str(v + 1 + 8 * number) for v in face) for face in BOX.faces]
    (tmp_path / "m.obj").write_text("\n".join(lines) + "\n")
    surface = reading(tmp_path / "m.obj")
    assert {(part.name, part.material, part.faces[1]) for part in surface.parts} == {
        ("seat", "wood", 12), ("back", "wood", 12),
    }  # fmt: skip
    assert surface.parts[0].look.corners[0, 0].tolist() == pytest.approx([0.5, 0.25, 0], abs=0.003)
    write_textured(surface, Paints(torch.abs), tmp_path / "out.glb", size=64)
    assert {*reading(tmp_path / "out.glb").scene.geometry} == {"seat", "back"}


PAINTED = np.array([[255, 0, 51], [0, 102, 204]])  # by x


def painted_obj(folder: Path, rows: Any) -> Path:
    """The cube with a colour, as written, for each of the two values of x."""
    lines = [
        f"v {' '.join(map(str, place))} {' '.join(map(str, rows[int(place[0] > 0)]))}"
        for place in BOX.vertices
    ]
    lines += [f"f {' '.join(str(v + 1) for v in face)}" for face in BOX.faces]
    (folder / "m.obj").write_text("\n".join(lines) + "\n")
    return folder / "m.obj"


@pytest.mark.parametrize("whole", [1, 255])
def test_an_objs_vertex_colours_are_shares_or_whole_numbers_up_to_255(tmp_path: Path, whole: int) -> None:
    rows = PAINTED if whole == 255 else PAINTED / 255
    (part,) = reading(painted_obj(tmp_path, rows.tolist()), init_texture=True).parts
    found = part.look.corners.numpy()
    expected = PAINTED[(BOX.vertices[BOX.faces][..., 0] > 0).astype(int)] / 255
    # Which of a cube's faces comes first is the reader's matter.
    seen, meant = (sorted(each.round(3).tolist()) for each in (found, expected.astype(np.float32)))
    assert seen == meant
    assert part.coloured


@pytest.mark.parametrize("odd", ["127.5", "256", "-3", "nan"])
def test_an_objs_vertex_colours_out_of_range_are_refused_only_where_they_are_needed(
    tmp_path: Path, odd: str
) -> None:
    path = painted_obj(tmp_path, [["0", "7", "9"], [odd, "0", "0"]])
    assert len(reading(path).parts) == 1
    with pytest.raises(
        ValueError, match=rf"must be in \[0, 1\], or whole numbers in \[0, 255\], got {odd}"
    ) as caught:
        reading(path, init_texture=True)
    assert "\n" not in str(caught.value)


def test_a_vertex_colour_that_was_rounded_to_a_little_above_1_is_1(tmp_path: Path) -> None:
    (part,) = reading(painted_obj(tmp_path, [[1.0002, 0, 0], [0, 0, 0]]), init_texture=True).parts
    assert part.look.corners[..., 0].unique().tolist() == [0, 1]


@pytest.mark.parametrize("prefix", ["", "diffuse_"])
@pytest.mark.parametrize("binary", [False, True])
def test_a_plys_colours_are_read_under_either_name(tmp_path: Path, prefix: str, binary: bool) -> None:
    box = BOX.copy()
    shades = PAINTED[(box.vertices[:, 0] > 0).astype(int)]
    box.visual = trimesh.visual.ColorVisuals(
        box, vertex_colors=np.c_[shades, np.full(8, 255)].astype(np.uint8)
    )
    data = trimesh.exchange.ply.export_ply(box, encoding="binary" if binary else "ascii")
    for name in (b"red", b"green", b"blue"):
        data = data.replace(b"uchar " + name, b"uchar " + prefix.encode() + name)
    (tmp_path / "m.ply").write_bytes(data)
    surface = reading(tmp_path / "m.ply", init_texture=True)
    (part,) = surface.parts
    expected = PAINTED[(BOX.vertices[BOX.faces][..., 0] > 0).astype(int)] / 255
    np.testing.assert_allclose(part.look.corners, expected, atol=1e-6)


@pytest.mark.parametrize(
    ("used", "new"),
    [("red # warm", "red"), ("red", "red # warm"), ("red #25", "red #25"), ("Material #25", "Material #25")],
)
def test_a_comment_behind_a_name_is_no_part_of_it_where_the_name_is_known_without(
    tmp_path: Path, used: str, new: str
) -> None:
    lines = [f"v {' '.join(map(str, place))}" for place in BOX.vertices]
    lines += ["mtllib m.mtl # the colours", f"usemtl {used}"]
    lines += [f"f {' '.join(str(v + 1) for v in face)}" for face in BOX.faces]
    (tmp_path / "m.obj").write_text("\n".join(lines) + "\n")
    (tmp_path / "m.mtl").write_text(f"newmtl {new}\nKd 1 0.5 0\nnewmtl Material\nKd 0 0 0\n")
    (part,) = reading(tmp_path / "m.obj", init_texture=True).parts
    np.testing.assert_allclose(thirds(part)[0], [1, 0.5, 0], atol=0.003)
    assert part.material == used.removesuffix(" # warm")


# --- our own files ------------------------------------------------------------------------------


@pytest.mark.parametrize(("suffix", "up"), [
    ("glb", "y"), ("obj", "y"), ("obj", "z"), ("ply", "y"), ("ply", "z"), ("stl", "y"), ("stl", "z"),
])  # fmt: skip
def test_a_file_that_was_exported_comes_back_as_it_stood(tmp_path: Path, suffix: str, up: Any) -> None:
    edges = np.array([0.9, 0.5, 0.3])  # front, left, top
    box = trimesh.creation.box(edges)
    mesh = Mesh(
        np.asarray(box.vertices, np.float32),
        np.asarray(box.faces),
        np.asarray(box.vertex_normals, np.float32),
    )
    save_mesh(mesh, tmp_path / f"größe.{suffix}", up=up)
    surface = reading(tmp_path / f"größe.{suffix}")
    found = np.ptp(surface.vertices, axis=0)
    np.testing.assert_allclose(found / found.max(), edges / 0.9, atol=1e-5)
    # +x is the front: of a mesh with a nose there, the nose is there again.
    nosed = replace(mesh, vertices=mesh.vertices * np.where(mesh.vertices[:, :1] > 0, 0.5, 1))
    save_mesh(nosed, tmp_path / f"nose.{suffix}", up=up)
    vertices = reading(tmp_path / f"nose.{suffix}").vertices
    front, back = (vertices[vertices[:, 0] * sign > 0] for sign in (1, -1))
    assert np.ptp(front[:, 1]) < 0.6 * np.ptp(back[:, 1])


@pytest.mark.parametrize("suffix", ["ply", "stl"])
def test_other_programs_files_are_upright_with_z_up(tmp_path: Path, suffix: str) -> None:
    trimesh.creation.box([0.3, 0.5, 0.9]).export(tmp_path / f"box.{suffix}")
    found = np.ptp(reading(tmp_path / f"box.{suffix}").vertices, axis=0)
    np.testing.assert_allclose(
        found / found.max(), np.array([0.5, 0.3, 0.9]) / 0.9, atol=1e-5
    )  # -y is the front


# --- glTF ---------------------------------------------------------------------------------------


class Built:
    """A glTF file that is put together by hand."""

    def __init__(self) -> None:
        self.tree: dict[str, Any] = {
            "asset": {"version": "2.0"}, "scene": 0, "scenes": [{"nodes": []}], "nodes": [], "meshes": [],
            "accessors": [], "bufferViews": [], "materials": [], "buffers": [],
        }  # fmt: skip

    def view(self, data: bytes, **more: Any) -> int:
        uri = "data:application/octet-stream;base64," + base64.b64encode(data).decode()
        self.tree["buffers"].append({"byteLength": len(data), "uri": uri})
        number = len(self.tree["buffers"]) - 1
        self.tree["bufferViews"].append({"buffer": number, "byteLength": len(data), **more})
        return len(self.tree["bufferViews"]) - 1

    def accessor(self, values: Any, **more: Any) -> int:
        codes = {"int8": 5120, "uint8": 5121, "int16": 5122, "uint16": 5123, "uint32": 5125, "float32": 5126}
        kind = "SCALAR" if values.ndim == 1 else f"VEC{values.shape[1]}"
        accessor = {"componentType": codes[values.dtype.name], "type": kind, "count": len(values)}
        self.tree["accessors"].append({"bufferView": self.view(values.tobytes()), **accessor, **more})
        return len(self.tree["accessors"]) - 1

    def picture(self, pixels: Any, folder: Path, name: str) -> dict[str, Any]:
        Image.fromarray(pixels).save(folder / name)
        self.tree.setdefault("images", []).append({"uri": name.replace(" ", "%20")})
        self.tree.setdefault("textures", []).append({"source": len(self.tree["images"]) - 1})
        return {"index": len(self.tree["textures"]) - 1}

    def mesh(
        self, name: str, attributes: dict[str, int], material: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        primitive: dict[str, Any] = {"attributes": attributes}
        if material is not None:
            self.tree["materials"].append(material)
            primitive["material"] = len(self.tree["materials"]) - 1
        self.tree["meshes"].append({"name": name, "primitives": [primitive]})
        self.tree["nodes"].append({"name": f"{name} node", "mesh": len(self.tree["meshes"]) - 1})
        self.tree["scenes"][0]["nodes"].append(len(self.tree["nodes"]) - 1)
        return primitive

    def save(self, path: Path) -> Path:
        path.write_text(json.dumps(self.tree))
        return path


def triangles(count: int) -> Any:
    """Triangles of one size along x, float, ``[3 count, 3]``."""
    one = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0]])
    return (one + np.arange(count)[:, None, None] * (2, 0, 0)).reshape(-1, 3).astype(np.float32)


@pytest.mark.parametrize("kind", ["float32", "uint8", "uint16"])
@pytest.mark.parametrize("width", [3, 4])
def test_vertex_colours_multiply_the_base_colour_linearly(tmp_path: Path, kind: str, width: int) -> None:
    built, whole = Built(), {"float32": 1, "uint8": 255, "uint16": 65535}[kind]
    share = np.repeat([[0.2, 0.6, 1.0, 0.5]], 3, axis=0)[:, :width]  # 51 and 153 of 255
    colours = built.accessor((share * whole).astype(kind), normalized=kind != "float32")
    grey = built.picture(np.full((2, 2, 3), 128, np.uint8), tmp_path, "a grey.png")
    uv = built.accessor(np.full((3, 2), 0.5, np.float32))
    place = built.accessor(triangles(1))
    factor = {"baseColorFactor": [0.4, 1, 0.2, 1]}  # 102 and 51 of 255
    both = {"POSITION": place, "COLOR_0": colours}
    built.mesh("flat", dict(both), {"name": "a", "pbrMetallicRoughness": factor})
    built.mesh("white", dict(both), {"name": "b"})
    built.mesh("bare", dict(both))
    textured = {"name": "c", "pbrMetallicRoughness": {**factor, "baseColorTexture": grey}}
    built.mesh("textured", {**both, "TEXCOORD_0": uv}, textured)
    parts = {part.name: part for part in reading(built.save(tmp_path / "m.gltf"), init_texture=True).parts}
    linear = np.array([0.2, 0.6, 1.0])
    expected = {
        "flat": linear * (0.4, 1, 0.2), "white": linear, "bare": linear,
        "textured": linear * (0.4, 1, 0.2) * decoded(128 / 255),
    }  # fmt: skip
    for name, product in expected.items():
        np.testing.assert_allclose(thirds(parts[name])[0], encoded(product), atol=2e-3, err_msg=name)
        assert parts[name].coloured
    torch.testing.assert_close(
        parts["textured"].look.to(torch.device("cpu")).tint, parts["textured"].look.tint
    )


def test_colours_of_vertices_on_a_texture_are_interpolated_linearly(tmp_path: Path) -> None:
    built = Built()
    colours = built.accessor(np.array([[0, 0, 0], [1, 1, 1], [1, 1, 1]], np.float32))
    info = built.picture(np.full((2, 2, 3), 200, np.uint8), tmp_path, "p.png")
    uv = built.accessor(np.full((3, 2), 0.5, np.float32))
    attributes = {"POSITION": built.accessor(triangles(1)), "COLOR_0": colours, "TEXCOORD_0": uv}
    built.mesh("m", attributes, {"name": "a", "pbrMetallicRoughness": {"baseColorTexture": info}})
    (part,) = reading(built.save(tmp_path / "m.gltf")).parts
    weight = torch.tensor([[0.75, 0.25, 0.0], [0.5, 0.2, 0.3]])
    found = part.look.colours(torch.zeros(2, dtype=torch.long), weight)[:, 0]
    np.testing.assert_allclose(found, encoded(decoded(200 / 255) * np.array([0.25, 0.5])), atol=1e-5)


CHANGES: list[tuple[dict[str, Any], Any]] = [
    ({"offset": [0.25, 0.5]}, lambda u, v: (u + 0.25, v + 0.5)),
    ({"scale": [0.5, 2]}, lambda u, v: (0.5 * u, 2 * v)),
    # A quarter, counter-clockwise where v points down: right becomes up.
    ({"rotation": np.pi / 2}, lambda u, v: (v, -u)),
    (
        {"rotation": np.pi / 2, "scale": [2, 3], "offset": [0.1, 0.2]},
        lambda u, v: (3 * v + 0.1, -2 * u + 0.2),
    ),
    ({"texCoord": 1}, lambda u, v: (1 - u, 1 - v)),
]


def on_squares(tmp_path: Path, info: dict[str, Any], **sets: Any) -> Built:
    built = Built()
    info = {**built.picture(CELLS, tmp_path, "p.png"), **info}
    attributes = {
        "POSITION": built.accessor(triangles(4)),
        **{name: built.accessor(*v) for name, v in sets.items()},
    }
    built.mesh("m", attributes, {"name": "wood", "pbrMetallicRoughness": {"baseColorTexture": info}})
    return built


@pytest.mark.parametrize(("change", "by_hand"), CHANGES)
def test_a_textures_transform_and_set_of_coordinates_are_those_of_the_file(
    tmp_path: Path, change: dict[str, Any], by_hand: Any
) -> None:
    uv = np.random.default_rng(3).random((12, 2)).astype(np.float32)
    info = {"extensions": {"KHR_texture_transform": change}}
    built = on_squares(tmp_path, info, TEXCOORD_0=(uv,), TEXCOORD_1=(1 - uv,))
    built.tree["extensionsRequired"] = ["KHR_texture_transform"]
    surface = reading(built.save(tmp_path / "m.gltf"), init_texture=True)
    u, v = by_hand(*uv.T)
    found = surface.parts[0].look.uv
    assert found is not None
    np.testing.assert_allclose(found.reshape(-1, 2), np.stack([u, 1 - v], 1), atol=1e-6)


def test_the_set_that_a_texture_names_may_be_the_second_or_absent(tmp_path: Path) -> None:
    uv = np.random.default_rng(3).random((12, 2)).astype(np.float32)
    built = on_squares(tmp_path, {"texCoord": 1}, TEXCOORD_0=(uv,), TEXCOORD_1=(uv / 2,))
    found = reading(built.save(tmp_path / "m.gltf")).parts[0].look.uv
    np.testing.assert_allclose(
        np.asarray(found).reshape(-1, 2), np.stack([uv[:, 0] / 2, 1 - uv[:, 1] / 2], 1), atol=1e-6
    )
    built = on_squares(tmp_path, {"texCoord": 1}, TEXCOORD_0=(uv,))
    assert reading(built.save(tmp_path / "m.gltf")).parts[0].look.texture is None


def test_a_kept_material_has_one_set_of_coordinates_or_is_refused(tmp_path: Path) -> None:
    uv = np.random.default_rng(3).random((12, 2)).astype(np.float32)
    info = {"extensions": {"KHR_texture_transform": {"scale": [0.5, 0.5]}}}
    built = on_squares(tmp_path, info, TEXCOORD_0=(uv,))
    built.mesh("other", {"POSITION": built.accessor(triangles(1))}, {"name": "other"})
    kept = reading(built.save(tmp_path / "m.gltf"), keep=["wood"])
    write_textured(kept, Paints(torch.abs), tmp_path / "out.glb", size=64)
    after = {part.material: part for part in reading(tmp_path / "out.glb").parts}["wood"].look
    before = next(part.look for part in kept.parts if part.kept)
    torch.testing.assert_close(after.colours(torch.arange(4), torch.full((4, 3), 1 / 3)),
                               before.colours(torch.arange(4), torch.full((4, 3), 1 / 3)))  # fmt: skip
    built.tree["materials"][0]["normalTexture"] = {"index": 0}
    with pytest.raises(ValueError, match=r"cannot keep wood of .*that differ; export it with one set"):
        reading(built.save(tmp_path / "m.gltf"), keep=["wood"])
    assert len(reading(tmp_path / "m.gltf").parts) == 2


GLASS = {"KHR_materials_transmission": {"transmissionFactor": 0.8}, "KHR_materials_ior": {"ior": 1.3}}


def lamps(tmp_path: Path) -> Built:
    """A kept material of glass, one with a strong light, and one that is to be textured."""
    built = Built()
    extended: list[dict[str, Any]] = [GLASS, {"KHR_materials_emissive_strength": {"emissiveStrength": 7.5}}, {"KHR_materials_unlit": {}}]  # fmt: skip
    for number, own in enumerate(extended):
        surface = {"metallicFactor": 0, "roughnessFactor": 0.25 * number}
        material = {"name": f"m{number}", "pbrMetallicRoughness": surface, "extensions": own}
        built.mesh(f"mesh {number}", {"POSITION": built.accessor(triangles(2))}, material)
    built.tree["extensionsUsed"] = sorted({name for own in extended for name in own})
    return built


def tree_of(path: Path) -> dict[str, Any]:
    content = path.read_bytes()
    tree: dict[str, Any] = json.loads(content[20 : 20 + int.from_bytes(content[12:16], "little")])
    return tree


def test_a_kept_material_keeps_its_factors_and_extensions(tmp_path: Path) -> None:
    surface = reading(lamps(tmp_path).save(tmp_path / "m.gltf"), keep=["m0", "m1"])
    write_textured(surface, Paints(torch.abs), tmp_path / "out.glb", size=64)
    tree = tree_of(tmp_path / "out.glb")
    after = {material["name"]: material for material in tree["materials"]}
    before = {material["name"]: material for material in tree_of_text(tmp_path / "m.gltf")["materials"]}
    for name in ("m0", "m1"):
        assert after[name]["extensions"] == before[name]["extensions"]
        assert after[name]["pbrMetallicRoughness"] == before[name]["pbrMetallicRoughness"]
    assert "extensions" not in after["m2"]  # it is a new material
    assert tree["extensionsUsed"] == sorted({*GLASS, "KHR_materials_emissive_strength"})


def tree_of_text(path: Path) -> dict[str, Any]:
    tree: dict[str, Any] = json.loads(path.read_text())
    return tree


def test_a_kept_material_whose_extensions_cannot_be_kept_is_refused(tmp_path: Path) -> None:
    built = lamps(tmp_path)
    built.tree["materials"][0]["extensions"] = {"KHR_materials_clearcoat": {"clearcoatTexture": {"index": 0}}}
    with pytest.raises(ValueError, match=r"cannot keep m0 of .* has a texture in KHR_materials_clearcoat"):
        reading(built.save(tmp_path / "m.gltf"), keep=["m0"])
    assert len(reading(tmp_path / "m.gltf", keep=["m1"]).parts) == 3
    built.tree["materials"][1]["name"] = "m2"
    with pytest.raises(ValueError, match="shares it with another material; give it one of its own"):
        reading(built.save(tmp_path / "m.gltf"), keep=["m2"])


@pytest.mark.parametrize("maps", [["baseColorTexture"], ["metallicRoughnessTexture"]])
def test_the_transform_of_a_kept_materials_maps_is_applied_whichever_it_has(
    tmp_path: Path, maps: list[str]
) -> None:
    built, uv = Built(), np.random.default_rng(3).random((12, 2)).astype(np.float32)
    change = {"KHR_texture_transform": {"offset": [0.25, 0.5]}}
    info = {**built.picture(CELLS, tmp_path, "p.png"), "extensions": change}
    attributes = {"POSITION": built.accessor(triangles(4)), "TEXCOORD_0": built.accessor(uv)}
    built.mesh("m", attributes, {"name": "kept", "pbrMetallicRoughness": dict.fromkeys(maps, info)})
    built.mesh("other", {"POSITION": built.accessor(triangles(1))}, {"name": "other"})
    (part,) = (each for each in reading(built.save(tmp_path / "m.gltf"), keep=["kept"]).parts if each.kept)
    assert part.look.uv is not None
    moved = np.stack([uv[:, 0] + 0.25, 1 - (uv[:, 1] + 0.5)], 1)
    np.testing.assert_allclose(part.look.uv.reshape(-1, 2), moved, atol=1e-6)


def boxes_of(tmp_path: Path, names: Sequence[str], library: str) -> Path:
    """An OBJ file of a box for each material, side by side."""
    (tmp_path / "m.mtl").write_text(library)
    lines = ["mtllib m.mtl", "vt 0.1 0.1", "vt 0.9 0.1", "vt 0.1 0.9"]
    for number, name in enumerate(names):
        lines += [f"o {name}", *(f"v {x + 2 * number} {y} {z}" for x, y, z in BOX.vertices), f"usemtl {name}"]
        lines += ["f " + " ".join(f"{v + 1 + 8 * number}/{i + 1}" for i, v in enumerate(face)) for face in BOX.faces]  # fmt: skip
    (tmp_path / "m.obj").write_text("\n".join(lines) + "\n")
    return tmp_path / "m.obj"


def test_a_kept_material_of_an_mtl_file_stays_transparent_or_cut_out(tmp_path: Path) -> None:
    Image.fromarray(np.dstack([CELLS[..., :3], CELLS[..., 0]])).save(tmp_path / "p.png")
    library = (
        "newmtl glass\nKd 0.2 0.4 0.6\nd 0.2\nnewmtl leaf\nmap_Kd p.png\nmap_d p.png\nnewmtl pane\nmap_Kd p.png\nd 0.4\n"
        "newmtl plain\nKd 1 0 0\nd 1.0\nnewmtl new\nKd 1 1 1\n"
    )
    kept = ["glass", "leaf", "pane", "plain"]
    surface = reading(boxes_of(tmp_path, [*kept, "new"], library), keep=kept)
    write_textured(surface, Paints(torch.abs), tmp_path / "out.glb", size=64)
    found = {material["name"]: material for material in tree_of(tmp_path / "out.glb")["materials"]}
    modes = {name: material.get("alphaMode", "OPAQUE") for name, material in found.items()}
    assert modes == {"glass": "BLEND", "leaf": "MASK", "pane": "BLEND", "plain": "OPAQUE", "new": "OPAQUE"}
    factors = {name: found[name]["pbrMetallicRoughness"].get("baseColorFactor") for name in kept}
    # Kd is as it is shown, and glTF's factor linear.
    assert factors["glass"] == pytest.approx([*decoded(np.array([0.2, 0.4, 0.6])), 0.2], abs=1e-6)
    assert factors["pane"] == pytest.approx([1, 1, 1, 0.4], abs=1e-6)
    assert factors["leaf"] is None and found["leaf"]["alphaCutoff"] == 0.5
    assert khronos.wrong(tmp_path / "out.glb") == []


@pytest.mark.parametrize("colour", [(0.01, 0.5, 0.3), (1, 0.02, 0), (0.7, 0.7, 0.7)])
def test_a_kept_colour_of_an_mtl_file_is_shown_as_before(tmp_path: Path, colour: Any) -> None:
    library = f"newmtl odd\nKd {' '.join(map(str, colour))}\nnewmtl new\nKd 1 1 1\n"
    before = reading(boxes_of(tmp_path, ["odd", "new"], library), keep=["odd"])
    write_textured(before, Paints(torch.abs), tmp_path / "out.glb", size=64)
    after = reading(tmp_path / "out.glb")
    for surface, exact in ((before, 0.002), (after, 1e-5)):
        (part,) = (part for part in surface.parts if part.material == "odd")
        np.testing.assert_allclose(thirds(part)[0], colour, atol=exact)


def test_a_kept_factor_of_gltf_is_not_rounded(tmp_path: Path) -> None:
    """Nor are those of materials without a name, or with the name of another."""
    built, factors = Built(), [[0.0031, 0.5, 0.1001, 0.3], [0.0007, 0.2, 0.9, 1], [0.7001, 0.3, 0.0002, 1]]
    for number, factor in enumerate(factors):
        material = {"name": "twin", "pbrMetallicRoughness": {"baseColorFactor": factor}}
        built.mesh(f"m{number}", {"POSITION": built.accessor(triangles(1))}, material)
    del built.tree["materials"][2]["name"]
    built.mesh("new", {"POSITION": built.accessor(triangles(1))}, {"name": "new"})
    surface = reading(built.save(tmp_path / "m.gltf"), keep=["twin", "m2"])
    looks = {part.name: thirds(part)[0] for part in surface.parts}
    for number, factor in enumerate(factors):
        np.testing.assert_allclose(looks[f"m{number}"], encoded(np.array(factor[:3])), atol=1e-5)
    write_textured(surface, Paints(torch.abs), tmp_path / "out.glb", size=64)
    tree = tree_of(tmp_path / "out.glb")
    for number, factor in enumerate(factors):
        (mesh,) = (mesh for mesh in tree["meshes"] if mesh["name"] == f"m{number}")
        kept = tree["materials"][mesh["primitives"][0]["material"]]
        assert kept["pbrMetallicRoughness"]["baseColorFactor"] == factor
        assert kept.get("name") == ("twin" if number < 2 else None)


def test_an_opacity_map_of_its_own_is_refused_only_where_it_is_kept(tmp_path: Path) -> None:
    Image.fromarray(CELLS).save(tmp_path / "p.png")
    library = "newmtl leaf\nmap_Kd p.png\nmap_d other.png\nnewmtl new\nKd 1 1 1\n"
    path = boxes_of(tmp_path, ["leaf", "new"], library)
    assert len(reading(path).parts) == 2
    with pytest.raises(
        ValueError, match=r"keep=leaf has an opacity map other\.png beside p\.png, in .*m\.obj; put it"
    ):
        reading(path, keep=["leaf"])


def test_a_kept_material_of_an_mtl_file_is_no_metal(tmp_path: Path) -> None:
    Image.fromarray(CELLS).save(tmp_path / "p.png")
    library = "newmtl wood\nKd 0.5 0.5 0.5\nmap_Kd p.png\nnewmtl other\nKd 0.5 0.25 0\nNs 30\nnewmtl new\nKd 1 1 1\n"
    path = boxes_of(tmp_path, ["wood", "other", "new"], library)
    surface = reading(path, keep=["wood", "other"])
    write_textured(surface, Paints(torch.abs), tmp_path / "out.glb", size=64)
    found = {material["name"]: material["pbrMetallicRoughness"] for material in tree_of(tmp_path / "out.glb")["materials"]}  # fmt: skip
    # Ns is 2 / roughness^4 - 2 (Karis 2013): 30 is a half.
    assert found["other"]["metallicFactor"] == found["wood"]["metallicFactor"] == 0
    assert found["other"]["roughnessFactor"] == pytest.approx(0.5)
    assert "baseColorTexture" in found["wood"] and "baseColorFactor" not in found["wood"]
    looks = {part.material: part.look for part in surface.parts}
    assert looks["other"].finish == pytest.approx((0.5, 0))


@pytest.mark.parametrize("material", [None, {"name": "a"}])
def test_dark_colours_of_vertices_are_read_and_kept_as_floats(tmp_path: Path, material: Any) -> None:
    """Half a step of linear bytes, 0.5 / 255, is sRGB 0.025: as bytes, all of these but the last would be black or wrong."""
    shades = np.array([[0.02, 0.01, 0.005], [0.03, 0.02, 0.015], [0.02, 0.5, 1.0]])
    built = Built()
    attributes = {
        "POSITION": built.accessor(triangles(1)),
        "COLOR_0": built.accessor(decoded(shades).astype(np.float32)),
    }
    built.mesh("old", dict(attributes), material)
    built.mesh("new", {"POSITION": built.accessor(triangles(2))}, {"name": "new"})
    own = "old" if material is None else "a"
    before = reading(built.save(tmp_path / "m.gltf"), keep=[own])
    write_textured(before, Paints(torch.abs), tmp_path / "out.glb", size=64)
    for surface in (before, reading(tmp_path / "out.glb")):
        (part,) = (part for part in surface.parts if part.name == "old")
        np.testing.assert_allclose(part.look.corners[0], shades, atol=1e-5)
    (mesh,) = (mesh for mesh in tree_of(tmp_path / "out.glb")["meshes"] if mesh["name"] == "old")
    names = {*mesh["primitives"][0]["attributes"]}
    assert "COLOR_0" in names and not any(name.startswith("_") for name in names)
    assert khronos.wrong(tmp_path / "out.glb") == []


def test_vertex_colours_of_our_own_glb_come_back(tmp_path: Path) -> None:
    shades = np.random.default_rng(0).uniform(0, 0.05, (8, 3)).astype(np.float32)
    save_mesh(
        Mesh(
            np.asarray(BOX.vertices, np.float32),
            BOX.faces,
            np.asarray(BOX.vertex_normals, np.float32),
            colours=shades,
        ),
        tmp_path / "m.glb",
    )
    (part,) = reading(tmp_path / "m.glb", init_texture=True).parts
    np.testing.assert_allclose(part.look.corners, shades[BOX.faces], atol=1e-5)


def test_numbers_are_read_however_they_are_stored(tmp_path: Path) -> None:
    """Normalised, interleaved and sparse ones, in files with and without a binary chunk."""
    uv = np.random.default_rng(3).integers(0, 65535, (12, 2), np.uint16)
    built = on_squares(tmp_path, {}, TEXCOORD_0=(uv,))
    tree = built.tree
    tree["accessors"][1]["normalized"] = True
    tree["extensionsRequired"] = ["KHR_mesh_quantization"]
    small_ints = np.zeros((12, 4), np.int16)
    small_ints[:, :3] = (triangles(4) * 4000).astype(np.int16)
    tree["accessors"][0] = {"bufferView": built.view(small_ints.tobytes(), byteStride=8), "componentType": 5122,
                            "type": "VEC3", "count": 12, "normalized": True}  # fmt: skip
    rows, values = np.array([2, 5], np.uint16), np.array([[0, 1, 2], [3, 4, 5]], np.float32)
    sparse = {"count": 2, "indices": {"bufferView": built.view(rows.tobytes()), "componentType": 5123},
              "values": {"bufferView": built.view(values.tobytes())}}  # fmt: skip
    tree["accessors"].append({"componentType": 5126, "type": "VEC3", "count": 6, "sparse": sparse})
    built.mesh("sparse", {"POSITION": len(tree["accessors"]) - 1})
    surface = reading(built.save(tmp_path / "m.gltf"), init_texture=True)
    geometry = surface.scene.geometry
    np.testing.assert_allclose(geometry["m"].vertices, triangles(4) * 4000 / 32767, atol=1e-4)
    expected = np.zeros((6, 3))
    expected[rows] = values
    np.testing.assert_allclose(geometry["sparse"].vertices, expected)
    found = np.asarray(surface.parts[0].look.uv).reshape(-1, 2)
    np.testing.assert_allclose(
        found, np.stack([uv[:, 0], 65535 - uv[:, 1].astype(int)], 1) / 65535, atol=1e-6
    )


def spoiled(kind: str, folder: Path) -> Path:
    built = on_squares(folder, {}, TEXCOORD_0=(np.zeros((12, 2), np.float32),))
    tree = built.tree
    primitive = tree["meshes"][0]["primitives"][0]
    if kind in ("KHR_draco_mesh_compression", "VENDOR_other"):
        primitive["extensions"] = {kind: {"bufferView": 0}}
        for number in primitive["attributes"].values():
            del tree["accessors"][number]["bufferView"]
    elif kind in ("EXT_meshopt_compression", "KHR_meshopt_compression"):
        tree["buffers"].append({"byteLength": 144})
        tree["bufferViews"][1] |= {"buffer": len(tree["buffers"]) - 1, "extensions": {kind: {"buffer": 0}}}
    elif kind == "EXT_mesh_gpu_instancing":
        tree["nodes"][0]["extensions"] = {kind: {"attributes": {}}}
    elif kind == "fan":
        primitive["mode"] = 6
    elif kind == "no data":
        del tree["accessors"][0]["bufferView"]
    else:
        tree["extensionsRequired"] = [kind.removeprefix("required ")]
    return built.save(folder / "m.gltf")


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("KHR_draco_mesh_compression", r"compressed with Draco \(KHR_draco_mesh_compression\).*without compression"),
        ("EXT_meshopt_compression", r"compressed with meshopt \(EXT_meshopt"),
        ("KHR_meshopt_compression", r"compressed with meshopt \(KHR_meshopt"),
        ("required KHR_draco_mesh_compression", "compressed with Draco"),
        ("required EXT_meshopt_compression", "compressed with meshopt"),
        ("required VENDOR_shapes", "needs VENDOR_shapes, which mesh= does not read; export it again without it"),
        ("VENDOR_other", "needs VENDOR_other"),
        ("EXT_mesh_gpu_instancing", "needs EXT_mesh_gpu_instancing"),
        ("fan", "has a fan of triangles, in m; export"),
        ("no data", "cannot be read .values are not there; they may be compressed"),
    ],
)  # fmt: skip
def test_what_trimesh_would_fill_with_zeros_or_leave_out_is_refused(
    tmp_path: Path, kind: str, expected: str
) -> None:
    with pytest.raises(ValueError, match=expected) as caught:
        reading(spoiled(kind, tmp_path))
    assert "\n" not in str(caught.value) and "m.gltf" in str(caught.value)


def test_a_compression_that_is_not_required_is_read_from_what_stands_beside_it(tmp_path: Path) -> None:
    built = on_squares(tmp_path, {}, TEXCOORD_0=(np.zeros((12, 2), np.float32),))
    primitive = built.tree["meshes"][0]["primitives"][0]
    primitive["extensions"] = {"KHR_draco_mesh_compression": {"bufferView": 0, "attributes": {"POSITION": 0}}}
    built.tree["extensionsUsed"] = ["KHR_draco_mesh_compression"]
    (mesh,) = reading(built.save(tmp_path / "m.gltf")).scene.geometry.values()
    np.testing.assert_allclose(mesh.vertices, triangles(4))


def test_a_gltfs_texture_that_cannot_be_read_is_refused_only_where_it_is_needed(tmp_path: Path) -> None:
    def cut(path: Path, tree: Any) -> None:
        path.write_bytes(path.read_bytes()[:60])

    def away(path: Path, tree: Any) -> None:
        path.unlink()

    def other(path: Path, tree: Any) -> None:
        tree["textures"][0] = {"extensions": {"KHR_texture_basisu": {"source": 0}}}

    for spoil, said in (
        (cut, "not a whole PNG"),
        (away, "p.png is not there"),
        (other, "KHR_texture_basisu"),
    ):
        built = on_squares(tmp_path, {}, TEXCOORD_0=(np.zeros((12, 2), np.float32),))
        built.mesh("other", {"POSITION": built.accessor(triangles(1))}, {"name": "other"})
        spoil(tmp_path / "p.png", built.tree)
        built.save(tmp_path / "m.gltf")
        assert len(reading(tmp_path / "m.gltf", keep=["other"]).parts) == 2
        with pytest.raises(ValueError, match=rf"^mesh\.init_texture=true needs a texture of wood .*{said}"):
            reading(tmp_path / "m.gltf", init_texture=True)
        with pytest.raises(ValueError, match=rf"^mesh\.keep=wood needs a texture of wood .*{said}"):
            reading(tmp_path / "m.gltf", keep=["wood"])


def test_a_part_without_area_beside_others_is_left_as_it_is(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    built = Built()
    line = triangles(2)
    line[:, 1:] = line[:, :1]
    built.mesh("good", {"POSITION": built.accessor(triangles(2))})
    built.mesh("line", {"POSITION": built.accessor(line)})
    with caplog.at_level(logging.INFO):
        surface: Surface = reading(built.save(tmp_path / "m.gltf"))
    assert [part.name for part in surface.parts] == ["good"] and len(surface.faces) == 2
    assert "nothing can be seen of line, whose faces have no area" in caplog.text
    write_textured(surface, Paints(torch.abs), tmp_path / "out.glb", size=64)
    np.testing.assert_allclose(reading(tmp_path / "out.glb").scene.geometry["line"].vertices, line)


# --- a whole run --------------------------------------------------------------------------------

TINY = [
    *(word for word in QUICK if not word.startswith(("export.resolution", "export.faces"))),
    "scene.levels=4",
    "scene.log2_table_size=10",
    "scene.finest_resolution=32",
    "iterations=2",
]
STILL = ["scene.encoding_lr=0", "scene.mlp_lr=0"]


def run(words: Sequence[str], prior: Path) -> int:
    return command("a ball", f"prior={prior}", "guidance=sds", *TINY, *words)


@pytest.mark.slow
def test_a_run_begins_with_the_meshs_own_colours(
    tmp_path: Path, pixel_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(SurfaceScene.begin_with_colours, "__defaults__", (80, 1024))  # enough for two colours
    halves(trimesh.creation.icosphere(subdivisions=2), axis=0).export(tmp_path / "m.glb")
    own = reading(tmp_path / "m.glb")
    # Without a rate, what is written is what it began with.
    assert run(["mesh=m.glb", "mesh.init_texture=true", *STILL, "output_dir=out"], pixel_folder) == 0
    cameras = turntable(3)
    written, grey = shown(reading(tmp_path / "out" / "mesh.glb"), cameras, 32), small(own, samples=1)
    assert decibels(written, shown(own, cameras, 32)) > 20
    assert decibels(grey.render(cameras, 32, 32).rgb.detach(), shown(own, cameras, 32)) < 15
    obj(tmp_path / "m.obj")
    said = error_of(capsys, "a ball", f"prior={pixel_folder}", "mesh=m.obj", "mesh.init_texture=true", *TINY)
    assert "m.obj has none; leave it out" in said


def test_a_face_without_coordinates_does_not_cost_a_material_its_texture_unsaid(tmp_path: Path) -> None:
    with_picture(tmp_path / "m.obj")
    lines = (tmp_path / "m.obj").read_text().splitlines()
    last = lines.pop()
    bare = "f " + " ".join(word.split("/")[0] for word in last.split()[1:])
    (tmp_path / "m.obj").write_text("\n".join([*lines, bare]) + "\n")
    for option, said in (
        ({"init_texture": True}, "mesh.init_texture=true"),
        ({"keep": ["wood"]}, "mesh.keep=wood"),
    ):
        with pytest.raises(ValueError, match=f"{said} needs texture coordinates on all faces of wood"):
            reading(tmp_path / "m.obj", **option)
    assert reading(tmp_path / "m.obj").parts
