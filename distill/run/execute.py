"""From a configuration to an asset."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from distill import loop
from distill.asset import Asset
from distill.cameras import Cameras
from distill.conditions.perp_neg import PerpNegPrior
from distill.conditions.picture import look_at, write_beside
from distill.contracts import Condition, Prior, Render, View
from distill.files.checkpoint import load_checkpoint
from distill.priors.source import find
from distill.run.assemble import Parts, build, make_condition, make_control, open_prior, pick_device
from distill.run.checks import check_prompt
from distill.run.compose import as_overrides, compose_config
from distill.run.fit import fit
from distill.run.folders import claim
from distill.run.journal import Interrupted, Journal, stop_signals
from distill.run.manifest import describe, finish

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
