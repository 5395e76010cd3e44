"""What goes with a library of prompts, and with the generator that is made of it: checks, and the file that describes one."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from distill.conditions.choices import OWN_PROMPTS
from distill.conditions.prompt_library import Prompts, read_library
from distill.files.atomic import write_atomic
from distill.files.paths import user_path
from distill.priors.source import SHIPPED, is_single
from distill.run.config.known import default_of
from distill.run.config.plugins import features_of
from distill.run.several.seeding import several
from distill.wording import counted

log = logging.getLogger(__name__)

#: What describes a generator, in its folder, and the library that it learns.
NAME, LIBRARY = "generator.json", "library.json"
#: Prompts of a library that are reported to be read as something else, at most.
TOLD = 5
#: The scene of one prompt.
PLAIN = "distill.renderers.nerf.HashGridScene"
#: Options of a scene that say how fast, and which parts of it first, it is trained.
TRAINING = frozenset(
    {
        "encoding_lr",
        "mlp_lr",
        "background_lr",
        "lr",
        "progressive_levels",
        "occupancy_every",
        "geometry_lr",
        "geometry",
        "texture",
    }
)
#: Options that may change where a run begins with an earlier one's scene: they say how it is rendered and trained, not what it is.
CHANGEABLE = TRAINING | {
    "background", "random_background", "march_steps", "occupancy_resolution", "occupancy_threshold", "backend", "width",
}  # fmt: skip
#: Options that are of one prompt's run, and what a library's has instead.
OF_ONE = {
    "image": "a picture is of one object",
    "mesh.file": "a mesh is of one object",
    "init": "a generator starts from nothing, or continues with resume=true",
    "generator": "it is for making one prompt's scene",
    "source_prompt": "an edit is of one object",
    "particles": "the prompts take turns in one scene",
    "shard": "all of it is learnt together; several processes share it with accelerate launch",
    **dict.fromkeys(("seeds", "retries", "keep", "judge"), "a judge chooses among scenes of one prompt"),
    "max_vram": "the forecast is of one prompt's run; choose render.at_once= and render.recompute=",
    **{f"views.{name}": "whole prompts for a view are one object's" for name in OWN_PROMPTS},
}  # fmt: skip


def amortised(config: DictConfig) -> bool:
    """Tell whether a configuration is of a library's run, which its scene says."""
    return "library" in features_of(config)


def check_together(config: DictConfig) -> None:
    """Check what goes with a library of prompts, and with a generator.

    Raises:
        ValueError: an option does not.
    """
    if amortised(config):
        name = config.scene._target_.rpartition(".")[2]
        if config.prompt or config.prompts is None:
            raise ValueError(
                f"scene={name} learns a library of prompts; write distill amortise prompts=FILE, and make one prompt's scene of the "
                "result with generator="
            )
        for option, why in OF_ONE.items():
            value = OmegaConf.select(config, option)
            if value != default_of(option):
                raise ValueError(f"{option}={value} does not go with a library: {why}; leave it out")
    elif (config.optimiser.accumulate or 1) > 1:
        raise ValueError(
            f"optimiser.accumulate={config.optimiser.accumulate} takes several prompts of a library in each step, and this run has "
            "one prompt; raise render.batch= instead, with render.at_once= for the memory"
        )
    if config.iterations == 0 and not config.generator:
        raise ValueError(
            "iterations must be an integer of at least 1, got 0; 0 is for a scene that comes from generator="
        )
    if not config.generator:
        return
    if config.iterations == 0 and several(config):
        raise ValueError(
            "a generator makes the same scene with every seed where it is not trained, so seeds= and retries= would do nothing; leave them "
            "out, or add iterations=200"
        )
    for option, default in (("init", None), ("image", None), ("particles", 1)):
        if config[option] != default:
            raise ValueError(
                f"generator= makes the scene to begin with, so it does not go with {option}={config[option]}; leave out one of them"
            )


def library_of(config: DictConfig) -> Prompts:
    """Read the library of a configuration, and check every prompt.

    Raises:
        ValueError: it cannot be read, or the prior does not know what a prompt names; with its line.
    """
    from distill.embedded.prompt import understand
    from distill.embedded.vocabulary import of_prior

    library = read_library(config.prompts)
    known = of_prior(config.prior)
    for prompt in library.all():
        if known is None:
            break
        try:
            understand(prompt, known)
        except ValueError as error:
            raise ValueError(f"{library.where(prompt)} of {config.prompts}: {error}") from error
    return library


def tell_taken(config: DictConfig, library: Prompts) -> None:
    """Say which prompts of a library are read as something else, the first few of them."""
    from distill.embedded.prompt import told, understand
    from distill.embedded.vocabulary import of_prior

    if (known := of_prior(config.prior)) is None:
        return
    said = [line for prompt in library.all() if (line := told(prompt, understand(prompt, known)))]
    for line in said[:TOLD]:
        log.warning("%s", line)
    if len(said) > TOLD:
        log.warning("and %s of %s more", counted(len(said) - TOLD, "prompt"), config.prompts)


def describe_generator(folder: Path, config: DictConfig, options: Mapping[str, Any], width: int) -> None:
    """Write what a generator makes: the prior whose embeddings it is told, their width, and the options of its scenes."""
    said = {"prior": _place(config.prior), "width": width, "scene": dict(options)}
    write_atomic(folder / NAME, json.dumps(said, indent=2) + "\n")


def read_generator(folder: str) -> dict[str, Any]:
    """Read what ``describe_generator`` wrote.

    Raises:
        ValueError: the folder is no generator's.
    """
    path = user_path(folder) / NAME
    try:
        said: Any = json.loads(path.read_text("utf-8"))
        return {"prior": str(said["prior"]), "width": int(said["width"]), "scene": dict(said["scene"])}
    except OSError as error:
        raise ValueError(
            f"generator must be the folder of a distill amortise run, and {folder} has no {NAME}; make one with distill amortise "
            "prompts=FILE"
        ) from error
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"generator must be the folder of a distill amortise run, and {path} cannot be read"
        ) from error


def implied_by(folder: str) -> dict[str, Any]:
    """Options that follow from a generator: its prior, its scenes' options, and no training."""
    said = read_generator(folder)
    # How it learnt says nothing of how one scene is refined.
    scene = {f"scene.{name}": value for name, value in said["scene"].items() if name not in TRAINING}
    return {"prior": said["prior"], "iterations": 0, "scene": "hash_grid", **scene}


def _place(prior: str) -> str:
    """A prior's folder or file in full, so that it is found from elsewhere; its name where it has one, as ``priors.source.find`` sees it."""
    there = user_path(prior)
    own = prior not in SHIPPED and (is_single(prior) or (there / "model_index.json").is_file())
    return str(there.resolve()) if own and there.exists() else prior


@cache
def _tell_copy(generator: str, made: str, given: str) -> None:
    """Warn that a prior is assumed to be a copy, once: a queue makes many scenes."""
    log.warning(
        "generator=%s was made with prior=%s; prior=%s is assumed to be a copy of it", generator, made, given
    )


def check_generator(config: DictConfig) -> None:
    """Check that a configuration has the prior and the scene of its generator.

    Raises:
        ValueError: it does not.
    """
    if not config.generator:
        return
    said = read_generator(config.generator)
    made, given = _place(said["prior"]), _place(config.prior)
    if made != given:
        if not Path(made).is_absolute() or not Path(given).is_absolute():
            remedy = (
                "leave out prior="
                if not Path(made).is_absolute()
                else "give that folder, or a copy of it, as prior="
            )
            raise ValueError(
                f"generator={config.generator} was made with prior={made}, whose embeddings it is told, not with {config.prior}; {remedy}"
            )
        _tell_copy(config.generator, made, given)
    if config.scene._target_ != PLAIN:
        raise ValueError(f"generator={config.generator} makes scene=hash_grid; leave out scene=")
    for name, value in said["scene"].items():
        found = config.scene[name]
        found = list(found) if OmegaConf.is_list(found) else found
        if name not in CHANGEABLE and found != value:
            raise ValueError(
                f"generator={config.generator} makes scenes with {name} {value}, not {found}; leave out scene.{name}="
            )
    if not (user_path(config.generator) / "checkpoints").is_dir():
        raise ValueError(
            f"generator={config.generator} has no checkpoints yet; finish its training with resume=true"
        )
