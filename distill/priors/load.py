"""Finding a prior's folder and loading it."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from distill.priors.unet import UNetPrior

EMBEDDED = Path(__file__).parents[1] / "embedded" / "prior"


def folder_of(name: str | Path) -> Path:
    """The folder of a prior: ``embedded``, or a local folder in the diffusers layout.

    Raises:
        ValueError: there is no such prior.
    """
    folder = EMBEDDED if str(name) == "embedded" else Path(name).expanduser()
    if not (folder / "model_index.json").is_file():
        raise ValueError(
            f"prior must be 'embedded' or a folder in the diffusers layout, but {str(name)!r} has no "
            "model_index.json; save a pipeline there with pipeline.save_pretrained(folder)"
        )
    return folder


def default_dtype(device: torch.device) -> torch.dtype:
    """Half precision where the hardware computes in it, float32 elsewhere."""
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    if device.type == "cpu" and torch.cpu._is_avx512_bf16_supported():
        return torch.bfloat16
    return torch.float32


def load_prior(
    name: str | Path = "embedded", device: torch.device | str = "cpu", dtype: torch.dtype | None = None
) -> UNetPrior:
    """Load a frozen prior.

    Args:
        name: ``embedded``, or a local folder in the diffusers layout, safetensors only.
        device: where it runs.
        dtype: what its network computes in; by default what the device is fast at.

    Raises:
        ValueError: there is no such prior, or its folder is not one this library can use.
    """
    device = torch.device(device)
    folder = folder_of(name)
    index = json.loads((folder / "model_index.json").read_text())
    missing = [part for part in ("unet", "text_encoder", "tokenizer", "scheduler") if part not in index]
    if missing:
        raise ValueError(
            f"a prior needs unet, text_encoder, tokenizer and scheduler, but {folder} lacks {', '.join(missing)}"
        )
    return UNetPrior.from_folder(folder, device, dtype or default_dtype(device), str(name))
