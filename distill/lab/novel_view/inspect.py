"""Visualise an encoder's features: principal components of its patches, and matching patches of two pictures.

Source: Jiang et al. 2023 (Efficient-3DiM), arXiv:2310.03015, App. A.2.
"""

from __future__ import annotations

import colorsys
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor
from torch.nn.functional import interpolate, normalize

from distill.priors.novel_view.features import Encoder


def layers_of(encoder: Encoder, rgb: Tensor) -> list[Tensor]:
    """The maps of each of an encoder's layers, each of shape ``[pictures, patches, width]``."""
    maps = encoder(rgb).maps
    widths = [encoder.width_of(layer) for layer in encoder.layers]
    return list(maps.split(widths, dim=-1))


def principal_components(patches: Tensor, count: int = 3) -> Tensor:
    """The strongest components of patches, over all pictures, each scaled to [0, 1].

    Args:
        patches: shape ``[pictures, patches, width]``.
        count: of components.

    Returns:
        Shape ``[pictures, patches, count]``; a component's sign is such that its largest loading is positive.
    """
    flat = patches.flatten(0, 1)
    centred = flat - flat.mean(0)
    _, _, directions = torch.linalg.svd(centred, full_matrices=False)
    directions = directions[:count]
    largest = directions.gather(1, directions.abs().argmax(1, keepdim=True))
    shares = centred @ (directions * largest.sign()).T
    low, high = shares.amin(0), shares.amax(0)
    return ((shares - low) / (high - low).clamp(min=1e-8)).unflatten(0, patches.shape[:2])


def mutual_matches(one: Tensor, other: Tensor, inside: Tensor | None = None) -> list[tuple[int, int, float]]:
    """Patches of two pictures that are each other's nearest, by the cosine of their features, best first.

    Args:
        one: shape ``[patches, width]``.
        other: of the second picture.
        inside: which patches of the first show something, shape ``[patches]``.
    """
    alike = normalize(one, dim=1) @ normalize(other, dim=1).T
    there, back = alike.argmax(1), alike.argmax(0)
    found = [
        (i, int(j), float(alike[i, j]))
        for i, j in enumerate(there.tolist())
        if back[j] == i and (inside is None or inside[i])
    ]
    return sorted(found, key=lambda match: -match[2])


def draw_features(encoder: Encoder, rgb: Tensor, path: Path, *, size: int = 192, matches: int = 24) -> int:
    """Write a sheet: each picture with the components of each layer, then the first two with their matches.

    Args:
        encoder: with the layers to show.
        rgb: in [0, 1], over white, shape ``[pictures, 3, h, w]``.
        path: of the picture.
        size: of each part, pixels.
        matches: drawn at most, of the last layer.

    Returns:
        How many matches are drawn.
    """
    pictures = _bytes(interpolate(rgb, (size, size), mode="bilinear", antialias=True))
    layers = layers_of(encoder, rgb)
    columns = [pictures]
    for layer in layers:
        maps = principal_components(layer).movedim(-1, 1).unflatten(2, (encoder.grid, encoder.grid))
        columns.append(_bytes(interpolate(maps, (size, size), mode="nearest")))
    rows = np.concatenate([np.concatenate(list(column), axis=0) for column in columns], axis=1)
    if len(rgb) < 2:
        Image.fromarray(rows).save(path)
        return 0
    cell = size / encoder.grid
    shown = interpolate(
        1 - rgb[:1].amin(1, keepdim=True), (encoder.grid, encoder.grid), mode="area"
    ).flatten()
    found = mutual_matches(layers[-1][0], layers[-1][1], shown > 0.2)[:matches]
    sheet = Image.new("RGB", (max(rows.shape[1], 2 * size), rows.shape[0] + size), "white")
    sheet.paste(Image.fromarray(rows), (0, 0))
    for number in range(2):
        sheet.paste(Image.fromarray(pictures[number]), (number * size, rows.shape[0]))
    pen = ImageDraw.Draw(sheet)
    for number, (i, j, _) in enumerate(found):
        ends = [
            ((k % encoder.grid + 0.5) * cell + side * size, rows.shape[0] + (k // encoder.grid + 0.5) * cell)
            for side, k in enumerate((i, j))
        ]
        hue = colorsys.hsv_to_rgb(number / max(len(found), 1), 0.9, 0.85)
        pen.line([*ends[0], *ends[1]], fill=tuple(int(255 * part) for part in hue), width=2)
    sheet.save(path)
    return len(found)


def _bytes(rgb: Tensor) -> list[np.ndarray]:
    return list((rgb.movedim(1, -1).clamp(0, 1) * 255).round().byte().numpy())
