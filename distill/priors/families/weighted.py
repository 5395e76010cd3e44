r"""Prompts with weighted words, and of any length, for CLIP's text encoders; by compel, where it is installed.

Words are weighted as ``(red)1.3 mug``, ``red++ mug`` or ``(red:1.3) mug``. With e a token's states and
:math:`e_\varnothing` the empty prompt's at the same place,

.. math:: e_w = e_\varnothing + w (e - e_\varnothing)

and where w is below 1 these are averaged, 1 to :math:`\tan((1 - w) \pi / 2)`, with what they are while no token attends
to those words. A prompt longer than the encoder takes is cut at ends of sentences, phrases or words; each part is encoded
by itself, and their states follow one another.

Source: github.com/damian0815/compel.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from distill.priors.quiet import quiet

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

#: Words and their weight, as (red:1.3).
_COLON = re.compile(r"(?<!\\)\(([^()]+):\s*(\d*\.?\d+)\s*\)")


def version() -> str:
    """Compel's.

    Raises:
        ValueError: it is not installed.
    """
    from importlib import metadata

    try:
        return metadata.version("compel")
    except metadata.PackageNotFoundError as error:
        raise ValueError(
            "prior_options.prompt_weighting needs the package compel; pip install compel"
        ) from error


def embed(pipeline: DiffusionPipeline, prompts: Sequence[str]) -> dict[str, Any]:
    """Stable Diffusion's states, one ``[tokens, width]`` for each prompt; the tokens are as many as it takes."""
    return {"encoder_hidden_states": _states(pipeline.tokenizer, pipeline.text_encoder, prompts)}


def embed_xl(pipeline: DiffusionPipeline, prompts: Sequence[str]) -> dict[str, Any]:
    """Two text encoders' states, and the pooled one of the words without their weights, as far as one part goes."""
    from compel.embeddings_provider import ReturnedEmbeddingsType as Kind

    kind = Kind.PENULTIMATE_HIDDEN_STATES_NON_NORMALIZED
    one = _states(pipeline.tokenizer, pipeline.text_encoder, prompts, kind)
    two = _states(pipeline.tokenizer_2, pipeline.text_encoder_2, prompts, kind)
    pooled = _states(pipeline.tokenizer_2, pipeline.text_encoder_2, prompts, Kind.POOLED, whole=False)
    none = pipeline.config.force_zeros_for_empty_prompt
    told = [float(bool(text) or not none) for text in prompts]
    states = [torch.cat(pair, dim=-1) * share for *pair, share in zip(one, two, told, strict=True)]
    return {
        "encoder_hidden_states": states,
        "text_embeds": [each * share for each, share in zip(pooled, told, strict=True)],
    }


def _states(
    tokenizer: PreTrainedTokenizerBase,
    encoder: PreTrainedModel,
    prompts: Sequence[str],
    kind: Any = None,
    whole: bool = True,
) -> list[Tensor]:
    from compel import Compel

    given = {} if kind is None else {"returned_embeddings_type": kind}
    maker = Compel(tokenizer=tokenizer, text_encoder=encoder, truncate_long_prompts=not whole, **given)
    with quiet():
        return [maker.build_conditioning_tensor(_COLON.sub(r"(\1)\2", text))[0] for text in prompts]
