"""UNets: Stable Diffusion 1 and 2, XL, DeepFloyd IF, and folders of a UNet with a CLIP text encoder alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from distill.priors.families import weighted
from distill.priors.families.family import Control, Family, default_options
from distill.priors.families.length import fit

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline, ModelMixin

    from distill.priors.space import Space


#: Guidance scale that a latent consistency model is told, its pipeline's default in diffusers.
CONSISTENCY = 8.5


def embed_plain(pipeline: DiffusionPipeline, prompts: Sequence[str]) -> dict[str, Tensor]:
    """The last hidden states of a CLIP text encoder, ``[batch, tokens, width]``."""
    tokenizer, encoder = pipeline.tokenizer, pipeline.text_encoder
    tokens = tokenizer(
        fit(tokenizer, prompts),
        padding="max_length",
        max_length=tokenizer.model_max_length,
        truncation=True,
        return_tensors="pt",
    )
    return {"encoder_hidden_states": encoder(tokens.input_ids.to(encoder.device)).last_hidden_state}


def embed(pipeline: DiffusionPipeline, prompts: Sequence[str], limit: int = 0) -> dict[str, Tensor]:
    """Stable Diffusion and DeepFloyd IF; at most ``limit`` tokens, 0 for the tokenizer's own limit."""
    options = default_options(pipeline)
    found, _ = pipeline.encode_prompt(
        fit(pipeline.tokenizer, prompts, limit),
        device=pipeline.text_encoder.device,
        num_images_per_prompt=1,
        do_classifier_free_guidance=False,
        **options,
    )
    return {"encoder_hidden_states": found}


def embed_xl(pipeline: DiffusionPipeline, prompts: Sequence[str]) -> dict[str, Tensor]:
    """Two text encoders' states and the pooled one; without a prompt both are 0 where the model was trained so."""
    states, _, pooled, _ = pipeline.encode_prompt(
        fit(pipeline.tokenizer, prompts),
        fit(pipeline.tokenizer_2, prompts),
        device=pipeline.text_encoder_2.device,
        do_classifier_free_guidance=False,
        **default_options(pipeline),
    )
    if pipeline.config.force_zeros_for_empty_prompt:
        told = torch.tensor([bool(text) for text in prompts], device=states.device)
        states, pooled = states * told[:, None, None], pooled * told[:, None]
    return {"encoder_hidden_states": states, "text_embeds": pooled}


def predict(network: ModelMixin, x_t: Tensor, time: Tensor, cond: Mapping[str, Any]) -> Tensor:
    """Call a UNet that is given nothing but text, and a latent consistency model its guidance scale."""
    told = {"timestep_cond": scale_of(network, x_t)} if network.config.get("time_cond_proj_dim") else {}
    result: Tensor = network(x_t, time, **cond, **told).sample
    return result


def scale_of(network: ModelMixin, x_t: Tensor) -> Tensor:
    """What a latent consistency model is told of the guidance that is built into it: the embedding of ``CONSISTENCY - 1``.

    Source: Luo et al. 2023, arXiv:2310.04378, and its pipeline in diffusers.
    """
    from diffusers.models.embeddings import get_timestep_embedding

    scale = x_t.new_full((len(x_t),), CONSISTENCY - 1, dtype=torch.float32)
    return get_timestep_embedding(1000 * scale, network.config.time_cond_proj_dim, downscale_freq_shift=1).to(
        x_t.dtype
    )


def predict_xl(network: ModelMixin, x_t: Tensor, time: Tensor, cond: Mapping[str, Any]) -> Tensor:
    """A UNet that is given a picture's size, too."""
    return predict(network, x_t, time, _sized(x_t, cond))


def _sized(x_t: Tensor, cond: Mapping[str, Any]) -> dict[str, Any]:
    """An embedding with a picture's size: whole, uncropped, of the size it has."""
    height, width = (8 * side for side in x_t.shape[-2:])
    rest = dict(cond)
    pooled = rest.pop("text_embeds")
    # Written on the device: a copy of a list would wait for it, and cannot be part of a CUDA graph.
    told = pooled.new_zeros(len(x_t), 6)
    told[:, 0::4], told[:, 1::4] = height, width
    return {**rest, "added_cond_kwargs": {"text_embeds": pooled, "time_ids": told}}


def show(controlnet: ModelMixin, space: Space, pictures: Tensor) -> Tensor:
    """The pictures themselves; the ControlNet makes them as small as latents."""
    return pictures


def add(
    controlnet: ModelMixin, network: ModelMixin, x_t: Tensor, time: Tensor, cond: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the residuals of the skip connections and of the middle block."""
    down, middle = controlnet(x_t, time, **cond, return_dict=False)
    return {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}


def add_xl(
    controlnet: ModelMixin, network: ModelMixin, x_t: Tensor, time: Tensor, cond: Mapping[str, Any]
) -> dict[str, Any]:
    return add(controlnet, network, x_t, time, _sized(x_t, cond))


def blank(network: ModelMixin) -> dict[str, Tensor]:
    """77 tokens, as CLIP and IF's T5 give."""
    config = network.config
    return {"encoder_hidden_states": torch.zeros(1, 77, config.encoder_hid_dim or config.cross_attention_dim)}


def blank_xl(network: ModelMixin) -> dict[str, Tensor]:
    pooled = network.config.projection_class_embeddings_input_dim - 6 * network.config.addition_time_embed_dim
    return {**blank(network), "text_embeds": torch.zeros(1, pooled)}


CONTROL = Control(
    "ControlNetModel",
    show,
    add,
    (
        "in_channels",
        "block_out_channels",
        "layers_per_block",
        "cross_attention_dim",
        "addition_embed_type",
    ),
    {"global_pool_conditions": "that pools its picture"},
)
#: Their last normalisation and convolution.
LAST = ("conv_norm_out", "conv_out")
PLAIN = Family(
    "UNet2DConditionModel",
    "unet",
    embed_plain,
    predict,
    "time_embedding",
    blank,
    CONTROL,
    weighted.embed,
    channels_last=True,
    last=LAST,
    half=torch.float16,
)
STABLE_DIFFUSION = replace(PLAIN, embed=embed, preset="latent")
STABLE_DIFFUSION_XL = Family(
    "UNet2DConditionModel",
    "unet",
    embed_xl,
    predict_xl,
    "time_embedding",
    blank_xl,
    replace(CONTROL, add=add_xl),
    weighted.embed_xl,
    preset="latent",
    channels_last=True,
    last=LAST,
    half=torch.float16,
    lengths={"tokenizer": 0, "tokenizer_2": 0},
)
#: What its pipeline cuts prompts to, whatever its tokenizer says.
DEEPFLOYD_TOKENS = 77
DEEPFLOYD = Family(
    "UNet2DConditionModel",
    "unet",
    partial(embed, limit=DEEPFLOYD_TOKENS),
    predict,
    "time_embedding",
    blank,
    preset="pixel",
    channels_last=True,
    last=LAST,
    half=torch.float16,
    lengths={"tokenizer": DEEPFLOYD_TOKENS},
)
