"""Renders of a user's meshes: silhouettes, sides and textures by hand, and what a run leaves behind."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image

from distill.cameras import orbit
from distill.embedded import obj, world
from distill.lab.novel_view import render
from distill.lab.novel_view.cli import main
from distill.lab.novel_view.render import (
    Protocol,
    Surface,
    displacement,
    draw_cameras,
    draw_lights,
    draw_scale,
    from_world,
    load_surface,
    picture,
    render_object,
)
from distill.lab.novel_view.views import from_folder, from_shards


def seen(surface: Surface, azimuth: float, elevation: float = 0.0, size: int = 32) -> np.ndarray:
    camera = orbit(torch.tensor([azimuth]), torch.tensor([elevation]), 2.0, 49.13)
    return picture(surface, camera, size, 2).astype(float) / 255


def painted_box(folder: Path) -> Path:
    """A box whose faces have colours of their own: +x red, -x green, +y blue, -y yellow, +z white, -z black."""
    box = trimesh.creation.box(extents=(3, 3, 3))
    colours = {
        0: (255, 0, 0),
        1: (0, 255, 0),
        2: (0, 0, 255),
        3: (255, 255, 0),
        4: (255, 255, 255),
        5: (0, 0, 0),
    }
    box.unmerge_vertices()
    axis = np.abs(box.face_normals).argmax(1)
    side = 2 * axis + (box.face_normals[np.arange(12), axis] < 0)
    by_face = np.array([(*colours[int(s)], 255) for s in side], np.uint8)
    box.visual = trimesh.visual.ColorVisuals(box, vertex_colors=np.repeat(by_face, 3, axis=0))
    box.export(folder / "box.glb")
    return folder / "box.glb"


def test_a_spheres_silhouette_has_its_area() -> None:
    sphere = trimesh.creation.icosphere(subdivisions=4, radius=7.0)
    sphere.apply_scale(1 / sphere.extents.max())
    surface = Surface(sphere, lambda faces, barycentric: np.ones((len(faces), 3)))
    alpha = seen(surface, 30.0, 20.0, size=64)[..., 3].mean()
    # The cone that touches a sphere of radius 1/2 at distance 2, cut by the picture's plane.
    radius = math.tan(math.asin(0.25)) / math.tan(math.radians(49.13 / 2))
    assert alpha == pytest.approx(math.pi * radius**2 / 4, rel=0.02)


@pytest.mark.parametrize(
    ("azimuth", "elevation", "colour"),
    [
        (0.0, 0.0, (1, 1, 1)),  # glTF's front, +z, is seen from azimuth 0
        (180.0, 0.0, (0, 0, 0)),
        (90.0, 0.0, (1, 0, 0)),  # glTF's +x is the object's own left
        (-90.0, 0.0, (0, 1, 0)),
        (0.0, 89.0, (0, 0, 1)),  # +y is up
        (0.0, -89.0, (1, 1, 0)),
    ],
)
def test_sides_lie_where_gltf_says(
    tmp_path: Path, azimuth: float, elevation: float, colour: tuple[int, int, int]
) -> None:
    centre = seen(load_surface(painted_box(tmp_path)), azimuth, elevation)[16, 16, :3]
    brightest = centre.max()
    expected = np.array(colour) * brightest
    np.testing.assert_allclose(centre, expected, atol=0.03)
    assert (brightest > 0.3) == (sum(colour) > 0)


def test_a_mesh_is_centred_and_its_longest_side_is_one(tmp_path: Path) -> None:
    box = trimesh.creation.box(extents=(2, 8, 4))
    box.apply_translation([5, 6, 7])
    box.export(tmp_path / "box.ply")
    surface = load_surface(tmp_path / "box.ply", up="z")
    np.testing.assert_allclose(surface.mesh.bounds, [[-0.125, -0.5, -0.25], [0.125, 0.5, 0.25]], atol=1e-9)
    turned = load_surface(tmp_path / "box.ply", up="y")
    np.testing.assert_allclose(turned.mesh.extents, [0.5, 0.25, 1.0], atol=1e-9)


def test_a_texture_is_where_it_was_painted(tmp_path: Path) -> None:
    """A square facing the front with a texture of four quarters."""
    corners = np.array([[-1.0, -1, 0], [1, -1, 0], [1, 1, 0], [-1, 1, 0]])
    uv = np.array([[0.0, 0], [1, 0], [1, 1], [0, 1]])
    image = Image.fromarray(
        np.kron(
            np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [255, 255, 255]]]), np.ones((8, 8, 1))
        ).astype(np.uint8)
    )
    material = trimesh.visual.material.PBRMaterial(baseColorTexture=image)
    square = trimesh.Trimesh(corners, [[0, 1, 2], [0, 2, 3]], process=False)
    square.visual = trimesh.visual.TextureVisuals(uv, material=material)
    square.export(tmp_path / "square.glb")
    front = seen(load_surface(tmp_path / "square.glb"), 0.0)[..., :3]
    for row, column, colour in (
        (11, 11, (1, 0, 0)),
        (11, 20, (0, 1, 0)),
        (20, 11, (0, 0, 1)),
        (20, 20, (1, 1, 1)),
    ):
        found = front[row, column] / front[row, column].max()
        np.testing.assert_allclose(found, colour, atol=0.05)
    # Its single face is lit from behind too.
    assert seen(load_surface(tmp_path / "square.glb"), 180.0)[16, 16, 3] == 1


def test_cameras_are_even_over_the_sphere_and_an_objects_own() -> None:
    protocol = Protocol(views=20_000)
    cameras = draw_cameras(protocol, "chair")
    assert 1.5 <= cameras.distance.min() < 1.51
    assert 2.19 < cameras.distance.max() <= 2.2
    heights = torch.sin(torch.deg2rad(cameras.elevation_deg))
    # Uniform on [-1, 1]: mean 0, standard deviation 1 / sqrt(3).
    assert heights.mean().item() == pytest.approx(0.0, abs=0.02)
    assert heights.std().item() == pytest.approx(3**-0.5, abs=0.01)
    few = Protocol(views=3)
    assert torch.equal(draw_cameras(few, "chair").c2w, draw_cameras(few, "chair").c2w)
    assert not torch.equal(draw_cameras(few, "chair").c2w, draw_cameras(few, "table").c2w)


def test_turned_lights_are_the_lights_of_a_turned_world() -> None:
    """Turning the lights one way is turning object and camera the other way: a sphere shows it."""
    sphere = trimesh.creation.icosphere(subdivisions=4, radius=0.5)
    surface = Surface(sphere, lambda faces, barycentric: np.ones((len(faces), 3)))
    here = orbit(torch.tensor([0.0]), torch.tensor([10.0]), 2.0, 49.13)
    there = orbit(torch.tensor([-70.0]), torch.tensor([10.0]), 2.0, 49.13)
    turned, plain = (picture(surface, *given).astype(int) for given in ((here, 32, 2, 70.0), (there, 32, 2)))
    assert np.abs(turned - plain).mean() < 1.5
    assert np.abs(picture(surface, here, 32, 2).astype(int) - turned).mean() > 3
    drawn = [draw_lights(Protocol(lights_deg=40.0), f"object-{i}") for i in range(400)]
    assert max(map(abs, drawn)) <= 40
    assert np.mean(drawn) == pytest.approx(0, abs=4)
    assert draw_lights(Protocol(), "object-1") == 0


def test_an_object_has_one_size_and_one_field_of_view_of_its_own(tmp_path: Path) -> None:
    """A sphere of radius R at distance d fills the angle asin(R / d) to each side of the axis."""
    sphere = trimesh.creation.icosphere(subdivisions=4, radius=0.5)
    protocol = Protocol(views=2, size=96, fov_y_deg=(30.0, 70.0), scale=(0.5, 0.9))

    def make() -> Surface:
        return Surface(sphere.copy(), lambda faces, barycentric: np.ones((len(faces), 3)))

    seen_sizes, seen_fovs = set(), set()
    for uid in ("a", "b", "c"):
        assert render_object(make, uid, tmp_path, protocol) is None
        cameras, scale = draw_cameras(protocol, uid), draw_scale(protocol, uid)
        fov = cameras.fov_y_deg.unique().item()  # one for all views
        assert 30 <= fov <= 70
        assert 0.5 <= scale <= 0.9
        seen_sizes.add(scale)
        seen_fovs.add(fov)
        for index, distance in enumerate(cameras.distance.tolist()):
            alpha = np.asarray(Image.open(tmp_path / uid / f"{index:03d}.png"))[..., 3] / 255
            angle = math.asin(0.5 * scale / distance)
            radius = 48 * math.tan(angle) / math.tan(math.radians(fov / 2))
            assert alpha.sum() == pytest.approx(math.pi * radius**2, rel=0.02)
    assert len(seen_sizes) == len(seen_fovs) == 3


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (["--fov", "0", "40"], "--fov must be within 0 and 180"),
        (["--scale", "0", "1"], "--scale above 0"),
        (["--scale", "1", "2"], "0.9 times the largest --scale"),
    ],
)
def test_impossible_cameras_are_refused(
    wrong: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("render", "--world", "1", str(tmp_path / "out"), *wrong) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert isinstance(caught.value.code, int)
    return caught.value.code


@pytest.mark.slow
def test_a_folder_of_meshes_becomes_views_and_a_bad_one_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "a").mkdir()
    painted_box(tmp_path / "a")
    (tmp_path / "b").mkdir()
    trimesh.creation.icosphere().export(tmp_path / "b" / "box.obj")
    (tmp_path / "b" / "junk.obj").write_text("hello")
    out = tmp_path / "out"
    options = ["--views", "3", "--size", "16", "--workers", "2"]
    assert run("render", str(tmp_path / "a"), str(tmp_path / "b"), str(out), *options) == 1
    assert "2 objects in" in capsys.readouterr().out
    assert "junk is left out" in caplog.text
    assert json.loads((out / "valid_paths.json").read_text()) == ["box", "box-2"]
    views = from_folder(out, count=3, size=16)
    for uid in ("box", "box-2"):
        cameras = draw_cameras(Protocol(views=3, size=16), uid)
        rgb, position = views.read(uid, 1)
        assert 0 < (rgb.amin(0) < 1).float().mean() < 1
        torch.testing.assert_close(position, cameras.c2w[1, :3, 3], rtol=1e-5, atol=1e-5)
    before = (out / "box" / "000.png").stat().st_mtime_ns
    assert run("render", str(tmp_path / "a"), str(out), *options) == 0
    assert (out / "box" / "000.png").stat().st_mtime_ns == before
    assert run("pack", str(out), str(tmp_path / "shards"), "--objects", "1") == 0
    shards = from_shards(sorted((tmp_path / "shards").glob("*.tar")), count=3, size=16)
    assert torch.equal(shards.read("box-2", 2)[0], views.read("box-2", 2)[0])


def test_objects_of_the_embedded_world_are_themselves(tmp_path: Path) -> None:
    colour, kind = "red", "sphere"
    one, again, other = (from_world(f"{colour}-{kind}-{i:04d}", 0) for i in (1, 1, 2))
    assert np.array_equal(one.mesh.vertices, again.mesh.vertices)
    assert np.linalg.norm(one.mesh.vertices, axis=1).max() == pytest.approx(0.95)
    rgba = seen(one, 0.0)
    found = rgba[16, 16, :3] / rgba[16, 16, 0]
    paint = np.array(world.COLOURS[colour])
    np.testing.assert_allclose(found, paint / paint[0], atol=0.12)
    assert not np.array_equal(seen(one, 0.0), seen(other, 0.0))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere", "out"], "nowhere is not there"),
        (["empty", "out"], "no mesh (.glb"),
        (["empty", "out", "--distance", "0.5", "1"], "--distance must be more than 0.9"),
        (["empty", "out", "--steep", "-1"], "--steep must not be negative"),
        (["empty", "out", "--offset", "0.6"], "--offset be within 0 and 0.5"),
        (["empty", "out", "--world", "1"], "give meshes or --world, not both"),
    ],
)
def test_wrong_input_gets_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    assert run("render", *arguments) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert said in lines[0]


def test_renders_by_another_protocol_are_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    painted_box(tmp_path)
    options = ["render", str(tmp_path / "box.glb"), str(tmp_path / "out"), "--views", "2", "--workers", "1"]
    assert run(*options, "--size", "16") == 0
    assert run(*options, "--size", "24") == 2
    assert "holds renders with size 16, not 24" in capsys.readouterr().err


def test_steep_views_are_further_ones_from_any_height(tmp_path: Path) -> None:
    """A sixth of equally likely angles from -90 to 90 degrees lies above 60; the usual views stay as they were."""
    usual = Protocol(views=5, elevation_deg=(-10.0, 60.0))
    with_steep = draw_cameras(replace(usual, steep=600), "a")
    assert torch.equal(with_steep.c2w[:5], draw_cameras(usual, "a").c2w)
    steep = with_steep.elevation_deg[5:]
    assert len(steep) == 600 and steep.min() < -85 and steep.max() > 85
    assert (steep > 60).float().mean().item() == pytest.approx(1 / 6, abs=0.05)


def test_objects_beside_the_axis_are_whole_and_stay_there(tmp_path: Path) -> None:
    words = ["render", str(painted_box(tmp_path)), str(tmp_path / "out"), "--views", "3", "--steep", "2"]
    words += ["--size", "24", "--scale", "0.3", "0.3", "--workers", "1"]
    with pytest.raises(SystemExit) as done:
        main([*words, "--offset", "0.4"])
    assert done.value.code == 0
    protocol = json.loads((tmp_path / "out" / "protocol.json").read_text())
    assert (protocol["steep"], protocol["offset"]) == (2, 0.4)
    views = from_folder(tmp_path / "out", count=5, size=24)
    border = torch.ones(24, 24, dtype=torch.bool)
    border[1:-1, 1:-1] = False
    for index in range(5):
        rgb, _ = views.read("box", index)
        assert (rgb[:, border] == 1).all() and (rgb < 1).any()
    said = Protocol(views=3, steep=2, offset=0.4)
    corners = 0.15 * np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)])
    away = [displacement(said, f"object-{n}", corners, draw_cameras(said, f"object-{n}")) for n in range(40)]
    lengths = np.linalg.norm(away, axis=1)
    assert lengths.max() <= 0.4 and lengths.std() > 0.05
    again = displacement(said, "object-7", corners, draw_cameras(said, "object-7"))
    assert (again == away[7]).all()


def test_renders_of_an_earlier_version_are_gone_on_with(tmp_path: Path) -> None:
    words = ["render", str(painted_box(tmp_path)), str(tmp_path / "out"), "--views", "2", "--size", "8"]
    path = tmp_path / "out" / "protocol.json"
    for _ in range(2):
        with pytest.raises(SystemExit) as done:
            main([*words, "--workers", "1"])
        assert done.value.code == 0
        said = json.loads(path.read_text())
        path.write_text(json.dumps({name: said[name] for name in said if name not in ("steep", "offset")}))


@pytest.mark.parametrize("case", ["factor", "texture", "vertices"])
def test_colours_of_gltf_are_linear_light(case: str, tmp_path: Path) -> None:
    """0.2 of light is shown as 0.4845 (IEC 61966-2-1); half of the light of a texel of 0.8 as 0.5894."""

    def to_light(value: float) -> float:
        return ((value + 0.055) / 1.055) ** 2.4

    def to_screen(light: float) -> float:
        return 1.055 * light ** (1 / 2.4) - 0.055

    box = trimesh.creation.box()
    if case == "vertices":
        box.visual = trimesh.visual.ColorVisuals(
            box, vertex_colors=np.tile([51, 51, 51, 255], (8, 1)).astype(np.uint8)
        )
    else:
        image = Image.new("RGB", (4, 4), (204, 204, 204)) if case == "texture" else None
        factor = np.array([127.5, 127.5, 127.5, 255]) / 255 if image else np.array([0.2, 0.2, 0.2, 1.0])
        material = trimesh.visual.material.PBRMaterial(baseColorFactor=factor, baseColorTexture=image)
        box.visual = trimesh.visual.TextureVisuals(uv=np.full((8, 2), 0.5), material=material)
    box.export(tmp_path / "box.glb")
    surface = load_surface(tmp_path / "box.glb", "z")
    found = surface.colour(np.array([0]), np.array([[1 / 3, 1 / 3, 1 / 3]]))
    wanted = to_screen(to_light(0.8) * 0.5) if case == "texture" else to_screen(0.2)
    np.testing.assert_allclose(found, wanted, atol=0.003)


def test_gltf_without_a_factor_is_white_and_colours_of_vertices_beside_a_material_count(
    tmp_path: Path,
) -> None:
    """glTF 2.0: the base colour is the product of factor, (1, 1, 1, 1) where it is left out, vertices' colours and texture."""
    material = trimesh.visual.material.PBRMaterial(roughnessFactor=0.5)
    box = trimesh.creation.box()
    box.visual = trimesh.visual.TextureVisuals(uv=np.full((8, 2), 0.5), material=material)
    box.export(tmp_path / "plain.glb")
    plain = load_surface(tmp_path / "plain.glb").colour(np.array([0]), np.array([[1.0, 0, 0]]))
    np.testing.assert_allclose(plain, 1.0, atol=1e-6)
    # Corners of 0, 0.5 and 1 in red, which are mixed as light: a half in the middle.
    material = trimesh.visual.material.PBRMaterial(baseColorFactor=[255, 255, 0, 255])
    one = trimesh.Trimesh([[0, 0, 0], [1, 0, 0], [0, 1, 0]], [[0, 1, 2]], process=False)
    one.visual = trimesh.visual.TextureVisuals(uv=np.full((3, 2), 0.5), material=material)
    colours = np.array([[0, 255, 255, 255], [51, 255, 255, 255], [102, 255, 255, 255]], np.uint8)
    one.visual.vertex_attributes["color"] = colours
    (tmp_path / "tinted.glb").write_bytes(with_colours(one, colours))
    found = load_surface(tmp_path / "tinted.glb").colour(np.array([0]), np.full((1, 3), 1 / 3))
    np.testing.assert_allclose(found, [[1.055 * 0.2 ** (1 / 2.4) - 0.055, 1, 0]], atol=0.003)


def with_colours(mesh: trimesh.Trimesh, colours: np.ndarray) -> bytes:
    """A GLB of one triangle whose vertices have colours beside the material, which the exporter leaves out."""
    data = mesh.export(file_type="glb")
    assert isinstance(data, bytes)
    length = int.from_bytes(data[12:16], "little")
    tree, rest = json.loads(data[20 : 20 + length]), data[20 + length + 8 :]
    tree["bufferViews"].append({"buffer": 0, "byteOffset": len(rest), "byteLength": 12})
    said = {"componentType": 5121, "normalized": True, "type": "VEC4", "count": 3}
    tree["accessors"].append(said | {"bufferView": len(tree["bufferViews"]) - 1})
    tree["meshes"][0]["primitives"][0]["attributes"]["COLOR_0"] = len(tree["accessors"]) - 1
    rest += colours.tobytes()
    tree["buffers"][0]["byteLength"] = len(rest)
    text = json.dumps(tree).encode()
    text += b" " * (-len(text) % 4)
    head = b"glTF" + b"".join(n.to_bytes(4, "little") for n in (2, 28 + len(text) + len(rest), len(text)))
    return head + b"JSON" + text + len(rest).to_bytes(4, "little") + b"BIN\0" + rest


def test_geometries_of_one_texture_share_it(tmp_path: Path) -> None:
    image = Image.new("RGB", (4, 4), (255, 0, 0))
    material = trimesh.visual.material.PBRMaterial(baseColorTexture=image)
    scene = trimesh.Scene()
    for x in range(2):
        box = trimesh.creation.box()
        box.apply_translation([2 * x, 0, 0])
        box.visual = trimesh.visual.TextureVisuals(uv=np.zeros((8, 2)), material=material)
        scene.add_geometry(box)
    scene.export(tmp_path / "two.glb")
    first, second = render._pieces(tmp_path / "two.glb")
    assert first.look.texture is second.look.texture is not None


SQUARE = "v -1 -1 0\nv 1 -1 0\nv 1 1 0\nv -1 1 0\nvt 0 0\nvt 1 0\nvt 1 1\nvt 0 1\n"
FACES = "usemtl a\nf 1/1 2/2 3/3\nf 1/1 3/3 4/4\n"


def textured_square(folder: Path) -> Path:
    (folder / "square.mtl").write_text("newmtl a\nKd 1 0 0\nmap_Kd skin.png\n")
    (folder / "square.obj").write_text(f"mtllib square.mtl\n{SQUARE}{FACES}")
    return folder / "square.obj"


@pytest.mark.parametrize("kind", ["obj", "glb"])
def test_a_texture_of_sixteen_bits_is_as_grey_as_it_was(kind: str, tmp_path: Path) -> None:
    """0.4 of 65535, and the same of 255."""
    deep = Image.fromarray(np.full((4, 4), 26214, np.uint16))
    path = textured_square(tmp_path)
    deep.save(tmp_path / "skin.png")
    if kind == "glb":
        material = trimesh.visual.material.PBRMaterial(baseColorTexture=deep)
        box = trimesh.creation.box()
        box.visual = trimesh.visual.TextureVisuals(uv=np.zeros((8, 2)), material=material)
        path = tmp_path / "box.glb"
        box.export(path)
    found = load_surface(path).colour(np.array([0]), np.array([[0.2, 0.3, 0.5]]))
    np.testing.assert_allclose(found, 0.4, atol=1e-6)
    archive = {name: (tmp_path / name).read_bytes() for name in ("square.obj", "square.mtl", "skin.png")}
    model = obj.read(archive.__getitem__, "square.obj")
    np.testing.assert_allclose(
        obj.colours(model, np.array([0]), np.full((1, 3), 1 / 3)), [[0.4, 0.4, 0.4, 1]]
    )


@pytest.mark.parametrize("tabs", ["map_Kd", "newmtl"])
def test_a_lost_texture_is_named_however_its_line_is_spaced(tabs: str, tmp_path: Path) -> None:
    path = textured_square(tmp_path)
    Image.new("RGB", (4, 4), "red").save(tmp_path / "skin.png")
    library = tmp_path / "square.mtl"
    library.write_text(library.read_text().replace(f"{tabs} ", f"{tabs}\t"))
    assert len(load_surface(path).mesh.faces) == 2
    (tmp_path / "skin.png").unlink()
    with pytest.raises(ValueError, match=r"skin\.png of a that cannot be read"):
        load_surface(path)


@pytest.mark.parametrize("lines", ["mtllib f.mtl g.mtl\n", "mtllib f.mtl\nmtllib g.mtl\n"])
def test_several_material_files_are_read(lines: str, tmp_path: Path) -> None:
    (tmp_path / "f.mtl").write_text("newmtl other\nKd 1 0 0\n")
    (tmp_path / "g.mtl").write_text("newmtl a\nKd 0 1 0\n")
    path = tmp_path / "square.obj"
    path.write_text(f"{lines}{SQUARE}usemtl a\nf 1 2 3\n")
    assert load_surface(path).colour(np.array([0]), np.full((1, 3), 1 / 3))[0].tolist() == [0, 1, 0]
    (tmp_path / "g.mtl").unlink()
    with pytest.raises(
        ValueError, match=r"needs the material file g\.mtl, which .* names and which is not there"
    ):
        load_surface(path)


@pytest.mark.parametrize(
    "case", ["no texture", "half a texture", "no materials", "no coordinates", "gltf", "ply"]
)
def test_a_mesh_whose_colours_are_lost_is_left_out_and_named(
    case: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path, said = textured_square(tmp_path), "skin.png of a that cannot be read"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(
        tmp_path / "skin.png"
    )
    assert len(load_surface(path).mesh.faces) == 2
    if case == "no texture":
        (tmp_path / "skin.png").unlink()
    elif case == "half a texture":
        (tmp_path / "skin.png").write_bytes((tmp_path / "skin.png").read_bytes()[:2000])
    elif case == "no materials":
        (tmp_path / "square.mtl").unlink()
        said = "a render needs the material file square.mtl"
    elif case == "no coordinates":
        path.write_text(f"mtllib square.mtl\n{SQUARE}usemtl a\nf 1 2 3\n")
        said = "needs texture coordinates on all faces of a"
    elif case == "gltf":
        material = trimesh.visual.material.PBRMaterial(baseColorTexture=Image.new("RGB", (4, 4)))
        box = trimesh.creation.box()
        box.visual = trimesh.visual.TextureVisuals(uv=np.zeros((8, 2)), material=material)
        for name, data in trimesh.Scene(box).export(file_type="gltf").items():
            (tmp_path / name).write_bytes(data)
        path, said = tmp_path / "square.gltf", "(gone.png is not there)"
        tree = json.loads((tmp_path / "model.gltf").read_text())
        path.write_text(json.dumps(tree | {"images": [{"uri": "gone.png"}]}))
    else:
        header = "ply\nformat ascii 1.0\ncomment TextureFile gone.png\nelement vertex 3\nproperty float x\nproperty float y\n"
        header += "property float z\nproperty float s\nproperty float t\nelement face 1\nproperty list uchar int vertex_indices\n"
        path, said = tmp_path / "square.ply", "a render needs the texture gone.png that cannot be read"
        path.write_text(f"{header}end_header\n0 0 0 0 0\n1 0 0 1 0\n0 1 0 0 1\n3 0 1 2\n")
    out = tmp_path / "out"
    assert run("render", str(path), str(out), "--views", "1", "--size", "8", "--workers", "1") == 1
    assert not (out / "square").exists()
    (line,) = [line for line in caplog.text.splitlines() if "left out" in line]
    assert said in line and str(path) in line and "mesh." not in line


@pytest.mark.parametrize("line", ["f 1 1 1\nf 2 2 2\n", "f 1 2 1\n"])
def test_faces_that_are_collapsed_are_no_object(line: str, tmp_path: Path) -> None:
    (tmp_path / "a.obj").write_text(f"v 0 0 0\nv 1 0 0\nv 0 1 0\n{line}")
    with pytest.raises(ValueError, match=r"a.obj has faces without area, all collapsed"):
        load_surface(tmp_path / "a.obj")
    (tmp_path / "a.obj").write_text(f"v 0 0 0\nv 1 0 0\nv 0 1 0\n{line}f 1 2 3\n")
    load_surface(tmp_path / "a.obj")


def test_an_obj_that_never_had_colours_is_light_grey(tmp_path: Path) -> None:
    """0.8, as ``mesh=`` shows it; a library of materials that nothing uses is none."""
    for head in ("", "mtllib gone.mtl\n"):
        (tmp_path / "a.obj").write_text(f"{head}{SQUARE}f 1 2 3\n")
        found = load_surface(tmp_path / "a.obj").colour(np.array([0]), np.full((1, 3), 1 / 3))
        np.testing.assert_allclose(found, 0.8, atol=1e-6)
