"""Track which cells of the cube are occupied, so that ray marching can skip the rest."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from nerfacc import OccGridEstimator

#: The march's cube, as nerfacc writes a box.
BOX = [-1.0, -1.0, -1.0, 1.0, 1.0, 1.0]
#: What is left of a cell's value at each update.
DECAY = 0.8
#: Steps of a code, see ``encoded``, that make one ``DECAY``; and evaluations of every cell of a scene that was never tracked.
STEPS, EVALUATIONS = 4, 4


def occupancy_grid(resolution: int) -> OccGridEstimator:
    """Nerfacc's grid over the cube [-1, 1]^3, a module with every cell occupied to begin with.

    Args:
        resolution: cells along an axis.

    Raises:
        ValueError: ``resolution`` is below 2.
    """
    if resolution < 2:
        raise ValueError(f"expected an occupancy resolution of at least 2, got {resolution}")
    from nerfacc import OccGridEstimator

    grid = OccGridEstimator(roi_aabb=BOX, resolution=resolution, levels=1)
    grid.binaries.fill_(True)
    return grid


def update_occupancy(
    grid: OccGridEstimator,
    density: Callable[[Tensor], Tensor],
    step_size: float,
    generator: torch.Generator,
    threshold: float = 0.01,
    decay: float = DECAY,
) -> None:
    """Evaluate every cell at a random point, and keep those whose decayed maximum passes the threshold.

    Args:
        grid: from ``occupancy_grid``.
        density: of points ``[n, 3]`` to ``[n]``, per scene unit.
        step_size: of the march, scene units; what is compared is the opacity of one step.
        generator: where the points come from. Nerfacc draws from torch's global generator, which is seeded
            for the call and put back.
        threshold: opacity of one step below which a cell is empty (or the grid's mean, where that is lower).
        decay: what is left of a cell's value at each update.
    """
    device = grid.occs.device
    seed = int(torch.randint(2**62, (1,), generator=generator, device=generator.device))

    def opacity(points: Tensor) -> Tensor:
        return -torch.expm1(-density(points) * step_size)[:, None]

    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), torch.no_grad():
        torch.manual_seed(seed)
        # No end to the warm-up: all cells each time is cheap at these resolutions, and avoids the writes to
        # repeated indices, whose order is undefined.
        was_training = grid.training
        grid.train().update_every_n_steps(
            0, opacity, occ_thre=threshold, ema_decay=decay, warmup_steps=1, n=1
        )
        grid.train(was_training)
    if not bool(grid.binaries.any()):
        grid.binaries.fill_(True)  # an empty grid would stay empty: nothing would be rendered or learnt


def settle(
    grid: OccGridEstimator, density: Callable[[Tensor], Tensor], step_size: float, threshold: float
) -> None:
    """Find where a scene is that was never tracked, from a generator of its own: the same each time."""
    g = torch.Generator().manual_seed(0)
    grid.occs.zero_()
    for _ in range(EVALUATIONS):
        update_occupancy(grid, density, step_size, g, threshold, decay=1.0)


def encoded(values: Tensor) -> Tensor:
    """Write the values of cells in [0, 1] as bytes on a logarithmic scale: 255 is 1, and 0 is anything below 7e-7.

    A byte's value is within 2.9 percent of what was written, and ``STEPS`` bytes further down it is ``DECAY`` of it: what decays and
    is written again and again loses nothing by it.
    """
    codes = 255 + torch.log(values) * (STEPS / -math.log(DECAY))
    return codes.round().nan_to_num(0).clamp(0, 255).byte()


def decoded(codes: Tensor) -> Tensor:
    """The values of cells that ``encoded`` wrote, in single precision."""
    values = torch.exp((codes.float() - 255) * (-math.log(DECAY) / STEPS))
    return torch.where(codes > 0, values, 0.0)
