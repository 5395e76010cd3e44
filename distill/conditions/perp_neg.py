r"""Perp-Neg: the prompts of other views as negative prompts, restricted to their component perpendicular to the current view's.

.. math:: \hat\epsilon_c = \epsilon_u + \Delta_+ + \sum_i w_i \Delta_i^\perp, \quad
    \Delta_+ = \epsilon_+ - \epsilon_u, \quad
    \Delta_i^\perp = \Delta_i - \frac{\langle \Delta_i, \Delta_+ \rangle}{\|\Delta_+\|^2} \Delta_+, \quad w_i \le 0

It stands in for the prediction under the prompt, whatever the loss makes of that. Between two views the prompt's
embedding is interpolated, and the weights follow :math:`-(a e^{-b r} + c)`. :math:`\epsilon_u` is the prediction that
guidance leads away from, the negative prompt's where there is one.

Source: Armandpour et al. 2023, arXiv:2304.04968, Sec. 4. The default curves are threestudio's; ``PUBLISHED`` has those of the
authors' 3D code, too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from distill.conditions.choices import CURVES
from distill.contracts import Condition, Embedding
from distill.transfer import send

#: Views by place, as ``distill.conditions.prompts.FOUR_VIEWS``.
FRONT, SIDE, BACK, OVERHEAD_VIEW = range(4)


@dataclass(frozen=True)
class Curves:
    """Perp-Neg weights of the other views: ``(a, b, c)`` of ``a exp(-b r) + c``, with r the interpolation weight of the view.

    A fourth number is a cut-off: the weight is 0 where r is above it.

    Attributes:
        front_from_side: of the front, seen between front and side.
        side_from_front: of the side, there.
        side_from_back: of the side, seen between side and back.
        front_from_back: of the front, there.
        strength: factor of all weights; 0.5 in ScaleDreamer, 3 in Classifier Score Distillation.
    """

    front_from_side: tuple[float, ...] = (4.0, 0.5, -2.426)
    side_from_front: tuple[float, ...] = (4.0, 0.5, -2.426)
    side_from_back: tuple[float, ...] = (1.0, 0.5, -0.606)
    front_from_back: tuple[float, ...] = (1.0, 0.5, 0.967)
    strength: float = 1.0


#: The curves by whose code they are from; ``authors`` is Perp-Neg's own for 3D, with its cut-offs.
PUBLISHED = dict(
    zip(
        CURVES,
        (
            Curves(),
            Curves((2.0, 2.0, 0.0, 0.8), (2.0, 10.0, 0.0, 0.8), (1.0, 10.0, 0.0, 0.8), (0.0, 1.0, 2.0)),
        ),
        strict=True,
    )
)


@dataclass(frozen=True)
class Shares:
    """Interpolation weights of the view prompts for one camera.

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
    a, b, c, *cut_off = numbers
    return 0.0 if cut_off and r > cut_off[0] else a * math.exp(-b * r) + c


def shares(azimuth_deg: float, curves: Curves) -> Shares:
    """Return a camera's interpolation weights; azimuth 0 is the front."""
    turned = abs((azimuth_deg + 180) % 360 - 180)
    if turned < 90:
        r = 1 - turned / 90
        found, views, others = (
            (curve(curves.front_from_side, r), curve(curves.side_from_front, 1 - r)), (FRONT, SIDE), (FRONT, SIDE),
        )  # fmt: skip
    else:
        r = 2 - turned / 90
        found, views, others = (
            (curve(curves.side_from_back, r), curve(curves.front_from_back, r)), (SIDE, BACK), (SIDE, FRONT),
        )  # fmt: skip
    return Shares(views, r, others, (-curves.strength * found[0], -curves.strength * found[1]))


def interpolate(four: Embedding, shares: Sequence[Shares]) -> Embedding:
    """Interpolate the prompt's embeddings between the two views that each camera lies between.

    Args:
        four: embeddings of front, side, back and overhead, in this order.
        shares: of every camera.
    """
    where = next(iter(four.values())).device
    first, second = send(torch.tensor([one.views for one in shares]).T.contiguous(), where)
    share = send(torch.tensor([one.share for one in shares]), where)
    found = {}
    for name, value in four.items():
        if value.is_floating_point():
            mine = share.to(value).view(-1, *[1] * (value.dim() - 1))
            found[name] = mine * value[first] + (1 - mine) * value[second]
        else:  # attention masks
            found[name] = torch.maximum(value[first], value[second])
    return found


def away(four: Embedding, shares: Sequence[Shares]) -> tuple[dict[str, Embedding], Tensor]:
    """Embed the views that each camera's prediction is pushed away from.

    Args:
        four: embeddings of front, side, back and overhead, in this order.
        shares: of every camera.

    Returns:
        The prompts ``away_0`` and ``away_1`` of a condition, and its ``away``.
    """
    where = next(iter(four.values())).device
    rows = send(torch.tensor([one.away for one in shares]).T.contiguous(), where)
    prompts: dict[str, Embedding] = {f"away_{i}": select(four, rows[i]) for i in (0, 1)}
    return prompts, torch.tensor([one.weights for one in shares])


def select(embedding: Embedding, rows: Tensor) -> Embedding:
    """Take rows of an embedding."""
    return {name: value[rows] for name, value in embedding.items()}


class Pushed(NamedTuple):
    """The pictures of a batch that Perp-Neg changes, by index, and the weights of their two views."""

    rows: Tensor
    weights: Tensor


def pushed(cond: Condition) -> Pushed | None:
    """Return the pictures that Perp-Neg changes, None where there are none."""
    if cond.away is None:
        return None
    rows = cond.away.any(dim=1).nonzero()[:, 0]
    if not len(rows):
        return None
    where = next(iter(cond.text.values())).device
    return Pushed(send(rows, where), send(cond.away[rows], where))


def embeddings(cond: Condition) -> tuple[Embedding, Embedding, Embedding]:
    """Return the embeddings that Perp-Neg evaluates in addition to the prompt: ``cond.origin``'s and those of two views."""
    return cond.prompts[cond.origin], cond.prompts["away_0"], cond.prompts["away_1"]


def combine(noise: Tensor, others: Sequence[Tensor], pushed: Pushed) -> Tensor:
    """Push the prediction under the prompt away from the other views.

    Args:
        noise: predicted under the prompt, shape ``[batch, ...]``.
        others: predicted for the pushed pictures alone under ``embeddings``, in that order.
        pushed: which of the batch, and how much.
    """
    origin, *views = others
    rows, toward, noise = pushed.rows, noise[pushed.rows] - origin, noise.clone()
    for i, view in enumerate(views):
        weight = pushed.weights[:, i].to(noise).view(-1, 1, 1, 1)
        noise[rows] += weight * perpendicular(view - origin, toward)
    return noise


def perpendicular(part: Tensor, to: Tensor) -> Tensor:
    """Return the component of ``part`` that is perpendicular to ``to``, for each element of a batch."""
    along = (part * to).flatten(1).sum(1) / to.flatten(1).square().sum(1).clamp(min=1e-12)
    return part - along.view(-1, *[1] * (part.dim() - 1)) * to
