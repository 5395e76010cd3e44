"""What options ask of a scene, and whether it can do that."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Set
from typing import Any

from distill.conditions.choices import OWN_PROMPTS
from distill.export.choices import check_files
from distill.options import ramp
from distill.parts.step import KNOWN
from distill.renderers.choices import SHADINGS
from distill.run.checks.values import is_set, value_of
from distill.samplers.schedules import turns

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
    "background": "is rendered over scene.background=grey and says what is behind its object",
    "library": "makes the scenes of a library of prompts",
    "distance": "has its mesh where a signed distance is 0",
    "from_field": "begins with the field of an earlier run",
}
#: What a class with a feature has beside what every scene has.
METHODS = {"from_field": "begin_with_field", "mesh": "begin_with_colours"}
#: The feature that each option needs of a scene, where it is not at its default.
NEEDS = {
    "image": "shape",
    "reference.backdrop": "background",
    "mesh.file": "mesh",
    "view_words": "sides",
    **{f"views.{name}": "sides" for name in (*OWN_PROMPTS, "front_deg", "overhead_deg")},
    "perp_neg.enabled": "sides",
    "render.patch": "sides",
    "render.shading": "shading",
    **{f"render.turns.{name}": "shading" for name in SHADINGS[1:]},
    "render.soft_light": "shading",
    "render.recompute": "chunks",
    "render.chunk_rays": "chunks",
    "render.latent_until": "normals",
}
#: The feature that drawing each of these for a ControlNet needs.
DRAWING = {"depth": "shape", "normal": "normals", "mask": "shape"}


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
    known = (*FEATURES, *values["penalties"])
    if unknown := sorted(map(str, features - set(known))):
        close = difflib.get_close_matches(unknown[0], known, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise ValueError(
            f"the scene {name} has the unknown feature {unknown[0]!r}; {hint}there are {', '.join(FEATURES)} and the names of penalties"
        )
    for feature, method in METHODS.items():
        if feature in features and isinstance(scene, type) and not callable(getattr(scene, method, None)):
            raise ValueError(
                f"the scene {name} has the feature {feature} and no method {method}; give it one, see distill.contracts.Scene"
            )
    if (
        scene.__module__ == "distill.renderers.image"
        and (channels := values["scene"].get("channels", 3)) != 3
    ):
        raise ValueError(
            f"scene.channels must be 3 in a run, whose prior is shown colours, got {channels}; leave it out"
        )
    ours = scene.__module__.startswith("distill.renderers.")
    if values["device"] == "mps" and ours and features & {"volume", "mesh"}:
        raise ValueError(
            "device=mps has no rays: Warp, which marches them, runs on CPUs and on CUDA; use device=cpu, or scene=image"
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
        on = ramp(f"penalties.{penalty}", weight, values["iterations"]).nonzero
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
    shares = {name: ramp(f"render.turns.{name}", share, total) for name, share in rendering["turns"].items()}
    most = max(sum(share(point) for share in shares.values()) for point in turns(shares))
    if most > 1 + 1e-6:
        raise ValueError(f"render.turns are shares of the pictures, at most 1 together, got {most:g}")
    if most > 0 and rendering["shading"] != "albedo":
        raise ValueError(
            f"render.turns are shares of the pictures that are albedo otherwise, and render.shading={rendering['shading']} is "
            "all of them; leave out one of the two"
        )


def needed(values: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Return the features that options need of a scene: the option, the feature, and its description."""
    found = [
        (f"{option}={value_of(values, option)}", feature, FEATURES[feature])
        for option, feature in NEEDS.items()
        if is_set(values, option)
    ]
    if (control := values["prior_options"]["control"]) in DRAWING:
        feature = DRAWING[control]
        found.append((f"prior_options.control={control}", feature, FEATURES[feature]))
    for name, weight in values["penalties"].items():
        if not name.startswith(KNOWN) and ramp(f"penalties.{name}", weight, values["iterations"]).nonzero:
            found.append((f"penalties.{name}={weight}", name, "computes it"))
    return found
