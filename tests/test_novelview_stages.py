"""Training in memory: what is drawn, how schedules run, both stages on a world of four views, stopping and continuing."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler
from test_novelview_model import make_unet, write_encoder

from distill.embedded import world
from distill.files.checkpoint import load_checkpoint, save_checkpoint
from distill.lab.novel_view import levels, memory, stages, world_renders
from distill.priors.novel_view.code import TurnOptions
from distill.priors.novel_view.features import load_encoder
from distill.priors.novel_view.model import build, widen
from distill.priors.novel_view.pipeline import NovelViewPipeline
from distill.priors.novel_view.pose import relative

WORLD = world_renders.WorldOptions(shapes=2, views=3, steep=1, size=16, samples=1)


@pytest.fixture(scope="module")
def shapes() -> dict[str, torch.Tensor]:
    return world_renders.render_shapes([WORLD])[0]


def quarter_turns() -> memory.Store:
    """Two objects from four sides; one side has a stripe of the object's own, which goes round with the camera."""
    pictures = torch.full((8, 3, 16, 16), 255, dtype=torch.uint8)
    for place in range(8):
        pictures[place, place // 4, :, 4 * (place % 4) : 4 * (place % 4) + 4] = 0
    angles = math.pi / 2 * torch.arange(8)
    positions = torch.stack([2 * angles.cos(), 2 * angles.sin(), torch.ones(8)], dim=1)
    return memory.Store(pictures, positions, torch.tensor([0, 4, 8]), ("a", "b"))


def pipeline_of(folder: Path) -> NovelViewPipeline:
    encoder = load_encoder(write_encoder(folder / "dinov2", "dinov2"), layers=[2, 4])
    options = TurnOptions(tokens=2, draft=8, patch_width=4, hidden=32, pairs=(4, 4, 2))
    model = build(
        widen(make_unet(), draft=True), token_width=encoder.token_width, map_width=encoder.map_width,
        grid=encoder.grid, turn=options, layer_widths=encoder.map_widths,
    )  # fmt: skip
    scheduler = DDIMScheduler(prediction_type="v_prediction", clip_sample=False)
    return NovelViewPipeline(model, encoder, scheduler)


def noting(losses: list[float]) -> stages.After:
    """Append each update's loss, and never stop."""

    def after(stage: stages.Stage, loss: torch.Tensor) -> bool:
        losses.append(loss.item())
        return False

    return after


def test_two_different_views_of_one_object_are_drawn_equally_often() -> None:
    store = memory.Store(
        torch.zeros(5, 3, 2, 2, dtype=torch.uint8), torch.ones(5, 3), torch.tensor([0, 2, 5]), ("a", "b")
    )
    condition, target = store.draw(60_000, torch.Generator().manual_seed(0))
    counts = torch.bincount(5 * condition + target, minlength=25).reshape(5, 5) / 60_000
    expected = torch.zeros(5, 5)
    expected[:2, :2] = 0.5 / 2
    expected[2:, 2:] = 0.5 / 6
    expected.fill_diagonal_(0)
    torch.testing.assert_close(counts, expected, atol=0.008, rtol=0)


def test_a_store_tells_the_pose_that_views_have() -> None:
    store = quarter_turns()
    pose = store.pose(torch.tensor([0, 1]), torch.tensor([1, 3]))
    torch.testing.assert_close(pose, relative(store.positions[[0, 1]], store.positions[[1, 3]]))
    torch.testing.assert_close(pose[:, 1:3], torch.tensor([[1.0, 0], [0, -1]]), atol=1e-6, rtol=0)
    views = store.views()
    rgb, position = views.read("b", 2)
    assert torch.equal(rgb, store.pictures[6].float() / 255) and torch.equal(position, store.positions[6])
    again = memory.from_views(views)
    assert torch.equal(again.pictures, store.pictures) and torch.equal(again.first, store.first)
    both = memory.joined([store, again])
    assert torch.equal(both.first, torch.tensor([0, 4, 8, 12, 16])) and len(both) == 4
    assert torch.equal(both.pictures[8:], store.pictures)
    with pytest.raises(ValueError, match="at least two pictures"):
        memory.Store(store.pictures, store.positions, torch.tensor([0, 1, 8]), ("a", "b"))
    with pytest.raises(ValueError, match="away from the origin"):
        memory.Store(store.pictures, 0 * store.positions, store.first, store.uids)


def test_shapes_are_painted_in_trained_colours_or_the_held_out_one(shapes: dict[str, torch.Tensor]) -> None:
    trained, held_out = world_renders.painted(shapes), world_renders.painted(shapes, held_out=True)
    assert len(trained) == 16 * 2 * 7 and len(held_out) == 16 * 2
    assert trained.pictures.shape == (16 * 2 * 7 * 4, 3, 16, 16)
    for store, expected in ((trained, False), (held_out, True)):
        assert all(world.held_out(*uid.split("-")[:2]) == expected for uid in store.uids)
    # One colour of each shape goes through all of them in turn.
    some = world_renders.painted(shapes, colours=1)
    cubes = [uid.split("-")[0] for uid in some.uids if "-cube-" in uid]
    assert len(set(cubes)) == 2
    # A red cube is red in its middle and white in the corner.
    place = int(trained.first[trained.uids.index("red-cube-0000")])
    picture = trained.pictures[place].int()
    assert picture[0, 8, 8] > 90 and picture[0, 8, 8] > 3 * picture[2, 8, 8]
    assert (picture[:, 0, 0] == 255).all()
    elevation = torch.rad2deg(torch.asin(trained.positions[:, 2] / trained.positions.norm(dim=1)))
    usual = elevation.view(-1, 4)[:, :3]
    assert usual.min() >= -10.01 and usual.max() <= 60.01


def test_shapes_are_rendered_once(
    tmp_path: Path, shapes: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(world_renders, "render_shapes", lambda worlds, workers: [shapes for _ in worlds])
    (first,) = world_renders.cached_shapes([WORLD], tmp_path)
    monkeypatch.setattr(world_renders, "render_shapes", lambda worlds, workers: pytest.fail("rendered again"))
    (again,) = world_renders.cached_shapes([WORLD], tmp_path)
    assert torch.equal(first["layers"], again["layers"])


def test_schedules_by_hand() -> None:
    assert stages.learning_rate(0.01, 0.05) == pytest.approx(0.5, rel=1e-3)
    assert stages.learning_rate(0.5, 0.1) == pytest.approx(0.55)
    assert stages.learning_rate(1.0, 0.1) == pytest.approx(0.1)
    assert [levels.exponent(done, 0.1, 0.7, 0.4, 0.8) for done in (0.0, 0.4, 0.6, 0.8, 1.0)] == pytest.approx(
        [0.1, 0.1, 0.4, 0.7, 0.7]
    )


def test_timesteps_are_stratified_and_follow_the_power_law() -> None:
    t = levels.Law(low=0.5, high=0.5).draw(0.0, 1000, 1000, torch.Generator().manual_seed(0))
    # P(t < 500) = P(u < 1/4), and one u falls into each thousandth.
    assert (t < 500).sum().item() == pytest.approx(250, abs=1)
    assert t.max() <= 999 and not torch.equal(t, t.sort().values)


def test_a_pace_is_of_updates_or_of_seconds() -> None:
    pace = stages.Pace(updates=4)
    pace.update = 1
    assert pace.done == 0.25
    timed = stages.Pace(seconds=10.0, used=5.0)
    assert timed.done == pytest.approx(0.5)
    again = stages.Pace(updates=1)
    again.load_state_dict(timed.state_dict())
    assert (again.updates, again.seconds) == (None, 10.0)
    with pytest.raises(ValueError, match="give one of the two"):
        stages.Pace()


def test_a_code_learns_to_turn_what_it_sees_and_is_frozen(tmp_path: Path) -> None:
    pipeline = pipeline_of(tmp_path)
    turn = pipeline.model.turn
    assert turn is not None
    seen = memory.encoded(quarter_turns(), pipeline.encoder)
    recipe = stages.CodeRecipe(batch=32, learning_rate=3e-3)
    stage = stages.code_stage(turn, seen, recipe, stages.Pace(updates=120))
    losses: list[float] = []
    stages.fit_code(stage, seen, recipe, noting(losses))
    assert losses[-1] < 0.2 * losses[0]
    pairs = torch.tensor([[0, 1], [1, 3], [6, 4], [5, 6]])
    found = stages.drafts_right(turn, stage.modules["draft"], seen, pairs)
    assert found["right"].tolist() == [1, 1, 1, 1] and found["away_deg"].tolist() == [0, 0, 0, 0]
    assert not any(p.requires_grad for p in turn.code.parameters())


def test_the_nearest_view_is_told_by_hand() -> None:
    store = quarter_turns()
    seen = memory.Seen(store, torch.zeros(8, 1), torch.zeros(8, 1, 1))
    drawn = store.pictures[[1, 7]].float() / 127.5 - 1
    found = stages.nearest(drawn, seen, torch.tensor([1, 5]), 16)
    assert found["right"].tolist() == [1, 0]
    torch.testing.assert_close(found["away_deg"], torch.tensor([0.0, 180.0]), atol=1e-3, rtol=0)
    # Of the second, two stripes of a quarter of one channel are off by 1.
    torch.testing.assert_close(found["mse"], torch.tensor([0.0, 0.5 / 3]))


@pytest.mark.slow
def test_the_unet_learns_what_it_is_told_and_the_code_stays(tmp_path: Path) -> None:
    pipeline = pipeline_of(tmp_path)
    turn = pipeline.model.turn
    assert turn is not None
    seen = memory.encoded(quarter_turns(), pipeline.encoder)
    recipe = stages.UNetRecipe(batch=8, learning_rate=2e-3, bf16=False, ema=0.9)
    before = {name: value.clone() for name, value in turn.state_dict().items()}
    stage = stages.unet_stage(pipeline, recipe, stages.Pace(updates=60))
    losses: list[float] = []
    stages.fit_unet(stage, pipeline, seen, recipe, noting(losses))
    assert sum(losses[-10:]) < 0.7 * sum(losses[:10])
    after = turn.state_dict()
    frozen = [name for name in before if name.startswith(("code.", "draft."))]
    assert frozen and all(torch.equal(before[name], after[name]) for name in frozen)
    assert not torch.equal(before["tokens.weight"], after["tokens.weight"])
    assert after["film.weight"].abs().sum() > 0
    assert pipeline.model.unet.conv_in.weight[:, 6:].abs().sum() > 0


@pytest.mark.slow
def test_a_stage_that_stops_goes_on_bit_for_bit(tmp_path: Path) -> None:
    pipeline = pipeline_of(tmp_path)
    seen = memory.encoded(quarter_turns(), pipeline.encoder)
    recipe = stages.UNetRecipe(batch=4)

    def fresh() -> tuple[NovelViewPipeline, stages.Stage]:
        torch.manual_seed(3)
        made = pipeline_of(tmp_path / "again")
        return made, stages.unet_stage(made, recipe, stages.Pace(updates=6), seed=1)

    whole, stage = fresh()
    stages.fit_unet(stage, whole, seen, recipe, lambda _, loss: False)
    part, stopped = fresh()
    stages.fit_unet(stopped, part, seen, recipe, lambda stage, loss: stage.pace.update == 3)
    save_checkpoint(tmp_path / "checkpoints", 3, stopped.state_dict())
    rest, going_on = fresh()
    going_on.load_state_dict(load_checkpoint(tmp_path / "checkpoints") or {})
    assert going_on.pace.update == 3
    stages.fit_unet(going_on, rest, seen, recipe, lambda _, loss: False)
    for one, other in zip(whole.model.parameters(), rest.model.parameters(), strict=True):
        assert torch.equal(one, other)
    assert all(torch.equal(one, other) for one, other in zip(stage.average, going_on.average, strict=True))


def test_averaged_weights_are_lent(tmp_path: Path) -> None:
    pipeline = pipeline_of(tmp_path)
    stage = stages.unet_stage(pipeline, stages.UNetRecipe(), stages.Pace(updates=1))
    mine = stage.parameters[0]
    stage.average[0].fill_(7.0)
    before = mine.detach().clone()
    with stages.averaged(stage):
        assert (mine == 7).all()
    assert torch.equal(mine, before) and (stage.average[0] == 7).all()


def test_shapes_beside_the_axis_stay_there_for_all_cameras() -> None:
    away = world_renders.WorldOptions(
        shapes=1, views=40, steep=0, size=32, samples=1, scale=(0.4, 0.4), offset=0.3, seed=4
    )
    layers, positions = world_renders.render_shape(away, ("sphere", 0))
    # A ball's silhouette is about where its centre is projected to: one point must explain all views.
    ys, xs = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")
    alpha = torch.from_numpy(layers[..., 4]).float()
    mass = alpha.sum((1, 2))
    centre = (
        torch.stack([(alpha * xs).sum((1, 2)) / mass, (alpha * ys).sum((1, 2)) / mass], dim=1) / 16 - 31 / 32
    )
    eye = torch.from_numpy(positions)
    backward = eye / eye.norm(dim=1, keepdim=True)
    right = torch.stack([-eye[:, 1], eye[:, 0], torch.zeros(40)], 1)
    right = right / right.norm(dim=1, keepdim=True)
    up = torch.linalg.cross(backward, right)
    # x * depth * tan = right . o and depth = distance - backward . o, so both are linear in o, except for the unknown tan.
    found = []
    for tan in torch.linspace(0.33, 0.40, 15):
        rows = torch.cat([right + centre[:, :1] * tan * backward, up - centre[:, 1:] * tan * backward])
        values = torch.cat([centre[:, 0], -centre[:, 1]]) * tan * eye.norm(dim=1).repeat(2)
        answer = torch.linalg.lstsq(rows, values[:, None]).solution
        found.append(((rows @ answer - values[:, None]).square().mean().sqrt().item(), answer.norm().item()))
    error, distance = min(found)
    assert error < 0.02 and 0.05 < distance <= 0.3
    # A shape that fills the picture stays in the middle.
    large = replace(away, scale=(1.4, 1.4), views=2)
    kept, _ = world_renders.render_shape(large, ("table", 0))
    middle, _ = world_renders.render_shape(replace(large, offset=0.0), ("table", 0))
    assert (kept == middle).all()


def test_steep_views_reach_straight_above_and_below() -> None:
    steep = world_renders.WorldOptions(shapes=1, views=0, steep=400, size=2, samples=1)
    _, positions = world_renders.render_shape(steep, ("cube", 0))
    eye = torch.from_numpy(positions)
    elevation = torch.rad2deg(torch.asin(eye[:, 2] / eye.norm(dim=1)))
    assert elevation.min() < -88 and elevation.max() > 88
    # Angles are equally likely: a sixth of them lies above 60 degrees.
    assert (elevation > 60).float().mean().item() == pytest.approx(1 / 6, abs=0.06)


def test_steep_views_may_be_of_both_caps_alone() -> None:
    caps = world_renders.WorldOptions(shapes=1, views=0, steep=400, size=2, samples=1, steep_from_deg=45)
    _, positions = world_renders.render_shape(caps, ("cube", 0))
    eye = torch.from_numpy(positions)
    elevation = torch.rad2deg(torch.asin(eye[:, 2] / eye.norm(dim=1)))
    assert elevation.abs().min() > 44.9
    # Angles from 45 to 89.9 degrees are equally likely, above as below: a third of them is from 75 degrees.
    assert (elevation > 0).float().mean().item() == pytest.approx(1 / 2, abs=0.08)
    assert (elevation > 75).float().mean().item() == pytest.approx(1 / 6, abs=0.06)
    assert (elevation < -75).float().mean().item() == pytest.approx(1 / 6, abs=0.06)


def test_a_steep_picture_of_a_pair_is_given_as_often_as_asked() -> None:
    height = torch.deg2rad(torch.tensor([10.0, 59.0, 61.0, -90.0]))
    positions = 3 * torch.stack([height.cos(), 0 * height, height.sin()], dim=1)
    pictures = torch.zeros(4, 3, 2, 2, dtype=torch.uint8)
    plain = memory.Store(pictures, positions, torch.tensor([0, 4]), ("a",))
    assert plain.steep(torch.arange(4)).tolist() == [False, False, True, True]
    counts = []
    for store in (plain, replace(plain, steep_first=0.9)):
        given, wanted = store.draw(60_000, torch.Generator().manual_seed(0))
        counts.append(torch.bincount(4 * given + wanted, minlength=16).reshape(4, 4) / 60_000)
    expected = torch.full((4, 4), 1 / 12).fill_diagonal_(0)
    torch.testing.assert_close(counts[0], expected, atol=0.006, rtol=0)
    # The eight pairs of a steep and a usual picture: two thirds in all, nine tenths of them with the steep one given.
    expected[2:, :2], expected[:2, 2:] = 0.9 / 6, 0.1 / 6
    torch.testing.assert_close(counts[1], expected, atol=0.006, rtol=0)
    assert replace(plain, steep_first=0.9).to("cpu").steep_first == 0.9
    with pytest.raises(ValueError, match="steep_first must be a probability or None, got 2"):
        replace(plain, steep_first=2.0)


def test_a_code_that_is_trained_on_keeps_its_thumbnails_mean(tmp_path: Path) -> None:
    pipeline, seen = (
        pipeline_of(tmp_path),
        memory.encoded(quarter_turns(), load_encoder(write_encoder(tmp_path / "e", "dinov2"), layers=[2, 4])),
    )
    turn = pipeline.model.turn
    assert turn is not None and turn.draft is not None
    turn.draft.mean.fill_(0.25)
    recipe, pace = stages.CodeRecipe(batch=4), stages.Pace(updates=1)
    kept = stages.code_stage(turn, seen, recipe, pace, new=False)
    assert (turn.draft.mean == 0.25).all()
    again = stages.code_stage(turn, seen, recipe, pace)
    # A quarter of each picture is black in two of three channels of one kind: neither mean nor pairs are chance.
    assert not (turn.draft.mean == 0.25).any()
    assert torch.equal(kept.generator.get_state(), again.generator.get_state())


def test_codes_of_usual_pairs_are_held_where_they_were(tmp_path: Path) -> None:
    """Steep pictures may change all they like; without ``keep``, those of usual pairs move much further."""
    encoder = load_encoder(write_encoder(tmp_path / "e", "dinov2"), layers=[2, 4])
    seen = memory.encoded(quarter_turns(), encoder)
    condition, target = torch.tensor([0, 1, 2, 5]), torch.tensor([1, 3, 0, 6])
    maps, pose = seen.features(condition).maps, seen.store.pose(condition, target)
    apart = []
    for keep in (0.0, 100.0):
        turn = pipeline_of(tmp_path / f"{keep}").model.turn
        assert turn is not None
        first = turn.code(maps, pose).detach()
        recipe = stages.CodeRecipe(batch=8, learning_rate=3e-3, keep=keep)
        stage = stages.code_stage(turn, seen, recipe, stages.Pace(updates=60))
        assert (stage.before is None) == (keep == 0)
        stages.fit_code(stage, seen, recipe, noting([]))
        now = turn.code(maps, pose)
        apart.append(((now - first).square().sum() / first.square().sum()).item())
        if stage.before is not None:
            assert stages.moved(now, stage.before, maps, pose).item() == pytest.approx(apart[-1], rel=1e-5)
    assert apart[1] < 0.1 * apart[0]


def test_features_may_be_kept_or_made_again(tmp_path: Path) -> None:
    encoder = load_encoder(write_encoder(tmp_path / "dinov2", "dinov2"), layers=[2, 4])
    store = quarter_turns()
    index = torch.tensor([3, 0])
    kept, live = memory.encoded(store, encoder).features(index), memory.Live(store, encoder).features(index)
    torch.testing.assert_close(kept.maps, live.maps, atol=2e-3, rtol=2e-3)
    torch.testing.assert_close(kept.token, live.token, atol=2e-3, rtol=2e-3)


def test_pictures_are_encoded_in_single_precision_while_a_unet_trains_in_half(tmp_path: Path) -> None:
    pipeline, rounded = pipeline_of(tmp_path), list[bool]()
    store = quarter_turns()

    class Asked:
        def __init__(self) -> None:
            self.store = store

        def features(self, index: torch.Tensor) -> Any:
            rounded.append(torch.is_autocast_enabled("cpu"))
            return memory.Live(store, pipeline.encoder).features(index)

    recipe = stages.UNetRecipe(batch=2)
    stage = stages.unet_stage(pipeline, recipe, stages.Pace(updates=1))
    stages.fit_unet(stage, pipeline, Asked(), recipe, noting([]))
    assert recipe.bf16 and rounded == [False]
