"""A prior that counts how many pictures its network is asked about."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from distill.cameras import Cameras
from distill.contracts import Embedding, Prior, Trainable


@dataclass
class Counted:
    """Another prior, with a count of the pictures that its network was given, in training too.

    Attributes:
        prior: the prior itself.
        calls: pictures so far.
    """

    prior: Prior
    calls: int = 0

    @property
    def name(self) -> str:
        return self.prior.name

    @property
    def device(self) -> torch.device:
        return self.prior.device

    @property
    def image_size(self) -> int:
        return self.prior.image_size

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.prior.shape

    @property
    def latent(self) -> bool:
        return self.prior.latent

    @property
    def words(self) -> bool:
        return self.prior.words

    @property
    def views(self) -> int:
        return self.prior.views

    @property
    def num_timesteps(self) -> int:
        return self.prior.num_timesteps

    @property
    def has_control(self) -> bool:
        return self.prior.has_control

    @property
    def trainable(self) -> Trainable | None:
        inner = self.prior.trainable
        return None if inner is None else _CountedNetwork(self, inner)

    def embed(self, prompts: list[str]) -> Embedding:
        return self.prior.embed(prompts)

    def encode(self, image: Tensor) -> Tensor:
        return self.prior.encode(image)

    def decode(self, x: Tensor) -> Tensor:
        return self.prior.decode(x)

    def show(self, pictures: Tensor) -> Tensor:
        return self.prior.show(pictures)

    def alpha(self, t: Tensor) -> Tensor:
        return self.prior.alpha(t)

    def sigma(self, t: Tensor) -> Tensor:
        return self.prior.sigma(t)

    def predict_noise(
        self, x_t: Tensor, t: Tensor, cond: Embedding, cameras: Cameras | None = None
    ) -> Tensor:
        self.calls += len(x_t)
        return self.prior.predict_noise(x_t, t, cond, cameras)

    def describe(self) -> dict[str, Any]:
        return self.prior.describe()


@dataclass(frozen=True)
class _CountedNetwork:
    """The network of a counted prior, for losses that train adapters inside it."""

    counted: Counted
    inner: Trainable

    @property
    def network(self) -> nn.Module:
        return self.inner.network

    @property
    def clock(self) -> str:
        return self.inner.clock

    def forward(self, x_t: Tensor, t: Tensor, cond: Embedding, cameras: Cameras | None = None) -> Tensor:
        self.counted.calls += len(x_t)
        return self.inner.forward(x_t, t, cond, cameras)
