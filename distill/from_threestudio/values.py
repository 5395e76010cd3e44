"""How the values of a threestudio configuration become values of options, where they are not the same."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

from distill.from_threestudio.read import Values
from distill.priors.table import MODELS

G, E, P, L = "system.guidance.", "system.geometry.", "system.prompt_processor.", "system.loss."
LR = "system.optimizer.params."

#: Penalties by their weights; those after the third compare with a picture.
PENALTIES = {
    L + "lambda_sparsity": "penalties.sparsity",
    L + "lambda_opaque": "penalties.opaqueness",
    L + "lambda_orient": "penalties.orientation",
    L + "lambda_z_variance": "penalties.z_variance",
    L + "lambda_convex": "penalties.convexity",
    L + "lambda_rgb": "penalties.reference_rgb",
    L + "lambda_mask": "penalties.reference_mask",
}
#: Weights of the loss itself, and of HiFA's distance in pixels.
OWN = tuple(L + name for name in ("lambda_sds", "lambda_vsd", "lambda_sdi", "lambda_asd", "lambda_sd"))
IN_PIXELS = (L + "lambda_sds_img", L + "lambda_sd_img")


class Kind(NamedTuple):
    """What a kind of guidance is here, and its values where a file is silent.

    Attributes:
        loss: here.
        plus_one: whether its scale s is s + 1 here without Perp-Neg.
        scale: by default.
        prior: by default.
        normalised: whether the gradient is divided by its norm by default.
    """

    loss: str
    plus_one: bool = False
    scale: float = 100.0
    prior: str = "sd-2.1-base"
    normalised: bool = False


GUIDANCE = {
    "stable-diffusion-guidance": Kind("sds", plus_one=True, prior="sd-1.5"),
    "deep-floyd-guidance": Kind("sds", plus_one=True, scale=20.0, prior="if-xl"),
    "stable-diffusion-sdi-guidance": Kind("sdi", plus_one=True),
    "stable-diffusion-vsd-guidance": Kind("vsd", scale=7.5),
    "stable-diffusion-unified-guidance": Kind("sds", prior="sd-1.5"),
    "zero123-guidance": Kind("sds", scale=5.0),
    "stable-zero123-guidance": Kind("sds", scale=5.0),
    "zero123-unified-guidance": Kind("sds", scale=5.0),
    # Of extensions: classifier score distillation, and ScaleDreamer.
    "deep-floyd-simple-guidance": Kind("csd", prior="if-xl", normalised=True),
    "stable-diffusion-triple-guidance": Kind("csd", prior="sd-1.5"),
    "stable-diffusion-asynchronous-score-distillation-guidance": Kind("asd", scale=7.5),
}
#: Originals that are gone, and a folder of ScaleDreamer's, by the name that the library has for a copy.
RENAMED = {
    "stabilityai/stable-diffusion-2-1-base": "sd-2.1-base",
    "stabilityai/stable-diffusion-2-1": "sd-2.1",
    "runwayml/stable-diffusion-v1-5": "sd-1.5",
    "pretrained/stable-diffusion-2-1-base": "sd-2.1-base",
}
#: Weights of timesteps.
WEIGHTINGS = {
    "sds": "sigma_squared",
    "dreamfusion": "sigma_squared",
    "uniform": "uniform",
    "fantasia3d": "fantasia3d",
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

    def schedule(self, key: str) -> Any:
        """Return a number, or a schedule in steps for ``[step, value, value, step]``.

        Raises:
            ValueError: the file has neither there.
        """
        value = self.get(key)
        if not isinstance(value, list):
            return self.number(key, 0.0)
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
            return start
        if until > self.iterations:
            end = start + (end - start) * (self.iterations - begin) / (until - begin)
            until = self.iterations
            self.say(key, f"{value}: the run ends before the schedule, so it ends at {end:g}")
        self.say(key, f"{value} is a schedule, from from_step to to_step")
        return {"start": start, "end": end, "from_step": int(begin), "to_step": int(until)}


def guidance(c: Conversion) -> None:
    """The loss, its scale, its weight of timesteps, and what belongs to one loss alone."""
    name = c.values["system.guidance_type"]
    kind, loss = GUIDANCE[name], loss_of(c)
    perp = c.get(P + "use_perp_neg") is True
    more = 1 if kind.plus_one and not perp else 0
    c.options["guidance"] = loss
    if loss != "csd":
        c.options["guidance.scale"] = c.number(G + "guidance_scale", kind.scale) + more
    if more:
        c.say(
            G + "guidance_scale",
            "s + 1: there s is the factor beside the text's prediction, without Perp-Neg",
        )
    if loss in ("sds", "hifa", "asd", "csd"):
        wanted = c.get(G + "weighting_strategy", "sds")
        if wanted in WEIGHTINGS:
            c.options["guidance.weighting"] = WEIGHTINGS[wanted]
        else:
            c.say(G + "weighting_strategy", f"{wanted!r} has no counterpart")
    if loss == "sdi":
        c.options |= {
            "guidance.inversion_scale": c.number(G + "inversion_guidance_scale", -7.5) + more,
            "guidance.inversion_steps": int(c.number(G + "inversion_n_steps", 10)),
            "guidance.eta": c.number(G + "inversion_eta", 0.3),
            "guidance.inversion": "strides",
            "guidance.average": True,
        }
        c.say("system.guidance_type", "its loss is a mean over pixels, and its inversion goes in strides")
    if loss == "vsd":
        copy(c)
    if loss == "csd":
        classifier(c, kind, perp)
    if loss == "asd":
        asynchronous(c, perp)


def copy(c: Conversion) -> None:
    """Variational score distillation: how its LoRA is trained."""
    c.options["guidance.warmup"] = 0
    if LR + "guidance.lr" in c.values:
        c.options["guidance.learning_rate"] = c.number(LR + "guidance.lr", 1e-4)
        c.say(
            LR + "guidance.lr",
            "the LoRA's AdamW has torch's betas and eps, and not those of the scene's optimiser",
        )
    if c.get(G + "pretrained_model_name_or_path_lora"):
        c.say(G + "pretrained_model_name_or_path_lora", "no counterpart: the LoRA is in the prior itself")


def loss_of(c: Conversion) -> str:
    """Return the loss: of the kind of guidance, or HiFA where it has a loss in pixels."""
    name = c.values["system.guidance_type"]
    loss = GUIDANCE[name].loss
    unified = name == "stable-diffusion-unified-guidance"
    if unified and c.get(G + "guidance_type", "sds") in ("sds", "vsd"):
        loss = c.get(G + "guidance_type", "sds")
    if c.get(G + "use_img_loss", unified) is not True or not c.first(*IN_PIXELS):
        return loss
    if loss == "sds":
        return "hifa"
    c.say(G + "use_img_loss", f"no counterpart with {loss}; guidance=hifa is SDS with the pixels' loss")
    return loss


def classifier(c: Conversion, kind: Kind, perp: bool) -> None:
    """Classifier score distillation: the factors of its predictions."""
    factors = {
        "positive": ("cond", 1.0),
        "negative": ("uncond", 0.0),
        "empty": ("null", -1.0),
        "random": ("noise", 0.0),
    }
    for name, (theirs, default) in factors.items():
        key = G + f"{theirs}_scale"
        value = c.schedule(key) if key in c.values else default
        if value or name != "random":
            c.options[f"guidance.{name}"] = value
    if c.get(G + "grad_normalize", kind.normalised) is True:
        c.options["guidance.normalise"] = True
    if perp:
        c.options["perp_neg.strength"] = c.number(G + "perpneg_scale", 0.0)


def asynchronous(c: Conversion, perp: bool) -> None:
    """Asynchronous score distillation: its shift of the timestep, and how strong its Perp-Neg is."""
    c.options |= {
        "guidance.eta": c.number(G + "plus_ratio", 0.1),
        "guidance.random_shift": c.get(G + "plus_random", False),
    }
    if perp:
        c.options["perp_neg.strength"] = abs(c.number(G + "guidance_perp_neg", 0.0))


def timesteps(c: Conversion) -> None:
    low, high = c.schedule(G + "min_step_percent"), c.schedule(G + "max_step_percent")
    inverted = loss_of(c) == "sdi"
    falls = c.get(G + "t_anneal", inverted) is True or c.get(G + "sqrt_anneal") is True
    over = c.number(G + "trainer_max_steps", 10_000 if inverted else 25_000)
    if falls and over != c.iterations:
        c.say(G + "trainer_max_steps", f"timesteps fall within {over:g} steps there, and within the run here")
    if c.get(G + "t_anneal", inverted) is True and not isinstance(low, dict) and not isinstance(high, dict):
        c.options |= {
            "timesteps": "annealed", "timesteps.t_min": high, "timesteps.t_min_end": low,
            "timesteps.t_max": high, "timesteps.t_max_end": low,
        }  # fmt: skip
        return
    c.options["timesteps"] = "square_root" if c.get(G + "sqrt_anneal") is True else "uniform"
    c.options |= {"timesteps.t_min": low, "timesteps.t_max": high}


def prior(c: Conversion) -> None:
    kind = c.values["system.guidance_type"]
    if "zero123" in kind:
        c.say(
            G + "pretrained_model_name_or_path",
            "the model of novel views is novel_view=FOLDER, in the layout of diffusers; without it, the bundled one",
        )
        return
    said = str(c.get(G + "pretrained_model_name_or_path", GUIDANCE[kind].prior))
    names = {model.repository.partition("@")[0]: name for name, model in MODELS.items()} | RENAMED
    c.options["prior"] = names.get(said, said)
    if kind.startswith("stable-diffusion"):
        c.options["prior_options.vae_sample"] = True
    if c.get(G + "half_precision_weights") is False:
        c.options["prior_options.dtype"] = "float32"


def penalties(c: Conversion) -> None:
    """Weights of the loss and of the penalties; the one that a scene's defaults may have on is said to be off as well."""
    own = next((key for key in OWN if c.get(key)), None)
    weight = 1.0 if own is None else c.schedule(own)
    if weight != 1 and "system.guidance_3d_type" not in c.values:
        c.options["guidance_weight"] = weight
    if c.options["guidance"] == "hifa":
        pixels = next((key for key in IN_PIXELS if c.get(key)), None)
        value = c.schedule(pixels) if pixels else 0.0
        if isinstance(value, dict) or isinstance(weight, dict):
            c.say(
                str(pixels), "guidance.image_weight is relative to the loss's own weight; give it as a number"
            )
        else:
            c.options["guidance.image_weight"] = value / weight
    for key, option in PENALTIES.items():
        if key in c.values and (c.get("data.image_path") or "reference" not in option):
            c.options[option] = c.schedule(key)
    c.options = {
        name: value for name, value in c.options.items() if value != 0 or not name.startswith("penalties.")
    }
    c.options.setdefault("penalties.sparsity", 0)


def views(c: Conversion) -> None:
    found = [c.get(P + f"{name}_threshold", 45.0) for name in ("front", "back")]
    c.options["views.front_deg"] = found[0]
    if found[0] != found[1]:
        c.say(P + "back_threshold", f"{found[1]}: front and back have one threshold here, {found[0]}")
    if c.get(G + "view_dependent_prompting") is False:
        c.options["view_words"] = "none"


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
        {"loss": c.options["guidance"], "weight": weight["sd"], "scale": c.options["guidance.scale"]},
        {"loss": "sds", "prior": "novel_view", "weight": weight["3d"],
         "scale": c.number("system.guidance_3d.guidance_scale", 5.0)},
    ]  # fmt: skip
    for name in [name for name in c.options if name.startswith("guidance.")]:
        del c.options[name]
    c.options |= {"guidance": "mix", "guidance.terms": terms}
    c.say(
        L + "lambda_3d_sd",
        "a weight of guidance.terms; both terms have the timesteps of system.guidance",
    )
