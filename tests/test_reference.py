"""The view of an input picture: its distances by hand, as penalties, under every loss."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from test_novelview_model import randn
from test_novelview_pipeline import RGB, make
from torch import Tensor

from distill.cameras import orbit, turntable
from distill.conditions.prompts import PICTURED, conditioner
from distill.contracts import Condition, Render, Step
from distill.guidance.csd import csd
from distill.guidance.mix import mix
from distill.guidance.sds import sds
from distill.priors.exact import Components, ExactPrior, scaled_linear
from distill.priors.novel_view.elevation import (
    _peak,
    agreement,
    estimate_elevation,
    likely,
    silhouettes,
)
from distill.priors.novel_view.prior import NovelViewPrior
from distill.renderers.reference import Reference, beside, correlation, distances, palette_distance

CAMERA = orbit(torch.tensor([30.0]), torch.tensor([20.0]), 3.2, 40.0)
T = torch.tensor([200, 600])


def seen(**changes: Any) -> Render:
    ramp = torch.arange(16.0).view(1, 4, 4, 1)
    plain = Render(
        torch.full((1, 4, 4, 3), 0.5), torch.ones(1, 4, 4, 1), 3 - ramp / 16, torch.zeros(1, 4, 4, 3)
    )
    return replace(plain, **changes)


def reference(**changes: Any) -> Reference:
    return replace(Reference(CAMERA, torch.full((3, 4, 4), 0.7), torch.full((1, 4, 4), 1.0)), **changes)


def test_colour_and_mask_by_hand() -> None:
    half = torch.ones(1, 4, 4)
    half[:, :2] = 0
    found = distances(seen(), reference(mask=half), ("reference_rgb", "reference_mask"))
    assert found["reference_rgb"].item() == pytest.approx(0.04)
    assert found["reference_mask"].item() == pytest.approx(0.5)


def over(grey: float, colour: float, opacity: Tensor) -> Render:
    """A render of an object of one colour over a grey."""
    rgb = (opacity * colour + (1 - opacity) * grey).expand(*opacity.shape[:-1], 3)
    return Render(rgb, opacity, opacity, background=torch.full((len(opacity), 1, 1, 1), grey))


def test_the_picture_is_put_over_what_is_behind_the_render() -> None:
    """A picture whose upper half is white and whose lower half is empty."""
    mask = torch.zeros(1, 4, 4)
    mask[:, :2] = 1
    known = reference(rgb=torch.ones(3, 4, 4), mask=mask)
    whole, none = mask.movedim(0, -1)[None], torch.zeros(1, 4, 4, 1)
    for grey in (0.5, 0.8, 1.0):
        right = distances(over(grey, 1.0, whole), known, ("reference_rgb",))
        empty = distances(over(grey, 1.0, none), known, ("reference_rgb",))
        assert right["reference_rgb"].item() == pytest.approx(0, abs=1e-12)
        # Where there is nothing, the grey is seen instead of white: over white, that is the same.
        assert empty["reference_rgb"].item() == pytest.approx((1 - grey) ** 2 / 2)


def test_a_learned_background_is_not_trained_by_the_picture() -> None:
    behind = torch.full((1, 4, 4, 3), 0.3, requires_grad=True)
    colour, opacity = (torch.full((1, 4, 4, 1), value, requires_grad=True) for value in (0.5, 0.6))
    rgb = opacity * colour.expand(1, 4, 4, 3) + (1 - opacity) * behind
    render = Render(rgb, opacity, opacity, background=behind)
    found = distances(render, reference(), ("reference_rgb",))["reference_rgb"]
    assert found.item() == pytest.approx((0.6 * 0.5 + 0.4 * 0.3 - 0.7) ** 2, rel=1e-5)
    (found + palette_distance(render, reference(), torch.Generator().manual_seed(0))).backward()
    assert colour.grad is not None and (colour.grad < 0).all()
    assert opacity.grad is not None and (opacity.grad < 0).any()
    assert behind.grad is not None and behind.grad.abs().max() < 1e-8


def test_colours_are_compared_without_what_is_behind_them() -> None:
    opacity = torch.full((2, 4, 4, 1), 0.6)
    found = palette_distance(over(0.5, 0.7, opacity), reference(), torch.Generator().manual_seed(0))
    assert found.item() == pytest.approx(0, abs=1e-10)


def test_depth_knows_neither_scale_nor_shift_but_the_direction() -> None:
    nearness = torch.arange(16.0).view(1, 4, 4)
    for map_, expected in ((5 * nearness - 3, 0.0), (-nearness, 2.0), (torch.ones(1, 4, 4), 1.0)):
        found = distances(seen(), reference(depth=map_), ("reference_depth",))["reference_depth"]
        assert found.item() == pytest.approx(expected, abs=1e-5)
    with pytest.raises(ValueError, match=r"needs reference\.depth=FILE"):
        distances(seen(), reference(), ("reference_depth",))


def test_correlation_by_hand() -> None:
    assert correlation(torch.tensor([1.0, 2, 3]), torch.tensor([2.0, 1, 4])).item() == pytest.approx(
        2 / math.sqrt(2 * 14 / 3)
    )
    assert correlation(torch.tensor([1.0]), torch.tensor([2.0])).item() == 0


def test_normals_are_compared_in_the_world() -> None:
    """A surface that faces the camera has the camera's backward axis as its normal."""
    outward = CAMERA.c2w[0, :3, 2]
    facing = torch.tensor([0.0, 0, 1]).view(3, 1, 1).expand(3, 4, 4)
    render = seen(normal=outward.expand(1, 4, 4, 3))
    found = distances(render, reference(normal=facing), ("reference_normal",))
    assert found["reference_normal"].item() == pytest.approx(0, abs=1e-6)
    found = distances(render, reference(normal=-facing), ("reference_normal",))
    assert found["reference_normal"].item() == pytest.approx(2, abs=1e-6)
    with pytest.raises(ValueError, match="without normals"):
        distances(seen(normal=None), reference(normal=facing), ("reference_normal",))


def test_the_references_view_is_rendered_beside_and_its_gradient_flows() -> None:
    colour = torch.full((), 0.5, requires_grad=True)
    asked = []

    def take(cameras: Any, height: int, width: int, **_: Any) -> Render:
        asked.append((len(cameras), height))
        shape = (len(cameras), height, width)
        return Render(
            colour.expand(*shape, 3), torch.ones(*shape, 1), torch.ones(*shape, 1), penalties={"own": colour}
        )

    render = beside(take, take, reference(), ("reference_rgb",))
    found = render(turntable(3), 8, 8)
    assert asked == [(3, 8), (1, 8)]
    assert found.penalties.keys() == {"own", "reference_rgb"}
    found.penalties["reference_rgb"].backward()
    assert colour.grad is not None
    assert colour.grad.item() == pytest.approx(2 * (0.5 - 0.7), abs=1e-5)


def test_one_colours_distance_from_another_by_hand() -> None:
    """Along random unit vectors, the mean square of a difference d is |d|^2 / 3."""
    g = torch.Generator().manual_seed(0)
    found = torch.stack([palette_distance(seen(), reference(), g) for _ in range(300)]).mean()
    assert found.item() == pytest.approx(3 * 0.2**2 / 3, rel=0.1)
    # A half transparent render of the same colour over white, beside empty pixels.
    opacity = torch.full((1, 4, 4, 1), 0.6)
    opacity[:, :1] = 0.1
    faint = seen(rgb=(opacity * 0.7 + 1 - opacity).expand(1, 4, 4, 3), opacity=opacity)
    assert palette_distance(faint, reference(), g).item() == pytest.approx(0, abs=1e-10)


def test_a_soft_edge_is_no_other_colour_on_either_side() -> None:
    """A dark disc with edges of half coverage, over white: the render and the picture have one colour."""
    at = (torch.arange(8.0) - 3.5).square()
    cover = (3.0 - (at[:, None] + at).sqrt()).clamp(0, 1)
    assert ((cover > 0.5) & (cover < 1)).any()
    picture = cover * 0.1 + 1 - cover
    render = Render(
        picture.expand(3, 8, 8).movedim(0, -1)[None], cover[None, ..., None], cover[None, ..., None]
    )
    solid = replace(render, rgb=torch.full((1, 8, 8, 3), 0.1), opacity=(cover > 0.5).float()[None, ..., None])
    known = reference(rgb=picture.expand(3, 8, 8), mask=cover[None])
    for drawn in (render, solid):
        found = palette_distance(drawn, known, torch.Generator().manual_seed(0))
        assert found.item() == pytest.approx(0, abs=1e-10)


@pytest.mark.parametrize(
    ("shading", "said", "counts"),
    [("albedo", None, True), ("lambertian", None, False), ("albedo", "normals", False), ("normals", "albedo", True)],
)  # fmt: skip
def test_lit_pictures_have_no_palette(shading: str, said: str | None, counts: bool) -> None:
    def take(cameras: Any, height: int, width: int, **_: Any) -> Render:
        shape = (len(cameras), height, width)
        return Render(torch.full((*shape, 3), 0.5), torch.ones(*shape, 1), torch.ones(*shape, 1))

    names = ("reference_rgb", "reference_palette")
    render = beside(take, take, reference(), names, shading)
    style: dict[str, Any] = {"shading": said} if said else {}
    found = render(turntable(2), 4, 4, **style).penalties
    assert found["reference_rgb"].item() == pytest.approx(0.04)
    assert (found["reference_palette"].item() > 0) is counts


def test_a_palette_does_not_say_where_a_colour_is() -> None:
    g = torch.Generator().manual_seed(0)
    known = torch.rand(3, 32, 32, generator=g)
    moved = known.flatten(1)[:, torch.randperm(32 * 32, generator=g)].view(3, 32, 32)
    mask = torch.ones(1, 32, 32)
    views = torch.stack([known, moved]).movedim(1, -1)
    render = Render(views, torch.ones(2, 32, 32, 1), torch.ones(2, 32, 32, 1))
    own = palette_distance(render, reference(rgb=known, mask=mask), g)
    # What the draws of as many pixels leave, and what half the contrast differs by: a quarter of the variance of 1/12.
    assert own < 3e-4
    paler = replace(render, rgb=0.5 * render.rgb + 0.25)
    off = palette_distance(paler, reference(rgb=known, mask=mask), g)
    assert off.item() == pytest.approx(1 / 48, rel=0.15)


def test_nothing_seen_has_no_palette_and_a_gradient_of_zero() -> None:
    opacity = torch.full((1, 4, 4, 1), 0.2, requires_grad=True)
    g = torch.Generator().manual_seed(0)
    found = palette_distance(seen(opacity=opacity), reference(), g)
    found.backward()
    assert found.item() == 0 and opacity.grad is not None and not opacity.grad.any()


def test_the_palette_is_that_of_the_steps_views() -> None:
    colour = torch.full((), 0.5, requires_grad=True)

    def take(cameras: Any, height: int, width: int, **_: Any) -> Render:
        shape = (len(cameras), height, width)
        return Render(colour.expand(*shape, 3), torch.ones(*shape, 1), torch.ones(*shape, 1))

    def never(*_: Any, **__: Any) -> Render:
        raise AssertionError("the view of the picture is not rendered for its colours")

    render = beside(take, never, reference(), ("reference_palette",))
    found = render(turntable(3), 8, 8, generator=torch.Generator().manual_seed(0)).penalties
    found["reference_palette"].backward()
    assert found.keys() == {"reference_palette"} and colour.grad is not None
    # The derivative of (0.5 - 0.7)^2 (1, 1, 1) u u^T (1, 1, 1)^T: twice the distance by the difference.
    assert colour.grad.item() == pytest.approx(2 * found["reference_palette"].item() / (0.5 - 0.7), rel=1e-4)


@pytest.fixture
def told(tmp_path: Path) -> tuple[NovelViewPrior, Condition]:
    pipeline = make(tmp_path, latent=False)
    prior = NovelViewPrior.of(pipeline, RGB, orbit(torch.tensor([0.0]), torch.tensor([15.0]), 3.2, 40.0))
    return prior, conditioner(prior, PICTURED)(turntable(2), Step())


def seen_by(model: NovelViewPrior, prior: Any, **term: Any) -> Any:
    """The loss of a term that names the picture's model, for a run on a prior."""
    terms = [{"loss": "sds", "prior": "novel_view", **term}]
    return mix(prior, torch.Generator(), {"novel_view": model}, terms=terms)


def test_without_a_prompt_it_is_the_loss_itself(told: Any) -> None:
    prior, cond = told
    x, noise = randn(1, 2, 3, 16, 16), randn(2, 2, 3, 16, 16)
    found = seen_by(prior, prior, scale=2.5)(prior, x, cond, T, noise)
    torch.testing.assert_close(found, sds(prior, x, cond, T, noise, scale=2.5))
    found = seen_by(prior, prior, loss="csd")(prior, x, cond, T, noise)
    torch.testing.assert_close(found, csd(prior, x, cond, T, noise))


def test_beside_a_text_prior_it_sees_the_same_pictures(told: Any) -> None:
    """The text prior's space is another, twice as large; its pictures and the gradient's way back are the same."""
    model, own = told
    text = ExactPrior(
        {"": Components(torch.zeros(1, 3, 16, 16), torch.ones(1), torch.ones(1))}, scaled_linear()
    )

    class Doubled:
        num_timesteps, views = text.num_timesteps, text.views

        def decode(self, z: torch.Tensor) -> torch.Tensor:
            return model.decode(z / 2)

    x, noise = 0.5 * randn(1, 2, 3, 16, 16).clamp(-1, 1), randn(2, 2, 3, 16, 16)
    cond = Condition({"text": {}, "uncond": {}}, cameras=own.cameras)
    doubled: Any = Doubled()
    found = seen_by(model, doubled, scale=3.0)(doubled, 2 * x, cond, T, noise)
    expected = sds(model, x, own, T, noise, scale=3.0) / 2
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_what_it_cannot_do_is_said(told: Any) -> None:
    prior, _ = told
    text: Any = ExactPrior({"": Components(torch.zeros(1, 3, 16, 16), torch.ones(1), torch.ones(1))})
    with pytest.raises(
        ValueError, match=r"terms\[0\] names the model of an input picture, .* add image=FILE"
    ):
        mix(text, torch.Generator(), {}, terms=[{"loss": "sds", "prior": "novel_view"}])
    with pytest.raises(ValueError, match="is conditioned on a picture and takes no prompt; leave prompt out"):
        seen_by(prior, text, prompt="a mug")
    for loss in ("dds", "bridge", "mix"):
        with pytest.raises(ValueError, match=rf"terms\[0\]: {loss} .*novel_view"):
            seen_by(prior, text, loss=loss)


def test_points_appear_where_rays_go() -> None:
    cameras = orbit(torch.tensor([30.0, 200.0]), torch.tensor([10.0, 50.0]), 3.2, 40.0)
    origins, directions = cameras.rays(9, 9)
    points = origins[0, 2, 6] + 3 * directions[0, 2, 6]
    spot = cameras.project(points[None])[0, 0]
    torch.testing.assert_close(spot, torch.tensor([(6.5 * 2 / 9) - 1, (2.5 * 2 / 9) - 1]))


@pytest.mark.parametrize("kind", ["car", "chair", "mug"])
def test_true_views_agree_best_at_their_own_height(kind: str) -> None:
    """Silhouettes by ray casting of true shapes, from a side that is none of the shape's own."""
    from distill.embedded import raycast, shapes

    azimuth = torch.arange(8) * 45.0
    for elevation in (0.0, 20.0, 40.0):
        taken = orbit(azimuth + 30, torch.full((8,), elevation), 3.2, 40.0)
        layers = raycast.render(shapes.build(kind), taken, 64, samples=2)
        masks = silhouettes(torch.from_numpy(raycast.over(layers.rgba((0.9, 0.1, 0.1)), 1.0)).movedim(-1, 1))
        fits = {
            float(angle): agreement(masks, orbit(azimuth, torch.full((8,), float(angle)), 3.2, 40.0))
            for angle in range(-10, 65, 5)
        }
        assert _peak(fits) == pytest.approx(elevation, abs=5)


@pytest.mark.parametrize(("kind", "elevation"), [("car", 90.0), ("mug", 85.0), ("duck", -60.0)])
def test_steep_views_are_found_to_be_steep(kind: str, elevation: float) -> None:
    from distill.embedded import raycast, shapes

    taken = orbit(torch.arange(8) * 45.0 + 30, torch.full((8,), elevation), 3.2, 40.0)
    layers = raycast.render(shapes.build(kind), taken, 64, samples=1)
    around = torch.from_numpy(raycast.over(layers.rgba((0.9, 0.1, 0.1)), 1.0)).movedim(-1, 1)
    candidates = (-60, -10, 20, 60, 75, 80, 85, 90)
    assert estimate_elevation(around, candidates=candidates).elevation_deg == pytest.approx(elevation, abs=5)


def test_a_steep_candidate_must_be_clearly_better() -> None:
    usual = {0.0: 0.8, 60.0: 0.9}
    assert likely({**usual, 90.0: 0.92}) == usual
    assert likely({**usual, 90.0: 0.94}) == {**usual, 90.0: 0.94}
    assert likely({80.0: 0.5}) == {80.0: 0.5}


def test_the_top_of_a_parabola_by_hand() -> None:
    fits = {angle: 1 - ((angle - 12.0) / 100) ** 2 for angle in (0.0, 10.0, 20.0)}
    assert _peak(fits) == pytest.approx(12.0)
    assert _peak({0.0: 2.0, 10.0: 1.0}) == 0.0


def ball(cameras: Any, height: int, width: int, **_: Any) -> Render:
    """A red ball of radius 0.6 about the origin, cast at the centre of each pixel."""
    origins, directions = cameras.rays(height, width)
    closest = origins - (origins * directions).sum(-1, keepdim=True) * directions
    opacity = (closest.norm(dim=-1, keepdim=True) < 0.6).float()
    rgb = 1 - opacity * torch.tensor([0.0, 1.0, 1.0])
    return Render(rgb, opacity, torch.ones_like(opacity), torch.zeros_like(rgb))


def of_ball(size: int) -> Reference:
    taken = ball(CAMERA, size, size)
    return Reference(CAMERA, taken.rgb[0].movedim(-1, 0), taken.opacity[0].movedim(-1, 0))


@pytest.mark.parametrize(("right", "up"), [(0.25, 0.0), (0.0, 0.25), (-0.125, 0.0625)])
def test_a_shifted_reference_is_what_its_window_sees(right: float, up: float) -> None:
    """By whole pixels nothing is interpolated, so that the picture is that of the window's rays, to the pixel."""
    moved = of_ball(16).shifted(torch.tensor(right), torch.tensor(up))
    seen = ball(CAMERA.window(right, up, 1.0), 16, 16)
    torch.testing.assert_close(moved.mask[0], seen.opacity[0, ..., 0])
    torch.testing.assert_close(moved.rgb, seen.rgb[0].movedim(-1, 0))
    assert not torch.equal(moved.mask, of_ball(16).mask)


def test_the_views_rays_cover_the_pixels_and_not_their_centres_alone() -> None:
    """Between the centres a scene may be anything if they alone are compared: here, opaque points there and nothing elsewhere."""
    centres = CAMERA.rays(8, 8)[1]
    found: list[Any] = []

    def points(cameras: Any, height: int, width: int, **_: Any) -> Render:
        directions = cameras.rays(height, width)[1]
        found.append(directions)
        opacity = (directions - centres).norm(dim=-1, keepdim=True).lt(1e-6).float()
        return Render(1 - opacity, opacity, opacity, torch.zeros(1, height, width, 3))

    known = Reference(CAMERA, torch.zeros(3, 32, 32), torch.ones(1, 32, 32))
    take = beside(points, points, known, ["reference_mask"])
    assert take(CAMERA, 8, 8).penalties["reference_mask"].item() == 0
    g = torch.Generator().manual_seed(0)
    assert all(take(CAMERA, 8, 8, generator=g).penalties["reference_mask"].item() > 0.9 for _ in range(4))
    found.clear()
    for _ in range(400):
        take(CAMERA, 8, 8, generator=g)
    apart = torch.stack(found[1::2])[:, 0] @ torch.linalg.inv(CAMERA.c2w[0, :3, :3]).T
    across = (apart / -apart[..., 2:])[:, 4, 4, :2] - (lambda c: (c / -c[..., 2:])[4, 4, :2])(
        centres[0] @ torch.linalg.inv(CAMERA.c2w[0, :3, :3]).T
    )
    pixel = 2 * math.tan(math.radians(20)) / 8
    assert across.abs().max().item() <= pixel / 2 + 1e-6
    # A uniform number in [-1/2, 1/2] has variance 1/12.
    torch.testing.assert_close(across.var(0) / pixel**2, torch.full((2,), 1 / 12), rtol=0.15, atol=0)


def test_a_true_scene_is_as_near_to_a_moved_reference() -> None:
    """With a finer picture than the renders, a shift adds no error: only the rim differs, where a ray decides for a pixel's area."""
    g = torch.Generator().manual_seed(0)
    take = beside(ball, ball, of_ball(128), ["reference_rgb", "reference_mask"])
    still = take(CAMERA, 32, 32).penalties["reference_mask"].item()
    moved = [take(CAMERA, 32, 32, generator=g).penalties["reference_mask"].item() for _ in range(16)]
    assert sum(moved) / len(moved) == pytest.approx(still, rel=0.25) and still < 0.02
