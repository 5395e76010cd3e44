"""Options that would do nothing beside the others."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf

from distill.options import options_of, ramp
from distill.run.checks.guidance import second_prompts
from distill.run.config.known import default_of
from distill.run.config.schema import PARTS

#: Parts and options that matter in training alone.
TRAINED = ("guidance", "guidance_weight", "timesteps", "cameras", "penalties", "optimiser")
#: Options of an export that shape or place the mesh which is made of a field.
SHAPING = (
    "resolution", "faces", "iso", "min_component", "blur_width", "up", "pivot", "size_m", "lods", "lod_as",
)  # fmt: skip


def idle(values: Mapping[str, Any]) -> list[tuple[str, bool, str]]:
    """Options and groups of them, whether each does nothing beside the others, and the remedy."""
    features = getattr(get_object(values["scene"]["_target_"]), "features", ())
    reference, pictured = values["reference"], bool(values["image"])
    words = bool(values["prompt"].strip()) or values["prompts"] is not None

    def weightless(name: str) -> bool:
        return not ramp(f"penalties.{name}", values["penalties"][name], values["iterations"]).nonzero

    lights = ("lambertian", "textureless")
    lit = values["render"]["shading"] in lights or any(
        ramp(f"render.turns.{light}", values["render"]["turns"][light], values["iterations"]).nonzero
        for light in lights
    )
    untrained = values["iterations"] == 0, "the generator's scene is not trained; add iterations=200"
    return [
        *((name, *untrained) for name in TRAINED),
        ("prior", pictured and not words, "image= alone asks the picture's own model; add a prompt"),
        ("novel_view", not pictured, "there is no picture; add image=FILE"),
        ("reference", not pictured, "there is no picture; add image=FILE"),
        ("reference.depth", weightless("reference_depth"), "add a weight such as penalties.reference_depth=100"),
        ("reference.normal", weightless("reference_normal"), "add a weight such as penalties.reference_normal=100"),
        ("reference.start_until", reference["start"] != "samples", "add reference.start=samples"),
        ("reference.fill", not reference["recentre"], "add reference.recentre=true"),
        ("reference.backdrop", values["scene"].get("background") != "white", "add scene.background=white"),
        ("mesh", not values["mesh"]["file"], "there is no mesh; add mesh=FILE"),
        ("scene.normal_map", values["scene"].get("material") == "albedo", "add scene.material=pbr"),
        *((f"export.{name}", bool(values["mesh"]["file"]), "a mesh that is textured stays as it is") for name in SHAPING),
        ("export.lod_as", not values["export"]["lods"], "add export.lods=3"),
        *(
            (f"export.{name}", "distance" in features, "the surface is where the signed distance is 0")
            for name in ("iso", "blur_width")
        ),
        ("prior_options.control_scale", not values["prior_options"]["controlnet"], "add prior_options.controlnet="),
        ("generator_mix", not values["generator"], "there is no generator; add generator=FOLDER"),
        ("generator_share", not values["generator_mix"], "add generator_mix="),
        ("perp_neg", not values["perp_neg"]["enabled"], "add perp_neg.enabled=true"),
        ("source_prompt", not _edits(values), "choose guidance=dds or guidance=bridge"),
        *((f"views.{angle}", values["view_words"] == "none", "leave out view_words=none") for angle in ("front_deg", "overhead_deg")),
        ("render.coarse", values["render"]["patch"] is None, "add render.patch="),
        ("render.soft_light", not lit, "add render.shading=lambertian or render.turns.lambertian=0.5"),
        ("penalties.start_rgb", reference["start"] != "samples", "add reference.start=samples"),
        ("penalties.start_mask", reference["start"] != "samples", "add reference.start=samples"),
        ("keep", values["seeds"] == 1, "add seeds=4"),
        ("view_address", not values["view"], "add view=true"),
        ("view_port", not values["view"], "add view=true"),
        ("cameras.area_elevation_deg", values["cameras"].get("by_area") == 0, "add cameras.by_area=1"),
        ("cameras.front_back_deg", values["cameras"].get("front_back") == 0, "add cameras.front_back=0.25"),
    ]  # fmt: skip


def _edits(values: Mapping[str, Any]) -> bool:
    """Tell whether the loss, or one of a mixture, compares with the source's prompt."""
    try:
        loss = get_object(values["guidance"]["_target_"])
    except Exception:  # a finished run's, whose script is not here: nothing asks for it any more
        return True
    return any(role == "source" for role, _ in second_prompts(values, loss))


#: How a remedy is said, where there is another than to leave the option out.
_REMEDY = re.compile(r"\b(add|choose|leave out) ")


def check_idle(config: DictConfig, given: Iterable[str]) -> None:
    """Refuse options that a user gives and that would do nothing beside the others.

    Args:
        config: a checked configuration.
        given: dotted names of the options that the user gives; those of configuration files may wait for others.

    Raises:
        ValueError: there is one.
    """
    values: Any = OmegaConf.to_container(config, resolve=True)
    groups = idle(values)
    for name in given:
        value = OmegaConf.select(config, name)
        if isinstance(value, DictConfig):  # a group as a whole
            if name in TRAINED and not config.iterations:
                raise ValueError(
                    f"{name}= would do nothing: the generator's scene is not trained; add iterations=200, or leave it out"
                )
            continue
        for group, unused, remedy in groups:
            if unused and f"{name}.".startswith(f"{group}.") and value != _default_of(name, values):
                ending = ", or leave out" if _REMEDY.search(remedy) else "; leave out"
                raise ValueError(f"{name}={value} would do nothing: {remedy}{ending} {name}=")


def check_idle_everywhere(made: Sequence[tuple[DictConfig, Sequence[str]]]) -> None:
    """Refuse options that would do nothing in any stage that they are for; of an export, in any that exports.

    Args:
        made: each stage's checked configuration, and the options that a user gives for it.

    Raises:
        ValueError: there is one.
    """
    for name in dict.fromkeys(name for _, names in made for name in names):
        useful, errors = False, list[ValueError]()
        for config, names in made:
            if name not in names or (name.startswith("export.") and not config.export.enabled):
                continue
            try:
                check_idle(config, [name])
                useful = True
            except ValueError as error:
                errors.append(error)
        if errors and not useful:
            raise errors[0]


def _default_of(name: str, values: Mapping[str, Any]) -> object:
    """The default of an option, of the schema's or of a chosen part's own."""
    group, _, option = name.partition(".")
    if group not in PARTS:
        return default_of(name)
    return getattr(options_of(get_object(values[group]["_target_"]))(), option)
