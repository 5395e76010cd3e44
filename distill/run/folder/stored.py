"""The settings that a run's folder holds, and whether a configuration asks for the same run."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf

from distill.files.atomic import write_atomic
from distill.options import options_of
from distill.run.config.known import group_names, known_options
from distill.run.config.plugins import code_changed
from distill.run.config.schema import PARTS
from distill.run.folder import contents
from distill.run.folder.settings import NAME, Unreadable, read, text_of
from distill.run.several.seeding import several

#: Settings that may change between a run and its resumption: where it is computed, in how much memory, what is written.
_FREE = (
    "resume", "output_dir", "prompts", "shard", "view", "view_address", "view_port", "log", "export", "device", "max_vram",
    "watchdog", "retries", "render.at_once", "render.recompute", "render.chunk_rays", "prior_options.checkpointing", "prior_options.graphs",
)  # fmt: skip
#: Of these, what says where a run is rather than how.
_PLACE = ("resume", "output_dir", "prompts", "shard")
#: Of these, what decides which files a finished run has; a run that is finished is not written again for them.
_WRITTEN = ("log", "export")
#: The seed of a whole run in its ``config.yaml``; texts of several lines are indented there.
_SEED = re.compile(r"^seed: (\d+)$", re.MULTILINE)
#: Of settings that differ, so many are named.
SHOWN = 3


class OtherLayout(ValueError):
    """A folder holds this run without a folder for each seed, and it is asked for with them, or the other way round.

    Attributes:
        folder: which one.
    """

    def __init__(self, folder: Path, said: str) -> None:
        super().__init__(said)
        self.folder = folder


def settings_of(config: DictConfig) -> dict[str, Any]:
    """The part of a configuration that decides a run's result."""
    plain: Any = OmegaConf.to_container(config, resolve=False)
    for name in _FREE:
        group, _, key = name.rpartition(".")
        for each in (plain, *plain.get("earlier", {}).values()):
            (each.get(group, {}) if group else each).pop(key, None)
    found: dict[str, Any] = plain
    return found


def same_run(folder: Path, config: DictConfig) -> bool:
    """Tell whether a folder holds a run with these settings.

    Raises:
        OtherLayout: it does, with other ``retries``, which go with other folders.
        ValueError: it does, as far as can be told, but another version of distill made it; or its settings cannot be read.
    """
    stored = None if _of_another_seed(folder, config) else _settings_in(folder)
    if stored is None:
        return False
    made, wanted = both(folder, stored.settings, config)
    if (missing := part_of_a_script(made)) and agree(made, wanted):
        raise ValueError(
            f"{folder} was made with {missing}, which is registered by a script of your own: resume it with that script instead of distill, or "
            "choose another output_dir= to start again"
        )
    told = other_version(made, wanted)
    if told and agree(made, wanted):
        raise ValueError(
            f"{folder} was made by another version of distill: its config.yaml has {told}; finish it with that version, or choose "
            "another output_dir= to start again"
        )
    if made != wanted:
        return False
    parted = bool(made["seeds"] > 1 or stored.retries)
    if parted != several(config):
        raise OtherLayout(
            folder,
            f"{folder} holds this run with retries={stored.retries}, which has "
            f"{'a folder for each seed' if parted else 'no folders for seeds'}, so retries={config.retries} cannot continue with "
            f"it; add retries={stored.retries}, or choose another output_dir= to start again",
        )
    return True


def _of_another_seed(folder: Path, config: DictConfig) -> bool:
    """Tell by the text of a folder's ``config.yaml`` that its run has another seed.

    To read it whole takes a thousand times as long, which a sweep over seeds would do for each of them and each of the others.
    """
    said = _SEED.search(text_of(folder))
    return said is not None and int(said[1]) != config.seed


def both(
    folder: Path, stored: Mapping[str, Any], config: DictConfig
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The settings of a folder's run, and those of a configuration, by dotted name, those of earlier stages one by one.

    Files are compared by what they hold, where the folder says it. The prompts of a step of a library are one for each process
    where they are not given, so as many as the run had.
    """
    made, wanted = dict(stored), _of_all_stages(settings_of(config))
    if wanted["optimiser.accumulate"] is None:
        wanted["optimiser.accumulate"] = made.get("optimiser.accumulate")
    now = contents.contents(config)
    for name, digest in contents.kept(folder).items():
        if name in now:
            made[name], wanted[name] = digest, now[name]
    return made, wanted


def _of_all_stages(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings by dotted name, those of the stages before the last one by one."""
    found = flat({name: value for name, value in settings.items() if name != "earlier"})
    for stage, changes in settings.get("earlier", {}).items():
        found |= {contents.of_stage(stage, name): value for name, value in flat(changes).items()}
    return found


def differing(folder: Path, config: DictConfig) -> str:
    """Say in which settings the run in a folder differs from a configuration, the first few of them; empty for none."""
    stored = _settings_in(folder)
    if stored is None:
        return ""
    made, wanted = both(folder, stored.settings, config)
    names = [name for name in {**wanted, **made} if made.get(name) != wanted.get(name)]
    # Options of two losses, or two scenes, differ because these do.
    others = {name.partition(".")[0] for name in names if name.endswith("._target_")}
    names = [name for name in names if name.endswith("._target_") or name.partition(".")[0] not in others]

    def short(value: object) -> str:
        text = str(value).rpartition(".")[2] if str(value).startswith("distill.") else str(value)
        return text if len(text) <= 60 else f"{text[:57]}..."

    def told(name: str) -> str:
        option = name.rpartition(": ")[2]
        if option in contents.NAMING and made.get(name) and wanted.get(name):
            return f"other {name}" if option in contents.LISTS else f"another file as {name}"
        return f"{name.removesuffix('._target_')}={short(made.get(name))}, not {short(wanted.get(name))}"

    rest = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return "; ".join(map(told, names[:SHOWN])) + rest


class _Stored(NamedTuple):
    """The settings of a folder's run.

    Attributes:
        settings: that decide its result, by dotted name as ``both`` has them.
        retries: which may change, and decide with the number of seeds whether each has a folder.
    """

    settings: Mapping[str, Any]
    retries: Any


def _settings_in(folder: Path) -> _Stored | None:
    """What a folder's run was made with; None where it has no settings, errors as of ``stored_in``."""
    try:
        now = (folder / NAME).stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return _settings_then(folder, (now.st_dev, now.st_ino, now.st_size, now.st_mtime_ns))


@lru_cache(maxsize=2048)
def _settings_then(folder: Path, stamp: tuple[int, ...]) -> _Stored | None:
    """The same of a file with this stamp: each job of a sweep is compared with all runs of its prompt, which are read once."""
    stored = stored_in(folder)
    if stored is None:
        return None
    return _Stored(_of_all_stages(settings_of(stored)), stored.get("retries", 0))


def stored_in(folder: Path) -> DictConfig | None:
    """The configuration of a folder's run, None where it has none.

    Raises:
        ValueError: it cannot be read.
    """
    if not (folder / NAME).is_file():
        return None
    try:
        stored = read(folder)
        if "prompt" not in stored:
            raise Unreadable(folder / NAME, "it holds no settings of a run")
    except Unreadable as error:
        raise ValueError(f"{error}; remove {folder}, or choose another output_dir=") from error
    return stored


def left_as_it_is(folder: Path, config: DictConfig) -> str:
    """Say which options ask for other files than a finished run has, which is not made again for them; empty for none."""
    try:
        stored = stored_in(folder)
    except ValueError:
        return ""
    if stored is None:
        return ""
    differing: list[str] = []
    for group in _WRITTEN:
        made: Any = OmegaConf.to_container(stored.get(group) or OmegaConf.create(), resolve=False)
        wanted: Any = OmegaConf.to_container(config[group], resolve=False)
        differing += [
            f"{group}.{name}={value}" for name, value in wanted.items() if made.get(name, value) != value
        ]
    if not differing:
        return ""
    return f"it was finished without {', '.join(differing)}, and is left as it is; to write its files again, resume it alone"


def other_code(changed: str, step: int, iterations: int) -> str:
    """Say that the code of parts was changed after some of a run's steps, or after all of them."""
    if step < iterations:
        return f"the code of {changed}, or of what it uses, was changed since the checkpoint: the first {step} steps were made with the earlier code"
    return (
        f"the code of {changed}, or of what it uses, was changed since the run was trained, and it is not trained again; choose another "
        "output_dir= for that"
    )


def finished_otherwise(folder: Path, config: DictConfig) -> str:
    """Say what a finished run is left without: files that options ask for, or a training with the code as it is now; empty for nothing."""
    from distill.run.folder.failures import noted

    changed = code_changed(noted(folder).get("code", {}), config)
    said = (
        left_as_it_is(folder, config),
        other_code(changed, config.iterations, config.iterations) if changed else "",
    )
    return "; ".join(filter(None, said))


def flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings by dotted name; schedules and lists stay whole."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, dict) and (prefix + name) in group_names():
            found |= flat(value, f"{prefix}{name}.")
        else:
            found[prefix + name] = value
    return found


def part_of_a_script(made: Mapping[str, Any]) -> str:
    """The part in stored settings that is none of distill's, and that this process does not know; empty for none."""
    for part in PARTS:
        target = str(made.get(f"{part}._target_"))
        if target.partition(".")[0] == "distill":
            continue
        try:
            get_object(target)
        except Exception:  # whatever a module does that is imported
            return f"{part}={target.rpartition('.')[2].lower()} ({target})"
    return ""


def other_version(made: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """Return the evidence that another version of distill wrote stored settings, empty if there is none."""
    known = set(known_options())
    for part in PARTS:
        target = made.get(f"{part}._target_")
        try:
            options = dataclasses.fields(options_of(get_object(str(target))))
        except Exception:  # a part that is not there any more
            return f"{part}._target_={target}, which this version does not know"
        known |= {f"{part}.{item.name}" for item in options}
    if unknown := [name for name in made if ": " not in name and name not in known]:
        return f"{unknown[0]}, which this version does not know"
    same = [part for part in PARTS if made[f"{part}._target_"] == wanted[f"{part}._target_"]]
    expected = [
        name
        for name in wanted
        if ": " not in name and (name.partition(".")[0] in same or name.partition(".")[0] not in PARTS)
    ]
    missing = [name for name in expected if name not in made]
    return f"no {missing[0]}, which this version has" if missing else ""


def agree(made: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    """Tell whether two runs have the same prompt, picture and seed, which makes them the same to a user."""
    return all(made.get(name) == wanted.get(name) for name in ("prompt", "image", "seed", "prior"))


def renew(folder: Path, config: DictConfig, written: bool = True) -> None:
    """Bring the settings in a run's folder up to date with what may change when it is resumed.

    Args:
        folder: of a run with these settings, see ``same_run``.
        config: of the run.
        written: what decides which files it has, too; not where some are there already, and stay as they are.
    """
    stored = stored_in(folder)
    if stored is None:
        return
    before = OmegaConf.to_yaml(stored)
    kept = {*_PLACE, *(() if written else _WRITTEN)}
    for name in ("earlier", *contents.NAMING, *(name for name in _FREE if name not in kept)):
        OmegaConf.update(stored, name, OmegaConf.select(config, name), merge=False, force_add=True)
    if (now := OmegaConf.to_yaml(stored)) != before:
        write_atomic(folder / NAME, now)
