"""Drawing pictures from a prior: a way to see what a scene will be taught."""

from __future__ import annotations

import torch
from torch import Tensor

from distill.cameras import Cameras
from distill.contracts import Prior
from distill.priors.predictions import classifier_free_guidance


@torch.no_grad()
def sample(
    prior: Prior,
    prompts: list[str],
    *,
    generator: torch.Generator,
    steps: int = 30,
    scale: float = 3.0,
    interval: tuple[float, float] = (0.0, 1.0),
    clip: float | None = None,
    cameras: Cameras | None = None,
) -> Tensor:
    r"""Draw one sample for each prompt by deterministic DDIM.

    .. math:: x_{t'} = \alpha_{t'} \hat x_0 + \sigma_{t'} \hat\epsilon        (Eq. 12 with zero variance)

    Args:
        prior: the model.
        prompts: what to draw.
        generator: of the initial noise, on the CPU, so that one seed gives one picture on every device.
        steps: evenly spaced, ending at 0. Each is a network call, on both halves of classifier-free guidance where it applies.
        scale: classifier-free guidance scale; 1 is purely conditional.
        interval: of the timesteps at which guidance applies, as shares of all timesteps in [0, 1], the upper end excluded
            (Kynkäänniemi et al. 2024, arXiv:2404.07724). Others are purely conditional.
        clip: the largest magnitude of the predicted clean sample; 1 suits pixels, None latents.
        cameras: one for each prompt, for a multi-view prior, whose views of an object follow one another.

    Returns:
        Clean samples in the prior's own space, ``[len(prompts), channel, height, width]``; the prior's
        ``decode`` makes pictures of them.

    Raises:
        ValueError: ``steps`` is not between 1 and the prior's number of timesteps, ``prompts`` is no list or empty, ``interval`` is
            not within [0, 1] and in order, ``clip`` is not above 0, or a multi-view prior has no cameras.

    Source: Song et al. 2021, arXiv:2010.02502. Timesteps "trailing" as in Lin et al. 2024, arXiv:2305.08891.
    """
    if not 1 <= steps <= prior.num_timesteps:
        raise ValueError(f"steps must be between 1 and {prior.num_timesteps}, got {steps}")
    if isinstance(prompts, str) or not prompts:
        raise ValueError(f"prompts must be a list of one text or more, got {prompts!r}")
    if clip is not None and not clip > 0:
        raise ValueError(f"clip must be above 0, or None, got {clip}")
    if len(interval) != 2 or not 0 <= interval[0] <= interval[1] <= 1:
        raise ValueError(f"interval must be two shares in [0, 1], the lower first, got {interval}")
    n = len(prompts)
    x = torch.randn(n, *prior.shape, generator=generator).to(prior.device)
    table = prior.embed([*prompts, ""])
    cond = {name: value[[*range(n), *[n] * n]] for name, value in table.items()}
    own = {name: value[:n] for name, value in table.items()}
    twice = cameras and Cameras.joined([cameras, cameras])
    times = torch.linspace(prior.num_timesteps, 0, steps + 1).round().long() - 1
    for now, after in zip(times[:-1].tolist(), times[1:].tolist(), strict=True):
        t = torch.full((n,), now, device=prior.device)
        if scale != 1 and interval[0] <= now / prior.num_timesteps < interval[1]:
            both = prior.predict_noise(torch.cat([x, x]), torch.cat([t, t]), cond, twice)
            positive, empty = both.chunk(2)
            noise = classifier_free_guidance(empty, positive, scale)
        else:
            noise = prior.predict_noise(x, t, own, cameras)
        clean = (x - prior.sigma(t) * noise) / prior.alpha(t)
        if clip is not None:
            clean = clean.clamp(-clip, clip)
            noise = (x - prior.alpha(t) * clean) / prior.sigma(t)
        if after < 0:  # past timestep 0 lies the clean sample itself
            return clean
        t = torch.full_like(t, after)
        x = prior.alpha(t) * clean + prior.sigma(t) * noise
    raise AssertionError("the last step returns")
