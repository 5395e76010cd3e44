"""The precision that networks compute in."""

from __future__ import annotations

from typing import Any

import torch


def default_dtype(device: torch.device) -> torch.dtype:
    """Half precision where the hardware computes in it, float32 elsewhere."""
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    if device.type == "cpu" and torch.cpu._is_avx512_bf16_supported():
        return torch.bfloat16
    return torch.float32


def dtype_of(dtype: torch.dtype | str | None) -> torch.dtype | None:
    """A precision by its name.

    Raises:
        ValueError: it is none that a network computes in.
    """
    names = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if not isinstance(dtype, str):
        return dtype
    if dtype not in names:
        raise ValueError(f"dtype must be one of {', '.join(names)}, got {dtype!r}")
    return names[dtype]


def precision(dtype: torch.dtype) -> dict[str, Any]:
    """Return the precision argument of diffusers' ``from_pretrained``, which was renamed in version 0.40."""
    from importlib.metadata import version

    major, minor = (int(part) for part in version("diffusers").split(".")[:2])
    return {"dtype" if (major, minor) >= (0, 40) else "torch_dtype": dtype}
