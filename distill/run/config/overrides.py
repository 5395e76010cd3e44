"""Options as Hydra's overrides, ``name=value``: taking them apart, and writing any value so that it comes back unchanged."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import Quote, QuotedString
from omegaconf import ListConfig

from distill.options import shown
from distill.run.config.schema import PARTS, Config

#: Groups of configuration files, whose choice is a name and no text.
GROUPS = (*PARTS, "preset", "tuned", "experiment")
#: First words of every option that the command line knows, groups included.
KEYS = frozenset({item.name for item in dataclasses.fields(Config)} | {*GROUPS, "stage", "hydra"})
#: Options whose value is text, whatever it holds.
TEXTS = (
    "output_dir", "init", "generator", "generator_mix", "prior", "prompts", "view_address", "negative_prompt", "source_prompt",
    "image", "novel_view", "judge",
    "reference.depth", "reference.normal", "views.front", "views.side", "views.back", "views.overhead", "views.file",
    "prior_options.controlnet", "prior_options.control", "prior_options.config", "prior_options.vae", "mesh", "mesh.file",
    "mesh.up", "mesh.front", "export.name",
)  # fmt: skip

#: Of these, those that name one thing that is there already.
NAMED = ("image", "init", "generator", "judge", "mesh", "mesh.file", "novel_view", "prior", "prompts")


def split_word(word: str) -> tuple[str, str]:
    """A word's key without its plus signs, and its value without quotes."""
    key, _, value = word.partition("=")
    return key.lstrip("+"), value.strip("'\"")


def key_of(word: str) -> str:
    """A word's key without its plus signs."""
    return split_word(word)[0]


def _of_any_stage(key: str) -> str:
    """A key without the stage that it is for alone."""
    return re.sub(r"^stage\.\w+\.", "", key)


def literal(text: str) -> str:
    """A text in which OmegaConf sees no interpolation, and which it gives back unchanged."""
    # A backslash before ${ keeps it literal; one that the text itself has there must be doubled first.
    return re.sub(r"(\\*)\$\{", lambda match: match[1] * 2 + r"\${", text)


def quote(text: str) -> str:
    """Write any text as a value that Hydra's grammar and OmegaConf's interpolation give back unchanged."""
    return QuotedString(text=literal(text), quote=Quote.single).with_quotes()


def quote_text(override: str) -> str:
    """Quote a value that is plain text whatever it holds: a path, a negative prompt."""
    key, _, value = override.partition("=")
    plain = _of_any_stage(key) in TEXTS and value != "null"
    return f"{key}={quote(value)}" if plain and value[:1] not in ("'", '"') else override


def as_overrides(options: Mapping[str, Any]) -> list[str]:
    """Turn Python keywords into command-line options; strings are quoted, so any value is literal.

    Raises:
        ValueError: a value is of a type that no option has, such as a tensor; or the prompt is no text.
    """
    if not isinstance(prompt := options.get("prompt", ""), str):
        raise ValueError(
            f"the prompt must be text that says what to make, such as 'a red mug', got {' '.join(shown(prompt).split())}; with image=FILE "
            "alone it is '', and 'distill prompts=FILE' makes an asset for each line of a file"
        )

    import numpy as np

    def written(key: str, value: object) -> str:
        value = value.item() if isinstance(value, np.generic) else value
        if isinstance(value, (str, Path)):
            return quote(str(value))
        if isinstance(value, (list, tuple, ListConfig)):
            return f"[{','.join(written(key, item) for item in value)}]"
        if isinstance(value, Mapping):
            return f"{{{','.join(f'{name}:{written(key, item)}' for name, item in value.items())}}}"
        if not (value is None or isinstance(value, (bool, int, float))):
            raise ValueError(
                f"an option's value is text, a path, a number, True, False, None, or a list, tuple or mapping of these, got {type(value).__name__} "
                f"for {key}"
                + ("; write .tolist() after it for its numbers" if hasattr(value, "tolist") else "")
            )
        return "null" if value is None else str(value)

    def write(key: str, value: object) -> str:
        chosen = _of_any_stage(key) in GROUPS and isinstance(value, str)
        return f"{key}={value if chosen else written(key, value)}"

    return [write(key, value) for key, value in options.items()]
