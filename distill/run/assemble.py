"""The one place where a run's parts meet."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from distill import loop
from distill.cameras import Cameras
from distill.conditions import prompts
from distill.conditions.control import DRAWN, controller
from distill.conditions.perp_neg import Curves
from distill.conditions.picture import Seen
from distill.contracts import Condition, Guidance, Learner, Prior, Render, Renderer, View
from distill.files.checkpoint import load_checkpoint
from distill.options import schedule, schedules_in
from distill.priors.diffusion import DiffusionPrior
from distill.priors.load import load_prior
from distill.samplers.schedules import Ramp, scheduled, scheduled_sampler

#: Options of a scene that say how it is looked at, not what it is.
LOOKS = frozenset(
    {"background", "march_steps", "occupancy_resolution", "occupancy_threshold", "occupancy_every", "backend"}
)


def pick_device(name: str) -> torch.device:
    """``auto`` is CUDA where there is one.

    Raises:
        ValueError: the device is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(
            f"device={name} needs an NVIDIA driver and a CUDA build of torch, and none is usable here; use device=cpu or device=auto"
        )
    if name == "mps" and not torch.backends.mps.is_available():
        raise ValueError(
            "device=mps needs a Mac with Apple silicon, and this is none; use device=cpu or device=auto"
        )
    return torch.device(name)


def open_prior(config: DictConfig, device: torch.device) -> DiffusionPrior:
    """Load the prior that a configuration names, with its ``prior_options``.

    Raises:
        ValueError: there is no such prior, or it does not fit the options.
    """
    options = dict(config.prior_options)
    name, _ = options.pop("dtype"), options.pop("control")
    return load_prior(config.prior, device, None if name == "auto" else getattr(torch, name), **options)


@dataclass(frozen=True)
class Parts:
    """A run's parts, made from its configuration: as many scenes, each with its view, as there are particles.

    ``smaller`` renders with less memory, for when it runs out; ``source`` takes pictures of what an edit starts from;
    ``seen`` is the input picture, if there is one.
    """

    scenes: Sequence[Any]
    views: Sequence[View]
    render: Renderer
    smaller: Renderer
    state: loop.State
    settings: loop.Settings
    guidance: Any
    timesteps: Any
    cameras: Any
    source: View | None = None
    seen: Seen | None = None


def build(config: DictConfig, prior: Prior, seen: Seen | None = None) -> Parts:
    """Instantiate the parts a configuration names."""
    from distill.renderers.image import ImageScene, render_image
    from distill.renderers.particles import Particles
    from distill.renderers.volume import render

    generator = torch.Generator().manual_seed(config.seed)
    make_scene = instantiate(config.scene, _convert_="all")
    scenes = [make_scene(seed=generator).to(prior.device) for _ in range(config.particles)]
    editing = bool(config.init and config.source_prompt)
    for each in scenes if config.init else []:
        start_from(Path(config.init).expanduser(), each, config)
        if editing and getattr(each, "background", "white") in ("grey", "random"):
            # What is edited and its source must differ in the object alone.
            each.background = "white"

    def ramp(name: str) -> Ramp:
        made = schedule(name, OmegaConf.select(config, name), config.iterations)
        return made if isinstance(made, Ramp) else Ramp(made)

    weights = {name: ramp(f"penalties.{name}") for name in config.penalties}
    penalties = {name: weight for name, weight in weights.items() if weight.start or weight.end}
    flat = isinstance(scenes[0], ImageScene)
    take: Any = render_image if flat else render
    if config.render.latent_until:
        check_latent(prior, flat)
    chunk = config.render.chunk_rays
    training: Renderer = render_image
    smaller: Renderer = render_image
    if not flat:
        training = make_renderer(config, penalties, seen, chunk_rays=chunk, recompute=config.render.recompute)
        smaller = make_renderer(config, penalties, seen, chunk_rays=-(-chunk // 4), recompute=True)
    scene = scenes[0] if len(scenes) == 1 else Particles(scenes).to(prior.device)

    @torch.no_grad()
    def view(of: Any, cameras: Any, height: int, width: int) -> Any:
        return take(of, cameras.to(prior.device), height, width)

    source = partial(view, copy.deepcopy(scenes[0])) if editing else None
    optimiser = config.optimiser
    rates = {name: optimiser[name] for name in ("encoding", "mlp", "background", "image")}
    guidance = make_guidance(config, prior, generator)
    state = loop.State(
        scene,
        loop.make_optimiser(scene, rates, tuple(optimiser.betas), optimiser.eps),
        generator,
        learner=guidance if isinstance(guidance, Learner) else None,
    )
    settings = loop.Settings(
        iterations=config.iterations,
        batch=config.render.batch,
        at_once=config.render.at_once,
        latent_until=config.render.latent_until,
        normals=config.prior_options.control == "normal",
        size=ramp("render.size"),
        penalties=penalties,
        clip_norm=optimiser.clip_norm,
        final_lr=optimiser.final_lr,
        ema=optimiser.ema,
        max_bad_steps=optimiser.max_bad_steps,
    )
    return Parts(
        scenes,
        [partial(view, each) for each in scenes],
        training,
        smaller,
        state,
        settings,
        guidance,
        scheduled_sampler(
            instantiate(config.timesteps, _convert_="all"),
            prior=prior,
            **schedules_in(config, "timesteps"),
        ),
        scheduled_sampler(instantiate(config.cameras, _convert_="all"), **schedules_in(config, "cameras")),
        source,
        seen,
    )


def make_renderer(
    config: DictConfig, penalties: Mapping[str, Ramp], seen: Seen | None, **options: Any
) -> Renderer:
    """The renderer of a training that a configuration asks for: in windows, beside a picture's view, of one particle."""
    from distill.renderers import reference
    from distill.renderers.particles import render_drawn
    from distill.renderers.patch import patched
    from distill.renderers.volume import render

    near = [name for name in penalties if name in reference.PENALTIES]
    own = tuple(name for name in penalties if name not in near)
    made: Renderer = partial(render, shading=config.render.shading, penalties=own, **options)
    if config.render.patch is not None:
        made = patched(made, config.render.patch, config.render.coarse)
    if seen is not None and near:
        look = partial(render, normals="reference_normal" in near, **options)
        made = reference.beside(made, look, seen.reference, near)
    return render_drawn(made) if config.particles > 1 else made


def check_latent(prior: Any, flat: bool) -> None:
    """Refuse what cannot be shown normals and opacity as a latent.

    Raises:
        ValueError: the prior's latent does not have four channels, or the scene has no normals.
    """
    channels = prior.shape[0] if prior.latent else 0
    if flat or channels != 4:
        found = "a picture, which has no normals" if flat else f"{channels}" if channels else "pixels"
        raise ValueError(
            "render.latent_until needs a scene that fills space and a prior whose latent has 4 channels, such as Stable "
            f"Diffusion's, got {found}; leave it out"
        )


def start_from(folder: Path, scene: Any, config: DictConfig) -> None:
    """Give a scene the parameters of an earlier run's.

    Raises:
        ValueError: there is no such run, its scene has other settings, or it has several scenes.
    """
    path = folder / "config.yaml"
    earlier: Any = OmegaConf.load(path) if path.exists() else None
    if earlier is not None:
        if earlier.get("particles", 1) > 1:
            raise ValueError(
                f"init={folder} has {earlier.particles} scenes; only a run with particles=1 can be gone on from"
            )
        for name, value in config.scene.items():
            if name not in LOOKS and earlier.scene.get(name) != value:
                raise ValueError(
                    f"init={folder} holds a scene with {name} {earlier.scene.get(name)}, not {value}; give this run "
                    "the same scene= and scene.* options"
                )
    saved = load_checkpoint(folder / "checkpoints", next(scene.parameters()).device)
    if saved is None:
        raise ValueError(
            f"init must be the folder of an earlier run, and the checkpoints of {folder} are empty"
        )
    try:
        scene.load_state_dict(saved["scene"])
    except RuntimeError as error:
        raise ValueError(
            f"init={folder} holds a scene of other settings; give this run the same scene= and scene.* options"
        ) from error
    if saved["average"] is not None:
        parameters = [p for group in scene.parameter_groups().values() for p in group]
        with torch.no_grad():
            for parameter, average in zip(parameters, saved["average"], strict=True):
                parameter.copy_(average)


def make_guidance(config: DictConfig, prior: Prior, generator: torch.Generator) -> Guidance:
    """Bind a loss's options; one that takes a generator is made for the prior first."""
    loss, moving = instantiate(config.guidance, _convert_="all"), schedules_in(config, "guidance")
    if config.guidance.get("t_min", 0.0) is None:
        moving["t_min"] = lowest_timestep(config)
    if "generator" in inspect.signature(loss.func).parameters:
        made: Guidance = loss(prior, generator, **moving)
        return made
    return scheduled(loss, **moving)


def lowest_timestep(config: DictConfig) -> Any:
    """The lowest timestep that a configuration's sampler draws, fraction of all: a number or a schedule."""
    options = config.timesteps
    start = options.get("t_min", 0.02)
    if "t_min_end" not in options:
        return schedule("timesteps.t_min", start, config.iterations)
    return Ramp(start, options.t_min_end, options.from_fraction, options.to_fraction)


def make_condition(config: DictConfig, prior: Prior, parts: Parts) -> Callable[[Cameras], Condition]:
    """Embed a configuration's prompts, with view words where the scene has sides; an edit sees its source too."""
    seen = parts.seen
    if seen and not config.prompt:
        told = seen.prior
        return lambda cameras: replace(told.condition(cameras), seen=told)
    flat = not hasattr(parts.scenes[0], "query")
    style = "none" if flat and config.view_words == "auto" else config.view_words
    views = config.views
    words = prompts.view_words(
        style,
        config.prior,
        front_deg=views.front_deg,
        overhead_deg=views.overhead_deg,
        own=prompts.own_prompts(views),
    )
    condition = prompts.conditioner(
        prior,
        config.prompt,
        config.negative_prompt,
        words,
        config.source_prompt,
        unconditional=config.unconditional,
        away=curves(config) if config.perp_neg.enabled else None,
    )
    if seen:
        return lambda cameras: replace(condition(cameras), seen=seen.prior)
    source = parts.source
    if source is None:
        return condition

    def with_source(cameras: Cameras) -> Condition:
        seen = source(cameras, prior.image_size, prior.image_size).rgb.movedim(-1, 1)
        return replace(condition(cameras), source_x=prior.encode(seen))

    return with_source


def make_control(config: DictConfig, prior: Any, parts: Parts) -> Callable[[Condition, Render], Condition]:
    """What the prior is told of each step's pictures: for its ControlNet, or nothing where it has none.

    Raises:
        ValueError: there is a ControlNet and nothing to show it, or the reverse.
    """
    control = config.prior_options.control
    if (getattr(prior, "control", None) is None) != (not control):
        raise ValueError(
            "prior_options.controlnet and prior_options.control belong together: the one names the ControlNet, the other "
            "what it is shown, depth, normal or mask of the scene, or a picture"
        )
    if control in DRAWN and not hasattr(parts.scenes[0], "query"):
        raise ValueError(
            f"prior_options.control={control} needs a scene that fills space, and this one is flat; give a picture"
        )
    if not control:
        return lambda cond, picture: cond
    return controller(control, prior.image_size, prior.device, prior.show)


def curves(config: DictConfig) -> Curves:
    """Perp-Neg's weights.

    Raises:
        ValueError: a curve does not have three numbers.
    """
    options = {name: tuple(value) for name, value in config.perp_neg.items() if name != "enabled"}
    for name, value in options.items():
        if len(value) != 3:
            raise ValueError(
                f"perp_neg.{name} must be three numbers a, b, c of a exp(-b r) + c, got {list(value)}"
            )
    return Curves(**options)
