"""How what surrounds the loss becomes options: the scene, how it is lit, the cameras, the size, and the optimiser."""

from __future__ import annotations

from typing import Any

from distill.from_threestudio.values import LR, Conversion, E

M, B, OPT = "system.material.", "system.background.", "system.optimizer."
#: The material whose pictures are lit by turns.
LIT = "diffuse-with-point-light-material"


def of_normals(c: Conversion) -> bool:
    """Whether the prior is shown normals, and not colours."""
    fantasia = c.values["system_type"] == "fantasia3d-system" and c.get("system.texture") is not True
    return fantasia or c.get("system.stage") == "geometry"


def normals(c: Conversion) -> None:
    """Stages that show the prior normals, black behind them."""
    stage = c.get("system.stage", "coarse")
    if stage not in ("coarse", "geometry"):
        c.say("system.stage", f"{stage}: there are no stages")
    if not of_normals(c):
        return
    c.options |= {"render.shading": "normals", "scene.background": [0.0, 0.0, 0.0]}
    if c.values["system_type"] == "fantasia3d-system":
        c.options["render.latent_until"] = min(c.number("system.latent_steps", 1000) / c.iterations, 1)


def shading(c: Conversion) -> None:
    """Shares of the pictures that are lit, after steps in which none is."""
    kind = c.get("system.material_type")
    if kind not in (LIT, "no-material"):
        c.say("system.material_type", f"{kind}: no counterpart; colours are albedo")
    if kind != LIT or of_normals(c):
        return
    since = int(c.number(M + "ambient_only_steps", 1000))
    lit = c.number(M + "diffuse_prob", 0.75)
    white = lit * c.number(M + "textureless_prob", 0.5)
    shares = {
        "lambertian": lit - white,
        "normals" if c.get(M + "textureless_normal") is True else "textureless": white,
    }
    for name, share in shares.items():
        if share > 0 and since < c.iterations:
            c.options[f"render.turns.{name}"] = after(since, 0.0, share)
    if c.get(M + "soft_shading") is True:
        c.options["render.soft_light"] = True


def after(step: int, before: float, then: float) -> Any:
    """A value that changes at a step."""
    return {"start": before, "end": then, "from_step": step, "to_step": step} if step > 0 else then


def background(c: Conversion) -> None:
    """What is behind the scene."""
    kind, colour = c.get("system.background_type"), c.get(B + "color", [1, 1, 1])
    picture, aug = c.get("data.image_path"), c.get(B + "random_aug") is True
    if of_normals(c):
        return
    if picture:
        c.options["scene.background"] = "white"
        if colour != [1, 1, 1] or kind != "solid-color-background" or aug:
            c.say("system.background_type", f"{kind}: with a picture, the background is white")
    elif kind == "neural-environment-map-background":
        c.options["scene.background"] = "learned"
    elif kind == "solid-color-background" and len(colour) == 3:
        c.options["scene.background"] = "white" if colour == [1, 1, 1] else list(map(float, colour))
    else:
        c.say("system.background_type", f"{kind} with color {colour} has no counterpart")
    if aug and not picture:
        c.options["scene.random_background"] = c.number(B + "random_aug_prob", 0.5)


def grid(c: Conversion) -> None:
    """The hash grid's finest resolution, and when its levels are added."""
    name = E + "pos_encoding_config."
    levels, scale = (
        int(c.number(name + "n_levels", 16)),
        c.number(name + "per_level_scale", 1.447269237440378),
    )
    c.options["scene.finest_resolution"] = round(
        c.number(name + "base_resolution", 16) * scale ** (levels - 1)
    )
    if name + "start_level" not in c.values:
        return
    first, since = int(c.number(name + "start_level", levels)), c.number(name + "start_step", 0)
    until = since + (levels - first) * c.number(name + "update_steps", 0)
    if first >= levels or until <= 0:
        return
    if until > c.iterations:
        c.say(
            name + "update_steps",
            "the run ends before the last level is added, which here is added at its end",
        )
        until, since = c.iterations, min(since, c.iterations - 1)
    end = round(until / c.iterations, 10)
    c.options["scene.progressive_levels"] = [
        first,
        end,
        *([round(since / c.iterations, 10)] if since else []),
    ]
    c.say(
        name + "start_step",
        f"levels are added evenly between steps {since:g} and {until:g}, as fractions of the run",
    )


def activation(c: Conversion) -> None:
    """What makes a density of a number."""
    value = c.get(E + "density_activation")
    known = {"softplus": "softplus", "exp": "exp", "trunc_exp": "exp", "relu": "relu"}
    if value in known:
        c.options["scene.density_activation"] = known[value]
    else:
        c.say(E + "density_activation", f"{value!r} has no counterpart")


def geometry(c: Conversion) -> None:
    """The kind of scene."""
    if c.get("system.geometry_type") != "implicit-volume":
        c.say(
            "system.geometry_type",
            f"{c.get('system.geometry_type')} has no counterpart; the scene is a hash grid",
        )


def cameras(c: Conversion) -> None:
    """Where cameras are: half of the elevations are by area, in code; their range may widen, or begin with front and back."""
    elevation, azimuth = c.get("data.elevation_range"), c.get("data.azimuth_range", [-180, 180])
    until, facing = (
        int(c.number(f"data.{name}", 0)) for name in ("progressive_until", "front_back_only_iters")
    )
    c.options["cameras.by_area"] = 0.5
    if until > 0:
        centre = c.number("data.eval_elevation_deg", 15.0)
        elevation = [widening(c, centre, end, until + 1) for end in elevation]
        azimuth = [widening(c, 0.0, end, until + 1) for end in azimuth]
    c.options["cameras.elevation_deg"] = elevation
    if azimuth != [-180, 180]:
        c.options["cameras.azimuth_deg"] = azimuth
    if facing > 0:
        c.options["cameras.front_back"] = 1.0 if facing >= c.iterations else after(facing, 1.0, 0.0)


def widening(c: Conversion, start: float, end: float, until: int) -> Any:
    """From one number to another over some steps, of which the run may have fewer."""
    if start == end:
        return end
    share = min(c.iterations / until, 1.0)
    return {"start": start, "end": start + (end - start) * share, "to_step": min(until, c.iterations)}


def size(c: Conversion) -> None:
    """Pixels, and when they become more."""
    heights, milestones = c.get("data.height"), c.get("data.resolution_milestones") or []
    widths = c.get("data.width", heights)
    if heights != widths:
        c.say("data.width", f"{widths}: pictures are square here, {heights} pixels high")
    if not isinstance(heights, list):
        c.options["render.size"] = heights
    elif len(set(heights)) == 1 or not milestones or milestones[0] >= c.iterations:
        c.options["render.size"] = heights[0]
    else:
        ends = {"from_step": milestones[0], "to_step": min(milestones[-1], c.iterations)}
        c.options["render.size"] = {"start": heights[0], "end": heights[-1], **ends}
        if len(milestones) > 1:
            c.say("data.resolution_milestones", f"{milestones}: the size changes linearly between them")


def batch(c: Conversion) -> None:
    """Pictures in a step."""
    value = c.get("data.batch_size")
    c.options["render.batch"] = value[0] if isinstance(value, list) else value
    if isinstance(value, list) and len(set(value)) > 1:
        c.say("data.batch_size", f"{value}: the batch is constant here, the first of them")


def optimiser(c: Conversion) -> None:
    """Adam or AdamW, with torch's defaults."""
    name = c.get(OPT + "name", "Adam")
    if name not in ("Adam", "AdamW"):
        c.say(OPT + "name", f"{name}: no counterpart; the optimiser is Adam")
        return
    c.options["optimiser.betas"] = c.get(OPT + "args.betas", [0.9, 0.999])
    c.options["optimiser.eps"] = c.number(OPT + "args.eps", 1e-8)
    decay = c.number(OPT + "args.weight_decay", 0.01 if name == "AdamW" else 0.0)
    if decay and name == "Adam":
        c.say(
            OPT + "args.weight_decay", f"{decay}: no counterpart with Adam; optimiser.weight_decay is AdamW's"
        )
    elif decay:
        c.options["optimiser.weight_decay"] = decay


def rates(c: Conversion) -> None:
    """Learning rates: the hash grid's, the networks', the background's; what ``params`` leaves out is not trained there."""
    networks = [
        LR + f"geometry.{name}.lr"
        for name in ("density_network", "feature_network", "network", "sdf_network")
    ]
    listed = any(key.startswith(LR) for key in c.values)
    general = c.number(OPT + "args.lr", 1e-3)
    whole = c.number(LR + "geometry.lr", general)
    parts = {
        "scene.encoding_lr": c.first(LR + "geometry.encoding.lr"),
        "scene.mlp_lr": c.first(*networks),
    }
    c.options |= {name: whole if value is None else value for name, value in parts.items()}
    if c.get("system.background_type") == "neural-environment-map-background" and not c.get(
        "data.image_path"
    ):
        found = c.first(LR + "background.lr", LR + "background.network.lr")
        if found is None and listed:
            c.say("system.background_type", "not among system.optimizer.params, and so not trained")
        c.options["scene.background_lr"] = found if found is not None else 0.0 if listed else general
    given = {key: c.values[key] for key in networks if key in c.values}
    if len(set(given.values())) > 1:
        c.say(next(iter(given)), "the density and the colour are one network here, with one rate")


def checkpoints(c: Conversion) -> None:
    """How often a run is saved; threestudio saves at the end where this is as long as the run."""
    every = int(c.number("checkpoint.every_n_train_steps", c.iterations))
    if every < c.iterations:
        c.options["log.checkpoint_every"] = every
