"""Prompts' embeddings: computed once, kept on disk, the text encoders loaded only where one is missing."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from distill.contracts import Embedding, Prompt
from distill.files.atomic import sha256_once, write_atomic
from distill.files.paths import user_path
from distill.priors.families.length import Lengths, cut_off
from distill.priors.inversion import Words
from distill.priors.quiet import quiet
from distill.priors.source import Source

log = logging.getLogger(__name__)

#: Part of every key: embeddings that an earlier version made in another way are not taken.
LAYOUT = 3
#: Prompts that the encoders embed together, at most: a queue may have hundreds, with all their views.
AT_ONCE = 48
#: What a prompt's embedding is, and what of the prompt the text encoders did not see.
Row = tuple[dict[str, Tensor], str]


def cache_folder() -> Path:
    """Return the folder of cached embeddings: ``$DISTILL_CACHE``, or ``~/.cache/distill``."""
    return user_path(os.environ.get("DISTILL_CACHE") or "~/.cache/distill")


@dataclass
class TextEncoders:
    """A model's text encoders, in memory only while they are at work.

    Attributes:
        load: makes the pipeline that has them.
        embed: ``(pipeline, prompts) -> named tensors``.
        identity: what an embedding follows from but the prompt: model, revision, precision; None keeps the encoders in
            memory and nothing on disk, for small ones.
        uneven: states may be of several lengths; the shorter are filled up with the empty prompt's, over and over.
        lengths: how many tokens of a prompt each encoder takes; empty where prompts may be of any length.
        words: how prompts are written for the encoders, where textual-inversion embeddings are loaded.
    """

    load: Callable[[], Any]
    embed: Callable[[Any, Sequence[str]], dict[str, Tensor]]
    identity: str | None = None
    uneven: bool = False
    lengths: Lengths = field(default_factory=dict)
    words: Words = field(default_factory=Words)
    _pipeline: Any = field(default=None, repr=False)
    _unkept: dict[str, Row] = field(default_factory=dict, repr=False)

    @torch.no_grad()
    def __call__(self, prompts: Sequence[str]) -> Embedding:
        """Embed prompts, on the CPU where they come from the disk; words that no longer fit are named in one line."""
        asked = [*prompts, ""] if self.uneven else list(prompts)
        if not self.keeps:
            self._pipeline = self._pipeline or self.load()
            found = self._made(self._pipeline, asked)
        else:
            found = self._kept(asked)
        tell([(text, cut) for text, (_, cut) in zip(asked, found, strict=True)])
        rows = [row for row, _ in found]
        if self.uneven:
            rows = filled(rows[:-1], rows[-1])
        return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}

    @property
    def keeps(self) -> bool:
        """Whether an embedding is made once and kept; those of small encoders are made whenever they are asked for."""
        return self.identity is not None

    def _made(self, pipeline: Any, prompts: Sequence[str]) -> list[Row]:
        """Embed prompts with the encoders; note of each what they do not see."""
        written = [self.words.written(text) for text in prompts]
        with quiet():
            rows = rows_of(self.embed(pipeline, written), len(prompts))
            cuts = [cut_off(pipeline, self.lengths, text) for text in written]
        notes = [
            f"{limit} tokens: {shorten(self.words.told(cut), 150, placeholder=' ...')}" if cut else ""
            for cut, limit in cuts
        ]
        return list(zip(rows, notes, strict=True))

    def _kept(self, prompts: Sequence[str]) -> list[Row]:
        """Return each prompt's embedding from disk, after writing the missing ones."""
        folder = cache_folder() / "text"
        keys = {self._key(text): text for text in prompts}
        found = {key: self._unkept.get(key) or read(folder / f"{key}.safetensors") for key in keys}
        missing = [text for key, text in keys.items() if found[key] is None]
        if missing:
            pipeline = self.load()
            for start in range(0, len(missing), AT_ONCE):
                part = missing[start : start + AT_ONCE]
                for text, (own, cut) in zip(part, self._made(pipeline, part), strict=True):
                    row = {name: value.cpu().contiguous() for name, value in own.items()}
                    key = self._key(text)
                    found[key] = row, cut
                    if not keep(folder / f"{key}.safetensors", save(row, {"cut": cut})):
                        self._unkept[key] = row, cut
            del pipeline
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        rows: list[Any] = [found[self._key(text)] for text in prompts]
        return rows

    def _key(self, text: str) -> str:
        tail = text.tail if isinstance(text, Prompt) else ""
        said = json.dumps([LAYOUT, self.identity, text, tail])
        return hashlib.sha256(said.encode()).hexdigest()[:32]


def keep(path: Path, content: bytes) -> bool:
    """Write an embedding to the cache; where that cannot be written, the run continues without."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, content)
        return True
    except OSError as error:
        log.warning(
            "the embedding cannot be kept in %s (%s), and is made again next time; set DISTILL_CACHE to a writable folder",
            path.parent,
            error.strerror,
        )
        return False


def tell(cuts: Sequence[tuple[str, str]]) -> None:
    """Say what is cut off of prompts, one line for a prompt with all its views."""
    lines: dict[str, str] = {}
    for text, cut in cuts:
        head = text.head if isinstance(text, Prompt) else text
        if len(cut) > len(lines.get(head, "")):
            lines[head] = cut
    for cut in lines.values():
        log.warning(
            "a prompt is too long; shorten it, for these words are cut off where a text encoder takes %s",
            cut,
        )


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


def read(path: Path) -> Row | None:
    """An embedding from a file, or None where there is none that can be read."""
    try:
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()["cut"]  # noqa: SIM118
    except Exception:  # cut short, or of another layout: made again
        return None


def identity_of(source: Source, *more: str) -> str:
    """Return a key that identifies a model's text encoders: what is in their files, and anything else given."""
    folder = source.folder
    files = sorted(
        path
        for path in folder.glob("t*/**/*")
        if path.is_file()
        and path.parent.name.startswith(("text_encoder", "tokenizer"))
        and not (path.suffix == ".safetensors" and path.parent.name in source.parts)
    )
    known = [(path.relative_to(folder).as_posix(), content_of(path)) for path in files]
    if source.file and any(part.startswith("text_encoder") for part in source.parts):
        known.append(("", content_of(source.file)))
    return json.dumps([known, *more])


def content_of(path: Path) -> str:
    """A file's SHA-256, of all of it, for models differ anywhere; in the hub's cache, its name says it without reading."""
    real = path.resolve()
    named = path.is_symlink() and real.parent.name == "blobs" and re.fullmatch("[0-9a-f]{40,64}", real.name)
    return real.name if named else sha256_once(path)
