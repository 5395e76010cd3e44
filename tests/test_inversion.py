"""ISM and SDI as their authors compute them, with numbers; their own even steps are in ``test_oracles``."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from test_oracles import ABARS, NOISE, T, X, assert_close, condition, make_prior, many, randn
from torch import Tensor

from distill.contracts import Condition, Step
from distill.guidance.ism import ism, with_offset
from distill.guidance.sdi import sdi
from distill.priors.exact import ExactPrior, gaussian


@pytest.fixture(params=ABARS)
def abar(request: pytest.FixtureRequest) -> Tensor:
    return ABARS[request.param]


class Line:
    """One coordinate of a Gaussian prior, with numbers: its prediction, and a step along it."""

    def __init__(self, abar: Tensor, std: float) -> None:
        self.abar, self.std = abar.tolist(), std

    def scales(self, step: int) -> tuple[float, float]:
        return self.abar[step] ** 0.5, (1 - self.abar[step]) ** 0.5

    def noise(self, value: float, step: int, centre: float) -> float:
        a, s = self.scales(step)
        return s * (value - a * centre) / (a**2 * self.std**2 + s**2)

    def clean(self, value: float, step: int, noise: float) -> float:
        a, s = self.scales(step)
        return (value - s * noise) / a

    def move(self, value: float, step: int, to: int, noise: float) -> float:
        a, s = self.scales(to)
        return a * self.clean(value, step, noise) + s * noise


@pytest.mark.parametrize(
    ("t", "visited"), [(481, (1, 201, 401)), (460, (1, 201, 380)), (40, (1,)), (282, (1, 201, 202))]
)
def test_ism_as_its_authors_walk(abar: Tensor, t: int, visited: tuple[int, ...]) -> None:
    """Noised to timestep 1, strides of 200 to t - 80 under the empty prompt; guidance from the negative one; weight s / a."""
    line, x, (mug, empty, ugly) = Line(abar, 0.5), 1.2, (0.3, -0.4, 0.9)
    prior = gaussian({"mug": many(mug, 1)[0], "": many(empty, 1)[0], "ugly": many(ugly, 1)[0]}, 0.5, abar)
    a, s = line.scales(1)
    value = a * x + s * 0.7 * 1.01**0.5  # one pixel is its own mean
    for now, after in pairwise(visited):
        value = line.move(value, now, after, line.noise(value, now, empty))
    before = line.noise(value, visited[-1], empty)
    x_t = line.move(value, visited[-1], t, before)
    away = line.noise(x_t, t, ugly)
    a, s = line.scales(t)
    expected = s / a * (away + 7.5 * (line.noise(x_t, t, mug) - away) - before)
    cond = condition_of(prior, "ugly")
    grad = ism(prior, many(x, 1), cond, torch.tensor([t]), many(0.7, 1), inversion="strides")
    assert grad.item() == pytest.approx(expected, rel=1e-9)


def condition_of(prior: ExactPrior, negative: str) -> Condition:
    told = {"text": "mug", "uncond": "", "negative": negative}
    return Condition(
        {role: prior.embed([name]) for role, name in told.items()}, step=Step(uniform=torch.tensor([0.37]))
    )


def test_isms_offset_has_the_law_of_a_number_added_to_each_channel() -> None:
    """Each value's variance is 1 + 0.1^2, and two of a channel covary by 0.1^2; those of two channels do not."""
    draws = with_offset(randn(0, 200_000, 2, 2, 2), 0.5).flatten(1)
    expected = torch.eye(8) + 0.25 * torch.block_diag(torch.ones(4, 4), torch.ones(4, 4))
    torch.testing.assert_close(draws.T.cov().float(), expected, rtol=0, atol=0.02)


@pytest.mark.parametrize(
    ("t", "visited"),
    [
        (250, (0, 1, 101, 201, 287)),
        (20, (0, 1, 57)),
        (201, (0, 1, 101, 238)),
        (980, (0, *range(1, 1000, 100), 999)),
    ],
)
@pytest.mark.parametrize("negative", ["", "ugly"])
def test_sdi_as_its_authors_invert(abar: Tensor, t: int, visited: tuple[int, ...], negative: str) -> None:
    """Strides of 100 from 1, the last to t + int(0.37 * 100), each with 0.3 of DDPM's noise; used as x_t; the mean's weight."""
    std, x, means = 0.5, 1.2, {"mug": 0.3, "": -0.4, "ugly": 0.9}
    line = Line(abar, std)
    prior = gaussian({name: many(mean, 1)[0] for name, mean in means.items()}, std, abar)

    def guided(value: float, step: int, scale: float) -> float:
        text, away = (line.noise(value, step, means[name]) for name in ("mug", negative))
        return away + scale * (text - away)

    g = torch.Generator().manual_seed(700_000)  # what the noise 0.7 comes to
    fresh = [torch.randn(1, generator=g).item() for _ in visited[1:]]
    value = x
    for (now, after), drawn in zip(pairwise(visited), fresh, strict=True):
        value = line.move(value, now, after, guided(value, now, -7.5))
        back, here = line.abar[now], line.abar[after]
        value += 0.3 * drawn * ((1 - back) / (1 - here) * (1 - here / back)) ** 0.5
    expected = x - line.clean(value, t, guided(value, t, 7.5))
    cond = condition_of(prior, negative)
    given = (prior, many(x, 1), cond, torch.tensor([t]), many(0.7, 1))
    assert sdi(*given, inversion="strides").item() == pytest.approx(expected, rel=1e-5)


def test_sdis_mean_divides_by_the_values_of_a_picture(abar: Tensor) -> None:
    prior = make_prior(abar, 0.5)
    cond = condition(prior)
    whole = sdi(prior, X, cond, T, NOISE, inversion="strides")
    assert_close(sdi(prior, X, cond, T, NOISE, inversion="strides", average=True), whole / 48)
    # Pictures whose paths differ in length are what they are alone.
    for i in range(2):
        alone = cond.part(i, i + 1)
        for loss in (sdi, ism):
            both = loss(prior, X, cond, T, NOISE, inversion="strides")[i : i + 1]
            own = loss(prior, X[i : i + 1], alone, T[i : i + 1], NOISE[i : i + 1], inversion="strides")
            assert_close(both, own, rtol=1e-6)
    with pytest.raises(ValueError, match=r"cond\.step\.uniform, which is None; give torch\.rand\(batch\)"):
        sdi(prior, X, replace(cond, step=Step()), T, NOISE, inversion="strides")
