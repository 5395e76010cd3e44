"""What a novel-view training begins from: a text-to-image model with new conditioning, or a novel-view model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from distill.files.errors import first_line
from distill.files.paths import user_path
from distill.lab.novel_view.config import TrainConfig, offset_of, turn_of
from distill.priors.novel_view.code import TurnOptions
from distill.priors.novel_view.features import Encoder
from distill.priors.novel_view.model import build, widen
from distill.priors.novel_view.pipeline import (
    PUBLISHED,
    NovelViewPipeline,
    read_conditioning,
    take_conditioning,
    turn_options,
)
from distill.priors.space import downsampling


def from_prior(
    folder: Path,
    encoder: Encoder,
    *,
    turn: TurnOptions | None,
    amalgamation: bool = True,
    size: int | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> NovelViewPipeline:
    """Put new conditioning on a text-to-image model.

    Args:
        folder: of the model, in the diffusers layout.
        encoder: of the condition picture.
        turn: what the UNet is told of a rotated code, or None for the paper's pose token.
        amalgamation: add the encoder's maps to the UNet.
        size: of the pictures that it is to draw, pixels, or None for the text-to-image model's own.
        seed: of what is initialised at random.
        device: where the model is to lie.

    Raises:
        ValueError: the UNet cannot halve pictures of that size as often as it does.
    """
    from diffusers import DDIMScheduler, UNet2DConditionModel

    unet = UNet2DConditionModel.from_pretrained(folder, subfolder="unet", use_safetensors=True)
    scheduler = DDIMScheduler.from_pretrained(folder, subfolder="scheduler")
    if size is not None:
        resize(unet, None, size, folder)
    torch.manual_seed(seed)
    model = build(
        widen(unet, draft=turn is not None and turn.draft > 0), token_width=encoder.token_width,
        map_width=encoder.map_width if amalgamation else 0, grid=encoder.grid, turn=turn, layer_widths=encoder.map_widths,
    )  # fmt: skip
    return NovelViewPipeline(model.to(device), encoder, scheduler)


def resize(unet: Any, vae: Any, size: int, folder: Path) -> None:
    """Let the UNet of a text-to-image model draw pictures of another size.

    Args:
        unet: of diffusers.
        vae: its VAE, or None where it works on pixels.
        size: height and width of the pictures, pixels.
        folder: of the model, for the error.

    Raises:
        ValueError: the UNet cannot halve such pictures as often as it does.
    """
    factor = downsampling(vae, unet.config.out_channels)
    step = factor * 2 ** (len(unet.config.block_out_channels) - 1)
    if size < step or size % step:
        raise ValueError(
            f"pictures for the prior in {folder} must be a multiple of {step} pixels high, got {size}"
        )
    unet.register_to_config(sample_size=size // factor)


def open_pipeline(config: TrainConfig, encoder: Encoder) -> NovelViewPipeline:
    """Load the initial model: a novel-view model as it is, or a text-to-image model with its input extended.

    Raises:
        ValueError: it is no such model, or of other conditioning or another size of pictures than the options say, in one line.
    """
    folder = user_path(config.init)
    if not (folder / "unet").is_dir():
        raise ValueError(f"init must be a folder in the diffusers layout to begin from, got {config.init!r}")
    trained = is_novel_view(folder)
    said, weights = read_conditioning(folder) if trained else ({}, {})
    turn = chosen_turn(config, folder, said if trained else None)
    unet, scheduler, vae = _load(folder)
    if not trained:
        resize(unet, vae, config.size, folder)
    draft = turn is not None and turn.draft > 0
    channels, latent = unet.config.in_channels, unet.config.out_channels
    if channels == latent or (draft and not trained and channels == 2 * latent):
        widen(unet, draft=draft)
    map_width = encoder.map_width if config.amalgamation else 0
    torch.manual_seed(config.seed)
    model = build(
        unet, token_width=encoder.token_width, norm=config.norm, map_width=map_width, grid=encoder.grid, turn=turn,
        layer_widths=encoder.map_widths,
    )  # fmt: skip
    if trained:
        try:
            take_conditioning(model, weights)
        except RuntimeError as error:
            raise ValueError(
                f"the conditioning in init={folder} is of another encoder or amalgamation; give the same encoder=, layers=, "
                "norm= and amalgamation=, or a text-to-image folder to begin from"
            ) from error
    if config.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    if vae is not None:
        vae.eval().requires_grad_(False)
    pipeline = NovelViewPipeline(model.train(), encoder, scheduler, vae, offset=offset_of(config))
    if pipeline.size != config.size:
        raise ValueError(
            f"the novel-view model in init={folder} draws pictures of {pipeline.size} pixels, and size={config.size} was asked for; "
            f"give size={pipeline.size}, or begin from a text-to-image folder"
        )
    return pipeline


def _load(folder: Path) -> tuple[Any, Any, Any]:
    """The UNet, the scheduler and the VAE, or None, of a folder in the diffusers layout."""
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel

    options: dict[str, Any] = {"use_safetensors": True, "local_files_only": True}
    try:
        unet = UNet2DConditionModel.from_pretrained(folder, subfolder="unet", **options)
        scheduler = DDIMScheduler.from_pretrained(folder, subfolder="scheduler")
        has_vae = (folder / "vae").is_dir()
        vae = AutoencoderKL.from_pretrained(folder, subfolder="vae", **options) if has_vae else None
    except (OSError, ValueError) as error:
        raise ValueError(f"could not load init={folder}: {first_line(error)}") from error
    return unet, scheduler, vae


def is_novel_view(folder: Path) -> bool:
    """Whether a folder holds a novel-view model rather than a text-to-image one."""
    return any((folder / place).is_dir() for place in ("conditioning", *PUBLISHED))


def trains_code(config: TrainConfig) -> bool:
    """Whether a training begins with the code: a model that has one keeps it, unless it is to be trained on."""
    return config.code and (config.code_again or not is_novel_view(user_path(config.init)))


def chosen_turn(config: TrainConfig, folder: Path, said: Mapping[str, Any] | None) -> TurnOptions | None:
    """Settle what the UNet is told of a rotated code: what the options say, which a novel-view model has to have.

    Args:
        config: the options.
        folder: of the model to begin from.
        said: its conditioning's settings, None for a text-to-image model.

    Raises:
        ValueError: it has another code, one that is not asked for, or none.
    """
    wanted = turn_of(config)
    if wanted is None and said is not None and said.get("turn"):
        raise ValueError(
            f"the model in init={folder} has a rotated code; add code=true, or begin from another folder"
        )
    if wanted is None or said is None:
        return wanted
    found = turn_options(said, folder)
    if found is None:
        raise ValueError(
            f"the novel-view model in init={folder} has no rotated code; leave code=true out, or begin from a text-to-image folder"
        )
    for name in ("tokens", "film", "draft"):
        if getattr(wanted, name) != getattr(found, name):
            raise ValueError(
                f"the code of the model in init={folder} has {name}={getattr(found, name)}, not {getattr(wanted, name)}; give "
                "the same"
            )
    return found
