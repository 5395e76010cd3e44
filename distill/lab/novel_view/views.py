"""Pictures of objects with the cameras that took them: folders, shards, the embedded world.

A folder has the layout of Zero-1-to-3's renders: ``<root>/<uid>/000.png`` and ``000.npy`` onwards, and optionally
``valid_paths.json``, a list of the uids to use. A picture is square RGBA or RGB; a ``.npy`` file holds the 3 x 4
world-to-camera matrix. A shard is a tar file with the same members, ``<uid>/000.png`` and so on. ``protocol.json`` beside
the objects, or beside the shards, says how they were rendered.
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

from distill.files.atomic import is_half, replacing, write_atomic
from distill.files.grey import eight_bits
from distill.priors.novel_view.pose import camera_position
from distill.wording import counted

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
        """The first objects to train on, and the last ``share`` of them to validate on, at least one each.

        Raises:
            ValueError: there are fewer than two objects.
        """
        if len(self.uids) < 2:
            raise ValueError(
                f"a training needs at least two objects, one of them to validate on, got {len(self.uids)}; render more"
            )
        held = min(max(1, round(share * len(self.uids))), len(self.uids) - 1)
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
            rgba = np.asarray(eight_bits(image).convert("RGBA"), np.float32) / 255
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
        wrong = next((f"{name} is missing" for name in _names([uid], count) if not has(name)), None)
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


def objects_in(root: Path) -> list[str]:
    """Names of the folders of a folder of renders, except for hidden ones, such as those that an interrupted render leaves."""
    return sorted(p.name for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))


def protocol_of(folder: Path) -> dict[str, Any]:
    """What renders, or the shards of renders, say of how they were made; nothing without a ``protocol.json``.

    Raises:
        ValueError: it cannot be read.
    """
    path = folder / "protocol.json"
    if not path.is_file():
        return {}
    try:
        said = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{path} must be what distill-views render writes, and cannot be read: {error}"
        ) from error
    if not isinstance(said, dict):
        raise ValueError(
            f"{path} must be what distill-views render writes, an object, got {type(said).__name__}"
        )
    return said


def pictures_of(root: Path, first: Path) -> tuple[int, int]:
    """How many pictures each object of a folder has, and their size: as its ``protocol.json`` says, else as the first one has them.

    Raises:
        ValueError: what says so cannot be read.
    """
    said = protocol_of(root)
    match said.get("views"), said.get("steep", 0), said.get("size"):
        case (int(views), int(steep), int(size)):
            return views + steep, size
    try:
        with Image.open(first / "000.png") as image:
            return len(list(first.glob("*.png"))), image.width
    except (UnidentifiedImageError, OSError) as error:
        raise ValueError(f"{first / '000.png'} is no readable picture: {error}") from error


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
        uids = objects_in(root) if found is None else found
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


def _names(uids: Sequence[str], count: int) -> list[str]:
    """The files of objects, in their order."""
    return [f"{uid}/{i:03d}.{kind}" for uid in uids for i in range(count) for kind in ("png", "npy")]


def write_shard(path: Path, source: Path, uids: Sequence[str], count: int = 12) -> None:
    """Pack objects of a folder into one tar file, whole or not there."""
    with replacing(path) as temporary, tarfile.open(temporary, "w") as shard:
        for name in _names(uids, count):
            shard.add(source / name, name)


def write_shards(out: Path, source: Path, uids: Sequence[str], count: int, each: int) -> int:
    """Pack a folder of renders into numbered shards, its ``protocol.json`` beside them; nothing that is there is changed.

    Args:
        out: folder of the shards; those of an interrupted packing of the same renders are gone on with.
        source: folder of the renders.
        uids: objects to pack.
        count: pictures of each.
        each: objects in a shard.

    Returns:
        How many shards there are.

    Raises:
        ValueError: the folder holds other shards, which a pattern such as ``shards/*.tar`` would read too.
    """
    starts = range(0, len(uids), each)
    groups = {out / f"{n:05d}.tar": uids[start : start + each] for n, start in enumerate(starts)}
    there = sorted(path for path in out.glob("*.tar") if not is_half(path))
    for path in there:
        if path not in groups or not _holds(path, source, groups[path], count):
            raise ValueError(
                f"{out} holds shards of something else, {path.name} among them, which would be read with the new ones; choose another "
                "folder, or move them away"
            )
    said, path = protocol_of(source), out / "protocol.json"
    if path.exists() and protocol_of(out) != said:
        raise ValueError(
            f"{path} is of other renders than those in {source}; choose another folder, or move it away"
        )
    out.mkdir(parents=True, exist_ok=True)
    if said and not path.exists():  # before the shards, which are not to be there without it
        write_atomic(path, json.dumps(said, indent=2) + "\n")
    for path, group in groups.items():
        if path not in there:
            write_shard(path, source, group, count)
    return len(groups)


def _holds(path: Path, source: Path, uids: Sequence[str], count: int) -> bool:
    """Whether a shard holds these objects of a folder, and nothing else."""
    names = _names(uids, count)
    try:
        with tarfile.open(path, "r:") as shard:
            members = shard.getmembers()
            if [member.name for member in members] != names:
                return False
            parts = (shard.extractfile(member) for member in members)
            return all(p and p.read() == (source / n).read_bytes() for p, n in zip(parts, names, strict=True))
    except (OSError, tarfile.TarError):
        return False
