"""Text-conditioned UNets of diffusers as priors: latent, pixel-space and patched pixel-space."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from distill.contracts import Embedding
from distill.priors.predictions import to_noise


@dataclass(frozen=True)
class UNetPrior:
    """A frozen UNet with its text encoder and noise schedule.

    A folder with a VAE works on its latents. Without one it works on pixels in [-1, 1], folded into patches
    (pixel unshuffle) where the network takes 3 p^2 channels.

    Attributes:
        unet: predicts noise or velocity.
        vae: picture to latent, or None.
        tokenizer: text to tokens.
        text_encoder: tokens to embeddings.
        abar: cumulative signal level per timestep, float32, shape ``[num_timesteps]``.
        prediction: ``epsilon``, ``v_prediction`` or ``sample``.
        image_size: height and width in pixels that the network was trained on.
        device: where everything lies.
        dtype: what the network computes in.
        name: what it was asked for by.
    """

    unet: Any
    vae: Any
    tokenizer: Any
    text_encoder: Any
    abar: Tensor
    prediction: str
    image_size: int
    device: torch.device
    dtype: torch.dtype
    name: str = ""

    @classmethod
    def from_folder(cls, folder: Path, device: torch.device, dtype: torch.dtype, name: str = "") -> UNetPrior:
        """Load from a folder in the diffusers layout; safetensors only, nothing is fetched."""
        from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
        from transformers import CLIPTextModel, CLIPTokenizer
        from transformers.utils import logging

        logging.disable_progress_bar()
        options: dict[str, Any] = {
            "use_safetensors": True,
            "local_files_only": True,
            "low_cpu_mem_usage": False,
        }
        try:
            unet = UNet2DConditionModel.from_pretrained(
                folder, subfolder="unet", torch_dtype=dtype, **options
            )
            vae = None
            if (folder / "vae").is_dir():
                vae = AutoencoderKL.from_pretrained(folder, subfolder="vae", torch_dtype=dtype, **options)
            text_encoder = CLIPTextModel.from_pretrained(
                folder, subfolder="text_encoder", dtype=torch.float32, **options
            )
            tokenizer = CLIPTokenizer.from_pretrained(folder, subfolder="tokenizer", local_files_only=True)
            scheduler = DDIMScheduler.from_pretrained(folder, subfolder="scheduler")
        except (OSError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise ValueError(
                f"could not load the prior in {folder} (safetensors in the diffusers layout): {reason}"
            ) from error
        prediction = scheduler.config.prediction_type
        if prediction not in ("epsilon", "v_prediction", "sample"):
            raise ValueError(
                f"the prior in {folder} predicts {prediction!r}; epsilon, v_prediction and sample are supported"
            )
        for module in (unet, vae, text_encoder):
            if module is not None:
                module.to(device).eval().requires_grad_(False)
        if device.type == "cpu":
            unet.to(memory_format=torch.channels_last)
        patch = (
            math.isqrt(unet.config.in_channels // 3)
            if vae is None
            else 2 ** (len(vae.config.block_out_channels) - 1)
        )
        size = unet.config.sample_size * patch
        abar = scheduler.alphas_cumprod.to(device=device, dtype=torch.float32)
        return cls(unet, vae, tokenizer, text_encoder, abar, prediction, size, device, dtype, name)

    @property
    def num_timesteps(self) -> int:
        return len(self.abar)

    @property
    def patch(self) -> int:
        """Side of the pixel patches a pixel-space network works on; 1 is plain pixels."""
        return math.isqrt(self.unet.config.in_channels // 3)

    @torch.no_grad()
    def embed(self, prompts: list[str]) -> Embedding:
        """Encode prompts, shape ``[batch, tokens, width]`` under ``encoder_hidden_states``."""
        tokens = self.tokenizer(
            prompts,
            padding="max_length",
            max_length=self.tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        )
        hidden = self.text_encoder(tokens.input_ids.to(self.device)).last_hidden_state
        return {"encoder_hidden_states": hidden}

    def encode(self, image: Tensor) -> Tensor:
        """Map pictures in [0, 1], ``[batch, 3, h, w]``, to latents or patches, resized to ``image_size``."""
        if image.shape[-2:] != (self.image_size, self.image_size):
            image = nn.functional.interpolate(image, (self.image_size,) * 2, mode="bilinear", antialias=True)
        image = image * 2 - 1
        if self.vae is None:
            return nn.functional.pixel_unshuffle(image, self.patch)
        latent = self.vae.encode(image.to(self.dtype)).latent_dist.mode().float()
        return (latent - (self.vae.config.shift_factor or 0)) * self.vae.config.scaling_factor

    def to_image(self, x: Tensor) -> Tensor:
        """Undo ``encode``, differentiably and without clipping; only a pixel-space prior undoes it exactly."""
        if self.vae is None:
            image = nn.functional.pixel_shuffle(x, self.patch)
        else:
            latent = x / self.vae.config.scaling_factor + (self.vae.config.shift_factor or 0)
            image = self.vae.decode(latent.to(self.dtype)).sample.float()
        return image / 2 + 0.5

    @torch.no_grad()
    def decode(self, x: Tensor) -> Tensor:
        """Map back to pictures in [0, 1], clipped."""
        return self.to_image(x).clamp(0, 1)

    def alpha(self, t: Tensor) -> Tensor:
        return self.abar[t].sqrt()[:, None, None, None]

    def sigma(self, t: Tensor) -> Tensor:
        return (1 - self.abar[t]).sqrt()[:, None, None, None]

    @property
    def network(self) -> Any:
        """The module that predicts, for adapters."""
        return self.unet

    @torch.no_grad()
    def predict_noise(self, x_t: Tensor, t: Tensor, cond: Embedding) -> Tensor:
        """Predict the noise in ``x_t``, float32, same shape."""
        return self.forward(x_t, t, cond)

    def forward(self, x_t: Tensor, t: Tensor, cond: Embedding) -> Tensor:
        """``predict_noise`` with gradient, for what is trained inside the network."""
        sample = x_t.to(self.dtype)
        if self.device.type == "cpu":
            sample = sample.contiguous(memory_format=torch.channels_last)
        embedding = {name: value.to(self.dtype) for name, value in cond.items()}
        output = self.unet(sample, t, **embedding).sample.float()
        output = output[:, : x_t.shape[1]]  # networks with a learnt variance append it
        return to_noise(self.prediction, output, x_t, self.alpha(t), self.sigma(t))
