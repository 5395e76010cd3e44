"""WordNet's nouns: their senses, glosses and broader words, read from its own files (Debian's ``wordnet-base`` has them)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

#: WordNet's files of nouns by number (``lexnames``) and the letter of what can be a thing; shapes count as artifacts.
CLASSES = {5: "n", 6: "a", 13: "f", 20: "p", 25: "a"}
#: What else can be seen and touched: parts of bodies, natural objects, substances.
SEEN = (8, 17, 27)
ANIMALS, PLACES = 5, 15
#: Steps that no chain of broader senses has.
ALL = 20


@dataclass(frozen=True)
class Sense:
    """A synset of nouns.

    Attributes:
        file: the number of WordNet's file that has it.
        words: that mean it; proper names begin with a capital.
        gloss: what it is, without examples.
        broader: offsets of the synsets above it.
        whole: offsets of what it is a part of.
    """

    file: int
    words: tuple[str, ...]
    gloss: str
    broader: tuple[str, ...]
    whole: tuple[str, ...] = ()


@dataclass(frozen=True)
class WordNet:
    """The nouns and all words.

    Attributes:
        senses: by offset.
        nouns: offsets of a noun's senses, the most frequent first.
        lemmas: all words of any kind.
    """

    senses: dict[str, Sense]
    nouns: dict[str, tuple[str, ...]]
    lemmas: frozenset[str]

    def of(self, word: str) -> tuple[str, ...]:
        """The senses of a noun, none of another word."""
        return self.nouns.get(word.replace(" ", "_"), ())

    def meant(self, word: str) -> str | None:
        """The sense of a noun in a prompt for an object: a thing's before others, of the first four."""
        offsets = self.of(word)
        for files, count in ((tuple(CLASSES), 4), (SEEN, 2)):
            for offset in offsets[:count]:
                if self.senses[offset].file in files:
                    return offset
        return offsets[0] if offsets else None

    def is_animal(self, word: str) -> bool:
        """Tell whether all senses of a noun are animals."""
        files = {self.senses[offset].file for offset in self.of(word)}
        return files == {ANIMALS}

    def is_place(self, word: str) -> bool:
        """Tell whether all senses of a noun are places."""
        return {self.senses[offset].file for offset in self.of(word)} == {PLACES}

    def animal(self, word: str) -> str | None:
        """The first sense of a noun that is an animal, or None."""
        return next((offset for offset in self.of(word) if self.senses[offset].file == ANIMALS), None)

    def above(self, word: str, steps: int) -> Iterator[tuple[int, str]]:
        """Synsets of a thing's first two senses and those above them, with the steps to each."""
        for start in [offset for offset in self.of(word) if self.senses[offset].file in CLASSES][:2]:
            level = {start: None}
            for step in range(steps + 1):
                for offset in level:
                    yield step, offset
                level = dict.fromkeys(up for offset in level for up in self.senses[offset].broader)

    def described(self, word: str) -> str:
        """A noun with its synonyms and its gloss; any other word alone."""
        offset = self.meant(word)
        if offset is None:
            return word
        sense = self.senses[offset]
        same = [each for each in sense.words if each.lower() != word][:3]
        return f"{', '.join([word, *same])}: {sense.gloss}"

    def letter(self, word: str) -> str:
        """The letter of the class of a thing, empty for what is none."""
        offset = self.meant(word)
        return "" if offset is None else CLASSES.get(self.senses[offset].file, "")


def read(folder: Path) -> WordNet:
    """Read WordNet 3.0's ``data.noun`` and its four indices.

    Raises:
        ValueError: a file is missing.
    """
    try:
        senses = dict(_senses(_lines(folder / "data.noun")))
        nouns, lemmas = {}, set()
        for part in ("noun", "verb", "adj", "adv"):
            for line in _lines(folder / f"index.{part}"):
                fields = line.split()
                lemmas.add(fields[0])
                if part == "noun":
                    nouns[fields[0]] = tuple(fields[-int(fields[2]) :])
    except OSError as error:
        raise ValueError(
            f"{error.filename} is missing; Debian's package wordnet-base has WordNet's files in usr/share/wordnet"
        ) from None
    return WordNet(senses, nouns, frozenset(lemmas))


def _lines(path: Path) -> Iterator[str]:
    with path.open(encoding="ascii") as file:
        yield from (line for line in file if not line.startswith(" "))  # the licence is indented


def _senses(lines: Iterable[str]) -> Iterator[tuple[str, Sense]]:
    for line in lines:
        head, _, gloss = line.partition("|")
        fields = head.split()
        count = int(fields[3], 16)
        words = tuple(fields[4 + 2 * at].replace("_", " ") for at in range(count))
        begin = 5 + 2 * count
        pointers = [fields[begin + 4 * at : begin + 4 * at + 4] for at in range(int(fields[begin - 1]))]
        broader = tuple(target for mark, target, part, _ in pointers if mark == "@" and part == "n")
        whole = tuple(target for mark, target, part, _ in pointers if mark == "#p" and part == "n")
        told = gloss.split('; "')[0].strip().rstrip(";")
        yield fields[0], Sense(int(fields[1]), words, told, broader, whole)
