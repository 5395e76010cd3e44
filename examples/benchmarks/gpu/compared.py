"""The gradient of SDS from a plain loop on diffusers, beside this library's on the same pictures.

Both are given the same latents, timesteps, noise and embeddings, made beforehand. The plain loop is what one would write with
diffusers alone: its scheduler adds the noise, its UNet predicts for the prompt and for no prompt in one call, and the rest are
four lines. Neither renders nor goes back through an encoder.
"""

from __future__ import annotations

import gc
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from measuring import Clock
from record import Record
from steps import Case, configured, prior_folder
from torch import Tensor

from distill.contracts import Step
from distill.priors.diffusion import DiffusionPrior
from distill.priors.dtypes import precision
from distill.run.assembly.assemble import assemble
from distill.run.assembly.prior import open_prior
from distill.run.config.compose import compose_config
from distill.run.config.overrides import as_overrides

Gradient = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Plain:
    """SDS by hand.

    Attributes:
        unet: of diffusers.
        scheduler: of diffusers.
        x: clean pictures in the UNet's space, shape ``[batch, channel, height, width]``.
        text: embeddings of the prompt for each picture, then of no prompt, shape ``[2 batch, tokens, width]``.
        scale: of the guidance.
    """

    unet: Any
    scheduler: Any
    x: Tensor
    text: Tensor
    scale: float

    @torch.no_grad()
    def __call__(self, t: Tensor, noise: Tensor) -> Tensor:
        """Shape of ``x``; timesteps ``[batch]`` and noise like ``x``."""
        noised = self.scheduler.add_noise(self.x, noise, t)
        both = torch.cat([noised, noised]).to(self.unet.dtype)
        said, unsaid = self.unet(both, torch.cat([t, t]), self.text).sample.float().chunk(2)
        abar = self.scheduler.alphas_cumprod[t].view(-1, 1, 1, 1)
        guided = unsaid + self.scale * (said - unsaid)
        if self.scheduler.config.prediction_type == "v_prediction":
            guided = abar.sqrt() * guided + (1 - abar).sqrt() * noised
        return (1 - abar) * (guided - noise)


def plain(folder: Path, prior: DiffusionPrior, x: Tensor, text: Tensor, scale: float) -> Plain:
    """The loop on a folder's own UNet and scheduler, loaded by diffusers."""
    import diffusers
    from diffusers import UNet2DConditionModel

    unet = UNet2DConditionModel.from_pretrained(folder, subfolder="unet", **precision(prior.dtype))
    unet.to(prior.device).eval().requires_grad_(False)
    scheduler = diffusers.DDIMScheduler.from_pretrained(folder, subfolder="scheduler")
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.to(prior.device)
    return Plain(unet, scheduler, x, text.to(prior.dtype), scale)


def ways(config: Any, prior: DiffusionPrior, folder: Path) -> tuple[dict[str, Gradient], Tensor]:
    """The gradient as a function of timesteps and noise, by who computes it; and the pictures in the prior's space."""
    job = assemble(config, prior)
    g, size = job.state.generator, int(config.render.size)
    cameras = job.cameras(0.0, config.render.batch, g)
    there = cameras.to(prior.device)
    with torch.no_grad():
        x = prior.encode(job.render(there, size, size, generator=g).rgb.movedim(-1, 1)).contiguous()
    cond = replace(job.condition(cameras, Step()), cameras=there)
    name = "encoder_hidden_states"
    text = torch.cat([cond.text[name], cond.uncond[name]])
    by_hand = plain(folder, prior, x, text, float(config.guidance.scale))
    reordered = plain(folder, prior, x, text, float(config.guidance.scale))
    reordered.unet.to(memory_format=torch.channels_last)

    def ours(one: DiffusionPrior) -> Gradient:
        def gradient(t: Tensor, noise: Tensor) -> Tensor:
            with torch.no_grad():
                return job.guidance(one, x, cond, t, noise)

        return gradient

    found: dict[str, Gradient] = {
        "diffusers": by_hand,
        "diffusers, channels last": reordered,
        "distill, kernel by kernel": ours(replace(prior, graphs=None)),
    }
    if prior.graphs is not None:
        found["distill, CUDA graph"] = ours(prior)
    return found, x


def compare(record: Record, title: str, made: Mapping[str, Gradient], x: Tensor, rounds: int) -> None:
    """Take turns, so that all see the same weather; a row for each, and how far its gradient is from the first one's."""
    g, device = torch.Generator().manual_seed(0), x.device
    clocks = {name: Clock(device) for name in made}
    errors: dict[str, list[float]] = {name: [] for name in made}
    warm = min(rounds, 4)
    for number in range(rounds + warm):
        t = torch.randint(20, 980, (len(x),), generator=g).to(device)
        noise = torch.randn(x.shape, generator=g).to(device)
        first: Tensor | None = None
        for name, gradient in made.items():
            with clocks[name]("step"):
                found = gradient(t, noise)
            if number < warm:  # the first ones choose kernels and record graphs
                clocks[name].parts.clear()
            first = found if first is None else first
            errors[name].append(float((found - first).norm() / first.norm()))
    base = statistics.median(clocks["diffusers"].parts["step"])
    for name, clock in clocks.items():
        spent = statistics.median(clock.parts["step"])
        record.row(
            title,
            {
                "who": name, "pictures": len(x), "ms": spent, "of diffusers' time": spent / base,
                "gradient, relative difference": max(errors[name]),
            },
        )  # fmt: skip


def run(record: Record, work: Path, output: Path, device: torch.device, dry: bool) -> None:
    """With the embedded prior, then at Stable Diffusion 1.5's size; renders of 64 pixels."""
    from distill.embedded.vocabulary import SHIPPED

    rounds = 1 if dry else 30
    small = {"render.size": 16, "render.batch": 1} if dry else {}
    given = {"prompt": "a red mug", "device": str(device), "guidance": "sds", **small}
    config = compose_config(as_overrides(given))
    prior = open_prior(config, device)
    compare(record, "SDS's gradient, the embedded prior", *ways(config, prior, SHIPPED["embedded"]), rounds)
    del prior
    gc.collect()
    folder = prior_folder(work, device, dry)
    case = Case("sds", 16, "float32") if dry else Case("sds", 64)
    config = configured(case, folder, device, dry)
    made = ways(config, open_prior(config, device), folder)
    compare(record, "SDS's gradient, Stable Diffusion 1.5's size", *made, rounds)
