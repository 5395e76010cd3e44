"""ImageDream: a multi-view prior that is shown a picture, on networks of a few kilobytes with the published names."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from single_files import of_open_clip, of_vae
from test_multi_view_published import FULL, SAID, error_of, under_authors_names, write_folder
from tiny_pipelines import clip, vae
from torch import Tensor, nn

from distill import loop
from distill.cameras import Cameras, turntable
from distill.conditions.image_prompt import image_of, with_image
from distill.contracts import Condition, Step
from distill.forecast.network import forecast, shadow
from distill.guidance import available, is_made_for_prior
from distill.priors import load_prior
from distill.priors.diffusion import DiffusionPrior
from distill.priors.multi_view.attention import CAMERA, COUNT
from distill.priors.multi_view.camera import numbers
from distill.priors.multi_view.image_prompt import (
    LATENT,
    TOKENS,
    arrange,
    beside,
    is_pixel,
    resampled,
    vision_of,
)
from distill.priors.multi_view.published import (
    VIT_H,
    WEIGHT,
    WIDTH,
    build,
    names_of,
    renamed,
    settings_of_unet,
)
from distill.priors.preset import shown_picture
from distill.priors.source import find, patterns
from distill.priors.whole import check_complete
from distill.run.assembly.assemble import assemble
from distill.run.config.compose import compose_config
from distill.run.config.implied import with_implied

#: ImageDream's UNet as the port's config.json has it, but small; two tokens of a picture.
PICTURED: dict[str, Any] = {**SAID, "ip_dim": 2}
VIEWS = 4


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def vision() -> Any:
    """CLIP's image encoder: patches of 4 pixels in pictures of 16, three layers of width 24."""
    from transformers import CLIPVisionConfig, CLIPVisionModel

    return CLIPVisionModel(
        CLIPVisionConfig(
            hidden_size=24, intermediate_size=16, num_hidden_layers=3, num_attention_heads=1, image_size=16, patch_size=4,
            hidden_act="gelu",
        )
    ).eval()  # fmt: skip


class Resampler(nn.Module):
    """The names and shapes of ImageDream's resampler, ``image_embed``, for text of width 16, and what it computes written out."""

    def __init__(self, width: int = 24, text: int = 16, tokens: int = 2, inner: int = 768) -> None:
        super().__init__()

        def attention() -> Any:
            made: Any = nn.Module()
            made.norm1, made.norm2 = nn.LayerNorm(text), nn.LayerNorm(text)
            made.to_q = nn.Linear(text, inner, bias=False)
            made.to_kv = nn.Linear(text, 2 * inner, bias=False)
            made.to_out = nn.Linear(inner, text, bias=False)
            return made

        def feed_forward() -> nn.Module:
            return nn.Sequential(
                nn.LayerNorm(text), nn.Linear(text, 4 * text, bias=False), nn.GELU(), nn.Linear(4 * text, text, bias=False)
            )  # fmt: skip

        self.latents = nn.Parameter(torch.randn(1, tokens, text))
        self.proj_in, self.proj_out, self.norm_out = (
            nn.Linear(width, text),
            nn.Linear(text, text),
            nn.LayerNorm(text),
        )
        self.layers = nn.ModuleList(nn.ModuleList([attention(), feed_forward()]) for _ in range(4))

    def forward(self, states: Tensor) -> Tensor:
        x, found = self.proj_in(states), []
        for tokens in x:
            latents: Tensor = self.latents[0]
            layers: Any = self.layers
            for attention, feed in layers:
                queries = attention.norm2(latents)
                keys = torch.cat([attention.norm1(tokens), queries])
                q, (k, v) = attention.to_q(queries), attention.to_kv(keys).chunk(2, dim=1)
                heads = [
                    torch.softmax(one @ other.T / math.sqrt(64), dim=1) @ value
                    for one, other, value in zip(q.split(64, 1), k.split(64, 1), v.split(64, 1), strict=True)
                ]
                latents = latents + attention.to_out(torch.cat(heads, dim=1))
                latents = latents + feed(latents)
            found.append(self.norm_out(self.proj_out(latents)))
        return torch.stack(found)


def network_of(said: dict[str, Any]) -> Any:
    return build(settings_of_unet(said, "config.json"))


@pytest.fixture(scope="module")
def network() -> Any:
    torch.manual_seed(0)
    made = network_of(PICTURED).eval()
    with torch.no_grad():  # norms without offsets would make noise of the rounding in a view that is zeros
        for parameter in made.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter) if parameter.ndim == 1 else 0)
    return made


@pytest.fixture(scope="module")
def resampler() -> Resampler:
    torch.manual_seed(3)
    return Resampler().eval()


def tensors_of(network: Any, resampler: nn.Module) -> dict[str, Tensor]:
    """Both under the authors' names, without what stands in front of them in their file."""
    plain = under_authors_names(network)
    found = {name.replace(".processor.to_k_ip.0.", ".to_k_ip.").replace(".processor.to_v_ip.0.", ".to_v_ip."): x
             for name, x in plain.items()}  # fmt: skip
    return found | {f"image_embed.{name}": x for name, x in resampler.state_dict().items()}


def port(folder: Path, network: Any, resampler: nn.Module, **changes: Any) -> Path:
    """The port's folder, whose code, were it run, would fail."""
    (folder / "unet").mkdir(parents=True)
    (folder / "unet/config.json").write_text(json.dumps({**PICTURED, **changes}))
    (folder / "unet/mv_unet.py").write_text("raise RuntimeError('this was run')\n")
    (folder / "pipeline_mvdream.py").write_text("raise RuntimeError('this was run')\n")
    tensors = {name: value.detach().contiguous() for name, value in tensors_of(network, resampler).items()}
    save_file(tensors, folder / "unet/diffusion_pytorch_model.safetensors", {"format": "pt"})
    torch.manual_seed(2)
    vision().save_pretrained(folder / "image_encoder")
    (folder / "feature_extractor").mkdir()
    (folder / "feature_extractor/preprocessor_config.json").write_text(
        json.dumps({"image_mean": [0.5, 0.4, 0.3], "image_std": [0.25, 0.2, 0.3]})
    )
    return write_folder(
        folder, ["mv_unet", "MultiViewUNetModel"],
        image_encoder=["transformers", "CLIPVisionModel"], feature_extractor=["transformers", "CLIPImageProcessor"],
    )  # fmt: skip


@pytest.fixture(scope="module")
def folder(network: Any, resampler: Resampler, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return port(tmp_path_factory.mktemp("hub") / "imagedream", network, resampler)


@pytest.fixture(scope="module")
def prior(folder: Path) -> DiffusionPrior:
    return load_prior(folder, dtype=torch.float32)


@pytest.fixture(scope="module")
def local(folder: Path) -> DiffusionPrior:
    return load_prior(folder, dtype=torch.float32, ip_mode="local")


def picture(seed: int = 5, size: int = 64) -> Tensor:
    return torch.rand(3, size, size, generator=generator(seed))


def asked(prior: DiffusionPrior, objects: int = 1, seed: int = 1) -> tuple[Tensor, Tensor, Condition]:
    """Noised views, a timestep for each object, and a condition with a picture."""
    rows = VIEWS * objects
    x = torch.randn(rows, *prior.shape, generator=generator(seed))
    t = torch.tensor([400, 650, 20])[:objects].repeat_interleave(VIEWS)
    prompts = {
        role: prior.embed([text] * rows)
        for role, text in (("text", "a mug"), ("uncond", ""), ("negative", "ugly"))
    }
    cameras = Cameras.joined([turntable(VIEWS)] * objects)
    given, none = prior.look(picture()[None])
    return x, t, with_image(Condition(prompts, cameras), given, none)


# ---- the picture


@torch.no_grad()
def test_the_pictures_tokens_are_worked_out_from_clips_states_before_the_last_layer(
    folder: Path, prior: DiffusionPrior, resampler: Resampler
) -> None:
    from transformers import CLIPVisionModel

    rgb = picture(size=16)
    given, none = prior.look(rgb[None])
    mean, std = (torch.tensor(values)[:, None, None] for values in ([0.5, 0.4, 0.3], [0.25, 0.2, 0.3]))
    model: Any = CLIPVisionModel.from_pretrained(folder / "image_encoder").eval()
    states: list[Tensor] = []
    body = getattr(model, "vision_model", model)
    handle = body.encoder.layers[-1].register_forward_pre_hook(
        lambda module, args, kwargs: states.append(args[0] if args else kwargs["hidden_states"]),
        with_kwargs=True,
    )
    model(pixel_values=((rgb - mean) / std)[None])
    handle.remove()
    assert states[0].shape == (1, 1 + 16, 24)  # the class token and all patches
    torch.testing.assert_close(given[TOKENS], resampler(states[0]), atol=1e-4, rtol=1e-4)
    # Without a picture the states are 0, and the tokens are not.
    torch.testing.assert_close(none[TOKENS], resampler(torch.zeros_like(states[0])), atol=1e-4, rtol=1e-4)
    assert none[TOKENS].abs().max() > 0.1
    torch.testing.assert_close(given[LATENT], prior.encode(rgb[None]))
    assert not none[LATENT].any()


def test_local_has_no_latent(local: DiffusionPrior) -> None:
    given, none = local.look(picture()[None])
    assert given.keys() == none.keys() == {TOKENS}


def test_the_picture_is_in_every_role_but_those_that_guidance_leads_away_from(prior: DiffusionPrior) -> None:
    _, _, cond = asked(prior, 2)
    given, none = prior.look(picture()[None])
    assert given[TOKENS].shape == (1, 2, 16) and given[LATENT].shape == (1, 4, 8, 8)
    for role, wanted in (("text", given), ("uncond", none), ("negative", none)):
        for name in (TOKENS, LATENT):
            assert torch.equal(cond.prompts[role][name], wanted[name].expand(8, *wanted[name].shape[1:]))
    again = image_of(cond)
    assert again is not None and torch.equal(again[0][LATENT], cond.text[LATENT])
    assert torch.equal(again[1][TOKENS], cond.uncond[TOKENS])
    plain = Condition({role: {"encoder_hidden_states": torch.zeros(4, 1)} for role in ("text", "uncond")})
    assert image_of(plain) is None


# ---- the network


def by_hand(
    network: Any, x: Tensor, t: Tensor, text: Tensor, tokens: Tensor, cameras: Tensor, views: int
) -> Tensor:
    """A plain UNet's forward, with cameras and both attentions written out in float64, row by row."""
    plain = type(network).from_config(
        {**dict(network.config), "class_embed_type": None, "projection_class_embeddings_input_dim": None}
    )
    state = network.state_dict()
    kept = {
        name: value for name, value in state.items() if "class_embedding" not in name and "_ip." not in name
    }
    plain.load_state_dict(kept)
    plain.double().eval()
    layers = {name: layer for name, layer in plain.named_modules() if name.endswith(("attn1", "attn2"))}
    rows = range(len(x))

    def heads_of(layer: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        parts = zip(*(each.chunk(layer.heads, dim=1) for each in (q, k, v)), strict=True)
        return torch.cat(
            [torch.softmax(a @ b.T / math.sqrt(a.shape[1]), dim=1) @ c for a, b, c in parts], dim=1
        )

    def own(layer: Any, hidden: Tensor) -> Tensor:
        found = []
        for begin in range(0, len(hidden), views):
            together = hidden[begin : begin + views].flatten(0, 1)
            seen = heads_of(layer, layer.to_q(together), layer.to_k(together), layer.to_v(together))
            found.append(layer.to_out[0](seen).unflatten(0, (views, -1)))
        return torch.cat(found)

    def cross(name: str, layer: Any, hidden: Tensor) -> Tensor:
        to_k, to_v = (state[f"{name}.processor.to_{each}_ip.0.weight"].double() for each in "kv")
        found = []
        for row in rows:
            q = layer.to_q(hidden[row])
            told = heads_of(layer, q, layer.to_k(text[row]), layer.to_v(text[row]))
            shown = heads_of(layer, q, tokens[row] @ to_k.T, tokens[row] @ to_v.T)
            found.append(layer.to_out[0](told + shown))
        return torch.stack(found)

    for name, layer in layers.items():
        if name.endswith("attn1"):
            layer.forward = lambda hidden, *_, layer=layer, **__: own(layer, hidden)
        else:
            layer.forward = lambda hidden, *_, name=name, layer=layer, **__: cross(name, layer, hidden)
    embed = network.class_embedding
    first = cameras @ embed.linear_1.weight.double().T + embed.linear_1.bias.double()
    added = (first * torch.sigmoid(first)) @ embed.linear_2.weight.double().T + embed.linear_2.bias.double()
    plain.time_embedding.register_forward_hook(lambda module, args, output: output + added)
    found: Tensor = plain(x, t, text).sample
    return found


@torch.no_grad()
@pytest.mark.parametrize("mode", ["pixel", "local"])
def test_a_prediction_is_the_forward_that_is_written_out(
    mode: str, network: Any, prior: DiffusionPrior, local: DiffusionPrior
) -> None:
    model = prior if mode == "pixel" else local
    double = network_of(PICTURED).eval()
    double.load_state_dict(network.state_dict())
    arrange(double.double(), settings_of_unet(PICTURED, "x"), VIEWS, pixel=mode == "pixel")
    x, t, cond = asked(model, 2)
    assert cond.cameras is not None
    cameras = numbers(cond.cameras).double()
    for embedding in (cond.text, cond.uncond):
        whole, times, text = x.double(), t, embedding["encoder_hidden_states"].double()
        tokens, told, index = embedding[TOKENS].double(), cameras, list(range(8))
        if mode == "pixel":
            # A fifth row after every four: the latent, not noised, with a camera of zeros.
            index = [0, 1, 2, 3, 3, 4, 5, 6, 7, 7]
            whole, told = whole[index], told[index]
            whole[4::5], told[4::5] = embedding[LATENT][:1].double(), 0
            times, text, tokens = times[index], text[index], tokens[index]
        wanted = by_hand(network, whole, times, text, tokens, told, len(index) // 2)
        wanted = wanted[[i for i in range(len(index)) if mode == "local" or i % 5 < 4]]
        named = {**{name: value.double() for name, value in embedding.items()}, CAMERA: cameras}
        output = model.family.predict(double, x.double(), t, named)
        torch.testing.assert_close(output, wanted, atol=1e-11, rtol=1e-9)
        found = model.predict_noise(x, t, embedding, cond.cameras)
        torch.testing.assert_close(found.double(), wanted, atol=1e-5, rtol=1e-4)
    # Without the picture's tokens, it is far from that.
    bare = by_hand(network, whole, times, text, 0 * tokens, told, len(index) // 2)
    assert (bare[:4] - wanted[:4]).abs().max() > 1e-4


@torch.no_grad()
def test_the_camera_of_the_pictures_view_has_an_embedding(prior: DiffusionPrior) -> None:
    """In the pixel mode zeros go through both layers with their biases, unlike MVDream's camera that is none."""
    found = prior.network.class_embedding(torch.zeros(1, 16))
    assert found.abs().max() > 1e-3


def test_rows_are_added_behind_each_object() -> None:
    rows = torch.arange(8.0).view(8, 1)
    assert beside(rows, 4).flatten().tolist() == [0, 1, 2, 3, 3, 4, 5, 6, 7, 7]
    assert beside(rows, 2, -rows).flatten().tolist() == [0, 1, -1, 2, 3, -3, 4, 5, -5, 6, 7, -7]


def moved(one: Tensor, other: Tensor) -> list[float]:
    """The largest change in each row."""
    found: list[float] = (one - other).flatten(1).abs().amax(1).tolist()
    return found


@pytest.mark.parametrize("mode", ["pixel", "local"])
def test_views_see_one_another_and_their_own_picture(
    mode: str, prior: DiffusionPrior, local: DiffusionPrior
) -> None:
    model = prior if mode == "pixel" else local
    x, t, cond = asked(model, 2)
    assert cond.cameras is not None
    whole = model.predict_noise(x, t, cond.text, cond.cameras)
    # Each object alone gives the same.
    for begin in (0, 4):
        part = cond.part(begin, begin + 4)
        alone = model.predict_noise(x[begin : begin + 4], t[begin : begin + 4], part.text, part.cameras)
        torch.testing.assert_close(alone, whole[begin : begin + 4], atol=1e-5, rtol=1e-4)
    # Permuted within an object, views and cameras together, the predictions are permuted.
    order = torch.tensor([2, 0, 3, 1, 4, 5, 6, 7])
    both = model.predict_noise(x[order], t, cond.text, cond.cameras[order])
    torch.testing.assert_close(both, whole[order], atol=1e-5, rtol=1e-4)
    # Objects exchanged, as well.
    order = torch.tensor([4, 5, 6, 7, 0, 1, 2, 3])
    both = model.predict_noise(x[order], t[order], cond.text, cond.cameras[order])
    torch.testing.assert_close(both, whole[order], atol=1e-5, rtol=1e-4)
    # Another picture of the second object changes its views alone.
    other = dict(cond.text)
    for name in model.look(picture(6)[None])[0]:
        changed = other[name].clone()
        changed[4:] = model.look(picture(6)[None])[0][name]
        other[name] = changed
    found = moved(model.predict_noise(x, t, other, cond.cameras), whole)
    assert max(found[:4]) < 1e-5 and min(found[4:]) > 1e-5


def test_a_weight_of_zero_leaves_out_the_tokens(network: Any, resampler: Resampler, tmp_path: Path) -> None:
    made = port(tmp_path / "none", network, resampler, ip_weight=0.0)
    prior = load_prior(made, dtype=torch.float32, ip_mode="local")
    x, t, cond = asked(prior)
    assert cond.cameras is not None
    told, shown = cond.text, {**cond.text, TOKENS: cond.uncond[TOKENS]}
    assert torch.equal(*(prior.predict_noise(x, t, each, cond.cameras) for each in (told, shown)))


# ---- losses


def test_sds_with_rescale_is_imagedreams_distance_to_its_estimate(prior: DiffusionPrior) -> None:
    """The estimate with guidance 5, of which a fifth has the contrast that it has under the prompt and the picture."""
    x, noise = (torch.randn(8, *prior.shape, generator=generator(i)) for i in (3, 4))
    _, t, cond = asked(prior, 2)
    loss = available()["sds"]
    found = loss(prior, x, cond, t, noise, scale=5.0, weighting="hifa", rescale=0.2)
    alpha, sigma = prior.alpha(t).double(), prior.sigma(t).double()
    x_t = (alpha * x + sigma * noise).float()
    e_c, e_n = (
        prior.predict_noise(x_t, t, cond.prompts[role], cond.cameras).double()
        for role in ("text", "negative")
    )
    wanted = []
    for own in (slice(0, 4), slice(4, 8)):
        guided = (x_t[own] - sigma[own] * (e_n + 5 * (e_c - e_n))[own]) / alpha[own]
        without = (x_t[own] - sigma[own] * e_c[own]) / alpha[own]
        adjusted = guided * without.flatten().std() / guided.flatten().std()
        wanted.append(x[own] - (0.2 * adjusted + 0.8 * guided))
    torch.testing.assert_close(found.double(), torch.cat(wanted), atol=2e-3, rtol=1e-3)


@pytest.mark.parametrize("name", ["sds", "csd", "asd", "nfsd", "ism", "vsd", "mix"])
def test_a_loss_gives_a_gradient_and_is_deterministic(name: str, prior: DiffusionPrior) -> None:
    x, noise = (torch.randn(4, *prior.shape, generator=generator(i)) for i in (3, 4))
    _, _, cond = asked(prior)
    cond = replace(cond, step=Step(uniform=torch.full((4,), 0.5)))
    loss = available()[name]
    options: dict[str, Any] = (
        {"terms": [{"loss": "sds"}, {"loss": "csd", "prompt": "a red mug"}]} if name == "mix" else {}
    )
    made: Any = loss(prior, generator(), {}, **options) if is_made_for_prior(loss) else loss
    t = torch.full((4,), 600)
    grad = made(prior, x, cond, t, noise)
    assert grad.shape == x.shape and grad.isfinite().all() and grad.abs().max() > 0
    assert torch.equal(grad, made(prior, x, cond, t, noise))
    if name == "vsd":
        assert made.learn(prior, x, cond, generator()) > 0
        prior.network.delete_adapters("student")


def test_csd_has_the_picture_in_one_prediction_alone(prior: DiffusionPrior) -> None:
    """With the same words on both sides, what is left is what the picture changes."""
    x, noise = (torch.randn(4, *prior.shape, generator=generator(i)) for i in (3, 4))
    _, t, cond = asked(prior)
    words = cond.text["encoder_hidden_states"]
    same = {
        role: {**each, "encoder_hidden_states": words}
        for role, each in cond.prompts.items()
        if role != "negative"
    }
    grad = available()["csd"](prior, x, replace(cond, prompts=same), t, noise)
    assert min(moved(grad, torch.zeros_like(grad))) > 1e-6
    # Nothing is left of it where there is no picture on either side.
    bare = {
        role: {**each, **{name: same["uncond"][name] for name in (TOKENS, LATENT)}}
        for role, each in same.items()
    }
    assert not available()["csd"](prior, x, replace(cond, prompts=bare), t, noise).any()


# ---- published names


#: Names in the published files, and diffusers'.
NAMES = {
    "input_blocks.1.1.transformer_blocks.0.attn2.to_k_ip.weight":
        "down_blocks.0.attentions.0.transformer_blocks.0.attn2.processor.to_k_ip.0.weight",
    "middle_block.1.transformer_blocks.0.attn2.to_v_ip.weight":
        "mid_block.attentions.0.transformer_blocks.0.attn2.processor.to_v_ip.0.weight",
    "output_blocks.11.1.transformer_blocks.0.attn2.to_v_ip.weight":
        "up_blocks.3.attentions.2.transformer_blocks.0.attn2.processor.to_v_ip.0.weight",
}  # fmt: skip
RESAMPLED = {
    "latents": "latents",
    "proj_in.weight": "proj_in.weight",
    "layers.0.0.norm1.weight": "layers.0.ln0.weight",
    "layers.0.0.norm2.bias": "layers.0.ln1.bias",
    "layers.1.0.to_q.weight": "layers.1.attn.to_q.weight",
    "layers.1.0.to_out.weight": "layers.1.attn.to_out.0.weight",
    "layers.2.1.0.bias": "layers.2.ff.0.bias",
    "layers.3.1.1.weight": "layers.3.ff.1.net.0.proj.weight",
    "layers.3.1.3.weight": "layers.3.ff.1.net.2.weight",
    "norm_out.bias": "norm_out.bias",
}


def test_names_of_the_published_files() -> None:
    for theirs, ours in NAMES.items():
        assert renamed(theirs, 2) == ours
    for theirs, ours in RESAMPLED.items():
        assert list(resampled({theirs: torch.zeros(2, 2)})) == [ours]
    keys = resampled({"layers.3.0.to_kv.weight": torch.tensor([[1.0], [2.0], [3.0], [4.0]])})
    assert {name: value.flatten().tolist() for name, value in keys.items()} == {
        "layers.3.attn.to_k.weight": [1, 2],
        "layers.3.attn.to_v.weight": [3, 4],
    }


def test_the_published_size_has_as_many_weights_as_the_published_file() -> None:
    with torch.device("meta"):
        full = network_of({**FULL, "ip_dim": 16})
        tokens = Resampler(VIT_H, 1024, 16)
    theirs = tensors_of(full, tokens)
    assert set(NAMES) <= set(theirs)
    found = names_of(theirs, {**full.config, COUNT: 16})
    sizes = {name: value.shape for name, value in full.state_dict().items()}
    assert {ours: theirs[name].shape for name, ours in found.items()} == sizes
    # Self-attention's projections of a picture's tokens, which it never gets, are left out.
    unused = "input_blocks.1.1.transformer_blocks.0.attn1.to_k_ip.weight"
    assert unused not in names_of([*theirs, unused], {**full.config, COUNT: 16})
    # The port's file of the UNet has 1.88 GB in half precision.
    assert round(2 * sum(value.numel() for value in theirs.values()) / 1e9, 2) == 1.88
    assert sizes["mid_block.attentions.0.transformer_blocks.0.attn2.processor.to_k_ip.0.weight"] == (
        1280,
        1024,
    )
    said = settings_of_unet({**FULL, "ip_dim": 16}, "x")
    assert (said[COUNT], said[WIDTH], said[WEIGHT]) == (16, 1280, 1.0)


def prediction(prior: DiffusionPrior, seed: int = 1) -> Tensor:
    x, t, cond = asked(prior, seed=seed)
    return prior.predict_noise(x, t, cond.text, cond.cameras)


def test_the_ports_folder_loads_and_runs_no_code(folder: Path, prior: DiffusionPrior) -> None:
    assert (prior.views, prior.image_size) == (4, 64)
    assert prior.picture is not None and prior.picture.pixel
    assert shown_picture(str(folder)) and shown_picture("imagedream") and not shown_picture("mvdream")
    source = find(folder)
    index = json.loads((folder / "model_index.json").read_text()) | {
        "unet": ["diffusers", "UNet2DConditionModel"]
    }
    check_complete(source, prior.family, index)
    assert prior.describe()["prior"]["sha256"].keys() >= {"unet/diffusion_pytorch_model.safetensors"}
    # Of a repository the image encoder is taken, too.
    names = [
        "image_encoder/config.json",
        "image_encoder/model.safetensors",
        "feature_extractor/preprocessor_config.json",
    ]
    assert set(names) <= set(patterns(index, ["model_index.json", "unet/config.json", *names]))


@pytest.mark.slow
def test_a_forecast_counts_five_views_and_their_tokens(folder: Path, prior: DiffusionPrior) -> None:
    counted = shadow(find(folder), torch.float32)
    assert counted.views == 4
    pixel = forecast(counted, [8], 4).network
    local = forecast(shadow(find(folder), torch.float32, ip_mode="local"), [8], 4).network
    # All but attention between views is five fourths as much, and that between them is more.
    assert 1.25 * local < pixel < 1.25 * 1.25 * local


def vision_tensors(model: Any) -> dict[str, Tensor]:
    """An image encoder under OpenCLIP's names."""
    state = {
        f"vision_model.{name.removeprefix('vision_model.')}": x for name, x in model.state_dict().items()
    }
    names = {
        "vision_model.embeddings.class_embedding": "class_embedding",
        "vision_model.embeddings.patch_embedding.weight": "conv1.weight",
        "vision_model.embeddings.position_embedding.weight": "positional_embedding",
    }
    found = {"proj": torch.zeros(24, 8)}
    for name, value in state.items():
        plain = names.get(name, name.removeprefix("vision_model."))
        if plain.startswith("encoder.layers."):
            number, rest = plain.removeprefix("encoder.layers.").split(".", 1)
            for ours, theirs in (("layer_norm1", "ln_1"), ("layer_norm2", "ln_2"), ("mlp.fc1", "mlp.c_fc"),
                                 ("mlp.fc2", "mlp.c_proj"), ("self_attn.out_proj", "attn.out_proj")):  # fmt: skip
                rest = rest.replace(ours, theirs)
            if "_proj." in rest and rest.startswith("self_attn"):
                if "q_proj" not in rest:
                    continue
                value = torch.cat([state[name.replace("q_proj", f"{each}_proj")] for each in "qkv"])
                rest = rest.replace("self_attn.q_proj.", "attn.in_proj_")
            plain = f"transformer.resblocks.{number}.{rest}"
        found[plain.replace("pre_layrnorm", "ln_pre").replace("post_layernorm", "ln_post")] = value
    return found


@torch.no_grad()
def test_openclips_image_encoder_is_transformers() -> None:
    torch.manual_seed(2)
    own = vision()
    state = vision_tensors(own)
    assert {
        "class_embedding",
        "conv1.weight",
        "ln_pre.weight",
        "transformer.resblocks.2.attn.in_proj_bias",
    } <= set(state)
    made = vision_of(state).eval()
    x = torch.randn(2, 3, 16, 16, generator=generator())
    wanted, found = (
        each(pixel_values=x, output_hidden_states=True).hidden_states[-2] for each in (own, made)
    )
    torch.testing.assert_close(found, wanted)
    # ViT-H: 16 heads of 80, patches of 14 pixels.
    assert made.config.hidden_act == "gelu" and made.config.num_attention_heads == 1
    with pytest.raises(ValueError, match="are of no image encoder of CLIP"):
        vision_of({"conv1.weight": torch.zeros(8, 3, 4, 4)})


def authors_file(path: Path, network: Any, resampler: nn.Module) -> Path:
    """The authors' own file, pickled, with what else is in it."""
    tensors = {f"model.diffusion_model.{name}": x for name, x in tensors_of(network, resampler).items()}
    torch.manual_seed(1)
    tensors |= of_vae(vae(), "vae_model.") | of_open_clip(clip(), "clip_model.model.")
    torch.manual_seed(2)
    tensors |= {f"clip_model.model.visual.{name}": x for name, x in vision_tensors(vision()).items()}
    tensors |= {
        "betas": torch.linspace(0.00085, 0.012, 1000),
        "clip_model.model.logit_scale": torch.zeros(()),
    }
    torch.save({name: value.detach().clone().contiguous() for name, value in tensors.items()}, path)
    return path


@pytest.mark.slow
def test_the_authors_file_is_converted_once_and_loaded(
    network: Any, resampler: Resampler, folder: Path, prior: DiffusionPrior, tmp_path: Path
) -> None:
    pickled = authors_file(tmp_path / "sd-v2.1-base-4view-ipmv-local.pt", network, resampler)
    assert "is pickled" in error_of(pickled)
    command = [sys.executable, "-m", "distill.convert", str(pickled)]
    subprocess.run(command, check=True, capture_output=True)
    file = pickled.with_suffix(".safetensors")
    names = set(load_file(file))
    assert {"cond_stage_model.model.visual.conv1.weight", "first_stage_model.quant_conv.weight"} <= names
    assert not any(name.startswith(("clip_model.", "vae_model.")) for name in names)
    # Beside it, the settings of Stable Diffusion 2.1 base: no layers for cameras, no image encoder.
    settings = tmp_path / "settings"
    (settings / "unet").mkdir(parents=True)
    said = {
        name: value
        for name, value in dict(network.config).items()
        if name not in ("class_embed_type", "projection_class_embeddings_input_dim")
    }
    (settings / "unet/config.json").write_text(
        json.dumps({**said, "_class_name": "UNet2DConditionModel", "sample_size": 64}, default=list)
    )
    write_folder(settings, ["diffusers", "UNet2DConditionModel"], _class_name="StableDiffusionPipeline")
    options: dict[str, Any] = {"dtype": torch.float32, "config": settings, "image_size": 64}
    # The local model, by the file's name; as the pixel one, it predicts what the folder does, except for CLIP's mean and deviation.
    local = load_prior(file, **options)
    assert local.picture is not None and not local.picture.pixel and local.views == 4
    made = load_prior(file, ip_mode="pixel", **options)
    assert shown_picture(str(file))
    x, t, cond = asked(prior)
    assert cond.cameras is not None
    torch.testing.assert_close(
        made.predict_noise(x, t, cond.text, cond.cameras), prior.predict_noise(x, t, cond.text, cond.cameras)
    )
    torch.testing.assert_close(
        made.look(picture()[None])[0][LATENT], cond.text[LATENT][:1], atol=1e-5, rtol=1e-4
    )
    assert prediction(local).isfinite().all()
    # With the port's folder for settings, even the picture's normalisation is the same.
    again = load_prior(file, ip_mode="pixel", dtype=torch.float32, config=folder)
    torch.testing.assert_close(prediction(again), prediction(prior), atol=1e-5, rtol=1e-4)


def test_the_mode_goes_by_the_name(folder: Path) -> None:
    source = find(folder)
    assert is_pixel("auto", source) and is_pixel("pixel", source) and not is_pixel("local", source)
    named = {
        "/usr/local/sd-v2.1-base-4view-ipmv.safetensors": True,
        "sd-v2.1-base-4view-ipmv-local.safetensors": False,
        "someone/imagedream-local-diffusers": False,
        "locality": True,
    }
    for name, pixel in named.items():
        assert is_pixel("auto", replace(source, name=name)) is pixel


# ---- runs


@pytest.fixture(scope="module")
def mug(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A red disc on nothing."""
    path = tmp_path_factory.mktemp("pictures") / "mug.png"
    y, x = np.mgrid[:48, :48] - 24
    inside = (x**2 + y**2 < 15**2)[..., None]
    rgba = np.where(inside, np.array([200, 30, 20, 255]), 0).astype(np.uint8)
    Image.fromarray(rgba, "RGBA").save(path)
    return path


def composed(folder: Path, mug: Path | None, *words: str) -> Any:
    said = [
        "prompt=a red mug",
        f"prior={folder}",
        "iterations=2",
        "render.size=8",
        "prior_options.dtype=float32",
    ]
    return compose_config([*said, *([f"image={mug}"] if mug else []), *words])


SMALL = ("scene.log2_table_size=8", "scene.march_steps=16", "scene.occupancy_resolution=8")


def test_image_and_prompt_choose_what_imagedream_needs(folder: Path, mug: Path) -> None:
    words = with_implied([f"prior={folder}", f"image={mug}", "prompt=a red mug"])
    assert {"preset=multi_view_image", "cameras=groups"} <= set(words)
    assert not any(word.startswith("guidance=") for word in words)
    config = composed(folder, mug)
    assert (config.guidance.scale, config.guidance.rescale, config.guidance.weighting) == (5.0, 0.2, "hifa")
    assert (config.render.batch, config.cameras.views, config.scene.background) == (4, 4, "white")
    # Every scene that is tuned for latents is over white here, and the same otherwise.
    for scene in ("hash_grid", "sdf", "surface", "hyper_conv", "hyper_grid"):
        path = Path(loop.__file__).parent / "conf/tuned/scene" / f"multi_view_image_{scene}.yaml"
        assert f"- latent_{scene}\n" in path.read_text() and "background: white" in path.read_text()


def test_two_steps_from_a_picture_and_a_prompt(folder: Path, mug: Path, tmp_path: Path) -> None:
    from distill.run.execute import run

    out = tmp_path / "out"
    config = composed(
        folder, mug, *SMALL, f"output_dir={out}", "export.enabled=false", "log.tensorboard=false"
    )
    run(config)
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["skipped_steps"] == 0
    assert manifest["picture"]["file"] == "mug.png" and manifest["picture"]["ip_mode"] == "pixel"
    assert not (out / "reference.png").exists()
    assert len((out / "metrics.jsonl").read_text().splitlines()) == 2


def test_a_run_shows_the_picture_over_white(folder: Path, prior: DiffusionPrior, mug: Path) -> None:
    job = assemble(composed(folder, mug, *SMALL, "negative_prompt=ugly", "reference.fill=0.5"), prior)
    cond = job.condition(turntable(4), Step())
    # The disc, 29 pixels wide, is half of the picture: the frame is 58 pixels about its middle.
    assert job.picture is not None
    frame = job.picture.frame
    assert (frame.side, frame.left, frame.top) == (58, 24.5 - 29, 24.5 - 29)
    from distill.conditions.cutout import cut_out

    rgb = cut_out(mug, 64, fill=0.5)[0].rgb
    given, none = prior.look(rgb[None])
    assert torch.equal(rgb[:, 0, 0], torch.ones(3))
    torch.testing.assert_close(cond.text[LATENT], given[LATENT].expand(4, -1, -1, -1))
    torch.testing.assert_close(cond.prompts["negative"][TOKENS], none[TOKENS].expand(4, -1, -1))
    texts = {
        role: prior.embed([text] * 4)["encoder_hidden_states"]
        for role, text in (("text", "a red mug"), ("negative", "ugly"))
    }
    for role, states in texts.items():
        assert torch.equal(cond.prompts[role]["encoder_hidden_states"], states)
    state = loop.train(job)
    assert state.skipped == 0


def refused(folder: Path, mug: Path | None, *words: str, prior: Any = None) -> str:
    with pytest.raises(ValueError) as caught:
        assemble(composed(folder, mug, *words), prior)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_does_not_go_with_imagedream_gets_one_line(
    folder: Path, prior: DiffusionPrior, mug: Path, tmp_path: Path
) -> None:
    for loaded in (None, prior):
        assert "is shown a picture beside the prompt; add image=FILE" in refused(folder, None, prior=loaded)
        said = refused(folder, mug, "reference.elevation_deg=20", prior=loaded)
        assert "reference.elevation_deg=20.0 places the picture before a camera" in said
        said = refused(folder, mug, "penalties.reference_rgb=100", prior=loaded)
        assert "penalties.reference_rgb=100 places the picture before a camera" in said
    assert "render.batch must be a multiple of the 4 views" in refused(
        folder, mug, "render.batch=6", prior=prior
    )
    assert "prior_options.views=1 is for a prior that also takes single" in error_of(folder, views=1)
    # A photograph without an alpha channel, whose background is not plain.
    noise = np.random.default_rng(0).integers(0, 255, (48, 48, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    said = refused(folder, tmp_path / "noise.png")
    assert "noise.png" in said and "background" in said
    assert "mug.jpg is not there" in refused(folder, tmp_path / "mug.jpg")
    x, t, cond = asked(prior)
    bare = {"encoder_hidden_states": cond.text["encoder_hidden_states"]}
    with pytest.raises(
        ValueError, match=r"is shown a picture, and the embedding has none, under 'image_tokens'"
    ):
        prior.predict_noise(x, t, bare, cond.cameras)
    with pytest.raises(ValueError, match="a batch of 3 is no multiple of that"):
        prior.predict_noise(x[:3], t[:3], bare, turntable(3))


def test_other_priors_are_shown_no_picture() -> None:
    with pytest.raises(ValueError, match=r"ip_mode=local is for ImageDream, .* leave it out"):
        load_prior("embedded", ip_mode="local")
    with pytest.raises(ValueError, match=r"ip_mode must be one of auto, pixel, local, got 'global'"):
        load_prior("embedded", ip_mode="global")
    with pytest.raises(ValueError, match="is conditioned on no picture"):
        load_prior("embedded").look(torch.zeros(1, 3, 8, 8))


@pytest.mark.slow
def test_what_is_missing_of_imagedream_gets_one_line(
    network: Any, resampler: Resampler, tmp_path: Path
) -> None:
    made = port(tmp_path / "a", network, resampler)
    weights = made / "unet/diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    del tensors["image_embed.proj_out.bias"]
    save_file(tensors, weights)
    assert "does not have the weights of ImageDream's image_embed" in error_of(made)
    del tensors["middle_block.1.transformer_blocks.0.attn2.to_k_ip.weight"]
    save_file(tensors, weights)
    assert "does not have the weights of ImageDream's UNet: 1 are missing" in error_of(made)
    made = port(tmp_path / "b", network, resampler)
    (made / "image_encoder/model.safetensors").unlink()
    assert f"has no weights in {made / 'image_encoder'}" in error_of(made)
    (made / "image_encoder/config.json").unlink()
    assert f"the prior lacks {made / 'image_encoder/config.json'}" in error_of(made)
