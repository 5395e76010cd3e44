"""Terms that the losses share: guidance scale, weights, batched predictions."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from distill.contracts import Embedding, Prior


def classifier_free_guidance(uncond: Tensor, cond: Tensor, scale: float) -> Tensor:
    """Push a prediction away from the unconditional one; scale 1 is purely conditional (Ho & Salimans 2022)."""
    return uncond + scale * (cond - uncond)


def add_noise(prior: Prior, x: Tensor, t: Tensor, noise: Tensor) -> Tensor:
    """Diffuse a clean picture: ``alpha(t) x + sigma(t) noise``.

    Raises:
        ValueError: a timestep is outside the prior's range.
    """
    low, high = int(t.min()), int(t.max())
    if low < 0 or high >= prior.num_timesteps:
        raise ValueError(f"timesteps must lie in [0, {prior.num_timesteps - 1}], got {low} to {high}")
    return prior.alpha(t) * x + prior.sigma(t) * noise


def predict(prior: Prior, x_t: Tensor, t: Tensor, *conds: Embedding) -> tuple[Tensor, ...]:
    """Predict the noise under several embeddings in one batched call."""
    joined = {name: torch.cat([cond[name] for cond in conds]) for name in conds[0]}
    n = len(conds)
    repeated = x_t.repeat(n, *[1] * (x_t.ndim - 1))
    return prior.predict_noise(repeated, t.repeat(n), joined).chunk(n)


WEIGHTINGS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    # DreamFusion (Poole et al. 2022): 1 - abar.
    "sigma_squared": lambda alpha, sigma: sigma**2,
    "uniform": lambda alpha, sigma: torch.ones_like(sigma),
    # Fantasia3D (Chen et al. 2023): sqrt(abar) (1 - abar).
    "fantasia3d": lambda alpha, sigma: alpha * sigma**2,
}


def weight(prior: Prior, t: Tensor, weighting: str) -> Tensor:
    """The loss weight w(t), shape ``[batch, 1, 1, 1]``.

    Raises:
        ValueError: ``weighting`` is not a known name.
    """
    if weighting not in WEIGHTINGS:
        raise ValueError(f"weighting must be one of {', '.join(WEIGHTINGS)}, got {weighting!r}")
    return WEIGHTINGS[weighting](prior.alpha(t), prior.sigma(t))
