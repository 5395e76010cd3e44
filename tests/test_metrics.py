"""Shape metrics on cases worked out by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import trimesh

from distill.cameras import orbit, turntable
from distill.contracts import Render
from distill.embedded import raycast, shapes
from distill.lab.metrics import best_turn, chamfer, true_silhouettes
from distill.silhouettes import silhouette_iou


def box(x0: Any, x1: Any, y0: Any, y1: Any, size: Any = 8) -> Any:
    mask = torch.zeros(size, size, dtype=torch.bool)
    mask[y0:y1, x0:x1] = True
    return mask


def true_view(kind: Any, turned_deg: Any = 0.0) -> Any:
    """Pictures of the true shape as if it had been turned clockwise, seen from above, by some degrees."""

    def view(cameras: Any, height: Any, width: Any) -> Any:
        azimuth = cameras.azimuth_deg + turned_deg
        moved = orbit(azimuth, cameras.elevation_deg, cameras.distance, cameras.fov_y_deg)
        layers = raycast.render(shapes.build(kind), moved, height, samples=2)
        alpha = torch.from_numpy(layers.alpha)[..., None]
        return Render(alpha.expand(-1, -1, -1, 3), alpha, alpha)

    return view


def empty_view(cameras: Any, height: Any, width: Any) -> Any:
    nothing = torch.zeros(len(cameras), height, width, 1)
    return Render(nothing.expand(-1, -1, -1, 3), nothing, nothing)


def seen(view: Any, size: int) -> torch.Tensor:
    """Silhouettes from eight azimuths."""
    return view(turntable(8, 15.0), size, size).opacity[..., 0] > 0.5


@pytest.mark.parametrize(
    ("a", "b", "iou"),
    [
        (box(0, 4, 0, 4), box(0, 4, 0, 4), 1.0),
        (box(0, 4, 0, 4), box(2, 6, 0, 4), 8 / 24),
        (box(0, 4, 0, 4), box(4, 8, 4, 8), 0.0),
        (box(0, 8, 0, 8), box(0, 4, 0, 4), 16 / 64),
        (box(0, 4, 0, 4), box(0, 0, 0, 0), 0.0),
        (box(0, 0, 0, 0), box(0, 0, 0, 0), 1.0),
    ],
)
def test_iou_of_boxes(a: Any, b: Any, iou: Any) -> None:
    assert silhouette_iou(a, b).item() == pytest.approx(iou)
    assert silhouette_iou(b, a).item() == pytest.approx(iou)


def test_iou_is_taken_per_picture() -> None:
    a = torch.stack([box(0, 4, 0, 4), box(0, 4, 0, 4)])
    b = torch.stack([box(0, 4, 0, 4), box(0, 2, 0, 4)])
    assert silhouette_iou(a, b).tolist() == [1.0, 0.5]


def test_silhouettes_of_different_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(8, 8\) and \(4, 4\)"):
        silhouette_iou(box(0, 4, 0, 4), box(0, 4, 0, 4, size=4))


@pytest.mark.parametrize("turned", [0.0, 45.0, 292.5])
def test_a_turned_asset_is_found_again_at_its_offset(turned: Any) -> None:
    iou, offset = best_turn(seen(true_view("car", turned), 48), true_silhouettes("car", size=48))
    assert offset == turned
    assert iou == pytest.approx(1.0, abs=1e-3)


def test_views_share_one_offset() -> Any:
    truth = true_silhouettes("car", size=48)

    def shuffled(cameras: Any, height: Any, width: Any) -> Any:
        render = true_view("car")(cameras, height, width)
        return Render(render.rgb, render.opacity.roll(1, 0).flip(0), render.depth)

    best_each = torch.stack([silhouette_iou(one.expand_as(truth), truth).max() for one in truth[::2]]).mean()
    iou, _ = best_turn(seen(shuffled, 48), truth)
    assert best_each == 1 and iou < 0.97  # each view alone would find itself; in this order they cannot all


def test_an_empty_asset_scores_nothing() -> None:
    iou, _ = best_turn(seen(empty_view, 24), true_silhouettes("cube", azimuths=8, size=24))
    assert iou == 0


def test_the_number_of_azimuths_must_fit_the_views() -> None:
    with pytest.raises(ValueError, match="multiple of 8 true silhouettes, got 12"):
        best_turn(seen(empty_view, 8), torch.zeros(12, 8, 8, dtype=torch.bool))


def test_chamfer_of_concentric_spheres_is_the_gap() -> None:
    inner, outer = (trimesh.creation.icosphere(subdivisions=4, radius=radius) for radius in (0.5, 0.8))
    distance = chamfer(inner, outer)
    assert distance == pytest.approx(0.3, rel=0.02)
    assert chamfer(outer, inner) == pytest.approx(distance, rel=0.02)


def test_chamfer_of_a_surface_with_itself_is_the_spacing_of_its_samples() -> None:
    sphere, n = trimesh.creation.icosphere(subdivisions=4, radius=1.0), 4000
    # A Poisson process in the plane has the mean distance 1 / (2 sqrt(density)) to its nearest point.
    assert chamfer(sphere, sphere, n) == pytest.approx(0.5 * math.sqrt(sphere.area / n), rel=0.05)


def test_chamfer_repeats_under_one_seed() -> None:
    a, b = trimesh.creation.box((1, 1, 1)), trimesh.creation.icosphere(radius=0.6)
    assert chamfer(a, b, 500, seed=3) == chamfer(a, b, 500, seed=3) != chamfer(a, b, 500, seed=4)
