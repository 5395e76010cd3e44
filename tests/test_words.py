"""The table of words: small, whole, and as often right as is written; and what makes it."""

from __future__ import annotations

import csv
import importlib
import re
from collections.abc import Collection
from pathlib import Path

import numpy as np
import pytest

from distill.embedded import things, words
from distill.embedded.phrases import COLOURS, singulars
from distill.embedded.prompt import near_name, understand
from distill.embedded.vocabulary import knowing, of_prior

ALL = knowing([(one.name, one.article, True, one.also) for one in things.table()])
CASES = Path(__file__).parents[1] / "examples/embedded/word_cases.csv"


@pytest.mark.slow
def test_cases_that_did_not_choose_the_threshold_come_out_as_often_as_is_written() -> None:
    with CASES.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))[1::2]
    right = wrong = taken = far = 0
    for row in rows:
        wanted = set(row["names"].split("|")) - {""}
        far += not wanted
        try:
            name = understand(row["given"], ALL).name
        except ValueError:
            continue
        right, wrong, taken = (
            right + (name in wanted),
            wrong + (bool(wanted) and name not in wanted),
            taken + (not wanted),
        )
    near = len(rows) - far
    assert near >= 50 and far >= 50
    assert right / near >= 0.75 and wrong / near <= 0.08 and taken / far <= 0.08


def test_the_table_of_words_is_small_and_whole() -> None:
    files = list(words.FOLDER.iterdir())
    assert {path.name for path in files} == {words.LIST, words.BROADER, words.VECTORS, "CREDITS.md"}
    assert sum(path.stat().st_size for path in files) < 3.2e6
    table = words.table()
    assert len(table.index) == len(table.letters) == len(table.vectors) > 20_000
    assert table.vectors.dtype == np.int8 and (np.abs(table.vectors).max(1) == 127).all()
    assert set(table.letters) == {"", "a", "f", "n", "p"}
    assert set(ALL.names) | set(COLOURS) <= set(table.index)
    assert all(set(names) <= set(ALL.names) for names in table.broader.values())


def test_directions_are_of_length_one_and_a_phrase_has_the_mean_of_its_words() -> None:
    cat, dog = (words.vector(word) for word in ("cat", "dog"))
    assert cat is not None and dog is not None
    assert np.linalg.norm(cat) == pytest.approx(1, abs=1e-6) and words.vector("xyzzy") is None
    assert "cat dog" not in words.table().index
    both = words.vector("cat dog")
    assert both is not None
    np.testing.assert_allclose(both, (cat + dog) / np.linalg.norm(cat + dog), atol=1e-6)
    assert dict(words.nearest("cat", ["dog"]))["dog"] == pytest.approx(float(cat @ dog), abs=1e-6)


def test_a_word_is_not_taken_for_what_it_only_stands_in_front_of() -> None:
    assert words.nearest("hospital", ALL.names)[0][0] == "hospital bed"
    assert words.taken_for("hospital", ALL.names) != "hospital bed"
    for text in (
        "ship",
        "shop",
        "snow",
        "fold",
    ):  # a shipping container, a shopping basket, a snowman, a folding screen
        assert words.taken_for(text, ALL.names) is None


@pytest.mark.parametrize("word", ["cow", "work", "chip", "shade", "dolmen"])
def test_another_form_that_is_nearer_is_no_way_round_the_threshold(word: str) -> None:
    assert near_name(word, ALL) is None
    assert any(words.taken_for(form, ALL.names) for form in singulars(word))


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("kitties", "cat"), ("couches", "sofa"), ("lorries", "truck"), ("sneaker", "sneakers"), ("cows", None),
        ("shades", "sunglasses"), ("fries", "french fries"), ("pants", "trousers"),
    ],
)  # fmt: skip
def test_a_plural_is_taken_for_what_its_singular_is_or_for_what_it_means_itself(
    given: str, name: str | None
) -> None:
    assert near_name(given, ALL) == name


@pytest.mark.parametrize(
    ("prompt", "name"), [("a tea pot", "teapot"), ("two tea pots", "teapot"), ("a blue snow man", "snowman")]
)
def test_a_name_that_is_written_as_two_words_is_that_name(prompt: str, name: str) -> None:
    assert understand(prompt, ALL).name == name


def test_one_colour_is_no_second_object() -> None:
    with pytest.raises(ValueError, match="has 'mug' and 'table'; leave out"):
        understand("a red mug on a table", ALL)
    with pytest.raises(ValueError, match="has 'red' and 'blue'; leave out"):
        understand("a red mug in blue", ALL)


NOUNS = """\
  1 a licence
00000100 06 n 02 seat 0 Sitz 0 001 @ 00000900 n 0000 | for sitting on; "he took a seat"
00000200 06 n 01 sofa 0 002 @ 00000100 n 0000 ~ 00000300 n 0000 | a soft seat
00000300 06 n 02 settee 0 love_seat 0 001 @ 00000200 n 0000 | a small sofa
00000400 04 n 01 sofa 0 000 | the act of sitting
00000900 03 n 01 entity 0 000 | what is
"""
INDEX = """\
  1 a licence
seat n 1 1 @ 1 1 00000100
sofa n 2 2 @ ~ 2 1 00000400 00000200
settee n 1 1 @ 1 0 00000300
love_seat n 1 1 @ 1 0 00000300
entity n 1 0 1 0 00000900
"""


def test_wordnets_files_are_read_and_lead_upwards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(CASES.parent))
    wordnet, make = (importlib.import_module(name) for name in ("wordnet", "word_vectors"))
    with pytest.raises(ValueError, match="wordnet-base"):
        wordnet.read(tmp_path)
    (tmp_path / "data.noun").write_text(NOUNS)
    for part in ("noun", "verb", "adj", "adv"):
        (tmp_path / f"index.{part}").write_text(INDEX if part == "noun" else "")
    net = wordnet.read(tmp_path)
    assert net.meant("sofa") == "00000200" and net.letter("sofa") == "a"  # the thing before the act
    assert net.described("love seat") == "love seat, settee: a small sofa" and net.described("and") == "and"
    assert net.letter("entity") == "" and net.of("and") == ()
    named = make.by_sense(net, ["seat", "sofa", "tv stand"])
    assert named == {"00000100": ["seat"], "00000200": ["sofa"]}
    assert make.links(net, "settee", named) == {"sofa": 1, "seat": 2} and make.links(net, "sofa", named) == {
        "seat": 1
    }


def test_a_breed_is_its_animal_through_any_number_of_groups(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(CASES.parent))
    wordnet, make = (importlib.import_module(name) for name in ("wordnet", "word_vectors"))
    chain = ["dog", "hunting_dog", "sporting_dog", "retriever", "golden_retriever"]
    lines = [
        f"{at}00000000 05 n 01 {one} 0 001 @ {at - 1}00000000 n 0000 | a dog"
        for at, one in enumerate(chain, 1)
    ]
    charger = "900000000 06 n 01 charger 0 000 | for a battery"
    (tmp_path / "data.noun").write_text(
        "\n".join([*lines, "000000000 05 n 01 animal 0 000 | alive", charger])
    )
    of = [f"{one} n 1 1 @ 1 0 {at}00000000" for at, one in enumerate(chain, 1)]
    of.append("charger n 2 1 @ 2 0 200000000 900000000")  # a horse or a device is no animal for certain
    for part in ("noun", "verb", "adj", "adv"):
        (tmp_path / f"index.{part}").write_text("\n".join(of) if part == "noun" else "")
    net = wordnet.read(tmp_path)
    assert (
        make.links(net, "retriever", make.by_sense(net, ["dog"])) == {}
    )  # three steps are too many for a thing
    assert make.breeds(net, ["dog"], ["hunting dog\tdog"]) == [
        "sporting dog\tdog", "retriever\tdog", "golden retriever\tdog",
    ]  # fmt: skip


FOWL = """\
000000001 05 n 01 mammal 0 000 | warm
000000002 05 n 01 dog 0 001 @ 000000001 n 0000 | barks
000000003 05 n 01 retriever 0 001 @ 000000002 n 0000 | a dog for hunters
000000004 05 n 01 Labrador_retriever 0 001 @ 000000003 n 0000 | a black dog
000000005 05 n 01 Boston_retriever 0 001 @ 000000003 n 0000 | a small dog
000000006 05 n 01 saddle_retriever 0 001 @ 000000003 n 0000 | a large dog
000000007 15 n 01 Labrador 0 000 | a part of Canada
000000008 15 n 01 Boston 0 000 | a city
000000009 06 n 01 saddle 0 000 | a seat
000000010 05 n 01 dog_pup 0 001 @ 000000001 n 0000 | a young male dog; "it barks"
000000011 13 n 01 chicken 0 000 | a dish
000000012 05 n 01 chicken 0 000 | a bird
000000013 05 n 01 red-hen 0 001 @ 000000012 n 0000 | lays eggs
000000014 06 n 01 bowl 0 000 | a dish
000000015 06 n 01 toilet 0 000 | a fixture
000000016 06 n 01 toilet_bowl 0 002 @ 000000014 n 0000 #p 000000015 n 0000 | a bowl
000000017 06 n 01 salad-bowl 0 001 @ 000000014 n 0000 | a bowl
"""


def test_dishes_the_young_short_names_and_parts_are_linked_to_what_a_prompt_means(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(CASES.parent))
    wordnet, make = (importlib.import_module(name) for name in ("wordnet", "word_vectors"))
    (tmp_path / "data.noun").write_text(FOWL)
    senses: dict[str, list[str]] = {}
    for line in FOWL.splitlines():
        senses.setdefault(line.split()[4].lower(), []).append(line.split()[0])
    index = [f"{noun} n {len(of)} 0 1 0 {' '.join(of)}" for noun, of in senses.items()]
    for part in ("noun", "verb", "adj", "adv"):
        (tmp_path / f"index.{part}").write_text("\n".join(index) if part == "noun" else "")
    net, names = wordnet.read(tmp_path), ["chicken", "dog"]
    assert make.by_sense(net, names) == {"000000011": ["chicken"], "000000002": ["dog"]}
    assert make.by_senses(net, names)["000000012"] == ["chicken"]
    said = make.breeds(net, names, ["retriever\tdog"])
    assert said == [
        "labrador retriever\tdog", "boston retriever\tdog", "saddle retriever\tdog", "red hen\tchicken",
    ]  # fmt: skip
    assert make.young(net, names, said) == ["dog pup\tdog"] and make.young(net, names, ["dog pup\tdog"]) == []
    rows = ["chicken", "dog", "labrador", "boston", "saddle"]
    vectors = np.array([[1, 0, 0], [0, 1, 0], [0, 0.8, 0.6], [0.1, 0.1, 0.99], [0, 1, 0]], np.float32)
    assert make.shortened(net, rows, vectors, names) == ["labrador\tdog"]
    rows, ones = ["toilet bowl", "salad-bowl", "bowl", "toilet"], np.ones((4, 1), np.float32)
    assert make.broader(net, rows, ones, ["bowl", "toilet"]) == ["salad bowl\tbowl"]
    assert make.broader(net, rows, ones, ["bowl"]) == ["toilet bowl\tbowl", "salad bowl\tbowl"]
    assert make.written(["she oak\ttree", "dog pup\tdog", "she oak\tbush"]) == [
        "she oak\ttree",
        "dog pup\tdog",
    ]


@pytest.mark.parametrize(
    ("prompt", "caption"),
    [
        ("a retriever", "a dog"), ("a golden retriever", "a yellow dog"), ("a german shepherd", "a dog"),
        ("two greyhounds", "a dog"), ("a red cocker spaniel", "a red dog"), ("a bobcat", "a cat"), ("a steed", "a horse"),
    ],
)  # fmt: skip
def test_breeds_are_read_as_their_animals(prompt: str, caption: str) -> None:
    assert understand(prompt, ALL).caption == caption


@pytest.mark.parametrize(
    ("prompt", "caption"),
    [
        ("a golden retriever", "a dog"), ("two golden retrievers", "a dog"), ("a red setter", "a dog"), ("a cute red setter", "a dog"),
        ("a red cocker spaniel", "a red dog"), ("a golden kettle", "a yellow kettle"), ("a red carpet", "a red rug"),
    ],
)  # fmt: skip
def test_a_colour_stays_in_the_name_of_a_breed_where_it_could_not_be_chosen(
    prompt: str, caption: str
) -> None:
    known = of_prior("things")
    assert known is not None and not known.names["dog"].paintable and known.names["rug"].paintable
    assert understand(prompt, known).caption == caption


@pytest.mark.parametrize(
    ("prompt", "caption"),
    [
        ("a Labrador", "a dog"), ("two labradors", "a dog"), ("a pit bull", "a dog"), ("a pitbull", "a dog"), ("two bullmastiffs", "a dog"),
        ("a great dane", "a dog"), ("two small great danes", "a dog"), ("a west highland white terrier", "a dog"),
        ("a black-and-tan coonhound", "a dog"), ("a Shih-Tzu", "a dog"), ("a rhode island red", "a chicken"), ("a hen", "a chicken"),
        ("two roosters", "a chicken"), ("a foal", "a horse"), ("a house cat", "a cat"), ("a chest of drawers", "a dresser"),
        ("a white pine", "a pine tree"), ("a white-tailed deer", "a deer"), ("a double-decker, left view", "a bus, left view"),
    ],
)  # fmt: skip
def test_what_is_refused_word_by_word_is_read_by_its_phrases(prompt: str, caption: str) -> None:
    known = of_prior("things")
    assert known is not None and understand(prompt, known).caption == caption


@pytest.mark.parametrize(
    "prompt",
    [
        "a black duck", "a black labrador", "a great dane and a cat", "a cat on a chest of drawers", "a great dane teapot cosy", "a boston",
        "a virginia", "a two year old", "a computer keyboard", "a bed and breakfast", "a tree trunk", "a toilet bowl", "a piano keyboard",
    ],
)  # fmt: skip
def test_a_phrase_is_no_way_round_a_refusal(prompt: str) -> None:
    known = of_prior("things")
    assert known is not None
    with pytest.raises(ValueError, match=r"does not know|one object"):
        understand(prompt, known)


def test_a_phrase_without_a_vector_is_near_nothing() -> None:
    own = words.table()
    assert own.broader["iced tea spoon"] == ("spoon",) and "iced tea spoon" not in own.index
    assert words.taken_for("iced tea spoon", ["spoon"]) == "spoon"
    assert words.nearest("iced tea spoon", ["teapot"])[0][1] > words.NEAR
    assert words.taken_for("iced tea spoon", ["teapot"]) is None


def test_a_refusal_is_of_the_words_that_were_given() -> None:
    with pytest.raises(ValueError, match="has 'and'; leave out"):
        understand("a great dane and a sheepdog", ALL)


@pytest.mark.parametrize(
    ("prompt", "taken"),
    [
        ("a short table", (("short", ""),)), ("a short-haired cat", (("short", ""), ("haired", ""))), ("a short", (("short", "shorts"),)),
        ("a pair of shorts", ()), ("a german short-haired pointer", (("german short haired pointer", "dog"),)),
    ],
)  # fmt: skip
def test_the_singular_of_a_pair_in_front_of_a_name_is_an_adjective(
    prompt: str, taken: tuple[tuple[str, str], ...]
) -> None:
    assert understand(prompt, ALL).taken == taken
    with pytest.raises(ValueError, match="does not know 'trouser press'"):
        understand("a trouser press", ALL)


@pytest.mark.parametrize("word", ["charger", "setter", "wheeler", "cairn", "harrier"])
def test_a_word_that_also_means_something_else_is_no_breed(word: str) -> None:
    assert words.means(word, ALL.names) is None


def test_small_vectors_keep_directions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(CASES.parent))
    make = importlib.import_module("word_vectors")
    generator = np.random.default_rng(0)
    full = make.unit((generator.normal(size=(300, 50)) @ generator.normal(size=(50, 120))).astype(np.float32))
    few = make.small(full)  # of rank 50, which 96 directions hold
    assert few.dtype == np.int8 and few.shape == (300, make.DIMENSIONS)
    assert (
        np.abs(make.unit(few.astype(np.float32)) @ make.unit(few.astype(np.float32)).T - full @ full.T).max()
        < 0.02
    )


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        ("a red mug " * 1000, "has 'mug' and 'mug' and 'mug' and 'mug' and 996 more; leave out"),
        (
            "a red and blue and green and yellow mug",
            "has 'red' and 'blue' and 'green' and 'yellow'; leave out",
        ),
        ("mug " + "q" * 10_000, "does not know '" + "q" * 57 + "...' in the prompt"),
        ("\U0001f986" * 10_000, "in the prompt"),
        ("/" * 5000 + " x" * 200, "in the prompt"),
    ],
)
def test_a_prompt_of_any_length_is_refused_in_one_short_line(prompt: str, said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)) as caught:
        understand(prompt, ALL)
    assert len(str(caught.value)) < 500 and "\n" not in str(caught.value)


@pytest.mark.parametrize("word", ["truth", "zqx"])
def test_a_prompt_is_read_at_a_cost_that_grows_with_its_length(
    monkeypatch: pytest.MonkeyPatch, word: str
) -> None:
    looked_up, real = list[int](), words.means

    def means(text: str, names: Collection[str]) -> str | None:
        looked_up.append(len(text))
        return real(text, names)

    monkeypatch.setattr(words, "means", means)

    def cost(count: int) -> int:
        looked_up.clear()
        with pytest.raises(ValueError, match="does not know"):
            understand(" ".join([word] * count), ALL)
        return sum(looked_up)

    assert 0 < cost(400) <= 2.1 * cost(200)  # twice, and what a second reading in phrases adds to each


@pytest.mark.parametrize("before", [0, 1, 50])
def test_a_phrase_of_several_words_is_found_at_the_end_of_any_prompt(before: int) -> None:
    phrase, name = "east indian fig tree", "tree"
    assert name in words.table().broader[phrase]
    meaning = understand("truth " * before + phrase, knowing([(name, "a", False, "")]))
    assert meaning.name == name and meaning.taken == (*[("truth", "")] * before, (phrase, name))


def test_no_phrase_of_the_table_is_longer_than_it_says() -> None:
    own = words.table()
    assert max(each.count(" ") + 1 for each in [*own.index, *own.broader]) == words.LONGEST
