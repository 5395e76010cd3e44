"""A picture's object as a code that turns with the camera, and what a UNet is told of it.

The patch maps of a picture are encoded into pairs of numbers, and pair k is rotated in its plane by f_k times the
turn about the vertical axis, so that which way the object faces and how far to turn it compose by a product: a
linear layer over [token; pose] can only add the two. The encoder needs no labels; it is trained first, to draw the
target's thumbnail without any UNet (``distill.lab.novel_view.stages.code_stage``), and then conditions the UNet through tokens,
the time embedding and that thumbnail, each of which can be left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from distill.priors.novel_view.pose import differences

#: How many pairs turn f times as fast as the camera, f = 0, 1, 2, ...; those of f = 0 do not turn.
FREQUENCIES = (48, 40, 32, 16, 16, 8, 8)


@dataclass(frozen=True)
class TurnOptions:
    """Conditioning that is made of the code; all of it is saved with the weights.

    Attributes:
        tokens: that the UNet attends to, made of the code; 0 leaves the picture's one token (``PoseToken``).
        film: add a projection of the code to the UNet's time embedding.
        draft: height and width of the thumbnail that the code draws, three more channels of the UNet's input; 0
            leaves it out.
        patch_width: numbers that each patch is projected to.
        hidden: width of the code's layers.
        pairs: of numbers, for each frequency from 0.
    """

    tokens: int = 4
    film: bool = True
    draft: int = 16
    patch_width: int = 32
    hidden: int = 512
    pairs: tuple[int, ...] = FREQUENCIES

    def __post_init__(self) -> None:
        if min(self.tokens, self.draft) < 0 or not (self.tokens or self.film or self.draft):
            raise ValueError(
                f"a code needs at least one of tokens, film and draft, none of them negative, got {self.tokens}, "
                f"{self.film} and {self.draft}"
            )
        if min(self.patch_width, self.hidden, len(self.pairs), *self.pairs, sum(self.pairs)) < 0 or not (
            self.patch_width and self.hidden and sum(self.pairs)
        ):
            raise ValueError(
                f"patch_width, hidden and pairs must be positive, got {self.patch_width}, {self.hidden} and {self.pairs}"
            )


def rotate(pairs: Tensor, frequencies: Tensor, angle: Tensor) -> Tensor:
    r"""Rotate pair k by ``frequencies[k] * angle``.

    .. math:: (a_k, b_k) \mapsto (a_k \cos f_k\phi - b_k \sin f_k\phi,\; a_k \sin f_k\phi + b_k \cos f_k\phi)

    Args:
        pairs: shape ``[batch, pairs, 2]``.
        frequencies: whole numbers, so that a full turn changes nothing, shape ``[pairs]``.
        angle: radians, shape ``[batch]``.

    Returns:
        Same shape as ``pairs``.
    """
    turn = angle[:, None] * frequencies
    cos, sin = turn.cos(), turn.sin()
    a, b = pairs.unbind(-1)
    return torch.stack([a * cos - b * sin, a * sin + b * cos], dim=-1)


class RotatedCode(nn.Module):
    """Patch maps and a pose to a vector that says what the object looks like from there.

    Args:
        widths: of the maps' layers, which lie side by side.
        grid: patches along each side.
        options: its sizes.
    """

    frequencies: Tensor

    def __init__(self, widths: Sequence[int], grid: int, options: TurnOptions) -> None:
        super().__init__()
        self.widths, self.grid = tuple(widths), grid
        count, hidden = sum(options.pairs), options.hidden
        self.projection = nn.Linear(sum(widths), options.patch_width)
        self.encode = nn.Sequential(
            nn.Linear(grid**2 * options.patch_width, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(),
            nn.Linear(hidden, 2 * count),
        )  # fmt: skip
        self.mix = nn.Sequential(
            nn.Linear(2 * count + 2, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU()
        )
        numbers = torch.arange(len(options.pairs)).repeat_interleave(torch.tensor(options.pairs))
        self.register_buffer("frequencies", numbers.float(), persistent=False)

    def pairs_of(self, maps: Tensor) -> Tensor:
        """Encode patch maps ``[batch, patches, width]`` into pairs ``[batch, pairs, 2]``, not yet rotated.

        Raises:
            ValueError: there are not ``grid * grid`` patches.
        """
        if maps.shape[1] != self.grid**2:
            raise ValueError(
                f"expected maps of {self.grid} x {self.grid} patches, got {maps.shape[1]} patches"
            )
        layers = maps.to(self.projection.weight.dtype).split(self.widths, dim=-1)
        even = torch.cat([nn.functional.layer_norm(layer, layer.shape[-1:]) for layer in layers], dim=-1)
        encoded: Tensor = self.encode(self.projection(even).flatten(1))
        return encoded.unflatten(1, (-1, 2))

    def forward(self, maps: Tensor, pose: Tensor) -> Tensor:
        """Shapes ``[batch, patches, width]`` and ``[batch, 4]`` to ``[batch, hidden]``; in single precision."""
        # A frozen code that is rounded otherwise than it was trained draws another thumbnail.
        with torch.autocast(maps.device.type, enabled=False):
            polar, turn, last = differences(pose.to(self.projection.weight.dtype))
            turned = rotate(self.pairs_of(maps), self.frequencies, turn).flatten(1)
            joined = torch.cat([turned, 2 * polar[:, None], 3 * last[:, None]], dim=1)
            result: Tensor = self.mix(joined)
        return result


class Draft(nn.Module):
    """A thumbnail of the target in [-1, 1], drawn from the code.

    Args:
        width: of the code.
        size: height and width of the thumbnail.
    """

    mean: Tensor

    def __init__(self, width: int, size: int) -> None:
        super().__init__()
        self.size = size
        self.projection = nn.Linear(width, 3 * size**2)
        self.register_buffer("mean", torch.zeros(3, size, size))

    def forward(self, code: Tensor) -> Tensor:
        """Shape ``[batch, width]`` to ``[batch, 3, size, size]``."""
        with torch.autocast(code.device.type, enabled=False):
            drawn: Tensor = self.projection(code.to(self.projection.weight.dtype))
        return drawn.view(-1, 3, self.size, self.size) + self.mean


@dataclass(frozen=True)
class Told:
    """Conditioning of a UNet by the code; each may be None.

    Attributes:
        tokens: shape ``[batch, tokens, width]``.
        film: added to the time embedding, shape ``[batch, width]``.
        draft: shape ``[batch, 3, size, size]``.
    """

    tokens: Tensor | None
    film: Tensor | None
    draft: Tensor | None


class Turn(nn.Module):
    """A rotated code with what tells a UNet of it.

    Args:
        widths: of the maps' layers.
        grid: patches along each side.
        cross: width of the UNet's cross-attention.
        time: width of the UNet's time embedding.
        options: what is made of the code.
    """

    def __init__(self, widths: Sequence[int], grid: int, cross: int, time: int, options: TurnOptions) -> None:
        super().__init__()
        self.options = options
        hidden = options.hidden
        self.code = RotatedCode(widths, grid, options)
        self.draft = Draft(hidden, options.draft) if options.draft else None
        self.norm = nn.LayerNorm(hidden) if options.tokens or options.film else None
        self.tokens = nn.Linear(hidden, options.tokens * cross) if options.tokens else None
        self.film = nn.Linear(hidden, time) if options.film else None
        if self.film is not None:
            nn.init.zeros_(self.film.weight)
            nn.init.zeros_(self.film.bias)

    def forward(self, maps: Tensor, pose: Tensor) -> Told:
        """Shapes ``[batch, patches, width]`` and ``[batch, 4]``."""
        code = self.code(maps, pose)
        even = self.norm(code) if self.norm is not None else code
        tokens = None
        if self.tokens is not None:
            tokens = self.tokens(even).unflatten(1, (self.options.tokens, -1))
        film = self.film(even) if self.film is not None else None
        return Told(tokens, film, self.draft(code) if self.draft is not None else None)
