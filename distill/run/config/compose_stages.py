"""One command for several stages, each a run that begins with the one before: which words are for which, and what they compose to.

``stages=[field,surface]`` names files of ``distill/conf/stage``, which Hydra applies like any other; a new stage is a new file. The
command's options hold for every stage, except for those that a stage's own file sets, which make it that stage. What is meant for one
alone is written ``stage.surface.iterations=200``: Hydra knows no options of a part of a run, so these words are taken off the
command and put at the end of that stage's own, where each is the override ``iterations=200`` and is checked as such, be it
a number, a schedule or a group.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from importlib.resources import files
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf

from distill.files.paths import user_path
from distill.options import shown
from distill.run.config.overrides import key_of, split_word
from distill.run.config.plugins import features_of
from distill.run.config.schema import PARTS
from distill.run.folder.earlier import field_options, takes_field
from distill.run.several.generator import CHANGEABLE, PLAIN
from distill.run.several.stages import FOLDER, begin_with

#: Composes the words of one stage, without checks.
Compose = Callable[[Sequence[str]], DictConfig]
#: Options of the whole run, which no stage has alone.
OF_ALL = (
    "prompt", "prompts", "shard", "output_dir", "resume", "seed", "seeds", "retries", "keep", "judge", "view", "view_address",
    "view_port", "device", "stages", "earlier",
)  # fmt: skip
#: Options that say what a run begins with: the first stage's.
BEGINNING = ("init", "mesh", "mesh.file")


class Stage(NamedTuple):
    """One stage of a command: its name, the user's words that hold for it, and what they compose to."""

    name: str
    words: Sequence[str]
    config: DictConfig


def split_stages(words: Sequence[str]) -> tuple[list[str], dict[str, list[str]]]:
    """The words for all stages, and by name those for one alone.

    Raises:
        ValueError: a word for one stage names none, or no option; or one gives what stages make.
    """
    common, own = list[str](), dict[str, list[str]]()
    for word in words:
        if key_of(word).partition(".")[0] == "earlier":
            raise ValueError(
                "earlier= is what stages= make of a command; write stages=[field,surface] instead"
            )
        if not is_own(word):
            common.append(word)
            continue
        if not (found := re.match(r"\+{0,2}stage\.(\w+)\.(.+)", word)):
            raise ValueError(
                f"options of one stage are written stage.NAME.option=value, such as stage.surface.iterations=200, got {word}; to name "
                "the stages, write stages=[field,surface]"
            )
        own.setdefault(found[1], []).append(found[2])
    return common, own


def is_own(word: str) -> bool:
    """Tell whether a word of a command line is for one stage alone."""
    return bool(re.match(r"\+{0,2}stage\b(?=[.=])", word))


def named_stages(words: Sequence[str], folders: Sequence[str]) -> list[str]:
    """The stages that a command line names, or else its experiment's file, whose are for the hash grid; empty for none."""
    given = dict(map(split_word, words))
    if "stages" in given:
        return [name for name in re.split(r"[\s,'\"\[\]]+", given["stages"]) if name]
    if given.get("scene", "hash_grid") != "hash_grid" or {"mesh", "mesh.file", "generator"} & {*given}:
        return []
    name, experiments = given.get("experiment", ""), available("experiment", folders)
    return list(settled(name, experiments).get("stages", ())) if name in experiments else []


def _option(word: str) -> str:
    """Group and name of a part's option, without what is inside it; empty for other words."""
    group, dot, name = key_of(word).partition(".")
    return f"{group}.{name.partition('.')[0]}" if dot and group in PARTS else ""


def available(group: str = "stage", folders: Sequence[str] = ()) -> dict[str, Path]:
    """Files of a group by their names: the library's, and those of the user's own folders."""
    homes = [Path(str(files("distill.conf"))), *(user_path(folder) for folder in folders)]
    return {path.stem: path for home in reversed(homes) for path in sorted((home / group).glob("*.yaml"))}


def settled(name: str, known: Mapping[str, Path]) -> dict[str, Any]:
    """What a stage's file sets, with the files that it begins with: values by dotted name, and choices by group.

    Raises:
        ValueError: there is no such stage, or its file holds no options.
    """
    if name not in known:
        raise ValueError(f"unknown stage {name!r}; there are {', '.join(sorted(known))}")
    loaded: Any = OmegaConf.to_container(OmegaConf.load(known[name])) or {}
    if not isinstance(loaded, dict):
        raise ValueError(f"the stage {name} must hold options by name, got {shown(loaded)}, in {known[name]}")
    found: dict[str, Any] = {}
    for entry in loaded.pop("defaults", ()):
        for group, choice in entry.items() if isinstance(entry, dict) else ():
            found[group.removeprefix("override ").lstrip("/")] = choice
        if isinstance(entry, str) and entry != "_self_":
            found = {**settled(entry, known), **found}
    return found | dict(_dotted(loaded))


def _dotted(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, dict) and "start" not in value:
            yield from _dotted(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def compose_stages(
    names: Sequence[str],
    common: Sequence[str],
    own: Mapping[str, Sequence[str]],
    folders: Sequence[str],
    compose: Compose,
) -> list[Stage]:
    """Compose each stage; all but the first begin with the one before, whose scene's options they take over.

    Args:
        names: of the stages, in their order.
        common: words for all of them.
        own: words for one alone, by its name.
        folders: with configuration files of the user's own.
        compose: composes words.

    Raises:
        ValueError: there is no such stage, one cannot follow another, or an option is not one stage's own; in one line.
    """
    known = available("stage", folders)
    files_ = [settled(name, known) for name in names]
    check_own(names, own)
    parts = [
        _Words.of(name, has, common, own.get(name, ()), first=not number)
        for number, (name, has) in enumerate(zip(names, files_, strict=True))
    ]
    if any(map(_option, common)):  # these are for the stages whose part has them
        plain = [[word for word in part.all() if not _option(word)] for part in parts]
        having = [_options_of(compose(words)) for words in plain]
        every = set().union(*having)
        parts = [part.without(every - has) for part, has in zip(parts, having, strict=True)]
    made = list[Stage]()
    for name, has, part in zip(names, files_, parts, strict=True):
        config = compose(part.all())
        config.stages = []
        if made:
            _begin_after(made[-1], name, config, {*has, *map(key_of, own.get(name, ()))})
        else:
            _check_first(name, config, len(names))
        made.append(Stage(name, part.all(), config))
    for stage, after in pairwise(made):
        _leave_to(after.config, stage.config, "export.enabled" in map(key_of, own.get(stage.name, ())))
    return made


class _Words(NamedTuple):
    """The words of one stage: of those for all, what holds for it; its file; and what is for it alone, the file's scene included."""

    shared: Sequence[str]
    chosen: str
    alone: Sequence[str]

    @classmethod
    def of(
        cls, name: str, has: Mapping[str, Any], common: Sequence[str], own: Sequence[str], *, first: bool
    ) -> _Words:
        """Sort the words for all and for one stage, whose file has these options."""
        scene = [f"scene={has['scene']}"] if "scene" in has and "scene" not in map(key_of, own) else []
        return cls(_kept(common, has, own, first), f"stage={name}", [*scene, *own])

    def without(self, options: Collection[str]) -> _Words:
        """Leave out of the words for all what sets a part's option that this stage does not have."""
        return self._replace(shared=[word for word in self.shared if _option(word) not in options])

    def all(self) -> list[str]:
        """In the order in which they are applied."""
        return [*self.shared, self.chosen, *self.alone]


def check_own(names: Sequence[str], own: Mapping[str, Sequence[str]]) -> None:
    """Refuse options of one stage that is not there, and of one alone what is of the whole run.

    Raises:
        ValueError: there are such options.
    """
    for name, words in own.items():
        if name not in names:
            raise ValueError(
                f"stage.{name}.{words[0]} is for a stage that this run has not; its stages are [{','.join(names)}]: add {name} to "
                "stages=, or leave it out"
            )
        if whole := next((key for key in map(key_of, words) if key in OF_ALL), None):
            raise ValueError(
                f"stage.{name}.{whole}= would be of one stage, and {whole} is the whole run's; write {whole}="
            )


def _kept(common: Sequence[str], has: Mapping[str, Any], own: Sequence[str], first: bool) -> list[str]:
    """The words for all stages that hold for one: neither its file nor its own words settle them."""
    settles = {*has, *map(key_of, own), "stages", *(() if first else BEGINNING)}
    # What is inside a schedule goes with it.
    inside = tuple(f"{name}." for name in settles if name not in PARTS)
    return [word for word in common if key_of(word) not in settles and not key_of(word).startswith(inside)]


def _options_of(config: DictConfig) -> set[str]:
    """Dotted names of the options that a configuration's parts have."""
    return {f"{part}.{name}" for part in PARTS for name in config[part]}


def _check_first(name: str, config: DictConfig, count: int) -> None:
    """Refuse a first stage of several that the next cannot continue with, and one that has nothing to begin with."""
    which = {
        "a library of prompts": "library" in features_of(config),
        "generator=": bool(config.generator),
        "particles=": config.particles > 1,
    }
    if count > 1 and (wrong := next((what for what, there in which.items() if there), None)):
        raise ValueError(
            f"stages= continue one scene, which does not go with {wrong}; add stages=[{name}] for this stage alone, without what "
            "follows"
        )
    features = features_of(config)
    if ("from_field" in features and not config.init) or ("mesh" in features and not config.mesh.file):
        raise ValueError(
            f"the stage {name} begins with the scene of another, and it is the first; put one before it, such as "
            f"stages=[field,{name}], or add {'mesh=FILE' if 'mesh' in features else 'init=outputs/RUN'}"
        )


def _begin_after(before: Stage, name: str, config: DictConfig, own: Collection[str]) -> None:
    """Let a stage's scene take over the options that it shares with the one before; where that will lie is said by ``plan``.

    Raises:
        ValueError: it cannot follow.
    """
    was, scene = before.config.scene, config.scene
    made = get_object(scene._target_)
    same, meshed = was._target_ == scene._target_, "mesh" in features_of(config)
    if meshed:
        follows = "volume" in features_of(before.config) and not config.mesh.file
    else:
        follows = same or (takes_field(made) and was._target_ == PLAIN)
    if not follows:
        old, new = (each._target_.rpartition(".")[2] for each in (was, scene))
        raise ValueError(
            f"the stage {name} cannot follow {before.name}: its {new} does not begin with a {old}; choose other stages=, or "
            f"stages=[{before.name}] alone"
        )
    like = [key for key in scene if not key.startswith("_") and key not in CHANGEABLE] if same else []
    learned = ["background"] if was.get("background") == "learned" else []
    shared = dict.fromkeys([*like, *learned, *field_options(made)])
    for key in () if meshed else shared:
        if key in was and f"scene.{key}" not in own:
            scene[key] = was[key]
        elif key not in CHANGEABLE and scene[key] != was.get(key):
            raise ValueError(
                f"stage.{name}.scene.{key}={scene[key]} does not fit the stage {before.name}, whose scene has {was.get(key)}; leave it out"
            )


def _leave_to(after: DictConfig, config: DictConfig, asked: bool) -> None:
    """Let a stage write the mesh that the next one begins with; else it exports nothing unless asked."""
    if "mesh" in features_of(after):
        config.export.enabled, config.export.formats, config.export.lods = True, ["glb"], 0
    elif not asked:
        config.export.enabled = False


def checkable(stages: Sequence[Stage]) -> Iterator[Stage]:
    """Give each stage as it can be checked alone, with a place for what it will begin with."""
    for number, stage in enumerate(stages):
        config = stage.config.copy()
        if number:
            begin_with(config, Path(FOLDER), stages[number - 1].config)
        yield stage._replace(config=config)


def joined(stages: Sequence[Stage]) -> DictConfig:
    """The configuration of the whole run: the last stage's, and in ``earlier``, by folder, what differs in the others."""
    config = stages[-1].config
    last: Any = OmegaConf.to_container(config)
    earlier = {}
    for number, stage in enumerate(stages[:-1], start=1):
        values: Any = OmegaConf.to_container(stage.config)
        earlier[f"{number}-{stage.name}"] = {
            key: value for key, value in values.items() if value != last[key]
        }
    config.stages, config.earlier = [stage.name for stage in stages], earlier
    return config
