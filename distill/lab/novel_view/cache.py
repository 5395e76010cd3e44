"""Encoder features on disk, so that a training encodes each picture once."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from distill.lab.novel_view.views import Views
from distill.priors.novel_view.features import Encoder, Features

log = logging.getLogger(__name__)

#: Objects in one file.
GROUP = 32


def estimate(views: Views, encoder: Encoder) -> int:
    """Bytes that the features of all pictures take, in half precision."""
    each = encoder.grid**2 * encoder.map_width + encoder.token_width
    return 2 * each * views.count * len(views)


@dataclass(frozen=True)
class FeatureCache:
    """Features of every view of some objects, read by object and view.

    Attributes:
        files: where each object's lie.
    """

    files: dict[str, Path]

    def read(self, uid: str, index: int) -> Features:
        """Return the features of one picture: shapes ``[width]`` and ``[patches, layers * width]``, float32."""
        file = _opened(self.files[uid])
        token, maps = (file.get_slice(f"{name}/{uid}")[index] for name in ("token", "maps"))
        return Features(token.float(), maps.float())


@lru_cache(maxsize=64)
def _opened(path: Path) -> Any:
    return safe_open(path, "pt").__enter__()


def picture_hash(rgb: Tensor) -> str:
    """Says whether a picture is the one that was encoded."""
    return hashlib.sha256((rgb * 255).round().byte().numpy().tobytes()).hexdigest()[:16]


def identity(encoder: Encoder, size: int, views: int) -> dict[str, str]:
    """Everything that features depend on besides the pictures, and how many views there are of an object."""
    return {
        "encoder": encoder.id,
        "layers": json.dumps(list(encoder.layers)),
        "normalised": json.dumps([list(encoder.mean), list(encoder.std)]),
        "size": str(size),
        "views": str(views),
    }


def build_cache(
    views: Views, encoder: Encoder, folder: Path, *, batch: int = 32, progress: bool = True
) -> FeatureCache:
    """Encode every picture that is not encoded yet, a file for each group of objects; continues where it stopped.

    Args:
        views: the pictures.
        encoder: of them.
        folder: of the files, created if need be.
        batch: pictures at a time.
        progress: show a bar.

    Raises:
        ValueError: there is no room, a file is of another encoder or of other pictures, or cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    size = views.read(views.uids[0], 0)[0].shape[-1]
    said, needed = identity(encoder, size, views.count), estimate(views, encoder)
    groups = [views.uids[start : start + GROUP] for start in range(0, len(views), GROUP)]
    paths = [folder / f"features-{number:05d}.safetensors" for number in range(len(groups))]
    left = needed * sum(not path.exists() for path in paths) / len(paths)
    free = shutil.disk_usage(folder).free
    log.info(
        "features take %.2f GB in all, of which %.2f GB are still to be written", needed / 1e9, left / 1e9
    )
    if left > free:
        raise ValueError(
            f"the features need {left / 1e9:.1f} GB more in {folder}, which has {free / 1e9:.1f} GB free; cache fewer "
            "layers, or encode while training (cache=null)"
        )
    files: dict[str, Path] = {}
    for path, uids in zip(tqdm(paths, desc="caching features", disable=not progress), groups, strict=True):
        if path.exists():
            _verify(path, uids, said, views)
        else:
            _write(path, uids, said, views, encoder, batch)
        files |= dict.fromkeys(uids, path)
    return FeatureCache(files)


def _verify(path: Path, uids: Sequence[str], said: dict[str, str], views: Views) -> None:
    """A file holds these objects, by this encoder, and its first object's first picture is unchanged."""
    remedy = "give another cache folder, or remove this one"
    try:
        found = _opened(path).metadata() or {}
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path} is no readable cache ({error}); {remedy}") from error
    for name, value in said.items():
        if found.get(name) != value:
            raise ValueError(f"{path} was cached with {name} {found.get(name)}, not {value}; {remedy}")
    hashes = json.loads(found["pictures"])
    if list(hashes) != list(uids):
        raise ValueError(f"{path} holds other objects than these; {remedy}")
    if hashes[uids[0]] != picture_hash(views.read(uids[0], 0)[0]):
        raise ValueError(f"{path} was cached from another picture of {uids[0]}; {remedy}")


def _write(
    path: Path, uids: Sequence[str], said: dict[str, str], views: Views, encoder: Encoder, batch: int
) -> None:
    device = next(encoder.model.parameters()).device
    tensors, hashes = {}, {}
    for uid in uids:
        pictures = torch.stack([views.read(uid, index)[0] for index in range(views.count)])
        parts = [encoder(part.to(device)) for part in pictures.split(batch)]
        for name in ("token", "maps"):
            tensors[f"{name}/{uid}"] = torch.cat([getattr(part, name) for part in parts]).half().cpu()
        hashes[uid] = picture_hash(pictures[0])
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        save_file(tensors, temporary, {**said, "pictures": json.dumps(hashes)})
        temporary.replace(path)
    except (OSError, SafetensorError) as error:
        temporary.unlink(missing_ok=True)
        raise ValueError(
            f"could not write {path} ({error}); what is cached is kept: free some room and run again"
        ) from error
