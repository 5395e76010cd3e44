"""FLUX.1: a transformer trained by flow matching, on latents folded two by two; the dev model is distilled from guidance.

Source: Black Forest Labs 2024, github.com/black-forest-labs/flux.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from distill.contracts import Embedding
from distill.priors.families.family import Family, default_options


def embed(pipeline: Any, prompts: Sequence[str]) -> dict[str, Tensor]:
    """T5's states, CLIP's pooled one, and the guidance scale that a distilled model is told."""
    states, pooled, _ = pipeline.encode_prompt(
        list(prompts), device=pipeline.text_encoder.device, **default_options(pipeline)
    )
    scale = inspect.signature(type(pipeline).__call__).parameters["guidance_scale"].default
    return {
        "encoder_hidden_states": states,
        "pooled_projections": pooled,
        "guidance": states.new_full((len(states),), scale, dtype=torch.float32),
    }


def predict(network: Any, x_t: Tensor, time: Tensor, cond: Embedding) -> Tensor:
    """The velocity, eps - x, of latents as they are, not folded."""
    rows, columns = (side // 2 for side in x_t.shape[-2:])
    places = torch.zeros(rows, columns, 3).to(x_t)
    places[..., 1] += torch.arange(rows).to(x_t)[:, None]
    places[..., 2] += torch.arange(columns).to(x_t)
    output = network(
        hidden_states=nn.functional.pixel_unshuffle(x_t, 2).flatten(2).mT,
        timestep=time.to(x_t) / 1000,
        guidance=cond["guidance"].float() if network.config.guidance_embeds else None,
        pooled_projections=cond["pooled_projections"],
        encoder_hidden_states=cond["encoder_hidden_states"],
        txt_ids=torch.zeros(cond["encoder_hidden_states"].shape[1], 3).to(x_t),
        img_ids=places.flatten(0, 1),
    ).sample
    return nn.functional.pixel_shuffle(output.mT.unflatten(2, (rows, columns)), 2)


def blank(network: Any) -> dict[str, Tensor]:
    """512 tokens of T5's."""
    config = network.config
    return {
        "encoder_hidden_states": torch.zeros(1, 512, config.joint_attention_dim),
        "pooled_projections": torch.zeros(1, config.pooled_projection_dim),
        "guidance": torch.zeros(1),
    }


FLUX = Family(
    "FluxTransformer2DModel", "transformer", embed, predict, "time_text_embed.timestep_embedder", blank
)
