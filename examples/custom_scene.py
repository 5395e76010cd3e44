"""A custom scene in one file, and an asset made with it: coloured soft spheres.

    python examples/custom_scene.py "a red mug" scene.count=300 iterations=200

Along a ray, a Gaussian ball of standard deviation r and peak density s adds up to ``s r sqrt(2 pi) exp(-d^2 / 2 r^2)``, where d
is its centre's distance from the ray. The balls are composited front to back in the order of their centres.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from distill import renderers
from distill.cameras import Cameras
from distill.cli import main
from distill.contracts import Field, Group, Render, Step, View, Writer
from distill.domains import Count, NotNegative, Positive


@renderers.register
class Spheres(nn.Module):
    """Gaussian balls of density, each with one colour.

    Args:
        count: number of balls.
        radius: standard deviation that they start with, scene units.
        background: ``grey``, a random grey for each object of a training batch and white for viewing; or ``white``.
        lr: learning rate of every parameter, peak.
        seed: of the initial balls, or a generator to draw them from.
    """

    features = frozenset({"sides", "volume", "together", "background"})

    def __init__(
        self,
        *,
        count: Count = 300,
        radius: Positive = 0.06,
        background: Literal["grey", "white"] = "grey",
        lr: NotNegative = 0.05,
        seed: int | torch.Generator = 0,
    ) -> None:
        super().__init__()
        g = seed if isinstance(seed, torch.Generator) else torch.Generator().manual_seed(seed)
        self.centre = nn.Parameter(0.2 * torch.randn(count, 3, generator=g))
        self.log_radius = nn.Parameter(torch.full((count,), math.log(radius)))
        self.log_density = nn.Parameter(torch.full((count,), math.log(5.0)))
        self.colour = nn.Parameter(0.1 * torch.randn(count, 3, generator=g))
        self.background, self.lr = background, lr

    def parameter_groups(self) -> dict[str, Group]:
        shape = [self.centre, self.log_radius]
        return {"shape": Group(shape, self.lr / 4), "look": Group([self.colour, self.log_density], self.lr)}

    def update(self, step: Step, optimiser: torch.optim.Optimizer, generator: torch.Generator) -> None:
        """Do nothing; a scene that grows would add balls here."""

    def render(
        self,
        cameras: Cameras,
        height: int,
        width: int,
        *,
        generator: torch.Generator | None = None,
        normals: bool = False,
        penalties: Sequence[str] = (),
        together: int = 1,
    ) -> Render:
        origins, directions = (rays.flatten(1, 2) for rays in cameras.rays(height, width))
        offset = self.centre - origins[:, :1]  # from the camera, [batch, count, 3]
        order = offset.norm(dim=-1).argsort(dim=1)
        offset = offset.take_along_dim(order[..., None], dim=1)
        along = directions @ offset.mT  # distance at which a ray passes a centre, [batch, rays, count]
        squared = offset.square().sum(-1)[:, None] - along**2
        radius, peak = self.log_radius.exp()[order][:, None], self.log_density.exp()[order][:, None]
        thickness = peak * radius * math.sqrt(2 * math.pi) * torch.exp(-squared / (2 * radius**2))
        through = torch.exp(-thickness.cumsum(-1))  # light that is left behind each ball
        weights = torch.exp(thickness - thickness.cumsum(-1)) - through
        opacity = 1 - through[..., -1:]
        backdrop = self.backdrop(origins, generator, together)
        rgb = weights @ self.colour.sigmoid()[order] + (1 - opacity) * backdrop
        depth = (weights * along).sum(-1, keepdim=True)
        rgb, opacity, depth = (value.unflatten(1, (height, width)) for value in (rgb, opacity, depth))
        return Render(rgb, opacity, depth, background=backdrop[:, None])

    def backdrop(self, like: Tensor, generator: torch.Generator | None, together: int) -> Tensor:
        if self.background == "white" or generator is None:
            return like.new_ones(len(like), 1, 1)
        # A multi-view prior's views of one object, in consecutive rows, have the same grey.
        grey = torch.rand(-(-len(like) // together), 1, 1, generator=generator)
        return 0.5 + 0.5 * grey.repeat_interleave(together, 0)[: len(like)].to(like)

    def field(self) -> Field:
        def query(points: Tensor) -> tuple[Tensor, Tensor]:
            points = points.to(self.centre)
            squared = torch.cdist(points, self.centre).square()
            density = self.log_density.exp() * torch.exp(-squared / (2 * (2 * self.log_radius).exp()))
            share = density / density.sum(1, keepdim=True).clamp(min=1e-12)
            return density.sum(1), share @ self.colour.sigmoid()

        return query

    def assets(self) -> dict[str, Writer]:
        return {"spheres": self.write}

    def write(self, folder: Path, view: View, options: Mapping[str, Any]) -> dict[str, Any]:
        """Write spheres.json."""
        columns = {"centre": self.centre, "radius": self.log_radius.exp(), "density": self.log_density.exp()}
        columns["colour"] = self.colour.sigmoid()
        (folder / "spheres.json").write_text(json.dumps({k: v.tolist() for k, v in columns.items()}))
        return {"spheres": len(self.centre)}


if __name__ == "__main__":
    # The command line with this scene; distill.generate("a red mug", scene="spheres") is the same from Python.
    main(["scene=spheres", *sys.argv[1:]])
