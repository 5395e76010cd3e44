"""Text-to-image models of diffusers as priors: in latent space, in pixel space, and in patches of pixels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from distill.cameras import Cameras
from distill.contracts import Embedding
from distill.priors.control import CONTROL, ControlNet
from distill.priors.families import Family
from distill.priors.graphs import Graphs
from distill.priors.inversion import Inversion
from distill.priors.lora import Lora
from distill.priors.multi_view.attention import CAMERA, takes_cameras
from distill.priors.multi_view.camera import NUMBERS, check_rows, numbers
from distill.priors.multi_view.image_prompt import LATENT, TOKENS, ImagePrompt
from distill.priors.predictions import to_noise
from distill.priors.schedule import Schedule
from distill.priors.source import Source
from distill.priors.space import Space

if TYPE_CHECKING:
    from diffusers import ModelMixin


@dataclass(frozen=True)
class DiffusionPrior:
    """A frozen text-to-image model of diffusers, in latent or in pixel space.

    Attributes:
        network: predicts.
        space: maps pictures to what the network works on.
        text: prompts to named tensors, the batch first.
        family: how the network is called.
        schedule: signal and noise at each timestep.
        device: where the network lies.
        dtype: what it computes in.
        source: where it is from.
        loras: the user's LoRA files that its weights hold.
        control: a ControlNet beside the network, or None.
        graphs: CUDA graphs of its predictions, or None to launch their kernels one by one.
        vae: where another VAE than the prior's own is from, or None.
        inversions: the user's textual-inversion embeddings.
        views: of one object that its network takes together, with their cameras; 1 for single pictures.
        picture: makes of a picture what ImageDream's network is shown, or None.
    """

    network: ModelMixin
    space: Space
    text: Callable[[Sequence[str]], Embedding]
    family: Family
    schedule: Schedule
    device: torch.device
    dtype: torch.dtype
    source: Source
    loras: Sequence[Lora] = ()
    control: ControlNet | None = None
    graphs: Graphs | None = None
    vae: Source | None = None
    inversions: Sequence[Inversion] = ()
    views: int = 1
    picture: ImagePrompt | None = None

    words = True

    @property
    def name(self) -> str:
        """The name or path that it was loaded by."""
        return self.source.name

    @property
    def image_size(self) -> int:
        """Height and width in pixels that pictures are resized to."""
        return self.space.image_size

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of one encoded picture."""
        return self.space.shape

    @property
    def latent(self) -> bool:
        """True for a latent diffusion model."""
        return self.space.latent

    @property
    def num_timesteps(self) -> int:
        return len(self.schedule)

    @property
    def trainable(self) -> DiffusionPrior:
        """The prior itself, see ``distill.contracts.Trainable``."""
        return self

    @property
    def clock(self) -> str:
        """Name of the network's module that embeds the timestep."""
        return self.family.clock

    @property
    def has_control(self) -> bool:
        """True if a ControlNet is loaded."""
        return self.control is not None

    def describe(self) -> dict[str, Any]:
        """Describe the weights for a manifest: ``prior`` and what it predicts, and what is on it or beside it."""
        return {
            "prior": self.source.describe(),
            "prediction_type": self.schedule.prediction,
            "vae": self.vae.describe() if self.vae else None,
            "embeddings": [each.describe() for each in self.inversions],
            "loras": [lora.describe() for lora in self.loras],
            "controlnet": self.control.describe() if self.control else None,
        }

    def embed(self, prompts: list[str]) -> Embedding:
        """Encode prompts, as the pipeline of diffusers does; the empty one is what it takes for none.

        Raises:
            ValueError: there are none, or one text in the place of a list.
        """
        if isinstance(prompts, str) or not prompts:
            raise ValueError(f"prompts must be a list of one text or more, got {prompts!r}")
        return {name: value.to(self.device) for name, value in self.text(prompts).items()}

    def encode(self, image: Tensor) -> Tensor:
        """Map pictures in [0, 1], ``[batch, 3, h, w]``, to ``[batch, *shape]``, resized to ``image_size``."""
        return self.space.encode(image)

    def decode(self, x: Tensor) -> Tensor:
        """Undo ``encode``, differentiably and without clipping; only a pixel-space prior undoes it exactly."""
        return self.space.decode(x)

    @torch.no_grad()
    def show(self, pictures: Tensor) -> Tensor:
        """Prepare pictures in [0, 1], ``[batch, 3, image_size, image_size]``, for the ControlNet: as they are, or encoded.

        Raises:
            ValueError: there is no ControlNet.
        """
        if self.control is None:
            raise ValueError("this prior has no ControlNet to show a picture to; load it with controlnet=")
        return self.control.kind.show(self.control.network, self.space, pictures)

    @torch.no_grad()
    def look(self, rgb: Tensor) -> tuple[Embedding, Embedding]:
        """Encode pictures in [0, 1], ``[batch, 3, h, w]``, for ImageDream: what embeddings have of them, and what of no picture.

        Raises:
            ValueError: this prior is not shown pictures.
        """
        if self.picture is None:
            raise ValueError(f"{self.name} is conditioned on no picture; choose an ImageDream")
        rgb = rgb.to(self.device)
        given, none = ({TOKENS: tokens} for tokens in self.picture.tokens(rgb))
        if self.picture.pixel:
            given[LATENT] = self.encode(rgb)
            none[LATENT] = torch.zeros_like(given[LATENT])
        return given, none

    def alpha(self, t: Tensor) -> Tensor:
        return self.schedule.alpha[t][:, None, None, None]

    def sigma(self, t: Tensor) -> Tensor:
        return self.schedule.sigma[t][:, None, None, None]

    @torch.no_grad()
    def predict_noise(
        self, x_t: Tensor, t: Tensor, cond: Embedding, cameras: Cameras | None = None
    ) -> Tensor:
        """Predict the noise in ``x_t``, float32, same shape; the cameras are used by a multi-view prior alone.

        Raises:
            ValueError: a multi-view prior has not one camera a row, or the batch does not hold whole objects at one timestep each.
        """
        cond = self._told(x_t, t, cond, cameras)
        if self.graphs is not None:
            return self.graphs.predict(self, x_t, t, cond)
        return self.forward(x_t, t, cond)

    def forward(self, x_t: Tensor, t: Tensor, cond: Embedding, cameras: Cameras | None = None) -> Tensor:
        """Predict the noise as ``predict_noise`` does, with gradient to the network's parameters."""
        output = self.predict(x_t, t, self._told(x_t, t, cond, cameras))
        return to_noise(self.schedule.prediction, output, x_t, self.alpha(t), self.sigma(t))

    def _told(self, x_t: Tensor, t: Tensor, cond: Embedding, cameras: Cameras | None) -> Embedding:
        """An embedding with what a multi-view network is told of the cameras."""
        if self.views == 1 or CAMERA in cond:
            return cond
        cameras = check_rows(len(x_t), t, cameras, self.views, self.name)
        return {**cond, CAMERA: numbers(cameras).to(x_t.device)}

    def predict(self, x_t: Tensor, t: Tensor, cond: Embedding) -> Tensor:
        """The network's own kind of prediction, float32, same shape as ``x_t``."""
        sample = x_t.to(self.dtype)
        if sample.shape[1] > 1 and self.family.channels_last:
            sample = sample.contiguous(memory_format=torch.channels_last)
        told = {
            name: value.to(self.dtype) if value.is_floating_point() else value for name, value in cond.items()
        }
        if CAMERA not in told and takes_cameras(self.network.config):
            told[CAMERA] = sample.new_zeros(len(sample), NUMBERS)
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
