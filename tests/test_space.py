"""One space for pictures: closed forms in pixels, the VAE of diffusers in latents, gradients through both."""

from __future__ import annotations

import copy
import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_pipelines import vae as tiny_vae
from torch import Tensor
from torch.nn.functional import interpolate

from distill.contracts import Condition
from distill.guidance.hifa import hifa
from distill.guidance.terms import predict_guided, through_pixels
from distill.priors import load_prior
from distill.priors.exact import Components, ExactPrior, dirac
from distill.priors.space import Space, downsampling

T = torch.tensor([150, 700])


def randn(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def latents() -> Space:
    torch.manual_seed(0)
    vae = tiny_vae(scaling_factor=0.4, shift_factor=0.25).requires_grad_(False)
    return Space.of(vae, 4, 16)


def test_shapes_follow_the_downsampling_factor(latents: Space) -> None:
    assert (latents.factor, latents.shape, latents.latent) == (8, (4, 2, 2), True)
    assert latents.encode(torch.rand(3, 3, 16, 16)).shape == (3, *latents.shape)
    # A network whose latents are packed has more input channels than the VAE has.
    assert Space.of(latents.vae, 64, 16).shape == (4, 2, 2)
    for in_channels, factor in ((3, 1), (12, 2), (48, 4)):
        space = Space.of(None, in_channels, 16)
        assert downsampling(None, in_channels) == space.factor == factor
        assert space.shape == (in_channels, 16 // factor, 16 // factor)
        assert not space.latent


def test_latents_are_shifted_and_scaled_as_the_vae_says(latents: Space) -> None:
    image = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    mode = latents.vae.encode(image * 2 - 1).latent_dist.mode()
    x = latents.encode(image)
    torch.testing.assert_close(x, (mode - 0.25) * 0.4)
    torch.testing.assert_close(latents.encode(image, scaled=False), mode)
    torch.testing.assert_close(latents.decode(x), latents.vae.decode(mode).sample / 2 + 0.5)


def test_a_channels_own_mean_and_spread(latents: Space) -> None:
    mean, std = [0.1, -0.2, 0.3, 0.0], [1.0, 2.0, 0.5, 4.0]
    latents.vae.register_to_config(latents_mean=mean, latents_std=std)
    image = torch.rand(1, 3, 16, 16)
    mode, column = latents.vae.encode(image * 2 - 1).latent_dist.mode(), (4, 1, 1)
    expected = (mode - torch.tensor(mean).view(column)) * 0.4 / torch.tensor(std).view(column)
    torch.testing.assert_close(latents.encode(image), expected)
    torch.testing.assert_close(latents.decode(expected), latents.vae.decode(mode).sample / 2 + 0.5)


def test_a_sampled_space_draws_for_each_picture_what_follows_from_it(latents: Space) -> None:
    """Of the VAE's distribution: over many pictures that differ by next to nothing, its mean and spread."""
    image = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    sampled = replace(latents, sampled=True)
    both = sampled.encode(image)
    assert torch.equal(both, sampled.encode(image))
    torch.testing.assert_close(both[1:], sampled.encode(image[1:]))
    spread = latents.vae.encode(image[:1] * 2 - 1).latent_dist
    nearly = image[:1] + 1e-5 * torch.arange(2_000)[:, None, None, None] / 2_000
    found = sampled.encode(nearly, scaled=False)
    sure = spread.std.clamp(min=1e-3)
    normal = (found - spread.mean) / sure
    assert normal.mean().abs() < 0.05 and abs(normal.std() - 1) < 0.05
    assert load_prior("embedded", vae_sample=True).space.sampled


def test_a_sample_is_mean_plus_spread_times_the_generators_noise(latents: Space) -> None:
    image = torch.rand(2, 3, 16, 16)
    spread = latents.vae.encode(image * 2 - 1).latent_dist
    found = latents.encode(image, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(found, (spread.mean + spread.std * randn(3, 2, 4, 2, 2) - 0.25) * 0.4)


def test_pictures_of_another_size_are_resized_with_antialiasing() -> None:
    image = torch.rand(1, 3, 24, 40)
    expected = interpolate(image, (8, 8), mode="bilinear", antialias=True)
    torch.testing.assert_close(Space(8, 3).encode(image), expected * 2 - 1)
    torch.testing.assert_close(Space(8, 3, signed=False).encode(image), expected)


def test_decoding_pixels_undoes_encoding_and_does_not_clip() -> None:
    image = 3 * randn(1, 2, 3, 8, 8)
    for space in (Space(8, 3), Space.of(None, 12, 8), Space(8, 3, signed=False)):
        torch.testing.assert_close(space.decode(space.encode(image)), image)


def test_priors_use_it(latent_folder: Path, pixel_folder: Path) -> None:
    flat = Components(torch.zeros(1, 2, 4, 4), torch.ones(1), torch.ones(1))
    priors: list[Any] = [load_prior(folder, dtype=torch.float32) for folder in (latent_folder, pixel_folder)]
    priors.append(ExactPrior({"": flat}))
    assert [prior.shape for prior in priors] == [(4, 8, 8), (12, 8, 8), (2, 4, 4)]
    assert [prior.latent for prior in priors] == [True, False, False]
    assert [prior.image_size for prior in priors] == [16, 16, 4]
    assert [prior.trainable is not None for prior in priors] == [True, True, False]
    for prior in priors:
        image = torch.rand(1, prior.shape[0] if prior.image_size == 4 else 3, *(prior.image_size,) * 2)
        x = prior.encode(image)
        assert x.shape == (1, *prior.shape)
        assert prior.decode(x).shape == image.shape
        assert (prior.views, prior.has_control) == (1, False)
        assert prior.describe().keys() >= {"prior", "loras", "controlnet"}
        with pytest.raises(ValueError, match="no ControlNet to show a picture to"):
            prior.show(image)


def test_a_prior_describes_its_weights_for_a_manifest(latent_folder: Path) -> None:
    said = load_prior(latent_folder, dtype=torch.float32).describe()
    files = {str(path.relative_to(latent_folder)): path for path in latent_folder.rglob("*.safetensors")}
    sums = {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items()}
    assert said == {
        "prior": {"name": str(latent_folder), "sha256": sums}, "prediction_type": "epsilon", "vae": None, "loras": [],
        "embeddings": [], "controlnet": None,
    }  # fmt: skip
    assert len(sums) == 3


def test_gradient_through_pixels_by_hand() -> None:
    """Of |x / 2 + 1/2 - y|^2: each pixel's is x / 2 + 1/2 - y, times one half, times two."""
    prior = dirac({"": torch.zeros(3, 4, 4)})
    prior = ExactPrior(prior.prompts, prior.abar, signed=True)
    x, y = randn(1, 2, 3, 4, 4).requires_grad_(), randn(2, 2, 3, 4, 4)
    with torch.no_grad():
        found = through_pixels(prior, x, lambda image: (image - y).square().sum())
    torch.testing.assert_close(found, (x / 2 + 0.5 - y).detach())
    assert x.grad is None
    assert not found.requires_grad
    untouched = x.detach()
    through_pixels(prior, untouched, torch.sum)
    assert not untouched.requires_grad


def test_hifa_on_latents_is_the_slope_of_its_two_distances(latent_folder: Path) -> None:
    """Autograd through the VAE of diffusers, and central differences along a random direction."""
    prior = load_prior(latent_folder, dtype=torch.float32)
    prior.space.vae.double()
    cond = Condition({"text": prior.embed(["a mug"] * 2), "uncond": prior.embed([""] * 2)})
    x, noise, along = (randn(seed, 2, *prior.shape) for seed in (1, 2, 3))
    x_t = prior.alpha(T) * x + prior.sigma(T) * noise
    estimate = (x_t - prior.sigma(T) * predict_guided(prior, x_t, T, cond, 3.0)) / prior.alpha(T)

    def decoded(z: Tensor) -> Tensor:
        vae = prior.space.vae
        image: Tensor = vae.decode(z.double() / vae.config.scaling_factor).sample / 2 + 0.5
        return image

    def energy(z: Tensor) -> Tensor:
        pixels = (decoded(z) - decoded(estimate).clamp(0, 1)).square().sum()
        return ((z - estimate).square().sum() + 5.0 * pixels) / 2

    leaf = x.double().requires_grad_()
    (expected,) = torch.autograd.grad(energy(leaf), leaf)
    found = hifa(prior, x, cond, T, noise, scale=3.0, image_weight=5.0)
    torch.testing.assert_close(found, expected.float(), rtol=1e-4, atol=1e-4)
    latent_alone = hifa(prior, x, cond, T, noise, scale=3.0, image_weight=0.0)
    assert not torch.allclose(found, latent_alone, rtol=1e-3)
    step = 1e-4 * along.double()
    slope = (energy(x.double() + step) - energy(x.double() - step)) / 2e-4
    assert (found * along).sum().item() == pytest.approx(slope.item(), rel=1e-4)
    assert all(p.grad is None for p in prior.space.vae.parameters())


@pytest.mark.parametrize(
    ("dtype", "upcast", "expected"),
    [
        (torch.bfloat16, True, torch.bfloat16),
        (torch.float16, False, torch.float16),
        (torch.float16, True, torch.float32),
        (torch.float32, True, torch.float32),
    ],
)
def test_a_vae_computes_in_the_priors_precision_where_it_may(
    latent_folder: Path, tmp_path: Path, dtype: torch.dtype, upcast: bool, expected: torch.dtype
) -> None:
    folder = shutil.copytree(latent_folder, tmp_path / "prior")
    config = json.loads((folder / "vae" / "config.json").read_text())
    (folder / "vae" / "config.json").write_text(json.dumps({**config, "force_upcast": upcast}))
    vae = load_prior(folder, dtype=dtype).space.vae
    seen = []
    vae.encoder.conv_in.register_forward_hook(lambda module, args, output: seen.append(output.dtype))
    vae.encoder.conv_in.register_full_backward_hook(lambda module, given, out: seen.append(out[0].dtype))
    picture = torch.rand(1, 3, 16, 16).requires_grad_()
    latent = Space.of(vae, 4, 16).encode(picture)
    latent.sum().backward()
    # Forward and back; the latent and the picture's gradient are in single precision all the same.
    assert seen == [expected, expected]
    assert picture.grad is not None
    assert latent.dtype == picture.grad.dtype == torch.float32


@pytest.mark.parametrize("way", ["encode", "decode"])
@pytest.mark.parametrize("scale", [1.0, 1 / 16384, 1e-12, 1e-35, 1e4])
def test_a_gradient_of_any_size_comes_back_through_a_vae_in_float16(
    way: str, scale: float, latents: Space
) -> None:
    """The way back is linear, so the gradient of a scaled loss is the scaled gradient; a mean over pixels is a small loss."""

    def gradient(space: Space, scale: float) -> Tensor:
        shape = (2, 3, 16, 16) if way == "encode" else (2, *space.shape)
        x = torch.rand(shape, generator=torch.Generator().manual_seed(1)).requires_grad_()
        y = getattr(space, way)(x)
        y.backward(randn(2, *y.shape) * scale)
        assert x.grad is not None
        return x.grad / scale

    exact = gradient(latents, 1.0)
    found = gradient(replace(latents, vae=copy.deepcopy(latents.vae).half()), scale)
    # 0.003 and 0.014 here; with the loss as it is, 0.3 at 1 / 16384 and 1 at 1e-12.
    assert float((found - exact).norm() / exact.norm()) < 0.02


def test_no_gradient_is_one_in_float16_too(latents: Space) -> None:
    half = replace(latents, vae=copy.deepcopy(latents.vae).half())
    image = torch.rand(1, 3, 16, 16).requires_grad_()
    x = half.encode(image)
    x.backward(torch.zeros_like(x))
    assert image.grad is not None and not image.grad.any()
    with torch.no_grad():
        assert not half.encode(image).requires_grad
