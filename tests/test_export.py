"""From a field to files: geometry against closed forms, colours at known points, files read back."""

from __future__ import annotations

import json
import math
import os
import struct
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import igl
import imageio_ffmpeg
import khronos
import numpy as np
import pytest
import torch
import trimesh
from PIL import Image
from torch import Tensor

from distill.cameras import Cameras, turntable
from distill.contracts import Field, Render, View
from distill.export import colours
from distill.export.asset import MeshWriter, export_asset
from distill.export.colours import REACH, SEEN, nearness, paint_of, seen_colours, surface_albedo
from distill.export.files import save_mesh, save_meshes
from distill.export.frame import welded
from distill.export.mesh import (
    Floats,
    Ints,
    Mesh,
    decimate,
    extract_mesh,
    folded,
    on_grid,
    smooth,
    unfold,
    vertex_normals,
)
from distill.export.pictures import to_uint8, write_contact_sheet, write_turntable
from distill.export.texture import bake_texture, rasterise, unwrap
from distill.files.atomic import replacing

RED, BLUE = (0.9, 0.1, 0.2), (0.2, 0.1, 0.9)


def red_front(points: Tensor) -> Tensor:
    """Red where x > 0, blue behind."""
    return torch.where(points[:, :1] > 0, torch.tensor([RED]), torch.tensor([BLUE]))


def sphere(radius: float, sharpness: float = 20.0, centre: tuple[float, float, float] = (0, 0, 0)) -> Field:
    """A density that is 4 at the radius and grows inwards by e each ``1 / sharpness``."""

    def query(points: Tensor) -> tuple[Tensor, Tensor]:
        distance = (points - torch.tensor(centre)).norm(dim=-1)
        return 4 * torch.exp(sharpness * (radius - distance)), red_front(points)

    return query


def sphere_view(radius: float) -> View:
    """A hard, white sphere in closed form: a ray hits when it passes within the radius."""

    def view(cameras: Cameras, height: int, width: int) -> Render:
        origins, directions = cameras.rays(height, width)
        nearest = torch.linalg.cross(origins, directions).norm(dim=-1, keepdim=True)
        hit = (nearest < radius).float()
        return Render(hit.expand(*hit.shape[:-1], 3), hit, hit)

    return view


def azimuth_view(cameras: Cameras, height: int, width: int) -> Render:
    """Uniform pictures whose red tells the azimuth: (azimuth + 180) / 360."""
    grey = ((cameras.azimuth_deg + 180) / 360)[:, None, None, None].expand(-1, height, width, 1)
    return Render(torch.cat([grey, 0 * grey, 1 - grey], dim=-1), torch.ones_like(grey), torch.ones_like(grey))


def solid(mesh: Mesh) -> trimesh.Trimesh:
    return trimesh.Trimesh(mesh.vertices, mesh.faces, process=False)


@pytest.fixture(scope="module")
def ball() -> Mesh:
    return extract_mesh(sphere(0.6), sphere_view(0.6), resolution=96, faces=6000)


@pytest.fixture(scope="module")
def painted(ball: Mesh) -> Mesh:
    return bake_texture(ball, partial(surface_albedo, sphere(0.6)), size=256)


# --- mesh ---------------------------------------------------------------------------------------


def test_sphere_has_the_volume_and_area_of_the_closed_form(ball: Mesh) -> None:
    exact = extract_mesh(sphere(0.6), sphere_view(0.6), resolution=96, faces=6000, iso=4.0)
    assert solid(exact).volume == pytest.approx(4 / 3 * math.pi * 0.6**3, rel=0.01)
    assert solid(exact).area == pytest.approx(4 * math.pi * 0.6**2, rel=0.01)


def test_sphere_is_closed_wound_outwards_and_of_one_piece(ball: Mesh) -> None:
    mesh = solid(ball)
    assert mesh.is_watertight and mesh.is_winding_consistent and mesh.volume > 0
    assert mesh.euler_number == 2


def test_normals_are_unit_and_radial(ball: Mesh) -> None:
    radial = ball.vertices / np.linalg.norm(ball.vertices, axis=1, keepdims=True)
    np.testing.assert_allclose(np.linalg.norm(ball.normals, axis=1), 1, atol=1e-5)
    assert ((ball.normals * radial).sum(1) > 0.98).all()


def test_torus_keeps_its_hole() -> None:
    def torus(points: Tensor) -> tuple[Tensor, Tensor]:
        across = points[:, :2].norm(dim=-1) - 0.55
        tube = torch.stack([across, points[:, 2]], dim=-1).norm(dim=-1)
        return 4 * torch.exp(30 * (0.2 - tube)), red_front(points)

    mesh = solid(extract_mesh(torus, sphere_view(0.7), resolution=96, faces=5000, iso=4.0))
    assert mesh.is_watertight and mesh.euler_number == 0
    thinner = 0.2 - 0.03**2 / (2 * 0.2)  # by the blur: half its variance over the radius of the tube
    assert mesh.volume == pytest.approx(2 * math.pi**2 * 0.55 * thinner**2, rel=0.01)


@pytest.mark.parametrize("shown", [0.45, 0.6])
def test_automatic_iso_recovers_the_radius_that_the_renders_show(shown: float) -> None:
    mesh = extract_mesh(sphere(0.55, sharpness=10), sphere_view(shown), resolution=64)
    assert np.linalg.norm(mesh.vertices, axis=1).mean() == pytest.approx(shown, abs=0.006)
    assert mesh.iso_level == pytest.approx(4 * math.exp(10 * (0.55 - shown)), rel=0.08)
    assert mesh.silhouette_iou > 0.97


def test_silhouette_iou_is_the_ratio_of_the_discs_for_a_sphere_too_large() -> None:
    def disc(radius: float) -> float:  # squared radius of a sphere's outline at focal length 1
        return radius**2 / (3.2**2 - radius**2)

    mesh = extract_mesh(sphere(0.7), sphere_view(0.5), resolution=64, iso=4.0)
    assert mesh.silhouette_iou == pytest.approx(disc(0.5) / disc(0.7), abs=0.02)


@pytest.mark.parametrize(("share", "bodies"), [(None, 2), (0.0, 3), (0.005, 3), (0.1, 2), (0.2, 1), (1.0, 1)])
def test_components_of_less_than_a_share_of_the_largest_volume_are_dropped(
    share: float | None, bodies: int
) -> None:
    """Balls of the volumes 1, 1/8 and 1/64."""
    balls = [sphere(0.4), sphere(0.2, centre=(0.75, 0, 0)), sphere(0.1, centre=(-0.75, 0, 0))]

    def all_of_them(points: Tensor) -> tuple[Tensor, Tensor]:
        return torch.stack([ball(points)[0] for ball in balls]).sum(0), red_front(points)

    options: dict[str, Any] = {} if share is None else {"min_component": share}
    made = solid(
        extract_mesh(
            all_of_them, sphere_view(0.4), resolution=64, iso=4.0, faces=10**6, blur_width=0, **options
        )
    )
    assert made.body_count == bodies and made.euler_number == 2 * bodies and made.is_watertight
    volumes = sorted(body.volume for body in made.split())
    for volume, radius in zip(volumes, (0.1, 0.2, 0.4)[-bodies:], strict=True):
        assert volume == pytest.approx(4 / 3 * math.pi * radius**3, rel=0.08)


def test_a_ragged_cavity_is_dropped_though_it_has_more_faces_than_the_outside() -> None:
    """A ball of radius 0.6 whose inside, up to 0.5, is hollowed out along a gyroid: one wall of many faces."""
    ball = sphere(0.6)

    def hollow(points: Tensor) -> tuple[Tensor, Tensor]:
        x, y, z = (25 * points).unbind(-1)
        gyroid = x.sin() * y.cos() + y.sin() * z.cos() + z.sin() * x.cos()
        empty = (gyroid > 0) & (points.norm(dim=-1) < 0.5)
        return torch.where(empty, 0.01, ball(points)[0].clamp(max=50)), red_front(points)

    whole, kept = (
        extract_mesh(hollow, sphere_view(0.6), resolution=96, iso=4.0, faces=10**6, min_component=share)
        for share in (0.0, 0.03)
    )
    assert len(whole.faces) > 2.5 * len(kept.faces)
    assert np.linalg.norm(kept.vertices, axis=1).min() > 0.58
    assert kept.silhouette_iou > 0.97


def test_an_object_cut_by_the_cube_is_closed_there() -> None:
    def half_space(points: Tensor) -> tuple[Tensor, Tensor]:
        return torch.where(points[:, 2] < 0, 50.0, 0.0), red_front(points)

    mesh = solid(extract_mesh(half_space, sphere_view(1), resolution=64, iso=1.0, smoothing=0))
    voxel = 2 / 63  # the sides lie half a voxel outside the cube, the top midway between its nodes
    assert mesh.is_watertight
    assert mesh.volume == pytest.approx((2 + voxel) ** 2 * (1 + voxel / 2), rel=0.003)


def test_nan_and_infinite_densities_leave_a_finite_mesh() -> None:
    good = sphere(0.5)

    def bad(points: Tensor) -> tuple[Tensor, Tensor]:
        density, albedo = good(points)
        density = torch.where(points.norm(dim=-1) < 0.2, torch.inf, density)
        return torch.where(points[:, 0] > 0.9, torch.nan, density), albedo

    for iso in (None, 0.5):
        mesh = extract_mesh(bad, sphere_view(0.5), resolution=48, iso=iso, min_component=0.0)
        assert np.isfinite(mesh.vertices).all() and np.isfinite(mesh.normals).all()
        assert solid(mesh).is_watertight
        assert mesh.vertices.max() < 0.7  # what is no number is empty


def test_decimation_keeps_to_its_budget_and_the_mesh_closed() -> None:
    def bumpy(points: Tensor) -> tuple[Tensor, Tensor]:
        bumps = 0.05 * torch.sin(12 * points).prod(dim=-1)
        return 4 * torch.exp(20 * (0.6 - points.norm(dim=-1) + bumps)), red_front(points)

    mesh = extract_mesh(bumpy, sphere_view(0.6), resolution=96, faces=3000, iso=4.0)
    assert 2500 < len(mesh.faces) <= 3000 and solid(mesh).is_watertight
    assert set(np.unique(mesh.faces)) == set(range(len(mesh.vertices)))


def ragged(strength: float) -> Field:
    """A ball of radius 0.6 with white noise in the logarithm of its density."""
    grid = torch.randn(1, 1, 64, 64, 64, generator=torch.Generator().manual_seed(0))

    def query(points: Tensor) -> tuple[Tensor, Tensor]:
        places = points.reshape(1, -1, 1, 1, 3)
        noise = torch.nn.functional.grid_sample(grid, places, align_corners=True).reshape(-1)
        return torch.exp(10 * (0.6 - points.norm(dim=-1)) + strength * noise), red_front(points)

    return query


@pytest.mark.parametrize("blur_width", [0.0, 0.03])
@pytest.mark.parametrize("faces", [300, 3000])
def test_each_edge_of_a_ragged_surface_keeps_two_faces_when_decimated(blur_width: float, faces: int) -> None:
    mesh = extract_mesh(
        ragged(2), sphere_view(0.6), resolution=64, faces=faces, iso=1.0, blur_width=blur_width
    )
    assert (faces_of_edges(mesh.faces) == 2).all()


def faces_of_edges(faces: Ints) -> Ints:
    edges = np.sort(np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]]), axis=1)
    return np.unique(edges, axis=0, return_counts=True)[1]


@pytest.mark.parametrize(
    ("seed", "count", "left"),
    [(1, 6000, 0), (2, 3000, 0), (3, 6000, 0), (3, 3000, 0.25), (4, 3000, 0.5), (5, 6000, 0.25)],
)
def test_faces_of_a_simplified_mesh_do_not_lie_upside_down_on_their_neighbours(
    seed: int, count: int, left: float
) -> None:
    """None, or few of those that the collapses leave of a surface that is rough throughout."""
    dense = extract_mesh(ragged(seed), sphere_view(0.6), resolution=64, iso=1.0, faces=10**6)
    collapsed, kept, *_ = igl.qslim(dense.vertices.astype(np.float64), dense.faces, count)
    before = folded(collapsed, kept).sum()
    assert before > 0  # what is to be mended
    vertices, faces = decimate(dense.vertices, dense.faces, count)
    assert len(faces) == len(kept) and folded(vertices, faces).sum() <= left * before
    made = trimesh.Trimesh(vertices, faces, process=False)
    assert made.is_watertight and made.is_winding_consistent
    assert made.volume == pytest.approx(trimesh.Trimesh(collapsed, kept, process=False).volume, rel=2e-3)


@pytest.mark.parametrize("height", [1.0, 0.5, 0.2, 0.01])
@pytest.mark.parametrize("sides", [3, 5])
def test_a_flat_pyramid_stays_as_it_is(height: float, sides: int) -> None:
    """Its base, all around which faces lie flat on it, looks like a fold."""
    turn = np.arange(sides) * 2 * np.pi / sides
    ring = np.stack([np.cos(turn), np.sin(turn), 0 * turn], axis=1)
    vertices = np.concatenate([ring, [[0, 0, height]]]).astype(np.float32)
    around = [[k, (k + 1) % sides, sides] for k in range(sides)]
    faces = np.array([*around, *([0, k + 1, k] for k in range(1, sides - 1))])
    np.testing.assert_array_equal(unfold(vertices, faces), vertices)


def lattice(size: int) -> tuple[Floats, Ints]:
    """A flat square of ``size * size`` vertices, 1 apart, whose cells are cut along the same diagonal."""
    x, y = np.meshgrid(np.arange(size), np.arange(size), indexing="ij")
    vertices = np.stack([x.ravel(), y.ravel(), 0 * x.ravel()], axis=1).astype(np.float32)
    corner = (x[:-1, :-1] * size + y[:-1, :-1]).ravel()
    a, b, c, d = corner, corner + size, corner + size + 1, corner + 1
    return vertices, np.concatenate([np.stack([a, b, c], 1), np.stack([a, c, d], 1)]).astype(np.int64)


def test_a_corner_that_was_pushed_across_an_edge_is_moved_back() -> None:
    """From (3, 3) to (4.2, 3.5), beyond the edge from (4, 3) to (4, 4) of the faces around it."""
    vertices, faces = lattice(7)
    middle = 3 * 7 + 3
    pushed = vertices.copy()
    pushed[middle, :2] = (4.2, 3.5)
    assert (upside_down(pushed, faces), upside_down(vertices, faces)) == (1, 0)
    mended = unfold(pushed, faces)
    assert not upside_down(mended, faces)
    np.testing.assert_array_equal(mended[:, 2], 0)
    far = np.abs(vertices[:, :2] - (3.5, 3)).max(1) > 1.5
    np.testing.assert_array_equal(mended[far], vertices[far])


def upside_down(vertices: Floats, faces: Ints) -> int:
    """How many faces of a flat mesh are clockwise."""
    a, b, c = (vertices[faces[:, corner], :2] for corner in range(3))
    return int(((b - a)[:, 0] * (c - a)[:, 1] < (b - a)[:, 1] * (c - a)[:, 0]).sum())


@pytest.mark.parametrize("made", ["tetrahedron", "spike", "sheet"])
def test_sharp_shapes_are_not_taken_for_folds(made: str) -> None:
    """A regular tetrahedron, one with a tip 20 edges away, and two squares back to back, cut along either diagonal."""
    if made == "sheet":
        vertices = np.array([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]], np.float32)
        faces = np.array([[0, 1, 2], [0, 2, 3], [3, 1, 0], [3, 2, 1]])
    else:
        turn = np.arange(3) * 2 * np.pi / 3
        base = np.stack([np.cos(turn), np.sin(turn), 0 * turn], axis=1)
        vertices = np.concatenate([base, [[0, 0, 2**0.5 if made == "tetrahedron" else 20 * 3**0.5]]])
        faces = np.array([[0, 2, 1], [0, 1, 3], [1, 2, 3], [2, 0, 3]])
    np.testing.assert_array_equal(unfold(vertices, faces), vertices)


def test_blur_closes_the_tunnels_of_a_rough_field_and_keeps_its_size() -> None:
    rough, calm = (
        extract_mesh(ragged(1), sphere_view(0.6), resolution=64, faces=10**6, iso=1.0, blur_width=width)
        for width in (0, 0.03)
    )
    assert solid(rough).euler_number < -20 and solid(calm).euler_number == 2
    spread = [np.linalg.norm(mesh.vertices, axis=1).std() for mesh in (rough, calm)]
    assert spread[1] < 0.4 * spread[0]
    assert np.linalg.norm(calm.vertices, axis=1).mean() == pytest.approx(0.6, abs=0.005)


def test_blur_moves_the_surface_of_a_ball_inwards_by_its_variance_over_the_radius() -> None:
    """The logarithm of the density is k (r - |x|), whose Laplacian is -2 k / |x|: a Gaussian lowers it by k s^2 / |x|."""
    mesh = extract_mesh(
        sphere(0.5, sharpness=10),
        sphere_view(0.5),
        resolution=96,
        iso=4.0,
        blur_width=0.04,
        smoothing=0,
        faces=10**6,
    )
    radius = np.linalg.norm(mesh.vertices, axis=1).mean()
    assert 0.5 - radius == pytest.approx(0.04**2 / 0.5, rel=0.05)


def test_a_surface_through_nodes_of_the_grid_has_no_holes() -> None:
    """A cube whose faces' density, at nodes, is the level itself."""

    def box(points: Tensor) -> tuple[Tensor, Tensor]:
        depth = 0.5 - points.abs().amax(-1)
        return torch.exp((8 * depth).round()), red_front(points)

    mesh = extract_mesh(box, sphere_view(0.5), resolution=33, iso=1.0, blur_width=0, smoothing=0, faces=10**6)
    assert (faces_of_edges(mesh.faces) == 2).all()


def test_a_mesh_with_an_edge_of_three_faces_stays_as_it_is(caplog: pytest.LogCaptureFixture) -> None:
    ball = trimesh.creation.icosphere(3)
    vertices = np.concatenate([ball.vertices, [[0, 0, 2]]]).astype(np.float32)
    faces = np.concatenate([ball.faces, [[*ball.faces[0, :2], len(ball.vertices)]]]).astype(np.int64)
    found = decimate(vertices, faces, 100)
    assert np.array_equal(found[0], vertices) and np.array_equal(found[1], faces)
    assert caplog.messages == [
        "the mesh keeps its 1281 faces: parts of it touch in an edge, which cannot be simplified"
    ]


@pytest.mark.parametrize("iso", [None, 5.0])
def test_a_rod_that_the_blur_would_leave_nothing_of_is_not_blurred(
    iso: float | None, caplog: pytest.LogCaptureFixture
) -> None:
    def rod(points: Tensor) -> tuple[Tensor, Tensor]:
        inside = (points[:, :2].norm(dim=-1) < 0.03) & (points[:, 2].abs() < 0.6)
        return torch.where(inside, 50.0, 0.0), red_front(points)

    blurred, plain = (
        extract_mesh(rod, sphere_view(0.3), resolution=64, iso=iso, blur_width=width) for width in (0.03, 0.0)
    )
    assert caplog.messages == [
        "the object is so thin that a blur of 0.03 scene units leaves nothing of it: no blur is used"
    ]
    np.testing.assert_array_equal(blurred.vertices, plain.vertices)
    assert solid(blurred).is_watertight and solid(blurred).bounds[1, 2] == pytest.approx(0.6, abs=0.03)


def test_smoothing_calms_voxel_steps_without_shrinking() -> None:
    def steps(points: Tensor) -> tuple[Tensor, Tensor]:
        return torch.where(points.norm(dim=-1) < 0.6, 50.0, 0.0), red_front(points)

    rough = extract_mesh(steps, sphere_view(0.6), resolution=48, iso=5.0, blur_width=0, smoothing=0)
    calm = replace(rough, vertices=smooth(rough.vertices, rough.faces, 5))
    spread = [np.linalg.norm(mesh.vertices, axis=1).std() for mesh in (rough, calm)]
    assert spread[1] < 0.7 * spread[0]
    assert solid(calm).volume == pytest.approx(solid(rough).volume, rel=0.01)


def test_chunks_do_not_change_the_mesh() -> None:
    meshes = [
        extract_mesh(sphere(0.5), sphere_view(0.5), resolution=24, chunk=chunk) for chunk in (1000, 10**6)
    ]
    np.testing.assert_array_equal(meshes[0].vertices, meshes[1].vertices)


def test_a_grid_s_values_are_those_at_its_nodes_x_first() -> None:
    asked: list[int] = []

    def values(points: Floats) -> Floats:
        asked.append(len(points))
        return points @ np.array([1, 10, 100], np.float32)

    found = on_grid(values, 3, chunk=4)
    # From -1 to 1 in steps of 1: 111 less than 0, 1, ... of each of the digits.
    expected = [[[x + 10 * y + 100 * z - 111 for z in range(3)] for y in range(3)] for x in range(3)]
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert asked == [4, 4, 4, 4, 4, 4, 3]


def test_a_fine_grid_takes_a_few_times_the_memory_of_its_values() -> None:
    field, view = sphere(0.5), sphere_view(0.5)
    extract_mesh(field, view, resolution=16, faces=200)  # what is made once counts for no grid
    tracemalloc.start()
    extract_mesh(field, view, resolution=160, faces=200, iso=1.0, chunk=10_000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5 * 4 * 160**3  # with all points at once, ten times


def test_empty_scenes_say_so_in_one_line_with_a_remedy() -> None:
    def nothing(points: Tensor) -> tuple[Tensor, Tensor]:
        return 0 * points[:, 0], points.abs()

    for view, iso in ((sphere_view(0.0), None), (sphere_view(0.5), None), (sphere_view(0.5), 1.0)):
        with pytest.raises(ValueError, match=r"empty scene.*train longer") as caught:
            extract_mesh(nothing, view, resolution=16, iso=iso)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "options",
    [
        {"resolution": 4},
        {"faces": 2},
        {"iso": -1.0},
        {"iso": math.nan},
        {"blur_width": -1.0},
        {"blur_width": math.nan},
        {"min_component": 1.5},
    ],
)
def test_bad_mesh_options_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="defaults are"):
        extract_mesh(sphere(0.5), sphere_view(0.5), **options)  # type: ignore[arg-type]


# --- texture ------------------------------------------------------------------------------------


def test_rasterising_one_triangle_finds_the_texels_counted_by_hand() -> None:
    # Corners (0, 0), (1, 0), (0, 1) of a 4 x 4 texture: the lower left half, the diagonal's centres included.
    uv = np.array([[0, 0], [1, 0], [0, 1]], np.float32)
    texel, face, weight = rasterise(uv, np.array([[0, 1, 2]]), 4)
    assert sorted(texel) == [0, 4, 5, 8, 9, 10, 12, 13, 14, 15] and (face == 0).all()
    np.testing.assert_allclose(weight[list(texel).index(12)], [0.75, 0.125, 0.125], atol=1e-6)


def test_rasterised_weights_give_back_the_texels_centres(painted: Mesh) -> None:
    assert painted.uv is not None
    texel, face, weight = rasterise(painted.uv, painted.faces, 256)
    found = np.einsum("nc,nck->nk", weight, painted.uv[painted.faces[face]])
    centre = np.stack([(texel % 256 + 0.5) / 256, 1 - (texel // 256 + 0.5) / 256], axis=1)
    np.testing.assert_allclose(found, centre, atol=1e-5)
    assert (weight > -1e-6).all() and len(np.unique(texel)) == len(texel)


def test_reach_adds_the_texels_around_a_triangle_with_the_weights_of_its_rim() -> None:
    uv = np.array([[0.25, 0.25], [0.75, 0.25], [0.25, 0.75]], np.float32)  # corners of texels of 8 x 8
    texel, _, weight = rasterise(uv, np.array([[0, 1, 2]]), 8, reach=0.6)
    inside, _, _ = rasterise(uv, np.array([[0, 1, 2]]), 8)
    assert set(inside) < set(texel) and (weight >= 0).all()
    found = {int(key): value for key, value in zip(texel, weight, strict=True)}
    # Row 4's texel left of the upright edge is half a texel away, beside a point 3/8 of the way up.
    np.testing.assert_allclose(found[4 * 8 + 1], [1 - 0.375, 0, 0.375], atol=0.1)
    assert 4 * 8 + 0 not in found


def test_charts_lie_in_the_unit_square_and_do_not_overlap(ball: Mesh) -> None:
    mesh = unwrap(ball, 256)
    assert mesh.uv is not None and mesh.uv.min() >= 0 and mesh.uv.max() <= 1
    a, b, c = (mesh.uv[mesh.faces[:, corner]] for corner in range(3))
    area = np.abs(np.cross(b - a, c - a)).sum() / 2
    texel, _, _ = rasterise(mesh.uv, mesh.faces, 1024)
    assert len(texel) / 1024**2 == pytest.approx(area, rel=0.01)  # overlaps would cover less than the area
    assert area > 0.5


@pytest.mark.parametrize(
    ("places", "said", "cut"),
    [([(0.0, 0.0, 0.0)], "1 piece", False), ([(-0.5, 0, 0), (0.8, 0, 0)], "2 pieces", True)],
)
def test_a_mesh_says_its_pieces_and_whether_the_cube_cuts_it(
    places: list[tuple[float, float, float]], said: str, cut: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Balls of radius 0.35: one at x = 0.8 reaches 1.15."""

    def balls(points: Tensor) -> tuple[Tensor, Tensor]:
        near = torch.stack([(points - torch.tensor(place)).norm(dim=-1) for place in places]).amin(0)
        return 4 * torch.exp(20 * (0.35 - near)), red_front(points)

    with caplog.at_level("INFO"):
        extract_mesh(balls, sphere_view(0.35), resolution=48, iso=4.0)
    assert f" faces in {said}, silhouette IoU" in caplog.text
    assert ("the object reaches the edge of the scene" in caplog.text) is cut


def test_unwrapping_moves_nothing(ball: Mesh) -> None:
    mesh = unwrap(ball, 256)
    np.testing.assert_array_equal(mesh.vertices[mesh.faces], ball.vertices[ball.faces])


def test_texture_has_the_field_s_colours_up_to_the_seams(painted: Mesh) -> None:
    assert painted.uv is not None and painted.texture is not None
    place = np.clip(np.stack([1 - painted.uv[:, 1], painted.uv[:, 0]], 1) * 256, 0, 255).astype(int)
    found = painted.texture[place[:, 0], place[:, 1]] / 255
    front, back = painted.vertices[:, 0] > 0.03, painted.vertices[:, 0] < -0.03
    np.testing.assert_allclose(found[front], np.broadcast_to(RED, (front.sum(), 3)), atol=1 / 255)
    np.testing.assert_allclose(found[back], np.broadcast_to(BLUE, (back.sum(), 3)), atol=1 / 255)


def test_gutters_hold_only_colours_of_the_object(painted: Mesh) -> None:
    assert painted.texture is not None
    red, green, blue = np.moveaxis(painted.texture / 255, -1, 0)
    # Mixtures of the two at most: black between the charts would bleed in along the seams.
    np.testing.assert_allclose(red + blue, RED[0] + RED[2], atol=1.1 / 255)
    np.testing.assert_allclose(green, RED[1], atol=0.6 / 255)


def test_surface_albedo_is_the_volume_rendering_of_layers() -> None:
    def layers(points: Tensor) -> tuple[Tensor, Tensor]:  # red down to z = -0.01, blue beneath
        return torch.full_like(points[:, 0], 12.0), red_front(points[:, [2, 0, 1]] + 0.01)

    points = np.zeros((1, 3), np.float32)
    found = surface_albedo(layers, points, np.array([[0, 0, 1]], np.float32))
    # The ray runs from 0.05 above to 0.1 beneath: 0.06 of red, then 0.09 of blue.
    red = (1 - math.exp(-12 * 0.06)) / (1 - math.exp(-12 * 0.15))
    expected = red * np.array(RED) + (1 - red) * np.array(BLUE)
    np.testing.assert_allclose(found[0], expected, atol=1e-4)


@pytest.mark.parametrize("gap", [0.015, 0.03, 0.045, 0.06])
def test_a_surface_does_not_have_the_colour_of_what_is_close_in_front_of_it(gap: float) -> None:
    def slabs(points: Tensor) -> tuple[Tensor, Tensor]:  # blue below z = 0, red above the gap
        dense = (points[:, 2] < 0) | (points[:, 2] > gap)
        return torch.where(dense, 60.0, 0.0), red_front(points[:, [2, 0, 1]] - gap / 2)

    found = surface_albedo(slabs, np.zeros((1, 3), np.float32), np.array([[0, 0, 1]], np.float32))
    np.testing.assert_allclose(found[0], BLUE, atol=1e-3)


@pytest.mark.parametrize(("haze", "red"), [(0.05, 0.0), (0.2, 1 - math.exp(-1.2))])
def test_what_is_joined_to_a_surface_by_haze_is_in_front_of_it(haze: float, red: float) -> None:
    """A tenth is the density of empty space. Of the red slab, from 0.03 on, the ray crosses 0.02, an optical depth of 1.2."""

    def slabs(points: Tensor) -> tuple[Tensor, Tensor]:
        dense = (points[:, 2] < 0) | (points[:, 2] > 0.03)
        return torch.where(dense, 60.0, haze), red_front(points[:, [2, 0, 1]] - 0.015)

    found = surface_albedo(slabs, np.zeros((1, 3), np.float32), np.array([[0, 0, 1]], np.float32))
    np.testing.assert_allclose(found[0], red * np.array(RED) + (1 - red) * np.array(BLUE), atol=5e-3)


def test_a_negative_density_is_empty_and_a_colour_that_is_no_number_black() -> None:
    def field(points: Tensor) -> tuple[Tensor, Tensor]:  # red down to z = -0.05, less than nothing beneath
        colour = torch.where(points[:, :1] > 0.5, math.nan, red_front(points[:, [2, 0, 1]] + 0.05))
        return torch.where(points[:, 2] > -0.05, 60.0, -50.0), colour

    points = np.array([[0, 0, 0], [0.7, 0, 0]], np.float32)
    found = surface_albedo(field, points, np.array([[0, 0, 1]] * 2, np.float32))
    np.testing.assert_allclose(found, [RED, (0, 0, 0)], atol=1e-5)


def test_colours_are_never_asked_for_outside_the_cube() -> None:
    def bounded(points: Tensor) -> tuple[Tensor, Tensor]:
        assert points.abs().max() <= 1
        return torch.full_like(points[:, 0], 5.0), red_front(points)

    points = np.array([[1.01, 0, 0], [-1, 0.5, 0]], np.float32)
    found = surface_albedo(bounded, points, np.array([[1, 0, 0], [-1, 0, 0]], np.float32))
    np.testing.assert_allclose(found, [RED, BLUE], atol=1e-6)


def rings(size: int) -> tuple[Cameras, Callable[[View], Tensor]]:
    """Cameras all around, and what takes their pictures as ``seen_colours`` wants them."""
    cameras = Cameras.joined([turntable(8, 10.0), turntable(6, 55.0)])

    def pictures(view: View) -> Tensor:
        made = view(cameras, size, size)
        colour = made.rgb - (1 - made.opacity)
        return nearness(torch.cat([colour, made.opacity, made.depth], dim=-1).movedim(-1, 1))

    return cameras, pictures


def balls_view(
    *balls: tuple[tuple[float, float, float], float], opacity: float = 1.0, behind: float = 1.0
) -> View:
    """Balls in closed form, centre and radius: the first is ``stripes``, all others are blue."""

    def view(cameras: Cameras, height: int, width: int) -> Render:
        origins, directions = cameras.rays(height, width)
        depth = torch.full_like(origins[..., :1], math.inf)
        colour = torch.zeros_like(origins)
        for number, (centre, radius) in enumerate(balls):
            offset = origins - torch.tensor(centre)
            middle = -(offset * directions).sum(-1, keepdim=True)
            half = radius**2 - (offset.square().sum(-1, keepdim=True) - middle**2)
            met = torch.where(half > 0, middle - half.clamp(min=0).sqrt(), math.inf)
            own = (
                stripes(origins + met.nan_to_num(posinf=0.0) * directions)
                if number == 0
                else torch.tensor(BLUE)
            )
            colour, depth = torch.where(met < depth, own, colour), torch.minimum(met, depth)
        there = depth.isfinite().float() * opacity
        rgb = there * colour + (1 - there) * behind
        return Render(rgb, there, depth.nan_to_num(posinf=0.0), background=torch.full_like(rgb, behind))

    return view


def stripes(points: Tensor) -> Tensor:
    return 0.5 + 0.4 * torch.sin(3 * points)


def around(radius: float, count: int = 2000) -> tuple[Floats, Floats]:
    """Points of a ball that cameras above and below see, and their normals."""
    normals = np.random.default_rng(0).normal(size=(4 * count, 3)).astype(np.float32)
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    normals = normals[normals[:, 2] > -0.5][:count]
    return radius * normals, normals


@pytest.mark.parametrize(("opacity", "behind"), [(1.0, 1.0), (0.7, 1.0), (0.7, 0.4)])
def test_a_surface_has_the_colours_of_its_pictures(opacity: float, behind: float) -> None:
    """The field's own colour, black, is further than 0.35 from every stripe but the darkest, and then has no share."""

    def black(points: Tensor) -> tuple[Tensor, Tensor]:
        return torch.full_like(points[:, 0], 50.0), torch.zeros_like(points)

    points, normals = around(0.6)
    view = balls_view(((0.0, 0.0, 0.0), 0.6), opacity=opacity, behind=behind)
    found = paint_of(black, view, picture_size=128)(points, normals)
    expected = stripes(torch.from_numpy(points)).numpy()
    # A pixel is 0.018 wide, over which the colours change by 0.02.
    bright = expected.max(1) > 0.4
    assert bright.mean() > 0.9
    np.testing.assert_allclose(found[bright], expected[bright], atol=0.03)


@pytest.mark.parametrize(
    ("difference", "share"), [(0.05, 0.5), (0.1, 0.5), (0.2, 0.7), (0.35, 1.0), (0.5, 1.0)]
)
def test_pictures_count_the_more_the_more_they_differ_from_the_field(difference: float, share: float) -> None:
    def field(points: Tensor) -> tuple[Tensor, Tensor]:
        return torch.full_like(points[:, 0], 50.0), torch.full_like(points, 0.3)

    def view(cameras: Cameras, height: int, width: int) -> Render:
        made = balls_view(((0.0, 0.0, 0.0), 0.6))(cameras, height, width)
        colour = torch.tensor([0.3 + difference, 0.3, 0.3])
        return replace(made, rgb=made.opacity * colour + 1 - made.opacity)

    points, normals = around(0.6, 100)
    found = paint_of(field, view, picture_size=64)(points, normals)
    np.testing.assert_allclose(np.median(found, axis=0), [0.3 + share * difference, 0.3, 0.3], atol=1e-3)


def test_what_hides_a_surface_does_not_colour_it() -> None:
    """A small blue ball in front of the large one: the points behind it have their own colours, from the other pictures."""
    points, normals = around(0.5)
    cameras, pictures = rings(128)
    found, seen = seen_colours(
        cameras, pictures(balls_view(((0.0, 0.0, 0.0), 0.5), ((0.85, 0.0, 0.0), 0.12))), points, normals
    )
    alone, more = seen_colours(cameras, pictures(balls_view(((0.0, 0.0, 0.0), 0.5))), points, normals)
    behind = more - seen > 0.1
    assert 20 < behind.sum() < 400
    known = seen > 1e-3
    np.testing.assert_allclose(found[known], stripes(torch.from_numpy(points[known])), atol=0.03)
    np.testing.assert_allclose(found[more == seen], alone[more == seen], atol=1e-6)


def test_pictures_count_by_the_fourth_power_of_the_cosine_of_their_angle() -> None:
    cameras, _ = rings(32)
    pictures = torch.zeros(len(cameras), 5, 32, 32)
    pictures[:, 3] = 1
    point, normal = np.zeros((1, 3), np.float32), np.array([[1, 0, 0]], np.float32)
    pictures[:, 4] = 3.2  # the distance of the origin
    pictures[:, 0] = torch.linspace(0, 1, len(cameras))[:, None, None]
    weight = (cameras.c2w[:, 0, 3] / 3.2).clamp(min=0) ** 4
    found, seen = seen_colours(cameras, nearness(pictures), point, normal)
    assert seen[0] == pytest.approx(float(weight.sum()), rel=1e-5)
    expected = (weight * torch.linspace(0, 1, len(cameras))).sum() / weight.sum()
    assert found[0].tolist() == pytest.approx([float(expected), 0, 0], abs=1e-5)


def at_the_origin(shown: list[tuple[float, float, float]]) -> tuple[list[float], float]:
    """The colour that pictures show at the origin, seen straight on, and the sum of their weights.

    Args:
        shown: red, opacity and how far the depth is behind the origin, of each picture, everywhere in it.
    """
    cameras = Cameras.joined([turntable(1)] * len(shown))
    distance = float(cameras.c2w[0, :3, 3].norm())
    pictures = torch.zeros(len(shown), 5, 8, 8)
    for picture, (red, opacity, behind) in zip(pictures, shown, strict=True):
        picture[0], picture[3], picture[4] = red * opacity, opacity, distance + behind
    normal = (cameras.c2w[:1, :3, 3] / distance).numpy()
    found, seen = seen_colours(cameras, nearness(pictures), np.zeros((1, 3), np.float32), normal)
    return found[0].tolist(), float(seen[0])


def test_pictures_count_by_their_opacity_and_not_where_half_of_what_they_show_is_behind() -> None:
    found, seen = at_the_origin([(1.0, 1.0, 0.0), (0.5, 0.6, 0.0), (0.0, 0.49, 0.0), (0.0, 0.2, 0.0)])
    assert seen == pytest.approx(1.6, abs=1e-5)
    assert found == pytest.approx([(1.0 * 1 + 0.6 * 0.5) / 1.6, 0, 0], abs=1e-5)


@pytest.mark.parametrize(("red", "expected"), [(-0.2, 0.0), (0.7, 0.7), (1.3, 1.0)])
def test_each_picture_is_limited_to_colours(red: float, expected: float) -> None:
    """Before the mean: one that is too bright does not make up for a dark one."""
    found, _ = at_the_origin([(red, 1.0, 0.0), (0.5, 1.0, 0.0)])
    assert found == pytest.approx([(expected + 0.5) / 2, 0, 0], abs=1e-5)


@pytest.mark.parametrize("side", [1, -1])
def test_a_picture_whose_depth_is_too_far_from_a_point_does_not_count(side: int) -> None:
    within, beyond = ((1.0, 1.0, side * share * REACH) for share in (0.95, 1.05))
    assert at_the_origin([within])[1] == pytest.approx(1, abs=1e-5)
    assert at_the_origin([beyond]) == ([0, 0, 0], 0)
    # What is hidden from one picture has the colour of another.
    assert at_the_origin([(0.3, 1.0, 0.0), beyond]) == (
        pytest.approx([0.3, 0, 0], abs=1e-5),
        pytest.approx(1),
    )


def test_the_depths_around_a_pixel_are_those_of_its_neighbours_that_are_not_empty() -> None:
    pictures = torch.zeros(1, 5, 3, 4)
    pictures[0, 3] = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 0, 0]])
    # The 9 and the 8 are of empty pixels.
    pictures[0, 4] = torch.tensor([[1, 2, 0, 0], [3, 4, 5, 9], [6, 7, 8, 0]])
    found = nearness(pictures)[0]
    assert torch.equal(found[:4], pictures[0, :4])
    assert found[4].tolist() == [[1.0, 1, 2, 5], [1, 1, 2, 5], [3, 3, 4, 5]]
    assert found[5].tolist() == [[4.0, 5, 5, 5], [7, 7, 7, 5], [7, 7, 7, 5]]


@pytest.mark.parametrize(("column", "counts"), [(4, True), (3, False)])
def test_depths_are_compared_around_the_nearest_pixel_alone(column: int, counts: bool) -> None:
    """Of five columns, the point is in the middle one, 0.4 of a pixel right of its centre; from ``column`` on there is only the back."""
    camera = turntable(1)
    distance = float(camera.c2w[0, :3, 3].norm())
    point = (
        0.4
        * (2 / 5)
        * distance
        * math.tan(math.radians(float(camera.fov_y_deg[0])) / 2)
        * camera.c2w[0, :3, 0]
    )
    assert camera.project(point[None])[0, 0].tolist() == pytest.approx([0.16, 0], abs=1e-5)
    pictures = torch.zeros(1, 5, 5, 5)
    pictures[0, 3], pictures[0, 4] = 1, distance
    pictures[0, 4, :, column:] += 1
    normal = (camera.c2w[:1, :3, 3] / distance).numpy()
    _, seen = seen_colours(camera, nearness(pictures), point[None].numpy(), normal)
    cosine = distance / math.hypot(distance, float(point.norm()))
    assert seen[0] == pytest.approx(cosine**4 if counts else 0, abs=1e-5)


@pytest.mark.parametrize("broken", range(5))
def test_a_pixel_with_one_value_that_is_no_number_is_empty(broken: int) -> None:
    pictures = torch.full((1, 5, 1, 3), 0.5)
    pictures[0, broken, 0, 0] = (math.nan, math.inf)[broken % 2]
    found = nearness(pictures)[0, :, 0]
    assert (found[:4, 0] == 0).all() and (found[:, 1:] == 0.5).all()


@pytest.mark.parametrize(("seen", "share"), [(0.0, 0.0), (0.25, 0.25), (0.5, 0.5), (1.0, 1.0), (4.0, 1.0)])
def test_what_is_seen_at_a_glance_has_the_field_s_own_colour_in_part(seen: float, share: float) -> None:
    """One picture alone shows the origin, at an angle whose fourth power is that share of ``SEEN``; it is white, the field dark."""
    above = Cameras.joined([turntable(1, 85.0)])
    towards = (above.c2w[0, :3, 3] / above.c2w[0, :3, 3].norm()).numpy()
    distance = float(above.c2w[0, :3, 3].norm())

    def view(cameras: Cameras, height: int, width: int) -> Render:
        there = (cameras.elevation_deg > 80).float()[:, None, None, None].expand(-1, height, width, 1)
        return Render(torch.ones(len(cameras), height, width, 3), there, distance * there)

    def dark(points: Tensor) -> tuple[Tensor, Tensor]:
        return torch.full_like(points[:, 0], 50.0), torch.full_like(points, 0.2)

    across = np.cross(towards, [0.0, 1.0, 0.0])
    cosine = (seen * SEEN) ** 0.25
    normal = cosine * towards + math.sqrt(1 - cosine**2) * across / np.linalg.norm(across)
    found = paint_of(dark, view, picture_size=8)(
        np.zeros((1, 3), np.float32), normal[None].astype(np.float32)
    )
    np.testing.assert_allclose(found[0], 0.2 + share * 0.8, atol=1e-4)


def test_a_scene_that_names_no_background_is_over_white() -> None:
    """A ball of colour 0.2 and opacity 0.6, over white, looks 0.6 * 0.2 + 0.4."""

    def view(cameras: Cameras, height: int, width: int) -> Render:
        made = balls_view(((0.0, 0.0, 0.0), 0.6))(cameras, height, width)
        return Render(1 - 0.48 * made.opacity.expand(-1, -1, -1, 3), 0.6 * made.opacity, made.depth)

    def field(points: Tensor) -> tuple[Tensor, Tensor]:
        return torch.full_like(points[:, 0], 50.0), torch.full_like(points, 0.8)

    points, normals = around(0.6, 100)
    found = paint_of(field, view, picture_size=64)(points, normals)
    np.testing.assert_allclose(np.median(found, axis=0), 0.2, atol=1e-3)


def test_how_many_points_are_coloured_at_a_time_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    points, normals = around(0.6, 20)
    paint = paint_of(sphere(0.6), balls_view(((0.0, 0.0, 0.0), 0.6)), picture_size=32)
    whole = paint(points, normals)
    monkeypatch.setattr(colours, "CHUNK", 7)
    np.testing.assert_allclose(paint(points, normals), whole, atol=1e-6)


def test_pixels_that_are_no_numbers_count_as_empty() -> None:
    def broken(cameras: Cameras, height: int, width: int) -> Render:
        made = balls_view(((0.0, 0.0, 0.0), 0.6))(cameras, height, width)
        rgb = torch.where(made.opacity > 0, made.rgb, math.nan)
        rgb[:, height // 2, width // 2] = math.nan
        return replace(made, rgb=rgb)

    points, normals = around(0.6)
    found = paint_of(sphere(0.6), broken, picture_size=64)(points, normals)
    assert np.isfinite(found).all() and found.min() >= 0 and found.max() <= 1


def test_what_is_far_behind_does_not_colour_the_rim_in_front_of_it() -> None:
    """A small striped ball in front of a large blue one: at its rim, pixels are half blue."""
    points, normals = around(0.15)
    points = points + np.array([0.7, 0, 0], np.float32)
    cameras, pictures = rings(96)
    view = balls_view(((0.7, 0.0, 0.0), 0.15), ((-0.2, 0.0, 0.0), 0.45))
    found, seen = seen_colours(cameras, pictures(view), points, normals)
    known = seen > 1e-3
    assert known.mean() > 0.5
    np.testing.assert_allclose(found[known], stripes(torch.from_numpy(points[known])), atol=0.06)


def test_pictures_are_as_fine_as_the_texture_wants() -> None:
    sizes = list[int]()

    def view(cameras: Cameras, height: int, width: int) -> Render:
        sizes.append(height)
        return balls_view(((0.0, 0.0, 0.0), 0.6))(cameras, height, width)

    for size, expected in ((64, 32), (512, 256)):
        sizes.clear()
        MeshWriter(sphere(0.6)).mesh(view, {"texture_size": size, "resolution": 24, "faces": 200})
        assert sizes[0] == 96 and {*sizes[1:]} == {expected}  # the first are silhouettes


def test_what_no_picture_shows_has_the_field_s_own_colours() -> None:
    def empty(cameras: Cameras, height: int, width: int) -> Render:
        nothing = torch.zeros(len(cameras), height, width, 1)
        return Render(1 - nothing.expand(-1, -1, -1, 3), nothing, nothing)

    points, normals = around(0.6)
    found = paint_of(sphere(0.6), empty, picture_size=32)(points, normals)
    np.testing.assert_array_equal(found, surface_albedo(sphere(0.6), points, normals))


def test_too_small_a_texture_is_refused(ball: Mesh) -> None:
    with pytest.raises(ValueError, match="at least 64 texels, got 32"):
        bake_texture(ball, partial(surface_albedo, sphere(0.6)), size=32)


# --- files --------------------------------------------------------------------------------------


def marker(colours: np.ndarray | None = None) -> Mesh:
    """A tetrahedron whose tips lie on the axes: front +x, left +y, top +z."""
    vertices = np.array([[0, 0, 0], [0.5, 0, 0], [0, 0.6, 0], [0, 0, 0.7]], np.float32)
    faces = np.array([[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]])
    return Mesh(vertices, faces, vertex_normals(vertices, faces), colours=colours)


def read_glb(path: Path) -> tuple[dict[str, Any], bytes]:
    """The two chunks of a GLB file: its JSON and its binary data."""
    content = path.read_bytes()
    end = 20 + struct.unpack("<I", content[12:16])[0]
    return json.loads(content[20:end]), content[end + 8 :]


@pytest.mark.parametrize("suffix", [".glb", ".obj", ".ply"])
def test_front_becomes_z_top_becomes_y_and_orientation_stays(tmp_path: Path, suffix: str) -> None:
    save_mesh(marker(), tmp_path / f"m{suffix}")
    mesh = trimesh.load_mesh(tmp_path / f"m{suffix}", process=False)
    np.testing.assert_allclose(mesh.bounds[1], [0.6, 0.7, 0.5], atol=1e-6)  # left, top, front
    assert mesh.volume == pytest.approx(0.5 * 0.6 * 0.7 / 6, rel=1e-5)
    save_mesh(marker(), tmp_path / f"z{suffix}", up="z")
    mesh = trimesh.load_mesh(tmp_path / f"z{suffix}", process=False)
    np.testing.assert_allclose(mesh.bounds[1], [0.5, 0.6, 0.7], atol=1e-6)


def test_bump_on_the_front_of_a_ball_ends_at_positive_z(tmp_path: Path) -> None:
    ball, bump = sphere(0.4), sphere(0.15, centre=(0.45, 0, 0))

    def nosed(points: Tensor) -> tuple[Tensor, Tensor]:
        return torch.maximum(ball(points)[0], bump(points)[0]), red_front(points)

    save_mesh(
        extract_mesh(nosed, sphere_view(0.4), resolution=48, iso=4.0, smoothing=0),
        tmp_path / "nose.glb",
    )
    low, high = trimesh.load_mesh(tmp_path / "nose.glb", process=False).bounds
    assert high[2] == pytest.approx(0.6, abs=0.02)
    np.testing.assert_allclose([-low[0], high[0], -low[1], high[1], -low[2]], 0.4, atol=0.02)


def test_glb_colours_are_linear_and_ply_colours_are_srgb(tmp_path: Path) -> None:
    grey = np.full((4, 3), 0.5, np.float32)
    for suffix, expected in ((".glb", 0.2140), (".ply", 0.5)):  # sRGB 0.5 is linear 0.2140
        save_mesh(marker(grey), tmp_path / f"m{suffix}")
        (mesh,) = trimesh.load_scene(tmp_path / f"m{suffix}", process=False).geometry.values()
        visual: Any = mesh.visual
        found = (
            visual.vertex_attributes["color"]
            if suffix == ".glb"
            else np.asarray(visual.vertex_colors)[:, :3] / 255
        )
        np.testing.assert_allclose(found, expected, atol=1e-4 if suffix == ".glb" else 0.5 / 255)


def test_dark_colours_of_vertices_are_not_lost_in_a_glb(tmp_path: Path) -> None:
    """Of linear bytes, the first is sRGB 0.05: all that is darker than half of that would be black."""
    dark = np.array([[0.001, 0.01, 0.02], [0.03, 0.04, 0.05], [0.1, 0.5, 1.0], [-0.5, 0.0, 2.0]], np.float32)
    save_mesh(marker(dark), tmp_path / "m.glb")
    content, data = read_glb(tmp_path / "m.glb")
    accessor = content["accessors"][content["meshes"][0]["primitives"][0]["attributes"]["COLOR_0"]]
    assert (accessor["componentType"], accessor["type"], accessor["count"]) == (5126, "VEC3", 4)
    view = content["bufferViews"][accessor["bufferView"]]
    assert view["target"] == 34962
    linear = np.frombuffer(data, "<f4", 12, view.get("byteOffset", 0) + accessor.get("byteOffset", 0))
    shown = np.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear ** (1 / 2.4) - 0.055)
    np.testing.assert_allclose(shown.reshape(4, 3), dark.clip(0, 1), atol=1e-6)


@pytest.mark.parametrize("kind", ["plain", "coloured", "textured"])
@pytest.mark.parametrize("lods", [0, 1])
def test_glb_has_one_matt_material(tmp_path: Path, painted: Mesh, kind: str, lods: int) -> None:
    bare = welded(painted)
    coloured = replace(bare, colours=np.full((len(bare.vertices), 3), 0.5, np.float32))
    mesh = {"plain": bare, "coloured": coloured, "textured": painted}[kind]
    told = save_meshes(mesh, tmp_path, formats=["glb"], name="m", lods=lods, lod_as="both")
    assert len(told["meshes"]) == 1 + lods
    for name in told["meshes"]:
        content, _ = read_glb(tmp_path / name)
        (material,) = content["materials"]
        assert material["name"] == "m"
        surface = material["pbrMetallicRoughness"]
        # Without these glTF has both at 1: bare metal, which is black where nothing is mirrored.
        assert surface["metallicFactor"] == 0 and surface["roughnessFactor"] == pytest.approx(0.9)
        assert ("baseColorTexture" in surface) == (kind == "textured")
        primitives = [each for mesh in content["meshes"] for each in mesh["primitives"]]
        assert {each["material"] for each in primitives} == {0}
        assert all(("COLOR_0" in each["attributes"]) == (kind == "coloured") for each in primitives)


def test_glb_holds_normals_and_texture(tmp_path: Path, painted: Mesh) -> None:
    assert painted.uv is not None
    save_mesh(painted, tmp_path / "m.glb")
    content, data = read_glb(tmp_path / "m.glb")
    attributes = content["meshes"][0]["primitives"][0]["attributes"]
    assert set(attributes) == {"POSITION", "NORMAL", "TEXCOORD_0"}
    loaded: Any = trimesh.load_mesh(tmp_path / "m.glb", process=False)
    np.testing.assert_array_equal(np.asarray(loaded.visual.material.baseColorTexture), painted.texture)
    np.testing.assert_allclose(loaded.visual.uv, painted.uv, atol=1e-6)
    place = content["bufferViews"][content["accessors"][attributes["NORMAL"]]["bufferView"]]
    normals = np.frombuffer(data, np.float32, painted.normals.size, place.get("byteOffset", 0))
    np.testing.assert_allclose(normals.reshape(-1, 3), painted.normals[:, [1, 2, 0]], atol=1e-6)


def test_obj_reloads_with_equal_vertices_and_an_undarkened_texture(tmp_path: Path, painted: Mesh) -> None:
    assert painted.uv is not None
    save_mesh(painted, tmp_path / "cat.obj")
    loaded: Any = trimesh.load_mesh(tmp_path / "cat.obj", process=False, maintain_order=True)
    assert len(loaded.vertices) == len(painted.vertices) and len(loaded.faces) == len(painted.faces)
    np.testing.assert_allclose(loaded.vertices, painted.vertices[:, [1, 2, 0]], atol=1e-5)
    np.testing.assert_allclose(loaded.visual.uv, painted.uv, atol=1e-5)
    material = (tmp_path / "cat.mtl").read_text().splitlines()
    assert "Kd 1 1 1" in material and "map_Kd cat.png" in material
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "cat.png")), painted.texture)


def test_obj_without_texture_carries_the_vertices_colours(tmp_path: Path) -> None:
    colours = np.eye(4, 3, dtype=np.float32)
    save_mesh(marker(colours), tmp_path / "m.obj")
    rows = [line.split() for line in (tmp_path / "m.obj").read_text().splitlines()]
    vertices = np.array([row[1:] for row in rows if row[0] == "v"], float)
    np.testing.assert_array_equal(vertices[:, 3:], colours)
    assert not (tmp_path / "m.mtl").exists()


@pytest.mark.parametrize("name", ["mesh.fbx", "mesh", "mesh.glb.zip"])
def test_unknown_suffix_lists_the_known_ones(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match=rf"\.glb, \.obj, \.ply, \.stl, \.usdz, got .*{name}") as caught:
        save_mesh(marker(), tmp_path / name)
    assert "\n" not in str(caught.value) and not list(tmp_path.iterdir())


def test_unknown_up_is_refused_and_writes_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'y' or 'z', got 'x'"):
        save_mesh(marker(), tmp_path / "m.glb", up="x")  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def test_a_write_that_fails_leaves_the_old_file_and_no_litter(tmp_path: Path) -> None:
    path = tmp_path / "mesh.glb"
    path.write_text("old")
    with pytest.raises(OSError, match="disk full"), replacing(path) as part:
        part.write_text("half")
        raise OSError("disk full")
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["mesh.glb"]


@pytest.mark.parametrize("kind", ["plain", "coloured", "textured"])
def test_glb_passes_the_khronos_validator(tmp_path: Path, painted: Mesh, kind: str) -> None:
    mesh = {"plain": marker(), "coloured": marker(np.eye(4, 3, dtype=np.float32)), "textured": painted}[kind]
    save_mesh(mesh, tmp_path / "m.glb")
    assert khronos.findings(tmp_path / "m.glb") == []


# --- pictures -----------------------------------------------------------------------------------


def test_bytes_round_to_nearest_clip_and_hold_no_nan() -> None:
    values = torch.tensor([0.0, 1.0, 0.2, 1.7, -0.1, math.nan, 0.4999])
    assert to_uint8(values).tolist() == [0, 255, 51, 255, 0, 0, 127]


def test_turntable_has_the_frames_size_rate_and_colours_asked_for(tmp_path: Path) -> None:
    write_turntable(azimuth_view, tmp_path / "t.mp4", frames=12, size=48, fps=24)
    reader = imageio_ffmpeg.read_frames(str(tmp_path / "t.mp4"))
    about = next(reader)
    frames = [np.frombuffer(frame, np.uint8).reshape(48, 48, 3) for frame in reader]
    assert about["size"] == (48, 48) and about["fps"] == 24 and about["pix_fmt"].startswith("yuv420p")
    assert len(frames) == 12 and os.listdir(tmp_path) == ["t.mp4"]
    red = np.array([frame[..., 0].mean() for frame in frames]) / 255
    np.testing.assert_allclose(red, (np.arange(12) / 12 + 0.5) % 1, atol=0.06)


def test_a_view_that_fails_leaves_no_video(tmp_path: Path) -> None:
    def failing(cameras: Cameras, height: int, width: int) -> Render:
        if cameras.azimuth_deg[0] > 0:
            raise RuntimeError("out of memory")
        return azimuth_view(cameras, height, width)

    with pytest.raises(RuntimeError, match="out of memory"):
        write_turntable(failing, tmp_path / "t.mp4", frames=4, size=32)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("options", [{"size": 50}, {"size": 0}, {"frames": 0}, {"fps": 0}])
def test_bad_video_options_are_refused(tmp_path: Path, options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="multiple of 16"):
        write_turntable(azimuth_view, tmp_path / "t.mp4", **options)


def test_contact_sheet_runs_from_the_front_around_in_two_rows_with_white_gaps(tmp_path: Path) -> None:
    write_contact_sheet(azimuth_view, tmp_path / "c.png", size=32, gap=4)
    sheet = np.asarray(Image.open(tmp_path / "c.png"))
    assert sheet.shape == (68, 140, 3)
    centres = [sheet[16 + 36 * (i // 4), 16 + 36 * (i % 4), 0] / 255 for i in range(8)]
    np.testing.assert_allclose(centres, (np.arange(8) / 8 + 0.5) % 1, atol=1 / 255)
    assert (sheet[32:36] == 255).all() and (sheet[:, 32:36] == 255).all()


# --- everything ---------------------------------------------------------------------------------


def test_export_writes_every_file_and_says_what_it_did(tmp_path: Path) -> None:
    def export() -> dict[str, Any]:
        return export_asset(
            sphere(0.5),
            sphere_view(0.5),
            tmp_path / "new" / "asset",
            resolution=48,
            faces=1000,
            texture_size=64,
            frames=4,
            picture_size=32,
        )

    told = export()
    names = {
        "contact.png",
        "turntable.mp4",
        "mesh.glb",
        "mesh.obj",
        "mesh.mtl",
        "mesh.png",
        "mesh.ply",
        "mesh-sides.png",
    }
    assert set(os.listdir(tmp_path / "new" / "asset")) == names
    assert set(told["seconds"]) == {"contact", "turntable", "mesh", "texture", "files", "mesh_sheet"}
    assert told["iso_level"] == pytest.approx(4, rel=0.25) and told["silhouette_iou"] > 0.95
    ply = trimesh.load_mesh(tmp_path / "new" / "asset" / "mesh.ply", process=False)
    assert ply.is_watertight and len(ply.faces) == told["faces"] <= 1000
    glb = (tmp_path / "new" / "asset" / "mesh.glb").read_bytes()
    export()
    assert (tmp_path / "new" / "asset" / "mesh.glb").read_bytes() == glb  # the same again, byte for byte


def test_an_empty_scene_still_leaves_its_pictures(tmp_path: Path) -> None:
    def nothing(points: Tensor) -> tuple[Tensor, Tensor]:
        return 0 * points[:, 0], points.abs()

    with pytest.raises(ValueError, match="empty scene"):
        export_asset(nothing, sphere_view(0.0), tmp_path, resolution=16, frames=2, picture_size=32)
    assert set(os.listdir(tmp_path)) == {"contact.png", "turntable.mp4"}


def test_the_home_folder_is_known_to_every_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    export_asset(
        sphere(0.5),
        sphere_view(0.5),
        "~/asset",
        resolution=24,
        faces=200,
        texture_size=64,
        frames=1,
        picture_size=32,
    )
    assert set(os.listdir(tmp_path)) == {"home"}
    assert {"contact.png", "turntable.mp4", "mesh.glb"} <= set(os.listdir(tmp_path / "home" / "asset"))
    write_turntable(azimuth_view, "~/turn.mp4", frames=1, size=32)
    write_contact_sheet(azimuth_view, "~/sheet.png", size=32)
    assert set(os.listdir(tmp_path / "home")) == {"asset", "turn.mp4", "sheet.png"}
