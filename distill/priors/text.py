"""Prompts' embeddings: computed once, kept on disk, the text encoders loaded only where one is missing."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from distill.checkpoint import write_atomic
from distill.contracts import Embedding


def cache_folder() -> Path:
    """Where embeddings are kept: ``$DISTILL_CACHE``, or ``~/.cache/distill``."""
    return Path(os.environ.get("DISTILL_CACHE") or "~/.cache/distill").expanduser()


@dataclass
class TextEncoders:
    """A model's text encoders, in memory only while they are at work.

    Attributes:
        load: makes the pipeline that has them.
        embed: ``(pipeline, prompts) -> named tensors``.
        identity: what an embedding follows from but the prompt: model, revision, precision; None keeps the encoders in
            memory and nothing on disk, for small ones.
    """

    load: Callable[[], Any]
    embed: Callable[[Any, Sequence[str]], dict[str, Tensor]]
    identity: str | None = None
    _pipeline: Any = field(default=None, repr=False)

    @torch.no_grad()
    def __call__(self, prompts: Sequence[str]) -> Embedding:
        """Embed prompts, on the CPU where they come from the disk."""
        if self.identity is None:
            self._pipeline = self._pipeline or self.load()
            return self.embed(self._pipeline, prompts)
        folder = cache_folder() / "text"
        unique = list(dict.fromkeys(prompts))
        found = {text: read(folder / f"{self._key(text)}.safetensors") for text in unique}
        missing = [text for text, row in found.items() if row is None]
        if missing:
            pipeline = self.load()
            made = self.embed(pipeline, missing)
            del pipeline
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            for i, text in enumerate(missing):
                row = {name: value[i].cpu().contiguous() for name, value in made.items()}
                folder.mkdir(parents=True, exist_ok=True)
                write_atomic(folder / f"{self._key(text)}.safetensors", save(row))
                found[text] = row
        rows: list[Any] = [found[text] for text in prompts]
        return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}

    def _key(self, text: str) -> str:
        return hashlib.sha256(json.dumps([self.identity, text]).encode()).hexdigest()[:32]


def read(path: Path) -> dict[str, Tensor] | None:
    """An embedding from a file, or None where there is none that can be read."""
    try:
        return load_file(path)
    except Exception:  # cut short, or of another layout: made again
        return None


def identity_of(folder: Path, *more: str) -> str:
    """What tells one model's text encoders from another's: their files, by size and time, and whatever else is given."""
    files = sorted(
        path
        for path in folder.glob("t*/**/*")
        if path.is_file() and path.parent.name.startswith(("text_encoder", "tokenizer"))
    )
    said = [(str(path.relative_to(folder)), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return json.dumps([str(folder.resolve()), said, *more])
