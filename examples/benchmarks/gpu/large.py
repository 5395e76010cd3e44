"""The networks of Stable Diffusion XL and FLUX at their true size, alone: one prediction, guided."""

from __future__ import annotations

import gc
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from measuring import Clock, peak_gib, reset_peak
from record import Record
from torch import Tensor

#: 2,567,463,684 parameters, latents of 128 x 128.
SDXL: dict[str, Any] = {
    "sample_size": 128,
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
#: 11,901,408,320 parameters; of FLUX.1 dev.
FLUX: dict[str, Any] = {"guidance_embeds": True}
SMALL_SDXL: dict[str, Any] = {
    **SDXL, "sample_size": 8, "block_out_channels": (32, 32, 32), "transformer_layers_per_block": 1,
    "attention_head_dim": 2, "cross_attention_dim": 16, "projection_class_embeddings_input_dim": 16 + 6 * 256,
}  # fmt: skip
SMALL_FLUX: dict[str, Any] = {
    "num_layers": 1, "num_single_layers": 1, "attention_head_dim": 16, "num_attention_heads": 2, "joint_attention_dim": 16,
    "pooled_projection_dim": 16, "axes_dims_rope": (4, 6, 6), "guidance_embeds": True,
}  # fmt: skip


def filled(
    make: Callable[..., Any], options: dict[str, Any], device: torch.device, dtype: torch.dtype
) -> Any:
    """A network with random weights, made where it will lie."""
    with torch.device("meta"):
        network = make(**options)
    network = torch.nn.Module.to_empty(torch.nn.Module.to(network, dtype), device=device)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    return network.eval().requires_grad_(False)


def sdxl_call(network: Any, rows: int, device: torch.device, dtype: torch.dtype) -> Callable[[], Tensor]:
    config = network.config
    network.to(memory_format=torch.channels_last)
    options: dict[str, Any] = {"device": device, "dtype": dtype}
    x = torch.randn(rows, 4, config.sample_size, config.sample_size, **options)
    text = torch.randn(rows, 77, config.cross_attention_dim, **options)
    pooled = config.projection_class_embeddings_input_dim - 6 * 256
    added = {
        "text_embeds": torch.randn(rows, pooled, **options),
        "time_ids": torch.full((rows, 6), 1024.0, **options),
    }
    t = torch.full((rows,), 500, device=device)
    return lambda: network(x, t, text, added_cond_kwargs=added).sample


def flux_call(
    network: Any, rows: int, device: torch.device, dtype: torch.dtype, side: int
) -> Callable[[], Tensor]:
    config = network.config
    options: dict[str, Any] = {"device": device, "dtype": dtype}
    x = torch.randn(rows, side**2, config.in_channels, **options)
    text, pooled = config.joint_attention_dim, config.pooled_projection_dim
    told = {
        "encoder_hidden_states": torch.randn(rows, 32 if side < 8 else 512, text, **options),
        "pooled_projections": torch.randn(rows, pooled, **options),
        "timestep": torch.full((rows,), 0.5, **options),
        "guidance": torch.full((rows,), 3.5, device=device),
        "img_ids": torch.zeros(side**2, 3, **options),
    }
    told["txt_ids"] = torch.zeros(told["encoder_hidden_states"].shape[1], 3, **options)
    return lambda: network(hidden_states=x, **told).sample


@torch.no_grad()
def timed(call: Callable[[], Tensor], device: torch.device, rounds: int) -> tuple[float, float]:
    """Median milliseconds, and the most memory in GiB."""
    clock = Clock(device)
    for number in range(rounds + 2):
        if number == 2:
            clock.parts.clear()
            reset_peak(device)
        with clock("call"):
            call()
    return statistics.median(clock.parts["call"]), peak_gib(device)


def run(record: Record, work: Path, output: Path, device: torch.device, dry: bool) -> None:
    """Two rows for the guided prediction of one picture of 1024 pixels; FLUX.1 dev, which is distilled, wants one."""
    import diffusers

    dtype, rounds = (torch.float32, 1) if dry else (torch.bfloat16, 8)

    def row(name: str, network: Any, call: Callable[[], Tensor], rows: int) -> None:
        spent, peak = timed(call, device, rounds)
        size = sum(p.numel() for p in network.parameters())
        record.row(
            "Predictions",
            {"network": name, "parameters": f"{size:,}", "rows": rows, "ms": spent, "peak GiB": peak},
        )

    unet = filled(diffusers.UNet2DConditionModel, SMALL_SDXL if dry else SDXL, device, dtype)
    for rows in (1, 2):
        row("SDXL", unet, sdxl_call(unet, rows, device, dtype), rows)
    del unet
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    transformer = filled(diffusers.FluxTransformer2DModel, SMALL_FLUX if dry else FLUX, device, dtype)
    row("FLUX.1", transformer, flux_call(transformer, 1, device, dtype, 4 if dry else 64), 1)
