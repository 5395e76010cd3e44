"""Pictures of many objects in memory, on any device: what a small model trains on without waiting for files.

They come from renders in the layout that ``views`` reads, or from the embedded world, see ``world_renders``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from distill.lab.novel_view.evaluate import choose_pairs
from distill.lab.novel_view.views import Views
from distill.priors.novel_view.features import Features
from distill.priors.novel_view.pose import between

if TYPE_CHECKING:
    from distill.priors.novel_view.features import Encoder

#: Elevation from which a picture shows an object's top or bottom rather than its sides, degrees above or below the horizon.
STEEP_DEG = 60.0


@dataclass(frozen=True)
class Store:
    """Objects seen from several sides, the pictures of each object in a row.

    Attributes:
        pictures: over white, 0 to 255, shape ``[pictures, 3, size, size]``.
        positions: of the cameras that took them, shape ``[pictures, 3]``.
        first: where each object's begin, and where the last one's end, shape ``[objects + 1]``.
        uids: of the objects.
        steep_first: of a pair of which one picture is steep, from ``STEEP_DEG`` or more above or below, and the other is not,
            the steep one is the given one with this probability; None leaves it to chance, as for all other pairs.
    """

    pictures: Tensor
    positions: Tensor
    first: Tensor
    uids: tuple[str, ...]
    steep_first: float | None = None

    def __post_init__(self) -> None:
        if not torch.isfinite(self.positions).all() or (self.positions.norm(dim=-1) == 0).any():
            raise ValueError("every camera's position must be finite and away from the origin")
        if (self.first.diff() < 2).any():
            raise ValueError("every object needs at least two pictures")
        if self.steep_first is not None and not 0 <= self.steep_first <= 1:
            raise ValueError(f"steep_first must be a probability or None, got {self.steep_first}")

    def __len__(self) -> int:
        return len(self.uids)

    def to(self, device: torch.device | str) -> Store:
        pictures, positions, first = (
            value.to(device) for value in (self.pictures, self.positions, self.first)
        )
        return replace(self, pictures=pictures, positions=positions, first=first)

    def rgb(self, index: Tensor) -> Tensor:
        """Pictures in [0, 1], shape ``[n, 3, size, size]``."""
        return self.pictures[index].float() / 255

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Two different pictures of each of ``count`` objects, as indices; objects are equally likely."""
        device = self.first.device
        places = torch.randint(len(self), (count,), generator=generator, device=device)
        start, views = self.first[places], self.first[places + 1] - self.first[places]
        u = torch.rand(2, count, generator=generator, device=device)
        condition = (u[0] * views).long().clamp(max=views - 1)
        target = (u[1] * (views - 1)).long().clamp(max=views - 2)
        given, wanted = start + condition, start + target + (target >= condition)
        if self.steep_first is None:
            return given, wanted
        from_steep, to_steep = self.steep(given), self.steep(wanted)
        first = torch.rand(count, generator=generator, device=device) < self.steep_first
        swap = (from_steep != to_steep) & (from_steep != first)
        return torch.where(swap, wanted, given), torch.where(swap, given, wanted)

    def steep(self, index: Tensor, from_deg: float = STEEP_DEG) -> Tensor:
        """Whether pictures, given by index, were taken from so many degrees or more above or below the horizon."""
        positions = self.positions[index]
        return positions[:, 2].abs() >= math.sin(math.radians(from_deg)) * positions.norm(dim=-1)

    def pose(self, condition: Tensor, target: Tensor) -> Tensor:
        """Return the poses of pictures relative to others, both given by index, shape ``[n, 4]``."""
        return between(self.positions[condition], self.positions[target])

    def views(self) -> Views:
        """The same as ``evaluate`` reads it; every object must have as many pictures.

        Raises:
            ValueError: they have not.
        """
        counts = self.first.diff()
        if (counts != counts[0]).any():
            raise ValueError("the objects have different numbers of pictures")
        where = dict(zip(self.uids, self.first.tolist(), strict=False))

        def read(uid: str, index: int) -> tuple[Tensor, Tensor]:
            place = where[uid] + index
            return self.pictures[place].float().cpu() / 255, self.positions[place].cpu()

        return Views(self.uids, int(counts[0]), read)


def fixed_pairs(store: Store) -> Tensor:
    """One pair of views of each object, indices, the same at every call."""
    pairs = choose_pairs(store.views(), 1, seed=0)
    start = store.first[:-1].cpu()
    chosen = torch.tensor([[pair.condition, pair.target] for pair in pairs]) + start[:, None]
    return chosen.to(store.first.device)


def joined(stores: Sequence[Store]) -> Store:
    """All objects of several stores of one picture size."""
    starts = np.cumsum([0, *(len(store.pictures) for store in stores)]).tolist()
    first = [store.first[:-1] + start for store, start in zip(stores, starts, strict=False)]
    return Store(
        torch.cat([store.pictures for store in stores]),
        torch.cat([store.positions for store in stores]),
        torch.cat([*first, first[0].new_tensor([starts[-1]])]),
        tuple(uid for store in stores for uid in store.uids),
    )


def from_views(views: Views) -> Store:
    """Read all pictures of some renders."""
    pictures, positions = [], []
    for uid in tqdm(views.uids, desc="reading renders"):
        for index in range(views.count):
            rgb, position = views.read(uid, index)
            pictures.append((rgb * 255).round().byte())
            positions.append(position)
    first = torch.arange(len(views) + 1) * views.count
    return Store(torch.stack(pictures), torch.stack(positions), first, tuple(views.uids))


class Encodings(Protocol):
    """Pictures, and what an encoder makes of them."""

    @property
    def store(self) -> Store: ...

    def features(self, index: Tensor) -> Features:
        """Of some pictures, in single precision."""
        ...


@dataclass(frozen=True)
class Seen:
    """A store whose pictures are encoded.

    Attributes:
        store: the pictures.
        token: of each, shape ``[pictures, width]``.
        maps: of each, shape ``[pictures, patches, layers * width]``.
    """

    store: Store
    token: Tensor
    maps: Tensor

    def features(self, index: Tensor) -> Features:
        return Features(self.token[index].float(), self.maps[index].float())


@dataclass(frozen=True)
class Live:
    """A store whose pictures are encoded each time that they are asked for."""

    store: Store
    encoder: Encoder

    def features(self, index: Tensor) -> Features:
        return self.encoder(self.store.rgb(index))


@torch.no_grad()
def encoded(store: Store, encoder: Encoder, batch: int = 512) -> Seen:
    """Encode all pictures where they lie, in half precision.

    Args:
        store: on the encoder's device.
        encoder: see ``distill.priors.novel_view.features``.
        batch: pictures at a time.
    """
    count = len(store.pictures)
    device = store.pictures.device
    token = torch.empty(count, encoder.token_width, dtype=torch.float16, device=device)
    maps = torch.empty(count, encoder.grid**2, encoder.map_width, dtype=torch.float16, device=device)
    for part in tqdm(torch.arange(count, device=device).split(batch), desc="encoding", mininterval=5):
        found = encoder(store.rgb(part))
        token[part], maps[part] = found.token.half(), found.maps.half()
    return Seen(store, token, maps)
