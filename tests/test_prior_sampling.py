"""DDIM against closed forms: priors that are exact for one point or one Gaussian."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from distill.priors.sampling import sample


@dataclass
class GaussianPrior:
    """The exact noise predictor of N(mean, spread^2 I); the prompt "" has the mean -mean."""

    mean: float = 0.3
    spread: float = 0.0
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    shape: tuple[int, int, int] = (3, 4, 4)
    num_timesteps: int = 1000
    visited: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.abar = torch.cos(torch.linspace(0.02, 1.55, self.num_timesteps, dtype=torch.float64)) ** 2

    def embed(self, prompts: Any) -> Any:
        return {"mean": torch.tensor([self.mean if text else -self.mean for text in prompts])}

    def alpha(self, t: Any) -> Any:
        return self.abar[t].sqrt()[:, None, None, None]

    def sigma(self, t: Any) -> Any:
        return (1 - self.abar[t]).sqrt()[:, None, None, None]

    def predict_noise(self, x_t: Any, t: Any, cond: Any, cameras: Any = None) -> Any:
        self.visited.append(int(t[0]))
        alpha, sigma, mean = self.alpha(t), self.sigma(t), cond["mean"][:, None, None, None]
        return sigma * (x_t - alpha * mean) / (alpha**2 * self.spread**2 + sigma**2)


def gaussian_prior(**options: Any) -> Any:
    """A fake that has only what ``sample`` uses of a prior."""
    return GaussianPrior(**options)


def seeded(seed: Any = 0) -> Any:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("steps", [1, 3, 30])
def test_a_single_point_is_drawn_exactly_in_any_number_of_steps(steps: Any) -> None:
    x = sample(gaussian_prior(), ["a", "b"], generator=seeded(), steps=steps, scale=1.0)
    assert x.shape == (2, 3, 4, 4)
    assert torch.allclose(x, torch.full_like(x, 0.3), atol=1e-6)


def test_guidance_extrapolates_from_the_empty_prompt() -> None:
    x = sample(gaussian_prior(), ["a"], generator=seeded(), steps=5, scale=3.0)
    # With points for both, the clean prediction is u + s (c - u) = -0.3 + 3 * 0.6.
    assert torch.allclose(x, torch.full_like(x, 1.5), atol=1e-6)


def test_guidance_applies_within_its_interval_alone() -> None:
    # Of five steps, at timesteps 999, 799, 599, 399 and 199, those of at least 0.399 of all timesteps are guided, the next is not.
    prior, asked = gaussian_prior(), []
    prior.embed = lambda prompts: {"mean": torch.tensor([0.3 if text else -0.3 for text in prompts])}
    told = prior.predict_noise

    def predict_noise(x_t: Any, t: Any, *more: Any) -> Any:
        asked.append((int(t[0]), len(x_t)))
        return told(x_t, t, *more)

    prior.predict_noise = predict_noise
    x = sample(prior, ["a"], generator=seeded(), steps=5, scale=3.0, interval=(0.399, 1.0))
    assert asked == [(999, 2), (799, 2), (599, 2), (399, 2), (199, 1)]
    # The last prediction of a point is the point, whatever came before; one guided at the end alone is beyond it.
    assert torch.allclose(x, torch.full_like(x, 0.3), atol=1e-6)
    x = sample(gaussian_prior(), ["a"], generator=seeded(), steps=5, scale=3.0, interval=(0.0, 0.3))
    assert torch.allclose(x, torch.full_like(x, 1.5), atol=1e-6)


def test_a_mean_guided_at_the_first_step_alone_by_hand() -> None:
    # A Gaussian and two steps, 999 and 499, the first guided: each is the closed form of its own prediction.
    prior = gaussian_prior(spread=0.5)
    found = sample(prior, ["a"], generator=seeded(), steps=2, scale=2.0, interval=(0.5, 1.0))
    x = torch.randn(1, *prior.shape, generator=seeded()).double()
    a, b = prior.abar[999].item(), prior.abar[499].item()

    def predicted(x: Any, abar: float, mean: float) -> Any:
        return (1 - abar) ** 0.5 * (x - abar**0.5 * mean) / (abar * 0.25 + 1 - abar)

    noise = 2 * predicted(x, a, 0.3) - predicted(x, a, -0.3)
    clean = (x - (1 - a) ** 0.5 * noise) / a**0.5
    x = b**0.5 * clean + (1 - b) ** 0.5 * noise
    last = (x - (1 - b) ** 0.5 * predicted(x, b, 0.3)) / b**0.5
    assert torch.allclose(found.double(), last, atol=1e-4)


@pytest.mark.parametrize("interval", [(-0.1, 1.0), (0.0, 1.1), (0.6, 0.5)])
def test_an_interval_that_is_none_is_refused(interval: Any) -> None:
    with pytest.raises(ValueError, match="two shares"):
        sample(gaussian_prior(), ["a"], generator=seeded(), interval=interval)


def test_clipping_bounds_the_sample() -> None:
    x = sample(gaussian_prior(), ["a"], generator=seeded(), steps=5, scale=3.0, clip=1.0)
    assert torch.equal(x, torch.ones_like(x))


def test_many_steps_follow_the_probability_flow_of_a_gaussian() -> None:
    prior = gaussian_prior(spread=0.5)
    start = torch.randn(1, 3, 4, 4, generator=seeded(7)).double()
    alpha, sigma = prior.abar[-1].sqrt(), (1 - prior.abar[-1]).sqrt()
    # The flow keeps (x_t - alpha mean) / sqrt(variance_t) constant, down to the first timestep.
    score = (start - alpha * 0.3) / (alpha**2 * 0.25 + sigma**2).sqrt()
    x = sample(prior, ["a"], generator=seeded(7), steps=1000, scale=1.0)
    assert torch.allclose(x.double(), 0.3 + 0.5 * score, atol=5e-3)


def test_timesteps_start_at_the_last_and_are_evenly_spaced() -> None:
    prior = gaussian_prior()
    sample(prior, ["a"], generator=seeded(), steps=4)
    assert prior.visited == [999, 749, 499, 249]


def test_a_seed_fixes_the_sample() -> None:
    prior = gaussian_prior(spread=0.5)
    first, second, other = (sample(prior, ["a"], generator=seeded(s), steps=3) for s in (1, 1, 2))
    assert torch.equal(first, second) and not torch.equal(first, other)


@pytest.mark.parametrize("steps", [0, 1001])
def test_an_impossible_number_of_steps_is_refused(steps: Any) -> None:
    with pytest.raises(ValueError, match=f"between 1 and 1000, got {steps}"):
        sample(gaussian_prior(), ["a"], generator=seeded(), steps=steps)
