"""A function as a prior: ``wrap`` gives it what a run needs beside its prediction."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from distill.cameras import Cameras
from distill.contracts import Embedding
from distill.priors.predictions import KINDS, to_noise
from distill.priors.space import Space

#: Gives what a network predicts for noised pictures ``[batch, ...]``, timesteps ``[batch]``, and the prompts or their embedding.
Predict = Callable[[Tensor, Tensor, Any], Tensor]


@dataclass(frozen=True)
class Wrapped:
    """A prior made by ``wrap``; its members are those of ``distill.contracts.Prior``."""

    predict: Predict
    shape: tuple[int, int, int]
    alphas_cumprod: Tensor
    prediction: str
    space: Space
    coder: tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]] | None
    encoder: Callable[[list[str]], Mapping[str, Tensor]] | None
    name: str
    texts: list[str] = field(default_factory=lambda: [""], compare=False, repr=False)

    views, words, trainable, has_control = 1, True, None, False

    @property
    def device(self) -> torch.device:
        return self.alphas_cumprod.device

    @property
    def num_timesteps(self) -> int:
        return len(self.alphas_cumprod)

    @property
    def image_size(self) -> int:
        return self.space.image_size

    @property
    def latent(self) -> bool:
        return self.coder is not None

    def embed(self, prompts: list[str]) -> Embedding:
        """Embed prompts with the given encoder, or number them."""
        if self.encoder:
            return dict(self.encoder(prompts))
        self.texts.extend(text for text in dict.fromkeys(prompts) if text not in self.texts)
        return {"prompt": torch.tensor([self.texts.index(text) for text in prompts], device=self.device)}

    def encode(self, image: Tensor) -> Tensor:
        """Map pictures in [0, 1], resized to ``image_size``, to the prior's space."""
        if self.coder is None:
            return self.space.encode(image)
        size = (self.image_size, self.image_size)
        return self.coder[0](torch.nn.functional.interpolate(image, size, mode="bilinear", antialias=True))

    def decode(self, x: Tensor) -> Tensor:
        """Undo ``encode`` except for the resizing."""
        return self.coder[1](x) if self.coder else self.space.decode(x)

    def show(self, pictures: Tensor) -> Tensor:
        """Refuse: there is no ControlNet.

        Raises:
            ValueError: always.
        """
        raise ValueError("a wrapped prior has no ControlNet to show a picture to")

    def alpha(self, t: Tensor) -> Tensor:
        """Signal scale, shape ``[batch, 1, 1, 1]``."""
        return self.alphas_cumprod[t].sqrt()[:, None, None, None]

    def sigma(self, t: Tensor) -> Tensor:
        """Noise scale, shape ``[batch, 1, 1, 1]``."""
        return (1 - self.alphas_cumprod[t]).sqrt()[:, None, None, None]

    @torch.no_grad()
    def predict_noise(
        self, x_t: Tensor, t: Tensor, cond: Embedding, cameras: Cameras | None = None
    ) -> Tensor:
        """Predict the noise in ``x_t``, same shape; the cameras are not used.

        Raises:
            ValueError: the function's prediction has another shape.
        """
        asked = cond if self.encoder else [self.texts[number] for number in cond["prompt"].tolist()]
        found = self.predict(x_t, t, asked)
        if not isinstance(found, Tensor) or found.shape != x_t.shape:
            got = str(list(found.shape)) if isinstance(found, Tensor) else type(found).__name__
            raise ValueError(
                f"the function of the prior {self.name} must return {list(x_t.shape)}, the shape of x_t, got {got}"
            )
        return to_noise(self.prediction, found, x_t, self.alpha(t), self.sigma(t))

    def describe(self) -> dict[str, Any]:
        """Describe it for a manifest; what the function holds is not known."""
        return {"prior": {"name": self.name, "sha256": {}}, "loras": [], "controlnet": None}


def wrap(
    predict: Predict,
    shape: tuple[int, int, int],
    alphas_cumprod: Tensor,
    *,
    prediction: str = "epsilon",
    embed: Callable[[list[str]], Mapping[str, Tensor]] | None = None,
    encode: Callable[[Tensor], Tensor] | None = None,
    decode: Callable[[Tensor], Tensor] | None = None,
    image_size: int | None = None,
    signed: bool = True,
    name: str = "wrapped",
) -> Wrapped:
    """Make a prior of a function, for ``distill.generate(prior=...)`` and ``distill.compare(prior=...)``.

    Args:
        predict: called with noised pictures of shape ``[batch, *shape]``, integer timesteps of shape ``[batch]``, and the list of their
            prompts, or with ``embed`` their embedding; returns what its network predicts, of the shape of the pictures.
        shape: channels, height and width of a picture in the prior's space.
        alphas_cumprod: cumulative signal level of each timestep, falling, in (0, 1], shape ``[num_timesteps]``; the prior is on its device.
        prediction: what ``predict`` returns, one of ``distill.priors.predictions.KINDS``.
        embed: encodes prompts once: a dictionary of tensors with a row for each.
        encode: of a prior of latents: pictures in [0, 1], ``[batch, 3, image_size, image_size]``, to ``[batch, *shape]``, differentiably.
        decode: undoes ``encode``.
        image_size: height and width of pictures, pixels; by default the height in ``shape``.
        signed: without ``encode``, pictures are mapped to [-1, 1], as most models take them; otherwise to [0, 1].
        name: for manifests.

    Raises:
        ValueError: the shape, the levels or the kind of prediction cannot be; or only one of ``encode`` and ``decode`` is given.
    """
    if prediction not in KINDS:
        raise ValueError(f"prediction must be one of {', '.join(KINDS)}, got {prediction!r}")
    if (encode is None) != (decode is None):
        raise ValueError("encode and decode belong together; give both, or none for a prior of pixels")
    if len(shape) != 3 or shape[1] != shape[2] or (encode is None and shape[0] != 3):
        raise ValueError(
            f"shape must be (channels, size, size), with 3 channels where there is no encode, got {tuple(shape)}"
        )
    levels = alphas_cumprod
    if levels.dim() != 1 or not len(levels) or not ((levels > 0) & (levels <= 1)).all():
        raise ValueError(
            f"alphas_cumprod must be levels in (0, 1], shape [num_timesteps], got {list(levels.shape)}"
        )
    space = Space(image_size or shape[1], 3, signed=signed)
    coder = (encode, decode) if encode and decode else None
    return Wrapped(predict, (shape[0], shape[1], shape[2]), levels, prediction, space, coder, embed, name)
