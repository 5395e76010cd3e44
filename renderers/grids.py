"""Values at the nodes of a grid over the cube."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import grid_sample


def nodes(resolution: int, device: torch.device) -> Tensor:
    """Nodes of a grid over the cube, in radii, x first, shape ``[resolution**3, 3]``."""
    axis = torch.linspace(-1, 1, resolution, device=device)
    return torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), dim=-1).view(-1, 3)


def interpolated(grid: Tensor, points: Tensor) -> Tensor:
    """Values of a grid over the cube, x first, ``[r, r, r]``, at points ``[n, 3]``, clamped to it; trilinear, ``[n]``."""
    places = points.to(grid).flip(-1).view(1, 1, 1, -1, 3)  # torch has the last axis first
    return grid_sample(grid[None, None], places, padding_mode="border", align_corners=True).view(-1)
