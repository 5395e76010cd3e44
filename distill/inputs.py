"""Check a run's inputs and output folder, with the run's own functions and without loading models."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING

import torch
from omegaconf import DictConfig

from distill.conditions import prompts
from distill.conditions.control import DRAWN, read_picture
from distill.conditions.picture import framed, maps_of, model_of
from distill.files.paths import nearest, user_path
from distill.priors import lora
from distill.priors.load import family_of, is_imagedream, loader
from distill.run.assembly.assemble import make_scenes
from distill.run.assembly.initial import check_init
from distill.run.assembly.prior import check_fits, check_prompt, check_student, students_of
from distill.run.checks.image import check_shown
from distill.run.config.overrides import literal
from distill.run.folder.folders import check_place, check_root, unwritable
from distill.run.folder.table import SHOWN
from distill.run.several.generator import amortised, library_of
from distill.run.several.judge import check_judge, judge_of
from distill.run.several.queue import read_prompts, shard_of
from distill.wording import counted

if TYPE_CHECKING:
    from distill.priors.diffusion import DiffusionPrior

#: A name, and what looks: returns what is fine, or raises a ``ValueError`` with the remedy.
Look = tuple[str, Callable[[], str]]


def looks(config: DictConfig, texts: Sequence[str] = ()) -> Iterator[Look]:
    """Yield a check of each user file that a configuration names, and of the output folder.

    Args:
        config: of a run, or of a part of a file of prompts.
        texts: prompts of that part; by default, all of the file are looked at.
    """
    yield "output_dir", partial(writable, config)
    if config.prompts is not None:
        yield "prompts", partial(listed, config, texts)
    elif config.prompt:
        yield "prompt", partial(known, config)
    if judge_of(config) is not None:
        yield "judge", partial(judged, config)
    if config.image:
        yield "image", partial(pictured, config)
        yield "novel_view", partial(lambda: str(model_of(config.novel_view).folder))
    if config.mesh.file:
        yield "mesh", partial(shaped, config)
    for entry in config.prior_options.loras:
        yield "lora", partial(whole_lora, entry)
    if (control := config.prior_options.control) and control not in DRAWN:
        yield "prior_options.control", partial(shown, control)
    if config.views.file:
        yield "views.file", partial(lambda: ", ".join(prompts.own_prompts(config.views)))
    if config.init:
        yield "init", partial(begun, config)
    for path in students_of(config):
        yield "guidance.lora", partial(started, path)


def writable(config: DictConfig) -> str:
    """Check that a run can write its folder, and that nothing else is in it."""
    whole = config.prompts is not None and not amortised(config)
    folder = check_root(config) if whole else check_place(config)
    try:  # a disk may be full, or mounted to be read alone
        with tempfile.TemporaryDirectory(dir=nearest(folder), prefix=".distill-doctor-"):
            pass
    except OSError as error:
        raise unwritable(folder, error.strerror or str(error)) from error
    return str(folder)


def listed(config: DictConfig, texts: Sequence[str] = ()) -> str:
    """Check some prompts of a file, or each of them."""
    if amortised(config):
        return f"{config.prompts}: {counted(len(library_of(config).train), 'prompt')} to learn"
    wanted = texts or shard_of(read_prompts(config), config.shard)
    one, said = config.copy(), list[str]()
    for prompt in wanted:
        one.prompt = literal(prompt)
        said += filter(None, [check_prompt(one)])
    more = [f"and {len(said) - SHOWN} more"] if len(said) > SHOWN else []
    return "; ".join([f"{config.prompts}: {counted(len(wanted), 'prompt')}", *said[:SHOWN], *more])


def known(config: DictConfig) -> str:
    """Check that the prior knows the words of a prompt, or related ones."""
    return check_prompt(config) or str(config.prompt)


def judged(config: DictConfig) -> str:
    """Check that the judge exists and knows the words of a prompt."""
    check_judge(config)
    return str(judge_of(config))


def pictured(config: DictConfig) -> str:
    """Check that the object of a picture can be cut out, and that its maps belong to it."""
    image, frame = framed(config)
    maps_of(config, frame, image.size, size=64)
    return str(config.image)


def shown(control: str) -> str:
    """Check the input picture of a ControlNet."""
    read_picture(user_path(control))
    return control


def begun(config: DictConfig) -> str:
    """Check that a scene can start from an earlier run's."""
    check_init(config)
    make_scenes(config, torch.Generator().manual_seed(config.seed), torch.device("cpu"))
    return str(config.init)


def shaped(config: DictConfig) -> str:
    """Check the mesh that is textured."""
    from distill.meshes.read import read_surface

    surface = read_surface(config.mesh)
    return f"{surface.file}: {counted(len(surface.faces), 'face')} in {counted(len(surface.parts), 'part')}"


def started(path: str) -> str:
    """Check that there is a LoRA to start from."""
    check_student(path)
    return path


def whole_lora(entry: str) -> str:
    """Check that a LoRA file is whole and of a kind that is read."""
    found = lora.parse(entry)
    lora.check(found)
    return str(found.path)


def fitting(config: DictConfig, prior: DiffusionPrior) -> Iterator[Look]:
    """Yield checks of what must fit the prior; ``prior`` has its shapes but no weights."""
    yield "options", partial(options_fit, config, prior)
    for entry in config.prior_options.loras:
        yield "lora", partial(lora_fits, entry, prior)


def options_fit(config: DictConfig, prior: DiffusionPrior) -> str:
    """Check the options that the prior must support."""
    check_fits(config, prior)
    if is_imagedream(prior.source):
        check_shown(config, prior.name)
    return "those of the prior fit it"


def lora_fits(entry: str, prior: DiffusionPrior) -> str:
    """Check that a LoRA file has only layers of this prior's network or of its text encoders."""
    family, index = family_of(prior.source.folder)
    file, part = lora.parse(entry), family.component
    update = lora.read(file, loader(family, index), part, prior.network.config)
    layers = {name for name, _ in prior.network.named_modules()}
    lora.check_layers(update, part, layers)
    return f"{file.path} fits {prior.name}"
