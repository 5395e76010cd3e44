"""Distances between an asset and the ground-truth shape: silhouettes and surfaces; and its colours."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from distill.cameras import turntable
from distill.silhouettes import silhouette_iou

if TYPE_CHECKING:
    import trimesh


def true_silhouettes(kind: str, azimuths: int = 16, size: int = 96, elevation_deg: float = 15.0) -> Tensor:
    """Silhouettes of a kind of the embedded world from evenly spaced azimuths, the front first.

    Returns:
        True inside, shape ``[azimuths, size, size]``, from the cameras of ``turntable``.
    """
    from distill.embedded import raycast, shapes

    layers = raycast.render(shapes.build(kind), turntable(azimuths, elevation_deg), size, samples=2)
    return torch.from_numpy(layers.alpha > 0.5)


def best_turn(seen: Tensor, truth: Tensor) -> tuple[float, float]:
    """Compare silhouettes from evenly spaced azimuths with more true ones, at the turn about z that fits best.

    Text fixes no azimuth, so one offset common to all views is free; each view is not matched alone.

    Args:
        seen: true inside, the front first, shape ``[views, height, width]``.
        truth: those of the true shape, shape ``[azimuths, height, width]``, a multiple of as many; there are as many candidate
            offsets as azimuths.

    Returns:
        The mean IoU over the views, and the offset in degrees: the asset seen from azimuth 0 looks like the
        truth seen from that azimuth.

    Raises:
        ValueError: the number of azimuths is not a multiple of the views.
    """
    views, azimuths = len(seen), len(truth)
    if azimuths % views:
        raise ValueError(
            f"expected a multiple of {views} true silhouettes, got {azimuths}; render {2 * views}"
        )
    comb = torch.arange(views) * (azimuths // views)
    scores = torch.stack(
        [silhouette_iou(seen, truth[(comb + shift) % azimuths]).mean() for shift in range(azimuths)]
    )
    best = int(scores.argmax())
    return scores[best].item(), best * 360 / azimuths


def mean_colour(rgb: Tensor, opacity: Tensor) -> Tensor:
    """Mean colour of what is there over white, weighted by opacity; white shining through is taken out.

    Args:
        rgb: in [0, 1], shape ``[views, 3, height, width]``.
        opacity: shape ``[views, 1, height, width]``.

    Returns:
        sRGB, shape ``[3]``.
    """
    inside = (rgb - (1 - opacity)).clamp(min=0).sum((0, 2, 3))
    return inside / opacity.sum().clamp(min=1e-6)


def saturation(rgb: Tensor, opacity: Tensor) -> float:
    """Mean saturation (HSV: 1 - min / max) of solid pixels; 0 where there are none."""
    solid = opacity[:, 0] > 0.9
    highest, lowest = rgb.amax(1)[solid], rgb.amin(1)[solid]
    if not len(highest):
        return 0.0
    return (1 - lowest / highest.clamp(min=1e-6)).mean().item()


def chamfer(mesh_a: trimesh.Trimesh, mesh_b: trimesh.Trimesh, n: int = 10_000, seed: int = 0) -> float:
    """Symmetric Chamfer distance: the mean distance to the other surface's nearest sample, in scene units.

    Both directions are averaged and distances are not squared. Equal surfaces give the samples'
    spacing, about ``0.5 sqrt(area / n)``, rather than 0.

    Args:
        mesh_a: a surface.
        mesh_b: another.
        n: points drawn uniformly from each surface.
        seed: of the draw.
    """
    import trimesh
    from scipy.spatial import cKDTree

    a, _ = trimesh.sample.sample_surface(mesh_a, n, seed=seed)
    b, _ = trimesh.sample.sample_surface(mesh_b, n, seed=seed + 1)
    there, back = cKDTree(b).query(a)[0], cKDTree(a).query(b)[0]
    return float(there.mean() + back.mean()) / 2
