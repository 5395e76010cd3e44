"""How much silhouettes agree."""

from __future__ import annotations

import torch
from torch import Tensor


def silhouette_iou(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union of silhouettes; 1 where both are empty.

    Args:
        a: true inside, shape ``[..., height, width]``.
        b: the same shape.

    Returns:
        In [0, 1], shape ``[...]``.

    Raises:
        ValueError: the shapes differ.
    """
    if a.shape != b.shape:
        raise ValueError(
            f"expected two silhouettes of one shape, got {tuple(a.shape)} and {tuple(b.shape)}; resize one"
        )
    a, b = a.bool(), b.bool()
    union = (a | b).sum((-2, -1))
    return torch.where(union == 0, 1.0, (a & b).sum((-2, -1)) / union.clamp(min=1))
