"""Estimate the azimuth of a picture through a text-to-image prior that is told directions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from distill.cameras import turntable
from distill.contracts import Step
from distill.guidance.terms import add_noise

if TYPE_CHECKING:
    from distill.contracts import Conditioner, Prior

#: Directions that are compared; what the bundled priors are told.
DIRECTIONS = 16
#: Noise levels that are compared, fractions of T: finer ones are decided by texture, higher ones show no sides.
LEVELS = (0.45, 0.6, 0.7, 0.8, 0.88)
#: Directions up to so far from the front are chosen: pictures of things show their fronts, and a back often looks like one.
FRONT_DEG = 90.0
#: Noises at each level.
DRAWS = 4


@dataclass(frozen=True)
class AzimuthEstimate:
    """The azimuth of a picture, with what it was chosen by.

    Attributes:
        azimuth_deg: of the camera, degrees from the object's front.
        errors: the denoising error for each azimuth, smoothed over its neighbours.
    """

    azimuth_deg: float
    errors: dict[float, float]


@torch.no_grad()
def estimate_azimuth(
    prior: Prior, condition: Conditioner, rgb: Tensor, elevation_deg: float, generator: torch.Generator
) -> AzimuthEstimate:
    """Choose the direction whose prompt explains a picture best: that with the smallest denoising error.

    This is zero-shot classification by a diffusion model (Li et al. 2023, arXiv:2303.16203), with one prompt for each direction and
    the same noises for all. Neighbouring directions look alike, so each error is smoothed with its neighbours' by the weights 1/4,
    1/2, 1/4. Only directions of the front half are chosen.

    Args:
        prior: is told directions.
        condition: of the prompt, with the direction of each camera.
        rgb: the picture, over white, in [0, 1], shape ``[3, height, width]``.
        elevation_deg: of the camera that took it.
        generator: of the noises, on the CPU.
    """
    cameras = turntable(DIRECTIONS, elevation_deg)
    told = condition(cameras, Step()).text
    x = prior.encode(rgb[None].to(prior.device))
    errors = torch.zeros(DIRECTIONS)
    for level in LEVELS:
        t = torch.full((DIRECTIONS,), round(level * prior.num_timesteps), device=prior.device)
        for _ in range(DRAWS):
            noise = torch.randn(x.shape, generator=generator).to(x).expand(DIRECTIONS, -1, -1, -1)
            found = prior.predict_noise(add_noise(prior, x.expand_as(noise), t, noise), t, told)
            errors += (found - noise).square().mean((1, 2, 3)).cpu()
    errors /= len(LEVELS) * DRAWS
    smooth = (errors.roll(1) + 2 * errors + errors.roll(-1)) / 4
    behind = cameras.azimuth_deg.abs() > FRONT_DEG + 1e-3
    best = int(smooth.masked_fill(behind, torch.inf).argmin())
    azimuths = cameras.azimuth_deg.tolist()
    return AzimuthEstimate(azimuths[best], dict(zip(azimuths, smooth.tolist(), strict=True)))
