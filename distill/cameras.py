"""Camera geometry."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor

from distill.transfer import send
from distill.viewing import DISTANCE, FOV_Y_DEG


@dataclass(frozen=True)
class Cameras:
    """A batch of pinhole cameras that look at a point near the origin.

    Attributes:
        c2w: camera-to-world matrices, shape ``[batch, 4, 4]``.
        fov_y_deg: vertical field of view in degrees, shape ``[batch]``.
        azimuth_deg: in degrees, [-180, 180), shape ``[batch]``.
        elevation_deg: in degrees above the horizon, shape ``[batch]``.
        distance: from the origin, in scene units, shape ``[batch]``.
    """

    c2w: Tensor
    fov_y_deg: Tensor
    azimuth_deg: Tensor
    elevation_deg: Tensor
    distance: Tensor

    def __len__(self) -> int:
        return len(self.c2w)

    def to(self, device: torch.device | str) -> Cameras:
        """Copy the cameras to a device, in one transfer."""
        values = list(vars(self).values())
        if all(value.device == torch.device(device) for value in values):
            return self
        packed = send(torch.cat([value.reshape(-1) for value in values]), device)
        parts = packed.split([value.numel() for value in values])
        return Cameras(
            *(part.view(value.shape).to(value.dtype) for part, value in zip(parts, values, strict=True))
        )

    def __getitem__(self, index: slice | Tensor) -> Cameras:
        return Cameras(*(value[index] for value in vars(self).values()))

    def part(self, begin: int, end: int) -> Cameras:
        """Return the cameras from ``begin`` up to but not including ``end``."""
        return self[begin:end]

    def split(self, size: int) -> list[Cameras]:
        """Split the cameras into parts of ``size``; the last may be smaller."""
        return [self.part(begin, begin + size) for begin in range(0, len(self), size)]

    @staticmethod
    def joined(parts: Sequence[Cameras]) -> Cameras:
        """Concatenate parts of cameras: the inverse of ``split``."""
        return Cameras(
            *(torch.cat(values) for values in zip(*(vars(part).values() for part in parts), strict=True))
        )

    def scaled(self, factor: float) -> Cameras:
        """Return the cameras in other units of length, with positions and distances multiplied."""
        c2w = self.c2w.clone()
        c2w[:, :3, 3] *= factor
        return replace(self, c2w=c2w, distance=factor * self.distance)

    def window(self, left: float | Tensor, bottom: float | Tensor, side: float) -> Cameras:
        """Return cameras that see only a square window of each square picture, otherwise the same.

        Their matrices are sheared, for the window need not be in the middle: they are for casting rays alone.

        Args:
            left: of the window, from the picture's left edge, as a share of the picture's side, a number or a scalar.
            bottom: of the window, from the picture's bottom edge, likewise.
            side: of the window, as a share.
        """
        half = torch.tan(torch.deg2rad(self.fov_y_deg) / 2)
        zoom = torch.zeros_like(self.c2w)
        zoom[:, 0, 0] = zoom[:, 1, 1] = side
        # The camera looks along -z, so a shift of what it sees comes with the opposite sign of z.
        zoom[:, 0, 2] = -half * (2 * left + side - 1)
        zoom[:, 1, 2] = -half * (2 * bottom + side - 1)
        zoom[:, 2, 2] = zoom[:, 3, 3] = 1
        return replace(self, c2w=self.c2w @ zoom)

    def rays(self, height: int, width: int) -> tuple[Tensor, Tensor]:
        """Cast one ray through the centre of every pixel.

        Returns:
            Origins and unit directions in world space, each of shape ``[batch, height, width, 3]``.
        """
        half = torch.tan(torch.deg2rad(self.fov_y_deg) / 2)[:, None, None]
        rows, columns = _centres(height, width, self.c2w.device, self.c2w.dtype)
        y, x = rows * half, columns * half * (width / height)
        x, y = torch.broadcast_tensors(x, y)
        local = torch.stack([x, y, -torch.ones_like(x)], dim=-1)
        directions = torch.einsum("bij,bhwj->bhwi", self.c2w[:, :3, :3], local)
        directions = torch.nn.functional.normalize(directions, dim=-1)
        origins = self.c2w[:, None, None, :3, 3].expand_as(directions)
        return origins.contiguous(), directions

    def project(self, points: Tensor) -> Tensor:
        """Project points onto the pictures.

        Args:
            points: in world space, shape ``[n, 3]``.

        Returns:
            x rightwards and y downwards, -1 and 1 at the edges of a square picture, shape ``[batch, n, 2]``.
        """
        rotation, position = self.c2w[:, :3, :3], self.c2w[:, :3, 3]
        local = torch.einsum("bnj,bjk->bnk", points[None] - position[:, None], rotation)
        half = torch.tan(torch.deg2rad(self.fov_y_deg) / 2)[:, None, None]
        flat = local[..., :2] / (-local[..., 2:] * half)
        return flat * flat.new_tensor([1.0, -1.0])


@lru_cache(maxsize=16)
def _centres(height: int, width: int, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Where the centres of pixels are in [-1, 1], from the top and from the left: ``[1, height, 1]``, ``[1, 1, width]``."""
    rows = 1 - (torch.arange(height, device=device, dtype=dtype) + 0.5) * 2 / height
    columns = (torch.arange(width, device=device, dtype=dtype) + 0.5) * 2 / width - 1
    return rows[None, :, None], columns[None, None, :]


def orbit(
    azimuth_deg: Tensor,
    elevation_deg: Tensor,
    distance: Tensor | float,
    fov_y_deg: Tensor | float,
    look_at: Tensor | None = None,
) -> Cameras:
    """Place cameras on a sphere around the origin, upright.

    Straight above or below, a camera keeps its azimuth: its picture has that side of the object at the bottom, seen from
    above, or at the top, seen from below.

    Args:
        azimuth_deg: degrees, 0 at the object's front, shape ``[batch]``.
        elevation_deg: degrees above the horizon, shape ``[batch]``.
        distance: scene units, a number or shape ``[batch]``.
        fov_y_deg: vertical field of view in degrees, a number or shape ``[batch]``.
        look_at: points the cameras face, shape ``[batch, 3]``; the origin by default.
    """
    azimuth = torch.deg2rad(azimuth_deg)
    elevation = torch.deg2rad(elevation_deg)
    distance = torch.as_tensor(distance, dtype=azimuth.dtype, device=azimuth.device).expand_as(azimuth)
    fov = torch.as_tensor(fov_y_deg, dtype=azimuth.dtype, device=azimuth.device).expand_as(azimuth)
    # The cosine of 90 degrees rounds below zero, which would put the camera on the other side of the axis: it stays a
    # millionth off, so that the azimuth can be read from its position.
    flat = torch.cos(elevation)
    flat = torch.where(flat.abs() < 1e-6, 1e-6, flat)
    outward = torch.stack(
        [flat * torch.cos(azimuth), flat * torch.sin(azimuth), torch.sin(elevation)], dim=-1
    )
    position = outward * distance[:, None]
    backward = outward if look_at is None else torch.nn.functional.normalize(position - look_at, dim=-1)
    # From the azimuth rather than from a cross product with z, which vanishes straight overhead.
    right = torch.stack([-torch.sin(azimuth), torch.cos(azimuth), torch.zeros_like(azimuth)], dim=-1)
    right = torch.nn.functional.normalize(right - (right * backward).sum(-1, keepdim=True) * backward, dim=-1)
    up = torch.linalg.cross(backward, right)
    c2w = torch.eye(4, dtype=azimuth.dtype, device=azimuth.device).repeat(len(azimuth), 1, 1)
    c2w[:, :3, :4] = torch.stack([right, up, backward, position], dim=-1)
    wrapped = torch.remainder(azimuth_deg + 180, 360) - 180
    return Cameras(c2w, fov, wrapped, elevation_deg, distance)


def moved(cameras: Cameras, by: Tensor, look_at: Tensor, up: Tensor) -> Cameras:
    """Shift cameras and turn them to other points; their recorded angles and distances are unchanged.

    Args:
        cameras: on the CPU or a device.
        by: the shift of each, scene units, shape ``[batch, 3]``.
        look_at: points that they then face, shape ``[batch, 3]``.
        up: what is up for each, any length, shape ``[batch, 3]``; where it is along the view, the camera's own up stays.
    """
    position = cameras.c2w[:, :3, 3] + by
    backward = torch.nn.functional.normalize(position - look_at, dim=-1)
    right = torch.linalg.cross(up, backward)
    own = torch.linalg.cross(cameras.c2w[:, :3, 1], backward)
    right = torch.where(right.norm(dim=-1, keepdim=True) < 1e-6, own, right)
    right = torch.nn.functional.normalize(right, dim=-1)
    c2w = cameras.c2w.clone()
    upward = torch.linalg.cross(backward, right)
    c2w[:, :3, :4] = torch.stack([right, upward, backward, position], dim=-1)
    return replace(cameras, c2w=c2w)


def turntable(
    views: int, elevation_deg: float = 15.0, distance: float = DISTANCE, fov_y_deg: float = FOV_Y_DEG
) -> Cameras:
    """Return evenly spaced cameras at one elevation, starting at the front."""
    azimuth = torch.arange(views, dtype=torch.float32) * (360 / views)
    return orbit(azimuth, torch.full_like(azimuth, elevation_deg), distance, fov_y_deg)
