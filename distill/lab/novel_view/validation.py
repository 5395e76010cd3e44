"""Measure a novel-view training on fixed pairs of held-out objects."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from distill.files.lines import json_of
from distill.lab.novel_view.config import TrainConfig
from distill.lab.novel_view.objective import loss_of
from distill.lab.novel_view.pairs import Pair, draw_indices, mixed, read_pair
from distill.lab.novel_view.progress import Progress, averaged
from distill.lab.novel_view.samples import collate
from distill.lab.novel_view.views import Views
from distill.priors.novel_view.pipeline import NovelViewPipeline

log = logging.getLogger(__name__)


def validation_pairs(config: TrainConfig, views: Views) -> list[Pair]:
    """Fixed pairs of the held-out objects."""
    drawn = [
        draw_indices(number, len(views), views.count, config.seed + 1)
        for number in range(config.validation_pairs)
    ]
    return [read_pair(views, views.uids[place], condition, target) for place, condition, target in drawn]


@torch.no_grad()
def validation_loss(
    config: TrainConfig, pipeline: NovelViewPipeline, pairs: Sequence[Pair], batch: int = 16
) -> float:
    """Mean loss of fixed pairs with fixed noise at timesteps spread evenly, nothing dropped: equal for all recipes."""
    steps = pipeline.scheduler.config.num_train_timesteps
    even = replace(config, dropout=0.0, seed=config.seed + 1)
    total = 0.0
    for start in range(0, len(pairs), batch):
        part = list(enumerate(pairs))[start : start + batch]
        samples = collate([(number, pair, None) for number, pair in part])
        spread = iter([(2 * number + 1) * steps // (2 * len(pairs)) for number, _ in part])

        def evenly(
            progress: float, count: int, generator: torch.Generator, spread: Iterator[int] = spread
        ) -> Tensor:
            return torch.tensor([next(spread)])

        total += len(part) * loss_of(pipeline, pipeline.model, samples, evenly, even, 0.0).item()
    return total / len(pairs)


def validate(
    config: TrainConfig, folder: Path, state: Progress, pipeline: NovelViewPipeline, views: Views
) -> dict[str, float]:
    """Measure the averaged weights, write it down with a sheet of samples, and return it."""
    pairs = validation_pairs(config, views)
    pipeline.model.eval()
    with averaged(state):
        found = {"loss": validation_loss(config, pipeline, pairs)}
        if config.validation_samples:
            (folder / "samples").mkdir(exist_ok=True)
            path = folder / "samples" / f"update-{state.update:07d}.png"
            found |= measure_samples(config, pipeline, pairs[: config.validation_samples], path)
    pipeline.model.train()
    with (folder / "validation.jsonl").open("a") as file:
        file.write(json_of({"step": state.update, **found}))
    if not math.isfinite(found["loss"]):
        log.warning("the validation loss is not finite at update %d", state.update)
    return found


def measure_samples(
    config: TrainConfig, pipeline: NovelViewPipeline, pairs: Sequence[Pair], path: Path, rows: int = 8
) -> dict[str, float]:
    """Draw pairs' targets, with few steps, and say how far off they are; the first appear on a sheet: input, truth, sample."""
    from PIL import Image

    from distill.lab.novel_view.evaluate import perceptual

    conditions, targets, poses = (
        torch.stack([getattr(pair, name) for pair in pairs]) for name in ("condition", "target", "pose")
    )
    noise = [torch.Generator().manual_seed(mixed(config.seed, number, 3)) for number in range(len(pairs))]
    drawn = pipeline(conditions, poses, generator=noise, steps=10, scale=2.0).cpu()
    conditions, targets = (nn.functional.interpolate(rgb, drawn.shape[-2:]) for rgb in (conditions, targets))
    sheet = torch.cat(
        [part[:rows].movedim(1, 0).flatten(1, 2) for part in (conditions, targets, drawn)], dim=2
    )
    Image.fromarray((sheet.movedim(0, -1).clamp(0, 1) * 255).round().byte().numpy()).save(path)
    name, distance = perceptual()
    each = [distance(*both) for both in zip(drawn, targets, strict=True)]
    return {"sample_mse": (drawn - targets).square().mean().item(), f"sample_{name}": sum(each) / len(each)}
