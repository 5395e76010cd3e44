"""From a configuration to an asset."""

from __future__ import annotations

import copy
import importlib.metadata
import inspect
import json
import logging
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from distill import loop, prompts
from distill.asset import Asset
from distill.budget import fit
from distill.checkpoint import load_checkpoint, sha256, write_atomic
from distill.config import as_overrides, compose_config, schedule, schedules_in
from distill.contracts import Condition, Guidance, Learner, Prior, Render, Renderer, View
from distill.control import DRAWN, controller
from distill.folders import claim, is_finished
from distill.journal import Interrupted, Journal, stop_signals
from distill.novelview.seen import Seen, folder_of_model, look_at, write_beside
from distill.priors.diffusion import DiffusionPrior
from distill.priors.load import load_prior
from distill.priors.perp_neg import Curves, PerpNegPrior
from distill.priors.source import Source, find
from distill.samplers.cameras import Cameras
from distill.samplers.schedules import Ramp, scheduled, scheduled_sampler

log = logging.getLogger(__name__)


def generate(
    prompt: str, *, output_dir: str | Path | None = None, prior: Any = "embedded", **options: Any
) -> Asset:
    """Make a 3D asset from a prompt.

    Args:
        prompt: what to make.
        output_dir: where its files go; by default a new folder under ``outputs``.
        prior: ``embedded``, a folder in the diffusers layout, or a loaded prior.
        **options: as on the command line, e.g. ``iterations=600, guidance="sds", **{"guidance.scale": 10}``.

    Raises:
        ValueError: an option or the prompt is wrong, in one line.
    """
    named = isinstance(prior, (str, Path))
    name = str(prior) if named else getattr(prior, "name", "") or UNNAMED
    overrides = {"prompt": prompt, "prior": name, **options}
    if output_dir is not None:
        overrides["output_dir"] = str(output_dir)
    config = compose_config(as_overrides(overrides))
    if config.max_vram is not None and not named:
        raise ValueError(
            "max_vram= chooses how a prior is loaded, and this one is loaded; give its name, or leave out max_vram= and choose "
            "render.at_once= and render.recompute="
        )
    return run(config, None if named else prior)


#: What a configuration calls a prior that was given as an object without a name.
UNNAMED = "given"


class ExportFailed(RuntimeError):
    """The scene is trained and saved, but no mesh can be made of it."""


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


def check_prompt(config: DictConfig) -> None:
    """Refuse what the embedded prior cannot draw, before anything is loaded."""
    if config.prior == "embedded" and config.prompt:
        from distill.embedded import world

        world.parse(config.prompt)


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
    channels = prior.network.config.in_channels if getattr(prior, "vae", None) is not None else 0
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


def run(config: DictConfig, prior: Prior | None = None) -> Asset:
    """Train, export and describe one asset, or go on with one; ``prior`` saves loading it again.

    Raises:
        ValueError: something in the configuration is wrong, in one line.
        Interrupted: a signal asked the run to stop; a checkpoint holds where it was.
        Diverged: too many steps in a row were not finite.
        ExportFailed: the scene has no surface.
    """
    started = time.perf_counter()
    device = pick_device(config.device)
    if prior is None:
        check_prompt(config)
        if config.prompt:
            source = find(config.prior)
            if config.max_vram:
                fit(config, source, device)
    if config.init and not (Path(config.init).expanduser() / "checkpoints").is_dir():
        raise ValueError(f"init must be the folder of an earlier run, and {config.init} has no checkpoints")
    seen = look_at(config, device) if config.image else None
    if seen and not config.prompt:
        model: Prior = seen.prior
    else:
        model = prior or open_prior(config, device)
    if config.perp_neg.enabled:
        model = PerpNegPrior(model)
    parts = build(config, model, seen)
    condition, tell = make_condition(config, model, parts), make_control(config, model, parts)
    folder = claim(config)
    saved = load_checkpoint(folder / "checkpoints", model.device) if config.resume else None
    if saved:
        parts.state.load_state_dict(saved)
        log.info("resuming %s at step %d", folder, parts.state.step)
    loaded = time.perf_counter()

    train(config, folder, model, parts, condition, tell)
    trained = time.perf_counter()
    manifest: dict[str, Any] = describe(config, model)
    if seen:
        manifest["picture"] = seen.describe()
        write_beside(seen, parts.views[0], folder / "reference.png", config.export.picture_size)
    manifest["skipped_steps"] = parts.state.skipped
    manifest["seconds"] = {"load": loaded - started, "train": trained - loaded}
    if len(parts.scenes) == 1:
        asset = describe_and_export(config, folder, parts.scenes[0], parts.views[0], manifest, model.device)
    else:
        asset = export_particles(config, folder, parts, manifest, model.device)
    log.info("%.0f s in all; results in %s", time.perf_counter() - started, folder)
    return asset


def describe_and_export(
    config: DictConfig, folder: Path, scene: Any, view: View, manifest: dict[str, Any], device: torch.device
) -> Asset:
    """Write one scene's files, its manifest and its report."""
    started = time.perf_counter()
    if config.export.enabled and hasattr(scene, "query"):
        manifest["export"] = export(config, folder, scene, view, device)
    manifest["seconds"]["export"] = time.perf_counter() - started
    finish(folder, manifest)
    return Asset(config.prompt, folder, scene, view, manifest)


def export_particles(
    config: DictConfig, folder: Path, parts: Parts, manifest: dict[str, Any], device: torch.device
) -> Asset:
    """Write every particle's files to a folder of its own, ``particle-1`` and so on, then the run's report.

    Raises:
        ExportFailed: scenes have no surface; the others' files are written all the same.
    """
    particles, failures = [], []
    for number, (scene, view) in enumerate(zip(parts.scenes, parts.views, strict=True), start=1):
        own = folder / f"particle-{number}"
        own.mkdir(exist_ok=True)
        mine = {**manifest, "particle": number, "seconds": dict(manifest["seconds"])}
        try:
            particles.append(describe_and_export(config, own, scene, view, mine, device))
        except ExportFailed as error:
            failures.append(f"particle {number}: {error}")
    if failures:
        raise ExportFailed("; ".join(failures))
    manifest["particles"] = [asset.folder.name for asset in particles]
    manifest["seconds"]["export"] = sum(asset.manifest["seconds"]["export"] for asset in particles)
    finish(folder, manifest)
    return Asset(config.prompt, folder, parts.scenes[0], parts.views[0], manifest, tuple(particles))


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


def train(
    config: DictConfig,
    folder: Path,
    prior: Prior,
    parts: Parts,
    condition: Callable[[Cameras], Condition],
    tell: Callable[[Condition, Render], Condition],
) -> None:
    """Run the loop with its journal; saves a last checkpoint."""
    state = parts.state
    with stop_signals() as stop:
        journal = Journal(folder, config.log, config.iterations, state.step, parts.views, stop)
        try:
            loop.train(
                state,
                prior,
                parts.guidance,
                condition,
                parts.render,
                parts.cameras,
                parts.timesteps,
                parts.settings,
                journal,
                smaller=parts.smaller,
                tell=tell,
            )
            if state.step == config.iterations:
                journal.checkpoint(state)
        except loop.OutOfMemory:
            journal.checkpoint(state)
            raise
        finally:
            journal.close()
    if hasattr(parts.guidance, "save"):
        parts.guidance.save(folder)
    if state.step < config.iterations:
        raise Interrupted(
            f"stopped at step {state.step} of {config.iterations}; go on with resume=true; results so far in {folder}"
        )
    if state.average is not None:
        with torch.no_grad():
            for parameter, average in zip(state.parameters(), state.average, strict=True):
                parameter.copy_(average)


def export(config: DictConfig, folder: Path, scene: Any, view: View, device: torch.device) -> dict[str, Any]:
    """Write the meshes and pictures; see ``distill.export.asset.export_asset``."""
    from distill.export.asset import export_asset

    options = {key: value for key, value in config.export.items() if key != "enabled"}
    try:
        return export_asset(scene.query, view, folder, device=device, **options)
    except ValueError as error:
        raise ExportFailed(f"{error} (the trained scene is kept among the checkpoints)") from error


def describe(config: DictConfig, prior: Prior) -> dict[str, Any]:
    """What made an asset: enough to make it again."""
    packages = (
        "distill3d",
        "torch",
        "diffusers",
        "transformers",
        "nerfacc",
        "warp-lang",
        "trimesh",
        "xatlas",
    )
    source: Source | None = getattr(prior, "source", None)
    if config.image and not config.prompt:
        source = Source(folder_of_model(config.novel_view), config.novel_view)
    device = (
        torch.cuda.get_device_name(prior.device)
        if prior.device.type == "cuda"
        else platform.processor() or platform.machine()
    )
    return {
        "prompt": config.prompt,
        "seed": config.seed,
        "iterations": config.iterations,
        "guidance": str(config.guidance._target_).rpartition(".")[2].lower(),
        "prior": describe_source(source) if source else {"name": config.prior, "sha256": {}},
        "loras": [lora.describe() for lora in getattr(prior, "loras", ())],
        "controlnet": describe_control(config, prior),
        "device": f"{prior.device.type} ({device})",
        "versions": {
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in packages},
        },
    }


def describe_source(source: Source) -> dict[str, Any]:
    """Where a model is from: its commit on the hub, or the sums of its files."""
    said = {name: value for name, value in vars(source).items() if value and name != "folder"}
    root, files = source.folder, () if source.revision else source.folder.rglob("*.safetensors")
    return {**said, "sha256": {str(path.relative_to(root)): sha256(path) for path in sorted(files)}}


def describe_control(config: DictConfig, prior: Any) -> dict[str, Any] | None:
    """The prior's ControlNet and what it was shown, or None where it has none."""
    control = getattr(prior, "control", None)
    if control is None:
        return None
    shown = config.prior_options.control
    return {**describe_source(control.source), "scale": control.scale, "shown": shown}


def finish(folder: Path, manifest: dict[str, Any]) -> None:
    """Write the manifest, then the report, which marks the run as finished."""
    from distill.export.report import write_report

    made = [*folder.iterdir(), *folder.glob("term-*/*")]
    files = [p for p in sorted(made) if p.is_file() and p.name not in ("manifest.json", "report.html")]
    manifest["files"] = {
        str(p.relative_to(folder)): {"bytes": p.stat().st_size, "sha256": sha256(p)} for p in files
    }
    write_atomic(folder / "manifest.json", json.dumps(manifest, indent=2, ensure_ascii=False) + "\n")
    write_report(folder)


def run_prompts(config: DictConfig) -> dict[str, str]:
    """Make one asset per line of ``config.prompts``, loading the prior once.

    Finished ones are skipped, unfinished ones resumed, and a failure does not stop the rest.

    Returns:
        Prompt to ``finished``, ``skipped``, or the error.

    Raises:
        ValueError: the file cannot be read or has no prompts.
    """
    path = Path(config.prompts).expanduser()
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(
            f"prompts must be a text file with one prompt per line, but {path} cannot be read: {error}"
        ) from error
    wanted = list(dict.fromkeys(line for line in lines if line and not line.startswith("#")))
    if not wanted:
        raise ValueError(f"prompts must be a text file with one prompt per line, but {path} has none")
    root = Path(config.output_dir or "outputs").expanduser()
    device = pick_device(config.device)
    if config.max_vram:
        fit(config, find(config.prior), device)
    prior = open_prior(config, device)
    return {prompt: _run_one(config, prompt, root, prior) for prompt in wanted}


def _run_one(config: DictConfig, prompt: str, root: Path, prior: Prior) -> str:
    changes: Mapping[str, Any] = {
        "prompt": prompt.replace("${", r"\${"),
        "prompts": None,
        "output_dir": None,
        "resume": True,
    }
    one = OmegaConf.merge(config, OmegaConf.create(dict(changes)))
    assert isinstance(one, DictConfig)
    try:
        check_prompt(one)
        folder = claim(one, root)
        if is_finished(folder):
            log.info("%s: finished before, in %s", prompt, folder)
            return "skipped"
        one.output_dir = str(folder)
        run(one, prior)
    except (ValueError, OSError, RuntimeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        log.error("%s: %s", prompt, reason)
        return reason
    return "finished"
