r"""Perp-Neg: the views that a camera does not see, taken away where they differ from the one that it sees.

.. math:: \hat\epsilon_c = \epsilon_u + \Delta_+ + \sum_i w_i \Delta_i^\perp, \quad
    \Delta_+ = \epsilon_+ - \epsilon_u, \quad
    \Delta_i^\perp = \Delta_i - \frac{\langle \Delta_i, \Delta_+ \rangle}{\|\Delta_+\|^2} \Delta_+, \quad w_i \le 0

It stands in for the prediction under the prompt, whatever the loss makes of that. Between two views the prompt's
embedding is interpolated, and the weights follow :math:`-(a e^{-b r} + c)`.

Source: Armandpour et al. 2023, arXiv:2304.04968, Sec. 4; the curves' numbers as in the authors' 3D experiments.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from distill.cameras import Cameras
from distill.contracts import Embedding

#: Views by place, as ``distill.conditions.prompts.FOUR_VIEWS``.
FRONT, SIDE, BACK, OVERHEAD_VIEW = range(4)
#: What an embedding's extra tensors are called: those of the views to stay away from and of no prompt, and how much.
PREFIX, WEIGHT = "away.", "away"


@dataclass(frozen=True)
class Curves:
    """How much another view is pushed away: ``(a, b, c)`` of ``a exp(-b r) + c``, r the share of the view that counts.

    Attributes:
        front_from_side: of the front, seen between front and side.
        side_from_front: of the side, there.
        side_from_back: of the side, seen between side and back.
        front_from_back: of the front, there.
    """

    front_from_side: tuple[float, float, float] = (4.0, 0.5, -2.426)
    side_from_front: tuple[float, float, float] = (4.0, 0.5, -2.426)
    side_from_back: tuple[float, float, float] = (1.0, 0.5, -0.606)
    front_from_back: tuple[float, float, float] = (1.0, 0.5, 0.967)


@dataclass(frozen=True)
class Shares:
    """What one camera is told.

    Attributes:
        views: the two views that its prompt lies between.
        share: of the first of them.
        away: the two views to stay away from.
        weights: how much, at most 0.
    """

    views: tuple[int, int]
    share: float
    away: tuple[int, int]
    weights: tuple[float, float]


#: From above there is nothing to stay away from.
OVERHEAD = Shares((OVERHEAD_VIEW, OVERHEAD_VIEW), 1.0, (FRONT, SIDE), (0.0, 0.0))


def curve(numbers: Sequence[float], r: float) -> float:
    a, b, c = numbers
    return a * math.exp(-b * r) + c


def shares(azimuth_deg: float, curves: Curves) -> Shares:
    """What a camera at an azimuth is told, 0 being the front."""
    turned = abs((azimuth_deg + 180) % 360 - 180)
    if turned < 90:
        r = 1 - turned / 90
        weights = -curve(curves.front_from_side, r), -curve(curves.side_from_front, 1 - r)
        return Shares((FRONT, SIDE), r, (FRONT, SIDE), weights)
    r = 2 - turned / 90
    weights = -curve(curves.side_from_back, r), -curve(curves.front_from_back, r)
    return Shares((SIDE, BACK), r, (SIDE, FRONT), weights)


def embed(four: Embedding, empty: Embedding, told: Sequence[Shares]) -> Embedding:
    """Embeddings for cameras: interpolated between views, with what to stay away from beside.

    Args:
        four: of front, side, back and overhead, in this order.
        empty: of no prompt, one row.
        told: of every camera.
    """
    first, second = ([one.views[i] for one in told] for i in (0, 1))
    share = torch.tensor([one.share for one in told])
    found = {}
    for name, value in four.items():
        if value.is_floating_point():
            mine = share.to(value).view(-1, *[1] * (value.dim() - 1))
            found[name] = mine * value[first] + (1 - mine) * value[second]
        else:  # which tokens count
            found[name] = torch.maximum(value[first], value[second])
    weights = torch.tensor([one.weights for one in told])
    others = torch.tensor([one.away for one in told])
    away = {
        name: torch.cat([value[others], empty[name].expand(len(told), 1, *value.shape[1:])], dim=1)
        for name, value in four.items()
    }
    return beside(found, {**away, WEIGHT: weights.to(next(iter(four.values())).device)})


def none(batch: int, like: Embedding) -> Embedding:
    """What stands beside an embedding that stays away from nothing."""
    away = {name: value[:, None].expand(-1, 3, *value.shape[1:]) for name, value in like.items()}
    return {**away, WEIGHT: torch.zeros(batch, 2, device=next(iter(like.values())).device)}


def beside(found: Embedding, away: Embedding) -> Embedding:
    """An embedding with what to stay away from."""
    more = {name if name == WEIGHT else f"{PREFIX}{name}": value for name, value in away.items()}
    return {**found, **more}


def split(cond: Embedding) -> tuple[Embedding, Embedding]:
    """Undo ``beside``: the embedding, and what to stay away from."""
    away = {name.removeprefix(PREFIX): value for name, value in cond.items() if name.startswith(WEIGHT)}
    return {name: value for name, value in cond.items() if not name.startswith(WEIGHT)}, away


@dataclass(frozen=True)
class PerpNegPrior:
    """A prior whose prediction under a prompt stays away from other views; all else is the prior's.

    Attributes:
        prior: predicts.
    """

    prior: Any

    def __getattr__(self, name: str) -> Any:
        return getattr(self.prior, name)

    @property
    def trainable(self) -> PerpNegPrior | None:
        """Itself, which trains the plain prompt, where the prior is trainable."""
        return None if self.prior.trainable is None else self

    def predict_noise(
        self, x_t: Tensor, t: Tensor, cond: Embedding, cameras: Cameras | None = None
    ) -> Tensor:
        """Predict the noise in ``x_t``, same shape; one call, with three rows more for each that stays away."""
        own, away = split(cond)
        weights = away.get(WEIGHT)
        if weights is None or not weights.any():
            found: Tensor = self.prior.predict_noise(x_t, t, own, cameras)
            return found
        rows = weights.any(dim=1).nonzero()[:, 0]
        # The empty prompt, then the two views; what comes from no prompt, a ControlNet's picture, is the same for all.
        joined = {
            name: torch.cat(
                [value, *(away[name][rows, i] if name in away else value[rows] for i in (2, 0, 1))]
            )
            for name, value in own.items()
        }
        asked = torch.cat([x_t, *[x_t[rows]] * 3]), torch.cat([t, *[t[rows]] * 3])
        if cameras is not None:
            places = [rows.to(cameras.c2w.device)] * 3
            cameras = Cameras(*(torch.cat([v, *(v[i] for i in places)]) for v in vars(cameras).values()))
        found = self.prior.predict_noise(*asked, joined, cameras)
        noise, *parts = found.split([len(x_t), *[len(rows)] * 3])
        empty, *negatives = parts
        toward = noise[rows] - empty
        noise = noise.clone()
        for i, negative in enumerate(negatives):
            noise[rows] += weights[rows, i].to(noise).view(-1, 1, 1, 1) * perpendicular(
                negative - empty, toward
            )
        return noise

    def forward(self, x_t: Tensor, t: Tensor, cond: Embedding, cameras: Cameras | None = None) -> Tensor:
        """The prior's, with gradient: a student learns the plain prompt."""
        result: Tensor = self.prior.trainable.forward(x_t, t, split(cond)[0], cameras)
        return result


def perpendicular(part: Tensor, to: Tensor) -> Tensor:
    """What of ``part`` is perpendicular to ``to``, each of a batch by itself."""
    along = (part * to).flatten(1).sum(1) / to.flatten(1).square().sum(1).clamp(min=1e-12)
    return part - along.view(-1, *[1] * (part.dim() - 1)) * to
