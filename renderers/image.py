"""The simplest scene: the picture itself, which shows the effect of a loss without 3D."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from distill.cameras import Cameras
from distill.contracts import Group, Render, Step, View, Writer
from distill.domains import Count, NotNegative

STARTS = ("noise", "grey")


class ImageScene(nn.Module):
    """Pictures as parameters, in [0, 1] with no activation.

    Args:
        height: height of the pictures, pixels.
        width: width of the pictures, pixels.
        channels: channels of each pixel.
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
        self.lr = lr

    def parameter_groups(self) -> dict[str, Group]:
        """Return the pictures, under ``image``."""
        return {"image": Group([self.image], self.lr)}

    def update(self, step: Step, optimiser: torch.optim.Optimizer, generator: torch.Generator) -> None:
        """Do nothing: all of its state is learnt."""

    def render(
        self,
        cameras: Cameras,
        height: int,
        width: int,
        *,
        generator: torch.Generator | None = None,
        normals: bool = False,
        penalties: Sequence[str] = (),
    ) -> Render:
        """Return picture i for camera i, repeating the pictures if there are more cameras, at any camera position.

        Args:
            cameras: only their number is used.
            height: pixels; pictures of another size are resized (bilinear, anti-aliased).
            width: pixels.
            generator: not used: nothing is random.
            normals: not used; a picture has none.
            penalties: must be empty; a picture has none.

        Raises:
            ValueError: a penalty is asked for.
        """
        if penalties:
            raise ValueError(f"scene=image computes no penalties, got {', '.join(penalties)}; leave them out")
        image: Tensor = self.image
        if image.shape[1:3] != (height, width):
            image = torch.nn.functional.interpolate(
                image.movedim(-1, 1), (height, width), mode="bilinear", antialias=True
            ).movedim(1, -1)
        rgb = image[torch.arange(len(cameras), device=image.device) % len(image)]
        return Render(rgb, torch.ones_like(rgb[..., :1]), torch.zeros_like(rgb[..., :1]))

    def field(self) -> None:
        """Return None: a picture has no surface."""

    def assets(self) -> dict[str, Writer]:
        """Return the writer of ``image.png``."""
        return {"image": self._write}

    @torch.no_grad()
    def _write(self, folder: Path, view: View, options: Mapping[str, Any]) -> dict[str, Any]:
        """Write the pictures side by side."""
        from PIL import Image

        from distill.export.pictures import to_uint8
        from distill.files.atomic import replacing

        if self.image.shape[-1] != 3:
            raise ValueError(f"a picture file needs 3 channels, got {self.image.shape[-1]}")
        sheet = to_uint8(self.image.movedim(0, 1).flatten(1, 2))
        with replacing(folder / "image.png") as part:
            Image.fromarray(sheet).save(part)
        return {"pictures": len(self.image)}
