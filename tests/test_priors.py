"""Loading priors in the diffusers layout, and what their networks' outputs mean."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from conftest import write_tiny_prior

from distill.priors import load_prior
from distill.priors.diffusion import DiffusionPrior
from distill.priors.exact import cosine, scaled_linear
from distill.priors.predictions import from_noise, to_noise


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def latent(latent_folder: Path) -> DiffusionPrior:
    return load_prior(latent_folder, dtype=torch.float32)


@pytest.fixture(scope="module")
def pixel(pixel_folder: Path) -> DiffusionPrior:
    return load_prior(pixel_folder, dtype=torch.float32)


def test_latent_pictures_pass_the_vae_as_in_diffusers(latent: DiffusionPrior) -> None:
    image = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    vae = latent.space.vae
    expected = vae.encode(image * 2 - 1).latent_dist.mode() * vae.config.scaling_factor
    assert latent.image_size == 16
    torch.testing.assert_close(latent.encode(image), expected)


def test_pictures_of_another_size_are_resized(latent: DiffusionPrior) -> None:
    assert latent.encode(torch.rand(1, 3, 40, 24)).shape == (1, 4, 8, 8)


def test_patches_keep_every_pixel(pixel: DiffusionPrior) -> None:
    image = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    x = pixel.encode(image)
    assert x.shape == (2, 12, 8, 8)
    # Channel 4c + 2i + j of a cell is pixel (i, j) of its 2x2 patch in colour c.
    assert x[0, 4 * 1 + 2 * 1 + 0, 3, 5].item() == pytest.approx(2 * image[0, 1, 7, 10].item() - 1)
    torch.testing.assert_close(pixel.decode(x), image)


def test_encode_is_differentiable(latent: DiffusionPrior, pixel: DiffusionPrior) -> None:
    for prior in (latent, pixel):
        image = torch.rand(1, 3, 16, 16).requires_grad_()
        prior.encode(image).sum().backward()
        assert image.grad is not None and image.grad.abs().sum() > 0


def test_a_checkpointed_vae_gives_the_same_gradient(latent_folder: Path, latent: DiffusionPrior) -> None:
    thrifty = load_prior(latent_folder, dtype=torch.float32, checkpointing=True)
    image = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    gradients = []
    for prior in (latent, thrifty):
        given = image.clone().requires_grad_()
        x = prior.encode(given)
        x.backward(randn(*x.shape))
        gradients.append(given.grad)
    torch.testing.assert_close(*gradients)
    assert gradients[0] is not None and gradients[0].abs().sum() > 0


def test_a_size_of_ones_own_must_fit(latent_folder: Path) -> None:
    assert load_prior(latent_folder, image_size=32).encode(torch.rand(1, 3, 8, 8)).shape == (1, 4, 16, 16)
    with pytest.raises(ValueError, match="image_size must be a multiple of 2 for this prior, got 33"):
        load_prior(latent_folder, image_size=33)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_predictions_agree_with_the_scheduler_of_diffusers(tmp_path: Path, prediction: str) -> None:
    from diffusers import DDIMScheduler

    prior = load_prior(write_tiny_prior(tmp_path, latent=True, prediction=prediction), dtype=torch.float32)
    scheduler = DDIMScheduler.from_pretrained(tmp_path / "scheduler", clip_sample=False)
    cond = prior.embed(["a mug"])
    for step in (10, 500, 990):
        x_t, t = randn(1, 4, 8, 8, seed=step), torch.tensor([step])
        output = prior.network(x_t, t, **cond).sample
        scheduler.set_timesteps(1000)
        clean = scheduler.step(output, step, x_t).pred_original_sample
        noise = (x_t - prior.alpha(t) * clean) / prior.sigma(t)
        torch.testing.assert_close(prior.predict_noise(x_t, t, cond), noise, rtol=1e-4, atol=1e-4)


def test_flow_is_the_direction_that_diffusers_integrates() -> None:
    """One Euler step of diffusers' flow-matching scheduler from sigma to 0 must land on the clean picture."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    scheduler = FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(1)
    time = scheduler.timesteps[:1]
    clean, noise = randn(1, 3, 4, 4, seed=1), randn(1, 3, 4, 4, seed=2)
    level = torch.tensor(0.3)
    x_t = (1 - level) * clean + level * noise
    velocity = from_noise("flow", noise, x_t, 1 - level, level)
    torch.testing.assert_close(to_noise("flow", velocity, x_t, 1 - level, level), noise)
    start = scheduler.scale_noise(clean, time, noise)
    torch.testing.assert_close(
        scheduler.step(velocity, time[0], start).prev_sample, clean, rtol=1e-4, atol=1e-5
    )


def test_an_unknown_prediction_is_refused() -> None:
    for convert in (to_noise, from_noise):
        with pytest.raises(ValueError, match="one of epsilon, v_prediction, sample, flow, got 'score'"):
            convert("score", *torch.ones(4, 1))


def test_noise_levels_are_the_scheduler_s(latent: DiffusionPrior) -> None:
    t = torch.arange(1000)
    torch.testing.assert_close(latent.alpha(t).flatten().double() ** 2, scaled_linear(), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(latent.alpha(t) ** 2 + latent.sigma(t) ** 2, torch.ones(1000, 1, 1, 1))


def test_cosine_schedule_is_diffusers_own() -> None:
    from diffusers import DDIMScheduler

    theirs = DDIMScheduler(beta_schedule="squaredcos_cap_v2").alphas_cumprod
    torch.testing.assert_close(cosine().float(), theirs, rtol=1e-4, atol=1e-7)


def test_nothing_flows_into_the_prior(latent: DiffusionPrior) -> None:
    x = randn(1, 4, 8, 8).requires_grad_()
    noise = latent.predict_noise(x, torch.tensor([5]), latent.embed(["a mug"]))
    assert not noise.requires_grad
    assert not any(p.requires_grad for p in latent.network.parameters())


def test_prompts_change_the_prediction_and_batching_does_not(latent: DiffusionPrior) -> None:
    x, t = randn(2, 4, 8, 8), torch.tensor([300, 700])
    both = latent.predict_noise(x, t, latent.embed(["a mug", "a cat"]))
    alone = latent.predict_noise(x[1:], t[1:], latent.embed(["a cat"]))
    other = latent.predict_noise(x[1:], t[1:], latent.embed(["a mug"]))
    torch.testing.assert_close(both[1:], alone, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(alone, other)


def test_bfloat16_stays_near_float32(latent_folder: Path, latent: DiffusionPrior) -> None:
    half = load_prior(latent_folder, dtype=torch.bfloat16)
    x, t = randn(2, 4, 8, 8), torch.tensor([300, 700])
    exact = latent.predict_noise(x, t, latent.embed(["a mug"] * 2))
    rough = half.predict_noise(x, t, half.embed(["a mug"] * 2))
    assert rough.dtype == torch.float32
    assert (rough - exact).square().mean().sqrt() < 0.03 * exact.square().mean().sqrt()


def test_a_missing_prior_says_what_is_expected(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError,
        match=r"'embedded', 'things', 'views', a name that 'distill priors' lists, a hub id .* or a folder in the diffusers layout",
    ):
        load_prior(tmp_path / "nowhere")


def test_a_prior_with_pickled_weights_is_refused(latent_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pickled"
    shutil.copytree(latent_folder, folder)
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(ValueError, match="safetensors") as caught:
        load_prior(folder)
    assert "\n" not in str(caught.value)


def test_a_folder_of_another_family_is_refused_with_what_it_lacks(
    latent_folder: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "other"
    shutil.copytree(latent_folder, folder)
    (folder / "model_index.json").write_text('{"_class_name": "KandinskyPipeline"}')
    with pytest.raises(ValueError, match="is a KandinskyPipeline; known kinds are StableDiffusion, "):
        load_prior(folder)
    (folder / "model_index.json").write_text('{"_class_name": "PixArtAlphaPipeline", "vae": []}')
    with pytest.raises(ValueError, match="lacks transformer, scheduler, tokenizer, text_encoder"):
        load_prior(folder)
