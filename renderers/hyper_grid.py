"""One hash grid for all prompts, and a network that predicts the weights of each prompt's MLP."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from distill.domains import Count, Fraction, NotNegative
from distill.renderers.generated import GeneratedScene, Offsets, generates, linear, width_of
from distill.renderers.nerf import HashGridScene


class Hypernetwork(nn.Module):
    """Map text to the weights of a small network: linear, layer norm, SiLU, linear.

    Args:
        width: of a prompt's embedding.
        hidden: units between the two layers.
        weights: number of predicted weights.
        generator: of the initial parameters.
    """

    def __init__(self, width: int, hidden: int, weights: int, generator: torch.Generator) -> None:
        super().__init__()
        self.read = linear(width, hidden, generator, math.sqrt(3 / width))
        self.norm = nn.LayerNorm(hidden)
        # Small: all prompts begin close to the same scene.
        self.write = linear(hidden, weights, generator, 0.1 * math.sqrt(3 / hidden))

    def forward(self, embedding: Tensor) -> Offsets:
        """Map a prepared embedding, ``[width]``, to the offset of the weights, ``[weights]``."""
        return Offsets(head=self.write(nn.functional.silu(self.norm(self.read(embedding)))))


@generates("occupancy_every", log2_table_size=16, mlp_lr=0.001)
def hyper_grid(
    *,
    text_width: Count = 64,
    mix_share: Fraction = 0.0,
    network_lr: NotNegative = 0.001,
    seed: int | torch.Generator = 0,
    embeddings: Tensor | None = None,
    **shared: Any,
) -> GeneratedScene:
    """Make scenes for a library's prompts that share a hash grid; a hypernetwork predicts the MLP's weights from the text.

    The other options are those of ``distill.renderers.HashGridScene``, except for ``occupancy_every``: a prompt's occupancy is updated
    whenever it is drawn.

    Args:
        text_width: units of the hypernetwork's hidden layer.
        mix_share: fraction of the steps that interpolate between two prompts.
        network_lr: learning rate of the hypernetwork, peak.
        embeddings: of the prompts, shape ``[prompts, width]``; None for one prompt of zeros.

    Source: Ma et al. 2024 (ScaleDreamer), arXiv:2407.02040, Hyper-iNGP. Differs: a density, not a signed distance; one head
    for density and colour, with biases; the hypernetwork predicts offsets to weights that all prompts share.
    """
    generator = seed if isinstance(seed, torch.Generator) else torch.Generator().manual_seed(seed)
    plain = HashGridScene(**shared, seed=generator)
    weights = sum(value.numel() for value in plain.weights.head)
    network = Hypernetwork(width_of(embeddings), text_width, weights, generator)
    return GeneratedScene(plain, network, network_lr, shared, embeddings, mix_share, generator)
