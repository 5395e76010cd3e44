"""Initial scenes: from an earlier run, or from a generator for one prompt."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from hydra.utils import get_object, instantiate
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from distill.conditions import prompt_library, prompts
from distill.contracts import Generator, Prior, Scene
from distill.files.checkpoint import load_checkpoint
from distill.files.errors import first_line
from distill.files.paths import user_path
from distill.job import take
from distill.options import options_of
from distill.run.assembly.scenes import scene_maker
from distill.run.folder import contents
from distill.run.folder.earlier import field_options, holds_field, read_settings, takes_field
from distill.run.folder.settings import read
from distill.run.several.generator import CHANGEABLE

log = logging.getLogger(__name__)


def check_init(config: DictConfig) -> None:
    """Check that ``init`` names an earlier run, of one scene that has the same settings.

    Raises:
        ValueError: it does not.
    """
    if not config.init:
        return
    folder = user_path(config.init)
    if not (folder / "checkpoints").is_dir():
        raise ValueError(f"init must be the folder of an earlier run, and {config.init} has no checkpoints")
    scene = get_object(config.scene._target_)
    second = takes_field(scene)
    if not second and not (folder / "config.yaml").exists():
        return
    earlier = read_settings(config.init)
    before, several = dict(earlier.scene), earlier.get("particles", 1) > 1
    if several:
        raise ValueError(
            f"init={folder} has {earlier.particles} scenes; only a run with particles=1 can be gone on from"
        )
    mesh, now = (each.get("mesh.file") for each in (contents.kept(folder), contents.contents(config)))
    if mesh and now and mesh != now:
        raise ValueError(
            f"init={folder} textures another mesh than {config.mesh.file}, which has changed or is another; give that one as mesh=FILE"
        )
    of_field = second and holds_field(earlier, config)
    defaults = OmegaConf.structured(options_of(scene))
    for name, value in config.scene.items():
        if of_field and name not in field_options(scene):
            continue
        was = before.get(name, defaults.get(name))  # an earlier version may not have had it
        if name not in CHANGEABLE and was != value:
            raise ValueError(
                f"init={folder} holds a scene with {name} {was}, not {value}; give this run "
                "the same scene= and scene.* options"
            )


def begin(config: DictConfig, scene: Scene, device: torch.device) -> dict[str, float]:
    """Let a scene begin with that of the earlier run which ``init`` names; a second stage, with its field.

    Returns:
        Of a field, how much the pictures change, as the scene says it; else nothing.

    Raises:
        ValueError: the run has no checkpoint, or one of another scene.
    """
    folder = user_path(config.init)
    tell_source(config, folder)
    if not takes_field(scene) or not holds_field(earlier := read_settings(config.init), config):
        start_from(folder, scene, device)
        return {}
    # What encoded on a GPU may not run here.
    field: Any = scene_maker(earlier, backend=config.scene.get("backend", "auto"))(seed=0).to(device)
    start_from(folder, field, device)
    second: Any = scene  # of one that begins with a field
    return dict(second.begin_with_field(field))


def tell_source(config: DictConfig, folder: Path) -> None:
    """Warn that an edit begins with a scene of another prompt than its source's, where the earlier run's settings say so."""
    if not config.source_prompt or not (folder / "config.yaml").is_file():
        return
    shown = read_settings(str(folder)).get("prompt")
    if shown and shown != config.source_prompt:
        log.warning(
            "init=%s shows %r, and source_prompt is %r; the edit begins with what it shows",
            folder, shown, config.source_prompt,
        )  # fmt: skip


def start_from(folder: Path, scene: Scene, device: torch.device) -> None:
    """Give a scene the parameters of an earlier run's.

    Raises:
        ValueError: it has no checkpoint, or one of another scene.
    """
    saved = load_checkpoint(folder / "checkpoints", device)
    if saved is None:
        raise ValueError(
            f"init must be the folder of an earlier run, and the checkpoints of {folder} are empty"
        )
    tell_unfinished("init", folder, saved)
    try:
        begin_as(scene, saved["scene"])
    except RuntimeError as error:
        raise ValueError(
            f"init={folder} holds a scene of other settings; give this run the same scene= and scene.* options"
        ) from error
    if saved["average"] is not None:
        parameters = [p for group in scene.parameter_groups().values() for p in group.parameters]
        try:
            pairs = paired(parameters, saved["average"])
        except ValueError as error:
            raise ValueError(
                f"init={folder} holds averages of a scene of other settings; give this run the same scene= and scene.* options"
            ) from error
        for parameter, value in pairs:
            parameter.data.copy_(value)


def paired(parameters: Sequence[Tensor], values: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Parameters with an earlier run's values of the same; one of the two may be without a learnt background's, which are left out.

    Args:
        parameters: of the scene, in the order of its groups.
        values: of the earlier run's scene, likewise.

    Raises:
        ValueError: they are of scenes of other settings.
    """
    more = abs(len(parameters) - len(values))
    # They are consecutive, at the end of most scenes' groups.
    for start in range(min(len(parameters), len(values)), -1, -1):
        own, others = list(parameters), list(values)
        longer = own if len(own) > len(others) else others
        del longer[start : start + more]
        if [p.shape for p in own] == [v.shape for v in others]:
            return list(zip(own, others, strict=True))
    raise ValueError("parameters and averages have other shapes")


def tell_unfinished(option: str, folder: Path, saved: Mapping[str, Any]) -> None:
    """Warn that the run which an option names is not finished, where its checkpoint and its settings say so."""
    try:
        step, whole = saved["step"], read_settings(str(folder))["iterations"]
    except (ValueError, KeyError):
        return
    if step < whole:
        log.warning(
            "%s=%s is unfinished and used as it is, at step %d of %d; resume=true finishes it",
            option,
            folder,
            step,
            whole,
        )


#: Parts of a scene that options decide which may change: what is occupied, for its resolution, and a learnt background.
OWN_PARTS = ("occupancy", "background_mlp")


def begin_as(scene: Scene, saved: Mapping[str, Tensor]) -> None:
    """Give a scene the state of another one; what may change, and is another in the two, stays the scene's own.

    Raises:
        RuntimeError: they differ in something else.
    """
    own = scene.state_dict()

    def part_of(name: str) -> str:
        return next((part for part in OWN_PARTS if part in name.split(".")), "")

    differing = {
        part_of(name)
        for name in {*own, *saved}
        if not (name in own and name in saved and own[name].shape == saved[name].shape)
    } - {""}
    kept = {name: value for name, value in own.items() if part_of(name) in differing}
    taken = {name: value for name, value in saved.items() if part_of(name) not in differing}
    scene.load_state_dict({**taken, **kept})


def open_generator(folder: Path, device: torch.device) -> Generator:
    """Load a generator, with the moving average of its parameters if available.

    It stays in memory until another one is loaded, so that a queue's is loaded once.

    Raises:
        ValueError: the folder holds none that can be read.
    """
    files = sorted((folder / "checkpoints").glob("*"))
    return _opened(folder, device, tuple((path.name, _written(path)) for path in files))


def _written(path: Path) -> int:
    """When a file was written, ns; 0 for one that a training has removed meanwhile."""
    with contextlib.suppress(OSError):
        return path.stat().st_mtime_ns
    return 0


@lru_cache(maxsize=1)
def _opened(folder: Path, device: torch.device, files: tuple[tuple[str, int], ...]) -> Generator:
    """The generator of these checkpoints, given by their names and when they were written."""
    saved = load_checkpoint(folder / "checkpoints", device)
    if saved is None:
        raise ValueError(f"generator={folder} has no checkpoint yet; finish its training with resume=true")
    tell_unfinished("generator", folder, saved)
    try:
        made = instantiate(read(folder).scene, _convert_="all")
        generator: Generator = made(seed=0, embeddings=saved["scene"]["prompts.embeddings"]).to(device)
        # Where the library's objects are is for training alone, and the largest part of a large library.
        where = saved["scene"]["prompts.occupied"][:0]
        generator.load_state_dict({**saved["scene"], "prompts.occupied": where})
    except Exception as error:  # of what another version wrote, or a hand changed
        raise ValueError(
            f"generator={folder} cannot be read ({first_line(error)}); make it again with distill amortise"
        ) from error
    if saved["average"] is not None:
        take(generator, saved["average"])
    return generator


def begin_generated(scene: Scene, config: DictConfig, prior: Prior) -> None:
    """Give a hash grid what a generator makes of the configuration's prompt, see ``generated``; it finds itself where that is.

    Raises:
        ValueError: the generator cannot be read, or is given embeddings of another width.
    """
    begin_as(scene, generated(config, prior).state_dict())
    made: Any = scene  # of the class ``generator.PLAIN``
    made.settle()


def generated(config: DictConfig, prior: Prior) -> Scene:
    """Make the scene of a configuration's prompt with its generator, or an interpolation to ``generator_mix``.

    Raises:
        ValueError: the generator cannot be read, or is given embeddings of another width.
    """
    generator = open_generator(user_path(config.generator), prior.device)
    texts = [config.prompt, *([config.generator_mix] if config.generator_mix else [])]
    told = prompt_library.embed(prior, [prompts.asked(prior, text) for text in texts])
    width = generator.state_dict()["prompts.embeddings"].shape[1]
    if told.shape[1] != width:
        raise ValueError(
            f"generator={config.generator} is given embeddings of {width} numbers, and {prior.name or 'this prior'} gives "
            f"{told.shape[1]}; use the prior that it was made with"
        )
    began = time.perf_counter()
    share = config.generator_share if config.generator_mix else 0.0
    scene = generator.scene_of(torch.lerp(told[0], told[-1], share))
    log.info("the generator made the scene in %.2f s", time.perf_counter() - began)
    return scene
