"""Priors whose best prediction is known in closed form, to test losses against."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from distill.contracts import Embedding


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
class GaussianPrior:
    r"""The exact noise prediction of pictures distributed as :math:`N(\mu, s^2 I)`.

    .. math:: \epsilon^*(x_t) = \sigma_t (x_t - \alpha_t \mu) / (\alpha_t^2 s^2 + \sigma_t^2)

    The mean comes with the embedding, under ``mean``, so that prompts can differ.

    Attributes:
        means: mean picture per prompt, each of shape ``[channel, height, width]``.
        std: standard deviation s, one number; 0 is a Dirac.
        abar: cumulative signal level per timestep, shape ``[num_timesteps]``.
    """

    means: dict[str, Tensor]
    std: float = 0.0
    abar: Tensor = field(default_factory=scaled_linear)

    @property
    def device(self) -> torch.device:
        return self.abar.device

    @property
    def num_timesteps(self) -> int:
        return len(self.abar)

    @property
    def image_size(self) -> int:
        return next(iter(self.means.values())).shape[-1]

    def embed(self, prompts: list[str]) -> Embedding:
        """Look up the prompts' means; a view's words after the last comma are ignored where unknown."""
        found = [self.means.get(text, self.means.get(text.rpartition(",")[0])) for text in prompts]
        if any(mean is None for mean in found):
            raise ValueError(
                f"this exact prior knows the prompts {', '.join(map(repr, self.means))}, got {prompts}"
            )
        return {"mean": torch.stack([mean for mean in found if mean is not None])}

    def encode(self, image: Tensor) -> Tensor:
        return image

    def alpha(self, t: Tensor) -> Tensor:
        return self.abar[t].sqrt()[:, None, None, None]

    def sigma(self, t: Tensor) -> Tensor:
        return (1 - self.abar[t]).sqrt()[:, None, None, None]

    @torch.no_grad()
    def predict_noise(self, x_t: Tensor, t: Tensor, cond: Embedding) -> Tensor:
        alpha, sigma = self.alpha(t).to(x_t), self.sigma(t).to(x_t)
        return sigma * (x_t - alpha * cond["mean"].to(x_t)) / (alpha**2 * self.std**2 + sigma**2)
