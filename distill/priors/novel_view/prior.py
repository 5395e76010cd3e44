"""A novel-view model as a prior: what a picture's object looks like from a camera, for any loss."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from distill.cameras import Cameras
from distill.contracts import Condition, Embedding
from distill.priors.novel_view.pipeline import Given, NovelViewPipeline
from distill.priors.novel_view.pose import relative_cameras
from distill.priors.predictions import to_noise


@dataclass(frozen=True)
class NovelViewPrior:
    """Follows the contract of ``distill.contracts.Prior``, but is told cameras where others are told prompts.

    Attributes:
        pipeline: the model.
        given: the input picture, encoded once.
        reference: the camera that took it, a batch of one.
        name: what it was asked for by.
    """

    pipeline: NovelViewPipeline
    given: Given
    reference: Cameras
    name: str = "novel_view"

    @classmethod
    def of(
        cls, pipeline: NovelViewPipeline, rgb: Tensor, reference: Cameras, name: str = "novel_view"
    ) -> NovelViewPrior:
        """Look at a picture in [0, 1], over white, shape ``[3, h, w]``."""
        return cls(pipeline, pipeline.look(rgb), reference, name)

    @property
    def device(self) -> torch.device:
        return self.pipeline.device

    @property
    def image_size(self) -> int:
        return self.pipeline.size

    @property
    def num_timesteps(self) -> int:
        return len(self.pipeline.scheduler.alphas_cumprod)

    def embed(self, prompts: list[str]) -> Embedding:
        """It knows no words.

        Raises:
            ValueError: always, with the remedy.
        """
        raise ValueError("a novel-view prior is told cameras, not prompts; give it condition(cameras)")

    def condition(self, cameras: Cameras) -> Condition:
        """What pictures from these cameras should show: the object as it is seen from there."""
        pose = relative_cameras(self.reference.to(self.device), cameras.to(self.device), self.pipeline.fourth)
        keep = torch.ones(len(pose), device=self.device)
        return Condition({"pose": pose, "keep": keep}, {"pose": pose, "keep": 0 * keep}, cameras=cameras)

    def encode(self, image: Tensor) -> Tensor:
        return self.pipeline.encode(image)

    def to_image(self, x: Tensor) -> Tensor:
        """Undo ``encode``, clipped to [0, 1]."""
        return self.pipeline.decode(x)

    def alpha(self, t: Tensor) -> Tensor:
        return self._abar(t).sqrt()

    def sigma(self, t: Tensor) -> Tensor:
        return (1 - self._abar(t)).sqrt()

    def _abar(self, t: Tensor) -> Tensor:
        return self.pipeline.scheduler.alphas_cumprod.to(t.device)[t][:, None, None, None]

    @torch.no_grad()
    def predict_noise(self, x_t: Tensor, t: Tensor, cond: Embedding) -> Tensor:
        """The noise in ``x_t``; the picture is kept from where ``keep`` is 0, for classifier-free guidance."""
        latent, features = self.given.repeated(len(x_t))
        output = self.pipeline.model(
            x_t, t, latent, features, cond["pose"], cond["keep"], cond["keep"]
        ).float()
        kind = self.pipeline.scheduler.config.prediction_type
        return to_noise(kind, output, x_t, self.alpha(t), self.sigma(t))
