"""HiFA's distances to the one-step estimate, in the prior's space and in pixels."""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor

from distill.contracts import Condition, Prior
from distill.domains import OneOf
from distill.guidance.terms import WEIGHTINGS, add_noise, predict_guided, through_pixels, weight


def hifa(
    prior: Prior,
    x: Tensor,
    cond: Condition,
    t: Tensor,
    noise: Tensor,
    *,
    scale: float = 100.0,
    image_weight: float = 0.1,
    weighting: Annotated[str, OneOf(lambda: ("constant", *WEIGHTINGS))] = "constant",
) -> Tensor:
    r"""Pull a picture towards the prior's one-step estimate of the clean picture, as a latent and in pixels.

    .. math:: g = w(t) \, \nabla_x \tfrac12 \big[ \|x - \hat x\|^2 + \lambda \|D(x) - D(\hat x)\|^2 \big],
        \quad \hat x = (x_t - \sigma_t \hat\epsilon_s(x_t; c, t)) / \alpha_t

    with the estimate held fixed, D the prior's decoder, and :math:`\lambda` the ``image_weight``. The first term alone is
    SDS with the weight sigma / alpha (``weighting=hifa`` there), times w(t).

    Args:
        prior: the frozen diffusion model.
        x: clean picture in the prior's space, shape ``[batch, channel, height, width]``.
        cond: the prompt's embedding, and the negative or the empty prompt's, from which guidance is measured.
        t: integer timesteps, shape ``[batch]``.
        noise: standard normal, same shape as ``x``.
        scale: classifier-free guidance scale, dimensionless; 1 is purely conditional.
        image_weight: weight of the squared distance in pixels, in [0, 1] each, over that in the prior's space; 0
            omits the decoder. No gradient of the decoded estimate is taken, whose pixels are clipped to [0, 1].
        weighting: ``constant`` (w = 1), or a weight of SDS: ``sigma_squared``, ``uniform``, ``fantasia3d`` or ``hifa``, times
            alpha / sigma.

    Returns:
        dL/dx, same shape as ``x``, detached, not averaged over the batch.

    Raises:
        ValueError: ``t`` is outside the prior's range, or ``weighting`` is unknown.

    Source: Zhu et al. 2023, arXiv:2305.18766, and the authors' code, whose weights ``constant``, ``noisematch`` and
    ``sdslike`` are ``constant``, ``uniform`` and ``sigma_squared`` here. Differs: one denoising step, where the code
    also has several; D(x) stands for the rendered picture itself; no constant factor 0.05.
    """
    x_t = add_noise(prior, x, t, noise)
    guided = predict_guided(prior, x_t, t, cond, scale)
    estimate = (x_t - prior.sigma(t) * guided) / prior.alpha(t)
    grad = x - estimate
    if image_weight:
        with torch.no_grad():
            target = prior.decode(estimate).clamp(0, 1)
        pixels = through_pixels(prior, x, lambda image: (image - target).square().sum() / 2)
        grad = grad + image_weight * pixels
    return (distance_weight(prior, t, weighting) * grad).detach()


def distance_weight(prior: Prior, t: Tensor, weighting: str) -> Tensor:
    """Return the weight w(t) of squared distances to an estimate, shape ``[batch, 1, 1, 1]``.

    Raises:
        ValueError: ``weighting`` is not a known name.
    """
    if weighting == "constant":
        return torch.ones_like(prior.alpha(t))
    if weighting not in WEIGHTINGS:
        known = ", ".join(["constant", *WEIGHTINGS])
        raise ValueError(f"weighting must be one of {known}, got {weighting!r}")
    return weight(prior, t, weighting) * prior.alpha(t) / prior.sigma(t)
