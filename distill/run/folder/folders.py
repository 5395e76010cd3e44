"""Output folders; a run never writes into another run's folder."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import re
import unicodedata
from collections.abc import Collection, Iterator
from itertools import count, takewhile
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from distill.files.atomic import is_half, write_atomic
from distill.files.lock import NAME as LOCK
from distill.files.lock import InUse, hold
from distill.files.paths import nearest, user_path
from distill.run.config.plugins import features_of
from distill.run.folder import contents
from distill.run.folder.stored import differing, same_run
from distill.run.several.seeding import several

log = logging.getLogger(__name__)

#: Seconds to wait for the folder that others have theirs made in, a moment each.
WAIT = 600.0
#: Of the runs that differ from one that is to be resumed, so many are named, the newest.
MOST = 3


def folder_name(prompt: str) -> str:
    """An ASCII slug of at most 60 characters and 8 hex digits of the prompt's SHA-256."""
    plain = unicodedata.normalize("NFKD", prompt).encode("ascii", "ignore").decode().lower()
    slug = re.sub(r"[^a-z0-9]+", "-", plain).strip("-")[:60].strip("-") or "prompt"
    return f"{slug}-{hashlib.sha256(prompt.encode()).hexdigest()[:8]}"


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
        raise unwritable(config.output_dir or root, os.strerror(error.errno or 0)) from error
    return folder


def check_unused(config: DictConfig) -> None:
    """Refuse a folder that a run cannot use, before anything is loaded; says where there is nothing to resume.

    Raises:
        InUse: another run holds it.
        OtherLayout: it holds this run with other ``retries``.
        ValueError: it holds something else, or cannot be written.
    """
    check_place(config)
    if config.resume and to_resume(config) is None:
        log.warning("%s", nothing_to_resume(config))


def check_place(config: DictConfig) -> Path:
    """Return the folder that a configuration writes to, which a run can use; errors as for ``check_unused``."""
    folder = check_writable(config)
    if config.output_dir and folder.is_dir():
        with contextlib.suppress(OSError), hold(folder):  # what cannot be written is told by claim
            refuse(folder, config)
    return folder


def to_resume(config: DictConfig) -> Path | None:
    """The folder of the run that a configuration would continue with, None where there is none.

    Raises:
        OtherLayout: it holds this run with other ``retries``.
        ValueError: another version of distill made it, or its settings cannot be read.
    """
    folders = (
        [user_path(config.output_dir)] if config.output_dir else _described_ones(Path("outputs"), config)
    )
    return next((folder for folder in folders if same_run(folder, config)), None)


def nothing_to_resume(config: DictConfig) -> str:
    """Say that ``resume`` begins a new run, and in what the runs of this prompt differ from it."""
    if config.output_dir:
        return f"{config.output_dir} holds no run to continue yet, so resume=true begins one"
    there = [*_described_ones(Path("outputs"), config)][-MOST:]
    others = [f"{folder} ({differing(folder, config)})" for folder in there]
    beside = f"; beside it: {', '.join(others)}" if others else ""
    return (
        f"there is no run with these settings in outputs to continue, so resume=true begins a new one{beside}"
    )


def check_writable(config: DictConfig) -> Path:
    """Return the folder that a configuration writes to, of which the part that is there can be written.

    Raises:
        ValueError: it cannot.
    """
    folder = user_path(config.output_dir or "outputs")
    there = nearest(folder)
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise unwritable(folder, "permission denied" if there.is_dir() else f"{there} is a file")
    return folder


def unwritable(folder: str | Path, why: str) -> ValueError:
    """The error of a folder that cannot be written, and why."""
    return ValueError(f"cannot write to {folder} ({why}); choose a writable folder with output_dir=")


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
            return _described(folder, config, OmegaConf.to_yaml(config))
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
        said = differing(folder, config)
        continued = config.particles == 1 and not several(config) and "library" not in features_of(config)
        if continued and re.fullmatch(r"iterations=\d+, not \d+", said):
            raise ValueError(
                f"{folder} holds this run, with {said}, and a run keeps its length; to train its scene on, add init={folder} and choose "
                "another output_dir="
            )
        raise ValueError(
            f"{folder} holds another run, with {said}; give its own options to continue it, or choose another output_dir=" if said
            else f"{folder} holds something else than a run; choose another output_dir="
        )  # fmt: skip
    if not config.resume:
        raise ValueError(
            f"{folder} already holds this run; add resume=true to continue it, or choose another output_dir="
        )


def _unused(folder: Path) -> bool:
    """Tell whether a folder is empty, except for a lock and for what a process left that was killed before its ``config.yaml`` was whole."""
    return all(path.name in (LOCK, contents.NAME) or is_half(path) for path in folder.iterdir())


def _described(folder: Path, config: DictConfig, settings: str) -> Path:
    """A folder with the run's ``config.yaml``."""
    path = folder / "config.yaml"
    if not path.exists():
        contents.keep(folder, config)
        write_atomic(path, settings)
    return folder


def _free(root: Path, config: DictConfig) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    settings, others = OmegaConf.to_yaml(config), set[Path]()
    # As much as can be is done before the lock, for as many as start at once.
    for folder in _described_ones(root, config):
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


def _described_ones(root: Path, config: DictConfig) -> Iterator[Path]:
    """Of these folders, those that hold a run, up to the first that a new one could have."""
    there = takewhile(
        lambda folder: folder.exists() and not (folder.is_dir() and _unused(folder)), _names(root, config)
    )
    return (folder for folder in there if (folder / "config.yaml").is_file())


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
        return _described(folder, config, settings)
    raise AssertionError("unreachable")
