"""The space that a diffusion network works in: pictures to latents or to patches of pixels, and back."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from distill.transfer import send

if TYPE_CHECKING:
    from diffusers import AutoencoderKL


def downsampling(vae: AutoencoderKL, in_channels: int) -> int:
    """Spatial downsampling factor from pictures to what a network works on.

    Args:
        vae: of diffusers, or None for a network that works on pixels.
        in_channels: of that network: three times the square of the side of its pixel patches.
    """
    if vae is None:
        return math.isqrt(in_channels // 3)
    widths = vae.config.get("block_out_channels") or vae.config.encoder_block_out_channels
    return int(2 ** (len(widths) - 1))


@dataclass(frozen=True)
class Space:
    """A map between pictures in [0, 1] and the network's space.

    With a VAE these are its scaled latents. Without one they are pixels, folded into patches (pixel unshuffle) where
    ``factor`` is larger than 1.

    Attributes:
        image_size: height and width in pixels that pictures are resized to.
        channels: of what the network works on.
        factor: spatial downsampling factor.
        vae: of diffusers, or None.
        signed: whether pictures are mapped to [-1, 1] first, as nearly all models do.
        sampled: encode to a sample of the VAE's distribution instead of its mode, with noise that follows from the picture, so
            that encoding stays deterministic.
    """

    image_size: int
    channels: int
    factor: int = 1
    vae: AutoencoderKL = None
    signed: bool = True
    sampled: bool = False

    @classmethod
    def of(cls, vae: AutoencoderKL, in_channels: int, image_size: int) -> Space:
        """The space of a network with ``in_channels`` input channels, and of its VAE if it has one."""
        factor = downsampling(vae, in_channels)
        channels = 3 * factor**2 if vae is None else int(vae.config.latent_channels)
        return cls(image_size, channels, factor, vae)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of one encoded picture."""
        side = self.image_size // self.factor
        return self.channels, side, side

    @property
    def latent(self) -> bool:
        """True if a VAE encodes the pictures."""
        return self.vae is not None

    def encode(
        self, image: Tensor, *, generator: torch.Generator | None = None, scaled: bool = True
    ) -> Tensor:
        """Encode pictures differentiably; those of another size are resized (bilinear, antialiased).

        Args:
            image: in [0, 1], shape ``[batch, 3, height, width]``.
            generator: samples from the VAE's distribution, one normal number per latent value in float32 on the
                generator's device, so that a seed gives the same sample everywhere; None takes the mode.
            scaled: False leaves latents as the VAE gives them, neither shifted nor scaled.

        Returns:
            Shape ``[batch, *self.shape]``; float32 with a VAE.

        Raises:
            ValueError: they are no such pictures.
        """
        colours = 3 if self.latent else self.channels // self.factor**2
        if image.ndim != 4 or image.shape[1] != colours or not image.is_floating_point():
            raise ValueError(
                f"pictures must be of shape [batch, {colours}, height, width] with numbers in [0, 1], got {list(image.shape)} of {image.dtype}"
            )
        size = (self.image_size, self.image_size)
        if image.shape[-2:] != size:
            image = nn.functional.interpolate(image, size, mode="bilinear", antialias=True)
        image = image * 2 - 1 if self.signed else image
        if self.vae is None:
            return nn.functional.pixel_unshuffle(image, self.factor)
        generators = [generator] if generator else _generators(image) if self.sampled else []

        def encoded(image: Tensor) -> Tensor:
            return _chosen(self.vae.encode(image.to(self.vae.dtype)), generators).float()

        latent = self._through(encoded, image)
        if not scaled:
            return latent
        mean, scale = self._scale(latent)
        return (latent - mean) * scale

    def decode(self, x: Tensor) -> Tensor:
        """Undo ``encode`` except for the resizing, differentiably and without clipping.

        A VAE undoes it only approximately.

        Args:
            x: shape ``[batch, *self.shape]``.

        Returns:
            Pictures, in [0, 1] up to overshoot, shape ``[batch, 3, image_size, image_size]``.
        """
        if self.vae is None:
            image = nn.functional.pixel_shuffle(x, self.factor)
        else:
            mean, scale = self._scale(x)
            image = self._through(
                lambda z: self.vae.decode(z.to(self.vae.dtype)).sample.float(), x / scale + mean
            )
        return image / 2 + 0.5 if self.signed else image

    def _through(self, half: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """Apply one half of the VAE, whose way back keeps small gradients in float16, too."""
        return enlarged(half, x) if self.vae.dtype == torch.float16 else half(x)

    def _scale(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The mean subtracted from latents and the scale they are then multiplied by; per channel for some VAEs.

        Single numbers stay on the CPU: there they are arguments of a kernel, and copying them would wait for the device.
        """
        config = self.vae.config
        mean, std = config.get("latents_mean"), config.get("latents_std")
        scale = torch.tensor(config.scaling_factor, dtype=x.dtype)
        if mean is not None and std is not None:
            means, spreads = send(torch.tensor([mean, std], dtype=x.dtype), x.device).view(2, -1, 1, 1)
            return means, scale / spreads
        return torch.tensor(config.get("shift_factor") or 0.0, dtype=x.dtype), scale


def enlarged(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Apply a function whose way back is in float16, where the gradient is brought to about 1 before and back to its size after.

    What is below 6e-8 would be 0 there, and loses digits below 6e-5: a loss that is a mean over pixels is.

    Args:
        function: of ``x``; computes in float16 inside, and takes and gives float32.
        x: what it is applied to.
    """
    factor: list[Tensor] = []

    def enlarge(gradient: Tensor) -> Tensor:
        # A power of two changes no digits; where the gradient is 0 or not finite, it stays.
        exponent = -torch.log2(gradient.abs().amax()).round()
        factor[:] = [torch.exp2(torch.where(exponent.isfinite(), exponent.clamp(-126, 126), 0))]
        return gradient * factor[0]

    if not (torch.is_grad_enabled() and x.requires_grad):
        return function(x)
    x = x.view_as(x)
    x.register_hook(lambda gradient: gradient / factor[0])
    y = function(x)
    y.register_hook(enlarge)
    return y


def _generators(image: Tensor) -> list[torch.Generator]:
    """One generator for each picture, seeded by the sum of its values in millionths."""
    seeds = image.detach().flatten(1).double().mul(1e6).long().sum(1) % 2**31
    return [torch.Generator().manual_seed(seed) for seed in seeds.tolist()]


def _chosen(found: Any, generators: Sequence[torch.Generator]) -> Tensor:
    """The mode or a sample of what a VAE's encoder returns; a deterministic encoder has only one latent.

    With several generators, each picture has its own.
    """
    if not hasattr(found, "latent_dist"):
        latent: Tensor = found.latent
        return latent
    spread = found.latent_dist
    if not generators:
        mode: Tensor = spread.mode()
        return mode
    size = (len(spread.mean) // len(generators), *spread.mean.shape[1:])
    noise = torch.cat([torch.randn(size, generator=g, device=g.device) for g in generators])
    sample: Tensor = spread.mean + spread.std * noise.to(spread.mean)
    return sample
