"""SDS against closed forms, on exact priors and two noise schedules."""

from __future__ import annotations

import pytest
import torch

from distill import guidance
from distill.contracts import Condition
from distill.guidance.asd import asd
from distill.guidance.csd import csd
from distill.guidance.sds import sds
from distill.guidance.terms import WEIGHTINGS, classifier_free_guidance, predict, predict_guided
from distill.priors.exact import ExactPrior, cosine, gaussian, scaled_linear

SCHEDULES = [pytest.param(scaled_linear(), id="scaled_linear"), pytest.param(cosine(), id="cosine")]
SHAPE = (2, 3, 4, 4)


def prior_and_condition(abar: torch.Tensor, std: float) -> tuple[ExactPrior, Condition, torch.Tensor]:
    g = torch.Generator().manual_seed(3)
    means = {name: torch.randn(SHAPE[1:], generator=g, dtype=torch.float64) for name in ("mug", "")}
    prior = gaussian(means, std, abar)
    batch = SHAPE[0]
    return (
        prior,
        Condition({"text": prior.embed(["mug"] * batch), "uncond": prior.embed([""] * batch)}),
        means["mug"],
    )


def randn(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("abar", SCHEDULES)
@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_dirac_prior_gives_the_exact_pull_for_every_noise(abar: torch.Tensor, weighting: str) -> None:
    prior, cond, mean = prior_and_condition(abar, std=0.0)
    x, t = randn(0, *SHAPE), torch.tensor([100, 700])
    a, s = abar[t].sqrt()[:, None, None, None], (1 - abar[t]).sqrt()[:, None, None, None]
    w = {
        "sigma_squared": 1 - a**2,
        "uniform": torch.ones_like(a),
        "fantasia3d": a * (1 - a**2),
        "hifa": s / a,
    }[weighting]
    for seed in (1, 2):
        grad = sds(prior, x, cond, t, randn(seed, *SHAPE), scale=1.0, weighting=weighting)
        torch.testing.assert_close(grad, w * a / s * (x - mean), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("abar", SCHEDULES)
def test_gaussian_prior_mean_and_spread_over_noise(abar: torch.Tensor) -> None:
    std, draws = 0.7, 40_000
    prior, _, _ = prior_and_condition(abar, std)
    mean = torch.full((1, 1, 1), 0.3, dtype=torch.float64)
    prior = gaussian({"mug": mean}, std, abar)
    cond = Condition({"text": prior.embed(["mug"] * draws), "uncond": prior.embed(["mug"] * draws)})
    x, t = torch.full((draws, 1, 1, 1), 1.1, dtype=torch.float64), torch.full((draws,), 400)
    grad = sds(prior, x, cond, t, randn(5, draws, 1, 1, 1), scale=1.0)
    a2 = abar[400]
    s2 = 1 - a2
    variance = a2 * std**2 + s2
    expected = s2 * (a2 * s2).sqrt() / variance * (1.1 - 0.3)
    spread = s2 * a2 * std**2 / variance
    assert grad.mean().item() == pytest.approx(expected.item(), abs=4 * spread.item() / draws**0.5)
    assert grad.std().item() == pytest.approx(spread.item(), rel=0.02)


@pytest.mark.parametrize("abar", SCHEDULES)
def test_scale_adds_the_classifier_score(abar: torch.Tensor) -> None:
    prior, cond, _ = prior_and_condition(abar, std=0.5)
    x, noise, t = randn(0, *SHAPE), randn(1, *SHAPE), torch.tensor([50, 600])
    x_t = prior.alpha(t) * x + prior.sigma(t) * noise
    text, uncond = (prior.predict_noise(x_t, t, part) for part in (cond.text, cond.uncond))
    at_one = sds(prior, x, cond, t, noise, scale=1.0)
    for scale in (0.0, 7.5, 100.0):
        expected = at_one + (scale - 1) * prior.sigma(t) ** 2 * (text - uncond)
        torch.testing.assert_close(sds(prior, x, cond, t, noise, scale=scale), expected, rtol=1e-9, atol=1e-9)


def test_samples_of_the_prior_feel_no_pull_on_average() -> None:
    draws = 40_000
    prior = gaussian({"mug": torch.full((1, 1, 1), 0.3, dtype=torch.float64)}, 0.7)
    cond = Condition({"text": prior.embed(["mug"] * draws), "uncond": prior.embed(["mug"] * draws)})
    x = 0.3 + 0.7 * randn(1, draws, 1, 1, 1)
    grad = sds(
        prior, x, cond, torch.full((draws,), 300), randn(2, draws, 1, 1, 1), scale=1.0, weighting="uniform"
    )
    assert abs(grad.mean().item()) < 4 * grad.std().item() / draws**0.5


def test_batch_elements_do_not_mix() -> None:
    prior, cond, _ = prior_and_condition(scaled_linear(), std=0.5)
    x, noise, t = randn(0, *SHAPE), randn(1, *SHAPE), torch.tensor([50, 600])
    whole = sds(prior, x, cond, t, noise)
    second = Condition(
        {"text": {"prompt": cond.text["prompt"][1:]}, "uncond": {"prompt": cond.uncond["prompt"][1:]}}
    )
    torch.testing.assert_close(whole[1:], sds(prior, x[1:], second, t[1:], noise[1:]))


def test_gradient_is_detached_and_backward_delivers_it_exactly() -> None:
    prior, cond, _ = prior_and_condition(scaled_linear(), std=0.5)
    x = randn(0, *SHAPE).requires_grad_()
    grad = sds(prior, x, cond, torch.tensor([50, 600]), randn(1, *SHAPE))
    assert not grad.requires_grad
    x.backward(grad)
    assert x.grad is not None
    assert torch.equal(x.grad, grad)


def test_guidance_scale_one_is_the_conditional_prediction_and_zero_the_unconditional() -> None:
    uncond, cond = randn(0, 3), randn(1, 3)
    torch.testing.assert_close(classifier_free_guidance(uncond, cond, 1.0), cond)
    torch.testing.assert_close(classifier_free_guidance(uncond, cond, 0.0), uncond)


@pytest.mark.parametrize(("role", "remedy"), [("negative", "negative_prompt="), ("away_0", "one of these")])
def test_a_prompt_that_the_step_does_not_have_is_named_with_those_that_it_has(role: str, remedy: str) -> None:
    prior, cond, _ = prior_and_condition(scaled_linear(), std=0.5)
    with pytest.raises(ValueError, match=rf"'text', 'uncond'\), got '{role}'; .*{remedy}"):
        predict(prior, randn(0, *SHAPE), torch.tensor([3, 4]), cond, "text", role)


@pytest.mark.parametrize(("t", "said"), [([1000, 3], "3 to 1000"), ([-1, 3], "-1 to 3")])
def test_timesteps_outside_the_prior_are_refused(t: list[int], said: str) -> None:
    prior, cond, _ = prior_and_condition(scaled_linear(), std=0.5)
    with pytest.raises(ValueError, match=rf"\[0, 999\], got {said}"):
        sds(prior, randn(0, *SHAPE), cond, torch.tensor(t), randn(1, *SHAPE))


def test_unknown_weighting_lists_the_known_ones() -> None:
    prior, cond, _ = prior_and_condition(scaled_linear(), std=0.5)
    with pytest.raises(ValueError, match=r"sigma_squared, uniform, fantasia3d, hifa, got 'sigma'"):
        sds(prior, randn(0, *SHAPE), cond, torch.tensor([1, 2]), randn(1, *SHAPE), weighting="sigma")


def test_a_weighting_of_one_s_own_works_with_a_loss_that_never_heard_of_it() -> None:
    @guidance.register_weighting
    def snr(alpha: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        return (alpha / sigma) ** 2

    try:
        prior, cond, _ = prior_and_condition(scaled_linear(), std=0.5)
        t, x, noise = torch.tensor([150, 700]), randn(0, *SHAPE), randn(1, *SHAPE)
        ratio = (prior.abar[t] / (1 - prior.abar[t]))[:, None, None, None]
        expected = ratio * csd(prior, x, cond, t, noise, weighting="uniform")
        torch.testing.assert_close(csd(prior, x, cond, t, noise, weighting="snr"), expected)
    finally:
        del WEIGHTINGS["snr"]


def test_guidance_is_affine_in_its_scale_whichever_predictions_it_needs() -> None:
    prior, cond, _ = prior_and_condition(scaled_linear(), std=0.5)
    x, t = randn(0, *SHAPE), torch.tensor([100, 700])
    at = {scale: predict_guided(prior, x, t, cond, scale) for scale in (0.0, 0.5, 1.0, 2.0, 7.5)}
    step = at[1.0] - at[0.0]
    assert step.abs().max() > 0.1
    for scale, found in at.items():
        torch.testing.assert_close(found, at[0.0] + scale * step, rtol=1e-9, atol=1e-9)


def test_asd_is_told_of_no_lowest_timestep_and_takes_two_hundredths() -> None:
    prior, cond, _ = prior_and_condition(scaled_linear(), std=0.5)
    x, noise, t = randn(0, *SHAPE), randn(1, *SHAPE), torch.tensor([100, 700])
    found = [asd(prior, x, cond, t, noise, random_shift=False, t_min=t_min) for t_min in (None, 0.02, 0.06)]
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])
