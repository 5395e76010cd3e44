"""Checkpoints that are whole or not there: tensors as safetensors, the rest as JSON, a checksum of each."""

from __future__ import annotations

import contextlib
import json
import logging
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from distill.files.atomic import clear, sha256, write_atomic
from distill.files.errors import line_of

log = logging.getLogger(__name__)


#: What the name of a checkpoint ends with while another of the same step takes its place.
EARLIER = ".earlier"


def flatten(value: object, path: str, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """Move the tensors of a nested value into ``tensors``; returns the rest as JSON-ready values."""
    if isinstance(value, Tensor):
        tensors[path] = value.detach().cpu().contiguous().clone()
        return {"tensor": path}
    if isinstance(value, dict):
        return {"items": [[key, flatten(item, f"{path}.{key}", tensors)] for key, item in value.items()]}
    if isinstance(value, (list, tuple)):
        return {"list": [flatten(item, f"{path}.{i}", tensors) for i, item in enumerate(value)]}
    check_storable(value, path)
    return {"value": value}


def check_storable(value: object, path: str) -> None:
    """Check that a checkpoint can hold a value: tensors, numbers, texts, None, and dictionaries and lists of these.

    Args:
        value: a part of a state.
        path: where it is, for errors.

    Raises:
        ValueError: it cannot.
    """
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, (str, int)):
                raise ValueError(f"{path} has the key {key!r}; a checkpoint has texts and integers as keys")
            check_storable(item, f"{path}[{key!r}]")
    elif isinstance(value, (list, tuple)):
        for number, item in enumerate(value):
            check_storable(item, f"{path}[{number}]")
    elif not (value is None or isinstance(value, (Tensor, bool, int, float, str))):
        raise ValueError(
            f"{path} holds a {type(value).__name__}, which no checkpoint can; it may hold tensors, numbers and texts, in dictionaries and lists"
        )


def unflatten(value: dict[str, Any], tensors: dict[str, Tensor]) -> Any:
    """Undo ``flatten``; tuples come back as lists."""
    ((kind, content),) = value.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "items":
        return {key: unflatten(item, tensors) for key, item in content}
    if kind == "list":
        return [unflatten(item, tensors) for item in content]
    return content


def _sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    if path.is_file():
        with path.open("r+b") as file:  # Windows flushes what can be written alone
            os.fsync(file.fileno())
        return
    with contextlib.suppress(
        PermissionError
    ):  # Windows opens no folders, and keeps their names in order itself
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _remove(checkpoint: Path) -> None:
    """Remove a checkpoint's folder, which holds files alone."""
    for file in checkpoint.iterdir():
        file.unlink()
    checkpoint.rmdir()


def save_checkpoint(folder: Path, step: int, state: dict[str, Any], keep: int = 2) -> Path:
    """Write ``folder/step-NNNNNN`` beside the earlier ones, then drop all but the newest ``keep``.

    A crash at any moment leaves the earlier checkpoints as they were.

    Raises:
        OSError: it cannot be written, such as on a full disk; nothing of it is left, in one line with the remedy.
    """
    final = folder / f"step-{step:06d}"
    try:
        _write(folder, final, state)
    except (OSError, SafetensorError) as error:
        with contextlib.suppress(OSError):
            clear(folder)
        raise OSError(
            f"the checkpoint {final} cannot be written ({line_of(error)}); free or choose another disk, then go "
            "on from the one before with resume=true"
        ) from error
    for old in steps_in(folder)[keep:]:
        _remove(old)
    return final


def _write(folder: Path, final: Path, state: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".{final.name}.{os.getpid()}.tmp"
    clear(folder)
    temporary.mkdir()
    tensors: dict[str, Tensor] = {}
    rest = flatten(state, "state", tensors)
    save_file(tensors, temporary / "tensors.safetensors")
    (temporary / "state.json").write_text(json.dumps(rest))
    umask = os.umask(0)
    os.umask(umask)
    sums = {}
    for file in sorted(temporary.iterdir()):
        file.chmod(0o666 & ~umask)
        sums[file.name] = sha256(file)
    (temporary / "sha256.json").write_text(json.dumps(sums, indent=2))
    for file in temporary.iterdir():
        _sync(file)
    _sync(temporary)
    earlier = final.with_name(final.name + EARLIER)
    if final.exists() and earlier.exists():
        _remove(earlier)
    if final.exists():  # it stays readable until the new one is in its place
        os.replace(final, earlier)
    os.replace(temporary, final)
    _sync(folder)
    if earlier.exists():
        _remove(earlier)
    write_atomic(folder / "latest", final.name + "\n")


def steps_in(folder: Path) -> list[Path]:
    """Checkpoints, the newest first; of two of the same step, the one that was to take the other's place."""

    def step_of(path: Path) -> str:
        return path.name.removesuffix(EARLIER).removeprefix("step-")

    found = [path for path in folder.glob("step-*") if path.is_dir() and step_of(path).isdecimal()]
    return sorted(found, key=lambda path: (int(step_of(path)), path.suffix != EARLIER), reverse=True)


def _damage(checkpoint: Path) -> str | None:
    try:
        sums = json.loads((checkpoint / "sha256.json").read_text())
        bad = [name for name, expected in sums.items() if sha256(checkpoint / name) != expected]
    except (OSError, ValueError) as error:
        return str(error)
    return f"{', '.join(bad)} changed since it was written" if bad else None


def load_checkpoint(folder: Path, device: torch.device | str = "cpu") -> dict[str, Any] | None:
    """Read the newest undamaged checkpoint; each damaged one is named in a warning.

    Returns:
        The state as saved, or None where there is no checkpoint at all.

    Raises:
        ValueError: there are checkpoints and every one is damaged.
    """
    found = steps_in(folder)
    for checkpoint in found:
        damage = _damage(checkpoint)
        if damage is None:
            tensors = load_file(checkpoint / "tensors.safetensors", device=str(device))
            return unflatten(json.loads((checkpoint / "state.json").read_text()), tensors)
        log.warning("checkpoint %s is unreadable (%s); trying the one before", checkpoint, damage)
    if found:
        raise ValueError(
            f"none of the {len(found)} checkpoints in {folder} is readable; start again with another output_dir="
        )
    return None
