"""Every family of priors against the pipeline of diffusers that it stands for."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_pipelines import MAKERS, clip_tokenizer, make, sentencepiece

from distill.contracts import Prompt
from distill.priors import load_prior
from distill.priors.adapter import Student
from distill.priors.diffusion import DiffusionPrior
from distill.priors.families.length import cut_off, fit

#: How each pipeline is called for few steps at timesteps that its prior's table holds.
CALLS: dict[str, dict[str, Any]] = {
    "stable_diffusion": {"num_inference_steps": 4},
    "stable_diffusion_v": {"num_inference_steps": 4},
    "stable_diffusion_xl": {"num_inference_steps": 4},
    "deepfloyd": {"num_inference_steps": 4},
    "pixart": {"num_inference_steps": 4, "use_resolution_binning": False, "height": 64, "width": 64},
    "pixart_sized": {"num_inference_steps": 4, "use_resolution_binning": False, "height": 64, "width": 64},
    "pixart_sigma": {"num_inference_steps": 4, "use_resolution_binning": False, "height": 64, "width": 64},
    "stable_diffusion_3": {"sigmas": [0.8, 0.4]},
    "flux": {"sigmas": [0.8, 0.4], "height": 64, "width": 64},
    "flux_undistilled": {"sigmas": [0.8, 0.4], "height": 64, "width": 64},
    "sana": {"num_inference_steps": 3, "use_resolution_binning": False, "height": 32, "width": 32},
}
SIZES = {"deepfloyd": 8, "sana": 32}


@dataclass(frozen=True)
class Case:
    """A pipeline and the prior that was loaded from its folder."""

    name: str
    pipeline: Any
    folder: Path
    prior: DiffusionPrior

    def run(self, prompt: str, scale: float) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        """What the pipeline feeds its scheduler: output, timestep, and the noised sample as the network sees it."""
        pipeline, seen = self.pipeline, []
        step: Callable[..., Any] = pipeline.scheduler.step

        def recorded(output: Any, t: Any, sample: Any, *rest: Any, **options: Any) -> Any:
            scaled = getattr(pipeline.scheduler, "scale_model_input", lambda x, t: x)(sample, t)
            seen.append((output.clone(), t.clone(), scaled.clone()))
            return step(output, t, sample, *rest, **options)

        guided: dict[str, Any] = {"guidance_scale": scale}
        if "flux" in self.name:
            guided = {"true_cfg_scale": scale, "negative_prompt": "" if scale > 1 else None}
        generator = torch.Generator().manual_seed(1)
        pipeline.scheduler.step = recorded
        try:
            kind = "pt" if self.name == "deepfloyd" else "latent"
            pipeline([prompt], generator=generator, output_type=kind, **CALLS[self.name], **guided)
        finally:
            pipeline.scheduler.step = step
        return seen


@pytest.fixture(scope="module", params=list(MAKERS))
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    folder = tmp_path_factory.mktemp(request.param)
    pipeline = make(request.param)
    pipeline.save_pretrained(folder)
    prior = load_prior(folder, dtype=torch.float32, image_size=SIZES.get(request.param, 64))
    return Case(request.param, pipeline, folder, prior)


def unfolded(case: Case, x: torch.Tensor) -> torch.Tensor:
    """FLUX's pipeline keeps its latents folded; others as they are, without the variance that some append."""
    if "flux" in case.name:
        return case.pipeline._unpack_latents(x, 64, 64, case.pipeline.vae_scale_factor)
    return x[:, :3] if case.name == "deepfloyd" else x


@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_predictions_are_what_the_pipeline_feeds_its_scheduler(case: Case, scale: float) -> None:
    prior, embedded = case.prior, case.prior.embed(["a red mug", ""])
    told, empty = ({name: value[i : i + 1] for name, value in embedded.items()} for i in (0, 1))
    steps = case.run("a red mug", scale)
    assert len(steps) >= 2
    for output, time, sample in steps:
        x_t = unfolded(case, sample)
        index = (prior.schedule.time - time).abs().argmin()
        assert abs(prior.schedule.time[index] - time) < 1e-2
        predicted = prior.predict(x_t, index[None], told)
        if scale > 1:
            nothing = prior.predict(x_t, index[None], empty)
            predicted = nothing + scale * (predicted - nothing)
        expected = unfolded(case, output)
        torch.testing.assert_close(predicted, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


def test_noise_and_scheduler_agree_on_the_clean_picture(case: Case) -> None:
    """``(x_t - sigma eps) / alpha`` from the prior is the scheduler's own estimate, by its own tables."""
    prior, scheduler = case.prior, case.pipeline.scheduler
    g = torch.Generator().manual_seed(2)
    x_t = torch.randn(1, *prior.encode(torch.zeros(1, 3, 8, 8)).shape[1:], generator=g)
    cond = prior.embed(["a mug"])
    for step in (20, 500, 900):
        t = torch.tensor([step])
        noise, output = prior.predict_noise(x_t, t, cond), prior.predict(x_t, t, cond)
        clean = (x_t - prior.sigma(t) * noise) / prior.alpha(t)
        if prior.schedule.prediction == "flow":
            expected = x_t - prior.schedule.time[step] / 1000 * output
        else:
            abar = scheduler.alphas_cumprod[step]
            ways = {
                "epsilon": (x_t - (1 - abar).sqrt() * output) / abar.sqrt(),
                "v_prediction": abar.sqrt() * x_t - (1 - abar).sqrt() * output,
            }
            expected = ways[prior.schedule.prediction]
        torch.testing.assert_close(clean, expected, rtol=1e-2, atol=1e-2 * float(expected.abs().max()))


@pytest.mark.parametrize("name", ["deepfloyd", "pixart"])
def test_words_are_read_from_sentencepiece_alone(name: str, tmp_path: Path) -> None:
    """Some are published without the ``tokenizer.json`` that ``save_pretrained`` may write."""
    for folder in ("saved", "published"):
        make(name).save_pretrained(tmp_path / folder)
    tokenizer = tmp_path / "published" / "tokenizer"
    shutil.rmtree(tokenizer)
    tokenizer.mkdir()
    (tokenizer / "spiece.model").write_bytes(sentencepiece())
    settings = {"tokenizer_class": "T5Tokenizer", "extra_ids": 0, "model_max_length": 77}
    (tokenizer / "tokenizer_config.json").write_text(json.dumps(settings))
    saved, published = (
        load_prior(tmp_path / folder, dtype=torch.float32, image_size=SIZES.get(name, 64)).embed(
            ["a red mug", ""]
        )
        for folder in ("saved", "published")
    )
    assert saved.keys() == published.keys()
    assert all(torch.equal(saved[part], published[part]) for part in saved)


def test_clip_under_its_newer_names_is_read_or_refused(tmp_path: Path) -> None:
    pipeline = make("stable_diffusion")
    pipeline.save_pretrained(tmp_path)
    expected = load_prior(tmp_path, dtype=torch.float32).embed(["a red mug"])
    file = tmp_path / "text_encoder" / "model.safetensors"
    weights = {name.removeprefix("text_model."): value for name, value in load_file(file).items()}
    save_file(weights, file, {"format": "pt"})
    prior = load_prior(tmp_path, dtype=torch.float32)
    if hasattr(pipeline.text_encoder, "text_model"):
        with pytest.raises(
            ValueError, match=r"saved by transformers 5.6 or newer, and transformers .* upgrade it"
        ):
            prior.embed(["a red mug"])
    else:
        assert all(torch.equal(value, expected[name]) for name, value in prior.embed(["a red mug"]).items())


LATENT = {
    "stable_diffusion": (0.0, 0.18215),
    "stable_diffusion_v": (0.0, 0.18215),
    "stable_diffusion_xl": (0.0, 0.18215),
    "pixart": (0.0, 0.18215),
    "pixart_sized": (0.0, 0.18215),
    "pixart_sigma": (0.0, 0.18215),
    "stable_diffusion_3": (0.0609, 1.5305),
    "flux": (0.1159, 0.3611),
    "flux_undistilled": (0.1159, 0.3611),
    "sana": (0.0, 0.41407),
}


@torch.no_grad()
def test_pictures_go_through_the_vae_as_published(case: Case) -> None:
    prior, size = case.prior, SIZES.get(case.name, 64)
    image = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(3))
    if case.name == "deepfloyd":
        torch.testing.assert_close(prior.encode(image), image * 2 - 1)
        return
    found = case.pipeline.vae.encode(image * 2 - 1)
    latent = found.latent if case.name == "sana" else found.latent_dist.mode()
    shift, scale = LATENT[case.name]
    x = prior.encode(image)
    torch.testing.assert_close(x, (latent - shift) * scale, rtol=1e-4, atol=1e-5)
    decoded = case.pipeline.vae.decode(x / scale + shift).sample
    torch.testing.assert_close(prior.decode(x), decoded / 2 + 0.5, rtol=1e-4, atol=1e-4)


def test_noise_rises_and_nothing_divides_by_zero(case: Case) -> None:
    alpha, sigma = case.prior.schedule.alpha, case.prior.schedule.sigma
    assert (sigma[1:] > sigma[:-1]).all()
    assert alpha.min() > 0 and sigma.min() > 0
    whole = alpha + sigma if case.prior.schedule.prediction == "flow" else alpha**2 + sigma**2
    torch.testing.assert_close(whole, torch.ones_like(whole))


def test_prompts_matter_and_batching_does_not(case: Case) -> None:
    prior = case.prior
    x = torch.randn(
        2, *prior.encode(torch.zeros(1, 3, 8, 8)).shape[1:], generator=torch.Generator().manual_seed(4)
    )
    t = torch.tensor([300, 700])
    both = prior.predict_noise(x, t, prior.embed(["a mug", "a cat"]))
    alone = prior.predict_noise(x[1:], t[1:], prior.embed(["a cat"]))
    other = prior.predict_noise(x[1:], t[1:], prior.embed(["a mug"]))
    torch.testing.assert_close(both[1:], alone, rtol=1e-3, atol=1e-4)
    assert not torch.equal(alone, other)


#: Longer than the 512 letters that the longest text encoder here takes.
LONG = "a red mug with a big ear " * 40


@pytest.mark.slow
def test_views_of_a_long_prompt_differ_in_every_encoder(
    case: Case, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what is cut is said in one line, by the run that finds the embeddings in the cache, too."""
    monkeypatch.setenv("DISTILL_CACHE", str(tmp_path))
    prompts = [Prompt(LONG, ", a"), Prompt(LONG, ", b"), LONG + ", a", LONG + ", b"]
    for _ in ("made", "kept"):
        caplog.clear()
        prior = load_prior(case.folder, image_size=SIZES.get(case.name, 64))
        prior.embed([*prompts[:2], LONG, ""])
        (line,) = [record.getMessage() for record in caplog.records]
        assert "too long" in line and "a red mug with a big" in line and "\n" not in line and len(line) < 300
    found = prior.embed(prompts)
    for name, value in found.items():
        if name in ("encoder_attention_mask", "guidance"):
            continue
        assert not torch.equal(value[0], value[1]) and torch.equal(value[2], value[3]), name
    if case.name == "stable_diffusion_3":  # 12 tokens of both CLIP encoders' and 256 of T5's, in one sequence
        states = found["encoder_hidden_states"]
        for part in (states[:, :12, :16], states[:, :12, 16:32], states[:, 12:]):
            assert not torch.equal(part[0], part[1])


def test_a_short_prompt_is_as_without_an_ending(case: Case, caplog: pytest.LogCaptureFixture) -> None:
    found = case.prior.embed([Prompt("a mug", ", a"), "a mug, a"])
    assert all(torch.equal(value[0], value[1]) for value in found.values())
    assert not caplog.records


@pytest.mark.parametrize(
    ("head", "tail", "kept", "lost"),
    [
        (
            "a b c d e f g h i j k l",
            ", x",
            "a b c d e f g h, x",
            "i j k l",
        ),  # 12 with both marks, comma and x
        ("a b c d e f g, h i j", ", x", "a b c d e f g, x", "h i j"),
        ("a b c d e f g h", ", x", "a b c d e f g h, x", ""),
        ("abcdefghijkl", ", x", "abcdefgh, x", "ijkl"),
        ("a b c d e f g h i j k l", "", "a b c d e f g h i j k l", "k l"),
        ("ab cd", ", xyxyxyxyx", "xyxyxyxyx", "ab cd"),
    ],
)
def test_words_before_the_ending_are_cut_and_counted(head: str, tail: str, kept: str, lost: str) -> None:
    pipeline = SimpleNamespace(tokenizer=clip_tokenizer())
    prompt = Prompt(head, tail) if tail else head
    assert fit(pipeline.tokenizer, [prompt]) == [kept]
    assert cut_off(pipeline, {"tokenizer": 0}, prompt) == (lost, 12 if lost else 0)


@pytest.mark.slow
def test_a_student_of_any_family_learns_and_is_read_by_diffusers(case: Case, tmp_path: Path) -> None:
    """VSD's student starts as the prior itself, learns, leaves the prior alone, and its file fits a fresh network."""
    from distill.cameras import turntable

    prior = load_prior(case.folder, dtype=torch.float32, image_size=case.prior.image_size)
    g = torch.Generator().manual_seed(5)
    targets = ("to_q", "to_k", "to_v", "to_out.0")
    if "pixart" in case.name:  # its class has no adapters in diffusers
        with pytest.raises(
            ValueError, match="this prior's, PixArtTransformer2DModel, takes none in diffusers"
        ):
            Student(prior, rank=2, alpha=2, targets=targets, cameras=True, generator=g)
        return
    student = Student(prior, rank=2, alpha=2, targets=targets, cameras=True, generator=g)
    x_t = torch.randn(2, *prior.encode(torch.zeros(1, 3, 8, 8)).shape[1:], generator=g)
    t, cond, cameras = torch.tensor([200, 800]), prior.embed(["a mug", "a cat"]), turntable(2)
    before = prior.predict_noise(x_t, t, cond)
    torch.testing.assert_close(student.predict_noise(x_t, t, cond, cameras), before)
    optimiser = torch.optim.Adam(student.trainable(), lr=0.05)
    noise = torch.randn(x_t.shape, generator=g)
    losses = []
    for _ in range(8):
        loss = (student.predict_noise(x_t, t, cond, cameras) - noise).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert student.camera is not None
    assert all(p.grad is not None for p in student.camera.parameters())
    torch.testing.assert_close(prior.predict_noise(x_t, t, cond), before)
    with torch.no_grad():
        learnt = student.predict_noise(x_t, t, cond, None)
    assert not torch.allclose(learnt, before)

    student.save(tmp_path)
    fresh = load_prior(case.folder, dtype=torch.float32, image_size=case.prior.image_size)
    fresh.network.load_lora_adapter(tmp_path, prefix=None, use_safetensors=True)
    torch.testing.assert_close(fresh.predict_noise(x_t, t, cond), learnt, rtol=1e-4, atol=1e-5)


def test_a_latent_consistency_model_is_told_its_scale_as_by_its_pipeline(tmp_path: Path) -> None:
    from diffusers import LatentConsistencyModelPipeline, LCMScheduler, UNet2DConditionModel

    pipeline = make("stable_diffusion")
    torch.manual_seed(0)
    network = UNet2DConditionModel.from_config(pipeline.unet.config, time_cond_proj_dim=16)
    torch.nn.init.normal_(network.time_embedding.cond_proj.weight)  # 0 to begin with
    scheduler = LCMScheduler.from_config(pipeline.scheduler.config)
    parts = {name: getattr(pipeline, name) for name in ("vae", "text_encoder", "tokenizer")}
    whole = LatentConsistencyModelPipeline(
        **parts, unet=network, scheduler=scheduler, safety_checker=None, feature_extractor=None,
        requires_safety_checker=False,
    )  # fmt: skip
    whole.save_pretrained(tmp_path)
    prior = load_prior(tmp_path, dtype=torch.float32, image_size=64)
    x, t = torch.randn(2, *prior.shape, generator=torch.Generator().manual_seed(0)), torch.tensor([300, 300])
    cond = prior.embed(["a mug", "a cup"])
    scale = whole.get_guidance_scale_embedding(torch.tensor([7.5, 7.5]), embedding_dim=16)
    with torch.no_grad():
        wanted = network(
            x, t, encoder_hidden_states=cond["encoder_hidden_states"], timestep_cond=scale
        ).sample
        blind = network(x, t, encoder_hidden_states=cond["encoder_hidden_states"]).sample
    found = prior.predict(x, t, cond)
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4)
    assert not torch.allclose(found, blind, atol=1e-3)
