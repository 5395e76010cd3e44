"""Signal and noise scales of a diffusers scheduler at each timestep."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Mapping

    from diffusers.schedulers.scheduling_utils import SchedulerMixin


@dataclass(frozen=True)
class Schedule:
    """``x_t = alpha x + sigma eps``, for timesteps 0, 1, ... in order of rising noise.

    A timestep at which nothing is left of the picture (alpha = 0) is not among them: what a network says there tells
    nothing of the noise.

    Attributes:
        alpha: signal scale, float32, shape ``[num_timesteps]``.
        sigma: noise scale, same shape.
        time: what the network is told, same shape.
        prediction: what it gives, one of ``distill.priors.predictions.KINDS``.
    """

    alpha: Tensor
    sigma: Tensor
    time: Tensor
    prediction: str

    def __len__(self) -> int:
        return len(self.alpha)

    def to(self, device: torch.device) -> Schedule:
        """The same on a device."""
        return Schedule(self.alpha.to(device), self.sigma.to(device), self.time.to(device), self.prediction)


#: What a network may be said to predict; the others follow from the scheduler.
PREDICTIONS = ("epsilon", "v_prediction", "sample")
#: Share of the picture that is left at the noisiest timestep, at least.
LEAST = 1e-4


def check_prediction(scheduler: SchedulerMixin, prediction_type: str) -> None:
    """Check that a kind of prediction may be named for a scheduler of diffusers.

    Raises:
        ValueError: there is no such kind, or the scheduler is one of flow matching.
    """
    if prediction_type not in PREDICTIONS:
        raise ValueError(
            f"prior_options.prediction_type must be one of {', '.join(PREDICTIONS)}, got {prediction_type!r}"
        )
    name, config = type(scheduler).__name__, scheduler.config
    if "FlowMatch" in name or config.get("use_flow_sigmas"):
        raise ValueError(
            f"prior_options.prediction_type={prediction_type} is for models of noise, and this one, with {name}, is a model of "
            "flow; leave it out"
        )


def read_schedule(scheduler: SchedulerMixin, patches: int = 0) -> Schedule:
    """The table of a diffusers scheduler.

    Args:
        scheduler: variance preserving, or flow matching.
        patches: of a picture, where the scheduler shifts its noise by the picture's size; 0 is unknown.

    Raises:
        ValueError: its kind is unknown.
    """
    config = scheduler.config
    name, steps = type(scheduler).__name__, config.num_train_timesteps
    if "FlowMatch" in name:
        shift = {"mu": shift_for(config, patches)} if config.get("use_dynamic_shifting") else {}
        scheduler.set_timesteps(sigmas=np.arange(steps - 1, 0, -1) / steps, **shift)
        sigma, time = scheduler.sigmas[:-1].flip(0), scheduler.timesteps.flip(0)
        return Schedule(1 - sigma, sigma, time, "flow")
    if config.get("use_flow_sigmas"):
        scheduler.set_timesteps(steps - 1)
        sigma, time = scheduler.sigmas[: steps - 1].flip(0).float(), scheduler.timesteps.flip(0)
        left = 1 - sigma >= LEAST  # UniPC's noisiest is as good as pure noise
        return Schedule(1 - sigma[left], sigma[left], time[left], "flow")
    abar = getattr(scheduler, "alphas_cumprod", None)
    prediction = config.get("prediction_type", "epsilon")
    if abar is None or prediction not in PREDICTIONS:
        raise ValueError(
            f"a prior's scheduler must have alphas_cumprod and predict epsilon, v_prediction or sample, or be one of flow "
            f"matching; got {name} with prediction_type {prediction!r}"
        )
    abar = abar[abar > 0].float()
    return Schedule(abar.sqrt(), (1 - abar).sqrt(), torch.arange(len(abar)), prediction)


def shift_for(config: Mapping[str, Any], patches: int) -> float:
    """Return the timestep shift for a number of patches, interpolated linearly between two sizes.

    Source: Esser et al. 2024 (Stable Diffusion 3), arXiv:2403.03206, Sec. 5.3.2, as FLUX uses it.
    """
    few, many = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
    low, high = config.get("base_shift", 0.5), config.get("max_shift", 1.15)
    return float(low + (high - low) * (patches - few) / (many - few))
