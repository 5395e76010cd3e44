"""Delta denoising score, for editing."""

from __future__ import annotations

from torch import Tensor

from distill.contracts import Condition, Prior
from distill.guidance import needs_prompt
from distill.guidance.terms import Weighting, add_noise, predict_guided, require, weight


@needs_prompt("source")
def dds(
    prior: Prior,
    x: Tensor,
    cond: Condition,
    t: Tensor,
    noise: Tensor,
    *,
    scale: float = 7.5,
    weighting: Weighting = "sigma_squared",
) -> Tensor:
    r"""Follow the difference between the SDS gradients of the target and of the source, in which common errors cancel.

    .. math:: g = w(t) [\hat\epsilon_s(x_t; c, t) - \hat\epsilon_s(\tilde x_t; \tilde c, t)]

    Args:
        prior: the frozen diffusion model.
        x: clean picture in the prior's space, shape ``[batch, channel, height, width]``.
        cond: embeddings, the source prompt's too; ``source_x`` is the source's picture, ``x`` itself where
            it is None.
        t: integer timesteps, shape ``[batch]``.
        noise: standard normal, same shape as ``x``, added to both pictures.
        scale: classifier-free guidance scale of both predictions, dimensionless.
        weighting: ``sigma_squared`` (1 - abar), ``uniform``, ``fantasia3d`` or ``hifa`` (sigma / alpha).

    Returns:
        dL/dx, same shape as ``x``, detached, not averaged over the batch.

    Raises:
        ValueError: the source prompt is missing, ``t`` is outside the prior's range, or ``weighting`` is unknown.

    Source: Hertz et al. 2023, arXiv:2304.07090.
    """
    require(cond, "source", "dds")
    source_x = x if cond.source_x is None else cond.source_x
    target = predict_guided(prior, add_noise(prior, x, t, noise), t, cond, scale)
    origin = predict_guided(prior, add_noise(prior, source_x, t, noise), t, cond, scale, "source")
    return (weight(prior, t, weighting) * (target - origin)).detach()
