"""Scenes of every kind, small, for tests of what all of them promise; and one that grows."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import trimesh
from torch import nn

from distill.contracts import Scene, Step
from distill.meshes.read import surface_of
from distill.renderers.hyper_conv import hyper_conv
from distill.renderers.hyper_grid import hyper_grid
from distill.renderers.image import ImageScene
from distill.renderers.nerf import HashGridScene
from distill.renderers.particles import Particles
from distill.renderers.sdf import SdfScene
from distill.renderers.surface import SurfaceScene

EXAMPLE = Path(__file__).parents[1] / "examples" / "custom_scene.py"


def spheres() -> Any:
    """The scene of ``examples/custom_scene.py``, registered as ``scene=spheres``."""
    name = "custom_scene"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, EXAMPLE)
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name].__dict__["Spheres"]


def hash_grid(seed: Any = 0) -> Scene:
    return HashGridScene(
        levels=2, log2_table_size=8, hidden_width=8, march_steps=24, occupancy_resolution=8, background="random", seed=seed
    )  # fmt: skip


def small_library(count: int = 3, width: int = 6) -> torch.Tensor:
    """Embeddings of prompts that differ in every number."""
    return torch.randn(count, width, generator=torch.Generator().manual_seed(7))


def hyper(seed: Any = 0) -> Scene:
    return hyper_grid(
        levels=2, log2_table_size=8, hidden_width=8, text_width=8, march_steps=24, occupancy_resolution=8,
        background="learned", seed=seed, embeddings=small_library(),
    )  # fmt: skip


def conv(seed: Any = 0) -> Scene:
    return hyper_conv(
        finest_resolution=8, features=2, channels=(4,), text_width=8, hidden_width=8, march_steps=24,
        occupancy_resolution=8, mix_share=0.5, seed=seed, embeddings=small_library(),
    )  # fmt: skip


def picture(seed: Any = 0) -> Scene:
    return ImageScene(16, 16, batch=2, seed=seed)


def surface(seed: Any = 0, **options: Any) -> Any:
    box, ball = trimesh.creation.box(), trimesh.creation.icosphere(subdivisions=1)
    ball.apply_translation((0, 0, 1))
    mesh = surface_of(Path("toy.glb"), trimesh.Scene([box, ball]), np.eye(3, dtype=np.float32), frozenset())
    told: dict[str, Any] = {
        "levels": 2,
        "log2_table_size": 8,
        "hidden_width": 8,
        "background": "random",
        "seed": seed,
    }
    return SurfaceScene(mesh, **{**told, **options})


def sdf(seed: Any = 0) -> Scene:
    return SdfScene(
        levels=2, log2_table_size=8, hidden_width=8, resolution=16, detail=16, width=(0.05, 0.02), march_steps=48,
        occupancy_resolution=8, background="random", seed=seed,
    )  # fmt: skip


def custom(seed: Any = 0) -> Scene:
    scene: Scene = spheres()(count=20, radius=0.2, seed=seed)
    return scene


class Growing(ImageScene):
    """A picture to which every ``update`` up to a largest size adds a row and a column, as new parameters."""

    largest = 12

    def update(self, step: Step, optimiser: torch.optim.Optimizer, generator: torch.Generator) -> None:
        if self.image.shape[1] == self.largest:
            return
        old = self.image
        grown = torch.nn.functional.pad(old.detach().movedim(-1, 1), (0, 1, 0, 1), mode="replicate")
        self.image = nn.Parameter(grown.movedim(1, -1).contiguous())
        replace(optimiser, {old: self.image})

    def load_state_dict(self, state_dict: Mapping[str, Any], *rest: Any, **more: Any) -> Any:
        self.image = nn.Parameter(torch.empty_like(state_dict["image"]))
        return super().load_state_dict(state_dict, *rest, **more)


def replace(optimiser: torch.optim.Optimizer, new: Mapping[nn.Parameter, nn.Parameter]) -> None:
    """Put parameters in the place of others in an optimiser, with Adam's averages for what is added at zero."""
    for group in optimiser.param_groups:
        group["params"] = [new.get(parameter, parameter) for parameter in group["params"]]
    for old, grown in new.items():
        for name, value in optimiser.state.pop(old, {}).items():
            if value.shape == old.shape:
                room = [extra for a, b in zip(grown.shape, old.shape, strict=True) for extra in (a - b, 0)]
                value = torch.nn.functional.pad(value, room[::-1])
            optimiser.state[grown][name] = value


#: One scene of each kind, from a seed or a generator.
SINGLE: dict[str, Callable[..., Scene]] = {
    "hash_grid": hash_grid, "image": picture, "surface": surface, "sdf": sdf, "spheres": custom, "hyper_grid": hyper,
    "hyper_conv": conv,
}  # fmt: skip


def several(make: Callable[..., Scene]) -> Callable[..., Scene]:
    def made(seed: Any = 0) -> Scene:
        g = seed if isinstance(seed, torch.Generator) else torch.Generator().manual_seed(seed)
        scene: Scene = Particles([make(g), make(g)])
        return scene

    return made


#: The same, and two particles of each.
SCENES: dict[str, Callable[..., Scene]] = {
    **SINGLE,
    **{f"particles of {name}": several(make) for name, make in SINGLE.items()},
}
