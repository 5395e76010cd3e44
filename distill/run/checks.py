"""Checks of a configuration before anything is loaded."""

from __future__ import annotations

import dataclasses
import re
import typing
from collections.abc import Callable, Mapping, Set
from typing import Any

from hydra.utils import get_object
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from distill.export.choices import check_files
from distill.options import check_option, check_options, options_of, schedule, shown
from distill.run.schema import Config, PriorOptions, Reference, Views
from distill.run.seeding import check_seeds
from distill.samplers.schedules import Ramp, turns

#: The parts of a run that plug in: each is a callable with options.
PARTS = ("guidance", "timesteps", "cameras", "scene")


def check(config: DictConfig) -> None:
    """Check every value against its type and the rules beside it, and what does not go together.

    Raises:
        ValueError: a value is out of range, or does not go with another.
    """
    try:
        values: Any = OmegaConf.to_container(config, resolve=True)
    except OmegaConfBaseException as error:
        raise ValueError(f"could not read the options: {str(error).splitlines()[0]}") from error
    if missing := sorted(
        name for name in OmegaConf.missing_keys(config) if name.partition(".")[0] not in PARTS
    ):
        raise ValueError(f"{missing[0]} must have a value, got ???; give it one, or leave it out")
    targets = check_values(values)
    check_words(config)
    check_scene(values, targets["scene"])
    for name, target in targets.items():
        check_known(name, target, values[name])
    check_perp_neg(config)
    check_novel_view(values)
    check_second_prompts(values, targets["guidance"])
    if config.image:
        check_image(config, targets["guidance"])


def check_values(values: Mapping[str, Any]) -> dict[str, Callable[..., Any]]:
    """Check each value of a configuration alone; returns the parts that it names.

    Raises:
        ValueError: an option has a value that it may not take.
    """
    check_schema(values, values["iterations"])
    return {name: check_part(name, values.get(name), values["iterations"]) for name in PARTS}


def check_schema(values: Mapping[str, Any], iterations: int, schema: type = Config, prefix: str = "") -> None:
    """Check the options that every run has.

    Raises:
        ValueError: an option has a value that it may not take.
    """
    hints = typing.get_type_hints(schema, include_extras=True)
    for item in dataclasses.fields(schema):
        name, hint, value = f"{prefix}{item.name}", hints[item.name], values[item.name]
        if dataclasses.is_dataclass(hint):
            if not isinstance(value, Mapping):
                raise ValueError(
                    f"{name} is a group of options, got {shown(value)}; leave it out for the defaults"
                )
            check_schema(value, iterations, typing.cast(type, hint), f"{name}.")
        elif item.name not in PARTS:
            check_option(name, value, hint, iterations)


def check_part(group: str, options: object, iterations: int) -> Callable[..., Any]:
    """Check a part's options against its signature; returns the part.

    Raises:
        ValueError: there is no such part, or an option has a value that it may not take.
    """
    if not isinstance(options, Mapping) or not isinstance(options.get("_target_"), str):
        raise ValueError(f"{group} names no part; choose one with {group}=NAME")
    try:
        target: Callable[..., Any] = get_object(options["_target_"])
    except Exception as error:  # whatever its module fails with
        raise ValueError(
            f"{group}._target_ must be the path of a callable, and {options['_target_']!r} cannot be imported: "
            f"{str(error).splitlines()[0]}"
        ) from error
    own = {name: value for name, value in options.items() if not name.startswith("_")}
    if missing := [name for name, value in own.items() if value == MISSING]:
        raise ValueError(f"{group}.{missing[0]} has no default; give it a value")
    try:
        options_of(target)
    except Exception as error:  # what has no signature of options fails in many ways
        raise ValueError(
            f"{group}._target_={options['_target_']} is no {group}; choose one with {group}=NAME"
        ) from error
    check_options(target, own, group, iterations)
    return target


def check_known(group: str, target: Callable[..., Any], options: Mapping[str, Any]) -> None:
    """Check that a part has the options that it is given.

    Raises:
        ValueError: it does not.
    """
    known = [item.name for item in dataclasses.fields(options_of(target)) if not item.name.startswith("_")]
    if strange := [name for name in options if not name.startswith("_") and name not in known]:
        raise ValueError(
            f"unknown option '{group}.{strange[0]}'; {options['_target_']} has {', '.join(known) or 'none'}"
        )


def check_words(config: DictConfig) -> None:
    """Check the options that are texts: prompts, a device, a size.

    Raises:
        ValueError: one cannot be read, or does not go with another.
    """
    if config.max_vram is not None:
        bytes_of(config.max_vram)
    if config.prior_options.controlnet and not config.prior_options.control:
        raise ValueError(
            "prior_options.controlnet needs prior_options.control: depth, normal or mask of the scene, or a picture"
        )
    if config.shard is not None:
        numbers_of(config.shard)
        if config.prompts is None:
            raise ValueError("shard= takes a part of a file of prompts; add prompts=FILE, or leave it out")
    if config.prompt and config.prompts:
        raise ValueError("give a prompt or prompts=FILE, not both")
    if not config.prompt.strip() and config.prompts is None and not config.image:
        raise ValueError(
            'the prompt is empty; say what to make, for example: distill "a red mug", or give a picture: image=FILE'
        )
    check_seeds(config)
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", config.device):
        raise ValueError(f"device must be auto, cpu, cuda, cuda:N or mps, got {config.device!r}")


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


#: What each feature of a scene means.
FEATURES = {
    "sides": "looks different from different sides",
    "volume": "fills space",
    "mesh": "textures a mesh",
    "shape": "has a shape",
    "normals": "has normals",
    "shading": "can be shaded",
    "chunks": "is rendered in chunks of rays",
    "together": "has one random background for all views of an object",
    "library": "makes the scenes of a library of prompts",
    "from_field": "begins with the field of an earlier run",
}
#: The feature that each option needs of a scene, where it is not at its default.
NEEDS = {
    "image": "shape",
    "mesh.file": "mesh",
    "view_words": "sides",
    **{
        f"views.{name}": "sides"
        for name in ("front", "side", "back", "overhead", "file", "front_deg", "overhead_deg")
    },
    "perp_neg.enabled": "sides",
    "render.patch": "sides",
    "render.shading": "shading",
    **{f"render.turns.{name}": "shading" for name in ("lambertian", "textureless", "normals")},
    "render.soft_light": "shading",
    "render.recompute": "chunks",
    "render.chunk_rays": "chunks",
    "render.latent_until": "normals",
}
#: The feature that drawing each of these for a ControlNet needs.
DRAWING = {"depth": "shape", "normal": "normals", "mask": "shape"}


#: How the names of penalties begin that compare with known views rather than ask the scene.
KNOWN = ("reference_", "start_")


def check_scene(values: Mapping[str, Any], scene: Callable[..., Any]) -> None:
    """Check that a scene can do what the options ask of it.

    Args:
        values: the whole configuration as plain values.
        scene: the chosen one, with ``features``: names of ``FEATURES``, and of the penalties that it can compute.

    Raises:
        ValueError: an option needs a feature that the scene does not have, or the scene does not say what it has.
    """
    features = getattr(scene, "features", None)
    name = getattr(scene, "__name__", str(scene))
    if not isinstance(features, (set, frozenset)):
        raise ValueError(
            f"the scene {name} does not say what it can do; give its class the attribute features, a frozenset with any of "
            f"{', '.join(FEATURES)} and the penalties that it computes; frozenset() for none"
        )
    if features & {"volume", "mesh"}:
        features = features | {"shape"}
    check_mesh(values, features)
    export = values["export"]
    check_files(export["formats"], export["name"], export["lods"], export["lod_as"], "mesh" in features)
    if "from_field" in features and not values["init"]:
        raise ValueError(
            f"the scene {name} begins with the field of an earlier run, and there is none; add init=outputs/RUN, the folder of a "
            "finished run of scene=hash_grid"
        )
    check_turns(values)
    for option, feature, meaning in needed(values):
        if feature not in features:
            raise ValueError(f"{option} needs a scene that {meaning}, and {name} does not; leave it out")
    for penalty, weight in values["penalties"].items():
        if not penalty.startswith(KNOWN):
            continue
        on = moves(f"penalties.{penalty}", weight, values["iterations"])
        if on and not values["image"]:
            raise ValueError(f"penalties.{penalty} compares with a picture; add image=FILE, or leave it out")
        if on and penalty == "reference_normal" and "normals" not in features:
            raise ValueError(
                f"penalties.{penalty} needs a scene that {FEATURES['normals']}, and {name} does not; leave it out"
            )


def check_mesh(values: Mapping[str, Any], features: Set[str]) -> None:
    """Check what does not go with a mesh that is textured.

    Raises:
        ValueError: there is no mesh for a scene that needs one, or an option would shape it or colour it twice.
    """
    if "mesh" not in features:
        return
    if not values["mesh"]["file"]:
        raise ValueError("the scene textures a mesh, and there is none; add mesh=FILE, or leave out scene=")
    if values["render"]["latent_until"]:
        raise ValueError(
            "render.latent_until shapes a scene, and a mesh that is textured keeps its shape; leave it out"
        )
    if values["init"] and values["mesh"]["init_texture"]:
        raise ValueError(
            "init= and mesh.init_texture=true both say which colours to begin with; leave one of them out"
        )


def check_turns(values: Mapping[str, Any]) -> None:
    """Check the shares of pictures that are shaded otherwise.

    Raises:
        ValueError: they are more than all pictures, or all are shaded in one way already.
    """
    rendering, total = values["render"], values["iterations"]
    made = {
        name: schedule(f"render.turns.{name}", share, total) for name, share in rendering["turns"].items()
    }
    shares = [share if isinstance(share, Ramp) else Ramp(share) for share in made.values()]
    # A schedule may jump: the largest sum may be just before.
    points = [at for point in turns(dict(zip(made, shares, strict=True))) for at in (point, point - 1e-9)]
    most = max(sum(share(point) for share in shares) for point in points)
    if most > 1 + 1e-6:
        raise ValueError(f"render.turns are shares of the pictures, at most 1 together, got {most:g}")
    if most > 0 and rendering["shading"] != "albedo":
        raise ValueError(
            f"render.turns are shares of the pictures that are albedo otherwise, and render.shading={rendering['shading']} is "
            "all of them; leave out one of the two"
        )


def check_perp_neg(config: DictConfig) -> None:
    """Check that with Perp-Neg the prompts name four sides.

    Raises:
        ValueError: they name more, or none.
    """
    from distill.embedded.vocabulary import of_prior

    style = config.view_words
    if style == "auto" and of_prior(config.prior) and not any(config.views[name] for name in OWN_PROMPTS):
        style = "sixteen"
    if config.perp_neg.enabled and style in ("sixteen", "none"):
        raise ValueError(
            f"perp_neg.enabled needs view_words=four, for it tells the front, the sides and the back apart, got {style}; add "
            "view_words=four, or leave it out"
        )


#: The options of ``views`` that give whole prompts.
OWN_PROMPTS = ("front", "side", "back", "overhead", "file")


def check_novel_view(values: Mapping[str, Any]) -> None:
    """Check the terms of a mixture that have a prior of their own.

    Raises:
        ValueError: a term names the model of an input picture where there is none or with a prompt, or another prior without.
    """
    for number, term in enumerate(values["guidance"].get("terms") or ()):
        where, own = f"guidance.terms[{number}]", term.get("prior")
        if own == "novel_view" and not values["image"]:
            raise ValueError(
                f"{where} names the model of an input picture, and there is none; add image=FILE, or leave out prior"
            )
        if own == "novel_view" and term.get("prompt"):
            raise ValueError(
                f"{where}: novel_view is conditioned on a picture and takes no prompt; leave out prompt"
            )
        if own not in (None, "novel_view") and not term.get("prompt"):
            raise ValueError(f'{where} has its own prior, which needs its own prompt; add prompt: "..."')


def check_second_prompts(values: Mapping[str, Any], loss: Callable[..., Any]) -> None:
    """Check that the losses have the prompts that they compare with.

    Raises:
        ValueError: one has none.
    """
    from distill import guidance

    if values["image"] and not values["prompt"].strip():
        return  # the picture's model knows no words
    known, own = guidance.available(), values["guidance"]
    terms = [term for term in own.get("terms") or () if term.get("prior") != "novel_view"]
    losses = [(loss, own), *((known[term["loss"]], term) for term in terms if term.get("loss") in known)]
    for each, options in losses:
        role, option = guidance.needed_prompt(each) or ("", None)
        if not role or values[f"{role}_prompt"].strip():
            continue
        value = options.get(option, getattr(options_of(each)(), option)) if option else 1
        if moves(f"guidance.{option}", value, values["iterations"]):
            what = each.__name__ + (f" with {option} coefficients" if option else "")
            raise ValueError(f'{what} needs a second prompt, and none is given; add {role}_prompt="..."')


def needed(values: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Yield the scene features that options need: the option, the feature, and its description."""
    found = []
    for option, feature in NEEDS.items():
        value: Any = values
        for key in option.split("."):
            value = value[key]
        if value not in (default_of(option), "none" if option == "view_words" else None):
            found.append((f"{option}={value}", feature, FEATURES[feature]))
    if (control := values["prior_options"]["control"]) in DRAWING:
        feature = DRAWING[control]
        found.append((f"prior_options.control={control}", feature, FEATURES[feature]))
    for name, weight in values["penalties"].items():
        if not name.startswith(KNOWN) and moves(f"penalties.{name}", weight, values["iterations"]):
            found.append((f"penalties.{name}={weight}", name, "computes it"))
    return found


def default_of(option: str) -> object:
    """The schema's default of an option with a dotted name."""
    schema: Any = Config()
    for name in option.split("."):
        schema = getattr(schema, name)
    return schema


def moves(name: str, weight: object, iterations: int) -> bool:
    """Tell whether a weight, a number or a schedule, is ever non-zero."""
    made = schedule(name, weight, iterations)
    return bool(made.start or made.end) if isinstance(made, Ramp) else bool(made)


def check_image(config: DictConfig, guidance: Callable[..., Any]) -> None:
    """Check what a picture does not go with.

    Raises:
        ValueError: an option cannot be used with a picture.
    """
    if config.prompts is not None or config.particles > 1:
        raise ValueError("image= makes one asset; leave out prompts= and particles=")
    if config.max_vram is not None and not config.prompt.strip():
        raise ValueError(
            "max_vram= forecasts priors of text, not novel-view models; leave it out, and choose render.at_once= and "
            "render.recompute="
        )
    if config.scene.get("random_background"):
        raise ValueError(
            f"image= shows its object over white, so scene.random_background must be 0, got {config.scene.random_background}"
        )
    if config.scene.get("background", "white") != "white":
        raise ValueError(
            f"image= shows its object over white, so scene.background must be white, got {config.scene.background}"
        )
    weights = {name: config.penalties[name] for name in ("start_rgb", "start_mask")}
    if config.reference.start == "samples" and not any(
        moves(f"penalties.{name}", weight, config.iterations) for name, weight in weights.items()
    ):
        raise ValueError(
            "reference.start=samples fits drawn views by penalties.start_rgb and penalties.start_mask, and both are 0; give "
            "them weights such as those of penalties.reference_rgb and penalties.reference_mask, or use reference.start=none"
        )
    for map_ in ("depth", "normal"):
        weight = moves(
            f"penalties.reference_{map_}", config.penalties[f"reference_{map_}"], config.iterations
        )
        if weight and not config.reference[map_]:
            raise ValueError(f"penalties.reference_{map_} needs reference.{map_}=FILE")
    if config.prompt.strip():
        return
    if guidance in needing_words():
        raise ValueError(
            "this guidance mixes a picture with text, or compares texts; add a prompt, or choose guidance=sds"
        )
    for name in FOR_WORDS:
        value = OmegaConf.select(config, name)
        if value not in (default_of(name), "none" if name == "view_words" else None):
            raise ValueError(
                f"{name}={value} is for a prior that knows words, and with image= alone there is none; add a prompt, or leave "
                f"out {name}="
            )


#: Options without effect on a prior that is conditioned on a picture alone.
FOR_WORDS = (
    "perp_neg.enabled", "view_words", "negative_prompt", "source_prompt", "unconditional",
    *(f"views.{item.name}" for item in dataclasses.fields(Views)),
    *(f"prior_options.{item.name}" for item in dataclasses.fields(PriorOptions)),
)  # fmt: skip


#: Options of ``reference`` that say how an object is cut out; the others place its picture before a camera.
CUT_OUT = ("background", "recentre", "fill")


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


def check_loaded(config: DictConfig) -> None:
    """Refuse options of how a prior is loaded, for a prior that is loaded.

    Raises:
        ValueError: there are such options.
    """
    if config.max_vram is not None:
        raise ValueError(
            "max_vram= chooses how a prior is loaded, and this one is loaded; give its name, or leave out max_vram= and choose "
            "render.at_once= and render.recompute="
        )
    for item in dataclasses.fields(PriorOptions):
        name = f"prior_options.{item.name}"
        if item.name != "control" and OmegaConf.select(config, name) != default_of(name):
            raise ValueError(
                f"{name}= is for loading a prior, and this one is loaded; give it to distill.load_prior, or leave it out"
            )


def needing_words() -> tuple[Callable[..., Any], ...]:
    """The losses that a novel-view model, which knows no words, cannot be used with alone."""
    from distill import guidance
    from distill.guidance.mix import NEEDING_WORDS

    losses = guidance.available()
    return tuple(losses[name] for name in NEEDING_WORDS)


def check_prompt(config: DictConfig) -> str:
    """Refuse what the embedded prior cannot draw, before anything is loaded.

    Returns:
        What the prompt and the source prompt are taken for, in one line; empty where they are taken as they are.

    Raises:
        ValueError: the prior does not know what one of them names.
    """
    from distill.embedded.prompt import told, understand
    from distill.embedded.vocabulary import of_prior

    given = [text for text in (config.prompt, config.source_prompt, config.generator_mix) if text]
    own = of_prior(config.prior) if given else None
    if own is None:
        return ""
    said = (told(text, understand(text, own)) for text in given)
    return "; ".join(each for each in said if each)
