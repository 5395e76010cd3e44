"""Division of a hash grid's flat parameter tensor into levels; the same for every backend.

Source: Mueller et al. 2022, arXiv:2201.05989; the levels are tiny-cuda-nn's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

#: Spatial hash: x * 1 xor y * 2654435761 xor z * 805459861.
PRIMES = (1, 2654435761, 805459861)


@dataclass(frozen=True)
class Level:
    """One resolution of the grid.

    Attributes:
        scale: grid units per unit of the cube; a point sits at ``x * scale + 0.5``.
        resolution: vertices along an axis.
        size: entries in this level's table.
        offset: entries before this level's in the flat tensor.
        dense: whether vertices are indexed directly rather than hashed.
    """

    scale: float
    resolution: int
    size: int
    offset: int
    dense: bool


@dataclass(frozen=True)
class Layout:
    """Division of a flat parameter tensor into levels; hashable, so that backends can cache by it.

    Attributes:
        levels: coarse to fine.
        features: numbers per entry.
        log2_table_size: binary logarithm of a level's largest size.
        base_resolution: of the coarsest level.
        growth: resolution's factor from one level to the next.
    """

    levels: tuple[Level, ...]
    features: int
    log2_table_size: int
    base_resolution: int
    growth: float

    @property
    def num_params(self) -> int:
        return (self.levels[-1].offset + self.levels[-1].size) * self.features

    @property
    def width(self) -> int:
        """Numbers per encoded point."""
        return len(self.levels) * self.features


def hash_layout(
    levels: int = 16,
    features: int = 2,
    log2_table_size: int = 15,
    base_resolution: int = 16,
    finest_resolution: int = 512,
) -> Layout:
    r"""Lay out a hash grid: :math:`s_l = N_{min} b^l - 1`, resolution :math:`\lceil s_l \rceil + 1`.

    Args:
        levels: number of resolutions.
        features: numbers per entry: 1, 2, 4 or 8.
        log2_table_size: a level holds at most ``2 ** log2_table_size`` entries, padded to multiples of 8.
        base_resolution: :math:`N_{min}`, of the coarsest level.
        finest_resolution: of the finest level; :math:`b` follows from it.

    Raises:
        ValueError: an option is outside its range.
    """
    if levels < 1 or features not in (1, 2, 4, 8) or not 3 <= log2_table_size <= 24:
        raise ValueError(
            "expected levels >= 1, features in 1, 2, 4, 8 and log2_table_size in 3..24; "
            f"got {levels}, {features}, {log2_table_size}"
        )
    if not 1 <= base_resolution <= finest_resolution <= 65536:
        raise ValueError(
            "expected 1 <= base_resolution <= finest_resolution <= 65536; "
            f"got {base_resolution}, {finest_resolution}"
        )
    growth = (finest_resolution / base_resolution) ** (1 / max(levels - 1, 1))
    table, offset = [], 0
    for index in range(levels):
        scale = _scale(index, growth, base_resolution)
        resolution = math.ceil(scale) + 1
        size = min(-(-(resolution**3) // 8) * 8, 2**log2_table_size)
        table.append(Level(scale, resolution, size, offset, resolution**3 <= size))
        offset += size
    return Layout(tuple(table), features, log2_table_size, base_resolution, growth)


def _scale(level: int, growth: float, base_resolution: int) -> float:
    """``base * growth ** level - 1`` rounded as single precision does it, like tiny-cuda-nn."""

    def single(value: float) -> float:
        return torch.tensor(value, dtype=torch.float32).item()

    power = single(2.0 ** single(level * single(math.log2(single(growth)))))
    return single(single(power * base_resolution) - 1.0)
