"""One hash grid for all prompts, and a network that writes the small network behind it for each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import torch
from torch import Tensor, nn

from distill.domains import Count, Fraction, Length, NotNegative, Positive, Range
from distill.renderers.generated import GeneratedScene, Offsets, generates, linear, width_of
from distill.renderers.nerf import HashGridScene


class Hypernetwork(nn.Module):
    """Text to a small network's weights: linear, layer norm, SiLU, linear.

    Args:
        width: of a prompt's embedding.
        hidden: units between the two layers.
        weights: numbers that it writes.
        generator: of the initial parameters.
    """

    def __init__(self, width: int, hidden: int, weights: int, generator: torch.Generator) -> None:
        super().__init__()
        self.read = linear(width, hidden, generator, math.sqrt(3 / width))
        self.norm = nn.LayerNorm(hidden)
        # Small: all prompts begin close to the same scene.
        self.write = linear(hidden, weights, generator, 0.1 * math.sqrt(3 / hidden))

    def forward(self, embedding: Tensor) -> Offsets:
        """Map a prepared embedding, ``[width]``, to what it adds to the weights, ``[weights]``."""
        return Offsets(head=self.write(nn.functional.silu(self.norm(self.read(embedding)))))


@generates
def hyper_grid(
    *,
    levels: Count = 12,
    features: Literal[1, 2, 4, 8] = 2,
    log2_table_size: Annotated[int, Range(3, 24)] = 16,
    base_resolution: Annotated[int, Range(1, 65536)] = 8,
    finest_resolution: Annotated[int, Range(1, 65536)] = 128,
    hidden_width: Count = 32,
    hidden_layers: Annotated[int, Range(0)] = 1,
    text_width: Count = 64,
    mix_share: Fraction = 0.0,
    radius: Positive = 1.0,
    blob_scale: float = 10.0,
    blob_radius: Positive = 0.5,
    density_activation: Literal["softplus", "exp", "relu"] = "softplus",
    background: Literal["white", "grey", "random", "learned"]
    | Annotated[Sequence[float], Length.exactly(3), Range(0, 1)] = "white",
    random_background: Fraction = 0.0,
    march_steps: Count = 64,
    occupancy_resolution: Count = 32,
    occupancy_threshold: Fraction = 0.01,
    progressive_levels: tuple[Count, Annotated[float, Range(0, 1, above=True)]]
    | tuple[Count, Annotated[float, Range(0, 1, above=True)], Annotated[float, Range(0, 1, below=True)]]
    | None = None,
    backend: Literal["auto", "fused", "torch", "warp", "tinycudann"] = "auto",
    precision: Literal["float32", "float16"] = "float32",
    encoding_lr: NotNegative = 0.01,
    mlp_lr: NotNegative = 0.001,
    background_lr: NotNegative = 0.001,
    network_lr: NotNegative = 0.001,
    seed: int | torch.Generator = 0,
    embeddings: Tensor | None = None,
) -> GeneratedScene:
    """Scenes of a library's prompts that share a hash grid; a hypernetwork writes the network behind it from the text.

    Options that ``distill.renderers.HashGridScene`` has mean the same here.

    Args:
        text_width: units of the hypernetwork's hidden layer.
        mix_share: share of the steps that interpolate between two prompts.
        network_lr: learning rate of the hypernetwork, peak.
        embeddings: of the prompts, shape ``[prompts, width]``; None for one prompt of zeros.

    Source: Ma et al. 2024 (ScaleDreamer), arXiv:2407.02040, Hyper-iNGP. Differs: a density, not a signed distance; one head
    for density and colour, with biases; the hypernetwork writes what is added to weights that all prompts share.
    """
    options = dict(locals())
    own = ("text_width", "mix_share", "network_lr", "seed", "embeddings")
    shared: dict[str, Any] = {name: value for name, value in options.items() if name not in own}
    generator = seed if isinstance(seed, torch.Generator) else torch.Generator().manual_seed(seed)
    plain = HashGridScene(**shared, seed=generator)
    weights = sum(value.numel() for value in plain.weights.head)
    network = Hypernetwork(width_of(embeddings), text_width, weights, generator)
    return GeneratedScene(plain, network, network_lr, shared, embeddings, mix_share, generator)
