"""Stable Diffusion 3 and 3.5: a transformer trained by flow matching.

Source: Esser et al. 2024, arXiv:2403.03206.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from distill.contracts import Embedding
from distill.priors.families.family import Family, default_options


def embed(pipeline: Any, prompts: Sequence[str]) -> dict[str, Tensor]:
    """States of two CLIP encoders and T5 in one sequence, and the pooled ones; T5 may be missing."""
    states, _, pooled, _ = pipeline.encode_prompt(
        list(prompts),
        None,
        None,
        do_classifier_free_guidance=False,
        device=pipeline.text_encoder.device,
        **default_options(pipeline),
    )
    return {"encoder_hidden_states": states, "pooled_projections": pooled}


def predict(network: Any, x_t: Tensor, time: Tensor, cond: Embedding) -> Tensor:
    """The velocity, eps - x."""
    result: Tensor = network(x_t, timestep=time, **cond).sample
    return result


def blank(network: Any) -> dict[str, Tensor]:
    """77 tokens of CLIP's and 256 of T5's."""
    config = network.config
    return {
        "encoder_hidden_states": torch.zeros(1, 77 + 256, config.joint_attention_dim),
        "pooled_projections": torch.zeros(1, config.pooled_projection_dim),
    }


SD3 = Family(
    "SD3Transformer2DModel", "transformer", embed, predict, "time_text_embed.timestep_embedder", blank
)
