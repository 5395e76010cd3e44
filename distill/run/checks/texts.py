"""Options that are texts: prompts, a device, a size, a share of a file."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from distill.conditions.choices import OWN_PROMPTS
from distill.conditions.prompts import style_of
from distill.files.errors import is_text
from distill.run.several.seeding import check_seeds


def check_texts(values: Mapping[str, Any]) -> None:
    """Check the options that are texts: prompts, a device, a size.

    Raises:
        ValueError: one cannot be read, or does not go with another.
    """
    check_characters(values)
    prompt, prompts = values["prompt"], values["prompts"]
    if values["max_vram"] is not None:
        bytes_of(values["max_vram"])
    if values["shard"] is not None:
        numbers_of(values["shard"])
        if prompts is None:
            raise ValueError("shard= takes a part of a file of prompts; add prompts=FILE, or leave it out")
    if prompt and prompts:
        raise ValueError("give a prompt or prompts=FILE, not both")
    if not prompt.strip() and prompts is None and not values["image"]:
        raise ValueError(
            'the prompt is empty; say what to make, for example: distill "a red mug", or give a picture: image=FILE'
        )
    check_seeds(values)
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", values["device"]):
        raise ValueError(f"device must be auto, cpu, cuda, cuda:N or mps, got {values['device']!r}")


def check_characters(values: Mapping[str, Any]) -> None:
    """Check that prompts are texts, before they are trained and cannot be written into a report.

    Raises:
        ValueError: one has bytes that are none.
    """
    views = {f"views.{name}": values["views"][name] for name in OWN_PROMPTS}
    given = {name: values[name] for name in ("prompt", "negative_prompt", "source_prompt", "generator_mix")}
    for name, text in {**given, **views}.items():
        if text and not is_text(text):
            raise ValueError(
                f"{name} has bytes that are no text in UTF-8: {text!a}; write it again, in a terminal that is set to UTF-8"
            )


def numbers_of(shard: str) -> tuple[int, int]:
    """Read a shard such as ``1/4``: its number, from 1, and how many there are.

    Raises:
        ValueError: it is none.
    """
    found = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", shard.strip())
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise ValueError(f"shard must be i/n with i from 1 to n, such as 1/4, got {shard!r}")
    return int(found[1]), int(found[2])


def bytes_of(text: str) -> float:
    """Read a size such as ``12GB`` or ``11.5 GiB``.

    Raises:
        ValueError: it is none.
    """
    units = {"MB": 1e6, "GB": 1e9, "MIB": 2**20, "GIB": 2**30}
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([MG]i?B)", text.strip(), re.IGNORECASE)
    if not found:
        raise ValueError(f"max_vram must be a size such as 12GB, got {text!r}")
    return float(found[1]) * units[found[2].upper()]


#: A ControlNet and what it is given are two options.
TOGETHER = (
    "prior_options.controlnet and prior_options.control belong together: the one names the ControlNet, the other what it is "
    "shown, depth, normal or mask of the scene, or a picture; give both, or leave out both"
)


def check_control(values: Mapping[str, Any], loaded: bool) -> None:
    """Check that there is a ControlNet where there is something to show it, and the other way round.

    Args:
        values: of a whole configuration.
        loaded: whether a caller gives its prior, which may have a ControlNet that no option names; see ``run.assembly.prior.check_fits``.

    Raises:
        ValueError: one of them is missing.
    """
    loading = values["prior_options"]
    if (not loading["control"] and loading["controlnet"]) or (
        not loading["controlnet"] and loading["control"] and not loaded
    ):
        raise ValueError(TOGETHER)


def check_perp_neg(values: Mapping[str, Any]) -> None:
    """Check that with Perp-Neg the prompts name four sides.

    Raises:
        ValueError: they name more, or none.
    """
    if not values["perp_neg"]["enabled"]:
        return
    own = any(values["views"][name] for name in OWN_PROMPTS)
    style = style_of(values["view_words"], values["prior"], own)
    if style != "four":
        raise ValueError(
            f"perp_neg.enabled needs view_words=four, for it tells the front, the sides and the back apart, got {style}; add "
            "view_words=four, or leave it out"
        )
