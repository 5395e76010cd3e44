"""The pieces of a prompt for a prior of the embedded world: names, colours, views, and words that say nothing of the object."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from distill.embedded import words
from distill.embedded.phrases import (
    COLOURS,
    DROPPED,
    FILLER,
    JOINING,
    NEAR_COLOURS,
    OTHER_COLOURS,
    OUTSIDE,
    PAIRS,
    SHADES,
    singulars,
)
from distill.embedded.vocabulary import Known
from distill.embedded.world import VIEWS

#: Words of the longest of ``OUTSIDE``.
LONGEST = max(map(len, OUTSIDE))


def without_view(prompt: str) -> tuple[str, str | None]:
    """Take the words of a view off the end of a prompt."""
    text = " ".join(prompt.lower().split()).rstrip(" .")
    for view in sorted(VIEWS, key=len, reverse=True):
        if text.endswith((f", {view}", f" {view}")):
            return text.removesuffix(view).rstrip(" ,"), view
    return text, None


class Part(NamedTuple):
    """A piece of a prompt.

    Attributes:
        role: ``name``, ``colour``, ``other colour``, ``joining``, ``outside`` for what says nothing of the object, or ``word``.
        given: as it was.
        value: the name or colour that it is; empty for what is left out.
        changed: whether that must be said.
    """

    role: str
    given: str
    value: str = ""
    changed: bool = False


def read(text: Sequence[str], known: Known) -> Iterator[Part]:
    """Take the words of a prompt apart: its colours, then the rest, the longest name first; fillers are left out.

    An ``of`` is a filler in "a photo of a mug", and joins two things in "a photo of the leg of a table".
    """
    colours, text = without_colours(text, known)
    yield from colours
    longest, at, begun = max(known.longest, LONGEST), 0, False
    while at < len(text):
        for length in range(min(longest, len(text) - at), 0, -1):
            if part := part_of(text[at : at + length], known):
                break
        else:
            length, part = 1, Part("word", text[at])
        at += length
        if part.given == "of" and part.role == "word":
            part = Part("joining" if begun else "filler", "of")
        begun = begun or part.role in ("name", "word")
        if part.role != "filler":
            yield part


def adjectives_apart(parts: Sequence[Part]) -> list[Part]:
    """Parts, where the singular of a pair in front of a known name is none: a short table is a table, and no shorts."""
    last = max((at for at, part in enumerate(parts) if part.role in ("name", "word")), default=0)
    if not parts or parts[last].role != "name":
        return list(parts)
    return [
        Part("word", part.given) if at < last and part.value in PAIRS and part.given != part.value else part
        for at, part in enumerate(parts)
    ]


def in_phrases(text: Sequence[str], known: Known) -> list[str]:
    """The words of a prompt, those of a phrase that means a known name as one: "a", "great dane".

    Such a phrase may have words in it that mean something else alone: "great", the "of" of a chest of drawers, the colour of a west
    highland white terrier.
    """
    found, at = list[str](), 0
    while at < len(text):
        for length in range(min(words.LONGEST, len(text) - at), 1, -1):
            if _is_one_thing(text[at : at + length], known, last=at + length == len(text)):
                break
        else:
            length = 1
        found.append(" ".join(text[at : at + length]))
        at += length
    return found


def _is_one_thing(text: Sequence[str], known: Known, *, last: bool) -> bool:
    """Tell whether some words are a phrase that means a known name, and have no colour that can be chosen for it.

    What it is comes last in English: a two year old is no horse. A phrase of two known names is read as one of them or as none: a
    computer keyboard is no keypad. A colour is part of a phrase only at the ``last`` place of a prompt: a white pine desk is white.
    """
    phrase = " ".join(text)
    found = (words.means(form, known.names) for form in (phrase, *singulars(phrase)))
    if text[-1] in DROPPED or text[-1] in JOINING or not (name := next(filter(None, found), None)):
        return False
    named = [part.value for word in text if (part := part_of([word], known)) and part.role == "name"]
    if len(named) > 1 and name not in named:
        return False
    if "and" in text and {*named} - {name}:  # a bed and breakfast are two things
        return False
    # The tail of a white-tailed deer is white, a black duck is black.
    colours = [
        at for at, word in enumerate(text) if word in COLOURS or word in NEAR_COLOURS or word in OTHER_COLOURS
    ]
    if not colours:
        return True
    return last and (max(colours) < len(text) - 2 or _has_one_colour(phrase, known))


def without_colours(text: Sequence[str], known: Known) -> tuple[list[Part], list[str]]:
    """Take the colours out of a prompt, with words for their shade and an ``in`` before them: a small red car is a small car.

    A colour in a known name stays, and so does one in a phrase that means a thing whose colour cannot be chosen: a golden retriever is
    a dog, not a yellow one.
    """
    found: list[Part] = []
    rest: list[str] = []
    for at, word in enumerate(text):
        colour = word if word in COLOURS else NEAR_COLOURS.get(word)
        if colour is None or is_named(text, at, known):
            rest.append(word)
            continue
        if rest and rest[-1] in SHADES:
            found.append(Part("outside", rest.pop(), "", True))
        if rest and rest[-1] == "in":
            rest.pop()
        found.append(Part("colour", word, colour, colour != word))
    return found, rest


def is_named(text: Sequence[str], at: int, known: Known) -> bool:
    """Tell whether a word is part of a known name, or of a phrase for a thing whose colour cannot be chosen."""
    spans = [
        (start, start + length)
        for length in range(2, max(known.longest, words.LONGEST) + 1)
        for start in range(max(0, at - length + 1), at + 1)
        if start + length <= len(text)
    ]
    if any(" ".join(text[start:end]) in known.names for start, end in spans):
        return True
    # The table of words is read only for words that are in no known name.
    last = min(at + words.LONGEST, len(text))
    beyond = next((end for end in range(at + 1, last) if _begins_name(text, end, known)), last)
    return any(
        _has_one_colour(" ".join(text[start:end]), known) for start, end in spans if at + 1 < end <= beyond
    )


def _begins_name(text: Sequence[str], at: int, known: Known) -> bool:
    """Tell whether a known name begins at a word."""
    return any(" ".join(text[at : at + length]) in known.names for length in range(1, known.longest + 1))


def _has_one_colour(phrase: str, known: Known) -> bool:
    """Tell whether a phrase, or a plural, means a thing whose colour cannot be chosen."""
    names = (words.means(form, known.names) for form in (phrase, *singulars(phrase)))
    return any(name is not None and not known.names[name].paintable for name in names)


def part_of(text: Sequence[str], known: Known) -> Part | None:
    """What some words are together, or None."""
    given = " ".join(text)
    if given in known.names:
        return Part("name", given, given)
    if tuple(text) in OUTSIDE:
        return Part("outside", given, "", True)
    if len(text) == 1:
        for role, of in (("filler", FILLER), ("joining", JOINING), ("other colour", OTHER_COLOURS)):
            if given in of:
                return Part(role, given)
        if given in DROPPED:
            return Part("outside", given, "", True)
    joined = "".join(text)
    forms = (joined, *singulars(given), *singulars(joined))
    one = next((each for each in forms if each in known.names), None)
    one = one or next((known.joined[each] for each in forms if each in known.joined), None)
    return Part("name", given, one, True) if one else None
