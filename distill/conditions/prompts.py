"""View-dependent prompts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from distill.cameras import Cameras
from distill.conditions import perp_neg
from distill.conditions.choices import SIDES
from distill.conditions.perp_neg import Curves
from distill.contracts import Condition, Conditioner, Embedding, Prior, Prompt, Render, Step, View
from distill.files.errors import first_line
from distill.files.paths import user_path
from distill.transfer import send

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
    style = style_of(style, prior_name, bool(own))
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


def style_of(style: str, prior_name: str, own: bool) -> str:
    """Return which words ``auto`` stands for, and any other style as it is; arguments as for ``view_words``, ``own`` if there are any."""
    from distill.embedded import vocabulary

    if style != "auto":
        return style
    return "sixteen" if vocabulary.of_prior(prior_name) and not own else "four"


def own_prompts(options: DictConfig) -> dict[str, str]:
    """Return complete prompts by view, from options ``front``, ``side``, ``back``, ``overhead``, and from a YAML ``file`` of these.

    Raises:
        ValueError: the file cannot be read, or holds something else.
    """
    found: dict[str, str] = {}
    if options.file:
        path = user_path(options.file)
        try:
            said: Any = OmegaConf.to_container(OmegaConf.load(path))
        except Exception as error:  # what a YAML reader fails with
            raise ValueError(
                f"views.file must be a YAML file with prompts for {', '.join(SIDES)}, but {path} cannot be read: {first_line(error)}"
            ) from error
        wrong = not isinstance(said, dict) or [name for name in said if name not in SIDES]
        if wrong or not all(isinstance(text, str) for text in said.values()):
            raise ValueError(f"views.file must hold a prompt for any of {', '.join(SIDES)}, got {said}")
        found |= said
    return found | {side: options[side] for side in SIDES if options[side]}


#: What a prior conditioned on a picture is asked for, where the words do not matter.
PICTURED = "the object in the picture"


def asked(prior: Prior, text: str) -> str:
    """Return the prompt that a prior receives for a user's text.

    A prior with a vocabulary (see ``distill.embedded.vocabulary.of_prior``) receives the caption that the text is read as,
    any other prior the text itself.

    Raises:
        ValueError: the prior's vocabulary has nothing that the text names.
    """
    from distill.embedded import prompt

    return prompt.asked(prior.name, text) if text and prior.words else text


def conditioner(
    prior: Prior,
    prompt: str,
    negative_prompt: str = "",
    views: ViewWords | None = None,
    source_prompt: str = "",
    *,
    unconditional: str = "auto",
    away: Curves | None = None,
) -> Conditioner:
    """Embed a prompt once for every view; returns a conditioner that selects the embeddings for a batch of cameras.

    Args:
        prior: embeds.
        prompt: what to make; see ``asked``.
        negative_prompt: what to stay away from, the same for every view; empty for none, or for no picture where the prior
            knows no words.
        views: words added to the prompt and to the source prompt.
        source_prompt: what is there before an edit; empty for none.
        unconditional: ``auto`` is what the prior takes for no prompt; ``null`` is zeros.
        away: push predictions away from the other views (Perp-Neg).

    Raises:
        ValueError: the prior is the embedded one and knows no such prompt, ``unconditional`` is unknown, or ``away`` is given without four views' words or for a multi-view prior.
    """
    if unconditional not in ("auto", "null"):
        raise ValueError(f"unconditional must be auto or null, got {unconditional!r}")
    words = views.words if views else ()
    if away and prior.views > 1:
        raise ValueError(
            f"perp_neg.enabled: {prior.name} is conditioned on cameras and needs none; leave it out"
        )
    if away and words != FOUR_VIEWS:
        raise ValueError(
            "perp_neg needs view_words=four, for it tells the front, the sides and the back apart"
        )
    table = _Table(prior, asked(prior, prompt), negative_prompt, views, asked(prior, source_prompt))
    if unconditional == "null":
        table.zero_empty()

    def condition(cameras: Cameras, step: Step, render: Render | None = None) -> Condition:
        index = [0] * len(cameras)
        if views:
            index = [words.index(views.name(azimuth, elevation)) for azimuth, elevation in _angles(cameras)]
        prompts = table.pick(index)
        if not away:
            return Condition(prompts, cameras, step)
        assert views is not None
        shares = []
        for azimuth, elevation in _angles(cameras):
            overhead = views.name(azimuth, elevation) == FOUR_VIEWS[3]
            shares.append(perp_neg.OVERHEAD if overhead else perp_neg.shares(azimuth, away))
        four = table.rows(slice(4))
        others, weights = perp_neg.away(four, shares)
        return Condition(
            {**prompts, "text": perp_neg.interpolate(four, shares), **others}, cameras, step, away=weights
        )

    return condition


def _angles(cameras: Cameras) -> list[tuple[float, float]]:
    """Azimuth and elevation of each camera, degrees."""
    return list(zip(cameras.azimuth_deg.tolist(), cameras.elevation_deg.tolist(), strict=True))


@dataclass(frozen=True)
class Texts:
    """The prompts that a run embeds.

    Attributes:
        mine: the prompt, in every view where there are view words.
        sources: the source prompt, likewise; none without one.
        single: what has no views: the empty prompt, the negative prompt, the prompt alone.
    """

    mine: list[str]
    sources: list[str]
    single: list[str]

    @classmethod
    def of(cls, prompt: str, negative_prompt: str, views: ViewWords | None, source_prompt: str) -> Texts:
        """The prompts that follow from options; arguments as for ``conditioner``."""
        words = views.words if views else ()

        def every_view(text: str, own: Mapping[str, str]) -> list[str]:
            return [own.get(word, Prompt(text, f", {word}")) for word in words] or [text]

        mine = every_view(prompt, views.prompts if views else {})
        sources = every_view(source_prompt, {}) if source_prompt else []
        return cls(mine, sources, ["", negative_prompt, prompt])

    def all(self) -> list[str]:
        """In the order of the embeddings' rows."""
        return [*self.mine, *self.sources, *self.single]


class _Table:
    """The embeddings of every view of the prompt and of the source prompt, and of the prompts that have no views."""

    def __init__(
        self, prior: Prior, prompt: str, negative_prompt: str, views: ViewWords | None, source_prompt: str
    ) -> None:
        texts = Texts.of(prompt, negative_prompt, views, source_prompt)
        self.table = prior.embed(texts.all())
        self.views, self.empty = len(texts.mine), len(texts.mine) + len(texts.sources)
        # A picture has no negative: for a prior without words it is no picture, with which NFSD's second term vanishes.
        self.has_source, self.has_negative = bool(source_prompt), bool(negative_prompt) or not prior.words

    def zero_empty(self) -> None:
        """Replace the empty prompt's embedding by zeros."""
        for value in self.table.values():
            if value.is_floating_point():
                value[self.empty] = 0

    def rows(self, index: Tensor | slice) -> Embedding:
        """Return some rows of the table."""
        return {name: value[index] for name, value in self.table.items()}

    def pick(self, index: list[int]) -> dict[str, Embedding]:
        """Return the prompts of a condition by role, for the views in ``index``."""
        batch = len(index)
        wanted = {"text": index, "uncond": [self.empty] * batch, "plain": [self.empty + 2] * batch}
        if self.has_negative:
            wanted["negative"] = [self.empty + 1] * batch
        if self.has_source:
            wanted["source"] = [self.views + i for i in index]
        # All indices in one transfer.
        rows = send(torch.tensor(list(wanted.values())), next(iter(self.table.values())).device)
        return {role: self.rows(own) for role, own in zip(wanted, rows, strict=True)}


def with_source(condition: Conditioner, source: View, prior: Prior) -> Conditioner:
    """Add renders of the scene that an edit starts from to a condition, as ``source_x``."""

    def conditioned(cameras: Cameras, step: Step, render: Render | None = None) -> Condition:
        rgb = source(cameras, prior.image_size, prior.image_size).rgb.movedim(-1, 1)
        return replace(condition(cameras, step, render), source_x=prior.encode(rgb))

    return conditioned
