"""Objects put together at random: framed, often symmetric, the same for the same number, rendered once."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.spatial import cKDTree

from distill.lab.novel_view.memory import WorldOptions

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
    # Three standard errors of 120 draws at 0.75, and a box alone is its own mirror image without being asked to.
    share = np.mean([asymmetry(vertices(parts)) < 1e-6 for parts in made])
    assert 0.75 - 0.12 < share < 0.9 + 0.05
    assert len({len(parts) for parts in made}) > 6


def test_a_pair_is_left_and_right_and_keeps_its_volume(assemblies: Any) -> None:
    stone = assemblies._stone(np.random.default_rng(3), np.array([0.5, 0.4, 0.3]))
    stone.apply_translation((0.1, 0.7, 0.2))
    other = assemblies.mirrored(stone)
    assert np.allclose(other.vertices, stone.vertices * [1, -1, 1])
    assert other.volume == pytest.approx(stone.volume) and stone.volume > 0


def test_what_is_put_beside_a_box_touches_it_and_reaches_out_of_it(assemblies: Any) -> None:
    g = np.random.default_rng(0)
    for _ in range(50):
        base = np.array([[-0.5, -0.4, -0.3], [0.5, 0.4, 0.3]])
        mesh = assemblies._box(g, np.array([0.2, 0.3, 0.4]))
        assemblies.beside(base, mesh, g)
        low, high = mesh.bounds
        assert ((low <= base[1] + 1e-9) & (high >= base[0] - 1e-9)).all()
        assert (low < base[0] - 1e-9).any() or (high > base[1] + 1e-9).any()


def test_they_are_rendered_once_over_white_the_same_on_any_number_of_cores(
    assemblies: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = assemblies.store(LITTLE, 3, tmp_path / "one", workers=1)
    assert made.pictures.shape == (12, 3, 32, 32) and made.pictures.dtype == torch.uint8
    assert made.first.tolist() == [0, 4, 8, 12] and made.positions.shape == (12, 3)
    assert (made.pictures[:, :, 0, 0] == 255).all() and (made.pictures.flatten(1).min(1).values < 250).all()
    assert torch.equal(
        made.positions, torch.from_numpy(np.concatenate([assemblies.render(LITTLE, n)[1] for n in range(3)]))
    )
    assert torch.equal(made.pictures[4:8], torch.from_numpy(assemblies.render(LITTLE, 1)[0]))
    monkeypatch.setattr(assemblies, "render", None)
    again = assemblies.store(LITTLE, 3, tmp_path / "one")
    assert torch.equal(again.pictures, made.pictures) and again.uids == made.uids
