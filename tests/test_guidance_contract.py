"""What every file in ``guidance/`` promises, whatever it computes. No loss is named here."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor

from distill import guidance
from distill.cameras import Cameras, turntable
from distill.contracts import Condition, Learner, Step
from distill.domains import fits
from distill.files.checkpoint import load_checkpoint, save_checkpoint
from distill.options import hints_of
from distill.priors import load_prior
from distill.priors.exact import Components, ExactPrior, scaled_linear
from distill.run.config.compose import compose_config
from distill.run.config.overrides import as_overrides

LOSSES = [pytest.param(loss, id=name) for name, loss in guidance.available().items()]
LEARNERS = [loss for loss in guidance.available().values() if inspect.isclass(loss)]
BATCH = 3
T = torch.tensor([120, 430, 700])


def randn(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def exact_prior(dtype: torch.dtype = torch.float64) -> ExactPrior:
    """Two Gaussians per prompt: curved enough that every term of a loss counts."""
    prompts = {
        name: Components(
            randn(seed, 2, 2, 4, 4, dtype=dtype),
            torch.tensor([0.5, 0.8], dtype=dtype),
            torch.tensor([1.0, 2.0], dtype=dtype),
        )
        for seed, name in enumerate(("a mug", "", "ugly", "a cup"))
    }
    return ExactPrior(prompts, scaled_linear().to(dtype))


@dataclass
class Case:
    """A loss bound to a prior it can work with, and pictures to call it on."""

    loss: Any
    prior: Any
    x: Tensor
    noise: Tensor

    def condition(self, rows: slice = slice(None)) -> Condition:
        def embed(prompt: str) -> dict[str, Tensor]:
            return {name: value[rows] for name, value in self.prior.embed([prompt] * BATCH).items()}

        cameras = turntable(BATCH)
        return Condition(
            {
                "text": embed("a mug"),
                "uncond": embed(""),
                "negative": embed("ugly"),
                "source": embed("a cup"),
            },
            cameras=Cameras(*(value[rows] for value in vars(cameras).values())),
            step=Step(progress=0.3, uniform=torch.tensor([0.1, 0.5, 0.9])[rows]),
        )

    def __call__(self, rows: slice = slice(None), **changes: Any) -> Tensor:
        given = {"x": self.x[rows], "cond": self.condition(rows), "t": T[rows], "noise": self.noise[rows]}
        given |= changes
        grad = self.loss(self.prior, given["x"], given["cond"], given["t"], given["noise"])
        assert isinstance(grad, Tensor)
        return grad


@pytest.fixture
def case_of(pixel_folder: Path) -> Callable[..., Case]:
    """Losses that train need a network, in float32; the others are checked on an exact prior."""

    def make(loss: Any, dtype: torch.dtype = torch.float64, inside: torch.dtype | None = None) -> Case:
        on_network = loss in LEARNERS or inside is not None
        prior: Any = (
            load_prior(pixel_folder, dtype=inside or torch.float32) if on_network else exact_prior(dtype)
        )
        shape, dtype = ((BATCH, 12, 8, 8), torch.float32) if on_network else ((BATCH, 2, 4, 4), dtype)
        made = guidance.is_made_for_prior(loss)
        bound = loss(prior, torch.Generator().manual_seed(0), {}) if made else loss
        return Case(bound, prior, randn(10, *shape, dtype=dtype), randn(11, *shape, dtype=dtype))

    return make


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_gradient_has_the_pictures_shape_and_precision_and_is_finite(
    loss: Any, dtype: torch.dtype, case_of: Any
) -> None:
    case = case_of(loss, dtype)
    grad = case()
    assert grad.shape == case.x.shape
    assert grad.dtype == case.x.dtype
    assert grad.isfinite().all()
    assert grad.abs().max() > 0


@pytest.mark.parametrize("loss", LOSSES)
def test_same_input_same_bits(loss: Any, case_of: Any) -> None:
    case = case_of(loss)
    torch.manual_seed(0)
    first = case()
    torch.manual_seed(1)
    assert torch.equal(first, case())


@pytest.mark.parametrize("loss", LOSSES)
def test_pictures_do_not_know_of_each_other(loss: Any, case_of: Any) -> None:
    case = case_of(loss)
    whole = case()
    tolerance = 1e-9 if whole.dtype == torch.float64 else 1e-4
    for i in range(BATCH):
        alone = case(slice(i, i + 1))
        torch.testing.assert_close(whole[i : i + 1], alone, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("loss", LOSSES)
def test_inputs_are_left_as_they_were(loss: Any, case_of: Any) -> None:
    case = case_of(loss)
    before = case.x.clone(), case.noise.clone(), T.clone()
    case()
    assert all(torch.equal(*pair) for pair in zip(before, (case.x, case.noise, T), strict=True))


@pytest.mark.parametrize("loss", LOSSES)
def test_backward_delivers_exactly_the_gradient_of_an_equivalent_loss(loss: Any, case_of: Any) -> None:
    case = case_of(loss)
    x, twin = (case.x.clone().requires_grad_() for _ in range(2))
    grad = case(x=x)
    assert not grad.requires_grad
    x.backward(grad)
    (twin * grad).sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, grad)
    assert twin.grad is not None
    assert torch.equal(twin.grad, grad)


@pytest.mark.parametrize("loss", LOSSES)
def test_nothing_flows_into_a_priors_parameters(loss: Any, case_of: Any) -> None:
    case = case_of(loss, inside=torch.float32)
    frozen = [p for name, p in case.prior.network.named_parameters() if "lora" not in name]
    before = [p.clone() for p in frozen]
    x = case.x.clone().requires_grad_()
    x.backward(case(x=x))
    if isinstance(case.loss, Learner):
        case.loss.learn(case.prior, case.x, case.condition(), torch.Generator())
    assert len(frozen) > 50
    assert all(p.grad is None for p in frozen)
    assert all(torch.equal(*pair) for pair in zip(frozen, before, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("loss", LOSSES)
def test_half_precision_inside_the_prior_changes_little(loss: Any, case_of: Any) -> None:
    full, half = (case_of(loss, inside=dtype)() for dtype in (torch.float32, torch.bfloat16))
    assert half.dtype == torch.float32
    # bfloat16 keeps 8 bits, 0.4%; a loss that is the small difference of two predictions loses most of them.
    assert (half - full).norm() < 0.2 * full.norm()


PLAIN = [
    pytest.param(loss, id=name)
    for name, loss in guidance.available().items()
    if not guidance.is_made_for_prior(loss)
]


@pytest.mark.parametrize("loss", PLAIN)
@pytest.mark.parametrize("prediction", ["v_prediction", "sample", "flow"])
def test_what_a_network_predicts_does_not_matter(loss: Any, prediction: str, case_of: Any) -> None:
    """A loss sees noise predictions and ratios of signal to noise, so all that holds for epsilon holds for these."""
    case = case_of(loss)
    if "weighting" in inspect.signature(loss).parameters:
        case.loss = partial(loss, weighting="uniform")  # the others weigh by the scales themselves
    # Losses that follow a trajectory begin it with the picture itself: at its first level there must be no noise.
    abar = case.prior.abar.clone()
    abar[0] = 1 - 1e-12
    case.prior = replace(case.prior, abar=abar)
    expected = case()
    case.prior = replace(case.prior, prediction=prediction)
    torch.testing.assert_close(case(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("loss", LEARNERS, ids=lambda loss: loss.__name__.lower())
def test_a_learners_state_goes_through_a_checkpoint_unchanged(
    loss: Any, case_of: Any, tmp_path: Path
) -> None:
    first, second = case_of(loss), case_of(loss)
    g = torch.Generator().manual_seed(1)
    fresh = first()
    for _ in range(3):
        first.loss.learn(first.prior, first.x, first.condition(), g)
    assert not torch.equal(first(), fresh)
    save_checkpoint(tmp_path, 3, {"learner": first.loss.state_dict()})
    saved = load_checkpoint(tmp_path)
    assert saved is not None
    second.loss.load_state_dict(saved["learner"])
    assert torch.equal(second(), first())
    for case in (first, second):
        case.loss.learn(case.prior, case.x, case.condition(), torch.Generator().manual_seed(2))
    assert torch.equal(second(), first())


@pytest.mark.slow
@pytest.mark.parametrize("loss", LEARNERS, ids=lambda loss: loss.__name__.lower())
def test_a_learner_learns(loss: Any, case_of: Any) -> None:
    """On the same timesteps and noises, a trained one errs less than a fresh one."""
    fresh, trained = case_of(loss), case_of(loss)

    def errors(case: Case, seed: int, count: int) -> float:
        g = torch.Generator().manual_seed(seed)
        return sum(case.loss.learn(case.prior, case.x, case.condition(), g) for _ in range(count))

    errors(trained, 1, 20)
    assert errors(trained, 2, 6) < errors(fresh, 2, 6)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize(("t", "said"), [([1000, 3, 3], "1000"), ([-1, 3, 3], "-1")])
def test_timesteps_outside_the_prior_are_refused(loss: Any, t: list[int], said: str, case_of: Any) -> None:
    with pytest.raises(ValueError, match=rf"\[0, 999\], got .*{said}"):
        case_of(loss)(t=torch.tensor(t))


@pytest.mark.parametrize("loss", LOSSES)
def test_every_option_has_a_default_and_goes_through_the_configuration_unchanged(loss: Any) -> None:
    name = loss.__name__.lower()
    options = {
        key: parameter.default
        for key, parameter in inspect.signature(loss).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY
    }
    assert options
    assert inspect.Parameter.empty not in options.values()

    def composed(*overrides: str) -> Any:
        second = ["negative_prompt=b"] + ["source_prompt=c"] * (name in ("dds", "bridge"))
        chosen = [f"guidance={name}", "tuned/guidance=nothing", *second, *overrides]
        return OmegaConf.to_container(compose_config(["prompt=a red mug", *chosen]).guidance)

    plain = json.loads(json.dumps(options))  # tuples become lists
    unchanged = composed()
    assert {key: unchanged[key] for key in options} == plain
    hints = hints_of(loss, rules=True)
    numeric = {key: value for key, value in options.items() if type(value) in (int, float)}
    changed = {
        key: next(
            new for new in (value + 1, value / 2, value + 0.1) if new != value and fits(new, hints[key])
        )
        for key, value in numeric.items()
    }
    if together := guidance.summing_to_zero(loss):
        changed[together[-1]] = -sum(changed[key] for key in together[:-1])
    overrides = as_overrides({f"guidance.{key}": value for key, value in changed.items()})
    found = composed(*overrides)
    assert {key: found[key] for key in changed} == changed


@pytest.mark.parametrize("loss", LOSSES)
def test_docstring_has_formula_shapes_and_source(loss: Any) -> None:
    text = inspect.getdoc(loss) or ""
    for part in (".. math::", "Args:", "Returns:", "Raises:", "Source:", "arXiv:", "shape ``[batch"):
        assert part in text, f"{loss.__name__}: no {part}"
    for name in inspect.signature(loss).parameters:
        assert f"    {name}: " in text, f"{loss.__name__}: {name} is not described"


def without(cond: Condition, missing: str) -> Condition:
    if missing == "uniform":
        return replace(cond, step=replace(cond.step, uniform=None))
    return replace(cond, prompts={role: value for role, value in cond.prompts.items() if role != missing})


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("missing", ["negative", "source", "uniform"])
def test_what_a_condition_lacks_is_not_needed_or_asked_for_in_one_line(
    loss: Any, missing: str, case_of: Any
) -> None:
    case = case_of(loss)
    remedy = {"negative": "negative_prompt=", "source": "source_prompt=", "uniform": "torch.rand"}[missing]
    try:
        grad = case(cond=without(case.condition(), missing))
    except ValueError as error:
        assert "\n" not in str(error)
        assert remedy in str(error)
    else:
        cond = case.condition()
        if missing == "negative":  # the empty prompt stands in
            cond = replace(cond, prompts={**cond.prompts, "negative": cond.uncond})
        assert torch.equal(grad, case(cond=cond))
