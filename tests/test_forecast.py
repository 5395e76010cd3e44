"""What a step will cost, against hand counts, real networks and the published sizes; and the doctor who asks for it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_pipelines import MAKERS, make
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from distill import doctor, guidance
from distill.cameras import orbit
from distill.cli import main
from distill.forecast.cost import calls, cost
from distill.forecast.network import Forecast, LiveBytes, calls_of, counted, forecast, shadow
from distill.guidance import available, made_for_prior
from distill.guidance.terms import add_noise, predict
from distill.machine import Finding
from distill.priors import load_prior
from distill.priors.source import find
from distill.run.config.compose import compose_config


def test_live_bytes_by_hand() -> None:
    with LiveBytes() as live:
        a = torch.zeros(1000)
        b = a + 1
        assert (live.alive, live.peak) == (8000, 8000)
        view = a[:10]
        del a
        assert live.alive == 8000  # the view keeps it
        del view
        assert live.alive == 4000
        b.add_(1)
        c = torch.cat([b, b])
        del b, c
    assert (live.alive, live.peak) == (0, 12000)


@pytest.mark.parametrize("largest", ["prediction", "learning", "decoding"])
def test_a_prior_peaks_in_its_largest_call(largest: str) -> None:
    """Weights and the encoder's backward pass stay; the calls come one after the other."""
    calls = {"prediction": 3, "learning": 4, "decoding": 5} | {largest: 9}
    found = Forecast(weights=10, encoding=20, operations=0, network=0, **calls)
    assert (found.call, found.peak) == (9, 39)


@pytest.mark.slow
@pytest.mark.parametrize("name", MAKERS)
def test_a_shadow_counts_what_the_real_network_does(name: str, tmp_path: Path) -> None:
    make(name).save_pretrained(tmp_path)
    size = {"deepfloyd": 8, "sana": 32}.get(name, 64)
    real, counted = (
        load_prior(tmp_path, dtype=torch.float32, image_size=size),
        shadow(find(tmp_path), torch.float16, size),
    )
    told, blank = real.embed(["a mug"]), counted.embed([""])
    assert told.keys() == blank.keys()
    assert all(told[key].shape[2:] == blank[key].shape[2:] for key in told)
    found = forecast(counted, [2, 1], 1)
    modules = [module for module in (real.network, real.space.vae) if module is not None]
    assert found.weights == 2 * sum(p.numel() for module in modules for p in module.parameters())
    x = real.encode(torch.zeros(3, 3, size, size))
    cond = {key: torch.ones(3, *value.shape[1:]) for key, value in blank.items()}
    # The counter knows nothing of the fused attention that a CPU would take.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        real.predict(x, torch.tensor([1, 2, 3]), cond)
    assert found.network == counter.get_total_flops()
    assert found.prediction > 0
    assert (found.encoding > 0) == (real.latent or name == "deepfloyd")
    assert found.learning == 0
    learnt = forecast(counted, [2, 1], 1, rank=4)
    assert learnt.learning > forecast(counted, [1], 1).prediction  # a picture's way back beside its way there
    # There and back once more; the weights except for the LoRA's need no gradient.
    one = x[:1].detach().requires_grad_()
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        predicted = real.predict(one, torch.tensor([1]), {key: value[:1] for key, value in cond.items()})
        predicted.backward(torch.zeros_like(predicted))
    assert learnt.network - found.network == counter.get_total_flops()
    # Three updates of a step take three times as long and no more memory, one after another; without any, the layers stay.
    thrice, never = (forecast(counted, [2, 1], 1, rank=4, updates=n) for n in (3, 0))
    assert thrice.network - found.network == 3 * counter.get_total_flops()
    assert thrice.learning == learnt.learning and never.network == found.network
    assert 0 < never.learning < learnt.learning


@pytest.mark.parametrize(("name", "tokens"), [("pixart", 120), ("pixart_sigma", 300), ("sana", 300)])
def test_a_shadow_is_told_as_many_tokens_as_the_pipeline_pads_to(
    name: str, tokens: int, tmp_path: Path
) -> None:
    make(name).save_pretrained(tmp_path)
    real, counted = load_prior(tmp_path, dtype=torch.float32), shadow(find(tmp_path), torch.float16)
    for told in (real.embed(["a mug"]), counted.embed(["a mug"])):
        assert told["encoder_hidden_states"].shape[1] == told["encoder_attention_mask"].shape[1] == tokens


@pytest.mark.parametrize(
    ("loss", "options", "rows"),
    [
        ("sds", {}, [8]),
        ("sds", {"scale": 1.0}, [4]),
        ("csd", {}, [8]),
        ("csd", {"positive": 1.0, "negative": -0.5, "empty": -0.5}, [12]),
        ("asd", {}, [12]),
        ("nfsd", {}, [12]),
        ("hifa", {}, [8]),
    ],
)
def test_calls_of_losses(loss: str, options: dict[str, Any], rows: list[int]) -> None:
    from functools import partial

    assert calls_of(partial(available()[loss], **options), 4) == rows


def ranked(prior: Any, x: Any, cond: Any, t: Any, noise: Any, *, rank: int = 3, scale: float = 2.0) -> Any:
    """Keep the ``rank`` largest differences: an option by that name, and nothing that is trained."""
    text, uncond = predict(prior, add_noise(prior, x, t, noise), t, cond, "text", "uncond")
    return scale * (text - uncond)


@made_for_prior
class Ranked:
    """A loss that is set up for its prior and learns nothing."""

    def __init__(self, prior: Any, generator: Any, priors: Any, *, rank: int = 3) -> None:
        self.rank = rank

    def __call__(self, prior: Any, x: Any, cond: Any, t: Any, noise: Any) -> Any:
        return x - noise


class Taught(Ranked):
    """A loss that says that it trains low-rank layers."""

    def learn(self, *given: Any) -> float:
        return 0.0

    def save(self, folder: Path) -> None: ...

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, saved: dict[str, Any]) -> None: ...


made_for_prior(Taught)


@pytest.mark.parametrize(
    ("loss", "asked"),
    [(ranked, ([8], 0, False)), (Ranked, ([8], 0, False)), (Taught, ([8, 4], 3, False))],
)
def test_a_loss_trains_low_rank_layers_if_it_learns_whatever_its_options_are_called(
    loss: Any, asked: tuple[list[int], int, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Text and no text of four pictures are eight rows; training is on the four once more."""
    monkeypatch.setattr(guidance, "_registered", {})
    guidance.register(loss)
    config = compose_config(["prompt=a red mug", f"guidance={loss.__name__.lower()}"])
    assert calls(config, 4) == asked


def test_a_loss_that_decodes_costs_the_decoder_there_and_back_and_its_target() -> None:
    from functools import partial

    hifa = available()["hifa"]
    assert counted(hifa, 4).decoded == [4]
    assert counted(partial(hifa, image_weight=0.0), 4).decoded == []
    assert counted(available()["sds"], 4).decoded == []


@pytest.mark.slow
def test_the_decoders_operations_are_counted(tmp_path: Path) -> None:
    make("stable_diffusion").save_pretrained(tmp_path)
    real, empty = load_prior(tmp_path, dtype=torch.float32), shadow(find(tmp_path), torch.float32)
    x = torch.zeros(1, *real.shape, requires_grad=True)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        real.decode(x.detach())
        real.decode(x).sum().backward()
    plain, decoding = forecast(empty, [2], 1), forecast(empty, [2], 1, decodes=True)
    assert decoding.operations - plain.operations == counter.get_total_flops()
    assert (plain.decoding, decoding.network) == (0, plain.network)
    image = 4 * 3 * real.image_size**2
    assert decoding.decoding > 8 * image  # many times the picture
    assert decoding.peak == decoding.weights + decoding.encoding + max(decoding.prediction, decoding.decoding)


def published(folder: Path, levels: int = 4) -> Path:
    """Stable Diffusion 1.5's configurations, without weights; with fewer levels, the first ones of its networks."""
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel

    down = ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",)
    up = ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3
    with torch.device("meta"):
        UNet2DConditionModel(
            sample_size=64,
            cross_attention_dim=768,
            attention_head_dim=8,
            block_out_channels=(320, 640, 1280, 1280)[:levels],
            down_block_types=down[:levels],
            up_block_types=up[-levels:],
        ).save_config(folder / "unet")
        AutoencoderKL(
            block_out_channels=(128, 256, 512, 512)[:levels], layers_per_block=2, sample_size=512,
            down_block_types=("DownEncoderBlock2D",) * levels, up_block_types=("UpDecoderBlock2D",) * levels,
        ).save_config(folder / "vae")  # fmt: skip
    DDIMScheduler(beta_schedule="scaled_linear").save_pretrained(folder / "scheduler")
    index = {
        "_class_name": "StableDiffusionPipeline", "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"], "scheduler": ["diffusers", "DDIMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"], "tokenizer": ["transformers", "CLIPTokenizer"],
    }  # fmt: skip
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


@pytest.mark.slow
def test_stable_diffusion_at_512_pixels_fits_the_cards_it_should(tmp_path: Path) -> None:
    prior = shadow(find(published(tmp_path)), torch.float16)
    assert prior.image_size == 512
    assert sum(p.numel() for p in prior.network.parameters()) == 859_520_964  # as published
    assert sum(p.numel() for p in prior.space.vae.parameters()) == 83_653_863
    sds = forecast(prior, [2], 1)
    # 0.40 trillion multiply-adds of the UNet for a picture is the figure that is commonly given.
    assert sds.network / 2 == pytest.approx(2 * 0.40e12, rel=0.02)
    assert sds.weights == 2 * (859_520_964 + 83_653_863)
    assert sds.peak < 12e9
    assert forecast(prior, [2, 1], 1, rank=16).peak < 16e9


@pytest.mark.slow
def test_checkpointing_and_smaller_pictures_take_less(tmp_path: Path) -> None:
    source = find(published(tmp_path, levels=2))
    sds = forecast(shadow(source, torch.float16, 512), [2], 1)
    thrifty = forecast(shadow(source, torch.float16, 512, checkpointing=True), [2], 1)
    assert thrifty.encoding < sds.encoding
    assert thrifty.operations > sds.operations
    assert forecast(shadow(source, torch.float16, 256), [2], 1).peak < sds.peak


def examined(*options: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, dict[str, tuple[str, str]]]:
    with pytest.raises(SystemExit) as stopped:
        main(["doctor", *options, "--json"])
    assert isinstance(stopped.value.code, int)
    said = json.loads(capsys.readouterr().out)
    return stopped.value.code, {line["name"]: (line["verdict"], line["said"]) for line in said}


def test_the_doctor_finds_nothing_wrong_with_the_defaults(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    code, said = examined("device=cpu", capsys=capsys)
    assert code == 0
    assert not [name for name, (verdict, _) in said.items() if verdict == "wrong"]
    for name in (
        "python",
        "torch",
        "device",
        "warp",
        "results",
        "ffmpeg",
        "prior",
        "step on cpu",
        "memory",
        "time",
    ):
        assert said[name][0] in ("ok", "note")
    findings = [Finding(name, *found) for name, found in said.items()]
    monkeypatch.setattr(doctor, "examine", lambda *_: findings)
    with pytest.raises(SystemExit) as stopped:
        main(["doctor", "device=cpu"])
    assert stopped.value.code == 0
    assert "   ok  python" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "name", "said"),
    [
        (["prior=/nowhere/at/all"], "prior", "prior must be 'embedded', 'things', 'views', a name that 'distill priors' lists"),
        (["prior=flux.1-dev"], "hub token", "gated models need one"),
        (["scene.backend=tinycudann"], "tinycudann", "not installed"),
        pytest.param(
            ["device=cuda"], "device", "needs an NVIDIA driver",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA is here"),
        ),
    ],
)  # fmt: skip
def test_the_doctor_says_what_is_wrong(
    options: list[str],
    name: str,
    said: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    code, found = examined(*options, capsys=capsys)
    assert code == 1
    assert found[name][0] == "wrong"
    assert said in found[name][1]


@pytest.mark.slow
def test_the_doctor_tells_what_does_not_fit_from_what_might_not(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config = compose_config([f"prior={published(tmp_path, levels=2)}", "prompt=a mug", "render.size=1024"])
    source = find(config.prior)
    found = cost(config, source, torch.device("cpu"))
    assert found.first_peak < found.peak / 1.5
    monkeypatch.setattr("distill.forecast.cost.cost", lambda *of: found)  # which takes seconds each time

    def verdict(room: float) -> tuple[str, bool]:
        monkeypatch.setattr(doctor, "memory", lambda: int(room))
        memory = next(
            line for line in doctor.costs(config, source, torch.device("cpu")) if line.name == "memory"
        )
        return memory.verdict, "try max_vram=" in memory.said

    assert verdict(1.2 * found.peak) == ("ok", False)
    assert verdict(1.2 * found.first_peak) == ("note", True)
    assert verdict(found.first_peak) == ("wrong", True)


@pytest.mark.slow
def test_the_doctor_forecasts_any_loss_and_resolution(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # Measuring it in bfloat16 takes a CPU seconds; the defaults' test measures it.
    monkeypatch.setattr("distill.forecast.network.speed_of", lambda *of: 2.5e11)
    folder = published(tmp_path, levels=2)
    networks = shadow(find(folder), torch.float16)
    weights = sum(p.numel() for part in (networks.network, networks.space.vae) for p in part.parameters())
    one, vsd = (
        # A CPU without bfloat16 would take twice as much.
        examined(
            f"prior={folder}",
            "render.batch=1",
            f"guidance={loss}",
            "device=cpu",
            "prior_options.dtype=bfloat16",
            capsys=capsys,
        )[1]
        for loss in ("sds", "vsd")
    )
    assert f"weights {2 * weights / 1e9:.2f}" in one["memory"][1]
    assert "billion operations at 0.25 trillion a second" in one["time"][1]
    assert float(vsd["memory"][1].split()[0]) > float(one["memory"][1].split()[0])


@pytest.mark.parametrize("name", ["embedded", "things", "views"])
def test_the_priors_that_ship_are_counted_as_they_are(name: str) -> None:
    """Also ``things``, whose UNet is shown a draft of the caption beside the picture."""
    real, counted = load_prior(name, dtype=torch.float32), shadow(find(name), torch.float32)
    rows = real.views
    x, cond = torch.zeros(rows, *real.shape), real.embed(["a red mug"] * rows)
    told = None if rows == 1 else orbit(torch.arange(rows) * 90.0, torch.full((rows,), 15.0), 3.2, 40.0)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        real.predict_noise(x, torch.full((rows,), 500), cond, told)
    found = forecast(counted, [rows], rows)
    # The text has 77 tokens in a count, and as many as the tokenizer pads to here.
    assert found.network == pytest.approx(counter.get_total_flops(), rel=0.05)
    assert found.weights == 4 * sum(p.numel() for p in real.network.parameters())


def test_doctor_and_max_vram_know_the_prior_of_things() -> None:
    config = compose_config(["prompt=a hamburger", "max_vram=4GB"])
    found = list(doctor.costs(config, find("things"), torch.device("cpu")))
    assert [(line.name, line.verdict) for line in found][-2:] == [("memory", "ok"), ("time", "note")]
