"""What a novel-view training begins from: a text-to-image model of pixels with new conditioning."""

from __future__ import annotations

from pathlib import Path

import torch

from distill.priors.novel_view.code import TurnOptions
from distill.priors.novel_view.features import Encoder
from distill.priors.novel_view.model import build, widen
from distill.priors.novel_view.pipeline import NovelViewPipeline


def from_prior(
    folder: Path,
    encoder: Encoder,
    *,
    turn: TurnOptions | None,
    amalgamation: bool = True,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> NovelViewPipeline:
    """Put new conditioning on a text-to-image model.

    Args:
        folder: of the model, in the diffusers layout.
        encoder: of the condition picture.
        turn: what the UNet is told of a rotated code, or None for the paper's pose token.
        amalgamation: add the encoder's maps to the UNet.
        seed: of what is initialised at random.
        device: where the model is to lie.
    """
    from diffusers import DDIMScheduler, UNet2DConditionModel

    unet = UNet2DConditionModel.from_pretrained(folder, subfolder="unet", use_safetensors=True)
    scheduler = DDIMScheduler.from_pretrained(folder, subfolder="scheduler")
    torch.manual_seed(seed)
    model = build(
        widen(unet, draft=turn is not None and turn.draft > 0), token_width=encoder.token_width,
        map_width=encoder.map_width if amalgamation else 0, grid=encoder.grid, turn=turn, layer_widths=encoder.map_widths,
    )  # fmt: skip
    return NovelViewPipeline(model.to(device), encoder, scheduler)
