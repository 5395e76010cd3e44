"""A mesh that is textured: rays against closed forms and another caster, colours, files read back, wrong input."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import khronos
import numpy as np
import pytest
import torch
import trimesh
from PIL import Image
from torch import Tensor
from trimesh.ray.ray_pyembree import RayMeshIntersector
from trimesh.visual import ColorVisuals, TextureVisuals
from trimesh.visual.material import PBRMaterial

from distill.cameras import Cameras, orbit, turntable
from distill.conditions.control import draw_depth
from distill.contracts import Render
from distill.export.files import COLOURS
from distill.meshes.read import RADIUS, read_surface, rotation, surface_of
from distill.meshes.surface import Surface
from distill.meshes.unwrap import own_of, usable
from distill.meshes.write import Paints, write_textured
from distill.renderers import volume
from distill.renderers.surface import SurfaceScene, own_points
from distill.run.config.compose import compose_config

RED, BLUE = (230, 25, 50), (50, 25, 230)


def placed(*meshes: trimesh.Trimesh, keep: Sequence[str] = (), turn: Any = None) -> Surface:
    """A surface of meshes that are in the scene's own frame."""
    axes = np.eye(3, dtype=np.float32) if turn is None else turn
    return surface_of(Path("toy.glb"), trimesh.Scene(list(meshes)), axes, frozenset(keep))


def reading(path: Path, **options: Any) -> Surface:
    return read_surface(
        {"file": str(path), "up": "auto", "front": "auto", "keep": [], "init_texture": False, **options}
    )


def small(mesh: Surface, **options: Any) -> SurfaceScene:
    return SurfaceScene(mesh, **{"levels": 4, "log2_table_size": 10, "finest_resolution": 32, **options})


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def halves(mesh: trimesh.Trimesh, axis: int = 2) -> trimesh.Trimesh:
    """Vertices red on the positive side of an axis, blue on the other; linear, as GLB files have them."""
    linear = np.array([(np.array(c) / 255) ** 2.2 * 255 for c in (BLUE, RED)]).round()
    colours = linear[(mesh.vertices[:, axis] > 0).astype(int)]
    mesh.visual = ColorVisuals(
        mesh, vertex_colors=np.c_[colours, np.full(len(colours), 255)].astype(np.uint8)
    )
    mesh.vertex_attributes[COLOURS] = (colours / 255).astype(np.float32)  # as they are read
    return mesh


def painted_box(name: str, uv: Any, picture: Any) -> trimesh.Trimesh:
    """A box whose sides do not share vertices, with texture coordinates of its own."""
    box = trimesh.creation.box()
    box = trimesh.Trimesh(box.vertices[box.faces].reshape(-1, 3), np.arange(36).reshape(-1, 3), process=False)
    material = PBRMaterial(name=name, baseColorTexture=Image.fromarray(picture), metallicFactor=0.5)
    box.visual = TextureVisuals(uv=uv, material=material)
    return box


def triangles_apart() -> Any:
    """Texture coordinates of twelve triangles, each in a cell of its own of a grid of 4 x 3."""
    corner = np.array([[0.05, 0.05], [0.95, 0.05], [0.05, 0.95]])
    cells = np.array([[column, row] for row in range(3) for column in range(4)])
    return ((cells[:, None] + corner) / (4, 3)).reshape(-1, 2).astype(np.float32)


# --- rays ---------------------------------------------------------------------------------------


def test_hits_are_those_of_another_caster() -> None:
    knot = trimesh.creation.torus(0.6, 0.25, major_sections=24, minor_sections=12)
    knot.apply_transform(trimesh.transformations.rotation_matrix(0.7, (1, 2, 3)))
    scene = small(placed(knot))
    origins, directions = (rays.reshape(-1, 3) for rays in turntable(2, 30.0).rays(24, 24))
    face, distance, weight = scene._cast(origins, directions)
    mesh = trimesh.Trimesh(scene.mesh.vertices, scene.mesh.faces, process=False)
    caster = RayMeshIntersector(mesh)  # Embree's
    where, ray, _ = caster.intersects_location(origins.numpy(), directions.numpy(), multiple_hits=False)
    hit = (face >= 0).nonzero()[:, 0].numpy()
    order = np.argsort(ray)
    np.testing.assert_array_equal(ray[order], hit)
    found = (origins + distance[:, None] * directions)[hit].numpy()
    np.testing.assert_allclose(found, where[order], atol=1e-5)
    inside = (weight[..., None] * scene.triangles[face.clamp(min=0)]).sum(1)[hit].numpy()
    np.testing.assert_allclose(inside, where[order], atol=1e-5)


def test_a_cubes_depth_and_normals_are_the_closed_form() -> None:
    half = RADIUS / math.sqrt(3)
    scene, cameras = (
        small(placed(trimesh.creation.box()), samples=1),
        orbit(torch.tensor([35.0]), torch.tensor([25.0]), 3.2, 40.0),
    )
    seen = scene.render(cameras, 33, 33, normals=True)
    assert seen.normal is not None
    origins, directions = cameras.rays(33, 33)
    near, far = ((s * half - origins) / directions for s in (-1, 1))
    enter, leave = torch.minimum(near, far), torch.maximum(near, far)
    first, axis = enter.max(-1)
    hit = first < leave.amin(-1)
    assert torch.equal(seen.opacity[..., 0] == 1, hit)
    torch.testing.assert_close(seen.depth[..., 0][hit], first[hit], atol=1e-5, rtol=0)
    exact = -directions.sign() * torch.nn.functional.one_hot(axis, 3)
    torch.testing.assert_close(seen.normal[hit], exact[hit], atol=1e-5, rtol=0)
    assert (seen.depth[..., 0][~hit] == 0).all() and (seen.normal[~hit] == 0).all()
    assert draw_depth(seen, cameras).amax() == 1  # what a ControlNet is shown


def test_a_spheres_silhouette_has_the_area_of_the_closed_form() -> None:
    scene, cameras = small(placed(trimesh.creation.icosphere(subdivisions=4)), samples=4), turntable(1, 0.0)
    seen = scene.render(cameras, 48, 48, normals=True)
    # A sphere's outline has the squared tangent r^2 / (d^2 - r^2).
    share = math.pi * RADIUS**2 / (3.2**2 - RADIUS**2) / (2 * math.tan(math.radians(20))) ** 2
    assert seen.opacity.mean().item() == pytest.approx(share, rel=0.005)
    edges = ((seen.opacity > 0) & (seen.opacity < 1)).float().mean().item()
    assert 0.02 < edges < 0.12  # anti-aliased
    assert seen.depth[0, 24, 24].item() == pytest.approx(3.2 - RADIUS, abs=2e-3)
    assert seen.normal is not None
    full = seen.opacity[..., 0] == 1
    place = cameras.rays(48, 48)[0] + seen.depth * cameras.rays(48, 48)[1]
    radial = torch.nn.functional.normalize(place, dim=-1)
    assert ((seen.normal * radial).sum(-1)[full] > 0.99).all()


def test_a_pixel_is_the_mean_of_its_rays() -> None:
    mesh, cameras = placed(trimesh.creation.cone(0.6, 1.4)), turntable(2)
    coarse, fine = small(mesh, samples=4), small(mesh, samples=1)  # of one seed
    with torch.no_grad():
        coarse.colours.grid.uniform_(-2, 2, generator=generator(1))
        fine.load_state_dict(coarse.state_dict())
        a, b = coarse.render(cameras, 16, 16), fine.render(cameras, 64, 64)
    for one, four in ((a.rgb, b.rgb), (a.opacity, b.opacity)):
        blocks = four.view(2, 16, 4, 16, 4, -1).mean((2, 4))
        torch.testing.assert_close(one, blocks, atol=1e-6, rtol=0)
    edges = (a.opacity > 0) & (a.opacity < 1)
    assert edges.any() and a.rgb.std() > 0.05
    # Depth is the mean over the rays that hit.
    hits = b.opacity.view(2, 16, 4, 16, 4, -1).sum((2, 4))
    depth = b.depth.view(2, 16, 4, 16, 4, -1).sum((2, 4)) / hits.clamp(min=1)
    torch.testing.assert_close(a.depth, depth, atol=1e-5, rtol=0)


def test_what_is_wound_inwards_looks_the_same() -> None:
    ball = trimesh.creation.icosphere(subdivisions=2)
    outward, inward = (
        small(placed(mesh))
        for mesh in (ball, trimesh.Trimesh(ball.vertices, ball.faces[:, ::-1], process=False))
    )
    a, b = (
        scene.render(turntable(2), 12, 12, normals=True, shading="textureless") for scene in (outward, inward)
    )
    torch.testing.assert_close(a.rgb, b.rgb)
    torch.testing.assert_close(a.normal, b.normal)


# --- gradient -----------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["torch", "auto"])
def test_the_gradient_to_the_grid_is_that_of_finite_differences(backend: str) -> None:
    scene, cameras = small(placed(trimesh.creation.box()), backend=backend), turntable(2, 30.0)
    g = generator()
    with torch.no_grad():
        scene.colours.grid.uniform_(-1, 1, generator=g)
    weight = torch.rand(2, 8, 8, 3, generator=g)

    def value() -> Tensor:
        return (weight * scene.render(cameras, 8, 8).rgb).double().sum()

    (gradient,) = torch.autograd.grad(value(), scene.colours.grid)
    way = torch.randn(gradient.shape, generator=g)
    with torch.no_grad():
        scene.colours.grid.add_(way, alpha=1e-3)
        more = value()
        scene.colours.grid.sub_(way, alpha=2e-3)
        less = value()
    assert ((more - less) / 2e-3).item() == pytest.approx((gradient * way).sum().item(), rel=5e-3)


def test_the_shape_has_no_gradient_and_every_shading_has_one() -> None:
    scene = small(placed(trimesh.creation.box()))
    seen = scene.render(turntable(1), 8, 8, normals=True)
    assert seen.normal is not None
    assert not any(value.requires_grad for value in (seen.opacity, seen.depth, seen.normal))
    for shading in ("lambertian", "textureless", "normals"):
        scene.zero_grad()
        scene.render(turntable(1), 8, 8, shading=shading, generator=generator()).rgb.sum().backward()
        moved = scene.colours.grid.grad
        assert moved is not None
        assert bool(moved.any()) == (shading == "lambertian")


@pytest.mark.parametrize("soft", [False, True])
def test_a_side_of_a_cube_is_lit_by_lamberts_law(soft: bool) -> None:
    """a + (1 - a) max(0, n . l), n = +x, with the light that is drawn first and, where it is soft, the a drawn next."""
    scene, cameras, g = (
        small(placed(trimesh.creation.box())),
        orbit(torch.zeros(3), torch.zeros(3), 3.0, 2.0),
        generator(5),
    )
    seen = scene.render(cameras, 2, 2, shading="textureless", soft_light=soft, generator=generator(5))
    light = volume.towards_light(cameras, "textureless", g)[:, 0].clamp(min=0)
    ambient = float(torch.rand(1, generator=g)) if soft else 0.1
    assert float(seen.opacity.min()) == 1
    torch.testing.assert_close(
        seen.rgb, (ambient + (1 - ambient) * light)[:, None, None, None].expand(3, 2, 2, 3)
    )
    looking = scene.render(cameras, 2, 2, shading="textureless", soft_light=soft).rgb
    torch.testing.assert_close(looking, torch.ones_like(looking))


def test_the_colour_of_a_point_is_the_grids_there() -> None:
    scene = small(placed(trimesh.creation.box(extents=(1.0, 1.2, 1.4))), samples=1)
    with torch.no_grad():
        scene.colours.grid.normal_(generator=generator())
    cameras = orbit(torch.tensor([0.0, 90.0]), torch.tensor([0.0, 0.0]), 3.0, 20.0)
    seen = scene.render(cameras, 4, 4)
    hit = seen.opacity[..., 0] == 1
    origins, directions = cameras.rays(4, 4)
    assert hit.sum() > 16
    points = (origins + seen.depth * directions)[hit]
    torch.testing.assert_close(seen.rgb[hit], scene.colours.query(points)[1], atol=2e-3, rtol=0)


def test_the_turn_of_a_second_place_is_the_rotation_that_brought_it_there() -> None:
    turn = trimesh.transformations.rotation_matrix(0.7, (1, 2, 3))
    scene, leg = trimesh.Scene(), trimesh.creation.box(extents=(0.2, 0.3, 0.4))
    scene.add_geometry(
        leg, geom_name="leg", transform=trimesh.transformations.translation_matrix((-0.5, 0, 0))
    )
    scene.graph.update(
        "again",
        "world",
        matrix=trimesh.transformations.translation_matrix((0.5, 0, 0)) @ turn,
        geometry="leg",
    )
    found = small(surface_of(Path("toy.glb"), scene, np.eye(3, dtype=np.float32), frozenset()))
    face = torch.arange(24)
    turned = found.origin != face
    assert found.placed_again and int(turned.sum()) == 12
    rotations = found._turn(face, torch.full((24, 3), 1 / 3))
    expected = torch.eye(3).expand(24, 3, 3).clone()
    expected[turned] = torch.tensor(turn[:3, :3], dtype=torch.float32)
    torch.testing.assert_close(rotations, expected, atol=1e-5, rtol=0)


# --- files --------------------------------------------------------------------------------------


def family(path: Path) -> None:
    """A file with a group, a part that is placed twice, turned and scaled, and another part with its own material."""
    scene = trimesh.Scene()
    scene.graph.update("group", "world", matrix=np.diag([2.0, 1, 1, 1]))
    turned = trimesh.transformations.rotation_matrix(0.5, (0, 1, 0), (3, 0, 0))
    turned[:3, 3] += (4, 0, 0)
    leg = halves(trimesh.creation.icosphere(subdivisions=2), axis=0)
    scene.add_geometry(leg, geom_name="leg", node_name="leg1", parent_node_name="group")
    scene.graph.update("leg2", "group", matrix=turned, geometry="leg")
    picture = np.random.default_rng(0).integers(0, 255, (16, 16, 3), np.uint8)
    wheel = painted_box("wheels", triangles_apart(), picture)
    scene.add_geometry(wheel, geom_name="wheel", node_name="wheel1")
    path.write_bytes(scene.export(file_type="glb"))


def unseen(cameras: Cameras, height: int, width: int) -> Render:
    raise AssertionError("the colours are asked for, not pictures")


def shown(mesh: Surface, cameras: Cameras, size: int) -> Tensor:
    """Pictures of a mesh in its file's own colours over white, one ray a pixel."""
    caster = small(mesh)
    rays = [value.reshape(-1, 3) for value in cameras.rays(size, size)]
    face, _, weight = caster._cast(*rays)
    hit = (face >= 0).nonzero()[:, 0]
    picture = torch.ones(len(face), 3)
    origin, part = torch.from_numpy(mesh.origin), torch.from_numpy(mesh.part)
    for number, piece in enumerate(mesh.parts):
        here = hit[part[face[hit]] == number]
        picture[here] = piece.look.colours(origin[face[here]] - piece.faces[0], weight[here])
    return picture.view(len(cameras), size, size, 3)


def decibels(a: Tensor, b: Tensor) -> float:
    return -10 * math.log10((a - b).square().mean().item())


def test_what_is_written_is_the_same_mesh_with_the_scenes_colours(tmp_path: Path) -> None:
    family(tmp_path / "in.glb")
    before = reading(tmp_path / "in.glb")
    scene = small(before, samples=1, seed=generator())
    with torch.no_grad():
        scene.colours.grid.uniform_(-2, 2, generator=generator(1))
    figures = scene.assets()["mesh"](tmp_path, unseen, {"texture_size": 512})
    assert (figures["textures"], figures["own_uv"]) == (2, 0.5)
    after = reading(tmp_path / "mesh.glb")
    a, b = before.scene, after.scene
    edges = [{(up, down): data for up, down, data in one.graph.to_edgelist()} for one in (a, b)]
    assert edges[0] == edges[1]
    assert {*a.geometry} == {*b.geometry}
    for name, mesh in a.geometry.items():
        np.testing.assert_allclose(b.geometry[name].triangles, mesh.triangles, atol=1e-6)
    # Its own texture coordinates, and its own material's name.
    np.testing.assert_allclose(b.geometry["wheel"].visual.uv, a.geometry["wheel"].visual.uv, atol=1e-6)
    assert b.geometry["wheel"].visual.material.name == "wheels"
    seen = scene.render(turntable(3, 20.0), 64, 64).rgb.detach()
    assert decibels(shown(after, turntable(3, 20.0), 64), seen) > 34
    written = (tmp_path / "mesh.glb").read_bytes()
    scene.assets()["mesh"](tmp_path, unseen, {"texture_size": 512})
    assert (tmp_path / "mesh.glb").read_bytes() == written


def test_what_is_placed_twice_has_one_colour_and_what_is_kept_stays(tmp_path: Path) -> None:
    family(tmp_path / "in.glb")
    mesh = reading(tmp_path / "in.glb", keep=["wheels"])
    scene = small(mesh, samples=1)
    with torch.no_grad():
        scene.colours.grid.uniform_(-2, 2, generator=generator(1))
    (leg,) = (number for number, part in enumerate(mesh.parts) if part.name == "leg")
    first, second = (torch.from_numpy(np.flatnonzero(mesh.part == leg)).view(2, -1))[:, ::20]
    weight = torch.full((len(first), 3), 1 / 3)
    assert torch.equal(scene._colour(first, weight), scene._colour(second, weight))
    assert not np.allclose(mesh.corners[first], mesh.corners[second])
    # The wheel is as its file has it, in pictures and in what is written.
    (wheel,) = (part for part in mesh.parts if part.kept)
    faces = torch.arange(*np.cumsum(wheel.faces))
    weight = torch.rand(len(faces), 3, generator=generator())
    weight /= weight.sum(1, keepdim=True)
    torch.testing.assert_close(
        scene._colour(faces, weight), wheel.look.colours(faces - wheel.faces[0], weight)
    )
    write_textured(mesh, Paints(torch.abs), tmp_path / "out.glb", size=64)
    a, b = (one.geometry["wheel"].visual for one in (mesh.scene, reading(tmp_path / "out.glb").scene))
    np.testing.assert_array_equal(
        np.asarray(a.material.baseColorTexture), np.asarray(b.material.baseColorTexture)
    )
    assert b.material.metallicFactor == 0.5


@pytest.mark.parametrize("keep", [[], ["wheels"]])
def test_what_is_written_passes_the_khronos_validator(tmp_path: Path, keep: Sequence[str]) -> None:
    family(tmp_path / "in.glb")
    mesh = reading(tmp_path / "in.glb", keep=keep)
    write_textured(mesh, Paints(torch.abs), tmp_path / "out.glb", size=64)
    assert khronos.wrong(tmp_path / "out.glb") == []


def test_texture_coordinates_that_overlap_repeat_or_are_tiny_are_replaced() -> None:
    picture, apart = np.zeros((4, 4, 3), np.uint8), triangles_apart()
    stacked = np.tile(apart[:3], (12, 1))
    for uv, good in ((apart, True), (stacked, False), (apart * 3, False), (apart * 0.01, False)):
        mesh = placed(painted_box("wood", uv, picture))
        assert usable(mesh, mesh.parts, [own_of(mesh, mesh.parts[0])]) == good


def test_leaves_that_share_a_picture_are_told_by_their_area_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    # Each of twelve triangles has half of the texture, six times as much as there is.
    whole = np.tile(np.array([[0, 0], [1, 0], [0, 1]], np.float32), (12, 1))
    mesh = placed(painted_box("leaves", whole, np.zeros((4, 4, 3), np.uint8)))

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("thousands of leaves would be rasterised at full size each")

    monkeypatch.setattr("distill.meshes.unwrap.rasterise", refuse)
    assert not usable(mesh, mesh.parts, [own_of(mesh, mesh.parts[0])])


def test_a_stacked_texture_is_unwrapped_and_its_charts_are_apart(tmp_path: Path) -> None:
    mesh = placed(painted_box("wood", np.tile(triangles_apart()[:3], (12, 1)), np.zeros((4, 4, 3), np.uint8)))
    figures = write_textured(mesh, Paints(lambda points: (points + 1) / 2), tmp_path / "out.glb", size=256)
    assert figures["own_uv"] == 0 and figures["faces"] == 12
    after = reading(tmp_path / "out.glb", up="+z", front="+x")
    face, weight, colour = own_points(after, 2000, generator())
    where = (weight[..., None] * torch.from_numpy(after.corners)[face]).sum(1)
    assert (colour - (where + 1) / 2).abs().max() < 0.03


# --- the mesh's own colours ---------------------------------------------------------------------


def test_a_scene_that_begins_with_the_meshs_colours_shows_them() -> None:
    mesh = placed(halves(trimesh.creation.icosphere(subdivisions=3)))
    scenes = [small(mesh, samples=1) for _ in range(2)]
    for scene in scenes:
        scene.begin_with_colours(generator(3), steps=3, points=64)
    assert torch.equal(scenes[0].colours.grid, scenes[1].colours.grid)
    scenes[0].begin_with_colours(generator(3), steps=100, points=1024)
    seen = scenes[0].render(turntable(3, 10.0), 32, 32).rgb.detach()
    assert decibels(seen, shown(mesh, turntable(3, 10.0), 32)) > 28


def test_points_are_even_over_the_area() -> None:
    box = trimesh.creation.box((1, 2, 3))
    mesh = placed(halves(box))
    face, weight, _ = own_points(mesh, 40_000, generator())
    share = np.bincount(face.numpy(), minlength=12) / 40_000
    np.testing.assert_allclose(share, mesh.areas() / mesh.areas().sum(), atol=0.01)
    np.testing.assert_allclose(weight.mean(0), 1 / 3, atol=0.01)
    assert weight.min() >= 0


def test_points_of_each_part_have_that_parts_colours() -> None:
    boxes = [halves(trimesh.creation.box().apply_translation((side, 0, 0)), axis=0) for side in (2, -2)]
    mesh = placed(*boxes)
    face, _, colour = own_points(mesh, 500, generator())
    assert len(mesh.parts) == 2
    front = torch.from_numpy(mesh.corners)[face].mean(1)[:, :1] > 0
    expected = torch.where(front, torch.tensor(RED), torch.tensor(BLUE)) / 255
    torch.testing.assert_close(colour, expected, atol=0.02, rtol=0)


def test_vertex_colours_of_glb_are_linear_and_of_ply_are_srgb(tmp_path: Path) -> None:
    ball = halves(trimesh.creation.icosphere(subdivisions=1))
    for suffix, expected in ((".glb", RED[0] / 255), (".ply", (RED[0] / 255) ** 2.2)):
        ball.export(tmp_path / f"m{suffix}")
        (part,) = reading(tmp_path / f"m{suffix}").parts
        assert part.look.corners[..., 0].max().item() == pytest.approx(expected, abs=0.02)
        assert part.coloured


# --- axes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "up", "front", "top", "ahead"),
    [
        ("a.glb", "auto", "auto", (0, 1, 0), (0, 0, 1)),
        ("a.stl", "auto", "auto", (0, 0, 1), (0, -1, 0)),
        ("a.obj", "+z", "+x", (0, 0, 1), (1, 0, 0)),
        ("a.glb", "-x", "auto", (-1, 0, 0), (0, 0, 1)),
        ("a.glb", "+z", "auto", (0, 0, 1), (0, -1, 0)),
    ],
)
def test_up_becomes_z_and_front_becomes_x(name: str, up: str, front: str, top: Any, ahead: Any) -> None:
    turn, _ = rotation(Path(name), up, front)
    np.testing.assert_allclose(turn @ np.array(top), (0, 0, 1), atol=1e-6)
    np.testing.assert_allclose(turn @ np.array(ahead), (1, 0, 0), atol=1e-6)
    assert np.linalg.det(turn) == pytest.approx(1)


# --- wrong input --------------------------------------------------------------------------------


def broken(path: Path, kind: str) -> Path:
    ball = trimesh.creation.icosphere(subdivisions=0)
    if kind == "nan":
        ball.vertices[3] = np.nan
    elif kind == "flat":
        ball.vertices[:, :] = (1, 2, 3)
    elif kind == "points":
        ball = trimesh.PointCloud(ball.vertices)
    if kind == "text":
        path.write_text("a mesh, honestly")
    else:
        path.write_bytes(trimesh.Scene(ball).export(file_type=path.suffix[1:]))
    return path


@pytest.mark.parametrize(
    ("name", "kind", "expected"),
    [
        ("a.glb", "text", "cannot be read .*export it again"),
        ("a.obj", "text", "has no faces; export it again"),
        ("a.glb", "points", "has no faces"),
        ("a.ply", "nan", "nan or infinite"),
        ("a.glb", "flat", "without area"),
    ],
)
def test_a_broken_file_is_one_line(tmp_path: Path, name: str, kind: str, expected: str) -> None:
    with pytest.raises(ValueError, match=expected) as caught:
        reading(broken(tmp_path / name, kind))
    assert "\n" not in str(caught.value) and name in str(caught.value)


def test_options_that_do_not_fit_the_mesh_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = broken(tmp_path / "a.glb", "whole")
    for options, expected in (
        ({"up": "+y", "front": "-y"}, r"must be different axes, got \+y and -y"),
        ({"keep": ["wheels"]}, "none called 'wheels'; it has"),
        ({"keep": [trimesh.load_scene(path).geometry.popitem()[0]]}, "every material"),
    ):
        with pytest.raises(ValueError, match=expected):
            reading(path, **options)
    monkeypatch.setattr("distill.meshes.read.MOST_FACES", 10)
    with pytest.raises(ValueError, match="20 faces, and mesh= takes at most 10; decimate"):
        reading(path)
    monkeypatch.undo()
    with pytest.raises(ValueError, match=r"a\.glb has none; leave it out"):
        small(reading(path)).begin_with_colours(generator())
    with pytest.raises(ValueError, match=r"in \.glb, .*got chair\.fbx; convert it"):
        reading(Path("chair.fbx"))
    with pytest.raises(ValueError, match="is not there; check the path"):
        reading(tmp_path / "none.glb")


def test_another_meshs_checkpoint_is_refused_and_a_copy_is_not() -> None:
    scene, other = small(placed(trimesh.creation.box())), small(placed(trimesh.creation.cone(1, 1)))
    copy.deepcopy(scene).load_state_dict(scene.state_dict())
    with pytest.raises(ValueError, match="trained on another mesh"):
        other.load_state_dict(scene.state_dict())


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["scene=surface"], "there is none; add mesh=FILE"),
        (["mesh=a.glb", "scene=hash_grid"], "needs a scene that textures a mesh"),
        (["mesh=a.glb", "export.faces=9"], "stays as it is"),
        (["mesh.front=+x"], "there is no mesh; add mesh=FILE"),
        (["mesh=a.glb", "penalties.opaqueness=1"], "needs a scene that computes it"),
        (["mesh=a.glb", "render.latent_until=0.5"], "keeps its shape"),
        (["mesh=a.glb", "mesh.up=up"], r"mesh\.up must be auto, \+x, "),
        (["mesh=a.glb", "init=run", "mesh.init_texture=true"], "both say which colours"),
    ],
)
def test_what_does_not_go_with_a_mesh_is_one_line(words: Sequence[str], expected: str) -> None:
    with pytest.raises(ValueError, match=expected) as caught:
        compose_config(["prompt=a chair", *words])
    assert "\n" not in str(caught.value)


def test_a_mesh_implies_its_scene_and_goes_with_control_pictures() -> None:
    words = [
        "mesh=a.glb",
        "prior_options.controlnet=c",
        "prior_options.control=depth",
        "perp_neg.enabled=true",
        "view_words=four",
    ]
    config = compose_config(["prompt=a chair", *words])
    assert config.mesh.file == "a.glb"
    assert config.scene._target_ == "distill.renderers.surface.SurfaceScene"
    assert (config.scene.background, config.scene.samples) == ("grey", 2)
    assert (config.prior_options.controlnet, config.prior_options.control) == ("c", "depth")
    assert config.perp_neg.enabled
    # What the ControlNet is shown needs nothing but the shape: the mesh's own depth, near is bright.
    scene = small(placed(trimesh.creation.box((1, 1, 1))), samples=1)
    near, far = (
        draw_depth(scene.render(turntable(1, tilt), 16, 16), turntable(1, tilt)) for tilt in (0.0, 40.0)
    )
    assert near.amax() == far.amax() == 1 and near.amin() == far.amin() == 0
    assert not torch.equal(near, far)
