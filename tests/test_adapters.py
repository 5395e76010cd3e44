"""LoRA files of the user's: their layouts, where they go, and VSD's own beside them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_pipelines import make
from torch import Tensor

import distill
from distill.cameras import turntable
from distill.contracts import Condition
from distill.guidance.vsd import VSD
from distill.priors import load_prior
from distill.priors.lora import parse

RANK, ALPHA, WEIGHT = 2, 3.0, 0.6
#: Attention layers of a UNet or a transformer; of a CLIP text encoder.
ATTENTION, TEXT = ("to_q", "to_k", "to_v", "to_out.0"), ("q_proj", "k_proj", "v_proj", "out_proj", "fc1")
T = torch.tensor([300, 800])


def low_rank(network: Any, endings: tuple[str, ...], seed: int = 0) -> dict[str, tuple[Tensor, Tensor]]:
    """Random A ``[r, in]`` and B ``[out, r]`` for layers of a network, by their names."""
    g = torch.Generator().manual_seed(seed)
    layers = {
        name: x for name, x in network.named_modules() if name.endswith(endings) and hasattr(x, "weight")
    }
    assert layers

    def draw(layer: Any) -> tuple[Tensor, Tensor]:
        out, into = layer.weight.shape
        return 0.3 * torch.randn(RANK, into, generator=g), 0.3 * torch.randn(out, RANK, generator=g)

    return {name: draw(layer) for name, layer in layers.items()}


def kohya(prefix: str, matrices: dict[str, tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for name, (down, up) in matrices.items():
        layer = f"{prefix}_{name.replace('.', '_')}"
        found |= {f"{layer}.lora_down.weight": down, f"{layer}.lora_up.weight": up}
        found[f"{layer}.alpha"] = torch.tensor(ALPHA)
    return found


def peft(prefix: str, matrices: dict[str, tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for name, (down, up) in matrices.items():
        found |= {f"{prefix}{name}.lora_A.weight": down, f"{prefix}{name}.lora_B.weight": up}
    return found


def merged(network: Any, matrices: dict[str, tuple[Tensor, Tensor]], factor: float) -> None:
    """W + factor B A, written out."""
    with torch.no_grad():
        for name, (down, up) in matrices.items():
            network.get_submodule(name).weight += factor * torch.einsum("or,ri->oi", up, down)


@pytest.fixture(scope="module")
def sd_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sd")
    make("stable_diffusion").save_pretrained(folder)
    return folder


def load(folder: Path, *loras: str | Path) -> Any:
    return load_prior(folder, dtype=torch.float32, image_size=64, loras=loras)


def noised(prior: Any) -> Tensor:
    shape = prior.encode(torch.zeros(2, 3, 8, 8)).shape
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


#: The layouts of files, and alpha over rank in each; without an alpha it is the rank.
LAYOUTS: dict[str, tuple[Callable[[dict[str, tuple[Tensor, Tensor]]], dict[str, Tensor]], float]] = {
    "kohya": (lambda found: kohya("lora_unet", found), ALPHA / RANK),
    "diffusers": (lambda found: peft("unet.", found), 1.0),
    "network": (lambda found: peft("", found), 1.0),
}


@pytest.mark.parametrize("layout", list(LAYOUTS))
def test_weights_are_w_plus_the_low_rank_product(layout: str, sd_folder: Path, tmp_path: Path) -> None:
    plain, by_hand = load(sd_folder), load(sd_folder)
    matrices, (write, ratio) = low_rank(plain.network, ATTENTION), LAYOUTS[layout]
    merged(by_hand.network, matrices, WEIGHT * ratio)
    save_file(write(matrices), tmp_path / "style.safetensors")
    prior = load(sd_folder, f"{tmp_path}/style.safetensors:{WEIGHT}")
    cond = plain.embed(["a mug", "a cat"])
    found = prior.predict_noise(noised(prior), T, cond)
    torch.testing.assert_close(found, by_hand.predict_noise(noised(prior), T, cond), rtol=1e-4, atol=1e-5)
    assert (found - plain.predict_noise(noised(prior), T, cond)).abs().max() > 1e-3
    assert not [name for name, _ in prior.network.named_parameters() if "lora" in name]


def uneven(
    network: Any, endings: tuple[str, ...], ranks: tuple[int, ...], alphas: tuple[float, ...], seed: int = 0
) -> tuple[dict[str, tuple[Tensor, Tensor]], dict[str, float]]:
    """Matrices of ranks that take turns, and alphas that take other turns."""
    found, told = {}, {}
    for number, (name, (down, up)) in enumerate(low_rank(network, endings, seed).items()):
        rank = ranks[number % len(ranks)]
        found[name] = (down.repeat(rank, 1)[:rank] * 0.3, up.repeat(1, rank)[:, :rank] * 0.3)
        told[name] = alphas[number % len(alphas)]
    return found, told


#: As a file resized layer by layer has them; one layer apart; ranks alone; alphas alone; every combination.
STRENGTHS = {
    "resized": ((1, 2, 4, 2), (0.5, 1.0, 2.0, 1.0)),
    "one apart": ((2,), (1.0,) * 5 + (4.0,) + (1.0,) * 50),
    "ranks": ((4, 1, 2), (2.0,)),
    "alphas": ((2,), (8.0, 1.0, 3.0)),
    "both": ((1, 3, 2, 5), (2.0, 1.0, 0.5)),
}


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["kohya", "diffusers"])
@pytest.mark.parametrize("kind", list(STRENGTHS))
def test_every_layer_has_the_strength_that_its_own_alpha_and_rank_say(
    kind: str, layout: str, sd_folder: Path, tmp_path: Path
) -> None:
    plain, by_hand = load(sd_folder), load(sd_folder)
    matrices, alphas = uneven(plain.network, ATTENTION, *STRENGTHS[kind])
    for name, (down, up) in matrices.items():
        merged(by_hand.network, {name: (down, up)}, WEIGHT * alphas[name] / len(down))
    tensors = kohya("lora_unet", matrices) if layout == "kohya" else peft("unet.", matrices)
    for name, alpha in alphas.items():
        key = f"lora_unet_{name.replace('.', '_')}" if layout == "kohya" else f"unet.{name}"
        tensors[f"{key}.alpha"] = torch.tensor(alpha)
    save_file(tensors, tmp_path / "style.safetensors")
    prior = load(sd_folder, f"{tmp_path}/style.safetensors:{WEIGHT}")
    expected = dict(by_hand.network.named_parameters())
    for name, value in prior.network.named_parameters():
        torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-6, msg=name)


def test_text_encoders_have_ranks_and_alphas_of_their_own(sd_folder: Path, tmp_path: Path) -> None:
    """The network's rank is 2 and its alpha 1, the text encoder's differ layer by layer."""
    pipeline, plain = make("stable_diffusion").from_pretrained(sd_folder), load(sd_folder)
    tensors, encoder = kohya("lora_unet", low_rank(plain.network, ATTENTION)), pipeline.text_encoder
    matrices, alphas = uneven(encoder, TEXT, (1, 8, 3), (4.0, 1.0), 5)
    named = {name: name if name.startswith("text_model") else f"text_model.{name}" for name in matrices}
    tensors |= kohya("lora_te", {named[name]: pair for name, pair in matrices.items()})
    for name, alpha in alphas.items():
        tensors[f"lora_te_{named[name].replace('.', '_')}.alpha"] = torch.tensor(alpha)
        merged(encoder, {name: matrices[name]}, WEIGHT * alpha / len(matrices[name][0]))
    save_file(tensors, tmp_path / "style.safetensors")
    found = load(sd_folder, f"{tmp_path}/style.safetensors:{WEIGHT}").embed(["a red mug"])
    with torch.no_grad():
        states, _ = pipeline.encode_prompt(["a red mug"], "cpu", 1, do_classifier_free_guidance=False)
    torch.testing.assert_close(found["encoder_hidden_states"], states, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(states, plain.embed(["a red mug"])["encoder_hidden_states"], atol=1e-3)


def test_several_add_up(sd_folder: Path, tmp_path: Path) -> None:
    by_hand = load(sd_folder)
    files = []
    for number, weight in enumerate((0.7, -0.4, 1.0)):
        matrices = low_rank(by_hand.network, ATTENTION, number)
        merged(by_hand.network, matrices, weight)
        files.append(f"{tmp_path}/{number}.safetensors" + (f":{weight}" if weight != 1 else ""))
        save_file(peft("unet.", matrices), tmp_path / f"{number}.safetensors")
    prior = load(sd_folder, *files)
    cond = by_hand.embed(["a mug", "a cat"])
    expected = by_hand.predict_noise(noised(prior), T, cond)
    torch.testing.assert_close(prior.predict_noise(noised(prior), T, cond), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["stable_diffusion", "stable_diffusion_xl"])
def test_text_encoders_get_theirs_as_in_the_pipeline(name: str, tmp_path: Path) -> None:
    """Against diffusers' own pipeline with the same file of kohya's on it, unfused; and the cache tells them apart."""
    pipeline, file = make(name), tmp_path / "style.safetensors"
    pipeline.save_pretrained(tmp_path / "prior")
    tensors = kohya("lora_unet", low_rank(pipeline.unet, ATTENTION, 1))
    for number, encoder in enumerate(("text_encoder", "text_encoder_2"), 1):
        if hasattr(pipeline, encoder):
            prefix = f"lora_te{number if 'xl' in name else ''}"
            module = getattr(pipeline, encoder)
            matrices = low_rank(module, TEXT, number)
            named = {x if x.startswith("text_model") else f"text_model.{x}": m for x, m in matrices.items()}
            tensors |= kohya(prefix, named)
    save_file(tensors, file)
    plain, prior = load(tmp_path / "prior"), load(tmp_path / "prior", f"{file}:{WEIGHT}")
    before, told = plain.embed(["a red mug"]), prior.embed(["a red mug"])
    pipeline.load_lora_weights(str(file), adapter_name="style")
    pipeline.set_adapters("style", WEIGHT)
    with torch.no_grad():
        states, _, *pooled = pipeline.encode_prompt(
            ["a red mug"], device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False
        )
    torch.testing.assert_close(told["encoder_hidden_states"], states, rtol=1e-4, atol=1e-5)
    if pooled:
        torch.testing.assert_close(told["text_embeds"], pooled[0], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(told["encoder_hidden_states"], before["encoder_hidden_states"], atol=1e-3)
    torch.testing.assert_close(load(tmp_path / "prior").embed(["a red mug"]), before)
    half = load(tmp_path / "prior", f"{file}:{WEIGHT / 2}").embed(["a red mug"])
    assert not torch.allclose(told["encoder_hidden_states"], half["encoder_hidden_states"], atol=1e-3)


@pytest.mark.parametrize("name", ["deepfloyd", "stable_diffusion_3", "flux", "sana"])
def test_other_families_take_them(name: str, tmp_path: Path) -> None:
    pipeline = make(name)
    pipeline.save_pretrained(tmp_path / "prior")
    size = {"deepfloyd": 8, "sana": 32}.get(name, 64)
    part = "unet" if hasattr(pipeline, "unet") else "transformer"
    by_hand = load_prior(tmp_path / "prior", dtype=torch.float32, image_size=size)
    matrices = low_rank(by_hand.network, ATTENTION)
    merged(by_hand.network, matrices, WEIGHT)
    save_file(peft(f"{part}.", matrices), tmp_path / "style.safetensors")
    prior = load_prior(
        tmp_path / "prior",
        dtype=torch.float32,
        image_size=size,
        loras=[f"{tmp_path}/style.safetensors:{WEIGHT}"],
    )
    cond, x_t = prior.embed(["a mug", "a cat"]), noised(prior)
    expected = by_hand.predict_noise(x_t, T, cond)
    torch.testing.assert_close(prior.predict_noise(x_t, T, cond), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_vsd_begins_at_the_changed_prior_and_learns_and_saves_its_own_layers_alone(
    sd_folder: Path, tmp_path: Path
) -> None:
    file = tmp_path / "style.safetensors"
    save_file(peft("unet.", low_rank(load(sd_folder).network, ATTENTION)), file)
    prior = load(sd_folder, file)
    cond = Condition(
        {"text": prior.embed(["a mug", "a cup"]), "uncond": prior.embed(["", ""])}, cameras=turntable(2)
    )
    x, g = noised(prior), torch.Generator().manual_seed(0)
    before, weights = prior.predict_noise(x, T, cond.text), dict(prior.network.named_parameters())
    frozen = {name: value.clone() for name, value in weights.items()}
    loss = VSD(prior, g, rank=3, learning_rate=1e-2, warmup=0)
    torch.testing.assert_close(loss.student.predict_noise(x, T, cond.text, cond.cameras), before)
    for _ in range(3):
        loss.learn(prior, x, cond, g)
    assert all(torch.equal(weights[name], value) for name, value in frozen.items())
    assert torch.equal(prior.predict_noise(x, T, cond.text), before)
    with torch.no_grad():
        learnt = loss.student.predict_noise(x, T, cond.text, None)
    assert not torch.allclose(learnt, before)
    loss.save(tmp_path / "run")
    saved = load_file(tmp_path / "run" / "pytorch_lora_weights.safetensors")
    assert len(saved) == len(loss.student.low_rank()) and all(min(x.shape) == 3 for x in saved.values())
    # Both files on a fresh prior make what the student had become.
    again = load(sd_folder, file, tmp_path / "run" / "pytorch_lora_weights.safetensors")
    torch.testing.assert_close(again.predict_noise(x, T, cond.text), learnt, rtol=1e-4, atol=1e-5)


def test_a_run_takes_them_and_its_manifest_names_them(pixel_folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "style, mine.safetensors"
    save_file(peft("", low_rank(load_prior(pixel_folder).network, ATTENTION)), file)
    asset = distill.generate(
        "a red mug", prior=pixel_folder, scene="image", iterations=1, output_dir=tmp_path / "run",
        **{"prior_options.loras": [f"{file}:0.5", file], "log.tensorboard": False},
    )  # fmt: skip
    digest = parse(file).sha256
    assert asset.manifest["loras"] == [
        {"name": "style, mine.safetensors", "weight": weight, "sha256": digest} for weight in (0.5, 1.0)
    ]


def test_the_weight_is_what_follows_the_last_colon(tmp_path: Path) -> None:
    for name in ("a.safetensors", "b:2.safetensors"):
        file = tmp_path / name
        file.write_bytes(b"x")
        assert (parse(file).path, parse(file).weight) == (file, 1.0)
        assert (parse(f"{file}:-1.5e-1").path, parse(f"{file}:-1.5e-1").weight) == (file, -0.15)


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ("missing.safetensors", "as a .safetensors file, or as file:weight with a number"),
        ("there.safetensors:much", "as a .safetensors file, or as file:weight with a number"),
        ("there.safetensors:nan", "as a .safetensors file, or as file:weight with a number"),
        ("old.bin:0.5", "is pickled, and only safetensors are read"),
        ("old.ckpt", "is pickled, and only safetensors are read"),
        ("there.safetensors", "is cut short or no safetensors"),
        ("pointer.safetensors", "is a pointer of Git LFS, not the weights; fetch them with 'git lfs pull'"),
        (
            "other.safetensors",
            r"prior, a StableDiffusionPipeline: .*; give one that was trained on such a model",
        ),
        (
            "shape.safetensors",
            r"prior, a StableDiffusionPipeline: .*; give one that was trained on such a model",
        ),
        ("few.safetensors", "2 of its 4 tensors have a place in the unet"),
        ("none.safetensors", "1 of its 1 tensors are no LoRA's"),
        ("dora.safetensors", "it is a DoRA, whose scales diffusers does not read"),
        ("text.safetensors", "does not fit this prior"),
    ],
)
def test_what_cannot_be_put_on_is_said_in_one_line(
    entry: str, said: str, sd_folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    layer = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    pair = torch.zeros(2, 32), torch.zeros(32, 2)
    (tmp_path / "there.safetensors").write_bytes(b"no such format")
    (tmp_path / "old.bin").write_bytes(b"")
    (tmp_path / "pointer.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n")
    files = {
        "other": peft("unet.", {"blocks.0.attn.to_q": pair}),
        "shape": peft("unet.", {layer: (torch.zeros(2, 7), torch.zeros(7, 2))}),
        "few": peft("unet.", {layer: pair, "blocks.0.attn.to_q": pair}),
        "none": {"unet.conv_in.weight": torch.zeros(3)},
        "dora": {**peft("unet.", {layer: pair}), f"unet.{layer}.dora_scale": torch.zeros(32)},
        "text": peft("text_encoder_9.", {layer: pair}),
    }
    for file, tensors in files.items():
        save_file({name: x.clone() for name, x in tensors.items()}, tmp_path / f"{file}.safetensors")
    with pytest.raises(ValueError, match=said) as caught:
        load(sd_folder, f"{tmp_path}/{entry}")
    assert "\n" not in str(caught.value)
    assert "user" not in capfd.readouterr().err


def test_pixart_takes_none(tmp_path: Path) -> None:
    make("pixart").save_pretrained(tmp_path / "prior")
    save_file({"x.lora_A.weight": torch.zeros(1)}, tmp_path / "style.safetensors")
    with pytest.raises(ValueError, match="no LoRA on priors of the kind PixArtAlphaPipeline; leave out"):
        load(tmp_path / "prior", tmp_path / "style.safetensors")
