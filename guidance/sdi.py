"""Score distillation via inversion."""

from __future__ import annotations

from torch import Tensor

from distill.contracts import Condition, Prior
from distill.domains import Count
from distill.guidance.terms import ddim_invert, predict_guided


def sdi(
    prior: Prior,
    x: Tensor,
    cond: Condition,
    t: Tensor,
    noise: Tensor,
    *,
    scale: float = 7.5,
    inversion_scale: float = -7.5,
    inversion_steps: Count = 10,
) -> Tensor:
    r"""Pull a picture to what the prior makes of it, noised with the noise that the prior itself infers.

    .. math:: g = x - \hat x_0(x_t; c, t), \quad x_t = \mathrm{DDIM}^{-1}(x)

    Args:
        prior: the frozen diffusion model.
        x: clean picture in the prior's space, shape ``[batch, channel, height, width]``.
        cond: the prompt's embedding, and the negative or the empty prompt's, from which guidance is measured.
        t: integer timesteps, shape ``[batch]``.
        noise: not used: it is inferred.
        scale: classifier-free guidance scale of the target, dimensionless.
        inversion_scale: guidance scale of the inversion; the opposite of ``scale`` undoes what it adds.
        inversion_steps: network calls of the inversion.

    Returns:
        dL/dx, same shape as ``x``, detached, not averaged over the batch.

    Raises:
        ValueError: ``t`` is outside the prior's range, or ``inversion_steps`` is below 1.

    Source: Lukoianov et al. 2024, arXiv:2405.15891. Differs: the authors add a little fresh noise to
    the inverted one; here none, so that the loss is deterministic.
    """
    x_t = ddim_invert(prior, x, t, cond, steps=inversion_steps, scale=inversion_scale)
    guided = predict_guided(prior, x_t, t, cond, scale)
    target = (x_t - prior.sigma(t) * guided) / prior.alpha(t)
    return (x - target).detach()
