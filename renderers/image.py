"""The simplest scene: the picture itself. What a loss does to it shows the loss, with no 3D in between."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from distill.cameras import Cameras
from distill.contracts import Render
from distill.domains import Count, NotNegative

STARTS = ("noise", "grey")


class ImageScene(nn.Module):
    """Pictures as parameters, in [0, 1] with no activation.

    Args:
        height: pixels.
        width: pixels.
        channels: of each pixel.
        batch: number of pictures.
        init: ``noise``, normal around grey with a standard deviation of 0.2; or ``grey``, 0.5 everywhere.
        lr: learning rate of the pictures, peak.
        seed: of the noise, or a generator to draw it from.

    Raises:
        ValueError: a size is below 1 or ``init`` is not known.
    """

    features: ClassVar[frozenset[str]] = frozenset()

    def __init__(
        self,
        height: Count = 64,
        width: Count = 64,
        channels: Count = 3,
        batch: Count = 1,
        init: Literal["noise", "grey"] = "noise",
        lr: NotNegative = 0.03,
        seed: int | torch.Generator = 0,
    ) -> None:
        super().__init__()
        self.lr = lr
        if min(height, width, channels, batch) < 1:
            raise ValueError(f"expected sizes of at least 1, got {batch} x {channels} x {height} x {width}")
        if init not in STARTS:
            raise ValueError(f"expected init in {', '.join(STARTS)}; got {init!r}")
        generator = seed if isinstance(seed, torch.Generator) else torch.Generator().manual_seed(seed)
        image = torch.full((batch, height, width, channels), 0.5)
        if init == "noise":
            image += 0.2 * torch.randn(image.shape, generator=generator)
        self.image = nn.Parameter(image)

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """The pictures, under ``image``."""
        return {"image": [self.image]}

    def update(self, step: int, progress: float, generator: torch.Generator) -> None:
        """Nothing changes but by learning."""


def render_image(
    scene: ImageScene,
    cameras: Cameras,
    height: int,
    width: int,
    *,
    generator: torch.Generator | None = None,
    normals: bool = False,
) -> Render:
    """Show picture i to camera i, starting over where the pictures run out; wherever the camera is.

    Args:
        scene: its pictures are resized (bilinear, anti-aliased) where their size differs.
        cameras: only their number counts.
        height: pixels.
        width: pixels.
        generator: not used.
        normals: not used; a picture has none.
    """
    count = len(cameras)
    image: Tensor = scene.image
    if image.shape[1:3] != (height, width):
        image = torch.nn.functional.interpolate(
            image.movedim(-1, 1), (height, width), mode="bilinear", antialias=True
        ).movedim(1, -1)
    rgb = image[torch.arange(count, device=image.device) % len(image)]
    return Render(rgb, torch.ones_like(rgb[..., :1]), torch.zeros_like(rgb[..., :1]))
