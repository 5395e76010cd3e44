"""Score distillation as a bridge between two described distributions, for editing and refinement."""

from __future__ import annotations

from torch import Tensor

from distill.contracts import Condition, Prior
from distill.guidance import needs_prompt
from distill.guidance.terms import Weighting, add_noise, predict, require, weight


@needs_prompt("source")
def bridge(
    prior: Prior,
    x: Tensor,
    cond: Condition,
    t: Tensor,
    noise: Tensor,
    *,
    scale: float = 7.5,
    weighting: Weighting = "sigma_squared",
) -> Tensor:
    r"""Move a picture from the source prompt's distribution towards the prompt's.

    .. math:: g = w(t) s [\epsilon_c(x_t, t) - \epsilon_{\tilde c}(x_t, t)]

    Args:
        prior: the frozen diffusion model.
        x: clean picture in the prior's space, shape ``[batch, channel, height, width]``.
        cond: the prompt's and the source prompt's embeddings; the source prompt says what the picture is now,
            flaws included.
        t: integer timesteps, shape ``[batch]``.
        noise: standard normal, same shape as ``x``.
        scale: s, the guidance scale, dimensionless.
        weighting: ``sigma_squared`` (1 - abar), ``uniform``, ``fantasia3d`` or ``hifa`` (sigma / alpha).

    Returns:
        dL/dx, same shape as ``x``, detached, not averaged over the batch.

    Raises:
        ValueError: the source prompt is missing, ``t`` is outside the prior's range, or ``weighting`` is unknown.

    Source: McAllister et al. 2024, arXiv:2406.09417.
    """
    require(cond, "source", "bridge")
    x_t = add_noise(prior, x, t, noise)
    target, origin = predict(prior, x_t, t, cond, "text", "source")
    return (weight(prior, t, weighting) * scale * (target - origin)).detach()
