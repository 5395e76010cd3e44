"""What parts of one's own do wrong in a step, or with what they are given, is said in one line at the first step or before it."""

from __future__ import annotations

import contextlib
import json
import re
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_registered import DOORS
from test_run import OPTIONS
from torch import nn

import distill
from distill import guidance, loop, renderers
from distill.contracts import Condition, Render
from distill.files.checkpoint import check_storable, save_checkpoint
from distill.guidance import made_for_prior, terms
from distill.parts.step import check_learnt, check_render, gradient_of, unchanged
from distill.renderers.image import ImageScene
from distill.run.assembly.assemble import assemble
from distill.run.config.compose import compose_config

SCENE = {name: value for name, value in OPTIONS.items() if not name.startswith("scene.")}


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for door in DOORS.values():
        monkeypatch.setattr(door, "_registered", {})


def first_step(**options: Any) -> Any:
    """The first step of a run with the embedded prior."""
    words = [f"{name}={value}" for name, value in {**SCENE, **options}.items()]
    job = assemble(compose_config(["prompt=a red mug", *words]), distill.load_prior("embedded"))
    return loop.train(job, lambda *_: True)


def changes_x(prior: Any, x: Any, cond: Any, t: Any, noise: Any, *, scale: float = 1.0) -> Any:
    return x.mul_(2)


def changes_noise(prior: Any, x: Any, cond: Any, t: Any, noise: Any, *, scale: float = 1.0) -> Any:
    noise -= x
    return noise.clone()


def changes_t(prior: Any, x: Any, cond: Any, t: Any, noise: Any, *, scale: float = 1.0) -> Any:
    t[:] = 3
    return x.clone()


def changes_prompt(prior: Any, x: Any, cond: Any, t: Any, noise: Any, *, scale: float = 1.0) -> Any:
    next(iter(cond.text.values())).zero_()
    return x.clone()


def differentiates(prior: Any, x: Any, cond: Any, t: Any, noise: Any, *, scale: float = 1.0) -> Any:
    return torch.autograd.grad(x.square().sum(), x)[0]


def differentiates_x(prior: Any, x: Any, cond: Any, t: Any, noise: Any, *, scale: float = 1.0) -> Any:
    with torch.enable_grad():
        return torch.autograd.grad(x.square().sum(), x)[0]


def fails_otherwise(prior: Any, x: Any, cond: Any, t: Any, noise: Any, *, scale: float = 1.0) -> Any:
    raise RuntimeError("of another kind")


@pytest.mark.parametrize(
    ("loss", "error", "said"),
    [
        (changes_x, ValueError, r"the loss changes x in place, which others use after it; work on a copy, such as x\.clone\(\)"),
        (changes_noise, ValueError, "the loss changes noise in place"),
        (changes_t, ValueError, "the loss changes t in place"),
        (changes_prompt, ValueError, r"the loss changes cond\.prompts\['text'\]\['.*'\] in place"),
        (differentiates, ValueError, r"called without gradients: inside 'with torch\.enable_grad\(\):', begin with leaf = x\.detach"),
        (differentiates_x, ValueError, r"called without gradients: .*the prior's predictions have no gradient"),
        (fails_otherwise, RuntimeError, "^of another kind$"),
    ],
)  # fmt: skip
def test_a_loss_that_changes_or_differentiates_what_it_is_given(loss: Any, error: Any, said: str) -> None:
    guidance.register(loss)
    with pytest.raises(error, match=said) as caught:
        first_step(guidance=loss.__name__)
    assert "\n" not in str(caught.value)


def test_the_term_of_a_mixture_that_changes_something_is_named() -> None:
    guidance.register(changes_noise)
    with pytest.raises(ValueError, match=r"guidance\.terms\[1\] changes noise in place"):
        first_step(guidance="mix", **{"guidance.terms": "[{loss: sds}, {loss: changes_noise}]"})


def test_what_is_changed_in_a_copy_is_no_matter() -> None:
    x, t = torch.zeros(2, 3), torch.zeros(2)
    cond = Condition({"text": {"a": x.clone()}}, source_x=x.clone())
    with unchanged("it", x, cond, t, x):
        x.clone().add_(1)
    with (
        pytest.raises(ValueError, match=r"it changes cond\.source_x in place"),
        unchanged("it", x, cond, t, x),
    ):
        assert cond.source_x is not None
        cond.source_x.add_(1)


def test_tensors_that_count_no_changes_are_let_in() -> None:
    """As a prior makes that predicts in torch.inference_mode(); changes of the others are told all the same."""
    with torch.inference_mode():
        cond = Condition({"text": {"a": torch.zeros(2, 3)}}, source_x=torch.zeros(2, 3))
    x, t = torch.zeros(2, 3), torch.zeros(2)
    with unchanged("it", x, cond, t, x.clone()):
        pass
    with pytest.raises(ValueError, match="it changes x in place"), unchanged("it", x, cond, t, x.clone()):
        x.add_(1)


@pytest.mark.parametrize("name", ["x", "t", "noise", "cond.source_x", "cond.prompts['text']['a']"])
def test_whatever_a_loss_is_given_is_watched_and_so_is_a_view_of_it(name: str) -> None:
    x, noise, source, embedded, t = (torch.zeros(2, 3) for _ in range(5))
    given = {"x": x, "t": t, "noise": noise, "cond.source_x": source, "cond.prompts['text']['a']": embedded}
    cond = Condition({"text": {"a": embedded}}, source_x=source)
    with (
        pytest.raises(ValueError, match=f"^it changes {re.escape(name)} in place"),
        unchanged("it", x, cond, t, noise),
    ):
        given[name][:1] += 1


def draws(prior: Any, x: Any, cond: Any, t: Any, noise: Any, *, scale: float = 1.0) -> Any:
    return scale * torch.randn_like(x)


def derives(prior: Any, x: Any, cond: Any, t: Any, noise: Any, *, scale: float = 1.0) -> Any:
    return scale * terms.further_noises(noise, 1)[0]


class Jittered(ImageScene):
    def render(self, *given: Any, **options: Any) -> Any:
        torch.rand(())
        return super().render(*given, **options)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"guidance": "draws"}, "the loss draws random numbers from torch's global generator"),
        ({"scene": "jittered"}, "a part of the run (scene, cameras, timesteps, prior or what the loss learns) draws random numbers"),
        ({"guidance": "derives"}, ""),
        ({"guidance": "sds"}, ""),
        *(pytest.param({"guidance": name}, "", marks=pytest.mark.slow) for name in ("csd", "vsd", "asd", "sdi", "ism", "mix")),
    ],
)  # fmt: skip
def test_random_numbers_that_no_seed_fixes_are_told_once(
    options: dict[str, str], said: str, caplog: pytest.LogCaptureFixture
) -> None:
    for loss in (draws, derives):
        guidance.register(loss)
    renderers.register(Jittered)
    words = [f"{name}={value}" for name, value in {**SCENE, **options, "iterations": 2}.items()]
    job = assemble(compose_config(["prompt=a red mug", *words]), distill.load_prior("embedded"))
    loop.train(job)
    found = [record.getMessage() for record in caplog.records if "global generator" in record.getMessage()]
    assert len(found) == bool(said) and all(each.startswith(said) for each in found)


class Alone(ImageScene):
    def render(self, *given: Any, **options: Any) -> Any:
        seen = super().render(*given, **options)
        return replace(seen, rgb=seen.rgb[:1], opacity=seen.opacity[:1], depth=seen.depth[:1])


class ChannelsFirst(ImageScene):
    def render(self, *given: Any, **options: Any) -> Any:
        seen = super().render(*given, **options)
        return replace(seen, rgb=seen.rgb.movedim(-1, 1))


class NoDepth(ImageScene):
    def render(self, *given: Any, **options: Any) -> Any:
        return replace(super().render(*given, **options), depth=None)  # type: ignore[arg-type]


class Promises(ImageScene):
    features = frozenset({"sparsity"})

    def render(self, *given: Any, penalties: Any = (), **options: Any) -> Any:
        return super().render(*given, **options)


class Unasked(ImageScene):
    def render(self, *given: Any, **options: Any) -> Any:
        seen = super().render(*given, **options)
        return replace(seen, penalties={"sparsity": seen.rgb.mean()})


class PerPicture(Promises):
    def render(self, *given: Any, penalties: Any = (), **options: Any) -> Any:
        seen = super().render(*given, **options)
        return replace(seen, penalties={name: seen.rgb.mean((1, 2, 3)) for name in penalties})


WEIGHT = {"penalties.sparsity": 1}


@pytest.mark.parametrize(
    ("scene", "options", "said"),
    [
        (Alone, {}, r"the rgb of a scene's Render must be of shape \[4, 16, 16, 3\], one picture for each camera, got \[1, "),
        (ChannelsFirst, {}, r"the rgb of a scene's Render must be of shape \[4, 16, 16, 3\], .* got \[4, 3, 16, 16\]"),
        (NoDepth, {}, r"the depth of a scene's Render must be of shape \[4, 16, 16, 1\], .* got NoneType"),
        (Promises, WEIGHT, "names the penalty sparsity in its features, and its render does not return it"),
        (Unasked, {}, "returned the penalty sparsity, which was not asked for"),
        (PerPicture, WEIGHT, r"the penalty sparsity of a scene must be a tensor of shape \[\], got \[4\]; take its mean"),
    ],
)  # fmt: skip
def test_a_scene_that_renders_something_else_than_it_was_asked_for(
    scene: Any, options: dict[str, Any], said: str
) -> None:
    renderers.register(scene)
    with pytest.raises(ValueError, match=said):
        first_step(scene=scene.__name__.lower(), **{"render.size": 16, "render.batch": 4}, **options)


def picture(**changed: Any) -> Render:
    """Two pictures of 4 by 6 pixels as a scene should render them, but for what is changed."""
    rgb, one = torch.zeros(2, 4, 6, 3), torch.zeros(2, 4, 6, 1)
    return replace(Render(rgb, one, one), **changed)


@pytest.mark.parametrize(
    ("changed", "options", "said"),
    [
        ({"normal": None}, {}, ""),
        ({"normal": torch.zeros(2, 4, 6, 3)}, {}, ""),
        ({"normal": torch.zeros(2, 4, 6, 3)}, {"normals": True}, ""),
        ({"normal": None}, {"normals": True}, "the normal of .* must be of shape .*2, 4, 6, 3.*, got NoneType"),
        ({"normal": torch.zeros(2, 4, 6, 1)}, {}, "the normal of .*2, 4, 6, 3.*got .*2, 4, 6, 1"),
        ({"opacity": torch.zeros(2, 4, 6, 3)}, {}, "the opacity of .*2, 4, 6, 1.*got .*2, 4, 6, 3"),
        ({"opacity": torch.zeros(2, 6, 4, 1)}, {}, "the opacity of .*2, 4, 6, 1.*got .*2, 6, 4, 1"),
        ({"depth": torch.zeros(2, 4, 6)}, {}, "the depth of .*2, 4, 6, 1.*got .*2, 4, 6.$"),
        ({"rgb": None}, {}, "the rgb of .*, got NoneType"),
        ({}, {"penalties": ["sparsity"]}, "names the penalty sparsity in its features"),
        # What compares with known views is returned at steps that have them alone.
        ({}, {"penalties": ["reference_rgb", "start_mask"]}, ""),
        ({}, {"penalties": ["reference_rgb", "sparsity"]}, "names the penalty sparsity in its features"),
        ({}, {"penalties": ["a_reference_"]}, "names the penalty a_reference_ in its features"),
        ({"penalties": {"start_rgb": torch.zeros(())}}, {"penalties": ["start_rgb"]}, ""),
        ({"penalties": {"start_rgb": torch.zeros(())}}, {}, "the penalty start_rgb, which was not asked for"),
        ({"penalties": {"start_rgb": torch.zeros(1)}}, {"penalties": ["start_rgb"]}, "must be a tensor of shape .., got .1.; take"),
        ({"penalties": {"sparsity": 0.5}}, {"penalties": ["sparsity"]}, "must be a tensor of shape .., got float; take"),
    ],
)  # fmt: skip
def test_a_render_has_what_was_asked_for_and_nothing_else(changed: Any, options: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said) if said else contextlib.nullcontext():
        check_render(picture(**changed), (2, 4, 6), **options)


@pytest.mark.parametrize(
    ("loss", "said"),
    [
        (2, ""), (0.5, ""), (True, ""), (np.float32(0.5), ""), (Fraction(1, 2), ""),
        (1j, "got complex"), ("1", "got str"), (torch.zeros(()), "got Tensor"), (np.zeros(1), "got ndarray"),
    ],
)  # fmt: skip
def test_what_is_learnt_is_any_real_number(loss: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said) if said else contextlib.nullcontext():
        found = check_learnt(loss)
        assert type(found) is float and found == loss


@pytest.mark.parametrize(
    ("grad", "said"),
    [
        (torch.ones(2, 3), ""),
        (torch.ones(2, 3, dtype=torch.float64), ""),
        (torch.ones(3), r"of the shape of x, \[2, 3\], .*, got \[3\] of torch.float32"),
        (torch.ones(2, 3).long(), r"got \[2, 3\] of torch.int64"),
        (torch.ones(2, 3) > 0, r"got \[2, 3\] of torch.bool"),
        (1.0, "got float"),
    ],
)
def test_a_gradient_is_of_the_shape_of_what_it_is_of(grad: Any, said: str) -> None:
    x, guide, nothing = torch.zeros(2, 3), lambda *_: grad, Condition({})
    prior: Any = None
    with pytest.raises(ValueError, match=said) if said else contextlib.nullcontext():
        assert gradient_of(guide, prior, x, nothing, torch.zeros(2), torch.zeros(2, 3)) is grad


@made_for_prior
class Counting:
    """A sound loss with a state, from which each wrong one differs in one thing."""

    learnt: Any = 1.0
    state: Any = {"done": 0, "nested": [{"a": torch.zeros(1)}, None, "text", 0.5]}  # noqa: RUF012

    def __init__(self, prior: Any, generator: Any, priors: Any, *, scale: float = 1.0) -> None: ...

    def __call__(self, prior: Any, x: Any, cond: Any, t: Any, noise: Any) -> Any:
        return x.clone()

    def learn(self, prior: Any, x: Any, cond: Any, generator: Any, at_once: Any = None) -> Any:
        return self.learnt

    def save(self, folder: Path) -> None: ...

    def state_dict(self) -> Any:
        return self.state

    def load_state_dict(self, saved: Any) -> None: ...


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"learn": lambda self, prior, x: 0.0}, r"the learn of the loss Counting must take \(prior, x, cond, generator, at_once\), got \(prior, x\)"),
        ({"save": lambda self: None}, r"the save of the loss Counting must take \(folder\), got \(\)"),
        ({"load_state_dict": lambda self: None}, r"the load_state_dict of the loss Counting must take \(saved\)"),
        ({"state": [1]}, "the state_dict of the loss Counting must return a dictionary, got list"),
        ({"state": {"net": nn.Linear(1, 1)}}, r"state_dict of the loss Counting\['net'\] holds a Linear, which no checkpoint can"),
        ({"state": {"a": [{"b": {1, 2}}]}}, r"\['a'\]\[0\]\['b'\] holds a set"),
        ({"state": {(1, 2): 3}}, r"has the key \(1, 2\); a checkpoint has texts and integers as keys"),
        ({"learnt": torch.zeros(())}, r"the learn of a loss must return a number, for the log, got Tensor; return float\(...\) of it"),
        ({"learnt": None}, "must return a number, for the log, got NoneType"),
    ],
)  # fmt: skip
def test_a_loss_with_a_state_that_does_not_fit(
    changed: dict[str, Any], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in changed.items():
        monkeypatch.setattr(Counting, name, value)
    guidance.register(Counting)
    with pytest.raises(ValueError, match=said):
        first_step(guidance="counting")


def test_a_sound_loss_with_a_state_is_let_in(tmp_path: Path) -> None:
    guidance.register(Counting)
    state = first_step(guidance="counting")
    assert state.step == 1
    save_checkpoint(tmp_path, 1, state.state_dict(), 1)


def test_a_checkpoint_says_what_it_cannot_hold(tmp_path: Path) -> None:
    check_storable({"a": [1, None, "b", 0.5, True, torch.zeros(1), {3: ()}]}, "it")
    with pytest.raises(ValueError, match=r"learner\.model holds a Linear"):
        save_checkpoint(tmp_path, 1, {"learner": {"model": nn.Linear(1, 1)}}, 1)
    assert json.dumps([path.name for path in tmp_path.rglob("*.safetensors")]) == "[]"
