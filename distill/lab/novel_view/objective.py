"""What a novel-view training makes small, and at which timesteps."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from distill.contracts import TimestepSampler
from distill.lab.novel_view.config import TrainConfig, law_of
from distill.lab.novel_view.pairs import mixed
from distill.lab.novel_view.samples import Batch
from distill.priors.novel_view.code import Draft, RotatedCode
from distill.priors.novel_view.features import Encoder, Features
from distill.priors.novel_view.model import draw_dropout
from distill.priors.novel_view.pipeline import NovelViewPipeline
from distill.priors.predictions import from_noise
from distill.samplers import timesteps


def loss_of(
    pipeline: NovelViewPipeline,
    model: nn.Module,
    batch: Batch,
    sampler: TimestepSampler,
    config: TrainConfig,
    progress: float,
) -> Tensor:
    """Mean squared error of the network's own kind of prediction, unweighted, over a batch."""
    device = next(model.parameters()).device
    draws = [torch.Generator().manual_seed(mixed(config.seed, number, 2)) for number in batch.numbers]
    with torch.no_grad():
        space, pairs = pipeline.space, zip(batch.target, draws, strict=True)
        x = torch.cat([space.encode(rgb[None].to(device), generator=g) for rgb, g in pairs])
        latent = torch.cat([space.encode(rgb[None].to(device), scaled=False) for rgb in batch.condition])
        features = batch.features or pipeline.encoder(batch.condition.to(device))
        t = torch.cat([sampler(progress, 1, g) for g in draws]).to(device)
        noise = torch.stack([torch.randn(x.shape[1:], generator=g) for g in draws]).to(x)
        keeps = [draw_dropout(1, g, config.dropout) for g in draws]
        keep_token, keep_latent = (torch.cat(keep).to(device) for keep in zip(*keeps, strict=True))
        abar = pipeline.scheduler.alphas_cumprod.to(x)[t][:, None, None, None]
        alpha, sigma = abar.sqrt(), (1 - abar).sqrt()
        x_t = alpha * x + sigma * noise
        goal = from_noise(pipeline.scheduler.config.prediction_type, noise, x_t, alpha, sigma)
    told = Features(*(value.to(device) for value in vars(features).values()))
    predicted = model(x_t, t, latent, told, batch.pose.to(device), keep_token, keep_latent)
    return nn.functional.mse_loss(predicted.float(), goal.float())


def make_sampler(config: TrainConfig, num_timesteps: int) -> TimestepSampler:
    """The timesteps' law, over all of them."""
    from types import SimpleNamespace

    whole: Any = SimpleNamespace(num_timesteps=num_timesteps)
    law = law_of(config)
    if law.kind == "uniform":
        return timesteps.uniform(whole, t_min=0.0, t_max=1.0)
    if law.kind == "normal":
        return timesteps.truncated_normal(whole, mean=config.mean, std=config.std)

    def power(progress: float, count: int, generator: torch.Generator) -> Tensor:
        drawn = law.quantile(torch.rand(count, generator=generator), progress)
        return (drawn * num_timesteps).long().clamp(0, num_timesteps - 1)

    return power


class Drawing(nn.Module):
    """A rotated code with the thumbnail that it draws, in one module, as several processes train it.

    Args:
        code: of the model.
        draft: of the model, or one that is trained beside it and left out.
    """

    def __init__(self, code: RotatedCode, draft: Draft) -> None:
        super().__init__()
        self.code, self.draft = code, draft

    def forward(self, maps: Tensor, pose: Tensor) -> Tensor:
        """Shapes ``[batch, patches, width]`` and ``[batch, 4]`` to thumbnails ``[batch, 3, size, size]`` in [-1, 1]."""
        drawn: Tensor = self.draft(self.code(maps, pose))
        return drawn


def thumbnails(rgb: Tensor, size: int) -> Tensor:
    """Pictures in [0, 1], ``[n, 3, h, w]``, averaged over areas, in [-1, 1], shape ``[n, 3, size, size]``."""
    return nn.functional.interpolate(rgb * 2 - 1, (size, size), mode="area")


def drawing_loss(encoder: Encoder, size: int, model: nn.Module, batch: Batch) -> Tensor:
    """Mean squared error of the thumbnails that a code draws of a batch's targets, ``size`` pixels wide."""
    device = next(model.parameters()).device
    with torch.no_grad():
        maps = (batch.features or encoder(batch.condition.to(device))).maps.to(device)
        goal = thumbnails(batch.target.to(device), size)
    return nn.functional.mse_loss(model(maps, batch.pose.to(device)), goal)
