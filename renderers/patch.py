"""Large pictures with only a window rendered at full resolution, for priors with large inputs at low cost."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from distill.cameras import Cameras
from distill.contracts import Render, Renderer


def patched(render: Renderer, patch: int, coarse: int) -> Renderer:
    """Return a renderer that, in training, renders a random window at full resolution and the rest of the picture coarsely.

    Only the window has a gradient, its position is uniform, and the penalties are those of the window.
    Pictures no larger than the window, and those for viewing, are rendered completely.

    Args:
        render: the renderer to wrap.
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

        maps = {name: pasted(name) for name in ("rgb", "opacity", "depth", "normal")}
        behind = inside.background
        if behind is not None and behind.dim() == 4 and behind.shape[1:3] != (1, 1):  # differs between pixels
            maps["background"] = pasted("background")
        return replace(inside, **maps)

    return take


def _paste(part: Tensor, whole: Tensor, top: int, left: int, size: int) -> Tensor:
    """A window, channels last, put over a resized picture."""
    large = interpolate(whole.movedim(-1, 1), (size, size), mode="bilinear", antialias=True).movedim(1, -1)
    rows, columns = slice(top, top + part.shape[1]), slice(left, left + part.shape[2])
    large = large.clone()
    large[:, rows, columns] = part
    return large
