"""Score distillation sampling."""

from __future__ import annotations

from torch import Tensor

from distill.contracts import Condition, Prior
from distill.domains import Fraction
from distill.guidance.terms import (
    Weighting,
    add_noise,
    classifier_free_guidance,
    predict,
    predict_guided,
    rescaled,
    weight,
)


def sds(
    prior: Prior,
    x: Tensor,
    cond: Condition,
    t: Tensor,
    noise: Tensor,
    *,
    scale: float = 100.0,
    weighting: Weighting = "sigma_squared",
    rescale: Fraction = 0.0,
) -> Tensor:
    r"""Pull a picture towards the prior's denoised estimate of its noised copy.

    .. math:: g = w(t) [\hat\epsilon_s(x_t; c, t) - \epsilon]        (Eq. 3)

    With ``rescale``, the estimate of the clean picture, :math:`\hat x = (x_t - \sigma_t \hat\epsilon_s) / \alpha_t`, first gets
    some of the contrast back that it has without guidance:

    .. math:: \hat x' = [r \, \mathrm{std}(\hat x_c) / \mathrm{std}(\hat x) + 1 - r] \, \hat x, \quad
        g = w(t) (\alpha_t / \sigma_t) (x - \hat x')

    so that ``weighting=hifa`` with ``rescale=0.5`` is MVDream's distance to the estimate.

    Args:
        prior: the frozen diffusion model.
        x: clean picture in the prior's space, shape ``[batch, channel, height, width]``.
        cond: the prompt's embedding, and the negative or the empty prompt's, from which guidance is measured.
        t: integer timesteps, shape ``[batch]``.
        noise: standard normal, same shape as ``x``.
        scale: classifier-free guidance scale, dimensionless; 1 is purely conditional.
        weighting: ``sigma_squared`` (1 - abar), ``uniform``, ``fantasia3d`` or ``hifa`` (sigma / alpha).
        rescale: r, the share by which the guided estimate of the picture is brought back to the standard deviation of the one without
            guidance, over all views that the prior takes together; 0 is plain SDS.

    Returns:
        dL/dx, same shape as ``x``, detached, not averaged over the batch.

    Raises:
        ValueError: ``t`` is outside the prior's range, or ``weighting`` is unknown.

    Source: Poole et al. 2022, arXiv:2209.14988, Eq. 3. Differs: the paper writes the guided prediction as
    ``(1 + s) e_c - s e_u``, which is this one at scale ``s + 1``. ``rescale``: Shi et al. 2023 (MVDream), arXiv:2308.16512,
    Sec. 3.2, after Lin et al. 2024, arXiv:2305.08891.
    """
    x_t = add_noise(prior, x, t, noise)
    if rescale and scale != 1:  # at 1 there is nothing to give back
        text, origin = predict(prior, x_t, t, cond, "text", cond.origin)
        guided = rescaled(prior, x_t, t, classifier_free_guidance(origin, text, scale), text, rescale)
    else:
        guided = predict_guided(prior, x_t, t, cond, scale)
    return (weight(prior, t, weighting) * (guided - noise)).detach()
