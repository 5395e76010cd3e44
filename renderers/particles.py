"""Several scenes trained together, for losses over a distribution of scenes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from distill.cameras import Cameras
from distill.contracts import Field, Group, Render, Scene, Step, Writer


class Particles(nn.Module):
    """Scenes of one type, of which every step draws and trains one.

    Args:
        scenes: at least one.

    Raises:
        ValueError: there is no scene.

    Source: Wang et al. 2023 (ProlificDreamer), arXiv:2305.16213, Alg. 1.
    """

    features: frozenset[str]
    visits: Tensor

    def __init__(self, scenes: Sequence[Scene]) -> None:
        super().__init__()
        if not scenes:
            raise ValueError("expected at least one scene, got none")
        self.scenes = nn.ModuleList(cast(Sequence[nn.Module], scenes))
        self.features = scenes[0].features
        self.register_buffer("visits", torch.zeros(len(scenes), dtype=torch.long))
        self.drawn = 0

    @property
    def scene(self) -> Scene:
        """The scene that was drawn last."""
        return cast(Scene, self.scenes[self.drawn])

    def parameter_groups(self) -> dict[str, Group]:
        """Return all scenes' parameters by kind; those of scenes that are not drawn get no gradient."""
        groups: dict[str, Group] = {}
        for scene in cast(Sequence[Scene], self.scenes):
            for name, (parameters, rate) in scene.parameter_groups().items():
                before = groups[name].parameters if name in groups else ()
                groups[name] = Group([*before, *parameters], rate)
        return groups

    def update(self, step: Step, optimiser: torch.optim.Optimizer, generator: torch.Generator) -> None:
        """Draw the scene of this step and update it; each scene counts its own steps."""
        self.drawn = int(torch.randint(len(self.scenes), (1,), generator=generator))
        own = Step(int(self.visits[self.drawn]), step.progress)
        self.scene.update(own, optimiser, generator)
        self.visits[self.drawn] += 1

    def render(
        self,
        cameras: Cameras,
        height: int,
        width: int,
        *,
        generator: torch.Generator | None = None,
        normals: bool = False,
        penalties: Sequence[str] = (),
        **options: Any,
    ) -> Render:
        """Render the scene that was drawn."""
        return self.scene.render(
            cameras, height, width, generator=generator, normals=normals, penalties=penalties, **options
        )

    def field(self) -> Field | None:
        """Return the drawn scene's field."""
        return self.scene.field()

    def assets(self) -> dict[str, Writer]:
        """Return the drawn scene's writers."""
        return dict(self.scene.assets())
