"""What every scene, prior and loss promises: all members of its contract, and what each of them does."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from scenes import SCENES, SINGLE, Growing
from tiny_pipelines import make
from torch import Tensor
from usual import optimiser_of, settings_of

from distill import guidance, loop
from distill.cameras import Cameras, orbit, turntable
from distill.conditions import prompts
from distill.contracts import (
    CameraSampler,
    Condition,
    Embedding,
    Guidance,
    Learner,
    Prior,
    Render,
    Scene,
    Step,
    Trainable,
)
from distill.files.checkpoint import load_checkpoint, save_checkpoint
from distill.forecast.network import Counting
from distill.guidance import is_made_for_prior
from distill.job import Job, State, take, views_at_once
from distill.lab.comparison.counted import Counted
from distill.priors import load_prior
from distill.priors.exact import ExactPrior, gaussian
from distill.priors.novel_view.prior import NovelViewPrior
from distill.renderers import reference, sdf, volume
from distill.run.assembly.prior import check_fits
from distill.run.checks.scene import FEATURES
from distill.run.config.compose import compose_config
from distill.samplers.cameras import ranges
from distill.samplers.schedules import Ramp
from distill.samplers.timesteps import uniform

CPU = torch.device("cpu")
OPTIONS: dict[str, Any] = {
    "resolution": 16, "faces": 200, "iso": None, "min_component": 0.03, "blur": 2.0, "texture_size": 64, "frames": 2,
    "picture_size": 16, "elevation_deg": 15.0, "up": "y",
}  # fmt: skip


def members(contract: type) -> set[str]:
    """Names of a contract's methods, properties and attributes."""
    names = {*vars(contract), *contract.__annotations__}
    return {name for name in names if not name.startswith("_")}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def warmed(make: Callable[..., Scene], seed: int = 0) -> Scene:
    """A scene as the loop renders it, after its first ``update``."""
    scene = make(seed)
    scene.update(Step(), optimiser_of(scene), generator(seed))
    return scene


every_scene = pytest.mark.parametrize("make_scene", SCENES.values(), ids=SCENES)


@every_scene
def test_a_scene_has_every_member_and_says_what_it_can_do(make_scene: Callable[..., Scene]) -> None:
    scene = make_scene()
    assert members(Scene) == {
        "features", "parameter_groups", "update", "render", "field", "assets", "to", "zero_grad", "state_dict",
        "load_state_dict",
    }  # fmt: skip
    assert all(hasattr(scene, name) for name in members(Scene))
    assert isinstance(scene.features, frozenset)
    assert scene.features <= {*FEATURES, *volume.PENALTIES, *sdf.PENALTIES}
    assert not scene.features & {*reference.PENALTIES}


@every_scene
def test_groups_hold_every_parameter_once_at_a_rate(make_scene: Callable[..., Scene]) -> None:
    scene: Any = make_scene()
    groups = scene.parameter_groups()
    listed = [id(parameter) for group in groups.values() for parameter in group.parameters]
    assert sorted(listed) == sorted(id(parameter) for parameter in scene.parameters())
    assert all(group.rate > 0 for group in groups.values())
    rates = {id(p): group["lr"] for group in optimiser_of(scene).param_groups for p in group["params"]}
    assert rates == {id(p): group.rate for group in groups.values() for p in group.parameters}


@every_scene
@pytest.mark.parametrize("count", [1, 3])
def test_a_render_has_its_shapes_and_ranges(make_scene: Callable[..., Scene], count: int) -> None:
    scene = warmed(make_scene)
    for g in (None, generator()):
        seen = scene.render(turntable(count), 8, 12, generator=g)
        assert seen.rgb.shape == (count, 8, 12, 3)
        assert seen.opacity.shape == seen.depth.shape == (count, 8, 12, 1)
        assert seen.normal is None
        assert dict(seen.penalties) == {}
        assert all(value.isfinite().all() for value in (seen.rgb, seen.opacity, seen.depth))
        assert (seen.opacity.min() >= 0) and (seen.opacity.max() <= 1 + 1e-5)
    if "sides" in scene.features:
        assert (seen.rgb.min() >= 0) and (seen.rgb.max() <= 1 + 1e-5)
        hit = seen.opacity > 0.5
        # Cameras are 3.2 away from a scene in the cube, whose corners are at 3^0.5.
        assert hit.any()
        assert (seen.depth[hit] > 0.5 * 1.4).all() and (seen.depth[hit] < 5).all()
    together, alone = (scene.render(cameras, 8, 8).rgb for cameras in (turntable(3), turntable(3)[:1]))
    torch.testing.assert_close(together[:1], alone)


@every_scene
def test_a_render_moves_every_kind_of_parameter(make_scene: Callable[..., Scene]) -> None:
    scene = warmed(make_scene)
    scene.render(turntable(2), 8, 8, generator=generator()).rgb.square().sum().backward()
    for name, group in scene.parameter_groups().items():
        assert any(p.grad is not None and p.grad.abs().max() > 0 for p in group.parameters), name
    scene.zero_grad(set_to_none=True)
    assert all(p.grad is None for group in scene.parameter_groups().values() for p in group.parameters)


@every_scene
def test_a_scene_draws_from_its_generator_alone(make_scene: Callable[..., Scene]) -> None:
    def all_of_it(global_seed: int, seed: int = 3) -> list[Tensor]:
        torch.manual_seed(global_seed)
        before, g = torch.get_rng_state(), generator(seed)
        scene = make_scene(g)
        scene.update(Step(), optimiser_of(scene), g)
        trained, viewed = scene.render(turntable(2), 8, 8, generator=g), scene.render(turntable(2), 8, 8)
        assert torch.equal(torch.get_rng_state(), before)
        return [trained.rgb, trained.depth, viewed.rgb, torch.rand(1, generator=g)]

    first, second = all_of_it(0), all_of_it(1)
    assert all(torch.equal(*pair) for pair in zip(first, second, strict=True))
    assert not torch.equal(all_of_it(0, 4)[2], first[2])
    scene = warmed(make_scene)
    assert torch.equal(scene.render(turntable(1), 8, 8).rgb, scene.render(turntable(1), 8, 8).rgb)


@every_scene
def test_a_scene_renders_what_its_features_say(make_scene: Callable[..., Scene]) -> None:
    scene: Any = warmed(make_scene)  # whose features bring keywords of their own
    names = tuple(sorted(scene.features & {*volume.PENALTIES, *sdf.PENALTIES}))
    seen = scene.render(turntable(2), 8, 8, generator=generator(), penalties=names)
    assert set(seen.penalties) == set(names)
    assert all(value.shape == () and value.isfinite() for value in seen.penalties.values())
    if "normals" in scene.features:
        normal = scene.render(turntable(2), 8, 8, normals=True).normal
        assert normal is not None
        length = normal.norm(dim=-1)
        assert ((length - 1).abs() < 1e-3).logical_or(length == 0).all()
        assert length.max() > 0.9
    if "shading" in scene.features:
        lit = scene.render(turntable(1), 8, 8, shading="textureless").rgb
        assert not torch.equal(lit, scene.render(turntable(1), 8, 8, shading="albedo").rgb)
    if "chunks" in scene.features:
        whole = scene.render(turntable(1), 8, 8).rgb
        parts = scene.render(turntable(1), 8, 8, chunk_rays=7, recompute=True).rgb
        torch.testing.assert_close(parts, whole)
    assert (scene.field() is not None) == ("volume" in scene.features)


@every_scene
def test_a_field_is_density_and_colour(make_scene: Callable[..., Scene]) -> None:
    query = warmed(make_scene).field()
    if query is None:
        return
    density, albedo = query(torch.rand(50, 3, generator=generator()) * 2 - 1)
    assert density.shape == (50,)
    assert albedo.shape == (50, 3)
    assert density.min() >= 0 and albedo.min() >= 0 and albedo.max() <= 1
    middle, corner = (query(torch.full((1, 3), x))[0] for x in (0.0, 1.0))
    assert middle > corner


@every_scene
def test_writers_write_files_and_say_what(make_scene: Callable[..., Scene], tmp_path: Path) -> None:
    scene = warmed(make_scene)
    writers = scene.assets()
    assert writers

    def view(cameras: Cameras, height: int, width: int) -> Render:
        return scene.render(cameras, height, width).detached()

    for name, write in writers.items():
        folder = tmp_path / name
        folder.mkdir()
        figures = write(folder, view, OPTIONS)
        assert json.loads(json.dumps(figures)) == figures
        made = {path.name: path.stat().st_size for path in folder.iterdir()}
        assert made and all(made.values())
        write(folder, view, OPTIONS)
        assert {path.name for path in folder.iterdir()} == {*made}


@every_scene
def test_a_scenes_state_goes_through_a_checkpoint_unchanged(
    make_scene: Callable[..., Scene], tmp_path: Path
) -> None:
    first, second = warmed(make_scene, 1), make_scene(2)
    save_checkpoint(tmp_path, 1, {"scene": dict(first.state_dict())})
    saved = load_checkpoint(tmp_path)
    assert saved is not None
    second.load_state_dict(saved["scene"])
    a, b = first.state_dict(), second.state_dict()
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
    # From there both continue alike, which a run that is resumed rests on.
    seen = []
    for scene in (first, copy.deepcopy(first), second):
        g, optimiser = generator(5), optimiser_of(scene)
        for index in (1, 2):
            scene.update(Step(index, 0.5), optimiser, g)
            seen.append(scene.render(turntable(1), 8, 8, generator=g).rgb)
    assert all(torch.equal(seen[i], seen[i + 2]) and torch.equal(seen[i], seen[i + 4]) for i in (0, 1))


@every_scene
def test_moving_a_scene_returns_it(make_scene: Callable[..., Scene]) -> None:
    scene = make_scene()
    assert scene.to(CPU) is scene


def test_a_scene_without_penalties_refuses_them() -> None:
    with pytest.raises(ValueError, match="computes no penalties, got sparsity"):
        SINGLE["image"]().render(turntable(1), 8, 8, penalties=["sparsity"])


def exact() -> ExactPrior:
    means = {
        name: torch.rand(3, 8, 8, generator=generator(i))
        for i, name in enumerate(("a mug", "", "a cup", "ugly"))
    }
    prior = gaussian(means, 0.5)
    return ExactPrior(prior.prompts, prior.abar.float())


@dataclass(frozen=True)
class Several(ExactPrior):
    """A multi-view prior: four views of one object at one timestep, which must be where the cameras say that they are."""

    calls: list[tuple[Tensor, Cameras]] = field(default_factory=list)

    views = 4

    def predict_noise(
        self, x_t: Tensor, t: Tensor, cond: Embedding, cameras: Cameras | None = None
    ) -> Tensor:
        assert cameras is not None
        assert len(x_t) == len(t) == len(cameras) == len(cond["prompt"])
        assert len(t) % 4 == 0
        groups = t.view(-1, 4)
        assert (groups == groups[:, :1]).all()
        # The cameras of ``rings``: one distance an object, and the four sides in their order.
        assert (cameras.distance.view(-1, 4) == cameras.distance.view(-1, 4)[:, :1]).all()
        turned = cameras.azimuth_deg.view(-1, 4) - cameras.azimuth_deg.view(-1, 4)[:, :1]
        torch.testing.assert_close(turned % 360, torch.tensor([0.0, 90, 180, 270]).expand_as(turned))
        self.calls.append((t, cameras))
        return super().predict_noise(x_t, t, cond, cameras)


def several_views() -> Several:
    prior = exact()
    return Several(prior.prompts, prior.abar)


def rings(progress: float, batch: int, generator: torch.Generator) -> Cameras:
    """Four sides of each object, the objects at distances of their own."""
    objects = batch // 4
    distance = 3 + torch.arange(objects).repeat_interleave(4) + torch.rand(1, generator=generator)
    azimuth = torch.arange(4.0).repeat(objects) * 90 + 10
    return orbit(azimuth, torch.full((batch,), 15.0), distance, 40.0)


def novel_view(folder: Path, latent: bool) -> NovelViewPrior:
    from test_novelview_pipeline import make as make_pipeline

    pipeline = make_pipeline(folder, latent=latent)
    return NovelViewPrior.of(pipeline, torch.rand(3, 16, 16, generator=generator()), turntable(1))


def loaded(name: str, folder: Path) -> Prior:
    if name in ("embedded", "counted"):
        prior: Prior = load_prior("embedded")
        return prior if name == "embedded" else Counted(prior)
    if name.startswith("novel_view"):
        return novel_view(folder, latent=name == "novel_view_latent")
    make(name).save_pretrained(folder)
    return load_prior(folder, dtype=torch.float32, image_size=8 if name == "deepfloyd" else 64)


#: Priors that are made from nothing.
MADE: dict[str, Callable[[], Prior]] = {"exact": exact, "several views": several_views, "forecast": Counting}
#: Priors that are loaded, from the library or from a folder.
LOADED = (
    "embedded", "counted", "novel_view", "novel_view_latent", "stable_diffusion", "stable_diffusion_xl", "deepfloyd",
    "pixart", "stable_diffusion_3", "flux", "sana", "multi_view",
)  # fmt: skip


@pytest.fixture(scope="module", params=[*MADE, *LOADED])
def prior(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Prior:
    name = request.param
    return MADE[name]() if name in MADE else loaded(name, tmp_path_factory.mktemp(name))


def pictures(prior: Prior, batch: int) -> Tensor:
    size = prior.image_size
    return torch.rand(batch, 3, size, size, generator=generator(9)).to(prior.device)


def words(prior: Prior, batch: int) -> Embedding:
    return prior.embed(["a mug"] * batch)


def test_a_prior_has_every_member_of_its_type(prior: Prior) -> None:
    assert all(hasattr(prior, name) for name in members(Prior))
    assert isinstance(prior.name, str)
    assert prior.device == CPU
    assert isinstance(prior.image_size, int) and isinstance(prior.num_timesteps, int)
    assert len(prior.shape) == 3 and all(isinstance(size, int) for size in prior.shape)
    assert all(isinstance(value, bool) for value in (prior.latent, prior.words, prior.has_control))
    assert prior.views >= 1
    described = prior.describe()
    assert json.loads(json.dumps(described)) == described


def test_a_prior_embeds_a_row_for_every_prompt(prior: Prior) -> None:
    embedded = prior.embed(["a mug", "", "a mug"])
    assert embedded
    assert all(value.shape[0] == 3 and value.device == prior.device for value in embedded.values())
    assert all(torch.equal(value[0], value[2]) for value in embedded.values())


def test_a_prior_encodes_and_decodes_differentiably(prior: Prior) -> None:
    image = pictures(prior, 2).requires_grad_()
    x = prior.encode(image)
    assert x.shape == (2, *prior.shape)
    assert x.dtype == torch.float32
    (back,) = torch.autograd.grad(x.square().sum(), image)
    assert back.abs().max() > 0
    leaf = x.detach().requires_grad_()
    decoded = prior.decode(leaf)
    assert decoded.shape == image.shape
    (back,) = torch.autograd.grad(decoded.square().sum(), leaf)
    assert back.abs().max() > 0
    if not prior.latent:
        torch.testing.assert_close(decoded, image.detach(), atol=1e-5, rtol=0)
        # Beyond [0, 1] nothing is clipped.
        torch.testing.assert_close(prior.encode(prior.decode(3 * x)), 3 * x, atol=1e-4, rtol=0)


def test_a_priors_scales_are_a_number_for_each_picture(prior: Prior) -> None:
    t = torch.arange(0, prior.num_timesteps, prior.num_timesteps // 10)
    alpha, sigma = prior.alpha(t), prior.sigma(t)
    assert alpha.shape == sigma.shape == (len(t), 1, 1, 1)
    assert (alpha.diff(dim=0) <= 0).all() and (sigma.diff(dim=0) >= 0).all()
    assert alpha[0] >= alpha[-1] > 0 and sigma[-1] > 0


def test_a_prior_predicts_the_noises_shape_with_cameras_and_without(prior: Prior) -> None:
    batch = 4
    x = torch.randn(batch, *prior.shape, generator=generator(1))
    t = torch.tensor([500]).expand(batch)
    cameras = rings(0.0, batch, generator())
    weights = list(prior.trainable.network.parameters()) if prior.trainable else []
    with torch.enable_grad():
        noise = prior.predict_noise(x.clone().requires_grad_(), t, words(prior, batch), cameras)
    assert noise.shape == x.shape
    assert noise.dtype == torch.float32
    assert not noise.requires_grad
    assert all(weight.grad is None for weight in weights)
    assert torch.equal(noise, prior.predict_noise(x, t, words(prior, batch), cameras))
    if prior.views > 1:
        return
    if prior.words:
        assert torch.equal(prior.predict_noise(x, t, words(prior, batch)), noise)
    else:
        with pytest.raises(ValueError, match=r"needs the cameras .*pass cameras=$"):
            prior.predict_noise(x, t, words(prior, batch))


def test_a_prior_without_a_controlnet_refuses_a_picture_for_it(prior: Prior) -> None:
    assert not prior.has_control
    with pytest.raises(ValueError, match="ControlNet"):
        prior.show(pictures(prior, 1))


def test_a_priors_network_can_be_trained_inside(prior: Prior) -> None:
    network = prior.trainable
    if network is None:
        return
    assert members(Trainable) == {"network", "clock", "forward"}
    assert hasattr(network.network.get_submodule(network.clock), "linear_2")
    n = prior.views
    x, t = torch.randn(n, *prior.shape, generator=generator(1)), torch.full((n,), 400)
    with torch.enable_grad():
        leaf = x.clone().requires_grad_()
        network.forward(leaf, t, words(prior, n), turntable(n)).square().sum().backward()
    assert leaf.grad is not None
    torch.testing.assert_close(
        network.forward(x, t, words(prior, n), turntable(n)).detach(),
        prior.predict_noise(x, t, words(prior, n), turntable(n)),
    )


def bound(loss: Any, prior: Prior) -> Guidance:
    """A loss as a run calls it, with its default options."""
    made: Guidance = loss(prior, generator(), {}) if is_made_for_prior(loss) else loss
    return made


def conditioned(prior: Prior, cameras: Cameras) -> Condition:
    condition = prompts.conditioner(prior, "a mug", "ugly", None, "a cup")
    step = Step(
        3, 0.3, torch.rand(len(cameras) // prior.views, generator=generator()).repeat_interleave(prior.views)
    )
    source = prior.encode(pictures(prior, len(cameras)).flip(0))
    found = condition(cameras, step)
    return Condition(found.prompts, found.cameras, found.step, source)


LOSSES = guidance.available()


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
@pytest.mark.parametrize("prior", ["deepfloyd", "novel_view", "several views", "multi_view"], indirect=True)
def test_a_loss_gives_a_gradient_for_every_kind_of_prior(loss: Any, prior: Prior) -> None:
    if prior.trainable is None and loss is LOSSES["vsd"]:
        with pytest.raises(ValueError, match=r"LoRA|network"):
            bound(loss, prior)
        return
    batch = 4
    x, noise = (torch.randn(batch, *prior.shape, generator=generator(i)) for i in (1, 2))
    cond, t = conditioned(prior, rings(0.0, batch, generator())), torch.full((batch,), 600)
    given = bound(loss, prior)
    grad = given(prior, x, cond, t, noise)
    assert grad.shape == x.shape
    assert grad.dtype == x.dtype
    assert not grad.requires_grad
    assert grad.isfinite().all()
    assert torch.equal(grad, given(prior, x, cond, t, noise))
    if isinstance(given, Learner):
        assert all(hasattr(given, member) for member in members(Learner))
        before = given.state_dict()
        assert given.learn(prior, x, cond, generator()) > 0
        given.load_state_dict(before)


def test_parts_of_a_condition_are_joined_to_the_same() -> None:
    prior = exact()
    whole = conditioned(prior, turntable(4))
    again = Condition.joined([whole.part(0, 1), whole.part(1, 4)])
    assert whole.prompts.keys() == again.prompts.keys()
    for role, embedding in whole.prompts.items():
        assert all(torch.equal(value, again.prompts[role][name]) for name, value in embedding.items())
    assert whole.cameras is not None and again.cameras is not None
    assert torch.equal(whole.cameras.c2w, again.cameras.c2w)
    assert whole.source_x is not None and again.source_x is not None
    assert torch.equal(whole.source_x, again.source_x)
    assert whole.step.uniform is not None and again.step.uniform is not None
    assert torch.equal(whole.step.uniform, again.step.uniform)


def job_of(
    scene: Scene, prior: Prior, loss: Any, cameras: CameraSampler, *, iterations: int = 2, **settings: Any
) -> Job:
    state = State(scene, optimiser_of(scene), generator())
    given = bound(loss, prior)
    return Job(
        state=state,
        prior=prior,
        guidance=given,
        condition=prompts.conditioner(prior, "a mug"),
        render=scene.render,
        cameras=cameras,
        timesteps=uniform(prior),
        settings=settings_of(iterations, size=Ramp(8), **settings),
    )


@pytest.mark.parametrize("loss", ["sds", "csd", "asd"])
@pytest.mark.parametrize("at_once", [4, 2, 8, None])
def test_a_multi_view_prior_trains_a_scene(loss: str, at_once: int | None) -> None:
    prior, scene = several_views(), SINGLE["spheres"]()
    job = job_of(scene, prior, LOSSES[loss], rings, batch=8, at_once=at_once)
    before = {name: value.clone() for name, value in scene.state_dict().items()}
    shared: list[Tensor] = []

    def on_step(state: State, metrics: dict[str, float], render: Render) -> None:
        assert render.rgb.shape[0] == 8
        shared.append(state.generator.get_state())

    assert views_at_once(job) == (8 if at_once in (8, None) else 4)
    loop.train(job, on_step)
    assert len(prior.calls) == 2 * 8 // views_at_once(job)
    assert job.state.skipped == 0
    assert all(not torch.equal(value, scene.state_dict()[name]) for name, value in before.items())
    # Each object has a timestep of its own.
    times = torch.cat([t[: views_at_once(job)] for t, _ in prior.calls]).view(-1, 4)[:, 0]
    assert len(times) == 4 and len(times.unique()) > 1


def test_a_batch_that_does_not_hold_whole_objects_is_refused() -> None:
    config = compose_config(["prompt=a mug", "render.batch=6"])
    with pytest.raises(ValueError, match=r"render.batch must be a multiple of the 4 views") as caught:
        check_fits(config, several_views())
    assert "\n" not in str(caught.value)
    check_fits(compose_config(["prompt=a mug", "render.batch=8"]), several_views())


def test_a_scene_that_grows_trains_and_resumes(tmp_path: Path) -> None:
    def grow(stop: int, job: Job) -> State:
        return loop.train(job, lambda state, metrics, render: state.step >= stop)

    def job() -> Job:
        scene: Scene = Growing(6, 6)
        return job_of(scene, exact(), LOSSES["sds"], ranges(), iterations=10, batch=2, ema=0.9)

    whole = grow(10, job())
    assert isinstance(whole.scene, Growing)
    image = whole.scene.image
    assert image.shape == (1, 12, 12, 3)
    assert [parameter for group in whole.optimiser.param_groups for parameter in group["params"]] == [image]
    assert whole.optimiser.state[image]["exp_avg"].shape == image.shape
    assert whole.average is not None
    assert [value.shape for value in whole.average] == [image.shape]
    assert not torch.equal(whole.average[0], image)

    save_checkpoint(tmp_path, 4, grow(4, job()).state_dict())
    saved, resumed = load_checkpoint(tmp_path), job()
    assert saved is not None
    resumed.state.load_state_dict(saved)
    again = grow(10, resumed)
    assert isinstance(again.scene, Growing)
    assert torch.equal(again.scene.image, image)
    take(again.scene, whole.average)
    assert torch.equal(again.scene.image, whole.average[0])


def test_a_growing_particle_leaves_the_others_alone() -> None:
    from distill.renderers.particles import Particles

    scenes = [Growing(6, 6, seed=i) for i in range(2)]
    both: Scene = Particles(scenes)
    state = loop.train(job_of(both, exact(), LOSSES["sds"], ranges(), iterations=4, batch=2, ema=0.9))
    assert sum(scene.image.shape[1] for scene in scenes) == 6 + 6 + 4
    held = {id(p) for group in state.optimiser.param_groups for p in group["params"]}
    assert held == {id(scene.image) for scene in scenes}
