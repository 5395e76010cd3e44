"""Classifier score distillation."""

from __future__ import annotations

from torch import Tensor

from distill.contracts import Condition, Prior
from distill.guidance import needs_prompt, sums_to_zero
from distill.guidance.terms import Weighting, add_noise, predict, require, weight


@needs_prompt("negative", option="negative")
@sums_to_zero("positive", "negative", "empty", "random")
def csd(
    prior: Prior,
    x: Tensor,
    cond: Condition,
    t: Tensor,
    noise: Tensor,
    *,
    positive: float = 1.0,
    negative: float = 0.0,
    empty: float = -1.0,
    random: float = 0.0,
    weighting: Weighting = "sigma_squared",
    normalise: bool = False,
) -> Tensor:
    r"""Follow only the difference between the prompt and the empty prompt: the score of an implicit classifier.

    .. math:: g = w(t) [c_+ \epsilon_c + c_- \epsilon_n + c_0 \epsilon_u + c_z \epsilon], \quad \sum c = 0

    Args:
        prior: the frozen diffusion model.
        x: clean picture in the prior's space, shape ``[batch, channel, height, width]``.
        cond: embeddings; the negative prompt's is needed where ``negative`` is not 0.
        t: integer timesteps, shape ``[batch]``.
        noise: standard normal, same shape as ``x``.
        positive: coefficient of the prediction under the prompt, dimensionless.
        negative: coefficient of the prediction under the negative prompt; usually below 0.
        empty: coefficient of the prediction under the empty prompt.
        random: coefficient of the added noise; -1 with ``positive`` 1 is SDS at scale 1.
        weighting: ``sigma_squared`` (1 - abar), ``uniform``, ``fantasia3d`` or ``hifa`` (sigma / alpha).
        normalise: divide by the L2 norm over the whole batch, with ``render.at_once`` over each part of it.

    Returns:
        dL/dx, same shape as ``x``, detached, not averaged over the batch.

    Raises:
        ValueError: the coefficients do not sum to 0, a negative prompt is missing, ``t`` is outside the
            prior's range, or ``weighting`` is unknown.

    Source: Yu et al. 2023, arXiv:2310.19415. Differs: the authors write the empty prompt's
    coefficient as the rest of the others; here all four are given, so that each can follow its own schedule.
    """
    total = positive + negative + empty + random
    if abs(total) > 1e-6:
        raise ValueError(
            f"csd's coefficients positive, negative, empty and random must sum to 0, got {positive:g} + "
            f"{negative:g} + {empty:g} + {random:g} = {total:g}"
        )
    x_t = add_noise(prior, x, t, noise)
    terms = [(positive, "text"), (empty, "uncond")]
    if negative:
        require(cond, "negative", "csd with a negative coefficient")
        terms.append((negative, "negative"))
    terms = [(factor, role) for factor, role in terms if factor]
    grad = random * noise
    if terms:
        for (factor, _), predicted in zip(
            terms, predict(prior, x_t, t, cond, *(role for _, role in terms)), strict=True
        ):
            grad = grad + factor * predicted
    grad = weight(prior, t, weighting) * grad
    return (grad / grad.norm().clamp(min=1e-12) if normalise else grad).detach()
