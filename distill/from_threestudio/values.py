"""How the values of a threestudio configuration become values of options, where they are not the same."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from distill.from_threestudio.read import Values
from distill.priors.table import MODELS

G, E, P, L = "system.guidance.", "system.geometry.", "system.prompt_processor.", "system.loss."
LR = "system.optimizer.params."

#: Weights of penalties, divided by the loss's own.
PENALTIES = {
    L + "lambda_sparsity": "penalties.sparsity",
    L + "lambda_opaque": "penalties.opaqueness",
    L + "lambda_orient": "penalties.orientation",
    L + "lambda_rgb": "penalties.reference_rgb",
    L + "lambda_mask": "penalties.reference_mask",
}
#: Weights of the loss itself.
OWN = tuple(L + name for name in ("lambda_sds", "lambda_vsd", "lambda_sdi", "lambda_sd"))

#: Kinds of guidance: the loss here, and whether its scale s is s + 1 here without Perp-Neg.
GUIDANCE = {
    "stable-diffusion-guidance": ("sds", True),
    "deep-floyd-guidance": ("sds", True),
    "stable-diffusion-sdi-guidance": ("sdi", True),
    "stable-diffusion-vsd-guidance": ("vsd", False),
    "stable-diffusion-unified-guidance": ("sds", False),
    "zero123-guidance": ("sds", False),
    "stable-zero123-guidance": ("sds", False),
    "zero123-unified-guidance": ("sds", False),
}
#: Originals that are gone, by the name that the library has for a copy.
RENAMED = {
    "stabilityai/stable-diffusion-2-1-base": "sd-2.1-base",
    "stabilityai/stable-diffusion-2-1": "sd-2.1",
    "runwayml/stable-diffusion-v1-5": "sd-1.5",
}


@dataclass
class Conversion:
    """What is known of a file, and what becomes of it.

    Attributes:
        values: of the file, by dotted key, references resolved.
        options: of this library, by name.
        notes: by key, or by whatever they are about.
        iterations: steps of the run.
    """

    values: Values
    options: Values = field(default_factory=dict)
    notes: list[tuple[str, str]] = field(default_factory=list)
    iterations: int = 10_000

    def get(self, key: str, default: Any = None) -> Any:
        return self.values.get(key, default)

    def first(self, *keys: str) -> Any:
        return next((self.values[key] for key in keys if self.values.get(key) is not None), None)

    def say(self, key: str, text: str) -> None:
        if (key, text) not in self.notes:
            self.notes.append((key, text))

    def number(self, key: str, default: float) -> float:
        """Return a number.

        Raises:
            ValueError: the file has something else there.
        """
        value = self.get(key, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise ValueError(f"{key} must be a number, got {value!r}")
        return value

    def schedule(self, key: str, by: float = 1.0) -> Any:
        """Return a number, or a schedule in steps for ``[step, value, value, step]``, times ``by``.

        Raises:
            ValueError: the file has neither there.
        """
        value = self.get(key)
        if not isinstance(value, list):
            return self.number(key, 0.0) * by
        points = [0, *value] if len(value) == 3 else value
        if len(points) < 4 or len(points) % 2 or not all(isinstance(each, (int, float)) for each in points):
            raise ValueError(f"{key} must be a number or a list [step, value, value, step], got {value!r}")
        (begin, start), (end, until) = points[:2], points[-2:]
        if begin >= until:
            raise ValueError(f"{key} must end after it begins, got {value!r}")
        if len(points) > 4:
            self.say(key, f"{value}: a schedule here has one slope, so the values in between are left out")
        if isinstance(until, float):
            self.say(key, f"{value}: threestudio counts a float such as {until} in epochs; here it is a step")
        if begin >= self.iterations or start == end:
            return start * by
        if until > self.iterations:
            end = start + (end - start) * (self.iterations - begin) / (until - begin)
            until = self.iterations
            self.say(key, f"{value}: the run ends before the schedule, so it ends at {end:g}")
        self.say(key, f"{value} is a schedule, from from_step to to_step")
        return {"start": start * by, "end": end * by, "from_step": int(begin), "to_step": int(until)}


def guidance(c: Conversion) -> None:
    """The loss, its scale, its weight of timesteps, and what belongs to one loss alone."""
    kind = c.values["system.guidance_type"]
    loss, plus_one = GUIDANCE[kind]
    if kind == "stable-diffusion-unified-guidance" and c.get(G + "guidance_type", "sds") in ("sds", "vsd"):
        loss = c.get(G + "guidance_type", "sds")
    if c.get(G + "use_img_loss") is True:
        if loss == "sds":
            loss = "hifa"
        else:
            c.say(
                G + "use_img_loss", f"no counterpart with {loss}; guidance=hifa is SDS with the pixels' loss"
            )
    perp = c.get(P + "use_perp_neg") is True
    more = 1 if plus_one and not perp else 0
    c.options["guidance"] = loss
    default = 7.5 if loss in ("vsd", "sdi") else 100.0
    c.options["guidance.scale"] = c.number(G + "guidance_scale", default) + more
    if more:
        c.say(
            G + "guidance_scale",
            "s + 1: there s is the factor beside the text's prediction, without Perp-Neg",
        )
    if loss == "sdi":
        c.options |= {
            "guidance.inversion_scale": c.number(G + "inversion_guidance_scale", -7.5) + more,
            "guidance.inversion_steps": int(c.number(G + "inversion_n_steps", 10)),
            "guidance.eta": c.number(G + "inversion_eta", 0.3),
            "guidance.inversion": "strides",
            "guidance.average": True,
        }
        c.say("system.guidance_type", "its loss is a mean over pixels, and its inversion goes in strides")
    if loss == "sds" and (wanted := c.get(G + "weighting_strategy")) is not None:
        known = {
            "sds": "sigma_squared",
            "dreamfusion": "sigma_squared",
            "uniform": "uniform",
            "fantasia3d": "fantasia3d",
        }
        if wanted in known:
            c.options["guidance.weighting"] = known[wanted]
        else:
            c.say(G + "weighting_strategy", f"{wanted!r} has no counterpart")
    if loss == "vsd" and LR + "guidance.lr" in c.values:
        c.options["guidance.learning_rate"] = c.number(LR + "guidance.lr", 1e-4)
    if loss == "vsd" and c.get(G + "pretrained_model_name_or_path_lora"):
        c.say(G + "pretrained_model_name_or_path_lora", "no counterpart: the LoRA is in the prior itself")


def timesteps(c: Conversion) -> None:
    low, high = c.schedule(G + "min_step_percent"), c.schedule(G + "max_step_percent")
    if c.get(G + "t_anneal") is True and not isinstance(low, dict) and not isinstance(high, dict):
        c.options |= {
            "timesteps": "annealed", "timesteps.t_min": high, "timesteps.t_min_end": low,
            "timesteps.t_max": high, "timesteps.t_max_end": low,
        }  # fmt: skip
        return
    c.options["timesteps"] = "square_root" if c.get(G + "sqrt_anneal") is True else "uniform"
    c.options |= {"timesteps.t_min": low, "timesteps.t_max": high}


def prior(c: Conversion) -> None:
    if "zero123" in c.values["system.guidance_type"]:
        c.say(
            G + "pretrained_model_name_or_path",
            "the model of novel views is novel_view=FOLDER, in the layout of diffusers; without it, the one that ships",
        )
        return
    said = str(c.get(G + "pretrained_model_name_or_path", "stabilityai/stable-diffusion-2-1-base"))
    names = {model.repository.partition("@")[0]: name for name, model in MODELS.items()} | RENAMED
    c.options["prior"] = names.get(said, said)


def half(c: Conversion) -> None:
    if c.get(G + "half_precision_weights") is False:
        c.options["prior_options.dtype"] = "float32"
    else:
        c.say(G + "half_precision_weights", "float16 there; on CUDA the default here is bfloat16")


def penalties(c: Conversion) -> None:
    scale = next((c.values[key] for key in OWN if c.get(key)), 1.0)
    own = float(scale) if isinstance(scale, (int, float)) else 1.0
    if isinstance(scale, list):
        c.say("system.loss", f"{scale}: the loss's own weight is 1 here, throughout the run")
    for key, option in PENALTIES.items():
        if key in c.values and (c.get("data.image_path") or "reference" not in option):
            value = c.schedule(key, 1 / own)
            if value:
                c.options[option] = value
                if own != 1:
                    c.say(key, f"divided by the loss's own weight, {own:g}, which is 1 here")


def rates(c: Conversion) -> None:
    """Learning rates: the hash grid's, the networks', the background's."""
    general = (LR + "geometry.lr", "system.optimizer.args.lr")
    networks = [
        LR + f"geometry.{name}.lr"
        for name in ("density_network", "feature_network", "network", "sdf_network")
    ]
    found = {
        "scene.encoding_lr": c.first(LR + "geometry.encoding.lr", *general),
        "scene.mlp_lr": c.first(*networks, *general),
    }
    if c.get("system.background_type") == "neural-environment-map-background":
        keys = [LR + "background.lr", LR + "background.network.lr", "system.optimizer.args.lr"]
        found["scene.background_lr"] = c.first(*keys)
    c.options |= {name: value for name, value in found.items() if value is not None}
    given = {key: c.values[key] for key in networks if key in c.values}
    if len(set(given.values())) > 1:
        c.say(next(iter(given)), "the density and the colour are one network here, with one rate")


def size(c: Conversion) -> None:
    heights, milestones = c.get("data.height"), c.get("data.resolution_milestones") or []
    widths = c.get("data.width", heights)
    if heights != widths:
        c.say("data.width", f"{widths}: pictures are square here, {heights} pixels high")
    if not isinstance(heights, list):
        c.options["render.size"] = heights
    elif len(heights) == 1 or not milestones or milestones[0] >= c.iterations:
        c.options["render.size"] = heights[0]
    else:
        ends = {"from_step": milestones[0], "to_step": min(milestones[-1] + 1, c.iterations)}
        c.options["render.size"] = {"start": heights[0], "end": heights[-1], **ends}
        c.say(
            "data.resolution_milestones", f"{milestones}: a schedule of the size, linear if there are several"
        )


def batch(c: Conversion) -> None:
    value = c.get("data.batch_size")
    c.options["render.batch"] = value[0] if isinstance(value, list) else value
    if isinstance(value, list) and len(set(value)) > 1:
        c.say("data.batch_size", f"{value}: the batch is constant here, the first of them")


def distance(c: Conversion) -> None:
    """Lengths are in units of the scene's radius: the scene is the cube [-1, 1]."""
    radius = c.number(E + "radius", 1.0)
    c.options["cameras.distance"] = [each / radius for each in c.get("data.camera_distance_range")]
    c.options["scene.blob_radius"] = c.number(E + "density_blob_std", 0.5) / radius
    if "data.default_camera_distance" in c.values:
        c.options["reference.distance"] = c.number("data.default_camera_distance", 1.0) / radius
    if radius != 1:
        c.say(E + "radius", f"lengths are divided by {radius:g}; densities, per length, are not converted")


def grid(c: Conversion) -> None:
    name = E + "pos_encoding_config."
    levels, scale = (
        int(c.number(name + "n_levels", 16)),
        c.number(name + "per_level_scale", 1.447269237440378),
    )
    c.options["scene.finest_resolution"] = round(
        c.number(name + "base_resolution", 16) * scale ** (levels - 1)
    )
    if name + "start_level" in c.values:
        first = int(c.number(name + "start_level", levels))
        steps = c.number(name + "start_step", 0) + (levels - first) * c.number(name + "update_steps", 0)
        until = round(min(steps / c.iterations, 1), 4)
        c.options["scene.progressive_levels"] = [first, until]
        c.say(
            name + "start_step",
            f"levels are added evenly from the start of the run up to the fraction {until:g}",
        )


def activation(c: Conversion) -> None:
    value = c.get(E + "density_activation")
    known = {"softplus": "softplus", "exp": "exp", "trunc_exp": "exp", "relu": "relu"}
    if value in known:
        c.options["scene.density_activation"] = known[value]
    else:
        c.say(E + "density_activation", f"{value!r} has no counterpart")


def background(c: Conversion) -> None:
    kind, colour = c.get("system.background_type"), c.get("system.background.color", [1, 1, 1])
    if c.get("data.image_path"):
        c.options["scene.background"] = "white"
        if colour != [1, 1, 1] or kind != "solid-color-background":
            c.say("system.background_type", f"{kind}: with a picture, the background is white")
    elif kind == "neural-environment-map-background":
        c.options["scene.background"] = "learned"
    elif kind == "solid-color-background" and len(colour) == 3:
        c.options["scene.background"] = "white" if colour == [1, 1, 1] else list(map(float, colour))
    else:
        c.say("system.background_type", f"{kind} with color {colour} has no counterpart")


def geometry(c: Conversion) -> None:
    if c.get("system.geometry_type") != "implicit-volume":
        c.say(
            "system.geometry_type",
            f"{c.get('system.geometry_type')} has no counterpart; the scene is a hash grid",
        )


def views(c: Conversion) -> None:
    found = [c.get(P + f"{name}_threshold", 45.0) for name in ("front", "back")]
    c.options["views.front_deg"] = found[0]
    if found[0] != found[1]:
        c.say(P + "back_threshold", f"{found[1]}: front and back have one threshold here, {found[0]}")


def words(c: Conversion) -> None:
    prompt = c.get(P + "prompt", "" if c.get("data.image_path") else None)
    if str(prompt or "").startswith("lib:"):
        c.say(P + "prompt", f"{prompt} names a prompt of threestudio's library; write it out")
    if prompt is None:
        c.say(P + "prompt", "the file has none; put it in place of YOUR PROMPT")
    c.options["prompt"] = "YOUR PROMPT" if prompt is None else str(prompt)


def picture(c: Conversion) -> None:
    c.options["image"] = str(c.get("data.image_path"))
    c.options["preset"] = "none"  # whose penalties and rates are not of the file


def both(c: Conversion) -> None:
    """Magic123: a text prior and a novel-view model."""
    weight = {"sd": c.number(L + "lambda_sd", 1.0), "3d": c.number(L + "lambda_3d_sd", 1.0)}
    terms = [
        {"loss": c.options["guidance"], "weight": weight["sd"] / (weight["sd"] or 1), "scale": c.options["guidance.scale"]},
        {"loss": "sds", "prior": "novel_view", "weight": weight["3d"] / (weight["sd"] or 1),
         "scale": c.number("system.guidance_3d.guidance_scale", 3.0)},
    ]  # fmt: skip
    for name in [name for name in c.options if name.startswith("guidance.")]:
        del c.options[name]
    c.options |= {"guidance": "mix", "guidance.terms": terms}
    c.say(
        L + "lambda_3d_sd",
        "relative to lambda_sd, whose weight is 1 here; both terms have the timesteps of system.guidance",
    )
