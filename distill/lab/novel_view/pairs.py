"""Draw the two views of an object that a training step sees: a function of a seed and a running number."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from distill.lab.novel_view.views import Views
from distill.priors.novel_view.pose import relative


@dataclass(frozen=True)
class Pair:
    """Two views of one object, or a batch of them.

    Attributes:
        condition: the picture that is given, in [0, 1], shape ``[3, size, size]``.
        target: the picture that is wanted, same shape.
        pose: of the target relative to the condition, shape ``[4]``; see ``distill.priors.novel_view.pose``.
        uid: of the object.
        indices: of the two views.
    """

    condition: Tensor
    target: Tensor
    pose: Tensor
    uid: str
    indices: tuple[int, int]


def draw_indices(number: int, objects: int, views: int, seed: int) -> tuple[int, int, int]:
    """The object and two different views of the ``number``-th pair.

    Every pass over the objects has an order of its own. It depends on nothing else, so that a resumed training, or
    one on several processes, sees the same pairs.

    Args:
        number: of the pair, from 0, over all passes.
        objects: how many there are.
        views: of each; at least 2.
        seed: of the training.
    """
    epoch, place = divmod(number, objects)
    order = _order(objects, seed, epoch)
    g = torch.Generator().manual_seed(mixed(seed, number, 1))
    first = int(torch.randint(views, (1,), generator=g))
    second = int(torch.randint(views - 1, (1,), generator=g))
    return int(order[place]), first, second + (second >= first)


@lru_cache(maxsize=2)
def _order(objects: int, seed: int, epoch: int) -> Tensor:
    return torch.randperm(objects, generator=torch.Generator().manual_seed(mixed(seed, epoch, 0)))


def mixed(*numbers: int | str) -> int:
    """Hash several numbers or texts to one seed."""
    digest = hashlib.sha256(repr(numbers).encode()).digest()
    return int.from_bytes(digest[:8], "little") % 2**63


def read_pair(views: Views, uid: str, condition: int, target: int) -> Pair:
    """Read two views of an object."""
    (given, here), (wanted, there) = views.read(uid, condition), views.read(uid, target)
    return Pair(given, wanted, relative(here[None], there[None])[0], uid, (condition, target))


@dataclass(frozen=True)
class Pairs:
    """The pairs of a training, by number, as ``torch.utils.data`` reads them."""

    views: Views
    seed: int
    length: int

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, number: int) -> Pair:
        place, condition, target = draw_indices(number, len(self.views), self.views.count, self.seed)
        return read_pair(self.views, self.views.uids[place], condition, target)
