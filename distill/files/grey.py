"""Grey pictures of more than 8 bits, such as scanners and renderers write; a plain conversion would clip them to white."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def eight_bits(image: Image.Image) -> Image.Image:
    """A picture of deep grey as one of 8 bits, its range kept; any other as it is."""
    if not image.mode.startswith(("I", "F")):
        return image
    return Image.fromarray(_bytes(np.asarray(image, np.float64), image.mode[0]))


def _bytes(grey: NDArray[np.float64], kind: str) -> NDArray[np.uint8]:
    """Deep grey values as bytes: whole numbers (``I``) of 16 bits, others (``F``) in [0, 1], or up to the largest beyond those."""
    grey = np.nan_to_num(grey, nan=0.0, posinf=0.0, neginf=0.0)
    full = 65535.0 if kind == "I" else 1.0
    grey = grey / max(full, float(grey.max(initial=0.0)))
    found: NDArray[np.uint8] = (grey.clip(0, 1) * 255).round().astype(np.uint8)
    return found
