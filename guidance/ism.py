"""Interval score matching."""

from __future__ import annotations

from torch import Tensor

from distill.contracts import Condition, Prior
from distill.domains import Count, Fraction
from distill.guidance.terms import ddim_invert, ddim_step, predict, predict_guided
from distill.samplers.timesteps import check_timesteps


def ism(
    prior: Prior,
    x: Tensor,
    cond: Condition,
    t: Tensor,
    noise: Tensor,
    *,
    scale: float = 7.5,
    interval: Fraction = 0.08,
    inversion_steps: Count = 4,
) -> Tensor:
    r"""Compare two neighbouring points of the picture's own deterministic trajectory.

    .. math:: g = (\sigma_t / \alpha_t) [\hat\epsilon_s(x_t; c, t) - \epsilon_u(x_s, s)], \quad s = t - \delta

    Args:
        prior: the frozen diffusion model.
        x: clean picture in the prior's space, shape ``[batch, channel, height, width]``.
        cond: the prompt's embedding, and the negative or the empty prompt's, from which guidance is measured.
        t: integer timesteps, shape ``[batch]``.
        noise: not used: the trajectory has none.
        scale: classifier-free guidance scale at t, dimensionless.
        interval: delta, fraction of the prior's timesteps.
        inversion_steps: network calls from the picture to s.

    Returns:
        dL/dx, same shape as ``x``, detached, not averaged over the batch.

    Raises:
        ValueError: ``t`` is outside the prior's range, or ``inversion_steps`` is below 1.

    Source: Liang et al. 2023 (LucidDreamer), arXiv:2311.11284. Differs: the authors step by 200
    timesteps and start from a noised picture where that is too short; here the steps divide [0, s] evenly.
    """
    check_timesteps(prior, t)
    before = (t - round(interval * prior.num_timesteps)).clamp(min=0)
    x_s = ddim_invert(prior, x, before, cond, steps=inversion_steps, scale=0.0)
    (uncond,) = predict(prior, x_s, before, cond, "uncond")
    guided = predict_guided(prior, ddim_step(prior, x_s, uncond, before, t), t, cond, scale)
    return (prior.sigma(t) / prior.alpha(t) * (guided - uncond)).detach()
