"""Interval score matching."""

from __future__ import annotations

import math
from typing import Literal

from torch import Tensor

from distill.contracts import Condition, Prior
from distill.domains import Count, Fraction, NotNegative, Positive
from distill.guidance.terms import add_noise, ddim_invert, ddim_step, even_times, predict, predict_guided
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
    inversion: Literal["even", "strides"] = "even",
    inversion_steps: Count = 4,
    stride: Positive = 0.2,
    offset: NotNegative = 0.1,
) -> Tensor:
    r"""Compare the predictions at two neighbouring points of the picture's deterministic trajectory.

    .. math:: g = (\sigma_t / \alpha_t) [\hat\epsilon_s(x_t; c, t) - \epsilon_u(x_s, s)], \quad s = t - \delta

    The trajectory, and the second prediction, are under the empty prompt.

    Args:
        prior: the frozen diffusion model.
        x: clean picture in the prior's space, shape ``[batch, channel, height, width]``.
        cond: the prompt's embedding, the negative or the empty prompt's, from which guidance is measured, and the empty one's.
        t: integer timesteps, shape ``[batch]``.
        noise: standard normal, same shape as ``x``; used only with ``strides``.
        scale: classifier-free guidance scale at t, dimensionless.
        interval: delta, the interval between the two points, as a fraction of the prior's timesteps.
        inversion: ``strides``, the authors': from the picture noised to timestep 1 in steps of ``stride``, the last one
            shorter; or ``even``, this library's: from the picture at timestep 0 in equal steps to s.
        inversion_steps: network calls from the picture to s, with ``even``.
        stride: fraction of the prior's timesteps, with ``strides``.
        offset: standard deviation of a constant added to each channel of the noise, with ``strides``.

    Returns:
        dL/dx, same shape as ``x``, detached, not averaged over the batch.

    Raises:
        ValueError: ``t`` is outside the prior's range, or ``inversion_steps`` is below 1.

    Source: Liang et al. 2023 (LucidDreamer), arXiv:2311.11284, and the authors' code, which also multiplies by 0.1, sums over
    the batch, and has one offset for the whole of it.
    """
    check_timesteps(prior, t)
    total = prior.num_timesteps
    before = (t - round(interval * total)).clamp(min=1 if inversion == "strides" else 0)
    if inversion == "strides":
        length = max(1, round(stride * total))
        count = math.ceil((int(before.max()) - 1) / length)
        times = [before.clamp(max=1 + step * length) for step in range(count + 1)]
        x = add_noise(prior, x, times[0], with_offset(noise, offset))
    else:
        times = even_times(before, inversion_steps)
    x_s = ddim_invert(prior, x, times, lambda y, now: predict(prior, y, now, cond, "uncond")[0])
    (uncond,) = predict(prior, x_s, before, cond, "uncond")
    guided = predict_guided(prior, ddim_step(prior, x_s, uncond, before, t), t, cond, scale)
    return (prior.sigma(t) / prior.alpha(t) * (guided - uncond)).detach()


def with_offset(noise: Tensor, offset: float) -> Tensor:
    """Increase the variance of each channel's mean by ``offset ** 2``, as if a normal number were added to each channel.

    The mean of a channel is independent of the rest of it, so it can be stretched instead of drawing another number.
    """
    mean = noise.mean(dim=(-2, -1), keepdim=True)
    return noise + (math.sqrt(1 + offset**2 * noise[0, 0].numel()) - 1) * mean
