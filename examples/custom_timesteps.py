"""A custom timestep law in one file, and an asset made with it: timesteps that fall along a cosine.

    python examples/custom_timesteps.py "a red mug" timesteps.power=2 iterations=200

They follow from the point in training and the generator alone, so that a resumed run draws the same.
"""

from __future__ import annotations

import math
import sys

import torch
from torch import Tensor

from distill.cli import main
from distill.contracts import Prior, TimestepSampler
from distill.domains import Fraction, Positive
from distill.samplers import timesteps
from distill.samplers.timesteps import bounds


@timesteps.register
def cosine(
    prior: Prior, *, t_min: Fraction = 0.02, t_max: Fraction = 0.98, power: Positive = 1.0
) -> TimestepSampler:
    r"""Go down along :math:`t(p) = t_{min} + (t_{max} - t_{min}) \cos^k(\pi p / 2)`, one timestep for the whole batch.

    Args:
        prior: gives the number of timesteps T.
        t_min: lowest timestep, fraction of T.
        t_max: highest timestep, fraction of T.
        power: k; above 1, the fall is early.
    """
    low, high = bounds(prior, t_min, t_max)

    def sample(progress: float, batch: int, generator: torch.Generator) -> Tensor:
        return torch.full((batch,), round(low + (high - low) * math.cos(math.pi / 2 * progress) ** power))

    return sample


if __name__ == "__main__":
    # The command line with this law; distill.generate("a red mug", timesteps="cosine") is the same from Python.
    main(["timesteps=cosine", *sys.argv[1:]])
