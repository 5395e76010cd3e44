"""Pictures for a ControlNet: of what the scene looks like from each camera, or one picture for all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate, normalize

from distill.cameras import Cameras
from distill.contracts import Condition, Conditioner, Prior, Render, Step
from distill.files.paths import user_path
from distill.priors.control import CONTROL
from distill.transfer import send

#: Makes the pictures, ``[batch, 3, height, width]`` in [0, 1], of a render and the cameras that took it.
Draw = Callable[[Render, Cameras], Tensor]


def draw_depth(render: Render, cameras: Cameras) -> Tensor:
    """Nearness: one over the depth along the camera's axis, 0 where empty, stretched to [0, 1] in each picture.

    As MiDaS gives it, which the published ControlNets were trained with: relative inverse depth, near is bright.
    """
    height, width = render.depth.shape[1:3]
    towards = torch.einsum("bhwi,bi->bhw", cameras.rays(height, width)[1], -cameras.c2w[:, :3, 2])[..., None]
    near = render.opacity / (render.depth * towards).clamp(min=1e-6)
    near = torch.where(render.depth > 0, near, 0)
    low, high = near.amin((1, 2, 3), keepdim=True), near.amax((1, 2, 3), keepdim=True)
    return _grey((near - low) / (high - low).clamp(min=1e-6))


def draw_normal(render: Render, cameras: Cameras) -> Tensor:
    """Normals in the camera's frame, (n + 1) / 2: red grows to the left, green upwards, blue towards the camera.

    As NormalBae draws them, which the published ControlNet was trained with; what is empty faces the camera.

    Raises:
        ValueError: the render has no normals.
    """
    if render.normal is None:
        raise ValueError("control=normal needs a render with normals, and this one has none")
    local = torch.einsum("bij,bhwi->bhwj", cameras.c2w[:, :3, :3], render.normal)
    local = local * send(torch.tensor([-1.0, 1.0, 1.0], dtype=local.dtype), local.device)
    facing = send(torch.tensor([0.0, 0.0, 1.0], dtype=local.dtype), local.device)
    local = normalize(render.opacity * local + (1 - render.opacity) * facing, dim=-1)
    return (local.movedim(-1, 1) + 1) / 2


def draw_mask(render: Render, cameras: Cameras) -> Tensor:
    """Opacity: the scene is white, what is empty black."""
    return _grey(render.opacity)


#: By name.
DRAWN: dict[str, Draw] = {"depth": draw_depth, "normal": draw_normal, "mask": draw_mask}


def _grey(values: Tensor) -> Tensor:
    return values.movedim(-1, 1).expand(-1, 3, -1, -1)


def with_control(cond: Condition, shown: Tensor) -> Condition:
    """Add what the ControlNet is given, see ``Prior.show``, to every embedding of a condition."""
    prompts = {role: {**embedding, CONTROL: shown} for role, embedding in cond.prompts.items()}
    return replace(cond, prompts=prompts)


def controlled(condition: Conditioner, prior: Prior, control: str) -> Conditioner:
    """Add the ControlNet's picture to a condition.

    Args:
        condition: makes the condition without it.
        prior: has a ControlNet.
        control: ``depth``, ``normal`` or ``mask``, of the render; or a picture's path.

    Raises:
        ValueError: the picture cannot be read.
    """
    size = prior.image_size
    draw = DRAWN.get(control) or partial(_given, read_picture(user_path(control)).to(prior.device))

    @torch.no_grad()
    def conditioned(cameras: Cameras, step: Step, render: Render | None = None) -> Condition:
        if render is None:
            raise ValueError("a ControlNet is conditioned on a render; give condition(cameras, step, render)")
        picture = draw(render, cameras.to(render.rgb.device))
        if picture.shape[-2:] != (size, size):
            picture = interpolate(picture, (size, size), mode="bilinear", antialias=True)
        return with_control(condition(cameras, step, render), prior.show(picture.clamp(0, 1)))

    return conditioned


def _given(picture: Tensor, render: Render, cameras: Cameras) -> Tensor:
    return picture.expand(len(cameras), -1, -1, -1)


def read_picture(path: Path) -> Tensor:
    """A picture over black, in [0, 1], ``[1, 3, height, width]``.

    Raises:
        ValueError: it is not there, or no picture.
    """
    from distill.conditions.cutout import read_rgba

    try:
        rgba: Any = np.asarray(read_rgba(path, option="prior_options.control", data=True), np.float32) / 255
    except ValueError as error:
        raise ValueError(f"{error}; or give one of {', '.join(DRAWN)}") from error
    return torch.from_numpy(rgba[..., :3] * rgba[..., 3:]).movedim(-1, 0)[None]
