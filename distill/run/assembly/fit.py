"""Choose options with which a step fits a given memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from distill.forecast.cost import SHARE, cost, log
from distill.forecast.network import Forecast
from distill.priors.load import family_of
from distill.priors.multi_view.attention import views_of
from distill.priors.source import Source
from distill.priors.whole import network_settings
from distill.run.checks.texts import bytes_of


def fit(config: DictConfig, source: Source, device: torch.device) -> None:
    """Change a configuration so that the forecast of its step fits ``max_vram``, with the cheapest changes in time first.

    Raises:
        ValueError: nothing makes it fit.
    """
    room = bytes_of(config.max_vram)
    trial, needed, known = config.copy(), 0, dict[tuple[int, bool], Forecast]()
    for changes in savings(config, source):
        for name, value in changes.items():
            OmegaConf.update(trial, name, value)
        needed = cost(trial, source, device, known).peak
        if needed <= SHARE * room:
            chosen = {name: OmegaConf.select(trial, name) for name in SAVINGS}
            config.merge_with(trial)
            said = ", ".join(f"{name}={value}" for name, value in chosen.items() if value)
            log.info(
                "max_vram=%s: a step takes %.1f GB by the forecast, with %s",
                config.max_vram, needed / 1e9, said or "no option changed",
            )  # fmt: skip
            return
    raise ValueError(
        f"a step takes {needed / 1e9:.2g} GB by the forecast whatever is saved, and a tenth of max_vram={config.max_vram} is "
        "the driver's; choose a smaller prior_options.image_size, render.size, guidance or prior"
    )


#: What ``fit`` may change.
SAVINGS = ("render.at_once", "render.recompute", "prior_options.checkpointing")


def savings(config: DictConfig, source: Source) -> Iterator[dict[str, Any]]:
    """Changes that each save memory on top of those before: first as the user has it."""
    yield {}
    family, index = family_of(source.folder)
    together = views_of(network_settings(source, family), config.prior_options.views, source.name)
    views = min(config.render.at_once or config.render.batch, config.render.batch)
    while views > together:
        views = max(views // 2 // together, 1) * together
        yield {"render.at_once": views}
    yield {"render.recompute": True}
    import diffusers

    kind = getattr(diffusers, index["vae"][1]) if "vae" in index else None
    if getattr(kind, "_supports_gradient_checkpointing", False):
        yield {"prior_options.checkpointing": True}
