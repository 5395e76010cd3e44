"""Noise-free score distillation."""

from __future__ import annotations

import torch
from torch import Tensor

from distill.contracts import Condition, Prior
from distill.domains import Fraction
from distill.guidance import needs_prompt
from distill.guidance.terms import Weighting, add_noise, predict, require, weight


@needs_prompt("negative")
def nfsd(
    prior: Prior,
    x: Tensor,
    cond: Condition,
    t: Tensor,
    noise: Tensor,
    *,
    scale: float = 7.5,
    threshold: Fraction = 0.2,
    weighting: Weighting = "sigma_squared",
) -> Tensor:
    r"""Follow the prompt and move away from bad pictures, without the noise term of SDS.

    .. math:: g = w(t) [\delta_D + s (\epsilon_c - \epsilon_u)], \quad
        \delta_D = \epsilon_u \text{ for } t < \tau, \text{ else } \epsilon_u - \epsilon_n

    Args:
        prior: the frozen diffusion model.
        x: clean picture in the prior's space, shape ``[batch, channel, height, width]``.
        cond: the prompt's, the empty prompt's and the negative prompt's embeddings.
        t: integer timesteps, shape ``[batch]``.
        noise: standard normal, same shape as ``x``.
        scale: weight of the prompt's direction, dimensionless.
        threshold: tau, the timestep, as a fraction of the prior's, below which the unconditional prediction stands for the direction towards
            pictures of the domain.
        weighting: ``sigma_squared`` (1 - abar), ``uniform``, ``fantasia3d`` or ``hifa`` (sigma / alpha).

    Returns:
        dL/dx, same shape as ``x``, detached, not averaged over the batch.

    Raises:
        ValueError: the negative prompt is missing, ``t`` is outside the prior's range, or ``weighting`` is unknown.

    Source: Katzir et al. 2023, arXiv:2310.17590, with tau = 200 of 1000.
    """
    x_t = add_noise(prior, x, t, noise)
    require(cond, "negative", "nfsd")
    text, uncond, negative = predict(prior, x_t, t, cond, "text", "uncond", "negative")
    small = (t < threshold * prior.num_timesteps)[:, None, None, None]
    domain = torch.where(small, uncond, uncond - negative)
    return (weight(prior, t, weighting) * (domain + scale * (text - uncond))).detach()
