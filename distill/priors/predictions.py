"""Conversion of network predictions to noise, and classifier-free guidance.

With ``x_t = alpha x + sigma eps``, a network gives ``epsilon``: eps; ``v_prediction``: alpha eps - sigma x
(Salimans & Ho 2022, arXiv:2202.00512, App. D; alpha^2 + sigma^2 = 1); ``sample``: x; or ``flow``: eps - x
(Lipman et al. 2022, arXiv:2210.02747; usually alpha + sigma = 1).
"""

from __future__ import annotations

from torch import Tensor

KINDS = ("epsilon", "v_prediction", "sample", "flow")


def to_noise(kind: str, output: Tensor, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """Convert a network's output to the noise in ``x_t``.

    Args:
        kind: one of ``KINDS``.
        output: of the network, same shape as ``x_t``.
        x_t: noised pictures, shape ``[batch, ...]``.
        alpha: signal scale, broadcasting to ``x_t``.
        sigma: noise scale, broadcasting to ``x_t``.

    Raises:
        ValueError: the kind is not known.
    """
    if kind == "epsilon":
        return output
    if kind == "v_prediction":
        return alpha * output + sigma * x_t
    if kind == "sample":
        return (x_t - alpha * output) / sigma
    if kind == "flow":
        return (x_t + alpha * output) / (alpha + sigma)
    raise ValueError(f"a prediction must be one of {', '.join(KINDS)}, got {kind!r}")


def from_noise(kind: str, noise: Tensor, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """Convert noise to another ``kind`` of prediction; the inverse of ``to_noise``.

    Raises:
        ValueError: the kind is not known.
    """
    clean = (x_t - sigma * noise) / alpha
    outputs = {
        "epsilon": noise,
        "v_prediction": alpha * noise - sigma * clean,
        "sample": clean,
        "flow": noise - clean,
    }
    if kind not in outputs:
        raise ValueError(f"a prediction must be one of {', '.join(KINDS)}, got {kind!r}")
    return outputs[kind]


def classifier_free_guidance(uncond: Tensor, cond: Tensor, scale: float) -> Tensor:
    """Push a prediction away from the unconditional one; scale 1 is purely conditional.

    Any kind of prediction may be guided, since each is linear in the noise for a given ``x_t``.

    Args:
        uncond: prediction without the condition, any shape.
        cond: prediction under the condition, same shape.
        scale: guidance scale, dimensionless; 0 is unconditional.

    Source: Ho & Salimans 2022, arXiv:2207.12598, whose Eq. 6 has w = ``scale`` - 1.
    """
    return uncond + scale * (cond - uncond)
