"""Embedding vectors of English words, to find the known name nearest to an unknown word.

``examples/embedded/word_vectors.py`` makes the table, from a sentence encoder and WordNet; ``CREDITS.md`` beside it has their
licences.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

FOLDER = Path(__file__).with_suffix("")
LIST, BROADER, VECTORS = "words.txt", "broader.txt", "vectors.safetensors"
#: Words of the longest phrase in the table.
LONGEST = 5
#: The least cosine to a name that a word is mapped to; chosen on one half of ``examples/embedded/word_cases.csv``.
NEAR = 0.6


@dataclass(frozen=True)
class Table:
    """The table of words.

    Attributes:
        index: each word's row.
        letters: the class of thing that a word is first of all: ``a`` artifact or shape, ``f`` food, ``n`` animal, ``p`` plant;
            empty for what is none.
        vectors: directions, int8, shape ``[words, dimensions]``.
        broader: of some words the names that they mean, or are a kind of, the nearest first; some of them, breeds of animals, are not in ``index``.
        joined: the phrases of ``broader``, by these written as one word.
    """

    index: dict[str, int]
    letters: tuple[str, ...]
    vectors: NDArray[np.int8]
    broader: dict[str, tuple[str, ...]]
    joined: dict[str, str]


@lru_cache(maxsize=1)
def table() -> Table:
    """Read the table, once."""
    from safetensors.numpy import load_file

    rows = [line.partition("\t") for line in (FOLDER / LIST).read_text("utf-8").splitlines()]
    pairs = (line.split("\t") for line in (FOLDER / BROADER).read_text("utf-8").splitlines())
    broader = {word: tuple(names.split("|")) for word, names in pairs}
    return Table(
        {word: at for at, (word, _, _) in enumerate(rows)},
        tuple(letter for *_, letter in rows),
        load_file(FOLDER / VECTORS)["vectors"],
        broader,
        {word.replace(" ", ""): word for word in broader if " " in word},
    )


def is_word(text: str) -> bool:
    """Tell whether a word, or a phrase, is one of the table's."""
    own = table()
    return text in own.index or text in own.broader or text in own.joined


def letter(text: str) -> str:
    """The letter of a word's class, empty for what is no thing; a phrase that is not there has its last word's."""
    own = table()
    at = own.index.get(text, own.index.get(text.split()[-1]))
    return "" if at is None else own.letters[at]


def vector(text: str) -> NDArray[np.float32] | None:
    """Return a word's unit vector, shape ``[dimensions]``; for a missing phrase the mean of its words, or None."""
    own = table()
    found = [own.index[each] for each in ([text] if text in own.index else text.split()) if each in own.index]
    if not found:
        return None
    rows = own.vectors[found].astype(np.float32)
    total: NDArray[np.float32] = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).sum(0)
    return total / np.float32(np.linalg.norm(total))


def nearest(text: str, names: Collection[str]) -> list[tuple[str, float]]:
    """Return names with their cosine to a word, nearest first; empty if it has no vector."""
    mine = vector(text)
    if mine is None:
        return []
    found = [(name, vector(name)) for name in names]
    scored = [(name, float(mine @ theirs)) for name, theirs in found if theirs is not None]
    return sorted(scored, key=lambda pair: -pair[1])


def means(text: str, names: Collection[str]) -> str | None:
    """The name that WordNet says a word means or is a kind of, or None; a phrase may be written as one word, as "pitbull" is."""
    own = table()
    if text not in own.index and text not in own.broader:
        text = own.joined.get(text, text)
    return next((name for name in own.broader.get(text, ()) if name in names), None)


def taken_for(text: str, names: Collection[str]) -> str | None:
    """Return the name that a word is mapped to, or None.

    One that WordNet says the word means or is a kind of; else the nearest one of the same class of things, if its cosine is
    ``NEAR`` or more. A name that has the word in front, as "hospital bed" has "hospital" and "snowman" has "snow", is none.
    """
    if name := means(text, names):
        return name
    # A phrase that has only a meaning has no vector of its own, and the mean of its words is no better than each of them.
    if text not in table().index or not (kind := letter(text)):
        return None
    for name, cosine in nearest(text, names):
        if cosine < NEAR:
            return None
        if letter(name) == kind and not _in_front(text, name):
            return name
    return None


def _in_front(text: str, name: str) -> bool:
    """Tell whether a word stands in front in a name, as a word or as the beginning of one; in its plural it does not."""
    *front, last = name.split()
    return any(word.startswith(text) for word in front) or (
        last.startswith(text) and last not in (text, f"{text}s")
    )


def suggestions(text: str, names: Sequence[str]) -> list[str]:
    """Return the five names nearest to a word in meaning, or in spelling if it has no vector."""
    near = [name for name, _ in nearest(text, names)] or difflib.get_close_matches(text, names, 5, 0.0)
    return near[:5]
