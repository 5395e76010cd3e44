"""Terms that the losses share: guidance scale, weights, batched predictions, inversion."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import torch
from torch import Tensor

from distill.contracts import Condition, Embedding, Prior
from distill.domains import OneOf


def classifier_free_guidance(uncond: Tensor, cond: Tensor, scale: float) -> Tensor:
    """Push a prediction away from the unconditional one; scale 1 is purely conditional (Ho & Salimans 2022)."""
    return uncond + scale * (cond - uncond)


def check_timesteps(prior: Prior, t: Tensor) -> None:
    low, high = int(t.min()), int(t.max())
    if low < 0 or high >= prior.num_timesteps:
        raise ValueError(f"timesteps must lie in [0, {prior.num_timesteps - 1}], got {low} to {high}")


def add_noise(prior: Prior, x: Tensor, t: Tensor, noise: Tensor) -> Tensor:
    """Diffuse a clean picture: ``alpha(t) x + sigma(t) noise``.

    Raises:
        ValueError: a timestep is outside the prior's range.
    """
    check_timesteps(prior, t)
    return prior.alpha(t) * x + prior.sigma(t) * noise


def predict_each(prior: Prior, *asked: tuple[Tensor, Tensor, Embedding]) -> tuple[Tensor, ...]:
    """Predict the noise in several ``(x_t, t, embedding)`` of equal shape in one batched call."""
    pictures, times, embeddings = zip(*asked, strict=True)
    joined = {name: torch.cat([embedding[name] for embedding in embeddings]) for name in embeddings[0]}
    return prior.predict_noise(torch.cat(pictures), torch.cat(times), joined).chunk(len(asked))


def predict(prior: Prior, x_t: Tensor, t: Tensor, *conds: Embedding) -> tuple[Tensor, ...]:
    """Predict the noise under several embeddings in one batched call."""
    return predict_each(prior, *((x_t, t, cond) for cond in conds))


def predict_guided(prior: Prior, x_t: Tensor, t: Tensor, cond: Condition, scale: float) -> Tensor:
    """Predict the noise with classifier-free guidance; at scale 1 or 0 one half of it is enough."""
    if scale == 1:
        return predict(prior, x_t, t, cond.text)[0]
    if scale == 0:
        return predict(prior, x_t, t, cond.uncond)[0]
    text, uncond = predict(prior, x_t, t, cond.text, cond.uncond)
    return classifier_free_guidance(uncond, text, scale)


def ddim_step(prior: Prior, x_t: Tensor, noise: Tensor, t: Tensor, to: Tensor) -> Tensor:
    """Move along the predicted noise from timestep ``t`` to ``to`` (Song et al. 2021, Eq. 12, zero variance)."""
    clean = (x_t - prior.sigma(t) * noise) / prior.alpha(t)
    return prior.alpha(to) * clean + prior.sigma(to) * noise


def ddim_invert(prior: Prior, x: Tensor, t: Tensor, cond: Condition, *, steps: int, scale: float) -> Tensor:
    """Noise a picture along the prior's own trajectory: the deterministic sampler run backwards.

    Args:
        prior: the frozen diffusion model.
        x: clean picture, taken for one at timestep 0, shape ``[batch, ...]``.
        t: timesteps to reach, shape ``[batch]``.
        cond: the embeddings.
        steps: network calls, evenly spaced.
        scale: classifier-free guidance scale on the way; 0 is unconditional.

    Raises:
        ValueError: ``steps`` is below 1, or a timestep is outside the prior's range.
    """
    check_timesteps(prior, t)
    if steps < 1:
        raise ValueError(f"an inversion needs at least 1 step, got {steps}")
    now = torch.zeros_like(t)
    for step in range(1, steps + 1):
        after = t * step // steps
        x = ddim_step(prior, x, predict_guided(prior, x, now, cond, scale), now, after)
        now = after
    return x


def require(embedding: Embedding | None, loss: str, option: str) -> Embedding:
    """The embedding of a prompt that a loss cannot do without.

    Raises:
        ValueError: it is missing; says which option gives it.
    """
    if embedding is None:
        raise ValueError(f'{loss} needs a second prompt, and none is given; add {option}="..."')
    return embedding


WEIGHTINGS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    # DreamFusion (Poole et al. 2022): 1 - abar.
    "sigma_squared": lambda alpha, sigma: sigma**2,
    "uniform": lambda alpha, sigma: torch.ones_like(sigma),
    # Fantasia3D (Chen et al. 2023): sqrt(abar) (1 - abar).
    "fantasia3d": lambda alpha, sigma: alpha * sigma**2,
}

#: The name of one of ``WEIGHTINGS``.
Weighting = Annotated[str, OneOf(lambda: tuple(WEIGHTINGS))]


def weight(prior: Prior, t: Tensor, weighting: str) -> Tensor:
    """The loss weight w(t), shape ``[batch, 1, 1, 1]``.

    Raises:
        ValueError: ``weighting`` is not a known name.
    """
    if weighting not in WEIGHTINGS:
        raise ValueError(f"weighting must be one of {', '.join(WEIGHTINGS)}, got {weighting!r}")
    return WEIGHTINGS[weighting](prior.alpha(t), prior.sigma(t))
