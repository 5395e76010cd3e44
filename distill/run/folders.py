"""Where a run writes, so that no run ever touches another's results."""

from __future__ import annotations

import hashlib
import os
import re
import unicodedata
from itertools import count
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

#: Settings that may change between a run and its resumption: where it is computed, in how much memory, what is written.
_FREE = (
    "resume", "output_dir", "prompts", "log", "export", "device", "max_vram", "render.at_once", "render.recompute",
    "render.chunk_rays", "prior_options.checkpointing",
)  # fmt: skip


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
        (plain.get(group, {}) if group else plain).pop(key, None)
    found: dict[str, Any] = plain
    return found


def same_run(folder: Path, config: DictConfig) -> bool:
    """Whether a folder holds a run with these settings."""
    path = folder / "config.yaml"
    if not path.is_file():
        return False
    stored = OmegaConf.load(path)
    assert isinstance(stored, DictConfig)
    return settings_of(stored) == settings_of(config)


def is_finished(folder: Path) -> bool:
    """Whether a run ended here; the report is written last."""
    return (folder / "report.html").is_file()


def claim(config: DictConfig, root: Path = Path("outputs")) -> Path:
    """Create a run's folder, or find it again with ``resume``; writes its ``config.yaml``.

    Without ``output_dir`` the folder is ``root/<slug>-<hash>``, with ``-2``, ``-3``, ... for further runs.

    Raises:
        ValueError: the folder holds another run, or cannot be written.
    """
    try:
        folder = (
            _named(Path(config.output_dir).expanduser(), config) if config.output_dir else _free(root, config)
        )
        with (folder / ".writable").open("w"):
            pass
        (folder / ".writable").unlink()
    except OSError as error:
        where = config.output_dir or root
        raise ValueError(
            f"cannot write to {where} ({os.strerror(error.errno or 0)}); choose a writable folder with output_dir="
        ) from error
    path = folder / "config.yaml"
    if not path.exists():
        OmegaConf.save(config, path)
    return folder


def _named(folder: Path, config: DictConfig) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    if not any(folder.iterdir()):
        return folder
    if not same_run(folder, config):
        raise ValueError(
            f"{folder} holds something else than this run; choose another output_dir= or empty it"
        )
    if not config.resume:
        raise ValueError(
            f"{folder} already holds this run; add resume=true to go on with it, or choose another output_dir="
        )
    return folder


def _free(root: Path, config: DictConfig) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    base = folder_name(config.prompt or Path(config.image or "").stem)
    for number in count(1):
        folder = root / (base if number == 1 else f"{base}-{number}")
        if config.resume and same_run(folder, config):
            return folder
        try:
            folder.mkdir()
        except FileExistsError:
            continue
        return folder
    raise AssertionError("unreachable")
