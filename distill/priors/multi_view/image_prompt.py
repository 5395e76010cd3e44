"""ImageDream's picture: how a multi-view UNet is shown it.

CLIP's image encoder gives the states before its last layer, the class token's among them. A resampler makes a few tokens of them.
Every cross-attention attends to these tokens by projections of its own, beside the prompt's; the picture's part is multiplied by a
weight, and the sum of both goes through the output projection.

In the pixel mode, the picture's scaled latent is one more view of each object, the last. It is not noised, and it has the other
views' timestep and prompt. Its camera is zeros, whose embedding is not 0. What is predicted for it is dropped. In the local mode
there is no such view.

Without a picture, which is what guidance leads away from, CLIP's states are zeros before they are resampled, and the latent is
zeros. The cameras of the other views are MVDream's.

Source: Wang and Shi 2023 (ImageDream), arXiv:2312.02201, and the authors' code.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from distill.files.errors import first_line
from distill.priors.header import AGAIN, VISION
from distill.priors.multi_view.attention import CAMERA, COUNT, fold
from distill.priors.multi_view.published import ENCODER, IN_FILE, RESAMPLER, WIDTH
from distill.priors.novel_view.features import CLIP, Encoder
from distill.priors.source import Source
from distill.priors.whole import load_encoder

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel
    from transformers import CLIPVisionModel

log = logging.getLogger(__name__)

#: What an embedding calls the picture's tokens, shape ``[batch, tokens, width]``.
TOKENS = "image_tokens"
#: What it calls the picture's latent, shape ``[batch, channel, height, width]``, in the pixel mode.
LATENT = "image_latent"
#: Layers of the resampler, its attention heads, and their width.
DEPTH, HEADS, HEAD_WIDTH = 4, 12, 64
#: Width of a head of CLIP ViT-H, which a file does not say.
VISION_HEAD = 80

_RESAMPLED = {
    r"\.0\.norm1\.": ".ln0.", r"\.0\.norm2\.": ".ln1.", r"\.0\.to_q\.": ".attn.to_q.", r"\.0\.to_out\.": ".attn.to_out.0.",
    r"\.1\.0\.": ".ff.0.", r"\.1\.1\.": ".ff.1.net.0.proj.", r"\.1\.3\.": ".ff.1.net.2.",
}  # fmt: skip
_VISION = {
    "class_embedding": "embeddings.class_embedding", "positional_embedding": "embeddings.position_embedding.weight",
    "conv1.": "embeddings.patch_embedding.", "ln_pre.": "pre_layrnorm.", "ln_post.": "post_layernorm.",
    "transformer.resblocks.": "encoder.layers.", ".ln_1.": ".layer_norm1.", ".ln_2.": ".layer_norm2.",
    ".attn.out_proj.": ".self_attn.out_proj.", ".mlp.c_fc.": ".mlp.fc1.", ".mlp.c_proj.": ".mlp.fc2.",
}  # fmt: skip


# ---- the network


def arrange(network: UNet2DConditionModel, settings: Mapping[str, Any], views: int, *, pixel: bool) -> None:
    """Let a network that takes cameras denoise so many views of an object together, and ImageDream's be shown a picture.

    Args:
        network: of ``distill.priors.multi_view.published.build``; is changed.
        settings: that it was built from.
        views: of an object, in consecutive rows.
        pixel: ImageDream's pixel mode.

    Raises:
        ValueError: the network has no self-attention that could be folded.
    """
    if not settings.get(COUNT):
        fold(network, views)
        return
    fold(network, views + pixel, silence=False)
    network.register_forward_pre_hook(partial(_with_picture, views=views if pixel else 0), with_kwargs=True)
    if pixel:
        network.register_forward_hook(partial(_without_picture, views=views))


def beside(rows: Tensor, views: int, more: Tensor | None = None) -> Tensor:
    """Add one row to each object's: the last of ``more``'s, by default a copy of its own last, ``[objects * (views + 1), ...]``."""
    groups = rows.unflatten(0, (-1, views))
    added = groups if more is None else more.unflatten(0, (-1, views))
    return torch.cat([groups, added[:, -1:]], dim=1).flatten(0, 1)


def _with_picture(
    network: nn.Module, given: tuple[Any, ...], told: dict[str, Any], views: int
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Pass the picture's tokens to cross-attention, and its latent as one more view of each ``views``; none of 0."""
    x, t, told = *given, dict(told)
    lacking = [name for name in (TOKENS, *([LATENT] if views else [])) if name not in told]
    if lacking:
        raise ValueError(
            f"this prior is shown a picture, and the embedding has none, under {lacking[0]!r}; see "
            "distill.conditions.image_prompt.with_image"
        )
    text, tokens, latent = told.pop("encoder_hidden_states"), told.pop(TOKENS), told.pop(LATENT, None)
    if views:
        x, t, text, tokens = (
            beside(x, views, latent),
            beside(t, views),
            beside(text, views),
            beside(tokens, views),
        )
        told[CAMERA] = beside(told[CAMERA], views, torch.zeros_like(told[CAMERA]))
    # The processors of IP-Adapters take the two apart, and may have several pictures.
    return (x, t), {**told, "encoder_hidden_states": (text, [tokens])}


def _without_picture(network: nn.Module, given: tuple[Any, ...], found: Any, views: int) -> Any:
    """Drop what is predicted for the view that is the picture."""
    return type(found)(sample=found.sample.unflatten(0, (-1, views + 1))[:, :-1].flatten(0, 1))


# ---- the picture


@dataclass(frozen=True)
class ImagePrompt:
    """Makes of pictures what ImageDream's network is shown of them.

    Attributes:
        load: makes CLIP's image encoder, which is in memory only while it is at work.
        resampler: states to tokens.
        pixel: whether the network takes the picture's latent as a view.
    """

    load: Callable[[], Encoder]
    resampler: nn.Module
    pixel: bool

    @torch.no_grad()
    def tokens(self, rgb: Tensor) -> tuple[Tensor, Tensor]:
        """Return the tokens of pictures in [0, 1], ``[batch, 3, h, w]``, and as many of none; shape ``[batch, tokens, width]``."""
        encoder = self.load()
        pixels = encoder.preprocess(rgb.float()).to(encoder.model.dtype)
        states = encoder.model(pixel_values=pixels, output_hidden_states=True).hidden_states[-2]
        weight = next(self.resampler.parameters())
        both = self.resampler(torch.cat([states, torch.zeros_like(states)]).to(weight)).float()
        given, none = both.chunk(2)
        return given, none


def load_image_prompt(
    source: Source, settings: Mapping[str, Any], device: torch.device, dtype: torch.dtype, *, pixel: bool
) -> ImagePrompt:
    """Load ImageDream's resampler, and what loads its image encoder.

    Args:
        source: of the prior.
        settings: of its UNet.
        device: where both run.
        dtype: what both compute in.
        pixel: see ``ImagePrompt``.

    Raises:
        ValueError: the resampler's weights are missing, not known, or of another shape.
    """
    resampler = load_resampler(source, settings).to(device, dtype).eval().requires_grad_(False)
    return ImagePrompt(partial(load_image_encoder, source, device, dtype), resampler, pixel)


def is_pixel(mode: str, source: Source) -> bool:
    """Tell the pixel mode from the local one; ``auto`` goes by the name, for both have the same weights by name and shape."""
    if mode != "auto":
        return mode == "pixel"
    named = [
        source.file.stem if source.file else "",
        Path(source.name).name,
        source.repository.rpartition("/")[2],
    ]
    local = any(re.search(r"(^|[-_.])local([-_.]|$)", name) for name in named)
    log.info(
        "%s is treated as ImageDream's %s model, from its name; set prior_options.ip_mode=%s if it is not",
        source.name, *(("local", "pixel") if local else ("pixel", "local")),
    )  # fmt: skip
    return not local


# ---- weights


def load_resampler(source: Source, settings: Mapping[str, Any]) -> nn.Module:
    """Load ImageDream's resampler as diffusers' class, in float32.

    Raises:
        ValueError: weights are missing, not known, or of another shape.
    """
    from diffusers.models.embeddings import IPAdapterPlusImageProjection

    text, own = settings["cross_attention_dim"], "unet" in source.parts
    files = [source.file] if own else [*sorted((source.folder / "unet").glob("*.safetensors"))]
    prefix = (IN_FILE if own else "") + RESAMPLER
    state = {name: value.float() for file in files for name, value in _tensors(file, prefix).items()}
    resampler: nn.Module = IPAdapterPlusImageProjection(
        embed_dims=settings[WIDTH], output_dims=text, hidden_dims=text, depth=DEPTH, dim_head=HEAD_WIDTH, heads=HEADS,
        num_queries=settings[COUNT],
    )  # fmt: skip
    try:
        resampler.load_state_dict(resampled(state))
    except RuntimeError as error:
        raise ValueError(
            f"{files[0]} does not have the weights of ImageDream's {RESAMPLER.rstrip('.')}: {str(error).splitlines()[-1].strip()}; "
            f"{AGAIN}"
        ) from error
    return resampler


def resampled(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename a resampler's tensors to diffusers' names; keys and values, one matrix there, are two here.

    Args:
        state: without ``image_embed.`` in front of the names, for example ``layers.0.0.to_q.weight``.
    """
    found = {}
    for name, value in state.items():
        if name.endswith(".0.to_kv.weight"):
            layer = name.removesuffix(".0.to_kv.weight")
            found[f"{layer}.attn.to_k.weight"], found[f"{layer}.attn.to_v.weight"] = value.chunk(2)
            continue
        for theirs, ours in _RESAMPLED.items():
            name = re.sub(rf"^(layers\.\d+){theirs}", rf"\1{ours}", name)
        found[name] = value
    return found


def load_image_encoder(source: Source, device: torch.device, dtype: torch.dtype) -> Encoder:
    """Load CLIP's image encoder from a folder or from a converted file.

    Raises:
        ValueError: it lacks weights, or cannot be read.
    """
    folder = source.folder
    model: Any
    if ENCODER in source.parts:
        assert source.file is not None
        model = vision_of(_tensors(source.file, VISION))
    else:
        try:
            model, missing = load_encoder(folder, ENCODER, "CLIPVisionModel", dtype)
        except (OSError, ValueError) as error:
            raise ValueError(
                f"could not load the image encoder in {folder / ENCODER}: {first_line(error)}"
            ) from error
        if missing:
            raise ValueError(
                f"{folder / ENCODER} lacks {len(missing)} of its weights, such as {missing[0]}; {AGAIN}"
            )
    mean, std = CLIP
    said = folder / "feature_extractor" / "preprocessor_config.json"
    if said.is_file():
        own = json.loads(said.read_text())
        mean, std = tuple(own.get("image_mean", mean)), tuple(own.get("image_std", std))
    model.to(device, dtype).eval().requires_grad_(False)
    return Encoder(model, (), mean, std, ENCODER)


def vision_of(state: Mapping[str, Tensor]) -> CLIPVisionModel:
    """Make transformers' image encoder of OpenCLIP's tensors.

    Args:
        state: names without what stands in front of them, for example ``conv1.weight``.

    Raises:
        ValueError: they are of no ViT of CLIP.
    """
    from transformers import CLIPVisionConfig, CLIPVisionModel

    try:
        width, _, patch, _ = state["conv1.weight"].shape
        places = len(state["positional_embedding"]) - 1
        layers = {name.split(".")[2] for name in state if name.startswith("transformer.resblocks.")}
        config = CLIPVisionConfig(
            hidden_size=width, intermediate_size=len(state["transformer.resblocks.0.mlp.c_fc.weight"]),
            num_hidden_layers=len(layers), num_attention_heads=max(width // VISION_HEAD, 1), patch_size=patch,
            image_size=patch * round(places**0.5), hidden_act="gelu",
        )  # fmt: skip
        with torch.random.fork_rng(devices=[]):  # it draws weights first
            model: CLIPVisionModel = CLIPVisionModel(config)
        own = "vision_model." if hasattr(model, "vision_model") else ""
        model.load_state_dict({own + name: value.float() for name, value in _renamed(state).items()})
    except (KeyError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"the tensors {VISION}* are of no image encoder of CLIP: {str(error).splitlines()[-1].strip()}; {AGAIN}"
        ) from error
    return model


def _renamed(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    found = {}
    for name, value in state.items():
        if name == "proj":
            continue  # to the space that pictures and texts share
        for theirs, ours in _VISION.items():
            name = name.replace(theirs, ours)
        if joined := re.fullmatch(r"(.+)\.attn\.in_proj_(weight|bias)", name):
            for each, part in zip("qkv", value.chunk(3), strict=True):
                found[f"{joined[1]}.self_attn.{each}_proj.{joined[2]}"] = part
        else:
            found[name] = value
    return found


def _tensors(file: Path | None, prefix: str) -> dict[str, Tensor]:
    """Read a safetensors file's tensors whose names begin so, without that."""
    assert file is not None
    with safe_open(file, "pt") as opened:
        names = [name for name in opened.keys() if name.startswith(prefix)]  # noqa: SIM118
        return {name.removeprefix(prefix): opened.get_tensor(name) for name in names}
