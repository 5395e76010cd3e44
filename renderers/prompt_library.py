"""The prompts of a library as a scene sees them: embeddings, which of them a step draws, and where each one's object is."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from distill.contracts import Draw
from distill.renderers.occupancy import decoded, encoded, update_occupancy

if TYPE_CHECKING:
    from nerfacc import OccGridEstimator

#: Seeds of the sampler are below this, so that the number of an epoch can be added.
_SEEDS = 2**62


@lru_cache(maxsize=2)
def epoch(count: int, share: float, seed: int) -> list[Draw]:
    """All draws of an epoch: every prompt once, in a random order.

    Args:
        count: of prompts.
        share: of the draws that lead from the prompt towards another one.
        seed: of the order and the rest; an epoch's alone.
    """
    g = torch.Generator().manual_seed(seed)
    first, second = torch.randperm(count, generator=g), torch.randint(count, (count,), generator=g)
    mixed = torch.rand(count, generator=g) < share
    amounts = torch.where(mixed, torch.rand(count, generator=g), torch.zeros(count))
    rows = zip(first.tolist(), second.tolist(), amounts.tolist(), strict=True)
    return [Draw(a, b if amount else a, amount) for a, b, amount in rows]


class Library(nn.Module):
    """Embeddings of prompts, drawn one at a time without replacement until each was drawn, and an occupancy for each.

    An epoch's order follows from a seed and the epoch's number, so a draw follows from its number, and a step that is done again
    draws the same prompt. The last draw's number, and the occupancies of what was drawn so far, are buffers and so in every
    checkpoint; the occupancies are bytes, none before the first draw, and scenes can be made without them.

    Args:
        embeddings: of the prompts, shape ``[prompts, width]``.
        cells: of an occupancy grid, in all.
        share: of the draws that interpolate between two prompts (Lorraine et al. 2023, ATT3D, arXiv:2306.07349, Sec. 4.2).
        generator: of the sampler's seed.
    """

    embeddings: Tensor
    centre: Tensor
    spread: Tensor
    occupied: Tensor
    order: Tensor
    draws: Tensor

    def __init__(self, embeddings: Tensor, cells: int, share: float, generator: torch.Generator) -> None:
        super().__init__()
        embeddings = embeddings.detach().float().cpu()
        centre = embeddings.mean(0) if len(embeddings) > 1 else torch.zeros_like(embeddings[0])
        spread = (embeddings - centre).square().mean().sqrt()
        self.register_buffer("embeddings", embeddings)
        self.register_buffer("centre", centre)
        self.register_buffer("spread", spread if spread > 1e-6 else torch.ones(()))
        # A large library has many, and nothing but training needs them.
        self.register_buffer("occupied", torch.zeros(0, cells, dtype=torch.uint8))
        self.register_buffer("order", torch.randint(_SEEDS, (1,), generator=generator))
        self.register_buffer("draws", torch.zeros(1, dtype=torch.long))
        self.share = share
        # The same numbers on the CPU: reading the buffers would wait for the device.
        self._seed, self.count = int(self.order), 0

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any, **kwargs: Any) -> None:
        saved = state_dict.get(f"{prefix}occupied", self.occupied)
        if len(saved) != len(self.occupied):
            self.occupied = self.occupied.new_zeros(len(saved), self.occupied.shape[1])
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        self._seed, self.count = int(self.order), int(self.draws)

    def draw(self, number: int) -> Draw:
        """Make the draw of a number, from 0 on, the last one."""
        self.count = number + 1
        self.draws.fill_(self.count)
        return self.drawn()

    def drawn(self) -> Draw:
        """The last draw; the first one before any."""
        number, place = divmod(max(self.count - 1, 0), len(self.embeddings))
        return epoch(len(self.embeddings), self.share, self._seed + number)[place]

    def embedding(self) -> Tensor:
        """The embedding of the last draw, shape ``[width]``."""
        draw = self.drawn()
        return torch.lerp(self.embeddings[draw.first], self.embeddings[draw.second], draw.amount)

    def prepared(self, embedding: Tensor) -> Tensor:
        """An embedding as a network takes it: without what all prompts share, and of size 1, shape ``[width]``."""
        return (embedding.to(self.centre) - self.centre) / self.spread

    def refresh(
        self,
        grid: OccGridEstimator,
        density: Callable[[Tensor], Tensor],
        step_size: float,
        generator: torch.Generator,
        threshold: float,
    ) -> None:
        """Make an occupancy grid that of the last draw; arguments as for ``update_occupancy``."""
        draw = self.drawn()
        if not len(self.occupied):
            self.occupied = self.occupied.new_zeros(len(self.embeddings), self.occupied.shape[1])
        if draw.amount:  # what lies between two prompts is drawn once
            grid.occs.zero_()
        else:
            grid.occs.copy_(decoded(self.occupied[draw.first]))
        update_occupancy(grid, density, step_size, generator, threshold)
        if not draw.amount:
            self.occupied[draw.first] = encoded(grid.occs)
