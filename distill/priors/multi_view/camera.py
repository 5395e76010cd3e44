"""What a multi-view prior is told of cameras, and which of them belong together."""

from __future__ import annotations

import torch
from torch import Tensor

from distill.cameras import Cameras

#: How many numbers a camera is told by.
NUMBERS = 16
#: Degrees, and scene units, by which the cameras of one object may differ: rounding.
NEAR = 1e-2


def numbers(cameras: Cameras) -> Tensor:
    r"""Write cameras as MVDream's network is given them: camera-to-world matrices row by row, shape ``[batch, 16]``.

    .. math:: \begin{pmatrix} r & u & b & p / \|p\| \\ 0 & 0 & 0 & 1 \end{pmatrix}

    with the camera's axes to the right, up and backward in the world, and its position p. In MVDream's world z is up, as here.
    An azimuth is counted from -y there, and the renders of its training, like the objects here, face +x: its azimuth of 90
    degrees is the front, 0 here, and the matrices are the same.

    Source: Shi et al. 2023 (MVDream), arXiv:2308.16512, and the authors' code.
    """
    told = cameras.c2w.clone()
    position = told[:, :3, 3]
    told[:, :3, 3] = position / position.norm(dim=1, keepdim=True).clamp(min=1e-8)
    return told.flatten(1)


def check_groups(cameras: Cameras, views: int, name: str) -> None:
    """Check that each group of cameras stands evenly around an object, at one height and with one lens.

    Args:
        cameras: those of an object in consecutive rows, on the CPU.
        views: how many an object has.
        name: of the prior, for the error.

    Raises:
        ValueError: they do not; says what differs.
    """
    if len(cameras) % views:
        raise ValueError(
            f"{name} takes {views} views of one object together, and {len(cameras)} cameras are no multiple of that"
        )
    same = {
        "elevation": (cameras.elevation_deg, "degrees"),
        "field of view": (cameras.fov_y_deg, "degrees"),
        "distance": (cameras.distance, "scene units"),
    }
    for what, (values, unit) in same.items():
        group = values.view(-1, views)
        apart = float((group.amax(1) - group.amin(1)).max())
        if apart > NEAR:
            raise ValueError(
                f"{name} takes {views} views of one object at one {what}, and those drawn differ by up to {apart:.3g} {unit}; "
                "choose cameras=groups"
            )
    azimuth = cameras.azimuth_deg.view(-1, views)
    turned = torch.remainder(azimuth - azimuth[:, :1] + NEAR, 360).sort(dim=1).values - NEAR
    wanted = torch.arange(views) * (360 / views)
    if float((turned - wanted).abs().max()) > NEAR:
        raise ValueError(
            f"{name} takes {views} views of one object {360 / views:g} degrees of azimuth apart, and those drawn are not; choose "
            f"cameras=groups with cameras.views={views}"
        )


def check_rows(rows: int, t: Tensor, cameras: Cameras | None, views: int, name: str) -> Cameras:
    """Check that a batch holds whole objects, each at one timestep, and return its cameras, one a row.

    Timesteps on a device are not looked at.

    Raises:
        ValueError: it does not.
    """
    if rows % views:
        raise ValueError(
            f"{name} takes {views} views of one object together, and a batch of {rows} is no multiple of that"
        )
    if t.device.type == "cpu" and rows and not torch.equal(*_first_and_all(t, views)):
        raise ValueError(
            f"{name} takes {views} views of one object at one timestep, and those given differ within an object"
        )
    if cameras is None:
        raise ValueError(
            f"{name} needs the cameras of the {views} views that it denoises together; pass cameras="
        )
    if len(cameras) != rows:
        raise ValueError(
            f"{name} is given the camera of each picture, got {len(cameras)} cameras for {rows} pictures"
        )
    return cameras


def _first_and_all(t: Tensor, views: int) -> tuple[Tensor, Tensor]:
    groups = t.view(-1, views)
    return groups[:, :1].expand_as(groups), groups
