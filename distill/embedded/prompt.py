"""Parse prompts for priors of the embedded world."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from distill.embedded import words
from distill.embedded.parts import Part, adjectives_apart, in_phrases, read, without_view
from distill.embedded.phrases import COLOURS, singulars
from distill.embedded.vocabulary import Known, Name, of_prior, tokens
from distill.embedded.world import KINDS, TEMPLATES, USUAL

#: The bundled priors, which know only the embedded world.
OF_KINDS = ("embedded", "views")
#: Things of a prompt that a message lists, at most.
MOST = 4
#: The remedies for what a prior does not know: another bundled one, where that knows it, and a larger one.
CHOSEN = "and is chosen where prior= is left out"
LARGER = (
    "for any other prompt choose a larger prior, prior=NAME or prior=FOLDER; 'distill priors' lists names"
)


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
        alone = f", as in {single(named[0], colours, known)!r}" if named else ""
        raise ValueError(
            f"prior={known.prior} makes one object in one colour, and the prompt {shown(prompt)} has "
            f"{' and '.join(map(shown, found[:MOST]))}{more}; leave out what else there is{alone}; {LARGER}"
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
        raise ValueError(unknown(prompt, said[-1] if name is None else strange[0], known, within))
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


def named_by(file: Path) -> str | None:
    """The prompt for what a picture's file is named after, "a kettle" for ``kettle_2.png``; None if ``things`` does not know it."""
    said = " ".join(re.findall(r"[a-z]+", file.stem.lower()))
    if not prompt_is_known(said, "things") or (known := of_prior("things")) is None:
        return None
    meaning = understand(said, known)
    return captioned("", meaning.name, known.names[meaning.name], meaning.colour, None)


def single(name: str, colours: Sequence[str], known: Known) -> str:
    """A prompt for a name alone, in the first of some colours if it can have it."""
    own = known.names[name]
    return captioned("", name, own, colours[0] if colours and own.paintable else None, None)


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
