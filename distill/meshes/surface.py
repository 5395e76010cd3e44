"""A mesh that is textured: its triangles in the scene's frame, and what each of them looks like in its file."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

if TYPE_CHECKING:
    import trimesh

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]


#: Roughness and metallic of what has no material.
MATT = (0.9, 0.0)


class Unfit(ValueError):
    """A mesh file is whole but cannot be used; the message is one line for the user."""


@dataclass(frozen=True)
class Look:
    """The colours of a part's faces as its file has them, sRGB in [0, 1].

    Attributes:
        corners: colours of the faces' corners, shape ``[faces, 3, 3]``; a texture stands in their place where there is one.
        uv: texture coordinates of the corners, (0, 0) at the lower left, shape ``[faces, 3, 2]``.
        texture: repeats outside [0, 1], the first row on top, shape ``[height, width, 3]``.
        tint: linear factors of the texture's colours at the corners, shape ``[faces, 3, 3]``.
        finish: roughness and metallic of glTF's material, in [0, 1].
        finishes: their factors as a texture, which is as the colours' one, shape ``[height, width, 2]``.
    """

    corners: Tensor
    uv: Tensor | None = None
    texture: Tensor | None = None
    tint: Tensor | None = None
    finish: tuple[float, float] = MATT
    finishes: Tensor | None = None

    def to(self, device: torch.device) -> Look:
        """Copy them to a device."""
        uv, texture, tint, finishes = (
            None if value is None else value.to(device)
            for value in (self.uv, self.texture, self.tint, self.finishes)
        )
        return Look(self.corners.to(device), uv, texture, tint, self.finish, finishes)

    def colours(self, face: Tensor, weight: Tensor) -> Tensor:
        """Look colours up at points of the part.

        Args:
            face: which of the part's faces each point is on, shape ``[n]``.
            weight: barycentric, shape ``[n, 3]``.

        Returns:
            Shape ``[n, 3]``; textures are read bilinearly.
        """
        if self.texture is None or self.uv is None:
            return (weight[..., None] * self.corners[face]).sum(1)
        found = self._read(self.texture, self.uv, face, weight)
        if self.tint is None:
            return found
        linear = torch.where(found <= 0.04045, found / 12.92, ((found + 0.055) / 1.055) ** 2.4)
        linear = linear * (weight[..., None] * self.tint[face]).sum(1)
        return torch.where(
            linear <= 0.0031308, linear * 12.92, 1.055 * linear.clamp(min=1e-9) ** (1 / 2.4) - 0.055
        )

    def finished(self, face: Tensor, weight: Tensor) -> Tensor:
        """Look roughness and metallic up, as ``colours`` does; shape ``[n, 2]``."""
        found = weight.new_tensor(self.finish).expand(len(face), 2)
        if self.finishes is None or self.uv is None:
            return found
        return found * self._read(self.finishes, self.uv, face, weight)

    @staticmethod
    def _read(texture: Tensor, uv: Tensor, face: Tensor, weight: Tensor) -> Tensor:
        """A texture that repeats, bilinearly, shape ``[n, channels]``."""
        height, width, channels = texture.shape
        u, v = (weight[..., None] * uv[face]).sum(1).unbind(-1)
        x, y = u * width - 0.5, (1 - v) * height - 0.5
        left, top = x.floor(), y.floor()
        found = weight.new_zeros(len(weight), channels)
        for down in (0, 1):
            for right in (0, 1):
                part = (x - left if right else 1 - x + left) * (y - top if down else 1 - y + top)
                row, column = (top + down).long() % height, (left + right).long() % width
                found += part[:, None] * texture[row, column]
        return found


@dataclass(frozen=True)
class Part:
    """One geometry of a file, as it is first placed.

    Attributes:
        name: of the geometry.
        material: its material's name, or where it has none the geometry's.
        kept: it stays as it is.
        coloured: the file has a texture or colours for it.
        faces: the first of its faces in the surface, and how many there are.
        vertices: likewise.
        look: as the file has it.
    """

    name: str
    material: str
    kept: bool
    coloured: bool
    faces: tuple[int, int]
    vertices: tuple[int, int]
    look: Look


@dataclass(frozen=True)
class Surface:
    """Triangles of a mesh with all that is placed in it: z up, front towards +x, within a sphere of 0.95 about the origin.

    What is placed several times has one texture: its paint is that of its first place.

    Attributes:
        file: that it was read from.
        scene: as it was read; never changed.
        vertices: shape ``[v, 3]``.
        faces: shape ``[f, 3]``.
        normals: of the faces' corners, unit, 0 where the file has none, shape ``[f, 3, 3]``.
        part: index into ``parts``, shape ``[f]``.
        origin: the face itself, or the one of the first place that it repeats, shape ``[f]``.
        parts: geometries, in the order of their first places.
    """

    file: Path
    scene: trimesh.Scene
    vertices: Floats
    faces: Ints
    normals: Floats
    part: Ints
    origin: Ints
    parts: Sequence[Part]

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    @property
    def corners(self) -> Floats:
        """The faces' corners, shape ``[f, 3, 3]``."""
        return self.vertices[self.faces]

    @property
    def paint(self) -> Floats:
        """Where the faces' corners have their colour: their own places, or those of what they repeat, ``[f, 3, 3]``."""
        return self.vertices[self.faces[self.origin]]

    def areas(self) -> Floats:
        """The faces' areas, shape ``[f]``."""
        a, b, c = np.moveaxis(self.corners.astype(np.float64), 1, 0)
        found: Floats = (np.linalg.norm(np.cross(b - a, c - a), axis=1) / 2).astype(np.float32)
        return found

    def fingerprint(self) -> int:
        """A number that another shape, or another choice of what is kept, has not; within 63 bits."""
        kept = bytes(part.kept for part in self.parts)
        digest = hashlib.sha256(self.vertices.tobytes() + self.faces.tobytes() + kept).digest()
        return int.from_bytes(digest[:8], "little") >> 1
