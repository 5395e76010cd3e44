"""A small 3D convolutional network that predicts the feature grid of each prompt."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import conv3d, interpolate, leaky_relu

from distill.domains import Count, Fraction, Length, NotNegative
from distill.renderers.generated import GeneratedScene, Offsets, generates, linear, width_of
from distill.renderers.layout import Layout
from distill.renderers.nerf import HashGridScene

#: Vertices along the edge of the coarsest grid; each further one has twice as many.
COARSEST = 4


class _Stage(nn.Module):
    """A convolution, channels scaled to the same size, a style, and features for the grid of this resolution."""

    def __init__(self, inner: int, outer: int, style: int, features: int, g: torch.Generator) -> None:
        super().__init__()
        bound = math.sqrt(6 / (27 * inner))
        self.kernel = nn.Parameter(torch.empty(outer, inner, 3, 3, 3).uniform_(-bound, bound, generator=g))
        self.style = linear(style, 2 * outer, g, math.sqrt(3 / style))
        # Small: all prompts begin close to the same scene.
        self.out = nn.Parameter(torch.empty(features, outer, 1, 1, 1).uniform_(-0.01, 0.01, generator=g))

    def forward(self, x: Tensor, style: Tensor) -> tuple[Tensor, Tensor]:
        x = conv3d(x, self.kernel, padding=1)
        x = x * (x.square().mean(1, keepdim=True) + 1e-8).rsqrt()
        scale, shift = self.style(style).view(2, 1, -1, 1, 1, 1)
        x = leaky_relu(x * (1 + scale) + shift, 0.2)
        return x, conv3d(x, self.out)


class ConvolutionalNetwork(nn.Module):
    """Map text to grid features at every resolution: 3D convolutions from a learnt input, each stage at twice the resolution.

    Args:
        layout: of the grid, whose levels are dense and double.
        width: of a prompt's embedding.
        channels: of the stages, coarse to fine; the last one is repeated where there are fewer than levels.
        style: width of the text after its two layers.
        generator: of the initial parameters.
    """

    def __init__(
        self, layout: Layout, width: int, channels: Sequence[int], style: int, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.layout = layout
        count = len(layout.levels)
        sizes = [*channels, *[channels[-1]] * count][:count]
        self.start = nn.Parameter(torch.randn(1, sizes[0], *[COARSEST] * 3, generator=generator))
        self.read = linear(width, style, generator, math.sqrt(3 / width))
        self.turn = linear(style, style, generator, math.sqrt(6 / style))
        inner = [sizes[0], *sizes[:-1]]
        self.stages = nn.ModuleList(
            _Stage(a, b, style, layout.features, generator) for a, b in zip(inner, sizes, strict=True)
        )

    def forward(self, embedding: Tensor) -> Offsets:
        """Map a prepared embedding, ``[width]``, to the offset of the grid, ``[layout.num_params]``."""
        style = leaky_relu(self.turn(leaky_relu(self.read(embedding), 0.2)), 0.2)
        x: Tensor = self.start
        parts: list[Tensor] = []
        for level, stage in zip(self.layout.levels, self.stages, strict=True):
            if level.resolution > COARSEST:
                x = interpolate(x, scale_factor=2, mode="trilinear", align_corners=False)
            x, found = stage(x, style)
            # The volume's axes are z, y, x, so that flat it is in the order of a dense level's entries.
            rows = found.flatten(2)[0].T
            blank = rows.new_zeros(level.size - len(rows), self.layout.features)
            parts += [rows, blank] if len(blank) else [rows]
        return Offsets(grid=torch.cat(parts).flatten())


@generates(
    "levels",
    "base_resolution",
    "log2_table_size",
    "progressive_levels",
    "occupancy_every",
    features=8,
    mlp_lr=0.001,
)
def hyper_conv(
    *,
    finest_resolution: Literal[4, 8, 16, 32, 64, 128] = 32,
    channels: Annotated[Sequence[Count], Length(1, 6)] = (64, 64, 32, 32),
    text_width: Count = 64,
    mix_share: Fraction = 0.0,
    network_lr: NotNegative = 0.001,
    seed: int | torch.Generator = 0,
    embeddings: Tensor | None = None,
    **shared: Any,
) -> GeneratedScene:
    """Make scenes for a library's prompts, each with its own feature grid, predicted from the text by 3D convolutions.

    The grids of 4, 8, ... vertices along the edge are the levels of a hash grid without hashing, so that a prompt's scene is a
    ``distill.renderers.HashGridScene``. The other options are those of that scene.

    Args:
        finest_resolution: vertices along the edge of the finest grid.
        channels: channels of the convolutions at each resolution, coarse to fine; the last one is repeated for the rest.
        text_width: width of the text after its two layers.
        mix_share: fraction of the steps that interpolate between two prompts.
        network_lr: learning rate of the convolutions, peak.
        embeddings: of the prompts, shape ``[prompts, width]``; None for one prompt of zeros.

    Source: after Ma et al. 2024 (ScaleDreamer), arXiv:2407.02040, 3DConv-net. Differs: a density; a grid at every resolution
    rather than sums of them at the finest; styles scale and shift channels, and no noise is added.
    """
    levels = int(math.log2(finest_resolution // COARSEST)) + 1
    shared |= {
        "levels": levels, "base_resolution": COARSEST, "log2_table_size": 3 * (levels + 1), "finest_resolution": finest_resolution,
    }  # fmt: skip
    generator = seed if isinstance(seed, torch.Generator) else torch.Generator().manual_seed(seed)
    plain = HashGridScene(**shared, seed=generator)
    assert all(level.dense for level in plain.layout.levels)
    network = ConvolutionalNetwork(plain.layout, width_of(embeddings), channels, text_width, generator)
    return GeneratedScene(plain, network, network_lr, shared, embeddings, mix_share, generator)
