"""Estimate what a picture shows through a text-to-image prior: its azimuth, if the prior is told directions, and its colour."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from distill.cameras import turntable
from distill.contracts import Step
from distill.guidance.terms import add_noise

if TYPE_CHECKING:
    from distill.cameras import Cameras
    from distill.contracts import Conditioner, Embedding, Prior

#: Directions that are compared; what the bundled priors are told.
DIRECTIONS = 16
#: Noise levels that are compared, fractions of T: finer ones are decided by texture, higher ones show no sides.
LEVELS = (0.45, 0.6, 0.7, 0.8, 0.88)
#: Directions up to so far from the front are chosen: pictures of things show their fronts, and a back often looks like one.
FRONT_DEG = 90.0
#: Noises at each level for directions; fewer are enough for wordings, whose errors differ more.
DRAWS, WORDING_DRAWS = 4, 1
#: By how much less error another wording must explain a picture: 0.01 was noise, and true colours were 0.04 to 0.8.
MARGIN = 0.03

#: Least cosine of the hues of a pixel and of a colour, least distance of a pixel from grey, and least share of pixels that show a colour.
SAME_HUE, GREY, SHOWN = 0.9, 0.1, 0.1


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
def denoising_errors(prior: Prior, told: Embedding, x: Tensor, noises: Tensor) -> Tensor:
    """Compute the denoising error of a picture with each of some prompts: the smaller it is, the better a prompt explains the picture.

    This is zero-shot classification by a diffusion model (Li et al. 2023, arXiv:2303.16203), with the same noises for all prompts.

    Args:
        prior: predicts the noise.
        told: ``n`` embedded prompts.
        x: the picture in the prior's own space, shape ``[1, ...]``.
        noises: of each of ``LEVELS``, shape ``[levels, draws, ...]``, on the CPU.

    Returns:
        Mean squared errors, shape ``[n]``, on the CPU.
    """
    n = len(next(iter(told.values())))
    errors = torch.zeros(n)
    for level, draws in zip(LEVELS, noises, strict=True):
        t = torch.full((n,), round(level * prior.num_timesteps), device=prior.device)
        for draw in draws:
            noise = draw.to(x).expand(n, *x.shape[1:])
            found = prior.predict_noise(add_noise(prior, x.expand_as(noise), t, noise), t, told)
            errors += (found - noise).square().flatten(1).mean(1).cpu()
    return errors / (noises.shape[0] * noises.shape[1])


def noises_for(x: Tensor, draws: int, generator: torch.Generator) -> Tensor:
    """Draw the noises of ``denoising_errors`` for a picture ``[1, ...]``: so many for each level."""
    return torch.randn(len(LEVELS), draws, *x.shape[1:], generator=generator)


def estimate_azimuth(
    prior: Prior, condition: Conditioner, rgb: Tensor, elevation_deg: float, generator: torch.Generator
) -> AzimuthEstimate:
    """Choose the direction whose prompt explains a picture best: that with the smallest denoising error.

    Neighbouring directions look alike, so each error is smoothed with its neighbours' by the weights 1/4, 1/2, 1/4. Only directions of
    the front half are chosen.

    Args:
        prior: is told directions.
        condition: of the prompt, with the direction of each camera.
        rgb: the picture, over white, in [0, 1], shape ``[3, height, width]``.
        elevation_deg: of the camera that took it.
        generator: of the noises, on the CPU.
    """
    cameras = turntable(DIRECTIONS, elevation_deg)
    x = prior.encode(rgb[None].to(prior.device))
    told = condition(cameras, Step()).text
    errors = denoising_errors(prior, told, x, noises_for(x, DRAWS, generator))
    smooth = (errors.roll(1) + 2 * errors + errors.roll(-1)) / 4
    best = int(smooth.masked_fill(~_in_front(cameras), torch.inf).argmin())
    azimuths = cameras.azimuth_deg.tolist()
    return AzimuthEstimate(azimuths[best], dict(zip(azimuths, smooth.tolist(), strict=True)))


def in_front(elevation_deg: float) -> Cameras:
    """Return cameras in the front half, one for each direction that ``estimate_azimuth`` may choose."""
    cameras = turntable(DIRECTIONS, elevation_deg)
    return cameras[_in_front(cameras).nonzero()[:, 0]]


def _in_front(cameras: Cameras) -> Tensor:
    return cameras.azimuth_deg.abs() <= FRONT_DEG + 1e-3


def compare_wordings(
    prior: Prior,
    conditions: Mapping[str, Conditioner],
    rgb: Tensor,
    cameras: Cameras,
    generator: torch.Generator,
) -> dict[str, float]:
    """Compare wordings of a prompt, such as in several colours, by how well they explain a picture.

    Args:
        prior: evaluates them.
        conditions: of each wording.
        rgb: the picture, over white, in [0, 1], shape ``[3, height, width]``.
        cameras: those that may have taken it.
        generator: of the noises, on the CPU.

    Returns:
        The denoising error of each wording, at the camera with the smallest.
    """
    x = prior.encode(rgb[None].to(prior.device))
    noises = noises_for(x, WORDING_DRAWS, generator)
    return {
        text: denoising_errors(prior, condition(cameras, Step()).text, x, noises).min().item()
        for text, condition in conditions.items()
    }


def shown_colours(rgb: Tensor, mask: Tensor, colours: Mapping[str, Sequence[float]]) -> list[str]:
    """The colours whose hue a picture of an object shows, lighter or darker.

    Args:
        rgb: in [0, 1], shape ``[3, height, width]``.
        mask: coverage in [0, 1], shape ``[1, height, width]``.
        colours: in [0, 1], by name.

    Returns:
        Those that a tenth of the object's pixels or more are like: by the cosine of what differs from grey, above 0.9.
    """

    def chroma(values: Tensor) -> Tensor:
        return values - values.mean(dim=1, keepdim=True)

    own, known = (
        chroma(rgb.flatten(1).T[mask.flatten() > 0.9].cpu()),
        chroma(torch.tensor(list(colours.values()))),
    )
    if not len(own):
        return []
    cosine = (
        torch.nn.functional.normalize(own, dim=1, eps=GREY) @ torch.nn.functional.normalize(known, dim=1).T
    )
    share = (cosine > SAME_HUE).float().mean(dim=0)
    return [name for name, of in zip(colours, share.tolist(), strict=True) if of >= SHOWN]


def better_wording(errors: Mapping[str, float]) -> str:
    """The wording with the smallest error, if it is smaller than the first one's by ``MARGIN`` of it; else the first."""
    first, best = next(iter(errors)), min(errors, key=lambda text: errors[text])
    return best if errors[best] < (1 - MARGIN) * errors[first] else first
