"""A library of prompts: its file, the embeddings that a generator is told, and the condition of the prompt of a step."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch import Tensor

from distill.cameras import Cameras
from distill.contracts import Condition, Conditioner, Draw, Embedding, Prior, Render, Step
from distill.files.errors import is_text
from distill.files.paths import user_path

#: Lists of a library's file: what is trained on, and what is looked at.
LISTS = ("train", "validation", "held_out")
#: Other names of them, as in ScaleDreamer's libraries.
ALSO = {"val": "validation", "test": "held_out"}
#: Prompts whose embeddings are kept in memory; others are made, or read from the disk, again.
KEPT = 256
#: Prompts to look at while training, of those to learn and of the others each.
PREVIEWED = 8
#: Prompts that are embedded together.
AT_ONCE = 16
#: Endings of files that hold prompts among other things, which would be read as parts of prompts.
TABLES = (".csv", ".tsv", ".jsonl", ".ndjson")
FORM = 'a JSON file such as {"train": ["a red mug"], "held_out": []}, or a text file with one prompt per line'


@dataclass(frozen=True)
class Prompts:
    """A library's prompts.

    Attributes:
        train: those to learn.
        validation: looked at while training, and not learnt.
        held_out: likewise, for the end.
        lines: line of each prompt in the file, from 1.
        repeated: how many prompts were there once more and are left out.
    """

    train: tuple[str, ...]
    validation: tuple[str, ...] = ()
    held_out: tuple[str, ...] = ()
    lines: Mapping[str, int] | None = None
    repeated: int = 0

    def all(self) -> tuple[str, ...]:
        """Every prompt, those to learn first."""
        return (*self.train, *self.validation, *self.held_out)

    def previewed(self) -> tuple[str, ...]:
        """Prompts to look at while training: at most ``PREVIEWED`` of those to learn, and as many of the others, of both lists.

        Those to learn are drawn: every n-th line of a list of kinds in colours may well be of one kind.
        """
        drawn = sorted(Random(0).sample(range(len(self.train)), min(PREVIEWED, len(self.train))))
        half = max(PREVIEWED // 2, PREVIEWED - len(self.held_out))
        others = self.validation[:half]
        return (*(self.train[i] for i in drawn), *others, *self.held_out[: PREVIEWED - len(others)])

    def where(self, prompt: str) -> str:
        """The line of a prompt, for errors."""
        line = (self.lines or {}).get(prompt)
        return f"line {line}" if line else "a line"

    def lists(self) -> dict[str, list[str]]:
        """The lists by name, as in a file."""
        return {name: list(prompts) for name, prompts in zip(LISTS, self._lists(), strict=True)}

    def _lists(self) -> tuple[tuple[str, ...], ...]:
        return self.train, self.validation, self.held_out


def read_library(file: str) -> Prompts:
    """Read a library: JSON with the lists ``train``, ``validation`` and ``held_out``, or plain text, a prompt to learn in each line.

    A prompt that is there several times counts once, in the first of ``train``, ``validation`` and ``held_out`` that has it.

    Raises:
        ValueError: the file is not there or has another form, or there is nothing to train on.
    """
    path = user_path(file)
    found, is_json = _read(path)
    if not found.train:
        what = "its list train is empty" if is_json else "it has no prompts"
        raise ValueError(f"prompts must be {FORM}, and {path} has nothing to train on: {what}")
    seen = set[str]()
    lists = dict[str, tuple[str, ...]]()
    for name, prompts in found.lists().items():
        lists[name] = tuple(prompt for prompt in dict.fromkeys(prompts) if prompt not in seen)
        seen |= {*prompts}
    return Prompts(**lists, lines=found.lines, repeated=len(found.all()) - len(seen))


def read_list(file: str) -> tuple[str, ...]:
    """Return all prompts of a library or of a text file, as they stand.

    Raises:
        ValueError: the file is not there or has another form, or has no prompts.
    """
    path = user_path(file)
    if not (found := _read(path)[0].all()):
        raise ValueError(f"prompts must be {FORM}, and {path} has none")
    return found


def listed(file: str) -> tuple[str, ...]:
    """Return all prompts of a library or of a text file; none where it cannot be read, which whoever makes them tells.

    What can be read only once, such as a pipe, is left to them, too.
    """
    try:
        return read_list(file) if user_path(file).is_file() else ()
    except ValueError:
        return ()


def _read(path: Path) -> tuple[Prompts, bool]:
    """A library's prompts, and whether its file is JSON."""
    if path.suffix.lower() in TABLES:
        raise ValueError(
            f"prompts must be {FORM}, and {path} is a table by its name; write the prompts of it into a .txt file, one per line"
        )
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is no text in UTF-8"
        raise ValueError(f"prompts must be {FORM}, and {path} cannot be read: {why}") from error
    # Prompts may begin with a bracket, too, such as "[close up] a mug".
    is_json = path.suffix.lower() == ".json" or bool(re.match(r'\s*\{\s*["}]', text))
    found = _of_json(path, text) if is_json else _of_text(text)
    if half := next((prompt for prompt in found.all() if not is_text(prompt)), None):
        raise ValueError(f"{path} has half a character in {half!a}; write that prompt again")
    return found, is_json


def _of_text(text: str) -> Prompts:
    # As editors count: a prompt that was copied from a page may hold other characters that break lines, such as U+2028.
    lines = [(number, line.strip()) for number, line in enumerate(text.split("\n"), start=1)]
    kept = [(number, line) for number, line in lines if line and not line.startswith("#")]
    return Prompts(tuple(line for _, line in kept), lines={line: number for number, line in reversed(kept)})


def _of_json(path: Path, text: str) -> Prompts:

    def named(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        keys = [key for key, _ in pairs]
        if twice := [key for key in keys if keys.count(key) > 1]:
            raise ValueError(f"{path} has {twice[0]!r} twice; put what is in both into one")
        return dict(pairs)

    try:
        said: Any = json.loads(text, object_pairs_hook=named)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"prompts must be {FORM}, and {path} is not JSON at line {error.lineno}: {error.msg}"
        ) from error
    if not isinstance(said, dict) or "train" not in said:
        raise ValueError(f"prompts must be {FORM}, and {path} has no list train")
    if both := [name for name, usual in ALSO.items() if {name, usual} <= {*said}]:
        raise ValueError(f"{path} has {both[0]!r} and {ALSO[both[0]]!r}; put what is in both into one")
    if unknown := [name for name in said if name not in (*LISTS, *ALSO)]:
        raise ValueError(f"{path} has {unknown[0]!r}; the lists of a library are {', '.join(LISTS)}")
    for name, prompts in said.items():
        if not isinstance(prompts, list) or not all(
            isinstance(each, str) and each.strip() for each in prompts
        ):
            raise ValueError(f"the list {name} of {path} must hold prompts, texts that are not empty")
    lists: dict[str, Any] = {
        ALSO.get(str(name), str(name)): tuple(each.strip() for each in prompts)
        for name, prompts in said.items()
    }
    lines = dict[str, int]()
    for number, line in enumerate(text.split("\n"), start=1):
        for prompt in _strings(line):
            lines.setdefault(prompt.strip(), number)
    return Prompts(**lists, lines=lines)


def _strings(line: str) -> Iterator[str]:
    """The JSON strings in a line."""
    decoder, at = json.JSONDecoder(), line.find('"')
    while at >= 0:
        try:
            found, end = decoder.raw_decode(line, at)
        except json.JSONDecodeError:
            return
        yield str(found)
        at = line.find('"', end)


def pooled(embedding: Embedding) -> Tensor:
    """One vector for each prompt: the text encoder's pooled embedding, or the mean of its states, in single precision.

    Args:
        embedding: of ``Prior.embed``.

    Returns:
        Shape ``[prompts, width]``.

    Raises:
        ValueError: it has neither.
    """
    for name in ("text_embeds", "pooled_projections"):
        if name in embedding:
            return embedding[name].float()
    if "encoder_hidden_states" not in embedding:
        raise ValueError(
            f"a generator is given a text's embedding, and this prior has none: it gives {', '.join(embedding)}; choose a "
            "prior that knows words"
        )
    states = embedding["encoder_hidden_states"].float()
    if "encoder_attention_mask" not in embedding:
        return states.mean(1)
    told = embedding["encoder_attention_mask"].to(states)[..., None]
    return (states * told).sum(1) / told.sum(1).clamp(min=1)


def embed(prior: Prior, texts: Sequence[str], beside: Callable[[str], Sequence[str]] | None = None) -> Tensor:
    """Embed prompts for a generator, without view words, some at a time.

    Args:
        prior: embeds.
        texts: as the prior is asked for them.
        beside: what else a run asks of a prompt, to embed it while large text encoders are in memory; it is kept by the prior.

    Returns:
        On the CPU, shape ``[texts, width]``.
    """
    rows: list[Tensor] = []
    for start in range(0, len(texts), AT_ONCE):
        part = texts[start : start + AT_ONCE]
        if beside:
            prior.embed(list(dict.fromkeys([*part, *(each for text in part for each in beside(text))])))
        # One at a time: what a text is embedded beside may change its length, and so its mean.
        rows += [pooled(prior.embed([text])).cpu() for text in part]
    return torch.cat(rows)


def conditioner(make: Callable[[int], Conditioner], drawn: Callable[[], Draw]) -> Conditioner:
    """Condition each step on the prompt that was drawn for it, or on a mean of two.

    Args:
        make: the conditioner of a prompt, by number.
        drawn: the last draw.
    """
    kept = lru_cache(maxsize=KEPT)(make)

    def condition(cameras: Cameras, step: Step, render: Render | None = None) -> Condition:
        draw = drawn()
        first = kept(draw.first)(cameras, step, render)
        if not draw.amount:
            return first
        return between(first, kept(draw.second)(cameras, step, render), draw.amount)

    return condition


def between(first: Condition, second: Condition, amount: float) -> Condition:
    """Interpolate the embeddings of two conditions whose rest is the same; those of other lengths are the nearer one's.

    Source: Lorraine et al. 2023 (ATT3D), arXiv:2306.07349, Sec. 4.2.
    """
    near = first if amount < 0.5 else second

    def mean(role: str, name: str) -> Tensor:
        a, b, own = (each.prompts[role][name] for each in (first, second, near))
        return torch.lerp(a, b, amount) if a.shape == b.shape and a.is_floating_point() else own

    prompts = {role: {name: mean(role, name) for name in rows} for role, rows in near.prompts.items()}
    return Condition(prompts, near.cameras, near.step, near.source_x, near.away)
