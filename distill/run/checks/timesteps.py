"""Which timesteps a run draws, and whether there are any."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from torch import Tensor

from distill.options import schedules_in
from distill.samplers.schedules import scheduled_sampler


class Levels:
    """Stands for a prior that is not loaded yet: a thousand noise levels, on a cosine schedule."""

    num_timesteps = 1000
    device = torch.device("cpu")

    def alpha(self, t: Tensor) -> Tensor:
        return (math.pi / 2 * (t + 0.5) / self.num_timesteps).cos()

    def sigma(self, t: Tensor) -> Tensor:
        return (math.pi / 2 * (t + 0.5) / self.num_timesteps).sin()


def check_range(config: DictConfig, sampler: Callable[..., Any]) -> None:
    """Check that one of the library's samplers has timesteps to draw at all points of the run; others may ask more of a prior.

    Raises:
        ValueError: it has none, or would not fall where it must.
    """
    if sampler.__module__ == "distill.samplers.timesteps":
        make = instantiate(config.timesteps, _convert_="all")
        try:
            scheduled_sampler(make, prior=Levels(), **schedules_in(config, "timesteps"))
        except ValueError as error:
            raise ValueError(f"timesteps={sampler.__name__}: {error}") from error
