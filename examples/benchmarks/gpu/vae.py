"""The VAE encoder of Stable Diffusion's size, forward and back: precisions and memory layouts."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import random_prior
import torch
from large import filled
from measuring import Clock, peak_gib, reset_peak
from record import Record

from distill.priors.space import Space


def timed(
    vae: Any, size: int, layout: torch.memory_format, device: torch.device, rounds: int
) -> dict[str, Any]:
    """Encode a picture and go back to it; medians in milliseconds, the peak, and whether the gradient is finite."""
    space, clock = Space(size, 4, 8, vae), Clock(device)
    picture = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(0)).to(device)
    picture = picture.contiguous(memory_format=layout).requires_grad_()
    for number in range(rounds + 2):
        if number == 2:
            clock.parts.clear()
            reset_peak(device)
        picture.grad = None
        with clock("forward"):
            x = space.encode(picture)
        with clock("backward"):
            x.backward(torch.ones_like(x))
    assert picture.grad is not None
    spent = {f"{name} ms": statistics.median(values) for name, values in clock.parts.items()}
    return {**spent, "peak GiB": peak_gib(device), "finite": bool(picture.grad.isfinite().all())}


def run(record: Record, work: Path, output: Path, device: torch.device, dry: bool) -> None:
    """One picture of 512 pixels; the precision that a run uses is the prior's, except for VAEs that ask for float32 in float16."""
    layouts = {"contiguous": torch.contiguous_format, "channels last": torch.channels_last}
    precisions = (torch.float32,) if dry else (torch.bfloat16, torch.float16, torch.float32)
    for dtype in precisions:
        for name, layout in layouts.items():
            vae = filled(lambda **_: random_prior.vae(8 if dry else 1), {}, device, dtype)
            vae.to(memory_format=layout)
            row = timed(vae, 64 if dry else 512, layout, device, 1 if dry else 8)
            record.row(
                "Encoding a picture", {"dtype": str(dtype).removeprefix("torch."), "layout": name, **row}
            )
