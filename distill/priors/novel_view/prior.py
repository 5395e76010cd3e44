"""A novel-view model as a prior: what a picture's object looks like from a camera, for any loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from distill.cameras import Cameras
from distill.contracts import Embedding
from distill.priors.graphs import Graphs, graphs_for
from distill.priors.novel_view.model import NovelView
from distill.priors.novel_view.pipeline import Given, NovelViewPipeline
from distill.priors.novel_view.pose import relative_cameras
from distill.priors.predictions import to_noise
from distill.priors.source import Source

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel


@dataclass(frozen=True)
class NovelViewPrior:
    """A prior conditioned on a picture and on each view's camera, whatever the prompt says.

    Attributes:
        pipeline: the model.
        given: the input picture, encoded once.
        reference: the camera that took it, a batch of one.
        name: the name or path that the model was loaded by.
        graphs: CUDA graphs of its predictions, or None to launch their kernels one by one.
        source: where the model is from; None for what its pipeline says.
    """

    pipeline: NovelViewPipeline
    given: Given
    reference: Cameras
    name: str = "novel_view"
    graphs: Graphs | None = None
    source: Source | None = None

    views, words, has_control = 1, False, False
    #: Name of the UNet's module that embeds the timestep.
    clock = "time_embedding"

    @classmethod
    def of(
        cls,
        pipeline: NovelViewPipeline,
        rgb: Tensor,
        reference: Cameras,
        name: str = "novel_view",
        *,
        graphs: bool | None = None,
        source: Source | None = None,
    ) -> NovelViewPrior:
        """Look at a picture in [0, 1], over white, shape ``[3, h, w]``; for ``graphs`` see ``distill.load_prior``.

        Raises:
            ValueError: graphs are asked for on another device than CUDA.
        """
        recorded = graphs_for(pipeline.model, pipeline.device, graphs)
        return cls(pipeline, pipeline.look(rgb), reference, name, recorded, source)

    @property
    def device(self) -> torch.device:
        return self.pipeline.device

    @property
    def image_size(self) -> int:
        return self.pipeline.size

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of one encoded picture."""
        return self.pipeline.space.shape

    @property
    def latent(self) -> bool:
        """True for a latent diffusion model."""
        return self.pipeline.space.latent

    @property
    def num_timesteps(self) -> int:
        return len(self.pipeline.scheduler.alphas_cumprod)

    @property
    def trainable(self) -> NovelViewPrior:
        """The prior itself, see ``distill.contracts.Trainable``."""
        return self

    @property
    def network(self) -> UNet2DConditionModel:
        """The UNet; what conditions it takes no adapters."""
        return self.pipeline.model.unet

    def describe(self) -> dict[str, Any]:
        """Describe the weights for a manifest: ``prior``, ``loras`` and ``controlnet``."""
        folder = self.pipeline.folder
        source = self.source or (Source(folder, self.name) if folder else None)
        prior = source.describe() if source else {"name": self.name, "sha256": {}}
        return {"prior": prior, "loras": [], "controlnet": None}

    def embed(self, prompts: Sequence[str]) -> Embedding:
        """Embed prompts as ``keep``, shape ``[batch]``: 0 drops the picture (the empty prompt), 1 keeps it (any other).

        The words themselves have no effect.
        """
        keep = [float(bool(prompt)) for prompt in prompts]
        return {"keep": torch.tensor(keep, device=self.device)}

    def _pose(self, cameras: Cameras) -> Tensor:
        """Poses of cameras relative to the picture's, shape ``[batch, 4]``."""
        reference, device = self.reference.to(self.device), self.device
        return relative_cameras(reference, cameras.to(device), self.pipeline.fourth)

    def encode(self, image: Tensor) -> Tensor:
        """Map pictures in [0, 1], ``[batch, 3, h, w]``, to ``[batch, *shape]``."""
        return self.pipeline.space.encode(image)

    def decode(self, x: Tensor) -> Tensor:
        """Undo ``encode``, differentiably and without clipping."""
        return self.pipeline.space.decode(x)

    def show(self, pictures: Tensor) -> Tensor:
        """Refuse: there is no ControlNet.

        Raises:
            ValueError: always.
        """
        raise ValueError("a novel-view prior has no ControlNet to show a picture to")

    def alpha(self, t: Tensor) -> Tensor:
        return self._abar(t).sqrt()

    def sigma(self, t: Tensor) -> Tensor:
        return (1 - self._abar(t)).sqrt()

    def _abar(self, t: Tensor) -> Tensor:
        return self._schedule.to(t.device)[t][:, None, None, None]

    @cached_property
    def _schedule(self) -> Tensor:
        """The scheduler's, which lies on the CPU, once on the device."""
        return self.pipeline.scheduler.alphas_cumprod.to(self.device)

    @torch.no_grad()
    def predict_noise(
        self, x_t: Tensor, t: Tensor, cond: Embedding, cameras: Cameras | None = None
    ) -> Tensor:
        """Predict the noise in ``x_t``, same shape; the picture is dropped where ``keep`` is 0.

        Args:
            x_t: noised views, shape ``[batch, channel, height, width]``.
            t: integer timesteps, shape ``[batch]``.
            cond: of ``embed``.
            cameras: of the views, as many.

        Raises:
            ValueError: there are no cameras.
        """
        told = self._told(cond, cameras)
        if self.graphs is not None:
            return self.graphs.predict(self._recorded, x_t, t, told)
        return self.under(x_t, t, told)

    def forward(self, x_t: Tensor, t: Tensor, cond: Embedding, cameras: Cameras | None = None) -> Tensor:
        """Predict the noise as ``predict_noise`` does, with gradient to the network's parameters."""
        return self.under(x_t, t, self._told(cond, cameras))

    def _told(self, cond: Embedding, cameras: Cameras | None) -> Embedding:
        if cameras is None:
            raise ValueError(
                "a novel-view prior needs the cameras of the pictures it denoises; pass cameras="
            )
        return {"keep": cond["keep"], "pose": self._pose(cameras)}

    @cached_property
    def _recorded(self) -> _Recorded:
        return _Recorded(self)

    def under(self, x_t: Tensor, t: Tensor, cond: Embedding) -> Tensor:
        """Predict the noise under ``keep`` and ``pose``, ``[batch, 4]``, of each view."""
        latent, features = self.given.repeated(len(x_t))
        output = self.pipeline.model(
            x_t, t, latent, features, cond["pose"], cond["keep"], cond["keep"]
        ).float()
        kind = self.pipeline.scheduler.config.prediction_type
        return to_noise(kind, output, x_t, self.alpha(t), self.sigma(t))


@dataclass(frozen=True)
class _Recorded:
    """What ``distill.priors.graphs`` records: predictions under poses, by the whole model."""

    prior: NovelViewPrior

    @property
    def network(self) -> NovelView:
        return self.prior.pipeline.model

    def forward(self, x_t: Tensor, t: Tensor, cond: Embedding) -> Tensor:
        return self.prior.under(x_t, t, cond)
