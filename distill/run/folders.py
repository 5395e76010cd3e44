"""Output folders; a run never writes into another run's folder."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import re
import unicodedata
from collections.abc import Collection, Iterator, Mapping
from itertools import count
from pathlib import Path
from typing import Any

from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf
from yaml import YAMLError

from distill.files.atomic import is_half, write_atomic
from distill.files.lock import NAME as LOCK
from distill.files.lock import InUse, hold
from distill.files.paths import user_path
from distill.options import options_of
from distill.run.schema import PARTS, known_options
from distill.run.seeding import several

#: Settings that may change between a run and its resumption: where it is computed, in how much memory, what is written.
_FREE = (
    "resume", "output_dir", "prompts", "shard", "view", "view_address", "view_port", "log", "export", "device", "max_vram",
    "watchdog", "retries", "render.at_once", "render.recompute", "render.chunk_rays", "prior_options.checkpointing", "prior_options.graphs",
)  # fmt: skip

#: Of these, what decides which files a finished run has; a run that is finished is not written again for them.
_WRITTEN = ("log", "export")
#: Seconds to wait for the folder that others have theirs made in, a moment each.
WAIT = 600.0


class OtherLayout(ValueError):
    """A folder holds this run without a folder for each seed, and it is asked for with them, or the other way round.

    Attributes:
        folder: which one.
    """

    def __init__(self, folder: Path, said: str) -> None:
        super().__init__(said)
        self.folder = folder


def folder_name(prompt: str) -> str:
    """An ASCII slug of at most 60 characters and 8 hex digits of the prompt's SHA-256."""
    plain = unicodedata.normalize("NFKD", prompt).encode("ascii", "ignore").decode().lower()
    slug = re.sub(r"[^a-z0-9]+", "-", plain).strip("-")[:60].strip("-") or "prompt"
    return f"{slug}-{hashlib.sha256(prompt.encode()).hexdigest()[:8]}"


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
    stored = stored_in(folder)
    if stored is None:
        return False
    made, wanted = flat(settings_of(stored)), flat(settings_of(config))
    told = other_version(made, wanted)
    if told and agree(made, wanted):
        raise ValueError(
            f"{folder} was made by another version of distill: its config.yaml has {told}; finish it with that version, or choose "
            "another output_dir= to start anew"
        )
    if made == wanted and several(stored) != several(config):
        raise OtherLayout(
            folder,
            f"{folder} holds this run with retries={stored.retries}, which has "
            f"{'a folder for each seed' if several(stored) else 'no folders for seeds'}, so retries={config.retries} cannot go on with "
            f"it; add retries={stored.retries}, or choose another output_dir= to start anew",
        )
    return made == wanted


def stored_in(folder: Path) -> DictConfig | None:
    """The configuration that a folder's run was started with, None where it has none.

    Raises:
        ValueError: it cannot be read.
    """
    path = folder / "config.yaml"
    if not path.is_file():
        return None
    try:
        stored = OmegaConf.load(path)
    except (YAMLError, UnicodeDecodeError, OSError) as error:
        raise ValueError(
            f"{path} cannot be read ({str(error).splitlines()[0]}); remove {folder}, or choose another output_dir="
        ) from error
    if not isinstance(stored, DictConfig) or "prompt" not in stored:
        raise ValueError(f"{path} holds no settings of a run; remove {folder}, or choose another output_dir=")
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
    return f"it was finished without {', '.join(differing)}, and is left as it is; to write its files anew, resume it alone"


def flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings by dotted name; schedules and lists stay whole."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, dict) and (prefix + name) in _GROUPS:
            found |= flat(value, f"{prefix}{name}.")
        else:
            found[prefix + name] = value
    return found


#: Groups of options, whose names hold a dot.
_GROUPS = {name.partition(".")[0] for name in known_options() if "." in name} | set(PARTS)


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
    if unknown := [name for name in made if name not in known]:
        return f"{unknown[0]}, which this version does not know"
    same = [part for part in PARTS if made[f"{part}._target_"] == wanted[f"{part}._target_"]]
    expected = [
        name for name in wanted if name.partition(".")[0] in same or name.partition(".")[0] not in PARTS
    ]
    missing = [name for name in expected if name not in made]
    return f"no {missing[0]}, which this version has" if missing else ""


def agree(made: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    """Tell whether two runs have the same prompt, picture and seed, which makes them the same to a user."""
    return all(made.get(name) == wanted.get(name) for name in ("prompt", "image", "seed", "prior"))


def is_finished(folder: Path) -> bool:
    """Tell whether a run is finished; the report is written last."""
    return (folder / "report.html").is_file()


def claim(config: DictConfig, root: Path = Path("outputs")) -> Path:
    """Create a run's folder, or find it again with ``resume``; writes its ``config.yaml``.

    Without ``output_dir`` the folder is ``root/<slug>-<hash>``, with ``-2``, ``-3``, ... for further runs. Of processes that
    ask at once, one is first; who writes into the folder holds it, see ``distill.files.lock``.

    Raises:
        InUse: another run holds the folder that ``output_dir`` names.
        OtherLayout: it holds this run with other ``retries``.
        ValueError: the folder holds another run, or cannot be written.
    """
    try:
        folder = _named(user_path(config.output_dir), config) if config.output_dir else _free(root, config)
    except OSError as error:
        where = config.output_dir or root
        raise ValueError(
            f"cannot write to {where} ({os.strerror(error.errno or 0)}); choose a writable folder with output_dir="
        ) from error
    return folder


def check_unused(config: DictConfig) -> None:
    """Refuse a folder that a run cannot use, before anything is loaded.

    Raises:
        InUse: another run holds it.
        ValueError: it holds something else, or cannot be written.
    """
    folder = check_writable(config)
    if config.output_dir and folder.is_dir():
        with contextlib.suppress(OSError), hold(folder):  # what cannot be written is told by claim
            refuse(folder, config)


def check_writable(config: DictConfig) -> Path:
    """Return the folder that a configuration writes to, of which the part that is there can be written.

    Raises:
        ValueError: it cannot.
    """
    folder = user_path(config.output_dir or "outputs")
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        why = "permission denied" if there.is_dir() else f"{there} is a file"
        raise ValueError(f"cannot write to {folder} ({why}); choose a writable folder with output_dir=")
    return folder


def check_root(config: DictConfig) -> Path:
    """Return the folder that a batch's runs have their folders in.

    Raises:
        ValueError: it cannot be written, or is itself a run's.
    """
    root = check_writable(config)
    if (root / "config.yaml").exists():
        raise ValueError(f"{root} is the folder of a run; choose another output_dir= for those of prompts=")
    return root


def _named(folder: Path, config: DictConfig) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    with hold(folder):
        if _unused(folder):
            return _described(folder, OmegaConf.to_yaml(config))
        refuse(folder, config)
        return folder


def refuse(folder: Path, config: DictConfig) -> None:
    """Refuse a folder that a run cannot use for what is in it; the caller holds it.

    Raises:
        ValueError: it holds something else, or this run, which is not to be resumed.
    """
    if _unused(folder):
        return
    if not same_run(folder, config):
        raise ValueError(
            f"{folder} holds something else than this run; choose another output_dir= or empty it"
        )
    if not config.resume:
        raise ValueError(
            f"{folder} already holds this run; add resume=true to go on with it, or choose another output_dir="
        )


def _unused(folder: Path) -> bool:
    """Tell whether a folder is empty, but for a lock and for what a process left that was killed before its ``config.yaml`` was whole."""
    return all(path.name == LOCK or is_half(path) for path in folder.iterdir())


def _described(folder: Path, settings: str) -> Path:
    """A folder with the run's ``config.yaml``."""
    path = folder / "config.yaml"
    if not path.exists():
        write_atomic(path, settings)
    return folder


def _free(root: Path, config: DictConfig) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    settings, others = OmegaConf.to_yaml(config), set[Path]()
    # As much as can be is done before the lock, for as many as start at once.
    for folder in _names(root, config):
        if not (folder / "config.yaml").is_file():
            break
        if config.resume and same_run(folder, config):
            return folder
        others.add(folder)
    try:
        with hold(root, wait=WAIT):
            return _next(root, config, settings, others)
    except InUse as busy:
        raise ValueError(
            f"the name of a folder could not be chosen: for {WAIT:.0f} s, {busy}"
        ) from busy  # of the root, not of the run


def _names(root: Path, config: DictConfig) -> Iterator[Path]:
    """The folders that a run may have, in the order in which they are tried."""
    base = folder_name(config.prompt or Path(config.image or config.prompts or "").stem)
    return (root / (base if number == 1 else f"{base}-{number}") for number in count(1))


def _next(root: Path, config: DictConfig, settings: str, others: Collection[Path]) -> Path:
    """The run's own folder, or the first free one, of a root that is held; ``others`` are known to hold other runs."""
    for folder in _names(root, config):
        if folder in others:
            continue
        if config.resume and same_run(folder, config):
            return folder
        try:
            folder.mkdir()
        except FileExistsError:
            if not (folder.is_dir() and _unused(folder)):
                continue
        return _described(folder, settings)
    raise AssertionError("unreachable")
