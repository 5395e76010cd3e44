"""DDIM against closed forms: priors that are exact for one point or one Gaussian."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from distill.cameras import Cameras, turntable
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


def asked(monkeypatch: pytest.MonkeyPatch, prompts: Any = ("a",), **options: Any) -> tuple[Any, list[Any]]:
    """Draw from single points in five steps, and note the timestep, pictures and cameras of each call of the prior."""
    noted, predict = [], GaussianPrior.predict_noise

    def predict_noise(self: Any, x_t: Any, t: Any, cond: Any, cameras: Any = None) -> Any:
        noted.append((int(t[0]), len(x_t), cameras))
        return predict(self, x_t, t, cond)

    monkeypatch.setattr(GaussianPrior, "predict_noise", predict_noise)
    return sample(gaussian_prior(), [*prompts], generator=seeded(), steps=5, **options), noted


@pytest.mark.parametrize(
    ("interval", "sizes", "value"),
    [
        # Of five steps, at timesteps 999, 799, 599, 399 and 199, each lower end counts and no upper end.
        ((0.399, 1.0), [2, 2, 2, 2, 1], 0.3),
        ((0.4, 1.0), [2, 2, 2, 1, 1], 0.3),
        ((0.0, 0.399), [1, 1, 1, 1, 2], 1.5),
        ((0.0, 0.4), [1, 1, 1, 2, 2], 1.5),
        ((0.399, 0.399), [1, 1, 1, 1, 1], 0.3),
        ((0.0, 1.0), [2, 2, 2, 2, 2], 1.5),
    ],
)
def test_guidance_applies_within_its_interval_alone(
    interval: Any, sizes: Any, value: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last prediction of a point is the point, whatever came before; one guided at the end is beyond it."""
    x, noted = asked(monkeypatch, scale=3.0, interval=interval)
    assert [each[:2] for each in noted] == list(zip([999, 799, 599, 399, 199], sizes, strict=True))
    assert torch.allclose(x, torch.full_like(x, value), atol=1e-6)


def test_the_empty_prompt_is_not_asked_for_without_guidance(monkeypatch: pytest.MonkeyPatch) -> None:
    _, noted = asked(monkeypatch, scale=1.0)
    assert [size for _, size, _ in noted] == [1] * 5


def test_a_prior_sees_a_camera_for_each_picture_that_it_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    cameras = turntable(2, 15.0)
    _, noted = asked(monkeypatch, ("a", "b"), scale=3.0, interval=(0.5, 1.0), cameras=cameras)
    assert [size for _, size, _ in noted] == [4, 4, 4, 2, 2]
    for _, size, seen in noted:
        expected = cameras if size == 2 else Cameras.joined([cameras, cameras])
        assert torch.equal(seen.c2w, expected.c2w)


def test_each_prompt_is_guided_away_from_the_empty_one() -> None:
    class Named(GaussianPrior):
        def embed(self, prompts: Any) -> Any:
            return {"mean": torch.tensor([{"a": 0.3, "b": 0.5, "": -0.1}[text] for text in prompts])}

    prior: Any = Named()
    x = sample(prior, ["a", "b"], generator=seeded(), steps=3, scale=2.0)
    # u + s (c - u) of each: -0.1 + 2 * 0.4 and -0.1 + 2 * 0.6.
    assert torch.allclose(x, torch.tensor([0.7, 1.1]).to(x)[:, None, None, None], atol=1e-6)


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


@pytest.mark.parametrize("interval", [(-0.1, 1.0), (0.0, 1.1), (0.6, 0.5), (0.5,)])
def test_an_interval_that_is_none_is_refused(interval: Any) -> None:
    with pytest.raises(ValueError, match="two shares"):
        sample(gaussian_prior(), ["a"], generator=seeded(), interval=interval)


@pytest.mark.parametrize(("mean", "bound"), [(0.3, 1.0), (-0.3, -1.0)])
def test_clipping_bounds_the_sample(mean: float, bound: float) -> None:
    x = sample(gaussian_prior(mean=mean), ["a"], generator=seeded(), steps=5, scale=3.0, clip=1.0)
    assert torch.equal(x, torch.full_like(x, bound))


def test_the_noise_goes_with_the_clipped_sample_by_hand() -> None:
    # A Gaussian and two steps, 999 and 499: with x = alpha clean + sigma noise, a clipped sample has another noise.
    prior = gaussian_prior(spread=0.5)
    found = sample(prior, ["a"], generator=seeded(), steps=2, scale=1.0, clip=0.2)
    x = torch.randn(1, *prior.shape, generator=seeded()).double()
    a, b = prior.abar[999].item(), prior.abar[499].item()

    def mean_given(x: Any, abar: float) -> Any:  # the posterior mean of N(0.3, 0.25), clipped
        return (0.3 + 0.25 * abar**0.5 / (0.25 * abar + 1 - abar) * (x - abar**0.5 * 0.3)).clamp(-0.2, 0.2)

    clean = mean_given(x, a)
    noise = (x - a**0.5 * clean) / (1 - a) ** 0.5
    last = mean_given(b**0.5 * clean + (1 - b) ** 0.5 * noise, b)
    assert 0.05 < (last.abs() < 0.2).float().mean() < 1
    assert torch.allclose(found.double(), last, atol=1e-4)


@pytest.mark.parametrize("clip", [0.0, -1.0, float("nan")])
def test_a_magnitude_that_is_not_above_0_is_refused(clip: float) -> None:
    with pytest.raises(ValueError, match="clip must be above 0"):
        sample(gaussian_prior(), ["a"], generator=seeded(), clip=clip)


@pytest.mark.parametrize("prompts", ["a red mug", "", []])
def test_prompts_that_are_no_list_of_texts_are_refused(prompts: Any) -> None:
    with pytest.raises(ValueError, match="must be a list of one text or more"):
        sample(gaussian_prior(), prompts, generator=seeded())


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
