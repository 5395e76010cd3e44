"""Stages of a run: each is an ordinary run that begins with the scene of the one before.

The run's configuration is that of its last stage, and its ``earlier`` has what differs in those before, see ``compose_stages``. So what
reads a run's folder finds the scene that lies there, and a queue's prompts and a run's seeds change all stages at once.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig, OmegaConf

from distill.files.paths import user_path
from distill.run.config.overrides import literal
from distill.run.config.plugins import features_of
from distill.run.config.schema import Config

#: Where the earlier stages' folders are, in the run's.
FOLDER = "stages"


class Place(NamedTuple):
    """Where a stage is in its run: its name and number, from 1, of how many, after how many steps, of how many.

    ``folders`` are those of all stages before the last, in the run's.
    """

    name: str = ""
    number: int = 1
    total: int = 1
    before: int = 0
    steps: int = 0
    folders: tuple[str, ...] = ()

    @property
    def said(self) -> str:
        """Words for it, empty for a run without stages."""
        return f"{self.name} ({self.number} of {self.total})" if self.name else ""


#: Of a run without stages.
ALONE = Place()


def begin_with(config: DictConfig, folder: Path, before: DictConfig) -> None:
    """Say where the stage before lies."""
    if "mesh" in features_of(config):
        config.mesh.file = literal(str(folder / f"{before.export.name}.glb"))
    else:
        config.init = literal(str(folder))


def plan(config: DictConfig, folder: Path) -> list[DictConfig]:
    """The configurations of a run's stages in a folder, each an ordinary run's; those before the last lie below it."""
    if not config.earlier:  # a single stage, as in most runs: merging and checking it again takes a second
        alone = config.copy()
        alone.stages = []
        return [alone]
    made = list[DictConfig]()
    values: Any = OmegaConf.to_container(config)
    for key, changes in [*values["earlier"].items(), ("", {})]:
        one = OmegaConf.merge(
            OmegaConf.structured(Config), {**values, **changes, "stages": [], "earlier": {}}
        )
        assert isinstance(one, DictConfig)
        if key:
            own = literal(str(folder / FOLDER / str(key)))
            one.output_dir, one.resume, one.judge, one.keep = own, True, None, "all"
            one.seeds, one.retries = 1, 0
        if made:
            begin_with(one, user_path(made[-1].output_dir), made[-1])
        made.append(one)
    return made


def places(config: DictConfig) -> list[Place]:
    """Where each stage of a run is in it."""
    steps = [each.get("iterations", config.iterations) for each in config.earlier.values()]
    steps.append(config.iterations)
    folders = tuple(f"{FOLDER}/{key}" for key in config.earlier)
    return [
        Place(name, number, len(steps), sum(steps[: number - 1]), sum(steps), folders)
        for number, name in enumerate(config.stages, start=1)
    ]
