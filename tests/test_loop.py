"""The loop: convergence, exact resumption, and gradients that are not finite."""

from __future__ import annotations

from functools import partial
from typing import Any, cast

import pytest
import torch
from usual import optimiser_of, settings_of

from distill import loop
from distill.conditions import prompts
from distill.contracts import Condition, Prior, Render
from distill.guidance.sds import sds
from distill.job import Job, Settings, State
from distill.priors.exact import dirac
from distill.renderers import HashGridScene
from distill.renderers.image import ImageScene
from distill.samplers.cameras import ranges
from distill.samplers.schedules import Ramp
from distill.samplers.timesteps import uniform

TARGET = torch.linspace(0.1, 0.9, 3 * 8 * 8).view(3, 8, 8)
PRIOR = dirac({"mug": TARGET, "": torch.zeros_like(TARGET)})


PULL = partial(sds, scale=1.0)


def start(seed: int = 0) -> State:
    g = torch.Generator().manual_seed(seed)
    scene = ImageScene(8, 8, lr=0.02, seed=g)
    return State(scene, optimiser_of(scene), g)


def job(state: State, guidance: Any, settings: Settings, render: Any = None) -> Job:
    return Job(
        state, PRIOR, guidance, prompts.conditioner(PRIOR, "mug"), render or state.scene.render, ranges(),
        uniform(PRIOR), settings,
    )  # fmt: skip


def go(state: State, iterations: int = 300, guidance: Any = PULL, stop_at: int = -1, **settings: Any) -> Any:
    return loop.train(
        job(state, guidance, settings_of(iterations, batch=2, size=Ramp(8), **settings)),
        on_step=lambda now, metrics, picture: now.step == stop_at,
    )


def image_of(state: State) -> torch.Tensor:
    """Return the pixels of an image scene."""
    return state.scene.state_dict()["image"].detach()


def test_a_dirac_prior_pulls_a_picture_onto_its_mean() -> None:
    state = go(start(), final_lr=0.01)
    assert isinstance(state.scene, ImageScene)
    error = (state.scene.image[0].movedim(-1, 0) - TARGET).abs().max().item()
    assert error < 0.01


def test_a_saved_and_loaded_state_ends_bitwise_where_the_unbroken_one_does() -> None:
    whole = go(start(), 40, ema=0.9, final_lr=0.1)
    half = go(start(), 40, stop_at=17, ema=0.9, final_lr=0.1)
    assert half.step == 17
    resumed = start(seed=99)
    resumed.load_state_dict(half.state_dict())
    resumed = go(resumed, 40, ema=0.9, final_lr=0.1)
    assert torch.equal(resumed.scene.image, whole.scene.image)
    assert whole.average is not None and resumed.average is not None
    assert torch.equal(resumed.average[0], whole.average[0])


def test_the_moving_average_follows_its_recurrence() -> None:
    seen: list[torch.Tensor] = []
    state = start()
    loop.train(
        job(state, PULL, settings_of(3, batch=1, size=Ramp(8), ema=0.9)),
        on_step=lambda now, metrics, picture: seen.append(image_of(now).clone()),
    )
    expected = 0.9 * (0.9 * seen[0] + 0.1 * seen[1]) + 0.1 * seen[2]
    assert state.average is not None
    torch.testing.assert_close(state.average[0], expected)


def broken(
    prior: Prior, x: torch.Tensor, cond: Condition, t: torch.Tensor, noise: torch.Tensor
) -> torch.Tensor:
    return torch.full_like(x, torch.nan)


def test_steps_that_are_not_finite_change_nothing_and_stop_the_run_after_a_while() -> None:
    state = start()
    before = image_of(state).clone()
    with pytest.raises(loop.Diverged, match="not finite in 5 steps in a row"):
        go(state, guidance=broken, max_bad_steps=5)
    assert torch.equal(image_of(state), before)
    assert (state.skipped, state.step) == (5, 5)


def test_a_prior_that_gives_nan_is_named() -> None:
    with pytest.raises(loop.Diverged, match=r"what the prior and the loss gave was not finite .* in float32"):
        go(start(), guidance=broken, max_bad_steps=2)

    state = start()

    def broken_penalty(
        cameras: Any, height: Any, width: Any, *, generator: Any = None, **options: Any
    ) -> Any:
        picture = state.scene.render(cameras, height, width)
        # The root's slope at zero is infinite.
        return Render(
            picture.rgb,
            picture.opacity,
            picture.depth,
            penalties={"sparsity": (0 * picture.rgb).sum().sqrt()},
        )

    with pytest.raises(
        loop.Diverged, match=r"the scene's gradient was not finite .* with lower learning rates"
    ):
        settings = settings_of(9, batch=1, size=Ramp(8), penalties={"sparsity": Ramp(1.0)}, max_bad_steps=2)
        loop.train(job(state, PULL, settings, broken_penalty))


def test_a_guidance_that_cannot_learn_stops_the_run_after_a_while() -> None:
    class Stuck:
        """Learns nothing, as a copy of the prior whose gradients overflow in half precision."""

        def learn(self, *_: Any) -> float:
            return float("nan")

    state = start()
    state.learner = cast(Any, Stuck())
    with pytest.raises(
        loop.Diverged, match=r"what the guidance learns was not finite in 3 .* step 2; .*bfloat16"
    ):
        go(state, max_bad_steps=3)
    assert (state.skipped, state.step) == (0, 3)


def test_a_single_bad_step_is_skipped_and_counted() -> None:
    def sometimes(prior: Any, x: Any, cond: Any, t: Any, noise: Any) -> Any:
        grad = sds(prior, x, cond, t, noise, scale=1.0)
        return grad * torch.nan if bool(t[0] % 7 == 0) else grad

    state = go(start(), 60, guidance=sometimes, max_bad_steps=10)
    assert 0 < state.skipped < 30
    assert state.step == 60
    assert torch.isfinite(state.scene.image).all()


def test_penalties_enter_the_gradient_with_their_weight() -> None:
    state = start()

    def penalised(cameras: Any, height: Any, width: Any, *, generator: Any = None, **options: Any) -> Any:
        picture = state.scene.render(cameras, height, width)
        return Render(picture.rgb, picture.opacity, picture.depth, penalties={"sparsity": picture.rgb.sum()})

    def nothing(prior: Any, x: Any, cond: Any, t: Any, noise: Any) -> Any:
        return torch.zeros_like(x)

    norms: list[float] = []
    settings = settings_of(2, batch=1, size=Ramp(8), penalties={"sparsity": Ramp(3.0, 5.0, 0.0, 0.5)})
    loop.train(
        job(state, nothing, settings, penalised),
        on_step=lambda now, metrics, picture: norms.append(metrics["grad_norm"]),
    )
    # The gradient is the weight at each of 192 pixels values: weight * sqrt(192).
    assert norms == pytest.approx([3 * 192**0.5, 5 * 192**0.5])


def test_each_kind_of_parameter_has_the_scenes_own_rate() -> None:
    scene = HashGridScene(levels=2, encoding_lr=0.1, mlp_lr=0.2, background_lr=0.3, background="learned")
    groups = optimiser_of(scene, (0.5, 0.6), 1e-3).param_groups
    assert [(group["lr"], group["peak_lr"]) for group in groups] == [(0.1, 0.1), (0.2, 0.2), (0.3, 0.3)]
    assert all((group["betas"], group["eps"]) == ((0.5, 0.6), 1e-3) for group in groups)
    parameters = [id(p) for group in groups for p in group["params"]]
    assert sorted(parameters) == sorted(id(p) for p in scene.parameters())


def test_the_loss_can_be_weighed_and_summed_over_the_batch() -> None:
    def gradient(**settings: Any) -> torch.Tensor:
        state = start()
        now = job(state, PULL, settings_of(10, batch=2, size=Ramp(8), **settings))
        loop.accumulate(now, loop.Step(0, 0.5), now.cameras(0.5, 2, state.generator), state.generator)
        found = state.parameters()[0].grad
        assert found is not None
        return found

    mean = gradient()
    torch.testing.assert_close(gradient(summed=True), 2 * mean)
    torch.testing.assert_close(gradient(guidance_weight=Ramp(0.1)), 0.1 * mean)
    torch.testing.assert_close(gradient(guidance_weight=Ramp(0.0, 1.0)), 0.5 * mean)


def test_weight_decay_is_decoupled_and_none_is_adam() -> None:
    scene = ImageScene(8, 8, lr=0.02, seed=torch.Generator().manual_seed(0))
    plain, decayed = optimiser_of(scene), optimiser_of(scene, weight_decay=0.1)
    (image,) = [p for group in scene.parameter_groups().values() for p in group.parameters]
    before = image.detach().clone()
    adam = torch.optim.Adam([before.clone().requires_grad_()], lr=0.02, betas=(0.9, 0.99), eps=1e-15)
    (own,) = adam.param_groups[0]["params"]
    grad = torch.linspace(-1, 1, image.numel()).view_as(image)
    image.grad, own.grad = grad.clone(), grad.clone()
    plain.step()
    adam.step()
    torch.testing.assert_close(image.detach(), own.detach())
    with torch.no_grad():
        image.copy_(before)
    decayed.step()
    # One step of Adam from rest is the rate times the gradient's sign; the parameter shrinks by rate times decay beforehand.
    expected = before * (1 - 0.02 * 0.1) - 0.02 * grad.sign()
    torch.testing.assert_close(image.detach(), expected)


def test_a_step_of_several_prompts_moves_by_the_mean_of_their_gradients() -> None:
    """Gradients of 1, 2 and 6 in each of 192 numbers have the mean 3, which is then cut to a norm of 1."""
    sizes = iter([1.0, 2.0, 6.0])

    def guidance(prior: Any, x: torch.Tensor, *_: Any) -> torch.Tensor:
        return torch.full_like(x, next(sizes))

    state = start()
    settings = settings_of(10, batch=2, size=Ramp(8), accumulate=3, clip_norm=1.0)
    _, metrics = loop.step(job(state, guidance, settings))
    assert metrics["grad_norm"] == pytest.approx(3 * 192**0.5)
    (image,) = state.parameters()
    assert image.grad is not None
    torch.testing.assert_close(image.grad, torch.full_like(image, 192**-0.5))
