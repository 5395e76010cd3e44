"""Forecast memory and time of a run's step, and select the options that make it fit."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import torch
from hydra.utils import get_method, instantiate
from omegaconf import DictConfig

from distill.cameras import turntable
from distill.contracts import Scene, Step
from distill.forecast.network import Forecast, LiveBytes, counted, forecast, shadow
from distill.guidance import is_made_for_prior
from distill.loop import make_optimiser
from distill.options import schedule, schedules_in
from distill.priors.dtypes import default_dtype
from distill.priors.source import Source
from distill.renderers import reference
from distill.samplers.schedules import scheduled

log = logging.getLogger(__name__)


#: Of the memory that is given, what a forecast may fill: the driver and the allocator want some, too.
SHARE = 0.9


#: Bytes that a rendered pixel keeps whatever is computed again: its ray, its sums, and the picture.
_PIXEL = 128


@dataclass(frozen=True)
class Cost:
    """A step's forecast.

    Attributes:
        prior: of the views that are in memory at a time.
        scene: bytes of every particle's parameters, their gradients and averages.
        rendering: bytes that rendering keeps, with every cell of the occupancy full: an upper bound.
        beginning: the same with the cells full that are so in the first step. A scene that fills about as much of its cube
            as the blob that it begins as takes about that; one that fills more takes more.
        operations: floating-point operations of a whole step, rendering not counted.
    """

    prior: Forecast
    scene: int
    rendering: int
    beginning: int
    operations: int

    @property
    def peak(self) -> int:
        """Bytes at the same time, at most."""
        return self.prior.peak + self.scene + self.rendering

    @property
    def first_peak(self) -> int:
        """Bytes at the same time in the first step."""
        return self.prior.peak + self.scene + self.beginning


def cost(config: DictConfig, source: Source, device: torch.device) -> Cost:
    """Forecast a configuration's step, from the networks' configurations and a small rendering.

    Raises:
        ValueError: the prior's folder is not one this library can use.
    """
    options, batch = config.prior_options, int(config.render.batch)
    at_once = min(config.render.at_once or batch, batch)
    dtype = default_dtype(device) if options.dtype == "auto" else getattr(torch, options.dtype)
    prior = shadow(
        source, dtype, options.image_size, checkpointing=options.checkpointing, controlnet=options.controlnet,
        vae=options.vae,
    )  # fmt: skip
    rows, rank, decodes = calls(config, at_once)
    found = forecast(prior, rows, at_once, rank=rank, decodes=decodes)
    scene, rendering, beginning = rendered(config, at_once, device)
    return Cost(found, scene, rendering, beginning, found.operations * -(-batch // at_once))


def calls(config: DictConfig, batch: int) -> tuple[list[int], int, bool]:
    """Return what a loss asks of a prior for a batch.

    Returns:
        Pictures in each call of the network; the rank of the LoRA layers that it trains, 0 for none; and whether it
        backpropagates through the decoder, which is not known of the terms of ``mix``.
    """
    away = bool(config.perp_neg.enabled)
    guided = (5 if away else 2) * batch
    if "rank" in config.guidance:
        return [guided, batch], int(config.guidance.rank), False
    if is_made_for_prior(get_method(config.guidance._target_)):
        return [guided] * len(config.guidance.get("terms") or [1]), 0, False
    made = instantiate(config.guidance, _convert_="all")
    asked = counted(scheduled(made, **schedules_in(config, "guidance")), batch, away=away)
    return asked.rows, 0, bool(asked.decoded)


def rendered(config: DictConfig, views: int, device: torch.device) -> tuple[int, int, int]:
    """Measure a configuration's scene, there or on the CPU, by small renderings.

    Returns:
        Its bytes; those that rendering some views of it keeps with every cell full, and as it begins.
    """
    if device.type == "cuda" and not torch.cuda.is_available():
        device = torch.device("cpu")
    # What encodes on a GPU may not run here.
    here = {"backend": "auto"} if "backend" in config.scene and device.type != "cuda" else {}
    scene: Scene = instantiate(config.scene, _convert_="all", **here)(seed=0).to(device)
    # Each with its gradient and Adam's two averages, and the run's own where there is one.
    copies = config.particles * (5 if config.optimiser.ema else 4)
    groups = scene.parameter_groups().values()
    parameters = copies * sum(p.numel() * p.element_size() for group in groups for p in group.parameters)
    if "volume" not in scene.features:
        return parameters, 0, 0
    options = config.render
    known = (*reference.PENALTIES, *reference.START)
    names = [name for name, weight in config.penalties.items() if weight and name not in known]
    extra: dict[str, Any] = {}
    if "shading" in scene.features:
        # Lit pictures keep the most, whatever their share is.
        extra["shading"] = "lambertian" if any(options.turns.values()) else options.shading

    def peak(side: int) -> int:
        with LiveBytes() as live:
            seen = scene.render(
                turntable(1), side, side, generator=torch.Generator().manual_seed(0), penalties=names,
                normals=options.latent_until > 0 or config.prior_options.control == "normal", **extra,
            )  # fmt: skip
            (seen.rgb.sum() + sum(seen.penalties.values())).backward()
            scene.zero_grad(set_to_none=True)
        return live.peak

    def measured() -> tuple[float, float]:
        # A part of it is the parameters' gradients, whatever the size: the rest is what grows from one picture to a larger one.
        sides = (32, 64)
        small, large = map(peak, sides)
        per_ray = max(large - small, 0) / (sides[1] ** 2 - sides[0] ** 2)
        return per_ray, max(large - per_ray * sides[1] ** 2, 0)

    size = schedule("render.size", options.size, config.iterations)
    side = size if isinstance(size, (int, float)) else max(size.start, size(1.0))
    rays = views * min(side, options.patch or side) ** 2

    def kept() -> int:
        per_ray, rest = measured()
        if not options.recompute:
            return int(rest + rays * per_ray)
        return int(rest + rays * _PIXEL + min(rays, options.chunk_rays) * per_ray)

    full = kept()
    scene.update(Step(), make_optimiser(scene), torch.Generator().manual_seed(0))
    return parameters, full, kept()
