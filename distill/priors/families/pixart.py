"""PixArt-alpha and -sigma: a transformer that predicts noise.

Source: Chen et al. 2023, arXiv:2310.00426; Chen et al. 2024, arXiv:2403.04692.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from distill.priors.families.family import Family, default_options
from distill.priors.families.length import fit

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline, ModelMixin


def embed(pipeline: DiffusionPipeline, prompts: Sequence[str], limit: int) -> dict[str, Tensor]:
    """T5's states, ``[batch, tokens, width]``, and which tokens count, ``[batch, tokens]``."""
    states, mask, _, _ = pipeline.encode_prompt(
        fit(pipeline.tokenizer, prompts, limit),
        do_classifier_free_guidance=False,
        device=pipeline.text_encoder.device,
        **default_options(pipeline),
    )
    return {"encoder_hidden_states": states, "encoder_attention_mask": mask}


def predict(network: ModelMixin, x_t: Tensor, time: Tensor, cond: Mapping[str, Any]) -> Tensor:
    """The noise, then a variance; larger models are given the picture's size and aspect."""
    added: dict[str, Tensor | None] = {"resolution": None, "aspect_ratio": None}
    if network.use_additional_conditions:
        height, width = (8 * side for side in x_t.shape[-2:])
        added = {
            "resolution": torch.tensor([[height, width]]).to(x_t).expand(len(x_t), 2),
            "aspect_ratio": torch.tensor([[height / width]]).to(x_t).expand(len(x_t), 1),
        }
    result: Tensor = network(x_t, timestep=time, added_cond_kwargs=added, **cond).sample
    return result


def blank(network: ModelMixin, tokens: int) -> dict[str, Tensor]:
    """Return zeros with the number of tokens to which the pipeline pads its prompts."""
    width = network.config.caption_channels
    return {
        "encoder_hidden_states": torch.zeros(1, tokens, width),
        "encoder_attention_mask": torch.ones(1, tokens),
    }


PIXART_ALPHA = Family(
    "PixArtTransformer2DModel",
    "transformer",
    partial(embed, limit=120),
    predict,
    "adaln_single.emb.timestep_embedder",
    partial(blank, tokens=120),
    preset="latent",
    patch=2,
    lengths={"tokenizer": 120},
)
PIXART_SIGMA = replace(
    PIXART_ALPHA,
    embed=partial(embed, limit=300),
    blank=partial(blank, tokens=300),
    lengths={"tokenizer": 300},
)
