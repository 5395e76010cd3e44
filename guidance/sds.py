"""Score distillation sampling."""

from __future__ import annotations

from torch import Tensor

from distill.contracts import Condition, Prior
from distill.guidance.terms import Weighting, add_noise, predict_guided, weight


def sds(
    prior: Prior,
    x: Tensor,
    cond: Condition,
    t: Tensor,
    noise: Tensor,
    *,
    scale: float = 100.0,
    weighting: Weighting = "sigma_squared",
) -> Tensor:
    r"""Pull a picture to where the prior denoises its noised copy.

    .. math:: g = w(t) [\hat\epsilon_s(x_t; c, t) - \epsilon]        (Eq. 3)

    Args:
        prior: the frozen diffusion model.
        x: clean picture in the prior's space, shape ``[batch, channel, height, width]``.
        cond: the prompt's embedding, and the negative or the empty prompt's, from which guidance is measured.
        t: integer timesteps, shape ``[batch]``.
        noise: standard normal, same shape as ``x``.
        scale: classifier-free guidance scale, dimensionless; 1 is purely conditional.
        weighting: ``sigma_squared`` (1 - abar), ``uniform``, ``fantasia3d`` or ``hifa`` (sigma / alpha).

    Returns:
        dL/dx, same shape as ``x``, detached, not averaged over the batch.

    Raises:
        ValueError: ``t`` is outside the prior's range, or ``weighting`` is unknown.

    Source: Poole et al. 2022, arXiv:2209.14988, Eq. 3. Differs: the paper writes the guided prediction as
    ``(1 + s) e_c - s e_u``, which is this one at scale ``s + 1``.
    """
    x_t = add_noise(prior, x, t, noise)
    guided = predict_guided(prior, x_t, t, cond, scale)
    return (weight(prior, t, weighting) * (guided - noise)).detach()
