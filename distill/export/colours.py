"""Colours of a surface: what the scene's pictures show there, and what its field has."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import grid_sample, max_pool2d

from distill.cameras import Cameras, turntable
from distill.contracts import Field, View
from distill.export.mesh import Floats, evaluate

#: Gives points of a surface their colours: points and unit outward normals, both ``[n, 3]``, to sRGB in [0, 1], ``[n, 3]``.
Paint = Callable[[Floats, Floats], Floats]

#: Where the pictures are taken from: views and their elevation, in degrees.
RINGS = ((6, -15.0), (8, 15.0), (5, 50.0), (1, 85.0))
#: Side of the pictures, in pixels: about as fine as the texels of a texture of twice as many, and no longer than this.
PICTURE, LARGEST = 256, 1024
#: A picture shows a point if no depth around it is further from the point's than this, in scene units: a soft field has its depth beneath
#: its surface, and where a part ends in front of another, pixels mix their colours.
REACH = 0.2
#: Pixels that are less opaque than this show mostly what is behind the scene.
OPAQUE = 0.5
#: Pictures count by this power of the cosine of their angle of view: the higher, the sharper, for pictures from different sides show a soft
#: field a little differently.
SHARPNESS = 4
#: Points of which less is seen have the field's own colours, in part: such a power, summed over the pictures.
SEEN = 0.05

#: Points that are coloured at a time, which bounds the memory.
CHUNK = 262_144

#: How far around the surface a ray is followed, in scene units, and in how many steps.
_OUTSIDE, _INSIDE, _STEPS = 0.05, 0.1, 15
#: Density, per scene unit, of less than which is the empty space between a surface and what is in front of it.
_EMPTY = 0.1


def paint_of(
    query: Field, view: View, *, picture_size: int = PICTURE, device: torch.device | str = "cpu"
) -> Paint:
    """Return what gives a mesh the colours of its scene; the pictures that it needs are taken here, once.

    A colour is the mean of what pictures show and of what the field has there, which is sharper. Where these differ much, as in haze, the
    pictures are right; and what no picture shows, as in a deep crease, has the colour of the field.

    Args:
        query: the scene's field, called without gradients on points on ``device``.
        view: takes the pictures, whose depth is used.
        picture_size: side of the pictures, in pixels.
        device: where ``query`` wants its points.
    """
    cameras = Cameras.joined([turntable(views, elevation_deg) for views, elevation_deg in RINGS])
    pictures = torch.cat([_picture(view, camera, picture_size) for camera in cameras.split(1)])

    def paint(points: Floats, normals: Floats) -> Floats:
        found = np.empty((len(points), 3), np.float32)
        for start in range(0, len(points), CHUNK):
            part = slice(start, start + CHUNK)
            found[part] = painted(points[part], normals[part])
        return found

    def painted(points: Floats, normals: Floats) -> Floats:
        shown, seen = seen_colours(cameras, pictures, points, normals)
        own = surface_albedo(query, points, normals, device=device)
        difference = np.abs(shown - own).max(1, keepdims=True)
        share = np.clip(0.3 + 2 * difference, 0.5, 1) * np.minimum(seen[:, None] / SEEN, 1)
        return own + share.astype(np.float32) * (shown - own)

    return paint


def _picture(view: View, camera: Cameras, size: int) -> Tensor:
    """Premultiplied colour, opacity and depths, on the CPU, ``[1, 6, size, size]``, see ``nearness``."""
    with torch.no_grad():
        made = view(camera, size, size)
    behind = 1.0 if made.background is None else made.background
    colour = made.rgb - (1 - made.opacity) * behind
    return nearness(torch.cat([colour, made.opacity, made.depth], dim=-1).movedim(-1, 1).float().cpu())


def seen_colours(
    cameras: Cameras, pictures: Tensor, points: Floats, normals: Floats
) -> tuple[Floats, Floats]:
    """Return the mean colours that pictures show at points, each picture weighted by its angle of view, see ``SHARPNESS``.

    Args:
        cameras: of the pictures.
        pictures: premultiplied colour, opacity and depths, shape ``[views, 6, height, width]``, see ``nearness``.
        points: on the surface, shape ``[n, 3]``.
        normals: outward and unit, shape ``[n, 3]``.

    Returns:
        Colours in [0, 1], shape ``[n, 3]``, 0 where no picture shows a point; and the sum of the weights, shape ``[n]``.
    """
    places, outward = torch.from_numpy(points).float(), torch.from_numpy(normals).float()
    colour, total = torch.zeros(len(places), 3), torch.zeros(len(places), 1)
    for camera, picture in zip(cameras.split(1), pictures, strict=True):
        spots = camera.project(places)[0]
        towards = camera.c2w[0, :3, 3] - places
        distance = towards.norm(dim=1, keepdim=True)
        cosine = (outward * towards).sum(1, keepdim=True) / distance
        found = grid_sample(picture[None, :4], spots[None, None], align_corners=False)[0, :, 0].T
        opacity = found[:, 3:]
        near, far = grid_sample(picture[None, 4:], spots[None, None], "nearest", align_corners=False)[0, :, 0]
        clear = (distance - near[:, None] < REACH) & (far[:, None] - distance < REACH)
        shown = (opacity > OPAQUE) & clear
        weight = cosine.clamp(min=0) ** SHARPNESS * opacity * shown
        colour += weight * (found[:, :3] / opacity.clamp(min=OPAQUE)).clamp(0, 1)
        total += weight
    return (colour / total.clamp(min=1e-9)).numpy(), total[:, 0].numpy()


def nearness(pictures: Tensor) -> Tensor:
    """Replace the depth of pictures by the smallest and the largest one of the pixels around each that are not empty.

    Args:
        pictures: premultiplied colour, opacity and depth, shape ``[views, 5, height, width]``; pixels that are not finite count as empty.

    Returns:
        Premultiplied colour, opacity and the two depths, shape ``[views, 6, height, width]``.
    """
    pictures = torch.where(pictures.isfinite().all(1, keepdim=True), pictures, 0.0)
    depth, empty = pictures[:, 4:], pictures[:, 3:4] <= 0
    near = -max_pool2d(-depth.masked_fill(empty, math.inf), 3, 1, 1)
    far = max_pool2d(depth.masked_fill(empty, -math.inf), 3, 1, 1)
    return torch.cat([pictures[:, :4], near, far], dim=1)


def surface_albedo(
    query: Field, points: Floats, normals: Floats, *, device: torch.device | str = "cpu"
) -> Floats:
    """Albedo where a ray against the normal stops: volume rendering over a short stretch of it.

    A soft field has no colour just at its surface; what renders show lies a little beneath, or in the haze in front of it. Beyond empty
    space, what is in front is another part.

    Args:
        query: the field.
        points: on the surface, shape ``[n, 3]``.
        normals: outward and unit, shape ``[n, 3]``.
        device: where ``query`` wants its points.

    Returns:
        Albedo in [0, 1], shape ``[n, 3]``.
    """
    step = (_OUTSIDE + _INSIDE) / _STEPS
    colour, everything = np.zeros_like(points, np.float32), np.zeros_like(points, np.float32)
    total, joined = np.zeros((len(points), 1), np.float32), np.ones((len(points), 1), bool)
    # From the inside outwards, each in front of what is there: so many places at once would take ten times the memory.
    for offset in (np.arange(_STEPS) + 0.5) * step - _INSIDE:
        # A field need not be defined outside the cube.
        along = np.clip(points + offset * normals, -1, 1).astype(np.float32)
        density, albedo = evaluate(query, along, device=device)
        if offset > 0:
            joined &= density[:, None] > _EMPTY
        opaque = 1 - np.exp(-np.maximum(density[:, None] * joined, 0) * step)
        colour += opaque * (albedo - colour)
        total += opaque * (1 - total)
        everything += albedo
    # The small addition lets what is thin all the way through have its mean colour.
    return np.clip(np.nan_to_num((colour + 1e-6 * everything) / (total + 1e-6 * _STEPS)), 0, 1)
