"""Finding a prior's folder and loading it."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from distill.convert import pickled
from distill.priors import lora
from distill.priors.control import load_controlnet
from distill.priors.diffusion import DiffusionPrior
from distill.priors.families import FAMILIES, Family, weighted
from distill.priors.families.unet import PLAIN
from distill.priors.graphs import check_graphs, graphs_for
from distill.priors.schedule import read_schedule
from distill.priors.source import UNUSED, find, variant_of
from distill.priors.space import Space, downsampling
from distill.priors.text import TextEncoders, identity_of
from distill.priors.whole import AGAIN, check_whole, load_encoder, named, settings_of

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, DiffusionPipeline, ModelMixin
    from diffusers.schedulers.scheduling_utils import SchedulerMixin

log = logging.getLogger(__name__)

#: What the names of CLIP's weights start with, but where transformers 5.6 or newer saved them; it reads both.
CLIP_PREFIX = "text_model."


def default_dtype(device: torch.device) -> torch.dtype:
    """Half precision where the hardware computes in it, float32 elsewhere."""
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    if device.type == "cpu" and torch.cpu._is_avx512_bf16_supported():
        return torch.bfloat16
    return torch.float32


def dtype_of(dtype: torch.dtype | str | None) -> torch.dtype | None:
    """A precision by its name.

    Raises:
        ValueError: it is none that a network computes in.
    """
    names = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if not isinstance(dtype, str):
        return dtype
    if dtype not in names:
        raise ValueError(f"dtype must be one of {', '.join(names)}, got {dtype!r}")
    return names[dtype]


def precision(dtype: torch.dtype) -> dict[str, Any]:
    """Return the precision argument of diffusers' ``from_pretrained``, which was renamed in version 0.40."""
    from importlib.metadata import version

    major, minor = (int(part) for part in version("diffusers").split(".")[:2])
    return {"dtype" if (major, minor) >= (0, 40) else "torch_dtype": dtype}


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
) -> DiffusionPrior:
    """Load a frozen prior.

    Args:
        name: ``embedded``, a local folder in the diffusers layout, a name that ``distill priors`` lists, or
            ``owner/repository@revision`` on the hub; safetensors only.
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

    Raises:
        ValueError: there is no such prior or dtype, its folder is not one this library can use, a LoRA or the ControlNet does
            not fit it, or graphs are asked for on another device than CUDA.
    """
    device = torch.device(device)
    check_graphs(graphs, device)
    files = [lora.parse(entry) for entry in loras]
    dtype = dtype_of(dtype) or default_dtype(device)
    source = find(name)
    folder = source.folder
    family, index = family_of(folder)
    check_whole(folder, family, index)
    weighting = weighting_of(family) if prompt_weighting else []
    network, vae, scheduler = _parts(folder, family, index, dtype)
    for module in (network, vae):
        if module is not None:
            module.to(device).eval().requires_grad_(False)
    own = family is PLAIN
    updates = [lora.read(file, loader(family, index), family.component, network.config) for file in files]
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
    load = partial(_told, _load_plain_text if own else _load_text, folder, index, device, text_dtype)
    changes = [f"{update.lora.sha256} {update.lora.weight} by layer" for update in told]
    # PixArt-alpha and -sigma have one encoder, and pad its states to different lengths.
    kind = str(index.get("_class_name", ""))
    text = TextEncoders(
        partial(_updated, load, told),
        family.weighted if prompt_weighting and family.weighted else family.embed,
        None if own else identity_of(folder, kind, str(text_dtype), *changes, *weighting),
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
    folder: Path, family: Family, index: dict[str, Any], dtype: torch.dtype
) -> tuple[ModelMixin, AutoencoderKL | None, SchedulerMixin]:
    """Load the network, the VAE if there is one, and the scheduler.

    Raises:
        ValueError: the folder has pickled weights, or cannot be read.
    """
    try:
        network = _component(folder, family.component, family.network, dtype)
        vae = (
            _component(folder, "vae", index["vae"][1], _vae_dtype(folder, dtype)) if "vae" in index else None
        )
        return network, vae, read_scheduler(folder, index)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, SafetensorError) as error:
        if old := pickled(folder):
            raise ValueError(
                f"the prior in {folder} has pickled weights ({old[0].relative_to(folder)}), and only safetensors are read; "
                f"convert them: python -m distill.convert {folder}"
            ) from error
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"could not load the prior in {folder} (safetensors in the diffusers layout): {reason}"
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


def _component(folder: Path, part: str, kind: str, dtype: torch.dtype) -> ModelMixin:
    import diffusers

    made: ModelMixin = getattr(diffusers, kind).from_pretrained(
        folder,
        subfolder=part,
        variant=variant_of(folder / part),
        use_safetensors=True,
        local_files_only=True,
        **precision(dtype),
    )
    if missing := [name for name, value in made.named_parameters() if value.is_meta]:
        raise ValueError(
            f"{folder / part} lacks {len(missing)} of its weights, such as {missing[0]}; {AGAIN}"
        )
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


def loader(family: Family, index: dict[str, Any]) -> type[DiffusionPipeline]:
    """The class of diffusers that reads LoRA files for a prior."""
    import diffusers

    return getattr(diffusers, "StableDiffusionPipeline" if family is PLAIN else index["_class_name"])


def _updated(load: Callable[[], DiffusionPipeline], updates: Sequence[lora.Update]) -> DiffusionPipeline:
    """Text encoders with LoRA files in their weights."""
    pipeline = load()
    for update in updates:
        for part in sorted(update.parts()):
            lora.put_on(getattr(pipeline, part), part, update)
    return pipeline


def _told(load: Callable[..., DiffusionPipeline], folder: Path, *options: Any) -> DiffusionPipeline:
    """Load text encoders; whatever a library fails with is one line.

    Raises:
        ValueError: they cannot be loaded.
    """
    try:
        return load(folder, *options)
    except Exception as error:  # what diffusers, transformers and tokenizers fail with has no common class
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"could not load the text encoders of the prior in {folder}: {reason}") from error


def _load_plain_text(
    folder: Path, index: dict[str, Any], device: torch.device, dtype: torch.dtype
) -> SimpleNamespace:
    from transformers import AutoTokenizer, CLIPTextConfig, CLIPTextModel

    with torch.random.fork_rng(devices=[]):  # it draws weights first
        encoder: CLIPTextModel = CLIPTextModel(
            CLIPTextConfig.from_pretrained(folder, subfolder="text_encoder")
        )
    weights = load_file(folder / "text_encoder" / "model.safetensors")
    own = CLIP_PREFIX if hasattr(encoder, "text_model") else ""
    encoder.load_state_dict({own + name.removeprefix(CLIP_PREFIX): w for name, w in weights.items()})
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
    encoder.to(device, dtype).eval().requires_grad_(False)
    return SimpleNamespace(text_encoder=encoder, tokenizer=tokenizer)


def _load_text(
    folder: Path, index: dict[str, Any], device: torch.device, dtype: torch.dtype
) -> DiffusionPipeline:
    """The pipeline with its text encoders alone."""
    import diffusers

    without: dict[str, Any] = {
        name: None for name in (*UNUSED, "unet", "transformer", "vae") if name in index
    }
    if "requires_safety_checker" in index:
        without["requires_safety_checker"] = False
    variants = [variant_of(folder / part) for part in index if part.startswith("text_encoder")]
    without["variant"] = next(filter(None, variants), None)
    for part in [part for part in index if part.startswith("text_encoder") and named(index, part)]:
        without[part], missing = load_encoder(folder, part, index[part][1], dtype)
        if hasattr(without[part], "text_model"):
            _check_names(folder / part)
        if missing:
            raise ValueError(
                f"{folder / part} lacks {len(missing)} of its weights, such as {missing[0]}; {AGAIN}"
            )
    pipeline = getattr(diffusers, index["_class_name"]).from_pretrained(
        folder, use_safetensors=True, local_files_only=True, **precision(dtype), **without
    )
    told = [part for name, part in pipeline.components.items() if name.startswith("text_encoder") and part]
    needed = sum(p.numel() * p.element_size() for encoder in told for p in encoder.parameters())
    if needed > free_bytes(device):
        log.info(
            "the text encoders (%.1f GB) do not fit beside the network; the CPU embeds the prompts",
            needed / 1e9,
        )
        return pipeline
    return pipeline.to(device)


def free_bytes(device: torch.device) -> float:
    """Memory that can still be had on a device; on the CPU, where the system lends more, without end."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else float("inf")


def _check_names(folder: Path) -> None:
    """Refuse weights without the prefix that this encoder's have: transformers would draw random ones instead."""
    from transformers import __version__

    names: list[str] = []
    for file in folder.glob("*.safetensors"):
        with safe_open(file, "pt") as opened:
            names += opened.keys()
    if not any(name.startswith(CLIP_PREFIX) for name in names):
        raise ValueError(
            f"the weights in {folder} were saved by transformers 5.6 or newer, and transformers {__version__} cannot read "
            "them; upgrade it: pip install --upgrade transformers"
        )
