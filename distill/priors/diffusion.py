"""Text-to-image models of diffusers as priors: in latent space, in pixel space, and in patches of pixels."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from distill.contracts import Embedding
from distill.priors.control import CONTROL, ControlNet
from distill.priors.families import Family
from distill.priors.lora import Lora
from distill.priors.predictions import to_noise
from distill.priors.schedule import Schedule
from distill.priors.source import Source


def shrink(vae: Any, network: Any) -> int:
    """How many pixels along each side one place of the network's input stands for."""
    if vae is None:
        return int((network.config.in_channels // 3) ** 0.5)
    widths = vae.config.get("block_out_channels") or vae.config.encoder_block_out_channels
    return int(2 ** (len(widths) - 1))


@dataclass(frozen=True)
class DiffusionPrior:
    """A frozen text-to-image model.

    With a VAE it works on latents. Without one it works on pixels in [-1, 1], folded into patches (pixel unshuffle)
    where the network takes 3 p^2 channels.

    Attributes:
        network: predicts.
        vae: picture to latent, or None.
        text: prompts to named tensors, the batch first.
        family: how the network is called.
        schedule: signal and noise at each timestep.
        image_size: height and width in pixels that pictures are resized to.
        device: where the network lies.
        dtype: what it computes in.
        source: where it is from.
        loras: the user's LoRA files that its weights hold.
        control: a ControlNet beside the network, or None.
    """

    network: Any
    vae: Any
    text: Callable[[Sequence[str]], Embedding]
    family: Family
    schedule: Schedule
    image_size: int
    device: torch.device
    dtype: torch.dtype
    source: Source
    loras: Sequence[Lora] = ()
    control: ControlNet | None = None

    @property
    def name(self) -> str:
        """What it was asked for by."""
        return self.source.name

    @property
    def num_timesteps(self) -> int:
        return len(self.schedule)

    @property
    def patch(self) -> int:
        """Side of the pixel patches a pixel-space network works on; 1 is plain pixels."""
        return math.isqrt(self.network.config.in_channels // 3)

    @property
    def latent_size(self) -> int:
        """Height and width of what the network is shown."""
        return self.image_size // shrink(self.vae, self.network)

    def embed(self, prompts: list[str]) -> Embedding:
        """Encode prompts, as the pipeline of diffusers does; the empty one is what it takes for none."""
        return {name: value.to(self.device) for name, value in self.text(prompts).items()}

    def encode(self, image: Tensor) -> Tensor:
        """Map pictures in [0, 1], ``[batch, 3, h, w]``, to latents or patches, resized to ``image_size``."""
        if image.shape[-2:] != (self.image_size, self.image_size):
            image = nn.functional.interpolate(image, (self.image_size,) * 2, mode="bilinear", antialias=True)
        image = image * 2 - 1
        if self.vae is None:
            return nn.functional.pixel_unshuffle(image, self.patch)
        found = self.vae.encode(image.to(self.vae.dtype))
        latent = (found.latent_dist.mode() if hasattr(found, "latent_dist") else found.latent).float()
        mean, scale = self._latent_scale(latent)
        return (latent - mean) * scale

    @torch.no_grad()
    def show(self, pictures: Tensor) -> Tensor:
        """What the ControlNet is shown of pictures in [0, 1], ``[batch, 3, image_size, image_size]``: them, or latents.

        Raises:
            ValueError: there is no ControlNet.
        """
        if self.control is None:
            raise ValueError("this prior has no ControlNet to show a picture to; load it with controlnet=")
        return self.control.kind.show(self.control.network, self, pictures)

    def to_image(self, x: Tensor) -> Tensor:
        """Undo ``encode``, differentiably and without clipping; only a pixel-space prior undoes it exactly."""
        if self.vae is None:
            image = nn.functional.pixel_shuffle(x, self.patch)
        else:
            mean, scale = self._latent_scale(x)
            image = self.vae.decode((x / scale + mean).to(self.vae.dtype)).sample.float()
        return image / 2 + 0.5

    def _latent_scale(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """What is taken from latents, and what they are then multiplied by; some VAEs say so channel by channel."""
        config = self.vae.config
        mean, std = config.get("latents_mean"), config.get("latents_std")
        scale = torch.tensor(config.scaling_factor).to(x)
        if mean is not None and std is not None:
            return torch.tensor(mean).to(x).view(-1, 1, 1), scale / torch.tensor(std).to(x).view(-1, 1, 1)
        return torch.tensor(config.get("shift_factor") or 0.0).to(x), scale

    @torch.no_grad()
    def decode(self, x: Tensor) -> Tensor:
        """Map back to pictures in [0, 1], clipped."""
        return self.to_image(x).clamp(0, 1)

    def alpha(self, t: Tensor) -> Tensor:
        return self.schedule.alpha[t][:, None, None, None]

    def sigma(self, t: Tensor) -> Tensor:
        return self.schedule.sigma[t][:, None, None, None]

    @torch.no_grad()
    def predict_noise(self, x_t: Tensor, t: Tensor, cond: Embedding) -> Tensor:
        """Predict the noise in ``x_t``, float32, same shape."""
        return self.forward(x_t, t, cond)

    def forward(self, x_t: Tensor, t: Tensor, cond: Embedding) -> Tensor:
        """``predict_noise`` with gradient, for what is trained inside the network."""
        output = self.predict(x_t, t, cond)
        return to_noise(self.schedule.prediction, output, x_t, self.alpha(t), self.sigma(t))

    def predict(self, x_t: Tensor, t: Tensor, cond: Embedding) -> Tensor:
        """The network's own kind of prediction, float32, same shape as ``x_t``."""
        sample = x_t.to(self.dtype)
        if sample.shape[1] > 1 and self.family.component == "unet":
            sample = sample.contiguous(memory_format=torch.channels_last)
        told = {
            name: value.to(self.dtype) if value.is_floating_point() else value for name, value in cond.items()
        }
        shown, time = told.pop(CONTROL, None), self.schedule.time[t]
        if self.control is not None and shown is not None:
            told = self.control.beside(self.network, sample, time, told, shown)
        elif self.control is not None or shown is not None:
            has = (
                "a ControlNet, and the embedding no" if self.control else "no ControlNet, and the embedding a"
            )
            raise ValueError(
                f"this prior has {has} picture for it, under {CONTROL!r}; see distill.conditions.control.with_control"
            )
        output = self.family.predict(self.network, sample, time, told).float()
        return output[:, : x_t.shape[1]]  # networks with a learnt variance append it
