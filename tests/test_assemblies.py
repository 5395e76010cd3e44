"""Objects put together at random: framed, often symmetric, the same for the same number, rendered once."""

from __future__ import annotations

import importlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.spatial import cKDTree

from distill.lab.novel_view.world_renders import WorldOptions

FOLDER = Path(__file__).parents[1] / "examples" / "embedded"
LITTLE = WorldOptions(views=3, steep=1, shapes=1, size=32, samples=1)


@pytest.fixture
def assemblies(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("assemblies")


def vertices(parts: Any) -> Any:
    return np.concatenate([part.mesh.vertices for part in parts])


def asymmetry(points: Any) -> float:
    """The largest distance of a mirrored vertex from the nearest vertex."""
    return float(cKDTree(points).query(points * [1, -1, 1])[0].max())


def test_objects_are_framed_and_most_are_their_own_mirror_image(assemblies: Any) -> None:
    made = [assemblies.build(np.random.default_rng(number)) for number in range(120)]
    for parts in made:
        points = vertices(parts)
        assert np.linalg.norm(points, axis=1).max() == pytest.approx(0.95)
        assert points.min(0) == pytest.approx(-points.max(0), abs=1e-9)
        assert all(part.mesh.is_watertight and part.mesh.volume > 0 for part in parts)
        assert all(part.paint and min(part.paint) >= 0 and max(part.paint) <= 1 for part in parts)
    # Of 120 draws at 0.75, at least so many less three standard errors of 0.04; some of the others are so by chance, not most.
    share = np.mean([asymmetry(vertices(parts)) < 1e-6 for parts in made])
    assert 0.63 < share < 0.95
    assert len({len(parts) for parts in made}) > 6


def test_a_pair_is_left_and_right_and_keeps_its_volume(assemblies: Any) -> None:
    stone = assemblies._stone(np.random.default_rng(3), np.array([0.5, 0.4, 0.3]))
    stone.apply_translation((0.1, 0.7, 0.2))
    other = assemblies.mirrored(stone)
    assert np.allclose(other.vertices, stone.vertices * [1, -1, 1])
    assert other.volume == pytest.approx(stone.volume) and stone.volume > 0


def meet(one: Any, other: Any) -> bool:
    """Whether two boxes, ``[2, 3]``, overlap."""
    return bool(((one[0] <= other[1] + 1e-9) & (one[1] >= other[0] - 1e-9)).all())


@pytest.mark.parametrize("on_plane", [False, True])
def test_what_is_put_beside_a_box_overlaps_it_and_reaches_out_of_it(assemblies: Any, on_plane: bool) -> None:
    g = np.random.default_rng(0)
    for _ in range(50):
        base = np.array([[-0.5, -0.4, -0.3], [0.5, 0.4, 0.3]])
        mesh = assemblies._box(g, np.array([0.2, 0.3, 0.4]))
        assemblies.beside(base, mesh, g, on_plane)
        low, high = mesh.bounds
        assert meet(mesh.bounds, base)
        assert (low < base[0] - 1e-9).any() or (high > base[1] + 1e-9).any()
        assert not on_plane or mesh.bounds.mean(0)[1] == pytest.approx(0, abs=1e-9)


def test_an_object_is_in_one_piece(assemblies: Any) -> None:
    for number in range(120):
        boxes = [part.mesh.bounds for part in assemblies.build(np.random.default_rng(number))]
        reached, left = [boxes[0]], boxes[1:]
        while found := [box for box in left if any(meet(box, other) for other in reached)]:
            reached += found
            left = [box for box in left if not any(box is other for other in found)]
        assert not left, number


@pytest.mark.parametrize("boxes", [True, False])
def test_legs_go_into_what_they_hold_up(assemblies: Any, boxes: bool) -> None:
    size = np.array([0.8, 0.6, 0.4])
    body = (assemblies._box if boxes else assemblies._ball)(None, size)
    for number in range(10):
        for leg in assemblies.legs(body.bounds, boxes, np.random.default_rng(number)):
            top = [*leg.bounds.mean(0)[:2], leg.bounds[1, 2] - 1e-3]
            # By hand: inside a box, or an ellipsoid whose semi-axes are half as long as it.
            inside = 2 * np.abs(top) / size
            assert (inside.max() if boxes else np.linalg.norm(inside)) < 1
            assert leg.bounds[0, 2] < body.bounds[0, 2] - 0.25


def test_they_are_rendered_once_over_white_the_same_on_any_number_of_cores(
    assemblies: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(assemblies, "BLOCK", 2)
    made = assemblies.store(LITTLE, 3, tmp_path, workers=2)
    assert made.pictures.shape == (12, 3, 32, 32) and made.pictures.dtype == torch.uint8
    assert made.first.tolist() == [0, 4, 8, 12] and made.positions.shape == (12, 3)
    assert (made.pictures[:, :, 0, 0] == 255).all() and (made.pictures.flatten(1).min(1).values < 250).all()
    rows, asked = [assemblies.render(LITTLE, number) for number in range(3)], []
    assert torch.equal(made.pictures, torch.from_numpy(np.concatenate([pictures for pictures, _ in rows])))
    assert torch.equal(made.positions, torch.from_numpy(np.concatenate([places for _, places in rows])))

    def counted(options: WorldOptions, number: int) -> Any:
        asked.append(number)
        return rows[number]

    monkeypatch.setattr(assemblies, "render", counted)
    # How many shapes the world has does not matter, and a whole block is kept for a larger number.
    again = assemblies.store(replace(LITTLE, shapes=9), 3, tmp_path)
    assert torch.equal(again.pictures, made.pictures) and again.uids == made.uids and not asked
    rows.append(rows[0])
    assert len(assemblies.store(LITTLE, 4, tmp_path)) == 4 and asked == [2, 3]


def test_a_training_learns_from_them_beside_the_shapes(
    assemblies: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = importlib.import_module("train_novel_view")
    words = [
        "--work",
        tmp_path,
        "--device",
        "cpu",
        "--shapes",
        1,
        "--unseen",
        1,
        "--views",
        3,
        "--steep",
        1,
        "--workers",
        1,
    ]
    monkeypatch.setattr("sys.argv", ["train_novel_view.py", *map(str, words), "--assemblies", "2"])
    store, held_out = train.pictures(train.parse_options(), 1, None)
    assert set(held_out) == {"usual", "steep"}
    assert store.uids[-2:] == ("assembly-00000", "assembly-00001") and len(store) == 16 + 2
    # By hand: three views and a steep one of each.
    assert store.first.tolist() == list(range(0, 73, 4))
    alone = assemblies.store(WorldOptions(shapes=1, views=3, steep=1), 2, tmp_path)
    assert torch.equal(store.pictures[64:], alone.pictures)
