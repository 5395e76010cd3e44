"""What a run asks its prior for: the prompts of a configuration, their view words, and what else a step is conditioned on."""

from __future__ import annotations

import copy
import logging
from dataclasses import replace
from functools import partial
from typing import cast

import torch
from omegaconf import DictConfig, ListConfig
from torch import Tensor

from distill.conditions import prompt_library, prompts
from distill.conditions.control import controlled
from distill.conditions.image_prompt import ImagePrompted, prompted
from distill.conditions.perp_neg import PUBLISHED, Curves
from distill.conditions.picture import Picture
from distill.conditions.prompt_library import Prompts
from distill.conditions.recognition import compare_wordings, estimate_azimuth, in_front, shown_colours
from distill.contracts import Conditioner, Generator, Prior, Scene
from distill.embedded.prompt import in_colours
from distill.embedded.vocabulary import of_prior
from distill.embedded.world import COLOURS
from distill.priors.diffusion import DiffusionPrior
from distill.priors.text import TextEncoders
from distill.renderers.reference import Reference
from distill.run.assembly.scenes import background_of, edits, look
from distill.run.config.plugins import features_of

log = logging.getLogger(__name__)


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


def condition_of(config: DictConfig, prior: Prior, prompt: str) -> Conditioner:
    """Embed a prompt as a configuration says, with view words where the scene has sides."""
    return prompts.conditioner(
        prior,
        prompt if prior.words else prompts.PICTURED,
        config.negative_prompt,
        view_words_of(config, prior),
        config.source_prompt,
        unconditional=config.unconditional,
        away=curves(config) if config.perp_neg.enabled else None,
    )


def recognised(config: DictConfig, picture: Picture, prior: Prior) -> Picture:
    """Return a picture with its colour, the azimuth of its camera and its backdrop, where a configuration leaves these to be estimated.

    The noises do not depend on the configuration's seed, so all seeds have the same prompt and camera.
    """
    said, reference = config.reference, picture.reference
    if background_of(config).get("background") == "grey":
        log.info(
            "much of the object is nearly white: training over a changing grey (reference.backdrop=null keeps white)"
        )
        picture = replace(picture, backdrop="grey")
    if not said.colour and said.azimuth_deg is not None:
        return picture
    rgb, camera = reference.resized(prior.image_size).rgb, reference.camera.to("cpu")
    texts = wordings_for(config, reference) if said.colour else []
    if len(texts) > 1:
        log.info(
            "comparing the picture with the prompt in %d colours (reference.colour=null adds none)",
            len(texts) - 1,
        )
        cameras = camera if said.azimuth_deg is not None else in_front(camera.elevation_deg.item())
        conditions = {text: condition_of(config, prior, text) for text in texts}
        g = torch.Generator().manual_seed(0)
        picture = replace(picture, wordings=compare_wordings(prior, conditions, rgb, cameras, g))
        log.info("the prior is asked for %r", picture.wording)
    if said.azimuth_deg is not None:
        return picture
    log.info("estimating the picture's azimuth (reference.azimuth_deg=DEGREES gives it)")
    condition = condition_of(config, prior, picture.wording or config.prompt)
    g = torch.Generator().manual_seed(0)
    facing = estimate_azimuth(prior, condition, rgb, camera.elevation_deg.item(), g)
    log.info("the picture's azimuth is about %.0f degrees", facing.azimuth_deg)
    return picture.seen_from(facing)


def wordings_for(config: DictConfig, reference: Reference) -> list[str]:
    """A configuration's prompt, then in those colours that the picture shows and its prior can be asked for."""
    known = of_prior(config.prior)
    return (
        in_colours(config.prompt, known, shown_colours(reference.rgb, reference.mask, COLOURS))
        if known
        else []
    )


def make_condition(
    config: DictConfig,
    prior: Prior,
    scene: Scene,
    prompt: str,
    library: Prompts | None,
    shown: ImagePrompted | None,
) -> Conditioner:
    """Embed a prompt, or those of a library, and add what else the prior is conditioned on."""
    of = partial(condition_of, config, prior)
    if library:
        train, drawn = library.train, cast(Generator, scene).drawn
        condition = prompt_library.conditioner(lambda index: of(train[index]), drawn)
    else:
        condition = of(prompt)
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
