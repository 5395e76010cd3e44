"""Novel views: the pose convention, strict reading, and which pairs a training sees."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from distill.cameras import Cameras, orbit
from distill.lab.novel_view.config import TrainConfig
from distill.lab.novel_view.pairs import Pairs, draw_indices, read_pair
from distill.lab.novel_view.samples import open_views
from distill.lab.novel_view.views import from_folder, from_shards, write_shard
from distill.priors.novel_view.pose import (
    camera_position,
    relative,
    relative_cameras,
    spherical,
    world_to_camera,
)


def positions(n: int, seed: int) -> torch.Tensor:
    return torch.randn(n, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def turned_about_z(position: torch.Tensor, angle: float) -> torch.Tensor:
    c, s = math.cos(angle), math.sin(angle)
    return position @ torch.tensor([[c, s, 0], [-s, c, 0], [0, 0, 1]], dtype=torch.float64)


def test_pose_of_a_camera_to_itself() -> None:
    here = positions(50, 0)
    expected = torch.tensor([0.0, 0, 1, 0], dtype=torch.float64).expand(50, 4)
    torch.testing.assert_close(relative(here, here), expected)


def test_pose_swapped_changes_the_signs_of_three_numbers() -> None:
    a, b = positions(50, 0), positions(50, 1)
    torch.testing.assert_close(relative(a, b), relative(b, a) * torch.tensor([-1, -1, 1, -1]).double())


def test_pose_does_not_know_the_worlds_azimuth_and_turns_once_in_two_pi() -> None:
    a, b = positions(50, 0), positions(50, 1)
    expected = relative(a, b)
    torch.testing.assert_close(relative(turned_about_z(a, 1.1), turned_about_z(b, 1.1)), expected)
    torch.testing.assert_close(relative(a, turned_about_z(b, 2 * math.pi)), expected)


def test_pose_in_degrees_by_hand() -> None:
    """From 30 degrees up at the front to 10 degrees up, 90 degrees to the left, half a unit farther."""
    here = orbit(torch.tensor([0.0]), torch.tensor([30.0]), 1.5, 40.0)
    there = orbit(torch.tensor([90.0]), torch.tensor([10.0]), 2.0, 40.0)
    torch.testing.assert_close(
        relative_cameras(here, there), torch.tensor([[math.radians(20), 1.0, 0.0, 0.5]]), rtol=1e-5, atol=1e-6
    )
    # Stable-Zero123's last number: the input camera is 60 degrees from the pole.
    assert relative_cameras(here, there, "polar")[0, 3].item() == pytest.approx(math.radians(60), abs=1e-6)


def test_pose_ignores_roll() -> None:
    here = orbit(torch.tensor([20.0, 50.0]), torch.tensor([30.0, 5.0]), 2.0, 40.0)
    roll = torch.eye(4)
    roll[:2, :2] = torch.tensor([[0.6, -0.8], [0.8, 0.6]])
    rolled = Cameras(here.c2w @ roll, *list(vars(here).values())[1:])
    there = orbit(torch.tensor([-70.0]), torch.tensor([-20.0]), 1.7, 40.0)
    torch.testing.assert_close(relative_cameras(there, rolled), relative_cameras(there, here))
    again = camera_position(world_to_camera(rolled))
    torch.testing.assert_close(again, here.c2w[:, :3, 3], rtol=1e-5, atol=1e-6)


def test_spherical_is_the_cameras_own_angles() -> None:
    cameras = orbit(
        torch.tensor([0.0, 135, -90]), torch.tensor([0.0, 40, -10]), torch.tensor([1.0, 2, 3]), 40.0
    )
    polar, azimuth, distance = spherical(cameras.c2w[:, :3, 3])
    torch.testing.assert_close(90 - torch.rad2deg(polar), cameras.elevation_deg, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(torch.rad2deg(azimuth), cameras.azimuth_deg, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(distance, cameras.distance)


def test_wrong_poses_get_one_line() -> None:
    good = torch.ones(1, 3)
    with pytest.raises(ValueError, match="target camera's position must be finite"):
        relative(good, torch.tensor([[0.0, math.nan, 1]]))
    with pytest.raises(
        ValueError, match="condition camera's position must be finite and away from the origin"
    ):
        relative(torch.zeros(1, 3), good)
    with pytest.raises(ValueError, match="one of distance, polar, got 'angle'"):
        relative(good, good, "angle")


def write_object(folder: Path, seed: int, count: int = 3, size: int = 8) -> None:
    g = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    cameras = orbit(torch.arange(count) * 30.0 + seed, torch.full((count,), 20.0), 1.8, 49.13)
    for index, matrix in enumerate(world_to_camera(cameras).numpy()):
        rgba = g.integers(0, 256, (size, size, 4), dtype=np.uint8)
        Image.fromarray(rgba).save(folder / f"{index:03d}.png")
        np.save(folder / f"{index:03d}.npy", matrix)


@pytest.fixture
def renders(tmp_path: Path) -> Path:
    for number in range(4):
        write_object(tmp_path / "renders" / f"object{number}", number)
    return tmp_path / "renders"


def test_a_picture_is_laid_over_white_and_its_camera_found(renders: Path) -> None:
    views = from_folder(renders, count=3, size=8)
    assert list(views.uids) == [f"object{number}" for number in range(4)]
    rgb, position = views.read("object2", 1)
    rgba = np.asarray(Image.open(renders / "object2" / "001.png")).astype(np.float64) / 255
    expected = rgba[..., :3] * rgba[..., 3:] + 1 - rgba[..., 3:]
    np.testing.assert_allclose(rgb.movedim(0, -1).numpy(), expected, atol=1e-6)
    camera = orbit(torch.tensor([32.0]), torch.tensor([20.0]), 1.8, 40.0)
    torch.testing.assert_close(position, camera.c2w[0, :3, 3], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda f: (f / "001.png").unlink(), "object1/001.png is missing"),
        (lambda f: (f / "002.npy").unlink(), "object1/002.npy is missing"),
        (
            lambda f: (f / "001.png").write_bytes((f / "001.png").read_bytes()[:90]),
            "object1/001.png is no readable",
        ),
        (lambda f: (f / "001.png").write_text("hello"), "object1/001.png is no readable picture"),
        (lambda f: Image.new("RGBA", (9, 8)).save(f / "000.png"), "object1/000.png must be 8 x 8, got 9 x 8"),
        (lambda f: np.save(f / "000.npy", np.full((3, 4), np.nan)), "object1/000.npy must be a finite 3 x 4"),
        (lambda f: np.save(f / "000.npy", np.ones((3, 4))), "object1/000.npy must hold a rotation"),
        (lambda f: (f / "000.npy").write_bytes(b"\x93NUMPY"), "object1/000.npy is no readable array"),
    ],
)
def test_an_object_with_a_bad_file_is_named_and_skipped(renders: Path, damage: object, said: str) -> None:
    assert callable(damage)
    damage(renders / "object1")
    views = from_folder(renders, count=3, size=8)
    assert list(views.uids) == ["object0", "object2", "object3"]
    assert len(views.skipped) == 1
    assert said in views.skipped[0]


def test_the_list_of_valid_paths_is_obeyed(renders: Path) -> None:
    (renders / "valid_paths.json").write_text(json.dumps(["object3", "object0", "object9"]))
    views = from_folder(renders, count=3, size=8)
    assert list(views.uids) == ["object3", "object0"]
    assert views.skipped == ["object9/000.png is missing"]
    (renders / "valid_paths.json").write_text('{"a": 1}')
    with pytest.raises(ValueError, match="must be a list of folder names, got dict"):
        from_folder(renders)


def test_folders_that_hold_nothing_usable_say_so(tmp_path: Path, renders: Path) -> None:
    with pytest.raises(ValueError, match="cannot be read"):
        from_folder(tmp_path / "nowhere")
    with pytest.raises(
        ValueError, match=r"none of 4 objects can be used; the first: object0/003.png is missing"
    ):
        from_folder(renders, count=12, size=8)


def test_shards_hold_the_same(renders: Path, tmp_path: Path) -> None:
    paths = [tmp_path / "a.tar", tmp_path / "b.tar"]
    write_shard(paths[0], renders, ["object0", "object1"], count=3)
    write_shard(paths[1], renders, ["object2", "object3"], count=3)
    folder, shards = from_folder(renders, count=3, size=8), from_shards(paths, count=3, size=8)
    assert list(shards.uids) == list(folder.uids)
    for uid in folder.uids:
        for one, other in zip(folder.read(uid, 2), shards.read(uid, 2), strict=True):
            assert torch.equal(one, other)
    paths[0].write_bytes(paths[0].read_bytes()[:700])
    with pytest.raises(ValueError, match=r"none of|no readable, uncompressed tar file"):
        from_shards(paths[:1], count=3, size=8)


def test_the_home_folder_is_known(renders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    write_shard(tmp_path / "a.tar", renders, ["object0", "object1"], count=3)
    for data, known in (("~/*.tar", 2), ("~/renders", 4)):
        assert len(open_views(TrainConfig(data=data, views=3, size=8))) == known
    with pytest.raises(ValueError, match=r"data=~/none/\*\.tar matches no shard"):
        open_views(TrainConfig(data="~/none/*.tar", views=3, size=8))


def test_the_last_objects_are_held_out(renders: Path) -> None:
    train, held = from_folder(renders, count=3, size=8).split(0.25)
    assert (list(train.uids), list(held.uids)) == (["object0", "object1", "object2"], ["object3"])


@pytest.mark.parametrize(("share", "held"), [(0.0, 1), (0.5, 2), (0.9, 3), (0.99, 3)])
def test_a_split_leaves_objects_to_train_on_and_to_validate_on(
    share: float, held: int, renders: Path
) -> None:
    views = from_folder(renders, count=3, size=8)
    train, last = views.split(share)
    assert (len(train), len(last)) == (4 - held, held)
    assert [*train.uids, *last.uids] == list(views.uids)
    (renders / "valid_paths.json").write_text('["object2"]')
    with pytest.raises(
        ValueError, match="at least two objects, one of them to validate on, got 1; render more"
    ):
        from_folder(renders, count=3, size=8).split(share)


def test_every_pass_sees_every_object_once_with_two_different_views() -> None:
    drawn = [draw_indices(number, 7, 4, seed=3) for number in range(7 * 300)]
    for start in range(0, len(drawn), 7):
        assert sorted(place for place, _, _ in drawn[start : start + 7]) == list(range(7))
    assert all(first != second for _, first, second in drawn)
    # All twelve ordered pairs of views are alike: 175 each on average, four standard deviations are 51.
    counts = Counter((first, second) for _, first, second in drawn)
    assert len(counts) == 12
    assert max(abs(count - 175) for count in counts.values()) < 51
    assert drawn[:7] != drawn[7:14]
    assert [draw_indices(number, 7, 4, seed=4) for number in range(50)] != drawn[:50]


def test_a_pair_is_two_views_and_the_pose_between_them(renders: Path) -> None:
    views = from_folder(renders, count=3, size=8)
    pairs = Pairs(views, seed=0, length=20)
    pair = pairs[13]
    assert torch.equal(pair.condition, views.read(pair.uid, pair.indices[0])[0])
    assert torch.equal(pair.target, views.read(pair.uid, pair.indices[1])[0])
    # Views are 30 degrees of azimuth apart, at one height and distance.
    turn = math.radians(30 * (pair.indices[1] - pair.indices[0]))
    expected = torch.tensor([0, math.sin(turn), math.cos(turn), 0])
    torch.testing.assert_close(pair.pose, expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(read_pair(views, pair.uid, *pair.indices).target, pair.target)
