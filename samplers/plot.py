"""Plot timestep samplers: the range that each draws from, over training."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from pathlib import Path

import torch

from distill.contracts import TimestepSampler
from distill.files.paths import user_path

WIDTH, HEIGHT, MARGIN, ROW = 640, 320, 48, 22
COLOURS = ("#4269d0", "#ef7d22", "#3ca951", "#b5446e", "#8561c5", "#8c6d46")


def quantiles(sampler: TimestepSampler, points: int = 200, draws: int = 400) -> torch.Tensor:
    """Return the 5%, 50% and 95% quantiles of t at evenly spaced points of training, ``[points, 3]``."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.stack([sampler(i / points, draws, generator) for i in range(points)]).double()
    return drawn.quantile(torch.tensor([0.05, 0.5, 0.95], dtype=torch.float64), dim=1).T


def plot(samplers: Mapping[str, TimestepSampler], path: str | Path) -> Path:
    """Draw the median and the middle 90% of each sampler's timesteps over training as an SVG.

    Args:
        samplers: by name, made for one prior, e.g. ``{"uniform": uniform(prior)}``.
        path: of the picture, ending in ``.svg``.

    Raises:
        ValueError: there is no sampler, or ``path`` ends otherwise.
    """
    path = user_path(path)
    if path.suffix != ".svg" or not samplers:
        raise ValueError(f"expected one sampler or more and a path that ends in .svg, got {path}")
    found = {name: quantiles(sampler) for name, sampler in samplers.items()}
    top = max(100.0, *(float(values.max()) for values in found.values()))
    deep = HEIGHT + ROW * len(found)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {deep}" font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{deep}" fill="white"/>',
        f'<text x="{WIDTH / 2}" y="{HEIGHT - 12}" text-anchor="middle">fraction of training</text>',
        f'<text x="8" y="{MARGIN / 2}">timestep, up to {top:g}</text>',
    ]

    def place(index: int, value: float, points: int) -> str:
        x = MARGIN + (WIDTH - 2 * MARGIN) * index / (points - 1)
        y = HEIGHT - MARGIN - (HEIGHT - 2 * MARGIN) * value / top
        return f"{x:.1f},{y:.1f}"

    for number, (name, values) in enumerate(found.items()):
        colour, n = COLOURS[number % len(COLOURS)], len(values)
        low, middle, high = ([place(i, v, n) for i, v in enumerate(column)] for column in values.T.tolist())
        y = HEIGHT + ROW * number + ROW / 2
        parts += [
            f'<polygon points="{" ".join(high + low[::-1])}" fill="{colour}" fill-opacity="0.15"/>',
            f'<polyline points="{" ".join(middle)}" fill="none" stroke="{colour}" stroke-width="2"/>',
            f'<rect x="{MARGIN}" y="{y - 9}" width="14" height="4" fill="{colour}"/>',
            f'<text x="{MARGIN + 22}" y="{y - 3}">{escape(name)}</text>',
        ]
    path.write_text("\n".join([*parts, "</svg>\n"]), encoding="utf-8")
    return path
