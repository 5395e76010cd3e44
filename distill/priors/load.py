"""Finding a prior's folder and loading it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError

from distill.convert import pickled
from distill.priors import lora
from distill.priors.control import load_controlnet
from distill.priors.diffusion import DiffusionPrior
from distill.priors.dtypes import default_dtype, dtype_of, precision
from distill.priors.encoders import check_filled, from_file, loader_of
from distill.priors.families import FAMILIES, Family, weighted
from distill.priors.families.unet import PLAIN
from distill.priors.graphs import check_graphs, graphs_for
from distill.priors.schedule import read_schedule
from distill.priors.source import Source, find, variant_of
from distill.priors.space import Space, downsampling
from distill.priors.text import TextEncoders, identity_of
from distill.priors.whole import check_whole, settings_of

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, DiffusionPipeline, ModelMixin
    from diffusers.schedulers.scheduling_utils import SchedulerMixin


def family_of(folder: Path) -> tuple[Family, dict[str, Any]]:
    """Return the family of a folder's pipeline, and its index.

    Raises:
        ValueError: the kind is unknown, or parts of it are missing.
    """
    index = settings_of(folder / "model_index.json")
    name = index.get("_class_name", "DiffusionPipeline")
    if not isinstance(name, str) or name not in FAMILIES:
        known = ", ".join(
            known.removesuffix("Pipeline") for known in FAMILIES if known != "DiffusionPipeline"
        )
        raise ValueError(f"the prior in {folder} is a {name}; known kinds are {known}")
    family = FAMILIES[name]
    missing = [
        part for part in (family.component, "scheduler", "tokenizer", "text_encoder") if part not in index
    ]
    if missing:
        raise ValueError(
            f"a prior of this kind needs {family.component}, scheduler, tokenizer and text_encoder, but {folder} lacks "
            f"{', '.join(missing)}"
        )
    return family, index


def load_prior(
    name: str | Path = "embedded",
    device: torch.device | str = "cpu",
    dtype: torch.dtype | str | None = None,
    image_size: int | None = None,
    *,
    checkpointing: bool = False,
    compile: bool = False,
    graphs: bool | None = None,
    loras: Sequence[str | Path] = (),
    controlnet: str | Path | None = None,
    control_scale: float = 1.0,
    prompt_weighting: bool = False,
    vae_sample: bool = False,
    config: str | Path | None = None,
) -> DiffusionPrior:
    """Load a frozen prior.

    Args:
        name: ``embedded``, a local folder in the diffusers layout or a single file, a name that ``distill priors`` lists,
            or ``owner/repository@revision`` on the hub; safetensors only.
        device: where it runs.
        dtype: what its network computes in, or its name; by default what the device is fast at.
        image_size: height and width in pixels that it is shown; by default what it was trained on.
        checkpointing: the VAE computes its activations again on the way back, for less memory and more time.
        compile: compile the network with ``torch.compile``; slow to start.
        graphs: launch each prediction as one CUDA graph, see ``distill.priors.graphs``; None for networks of up to 1e9
            parameters on CUDA that are not compiled.
        loras: safetensors files whose low-rank updates are added to its weights and its text encoders', each
            ``path`` or ``path:weight``.
        controlnet: a ControlNet beside its network, a folder in the diffusers layout or ``owner/repository@revision``
            on the hub; embeddings then need the picture, under ``control``, see ``distill.conditions.control``.
        control_scale: what the ControlNet adds to the network's features is multiplied by this.
        prompt_weighting: prompts may have weights and be of any length, see ``distill.priors.families.weighted``.
        vae_sample: pictures are encoded to a sample of the VAE's distribution, as other libraries do, instead of its mode.

        config: a folder in the diffusers layout with the settings of a prior in a single file; by default those of the
            published model of its kind.

    Raises:
        ValueError: there is no such prior or dtype, its folder is not one this library can use, a LoRA or the ControlNet does
            not fit it, or graphs are asked for on another device than CUDA.
    """
    device = torch.device(device)
    check_graphs(graphs, device)
    files = [lora.parse(entry) for entry in loras]
    dtype = dtype_of(dtype) or default_dtype(device)
    source = find(name, config)
    family, index = family_of(source.folder)
    check_whole(source, family, index)
    weighting = weighting_of(family) if prompt_weighting else []
    network, vae, scheduler = _parts(source, family, index, dtype)
    for module in (network, vae):
        if module is not None:
            module.to(device).eval().requires_grad_(False)
    own = family is PLAIN
    updates = [lora.read(file, _loader(index, own), family.component, network.config) for file in files]
    for update in updates:
        lora.put_on(network, family.component, update)
    told = [update.without(family.component) for update in updates if update.parts() != {family.component}]
    if family.channels_last:
        network.to(memory_format=torch.channels_last)
    control = None
    if controlnet:
        factor = downsampling(vae, network.config.in_channels)
        control = load_controlnet(controlnet, control_scale, family, network, factor, **precision(dtype))
        control.network.to(device)
    if checkpointing and vae is not None:
        checkpoint(vae)
    if compile:
        network.compile()
    space, patches = space_of(vae, network, family, image_size)
    space = replace(space, sampled=vae_sample)
    schedule = read_schedule(scheduler, patches).to(device)
    text_dtype = torch.float32 if own or device.type == "cpu" else dtype
    load = loader_of(source, index, device, text_dtype, told, plain=own)
    changes = [f"{update.lora.sha256} {update.lora.weight} by layer" for update in told]
    # PixArt-alpha and -sigma have one encoder, and pad its states to different lengths.
    kind = str(index.get("_class_name", ""))
    text = TextEncoders(
        load,
        family.weighted if prompt_weighting and family.weighted else family.embed,
        None if own else identity_of(source, kind, str(text_dtype), *changes, *weighting),
        prompt_weighting,
        {} if prompt_weighting else family.lengths,
    )
    recorded = graphs_for(network, device, graphs, compiled=compile)
    return DiffusionPrior(
        network, space, text, family, schedule, device, dtype, source, tuple(files), control, recorded
    )


def weighting_of(family: Family) -> list[str]:
    """Return what weights a family's prompts, with its version: a part of cached embeddings' identity.

    Raises:
        ValueError: the family's prompts cannot be weighted, or compel is not installed.
    """
    found = [f"compel {weighted.version()}"]
    if family.weighted is None:
        known = ", ".join(sorted(kind for kind, each in FAMILIES.items() if each.weighted))
        raise ValueError(
            f"prior_options.prompt_weighting works with {known}, and not with a {family.network} of another kind"
        )
    return found


def _parts(
    source: Source, family: Family, index: dict[str, Any], dtype: torch.dtype
) -> tuple[ModelMixin, AutoencoderKL | None, SchedulerMixin]:
    """Load the network, the VAE if there is one, and the scheduler.

    Raises:
        ValueError: the weights are pickled, or cannot be read.
    """
    folder = source.folder
    try:
        network = _component(source, family.component, family.network, dtype)
        vae = (
            _component(source, "vae", index["vae"][1], _vae_dtype(folder, dtype)) if "vae" in index else None
        )
        return network, vae, read_scheduler(folder, index)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, SafetensorError) as error:
        if old := [] if source.file else pickled(folder):
            raise ValueError(
                f"the prior in {folder} has pickled weights ({old[0].relative_to(folder)}), and only safetensors are read; "
                f"convert them: python -m distill.convert {folder}"
            ) from error
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        layout = "under its authors' names" if source.file else "in the diffusers layout"
        raise ValueError(
            f"could not load the prior in {source.file or folder} (safetensors {layout}): {reason}"
        ) from error


def checkpoint(vae: AutoencoderKL) -> None:
    """Let a VAE compute its activations again on the way back.

    Raises:
        ValueError: its class in diffusers cannot.
    """
    if not vae._supports_gradient_checkpointing:
        raise ValueError(
            f"prior_options.checkpointing: this prior's VAE, {type(vae).__name__}, cannot compute its activations again; "
            "leave it out"
        )
    vae.enable_gradient_checkpointing()


def space_of(
    vae: AutoencoderKL | None, network: ModelMixin, family: Family, image_size: int | None
) -> tuple[Space, int]:
    """The space that a network works in, and the number of patches that it makes of a picture.

    Args:
        vae: of diffusers, or None.
        network: of diffusers.
        image_size: height and width in pixels; None for what the network was trained on.

    Raises:
        ValueError: ``image_size`` does not fit the network.
    """
    factor = downsampling(vae, network.config.in_channels)
    size = image_size or int(network.config.get("sample_size") or 128) * factor
    folded = factor * family.patch
    if size % folded:
        raise ValueError(f"image_size must be a multiple of {folded} for this prior, got {size}")
    return Space.of(vae, network.config.in_channels, size), (size // folded) ** 2


def _component(source: Source, part: str, kind: str, dtype: torch.dtype) -> ModelMixin:
    import diffusers

    made: ModelMixin
    options: dict[str, Any] = {"subfolder": part, "local_files_only": True, **precision(dtype)}
    loads = getattr(diffusers, kind)
    if part in source.parts:
        where = source.file
        made = from_file(loads, source, **options)
    else:
        where = source.folder / part
        made = loads.from_pretrained(
            source.folder, variant=variant_of(where), use_safetensors=True, **options
        )
    check_filled(made, str(where))
    return made


def _vae_dtype(folder: Path, dtype: torch.dtype) -> torch.dtype:
    """Some VAEs overflow in float16, and say so."""
    config = json.loads((folder / "vae" / "config.json").read_text())
    return torch.float32 if dtype == torch.float16 and config.get("force_upcast") else dtype


def read_scheduler(folder: Path, index: dict[str, Any]) -> SchedulerMixin:
    """The scheduler that a folder names."""
    import diffusers

    kind = index["scheduler"]
    return getattr(diffusers, kind[1] if isinstance(kind, list) else kind).from_pretrained(
        folder, subfolder="scheduler", local_files_only=True
    )


def _loader(index: dict[str, Any], plain: bool) -> type[DiffusionPipeline]:
    """The class of diffusers that reads LoRA files for a prior."""
    import diffusers

    return getattr(diffusers, "StableDiffusionPipeline" if plain else index["_class_name"])
