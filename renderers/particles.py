"""Several scenes trained together: what a loss over a distribution of scenes shapes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from distill.cameras import Cameras
from distill.contracts import Render, Renderer


class Particles(nn.Module):
    """Scenes of one kind, of which every step trains the one it draws.

    Args:
        scenes: at least one.

    Raises:
        ValueError: there is no scene.

    Source: Wang et al. 2023 (ProlificDreamer), arXiv:2305.16213, Alg. 1.
    """

    visits: Tensor

    def __init__(self, scenes: Sequence[Any]) -> None:
        super().__init__()
        if not scenes:
            raise ValueError("expected at least one scene, got none")
        self.scenes: Any = nn.ModuleList(scenes)
        self.register_buffer("visits", torch.zeros(len(scenes), dtype=torch.long))
        self.drawn = 0

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """All scenes' parameters by kind; those of scenes that are not drawn get no gradient."""
        groups: dict[str, list[nn.Parameter]] = {}
        for scene in self.scenes:
            for name, parameters in scene.parameter_groups().items():
                groups.setdefault(name, []).extend(parameters)
        return groups

    def update(self, step: int, progress: float, generator: torch.Generator) -> None:
        """Draw the scene of this step and bring it up to date; it counts its own steps."""
        self.drawn = int(torch.randint(len(self.scenes), (1,), generator=generator))
        self.scenes[self.drawn].update(int(self.visits[self.drawn]), progress, generator)
        self.visits[self.drawn] += 1


def render_drawn(render: Renderer) -> Renderer:
    """Make a renderer of scenes one of ``Particles``: it takes pictures of the scene that was drawn."""

    def take(
        scene: Particles,
        cameras: Cameras,
        height: int,
        width: int,
        *,
        generator: torch.Generator | None = None,
        normals: bool = False,
    ) -> Render:
        return render(scene.scenes[scene.drawn], cameras, height, width, generator=generator, normals=normals)

    return take
