"""A novel-view model under the losses: told cameras, it is a prior like any other."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
from test_novelview_model import randn
from test_novelview_pipeline import RGB, make
from usual import optimiser_of, settings_of

from distill.cameras import Cameras, orbit, turntable
from distill.conditions.prompts import PICTURED, conditioner
from distill.contracts import Condition, Step
from distill.guidance.asd import asd
from distill.guidance.csd import csd
from distill.guidance.nfsd import nfsd
from distill.guidance.sds import sds
from distill.guidance.terms import predict
from distill.guidance.vsd import VSD
from distill.job import Job, State
from distill.loop import train
from distill.priors.novel_view.pipeline import NovelViewPipeline
from distill.priors.novel_view.pose import relative_cameras
from distill.priors.novel_view.prior import NovelViewPrior
from distill.renderers.image import ImageScene
from distill.samplers.cameras import ranges
from distill.samplers.schedules import Ramp, scheduled
from distill.samplers.timesteps import uniform

REFERENCE = orbit(torch.tensor([0.0]), torch.tensor([15.0]), 3.2, 40.0)


@pytest.fixture(params=["epsilon", "v_prediction"])
def prior(request: pytest.FixtureRequest, tmp_path: Path) -> NovelViewPrior:
    return NovelViewPrior.of(make(tmp_path, latent=False, prediction=request.param), RGB, REFERENCE)


def condition(prior: NovelViewPrior, cameras: Cameras) -> Condition:
    return conditioner(prior, PICTURED)(cameras, Step())


def test_its_guided_noise_is_the_pipelines(prior: NovelViewPrior) -> None:
    cameras, t = turntable(3), torch.tensor([30, 400, 900])
    cond, x, noise = condition(prior, cameras), randn(1, 3, 3, 16, 16), randn(2, 3, 3, 16, 16)
    x_t = prior.alpha(t) * x + prior.sigma(t) * noise
    pose = relative_cameras(REFERENCE, cameras)
    for scale in (1.0, 3.0):
        guided = prior.pipeline.predict_noise(x_t, t, prior.given, pose, scale)
        found = sds(prior, x, cond, t, noise, scale=scale, weighting="uniform")
        torch.testing.assert_close(found, guided - noise, rtol=1e-3, atol=1e-4)


def test_other_losses_hold_their_identities_on_it(prior: NovelViewPrior) -> None:
    """SDS at scale s is SDS at 1 and s - 1 times CSD; ASD without a shift is s - 1 times CSD."""
    cond, t = condition(prior, turntable(2)), torch.tensor([300, 700])
    x, noise = randn(1, 2, 3, 16, 16), randn(2, 2, 3, 16, 16)
    score = csd(prior, x, cond, t, noise)
    whole, plain = (sds(prior, x, cond, t, noise, scale=scale) for scale in (4.0, 1.0))
    torch.testing.assert_close(whole, plain + 3 * score, rtol=1e-3, atol=1e-4)
    still = asd(prior, x, cond, t, noise, scale=4.0, eta=0.0, random_shift=False)
    torch.testing.assert_close(still, 3 * score, rtol=1e-3, atol=1e-4)


def test_nfsd_without_a_negative_is_csd_above_its_threshold_and_adds_the_unconditional_noise_below(
    prior: NovelViewPrior,
) -> None:
    """e_u - e_n vanishes where no picture is the negative: g = s (e_c - e_u), and e_u besides at t < 200."""
    cond, t = condition(prior, turntable(2)), torch.tensor([150, 700])
    x, noise = randn(1, 2, 3, 16, 16), randn(2, 2, 3, 16, 16)
    score = csd(prior, x, cond, t, noise, weighting="uniform")
    found = nfsd(prior, x, cond, t, noise, scale=3.0, weighting="uniform")
    torch.testing.assert_close(found[1], 3 * score[1], rtol=1e-3, atol=1e-4)
    x_t = prior.alpha(t) * x + prior.sigma(t) * noise
    (blind,) = predict(prior, x_t, t, cond, "uncond")
    torch.testing.assert_close(found[0], 3 * score[0] + blind[0], rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_vsd_begins_as_the_classifiers_score_and_its_copy_learns_beside_the_frozen_model(
    prior: NovelViewPrior,
) -> None:
    """The untrained copy predicts as the model does, so that the gradient is w (s - 1) (e_c - e_u)."""
    cond, t = condition(prior, turntable(2)), torch.tensor([300, 700])
    x, noise = randn(1, 2, 3, 16, 16), randn(2, 2, 3, 16, 16)
    before = prior.predict_noise(x, t, cond.text, cond.cameras)
    g = torch.Generator().manual_seed(0)
    loss = VSD(prior, g, scale=4.0, rank=2, alpha=2, learning_rate=1e-2, warmup=0)
    score = csd(prior, x, cond, t, noise)
    torch.testing.assert_close(loss(prior, x, cond, t, noise), 3 * score, rtol=1e-3, atol=1e-4)
    x_t = prior.alpha(t) * x + prior.sigma(t) * noise

    def error() -> float:
        with torch.no_grad():
            own = loss.student.predict_noise(x_t, t, cond.text, cond.cameras)
        return (own - noise).square().mean().item()

    untrained = error()
    for _ in range(30):
        loss.learn(prior, x, cond, g)
    assert error() < untrained
    assert not torch.allclose(loss(prior, x, cond, t, noise), 3 * score, atol=1e-3)
    torch.testing.assert_close(prior.predict_noise(x, t, cond.text, cond.cameras), before)


def test_the_camera_matters_and_without_the_picture_it_does_not(prior: NovelViewPrior) -> None:
    x_t, t = randn(1, 1, 3, 16, 16).expand(2, -1, -1, -1), torch.tensor([500, 500])
    cond = condition(prior, turntable(2))
    seen, blind = predict(prior, x_t, t, cond, "text", "uncond")
    assert not torch.allclose(seen[0], seen[1], atol=1e-5)
    torch.testing.assert_close(blind[0], blind[1])


def test_it_drives_the_loop(prior: NovelViewPrior) -> None:
    g = torch.Generator().manual_seed(0)
    scene = ImageScene(16, 16, lr=0.02, seed=g)
    before = scene.image.detach().clone()
    state = State(scene, optimiser_of(scene), g)
    settings = settings_of(iterations=3, batch=2, size=Ramp(16))
    train(
        Job(
            state, prior, scheduled(sds, scale=3.0), conditioner(prior, PICTURED), scene.render, ranges(),
            uniform(prior), settings,
        )
    )  # fmt: skip
    assert state.step == 3
    assert torch.isfinite(scene.image).all()
    assert not torch.equal(scene.image, before)


def test_an_empty_prompt_drops_the_picture_and_any_other_keeps_it(prior: NovelViewPrior) -> None:
    assert prior.embed(["a mug", "", "view"])["keep"].tolist() == [1.0, 0.0, 1.0]


def test_cameras_give_the_poses_and_are_needed(prior: NovelViewPrior) -> None:
    x_t, t, cameras = randn(1, 2, 3, 16, 16), torch.tensor([300, 700]), turntable(2)
    found = prior.predict_noise(x_t, t, prior.embed(["a mug"] * 2), cameras)
    pose = relative_cameras(REFERENCE, cameras)
    expected = prior.pipeline.predict_noise(x_t, t, prior.given, pose)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
    with pytest.raises(ValueError, match="needs the cameras") as told:
        prior.predict_noise(x_t, t, prior.embed(["a mug"] * 2))
    assert "\n" not in str(told.value)


def test_its_gradient_comes_back_through_its_pictures(tmp_path: Path) -> None:
    """Decoding is not clipped: pictures outside [0, 1] have a gradient, too."""
    prior = NovelViewPrior.of(make(tmp_path, latent=False), RGB, REFERENCE)
    x = (10 * randn(1, 1, 3, 16, 16)).requires_grad_()
    prior.decode(x).sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, torch.full_like(x, 0.5))


def test_a_manifest_has_its_files_sums(tmp_path: Path) -> None:
    folder = make(tmp_path / "parts", latent=False).save(tmp_path / "model")
    prior = NovelViewPrior.of(NovelViewPipeline.load(folder), RGB, REFERENCE, "mine")
    said = prior.describe()
    assert (said["loras"], said["controlnet"], said["prior"]["name"]) == ([], None, "mine")
    path = "unet/diffusion_pytorch_model.safetensors"
    assert said["prior"]["sha256"][path] == hashlib.sha256((folder / path).read_bytes()).hexdigest()
