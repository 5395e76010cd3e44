"""Forecast memory and time of a run's step, and select the options that make it fit."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import torch
from hydra.utils import get_method, instantiate
from omegaconf import DictConfig

from distill.forecast.network import Forecast, counted, forecast, shadow
from distill.forecast.rendering import rendered
from distill.guidance import is_learner, is_made_for_prior
from distill.options import schedules_in
from distill.priors.dtypes import default_dtype
from distill.priors.load import family_of
from distill.priors.multi_view.attention import views_of
from distill.priors.source import Source
from distill.priors.whole import network_settings
from distill.samplers.schedules import scheduled

log = logging.getLogger(__name__)


#: Of the memory that is given, what a forecast may fill: the driver and the allocator want some, too.
SHARE = 0.9


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


def cost(
    config: DictConfig,
    source: Source,
    device: torch.device,
    known: dict[tuple[int, bool], Forecast] | None = None,
) -> Cost:
    """Forecast a configuration's step, from the networks' configurations and a small rendering.

    Args:
        config: of the run.
        source: of its prior.
        device: where it runs.
        known: the prior's forecasts of configurations that differ in nothing but views at a time, rendering and checkpointing, by
            the first and the last of these; what is missing is added.

    Raises:
        ValueError: the prior's folder is not one this library can use.
    """
    options, batch = config.prior_options, int(config.render.batch)
    family, _ = family_of(source.folder)
    together = views_of(network_settings(source, family), options.views, source.name)
    at_once = max(min(config.render.at_once or batch, batch) // together, 1) * together
    dtype = default_dtype(device) if options.dtype == "auto" else getattr(torch, options.dtype)
    known = {} if known is None else known
    key = (at_once, bool(options.checkpointing))
    if key not in known:
        prior = shadow(
            source, dtype, options.image_size, checkpointing=options.checkpointing, controlnet=options.controlnet,
            vae=options.vae, views=options.views, ip_mode=options.ip_mode,
        )  # fmt: skip
        rows, rank, decodes = calls(config, at_once)
        updates = int(config.guidance.get("updates", 1))
        known[key] = forecast(prior, rows, at_once, rank=rank, updates=updates, decodes=decodes)
    found = known[key]
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
    loss = get_method(config.guidance._target_)
    if is_learner(loss) and "rank" in config.guidance:  # it trains low-rank layers, as ``vsd`` does
        return [guided, batch], int(config.guidance.rank), False
    if is_made_for_prior(loss):
        return [guided] * len(config.guidance.get("terms") or [1]), 0, False
    made = instantiate(config.guidance, _convert_="all")
    asked = counted(scheduled(made, **schedules_in(config, "guidance")), batch, away=away)
    return asked.rows, 0, bool(asked.decoded)
