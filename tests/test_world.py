"""The embedded world: words, shapes and pictures."""

from __future__ import annotations

import math
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import trimesh

from distill.cameras import orbit, turntable
from distill.embedded import raycast, shapes, world

PAIRS = [(colour, kind) for kind in world.KINDS for colour in world.COLOURS]


def camera(azimuth: Any = 0.0, elevation: Any = 0.0, distance: Any = 3.2, fov: Any = 40.0) -> Any:
    return orbit(torch.tensor([float(azimuth)]), torch.tensor([float(elevation)]), distance, fov)


def part_centres(kind: Any, paint: Any) -> Any:
    return [p.mesh.vertices.mean(0) for p in shapes.build(kind) if p.paint == paint]


def test_words_and_builders_name_the_same_kinds() -> None:
    assert len(world.KINDS) >= 16 and tuple(shapes.KINDS) == world.KINDS
    assert len(set(world.COLOURS.values())) == len(world.COLOURS) == 8
    assert set(shapes.ORIENTED) < set(world.KINDS)


def test_one_pair_in_eight_is_held_out_each_kind_once_and_each_colour_twice() -> None:
    out = [(colour, kind) for colour, kind in PAIRS if world.held_out(colour, kind)]
    assert len(out) * 8 == len(PAIRS) == 128
    assert sorted(kind for _, kind in out) == sorted(world.KINDS)
    assert all(sum(colour == c for c, _ in out) == 2 for colour in world.COLOURS)


def test_the_quality_benchmark_asks_for_each_kind_once_each_colour_twice_and_four_new_pairs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = Path(__file__).parents[1] / "examples/benchmarks/quality.py"
    monkeypatch.syspath_prepend(str(path.parent))
    prompts = runpy.run_path(str(path), run_name="quality")["PROMPTS"]
    pairs = [world.pair_of(prompt) for prompt in prompts]
    assert tuple(kind for _, kind in pairs) == world.KINDS
    assert sorted(colour for colour, _ in pairs) == sorted([*world.COLOURS] * 2)
    assert sum(world.held_out(*pair) for pair in pairs) == 4


def test_every_caption_parses_back_to_what_it_says() -> None:
    captions = {
        world.caption(colour, kind, view, template): (colour, kind, view)
        for colour, kind in PAIRS
        for view in (None, *world.VIEWS)
        for template in range(len(world.TEMPLATES))
    }
    assert len(captions) == 128 * 18 * len(world.TEMPLATES)
    assert all(world.parse(text) == said for text, said in captions.items())


def test_articles_agree_with_the_next_word() -> None:
    assert world.caption("orange", "mug") == "an orange mug"
    assert world.caption("red", "mug", "back view") == "a red mug, back view"
    assert world.caption("orange", "mug", template=3) == "a mug that is orange"


def test_parse_ignores_case_spaces_and_the_article() -> None:
    assert world.parse("A Photo of the RED  mug.") == ("red", "mug", None)
    assert world.parse("the Children's Bed, Left View", ["children's bed"]) == (
        None,
        "children's bed",
        "left view",
    )


def test_a_refusal_says_what_is_no_name_and_what_is_near() -> None:
    with pytest.raises(
        ValueError, match=r"'mugg' is none of its names.*red, orange.*nearest names are mug,"
    ) as caught:
        world.parse("a red mugg")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "'' is none of its names"),
        ("a red", "'red' is none"),
        ("a red blue mug", "'blue mug' is none"),
        ("a red mug chair", "'mug chair' is none"),
        ("a red mug that is blue", "'mug that is blue' is none"),
        ("a", "'a' is none"),
        ("a mug", "a mug has no colour of its own"),
    ],
)
def test_missing_or_ambiguous_words_are_refused(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        world.pair_of(text)


@pytest.mark.parametrize(
    ("azimuth", "elevation", "view"),
    [
        (0, 0, "front view"),
        (360, 0, "front view"),
        (-0.1, 0, "front view"),
        (11, 0, "front view"),
        (11.5, 0, "front slightly left view"),
        (22.5, 0, "front slightly left view"),
        (-22.5, 0, "front slightly right view"),
        (45, 0, "front left view"),
        (90, 20, "left view"),
        (-90, 20, "right view"),
        (270, 20, "right view"),
        (180, -5, "back view"),
        (-180, -5, "back view"),
        (359, 59.9, "front view"),
        (123, 60, "overhead view"),
        (-180, 90, "overhead view"),
    ],
)
def test_view_words_follow_the_azimuth(azimuth: Any, elevation: Any, view: Any) -> None:
    assert world.view_of(azimuth, elevation) == view


def test_mirrored_azimuths_have_mirrored_words() -> None:
    swap = str.maketrans({"<": "right", ">": "left"})
    for azimuth in np.arange(0, 360, 22.5):
        mirrored = world.view_of(azimuth, 0).replace("left", "<").replace("right", ">").translate(swap)
        assert world.view_of(-azimuth, 0) == mirrored


@pytest.mark.parametrize("kind", world.KINDS)
def test_objects_fit_the_unit_sphere_and_stand_centred(kind: Any) -> None:
    vertices = np.concatenate([part.mesh.vertices for part in shapes.build(kind)])
    assert np.linalg.norm(vertices, axis=1).max() == pytest.approx(0.95, abs=1e-6)
    assert np.abs(vertices.max(0) + vertices.min(0)).max() < 1e-6


@pytest.mark.parametrize("kind", world.KINDS)
def test_parts_are_closed_with_normals_outwards(kind: Any) -> None:
    for part in shapes.build(kind):
        assert part.mesh.is_watertight and part.mesh.volume > 0


def test_siblings_differ_and_the_canonical_object_repeats() -> None:
    rng = np.random.default_rng(0)
    plain, again = (shapes.build("mug")[0].mesh.vertices for _ in range(2))
    sibling = shapes.build("mug", lambda value: value * rng.uniform(0.94, 1.06))[0].mesh.vertices
    assert np.array_equal(plain, again) and np.abs(plain - sibling).max() > 1e-3


def test_fronts_are_at_plus_x() -> None:
    for kind, paint in (("snowman", "CARROT"), ("duck", "CARROT"), ("car", "LIGHT"), ("house", "WOOD"),
                        ("rocket", "GLASS"), ("robot", "LIGHT")):  # fmt: skip
        centres = part_centres(kind, getattr(shapes, paint))
        assert centres and all(x > 0.1 for x, _, _ in centres)
    chair = np.concatenate([part.mesh.vertices for part in shapes.build("chair")])
    assert chair[chair[:, 2] > 0.3, 0].mean() < -0.2  # the back rises behind the seat
    spout, handle = (part.mesh.vertices.mean(0) for part in shapes.build("teapot")[1:3])
    assert spout[0] > 0.3 > -0.3 > handle[0]


def test_up_is_plus_z() -> None:
    assert max(z for _, _, z in part_centres("snowman", shapes.DARK)) > 0.5  # the hat
    assert all(z < -0.1 for _, _, z in part_centres("car", shapes.DARK))
    table = [part.mesh.vertices.mean(0)[2] for part in shapes.build("table")]
    assert table[0] > 0.2 > max(table[1:])


def test_the_mugs_handle_is_on_its_own_right_hand() -> None:
    _, handle = shapes.build("mug")
    assert handle.mesh.vertices.mean(0)[1] < -0.3
    heights = raycast.render(shapes.build("mug"), camera(), 48).alpha[0].sum(0)
    covered = heights[heights > 0]
    # A viewer in front sees it on the left, where the silhouette is lower than the body.
    assert covered[2:5].max() < 0.75 * covered[-5:-2].min()


@pytest.mark.parametrize("kind", shapes.ORIENTED)
def test_front_and_back_pictures_of_oriented_kinds_differ(kind: Any) -> None:
    cameras = orbit(torch.tensor([0.0, 180.0]), torch.full((2,), 15.0), 3.2, 40.0)
    layers = raycast.render(shapes.build(kind), cameras, 48)
    front, back = raycast.over(layers.rgba(world.COLOURS["red"]), 1.0)
    covered = (np.minimum(front.min(-1), back.min(-1)) < 0.99).sum()
    assert (np.abs(front - back).max(-1) > 0.1).sum() > 0.02 * covered


def test_a_spheres_silhouette_has_the_area_of_its_perspective_projection() -> None:
    radius, distance, fov = 0.95, 3.2, 40.0
    alpha = raycast.render(shapes.build("sphere"), camera(distance=distance, fov=fov), 128).alpha[0]
    # The cone that touches the sphere cuts the picture plane, whose half height is tan(fov / 2), in a disc.
    radius_in_plane = math.tan(math.asin(radius / distance)) / math.tan(math.radians(fov / 2))
    assert alpha.mean() == pytest.approx(math.pi * radius_in_plane**2 / 4, rel=0.01)


def test_a_spheres_depth_at_the_centre_is_the_distance_less_the_radius() -> None:
    depth = raycast.render(shapes.build("sphere"), camera(elevation=20), 65).depth[0]
    assert depth[32, 32] == pytest.approx(3.2 - 0.95, rel=0.005)
    assert depth[0, 0] == 0


def test_layers_are_in_range_and_empty_where_nothing_is_hit() -> None:
    layers = raycast.render(shapes.build("rocket"), turntable(4), 48)
    assert layers.alpha.shape == (4, 48, 48) and layers.alpha.min() == 0 and layers.alpha.max() == 1
    assert ((layers.painted >= 0) & (layers.painted <= layers.alpha[..., None] + 1e-6)).all()
    assert ((layers.tint >= 0) & (layers.tint <= layers.alpha + 1e-6)).all()
    assert not layers.painted[layers.alpha == 0].any() and not layers.depth[layers.alpha == 0].any()


def test_the_prompts_colour_goes_to_the_unpainted_parts_only() -> None:
    layers = raycast.render(shapes.build("house"), camera(elevation=15), 48)
    red, blue = layers.rgba((1, 0, 0)), layers.rgba((0, 0, 1))
    assert np.allclose(red[..., 0] - blue[..., 0], layers.tint, atol=1e-6)
    assert np.array_equal(red[..., 1], layers.painted[..., 1]) and layers.tint.max() > 0.5


def test_compositing_fills_what_is_not_covered() -> None:
    rgba = np.array([[0.2, 0.1, 0.0, 0.25], [0, 0, 0, 0], [0.3, 0.4, 0.5, 1]], dtype=np.float32)
    assert np.allclose(raycast.over(rgba, 0.8), [[0.8, 0.7, 0.6], [0.8, 0.8, 0.8], [0.3, 0.4, 0.5]])
    assert np.allclose(raycast.over(rgba, np.array([1.0, 0, 0]))[1], [1, 0, 0])


def test_shading_is_brightest_from_above_and_never_black() -> None:
    normals = np.array([[0, 0, 1], [0, 0, -1], [1, 0, 0], [-1, 0, 0]], dtype=np.float64)
    top, bottom, front, back = raycast.shade(normals)
    assert 0.5 <= bottom < back < front < top <= 1.0
    assert bottom == pytest.approx(0.5)  # the ambient term alone


def test_the_true_mesh_carries_the_prompts_colour() -> None:
    mesh = world.mesh("a photo of a red mug")
    assert isinstance(mesh, trimesh.Trimesh) and np.abs(mesh.vertices).max() <= 0.95 + 1e-6
    visual: Any = mesh.visual
    assert (visual.face_colors == [219, 26, 26, 255]).all()  # round(255 * (0.86, 0.10, 0.10))
    visual = world.mesh("blue snowman").visual
    assert {tuple(c) for c in visual.face_colors} == {
        (33, 76, 217, 255),
        (250, 133, 26, 255),
        (36, 36, 41, 255),
    }
