"""Timestep samplers: which noise levels a loss sees, and when.

Each takes the prior and its options and returns ``(progress, batch, generator) -> t``, integers of shape
``[batch]``. Ranges are fractions of the prior's timesteps.
"""

from __future__ import annotations

import torch
from torch import Tensor

from distill.contracts import Prior, TimestepSampler
from distill.samplers.schedules import Ramp

__all__ = ["annealed", "uniform"]


def uniform(prior: Prior, *, t_min: float = 0.02, t_max: float = 0.98) -> TimestepSampler:
    """Draw each timestep uniformly, one per picture (DreamFusion, arXiv:2209.14988, Sec. 3.1).

    Args:
        prior: gives the number of timesteps T.
        t_min: lowest timestep, fraction of T, included.
        t_max: highest timestep, fraction of T, included.
    """
    return annealed(prior, t_min=t_min, t_min_end=t_min, t_max=t_max, t_max_end=t_max)


def annealed(
    prior: Prior,
    *,
    t_min: float = 0.02,
    t_min_end: float = 0.02,
    t_max: float = 0.98,
    t_max_end: float = 0.5,
    from_fraction: float = 0.0,
    to_fraction: float = 1.0,
) -> TimestepSampler:
    """Draw uniformly from a range whose two ends move linearly over training.

    Args:
        prior: gives the number of timesteps T.
        t_min: lowest timestep at the start, fraction of T.
        t_min_end: lowest timestep at the end.
        t_max: highest timestep at the start, fraction of T, included.
        t_max_end: highest timestep at the end.
        from_fraction: fraction of training at which the range begins to move.
        to_fraction: fraction of training at which it stops.

    Raises:
        ValueError: a range is empty or leaves [0, 1].
    """
    for low, high in ((t_min, t_max), (t_min_end, t_max_end)):
        if not 0 <= low <= high <= 1:
            raise ValueError(f"timesteps need 0 <= t_min <= t_max <= 1 throughout, got {low} and {high}")
    lowest = Ramp(t_min, t_min_end, from_fraction, to_fraction)
    highest = Ramp(t_max, t_max_end, from_fraction, to_fraction)
    steps = prior.num_timesteps

    def sample(progress: float, batch: int, generator: torch.Generator) -> Tensor:
        low = min(round(lowest(progress) * steps), steps - 1)
        high = min(round(highest(progress) * steps), steps - 1)
        return torch.randint(low, max(high, low) + 1, (batch,), generator=generator)

    return sample
