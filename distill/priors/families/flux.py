"""FLUX.1: a transformer trained by flow matching, on latents folded two by two; the dev model is distilled from guidance.

Source: Black Forest Labs 2024, github.com/black-forest-labs/flux.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from distill.priors.families.family import Control, Family, default_options
from distill.priors.families.length import fit

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline, ModelMixin

    from distill.priors.space import Space

#: What its pipeline cuts T5's prompts to.
TOKENS = 512


def embed(pipeline: DiffusionPipeline, prompts: Sequence[str]) -> dict[str, Tensor]:
    """T5's states, CLIP's pooled one, and the guidance scale that a distilled model is told."""
    states, pooled, _ = pipeline.encode_prompt(
        fit(pipeline.tokenizer, prompts),
        fit(pipeline.tokenizer_2, prompts, TOKENS),
        device=pipeline.text_encoder.device,
        **default_options(pipeline),
    )
    scale = inspect.signature(type(pipeline).__call__).parameters["guidance_scale"].default
    return {
        "encoder_hidden_states": states,
        "pooled_projections": pooled,
        "guidance": states.new_full((len(states),), scale, dtype=torch.float32),
    }


def predict(network: ModelMixin, x_t: Tensor, time: Tensor, cond: Mapping[str, Any]) -> Tensor:
    """The velocity, eps - x, of latents as they are, not folded."""
    rows = x_t.shape[-2] // 2
    output = network(**_told(network, x_t, time, cond)).sample
    return nn.functional.pixel_shuffle(output.mT.unflatten(2, (rows, -1)), 2)


def _told(network: ModelMixin, x_t: Tensor, time: Tensor, cond: Mapping[str, Any]) -> dict[str, Any]:
    """An embedding with all else that the network is called with."""
    rows, columns = (side // 2 for side in x_t.shape[-2:])
    places = torch.zeros(rows, columns, 3).to(x_t)
    places[..., 1] += torch.arange(rows).to(x_t)[:, None]
    places[..., 2] += torch.arange(columns).to(x_t)
    return {
        **cond,
        "hidden_states": _folded(x_t),
        "timestep": time.to(x_t) / 1000,
        "guidance": cond["guidance"].float() if network.config.guidance_embeds else None,
        "txt_ids": torch.zeros(cond["encoder_hidden_states"].shape[1], 3).to(x_t),
        "img_ids": places.flatten(0, 1),
    }


def _folded(latents: Tensor) -> Tensor:
    return nn.functional.pixel_unshuffle(latents, 2).flatten(2).mT


def show(controlnet: ModelMixin, space: Space, pictures: Tensor) -> Tensor:
    """Their latents, or pictures in [-1, 1] for a ControlNet with layers of its own for them."""
    latents: Tensor = space.encode(pictures) if controlnet.input_hint_block is None else pictures * 2 - 1
    return latents


def add(
    controlnet: ModelMixin, network: ModelMixin, x_t: Tensor, time: Tensor, cond: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the residuals of each block; they repeat in turn if the ControlNet has its own layers for pictures."""
    whole = controlnet.input_hint_block is not None
    shown = cond["controlnet_cond"] if whole else _folded(cond["controlnet_cond"])
    told = {**_told(controlnet, x_t, time, cond), "controlnet_cond": shown}
    double, single = controlnet(**told, return_dict=False)
    return {
        "controlnet_block_samples": double,
        "controlnet_single_block_samples": single,
        "controlnet_blocks_repeat": whole,
    }


def blank(network: ModelMixin) -> dict[str, Tensor]:
    """512 tokens of T5's."""
    config = network.config
    return {
        "encoder_hidden_states": torch.zeros(1, 512, config.joint_attention_dim),
        "pooled_projections": torch.zeros(1, config.pooled_projection_dim),
        "guidance": torch.zeros(1),
    }


CONTROL = Control(
    "FluxControlNetModel",
    show,
    add,
    (
        "in_channels",
        "num_attention_heads",
        "attention_head_dim",
        "joint_attention_dim",
        "pooled_projection_dim",
    ),
    {"num_mode": "that is several in one (union)"},
)
FLUX = Family(
    "FluxTransformer2DModel",
    "transformer",
    embed,
    predict,
    "time_text_embed.timestep_embedder",
    blank,
    CONTROL,
    preset="flow",
    patch=2,
    lengths={"tokenizer": 0, "tokenizer_2": TOKENS},
)
