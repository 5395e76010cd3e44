"""What does not go with an input picture, and what a picture without a prompt leaves without effect."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from omegaconf import DictConfig

from distill.conditions.choices import SIDES
from distill.conditions.prompts import own_prompts, view_words
from distill.conditions.recognition import DIRECTIONS
from distill.embedded.vocabulary import of_prior
from distill.options import ramp
from distill.run.checks.guidance import second_prompts
from distill.run.checks.values import is_set, value_of
from distill.run.config.schema import PriorOptions, Reference, Views

#: Options without effect on a prior that is conditioned on a picture alone.
FOR_WORDS = (
    "perp_neg.enabled", "view_words", "negative_prompt", "source_prompt", "unconditional",
    *(f"views.{item.name}" for item in dataclasses.fields(Views)),
    *(f"prior_options.{item.name}" for item in dataclasses.fields(PriorOptions)),
)  # fmt: skip

#: Options of ``reference`` that say how an object is cut out; the others place its picture before a camera.
CUT_OUT = ("background", "recentre", "fill")


def check_image(values: Mapping[str, Any], guidance: Callable[..., Any], scene: Callable[..., Any]) -> None:
    """Check what a picture does not go with.

    Raises:
        ValueError: an option cannot be used with a picture.
    """
    from distill.conditions.picture import is_asked

    penalties, reference = values["penalties"], values["reference"]
    wordless = not values["prompt"].strip()
    for option, unused in (("prompts", None), ("generator", None), ("particles", 1)):
        if values[option] != unused:
            raise ValueError(
                f"image= makes one asset of the picture and does not go with {option}={values[option]}; leave out one of them"
            )
    if values["max_vram"] is not None and wordless:
        raise ValueError(
            "max_vram= forecasts priors of text, not novel-view models; leave it out, and choose render.at_once= and "
            "render.recompute="
        )
    if is_asked(values):
        check_over_white(
            values["scene"],
            reference["backdrop"],
            "image= asks a novel-view model, which knows objects over white",
        )
    elif "background" not in getattr(scene, "features", ()):
        check_over_white(
            values["scene"],
            None,
            "image= is compared over white with a scene that does not say what is behind its object",
        )

    def weighted(penalty: str) -> bool:
        return ramp(f"penalties.{penalty}", penalties[penalty], values["iterations"]).nonzero

    if reference["start"] == "samples" and not (weighted("start_rgb") or weighted("start_mask")):
        raise ValueError(
            "reference.start=samples fits drawn views by penalties.start_rgb and penalties.start_mask, and both are 0; give "
            "them weights such as those of penalties.reference_rgb and penalties.reference_mask, or use reference.start=none"
        )
    for map_ in ("depth", "normal"):
        if weighted(f"reference_{map_}") and not reference[map_]:
            raise ValueError(f"penalties.reference_{map_} needs reference.{map_}=FILE")
    if reference["colour"]:
        check_colour(values)
    if reference["azimuth_deg"] is None:
        check_azimuth(values)
    if not wordless:
        return
    if needs_words(values, guidance):
        raise ValueError(
            "this guidance mixes a picture with text, or compares texts; add a prompt, or choose guidance=sds"
        )
    for name in FOR_WORDS:
        if is_set(values, name):
            raise ValueError(
                f"{name}={value_of(values, name)} is for a prior that knows words, and with image= alone there is none; add a prompt, or leave "
                f"out {name}="
            )


def check_over_white(scene: Mapping[str, Any], backdrop: str | None, why: str) -> None:
    """Check that a scene is rendered over white.

    Args:
        scene: options of it.
        backdrop: ``reference.backdrop``.
        why: it must be.

    Raises:
        ValueError: its background is not white, or may become grey.
    """
    if backdrop:
        raise ValueError(
            f"{why}, and reference.backdrop={backdrop} may train over grey; add reference.backdrop=null"
        )
    for name, white in (("random_background", 0.0), ("background", "white")):
        if (got := scene.get(name, white)) != white:
            raise ValueError(f"{why}: scene.{name} must be {white}, got {got}; add scene.{name}={white}")


def check_colour(values: Mapping[str, Any]) -> None:
    """Check that the colour of a picture can be looked for.

    Raises:
        ValueError: there is no prompt to add it to, the prior has no list of colours, or nothing would follow the prompt.
    """
    remedy = "add reference.colour=null"
    if not values["prompt"].strip():
        raise ValueError(
            f"reference.colour=auto adds a colour to the prompt, and there is no prompt; add one, or {remedy}"
        )
    if of_prior(values["prior"]) is None:
        raise ValueError(
            f"reference.colour=auto needs a prior with a list of colours, as the bundled ones have, and prior={values['prior']} takes any "
            f"words; {remedy}, and write the colour into the prompt"
        )
    if any(values["views"][side] for side in SIDES) or values["views"]["file"]:
        raise ValueError(
            f"reference.colour=auto adds a colour to the prompt, and views.* has prompts of its own; {remedy}"
        )
    terms = values["guidance"].get("terms") or []
    if terms and all(term.get("prior") or term.get("prompt") for term in terms):
        raise ValueError(
            f"reference.colour=auto adds a colour to the prompt, which no term of guidance.terms uses; {remedy}"
        )


def check_azimuth(values: Mapping[str, Any]) -> None:
    """Check that the azimuth of a picture can be estimated.

    Raises:
        ValueError: nothing tells directions, or the azimuth is needed before.
    """
    remedy = "give the azimuth in degrees"
    if not values["prompt"].strip():
        raise ValueError(
            f"reference.azimuth_deg=null compares the picture with the prompt's directions, and there is no prompt; add one, or {remedy}"
        )
    if values["reference"]["start"] == "samples":
        raise ValueError(
            f"reference.start=samples draws views before the azimuth is estimated; use reference.start=none, or {remedy}"
        )
    own = own_prompts(DictConfig(values["views"]))
    views = view_words(values["view_words"], values["prior"], own=own)
    told = len(views.words) if views else 0
    if told < DIRECTIONS:
        raise ValueError(
            f"reference.azimuth_deg=null needs sixteen directions, as the bundled priors are told, and prior={values['prior']} is told "
            f"{told}; {remedy}"
        )


def check_shown(config: DictConfig, name: str) -> None:
    """Refuse what places a picture before a camera, for a prior that is shown the picture alone.

    Args:
        config: of the run, with or without a picture.
        name: of the prior.

    Raises:
        ValueError: there is no picture, or an option would do nothing or compare with a picture whose camera is not known.
    """
    if not config.image:
        raise ValueError(f"{name} is ImageDream, which is shown a picture beside the prompt; add image=FILE")
    if not config.prompt.strip():
        raise ValueError(f"{name} takes a prompt beside the picture, and there is none; add a prompt")
    placing = {
        f"reference.{item.name}": (config.reference[item.name], item.default)
        for item in dataclasses.fields(Reference)
        if item.name not in CUT_OUT
    }
    placing["novel_view"] = (config.novel_view, "embedded")
    placing |= {
        f"penalties.{penalty}": (weight, 0)
        for penalty, weight in config.penalties.items()
        if penalty.startswith(("reference_", "start_"))
    }
    for option, (value, default) in placing.items():
        if value != default:
            raise ValueError(
                f"{option}={value} places the picture before a camera, and {name} is shown the picture alone; leave {option}= out, "
                "or choose another prior"
            )


def needs_words(values: Mapping[str, Any], loss: Callable[..., Any]) -> bool:
    """Tell whether a novel-view model, which knows no words, cannot be used alone with a loss: with one that compares texts, or a mixture."""
    from distill.guidance.mix import mix

    return loss is mix or any(role == "source" for role, _ in second_prompts(values, loss))
