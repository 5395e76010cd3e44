"""The optimal prediction for one prompt of the embedded world."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from distill.priors.exact import ExactPrior


@lru_cache(maxsize=2)
def exact_prior(prompt: str, pictures: int = 1500, seed: int = 0) -> ExactPrior:
    """The empirical prior of true renders over white, conditional on the view's words.

    It knows this prompt alone, so that what a loss does with it shows the loss and no network's errors. Train
    with ``scene.background=white``.

    Args:
        prompt: of the embedded world.
        pictures: renders, from cameras drawn as in training.
        seed: of the cameras.

    Raises:
        ValueError: the prompt is not of this world.
    """
    import torch

    from distill.embedded import raycast, shapes, world
    from distill.priors.exact import empirical, scaled_linear
    from distill.samplers.cameras import ranges

    colour, kind = world.pair_of(prompt)
    cameras = ranges()(0.0, pictures, torch.Generator().manual_seed(seed))
    layers = raycast.render(shapes.build(kind), cameras, samples=2)
    rgb = torch.from_numpy(raycast.over(layers.rgba(world.COLOURS[colour]), 1.0)).movedim(-1, 1).float()
    angles = zip(cameras.azimuth_deg.tolist(), cameras.elevation_deg.tolist(), strict=True)
    captions = [f"{prompt}, {world.view_of(azimuth, elevation)}" for azimuth, elevation in angles]
    return empirical(rgb, captions, scaled_linear().float())
