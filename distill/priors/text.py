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

from distill.contracts import Embedding
from distill.files.atomic import write_atomic


def cache_folder() -> Path:
    """Return the folder of cached embeddings: ``$DISTILL_CACHE``, or ``~/.cache/distill``."""
    return Path(os.environ.get("DISTILL_CACHE") or "~/.cache/distill").expanduser()


@dataclass
class TextEncoders:
    """A model's text encoders, in memory only while they are at work.

    Attributes:
        load: makes the pipeline that has them.
        embed: ``(pipeline, prompts) -> named tensors``.
        identity: what an embedding follows from but the prompt: model, revision, precision; None keeps the encoders in
            memory and nothing on disk, for small ones.
        uneven: states may be of several lengths; the shorter are filled up with the empty prompt's, over and over.
    """

    load: Callable[[], Any]
    embed: Callable[[Any, Sequence[str]], dict[str, Tensor]]
    identity: str | None = None
    uneven: bool = False
    _pipeline: Any = field(default=None, repr=False)

    @torch.no_grad()
    def __call__(self, prompts: Sequence[str]) -> Embedding:
        """Embed prompts, on the CPU where they come from the disk."""
        asked = [*prompts, ""] if self.uneven else list(prompts)
        if self.identity is None:
            self._pipeline = self._pipeline or self.load()
            rows = rows_of(self.embed(self._pipeline, asked), len(asked))
        else:
            rows = self._kept(asked)
        if self.uneven:
            rows = filled(rows[:-1], rows[-1])
        return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}

    def _kept(self, prompts: Sequence[str]) -> list[dict[str, Tensor]]:
        """Return each prompt's embedding from disk, after writing the missing ones."""
        folder = cache_folder() / "text"
        unique = list(dict.fromkeys(prompts))
        found = {text: read(folder / f"{self._key(text)}.safetensors") for text in unique}
        missing = [text for text, row in found.items() if row is None]
        if missing:
            pipeline = self.load()
            made = rows_of(self.embed(pipeline, missing), len(missing))
            del pipeline
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            for text, own in zip(missing, made, strict=True):
                row = {name: value.cpu().contiguous() for name, value in own.items()}
                folder.mkdir(parents=True, exist_ok=True)
                write_atomic(folder / f"{self._key(text)}.safetensors", save(row))
                found[text] = row
        rows: list[Any] = [found[text] for text in prompts]
        return rows

    def _key(self, text: str) -> str:
        return hashlib.sha256(json.dumps([self.identity, text]).encode()).hexdigest()[:32]


def rows_of(made: dict[str, Any], count: int) -> list[dict[str, Tensor]]:
    """Return the embedding of each prompt."""
    return [{name: value[i] for name, value in made.items()} for i in range(count)]


def filled(rows: Sequence[dict[str, Tensor]], empty: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    """Rows with states of the same length: the empty prompt's are put after the shorter ones'."""
    name = "encoder_hidden_states"
    part = len(empty[name])
    longest = max(len(row[name]) for row in rows)
    return [
        {**row, name: torch.cat([row[name], empty[name].repeat((longest - len(row[name])) // part, 1)])}
        for row in rows
    ]


def read(path: Path) -> dict[str, Tensor] | None:
    """An embedding from a file, or None where there is none that can be read."""
    try:
        return load_file(path)
    except Exception:  # cut short, or of another layout: made again
        return None


def identity_of(folder: Path, *more: str) -> str:
    """Return a key that identifies a model's text encoders: their files, by size and time, and anything else given."""
    files = sorted(
        path
        for path in folder.glob("t*/**/*")
        if path.is_file() and path.parent.name.startswith(("text_encoder", "tokenizer"))
    )
    said = [(str(path.relative_to(folder)), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return json.dumps([str(folder.resolve()), said, *more])
