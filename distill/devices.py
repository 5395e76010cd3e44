"""Devices by name."""

from __future__ import annotations

import torch


def pick_device(name: str) -> torch.device:
    """Return the device of a name; ``auto`` is CUDA if available.

    Raises:
        ValueError: the device is not there, or none has this name.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(
            f"device={name} needs an NVIDIA driver and a CUDA build of torch, and none is usable here; use device=cpu or device=auto"
        )
    if name == "mps" and not torch.backends.mps.is_available():
        raise ValueError(
            "device=mps needs a Mac with Apple silicon, and this is none; use device=cpu or device=auto"
        )
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"device must be auto, cpu, cuda, cuda:N or mps, got {name!r}") from error
    if device.type == "cuda" and device.index is not None and device.index >= torch.cuda.device_count():
        raise ValueError(
            f"device={name} is not there: torch sees cuda:0 to cuda:{torch.cuda.device_count() - 1}; use one of these or device=auto"
        )
    return device
