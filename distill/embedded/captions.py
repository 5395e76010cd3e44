"""Captions of kinds and real objects: those that the judge ranks, and which count as correct.

The judge ranks all captions by their similarity to a picture. The picture is right for a prompt if

- the first caption has the prompt's name, and
- if the prompt has a colour: of the captions with that name and some colour, the first has the prompt's colour.

The second condition skips captions without a colour, because these are true of a thing in any colour.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache

import torch
from torch import Tensor

from distill.embedded import things, world

#: A name, and the colour that is said with it or None.
Meaning = tuple[str, str | None]


def words(caption: str) -> list[str]:
    """Split a caption into lower-case words, without punctuation."""
    return re.findall(r"[^\W_]+", caption.lower())


@lru_cache(maxsize=1)
def articles() -> dict[str, str]:
    """Every name of kinds and real objects, the kinds first, with its indefinite article, which is empty for some."""
    kinds = {kind: things.article_of(kind) for kind in world.KINDS}
    return kinds | {thing.name: thing.article for thing in sorted(things.table(), key=lambda one: one.name)}


def of(table: Iterable[things.Thing]) -> tuple[Meaning, ...]:
    """What is said of the world's kinds, in each colour, and of the names of a table, as they are and in each colour that can
    be chosen for at least one object."""
    table = sorted(table, key=lambda one: one.name)
    chosen = {thing.name for thing in table if thing.paint is not None}
    found: list[Meaning] = [(kind, colour) for kind in world.KINDS for colour in world.COLOURS]
    for name in dict.fromkeys(thing.name for thing in table):
        # The world's kinds have no colour of their own.
        found += [(name, colour) for colour in (*(world.COLOURS if name in chosen else ()), None)]
    return tuple(found)


@lru_cache(maxsize=1)
def meanings() -> tuple[Meaning, ...]:
    """Return the meaning of each of ``all_captions``, in the same order."""
    return of(things.table())


def write(name: str, colour: str | None, view: str | None = None, template: int = 0) -> str:
    """Write a caption of a kind or a real object; ``template`` indexes ``world.TEMPLATES``."""
    if name in world.KINDS and colour is not None:
        return world.caption(colour, name, view, template)
    return things.caption(name, articles().get(name, things.article_of(name)), colour, view, template)


@lru_cache(maxsize=1)
def all_captions() -> tuple[str, ...]:
    """Return one caption, without a view, for each name in each selectable colour, and for each object without a colour."""
    return tuple(write(*meaning) for meaning in meanings())


def right(similarity: Tensor, asked: Sequence[Meaning], said: Sequence[Meaning] | None = None) -> Tensor:
    """Return for which pictures the ranking by these similarities is correct, by the rule of this module.

    Args:
        similarity: of each picture with each caption, shape ``[batch, captions]``.
        asked: what each picture should show; a colour of None asks for none.
        said: what the captions say; None for ``meanings()``.

    Returns:
        bool, shape ``[batch]``.

    Raises:
        ValueError: no caption says what is asked for.
    """
    said = meanings() if said is None else tuple(said)
    known = set(said) | {(name, None) for name, _ in said}
    for name, colour in asked:
        if (name, colour) not in known:
            raise ValueError(
                f"no caption to rank says {write(name, colour)!r}: either its colour cannot be chosen, or the judge does not "
                "know the name"
            )
    number = {name: index for index, name in enumerate(articles())}
    hue = {colour: index for index, colour in enumerate((None, *world.COLOURS))}

    def indices(listed: Sequence[Meaning]) -> tuple[Tensor, Tensor]:
        return torch.tensor([number[name] for name, _ in listed]), torch.tensor([hue[c] for _, c in listed])

    (names, colours), (wanted, wanted_colour) = indices(said), indices(asked)
    named = names[similarity.argmax(1)] == wanted
    coloured = (names == wanted[:, None]) & (colours > 0)
    first = colours[similarity.masked_fill(~coloured, -torch.inf).argmax(1)]
    return named & ((wanted_colour == 0) | (first == wanted_colour))
