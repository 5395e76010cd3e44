"""Prompts cut to what a text encoder takes, so that their last words stay."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from distill.contracts import Prompt
from distill.priors.quiet import quiet

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline
    from transformers import PreTrainedTokenizerBase

#: By the name of a tokenizer in a pipeline: how many tokens its encoder takes; 0 for what the tokenizer itself says.
Lengths = Mapping[str, int]


def fit(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], limit: int = 0) -> list[str]:
    """Cut the words before each prompt's ending until it has at most ``limit`` tokens; 0 for the tokenizer's own limit.

    A prompt without an ending stays as it is, for the pipeline cuts it at its end.
    """
    return [_fit(tokenizer, text, limit)[0] for text in prompts]


def cut_off(pipeline: DiffusionPipeline, lengths: Lengths, text: str) -> tuple[str, int]:
    """Return the words of a prompt that at least one of a pipeline's text encoders does not see, and its limit in tokens.

    Without such words, an empty text.
    """
    found: list[tuple[str, int]] = [("", 0)]
    for name, limit in lengths.items():
        if (tokenizer := getattr(pipeline, name, None)) is not None:
            found.append((_fit(tokenizer, text, limit)[1], limit or tokenizer.model_max_length))
    return max(found, key=lambda each: len(each[0]))


def _fit(tokenizer: PreTrainedTokenizerBase, text: str, limit: int) -> tuple[str, str]:
    """A prompt as it is passed on, and the words of it that are not seen."""
    limit = limit or tokenizer.model_max_length
    head, tail = (text.head, text.tail) if isinstance(text, Prompt) else (text, "")
    with quiet():
        if _count(tokenizer, text) <= limit:
            return text, ""
        pieces = re.findall(r"\s*\S+", head)
        if len(pieces) < 2:  # a script without spaces
            pieces = list(head)
        low, high = 0, len(pieces)
        while low < high:  # the most pieces that fit
            middle = (low + high + 1) // 2
            fits = _count(tokenizer, _joined(pieces[:middle]) + tail) <= limit
            low, high = (middle, high) if fits else (low, middle - 1)
    kept, lost = _joined(pieces[:low]), "".join(pieces[low:]).strip()
    return (kept + tail).removeprefix(", ") if tail else text, lost


def _joined(pieces: Sequence[str]) -> str:
    return "".join(pieces).rstrip(" ,.;")


def _count(tokenizer: PreTrainedTokenizerBase, text: str) -> int:
    """Tokens with the marks around them; some pipelines write prompts in lower case first."""
    return max(len(tokenizer(each).input_ids) for each in {str(text), text.lower()})
