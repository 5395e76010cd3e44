"""Export the meshes of a finished run again, in other formats, positions or sizes, without training or loading a prior."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf

from distill.contracts import Scene
from distill.devices import pick_device
from distill.export.files import names_of
from distill.files.atomic import write_atomic
from distill.files.lock import hold
from distill.files.paths import user_path
from distill.run.assembly.scenes import look
from distill.run.checks import check
from distill.run.checks.idle import check_idle
from distill.run.checks.scene import check_scene
from distill.run.config.compose import compose_words, composing
from distill.run.config.implied import with_implied
from distill.run.config.overrides import as_overrides, quote_text
from distill.run.config.plugins import features_of
from distill.run.folder.failures import ExportFailed, noted
from distill.run.folder.finished import stored_config, trained_scenes
from distill.run.folder.manifest import finish

#: What takes a run's folder, in messages.
TAKER = "distill export"


def export_again(run: str, words: Sequence[str]) -> list[Path]:
    """Export the meshes of a finished run with other options, next to its files, and record them in its manifest and report.

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
    if idle := [name for word in words if (name := word.partition("=")[0]) in OF_PICTURES]:
        raise ValueError(
            f"{idle[0]} would do nothing: distill export writes meshes alone; leave it out, and for pictures continue with resume=true"
        )
    folder = user_path(run)
    config = _config(folder, words)
    with hold(folder):
        scenes, device = _scenes(folder, config)
        own = [folder / f"particle-{i + 1}" for i in range(len(scenes))] if len(scenes) > 1 else [folder]
        new = [into / name for into in own for name in _names(config)]
        _check_new(new)
        with _whole(own, new):
            figures = [_write(into, config, scene, device) for into, scene in zip(own, scenes, strict=True)]
            for into, found in zip(own, figures, strict=True):
                _note(into, words, found)
    return [into / name for into, found in zip(own, figures, strict=True) for name in found["meshes"]]


def _config(folder: Path, words: Sequence[str]) -> DictConfig:
    """A run's own configuration, with other options of its export.

    Raises:
        ValueError: there is none that can be read, it makes no mesh, or an option is wrong.
    """
    stored, config = stored_config(folder, TAKER)
    features = features_of(config)
    if not features & {"volume", "mesh"} or "library" in features:
        raise ValueError(f"{folder} is of a scene without a mesh; distill export makes meshes alone")
    plain: Any = OmegaConf.to_container(OmegaConf.create(dict(stored.get("export", {}))), resolve=True)
    own = {f"export.{name}": value for name, value in plain.items() if value is not None}
    given = {word.partition("=")[0] for word in words}
    with composing():
        example = ["prompt=example", *(["mesh.file=x"] if "mesh" in features else [])]
        texts = [*as_overrides(own), *map(quote_text, words), *example]
        asked = compose_words(with_implied(texts)).config
    without_glb = asked.export.formats is not None and "glb" not in asked.export.formats
    if "export.lod_as" not in given and (not asked.export.lods or without_glb):
        asked.export.lod_as = "files"  # the run's own says nothing of levels that are not there
    check(asked)
    config.export, config.device = asked.export, asked.device
    values: Any = OmegaConf.to_container(config, resolve=True)
    check_scene(values, get_object(config.scene._target_))
    check_idle(config, given)
    return config


def _scenes(folder: Path, config: DictConfig) -> tuple[list[Scene], torch.device]:
    """The trained scenes of a run, from its last checkpoint, and where they are.

    Raises:
        ValueError: there is no checkpoint of the last step, or the scenes write other files than meshes.
    """
    device = pick_device(config.device)
    scenes = trained_scenes(
        folder, config, device, TAKER, "finish it with resume=true, which exports it, too"
    )
    if (written := sorted(scenes[0].assets())) != ["mesh"]:
        raise ValueError(
            f"{folder} is of a scene that writes {', '.join(written) or 'no mesh'}, and distill export writes meshes alone; export it "
            "again, in place of its files, with resume=true"
        )
    return scenes, device


def _names(config: DictConfig) -> list[str]:
    """The files that an export may write into a scene's folder."""
    return names_of({**config.export, "formats": ["glb"]} if config.mesh.file else config.export)


def _check_new(files: Sequence[Path]) -> None:
    """Refuse to replace what is there.

    Raises:
        ValueError: a file would be replaced.
    """
    if there := [path for path in files if path.exists()]:
        raise ValueError(
            f"{there[0]} is there already, and distill export replaces nothing; choose another export.name=, or export.formats= "
            "that are not there"
        )


@contextmanager
def _whole(folders: Sequence[Path], files: Sequence[Path]) -> Iterator[None]:
    """Leave files that are new, and manifests, as they were if anything fails within the context, so that it can be done again."""
    manifests = [folder / "manifest.json" for folder in folders]
    before = [path.read_bytes() if path.is_file() else None for path in manifests]
    try:
        yield
    except BaseException:
        for path in files:
            path.unlink(missing_ok=True)
        for path, content in zip(manifests, before, strict=True):
            if content is not None and path.read_bytes() != content:
                write_atomic(path, content)
        raise


def _write(folder: Path, config: DictConfig, scene: Scene, device: torch.device) -> dict[str, Any]:
    """Write a scene's meshes; returns their figures."""
    started = time.perf_counter()
    options = {name: value for name, value in config.export.items() if f"export.{name}" not in OF_PICTURES}
    try:
        figures = scene.assets()["mesh"](folder, look(scene, device), options)
    except ValueError as error:
        raise ExportFailed(str(error)) from error
    return {**figures, "seconds": round(time.perf_counter() - started, 3)}


def _note(folder: Path, words: Sequence[str], figures: Mapping[str, Any]) -> None:
    """Say in the manifest and the report what was written."""
    before: Mapping[str, Any] = noted(folder)
    manifest = {name: value for name, value in before.items() if name not in ("state", "why")}
    exports = [*manifest.get("exports", []), {"options": list(words), **figures}]
    finish(folder, {**manifest, "exports": exports})


#: Options of an export that are not of meshes.
OF_PICTURES = ("export.enabled", "export.frames", "export.picture_size", "export.elevation_deg")
