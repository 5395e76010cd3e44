"""Score distillation via inversion."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from distill.contracts import Condition, Prior
from distill.domains import Count, NotNegative
from distill.guidance.terms import ddim_invert, even_times, further_noises, predict_guided


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
    inversion: Literal["even", "strides"] = "even",
    eta: NotNegative = 0.3,
    average: bool = False,
) -> Tensor:
    r"""Pull a picture towards the prior's denoised estimate, with noise inferred by DDIM inversion.

    .. math:: g = x - \hat x_0(x_t; c, t), \quad x_t = \mathrm{DDIM}^{-1}(x)

    Args:
        prior: the frozen diffusion model.
        x: clean picture in the prior's space, shape ``[batch, channel, height, width]``.
        cond: the prompt's embedding, the negative or the empty prompt's, from which guidance is measured, and with
            ``strides`` ``step.uniform``.
        t: integer timesteps, shape ``[batch]``.
        noise: standard normal, same shape as ``x``; with ``strides``, the fresh noise of each step follows from it.
        scale: classifier-free guidance scale of the target, dimensionless.
        inversion_scale: guidance scale of the inversion; the opposite of ``scale`` undoes what it adds.
        inversion_steps: network calls of the inversion; with ``strides``, of one up to the last timestep.
        inversion: ``strides``, the authors': to 1, 1 + D, 1 + 2 D and so on below t, and to t + floor(u D), with D = T /
            ``inversion_steps`` and u uniform; what is found there is used as x_t. Or ``even``, this library's own: to t in
            equal steps, without noise.
        eta: fresh noise after each of the ``strides``, as a share of the standard deviation of DDPM's step.
        average: divide by the number of values of a picture, as the authors' mean squared error does; their penalties'
            weights are for that.

    Returns:
        dL/dx, same shape as ``x``, detached, not averaged over the batch.

    Raises:
        ValueError: ``t`` is outside the prior's range, ``inversion_steps`` is below 1, or ``strides`` have no
            ``cond.step.uniform``.

    Source: Lukoianov et al. 2024, arXiv:2405.15891, and the authors' code in threestudio. Differs: the first call is made at
    timestep 0, theirs at -99; more steps than there are timesteps are one for each; their loss divides by the batch once more. Their scales 7.5 and -7.5 are with Perp-Neg, without
    which their code means by s what is s + 1 here.
    """

    def predicted(y: Tensor, now: Tensor) -> Tensor:
        return predict_guided(prior, y, now, cond, scale=inversion_scale)

    if inversion == "strides":
        times = strides(prior, t, inversion_steps, cond.step.uniform)
        x_t = ddim_invert(prior, x, times, predicted, eta=eta, noises=further_noises(noise, len(times) - 1))
    else:
        x_t = ddim_invert(prior, x, even_times(t, inversion_steps), predicted)
    guided = predict_guided(prior, x_t, t, cond, scale)
    target = (x_t - prior.sigma(t) * guided) / prior.alpha(t)
    return ((x - target) / (x[0].numel() if average else 1)).detach()


def strides(prior: Prior, t: Tensor, steps: int, uniform: Tensor | None) -> list[Tensor]:
    """Return the timesteps of the authors' inversion, each of shape ``[batch]``; finished pictures keep theirs."""
    if uniform is None:
        raise ValueError(
            "sdi draws where it ends from cond.step.uniform, which is None; give torch.rand(batch)"
        )
    length = max(prior.num_timesteps // steps, 1)
    last = (t + (uniform.to(t.device) * length).floor().long()).clamp(max=prior.num_timesteps - 1)
    below = range(1, max(int(t.max()), 2), length)
    return [torch.zeros_like(t), *(torch.where(t > level, level, last) for level in below), last]
