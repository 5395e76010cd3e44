"""Large pictures of which a window alone is rendered in full: what a prior that wants many pixels can be shown cheaply."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from distill.cameras import Cameras
from distill.contracts import Render, Renderer


def patched(render: Renderer, patch: int, coarse: int) -> Renderer:
    """A renderer that, in training, renders a random window of a picture in full, and the rest coarsely around it.

    The window alone carries the gradient, and each place is as likely as any other; the penalties are the window's.
    Pictures no larger than the window, and those for looking, are rendered whole.

    Args:
        render: takes pictures.
        patch: side of the window, pixels.
        coarse: side of the picture that is resized (bilinear) around the window, pixels.

    Raises:
        ValueError: a size is below 8.
    """
    if min(patch, coarse) < 8:
        raise ValueError(
            f"render.patch and render.coarse must be at least 8 pixels, got {patch} and {coarse}; "
            "render.patch=null renders whole pictures"
        )

    def take(
        cameras: Cameras,
        height: int,
        width: int,
        *,
        generator: torch.Generator | None = None,
        normals: bool = False,
        **style: Any,
    ) -> Render:
        if generator is None or height <= patch:
            return render(cameras, height, width, generator=generator, normals=normals, **style)
        top, left = torch.randint(height - patch + 1, (2,), generator=generator).tolist()
        before = generator.get_state()
        with torch.no_grad():
            around = render(cameras, coarse, coarse, generator=generator, normals=normals, **style)
        # Both draw the same background and light.
        generator.set_state(before)
        seen = cameras.window(left / width, 1 - (top + patch) / height, patch / height)
        inside = render(seen, patch, patch, generator=generator, normals=normals, **style)

        def pasted(name: str) -> Any:
            part, whole = getattr(inside, name), getattr(around, name)
            return None if part is None else _paste(part, whole, top, left, height)

        return replace(inside, **{name: pasted(name) for name in ("rgb", "opacity", "depth", "normal")})

    return take


def _paste(part: Tensor, whole: Tensor, top: int, left: int, size: int) -> Tensor:
    """A window, channels last, put over a resized picture."""
    large = interpolate(whole.movedim(-1, 1), (size, size), mode="bilinear", antialias=True).movedim(1, -1)
    rows, columns = slice(top, top + part.shape[1]), slice(left, left + part.shape[2])
    large = large.clone()
    large[:, rows, columns] = part
    return large
