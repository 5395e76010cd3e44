"""The attention kernels that a network is trained with."""

from __future__ import annotations

from contextlib import AbstractContextManager

from torch.nn.attention import SDPBackend, sdpa_kernel

#: All but cuDNN's, as a precaution: in half precision, its gradient has been nan on an H100 (pytorch/pytorch#196678, of masked attention).
RELIABLE = (SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH)


def differentiable() -> AbstractContextManager[None]:
    """Return a context in which attention is computed by kernels whose gradient can be relied on."""
    found: AbstractContextManager[None] = sdpa_kernel(list(RELIABLE))
    return found
