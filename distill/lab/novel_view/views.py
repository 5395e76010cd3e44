"""Pictures of objects with the cameras that took them: folders, shards, the embedded world.

A folder has the layout of Zero-1-to-3's renders: ``<root>/<uid>/000.png`` and ``000.npy`` onwards, and optionally
``valid_paths.json``, a list of the uids to use. A picture is square RGBA or RGB; a ``.npy`` file holds the 3 x 4
world-to-camera matrix. A shard is a tar file with the same members, ``<uid>/000.png`` and so on.
"""

from __future__ import annotations

import io
import json
import logging
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from distill.domains import counted
from distill.priors.novel_view.pose import camera_position

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Views:
    """Objects seen from several sides.

    Attributes:
        uids: names of the objects.
        count: pictures of each.
        read: ``(uid, index) -> (rgb, position)``: the picture over white, in [0, 1], shape ``[3, size, size]``,
            and the camera's position, shape ``[3]``.
        skipped: what could not be used, a line each.
    """

    uids: Sequence[str]
    count: int
    read: Callable[[str, int], tuple[Tensor, Tensor]]
    skipped: Sequence[str] = ()

    def __len__(self) -> int:
        return len(self.uids)

    def split(self, share: float = 0.01) -> tuple[Views, Views]:
        """The first objects to train on, and the last ``share`` of them, at least one, to validate on.

        Raises:
            ValueError: there are fewer than two objects.
        """
        if len(self.uids) < 2:
            raise ValueError(f"a split needs at least two objects, got {len(self.uids)}")
        held = max(1, round(share * len(self.uids)))
        first, last = self.uids[:-held], self.uids[-held:]
        return Views(first, self.count, self.read, self.skipped), Views(last, self.count, self.read)


def decode_picture(data: bytes, name: str, size: int) -> Tensor:
    """A square picture over white, in [0, 1], shape ``[3, size, size]``.

    Raises:
        ValueError: it is no picture, is cut short, or has another size.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            rgba = np.asarray(image.convert("RGBA"), np.float32) / 255
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise ValueError(f"{name} is no readable picture: {error}") from error
    if rgba.shape[:2] != (size, size):
        raise ValueError(
            f"{name} must be {size} x {size}, got {rgba.shape[1]} x {rgba.shape[0]}; render with --size {size}"
        )
    alpha = rgba[..., 3:]
    return torch.from_numpy(rgba[..., :3] * alpha + (1 - alpha)).movedim(-1, 0)


def decode_position(data: bytes, name: str) -> Tensor:
    """A camera's position from a ``.npy`` file's 3 x 4 world-to-camera matrix, shape ``[3]``.

    Raises:
        ValueError: it is no such file, or not a finite rigid motion.
    """
    try:
        matrix = np.load(io.BytesIO(data), allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise ValueError(f"{name} is no readable array: {error}") from error
    if matrix.shape not in ((3, 4), (4, 4)) or not np.isfinite(matrix).all():
        raise ValueError(f"{name} must be a finite 3 x 4 world-to-camera matrix, got shape {matrix.shape}")
    rotation = matrix[:3, :3]
    if not np.allclose(rotation @ rotation.T, np.eye(3), atol=1e-3):
        raise ValueError(f"{name} must hold a rotation and a translation, but its 3 x 3 part is no rotation")
    return camera_position(torch.from_numpy(np.asarray(matrix[:3], np.float64))).float()


def _decode(files: Callable[[str], bytes], size: int, uid: str, index: int) -> tuple[Tensor, Tensor]:
    stem = f"{uid}/{index:03d}"
    return (
        decode_picture(files(f"{stem}.png"), f"{stem}.png", size),
        decode_position(files(f"{stem}.npy"), f"{stem}.npy"),
    )


def _usable(
    uids: Sequence[str], count: int, read: Callable[[str, int], Any], has: Callable[[str], bool], check: bool
) -> tuple[list[str], list[str]]:
    """Uids whose files are all there, and with ``check`` readable; what is wrong with the others."""
    good, skipped = [], []
    for uid in uids:
        names = [f"{uid}/{index:03d}.{kind}" for index in range(count) for kind in ("png", "npy")]
        wrong = next((f"{name} is missing" for name in names if not has(name)), None)
        if wrong is None and check:
            try:
                for index in range(count):
                    read(uid, index)
            except ValueError as error:
                wrong = str(error)
        if wrong is None:
            good.append(uid)
        else:
            skipped.append(wrong)
    if skipped:
        log.warning(
            "of %s, %d cannot be used, the first: %s", counted(len(uids), "object"), len(skipped), skipped[0]
        )
    if not good:
        what = f"; the first: {skipped[0]}" if skipped else ""
        raise ValueError(f"none of {counted(len(uids), 'object')} can be used{what}")
    return good, skipped


def from_folder(root: Path, *, count: int = 12, size: int = 256, check: bool = True) -> Views:
    """Read the layout of Zero-1-to-3's renders.

    Args:
        root: the folder.
        count: pictures of each object.
        size: their height and width, pixels.
        check: read every file once, now, so that none fails in the middle of a training.

    Raises:
        ValueError: the folder or its list cannot be read, or no object can be used.
    """
    listed = root / "valid_paths.json"
    try:
        found = json.loads(listed.read_text()) if listed.exists() else None
        uids = sorted(p.name for p in root.iterdir() if p.is_dir()) if found is None else found
    except (OSError, ValueError) as error:
        raise ValueError(f"expected renders in {root}, which cannot be read: {error}") from error
    if not isinstance(uids, list) or not all(isinstance(uid, str) for uid in uids):
        raise ValueError(f"{listed} must be a list of folder names, got {type(uids).__name__}")
    read = partial(_decode, lambda name: _bytes(root / name), size)
    good, skipped = _usable(uids, count, read, lambda name: (root / name).is_file(), check)
    return Views(good, count, read, skipped)


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error


def from_shards(paths: Sequence[Path], *, count: int = 12, size: int = 256, check: bool = True) -> Views:
    """Read tar files of the same layout; each member is found by its offset, so any order of access is quick.

    Args:
        paths: the tar files, not compressed.
        count: pictures of each object.
        size: their height and width, pixels.
        check: read every file once, now.

    Raises:
        ValueError: a shard cannot be read, or no object can be used.
    """
    where: dict[str, tuple[Path, int, int]] = {}
    for path in paths:
        try:
            with tarfile.open(path, "r:") as shard:
                members = [member for member in shard if member.isfile()]
        except (OSError, tarfile.TarError) as error:
            raise ValueError(f"{path} is no readable, uncompressed tar file: {error}") from error
        where |= {member.name: (path, member.offset_data, member.size) for member in members}

    def part(name: str) -> bytes:
        path, offset, length = where[name]
        with path.open("rb") as file:
            file.seek(offset)
            return file.read(length)

    uids = list(dict.fromkeys(name.rpartition("/")[0] for name in where))
    read = partial(_decode, part, size)
    good, skipped = _usable(uids, count, read, where.__contains__, check)
    return Views(good, count, read, skipped)


def write_shard(path: Path, source: Path, uids: Sequence[str], count: int = 12) -> None:
    """Pack objects of a folder into one tar file, whole or not there."""
    temporary = path.with_name(f".{path.name}.tmp")
    with tarfile.open(temporary, "w") as shard:
        for uid in uids:
            for index in range(count):
                for kind in ("png", "npy"):
                    shard.add(source / uid / f"{index:03d}.{kind}", f"{uid}/{index:03d}.{kind}")
    temporary.replace(path)
