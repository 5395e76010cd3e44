"""The prior of a run: what is checked before it is loaded, how it is loaded, and what it cannot follow once it is."""

from __future__ import annotations

import dataclasses

import torch
from omegaconf import DictConfig, OmegaConf

from distill.conditions.control import DRAWN, read_picture
from distill.conditions.picture import framed
from distill.contracts import Prior
from distill.files.paths import user_path
from distill.priors.diffusion import DiffusionPrior
from distill.priors.graphs import check_graphs
from distill.priors.load import is_imagedream, load_prior
from distill.priors.source import find
from distill.run.checks.image import check_shown
from distill.run.checks.texts import TOGETHER
from distill.run.config.known import default_of
from distill.run.config.schema import PriorOptions
from distill.wording import counted


def check_prior(config: DictConfig, device: torch.device) -> None:
    """Check the prior that a configuration names before it is loaded, and choose memory options for ``max_vram``.

    Raises:
        ValueError: it is not there, does not know the prompt, or does not fit the memory.
    """
    check_prompt(config)
    check_graphs(config.prior_options.graphs, device)
    for path in students_of(config):
        check_student(path)
    if not (config.prompt or config.prompts):
        return  # a picture's model is checked with the picture
    if (control := config.prior_options.control) and control not in DRAWN:
        read_picture(user_path(control))
    source = find(config.prior, config.prior_options.config)
    if is_imagedream(source):
        check_shown(config, config.prior)
        if config.image:
            framed(config)
    if config.max_vram:
        from distill.run.assembly.fit import fit

        fit(config, source, device)


def students_of(config: DictConfig) -> list[str]:
    """The LoRAs that losses of a configuration start from: files or folders."""
    losses = [config.guidance, *(config.guidance.get("terms") or ())]
    return [str(path) for loss in losses if (path := loss.get("lora"))]


def check_student(path: str) -> None:
    """Check that there is a LoRA to start from.

    Raises:
        ValueError: there is none.
    """
    if not user_path(path).exists():
        raise ValueError(
            f"guidance.lora must be a file or folder that an earlier run wrote, and {path} is not there"
        )


def shows_picture(config: DictConfig, prior: Prior | None) -> bool:
    """Tell whether a configuration's prior, or a loaded one, is ImageDream, which is shown the picture itself.

    Raises:
        ValueError: it is, and there is no picture, or what places one before a camera.
    """
    if prior is None:
        return bool(config.image and config.prompt) and is_imagedream(
            find(config.prior, config.prior_options.config)
        )
    if not isinstance(prior, DiffusionPrior) or prior.picture is None:
        return False
    check_shown(config, prior.name)
    return True


def check_prompt(config: DictConfig) -> str:
    """Refuse what the embedded prior cannot draw, before anything is loaded.

    Returns:
        What the prompt, the source prompt and those of a mixture's terms are read as, in one line; empty where they are
        unchanged.

    Raises:
        ValueError: the prior does not know what one of them names, or is given cameras, and one of them has words of a view.
    """
    from distill.embedded.prompt import shown, told, understand
    from distill.embedded.vocabulary import of_prior
    from distill.priors.preset import told_cameras

    own_prompts = [term.get("prompt") for term in config.guidance.get("terms") or () if not term.get("prior")]
    given = [
        text for text in (config.prompt, config.source_prompt, config.generator_mix, *own_prompts) if text
    ]
    own = of_prior(config.prior) if given else None
    if own is None:
        return ""
    try:
        meanings = {text: understand(text, own) for text in given}
    except ValueError as error:
        if not config.generator:
            raise
        # Another prior is no remedy here.
        raise ValueError(
            f"{str(error).split('; ')[0]}, with which generator={config.generator} was made; '{own.command}' lists what it knows"
        ) from error
    seen = [text for text, meaning in meanings.items() if meaning.view]
    if seen and config.prior_options.views != 1 and told_cameras(config.prior):
        raise ValueError(
            f"prior={config.prior} draws an object from four sides at once, and the prompt {shown(seen[0])} says from which side it is seen; "
            "leave that out, or add prior_options.views=1"
        )
    return "; ".join(said for text, meaning in meanings.items() if (said := told(text, meaning)))


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


def open_prior(config: DictConfig, device: torch.device) -> DiffusionPrior:
    """Load the prior that a configuration names, with its ``prior_options``.

    Raises:
        ValueError: there is no such prior, or it does not fit the options.
    """
    options = dict(config.prior_options)
    name, _ = options.pop("dtype"), options.pop("control")
    return load_prior(config.prior, device, None if name == "auto" else getattr(torch, name), **options)


def check_fits(config: DictConfig, prior: Prior, processes: int = 1) -> None:
    """Refuse options that a loaded prior cannot follow, on so many processes.

    Raises:
        ValueError: the batch is no multiple of a multi-view prior's views, ``latent_until`` needs four latent channels, or
            a ControlNet and what it is given do not come together.
    """
    if config.render.batch % prior.views:
        raise ValueError(
            f"render.batch must be a multiple of the {prior.views} views that {prior.name} takes together, got "
            f"{config.render.batch}"
        )
    sharing = processes if (config.optimiser.accumulate or 1) == 1 else 1
    if config.render.batch // sharing % prior.views:
        raise ValueError(
            f"render.batch={config.render.batch} on {processes} processes is {counted(config.render.batch // sharing, 'view')} for each, and "
            f"{prior.name} takes {prior.views} together; make it a multiple of {prior.views * processes}"
        )
    if config.render.latent_until and not (prior.latent and prior.shape[0] == 4):
        found = f"{prior.shape[0]}" if prior.latent else "pixels"
        raise ValueError(
            "render.latent_until needs a scene that fills space and a prior whose latent has 4 channels, such as Stable "
            f"Diffusion's, got {found}; leave it out"
        )
    if prior.has_control != bool(config.prior_options.control):
        raise ValueError(TOGETHER)
