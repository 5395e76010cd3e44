"""What is refused before anything is loaded."""

from __future__ import annotations

import re

from omegaconf import DictConfig, OmegaConf

from distill.options import SCHEDULED, schedule, schedules_in

#: What a prior may compute in.
DTYPES = ("auto", "float32", "bfloat16", "float16")


def check(config: DictConfig) -> None:
    """Check values that types cannot.

    Raises:
        ValueError: a value is out of range.
    """
    positive = (
        "iterations", "particles", "render.batch", "render.at_once", "render.chunk_rays", "export.resolution",
        "export.faces",
    )  # fmt: skip
    for name in positive:
        value = OmegaConf.select(config, name)
        if value is not None and value <= 0:
            raise ValueError(f"{name} must be at least 1, got {value}; leave it out for the default")
    if not 0 <= config.render.latent_until <= 1:
        raise ValueError(
            f"render.latent_until is a fraction of the run, in [0, 1], got {config.render.latent_until:g}"
        )
    if config.max_vram is not None:
        bytes_of(config.max_vram)
    for group in SCHEDULED:
        schedules_in(config, group)
    for name in config.penalties:
        schedule(f"penalties.{name}", config.penalties[name], config.iterations)
    size = schedule("render.size", config.render.size, config.iterations)
    for end in (size,) if isinstance(size, (int, float)) else (size.start, size(1.0)):
        if end < 8:
            raise ValueError(
                f"render.size must be at least 8 pixels, got {end:g}; leave it out for the default"
            )
    if config.prior_options.dtype not in DTYPES:
        raise ValueError(
            f"prior_options.dtype must be one of {', '.join(DTYPES)}, got {config.prior_options.dtype!r}"
        )
    if config.prior_options.controlnet and not config.prior_options.control:
        raise ValueError(
            "prior_options.controlnet needs prior_options.control: depth, normal or mask of the scene, or a picture"
        )
    for name in ("front_deg", "overhead_deg"):
        if not 0 < config.views[name] <= 90:
            raise ValueError(
                f"views.{name} must be above 0 and at most 90 degrees, got {config.views[name]:g}"
            )
    if config.prompt and config.prompts:
        raise ValueError("give a prompt or prompts=FILE, not both")
    if not config.prompt.strip() and config.prompts is None and not config.image:
        raise ValueError(
            'the prompt is empty; say what to make, for example: distill "a red mug", or give a picture: image=FILE'
        )
    if config.image:
        check_image(config)
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", config.device):
        raise ValueError(f"device must be auto, cpu, cuda, cuda:N or mps, got {config.device!r}")


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


def check_image(config: DictConfig) -> None:
    """Check what a picture does not go with.

    Raises:
        ValueError: an option is out of range, or cannot be used with a picture.
    """
    said = config.reference
    if config.prompts is not None or config.particles > 1:
        raise ValueError("image= makes one asset; leave out prompts= and particles=")
    if config.max_vram is not None and not config.prompt.strip():
        raise ValueError(
            "max_vram= forecasts priors of text, not novel-view models; leave it out, and choose render.at_once= and "
            "render.recompute="
        )
    if config.scene._target_.endswith("ImageScene"):
        raise ValueError("image= shapes a scene that fills space; leave out scene=image")
    if config.scene.get("background", "white") != "white":
        raise ValueError(
            f"image= shows its object over white, so scene.background must be white, got {config.scene.background}"
        )
    for name, low, high in (
        ("elevation_deg", -89, 89),
        ("distance", 1, 100),
        ("fov_y_deg", 1, 150),
        ("fill", 0.1, 1),
    ):
        value = said[name]
        if value is not None and not low <= value <= high:
            raise ValueError(f"reference.{name} must lie in [{low}, {high}], got {value}")
    if not config.prompt.strip() and config.guidance._target_.rpartition(".")[2] in ("mix", "vsd", "VSD"):
        raise ValueError("this guidance mixes a picture with text; add a prompt")


def check_prompt(config: DictConfig) -> None:
    """Refuse what the embedded prior cannot draw, before anything is loaded."""
    if config.prior == "embedded" and config.prompt:
        from distill.embedded import world

        world.parse(config.prompt)
