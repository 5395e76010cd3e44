"""Metrics of an asset of the embedded world or of a real object, by the judge and against its truth, and of several seeds' assets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from distill.cameras import turntable
from distill.contracts import Condition, Field, Guidance, Prior, View
from distill.embedded import shapes
from distill.embedded.judge import Judge, r_precision
from distill.lab.metrics import chamfer, mean_colour, saturation
from distill.lab.truth import (
    ELEVATION_DEG,
    SHAPES,
    VIEWS,
    Asked,
    Source,
    Truth,
    asked,
    best_shape,
    matches,
    nearest,
    truths,
)

if TYPE_CHECKING:
    import trimesh

SIZE = 64


def pictures_of(view: View, views: int = VIEWS) -> tuple[Tensor, Tensor]:
    """Colour and opacity from evenly spaced sides, ``[views, 3, size, size]`` and ``[views, 1, size, size]``."""
    seen = view(turntable(views, ELEVATION_DEG), SIZE, SIZE)
    return seen.rgb.detach().cpu().movedim(-1, 1).clamp(0, 1), seen.opacity.detach().cpu().movedim(-1, 1)


def judge_scores(judge: Judge, pictures: Tensor, caption: str) -> dict[str, float]:
    """R-precision at 1 among all captions, and the mean cosine with the prompt's own, as ``truth.asked`` has it."""
    similarity = judge.similarity(pictures, [caption]).mean().item()
    return {"r_precision": r_precision(judge, pictures, caption), "similarity": similarity}


def facing(judge: Judge, pictures: Tensor, truth: Truth) -> Tensor:
    """Return which of the true object's sides each picture looks most like to the judge, shape ``[views]``."""
    with torch.no_grad():
        return (judge.image_features(pictures) @ judge.image_features(truth.rgb).T).argmax(1)


def has_front(judge: Judge, wanted: Asked, truth: Truth) -> bool:
    """Tell whether an object's front and back look different.

    Of the world's kinds that is known. A thing's do where no picture of its own from behind has, beside itself, one in front
    for the one that it looks most like to the judge.
    """
    if not wanted.things:
        return wanted.name in shapes.ORIENTED
    with torch.no_grad():
        features = judge.image_features(truth.rgb)
    likeness = (features @ features.T).fill_diagonal_(-2.0)
    half = VIEWS // 2
    return not _in_front(likeness[half - 1 : half + 2].argmax(1)).any()


def _in_front(sides: Tensor) -> Tensor:
    """Whether sides, as numbers of pictures, are the front or next to it."""
    return (sides <= 1) | (sides == VIEWS - 1)


def janus(judge: Judge, pictures: Tensor, truth: Truth, offset_deg: float) -> float:
    """Share of the three pictures from behind that look most like one of the three true sides in front.

    Args:
        judge: sees them.
        pictures: from ``VIEWS`` sides, as for ``pictures_of``.
        truth: of an object with a front.
        offset_deg: the turn at which the asset fits its truth, as for ``distill.lab.metrics.best_turn``.
    """
    back = round((180 - offset_deg) / (360 / VIEWS))
    behind = [(back + turn) % VIEWS for turn in (-1, 0, 1)]
    return _in_front(facing(judge, pictures[behind], truth)).float().mean().item()


def neighbours(judge: Judge, pictures: Tensor) -> float:
    """Mean cosine distance, in the judge's features, between each side and the next, of pictures all around."""
    with torch.no_grad():
        features = judge.image_features(pictures)
    return 1 - (features * features.roll(1, 0)).sum(1).mean().item()


def measure(view: View, field: Field, prompt: str, judge: Judge, source: Source = SHAPES) -> dict[str, Any]:
    """Measure one finished asset; what needs a truth is None where the source has none.

    IoU, turn, Janus rate and Chamfer distance are against the variant of the largest IoU, colours against the one that is
    nearest by silhouette and colour.
    """
    wanted, found = asked(prompt, source), truths(prompt, source)
    rgb, opacity = pictures_of(view)
    figures: dict[str, Any] = {
        **judge_scores(judge, rgb, wanted.caption),
        **dict.fromkeys(("iou", "offset_deg", "iou_variant", "variant", "variants", "colour_error")),
        "saturation": saturation(rgb, opacity),
        **dict.fromkeys(("true_saturation", "janus", "chamfer")),
        **dict(zip(("red", "green", "blue"), mean_colour(rgb, opacity).tolist(), strict=True)),
    }
    if not found:
        return figures
    compared = matches(view, found, rgb, opacity)
    shape, like = best_shape(compared), nearest(compared)
    figures |= {
        "iou": shape.iou,
        "offset_deg": shape.offset_deg,
        "iou_variant": shape.truth.variant,
        "variant": like.truth.variant,
        "variants": len(found),
        "colour_error": like.colour_error,
        "true_saturation": saturation(like.truth.rgb, like.truth.opacity),
    }
    if has_front(judge, wanted, shape.truth):
        figures["janus"] = janus(judge, rgb, shape.truth, shape.offset_deg)
    if shape.truth.mesh is not None:
        figures["chamfer"] = distance_to(view, field, shape.truth.mesh(), shape.offset_deg)
    return figures


def distance_to(view: View, field: Field, true: trimesh.Trimesh, offset_deg: float) -> float | None:
    """Chamfer distance between an asset's mesh, turned as it fits best, and the true one; None where there is nothing."""
    import trimesh

    from distill.export.mesh import extract_mesh

    try:
        mesh = extract_mesh(field, view, resolution=96, faces=10_000)
    except ValueError:
        return None  # nothing there to make a mesh of
    surface = trimesh.Trimesh(mesh.vertices, mesh.faces, process=False)
    angle = torch.deg2rad(torch.tensor(offset_deg)).item()
    surface.apply_transform(trimesh.transformations.rotation_matrix(angle, [0, 0, 1]))
    return chamfer(surface, true, n=4_000)


def diversity(judge: Judge, assets: Sequence[Tensor]) -> float | None:
    """Mean distance (1 - cosine of the judge's features) between seeds, picture by picture; None for one seed."""
    if len(assets) < 2:
        return None
    with torch.no_grad():
        features = [judge.image_features(pictures) for pictures in assets]
    return sum((1 - (a * b).sum(1)).mean().item() for a, b in combinations(features, 2)) / (
        len(features) * (len(features) - 1) / 2
    )


def distinct(finals: Sequence[Mapping[str, Any]]) -> int | None:
    """Number of different variants that the seeds of a name came nearest to; None for one seed, or a name without variants."""
    if len(finals) < 2 or any((final.get("variants") or 1) < 2 for final in finals):
        return None
    return len({final["variant"] for final in finals})


def colour_spread(finals: Sequence[Mapping[str, Any]]) -> float | None:
    """Mean distance between the mean colours of two seeds' assets, sRGB; None for one seed."""
    if len(finals) < 2 or any("red" not in final for final in finals):
        return None
    means = [torch.tensor([final[name] for name in ("red", "green", "blue")]) for final in finals]
    pairs = list(combinations(means, 2))
    return sum((a - b).norm().item() for a, b in pairs) / len(pairs)


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
