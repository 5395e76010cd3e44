"""Prompts that name the side a camera sees."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from distill.contracts import Condition, Embedding, Prior
from distill.samplers.cameras import Cameras

#: Four coarse words, for priors trained on photographs (DreamFusion, arXiv:2209.14988, Sec. 3.2).
FOUR_VIEWS = ("front view", "side view", "back view", "overhead view")


def four_views(azimuth_deg: float, elevation_deg: float, overhead_deg: float = 60.0) -> str:
    """The coarse word for a camera: 45 degrees to each side of the front count as front."""
    if elevation_deg >= overhead_deg:
        return FOUR_VIEWS[3]
    turned = abs((azimuth_deg + 180) % 360 - 180)
    return FOUR_VIEWS[0 if turned < 45 else 2 if turned > 135 else 1]


@dataclass(frozen=True)
class ViewWords:
    """The words of every view, and which of them a camera gets."""

    words: tuple[str, ...]
    name: Callable[[float, float], str]


def view_words(style: str, prior_name: str) -> ViewWords | None:
    """Choose view words: ``four``, ``sixteen`` (the embedded world's), ``none``, or ``auto`` by the prior.

    Raises:
        ValueError: the style is unknown.
    """
    from distill.embedded import world

    if style == "auto":
        style = "sixteen" if prior_name == "embedded" else "four"
    styles = {
        "none": None,
        "four": ViewWords(FOUR_VIEWS, four_views),
        "sixteen": ViewWords(world.VIEWS, world.view_of),
    }
    if style not in styles:
        raise ValueError(f"view_words must be auto, {', '.join(styles)}, got {style!r}")
    return styles[style]


def conditioner(
    prior: Prior,
    prompt: str,
    negative_prompt: str = "",
    views: ViewWords | None = None,
    source_prompt: str = "",
) -> Callable[[Cameras], Condition]:
    """Embed a prompt once for every view; returns what picks the embeddings for a batch of cameras.

    Args:
        prior: embeds.
        prompt: what to make.
        negative_prompt: what to stay away from, the same for every view; empty for none.
        views: words added to the prompt and to the source prompt.
        source_prompt: what is there before an edit; empty for none.
    """
    words = views.words if views else ()

    def every_view(text: str) -> list[str]:
        return [f"{text}, {word}" for word in words] or [text]

    views_count = max(len(words), 1)
    sources = every_view(source_prompt) if source_prompt else []
    table = prior.embed([*every_view(prompt), *sources, "", negative_prompt, prompt])
    empty = views_count + len(sources)

    def rows(index: list[int]) -> Embedding:
        return {name: value[index] for name, value in table.items()}

    def condition(cameras: Cameras) -> Condition:
        batch = len(cameras)
        index = [0] * batch
        if views:
            angles = zip(cameras.azimuth_deg.tolist(), cameras.elevation_deg.tolist(), strict=True)
            index = [words.index(views.name(azimuth, elevation)) for azimuth, elevation in angles]
        return Condition(
            rows(index),
            rows([empty] * batch),
            negative=rows([empty + 1] * batch) if negative_prompt else None,
            source=rows([views_count + i for i in index]) if source_prompt else None,
            cameras=cameras,
            plain=rows([empty + 2] * batch),
        )

    return condition
