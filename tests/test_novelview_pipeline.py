"""Novel views: sampling against a sampler written out, folders of ours and of others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, DPMSolverMultistepScheduler
from safetensors.torch import load_file, save_file
from test_novelview_model import make_unet, randn, write_encoder
from torch import Tensor
from torch.nn.functional import pixel_unshuffle

from distill.convert import convert
from distill.priors.novel_view.features import load_encoder
from distill.priors.novel_view.model import build, widen
from distill.priors.novel_view.pipeline import NovelViewPipeline
from distill.priors.novel_view.pose import relative

RGB = torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(0))
POSE = relative(
    torch.tensor([[1.0, 0, 1]]).expand(3, 3), torch.tensor([[0.0, 1, 1], [-1, 0, 0.5], [1, 1, 1]])
)


def make(
    folder: Path, *, latent: bool, kind: str = "dinov2", prediction: str = "epsilon"
) -> NovelViewPipeline:
    encoder = load_encoder(write_encoder(folder / kind, kind), layers=[2, 4])
    unet = widen(make_unet(4 if latent else 3))
    model = build(unet, token_width=encoder.token_width, map_width=encoder.map_width, grid=encoder.grid)
    assert model.amalgamation is not None
    with torch.no_grad():  # as if trained
        for seed, weight in enumerate((model.amalgamation.projection.weight, unet.conv_in.weight)):
            weight.copy_(0.1 * randn(seed, *weight.shape))
    vae = None
    if latent:
        torch.manual_seed(2)
        vae = AutoencoderKL(
            block_out_channels=(8, 16), norm_num_groups=4, latent_channels=4, scaling_factor=0.5,
            down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        ).eval()  # fmt: skip
    scheduler = DDIMScheduler(prediction_type=prediction, clip_sample=False, set_alpha_to_one=False)
    return NovelViewPipeline(model.eval().requires_grad_(False), encoder, scheduler, vae)


def draw(pipeline: NovelViewPipeline, **options: Any) -> Tensor:
    return pipeline(RGB, POSE, generator=torch.Generator().manual_seed(1), **{"steps": 4, **options})


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_sampling_is_ddim_with_guidance_written_out(tmp_path: Path, prediction: str) -> None:
    pipeline = make(tmp_path, latent=False, prediction=prediction)
    abar = pipeline.scheduler.alphas_cumprod
    features = pipeline.encoder(RGB[None])
    latent = (RGB * 2 - 1)[None].expand(3, -1, -1, -1)
    x = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    wide = type(features)(features.token.expand(3, -1), features.maps.expand(3, -1, -1))
    for now, after in ((750, 500), (500, 250), (250, 0), (0, -250)):
        a, s = abar[now].sqrt(), (1 - abar[now]).sqrt()
        t = torch.full((3,), now)
        with torch.no_grad():
            cond = pipeline.model(x, t, latent, wide, POSE)
            uncond = pipeline.model(x, t, latent, wide, POSE, torch.zeros(3), torch.zeros(3))
        output = uncond + 3 * (cond - uncond)
        noise = output if prediction == "epsilon" else a * output + s * x
        level = abar[max(after, 0)]
        x = level.sqrt() * (x - s * noise) / a + (1 - level).sqrt() * noise
    torch.testing.assert_close(draw(pipeline), (x / 2 + 0.5).clamp(0, 1), rtol=1e-3, atol=1e-3)


def test_batches_and_other_samplers(tmp_path: Path) -> None:
    pipeline = make(tmp_path, latent=True)
    whole = draw(pipeline)
    assert whole.shape == (3, 3, 32, 32)
    torch.testing.assert_close(draw(pipeline, batch=2), whole, rtol=1e-3, atol=1e-4)
    assert not torch.allclose(draw(pipeline, scale=1.0), whole, atol=1e-3)
    solver = DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config)
    other = NovelViewPipeline(pipeline.model, pipeline.encoder, solver, pipeline.vae)
    assert torch.isfinite(draw(other)).all()


def test_pictures_of_their_own_are_drawn_as_one_by_one(tmp_path: Path) -> None:
    pipeline = make(tmp_path, latent=False)
    pictures = torch.stack([RGB, RGB.flip(2), 1 - RGB])

    def noise(number: int) -> torch.Generator:
        return torch.Generator().manual_seed(number)

    together = pipeline(pictures, POSE, generator=[noise(i) for i in range(3)], steps=3, batch=2)
    for i in range(3):
        alone = pipeline(pictures[i], POSE[i : i + 1], generator=[noise(i)], steps=3)
        torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-3, atol=1e-4)


def test_the_noise_it_predicts_is_the_schedulers(tmp_path: Path) -> None:
    pipeline = make(tmp_path, latent=False, prediction="v_prediction")
    given, x_t, t = pipeline.look(RGB), randn(3, 3, 3, 16, 16), torch.tensor([20, 500, 900])
    noise = pipeline.predict_noise(x_t, t, given, POSE, scale=2.0)
    output = pipeline._predict(x_t, t, given, POSE, 2.0)
    for i, step in enumerate(t.tolist()):
        pipeline.scheduler.set_timesteps(1000)
        clean = pipeline.scheduler.step(output[i : i + 1], step, x_t[i : i + 1]).pred_original_sample
        abar = pipeline.scheduler.alphas_cumprod[step]
        torch.testing.assert_close(abar.sqrt() * clean + (1 - abar).sqrt() * noise[i], x_t[i : i + 1])


@pytest.mark.parametrize("latent", [False, True])
@pytest.mark.parametrize("kind", ["dinov2", "clip"])
def test_a_saved_pipeline_draws_the_same(tmp_path: Path, latent: bool, kind: str) -> None:
    pipeline = make(tmp_path, latent=latent, kind=kind)
    again = NovelViewPipeline.load(pipeline.save(tmp_path / "saved"))
    assert torch.equal(draw(again), draw(pipeline))
    assert not list((tmp_path / "saved").rglob("*.bin"))
    # Saved once more, it does not tell where it lay.
    again.save(tmp_path / "elsewhere")
    assert not any(str(tmp_path) in path.read_text() for path in (tmp_path / "elsewhere").rglob("*.json"))


def test_saved_in_half_precision_it_is_half_as_large_and_nearly_the_same(tmp_path: Path) -> None:
    pipeline = make(tmp_path, latent=False)
    whole, half = pipeline.save(tmp_path / "whole"), pipeline.save(tmp_path / "half", torch.float16)
    sizes = [sum(path.stat().st_size for path in folder.rglob("*.safetensors")) for folder in (whole, half)]
    assert sizes[1] < 0.6 * sizes[0]
    assert next(pipeline.model.parameters()).dtype == torch.float32
    again = NovelViewPipeline.load(half)
    for one, other in zip(again.model.parameters(), pipeline.model.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("place", "name"), [("cc_projection", "projection"), ("clip_camera_projection", "proj")]
)
def test_published_folders_load_under_their_own_names(tmp_path: Path, place: str, name: str) -> None:
    encoder = load_encoder(write_encoder(tmp_path / "clip", "clip"), layers=[])
    model = build(widen(make_unet(4)), token_width=12, norm=False)
    folder = make(tmp_path / "parts", latent=True).save(tmp_path / "published")
    import shutil

    for part in ("conditioning", "image_encoder", "unet"):
        shutil.rmtree(folder / part)
    model.unet.save_pretrained(folder / "unet")
    encoder.model.save_pretrained(folder / "image_encoder")
    (folder / place).mkdir()
    weight, bias = randn(4, 12, 16), randn(5, 12)
    save_file(
        {f"{name}.weight": weight, f"{name}.bias": bias},
        folder / place / "diffusion_pytorch_model.safetensors",
    )
    loaded = NovelViewPipeline.load(folder, fourth="polar")
    assert loaded.model.amalgamation is None
    assert loaded.fourth == "polar"
    token, pose = randn(6, 2, 12), randn(7, 2, 4)
    assert loaded.model.token is not None
    with torch.no_grad():
        expected = torch.cat([token, pose], dim=1) @ weight.T + bias
        torch.testing.assert_close(loaded.model.token(token, pose)[:, 0], expected)
    assert draw(loaded).shape == (3, 3, 32, 32)
    with pytest.raises(ValueError, match="one of distance, polar, got 'up'"):
        NovelViewPipeline.load(folder, fourth="up")
    assert NovelViewPipeline.load(folder).fourth == "distance"
    stable = tmp_path / "models--someone--stable-zero123-diffusers" / "snapshots" / "0f"
    shutil.copytree(folder, stable)
    assert NovelViewPipeline.load(stable).fourth == "polar"
    assert NovelViewPipeline.load(stable, fourth="distance").fourth == "distance"
    (folder / "model_index.json").write_text('{"_name_or_path": "someone/Stable_Zero123"}')
    assert NovelViewPipeline.load(folder).fourth == "polar"


def test_the_condition_latent_is_the_mode_and_not_scaled(tmp_path: Path) -> None:
    pipeline = make(tmp_path, latent=True)
    picture = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(3))
    assert pipeline.vae is not None
    mode = pipeline.vae.encode(picture[None] * 2 - 1).latent_dist.mode()
    torch.testing.assert_close(pipeline.look(picture).latent, mode)
    torch.testing.assert_close(pipeline.space.encode(picture[None]), mode * 0.5)
    draws = [torch.Generator().manual_seed(seed) for seed in (0, 1)]
    one, other = (pipeline.space.encode(picture[None], generator=g) for g in draws)
    assert not torch.allclose(one, other)


def test_pixels_are_folded_into_patches(tmp_path: Path) -> None:
    pipeline = make(tmp_path, latent=False)
    folded = NovelViewPipeline(
        build(widen(make_unet(12)), token_width=16), pipeline.encoder, pipeline.scheduler
    )
    assert (folded.space.factor, folded.size) == (2, 32)
    picture = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(folded.space.encode(picture), pixel_unshuffle(picture * 2 - 1, 2))
    torch.testing.assert_close(folded.space.decode(folded.space.encode(picture)), picture)


def test_wrong_folders_get_one_line(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"none of the folders conditioning, cc_projection, clip_camera_projection"
    ):
        NovelViewPipeline.load(tmp_path)
    folder = make(tmp_path, latent=False).save(tmp_path / "saved")
    weights = folder / "conditioning" / "model.safetensors"
    tensors = load_file(weights)
    save_file({**tensors, "token.projection.weight": torch.zeros(3, 3)}, weights)
    with pytest.raises(ValueError, match="does not fit its encoder and UNet") as told:
        NovelViewPipeline.load(folder)
    assert "\n" not in str(told.value)
    weights.unlink()
    with pytest.raises(ValueError, match=r"only safetensors are read, so convert an older file"):
        NovelViewPipeline.load(folder)


def test_a_pickled_file_of_tensors_is_converted_and_any_other_refused(tmp_path: Path) -> None:
    tensors = {"proj.weight": randn(0, 3, 4), "proj.bias": randn(1, 3)}
    torch.save({"state_dict": tensors}, tmp_path / "old.bin")
    found = load_file(convert(tmp_path / "old.bin"))
    assert all(torch.equal(found[name], value) for name, value in tensors.items())
    torch.save({"weight": tensors["proj.bias"], "step": 3}, tmp_path / "mixed.bin")
    with pytest.raises(ValueError, match="must hold named tensors and nothing else"):
        convert(tmp_path / "mixed.bin")
    (tmp_path / "junk.bin").write_text("hello")
    with pytest.raises(ValueError, match="no readable file of tensors"):
        convert(tmp_path / "junk.bin")
