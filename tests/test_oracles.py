"""Losses against what mathematics says must hold, on exact priors and two noise schedules.

Notation: a, s are alpha and sigma at t; v = a^2 s_p^2 + s^2 and f = a s / v for a Gaussian prior of standard
deviation s_p. Under it the noise prediction is s (x_t - a mu) / v.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from usual import optimiser_of, settings_of

from distill.conditions.prompts import conditioner
from distill.contracts import Condition, Step
from distill.guidance.asd import asd, shifted
from distill.guidance.bridge import bridge
from distill.guidance.csd import csd
from distill.guidance.dds import dds
from distill.guidance.hifa import hifa
from distill.guidance.ism import ism
from distill.guidance.nfsd import nfsd
from distill.guidance.sdi import sdi
from distill.guidance.sds import sds
from distill.job import Job, State
from distill.loop import train
from distill.priors.exact import ExactPrior, cosine, dirac, gaussian, mixture, scaled_linear
from distill.renderers.image import ImageScene
from distill.samplers import timesteps
from distill.samplers.cameras import ranges
from distill.samplers.schedules import Ramp, scheduled

ABARS = {"scaled_linear": scaled_linear(), "cosine": cosine()}
SHAPE = (2, 3, 4, 4)
T = torch.tensor([150, 700])
assert_close = partial(torch.testing.assert_close, rtol=1e-7, atol=1e-9)


@pytest.fixture(params=ABARS)
def abar(request: pytest.FixtureRequest) -> Tensor:
    return ABARS[request.param]


def randn(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def make_prior(abar: Tensor, std: float) -> ExactPrior:
    return gaussian(
        {name: randn(i, *SHAPE[1:]) for i, name in enumerate(("mug", "", "ugly", "cup"))}, std, abar
    )


def condition(prior: ExactPrior, negative: str | None = None, batch: int = SHAPE[0]) -> Condition:
    told = {"text": "mug", "uncond": "", "source": "cup"} | (
        {} if negative is None else {"negative": negative}
    )
    uniform = torch.rand(batch, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    return Condition(
        {role: prior.embed([name] * batch) for role, name in told.items()}, step=Step(uniform=uniform)
    )


def scales(abar: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    return abar[t].sqrt()[:, None, None, None], (1 - abar[t]).sqrt()[:, None, None, None]


X, NOISE = randn(20, *SHAPE), randn(21, *SHAPE)
MUG, EMPTY, UGLY, CUP = (randn(i, *SHAPE[1:]) for i in range(4))


def many(value: float, draws: int) -> Tensor:
    return torch.full((draws, 1, 1, 1), value, dtype=torch.float64)


def test_noise_error_is_the_clean_pictures_error(abar: Tensor) -> None:
    """Oracle 4: e - eps = (a / s)(x - x0_hat), for any prediction."""
    prior = mixture({"mug": randn(0, 5, *SHAPE[1:]), "": randn(1, 2, *SHAPE[1:])}, 0.4, abar)
    cond = Condition({"text": prior.embed(["mug"] * 2), "uncond": prior.embed([""] * 2)})
    a, s = scales(abar, T)
    x_t = a * X + s * NOISE
    clean = (x_t - s * prior.predict_noise(x_t, T, cond.text)) / a
    assert_close(sds(prior, X, cond, T, NOISE, scale=1.0, weighting="uniform"), a / s * (X - clean))


def test_mixtures_mean_gradient_is_the_slope_of_the_smoothed_likelihood(abar: Tensor) -> None:
    """Oracle 5: E g = d/dx [-w (s / a) E log p_t(a x + s eps)], by central differences on shared noise."""
    centres, std, weights = (
        torch.tensor([-1.0, 0.4, 1.5]).double(),
        0.3,
        torch.tensor([1.0, 2.0, 0.5]).double(),
    )
    prior = mixture({"mug": centres[:, None, None, None]}, std, abar, {"mug": weights})
    draws, t, x, step = 4_000, 300, 0.7, 1e-4
    cond = Condition({"text": prior.embed(["mug"] * draws), "uncond": prior.embed(["mug"] * draws)})
    noise = randn(3, draws, 1, 1, 1)
    a, s = abar[t].sqrt(), (1 - abar[t]).sqrt()

    def energy(value: float) -> Tensor:
        x_t = a * value + s * noise.flatten()
        spread = (a**2 * std**2 + s**2).sqrt()
        density = torch.distributions.Normal(a * centres, spread).log_prob(x_t[:, None])
        return -(s / a) * (density + (weights / weights.sum()).log()).logsumexp(1).mean()

    slope = (energy(x + step) - energy(x - step)) / (2 * step)
    times = torch.full((draws,), t)
    predicted = sds(prior, many(x, draws), cond, times, noise, scale=1.0, weighting="uniform") + noise
    assert predicted.mean().item() == pytest.approx(slope.item(), rel=1e-6)


def test_sds_is_classifier_score_plus_what_remains(abar: Tensor) -> None:
    """Oracle 7: SDS_s = w (e_c - eps) + (s - 1) CSD = w (e_u - eps) + s CSD."""
    prior = make_prior(abar, 0.5)
    cond = condition(prior)
    score = csd(prior, X, cond, T, NOISE)
    generator = sds(prior, X, cond, T, NOISE, scale=1.0)
    unconditional = sds(prior, X, cond, T, NOISE, scale=0.0)
    for scale in (0.0, 1.0, 7.5, 100.0):
        guided = sds(prior, X, cond, T, NOISE, scale=scale)
        assert_close(guided, generator + (scale - 1) * score)
        assert_close(guided, unconditional + scale * score)


def test_csd_between_equal_gaussians_is_their_means_difference(abar: Tensor) -> None:
    """Oracle 8: w f (mu_u - mu_c), whatever x and eps."""
    std = 0.6
    prior = make_prior(abar, std)
    a, s = scales(abar, T)
    expected = s**2 * (a * s / (a**2 * std**2 + s**2)) * (EMPTY - MUG)
    for seed in (1, 2):
        assert_close(
            csd(prior, randn(seed, *SHAPE), condition(prior), T, randn(seed + 5, *SHAPE)),
            expected.expand(SHAPE),
        )


def test_csd_with_four_coefficients_by_hand(abar: Tensor) -> None:
    """Its definition, each prediction taken alone."""
    prior = make_prior(abar, 0.6)
    cond = condition(prior, "ugly")
    a, s = scales(abar, T)
    x_t = a * X + s * NOISE
    parts = [prior.predict_noise(x_t, T, cond.prompts[role]) for role in ("text", "negative", "uncond")]
    expected = s**2 * (1.5 * parts[0] - 0.7 * parts[1] - 0.5 * parts[2] - 0.3 * NOISE)
    assert_close(
        csd(prior, X, cond, T, NOISE, positive=1.5, negative=-0.7, empty=-0.5, random=-0.3), expected
    )
    assert_close(
        csd(prior, X, cond, T, NOISE, positive=1.0, empty=0.0, random=-1.0),
        sds(prior, X, cond, T, NOISE, scale=1.0),
    )
    normal = csd(prior, X, cond, T, NOISE, normalise=True)
    assert normal.norm().item() == pytest.approx(1.0)
    assert_close(normal * csd(prior, X, cond, T, NOISE).norm(), csd(prior, X, cond, T, NOISE))


class Shifted:
    """A prior whose every prediction is off by a constant."""

    def __init__(self, prior: ExactPrior, by: float) -> None:
        self.prior, self.by = prior, by
        self.num_timesteps, self.alpha, self.sigma = prior.num_timesteps, prior.alpha, prior.sigma

    def predict_noise(self, x_t: Tensor, t: Tensor, cond: Any, cameras: Any = None) -> Tensor:
        return self.prior.predict_noise(x_t, t, cond) + self.by


def test_csd_is_blind_to_a_constant_in_every_prediction(abar: Tensor) -> None:
    """Oracle 9, at every point of the published first stage: the coefficients sum to 0 throughout."""
    prior = make_prior(abar, 0.5)
    loss = scheduled(csd, empty=Ramp(-1, 0, 0, 0.5), negative=Ramp(0, -1, 0, 0.5))
    for progress in (0.0, 0.2, 0.5, 0.9):
        cond = condition(prior, "ugly")
        cond = replace(cond, step=replace(cond.step, progress=progress))
        off: Any = Shifted(prior, 3.0)
        assert_close(loss(off, X, cond, T, NOISE), loss(prior, X, cond, T, NOISE))
    with pytest.raises(ValueError, match=r"must sum to 0, got 1 \+ 0 \+ -0.5 \+ 0 = 0.5"):
        csd(prior, X, condition(prior), T, NOISE, empty=-0.5)


def test_asd_is_a_prediction_gap_plus_classifier_score(abar: Tensor) -> None:
    """Oracle 13: w [e_c(t) - e_c(t')] + (s - 1) CSD; without a shift the first term is exactly 0."""
    prior = make_prior(abar, 0.5)
    cond = condition(prior)
    score = csd(prior, X, cond, T, NOISE)
    assert_close(asd(prior, X, cond, T, NOISE, eta=0.0), 6.5 * score)
    gap = asd(prior, X, cond, T, NOISE, scale=1.0)
    assert gap.abs().max() > 1e-3
    assert_close(asd(prior, X, cond, T, NOISE, scale=7.5), gap + 6.5 * score)


def test_asd_on_a_gaussian(abar: Tensor) -> None:
    """Oracle 14: E g = w {[f(t) - f(t')](x - mu_c) + (s - 1) f(t)(mu_u - mu_c)}, std w |s^2/v - s'^2/v'|."""
    std, t, later, draws, x = 0.7, 300, 360, 40_000, 1.1
    prior = gaussian({"mug": many(0.3, 1)[0], "": many(-0.2, 1)[0]}, std, abar)
    cond = Condition({"text": prior.embed(["mug"] * draws), "uncond": prior.embed([""] * draws)})

    def terms(step: int) -> tuple[float, float]:
        a2 = abar[step].item()
        v = a2 * std**2 + 1 - a2
        return (a2 * (1 - a2)) ** 0.5 / v, (1 - a2) / v

    (f, ratio), (f_later, ratio_later), w = terms(t), terms(later), 1 - abar[t].item()
    # A fixed shift of 0.2 (t - 0) is 60.
    grad = asd(
        prior, many(x, draws), cond, torch.full((draws,), t), randn(5, draws, 1, 1, 1),
        scale=7.5, eta=0.2, t_min=0.0, random_shift=False,
    )  # fmt: skip
    spread = w * abs(ratio - ratio_later)
    expected = w * ((f - f_later) * (x - 0.3) + 6.5 * f * (-0.2 - 0.3))
    assert grad.std().item() == pytest.approx(spread, rel=0.02)
    assert grad.mean().item() == pytest.approx(expected, abs=4 * spread / draws**0.5)


@pytest.mark.parametrize(("t", "attracts"), [(150, False), (240, False), (265, True), (700, True)])
def test_asd_without_guidance_repels_below_the_crossing_and_attracts_above(t: int, attracts: bool) -> None:
    """Oracle 15: s_p = 0.7 on Stable Diffusion's schedule crosses at t = 252."""
    prior = gaussian({"mug": many(0.0, 1)[0]}, 0.7)
    draws = 2
    cond = Condition({"text": prior.embed(["mug"] * draws), "uncond": prior.embed(["mug"] * draws)})
    noise = torch.cat([many(1.0, 1), many(-1.0, 1)])  # averages the noise away exactly
    options: dict[str, Any] = {"scale": 1.0, "eta": 5 / t, "t_min": 0.0, "random_shift": False}
    grad = asd(prior, many(1.0, draws), cond, torch.full((draws,), t), noise, **options)
    assert (grad.mean().item() > 0) == attracts


def test_asd_on_a_dirac_grows_with_the_shift(abar: Tensor) -> None:
    """Oracle 16: w (sqrt SNR_t - sqrt SNR_t')(x - mu) for every noise."""
    prior = make_prior(abar, 0.0)
    cond = condition(prior)
    a, s = scales(abar, T)
    sizes = []
    for eta in (0.05, 0.1, 0.3):
        later = T + (eta * T).floor().long()
        b, r = scales(abar, later)
        grad = asd(prior, X, cond, T, NOISE, scale=1.0, eta=eta, t_min=0.0, random_shift=False)
        assert_close(grad, s**2 * (a / s - b / r) * (X - MUG))
        sizes.append(grad.norm().item())
    assert sizes == sorted(sizes)
    assert sizes[0] > 0


def test_asds_shift_law() -> None:
    """Oracle 17: t = 100, eta = 0.1, t_min = 20: at most 7, none with probability 1/8, evenly; capped at T - 1."""
    prior = dirac({"": torch.zeros(1, 1, 1)})
    draws = 80_000
    uniform = torch.rand(draws, generator=torch.Generator().manual_seed(0))
    shift = shifted(prior, torch.full((draws,), 100), uniform, 0.1, 0.02) - 100
    counts = torch.bincount(shift)
    assert len(counts) == 8
    # Binomial standard deviation sqrt(80,000 / 8 * 7 / 8) = 94.
    assert (counts - draws / 8).abs().max() < 5 * 94
    near_end = shifted(prior, torch.full((draws,), 997), uniform, 0.1, 0.02)
    assert (near_end.min().item(), near_end.max().item()) == (997, 998)
    assert shifted(prior, torch.tensor([999, 0, 10]), torch.tensor([0.9] * 3), 0.1, 0.02).tolist() == [
        999,
        1,
        10,
    ]
    # Undrawn, it is the largest, and nothing at and below t_min.
    assert shifted(prior, torch.tensor([220, 20, 5]), torch.ones(3), 0.1, 0.02).tolist() == [240, 20, 5]
    with pytest.raises(ValueError, match=r"at least 0, got -0\.1"):
        shifted(prior, torch.tensor([5]), torch.ones(1), -0.1, 0.0)


def test_ism_of_a_dirac_is_nothing(abar: Tensor) -> None:
    """Oracle 22: at scale 1 both predictions agree along the trajectory, when prompt and empty prompt do."""
    prior = dirac({"mug": MUG, "": MUG}, abar)
    cond = Condition({"text": prior.embed(["mug"] * 2), "uncond": prior.embed([""] * 2)})
    grad = ism(prior, X, cond, T, NOISE, scale=1.0)
    torch.testing.assert_close(grad, torch.zeros_like(grad), rtol=0, atol=1e-9)


def test_ism_of_a_gaussian_follows_its_trajectory(abar: Tensor) -> None:
    """A Gaussian's DDIM steps are affine maps; done here with numbers, one coordinate at a time."""
    std, t, mean, x = 0.5, 400, 0.3, 1.2
    prior = gaussian({"mug": many(mean, 1)[0], "": many(-0.4, 1)[0]}, std, abar)
    cond = Condition({"text": prior.embed(["mug"]), "uncond": prior.embed([""])})

    def noise_of(value: float, step: int, centre: float) -> float:
        a, s = abar[step].item() ** 0.5, (1 - abar[step].item()) ** 0.5
        return s * (value - a * centre) / (a**2 * std**2 + s**2)

    def move(value: float, step: int, to: int) -> float:
        a, s = abar[step].item() ** 0.5, (1 - abar[step].item()) ** 0.5
        e = noise_of(value, step, -0.4)
        return abar[to].item() ** 0.5 * (value - s * e) / a + (1 - abar[to].item()) ** 0.5 * e

    x_s = move(move(x, 0, 160), 160, 320)
    x_t = move(x_s, 320, t)
    own, empty = noise_of(x_t, t, mean), noise_of(x_t, t, -0.4)
    ratio = ((1 - abar[t]) / abar[t]).sqrt().item()
    expected = ratio * (empty + 7.5 * (own - empty) - noise_of(x_s, 320, -0.4))
    grad = ism(prior, many(x, 1), cond, torch.tensor([t]), many(0, 1), interval=0.08, inversion_steps=2)
    assert grad.item() == pytest.approx(expected, rel=1e-9)


def test_sdi_of_a_dirac_pulls_straight_to_it(abar: Tensor) -> None:
    """Oracle 23: x - mu, whatever noise the inversion finds."""
    prior = dirac({"mug": MUG, "": MUG}, abar)
    cond = Condition({"text": prior.embed(["mug"] * 2), "uncond": prior.embed([""] * 2)})
    for steps in (1, 10):
        assert_close(sdi(prior, X, cond, T, NOISE, inversion_steps=steps), X - MUG)


def test_sdi_of_a_gaussian_inverts_with_its_own_scale(abar: Tensor) -> None:
    """Two affine steps with numbers: guided by -7.5 on the way up, by 7.5 at t."""
    std, t, x = 0.5, 400, 1.2
    prior = gaussian({"mug": many(0.3, 1)[0], "": many(-0.4, 1)[0]}, std, abar)
    cond = Condition({"text": prior.embed(["mug"]), "uncond": prior.embed([""])})

    def guided(value: float, step: int, scale: float) -> float:
        a, s = abar[step].item() ** 0.5, (1 - abar[step].item()) ** 0.5
        text, empty = (s * (value - a * mean) / (a**2 * std**2 + s**2) for mean in (0.3, -0.4))
        return empty + scale * (text - empty)

    def clean(value: float, step: int, noise: float) -> float:
        return (value - (1 - abar[step].item()) ** 0.5 * noise) / abar[step].item() ** 0.5

    value = x
    for step, to in ((0, 200), (200, 400)):
        noise = guided(value, step, -7.5)
        value = abar[to].item() ** 0.5 * clean(value, step, noise) + (1 - abar[to].item()) ** 0.5 * noise
    expected = x - clean(value, t, guided(value, t, 7.5))
    grad = sdi(prior, many(x, 1), cond, torch.tensor([t]), many(0, 1), inversion_steps=2)
    assert grad.item() == pytest.approx(expected, rel=1e-9)


def test_hifa_of_a_dirac_pulls_to_it_in_both_spaces(abar: Tensor) -> None:
    """Decoding is x / 2 + 1/2, so the pixels' term is (x / 2 + 1/2 - clipped target) / 2; any noise, any t."""
    prior = replace(dirac({"mug": 0.9 * MUG.tanh(), "": MUG}, abar), signed=True)
    cond = Condition({"text": prior.embed(["mug"] * 2), "uncond": prior.embed([""] * 2)})
    for image_weight in (0.0, 0.1, 2.0):
        expected = (1 + image_weight / 4) * (X - 0.9 * MUG.tanh())
        assert_close(hifa(prior, X, cond, T, NOISE, scale=1.0, image_weight=image_weight), expected)
    far = replace(dirac({"mug": 3 * MUG, "": MUG}, abar), signed=True)
    pixels = (X / 2 + 0.5 - (1.5 * MUG + 0.5).clamp(0, 1)) / 2
    expected = X - 3 * MUG + 2 * pixels
    assert_close(hifa(far, X, cond, T, NOISE, scale=1.0, image_weight=2.0), expected)


@pytest.mark.parametrize("weighting", ["constant", "uniform", "sigma_squared", "fantasia3d", "hifa"])
def test_hifa_of_a_gaussian_with_guidance(abar: Tensor, weighting: str) -> None:
    """Unsigned pixels decode to themselves; the estimate is (x_t - s e) / a with e = e_u + scale (e_c - e_u)."""
    std, scale, image_weight = 0.5, 7.5, 0.3
    prior = make_prior(abar, std)
    a, s = scales(abar, T)
    x_t = a * X + s * NOISE
    text, empty = (s * (x_t - a * mean) / (a**2 * std**2 + s**2) for mean in (MUG, EMPTY))
    estimate = (x_t - s * (empty + scale * (text - empty))) / a
    weights = {"constant": torch.ones(()), "uniform": a / s, "sigma_squared": a * s, "fantasia3d": a**2 * s}
    w = weights.get(weighting, weights["constant"])
    expected = w * (X - estimate + image_weight * (X - estimate.clamp(0, 1)))
    options: dict[str, Any] = {"scale": scale, "image_weight": image_weight, "weighting": weighting}
    assert_close(hifa(prior, X, condition(prior), T, NOISE, **options), expected)


def test_hifa_without_pixels_is_sds_weighed_by_sigma_over_alpha(abar: Tensor) -> None:
    prior = make_prior(abar, 0.5)
    cond = condition(prior)
    a, s = scales(abar, T)
    for scale in (1.0, 100.0):
        expected = s / a * sds(prior, X, cond, T, NOISE, scale=scale, weighting="uniform")
        assert_close(hifa(prior, X, cond, T, NOISE, scale=scale, image_weight=0.0), expected)
        assert_close(sds(prior, X, cond, T, NOISE, scale=scale, weighting="hifa"), expected)


def test_hifa_lists_its_weightings(abar: Tensor) -> None:
    prior = make_prior(abar, 0.5)
    with pytest.raises(
        ValueError, match="one of constant, sigma_squared, uniform, fantasia3d, hifa, got 'snr'"
    ):
        hifa(prior, X, condition(prior), T, NOISE, weighting="snr")


def test_dds_needs_a_difference(abar: Tensor) -> None:
    """Oracle 24: nothing where source and target agree; with one picture, s (e_c - e_source)."""
    prior = make_prior(abar, 0.5)
    cond = condition(prior)
    same = replace(cond, prompts={**cond.prompts, "source": cond.text}, source_x=X)
    assert dds(prior, X, same, T, NOISE).abs().max() == 0
    assert_close(dds(prior, X, cond, T, NOISE, scale=7.5), bridge(prior, X, cond, T, NOISE, scale=7.5))
    a, s = scales(abar, T)
    other = randn(31, *SHAPE)
    f = a * s / (a**2 * 0.25 + s**2)
    # Shared noise cancels in e_c(x_t) - e_source(other_t): f (x - other) and the means remain.
    expected = s**2 * f * (X - other + 7.5 * (CUP - MUG))
    assert_close(dds(prior, X, replace(cond, source_x=other), T, NOISE, scale=7.5), expected)


def test_bridge_between_equal_gaussians(abar: Tensor) -> None:
    prior = make_prior(abar, 0.6)
    a, s = scales(abar, T)
    expected = s**2 * 3.0 * (a * s / (a**2 * 0.36 + s**2)) * (CUP - MUG)
    assert_close(bridge(prior, X, condition(prior), T, NOISE, scale=3.0), expected.expand(SHAPE))


def test_nfsd_with_the_empty_prompt_as_negative_is_csd_above_the_threshold(abar: Tensor) -> None:
    """Oracle 25: exactly s CSD for t >= 200; below it the unconditional prediction is added."""
    prior = make_prior(abar, 0.5)
    cond, same = condition(prior, "ugly"), condition(prior, "")
    t = torch.tensor([200, 900])
    assert_close(nfsd(prior, X, same, t, NOISE, scale=7.5), 7.5 * csd(prior, X, cond, t, NOISE))
    t = torch.tensor([199, 20])
    a, s = scales(abar, t)
    uncond = prior.predict_noise(a * X + s * NOISE, t, cond.uncond)
    assert_close(
        nfsd(prior, X, same, t, NOISE, scale=7.5), 7.5 * csd(prior, X, cond, t, NOISE) + s**2 * uncond
    )
    t = torch.tensor([300, 600])
    a, s = scales(abar, t)
    domain = s**2 * (a * s / (a**2 * 0.25 + s**2)) * (UGLY - EMPTY)
    assert_close(nfsd(prior, X, cond, t, NOISE), 7.5 * csd(prior, X, cond, t, NOISE) + domain)


PULLS: dict[str, Any] = {
    "sds": partial(sds, scale=1.0),
    "asd": partial(asd, scale=1.0),
    "sdi": partial(sdi, inversion_steps=2),  # a Dirac's inversion is exact in any number of steps
    "csd": partial(csd, empty=0.0, random=-1.0),
}


@pytest.mark.parametrize("name", PULLS)
@pytest.mark.parametrize("sampler", ["uniform", "dreamtime", "dreamtime_v1", "square_root", "annealed"])
def test_a_dirac_prior_through_the_real_loop_is_reached(name: str, sampler: str) -> None:
    """Oracle 26: a 2-D picture converges to mu."""
    target = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(4))
    prior = dirac({"mug": target, "": target}, scaled_linear().float())
    scene = ImageScene(8, 8, lr=0.04, seed=1)
    state = State(scene, optimiser_of(scene), torch.Generator().manual_seed(0))
    settings = settings_of(200, batch=2, size=Ramp(8), final_lr=0.02)
    train(
        Job(
            state, prior, PULLS[name], conditioner(prior, "mug"), scene.render, ranges(),
            getattr(timesteps, sampler)(prior), settings,
        )
    )  # fmt: skip
    torch.testing.assert_close(scene.image[0].movedim(-1, 0), target, rtol=0, atol=5e-3)
