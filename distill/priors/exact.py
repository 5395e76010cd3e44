"""Priors whose best prediction is known in closed form, to test losses against.

``dirac``, ``gaussian``, ``mixture`` and ``empirical`` make them; all are mixtures of isotropic Gaussians, one
mixture per prompt. They compute in the precision of what they are given, float64 included.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from distill.cameras import Cameras
from distill.contracts import Embedding
from distill.priors.predictions import KINDS, from_noise, to_noise
from distill.priors.space import Space


def scaled_linear(steps: int = 1000, start: float = 0.00085, end: float = 0.012) -> Tensor:
    """Cumulative signal levels abar of Stable Diffusion's schedule, float64, shape ``[steps]``."""
    betas = torch.linspace(start**0.5, end**0.5, steps, dtype=torch.float64) ** 2
    return torch.cumprod(1 - betas, dim=0)


def cosine(steps: int = 1000, largest_beta: float = 0.999) -> Tensor:
    """Cumulative signal levels abar of the cosine schedule (Nichol & Dhariwal 2021, Eq. 17), float64."""
    time = torch.arange(steps + 1, dtype=torch.float64) / steps
    level = torch.cos((time + 0.008) / 1.008 * torch.pi / 2) ** 2
    betas = (1 - level[1:] / level[:-1]).clamp(max=largest_beta)
    return torch.cumprod(1 - betas, dim=0)


@dataclass(frozen=True)
class Components:
    """A mixture of isotropic Gaussians over pictures; a standard deviation of 0 is a Dirac.

    Attributes:
        means: shape ``[components, channel, height, width]``.
        stds: standard deviations, shape ``[components]``.
        weights: positive, of any sum, shape ``[components]``.
    """

    means: Tensor
    stds: Tensor
    weights: Tensor

    def __post_init__(self) -> None:
        count = (len(self.means),)
        if self.means.ndim != 4 or self.means.shape[-1] != self.means.shape[-2] or not self.means.numel():
            raise ValueError(
                f"means must be square pictures, [components, channel, size, size], got {list(self.means.shape)}"
            )
        if self.stds.shape != count or self.weights.shape != count:
            raise ValueError(
                f"a mixture of {count[0]} needs as many stds and weights, got {list(self.stds.shape)} and {list(self.weights.shape)}"
            )
        if (self.stds < 0).any() or not (self.weights > 0).all():
            raise ValueError("stds must be at least 0 and weights above 0")


@dataclass(frozen=True)
class ExactPrior:
    r"""The exact noise prediction of pictures distributed as a mixture, one for each prompt.

    .. math:: \epsilon^*(x_t) = \sigma_t \sum_k \gamma_k (x_t - \alpha_t \mu_k) / v_k, \quad
        v_k = \alpha_t^2 s_k^2 + \sigma_t^2
    .. math:: \gamma = \mathrm{softmax}(\log \pi_k - (D/2) \log v_k - |x_t - \alpha_t \mu_k|^2 / 2 v_k)

    Attributes:
        prompts: the mixture of every prompt it knows, the empty prompt among them for guidance.
        abar: cumulative signal level per timestep, shape ``[num_timesteps]``.
        signed: pictures in [0, 1] are mapped to [-1, 1], as diffusion models do; otherwise taken as they are.
        prediction: as what a network would give it, one of ``distill.priors.predictions.KINDS``. With ``flow``
            the scales add up to 1, at the same ratio of signal to noise.
        name: for manifests.
    """

    prompts: Mapping[str, Components]
    abar: Tensor = field(default_factory=scaled_linear)
    signed: bool = False
    prediction: str = "epsilon"
    name: str = "exact"

    views, words, trainable, has_control = 1, True, None, False

    def __post_init__(self) -> None:
        shapes = {tuple(mixture.means.shape[1:]) for mixture in self.prompts.values()}
        if len(shapes) != 1:
            raise ValueError(
                f"an exact prior needs prompts whose pictures have one shape, got {sorted(shapes)}"
            )
        if self.prediction not in KINDS:
            raise ValueError(f"prediction must be one of {', '.join(KINDS)}, got {self.prediction!r}")

    @property
    def device(self) -> torch.device:
        return self.abar.device

    @property
    def num_timesteps(self) -> int:
        return len(self.abar)

    @property
    def space(self) -> Space:
        """Maps pictures to what the prior works on: plain pixels."""
        channels, _, size = next(iter(self.prompts.values())).means.shape[-3:]
        return Space(size, channels, signed=self.signed)

    @property
    def image_size(self) -> int:
        return self.space.image_size

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of one encoded picture."""
        return self.space.shape

    @property
    def latent(self) -> bool:
        return False

    def describe(self) -> dict[str, Any]:
        """Describe it for a manifest; there are no weights."""
        return {"prior": {"name": self.name, "sha256": {}}, "loras": [], "controlnet": None}

    def embed(self, prompts: list[str]) -> Embedding:
        """Look up prompts, numbers under ``prompt``; a view's words after the last comma are left out if unknown.

        Raises:
            ValueError: a prompt is not known.
        """
        known = list(self.prompts)
        found = [text if text in self.prompts else text.rpartition(",")[0] for text in prompts]
        for text, name in zip(prompts, found, strict=True):
            if name not in self.prompts or (text and not name):
                shown = ", ".join(map(repr, known[:8])) + (", ..." if len(known) > 8 else "")
                raise ValueError(f"this exact prior knows the prompts {shown}; got {text!r}")
        return {"prompt": torch.tensor([known.index(name) for name in found], device=self.device)}

    def encode(self, image: Tensor) -> Tensor:
        """Map pictures in [0, 1] to the prior's space, resized to ``image_size``."""
        return self.space.encode(image)

    def decode(self, x: Tensor) -> Tensor:
        """Undo ``encode`` except for the resizing, without clipping."""
        return self.space.decode(x)

    def show(self, pictures: Tensor) -> Tensor:
        """Refuse: there is no ControlNet.

        Raises:
            ValueError: always.
        """
        raise ValueError("an exact prior has no ControlNet to show a picture to")

    def _scales(self, t: Tensor) -> tuple[Tensor, Tensor]:
        alpha, sigma = self.abar[t].sqrt(), (1 - self.abar[t]).sqrt()
        whole = alpha + sigma if self.prediction == "flow" else torch.ones_like(alpha)
        return (alpha / whole)[:, None, None, None], (sigma / whole)[:, None, None, None]

    def alpha(self, t: Tensor) -> Tensor:
        return self._scales(t)[0]

    def sigma(self, t: Tensor) -> Tensor:
        return self._scales(t)[1]

    @torch.no_grad()
    def predict_noise(
        self, x_t: Tensor, t: Tensor, cond: Embedding, cameras: Cameras | None = None
    ) -> Tensor:
        """Predict the noise in ``x_t``, same shape and precision; the cameras are not used."""
        mixtures, noise = list(self.prompts.values()), torch.empty_like(x_t)
        for prompt in cond["prompt"].unique().tolist():
            rows = cond["prompt"] == prompt
            noise[rows] = self._predict(mixtures[prompt], x_t[rows], t[rows])
        if self.prediction == "epsilon":
            return noise
        scales = [scale.to(x_t) for scale in self._scales(t)]
        return to_noise(self.prediction, from_noise(self.prediction, noise, x_t, *scales), x_t, *scales)

    def _predict(self, mixture: Components, x_t: Tensor, t: Tensor) -> Tensor:
        x, means = x_t.flatten(1), mixture.means.to(x_t).flatten(1)
        alpha, sigma = self.alpha(t).to(x).flatten(1), self.sigma(t).to(x).flatten(1)
        variance = alpha**2 * mixture.stds.to(x) ** 2 + sigma**2
        distance = _squared(x, alpha, means)
        share = (
            mixture.weights.to(x).log() - x.shape[1] / 2 * variance.log() - distance / (2 * variance)
        ).softmax(1) / variance
        return (sigma * (x * share.sum(1, keepdim=True) - alpha * (share @ means))).view_as(x_t)


def _squared(x: Tensor, alpha: Tensor, means: Tensor) -> Tensor:
    """Squared distances of ``x`` to ``alpha * means``, ``[batch, components]``."""
    return alpha**2 * means.square().sum(1) - 2 * alpha * (x @ means.T) + x.square().sum(1, keepdim=True)


def gaussian(means: Mapping[str, Tensor], std: float = 1.0, abar: Tensor | None = None) -> ExactPrior:
    """One Gaussian per prompt.

    Args:
        means: mean picture per prompt, each of shape ``[channel, height, width]``.
        std: standard deviation, the same for all; 0 is a Dirac.
        abar: cumulative signal level per timestep; Stable Diffusion's by default.
    """
    return mixture({prompt: mean[None] for prompt, mean in means.items()}, std, abar)


def dirac(means: Mapping[str, Tensor], abar: Tensor | None = None) -> ExactPrior:
    """One picture per prompt and no other."""
    return gaussian(means, 0.0, abar)


def mixture(
    means: Mapping[str, Tensor],
    std: float = 1.0,
    abar: Tensor | None = None,
    weights: Mapping[str, Tensor] | None = None,
) -> ExactPrior:
    """Several Gaussians per prompt.

    Args:
        means: per prompt, shape ``[components, channel, height, width]``.
        std: standard deviation, the same for all.
        abar: cumulative signal level per timestep; Stable Diffusion's by default.
        weights: per prompt, positive, of any sum, shape ``[components]``; equal by default.
    """
    prompts = {
        prompt: Components(
            centres,
            torch.full((len(centres),), std, dtype=torch.float64),
            (weights or {}).get(prompt, torch.ones(len(centres), dtype=torch.float64)),
        )
        for prompt, centres in means.items()
    }
    return ExactPrior(prompts, scaled_linear() if abar is None else abar)


def empirical(images: Tensor, captions: Sequence[str], abar: Tensor | None = None) -> ExactPrior:
    """The optimal denoiser of a set of pictures, what a network trained on them could at best learn.

    Args:
        images: in [0, 1], shape ``[n, channel, height, width]``.
        captions: of each picture. The empty prompt stands for all pictures, and what comes before a
            caption's last comma for all that share it, so ``a mug`` for ``a mug, from behind`` and the rest.
        abar: cumulative signal level per timestep; Stable Diffusion's by default.

    Raises:
        ValueError: there is not one caption per picture.
    """
    if len(images) != len(captions) or not captions:
        raise ValueError(f"expected one caption per picture, got {len(captions)} for {len(images)}")
    rows: dict[str, list[int]] = {}
    for index, caption in enumerate(captions):
        rows.setdefault(caption, []).append(index)
    whole: dict[str, list[int]] = {}
    for index, caption in enumerate(captions):
        whole.setdefault(caption.rpartition(",")[0], []).append(index)
    rows |= {text: sorted({*rows.get(text, ()), *index}) for text, index in whole.items() if text}
    groups = {caption: images[index] * 2 - 1 for caption, index in rows.items()}
    table = mixture({"": images * 2 - 1, **groups}, 0.0, abar)
    return ExactPrior(table.prompts, table.abar, signed=True)
