"""Mixtures of losses: sums by hand, terms with their own prior and prompt, errors."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from distill.cameras import turntable
from distill.contracts import Condition, Learner, Step
from distill.guidance.csd import csd
from distill.guidance.mix import mix, resampled
from distill.guidance.nfsd import nfsd
from distill.guidance.sds import sds
from distill.priors import load_prior
from distill.priors.exact import ExactPrior, cosine, gaussian
from distill.run.assembly.assemble import make_guidance
from distill.run.config.compose import compose_config

T = torch.tensor([150, 700])


def randn(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def make_prior(seed: int = 0, size: int = 4, **changes: Any) -> ExactPrior:
    names = ("mug", "", "cup")
    return gaussian({name: randn(seed + i, 3, size, size) for i, name in enumerate(names)}, 0.5, **changes)


X, NOISE = randn(20, 2, 3, 4, 4), randn(21, 2, 3, 4, 4)


def condition(prior: Any, progress: float = 0.0) -> Condition:
    texts = prior.embed(["mug"] * 2), prior.embed([""] * 2)
    step = Step(progress=progress, uniform=torch.tensor([0.2, 0.8]))
    return Condition(dict(zip(("text", "uncond"), texts, strict=True)), turntable(2), step)


def made(prior: Any, *terms: dict[str, Any]) -> Any:
    return mix(prior, torch.Generator().manual_seed(0), terms=terms)


def test_a_sum_of_terms_with_scheduled_weights_and_options() -> None:
    prior = make_prior()
    ramp = {"start": 2.0, "end": 0.0, "to_fraction": 0.5}
    loss = made(
        prior,
        {"loss": "sds", "weight": ramp, "scale": 3.0},
        {"loss": "csd", "weight": 0.5, "weighting": "uniform"},
        {"loss": "sds", "scale": {"start": 1.0, "end": 5.0}},
    )
    for progress, weight, scale in ((0.0, 2.0, 1.0), (0.25, 1.0, 2.0), (0.75, 0.0, 4.0)):
        cond = condition(prior, progress)
        expected = (
            weight * sds(prior, X, cond, T, NOISE, scale=3.0)
            + 0.5 * csd(prior, X, cond, T, NOISE, weighting="uniform")
            + sds(prior, X, cond, T, NOISE, scale=scale)
        )
        torch.testing.assert_close(loss(prior, X, cond, T, NOISE), expected)


def test_sds_is_a_mixture_of_its_parts() -> None:
    """SDS at scale s = (SDS at 1) + (s - 1) CSD."""
    prior = make_prior()
    cond = condition(prior)
    loss = made(prior, {"loss": "sds", "scale": 1.0}, {"loss": "csd", "weight": 6.5})
    torch.testing.assert_close(loss(prior, X, cond, T, NOISE), sds(prior, X, cond, T, NOISE, scale=7.5))


def test_a_term_with_its_own_prompt() -> None:
    prior = make_prior()
    cond = condition(prior)
    loss = made(prior, {"loss": "sds", "prompt": "cup", "scale": 1.0})
    other = Condition({"text": prior.embed(["cup"] * 2), "uncond": cond.uncond})
    torch.testing.assert_close(loss(prior, X, cond, T, NOISE), sds(prior, X, other, T, NOISE, scale=1.0))


def test_a_term_with_its_own_prior_sees_the_same_picture_in_its_own_space() -> None:
    """Its space is [-1, 1], half as many timesteps, another schedule: the gradient picks up a factor of 2."""
    prior = make_prior()
    own = ExactPrior(make_prior(seed=7).prompts, cosine(500), signed=True)
    cond = condition(prior)
    loss = made(prior, {"loss": "sds", "prior": own, "prompt": "mug", "scale": 1.0})
    level = T * 499 // 999
    expected = 2 * sds(own, 2 * X - 1, condition(own), level, NOISE, scale=1.0)
    torch.testing.assert_close(loss(prior, X, cond, T, NOISE), expected)


def test_a_prior_of_another_size_gets_resized_pictures_and_noise_that_follows_from_the_given_one() -> None:
    prior, own = make_prior(), make_prior(seed=7, size=8)
    loss = made(prior, {"loss": "sds", "prior": own, "prompt": "mug", "scale": 1.0})
    first = loss(prior, X, condition(prior), T, NOISE)
    assert first.shape == X.shape
    assert torch.equal(first, loss(prior, X, condition(prior), T, NOISE))
    assert not torch.equal(first, loss(prior, X, condition(prior), T, NOISE + 0.01))


def test_a_mixture_with_vsd_trains_and_saves_it(pixel_folder: Path, tmp_path: Path) -> None:
    prior = load_prior(pixel_folder, dtype=torch.float32)
    x, noise = randn(0, 2, 12, 8, 8).float(), randn(1, 2, 12, 8, 8).float()
    terms: tuple[dict[str, Any], ...] = ({"loss": "sds"}, {"loss": "vsd", "learning_rate": 1e-2, "warmup": 0})
    loss = made(prior, *terms)
    assert isinstance(loss, Learner)
    assert not isinstance(made(prior, {"loss": "sds"}), Learner)
    loss = made(prior, *terms)
    fresh = loss(prior, x, condition(prior), T, noise)
    assert loss.learn(prior, x, condition(prior), torch.Generator().manual_seed(0)) > 0
    trained = loss(prior, x, condition(prior), T, noise)
    assert not torch.equal(fresh, trained)
    loss.save(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["term-1"]
    assert (tmp_path / "term-1" / "pytorch_lora_weights.safetensors").exists()
    saved = copy.deepcopy(loss.state_dict())
    other = made(prior, *terms)
    other.load_state_dict(saved)
    torch.testing.assert_close(other(prior, x, condition(prior), T, noise), trained)


def test_two_copies_inside_one_prior_are_refused(pixel_folder: Path) -> None:
    prior = load_prior(pixel_folder, dtype=torch.float32)
    with pytest.raises(
        ValueError, match="train a copy inside one prior; give one of them a prior of its own"
    ):
        made(prior, {"loss": "vsd"}, {"loss": "vsd", "scale": 1})
    other = load_prior(pixel_folder, dtype=torch.float32)
    assert isinstance(
        made(prior, {"loss": "vsd"}, {"loss": "vsd", "prior": other, "prompt": "a cup"}), Learner
    )


def test_a_term_with_its_own_prompt_keeps_the_other_prompts() -> None:
    prior = gaussian({name: randn(i, 3, 4, 4) for i, name in enumerate(("mug", "", "cup", "ugly"))}, 0.5)
    loss = made(prior, {"loss": "nfsd", "prompt": "cup"})
    cond = condition(prior)
    cond = replace(cond, prompts={**cond.prompts, "negative": prior.embed(["ugly"] * 2)})
    other = replace(cond, prompts={**cond.prompts, "text": prior.embed(["cup"] * 2)})
    expected = nfsd(prior, X, other, T, NOISE)
    torch.testing.assert_close(loss(prior, X, cond, T, NOISE), expected)


def test_from_the_command_line() -> None:
    terms = "[{loss:sds,scale:1},{loss:csd,weight:{start:6.5,end:0}}]"
    config = compose_config(["prompt=x", "guidance=mix", f"guidance.terms={terms}"])
    prior = make_prior()
    loss = make_guidance(config, prior, torch.Generator(), {})
    cond = condition(prior)
    torch.testing.assert_close(loss(prior, X, cond, T, NOISE), sds(prior, X, cond, T, NOISE, scale=7.5))


@pytest.mark.parametrize(
    ("terms", "said"),
    [
        ([], r"must be a list of losses such as \[\{loss: sds, weight: 1\}\], got \(\)"),
        ([{"loss": "sdss"}], r"terms\[0\] needs a loss, one of asd, .*; got 'sdss'"),
        ([{"weight": 1}], r"terms\[0\] needs a loss, .*; got None"),
        (
            [{"loss": "sds"}, {"loss": "sds", "scal": 1}],
            r"terms\[1\]: sds has no option 'scal'; .*it has scale",
        ),
        ([{"loss": "sds", "weight": "much"}], r"terms\[0\]\.weight must be a finite number or a schedule"),
        ([{"loss": "sds", "scale": {"start": 1, "end": 2, "to_step": 3}}], "given in steps; here only"),
        ([{"loss": "sds", "prior": "embedded"}], "which needs its own prompt"),
        ([{"loss": "sds", "scale": "big"}], r"terms\[0\]\.scale must be a finite number or a schedule"),
        (
            [{"loss": "ism", "inversion_steps": {"start": 4, "end": 2}}],
            r"terms\[0\]\.inversion_steps must be an integer",
        ),
        (["sds", "csd"], r"terms\[0\] must be a mapping such as \{loss: sds, weight: 1\}, got 'sds'"),
    ],
)
def test_wrong_terms_get_one_line(terms: list[dict[str, Any]], said: str) -> None:
    with pytest.raises(ValueError, match=said) as told:
        made(make_prior(), *terms)
    assert "\n" not in str(told.value)


def test_noise_of_another_shape_follows_from_the_given_one_and_is_normal() -> None:
    like = torch.zeros(2, 3, 8, 8)
    drawn = torch.stack([resampled(randn(seed, 2, 4, 4, 4), like) for seed in range(300)])
    assert not torch.equal(drawn[:, 0], drawn[:, 1])
    assert torch.equal(drawn[7], resampled(randn(7, 2, 4, 4, 4), like))
    assert len({float(one.sum()) for one in drawn}) == 300
    assert float(drawn.mean()) == pytest.approx(0, abs=4 / drawn.numel() ** 0.5)
    assert float(drawn.var()) == pytest.approx(1, abs=4 * (2 / drawn.numel()) ** 0.5)


def test_noise_for_a_prior_of_another_size_does_not_depend_on_how_the_batch_is_cut() -> None:
    prior, own = make_prior(), make_prior(seed=7, size=8)
    loss = made(prior, {"loss": "sds", "prior": own, "prompt": "mug", "scale": 1.0})

    def of(part: slice) -> Tensor:
        texts = {name: prior.embed([text] * len(X[part])) for name, text in (("text", "mug"), ("uncond", ""))}
        cond = Condition(texts, turntable(2)[part])
        return loss(prior, X[part], cond, T[part], NOISE[part])

    apart = torch.cat([of(slice(0, 1)), of(slice(1, 2))])
    torch.testing.assert_close(of(slice(0, 2)), apart)
