"""Write a prior of Stable Diffusion 1.5's true size with random weights: nothing can be made with it, but a step measured.

python examples/benchmarks/random_prior.py /tmp/sd15
The folder has the diffusers layout, 2.1 GB of bfloat16 safetensors. Its tokenizer knows letters alone, but gives as many
tokens as the published one.
"""

from __future__ import annotations

import argparse
import json
import string
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

#: What every width may be divided by.
SHRINKS = (1, 2, 4, 8)


def unet(shrink: int = 1, layers: int = 2) -> Any:
    """859,520,964 parameters with two layers on each level, latents of 64 x 64."""
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=64,
        block_out_channels=tuple(width // shrink for width in (320, 640, 1280, 1280)),
        layers_per_block=layers,
        cross_attention_dim=768 // shrink,
        attention_head_dim=8,
        norm_num_groups=32 // shrink,
    )


def vae(shrink: int = 1, layers: int = 2) -> Any:
    """83,653,863 parameters with two layers on each level, pictures of 512 x 512."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        sample_size=512,
        block_out_channels=tuple(width // shrink for width in (128, 256, 512, 512)),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=layers,
        norm_num_groups=32 // shrink,
        force_upcast=False,  # as published; diffusers' default, made for Stable Diffusion XL, is float32 beside float16
    )


def text_encoder(shrink: int = 1, layers: int = 12) -> Any:
    """123,060,480 parameters with twelve layers: the text half of CLIP ViT-L/14."""
    from transformers import CLIPTextConfig, CLIPTextModel

    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=49408,
            hidden_size=768 // shrink,
            intermediate_size=3072 // shrink,
            num_hidden_layers=layers,
            num_attention_heads=12,
            max_position_embeddings=77,
            projection_dim=768 // shrink,
        )
    )


def tokenizer(folder: Path) -> Any:
    """Letter by letter, 77 tokens; by way of the files that any release of transformers reads."""
    from transformers import CLIPTokenizer

    letters = string.ascii_lowercase + string.digits + string.punctuation
    pieces = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({piece: i for i, piece in enumerate(pieces)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer.from_pretrained(folder, model_max_length=77)


def write(
    folder: Path, shrink: int = 1, device: torch.device | str = "cpu", layers: Mapping[str, int] | None = None
) -> None:
    """Write the prior, with the same weights at every call on a kind of device; a GPU draws them many times as fast.

    Args:
        folder: new or empty.
        shrink: what every width is divided by.
        device: where the weights are drawn.
        layers: of ``vae``, ``text_encoder`` and ``unet`` by name; what is left out has as many as the published one.

    Raises:
        ValueError: the widths cannot be divided by ``shrink``, or the folder is not empty.
    """
    from diffusers import PNDMScheduler, StableDiffusionPipeline

    if shrink not in SHRINKS:
        raise ValueError(
            f"--shrink must be one of {', '.join(map(str, SHRINKS))}, which divide every width; got {shrink}"
        )
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"expected a new or empty folder, and {folder} holds files; name another")
    scheduler = PNDMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        set_alpha_to_one=False,
        skip_prk_steps=True,
        steps_offset=1,
    )
    torch.manual_seed(0)
    depths = {name: {"layers": count} for name, count in (layers or {}).items()}
    # One after the other, so that only one is in memory in float32; diffusers' own `to` would warn of layers kept so.
    with torch.device(device):
        encoder, clip, network = (
            torch.nn.Module.to(make(shrink, **depths.get(make.__name__, {})), torch.bfloat16)
            for make in (vae, text_encoder, unet)
        )
    pipeline = StableDiffusionPipeline(
        encoder, clip, tokenizer(folder / "tokenizer"), network, scheduler, None, None, requires_safety_checker=False
    )  # fmt: skip
    pipeline.save_pretrained(folder)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--shrink", type=int, default=1, help="divide every width, for a trial on a CPU")
    options = parser.parse_args()
    try:
        write(options.folder.expanduser(), options.shrink)
    except ValueError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
