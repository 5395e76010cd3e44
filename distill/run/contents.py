"""What the files that a run's options name hold: a run that is resumed must be given the same, wherever they lie now."""

from __future__ import annotations

import json
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
            held = list(map(_held, [value] if isinstance(value, str) else value))
            if None not in held:
                found[prefix + option] = ", ".join(map(str, held))
    return found


def _held(entry: str) -> str | None:
    """What a file holds and, of a list's ``file:weight`` or ``token=file``, what is said beside it; None where none can be read."""
    head, _, weight = entry.rpartition(":")
    token, _, tail = entry.partition("=")
    for file, beside in ((entry, ""), (head, f" weight {weight}"), (tail, f" token {token}")):
        if file and user_path(file).is_file():
            return sha256_once(user_path(file)) + beside
    return None


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
