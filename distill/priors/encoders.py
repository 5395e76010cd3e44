"""Loading a prior's text encoders, which are in memory only while prompts are embedded."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file

from distill.files.errors import first_line
from distill.priors import lora
from distill.priors.dtypes import precision
from distill.priors.header import AGAIN
from distill.priors.inversion import Inversion, put_on
from distill.priors.quiet import quiet
from distill.priors.source import UNUSED, Source, variant_of
from distill.priors.whole import load_encoder, named

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline
    from transformers import PreTrainedModel

log = logging.getLogger(__name__)

#: What the names of CLIP's weights start with, but where transformers 5.6 or newer saved them; it reads both.
CLIP_PREFIX = "text_model."


def loader_of(
    source: Source,
    index: dict[str, Any],
    device: torch.device,
    dtype: torch.dtype,
    updates: Sequence[lora.Update] = (),
    inversions: Sequence[Inversion] = (),
    *,
    plain: bool = False,
) -> Callable[[], DiffusionPipeline]:
    """Return what loads a prior's text encoders with their tokenizers.

    Args:
        source: of the prior.
        index: its ``model_index.json``.
        device: where they run, if they fit there.
        dtype: what they compute in.
        updates: LoRA files that are put into their weights.
        inversions: embeddings that they are taught.
        plain: the folder is one of a UNet and a CLIP text encoder that no pipeline of diffusers reads.
    """
    load = _load_plain_text if plain else _load_text
    return partial(_load, load, source, index, device, dtype, updates, inversions)


def _load(
    load: Callable[..., DiffusionPipeline],
    source: Source,
    index: dict[str, Any],
    device: torch.device,
    dtype: torch.dtype,
    updates: Sequence[lora.Update],
    inversions: Sequence[Inversion],
) -> DiffusionPipeline:
    """Load text encoders; whatever a library fails with is one line.

    Raises:
        ValueError: they cannot be loaded, or a LoRA does not fit them.
    """
    try:
        pipeline = load(source, index, device, dtype)
    except Exception as error:  # what diffusers, transformers and tokenizers fail with has no common class
        raise ValueError(
            f"could not load the text encoders of the prior in {source.file or source.folder}: {first_line(error)}"
        ) from error
    for update in updates:
        for part in sorted(update.parts()):
            lora.put_on(getattr(pipeline, part), part, update)
    put_on(pipeline, inversions)
    return pipeline


def _load_plain_text(
    source: Source, index: dict[str, Any], device: torch.device, dtype: torch.dtype
) -> SimpleNamespace:
    from transformers import AutoTokenizer, CLIPTextConfig, CLIPTextModel

    folder = source.folder
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
    source: Source, index: dict[str, Any], device: torch.device, dtype: torch.dtype
) -> DiffusionPipeline:
    """The pipeline with its text encoders alone."""
    import diffusers

    folder = source.folder
    given: dict[str, Any] = {name: None for name in (*UNUSED, "unet", "transformer", "vae") if name in index}
    if "requires_safety_checker" in index:
        given["requires_safety_checker"] = False
    encoders = [part for part in index if part.startswith("text_encoder") and named(index, part)]
    for part in encoders:
        if part not in source.parts:
            given[part] = _encoder(folder, part, index[part][1], dtype)
    kind = getattr(diffusers, index["_class_name"])
    options: dict[str, Any] = {"local_files_only": True, **precision(dtype), **given}
    if source.file and any(part in source.parts for part in encoders):
        pipeline = from_file(kind, source, "text encoders", **options)
        for part in encoders:
            check_filled(getattr(pipeline, part), str(source.file))
    else:
        variants = [variant_of(folder / part) for part in index if part.startswith("text_encoder")]
        options["variant"] = next(filter(None, variants), None)
        pipeline = kind.from_pretrained(folder, use_safetensors=True, **options)
    told = [part for name, part in pipeline.components.items() if name.startswith("text_encoder") and part]
    needed = sum(p.numel() * p.element_size() for encoder in told for p in encoder.parameters())
    if needed > free_bytes(device):
        log.info(
            "the text encoders (%.1f GB) do not fit next to the network; the CPU embeds the prompts",
            needed / 1e9,
        )
        return pipeline
    return pipeline.to(device)


def _encoder(folder: Path, part: str, kind: str, dtype: torch.dtype) -> PreTrainedModel:
    """A text encoder from a folder, with all of its weights."""
    made, missing = load_encoder(folder, part, kind, dtype)
    if hasattr(made, "text_model"):
        _check_names(folder / part)
    if missing:
        raise ValueError(
            f"{folder / part} lacks {len(missing)} of its weights, such as {missing[0]}; {AGAIN}"
        )
    return made


def from_file(kind: Any, source: Source, what: str, **options: Any) -> Any:
    """Load a pipeline or a part of one, a class of diffusers, from a single file; ``what`` it is in words.

    Raises:
        ValueError: the file lacks some of its weights.
    """
    try:
        with quiet():
            return kind.from_single_file(str(source.file), config=str(source.folder), **options)
    except NotImplementedError as error:  # torch's word for weights that were never filled
        raise ValueError(f"{source.file} lacks some of the weights of its {what}; {AGAIN}") from error


def check_filled(module: torch.nn.Module, where: str) -> None:
    """Refuse a network of which a file lacks weights.

    Raises:
        ValueError: as said.
    """
    if missing := [name for name, value in module.named_parameters() if value.is_meta]:
        raise ValueError(f"{where} lacks {len(missing)} of its weights, such as {missing[0]}; {AGAIN}")


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
