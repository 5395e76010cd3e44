"""Camera geometry against hand-computed cases, and the law of the drawn cameras."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from distill.cameras import moved, orbit, turntable
from distill.priors.novel_view.pose import spherical
from distill.samplers.cameras import ranges


def grid_of_cameras() -> Any:
    azimuth, elevation = torch.meshgrid(
        torch.arange(-180.0, 180, 30), torch.arange(-90.0, 91, 30), indexing="ij"
    )
    return orbit(azimuth.flatten(), elevation.flatten(), 3.2, 40.0)


def test_rotations_are_orthonormal_and_right_handed() -> None:
    rotation = grid_of_cameras().c2w[:, :3, :3]
    identity = torch.eye(3).expand_as(rotation)
    assert torch.allclose(rotation.transpose(1, 2) @ rotation, identity, atol=1e-5)
    assert torch.allclose(torch.linalg.det(rotation), torch.ones(len(rotation)), atol=1e-5)


def test_azimuth_zero_stands_on_plus_x_and_looks_down_minus_x() -> None:
    camera = orbit(torch.tensor([0.0]), torch.tensor([0.0]), 3.0, 40.0)
    expected = torch.tensor([[0.0, 0, 1, 3], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1]])
    # Columns: right +y, up +z, backward +x, position.
    assert torch.allclose(camera.c2w[0], expected, atol=1e-6)


@pytest.mark.parametrize(
    ("azimuth", "elevation", "expected"),
    [
        (90, 0, (0, 2, 0)),
        (180, 0, (-2, 0, 0)),
        (0, 30, (math.sqrt(3), 0, 1)),
        (-90, 45, (0, -math.sqrt(2), math.sqrt(2))),
    ],
)
def test_positions_match_spherical_coordinates(azimuth: Any, elevation: Any, expected: Any) -> None:
    camera = orbit(torch.tensor([float(azimuth)]), torch.tensor([float(elevation)]), 2.0, 40.0)
    assert torch.allclose(camera.c2w[0, :3, 3], torch.tensor(expected, dtype=torch.float32), atol=1e-5)


def test_plus_y_projects_to_the_right_and_plus_z_to_the_top_from_the_front() -> None:
    origins, directions = turntable(1, elevation_deg=0).rays(5, 5)
    y_right, y_left = directions[0, 2, 4, 1], directions[0, 2, 0, 1]
    assert y_right > 0.1 and y_right == pytest.approx(-y_left.item(), abs=1e-6)
    assert directions[0, 0, 2, 2] > 0.1 > -0.1 > directions[0, 4, 2, 2]
    assert torch.equal(origins[0, 0, 0], origins[0, 4, 4])


@pytest.mark.parametrize("size", [1, 33])
def test_central_ray_passes_through_the_origin(size: Any) -> None:
    cameras = grid_of_cameras()
    origins, directions = cameras.rays(size, size)
    middle = directions[:, size // 2, size // 2]
    assert torch.allclose(origins[:, 0, 0] + 3.2 * middle, torch.zeros(len(cameras), 3), atol=1e-5)


def test_corner_pixels_span_the_field_of_view() -> None:
    height, width, fov = 8, 16, 50.0
    _, directions = orbit(torch.zeros(1), torch.zeros(1), 3.0, fov).rays(height, width)
    half = math.tan(math.radians(fov / 2))
    up, side = directions[0, 0, width // 2], directions[0, height // 2, -1]
    # The centres of the outermost pixels lie half a pixel inside the frustum.
    assert (up[2] / -up[0]).item() == pytest.approx(half * (1 - 1 / height), rel=1e-5)
    assert (side[1] / -side[0]).item() == pytest.approx(half * width / height * (1 - 1 / width), rel=1e-5)
    assert torch.allclose(directions.norm(dim=-1), torch.ones(1, height, width), atol=1e-6)


def test_straight_overhead_is_finite_and_keeps_the_azimuth() -> None:
    camera = orbit(torch.tensor([90.0]), torch.tensor([90.0]), 3.0, 40.0)
    assert torch.isfinite(camera.c2w).all()
    assert torch.allclose(camera.c2w[0, :3, 0], torch.tensor([-1.0, 0, 0]), atol=1e-5)
    assert torch.allclose(camera.c2w[0, :3, 2], torch.tensor([0.0, 0, 1]), atol=1e-5)


@pytest.mark.parametrize("elevation", [90.0, -90.0])
def test_straight_above_and_below_the_position_keeps_the_azimuth(elevation: float) -> None:
    azimuth = torch.tensor([0.0, 37.0, 120.0, -150.0])
    position = orbit(azimuth, torch.full((4,), elevation), 3.2, 40.0).c2w[:, :3, 3]
    polar, told, distance = spherical(position)
    torch.testing.assert_close(torch.rad2deg(told), azimuth, atol=1e-2, rtol=0)
    torch.testing.assert_close(torch.rad2deg(polar), torch.full((4,), 90 - elevation), atol=1e-3, rtol=0)
    torch.testing.assert_close(distance, torch.full((4,), 3.2))


def test_look_at_points_the_axis_at_the_target() -> None:
    target = torch.tensor([[0.2, -0.1, 0.3]])
    camera = orbit(torch.tensor([40.0]), torch.tensor([20.0]), 3.0, 40.0, look_at=target)
    toward = torch.nn.functional.normalize(target[0] - camera.c2w[0, :3, 3], dim=0)
    assert torch.allclose(-camera.c2w[0, :3, 2], toward, atol=1e-6)
    assert abs(camera.c2w[0, :3, 0] @ camera.c2w[0, :3, 2]) < 1e-6


def test_stored_azimuth_is_wrapped() -> None:
    cameras = orbit(torch.tensor([180.0, 190.0, 360.0, -540.0]), torch.zeros(4), 3.0, 40.0)
    assert cameras.azimuth_deg.tolist() == [-180.0, -170.0, 0.0, -180.0]


def test_turntable_is_even_and_starts_at_the_front() -> None:
    assert turntable(8).azimuth_deg.tolist() == [0, 45, 90, 135, -180, -135, -90, -45]


def test_drawn_cameras_repeat_under_one_seed() -> None:
    draw = ranges(look_at_jitter=0.1)
    first, second, other = (draw(0.0, 4, torch.Generator().manual_seed(s)) for s in (3, 3, 4))
    assert all(torch.equal(a, b) for a, b in zip(vars(first).values(), vars(second).values(), strict=True))
    assert not torch.equal(first.c2w, other.c2w)


def test_each_batch_has_one_azimuth_in_every_stratum_up_to_one_shift() -> None:
    cameras = ranges()(0.0, 8, torch.Generator().manual_seed(0))
    azimuth = cameras.azimuth_deg.sort().values
    gaps = torch.cat([azimuth.diff(), azimuth[:1] + 360 - azimuth[-1:]])
    assert len(cameras) == 8 and gaps.max() < 90  # neighbours in adjoining strata of 45 degrees


def test_drawn_azimuth_and_elevation_are_uniform() -> None:
    draw, g = ranges(elevation_deg=(-5.0, 50.0)), torch.Generator().manual_seed(0)
    batches = [draw(0.0, 8, g) for _ in range(1000)]
    for name, low, high in (("azimuth_deg", -180, 180), ("elevation_deg", -5, 50), ("distance", 3.0, 3.4)):
        values = torch.cat([getattr(batch, name) for batch in batches])
        quantiles = (values.sort().values - low) / (high - low)
        even = (torch.arange(len(values)) + 0.5) / len(values)
        # Kolmogorov-Smirnov at the 0.1% level for independent draws; stratified ones lie closer still.
        assert (quantiles - even).abs().max() < 1.95 / math.sqrt(len(values))
    assert all(torch.equal(batch.fov_y_deg, torch.full((8,), 40.0)) for batch in batches)


def test_first_element_of_a_batch_sees_all_sides() -> None:
    draw, g = ranges(), torch.Generator().manual_seed(1)
    first = torch.stack([draw(0.0, 4, g).azimuth_deg[0] for _ in range(400)])
    counts = torch.histc(first, 4, -180, 180)
    assert counts.min() > 60  # 100 expected, standard deviation 9


def test_jittered_target_stays_within_its_box() -> None:
    cameras = ranges(look_at_jitter=0.2)(0.0, 256, torch.Generator().manual_seed(0))
    backward, position = cameras.c2w[:, :3, 2], cameras.c2w[:, :3, 3]
    nearest = position - (position * backward).sum(1, keepdim=True) * backward  # of the axis to the origin
    distance = nearest.norm(dim=1)
    assert distance.mean() > 0.02 and distance.max() <= 0.2 * math.sqrt(3) + 1e-5


def drawn(count: int = 4000, **options: Any) -> Any:
    return ranges(**options)(0.0, count, torch.Generator().manual_seed(0))


def test_without_jitter_nothing_more_is_drawn() -> None:
    first, second = torch.Generator().manual_seed(1), torch.Generator().manual_seed(1)
    plain = ranges()(0.0, 3, first)
    spelt = ranges(by_area=0.0, position_jitter=0.0, look_at_std=0.0, up_std=0.0, front_back=0.0)(
        0.0, 3, second
    )
    assert torch.equal(plain.c2w, spelt.c2w)
    assert torch.equal(first.get_state(), second.get_state())


def test_by_area_a_share_of_elevations_is_uniform_in_its_sine() -> None:
    whole = drawn(by_area=1.0, elevation_deg=(-10.0, 45.0), area_elevation_deg=(-90.0, 90.0))
    sine = torch.deg2rad(whole.elevation_deg).sin().sort().values
    # Kolmogorov and Smirnov: at 4000 draws the distance stays under 0.03 with a probability of 0.998.
    assert float((sine - (2 * torch.arange(4000) / 4000 - 1)).abs().max()) < 2 * 0.03
    within = drawn(by_area=1.0, elevation_deg=(-10.0, 45.0)).elevation_deg
    assert float(within.min()) >= -10 and float(within.max()) <= 45
    low, high = math.sin(math.radians(-10)), math.sin(math.radians(45))
    mean = torch.deg2rad(within).sin().mean()
    assert float(mean) == pytest.approx((low + high) / 2, abs=4 * (high - low) / math.sqrt(12 * 4000))
    half = drawn(by_area=0.5, elevation_deg=(0.0, 0.0), area_elevation_deg=(-90.0, 90.0)).elevation_deg
    assert float((half == 0).float().mean()) == pytest.approx(0.5, abs=0.032)


def test_a_share_sees_the_front_or_the_back() -> None:
    azimuth = drawn(front_back=1.0, front_back_deg=20.0).azimuth_deg
    front = azimuth.abs() <= 20
    assert bool((front | (azimuth.abs() >= 160)).all())
    assert float(front.float().mean()) == pytest.approx(0.5, abs=0.032)
    some = drawn(front_back=0.4, front_back_deg=30.0).azimuth_deg.abs()
    facing = (some <= 30) | (some >= 150)
    # Of the other 0.6, a third falls there too.
    assert float(facing.float().mean()) == pytest.approx(0.4 + 0.6 / 3, abs=0.032)


def test_jitters_have_the_spread_that_they_say() -> None:
    still: dict[str, Any] = {
        "distance": (2.0, 2.0), "elevation_deg": (0.0, 0.0), "azimuth_deg": (0.0, 0.0), "fov_y_deg": (40.0, 40.0),
    }  # fmt: skip
    shifted = drawn(position_jitter=0.1, **still)
    off = shifted.c2w[:, :3, 3] - torch.tensor([2.0, 0.0, 0.0])
    assert float(off.abs().max()) <= 0.1 + 1e-6
    assert off.std(0).tolist() == pytest.approx([0.1 / math.sqrt(3)] * 3, rel=0.05)
    # The angles by which view words are chosen are those before.
    assert torch.equal(shifted.azimuth_deg, torch.zeros(4000)) and torch.equal(
        shifted.distance, torch.full((4000,), 2.0)
    )
    turned = drawn(look_at_std=0.2, **still)
    backward = turned.c2w[:, :3, 2]
    # They face the points (a, b, c): the view is along (a - 2, b, c), nearly b / 2 and c / 2 from the middle.
    aim = -backward[:, 1:] / backward[:, :1]
    assert aim.std(0).tolist() == pytest.approx([0.1, 0.1], rel=0.08)
    rolled = drawn(up_std=0.02, **still)
    roll = torch.atan2(-rolled.c2w[:, 2, 0], rolled.c2w[:, 2, 1])
    assert float(roll.std()) == pytest.approx(0.02, rel=0.05)
    assert torch.allclose(rolled.c2w[:, :3, 2], torch.tensor([1.0, 0, 0]).expand(4000, 3), atol=1e-6)


def test_moved_cameras_stay_upright_and_orthonormal_straight_overhead_too() -> None:
    cameras = grid_of_cameras()
    zero, up = torch.zeros(len(cameras), 3), torch.tensor([0.0, 0.0, 1.0]).expand(len(cameras), 3)
    same = moved(cameras, zero, zero, up)
    assert torch.allclose(same.c2w, cameras.c2w, atol=2e-4)
    far = moved(cameras, torch.full_like(zero, 0.05), torch.full_like(zero, 0.1), up)
    rotation = far.c2w[:, :3, :3]
    assert torch.allclose(rotation.transpose(1, 2) @ rotation, torch.eye(3).expand_as(rotation), atol=1e-5)
    assert torch.allclose(torch.linalg.det(rotation), torch.ones(len(rotation)), atol=1e-5)


def test_scaled_cameras_cast_the_same_rays_from_elsewhere() -> None:
    cameras = grid_of_cameras()
    near = cameras.scaled(0.5)
    for (a, da), (b, db) in [(cameras.rays(4, 4), near.rays(4, 4))]:
        assert torch.equal(da, db) and torch.allclose(0.5 * a, b)
    assert torch.allclose(near.distance, 0.5 * cameras.distance)


def test_azimuths_are_drawn_from_their_own_range_in_order() -> None:
    azimuth = drawn(azimuth_deg=(30.0, 70.0)).azimuth_deg
    assert 30 <= float(azimuth.min()) < 31 and 69 < float(azimuth.max()) <= 70


def test_moved_cameras_stand_where_they_are_shifted_face_their_points_and_stay_level() -> None:
    cameras = grid_of_cameras()
    g = torch.Generator().manual_seed(0)
    by, look_at, up = (0.3 * torch.randn(len(cameras), 3, generator=g) for _ in range(3))
    before = cameras.c2w.clone()
    found = moved(cameras, by, look_at, up)
    assert torch.equal(cameras.c2w, before)
    assert torch.equal(found.c2w[:, 3], before[:, 3])
    right, upward, backward, position = found.c2w[:, :3].unbind(-1)
    torch.testing.assert_close(position, before[:, :3, 3] + by)
    distance = (position - look_at).norm(dim=1, keepdim=True)
    torch.testing.assert_close(position - distance * backward, look_at, atol=1e-5, rtol=0)
    assert (right * up).sum(1).abs().max() < 1e-6
    assert (upward * up).sum(1).min() > 0
    # Where up is along the view, the camera's own stays.
    still = torch.zeros_like(by)
    torch.testing.assert_close(moved(cameras, still, still, before[:, :3, 2]).c2w, before, atol=2e-6, rtol=0)


def test_projected_points_lie_on_the_rays_of_their_pixels() -> None:
    """A point anywhere along the ray through a pixel's centre is projected there: x rightwards, y downwards."""
    cameras = grid_of_cameras()
    origins, directions = cameras.rays(6, 6)
    centres = (torch.arange(6) + 0.5) / 3 - 1
    for camera, origin, direction in zip(cameras.split(1), origins, directions, strict=True):
        for depth in (0.5, 3.0):
            spots = camera.project((origin + depth * direction).view(-1, 3))[0].view(6, 6, 2)
            torch.testing.assert_close(spots[..., 0], centres.expand(6, 6), atol=1e-5, rtol=0)
            torch.testing.assert_close(spots[..., 1], centres[:, None].expand(6, 6), atol=1e-5, rtol=0)
