"""Settings of the loop and an optimiser as most tests of the loop want them."""

from __future__ import annotations

from typing import Any

import torch

from distill.contracts import Scene
from distill.job import Settings, make_optimiser
from distill.samplers.schedules import Ramp


def settings_of(iterations: int, **given: Any) -> Settings:
    """Settings of so many steps; what is not given is left away, or as a plain run has it."""
    usual: dict[str, Any] = {
        "batch": 4, "at_once": None, "accumulate": 1, "latent_until": 0.0, "normals": False, "size": Ramp(64),
        "guidance_weight": Ramp(1.0), "summed": False, "penalties": {}, "shading": None, "clip_norm": 0.0, "final_lr": 1.0,
        "ema": 0.0, "max_bad_steps": 20,
    }  # fmt: skip
    return Settings(iterations, **usual | given)


def optimiser_of(
    scene: Scene, betas: tuple[float, float] = (0.9, 0.99), eps: float = 1e-15, weight_decay: float = 0.0
) -> torch.optim.Optimizer:
    """The optimiser of a scene's parameters."""
    return make_optimiser(scene, betas, eps, weight_decay)
