"""Pictures of a mesh against pinhole geometry done by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image

from distill.cameras import orbit
from distill.export.asset import MeshWriter, export_asset
from distill.export.drawn import mesh_view
from distill.export.mesh import Mesh

RED, GREEN, BLUE, GREY = (255, 0, 0), (0, 255, 0), (0, 0, 255), (90, 90, 90)
FRONT = orbit(torch.tensor([0.0]), torch.tensor([0.0]), 3.0, 40.0)


def square(**looks: object) -> Mesh:
    """Two triangles in the plane x = 0.5 with y and z in [-0.5, 0.5], facing the front camera, whose right is +y."""
    vertices = np.array([[0.5, y, z] for z in (-0.5, 0.5) for y in (-0.5, 0.5)], np.float32)
    faces = np.array([[0, 1, 3], [0, 3, 2]])
    return Mesh(vertices, faces, np.tile(np.float32([1, 0, 0]), (4, 1)), **looks)  # type: ignore[arg-type]


def test_a_texture_is_seen_upright_where_a_pinhole_camera_has_it() -> None:
    # Row 0 at the top, (0, 0) of the coordinates at the lower left.
    texture = np.array([[RED, GREEN], [BLUE, GREY]], np.uint8)
    uv = np.array([[0, 0], [1, 0], [0, 1], [1, 1]], np.float32)
    seen = mesh_view(square(uv=uv, texture=texture), samples=3)(FRONT, 64, 64)
    # Its edge at a distance of 2.5, in pixels; a quarter of it from the middle lies in the middle of a texel.
    edge = 64 / (2 * math.tan(math.radians(20)) * 2.5)
    low, high = round(32 - edge / 4), round(32 + edge / 4)
    for row, column, colour in (
        (low, low, RED), (low, high, GREEN), (high, low, BLUE), (high, high, GREY), (0, 0, (255, 255, 255)),
    ):  # fmt: skip
        np.testing.assert_allclose(seen.rgb[0, row, column] * 255, colour, atol=1e-3)
    assert seen.opacity.sum().item() == pytest.approx(edge**2, rel=0.02)


def test_a_texture_need_not_be_square() -> None:
    texture = np.array([[RED, GREEN, BLUE, GREY]], np.uint8)
    uv = np.array([[0, 0], [1, 0], [0, 1], [1, 1]], np.float32)
    for picture, step in ((texture, np.array([0, 1])), (texture.transpose(1, 0, 2), np.array([1, 0]))):
        seen = mesh_view(square(uv=uv, texture=np.ascontiguousarray(picture)), samples=1)(FRONT, 64, 64)
        edge = 64 / (2 * math.tan(math.radians(20)) * 2.5)
        for number, colour in enumerate((RED, GREEN, BLUE, GREY)):
            row, column = np.round(31.5 + (number - 1.5) * edge / 4 * step).astype(int)
            np.testing.assert_allclose(seen.rgb[0, row, column] * 255, colour, atol=1e-3)


@pytest.mark.parametrize(("u", "v", "colour"), [(0, 0, BLUE), (1, 0, GREY), (0, 1, RED), (1, 1, GREEN)])
def test_the_rim_of_a_texture_belongs_to_its_last_texels(u: int, v: int, colour: tuple[int, ...]) -> None:
    texture = np.array([[RED, GREEN], [BLUE, GREY]], np.uint8)
    uv = np.array([[u, v]] * 4, np.float32)
    seen = mesh_view(square(uv=uv, texture=texture), samples=1)(FRONT, 9, 9)
    np.testing.assert_allclose(seen.rgb[0, 4, 4] * 255, colour, atol=1e-3)


def test_each_camera_has_its_own_picture() -> None:
    # The square at x = 0.5 is 2.5 in front of a camera at x = 3 and 3.5 in front of one at x = -3.
    cameras = orbit(torch.tensor([0.0, 180.0]), torch.tensor([0.0, 0.0]), 3.0, 40.0)
    seen = mesh_view(square(colours=np.zeros((4, 3), np.float32)), samples=1)(cameras, 9, 9)
    assert seen.depth[:, 4, 4, 0].tolist() == pytest.approx([2.5, 3.5], abs=1e-5)


def test_the_depth_of_a_pixel_is_the_mean_of_the_rays_that_hit() -> None:
    seen = mesh_view(square(colours=np.zeros((4, 3), np.float32)), samples=2)(FRONT, 33, 33)
    part = (seen.opacity > 0) & (seen.opacity < 1)
    assert part.sum() > 10
    # No point of the square is nearer than its middle or further than its corners.
    assert seen.depth[part].min() > 2.5 and seen.depth[part].max() < math.sqrt(2.5**2 + 0.5)


def test_depth_is_the_distance_along_the_ray_and_0_where_nothing_is() -> None:
    seen = mesh_view(square(colours=np.zeros((4, 3), np.float32)), samples=1)(FRONT, 65, 65)
    _, directions = FRONT.rays(65, 65)
    hit = seen.opacity > 0
    expected = 2.5 / -directions[..., :1]  # the plane is 2.5 in front of the camera, which looks along -x
    torch.testing.assert_close(seen.depth[hit], expected[hit], atol=1e-4, rtol=0)
    assert seen.depth[0, 32, 32].item() == pytest.approx(2.5, abs=1e-5)
    assert (seen.depth[~hit] == 0).all() and (~hit).any()


def test_colours_of_vertices_are_linear_between_them() -> None:
    # Red grows with y and green with z, from 0 to 1.
    colours = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [1, 1, 0]], np.float32)
    seen = mesh_view(square(colours=colours), samples=1)(FRONT, 64, 64)
    origins, directions = FRONT.rays(64, 64)
    points = origins + seen.depth * directions
    hit = seen.opacity[..., 0] > 0
    torch.testing.assert_close(seen.rgb[hit][:, :2], points[hit][:, 1:] + 0.5, atol=1e-4, rtol=0)


def test_many_rays_average_the_edge_of_a_ball_over_white() -> None:
    ball = trimesh.creation.icosphere(subdivisions=5, radius=0.5)
    mesh = Mesh(
        ball.vertices.astype(np.float32), np.asarray(ball.faces), ball.vertex_normals,
        colours=np.full((len(ball.vertices), 3), 0.25, np.float32),
    )  # fmt: skip
    seen = mesh_view(mesh, samples=4)(FRONT, 48, 48)
    # The ball fills a cone of half-angle asin(r / d), a disc of that tangent in the picture.
    radius = 24 * math.tan(math.asin(0.5 / 3.0)) / math.tan(math.radians(20))
    assert seen.opacity.sum().item() == pytest.approx(math.pi * radius**2, rel=0.005)
    torch.testing.assert_close(seen.rgb, (1 - 0.75 * seen.opacity).expand(-1, -1, -1, 3))
    assert ((seen.opacity > 0) & (seen.opacity < 1)).any()


def test_a_mesh_without_colours_is_refused() -> None:
    with pytest.raises(ValueError, match="with neither"):
        mesh_view(square())
    with pytest.raises(ValueError, match="with neither"):
        mesh_view(square(texture=np.zeros((2, 2, 3), np.uint8)))  # which is nowhere on it


def test_a_texture_without_coordinates_leaves_the_colours_of_the_vertices() -> None:
    looks = {"texture": np.zeros((2, 2, 3), np.uint8), "colours": np.full((4, 3), 0.25, np.float32)}
    seen = mesh_view(square(**looks), samples=1)(FRONT, 9, 9)
    assert seen.rgb[0, 4, 4].tolist() == pytest.approx([0.25] * 3)


def test_the_sheet_of_an_export_shows_the_mesh_and_not_the_scene(tmp_path: Path) -> None:
    from test_export import BLUE as FIELD_BLUE
    from test_export import RED as FIELD_RED
    from test_export import sphere, sphere_view

    export_asset(
        sphere(0.5), sphere_view(0.5), tmp_path, resolution=48, faces=1000, texture_size=64, frames=1,
        picture_size=32,
    )  # fmt: skip
    with Image.open(tmp_path / "mesh-sides.png") as sheet:
        seen = np.asarray(sheet.convert("RGB"))
    assert seen.shape == (2 * 32 + 4, 4 * 32 + 3 * 4, 3)
    # The front is red and the back blue, as the field has them; the renders of the scene are white.
    np.testing.assert_allclose(seen[16, 16], 255 * np.array(FIELD_RED), atol=1)
    np.testing.assert_allclose(seen[36 + 16, 16], 255 * np.array(FIELD_BLUE), atol=1)
    np.testing.assert_array_equal(seen[1, 1], 255)


def test_a_sheet_is_of_pictures_that_rays_can_draw_in_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from test_export import sphere, sphere_view

    monkeypatch.setattr("distill.export.asset.LARGEST_SIDE", 24)
    options = {"resolution": 24, "faces": 200, "texture_size": 64, "formats": ["ply"]}
    write = MeshWriter(sphere(0.5))
    for size, side in ((16, 16), (48, 24)):
        write(tmp_path, sphere_view(0.5), options | {"picture_size": size})
        with Image.open(tmp_path / "mesh-sides.png") as sheet:
            assert sheet.size == (4 * side + 3 * 4, 2 * side + 4)
    (tmp_path / "mesh-sides.png").unlink()
    assert "mesh_sheet" not in write(tmp_path, sphere_view(0.5), options)["seconds"]
    assert {path.name for path in tmp_path.iterdir()} == {"mesh.ply"}


def test_rays_in_pieces_are_the_same_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    view = mesh_view(square(colours=np.eye(4, 3, dtype=np.float32)))
    cameras = orbit(torch.tensor([0.0, 20.0]), torch.tensor([0.0, 10.0]), 3.0, 40.0)
    whole = view(cameras, 10, 14)
    monkeypatch.setattr("distill.export.drawn.CHUNK", 77)  # ends within rows and within pictures
    parts = view(cameras, 10, 14)
    assert torch.equal(whole.rgb, parts.rgb) and torch.equal(whole.depth, parts.depth)


@pytest.mark.parametrize(("faces", "samples"), [(0, 2), (2, 0)])
def test_nothing_to_draw_is_refused(faces: int, samples: int) -> None:
    mesh = square(colours=np.ones((4, 3), np.float32))
    with pytest.raises(ValueError, match=f"got {faces} faces and {samples}"):
        mesh_view(replace(mesh, faces=mesh.faces[:faces]), samples)
