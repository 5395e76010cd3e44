"""Stable Diffusion 3 and 3.5: a transformer trained by flow matching.

Source: Esser et al. 2024, arXiv:2403.03206.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from distill.priors.families.family import Control, Family, default_options
from distill.priors.families.length import fit

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline, ModelMixin

    from distill.priors.space import Space

#: What its pipeline cuts T5's prompts to.
TOKENS = 256


def embed(pipeline: DiffusionPipeline, prompts: Sequence[str]) -> dict[str, Tensor]:
    """States of two CLIP encoders and T5 in one sequence, and the pooled ones; T5 may be missing."""
    states, _, pooled, _ = pipeline.encode_prompt(
        fit(pipeline.tokenizer, prompts),
        fit(pipeline.tokenizer_2, prompts),
        fit(pipeline.tokenizer_3, prompts, TOKENS) if pipeline.tokenizer_3 else None,
        do_classifier_free_guidance=False,
        device=pipeline.text_encoder.device,
        **default_options(pipeline),
    )
    return {"encoder_hidden_states": states, "pooled_projections": pooled}


def predict(network: ModelMixin, x_t: Tensor, time: Tensor, cond: Mapping[str, Any]) -> Tensor:
    """The velocity, eps - x."""
    result: Tensor = network(x_t, timestep=time, **cond).sample
    return result


def show(controlnet: ModelMixin, space: Space, pictures: Tensor) -> Tensor:
    """Their latents; not shifted for a ControlNet that is given zeros for the pooled states, as those were trained."""
    latents = space.encode(pictures)
    if controlnet.config.force_zeros_for_pooled_projection:
        config = space.vae.config
        latents = latents + config.shift_factor * config.scaling_factor
    return latents


def add(
    controlnet: ModelMixin, network: ModelMixin, x_t: Tensor, time: Tensor, cond: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the residuals of each layer; ControlNets of 3.5 Large use the network's position embeddings and no text."""
    told = dict(cond)
    if controlnet.config.force_zeros_for_pooled_projection:
        told["pooled_projections"] = torch.zeros_like(told["pooled_projections"])
    if controlnet.config.joint_attention_dim is None:
        del told["encoder_hidden_states"]
    if not controlnet.config.use_pos_embed:
        x_t = network.pos_embed(x_t)
    (found,) = controlnet(x_t, timestep=time, **told, return_dict=False)
    return {"block_controlnet_hidden_states": found}


def blank(network: ModelMixin) -> dict[str, Tensor]:
    """77 tokens of CLIP's and 256 of T5's."""
    config = network.config
    return {
        "encoder_hidden_states": torch.zeros(1, 77 + 256, config.joint_attention_dim),
        "pooled_projections": torch.zeros(1, config.pooled_projection_dim),
    }


CONTROL = Control(
    "SD3ControlNetModel",
    show,
    add,
    ("in_channels", "patch_size", "num_attention_heads", "attention_head_dim", "pooled_projection_dim"),
    {"extra_conditioning_channels": "that wants a mask, too"},
)
SD3 = Family(
    "SD3Transformer2DModel",
    "transformer",
    embed,
    predict,
    "time_text_embed.timestep_embedder",
    blank,
    CONTROL,
    preset="flow",
    patch=2,
    lengths={"tokenizer": 0, "tokenizer_2": 0, "tokenizer_3": TOKENS},
)
