"""Finding a prior's folder and loading it."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file

from distill.convert import pickled
from distill.priors.diffusion import DiffusionPrior
from distill.priors.families import FAMILIES, Family
from distill.priors.families.unet import PLAIN
from distill.priors.schedule import read_schedule
from distill.priors.source import UNUSED, find, variant_of
from distill.priors.text import TextEncoders, identity_of

#: What the names of CLIP's weights start with, but where transformers 5.6 or newer saved them; it reads both.
CLIP_PREFIX = "text_model."


def default_dtype(device: torch.device) -> torch.dtype:
    """Half precision where the hardware computes in it, float32 elsewhere."""
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    if device.type == "cpu" and torch.cpu._is_avx512_bf16_supported():
        return torch.bfloat16
    return torch.float32


def precision(dtype: torch.dtype) -> dict[str, Any]:
    """What ``from_pretrained`` of diffusers wants to be told; it was renamed in version 0.40."""
    from importlib.metadata import version

    major, minor = (int(part) for part in version("diffusers").split(".")[:2])
    return {"dtype" if (major, minor) >= (0, 40) else "torch_dtype": dtype}


def family_of(folder: Path) -> tuple[Family, dict[str, Any]]:
    """What kind of pipeline a folder holds, and its index.

    Raises:
        ValueError: the kind is unknown, or parts of it are missing.
    """
    index = json.loads((folder / "model_index.json").read_text())
    name = index.get("_class_name", "DiffusionPipeline")
    if name not in FAMILIES:
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
    dtype: torch.dtype | None = None,
    image_size: int | None = None,
    *,
    checkpointing: bool = False,
    compile: bool = False,
) -> DiffusionPrior:
    """Load a frozen prior.

    Args:
        name: ``embedded``, a local folder in the diffusers layout, a name that ``distill priors`` lists, or
            ``owner/repository@revision`` on the hub; safetensors only.
        device: where it runs.
        dtype: what its network computes in; by default what the device is fast at.
        image_size: height and width in pixels that it is shown; by default what it was trained on.
        checkpointing: the VAE computes its activations again on the way back, for less memory and more time.
        compile: compile the network with ``torch.compile``; slow to start.

    Raises:
        ValueError: there is no such prior, or its folder is not one this library can use.
    """
    device = torch.device(device)
    dtype = dtype or default_dtype(device)
    source = find(name)
    folder = source.folder
    family, index = family_of(folder)
    try:
        network = _component(folder, family.component, family.network, dtype)
        vae = (
            _component(folder, "vae", index["vae"][1], _vae_dtype(folder, dtype)) if "vae" in index else None
        )
        scheduler = read_scheduler(folder, index)
    except (OSError, ValueError) as error:
        if old := pickled(folder):
            raise ValueError(
                f"the prior in {folder} has pickled weights ({old[0].relative_to(folder)}), and only safetensors are read; "
                f"convert them: python -m distill.convert {folder}"
            ) from error
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"could not load the prior in {folder} (safetensors in the diffusers layout): {reason}"
        ) from error
    for module in (network, vae):
        if module is not None:
            module.to(device).eval().requires_grad_(False)
    if family.component == "unet":
        network.to(memory_format=torch.channels_last)
    if checkpointing and vae is not None:
        vae.enable_gradient_checkpointing()
    if compile:
        network.compile()
    size, patches = image_size_of(vae, network, image_size)
    schedule = read_schedule(scheduler, patches).to(device)
    own = family is PLAIN
    text_dtype = torch.float32 if own or device.type == "cpu" else dtype
    text = TextEncoders(
        partial(_load_plain_text if own else _load_text, folder, index, device, text_dtype),
        family.embed,
        None if own else identity_of(folder, str(text_dtype)),
    )
    return DiffusionPrior(network, vae, text, family, schedule, size, device, dtype, source)


def image_size_of(vae: Any, network: Any, wanted: int | None) -> tuple[int, int]:
    """Side of the pictures that a prior is shown, pixels, and how many patches its network makes of one.

    Raises:
        ValueError: the side that is wanted does not fit.
    """
    scale = shrink(vae, network)
    size = wanted or int(network.config.get("sample_size") or 128) * scale
    folded = scale if "UNet" in type(network).__name__ else 2 * scale
    if size % folded:
        raise ValueError(f"image_size must be a multiple of {folded} for this prior, got {size}")
    return size, (size // folded) ** 2


def shrink(vae: Any, network: Any) -> int:
    """How many pixels along each side one place of the network's input stands for."""
    if vae is None:
        return int((network.config.in_channels // 3) ** 0.5)
    widths = vae.config.get("block_out_channels") or vae.config.encoder_block_out_channels
    return int(2 ** (len(widths) - 1))


def _component(folder: Path, part: str, kind: str, dtype: torch.dtype) -> Any:
    import diffusers

    return getattr(diffusers, kind).from_pretrained(
        folder,
        subfolder=part,
        variant=variant_of(folder / part),
        use_safetensors=True,
        local_files_only=True,
        **precision(dtype),
    )


def _vae_dtype(folder: Path, dtype: torch.dtype) -> torch.dtype:
    """Some VAEs overflow in float16, and say so."""
    config = json.loads((folder / "vae" / "config.json").read_text())
    return torch.float32 if dtype == torch.float16 and config.get("force_upcast") else dtype


def read_scheduler(folder: Path, index: dict[str, Any]) -> Any:
    """The scheduler that a folder names."""
    import diffusers

    kind = index["scheduler"]
    return getattr(diffusers, kind[1] if isinstance(kind, list) else kind).from_pretrained(
        folder, subfolder="scheduler", local_files_only=True
    )


def _load_plain_text(folder: Path, index: dict[str, Any], device: torch.device, dtype: torch.dtype) -> Any:
    from transformers import AutoTokenizer, CLIPTextConfig, CLIPTextModel

    with torch.random.fork_rng(devices=[]):  # it draws weights first
        encoder: Any = CLIPTextModel(CLIPTextConfig.from_pretrained(folder, subfolder="text_encoder"))
    weights = load_file(folder / "text_encoder" / "model.safetensors")
    own = CLIP_PREFIX if hasattr(encoder, "text_model") else ""
    encoder.load_state_dict({own + name.removeprefix(CLIP_PREFIX): w for name, w in weights.items()})
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
    encoder.to(device, dtype).eval().requires_grad_(False)
    return SimpleNamespace(text_encoder=encoder, tokenizer=tokenizer)


def _load_text(folder: Path, index: dict[str, Any], device: torch.device, dtype: torch.dtype) -> Any:
    """The pipeline with its text encoders alone."""
    import diffusers

    without: dict[str, Any] = {
        name: None for name in (*UNUSED, "unet", "transformer", "vae") if name in index
    }
    if "requires_safety_checker" in index:
        without["requires_safety_checker"] = False
    encoders = [variant_of(folder / part) for part in index if part.startswith("text_encoder")]
    without["variant"] = next(filter(None, encoders), None)
    pipeline = getattr(diffusers, index["_class_name"]).from_pretrained(
        folder, use_safetensors=True, local_files_only=True, **precision(dtype), **without
    )
    for part in index:
        if part.startswith("text_encoder") and hasattr(getattr(pipeline, part), "text_model"):
            _check_names(folder / part)
    return pipeline.to(device)


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
