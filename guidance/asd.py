"""Asynchronous score distillation."""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor

from distill.contracts import Condition, Prior
from distill.domains import Follows, Fraction, NotNegative
from distill.guidance.terms import ALONE, Weighting, add_noise, classifier_free_guidance, predict_each, weight


def asd(
    prior: Prior,
    x: Tensor,
    cond: Condition,
    t: Tensor,
    noise: Tensor,
    *,
    scale: float = 7.5,
    eta: NotNegative = 0.1,
    t_min: Annotated[Fraction | None, Follows("timesteps")] = None,
    random_shift: bool = True,
    weighting: Weighting = "sigma_squared",
) -> Tensor:
    r"""Use the frozen prior at a later timestep as the score of the rendered distribution.

    .. math:: g = w(t) [\hat\epsilon_s(x_t; c, t) - \epsilon_c(x_{t'}; t')], \quad t' = t + \Delta
    .. math:: \Delta = \lfloor U \min(\eta (t - t_{min}), T - 1 - t) \rfloor, \quad U \sim U(0, 1)

    The noise is the same at both timesteps, and the second prediction carries neither classifier-free guidance nor Perp-Neg.
    All predictions are one batched call.

    Args:
        prior: the frozen diffusion model.
        x: clean picture in the prior's space, shape ``[batch, channel, height, width]``.
        cond: the prompt's embedding, the negative or the empty prompt's, from which guidance is measured, and
            ``step.uniform`` for a random shift.
        t: integer timesteps, shape ``[batch]``.
        noise: standard normal, same shape as ``x``.
        scale: classifier-free guidance scale of the first prediction, dimensionless.
        eta: largest shift as a fraction of ``t - t_min``; 0 disables it, which leaves ``scale - 1`` times CSD.
        t_min: lowest timestep that is drawn, as a fraction of T; null for that of the
            sampler of timesteps, 0.02 where it has none.
        random_shift: draw the shift; otherwise always use the largest.
        weighting: weight of t: ``sigma_squared`` (1 - abar), ``uniform``, ``fantasia3d`` or ``hifa`` (sigma / alpha).

    Returns:
        dL/dx, same shape as ``x``, detached, not averaged over the batch.

    Raises:
        ValueError: ``t`` is outside the prior's range, ``eta`` is negative, ``weighting`` is unknown, or a
            random shift has no ``cond.step.uniform``.

    Source: Ma et al. 2024 (ScaleDreamer), arXiv:2407.02040.
    """
    x_t = add_noise(prior, x, t, noise)
    later = shifted(
        prior,
        t,
        cond.step.uniform if random_shift else torch.ones(len(t), device=t.device),
        eta,
        0.02 if t_min is None else t_min,
    )
    both = [(x_t, t, "text"), (add_noise(prior, x, later, noise), later, ALONE)]
    if scale == 1:
        guided, rendered = predict_each(prior, cond, *both)
    else:
        text, rendered, origin = predict_each(prior, cond, *both, (x_t, t, cond.origin))
        guided = classifier_free_guidance(origin, text, scale)
    return (weight(prior, t, weighting) * (guided - rendered)).detach()


def shifted(prior: Prior, t: Tensor, uniform: Tensor | None, eta: float, t_min: float) -> Tensor:
    """Return the later timestep t', shape ``[batch]``."""
    if uniform is None:
        raise ValueError("asd draws its shift from cond.step.uniform, which is None; give torch.rand(batch)")
    if eta < 0:
        raise ValueError(f"asd shifts forward only: eta must be at least 0, got {eta:g}")
    last = prior.num_timesteps - 1
    furthest = (eta * (t - round(t_min * prior.num_timesteps))).clamp(min=0).minimum(last - t)
    return (t + (uniform.to(t.device) * furthest).floor().long()).clamp(1, last)
