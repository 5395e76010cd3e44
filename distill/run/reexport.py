"""The meshes of a finished run once more, in other formats, places or sizes; nothing is trained, and no prior is loaded."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf

from distill.contracts import Scene
from distill.export.files import names_of
from distill.files.checkpoint import load_checkpoint
from distill.files.lock import hold
from distill.files.paths import user_path
from distill.job import take
from distill.renderers.particles import Particles
from distill.run.assemble import look, pick_device
from distill.run.checks import check_scene
from distill.run.compose import as_overrides, compose_config
from distill.run.failures import ExportFailed, noted
from distill.run.manifest import finish
from distill.run.scenes import scene_maker
from distill.run.schema import Config, Export
from distill.run.stages import plan

log = logging.getLogger(__name__)


def export_anew(run: str, words: Sequence[str]) -> list[Path]:
    """Export the meshes of a finished run with other options, beside its files, and say so in its manifest and report.

    Args:
        run: its folder.
        words: options of ``export`` that are to be other than the run's own, and ``device=``.

    Returns:
        The files.

    Raises:
        ValueError: it is no finished run with a mesh, an option is wrong, or a file of that name is there; nothing is written.
        ExportFailed: the scene has no surface.
    """
    if wrong := [word for word in words if not word.startswith(("export.", "device="))]:
        raise ValueError(
            f"distill export RUN takes options of export, such as export.formats=usdz, and device=, got {wrong[0]!r}; what else a "
            "run is made with is in its folder"
        )
    folder = user_path(run)
    config = _config(folder, words)
    with hold(folder):
        scenes, device = _scenes(folder, config)
        own = [folder / f"particle-{i + 1}" for i in range(len(scenes))] if len(scenes) > 1 else [folder]
        _check_new(own, config)
        made = [
            path
            for into, scene in zip(own, scenes, strict=True)
            for path in _write(into, config, scene, device, words)
        ]
    return made


def _config(folder: Path, words: Sequence[str]) -> DictConfig:
    """A run's own configuration, with other options of its export.

    Raises:
        ValueError: there is none that can be read, it makes no mesh, or an option is wrong.
    """
    path = folder / "config.yaml"
    try:
        stored: Any = OmegaConf.load(path)
        before = {name: value for name, value in dict(stored.get("export", {})).items() if name in EXPORT}
        config = OmegaConf.merge(
            OmegaConf.structured(Config), {name: stored[name] for name in OPTIONS if name in stored}
        )
        assert isinstance(config, DictConfig)
        config = plan(config, folder)[-1]
        features = get_object(config.scene._target_).features
    except Exception as error:  # of what is not there, is no YAML, or was made with a scene that is not there
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"distill export takes the folder of a finished run, and {path} cannot be read ({first})"
        ) from error
    if not features & {"volume", "mesh"} or "library" in features:
        raise ValueError(f"{folder} is of a scene without a mesh; distill export makes meshes alone")
    plain: Any = OmegaConf.to_container(OmegaConf.create(before), resolve=True)
    given = {f"export.{name}": value for name, value in plain.items() if value is not None}
    example = ["prompt=example", *(["mesh.file=x"] if "mesh" in features else [])]
    asked = compose_config([*as_overrides(given), *words, *example])
    config.export, config.device = asked.export, asked.device
    values: Any = OmegaConf.to_container(config, resolve=True)
    check_scene(values, get_object(config.scene._target_))
    return config


def _scenes(folder: Path, config: DictConfig) -> tuple[list[Scene], torch.device]:
    """The trained scenes of a run, from its last checkpoint, and where they are.

    Raises:
        ValueError: there is no checkpoint of the last step.
    """
    device = pick_device(config.device)
    saved = load_checkpoint(folder / "checkpoints", device)
    if saved is None:
        several = f"; name one of its seeds, such as {folder}/seed-{config.seed}" if config.seeds > 1 else ""
        raise ValueError(
            f"distill export takes the folder of a finished run, and {folder} has no checkpoints{several}"
        )
    if saved["step"] < config.iterations:
        raise ValueError(
            f"{folder} is at step {saved['step']} of {config.iterations}; finish it with resume=true, which exports it, too"
        )
    make, generator = scene_maker(config), torch.Generator().manual_seed(config.seed)
    scenes: list[Scene] = [make(seed=generator).to(device) for _ in range(config.particles)]
    whole: Scene = scenes[0] if len(scenes) == 1 else Particles(scenes).to(device)
    whole.load_state_dict(saved["scene"])
    if saved["average"] is not None:
        with torch.no_grad():
            take(whole, saved["average"])
    return scenes, device


def _check_new(folders: Sequence[Path], config: DictConfig) -> None:
    """Refuse to replace what is there.

    Raises:
        ValueError: a file would be replaced.
    """
    options = {**config.export, "formats": ["glb"]} if config.mesh.file else config.export
    there = [folder / name for folder in folders for name in names_of(options) if (folder / name).exists()]
    if there:
        raise ValueError(
            f"{there[0]} is there already, and distill export replaces nothing; choose another export.name=, or export.formats= "
            "that are not there"
        )


def _write(
    folder: Path, config: DictConfig, scene: Scene, device: torch.device, words: Sequence[str]
) -> list[Path]:
    """Write a scene's meshes, and note them in the manifest."""
    started = time.perf_counter()
    figures: dict[str, Any] = {}
    try:
        for write in scene.assets().values():
            figures |= write(folder, look(scene, device), config.export)
    except ValueError as error:
        raise ExportFailed(str(error)) from error
    figures["seconds"] = round(time.perf_counter() - started, 3)
    before: Mapping[str, Any] = noted(folder)
    manifest = {name: value for name, value in before.items() if name not in ("state", "why")}
    exports = [*manifest.get("exports", []), {"options": list(words), **figures}]
    finish(folder, {**manifest, "exports": exports})
    return [folder / name for name in figures["meshes"]]


#: Names of a configuration's options, and of those of its export.
OPTIONS, EXPORT = ({item.name for item in fields(schema)} for schema in (Config, Export))
