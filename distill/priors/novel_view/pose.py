"""Relative camera poses; the convention is defined here only.

Angles are radians: polar from +z, azimuth counter-clockwise from +x seen from above, as in
``distill.samplers.cameras``. Only positions count, so a camera's roll and what it looks at do not.

Source: Liu et al. 2023 (Zero-1-to-3), arXiv:2303.11328, and its renders' files.
"""

from __future__ import annotations

import torch
from torch import Tensor

from distill.cameras import Cameras
from distill.priors.choices import FOURTH


def spherical(position: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Polar angle, azimuth and distance of positions ``[batch, 3]``, each of shape ``[batch]``."""
    x, y, z = position.unbind(-1)
    across = torch.hypot(x, y)
    return torch.atan2(across, z), torch.atan2(y, x), torch.hypot(across, z)


def relative(condition: Tensor, target: Tensor, fourth: str = "distance") -> Tensor:
    r"""The pose that a novel-view model is told.

    .. math:: T = [\theta_t - \theta_c, \sin(\phi_t - \phi_c), \cos(\phi_t - \phi_c), r_t - r_c]

    Args:
        condition: position of the camera that took the input picture, scene units, shape ``[batch, 3]``.
        target: position of the camera whose view is wanted, same shape.
        fourth: ``distance``, or ``polar`` for Stable-Zero123, whose last number is the condition's polar angle.

    Returns:
        Shape ``[batch, 4]``.

    Raises:
        ValueError: a position is not finite or at the origin, or ``fourth`` is not known.
    """
    if fourth not in FOURTH:
        raise ValueError(f"fourth must be one of {', '.join(FOURTH)}, got {fourth!r}")
    for name, position in (("condition", condition), ("target", target)):
        if not torch.isfinite(position).all() or (position.norm(dim=-1) == 0).any():
            raise ValueError(
                f"the {name} camera's position must be finite and away from the origin, got {position}"
            )
    return between(condition, target, fourth)


def between(condition: Tensor, target: Tensor, fourth: str = "distance") -> Tensor:
    """``relative`` of positions that are known to be good: looking at them would make a GPU wait."""
    polar, azimuth, distance = spherical(target)
    from_polar, from_azimuth, from_distance = spherical(condition)
    turn = azimuth - from_azimuth
    last = distance - from_distance if fourth == "distance" else from_polar
    return torch.stack([polar - from_polar, turn.sin(), turn.cos(), last], dim=-1)


def differences(pose: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Split what ``relative`` put together: the polar angles' difference, the azimuths', and the fourth number.

    Args:
        pose: shape ``[batch, 4]``.

    Returns:
        Radians, radians in [-pi, pi], and the fourth number's unit, each of shape ``[batch]``.
    """
    polar, sin, cos, last = pose.unbind(-1)
    return polar, torch.atan2(sin, cos), last


def relative_cameras(condition: Cameras, target: Cameras, fourth: str = "distance") -> Tensor:
    """``relative`` of two batches of cameras; one condition may stand for all targets. Shape ``[batch, 4]``.

    Only cameras on the CPU are looked at: reading others would make the host wait for the device.
    """
    first, second = condition.c2w[:, :3, 3], target.c2w[:, :3, 3]
    compute = relative if second.device.type == "cpu" else between
    return compute(first.expand_as(second), second, fourth)


def camera_position(world_to_camera: Tensor) -> Tensor:
    """Return a camera's position, ``-R^T t``, from matrices ``[..., 3, 4]`` such as Zero-1-to-3's ``.npy`` files hold."""
    rotation, translation = world_to_camera[..., :3], world_to_camera[..., 3]
    return -(rotation.transpose(-1, -2) @ translation[..., None])[..., 0]


def world_to_camera(cameras: Cameras) -> Tensor:
    """The matrices that ``camera_position`` reads, shape ``[batch, 3, 4]``."""
    rotation = cameras.c2w[:, :3, :3].transpose(1, 2)
    return torch.cat([rotation, -rotation @ cameras.c2w[:, :3, 3:]], dim=2)
