"""Beginning with drawn views: distances and masks by hand, which cameras and when, and what a run makes of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from test_novelview_model import randn
from test_novelview_pipeline import make
from test_run import QUICK, command, error_of

from distill.cameras import Cameras, orbit
from distill.conditions.cutout import over_white
from distill.conditions.picture import FINER, Picture, framed, look_at
from distill.conditions.start import LEVEL_DEG, asked_later, drawn_views, ring, views_first
from distill.contracts import Condition, Render, Step
from distill.priors.novel_view.elevation import draw_around, estimate_elevation
from distill.priors.novel_view.pipeline import NovelViewPipeline
from distill.priors.novel_view.pose import relative_cameras
from distill.renderers.reference import Drawn, compared, start_distances
from distill.run.assembly.assemble import assemble
from distill.run.config.compose import compose_config

PICTURE = ["image=p.png", "novel_view=model", *QUICK]
SAMPLES = [*PICTURE, "reference.elevation_deg=20", "reference.start=samples"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("novel")
    make(folder / "parts", latent=False).save(folder / "model")
    return folder / "model"


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: Path) -> None:
    """With a picture and a model, which draws in four steps: what it draws is noise in twenty, too."""
    monkeypatch.chdir(tmp_path)
    defaults: Any = draw_around.__kwdefaults__
    monkeypatch.setitem(defaults, "steps", 4)
    (tmp_path / "model").symlink_to(model)
    picture = np.full((48, 48, 3), 255, np.uint8)
    picture[12:36, 16:40] = (200, 40, 30)
    Image.fromarray(picture).save(tmp_path / "p.png")


def four(size: int = 4) -> Drawn:
    """Four views, the i-th of grey 0.1 i, its mask all object, known in the left half alone."""
    grey = (0.1 * torch.arange(4.0)).view(4, 1, 1, 1).expand(4, 3, size, size)
    sure = torch.ones(4, 1, size, size)
    sure[..., size // 2 :] = 0
    return Drawn(ring(0.0, 20.0, 4, 3.2, 40.0), grey, torch.ones(4, 1, size, size), sure)


def plain(count: int, size: int = 4) -> Render:
    shape = (count, size, size)
    return Render(torch.full((*shape, 3), 0.5), torch.full((*shape, 1), 0.25), torch.ones(*shape, 1))


def test_renders_are_compared_with_the_view_of_their_own_camera() -> None:
    drawn = four()
    cameras = drawn.cameras[torch.tensor([3, 1])]
    found = start_distances(plain(2), cameras, drawn)
    assert found["start_rgb"].item() == pytest.approx((0.2**2 + 0.4**2) / 2)
    assert found["start_mask"].item() == pytest.approx(0.75**2 / 2)  # in the half that is known


def test_what_is_behind_a_render_is_replaced_by_white() -> None:
    drawn = four()
    cameras = drawn.cameras[torch.tensor([3, 1])]
    white = plain(2)
    grey = replace(white, rgb=white.rgb - 0.75 * (1 - 0.6), background=torch.full((2, 1, 1, 1), 0.6))
    for name, value in start_distances(white, cameras, drawn).items():
        assert start_distances(grey, cameras, drawn)[name].item() == pytest.approx(value.item(), rel=1e-5)


def test_a_camera_that_is_none_of_theirs_counts_as_no_distance() -> None:
    drawn = four()
    other = orbit(torch.tensor([90.5]), torch.tensor([20.0]), 3.2, 40.0)
    both = Cameras.joined([other, drawn.cameras.part(2, 3)])
    found = start_distances(plain(2), both, drawn, ("start_rgb",))
    assert found.keys() == {"start_rgb"}
    assert found["start_rgb"].item() == pytest.approx(0.3**2 / 2)


def test_the_distances_are_penalties_of_the_steps_own_renders() -> None:
    drawn, asked = four(8), []

    def take(cameras: Cameras, height: int, width: int, **_: Any) -> Render:
        asked.append((len(cameras), height))
        return plain(len(cameras), height)

    found = compared(take, drawn, ("start_rgb", "start_mask"))(drawn.cameras, 4, 4)
    assert asked == [(4, 4)]
    expected = start_distances(plain(4), drawn.cameras, four())
    assert {name: value.item() for name, value in found.penalties.items()} == pytest.approx(
        {name: value.item() for name, value in expected.items()}
    )


def test_a_mask_is_known_where_there_is_colour_or_the_outside_and_not_in_white_parts() -> None:
    rgb = torch.ones(1, 3, 16, 16)
    rgb[..., 2:14, 2:14] = 0.5
    rgb[..., 6:10, 6:10] = 1.0  # a hole, or a white spot
    drawn = drawn_views(rgb, ring(0.0, 0.0, 1, 3.2, 40.0))
    mask, sure = drawn.mask[0, 0], drawn.sure[0, 0]
    assert mask.sum() == 12 * 12 - 4 * 4
    assert (mask[0, 0], sure[0, 0]) == (0, 1)
    assert (mask[4, 4], sure[4, 4]) == (1, 1)
    assert sure[6:10, 6:10].sum() == 0
    assert sure[7, 1:3].sum() == 0  # the rim, a pixel on either side
    assert sure[7, 3] == 1


def test_the_views_come_first_each_once_before_any_twice() -> None:
    own, g = ring(30.0, 20.0, 4, 3.2, 40.0), torch.Generator().manual_seed(0)
    elsewhere = orbit(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0]), 3.2, 40.0)
    draw = views_first(lambda progress, batch, generator: elsewhere, own, 0.5)
    assert own.azimuth_deg.tolist() == [30, 120, -150, -60]
    assert sorted(draw(0.49, 4, g).azimuth_deg.tolist()) == [-150, -60, 30, 120]
    first = [tuple(draw(0.0, 2, g).azimuth_deg.tolist()) for _ in range(20)]
    assert len(set(first)) > 4
    assert all(len(set(pair)) == 2 for pair in first)
    assert len(draw(0.0, 6, g)) == 6
    assert draw(0.5, 2, g) is elsewhere


def test_the_prior_is_not_asked_before_its_time() -> None:
    def loss(prior: Any, x: torch.Tensor, cond: Condition, t: Any, noise: Any) -> torch.Tensor:
        return prior(x)

    def prior(x: torch.Tensor) -> torch.Tensor:
        raise AssertionError("asked")

    x: Any = randn(0, 2, 3, 4, 4)
    later: Any = asked_later(loss, 0.3)
    assert not later(prior, x, Condition({}, step=Step(progress=0.29)), None, None).any()
    with pytest.raises(AssertionError, match="asked"):
        later(prior, x, Condition({}, step=Step(progress=0.3)), None, None)


@pytest.mark.slow
def test_views_around_are_the_pipelines_and_begin_with_the_picture(tmp_path: Path) -> None:
    pipeline = NovelViewPipeline.load("model")
    rgb = 0.5 + 0.1 * randn(0, 3, 16, 16).clamp(-1, 1)
    around = draw_around(pipeline, rgb, generator=torch.Generator().manual_seed(1), views=4, steps=3)
    torch.testing.assert_close(around[0], rgb)
    flat = ring(0.0, 0.0, 4, 3.2, 40.0)
    pose = relative_cameras(flat.part(0, 1), flat)[1:]
    drawn = pipeline(rgb, pose, generator=torch.Generator().manual_seed(1), steps=3, scale=2.0)
    torch.testing.assert_close(around[1:], drawn)
    higher = draw_around(
        pipeline, rgb, generator=torch.Generator().manual_seed(1), views=4, rise_deg=-60, from_deg=85, steps=3
    )
    pose = relative_cameras(
        orbit(torch.tensor([0.0]), torch.tensor([85.0]), 3.2, 40.0), ring(0.0, 25.0, 4, 3.2, 40.0)
    )
    drawn = pipeline(rgb, pose, generator=torch.Generator().manual_seed(1), steps=3, scale=2.0)
    torch.testing.assert_close(higher, drawn)


@pytest.mark.slow
def test_a_run_fits_the_views_and_then_asks_the_prior(tmp_path: Path) -> None:
    options = ["reference.start_until=0.5", "iterations=4", "export.enabled=false"]
    job = assemble(compose_config([*SAMPLES, *options]))
    assert isinstance(job.picture, Picture) and job.picture.drawn is not None
    g = torch.Generator().manual_seed(0)
    known = job.picture.drawn.cameras
    early = job.cameras(0.4, 2, g)
    assert all((known.c2w == one).all(-1).all(-1).any() for one in early.c2w)
    x = randn(1, 2, 3, 16, 16)
    t = torch.tensor([300, 700])
    for progress, quiet in ((0.4, True), (0.6, False)):
        cond = job.condition(early, Step(progress=progress))
        assert (not job.guidance(job.prior, x, cond, t, x).any()) is quiet
    assert command(*SAMPLES, *options, "output_dir=out") == 0
    assert command(*PICTURE, "reference.start=samples", *options, "output_dir=estimated") == 0


@pytest.mark.slow
def test_what_the_elevation_was_found_with_is_what_it_begins_with() -> None:
    config = compose_config([*PICTURE, "reference.start=samples"])
    seen = look_at(config, torch.device("cpu"))
    assert seen.drawn is not None and seen.estimate is not None
    shown = over_white(framed(config)[0], seen.frame, seen.prior.image_size).rgb
    # What renders are compared with is the same part of the picture, finer.
    finer = seen.reference.rgb
    assert finer.shape[-1] == FINER * shown.shape[-1]
    assert (seen.reference.resized(shown.shape[-1]).rgb - shown).abs().mean() < 0.02
    g = torch.Generator().manual_seed(0)
    around = draw_around(seen.prior.pipeline, shown, generator=g, views=8)
    torch.testing.assert_close(seen.drawn.rgb, around)
    found = estimate_elevation(around)
    assert found == seen.estimate
    torch.testing.assert_close(seen.drawn.cameras.elevation_deg, torch.full((8,), found.elevation_deg))
    assert look_at(compose_config(PICTURE), torch.device("cpu")).drawn is None


@pytest.mark.parametrize("elevation", [90, -90, 84])
def test_a_picture_from_straight_above_or_below_is_used(elevation: int, tmp_path: Path) -> None:
    """Its azimuth is kept: the poses of the other views are those of a camera a hundredth of a degree beside the pole."""
    given = [*PICTURE, f"reference.elevation_deg={elevation}", "reference.azimuth_deg=40"]
    seen = look_at(compose_config([*given, "reference.start=samples"]), torch.device("cpu"))
    assert seen.drawn is not None
    assert seen.drawn.cameras.elevation_deg.tolist() == [LEVEL_DEG] * 8
    beside = orbit(torch.tensor([40.0]), torch.tensor([np.sign(elevation) * 89.99]), 3.2, 40.0)
    views = ring(0.0, 10.0, 5, 3.2, 40.0)
    near = relative_cameras(beside, views)
    own = relative_cameras(seen.reference.camera, views)
    torch.testing.assert_close(own[:, 1:], near[:, 1:], atol=1e-3, rtol=0)
    quick = ["iterations=2", "export.enabled=false", "output_dir=out"]
    assert command(*given, *quick, "reference.start=samples") == 0


def test_a_start_without_weights_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    said = error_of(capsys, *SAMPLES, "penalties.start_rgb=0", "penalties.start_mask=0")
    assert "reference.start=samples fits drawn views by penalties.start_rgb" in said
    said = error_of(capsys, "a red mug", *QUICK, "penalties.start_rgb=1")
    assert "penalties.start_rgb compares with a picture; add image=FILE" in said
