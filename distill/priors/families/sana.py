"""Sana: a linear transformer trained by flow matching, on the latents of a deep autoencoder.

Source: Xie et al. 2024, arXiv:2410.10629.
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

#: The pipeline makes 300 tokens of a prompt; of those after its instruction, one is not the prompt's.
TOKENS = 299


def embed(pipeline: DiffusionPipeline, prompts: Sequence[str]) -> dict[str, Tensor]:
    """Gemma's states and which tokens count; a prompt is put after the model's instruction, no prompt after none."""
    options, told = default_options(pipeline), fit(pipeline.tokenizer, prompts, TOKENS)
    states, masks = zip(*(_one(pipeline, text, options) for text in told), strict=True)
    return {"encoder_hidden_states": torch.cat(states), "encoder_attention_mask": torch.cat(masks)}


def _one(pipeline: DiffusionPipeline, text: str, options: dict[str, Any]) -> tuple[Tensor, Tensor]:
    told = options if text else {**options, "complex_human_instruction": None}
    states, mask, _, _ = pipeline.encode_prompt(
        [text], do_classifier_free_guidance=False, device=pipeline.text_encoder.device, **told
    )
    return states, mask


def predict(network: ModelMixin, x_t: Tensor, time: Tensor, cond: Mapping[str, Any]) -> Tensor:
    """The velocity, eps - x."""
    result: Tensor = network(x_t, timestep=time * network.config.timestep_scale, **cond).sample
    return result


def show(controlnet: ModelMixin, space: Space, pictures: Tensor) -> Tensor:
    """Their latents."""
    return space.encode(pictures)


def add(
    controlnet: ModelMixin, network: ModelMixin, x_t: Tensor, time: Tensor, cond: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the residuals of the first layers except one."""
    (found,) = controlnet(x_t, timestep=time * network.config.timestep_scale, **cond, return_dict=False)
    return {"controlnet_block_samples": found}


def blank(network: ModelMixin) -> dict[str, Tensor]:
    """300 tokens of Gemma's."""
    width = network.config.caption_channels
    return {"encoder_hidden_states": torch.zeros(1, 300, width), "encoder_attention_mask": torch.ones(1, 300)}


CONTROL = Control(
    "SanaControlNetModel",
    show,
    add,
    ("in_channels", "patch_size", "num_attention_heads", "attention_head_dim", "caption_channels"),
)
SANA = Family(
    "SanaTransformer2DModel",
    "transformer",
    embed,
    predict,
    "time_embed.emb.timestep_embedder",
    blank,
    CONTROL,
    preset="flow",
    patch=2,
    lengths={"tokenizer": TOKENS},
)
