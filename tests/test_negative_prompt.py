"""What a negative prompt does, in closed form for each loss with a guidance scale."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from test_oracles import (
    ABARS,
    EMPTY,
    MUG,
    NOISE,
    SHAPE,
    UGLY,
    T,
    X,
    assert_close,
    condition,
    make_prior,
    scales,
)
from torch import Tensor

from distill.contracts import Condition
from distill.guidance.asd import asd
from distill.guidance.csd import csd
from distill.guidance.dds import dds
from distill.guidance.hifa import hifa
from distill.guidance.sds import sds
from distill.guidance.vsd import variational_score
from distill.priors.exact import ExactPrior


@pytest.fixture(params=ABARS)
def abar(request: pytest.FixtureRequest) -> Tensor:
    return ABARS[request.param]


def prediction(abar: Tensor, x_t: Tensor, t: Tensor, mean: Tensor, std: float) -> Tensor:
    """A Gaussian's, by its formula."""
    a, s = scales(abar, t)
    return s * (x_t - a * mean) / (a**2 * std**2 + s**2)


def bare_vsd(
    prior: ExactPrior, x: Tensor, cond: Condition, t: Tensor, noise: Tensor, *, scale: float
) -> Tensor:
    """VSD with a copy that is a formula."""
    return variational_score(
        prior, x, cond, t, noise, lambda x_t: 0.1 * x_t, scale=scale, weighting="sigma_squared"
    )


#: Losses with guidance, and the gradient that the difference of the guided predictions, e_hat, has in each: all are linear
#: in it, with a factor that does not depend on the prompts.
GUIDED: dict[str, tuple[Any, Any]] = {
    "sds": (sds, lambda a, s: s**2),
    "asd": (asd, lambda a, s: s**2),
    "hifa": (partial(hifa, image_weight=0.0), lambda a, s: s / a),
    "vsd": (
        bare_vsd,
        lambda a, s: s**2,
    ),
}


@pytest.mark.parametrize("name", GUIDED)
@pytest.mark.parametrize("scale", [0.0, 1.0, 7.5, 100.0])
def test_guidance_leads_away_from_a_negative_prompt(abar: Tensor, name: str, scale: float) -> None:
    """e_neg + s (e_text - e_neg): a negative prompt adds w (1 - s)(e_neg - e_u), the means' difference times w (s - 1) f."""
    std = 0.5
    prior = make_prior(abar, std)
    loss, factor = GUIDED[name]
    a, s = scales(abar, T)
    change = loss(prior, X, condition(prior, "ugly"), T, NOISE, scale=scale) - loss(
        prior, X, condition(prior), T, NOISE, scale=scale
    )
    f = a * s / (a**2 * std**2 + s**2)
    assert_close(change, factor(a, s) * (1 - scale) * f * (EMPTY - UGLY).expand(SHAPE), rtol=1e-6, atol=1e-8)
    # The empty prompt as the negative one is none.
    empty = loss(prior, X, condition(prior, ""), T, NOISE, scale=scale)
    assert torch.equal(empty, loss(prior, X, condition(prior), T, NOISE, scale=scale))


def test_the_guided_prediction_by_hand(abar: Tensor) -> None:
    """SDS at 7.5 from its four numbers; CSD without a negative coefficient keeps the empty prompt."""
    prior = make_prior(abar, 0.5)
    a, s = scales(abar, T)
    x_t = a * X + s * NOISE
    text, ugly, empty = (prediction(abar, x_t, T, mean, 0.5) for mean in (MUG, UGLY, EMPTY))
    cond = condition(prior, "ugly")
    assert_close(sds(prior, X, cond, T, NOISE, scale=7.5), s**2 * (ugly + 7.5 * (text - ugly) - NOISE))
    assert_close(csd(prior, X, cond, T, NOISE), s**2 * (text - empty))


def test_dds_leads_both_predictions_away_from_a_negative_prompt(abar: Tensor) -> None:
    """It cancels where both pictures are one: s (e_c - e_source) whatever the negative prompt."""
    prior = make_prior(abar, 0.5)
    given = [dds(prior, X, condition(prior, told), T, NOISE, scale=7.5) for told in (None, "ugly")]
    assert_close(*given)
    cond = replace(condition(prior, "ugly"), source_x=X + 1)
    a, s = scales(abar, T)
    shift = a * s / (a**2 * 0.25 + s**2)
    assert_close(dds(prior, X, cond, T, NOISE, scale=7.5) - given[0], -(s**2) * shift * torch.ones(SHAPE))
