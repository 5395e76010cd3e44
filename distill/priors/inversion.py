"""Textual-inversion embeddings of the user's: words that stand for vectors in front of CLIP's text encoders.

Wherever a prompt has an embedding's token, as a word of its own and in any case, it stands for all of the embedding's vectors.
The token is replaced by one word per vector that the tokenizers are taught, before anything else reads the prompt, so that
weights, view words and the cut of long prompts work on it as on any words.

Source: Gal et al. 2022, arXiv:2208.01618.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file

from distill.contracts import Prompt
from distill.files.atomic import sha256_once
from distill.files.paths import user_path
from distill.priors.families import Family
from distill.priors.families.unet import PLAIN
from distill.priors.header import shapes_of
from distill.priors.quiet import quiet
from distill.priors.source import Source
from distill.priors.whole import settings_of, width_of

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

#: Names in files for Stable Diffusion XL, by the encoder that their vectors are for.
XL = {"text_encoder": "clip_l", "text_encoder_2": "clip_g"}


@dataclass(frozen=True)
class Inversion:
    """An embedding's file.

    Attributes:
        path: of the safetensors file.
        token: what stands for it in a prompt.
        sha256: of the file.
        vectors: how many there are.
        widths: of its vectors, by the name in the file.
    """

    path: Path
    token: str
    sha256: str
    vectors: int
    widths: Mapping[str, int]

    def describe(self) -> dict[str, Any]:
        """Return an entry for a run's manifest."""
        return {"name": self.path.name, "token": self.token, "sha256": self.sha256}


def parse(entry: str | Path) -> Inversion:
    """Read ``path`` or ``token=path``; the token is the file's name without its ending where it is not said.

    Raises:
        ValueError: there is no such file, it cannot be read, or it holds no embedding; in one line.
    """
    path, token = user_path(entry), ""
    head, sign, tail = str(entry).partition("=")
    if sign and not path.exists():
        path, token = user_path(tail), head.strip()
    token = token or path.stem
    if not token.strip() or re.search(r"\s", token):
        raise ValueError(
            f"prior_options.embeddings: a token is one word, got {token!r}; give it as token={path.name}"
        )
    shapes = shapes_of(path)
    single = next(iter(shapes.values())) if len(shapes) == 1 else ()
    two = [shapes[name] for name in XL.values()] if set(shapes) == set(XL.values()) else []
    found = [(1, *shape) if len(shape) == 1 else shape for shape in (two or [single])]
    if any(len(shape) != 2 for shape in found) or len({shape[0] for shape in found}) != 1 or not found[0][0]:
        names = ", ".join(sorted(shapes)[:3])
        raise ValueError(
            f"prior_options.embeddings: {path} holds no textual-inversion embedding, one tensor of vectors, or clip_l and "
            f"clip_g of as many for XL, but {len(shapes)} tensors ({names})"
        )
    widths = {name: shape[-1] for name, shape in shapes.items()}
    return Inversion(path, token, sha256_once(path), found[0][0], widths)


def check(inversions: Sequence[Inversion], source: Source, family: Family, index: Mapping[str, Any]) -> None:
    """Check that embeddings fit a prior's text encoders, by the encoders' settings.

    Args:
        inversions: of ``parse``.
        source: of the prior.
        family: of the prior.
        index: its ``model_index.json``.

    Raises:
        ValueError: they do not, or two have the same token.
    """
    if inversions and not takes(family):
        kind = index.get("_class_name", "folder of a UNet and a text encoder")
        raise ValueError(
            f"prior_options.embeddings works with Stable Diffusion 1, 2 and XL, and this prior is a {kind}; leave it out"
        )
    tokens = [each.token.lower() for each in inversions]
    if twice := [token for token in tokens if tokens.count(token) > 1]:
        raise ValueError(
            f"prior_options.embeddings: two files have the token {twice[0]}; give one as token=path"
        )
    for each in inversions:
        parts = [part for part in XL if part in index]
        for part in parts:
            name = XL[part] if len(parts) > 1 else next(iter(each.widths))
            if len(each.widths) != len(parts):
                wanted = (
                    "XL, with clip_l and clip_g"
                    if len(parts) > 1
                    else "Stable Diffusion 1 or 2, with one tensor"
                )
                raise ValueError(
                    f"the embedding {each.path} has {len(each.widths)} tensors, and this prior takes one for {wanted}"
                )
            width = width_of(settings_of(source.folder / part / "config.json"))
            if each.widths[name] != width:
                raise ValueError(
                    f"the embedding {each.path} has vectors of width {each.widths[name]}, and the prior's {part} takes {width}; "
                    "give one that was trained on such a model"
                )


def takes(family: Family) -> bool:
    """Tell whether a family's pipelines have CLIP's text encoders and no others."""
    return family.weighted is not None and family is not PLAIN


def word(number: int, vector: int) -> str:
    """The word that tokenizers are taught for a vector of the embedding at ``number``."""
    return f"distilltoken{number}v{vector}e"


def put_on(pipeline: DiffusionPipeline, inversions: Sequence[Inversion]) -> None:
    """Teach a pipeline's tokenizers and text encoders the vectors of embeddings."""
    parts = [part for part in XL if getattr(pipeline, part, None) is not None]
    for number, each in enumerate(inversions):
        tensors = load_file(each.path)
        for part in parts:
            found = tensors[XL[part]] if len(parts) > 1 else next(iter(tensors.values()))
            vectors = list(found.reshape(each.vectors, -1))
            tokenizer = getattr(pipeline, part.replace("text_encoder", "tokenizer"))
            with quiet(), torch.random.fork_rng(devices=[]):  # rows are drawn before they are filled
                pipeline.load_textual_inversion(
                    vectors,
                    token=[word(number, vector) for vector in range(each.vectors)],
                    text_encoder=getattr(pipeline, part),
                    tokenizer=tokenizer,
                )
    for part in parts:
        _end_at(
            getattr(pipeline, part), getattr(pipeline, part.replace("text_encoder", "tokenizer")).eos_token_id
        )


def _end_at(encoder: Any, token: int) -> None:
    """Let a CLIP take its pooled state where a prompt ends, and not at the highest token, which a new word now is.

    Published configurations say 2 for the end, for which transformers looks for the highest.
    """
    for part in (encoder, getattr(encoder, "text_model", encoder)):
        if hasattr(part, "eos_token_id"):
            part.eos_token_id = token
    encoder.config.eos_token_id = token


@dataclass(frozen=True)
class Words:
    """Prompts in the words that tokenizers were taught, and back."""

    inversions: Sequence[Inversion] = ()

    def written(self, text: str) -> str:
        """Put an embedding's words in the place of its token."""
        if not self.inversions:
            return text
        if isinstance(text, Prompt):
            return Prompt(self.written(text.head), self.written(text.tail))
        numbers = {each.token.lower(): number for number, each in enumerate(self.inversions)}
        tokens = sorted(numbers, key=len, reverse=True)
        either = "|".join(_bounded(token) for token in tokens)

        def words(match: re.Match[str]) -> str:
            number = numbers[match[0].lower()]
            return " ".join(word(number, vector) for vector in range(self.inversions[number].vectors))

        return re.sub(either, words, text, flags=re.IGNORECASE)

    def told(self, text: str) -> str:
        """Put an embedding's token in the place of its words, of any number."""
        for number, each in enumerate(self.inversions):
            own = rf"distilltoken{number}v\d+e"
            text = re.sub(rf"{own}(\s+{own})*", lambda _, token=each.token: token, text)  # type: ignore[misc]
        return text


def _bounded(token: str) -> str:
    """A token that is no part of a longer word."""
    before = r"(?<!\w)" if re.match(r"\w", token) else ""
    after = r"(?!\w)" if re.search(r"\w$", token) else ""
    return before + re.escape(token) + after
