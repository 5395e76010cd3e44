"""Assemble the parts of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, cast

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from distill.cameras import Cameras
from distill.conditions import prompt_library, prompts
from distill.conditions.image_prompt import show
from distill.conditions.picture import Picture, look_at
from distill.conditions.prompt_library import Prompts
from distill.conditions.start import asked_later, views_first
from distill.contracts import (
    CameraSampler,
    Generator,
    Guidance,
    Learner,
    Prior,
    Render,
    Renderer,
    Scene,
    TimestepSampler,
    View,
)
from distill.devices import pick_device
from distill.guidance import is_made_for_prior, set_up
from distill.job import Job, Settings, State, make_optimiser
from distill.options import followed, ramp, schedules_in, value_over_run
from distill.parts.made import check_made, check_own_prior
from distill.priors.diffusion import DiffusionPrior
from distill.priors.multi_view.camera import check_groups
from distill.ranks import ALONE, Ranks
from distill.renderers import reference
from distill.renderers.particles import Particles
from distill.renderers.patch import patched
from distill.run.assembly.conditioning import embed_library, make_condition, recognised, texts_of
from distill.run.assembly.initial import begin, begin_generated, check_init
from distill.run.assembly.prior import check_fits, check_prior, open_prior, shows_picture
from distill.run.assembly.scenes import background_of, look, scene_maker
from distill.run.config.plugins import code_of
from distill.run.several.generator import amortised, check_generator, library_of
from distill.samplers.schedules import Ramp, scheduled, scheduled_sampler
from distill.samplers.shading import by_turns
from distill.samplers.timesteps import check_drawn


def assemble(config: DictConfig, prior: Prior | None = None, ranks: Ranks = ALONE) -> Job:
    """Make every part that a configuration names, ready for ``loop.train``.

    Args:
        config: of ``compose_config``; ``max_vram`` changes its memory options in place.
        prior: a loaded prior, which saves loading the one that the configuration names.
        ranks: the processes that share each step.

    Raises:
        ValueError: something in the configuration is wrong, in one line.
    """
    device = pick_device(config.device)
    check_generator(config)
    if prior is None:
        check_prior(config, device)
    check_init(config)
    library = library_of(config) if amortised(config) else None
    embeddings: Tensor | None = None
    generator = torch.Generator().manual_seed(config.seed)
    if library:
        prior = prior or open_prior(config, device)
        embeddings = embed_library(config, prior, library)
    # Before the prior is loaded, so that what they refuse is said at once.
    scenes, conversion = make_scenes(config, generator, prior.device if prior else device, embeddings)
    cameras: CameraSampler = sampler_of(config, "cameras")
    told = shows_picture(config, prior)
    picture = look_at(config, device) if config.image and not told else None
    if picture and not config.prompt:
        prior = picture.prior
    elif prior is None:
        prior = open_prior(config, device)
    check_fits(config, prior, ranks.size)
    if config.prompt and not library:
        check_own_prior(prior, texts_of(config, prior)[0], config.render.batch)
    timesteps: TimestepSampler = sampler_of(config, "timesteps", prior=prior)
    check_drawing(cameras, timesteps, config.render.batch, prior)
    shown = show(config, cast(DiffusionPrior, prior)) if told else None
    if config.generator:
        begin_generated(scenes[0], config, prior)
    picture = recognised(config, picture, prior) if picture else None
    prompt = (picture.wording if picture else "") or config.prompt
    condition = make_condition(config, prior, scenes[0], prompt, library, shown)

    guidance = make_guidance(config, prior, generator, {"novel_view": picture.prior} if picture else {})
    particles = Particles(scenes).to(prior.device) if len(scenes) > 1 else None
    scene: Scene = particles or scenes[0]
    learner = guidance if isinstance(guidance, Learner) else None
    if learner:
        check_learner(prior, picture, ranks)
    settings = make_settings(config)
    if picture and picture.drawn:
        cameras, guidance = started(picture.drawn.cameras, config.reference.start_until, cameras, guidance)
    render = partial(make_renderer, config, scene, settings.penalties, picture, prior.views)
    return Job(
        state=State(scene, optimiser_of(config, scene), generator, learner=learner, code=code_of(config)),
        prior=prior,
        guidance=guidance,
        condition=condition,
        render=render(),
        frugal=render(frugal=True) if ranks.size == 1 else None,  # all processes divide a step alike
        cameras=cameras,
        timesteps=timesteps,
        settings=settings,
        scenes=scenes,
        views=looks(prior, scenes, library),
        picture=picture or shown,
        drawn=lambda: particles.drawn if particles else 0,
        ranks=ranks,
        conversion=conversion,
    )


def optimiser_of(config: DictConfig, scene: Scene) -> torch.optim.Optimizer:
    """Make the optimiser that a configuration names, for a scene's parameters."""
    said = config.optimiser
    return make_optimiser(scene, tuple(said.betas), said.eps, said.weight_decay)


def started(
    views: Cameras, until: float, cameras: CameraSampler, guidance: Guidance
) -> tuple[CameraSampler, Guidance]:
    """Cameras and loss of a run that is first fitted to drawn views, up to a fraction of it."""
    return views_first(cameras, views, until), asked_later(guidance, until)


def sampler_of(config: DictConfig, part: str, **bound: Any) -> Any:
    """Make the sampler that a configuration names for ``cameras`` or ``timesteps``, with its schedules and what is bound to it."""
    return scheduled_sampler(
        instantiate(config[part], _convert_="all"), **bound, **schedules_in(config, part)
    )


def check_learner(prior: Prior, picture: Picture | None, ranks: Ranks) -> None:
    """Refuse a guidance that learns where it would learn apart from others, or from views that are no groups.

    Raises:
        ValueError: as said.
    """
    if ranks.size > 1:
        raise ValueError(LEARNS)
    if picture and picture.drawn and prior.views > 1:
        raise ValueError(
            f"reference.start=samples shows this guidance views that are no groups, and it learns from the {prior.views} that {prior.name} "
            "takes together; add reference.start=none, or choose a guidance that learns nothing"
        )


def check_drawing(cameras: CameraSampler, timesteps: TimestepSampler, batch: int, prior: Prior) -> None:
    """Draw cameras and timesteps once, so that what is wrong is said before training, and look whether the cameras suit a multi-view prior.

    Raises:
        ValueError: they refuse the batch, are not what they must be, or do not stand around an object as the prior wants them.
    """
    drawn = cameras(0.0, batch, torch.Generator().manual_seed(0))
    if not isinstance(drawn, Cameras) or len(drawn) != batch:
        got = f"{len(drawn)}" if isinstance(drawn, Cameras) else type(drawn).__name__
        raise ValueError(f"a camera sampler must draw Cameras, {batch} for this batch, got {got}")
    if prior.views > 1:
        check_groups(drawn, prior.views, prior.name)
    objects = max(batch // prior.views, 1)
    check_drawn(prior, timesteps(0.0, objects, torch.Generator().manual_seed(0)), objects)


#: A loss with parameters of its own has seen other pictures on each process.
LEARNS = (
    "this guidance trains a copy of the prior on the pictures of each step, of which each of several processes has only some; "
    "choose a guidance= that learns nothing, such as csd or asd, or start one process"
)


def make_scenes(
    config: DictConfig, generator: torch.Generator, device: torch.device, embeddings: Tensor | None = None
) -> tuple[list[Scene], dict[str, float]]:
    """Make as many scenes as there are particles, from an earlier run's where ``init`` names one; or one for a library.

    Returns:
        The scenes, and of a second stage, how its pictures differ from its field's; else nothing.
    """
    make = scene_maker(config, **background_of(config))
    told: dict[str, Any] = {} if embeddings is None else {"embeddings": embeddings}
    scenes: list[Scene] = [
        check_made(make(seed=generator, **told)).to(device) for _ in range(config.particles)
    ]
    conversion = dict[str, float]()
    for scene in scenes:
        if config.init:
            conversion |= begin(config, scene, device)
        elif config.mesh.init_texture:
            textured: Any = scene  # of a scene that textures a mesh
            textured.begin_with_colours(generator)
    return scenes, conversion


def make_guidance(
    config: DictConfig, prior: Prior, generator: torch.Generator, priors: Mapping[str, Prior]
) -> Guidance:
    """Bind a loss's options; a loss that is made for its prior gets it first, and the run's other priors by name."""
    loss, moving = instantiate(config.guidance, _convert_="all"), schedules_in(config, "guidance")
    for name, group in followed(loss.func).items():
        if config.guidance[name] is None and name in config[group]:
            moving[name] = value_over_run(config, group, name)
    if is_made_for_prior(loss.func):
        return set_up(loss, prior, generator, priors, **moving)
    return scheduled(loss, **moving)


def make_settings(config: DictConfig) -> Settings:
    """Read the loop's settings."""

    def of(name: str) -> Ramp:
        return ramp(name, OmegaConf.select(config, name), config.iterations)

    weights = {name: of(f"penalties.{name}") for name in config.penalties}
    optimiser, shares = config.optimiser, {name: of(f"render.turns.{name}") for name in config.render.turns}
    turns = {name: share for name, share in shares.items() if share.nonzero}
    return Settings(
        iterations=config.iterations,
        batch=config.render.batch,
        at_once=config.render.at_once,
        accumulate=optimiser.accumulate or 1,
        latent_until=config.render.latent_until,
        normals=config.prior_options.control == "normal",
        size=of("render.size"),
        guidance_weight=of("guidance_weight"),
        summed=optimiser.reduction == "sum",
        penalties={name: weight for name, weight in weights.items() if weight.nonzero},
        shading=by_turns(turns) if turns else None,
        clip_norm=optimiser.clip_norm,
        final_lr=optimiser.final_lr,
        ema=optimiser.ema,
        max_bad_steps=optimiser.max_bad_steps,
    )


def looks(prior: Prior, scenes: Sequence[Scene], library: Prompts | None) -> list[View]:
    """What renders each scene, or some of a library's prompts as the generator has them at that moment."""
    if not library:
        return [look(each, prior.device) for each in scenes]
    shown = [prompts.asked(prior, text) for text in library.previewed()]

    def of(embedding: Tensor) -> View:
        def view(cameras: Cameras, height: int, width: int) -> Render:
            made = cast(Generator, scenes[0]).scene_of(embedding)
            return look(made, prior.device)(cameras, height, width)

        return view

    return [of(embedding) for embedding in prompt_library.embed(prior, shown)]


def make_renderer(
    config: DictConfig,
    scene: Scene,
    penalties: Mapping[str, Ramp],
    picture: Picture | None,
    together: int,
    *,
    frugal: bool = False,
) -> Renderer:
    """Return what renders the scene for training: in windows, with the distances to known views as further penalties.

    ``together`` views of an object have one background.
    """
    options: dict[str, Any] = {}
    if "shading" in scene.features:
        options["shading"] = config.render.shading
        if config.render.soft_light:
            options["soft_light"] = True
    if "chunks" in scene.features:
        chunk = config.render.chunk_rays
        options["chunk_rays"] = -(-chunk // 4) if frugal else chunk
        options["recompute"] = frugal or config.render.recompute
    near = [name for name in penalties if name in reference.PENALTIES]
    first = [name for name in penalties if name in reference.START]
    own = tuple(name for name in penalties if name not in (*near, *first))
    shared: dict[str, Any] = {"together": together} if "together" in scene.features else {}
    render: Renderer = partial(scene.render, penalties=own, **shared, **options)
    if config.render.patch is not None:
        render = patched(render, config.render.patch, config.render.coarse)
    if picture is not None and picture.drawn and first:
        render = reference.compared(render, picture.drawn, first)
    if picture is not None and near:
        plain = {name: value for name, value in options.items() if name not in ("shading", "soft_light")}
        beside = partial(scene.render, **plain)
        shading = config.render.shading if "shading" in scene.features else reference.ALBEDO
        render = reference.beside(render, beside, picture.reference, near, shading)
    return render
