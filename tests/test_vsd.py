"""VSD against closed forms, and its LoRA training against a plain peft loop."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from distill.cameras import turntable
from distill.contracts import Condition
from distill.guidance.csd import csd
from distill.guidance.sds import sds
from distill.guidance.vsd import VSD, variational_score
from distill.priors import load_prior
from distill.priors.exact import ExactPrior, cosine, dirac, gaussian, scaled_linear

SHAPE = (2, 12, 8, 8)
T = torch.tensor([150, 700])


def randn(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def setting(folder: Path, **options: Any) -> tuple[Any, VSD, Condition]:
    prior = load_prior(folder, dtype=torch.float32)
    loss = VSD(prior, torch.Generator().manual_seed(0), **options)
    cond = Condition(
        {"text": prior.embed(["a mug", "a cup"]), "uncond": prior.embed(["", ""])}, cameras=turntable(2)
    )
    return prior, loss, cond


@pytest.mark.parametrize("kind", ["pixel", "latent"])
def test_untrained_copy_leaves_only_the_classifier_score(kind: str, request: pytest.FixtureRequest) -> None:
    """Oracle 10: at scale 1 exactly 0, bit for bit; otherwise (s - 1) CSD."""
    shape = {"pixel": SHAPE, "latent": (2, 4, 8, 8)}[kind]
    x, noise = randn(0, *shape), randn(1, *shape)
    prior, loss, cond = setting(request.getfixturevalue(f"{kind}_folder"), scale=1.0)
    assert loss(prior, x, cond, T, noise).abs().max() == 0
    loss.scale = 7.5
    score = csd(prior, x, cond, T, noise)
    assert score.abs().max() > 0
    torch.testing.assert_close(loss(prior, x, cond, T, noise), 6.5 * score, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("abar", [scaled_linear(), cosine()], ids=["scaled_linear", "cosine"])
def test_copy_that_knows_the_picture_makes_it_sds(abar: Tensor) -> None:
    """Oracle 11: q a Dirac at x gives SDS, sample by sample."""
    x, noise = randn(0, 2, 3, 4, 4).double(), randn(1, 2, 3, 4, 4).double()
    prior = gaussian({"mug": randn(2, 3, 4, 4).double(), "": randn(3, 3, 4, 4).double()}, 0.5, abar)
    cond = Condition({"text": prior.embed(["mug"] * 2), "uncond": prior.embed([""] * 2)})

    def rendered(x_t: Tensor) -> Tensor:
        knows = [dirac({"x": picture}, abar) for picture in x]
        parts = [
            own.predict_noise(x_t[i : i + 1], T[i : i + 1], own.embed(["x"])) for i, own in enumerate(knows)
        ]
        return torch.cat(parts)

    for scale in (1.0, 7.5):
        torch.testing.assert_close(
            variational_score(prior, x, cond, T, noise, rendered, scale=scale, weighting="sigma_squared"),
            sds(prior, x, cond, T, noise, scale=scale),
            rtol=1e-8,
            atol=1e-9,
        )


@pytest.mark.parametrize("abar", [scaled_linear(), cosine()], ids=["scaled_linear", "cosine"])
def test_gaussian_copy(abar: Tensor) -> None:
    """Oracle 12: E g = w a s [(x - mu) / v_p - (x - m) / v_q]; 0 for every x when q is p."""
    t, draws, std_p, std_q, x, mu, m = 400, 40_000, 0.7, 0.4, 1.1, 0.3, 0.8

    def one(mean: float, std: float) -> ExactPrior:
        return gaussian({"mug": torch.full((1, 1, 1), mean, dtype=torch.float64)}, std, abar)

    prior, times = one(mu, std_p), torch.full((draws,), t)
    cond = Condition({"text": prior.embed(["mug"] * draws), "uncond": prior.embed(["mug"] * draws)})
    pictures = torch.full((draws, 1, 1, 1), x, dtype=torch.float64)
    noise = randn(5, draws, 1, 1, 1).double()

    def grad(q: ExactPrior) -> Tensor:
        def rendered(x_t: Tensor) -> Tensor:
            return q.predict_noise(x_t, times, cond.text)

        return variational_score(
            prior, pictures, cond, times, noise, rendered, scale=1.0, weighting="sigma_squared"
        )

    a2 = abar[t].item()
    w, product = 1 - a2, (a2 * (1 - a2)) ** 0.5
    v_p, v_q = a2 * std_p**2 + 1 - a2, a2 * std_q**2 + 1 - a2
    expected = w * product * ((x - mu) / v_p - (x - m) / v_q)
    found = grad(one(m, std_q))
    assert found.mean().item() == pytest.approx(expected, abs=4 * found.std().item() / draws**0.5)
    assert found.std().item() == pytest.approx(w * (1 - a2) * abs(1 / v_p - 1 / v_q), rel=0.02)
    assert grad(one(mu, std_p)).abs().max() == 0


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_training_is_a_plain_peft_loop(pixel_folder: Path, prediction: str) -> None:
    """The same LoRA, initial weights, timesteps and noises in a loop written with peft and diffusers alone."""
    from diffusers import DDIMScheduler, UNet2DConditionModel
    from peft import LoraConfig, inject_adapter_in_model

    x, steps, rate = randn(0, *SHAPE), 4, 1e-3
    prior, loss, cond = setting(
        pixel_folder, cameras=False, learning_rate=rate, warmup=0, prediction=prediction
    )
    unet = UNet2DConditionModel.from_pretrained(pixel_folder, subfolder="unet").requires_grad_(False)
    config = LoraConfig(
        r=4, lora_alpha=4, init_lora_weights="gaussian", target_modules=["to_q", "to_k", "to_v", "to_out.0"]
    )
    inject_adapter_in_model(config, unet)
    own = [p for name, p in unet.named_parameters() if "lora_" in name]
    with torch.no_grad():
        for mine, theirs in zip(own, loss.student.low_rank(), strict=True):
            mine.copy_(theirs)
    optimiser = torch.optim.AdamW(own, lr=rate)
    scheduler = DDIMScheduler.from_pretrained(pixel_folder, subfolder="scheduler")
    g = torch.Generator().manual_seed(3)
    for _ in range(steps):
        t = torch.randint(1000, (2,), generator=g)
        noise = torch.randn(SHAPE, generator=g)
        torch.rand(2, generator=g)
        x_t = scheduler.add_noise(x, noise, t)
        velocity = unet(x_t, t, **cond.text).sample
        if prediction == "v_prediction":
            error = velocity - scheduler.get_velocity(x, noise, t)
        else:
            a = scheduler.alphas_cumprod[t].sqrt()[:, None, None, None]
            error = a * velocity + (1 - a**2).sqrt() * x_t - noise
        optimiser.zero_grad()
        error.square().mean().backward()
        optimiser.step()
    g = torch.Generator().manual_seed(3)
    for _ in range(steps):
        loss.learn(prior, x, cond, g)
    moved = 0.0
    for mine, theirs in zip(own, loss.student.low_rank(), strict=True):
        # Adam divides by the gradient's size: where that is nearly 0, rounding decides.
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=rate / 20)
        moved = max(moved, mine.abs().max().item())
    assert moved > steps * rate / 2


def test_camera_is_learnt_and_dropped(pixel_folder: Path) -> None:
    prior, loss, cond = setting(pixel_folder, scale=1.0, learning_rate=1e-2, warmup=0)
    x, noise = randn(0, *SHAPE), randn(1, *SHAPE)
    for _ in range(3):
        loss.learn(prior, x, cond, torch.Generator().manual_seed(0))
    with torch.no_grad():
        known = loss.student.predict_noise(x, T, cond.text, cond.cameras)
        without = loss.student.predict_noise(x, T, cond.text, None)
        dropped = loss.student.predict_noise(x, T, cond.text, cond.cameras, torch.tensor([0.0, 1.0]))
    assert not torch.equal(known, without)
    torch.testing.assert_close(dropped[0], without[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(dropped[1], known[1], rtol=1e-4, atol=1e-5)
    assert loss(prior, x, cond, T, noise).abs().max() > 0


def test_prior_is_unchanged_by_the_copy_inside_it(pixel_folder: Path) -> None:
    untouched = load_prior(pixel_folder, dtype=torch.float32)
    prior, loss, cond = setting(pixel_folder, learning_rate=1e-2, warmup=0)
    x = randn(0, *SHAPE)
    for _ in range(3):
        loss.learn(prior, x, cond, torch.Generator().manual_seed(0))
    assert torch.equal(prior.predict_noise(x, T, cond.text), untouched.predict_noise(x, T, cond.text))


def test_saved_lora_loads_in_diffusers(pixel_folder: Path, tmp_path: Path) -> None:
    from diffusers import UNet2DConditionModel

    prior, loss, cond = setting(pixel_folder, cameras=False, learning_rate=1e-2, warmup=0)
    x = randn(0, *SHAPE)
    for _ in range(3):
        loss.learn(prior, x, cond, torch.Generator().manual_seed(0))
    loss.student.save(tmp_path)
    assert [path.suffix for path in tmp_path.iterdir()] == [".safetensors"]
    unet = UNet2DConditionModel.from_pretrained(pixel_folder, subfolder="unet")
    unet.load_lora_adapter(
        tmp_path, prefix=None, weight_name="pytorch_lora_weights.safetensors", use_safetensors=True
    )
    a = prior.alpha(T)
    with torch.no_grad():
        theirs = a * unet(x, T, **cond.text).sample + prior.sigma(T) * x
        ours = loss.student.predict_noise(x, T, cond.text, None)
    torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-5)
    assert not torch.equal(ours, prior.predict_noise(x, T, cond.text))


def test_a_copy_goes_on_from_a_saved_lora(pixel_folder: Path, tmp_path: Path) -> None:
    prior, loss, cond = setting(pixel_folder, cameras=False, learning_rate=1e-2, warmup=0)
    x = randn(0, *SHAPE)
    for _ in range(3):
        loss.learn(prior, x, cond, torch.Generator().manual_seed(0))
    trained = loss(prior, x, cond, T, randn(1, *SHAPE))
    loss.save(tmp_path / "lora")
    for path in (tmp_path / "lora", tmp_path / "lora" / "pytorch_lora_weights.safetensors"):
        prior, again, cond = setting(pixel_folder, cameras=False, lora=str(path))
        assert torch.equal(again(prior, x, cond, T, randn(1, *SHAPE)), trained)


def test_a_lora_that_does_not_fit_is_refused(pixel_folder: Path, tmp_path: Path) -> None:
    prior = load_prior(pixel_folder, dtype=torch.float32)
    VSD(prior, torch.Generator(), rank=2).save(tmp_path)
    with pytest.raises(
        ValueError, match=r"LoRA of another prior, rank or set of layers: (\d+) of the \1 tensors"
    ):
        VSD(prior, torch.Generator(), rank=4, lora=str(tmp_path))
    with pytest.raises(ValueError, match="another prior, rank or set of layers"):
        VSD(prior, torch.Generator(), rank=2, targets=["to_q"], lora=str(tmp_path))
    with pytest.raises(
        ValueError, match=r"must be a LoRA in a safetensors file, but .*nowhere cannot be read"
    ):
        VSD(prior, torch.Generator(), lora=str(tmp_path / "nowhere"))


def test_a_lora_of_another_alpha_is_refused(pixel_folder: Path, tmp_path: Path) -> None:
    prior = load_prior(pixel_folder, dtype=torch.float32)
    VSD(prior, torch.Generator(), rank=2).save(tmp_path)
    with pytest.raises(
        ValueError, match=r"trained with guidance\.alpha=4, and this run has 8; give the same"
    ):
        VSD(prior, torch.Generator(), rank=2, alpha=8, lora=str(tmp_path))


def test_the_copy_may_be_told_the_bare_prompt(pixel_folder: Path) -> None:
    """It is by default; with ``view_text`` the copy gets the view's words, and a condition without them has one prompt."""
    prior, loss, cond = setting(pixel_folder)
    x, noise = randn(0, *SHAPE), randn(1, *SHAPE)
    bare = prior.embed(["a thing", "a thing"])
    assert loss.text(cond) is cond.text
    both = replace(cond, prompts={**cond.prompts, "plain": bare})
    assert loss.text(both) is bare
    assert setting(pixel_folder, view_text=True)[1].text(both) is both.text
    # An untrained copy is the prior itself: told another text, it leaves the difference of the two predictions.
    x_t = prior.alpha(T) * x + prior.sigma(T) * noise
    guided = sds(prior, x, cond, T, noise, scale=7.5, weighting="uniform") + noise
    expected = prior.sigma(T) ** 2 * (guided - prior.predict_noise(x_t, T, bare))
    torch.testing.assert_close(
        loss(prior, x, both, T, noise),
        expected,
        rtol=1e-4,
        atol=1e-5,
    )


def test_a_new_copy_takes_the_place_of_the_old_one(pixel_folder: Path) -> None:
    prior, _, _ = setting(pixel_folder)
    for seed in (1, 2):
        VSD(prior, torch.Generator().manual_seed(seed))
    assert len(prior.network.time_embedding._forward_hooks) == 1
    assert list(prior.network.peft_config) == ["student"]


def test_the_copy_is_trained_without_the_attention_kernel_whose_gradient_can_be_nan(
    pixel_folder: Path,
) -> None:
    """cuDNN's, in half precision on an H100."""
    prior, loss, cond = setting(pixel_folder)
    x, seen = randn(0, *SHAPE), []
    prior.network.conv_in.register_forward_hook(
        lambda *_: seen.append((torch.is_grad_enabled(), torch.backends.cuda.cudnn_sdp_enabled()))
    )
    loss.learn(prior, x, cond, torch.Generator().manual_seed(0))
    with torch.no_grad():
        loss(prior, x, cond, T, randn(1, *SHAPE))
    assert {gradient for gradient, _ in seen} == {True, False}
    assert all(cudnn is not gradient for gradient, cudnn in seen)
    assert torch.backends.cuda.cudnn_sdp_enabled()


def test_a_gradient_that_overflows_in_half_precision_is_made_smaller_until_it_fits(
    pixel_folder: Path,
) -> None:
    """The copy learns what it does in single precision, except for the updates that are left out, and continues from its state."""
    x = randn(0, *SHAPE)

    def learner(half: bool) -> Any:
        prior, loss, cond = setting(pixel_folder, warmup=0)
        student: Any = loss.student
        predict = student.predict_noise

        def narrow(*given: Any) -> Tensor:
            found: Tensor = predict(*given)
            found.register_hook(lambda g: (g * 2**16).half().float() / 2**16)
            return found

        if half:
            student.predict_noise = narrow
        return lambda: loss.learn(prior, x, cond, torch.Generator().manual_seed(1)), loss

    learn, narrow = learner(half=True)
    errors = [learn() for _ in range(12)]
    left_out = sum(map(math.isnan, errors))
    assert 1 <= left_out <= 6 and not any(map(math.isnan, errors[left_out:]))
    plain, single = learner(half=False)
    for _ in range(12 - left_out):
        plain()
    for mine, wanted in zip(narrow.student.trainable(), single.student.trainable(), strict=True):
        torch.testing.assert_close(mine, wanted, atol=2e-4, rtol=0)
    again, other = learner(half=True)
    other.load_state_dict(narrow.state_dict())
    assert math.isfinite(again())


def test_warm_up_and_updates_per_step(pixel_folder: Path) -> None:
    prior, loss, cond = setting(pixel_folder, learning_rate=1e-3, warmup=8, updates=3)
    loss.learn(prior, randn(0, *SHAPE), cond, torch.Generator().manual_seed(0))
    assert loss.done == 3
    assert loss.optimiser.param_groups[0]["lr"] == pytest.approx(1e-3 * 3 / 8)


def test_wrong_priors_and_options_get_one_line(pixel_folder: Path) -> None:
    g = torch.Generator()
    with pytest.raises(ValueError, match="this prior has none; use a diffusers prior that does") as told:
        VSD(dirac({"": torch.zeros(1, 1, 1)}), g)
    assert "\n" not in str(told.value)
    prior = load_prior(pixel_folder, dtype=torch.float32)
    for targets in (["to_nothing"], ["to_q", "to_nothing"]):
        with pytest.raises(ValueError, match=r"no layer named to_nothing .* guidance\.targets"):
            VSD(prior, g, targets=targets)
    with pytest.raises(ValueError, match=r"guidance\.rank must be at least 1, got 0"):
        VSD(prior, g, rank=0)
    with pytest.raises(ValueError, match=r"epsilon or v_prediction, got 'x0'"):
        VSD(prior, g, prediction="x0")  # type: ignore[arg-type]
    small, large = VSD(prior, g, rank=2).state_dict(), VSD(prior, g, rank=4)
    with pytest.raises(ValueError, match=r"do not fit this prior; resume with the same prior="):
        large.load_state_dict(small)
