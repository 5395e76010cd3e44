"""Copies from the CPU, where a run draws its random numbers, to the device that computes."""

from __future__ import annotations

from torch import Tensor, device


def send(value: Tensor, where: device | str) -> Tensor:
    """Copy a tensor to a device; asynchronously from the CPU to CUDA.

    A plain copy to CUDA blocks the host until everything queued on the device is done. One from pinned memory is queued
    itself, and torch keeps that memory until the copy is made.

    Args:
        value: the tensor.
        where: to copy it to; it is returned as it is if it is already there.
    """
    where = device(where)
    if value.device.type == "cpu" and where.type == "cuda":
        return value.pin_memory().to(where, non_blocking=True)
    return value.to(where)
