"""What a run asks its prior for: the prompts of a configuration, their view words, and what else a step is conditioned on."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import cast

from omegaconf import DictConfig, ListConfig
from torch import Tensor

from distill.conditions import prompt_library, prompts
from distill.conditions.control import controlled
from distill.conditions.image_prompt import ImagePrompted, prompted
from distill.conditions.perp_neg import PUBLISHED, Curves
from distill.conditions.prompt_library import Prompts
from distill.contracts import Conditioner, Generator, Prior, Scene
from distill.priors.diffusion import DiffusionPrior
from distill.priors.text import TextEncoders
from distill.run.plugins import features_of
from distill.run.scenes import edits, look


def view_words_of(config: DictConfig, prior: Prior) -> prompts.ViewWords | None:
    """The view words of a configuration, for its scene and a prior; None for none.

    Raises:
        ValueError: there are prompts for single views, and the prior is given cameras in numbers.
    """
    style = config.view_words
    # A multi-view prior is given its cameras in numbers.
    if not prior.words or (style == "auto" and ("sides" not in features_of(config) or prior.views > 1)):
        style = "none"
    options = config.views
    own = prompts.own_prompts(options)
    if own and prior.views > 1 and config.view_words == "auto":
        raise ValueError(
            f"prompts for single views need view_words=four, and {prior.name} is given cameras in numbers, so that auto is none; add "
            "view_words=four, or leave them out"
        )
    return prompts.view_words(
        style, config.prior, front_deg=options.front_deg, overhead_deg=options.overhead_deg, own=own
    )


def texts_of(config: DictConfig, prior: Prior) -> list[str]:
    """Everything that a run of a configuration asks a prior to embed."""
    words = view_words_of(config, prior)
    prompt, source = (prompts.asked(prior, text) for text in (config.prompt, config.source_prompt))
    return prompts.Texts.of(prompt, config.negative_prompt, words, source).all()


def keeps(prior: Prior) -> bool:
    """Tell whether it pays to embed prompts before they are needed: not with small encoders, whose embeddings are not kept."""
    encoders = prior.text if isinstance(prior, DiffusionPrior) else None
    return not isinstance(encoders, TextEncoders) or encoders.keeps


def embed_library(config: DictConfig, prior: Prior, library: Prompts) -> Tensor:
    """Embed the prompts of a library once: for the generator without view words, and for the prior in every view."""
    words = view_words_of(config, prior)

    def beside(text: str) -> list[str]:
        return prompts.Texts.of(text, config.negative_prompt, words, "").all()

    texts = [prompts.asked(prior, text) for text in library.train]
    return prompt_library.embed(prior, texts, beside if keeps(prior) else None)


def make_condition(
    config: DictConfig,
    prior: Prior,
    scene: Scene,
    library: Prompts | None = None,
    shown: ImagePrompted | None = None,
) -> Conditioner:
    """Embed a configuration's prompts, with view words where the scene has sides; add what else the prior is conditioned on."""

    def of(prompt: str) -> Conditioner:
        return prompts.conditioner(
            prior,
            prompt if prior.words else prompts.PICTURED,
            config.negative_prompt,
            view_words_of(config, prior),
            config.source_prompt,
            unconditional=config.unconditional,
            away=curves(config) if config.perp_neg.enabled else None,
        )

    if library:
        train, drawn = library.train, cast(Generator, scene).drawn
        condition = prompt_library.conditioner(lambda index: of(train[index]), drawn)
    else:
        condition = of(config.prompt)
    if edits(config):
        source = copy.deepcopy(scene)
        condition = prompts.with_source(condition, look(source, prior.device), prior)
    if config.prior_options.control:
        condition = controlled(condition, prior, config.prior_options.control)
    return prompted(condition, shown) if shown else condition


def curves(config: DictConfig) -> Curves:
    """Return Perp-Neg's weights: the published ones that are named, with those that are given instead."""
    options = dict(config.perp_neg)
    named, strength = PUBLISHED[options["curves"]], options["strength"]
    given = {name: tuple(value) for name, value in options.items() if isinstance(value, ListConfig)}
    return replace(named, strength=strength, **given)
