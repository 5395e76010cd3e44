"""Metrics of an asset of the embedded world, by the judge and against the ground-truth shape."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from distill.cameras import turntable
from distill.contracts import Condition, Field, Guidance, Prior, View
from distill.embedded import raycast, shapes, world
from distill.embedded.judge import Judge, r_precision
from distill.lab.metrics import best_azimuth_iou, chamfer, true_silhouettes

VIEWS, ELEVATION_DEG, SIZE = 8, 15.0, 64


def pictures_of(view: View, views: int = VIEWS) -> tuple[Tensor, Tensor]:
    """Colour and opacity from evenly spaced sides, ``[views, 3, size, size]`` and ``[views, 1, size, size]``."""
    seen = view(turntable(views, ELEVATION_DEG), SIZE, SIZE)
    return seen.rgb.detach().cpu().movedim(-1, 1).clamp(0, 1), seen.opacity.detach().cpu().movedim(-1, 1)


def true_pictures(prompt: str, views: int = VIEWS) -> tuple[Tensor, Tensor]:
    """The same of the true shape, over white, the front first."""
    colour, kind = world.parse(prompt)
    layers = raycast.render(shapes.build(kind), turntable(views, ELEVATION_DEG), SIZE, samples=2)
    rgb = torch.from_numpy(raycast.over(layers.rgba(world.COLOURS[colour]), 1.0))
    return rgb.movedim(-1, 1).float(), torch.from_numpy(layers.alpha)[:, None].float()


def judge_scores(judge: Judge, pictures: Tensor, prompt: str) -> dict[str, float]:
    """R-precision at 1 among all captions, and the mean cosine with the prompt's own."""
    own = world.caption(*world.parse(prompt))
    with torch.no_grad():
        similarity = judge.image_features(pictures) @ judge.text_features([own]).T
    return {"r_precision": r_precision(judge, pictures, prompt), "similarity": similarity.mean().item()}


def mean_colour(rgb: Tensor, opacity: Tensor) -> Tensor:
    """Mean colour of what is there, weighted by opacity, shape ``[3]``; white shining through is taken out."""
    inside = (rgb - (1 - opacity)).clamp(min=0).sum((0, 2, 3))
    return inside / opacity.sum().clamp(min=1e-6)


def saturation(rgb: Tensor, opacity: Tensor) -> float:
    """Mean saturation (HSV: 1 - min / max) of solid pixels; 0 where there are none."""
    solid = opacity[:, 0] > 0.9
    highest, lowest = rgb.amax(1)[solid], rgb.amin(1)[solid]
    if not len(highest):
        return 0.0
    return (1 - lowest / highest.clamp(min=1e-6)).mean().item()


def facing(judge: Judge, pictures: Tensor, prompt: str) -> Tensor:
    """Return which of the true shape's sides each picture looks most like to the judge, shape ``[views]``."""
    truth, _ = true_pictures(prompt)
    with torch.no_grad():
        return (judge.image_features(pictures) @ judge.image_features(truth).T).argmax(1)


def janus(judge: Judge, pictures: Tensor, prompt: str, offset_deg: float) -> float | None:
    """Share of the three pictures from behind that look most like one of the three true sides in front.

    None for a kind without a front.

    Args:
        judge: sees them.
        pictures: from ``VIEWS`` sides, as of ``pictures_of``.
        prompt: says the kind.
        offset_deg: the turn at which the asset fits its truth, as of ``best_azimuth_iou``.
    """
    _, kind = world.parse(prompt)
    if kind not in shapes.ORIENTED:
        return None
    back = round((180 - offset_deg) / (360 / VIEWS))
    behind = [(back + turn) % VIEWS for turn in (-1, 0, 1)]
    seen = facing(judge, pictures[behind], prompt)
    return ((seen <= 1) | (seen == VIEWS - 1)).float().mean().item()


def measure(view: View, field: Field, prompt: str, judge: Judge) -> dict[str, Any]:
    """Measure one finished asset."""
    from distill.export.mesh import extract_mesh

    rgb, opacity = pictures_of(view)
    true_rgb, true_opacity = true_pictures(prompt)
    _, kind = world.parse(prompt)
    iou, offset = best_azimuth_iou(view, true_silhouettes(kind), VIEWS, ELEVATION_DEG)
    error = (mean_colour(rgb, opacity) - mean_colour(true_rgb, true_opacity)).norm().item()
    figures: dict[str, Any] = {
        **judge_scores(judge, rgb, prompt),
        "iou": iou,
        "offset_deg": offset,
        "colour_error": error,
        "saturation": saturation(rgb, opacity),
        "true_saturation": saturation(true_rgb, true_opacity),
        "janus": janus(judge, rgb, prompt, offset),
        "chamfer": None,
    }
    try:
        mesh = extract_mesh(field, view, resolution=96, faces=10_000)
    except ValueError:
        return figures  # nothing there to make a mesh of
    import trimesh

    surface = trimesh.Trimesh(mesh.vertices, mesh.faces, process=False)
    surface.apply_transform(
        trimesh.transformations.rotation_matrix(torch.deg2rad(torch.tensor(offset)).item(), [0, 0, 1])
    )
    figures["chamfer"] = chamfer(surface, world.mesh(prompt), n=4_000)
    return figures


def diversity(judge: Judge, assets: Sequence[Tensor]) -> float | None:
    """Mean distance (1 - cosine of the judge's features) between seeds, picture by picture; None for one seed."""
    if len(assets) < 2:
        return None
    with torch.no_grad():
        features = [judge.image_features(pictures) for pictures in assets]
    return sum((1 - (a * b).sum(1)).mean().item() for a, b in combinations(features, 2)) / (
        len(features) * (len(features) - 1) / 2
    )


def gradient_profile(
    guidance: Guidance,
    prior: Prior,
    x: Tensor,
    cond: Condition,
    generator: torch.Generator,
    levels: int = 8,
    draws: int = 6,
) -> list[dict[str, float]]:
    """Norm of the mean gradient over noises, and its variance, at evenly spaced timesteps.

    Args:
        guidance: the loss.
        prior: the prior.
        x: clean pictures, shape ``[batch, ...]``.
        cond: their conditions.
        generator: of the noises.
        levels: timesteps.
        draws: noises at each.
    """
    profile = []
    for level in range(levels):
        t = torch.full((len(x),), round((0.05 + 0.9 * level / (levels - 1)) * (prior.num_timesteps - 1)))
        grads = torch.stack(
            [
                guidance(prior, x, cond, t.to(x.device), torch.randn(x.shape, generator=generator).to(x))
                for _ in range(draws)
            ]
        )
        profile.append(
            {
                "t": t[0].item(),
                "norm": grads.mean(0).flatten(1).norm(dim=1).mean().item(),
                "variance": grads.var(0).mean().item(),
            }
        )
    return profile
