"""Parse prompts for priors of the embedded world."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
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
from distill.embedded.vocabulary import Known, Name, of_prior, tokens
from distill.embedded.world import KINDS, TEMPLATES, USUAL, VIEWS

#: Words of the longest of ``OUTSIDE``.
LONGEST = max(map(len, OUTSIDE))
#: The bundled priors, which know only the embedded world.
OF_KINDS = ("embedded", "views")
#: Things of a prompt that a message lists, at most.
MOST = 4
#: The remedies for what a prior does not know: another bundled one, where that knows it, and a larger one.
CHOSEN = "and is chosen where prior= is left out"
LARGER = "for any other prompt choose a larger prior with prior=FOLDER"


@dataclass(frozen=True)
class Meaning:
    """The meaning of a prompt.

    Attributes:
        colour: one of the world's, or None for the thing's own.
        name: of what to make.
        view: words of a direction, or None.
        caption: what the prior is asked for.
        taken: pairs of a given word and the name that it is mapped to, empty if it is dropped.
        own_colour: the colour of such a thing cannot be chosen, and one was.
        usual: no colour was said, which the prior needs, so that it is the usual one.
    """

    colour: str | None
    name: str
    view: str | None
    caption: str
    taken: tuple[tuple[str, str], ...] = ()
    own_colour: bool = False
    usual: bool = False


def asked(name: str, prompt: str) -> str:
    """Return the prompt that a prior receives for a user's prompt: a caption of its vocabulary, if it has one.

    Args:
        name: the value of ``prior=``.
        prompt: the user's.

    Raises:
        ValueError: see ``understand``.
    """
    own = of_prior(name)
    return prompt if own is None else understand(prompt, own).caption


def prior_for(prompts: Iterable[str]) -> str:
    """Choose the bundled prior for some prompts: ``things`` if one means a real object, else ``embedded``.

    Prompts that mean nothing count where there is nothing else: ``things`` knows more names to suggest.
    """
    both, of_the_world = of_prior("things"), set[bool]()
    assert both is not None
    unknown = False
    for prompt in prompts:
        try:
            meaning = understand(prompt, both)
        except ValueError:
            unknown = True
            continue
        of_the_world.add(meaning.name in KINDS)
    return "things" if False in of_the_world or (unknown and not of_the_world) else "embedded"


def kind_of(prompt: str, known: Known) -> str:
    """The kind of the embedded world that a prompt means, empty for a thing and for what is not understood."""
    name = _name_of(prompt, known)
    return name if name in KINDS else ""


def object_of(prompt: str, known: Known) -> str:
    """The real object that a prompt means, empty for a kind of the embedded world and for what is not understood."""
    name = _name_of(prompt, known)
    return "" if name in KINDS else name


def _name_of(prompt: str, known: Known) -> str:
    try:
        return understand(prompt, known).name
    except ValueError:
        return ""


def sort_of(prompt: str) -> tuple[str, bool]:
    """What decides the options that follow from a prompt: the bundled prior for it, and whether it means a kind of the embedded world."""
    both = of_prior("things")
    assert both is not None
    return prior_for([prompt]), bool(kind_of(prompt, both))


def understand(prompt: str, known: Known) -> Meaning:
    """Parse a prompt: the longest known name, one of the eight colours or a related one, and view words.

    Unknown words are mapped to a related name; words that do not describe the object, and words before its name, are
    dropped. ``told`` says so.

    Raises:
        ValueError: the prompt names no known or related object, several objects, or a colour outside the eight.
    """
    meaning = _understood(prompt, known)
    if isinstance(meaning, str):
        raise ValueError(meaning)
    return meaning


# Kept, for a list is read several times, and a word that is not known is compared with all that are.
@lru_cache(maxsize=2**15)
def _understood(prompt: str, known: Known) -> Meaning | str:
    """The meaning of a prompt, or why it has none."""
    try:
        return _read(prompt, known)
    except ValueError as error:
        return str(error)


def _read(prompt: str, known: Known) -> Meaning:
    """The meaning of a prompt; what is refused word by word is read once more with the phrases of the table in one piece."""
    plain, view = without_view(prompt)
    text = tokens(plain)
    try:
        return _meaning(prompt, text, view, known)
    except ValueError:
        whole = in_phrases(text, known)
        if len(whole) < len(text):
            with suppress(ValueError):
                return _meaning(prompt, whole, view, known)
        raise  # with the words of the prompt, not those of the second reading


def _meaning(prompt: str, text: Sequence[str], view: str | None, known: Known) -> Meaning:
    parts = adjectives_apart(list(read(text, known)))
    joined = [part for part in parts if part.role == "joining"]
    named = [part.value for part in parts if part.role == "name"]
    colours = list(dict.fromkeys(part.value for part in parts if part.role == "colour"))
    if len(named) > 1 or joined or len(colours) > 1:
        several = [*(named if len(named) > 1 else ()), *(colours if len(colours) > 1 else ())]
        found = several or [part.given for part in joined]
        more = f" and {len(found) - MOST} more" if len(found) > MOST else ""
        raise ValueError(
            f"prior={known.prior} makes one object in one colour, and the prompt {shown(prompt)} has "
            f"{' and '.join(map(shown, found[:MOST]))}{more}; leave out what else there is, or {LARGER}"
        )
    if other := [part.given for part in parts if part.role == "other colour"]:
        raise ValueError(
            f"prior={known.prior} does not know the colour {other[0]!r} in the prompt {shown(prompt)}; it knows "
            f"{', '.join(COLOURS)}; {LARGER}"
        )
    name, taken = thing_of(prompt, [part for part in parts if part.role in ("name", "word")], known)
    # Another name than that of the prompt is part of a phrase.
    changed = [part for part in parts if part.changed and not (part.role == "name" and part.value != name)]
    taken = [*((part.given, part.value) for part in changed), *taken]
    usual = not colours and not known.bare
    colour = colours[0] if colours else USUAL[name] if usual else None
    caption = captioned(" ".join(prompt.lower().split()), name, known.names[name], colour, view)
    return Meaning(
        colour, name, view, caption, tuple(taken), bool(colour) and not known.names[name].paintable, usual
    )


def shown(prompt: str) -> str:
    """A prompt, or a word of it, in quotes, cut off where it is long."""
    return repr(prompt if len(prompt) <= 60 else prompt[:57] + "...")


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


def thing_of(prompt: str, parts: Sequence[Part], known: Known) -> tuple[str, list[tuple[str, str]]]:
    """The name that the words left of a prompt stand for, and what was mapped to something.

    What it is comes last in English: of "coffee mug" the mug, and of "car seat" no car.

    Raises:
        ValueError: there are none, or they are not known and nothing is near.
    """
    if not parts:
        raise ValueError(
            f"prior={known.prior} needs one thing that it knows in the prompt {shown(prompt)}; '{known.command}' lists "
            f"them; {LARGER}"
        )
    said = [part.given for part in parts]
    name, given, first = None, said[-1], len(parts) - 1
    # The table of words has no longer phrases: to look for each end of a prompt of n words costs n² characters.
    for start in range(max(0, len(parts) - words.LONGEST), len(parts)):
        phrase = " ".join(said[start:])
        if start == len(parts) - 1 and parts[-1].role == "name":
            name = parts[-1].value
            break
        if name := near_name(phrase, known):
            given, first = phrase, start
            break
    # A part of a known thing, such as a lamp shade, is not what its last word is near to.
    if (
        name is not None
        and parts[-1].role != "name"
        and (of := [p.given for p in parts[:first] if p.role == "name"])
    ):
        raise ValueError(unknown(prompt, " ".join([*of, *said[first:]]), known))
    strange = [each for each in said[:first] if not words.is_word(each) and not each.isdigit()]
    if name is None or strange:
        within = [part.value for part in parts if part.role == "name"]
        raise ValueError(unknown(prompt, strange[0] if strange else said[-1], known, within))
    left_out = [(each, "") for each in said[:first]]
    return name, left_out if parts[-1].role == "name" and given == said[-1] else [*left_out, (given, name)]


def near_name(phrase: str, known: Known) -> str | None:
    """The known name that a word or phrase means or is near to; a plural is near to what its singular is."""
    if name := words.means(phrase, known.names):
        return name
    shorter = [each for each in singulars(phrase) if len(each) < len(phrase)]
    forms = [each for each in shorter if words.is_word(each) and words.letter(each)]
    if not forms:
        forms = [phrase, *(() if words.is_word(phrase) else singulars(phrase))]
    for form in forms:
        if found := words.taken_for(form, known.names):
            return found
    return None


def unknown(prompt: str, word: str, known: Known, within: Sequence[str] = ()) -> str:
    """The line that refuses a word; it suggests the names ``within`` the prompt first."""
    form = next((each for each in (word, *singulars(word)) if words.is_word(each)), word)
    near = words.suggestions(form, list(known.names))
    close = ", ".join(list(dict.fromkeys([*within, *near]))[:5])
    refused = f"prior={known.prior} does not know {shown(word)} in the prompt {shown(prompt)}"
    if known.prior in OF_KINDS and prompt_is_known(prompt, "things"):
        return f"{refused}; prior=things does, {CHOSEN}"
    if not (
        within or any(letter.isascii() and letter.isalnum() for letter in word)
    ):  # no name is near in letters that none of them has
        return f"{refused}; it knows English names, which '{known.command}' lists; {LARGER}"
    return f"{refused}; the nearest of what it knows are {close}; '{known.command}' lists all; {LARGER}"


def prompt_is_known(prompt: str, prior: str) -> bool:
    """Whether a bundled prior understands a prompt as it is, and not for something near."""
    known = of_prior(prior)
    try:
        return known is None or not understand(prompt, known).taken
    except ValueError:
        return False


def captioned(prompt: str, name: str, own: Name, colour: str | None, view: str | None) -> str:
    """The prompt, if it is a caption as the prior was trained with; else the plainest one that says the same."""
    from distill.embedded.things import caption

    every = [caption(name, own.article, colour, view, form) for form in range(len(TEMPLATES))]
    return prompt if prompt in every else every[0]


def in_colours(prompt: str, known: Known, colours: Sequence[str] = tuple(COLOURS)) -> list[str]:
    """The caption of a prompt, then that in each other of some colours, if it says none and the object's can be chosen.

    Raises:
        ValueError: see ``understand``.
    """
    from distill.embedded.things import caption

    meaning = understand(prompt, known)
    own = known.names[meaning.name]
    if not own.paintable or (meaning.colour and not meaning.usual):
        return [meaning.caption]

    def of(colour: str | None, form: int) -> str:
        return caption(meaning.name, own.article, colour, meaning.view, form)

    form = next(form for form in range(len(TEMPLATES)) if of(meaning.colour, form) == meaning.caption)
    return [meaning.caption, *(of(colour, form) for colour in colours if colour != meaning.colour)]


def told(prompt: str, meaning: Meaning) -> str:
    """Say in one line how a prompt is read; empty where it is unchanged."""
    said = []
    left_out = [given for given, name in meaning.taken if not name]
    said += [f"{given!r} is not known, {name!r} is" for given, name in meaning.taken if name]
    if left_out:
        said.append(f"{', '.join(map(repr, left_out))} left out")
    if meaning.own_colour:
        said.append(
            f"the colour of {meaning.name!r} cannot be chosen, and {meaning.colour!r} may not be followed"
        )
    if meaning.usual:
        said.append("it says no colour, and this prior needs one")
    if not said:
        return ""
    taken = f" is read as {meaning.caption!r}" if meaning.taken or meaning.usual else ""
    return f"{shown(prompt)}{taken}: {'; '.join(said)}"
