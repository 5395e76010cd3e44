"""Samples of a novel-view training by running number: pairs of pictures, and their features where these are cached."""

from __future__ import annotations

import glob
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from distill.files.paths import user_path
from distill.lab.novel_view.cache import FeatureCache
from distill.lab.novel_view.config import TrainConfig
from distill.lab.novel_view.pairs import Pair, Pairs
from distill.lab.novel_view.views import Views, from_folder, from_shards
from distill.priors.novel_view.features import Features


def open_views(config: TrainConfig) -> Views:
    """The pictures that a configuration names."""
    count, size = config.views, config.size
    if config.data.endswith(".tar"):
        paths = [Path(path) for path in sorted(glob.glob(str(user_path(config.data))))]
        if not paths:
            raise ValueError(f"data={config.data} matches no shard")
        return from_shards(paths, count=count, size=size)
    if not config.data:
        raise ValueError(
            "data= is needed: a folder of renders, or a pattern of shards such as 'shards/*.tar'"
        )
    return from_folder(user_path(config.data), count=count, size=size)


@dataclass(frozen=True)
class Batch:
    """Samples of a training, on the CPU.

    Attributes:
        condition: pictures, shape ``[batch, 3, size, size]``.
        target: pictures, same shape.
        pose: shape ``[batch, 4]``.
        numbers: running numbers of the samples.
        features: of the conditions, or None where they are encoded while training.
    """

    condition: Tensor
    target: Tensor
    pose: Tensor
    numbers: Sequence[int]
    features: Features | None = None


@dataclass(frozen=True)
class Samples:
    """A training's samples by number, with their features where these are cached."""

    pairs: Pairs
    cache: FeatureCache | None = None

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, number: int) -> tuple[int, Pair, Features | None]:
        pair = self.pairs[number]
        return number, pair, self.cache.read(pair.uid, pair.indices[0]) if self.cache else None


def collate(samples: Sequence[tuple[int, Pair, Features | None]]) -> Batch:
    """Stack samples."""
    numbers, pairs, features = zip(*samples, strict=True)
    stacked = {
        name: torch.stack([getattr(pair, name) for pair in pairs]) for name in ("condition", "target", "pose")
    }
    joined = None
    if features[0] is not None:
        joined = Features(torch.stack([f.token for f in features]), torch.stack([f.maps for f in features]))
    return Batch(**stacked, numbers=numbers, features=joined)


def numbers_of(config: TrainConfig, start: int, process: int, processes: int) -> Iterator[list[int]]:
    """The running numbers of a process's batches, from update ``start`` on."""
    for micro in range(start * config.accumulate, config.iterations * config.accumulate):
        first = (micro * processes + process) * config.batch
        yield list(range(first, first + config.batch))
