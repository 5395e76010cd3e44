"""Begin a scene with views that the picture's model draws: fit them first, then distil."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import max_pool2d

from distill.cameras import Cameras, orbit
from distill.contracts import CameraSampler, Condition, Guidance, Prior
from distill.priors.novel_view.elevation import silhouettes
from distill.renderers.reference import Drawn

#: A picture from further up or down than this shows too little of the sides; the views are then drawn at ``LEVEL_DEG``.
STEEP_DEG, LEVEL_DEG = 65.0, 25.0


def ring(azimuth_deg: float, elevation_deg: float, views: int, distance: float, fov_y_deg: float) -> Cameras:
    """Cameras all around at one height, the first at ``azimuth_deg``."""
    turns = torch.arange(views) * (360.0 / views)
    height = torch.full((views,), float(elevation_deg))
    return orbit(azimuth_deg + turns, height, distance, fov_y_deg)


def drawn_views(rgb: Tensor, cameras: Cameras) -> Drawn:
    """Views over white, ``[views, 3, size, size]`` in [0, 1], with what they tell of the object's mask.

    Coloured pixels show the object. White ones that hang together with the border do not. Other white ones may be a hole or
    a white part, and the object's rim is neither one nor the other: there, the mask is not known.
    """
    from scipy import ndimage

    mask = silhouettes(rgb.cpu())
    filled = torch.stack(
        [torch.from_numpy(ndimage.binary_fill_holes(one[0].numpy() > 0.5)).float()[None] for one in mask]
    )
    rim = max_pool2d(mask, 3, 1, 1) + max_pool2d(1 - mask, 3, 1, 1) - 1
    sure = (mask == filled).float() * (1 - rim)
    return Drawn(cameras, rgb, mask.to(rgb), sure.to(rgb))


def views_first(sampler: CameraSampler, cameras: Cameras, until: float) -> CameraSampler:
    """Draw from given cameras, each once before any twice, up to a fraction of training; then as ``sampler`` does."""

    def draw(progress: float, batch: int, generator: torch.Generator) -> Cameras:
        if progress >= until:
            return sampler(progress, batch, generator)
        rounds = -(-batch // len(cameras))
        order = torch.cat([torch.randperm(len(cameras), generator=generator) for _ in range(rounds)])
        return cameras[order[:batch]]

    return draw


def asked_later(guidance: Guidance, until: float) -> Guidance:
    """A loss whose gradient is 0, without asking the prior, up to a fraction of training."""

    def guided(prior: Prior, x: Tensor, cond: Condition, t: Tensor, noise: Tensor) -> Tensor:
        if cond.step.progress < until:
            return torch.zeros_like(x)
        return guidance(prior, x, cond, t, noise)

    return guided
