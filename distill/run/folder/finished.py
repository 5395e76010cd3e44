"""What the folder of a finished run holds: its configuration and its trained scenes."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from distill.asset import Asset
from distill.contracts import Scene
from distill.devices import pick_device
from distill.files.checkpoint import load_checkpoint
from distill.files.errors import first_line
from distill.files.paths import user_path
from distill.job import take
from distill.renderers.particles import Particles
from distill.run.assembly.scenes import look, scene_maker
from distill.run.config.plugins import features_of
from distill.run.config.schema import Config, Export
from distill.run.folder.failures import noted
from distill.run.folder.settings import NAME, Unreadable, read
from distill.run.several.stages import plan
from distill.wording import counted

#: Names of a configuration's options, and of those of its export.
OPTIONS, EXPORT = ({item.name for item in fields(each)} for each in (Config, Export))


def load(folder: str | Path, *, device: torch.device | str = "auto") -> Asset:
    """Load the asset of a finished run from its folder, as ``generate`` returned it.

    Only the scene is read, from the last checkpoint: no prior is loaded, and nothing is written. The asset renders views, has a mesh
    and saves files; see ``Asset``.

    Args:
        folder: of the run, with its ``config.yaml`` and ``checkpoints``.
        device: where the scene is to be; ``auto`` is CUDA if available.

    Raises:
        ValueError: the folder is not that of a finished run, its scene is a generator, its mesh is missing, or the device is not
            available.
    """
    taker, path = "distill.load", user_path(folder)
    _, config = stored_config(path, taker)
    if "library" in features_of(config):
        raise ValueError(
            f"{path} is of a scene that is made from a prompt; give it as generator={path} to make one"
        )
    return reopened(path, config, pick_device(str(device)), taker)


def reopened(folder: Path, config: DictConfig, device: torch.device, taker: str) -> Asset:
    """Make the asset of a finished run from its last checkpoint, with those of its particles; no prior is loaded.

    Args:
        folder: of the run.
        config: of its last stage.
        device: where the scenes are to be.
        taker: what takes the folder, in messages.

    Raises:
        ValueError: there is no checkpoint of the last step.
    """
    scenes = trained_scenes(folder, config, device, taker, "finish it with resume=true")
    several = [(folder / f"particle-{number}", scene) for number, scene in enumerate(scenes, start=1)]
    particles = tuple(_asset(own, scene, config, device) for own, scene in several) if len(scenes) > 1 else ()
    return _asset(folder, scenes[0], config, device, particles)


def _asset(
    folder: Path, scene: Scene, config: DictConfig, device: torch.device, particles: tuple[Asset, ...] = ()
) -> Asset:
    return Asset(config.prompt, folder, scene, look(scene, device), noted(folder), particles, config.export)


def stored_config(folder: Path, taker: str) -> tuple[Any, DictConfig]:
    """The configuration in a run's folder, as it was stored, and that of its last stage with all options.

    Args:
        folder: of the run.
        taker: what takes the folder, in messages.

    Raises:
        ValueError: there is none that can be read.
    """
    path = folder / NAME
    if not path.is_file():
        runs = sorted(folder.glob("*/config.yaml"))
        why = f"holds {counted(len(runs), 'run')}; give one, such as {runs[0].parent}" if runs else (
            "holds none directly" if folder.is_dir() else "is a file" if folder.exists() else "is not there"
        )  # fmt: skip
        raise ValueError(f"{taker} takes the folder of a finished run, and {folder} {why}")
    try:
        stored = read(folder)
        if "export" in stored:  # an earlier version may have had other options of an export
            stored.export = {name: value for name, value in stored.export.items() if name in EXPORT}
        config = OmegaConf.merge(
            OmegaConf.structured(Config), {name: stored[name] for name in OPTIONS if name in stored}
        )
        assert isinstance(config, DictConfig)
        config = plan(config, folder)[-1]
        features_of(config)
    except Unreadable as error:
        raise ValueError(f"{taker} takes the folder of a finished run, and {error}") from error
    except Exception as error:  # of options that are none any more, or a scene that is not there
        raise ValueError(
            f"{taker} takes the folder of a finished run, and {path} cannot be read ({first_line(error)})"
        ) from error
    return stored, config


def trained_scenes(
    folder: Path, config: DictConfig, device: torch.device, taker: str, remedy: str
) -> list[Scene]:
    """Read the trained scenes of a run from its last checkpoint: as many as it has particles.

    Args:
        folder: of the run.
        config: of the run.
        device: where they are to be.
        taker: what takes the folder, in messages.
        remedy: for a run that has not come to its end.

    Raises:
        ValueError: there is no checkpoint of the last step.
    """
    saved = load_checkpoint(folder / "checkpoints", device)
    if saved is None:
        several = f"; name one of its seeds, such as {folder}/seed-{config.seed}" if config.seeds > 1 else ""
        raise ValueError(
            f"{taker} takes the folder of a finished run, and {folder} has no checkpoints{several}"
        )
    if saved["step"] < config.iterations:
        raise ValueError(f"{folder} is at step {saved['step']} of {config.iterations}; {remedy}")
    make, generator = scene_maker(config), torch.Generator().manual_seed(config.seed)
    scenes: list[Scene] = [make(seed=generator).to(device) for _ in range(config.particles)]
    whole: Scene = scenes[0] if len(scenes) == 1 else Particles(scenes).to(device)
    whole.load_state_dict(saved["scene"])
    if saved["average"] is not None:
        with torch.no_grad():
            take(whole, saved["average"])
    return scenes
