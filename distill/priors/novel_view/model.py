"""A UNet that draws an object from another side, told by one picture and a pose."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from distill.priors.novel_view.code import Turn, TurnOptions
from distill.priors.novel_view.features import Features

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel

#: Probability of each of the three ways to drop the condition: the token, the latent, both (p of Zero-1-to-3).
DROPOUT = 0.05


class PoseToken(nn.Module):
    """The picture's token and the pose as the one token that the UNet attends to.

    Args:
        width: of the image token.
        out: of the UNet's cross-attention.
        norm: normalise the image token first (Efficient-3DiM); Zero-1-to-3 does not.

    Source: Liu et al. 2023 (Zero-1-to-3), arXiv:2303.11328: starts as the image token itself where widths agree.
    """

    def __init__(self, width: int, out: int, *, norm: bool) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width) if norm else nn.Identity()
        self.projection = nn.Linear(width + 4, out)
        with torch.no_grad():
            if width == out:
                self.projection.weight[:, :width] = torch.eye(out)
            self.projection.bias.zero_()

    def forward(self, token: Tensor, pose: Tensor) -> Tensor:
        """Shapes ``[batch, width]`` and ``[batch, 4]`` to ``[batch, 1, out]``."""
        joined = torch.cat([self.norm(token), pose.to(token)], dim=-1)
        result: Tensor = self.projection(joined)
        return result[:, None]


class Amalgamation(nn.Module):
    """Maps from several depths of an encoder, added to the UNet's down blocks; starts as nothing.

    Args:
        width: of the maps side by side.
        grid: patches along each side.
        channels: of each down block.
        sizes: height and width of each down block's output where the maps are added, see ``where_added``.

    Source: Jiang et al. 2023 (Efficient-3DiM), arXiv:2310.03015. Differs: the paper does not say how maps are
    normalised, projected and resized; see the shapes below.
    """

    def __init__(self, width: int, grid: int, channels: Sequence[int], sizes: Sequence[int]) -> None:
        super().__init__()
        self.grid, self.channels, self.sizes = grid, tuple(channels), tuple(sizes)
        self.norm = nn.LayerNorm(width)
        self.projection = nn.Linear(width, sum(channels))
        nn.init.zeros_(self.projection.weight)
        nn.init.zeros_(self.projection.bias)

    def forward(self, maps: Tensor) -> list[Tensor]:
        """Shape ``[batch, patches, width]`` to one ``[batch, channels, size, size]`` for each down block.

        Raises:
            ValueError: there are not ``grid * grid`` patches.
        """
        if maps.shape[1] != self.grid**2:
            raise ValueError(
                f"expected maps of {self.grid} x {self.grid} patches, got {maps.shape[1]} patches"
            )
        drawn = self.projection(self.norm(maps)).movedim(1, 2).unflatten(2, (self.grid, self.grid))
        parts = drawn.split(self.channels, dim=1)
        return [_resized(part, size) for part, size in zip(parts, self.sizes, strict=True)]


def _resized(maps: Tensor, size: int) -> Tensor:
    if size == maps.shape[-1]:
        return maps
    if size > maps.shape[-1]:
        return nn.functional.interpolate(maps, (size, size), mode="bilinear", align_corners=False)
    return nn.functional.interpolate(maps, (size, size), mode="area")


class NovelView(nn.Module):
    """The UNet with what conditions it, in one module, as one optimiser and one checkpoint want it.

    Args:
        unet: of diffusers, with twice the latent's channels, the noised target beside the condition, and three more
            where there is a draft.
        token: makes the token, or None where ``turn`` makes tokens.
        amalgamation: makes what is added to the down blocks, or None.
        turn: a rotated code with what tells the UNet of it, or None.
    """

    def __init__(
        self,
        unet: UNet2DConditionModel,
        token: PoseToken | None,
        amalgamation: Amalgamation | None = None,
        turn: Turn | None = None,
    ) -> None:
        super().__init__()
        self.unet, self.token, self.amalgamation, self.turn = unet, token, amalgamation, turn

    def forward(
        self,
        x_t: Tensor,
        t: Tensor,
        latent: Tensor,
        features: Features,
        pose: Tensor,
        keep_token: Tensor | None = None,
        keep_latent: Tensor | None = None,
    ) -> Tensor:
        """Predict, in the UNet's own kind of prediction.

        Args:
            x_t: noised target, shape ``[batch, channel, height, width]``.
            t: timesteps, shape ``[batch]``.
            latent: the condition in the same space, same shape.
            features: of the condition.
            pose: of the target relative to it, shape ``[batch, 4]``.
            keep_token: 0 where the token is dropped, shape ``[batch]``; after its projection, as at sampling. All
                that a rotated code tells, tokens, time embedding and draft, goes with it.
            keep_latent: 0 where the latent and the maps are dropped, shape ``[batch]``.

        Returns:
            Same shape as ``x_t``.
        """
        told = self.turn(features.maps, pose) if self.turn is not None else None
        tokens = told.tokens if told is not None else None
        if tokens is None:
            assert self.token is not None
            tokens = self.token(features.token, pose)
        if keep_latent is not None:
            latent = latent * keep_latent[:, None, None, None].to(latent)
        added = self._added(features.maps, keep_latent)
        dtype = next(self.unet.parameters()).dtype
        parts, film = [x_t, latent.to(x_t)], None
        if told is not None and told.draft is not None:
            parts.append(_fitted(_kept(told.draft, keep_token), x_t.shape[-1]).to(x_t))
        if told is not None and told.film is not None:
            film = _kept(told.film, keep_token).to(dtype)
        result: Tensor = self.unet(
            torch.cat(parts, dim=1).to(dtype),
            t,
            encoder_hidden_states=_kept(tokens, keep_token).to(dtype),
            class_labels=film,
            down_intrablock_additional_residuals=added,
        ).sample
        return result.to(x_t.dtype)

    def _added(self, maps: Tensor, keep: Tensor | None) -> list[Tensor] | None:
        if self.amalgamation is None:
            return None
        added = self.amalgamation(maps)
        if keep is not None:
            added = [part * keep[:, None, None, None].to(part) for part in added]
        dtype = next(self.unet.parameters()).dtype
        # A new list at each call: the UNet takes from it, and a tuple it cannot.
        return [part.to(dtype) for part in added]


def _kept(value: Tensor, keep: Tensor | None) -> Tensor:
    return value if keep is None else value * keep.view(-1, *[1] * (value.ndim - 1)).to(value)


def _fitted(picture: Tensor, size: int) -> Tensor:
    if size == picture.shape[-1]:
        return picture
    return nn.functional.interpolate(picture, (size, size), mode="bilinear", align_corners=False)


def build(
    unet: UNet2DConditionModel,
    *,
    token_width: int,
    map_width: int = 0,
    grid: int = 0,
    norm: bool = True,
    turn: TurnOptions | None = None,
    layer_widths: Sequence[int] = (),
) -> NovelView:
    """Put conditioning on a UNet; ``map_width`` 0 leaves the amalgamation out (Zero-1-to-3).

    Args:
        unet: of diffusers, its input already widened (``widen``).
        token_width: of the encoder's token.
        map_width: of the encoder's maps side by side.
        grid: of the maps, patches along each side.
        norm: normalise the token.
        turn: what is made of a rotated code, or None for none.
        layer_widths: of each layer of the maps, which a rotated code reads.

    Raises:
        ValueError: the UNet's input has not the channels that the conditioning needs, the UNet has classes where the
            code wants the time embedding, or there are no maps to make a code of.
    """
    config = unet.config
    expected = 2 * config.out_channels + (3 if turn is not None and turn.draft else 0)
    if config.in_channels != expected:
        what = (
            "the target, the condition and the draft"
            if turn and turn.draft
            else "the target beside the condition"
        )
        raise ValueError(
            f"expected a UNet with {expected} input channels ({what}), got {config.in_channels}; widen it first"
        )
    cross = config.cross_attention_dim
    cross = cross if isinstance(cross, int) else cross[0]
    amalgamation = None
    if map_width:
        amalgamation = Amalgamation(map_width, grid, config.block_out_channels, where_added(config))
    told = None
    if turn is not None:
        if not (layer_widths and grid):
            raise ValueError("a rotated code reads the encoder's maps: give the encoder some layers")
        if turn.film:
            _take_class_embedding(unet)
        told = Turn(layer_widths, grid, cross, unet.time_embedding.linear_2.out_features, turn)
    has_tokens = turn is not None and turn.tokens > 0
    token = None if has_tokens else PoseToken(token_width, cross, norm=norm)
    return NovelView(unet, token, amalgamation, told)


def _take_class_embedding(unet: UNet2DConditionModel) -> None:
    """Let the UNet add what it is given in place of classes to its time embedding, as it is."""
    if unet.config.class_embed_type == "identity":
        return
    if unet.class_embedding is not None:
        raise ValueError(
            "the UNet has classes of its own, so a code cannot be added to its time embedding; choose film=false"
        )
    unet.class_embedding = nn.Identity()
    unet.register_to_config(class_embed_type="identity")


def where_added(config: Any) -> list[int]:
    """Height and width at which diffusers adds maps to each down block.

    In blocks with cross-attention before they halve, in others after; the last block halves nothing.
    """
    kinds = config.down_block_types
    halved = ["CrossAttn" not in kind and i < len(kinds) - 1 for i, kind in enumerate(kinds)]
    return [config.sample_size >> (i + after) for i, after in enumerate(halved)]


@torch.no_grad()
def widen(unet: UNet2DConditionModel, draft: bool = False) -> Any:
    """Give a UNet's input the channels that it lacks; they start at 0, so nothing changes yet.

    Args:
        unet: a text-to-image one, or one that is widened already, for a draft to be added.
        draft: three more for a draft.
    """
    old = unet.conv_in
    new = nn.Conv2d(
        2 * unet.config.out_channels + 3 * draft,
        old.out_channels,
        old.kernel_size,
        old.stride,
        old.padding,
        bias=old.bias is not None,
    ).to(old.weight)
    new.weight.zero_()
    new.weight[:, : old.in_channels] = old.weight
    if old.bias is not None:
        assert new.bias is not None
        new.bias.copy_(old.bias)
    unet.conv_in = new
    # Without this the saved folder could not be loaded again.
    unet.register_to_config(in_channels=new.in_channels)
    return unet


def draw_dropout(batch: int, generator: torch.Generator, share: float = DROPOUT) -> tuple[Tensor, Tensor]:
    """Draw which samples keep their token and their latent, each of shape ``[batch]``.

    One number u in [0, 1) decides both, as in Zero-1-to-3: the token goes where u < 2 p, the latent where
    p <= u < 3 p; so each way of dropping, the token alone, both, the latent alone, has probability p.
    """
    u = torch.rand(batch, generator=generator)
    return u >= 2 * share, (u < share) | (u >= 3 * share)
