"""A judge of finished scenes: how well their pictures agree with the prompt, to choose among seeds and to sort a table."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor
from torch.nn.functional import interpolate, normalize

from distill.cameras import turntable
from distill.contracts import View
from distill.embedded import captions
from distill.embedded.judge import SHIPPED, load_judge
from distill.embedded.prompt import understand
from distill.embedded.vocabulary import of_prior
from distill.files.paths import user_path

#: Pictures of an asset that a judge looks at, their elevation in degrees, and their size in pixels.
VIEWS, ELEVATION_DEG, SIZE = 8, 15.0, 128
#: Maps pictures in [0, 1], ``[batch, 3, height, width]``, and texts to cosines, ``[batch, texts]``.
Similarity = Callable[[Tensor, Sequence[str]], Tensor]


def judge_of(config: DictConfig) -> str | None:
    """The judge that a run asks: ``embedded`` or ``things``, a folder, or None where it asks none."""
    if config.judge is None and config.keep == "best":
        own = of_prior(config.prior)
        return "things" if own is not None and own.things else "embedded"
    return None if config.judge is None else str(config.judge)


def check_judge(config: DictConfig) -> None:
    """Refuse a judge that is not there or that does not know the prompt, before anything is loaded.

    Raises:
        ValueError: says why, in one line.
    """
    name = judge_of(config)
    if name is None:
        return
    if name not in SHIPPED:
        check_folder(user_path(name))
    elif of_prior(config.prior) is None:
        raise ValueError(
            f"the bundled judges know the embedded world and its things alone, and prior={config.prior} is of neither; add "
            "judge=FOLDER of a CLIP in the layout of transformers, or leave out keep=best"
        )
    elif config.prompt and (
        strange := [word for word in captions.words(caption_of(config)) if word not in _words(name)]
    ):
        raise ValueError(
            f"judge={name} does not know {strange[0]!r} of the prompt {config.prompt!r}; add judge=FOLDER of a CLIP in the "
            "layout of transformers, or leave out keep=best and judge="
        )


def check_folder(folder: Path) -> None:
    """Check that a folder holds a CLIP with safetensors.

    Raises:
        ValueError: it does not.
    """
    try:
        kind = json.loads((folder / "config.json").read_text("utf-8")).get("model_type")
    except (OSError, ValueError, AttributeError):
        kind = None
    if kind != "clip":
        raise ValueError(
            f"judge must be embedded, things or a folder with a CLIP in the layout of transformers (config.json with model_type clip), got {folder}"
        )
    for name in ("model.safetensors", "tokenizer_config.json", "preprocessor_config.json"):
        if not ((folder / name).is_file() or (folder / f"{name}.index.json").is_file()):
            raise ValueError(
                f"judge={folder} has no {name}; copy the whole folder of the model, with safetensors"
            )


def scored(config: DictConfig, view: View) -> dict[str, Any]:
    """What a manifest says of a scene: the judge, and the mean cosine of its pictures with the prompt; nothing without a judge.

    Args:
        config: of the run.
        view: renders the scene; the judge computes where its pictures are.
    """
    name = judge_of(config)
    if name is None:
        return {}
    seen = [view(turntable(VIEWS, ELEVATION_DEG).part(i, i + 1), SIZE, SIZE).rgb for i in range(VIEWS)]
    pictures = torch.cat(seen).detach().float().movedim(-1, 1)
    text = caption_of(config) if name in SHIPPED else config.prompt
    found = open_judge(name, pictures.device)(pictures, [text])
    return {"judge": name, "score": round(found.mean().item(), 4)}


def caption_of(config: DictConfig) -> str:
    """The plainest caption that says what the prompt means to the embedded prior."""
    own = of_prior(config.prior)
    if own is None:
        return str(config.prompt)
    meaning = understand(config.prompt, own)
    # The judge was trained on the first of a thing's two names.
    return captions.write(own.first.get(meaning.name, meaning.name), meaning.colour)


@lru_cache(maxsize=2)
def _words(name: str) -> frozenset[str]:
    """The words that a bundled judge was trained on."""
    return frozenset(json.loads((SHIPPED[name] / "config.json").read_text("utf-8"))["vocabulary"])


@lru_cache(maxsize=1)
def open_judge(name: str, device: torch.device) -> Similarity:
    """Load a judge once for all runs of a process.

    Args:
        name: ``embedded``, ``things``, or a folder with a CLIP in the layout of transformers.
        device: where it computes.

    Returns:
        Cosines of pictures with texts.

    Raises:
        ValueError: the folder holds no CLIP.
    """
    if name in SHIPPED:
        return load_judge(device, SHIPPED[name]).similarity
    return clip(user_path(name), device)


def clip(folder: Path, device: torch.device) -> Similarity:
    """Load a CLIP from a local folder; nothing is downloaded and no pickle is read.

    Pictures are resized to its input, bicubic and antialiased, and shifted and scaled by the mean and the standard deviation
    that its folder gives; texts are cut to its length.

    Raises:
        ValueError: the folder holds no CLIP.

    Source: Radford et al. 2021, arXiv:2103.00020.
    """
    from transformers import AutoTokenizer, CLIPModel

    check_folder(folder)
    try:
        model = CLIPModel.from_pretrained(folder, local_files_only=True, use_safetensors=True)
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        said = json.loads((folder / "preprocessor_config.json").read_text("utf-8"))
        mean, std = (
            torch.tensor(said[name], device=device).view(1, 3, 1, 1) for name in ("image_mean", "image_std")
        )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise ValueError(f"judge={folder} cannot be read: {' '.join(str(error).split())[:300]}") from error
    model = model.eval().requires_grad_(False).to(device)
    size = int(model.config.vision_config.image_size)
    length = int(model.config.text_config.max_position_embeddings)

    @torch.no_grad()
    def similarity(pictures: Tensor, texts: Sequence[str]) -> Tensor:
        resized = interpolate(
            pictures.to(device), (size, size), mode="bicubic", antialias=True, align_corners=False
        )
        tokens = tokenizer(list(texts), padding=True, truncation=True, max_length=length, return_tensors="pt")
        found = model(
            input_ids=tokens["input_ids"].to(device),
            attention_mask=tokens["attention_mask"].to(device),
            pixel_values=(resized.clamp(0, 1) - mean) / std,
        )
        return normalize(found.image_embeds, dim=-1) @ normalize(found.text_embeds, dim=-1).T

    return similarity
