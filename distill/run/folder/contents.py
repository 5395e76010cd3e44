"""What the files that a run's options name hold: a run that is resumed must be given the same, wherever they lie now."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from distill.conditions.control import DRAWN
from distill.files.atomic import sha256_once, write_atomic
from distill.files.paths import user_path

#: Options that name a file, or a list of files, which decides what is made. The prior itself is in the manifest.
NAMING = (
    "image", "mesh.file", "reference.depth", "reference.normal", "views.file", "prior_options.control", "prior_options.loras",
    "prior_options.embeddings",
)  # fmt: skip
#: The file in a run's folder that has the SHA-256 of each.
NAME = "inputs.json"


def contents(config: DictConfig) -> dict[str, str]:
    """The SHA-256 of the files that each option names, if they can be read, by the option's name; see ``of_stage`` for earlier stages."""
    stages = {of_stage(stage, ""): changes for stage, changes in config.earlier.items()}
    found = {}
    for prefix, settings in {"": config, **stages}.items():
        for option in NAMING:
            value = OmegaConf.select(settings, option)
            if not value or (option == "prior_options.control" and value in DRAWN):
                continue
            said = LISTS[option](value) if option in LISTS else _of_file(value)
            if said is not None:
                found[prefix + option] = said
    return found


def _of_file(name: str) -> str | None:
    """What a file holds; None where none can be read."""
    path = user_path(name)
    return sha256_once(path) if path.is_file() else None


def _of_loras(entries: Sequence[str]) -> str | None:
    """What LoRAs' files hold, and their weights; None where one cannot be read, which loading it tells."""
    from distill.priors import lora

    try:
        return ", ".join(f"{one.sha256} weight {one.weight:g}" for one in map(lora.parse, entries))
    except (ValueError, OSError):
        return None


def _of_embeddings(entries: Sequence[str]) -> str | None:
    """What embeddings' files hold, and their tokens; None as above."""
    from distill.priors import inversion

    try:
        return ", ".join(f"{one.sha256} token {one.token}" for one in map(inversion.parse, entries))
    except (ValueError, OSError):
        return None


#: Of these options, those that are lists, with what is said beside each file.
LISTS: Mapping[str, Callable[[Sequence[str]], str | None]] = {
    "prior_options.loras": _of_loras, "prior_options.embeddings": _of_embeddings,
}  # fmt: skip


def of_stage(stage: str, option: str) -> str:
    """The name of an option of a stage before the last one."""
    return f"{stage}: {option}"


def keep(folder: Path, config: DictConfig) -> None:
    """Write down what the files of a configuration hold, in the folder of its run, if there are any."""
    if found := contents(config):
        write_atomic(folder / NAME, json.dumps(found, indent=2) + "\n")
    else:
        (folder / NAME).unlink(missing_ok=True)


def kept(folder: Path) -> dict[str, str]:
    """What ``keep`` wrote to a run's folder; empty where there is nothing that can be read."""
    try:
        found = json.loads((folder / NAME).read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
