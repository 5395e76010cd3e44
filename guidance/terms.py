"""Terms that the losses share: guidance scale, weights, batched predictions, inversion."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Annotated

import torch
from torch import Tensor

from distill.cameras import Cameras
from distill.conditions import perp_neg
from distill.contracts import Condition, Embedding, Prior
from distill.domains import OneOf
from distill.priors.predictions import classifier_free_guidance
from distill.samplers.timesteps import check_timesteps
from distill.transfer import send


def add_noise(prior: Prior, x: Tensor, t: Tensor, noise: Tensor) -> Tensor:
    """Diffuse a clean picture: ``alpha(t) x + sigma(t) noise``.

    Raises:
        ValueError: a timestep on the CPU is outside the prior's range.
    """
    check_timesteps(prior, t)
    return prior.alpha(t) * x + prior.sigma(t) * noise


#: Names the prompt's prediction without Perp-Neg for ``predict_each``.
ALONE = "text alone"


def predict_each(prior: Prior, cond: Condition, *wanted: tuple[Tensor, Tensor, str]) -> tuple[Tensor, ...]:
    """Predict the noise in several ``(x_t, t, role)`` of equal shape in one batched call.

    Args:
        prior: the frozen diffusion model.
        cond: has the prompts and the cameras.
        *wanted: noised pictures, their timesteps, and the role in ``cond.prompts`` of the prompt to predict under; with
            Perp-Neg (``cond.away``), ``text`` is pushed away from the other views, and ``ALONE`` is ``text`` without that.

    Returns:
        A prediction of the shape of ``x_t`` for each.

    Raises:
        ValueError: this step has no prompt of that role.
    """
    calls = [(x_t, t, _prompt_of(cond, role), cond.cameras) for x_t, t, role in wanted]
    pushed = perp_neg.pushed(cond)
    for x_t, t, role in wanted:
        if role == "text" and pushed is not None:
            rows = pushed.rows
            calls += [
                (x_t[rows], t[rows], perp_neg.select(embedding, rows), cond.cameras and cond.cameras[rows])
                for embedding in perp_neg.embeddings(cond)
            ]
    pictures, times, embeddings, cameras = zip(*calls, strict=True)
    joined = {name: torch.cat([embedding[name] for embedding in embeddings]) for name in embeddings[0]}
    views = Cameras.joined([view for view in cameras if view]) if cond.cameras else None
    noise = prior.predict_noise(torch.cat(pictures), torch.cat(times), joined, views)
    found = noise.split([len(picture) for picture in pictures])
    predicted, extra = list(found[: len(wanted)]), found[len(wanted) :]
    for index, (_, _, role) in enumerate(wanted):
        if role == "text" and pushed is not None:
            predicted[index] = perp_neg.combine(predicted[index], extra[:3], pushed)
            extra = extra[3:]
    return tuple(predicted)


def _prompt_of(cond: Condition, role: str) -> Embedding:
    """The embedded prompt of a role, and for ``ALONE`` that of ``text``."""
    if role == ALONE:
        return cond.text
    if role not in cond.prompts:
        known = ", ".join(map(repr, cond.prompts))
        remedy = "give negative_prompt=, or use cond.origin" if role == "negative" else "use one of these"
        raise ValueError(
            f"a prediction must be asked with a prompt of the step ({known}), got {role!r}; {remedy}"
        )
    return cond.prompts[role]


def predict(prior: Prior, x_t: Tensor, t: Tensor, cond: Condition, *roles: str) -> tuple[Tensor, ...]:
    """Predict the noise under several of a condition's prompts in one batched call."""
    return predict_each(prior, cond, *((x_t, t, role) for role in roles))


def predict_guided(
    prior: Prior, x_t: Tensor, t: Tensor, cond: Condition, scale: float, role: str = "text"
) -> Tensor:
    """Predict the noise with classifier-free guidance towards a prompt, away from ``cond.origin``.

    That is the negative prompt where one is given, else the empty one: ``e_origin + scale (e_role - e_origin)``. Scales 1
    and 0 need one prediction alone.
    """
    if scale == 1:
        return predict(prior, x_t, t, cond, role)[0]
    if scale == 0:
        return predict(prior, x_t, t, cond, cond.origin)[0]
    text, origin = predict(prior, x_t, t, cond, role, cond.origin)
    return classifier_free_guidance(origin, text, scale)


def rescaled(prior: Prior, x_t: Tensor, t: Tensor, guided: Tensor, text: Tensor, share: float) -> Tensor:
    """Rescale the clean picture implied by a guided prediction towards its contrast without guidance.

    Args:
        prior: the frozen diffusion model.
        x_t: noised pictures, shape ``[batch, channel, height, width]``.
        t: timesteps, shape ``[batch]``.
        guided: the noise that is predicted with guidance.
        text: the noise that is predicted under the prompt alone.
        share: fraction of the difference in standard deviation, over the views of an object, that is removed.

    Returns:
        The noise implied by the rescaled picture.
    """
    alpha, sigma = prior.alpha(t), prior.sigma(t)
    clean, alone = ((x_t - sigma * noise) / alpha for noise in (guided, text))

    def spread(pictures: Tensor) -> Tensor:
        views = pictures.reshape(-1, prior.views * pictures[0].numel())
        return views.std(dim=1).repeat_interleave(prior.views)[:, None, None, None]

    factor = share * (spread(alone) + 1e-8) / (spread(clean) + 1e-8) + 1 - share
    return guided + alpha / sigma * (1 - factor) * clean


def ddim_step(prior: Prior, x_t: Tensor, noise: Tensor, t: Tensor, to: Tensor) -> Tensor:
    """Move along the predicted noise from timestep ``t`` to ``to`` (Song et al. 2021, Eq. 12, zero variance)."""
    clean = (x_t - prior.sigma(t) * noise) / prior.alpha(t)
    return prior.alpha(to) * clean + prior.sigma(to) * noise


def ddim_invert(
    prior: Prior,
    x: Tensor,
    times: Sequence[Tensor],
    predicted: Callable[[Tensor, Tensor], Tensor],
    *,
    eta: float = 0.0,
    noises: Tensor | None = None,
) -> Tensor:
    """Noise a picture along the prior's trajectory (DDIM inversion): the sampler run backwards.

    A picture whose timestep stays the same stays the same, so that pictures may have paths of different lengths.

    Args:
        prior: the frozen diffusion model.
        x: picture at the noise level of the first timesteps, shape ``[batch, ...]``.
        times: the timesteps to visit, each of shape ``[batch]``.
        predicted: gives the noise in a picture at a timestep.
        eta: fresh noise after each step, as a share of the standard deviation of DDPM's step back.
        noises: standard normal, one for each step, of the shape of ``x``.

    Raises:
        ValueError: a timestep is outside the prior's range.
    """
    check_timesteps(prior, times[-1])
    for step, (now, after) in enumerate(pairwise(times)):
        x = ddim_step(prior, x, predicted(x, now), now, after)
        if eta and noises is not None:
            ratio = (prior.alpha(after) / prior.alpha(now)) ** 2
            variance = (prior.sigma(now) / prior.sigma(after)) ** 2 * (1 - ratio)
            x = x + eta * variance.clamp(min=0).sqrt() * noises[step]
    return x


def even_times(t: Tensor, steps: int) -> list[Tensor]:
    """Divide the interval from timestep 0 to ``t`` into equal parts; returns ``steps + 1`` timesteps for each picture.

    Raises:
        ValueError: ``steps`` is below 1.
    """
    if steps < 1:
        raise ValueError(f"an inversion needs at least 1 step, got {steps}")
    return [t * step // steps for step in range(steps + 1)]


def further_noises(noise: Tensor, count: int) -> Tensor:
    """Derive more noise deterministically from the given noise of each picture.

    Args:
        noise: shape ``[batch, ...]``.
        count: how many.

    Returns:
        Standard normal, shape ``[count, batch, ...]``.
    """
    drawn = draw_from(noise, (count, *noise.shape[1:]))
    return send(drawn.transpose(0, 1), noise.device).to(noise)


def draw_from(noise: Tensor, shape: Sequence[int]) -> Tensor:
    """Derive noise of another shape deterministically from the given noise of each picture, whatever pictures are beside it.

    Args:
        noise: shape ``[batch, ...]``.
        shape: of one picture's.

    Returns:
        Standard normal, shape ``[batch, *shape]``, float32 on the CPU.
    """
    seeds = noise.flatten(1)[:, :64].double().mul(1e6).long().abs().sum(1) % 2**31
    generators = [torch.Generator().manual_seed(seed) for seed in seeds.tolist()]
    return torch.stack([torch.randn(shape, generator=g) for g in generators])


def require(cond: Condition, role: str, loss: str) -> None:
    """Refuse a condition that lacks a prompt required by a loss.

    Args:
        cond: the condition.
        role: of the prompt, ``negative`` or ``source``; the option that gives it is ``<role>_prompt``.
        loss: its name, for the error.

    Raises:
        ValueError: the prompt is missing; says which option gives it.
    """
    if role not in cond.prompts:
        raise ValueError(f'{loss} needs a second prompt, and none is given; add {role}_prompt="..."')


WEIGHTINGS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    # DreamFusion (Poole et al. 2022): 1 - abar.
    "sigma_squared": lambda alpha, sigma: sigma**2,
    "uniform": lambda alpha, sigma: torch.ones_like(sigma),
    # Fantasia3D (Chen et al. 2023): sqrt(abar) (1 - abar).
    "fantasia3d": lambda alpha, sigma: alpha * sigma**2,
    # HiFA (Zhu et al. 2023): SDS becomes the distance to the one-step estimate; ISM's weight, too.
    "hifa": lambda alpha, sigma: sigma / alpha,
}

#: The library's own.
SHIPPED = frozenset(WEIGHTINGS)
#: The name of one of ``WEIGHTINGS``.
Weighting = Annotated[str, OneOf(lambda: tuple(WEIGHTINGS))]


def weight(prior: Prior, t: Tensor, weighting: str) -> Tensor:
    """Return the loss weight w(t), shape ``[batch, 1, 1, 1]``.

    Raises:
        ValueError: ``weighting`` is not a known name.
    """
    if weighting not in WEIGHTINGS:
        raise ValueError(f"weighting must be one of {', '.join(WEIGHTINGS)}, got {weighting!r}")
    return WEIGHTINGS[weighting](prior.alpha(t), prior.sigma(t))


def through_pixels(prior: Prior, x: Tensor, loss: Callable[[Tensor], Tensor]) -> Tensor:
    """Return the gradient with respect to ``x`` of a scalar loss on its decoded pixels.

    Args:
        prior: decodes; its parameters get no gradient.
        x: clean picture in the prior's space, shape ``[batch, channel, height, width]``.
        loss: maps pictures, in [0, 1] up to overshoot, shape ``[batch, 3, image_size, image_size]``, to a scalar; a
            sum over pictures, so that the pictures of a batch do not influence each other.

    Returns:
        Same shape as ``x``, detached.
    """
    with torch.enable_grad():
        leaf = x.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(loss(prior.decode(leaf)), leaf)
    return gradient
