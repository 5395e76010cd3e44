"""Prompts that name the side a camera sees."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from distill.cameras import Cameras
from distill.conditions import perp_neg
from distill.conditions.perp_neg import Curves
from distill.contracts import Condition, Embedding, Prior

#: The views that can have prompts of their own.
SIDES = ("front", "side", "back", "overhead")
#: Four coarse words, for priors trained on photographs (DreamFusion, arXiv:2209.14988, Sec. 3.2).
FOUR_VIEWS = ("front view", "side view", "back view", "overhead view")


def four_views(
    azimuth_deg: float, elevation_deg: float, front_deg: float = 45.0, overhead_deg: float = 60.0
) -> str:
    """The coarse word for a camera: ``front_deg`` to each side of the front count as front, and so for the back."""
    if elevation_deg >= overhead_deg:
        return FOUR_VIEWS[3]
    turned = abs((azimuth_deg + 180) % 360 - 180)
    return FOUR_VIEWS[0 if turned < front_deg else 2 if turned > 180 - front_deg else 1]


@dataclass(frozen=True)
class ViewWords:
    """The words of every view, which of them a camera gets, and whole prompts that stand in for some views'."""

    words: tuple[str, ...]
    name: Callable[[float, float], str]
    prompts: Mapping[str, str] = field(default_factory=dict)


def view_words(
    style: str,
    prior_name: str,
    *,
    front_deg: float = 45.0,
    overhead_deg: float = 60.0,
    own: Mapping[str, str] | None = None,
) -> ViewWords | None:
    """Choose view words: ``four``, ``sixteen`` (the embedded world's), ``none``, or ``auto`` by the prior.

    Args:
        style: as above.
        prior_name: decides ``auto``.
        front_deg: half of what counts as the front, degrees; so much of the back, too. Of four words alone.
        overhead_deg: elevation from which a camera is overhead. Of four words alone.
        own: whole prompts by ``front``, ``side``, ``back``, ``overhead``, instead of the prompt with the view's word;
            they make ``auto`` four.

    Raises:
        ValueError: the style is unknown, or has no such views.
    """
    from distill.embedded import world

    own = {f"{view} view": text for view, text in (own or {}).items()}
    if style == "auto":
        style = "sixteen" if prior_name == "embedded" and not own else "four"
    name = partial(four_views, front_deg=front_deg, overhead_deg=overhead_deg)
    styles = {
        "none": None,
        "four": ViewWords(FOUR_VIEWS, name, own),
        "sixteen": ViewWords(world.VIEWS, world.view_of),
    }
    if style not in styles:
        raise ValueError(f"view_words must be auto, {', '.join(styles)}, got {style!r}")
    if own and style != "four":
        raise ValueError(f"prompts for single views need view_words=four, got {style!r}")
    return styles[style]


def own_prompts(options: Any) -> dict[str, str]:
    """Whole prompts by view, from options ``front``, ``side``, ``back``, ``overhead``, and from a YAML ``file`` of these.

    Raises:
        ValueError: the file cannot be read, or holds something else.
    """
    found: dict[str, str] = {}
    if options.file:
        path = Path(options.file).expanduser()
        try:
            said: Any = OmegaConf.to_container(OmegaConf.load(path))
        except Exception as error:  # what a YAML reader fails with
            raise ValueError(
                f"views.file must be a YAML file with prompts for {', '.join(SIDES)}, but {path} cannot be read: "
                f"{str(error).splitlines()[0]}"
            ) from error
        wrong = not isinstance(said, dict) or [name for name in said if name not in SIDES]
        if wrong or not all(isinstance(text, str) for text in said.values()):
            raise ValueError(f"views.file must hold a prompt for any of {', '.join(SIDES)}, got {said}")
        found |= said
    return found | {side: options[side] for side in SIDES if options[side]}


def conditioner(
    prior: Prior,
    prompt: str,
    negative_prompt: str = "",
    views: ViewWords | None = None,
    source_prompt: str = "",
    *,
    unconditional: str = "auto",
    away: Curves | None = None,
) -> Callable[[Cameras], Condition]:
    """Embed a prompt once for every view; returns what picks the embeddings for a batch of cameras.

    Args:
        prior: embeds.
        prompt: what to make.
        negative_prompt: what to stay away from, the same for every view; empty for none.
        views: words added to the prompt and to the source prompt.
        source_prompt: what is there before an edit; empty for none.
        unconditional: ``auto`` is what the prior takes for no prompt; ``null`` is zeros.
        away: stay away from the other views (Perp-Neg); the prior must be a ``PerpNegPrior``.

    Raises:
        ValueError: ``unconditional`` is unknown, or ``away`` is given without four views' words.
    """
    if unconditional not in ("auto", "null"):
        raise ValueError(f"unconditional must be auto or null, got {unconditional!r}")
    words = views.words if views else ()
    if away and words != FOUR_VIEWS:
        raise ValueError(
            "perp_neg needs view_words=four, for it tells the front, the sides and the back apart"
        )

    def every_view(text: str, own: Mapping[str, str]) -> list[str]:
        return [own.get(word, f"{text}, {word}") for word in words] or [text]

    views_count = max(len(words), 1)
    sources = every_view(source_prompt, {}) if source_prompt else []
    mine = every_view(prompt, views.prompts if views else {})
    table = prior.embed([*mine, *sources, "", negative_prompt, prompt])
    empty = views_count + len(sources)
    if unconditional == "null":
        for value in table.values():
            if value.is_floating_point():
                value[empty] = 0

    def rows_of(index: Any) -> Embedding:
        return {name: value[index] for name, value in table.items()}

    def rows(index: list[int]) -> Embedding:
        found = rows_of(index)
        return perp_neg.beside(found, perp_neg.none(len(index), found)) if away else found

    def mixed(cameras: Cameras) -> Embedding:
        assert away is not None
        turned, above = cameras.azimuth_deg.tolist(), cameras.elevation_deg.tolist()
        shares = []
        for azimuth, elevation in zip(turned, above, strict=True):
            overhead = views is not None and views.name(azimuth, elevation) == FOUR_VIEWS[3]
            shares.append(perp_neg.OVERHEAD if overhead else perp_neg.shares(azimuth, away))
        four, nothing = rows_of(slice(4)), rows_of(slice(empty, empty + 1))
        return perp_neg.embed(four, nothing, shares)

    def condition(cameras: Cameras) -> Condition:
        batch = len(cameras)
        index = [0] * batch
        if views:
            angles = zip(cameras.azimuth_deg.tolist(), cameras.elevation_deg.tolist(), strict=True)
            index = [words.index(views.name(azimuth, elevation)) for azimuth, elevation in angles]
        return Condition(
            mixed(cameras) if away else rows(index),
            rows([empty] * batch),
            negative=rows([empty + 1] * batch) if negative_prompt else None,
            source=rows([views_count + i for i in index]) if source_prompt else None,
            cameras=cameras,
            plain=rows([empty + 2] * batch),
        )

    return condition
