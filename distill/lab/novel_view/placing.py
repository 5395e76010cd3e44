"""Where an object stands in a set of renders: on the axis that the cameras go round, or beside it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from distill.cameras import Cameras


def in_ball(g: np.random.Generator, radius: float) -> NDArray[Any]:
    """A point, equally likely anywhere in a ball about the origin, shape ``[3]``."""
    direction = g.standard_normal(3)
    return radius * g.uniform() ** (1 / 3) * direction / np.linalg.norm(direction)


def within(corners: NDArray[Any], away: NDArray[Any], cameras: Cameras) -> NDArray[Any]:
    """As much of a displacement, in quarters, as leaves an object whole in every picture.

    Args:
        corners: of the object, scene units, shape ``[n, 3]``.
        away: the displacement, shape ``[3]``.
        cameras: that take the pictures.
    """
    for share in (1.0, 0.75, 0.5, 0.25):
        moved = torch.from_numpy(corners + share * away).float()
        if cameras.project(moved).abs().max() <= 1:
            return share * away
    return 0 * away
